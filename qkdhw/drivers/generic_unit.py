"""What GTX/1 and GRX/1 units share: lines of text over TCP, OK or ERR, settings, states, alarms, packed data.

Source:
    docs/reference/generic-transmitter-protocol.md (GTX/1), docs/reference/generic-receiver-protocol.md (GRX/1).
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NoReturn

import numpy as np

from qkdhw.drivers.instrument import ErrorStyle, Instrument
from qkdhw.drivers.setting import Setting, TupleSetting
from qkdhw.drivers.text_instrument import number_of, shown, whole_number_of
from qkdhw.errors import (
    CommandRefusedError,
    ConfigurationError,
    NotSupportedError,
    QkdhwError,
    UnitError,
    UnitStateError,
    WireFormatError,
)
from qkdhw.model import UnitInfo, UnitStatus

REPLY_LIMIT_BYTES = 1024
CRC_ATTEMPTS = 3
STATES = ("idle", "armed", "running", "fault")
WRONG_STATE, GONE, LACKING = "3", "5", "7"  # ERR codes with a class of their own

_REFUSED = re.compile(r"ERR ([0-9]{1,4})(?: (.*))?")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_COUNT = re.compile(r"[0-9]{1,19}")
_HEX = re.compile(r"(?:0x)?[0-9A-Fa-f]{1,16}")


class GenericUnit(Instrument):
    """Base of the drivers of GTX/1 and GRX/1 units."""

    protocol: ClassVar[str] = ""
    specification: ClassVar[str] = ""
    """Where the protocol is written down."""
    counter_names: ClassVar[tuple[str, ...]] = ()
    """Counts in the answer to STAT?."""
    alarm_names: ClassVar[tuple[str, ...]] = ()
    """What the alarm bits mean, from bit 0."""
    error_style: ClassVar[ErrorStyle] = ErrorStyle.IN_BAND
    schemes: ClassVar[tuple[str, ...]] = ("tcp",)

    _engaged = False  # armed or started by us: ours to stop

    def read_status(self) -> UnitStatus:
        """Read state, counters, monitors and latched alarms.

        Monitors that the unit does not have are absent. `clock_locked` is 1.0 or 0.0, as of now.
        """
        with self._exchange():
            fields = self._read_state()
            monitors = {name: _number(name, text) for name, text in _parse_pairs(self._ask("MON?")).items()}
        monitors["clock_locked"] = float(fields["clock"] == "locked")
        counters = {name: int(fields[name]) for name in self.counter_names}
        return UnitStatus(fields["state"], counters, monitors, self._alarms(int(fields["alarms"], 16)))

    def clear_alarms(self) -> None:
        """Clear latched alarms whose cause is gone."""
        self._do("CLR")

    def arm(self) -> None:
        """Make ready.

        Raises:
            UnitStateError: The unit is not idle.
        """
        self._do("ARM")
        self._engaged = True

    def stop(self) -> None:
        """Stop; what the unit has buffered stays readable.

        Raises:
            UnitStateError: The unit is neither armed nor running.
        """
        self._do("STOP")
        self._engaged = False

    def close(self) -> None:
        """Stop what this object armed or started, and close the transport."""
        try:
            if self._engaged:
                with contextlib.suppress(QkdhwError):  # idle already, or the link is gone
                    self.stop()
        finally:
            self._link.close()

    # --- what the frame asks for -----------------------------------------------------------------------------
    def _synchronise(self) -> None:
        """A new connection is in step: an old answer cannot cross into it."""
        if not self._link.fresh_when_reopened:
            raise ConfigurationError(
                f"{self._link.url} is no connection, and {self.protocol} is spoken over TCP",
                remedy="use tcp://host:port",
            )

    def _identify(self) -> UnitInfo:
        answer = self._ask("IDN?")
        fields = answer.split(",")
        if len(fields) != 5 or fields[4] != self.protocol:
            raise UnitError(
                f"this is not a {self.protocol} unit: IDN? was answered by {shown(answer)}",
                remedy="check the address and the driver name",
            )
        return UnitInfo(*fields)

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Any:
        command = f"CONF? {_place(setting, channel)}"
        return _value_of(setting, command, self._ask(command))

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Any) -> Any:
        """Send one setting and return the value as the unit quantised it."""
        values = value if isinstance(value, tuple) else (value,)
        command = f"CONF {_place(setting, channel)} {','.join(map(_text_of, values))}"
        return _value_of(setting, command, self._ask(command))

    def _apply(self, setting: Setting[Any], channel: int | None, value: Any) -> Any:
        """As for all; if the unit refused a value and yet has it now, a reconnect keeps to that."""
        try:
            return super()._apply(setting, channel, value)
        except CommandRefusedError:
            if (setting.name, channel) in self._applied:
                self._applied[setting.name, channel] = self._read_value(setting, channel)
            raise

    @contextlib.contextmanager
    def _exchange(self, *, timeout_s: float | None = None) -> Iterator[None]:
        """As for all instruments, but a refusal is a whole answer: unit and driver stay in step."""
        refusal: UnitError | None = None
        with super()._exchange(timeout_s=timeout_s):
            try:
                yield
            except (CommandRefusedError, UnitStateError, NotSupportedError) as error:
                refusal = error
        if refusal is not None:
            raise refusal

    # --- commands --------------------------------------------------------------------------------------------
    def _do(self, command: str) -> None:
        """Run a command whose answer has no payload."""
        with self._exchange():
            payload = self._ask(command)
        if payload:
            raise WireFormatError(f"{command} was answered by OK {shown(payload)}, not by OK alone")

    def _ask(self, command: str, *, secret: bool = False) -> str:
        """Send a command and return the payload of its answer. The link must be held.

        Something that lies in the input unasked for means that unit and driver are out of step.

        Args:
            command: The command.
            secret: The answer may be raw key: errors do not quote it.
        """
        if self._link.discard_input():
            self._link.reconnect(timeout_s=self._timeout_s)
        self._link.write(command.encode("ascii") + b"\n", timeout_s=self._timeout_s)
        line = self._link.read_until(b"\n", limit=REPLY_LIMIT_BYTES, timeout_s=self._timeout_s)
        reply = line[:-1].decode("latin-1")
        refused = _REFUSED.fullmatch(reply)
        known = reply == "OK" or reply.startswith("OK ") or refused
        if not known or not reply.isascii() or not reply.isprintable():
            quoted = f"{len(reply)} bytes" if secret else shown(reply)
            raise WireFormatError(
                f"{command} was answered by {quoted}, not by a {self.protocol} reply",
                remedy="check the address and the driver name",
            )
        if refused:
            self._refuse(command, refused[1], shown(refused[2] or ""))
        return reply[3:]

    def _ask_packed(
        self,
        command: str,
        header: re.Pattern[str],
        size_bytes: Callable[[re.Match[str]], int],
        *,
        crc_of_line: bool = False,
    ) -> tuple[re.Match[str], memoryview]:
        """Ask for binary data with a CRC, again if the CRC is wrong: such a request may be repeated.

        Args:
            command: The command.
            header: What the answer's line must look like.
            size_bytes: Says from the line how many bytes follow, without the CRC; WireFormatError if it cannot be.
            crc_of_line: The CRC is over the line too.
        """
        for _ in range(CRC_ATTEMPTS):
            with self._exchange():
                line = self._ask(command, secret=True)
                match = header.fullmatch(line)
                if match is None:
                    raise WireFormatError(f"{command} was answered by {len(line)} bytes that do not fit")
                size = size_bytes(match)
                data = memoryview(self._link.read_exactly(size + 4, timeout_s=self._timeout_s))
            begun = zlib.crc32(f"OK {line}\n".encode()) if crc_of_line else 0
            if zlib.crc32(data[:size], begun) == int.from_bytes(data[size:], "little"):
                return match, data[:size]
        raise WireFormatError(
            f"the data that {command} asks for had a wrong CRC {CRC_ATTEMPTS} times",
            remedy="check the network between this host and the unit",
        )

    def _read_state(self) -> dict[str, str]:
        """Ask STAT? and check every field of its answer. The link must be held."""
        fields = _parse_pairs(self._ask("STAT?"))
        if set(fields) != {"state", *self.counter_names, "clock", "alarms"}:
            raise WireFormatError(f"STAT? was answered with the fields {', '.join(fields)}")
        if fields["state"] not in STATES or fields["clock"] not in {"locked", "free"}:
            raise WireFormatError(f"STAT? was answered with state {fields['state']!a}, clock {fields['clock']!a}")
        if not _HEX.fullmatch(fields["alarms"]):
            raise WireFormatError(f"STAT? was answered with alarms {fields['alarms']!a}")
        for name in self.counter_names:
            if not _COUNT.fullmatch(fields[name]):
                raise WireFormatError(f"{name}={shown(fields[name])} is not a count")
        return fields

    def _refuse(self, command: str, code: str, text: str) -> NoReturn:
        if code == WRONG_STATE:
            raise UnitStateError(
                f"the unit cannot do {command} in its state: {text}", remedy="read its status; stop or arm it first"
            )
        if code == LACKING:
            raise NotSupportedError(f"the unit cannot do {command}: {text}", remedy="leave it out")
        raise CommandRefusedError(
            f"the unit refused {command}: error {code}, {text}",
            command=command,
            code=code,
            remedy=f"{self.specification} lists settings, ranges and error codes",
        )

    def _alarms(self, bits: int) -> tuple[str, ...]:
        names = self.alarm_names
        on = (bit for bit in range(bits.bit_length()) if bits >> bit & 1)
        return tuple(names[bit] if bit < len(names) else f"alarm_bit_{bit}" for bit in on)


def _place(setting: Setting[Any], channel: int | None) -> str:
    return setting.name if channel is None else f"{setting.name}.{channel}"


def _text_of(value: bool | int | float | str) -> str:
    if isinstance(value, float):
        return np.format_float_positional(value, trim="-")
    return str(int(value)) if isinstance(value, bool) else str(value)


def _value_of(setting: Setting[Any], command: str, answer: str) -> Any:
    texts = answer.split(",") if isinstance(setting, TupleSetting) else [answer]
    try:
        values = tuple(_KINDS[setting.kind](text) for text in texts)
    except (KeyError, ValueError):
        values = ()
    if len(values) != setting.length or (setting.choices and values[0] not in setting.choices):
        raise WireFormatError(f"{command} was answered by {shown(answer)}, not by {setting.allowed()}")
    return values if isinstance(setting, TupleSetting) else values[0]


_KINDS: dict[type, Callable[[str], Any]] = {
    bool: {"0": False, "1": True}.__getitem__,
    int: whole_number_of,
    float: number_of,
    str: str,
}


def _parse_pairs(payload: str) -> dict[str, str]:
    pairs = dict(pair.partition("=")[::2] for pair in payload.split(" ")) if payload else {}
    if len(pairs) != (payload.count(" ") + 1 if payload else 0) or not all(map(_NAME.fullmatch, pairs)):
        raise WireFormatError(f"{shown(payload)} is not a list of name=value")
    return pairs


def _number(name: str, text: str) -> float:
    try:
        return number_of(text)
    except ValueError as error:
        raise WireFormatError(f"{name}={shown(text)} is not a number") from error
