"""Driver for any transmitter unit that speaks GTX/1 over TCP.

Source:
    docs/reference/generic-transmitter-protocol.md, GTX/1.
"""

from __future__ import annotations

import contextlib
import re
import time
import zlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    EventOverflowError,
    QkdhwError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.interfaces import Transport
from qkdhw.model import PreparationBlock, UnitInfo, UnitStatus

REPLY_LIMIT_BYTES = 1024
MAX_RECORDS = 4_194_304
CRC_ATTEMPTS = 3
POLL_S = 0.02
STATES = ("idle", "armed", "running", "fault")
ALARMS = (
    "record_buffer_overrun",
    "clock_unlocked",
    "laser_temperature",
    "back_reflection",
    "intensity_out_of_tolerance",
)
WRONG_STATE, RECORDS_GONE = "3", "5"  # ERR codes with a class of their own

_REFUSED = re.compile(r"ERR ([0-9]{1,4})(?: (.*))?")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NAME = re.compile(r"[a-z][a-z0-9_]*")

# A byte holds two pulses, the even one in the low nibble: this turns a byte into two little-endian bytes.
_EXPAND: NDArray[np.uint16] = np.array([byte & 15 | byte >> 4 << 8 for byte in range(256)], "<u2")


class GenericTx:
    """A GTX/1 transmitter as an `interfaces.TransmitterUnit`; a context manager.

    Args:
        transport: Open link, owned from now on.
        timeout_s: Longest wait for an answer, records included.
    """

    vendor: ClassVar[str] = "any (GTX/1)"
    unit_kind: ClassVar[str] = "transmitter"

    def __init__(self, transport: Transport, *, timeout_s: float = 5.0) -> None:
        self._link = transport
        self._timeout_s = timeout_s
        self._next_index = 0
        self._ended = False  # an odd count of records was the last
        self._engaged = False  # armed or started by us: ours to stop
        self._identity = ""
        self._identity = self._read_identity()
        self._info = _parse_identity(self._identity)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def identify(self) -> UnitInfo:
        """Ask the unit who it is.

        Raises:
            UnitError: Something that does not speak GTX/1 answers.
        """
        self._info = _parse_identity(self._command("IDN?"))
        return self._info

    def configure(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Apply settings, in the order given, and return what the unit says it now has.

        Args:
            settings: `pulse_rate_hz` (int), `mean_photon_number` and `intensity_probability` (three numbers each,
                brightest first), `key_basis_probability`. Ranges are the unit's to judge.

        Returns:
            The same names with the values as the unit quantised them; three numbers are a tuple.

        Raises:
            ConfigurationError: A name is unknown or a value has the wrong form; nothing was sent.
            CommandRefusedError: The unit refused a value; settings before it are applied.
            UnitStateError: The unit is not idle.
        """
        commands = {name: f"CONF {name} {_setting_text(name, value)}" for name, value in settings.items()}
        return {name: _setting_value(name, self._command(command)) for name, command in commands.items()}

    def read_status(self) -> UnitStatus:
        """Read state, counters, monitors and latched alarms.

        Monitors that the unit does not have are absent. `clock_locked` is 1.0 or 0.0, as of now.
        """
        fields = _parse_pairs(self._command("STAT?"))
        if set(fields) != {"state", "pulses", "buffered", "lost", "clock", "alarms"}:
            raise WireFormatError(f"STAT? was answered with the fields {', '.join(fields)}")
        if fields["state"] not in STATES or fields["clock"] not in {"locked", "free"}:
            raise WireFormatError(f"STAT? was answered with state {fields['state']!a}, clock {fields['clock']!a}")
        if not re.fullmatch(r"(0x)?[0-9A-Fa-f]{1,16}", fields["alarms"]):
            raise WireFormatError(f"STAT? was answered with alarms {fields['alarms']!a}")
        counters = {name: _count(name, fields[name]) for name in ("pulses", "buffered", "lost")}
        monitors = {name: _number(name, text) for name, text in _parse_pairs(self._command("MON?")).items()}
        monitors["clock_locked"] = float(fields["clock"] == "locked")
        return UnitStatus(fields["state"], counters, monitors, _alarm_names(int(fields["alarms"], 16)))

    def clear_alarms(self) -> None:
        """Clear latched alarms whose cause is gone."""
        self._command_done("CLR")

    def arm(self) -> None:
        """Make ready to send.

        Raises:
            UnitStateError: The unit is not idle.
        """
        self._command_done("ARM")
        self._engaged = True

    def start(self) -> None:
        """Send pulses; the pulse index begins at 0 and older records are dropped.

        Raises:
            UnitStateError: The unit is not armed.
        """
        self._command_done("START")
        self._engaged = True
        self._next_index = 0
        self._ended = False

    def stop(self) -> None:
        """Stop sending; records stay readable.

        Raises:
            UnitStateError: The unit is neither armed nor running.
        """
        self._command_done("STOP")
        self._engaged = False

    def read_preparation(self, max_pulses: int, *, timeout_s: float = 5.0) -> PreparationBlock:
        """Read what was prepared, in order, each pulse once; empty at the deadline.

        Reading on tells the unit that it may forget what was read before.

        Args:
            max_pulses: 2 to 4194304; an odd number is lowered by one.
            timeout_s: Longest wait for the first record.

        Raises:
            ValueError: `max_pulses` is out of range.
            EventOverflowError: The unit's buffer ran over: records were lost before they were read.
            WireFormatError: The records' CRC was wrong three times in a row, or a record cannot be true.
        """
        if not 2 <= max_pulses <= MAX_RECORDS:
            raise ValueError(f"max_pulses must be 2 to {MAX_RECORDS}, not {max_pulses}")
        deadline_s = time.monotonic() + timeout_s
        n_asked = max_pulses & ~1
        first, record = self._next_index, np.empty(0, np.uint8)
        while not self._ended:
            record = self._read_records(first, n_asked)
            left_s = deadline_s - time.monotonic()
            if len(record) or left_s <= 0:
                break
            time.sleep(min(POLL_S, left_s))
        self._next_index += len(record)
        self._ended |= bool(len(record) & 1)
        return PreparationBlock(first, record)

    def close(self) -> None:
        """Stop what this object armed or started, and close the transport."""
        try:
            if self._engaged:
                with contextlib.suppress(QkdhwError):  # idle already, or the link is gone
                    self.stop()
        finally:
            self._link.close()

    def _read_records(self, first: int, n_asked: int) -> NDArray[np.uint8]:
        """Ask for records until their CRC is right: a request may be repeated."""
        for _ in range(CRC_ATTEMPTS):
            n, packed, crc = self._request_records(first, n_asked)
            if zlib.crc32(packed) == crc:
                return _expand(packed, n)
        raise WireFormatError(
            f"records from pulse {first} had a wrong CRC {CRC_ATTEMPTS} times",
            remedy="check the network between this host and the unit",
        )

    def _request_records(self, first: int, n_asked: int) -> tuple[int, bytes, int]:
        command = f"REC? {first} {n_asked}"
        with self._link.exchange(self._resynchronise, timeout_s=self._timeout_s):
            reply = self._ask(command)
            if not reply.startswith("ERR"):
                match = re.fullmatch(r"OK ([0-9]{1,19}) ([0-9]{1,7})", reply)
                if not match or int(match[1]) != first or int(match[2]) > n_asked:
                    raise WireFormatError(f"{command} was answered by {_shown(reply)}")
                n = int(match[2])
                size = (n + 1) // 2
                body = self._link.read_exactly(size + 4, timeout_s=self._timeout_s)
                return n, body[:size], int.from_bytes(body[size:], "little")
        try:
            _check_reply(command, reply)
        except CommandRefusedError as error:
            if error.code != RECORDS_GONE:
                raise
            lost = self.read_status().counters["lost"]
            raise EventOverflowError(
                f"the unit lost {lost} preparation records before they were read",
                lost=lost,
                remedy="read faster or lower pulse_rate_hz, then start again",
            ) from error
        raise WireFormatError(f"{command} was answered by {_shown(reply)}")

    def _command_done(self, command: str) -> None:
        payload = self._command(command)
        if payload:
            raise WireFormatError(f"{command} was answered by OK {_shown(payload)}, not by OK alone")

    def _command(self, command: str) -> str:
        with self._link.exchange(self._resynchronise, timeout_s=self._timeout_s):
            reply = self._ask(command)
        return _check_reply(command, reply)

    def _ask(self, command: str) -> str:
        self._link.write(command.encode("ascii") + b"\n", timeout_s=self._timeout_s)
        line = self._link.read_until(b"\n", limit=REPLY_LIMIT_BYTES, timeout_s=self._timeout_s)
        reply = line[:-1].decode("latin-1")
        known = reply == "OK" or reply.startswith("OK ") or _REFUSED.fullmatch(reply)
        if not known or not reply.isascii() or not reply.isprintable():
            shown = f"{len(reply)} bytes" if command.startswith("REC?") else _shown(reply)
            raise WireFormatError(
                f"{command} was answered by {shown}, not by a GTX/1 reply",
                remedy="check the address and the driver name",
            )
        return reply

    def _read_identity(self) -> str:
        with self._link.exchange(self._resynchronise, timeout_s=self._timeout_s):
            return _check_reply("IDN?", self._ask("IDN?"))

    def _resynchronise(self) -> None:
        """Connect anew, as an old answer cannot cross into a new connection, and check that it is the same unit.

        The unit keeps its state and its records; a request for records may be repeated.
        """
        self._link.reconnect(timeout_s=self._timeout_s)
        identity = _check_reply("IDN?", self._ask("IDN?"))
        if self._identity and identity != self._identity:
            raise UnitError(
                f"{self._link.url} now leads to {_shown(identity)}, not to {_shown(self._identity)}",
                remedy="open the unit again",
            )


def _expand(packed: bytes, n: int) -> NDArray[np.uint8]:
    record = _EXPAND[np.frombuffer(packed, np.uint8)].view(np.uint8)
    if (n & 1 and record[-1]) or (n and int(record.max()) > 11):
        raise WireFormatError(
            "a preparation record has intensity index 3 or a filled last nibble", remedy="update the unit's firmware"
        )
    return record[:n]


def _check_reply(command: str, reply: str) -> str:
    refused = _REFUSED.fullmatch(reply)
    if not refused:
        return reply[3:]
    code, text = refused[1], _shown(refused[2] or "")
    if code == WRONG_STATE:
        raise UnitStateError(
            f"the unit cannot do {command} in its state: {text}", remedy="read its status; stop or arm it first"
        )
    raise CommandRefusedError(
        f"the unit refused {command}: error {code}, {text}",
        command=command,
        code=code,
        remedy="docs/reference/generic-transmitter-protocol.md lists settings, ranges and error codes",
    )


def _parse_identity(payload: str) -> UnitInfo:
    fields = payload.split(",")
    if len(fields) != 5 or fields[4] != "GTX/1":
        raise UnitError(
            f"this is not a GTX/1 unit: IDN? was answered by {_shown(payload)}",
            remedy="check the address and the driver name",
        )
    return UnitInfo(*fields)


def _parse_pairs(payload: str) -> dict[str, str]:
    pairs = dict(pair.partition("=")[::2] for pair in payload.split(" ")) if payload else {}
    if len(pairs) != (payload.count(" ") + 1 if payload else 0) or not all(map(_NAME.fullmatch, pairs)):
        raise WireFormatError(f"{_shown(payload)} is not a list of name=value")
    return pairs


def _count(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise WireFormatError(f"{name}={_shown(text)} is not a count")
    return int(text)


def _number(name: str, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise WireFormatError(f"{name}={_shown(text)} is not a number")
    return float(text)


def _alarm_names(bits: int) -> tuple[str, ...]:
    return tuple(
        ALARMS[bit] if bit < len(ALARMS) else f"alarm_bit_{bit}" for bit in range(bits.bit_length()) if bits >> bit & 1
    )


_N_NUMBERS = {
    "pulse_rate_hz": 1,
    "mean_photon_number": 3,
    "intensity_probability": 3,
    "key_basis_probability": 1,
}


def _setting_text(name: str, value: Any) -> str:
    if name not in _N_NUMBERS:
        raise ConfigurationError(
            f"a GTX/1 transmitter has no setting {name!r}", remedy=f"settings: {', '.join(_N_NUMBERS)}"
        )
    numbers = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    allowed = (int, np.integer) if name == "pulse_rate_hz" else (int, float, np.integer, np.floating)
    right_form = all(isinstance(x, allowed) and not isinstance(x, bool) and np.isfinite(x) for x in numbers)
    if len(numbers) != _N_NUMBERS[name] or not right_form:
        raise ConfigurationError(
            f"{name} = {value!r} has the wrong form",
            remedy=f"give {_N_NUMBERS[name]} {'integer' if name == 'pulse_rate_hz' else 'number(s)'}",
        )
    return ",".join(str(x) if name == "pulse_rate_hz" else np.format_float_positional(x, trim="-") for x in numbers)


def _setting_value(name: str, payload: str) -> int | float | tuple[float, ...]:
    texts = payload.split(",")
    if len(texts) != _N_NUMBERS[name]:
        raise WireFormatError(f"{name} was read back as {_shown(payload)}")
    if name == "pulse_rate_hz":
        return _count(name, payload)
    numbers = tuple(_number(name, text) for text in texts)
    return numbers if len(numbers) > 1 else numbers[0]


def _shown(answer: str) -> str:
    """Quote an answer for an error message, but never binary: it may be preparation records, and they are secret."""
    if not answer.isascii() or not answer.isprintable():
        return f"{len(answer)} bytes that are no text"
    return repr(answer if len(answer) <= 60 else answer[:60] + "...")
