"""Instruments that speak lines of text: one command a line, one line an answer."""

from __future__ import annotations

import math
import re
import time
from typing import Any, ClassVar

from qkdhw.drivers.instrument import Instrument
from qkdhw.drivers.setting import Setting, Value
from qkdhw.errors import CommandRefusedError, TransportTimeoutError, UnitError, WireFormatError
from qkdhw.model import UnitInfo

LINE_LIMIT_BYTES = 65536
QUIET_S = 0.05  # answers that were on their way follow each other without a pause
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORDS = {"0": False, "1": True, "OFF": False, "ON": True}


class TextInstrument(Instrument):
    """Base of the drivers of instruments that speak lines of text."""

    command_end: ClassVar[bytes] = b"\n"
    reply_end: ClassVar[bytes] = b"\n"
    challenge: ClassVar[str] = "*IDN?"
    """A query without side effects whose answer is like no other's: what comes before it is old."""
    idn_pattern: ClassVar[str] = ""
    """Regular expression that is found in the answer to *IDN?, without case."""
    done: ClassVar[str] = ""
    """The answer to a command that was carried out; "" if commands are not answered."""
    refusal: ClassVar[str] = ""
    """What an answer begins with that says no; "" if there is no such answer."""

    def _is_challenge_answer(self, line: str) -> bool:
        """Say whether a line is the answer to `challenge`: here, the four fields of *IDN?."""
        return line.count(",") == 3 and bool(re.search(self.idn_pattern, line, re.IGNORECASE))

    def _identify(self) -> UnitInfo:
        answer = self._ask("*IDN?")
        if not self._is_challenge_answer(answer):
            raise UnitError(
                f"this is not a {self.vendor} {self.model}: *IDN? was answered by {shown(answer)}",
                remedy="check the address and the driver name",
            )
        return UnitInfo(*(field.strip() for field in answer.split(",")))

    def _synchronise(self) -> None:
        """Ask the challenge and skip what comes before its answer and right after it.

        Raises:
            UnitError: On opening: what answered is another unit.
            TransportTimeoutError: Nothing answered, or not the challenge.
            WireFormatError: The unit keeps sending.
        """
        self._link.discard_input()
        self._write_line(self.challenge)
        deadline_s = time.monotonic() + self._timeout_s
        line = other = ""
        while not self._is_challenge_answer(line):
            other = line or other
            left_s = deadline_s - time.monotonic()
            try:
                line = self._read_line(max(0.0, left_s))
            except WireFormatError:  # part of an old answer, or what a bad line left
                line = ""
            except TransportTimeoutError as error:
                if not other:
                    raise
                raise self._no_answer(other) from error
            if left_s <= 0 and not self._is_challenge_answer(line):
                raise self._no_answer(line or other)
        if not self._link.fresh_when_reopened:
            self._link.read_until_quiet(QUIET_S, timeout_s=self._timeout_s)

    def _no_answer(self, other: str) -> UnitError | TransportTimeoutError:
        """Say that the challenge was not answered, or by what other line; once opened, that may be an old answer."""
        if other and self._info is None:
            return UnitError(
                f"{self._link.url} answered {self.challenge} by {shown(other)}, which is not the "
                f"{self.vendor} {self.model}",
                remedy="check the address and the driver name; in a driver of your own, idn_pattern",
            )
        return TransportTimeoutError(
            f"{self._link.url} did not answer {self.challenge} within {self._timeout_s:g} s",
            remedy="check the address, the cable and the unit's power",
        )

    def _ask(self, command: str, *, timeout_s: float | None = None) -> str:
        """Send a query and return its answer's line. The link must be held.

        Something that lies in the input unasked for means that unit and driver are out of step.

        Raises:
            CommandRefusedError: The answer is a `refusal`.
        """
        if self._link.discard_input():
            self._synchronise()
        self._write_line(command)
        answer = self._read_line(self._timeout_s if timeout_s is None else timeout_s)
        if self.refusal and answer.startswith(self.refusal):
            raise CommandRefusedError(
                f"{self.model} refused {command!r}: {shown(answer)}",
                command=command,
                code=answer.removeprefix(self.refusal).strip(),
                remedy="check the value and the unit's state",
            )
        return answer

    def _tell(self, command: str) -> None:
        """Send a command and, if the unit answers commands, see that it is `done`. The link must be held.

        If it does not answer them, a driver checks afterwards for errors.

        Raises:
            CommandRefusedError: The unit says no.
            WireFormatError: It says something else than `done`.
        """
        if not self.done:
            self._write_line(command)
        elif (answer := self._ask(command)) != self.done:
            raise WireFormatError(f"{command} was answered by {shown(answer)}, not by {self.done}")

    def _write_line(self, command: str) -> None:
        self._link.write(command.encode("ascii") + self.command_end, timeout_s=self._timeout_s)

    def _read_line(self, timeout_s: float) -> str:
        line = self._link.read_until(self.reply_end, limit=LINE_LIMIT_BYTES, timeout_s=timeout_s)
        return text_of(line)

    def _read_value(self, setting: Setting[Any], channel: int | None) -> Value:
        command = setting.query.format(channel=channel)
        return decoded(setting, command, self._ask(command))

    def _write_value(self, setting: Setting[Any], channel: int | None, value: Value) -> None:
        encoded = setting.encode(value) if setting.encode else value
        self._tell(setting.command.format(channel=channel, value=encoded))


def text_of(line: bytes) -> str:
    """Return a line as text without its end.

    Raises:
        WireFormatError: It holds something else than printable ASCII.
    """
    text = line.decode("latin-1").strip("\r\n\0 ")
    if not text.isascii() or not text.replace("\t", " ").isprintable():
        raise WireFormatError(
            f"an answer holds {shown(line)}", remedy="check the address, the baud rate and the driver name"
        )
    return text


def decoded(setting: Setting[Any], command: str, answer: str) -> Value:
    """Turn an answer into a setting's value.

    Raises:
        WireFormatError: It is no such value.
    """
    try:
        if setting.decode is not None:
            value: Value = setting.decode(answer)
        elif setting.kind is bool:
            value = _WORDS[answer.upper()]
        elif setting.kind is str:
            value = answer
        else:
            value = whole_number_of(answer) if setting.kind is int else number_of(answer)
    except (ValueError, KeyError, IndexError) as error:
        raise WireFormatError(
            f"{command} was answered by {shown(answer)}, not by {setting.allowed()}",
            remedy="check the address and the driver name",
        ) from error
    if setting.choices and value not in setting.choices:
        raise WireFormatError(f"{command} was answered by {shown(answer)}, not by {setting.allowed()}")
    return value


def number_of(text: str) -> float:
    """Return a decimal number as instruments write it; ValueError for anything else, NaN and infinity included."""
    if not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    value = float(text)
    if math.isinf(value):
        raise ValueError("too large")
    return value


def whole_number_of(text: str) -> int:
    """Return a whole number, however it is written ("7", "+7.0E0"); ValueError for anything else."""
    value = number_of(text)
    if not value.is_integer():
        raise ValueError("not a whole number")
    return int(value)


def shown(answer: str | bytes | bytearray) -> str:
    """Quote an answer for an error message, but never binary: it may be detection events, and they are secret."""
    text = answer if isinstance(answer, str) else answer.decode("latin-1").strip()
    if not text.isascii() or not text.isprintable():
        return f"{len(answer)} bytes that are no text"
    return repr(text if len(text) <= 60 else text[:60] + "...")
