"""Driver for any receiver unit that speaks GRX/1 over TCP.

Source:
    docs/reference/generic-receiver-protocol.md, GRX/1.
"""

from __future__ import annotations

import re
import time
from fractions import Fraction
from typing import ClassVar

import numpy as np

from qkdhw._core import grx as kernels
from qkdhw.drivers.event_stream import EventStream
from qkdhw.drivers.generic_unit import GONE, GenericUnit
from qkdhw.drivers.setting import ChannelSetting, Reply, Setting
from qkdhw.drivers.text_instrument import shown
from qkdhw.errors import CommandRefusedError, NonMonotonicTimeError, UnitStateError, WireFormatError
from qkdhw.model import DetectionBlock

MAX_EVENTS = 1_048_576
LARGEST_BASE = (1 << 63) - (1 << 44) - 1
POLL_S = 0.02
DETECTORS = (1, 2, 3, 4)
_EVENTS = re.compile(r"([0-9]{1,19}) ([0-9]{1,7}) ([0-9]{1,19})")
_RUN = re.compile(r"[1-9][0-9]{0,18}")
_TICK = re.compile(r"([1-9][0-9]{0,11})(?:/([1-9][0-9]{0,11}))?")


class GenericRx(GenericUnit):
    """A GRX/1 receiver as an `interfaces.ReceiverUnit` and `interfaces.TimeTagger`; a context manager.

    Args:
        transport: Open link, owned from now on.
        timeout_s: Longest wait for an answer, events included.
    """

    vendor: ClassVar[str] = "any (GRX/1)"
    model: ClassVar[str] = "GRX/1 receiver"
    unit_kind: ClassVar[str] = "receiver"
    capabilities: ClassVar[frozenset[str]] = frozenset({"ReceiverUnit", "TimeTagger"})
    protocol: ClassVar[str] = "GRX/1"
    specification: ClassVar[str] = "docs/reference/generic-receiver-protocol.md"
    counter_names: ClassVar[tuple[str, ...]] = ("events", "buffered", "lost", *(f"photons_{d}" for d in DETECTORS))
    alarm_names: ClassVar[tuple[str, ...]] = (
        "event_buffer_overrun",
        "clock_unlocked",
        "detector_temperature",
        "bright_light",
        "detector_fault",
    )

    detector_enabled = ChannelSetting(
        bool, channels=DETECTORS, reply=Reply.LINE, doc="Whether ARM gives the detector its bias.",
    )  # fmt: skip
    detector_efficiency = ChannelSetting(
        float, minimum=0.0, maximum=1.0, step=0.05, channels=DETECTORS, reply=Reply.LINE,
        doc="Detection efficiency; the unit chooses the bias for it.",
    )  # fmt: skip
    threshold_v = ChannelSetting(
        float, unit="V", minimum=-5.0, maximum=5.0, step=0.05, channels=DETECTORS, reply=Reply.LINE,
        doc="Threshold of the detector's discriminator.",
    )  # fmt: skip
    dead_time_ns = Setting(
        float, unit="ns", minimum=0.0, maximum=1e6, step=10.0, relative_step=0.05, reply=Reply.LINE,
        doc="Dead time that the unit enforces on each detector.",
    )  # fmt: skip
    gate_delay_ns = Setting(
        float, unit="ns", minimum=0.0, maximum=1e6, step=1.0, reply=Reply.LINE, doc="From the pulse clock to the gate.",
    )  # fmt: skip
    gate_width_ns = Setting(
        float, unit="ns", minimum=0.0, maximum=1e6, step=1.0, reply=Reply.LINE, doc="Length of a gate; 0 runs free.",
    )  # fmt: skip
    key_basis_probability = Setting(
        float, minimum=0.05, maximum=0.95, step=1 / 65536, reply=Reply.LINE,
        doc="Probability that a photon is measured in the key basis.",
    )  # fmt: skip
    basis_choice = Setting(
        str, access="r", choices=("passive", "active"), doc="Whether a splitter or a modulator chooses the basis.",
    )  # fmt: skip
    tick_ps = Setting(str, access="r", doc="Length of a tick in picoseconds, a whole number or a fraction.")

    _run = 0  # the run that we started, or 0
    _running = False
    _next_index = 0
    _last_ticks = -1
    _tick = Fraction(1)

    def start(self) -> None:
        """Start a stream of events at time 0; a unit that is idle is armed first. Older events are dropped.

        Raises:
            UnitStateError: It runs already, or is in a fault.
        """
        with self._exchange():
            if self._read_state()["state"] == "idle":
                self._ask("ARM")
                self._engaged = True
            answer = self._ask("START")
            if not _RUN.fullmatch(answer):
                raise WireFormatError(f"START was answered by OK {shown(answer)}, not by a run number")
            self._engaged = self._running = True
            self._run, self._next_index, self._last_ticks = int(answer), 0, -1
            text = self._ask("CONF? tick_ps")
            tick = _TICK.fullmatch(text)
            if tick is None:
                raise WireFormatError(f"CONF? tick_ps was answered by {shown(text)}, not by a number or a fraction")
            self._tick = Fraction(int(tick[1]), int(tick[2] or 1))

    def stop(self) -> None:
        """Stop the stream; events that the unit has buffered stay readable.

        Raises:
            UnitStateError: The unit is neither armed nor running.
        """
        super().stop()
        self._running = False

    def stream(self) -> EventStream:
        """Start, and return the blocks as they come; leaving it stops the unit."""
        return EventStream(self)

    def read_block(self, max_events: int, *, timeout_s: float = 5.0) -> DetectionBlock:
        """Read the next events, in the order sent, each once; empty at the deadline, or at once after `stop`.

        Reading on tells the unit that it may forget what was read before. What the unit lost is in the stream:
        GAP_BEGIN, MISSED with its number in the block's `missed`, GAP_END.

        Args:
            max_events: 1 or more; a block holds 1048576 at most.
            timeout_s: Longest wait for the first event.

        Raises:
            ValueError: `max_events` is below 1.
            UnitStateError: Nothing was started, or the unit no longer has the run that was.
            WireFormatError: The CRC was wrong three times in a row, or a record cannot be true.
            NonMonotonicTimeError: Time goes backwards.
        """
        if max_events < 1:
            raise ValueError(f"max_events must be at least 1, not {max_events}")
        deadline_s = time.monotonic() + timeout_s
        while True:
            block = self._read_events(min(max_events, MAX_EVENTS))
            left_s = deadline_s - time.monotonic()
            if len(block) or not self._running or left_s <= 0:
                return block
            time.sleep(min(POLL_S, left_s))

    def _read_events(self, n_asked: int) -> DetectionBlock:
        with self._exchange():  # one reader at a time, from the question to the next index
            first = self._next_index
            if not self._run:
                raise UnitStateError("the receiver was not started", remedy="start it")

            def size_bytes(match: re.Match[str]) -> int:
                if int(match[1]) != first or int(match[2]) > n_asked or int(match[3]) > LARGEST_BASE:
                    raise WireFormatError(f"events from {first} were asked for, at most {n_asked}; others came")
                return 8 * int(match[2])

            try:
                match, data = self._ask_packed(
                    f"EVT? {self._run} {first} {n_asked}", _EVENTS, size_bytes, crc_of_line=True
                )
            except CommandRefusedError as error:
                if error.code != GONE:
                    raise
                raise UnitStateError(
                    f"the unit no longer has the events from {first} of run {self._run}: it was restarted, or another "
                    "program started or read it",
                    remedy="start it again at both sites",
                ) from error
            block = self._decoded(data, int(match[3]))
            self._next_index += len(block)
            return block

    def _decoded(self, data: memoryview, base: int) -> DetectionBlock:
        n = len(data) // 8
        time_ticks, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        missed, bad, back = kernels.decode_grx(data, base, self._last_ticks, time_ticks, channel, kind)
        if bad >= 0:
            raise WireFormatError(
                f"event {self._next_index + bad} has a kind or value that GRX/1 does not have",
                remedy="update the unit's firmware",
            )
        if back >= 0:
            raise NonMonotonicTimeError(
                f"event {self._next_index + back} is earlier than the one before it",
                index=back,
                remedy="start the unit again; update its firmware",
            )
        self._last_ticks = int(time_ticks[-1]) if n else self._last_ticks
        return DetectionBlock(time_ticks, channel, kind, self._tick, missed=missed)
