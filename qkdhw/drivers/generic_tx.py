"""Driver for any transmitter unit that speaks GTX/1 over TCP.

Source:
    docs/reference/generic-transmitter-protocol.md, GTX/1.
"""

from __future__ import annotations

import re
import time
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qkdhw.drivers.generic_unit import GONE, GenericUnit
from qkdhw.drivers.setting import Reply, Setting, TupleSetting
from qkdhw.errors import CommandRefusedError, EventOverflowError, UnitStateError, WireFormatError
from qkdhw.model import PreparationBlock

MAX_RECORDS = 4_194_304
POLL_S = 0.02
_RECORDS = re.compile(r"([0-9]{1,19}) ([0-9]{1,7})")

# A byte holds two pulses, the even one in the low nibble: this turns a byte into two little-endian bytes.
_EXPAND: NDArray[np.uint16] = np.array([byte & 15 | byte >> 4 << 8 for byte in range(256)], "<u2")


class GenericTx(GenericUnit):
    """A GTX/1 transmitter as an `interfaces.TransmitterUnit`; a context manager.

    `configure` checks the form of values that depend on each other; their ranges are the unit's to judge.

    Args:
        transport: Open link, owned from now on.
        timeout_s: Longest wait for an answer, records included.
    """

    vendor: ClassVar[str] = "any (GTX/1)"
    model: ClassVar[str] = "GTX/1 transmitter"
    unit_kind: ClassVar[str] = "transmitter"
    capabilities: ClassVar[frozenset[str]] = frozenset({"TransmitterUnit"})
    protocol: ClassVar[str] = "GTX/1"
    specification: ClassVar[str] = "docs/reference/generic-transmitter-protocol.md"
    counter_names: ClassVar[tuple[str, ...]] = ("pulses", "buffered", "lost")
    alarm_names: ClassVar[tuple[str, ...]] = (
        "record_buffer_overrun",
        "clock_unlocked",
        "laser_temperature",
        "back_reflection",
        "intensity_out_of_tolerance",
    )

    pulse_rate_hz = Setting(
        int, unit="Hz", minimum=1_000_000, maximum=5_000_000_000, relative_step=0.34, reply=Reply.LINE,
        doc="Pulses per second; the unit takes a divisor of 10 GHz near it.",
    )  # fmt: skip
    mean_photon_number = TupleSetting(
        float, length=3, minimum=0, maximum=2, step=0.001, relative_step=0.03, reply=Reply.LINE,
        doc="Mean photons per pulse, brightest first, strictly falling.",
    )  # fmt: skip
    intensity_probability = TupleSetting(
        float, length=3, minimum=0, maximum=1, step=1 / 65536, reply=Reply.LINE,
        doc="Probability of each intensity, brightest first, with sum 1.",
    )  # fmt: skip
    key_basis_probability = Setting(
        float, minimum=0.05, maximum=0.95, step=1 / 65536, reply=Reply.LINE,
        doc="Probability that a pulse is prepared in the key basis.",
    )  # fmt: skip

    _next_index = 0
    _ended = False  # an odd count of records was the last
    _running = False  # started by us and not stopped
    _interrupted = False  # the unit lost a run that we had started

    def start(self) -> None:
        """Send pulses; the pulse index begins at 0 and older records are dropped.

        Raises:
            UnitStateError: The unit is not armed.
        """
        self._do("START")
        self._engaged = self._running = True
        self._next_index = 0
        self._ended = self._interrupted = False

    def stop(self) -> None:
        """Stop sending; records stay readable.

        Raises:
            UnitStateError: The unit is neither armed nor running.
        """
        super().stop()
        self._running = False

    def read_preparation(self, max_pulses: int, *, timeout_s: float = 5.0) -> PreparationBlock:
        """Read what was prepared, in order, each pulse once; empty at the deadline.

        Reading on tells the unit that it may forget what was read before.

        Args:
            max_pulses: 2 to 4194304; an odd number is lowered by one.
            timeout_s: Longest wait for the first record.

        Raises:
            ValueError: `max_pulses` is out of range.
            EventOverflowError: The unit's buffer ran over: records were lost before they were read.
            UnitStateError: The unit was restarted; what it had prepared is gone.
            WireFormatError: The records' CRC was wrong three times in a row, or a record cannot be true.
        """
        if not 2 <= max_pulses <= MAX_RECORDS:
            raise ValueError(f"max_pulses must be 2 to {MAX_RECORDS}, not {max_pulses}")
        deadline_s = time.monotonic() + timeout_s
        first, record = self._next_index, np.empty(0, np.uint8)
        while not self._ended:
            record = self._read_records(first, max_pulses & ~1)
            left_s = deadline_s - time.monotonic()
            if len(record) or left_s <= 0:
                break
            time.sleep(min(POLL_S, left_s))
        self._next_index += len(record)
        self._ended |= bool(len(record) & 1)
        return PreparationBlock(first, record)

    def _read_records(self, first: int, n_asked: int) -> NDArray[np.uint8]:
        def size_bytes(match: re.Match[str]) -> int:
            if int(match[1]) != first or int(match[2]) > n_asked:
                raise WireFormatError(f"records from {first} were asked for, at most {n_asked}; others came")
            return (int(match[2]) + 1) // 2

        try:
            match, packed = self._ask_packed(f"REC? {first} {n_asked}", _RECORDS, size_bytes)
        except CommandRefusedError as error:
            if error.code != GONE:
                raise
            lost = self.read_status().counters["lost"]
            raise EventOverflowError(
                f"the unit lost {lost} preparation records before they were read",
                lost=lost,
                remedy="read faster or lower pulse_rate_hz, then start again",
            ) from error
        if self._interrupted:
            raise UnitStateError(
                "the unit was restarted: what it had prepared is gone", remedy="arm and start it again at both sites"
            )
        return _expand(packed, int(match[2]))

    def _recover(self) -> None:
        """As for all, and see whether the unit still has the run that we started."""
        super()._recover()
        if self._running:
            fields = self._read_state()
            self._interrupted |= fields["state"] != "running" and int(fields["pulses"]) < max(1, self._next_index)


def _expand(packed: memoryview, n: int) -> NDArray[np.uint8]:
    record = _EXPAND[np.frombuffer(packed, np.uint8)].view(np.uint8)
    if (n & 1 and record[-1]) or (n and int(record.max()) > 11):
        raise WireFormatError(
            "a preparation record has intensity index 3 or a filled last nibble", remedy="update the unit's firmware"
        )
    return record[:n]
