"""A Stanford Research Systems DG645 digital delay generator.

Source:
    SRS DG645 User Manual, chapter "Remote Programming" (command list, error codes, instrument status register).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.text_unit import TextUnit
from qkdhw_emulators.world import World

T0, T1, H, N_EDGES, N_OUTPUTS = 0, 1, 9, 10, 5
LONGEST_S, RESOLUTION_S = 2000.0, 5e-12
QUEUE_LENGTH = 20
ILLEGAL_VALUE, ILLEGAL_MODE, ILLEGAL_DELAY, ILLEGAL_LINK = 10, 11, 12, 13
ILLEGAL_COMMAND, UNDEFINED_COMMAND, ILLEGAL_QUERY, ILLEGAL_SET = 110, 111, 112, 113
EXTRA_PARAMETERS, MISSING_PARAMETERS, INVALID_FLOAT, INVALID_INTEGER, TOO_MANY_ERRORS = 115, 116, 118, 120, 254
TRIGGERED, TRIGGER_WHILE_BUSY, DELAYS_OVER, PLL_UNLOCKED = 0x01, 0x02, 0x04, 0x40
INTERNAL, SINGLE_SHOT = 0, 5
ERROR_SUMMARY, STATUS_SUMMARY = 0x20, 0x01
_COMMAND = re.compile(r"(\*?[A-Z]{1,4})(\?)?\s*(.*)")


class RefusedError(Exception):
    """A command goes into the error queue; the argument is the code."""


@dataclass(frozen=True)
class Field:
    """A plain value: how many numbers choose which one, its range, its step and how it is written.

    Attributes:
        usual: Value after *RST.
        low: Smallest.
        high: Largest.
        step: Quantisation; 0 for a whole number.
        form: Format of an answer.
        count: How many of them there are, chosen by a first parameter; 0 for a single one.
    """

    usual: float
    low: float
    high: float
    step: float
    form: str
    count: int = 0


FIELDS = {
    "LAMP": Field(2.5, 0.5, 5.0, 0.01, "+.2f", N_OUTPUTS),
    "LOFF": Field(0.0, -2.0, 2.0, 0.01, "+.2f", N_OUTPUTS),
    "LPOL": Field(1, 0, 1, 0, "d", N_OUTPUTS),
    "TSRC": Field(SINGLE_SHOT, 0, 6, 0, "d"),
    "TRAT": Field(1000.0, 1e-4, 1e7, 1e-6, "+.6f"),
    "TLVL": Field(1.0, -3.5, 3.5, 0.01, "+.2f"),
    "HOLD": Field(0.0, 0.0, LONGEST_S, RESOLUTION_S, "+.12f"),
    "ADVT": Field(0, 0, 1, 0, "d"),
    "BURM": Field(0, 0, 1, 0, "d"),
    "BURC": Field(5, 1, 2**32 - 1, 0, "d"),
    "BURP": Field(100e-6, 100e-9, LONGEST_S - 10e-9, 10e-9, "+.12f"),
    "BURD": Field(0.0, 0.0, LONGEST_S, RESOLUTION_S, "+.12f"),
    "INHB": Field(0, 0, 5, 0, "d"),
}
REFERENCES = {2: T0, 3: 2, 4: T0, 5: 4, 6: T0, 7: 6, 8: T0, 9: 8}  # after *RST: B after A, D after C ...


class EmulatedSrsDg645(TextUnit):
    """Answers DG645 commands byte for byte; one line may hold several, parted by semicolons."""

    line_ends: ClassVar[bytes] = b"\r\n"
    unit_faults: ClassVar[frozenset[Fault]] = frozenset(
        {Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE, Fault.STUCK_VALUE, Fault.CLOCK_UNLOCK}
    )

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = ()) -> None:
        self._errors: deque[int] = deque()
        self._commands: dict[str, Callable[[list[str]], str | None]] = {
            "*IDN?": self._identify, "*CLS": self._clear_status, "*RST": self._reset, "*TRG": self._trigger,
            "*OPC?": lambda _: "1", "*STB?": lambda _: str(self.status_byte()), "LERR?": self._next_error,
            "INSR?": self._read_status, "DLAY": self._set_delay, "DLAY?": self._read_delay, "TIMB?": lambda _: "0",
            "DISP": self._set_display, "DISP?": lambda _: "{},{}".format(*self._display),
        }  # fmt: skip
        super().__init__(world, faults=faults)

    def power_cycle(self) -> None:
        """Go to the state of *RST: the recall of the last settings at power-up is not modelled."""
        self._errors.clear()
        self._reset([])

    def answer(self, line: str) -> bytes:
        """Carry out a line."""
        replies = []
        for command in filter(None, (part.strip() for part in line.upper().split(";"))):
            try:
                reply = self._execute(command)
            except RefusedError as error:
                self._queue_error(int(error.args[0]))
                continue
            if reply is not None:
                replies.append(reply)
        return (";".join(replies) + "\r\n").encode("ascii") if replies else b""

    def status_byte(self) -> int:
        """Return the status byte: bit 0 for the instrument status, bit 5 for an error."""
        return (STATUS_SUMMARY if self._status else 0) | (ERROR_SUMMARY if self._errors else 0)

    def clear(self) -> None:
        """Device clear."""
        self.reset_input()

    def trigger(self) -> None:
        """Group execute trigger."""
        try:
            self._trigger([])
        except RefusedError as error:
            self._queue_error(int(error.args[0]))

    def nak(self) -> bytes:
        """Queue an error; nothing is answered then."""
        self._queue_error(ILLEGAL_COMMAND)
        return b""

    def delay_after_t0_s(self, edge: int) -> float:
        """Return when an edge comes after T0, all references added up."""
        total_s = 0.0
        while edge not in {T0, T1}:
            reference, delay_s = self._delays[edge]
            edge, total_s = reference, total_s + delay_s
        return total_s

    def _execute(self, command: str) -> str | None:
        match = _COMMAND.fullmatch(command)
        if match is None:
            raise RefusedError(ILLEGAL_COMMAND)
        name, query, rest = match[1], match[2] or "", match[3]
        parameters = [each.strip() for each in rest.split(",")] if rest else []
        if Fault.STUCK_VALUE in self.faults and not query and not name.startswith("*"):
            return None
        if name in FIELDS:
            return self._access(name, query, parameters)
        handler = self._commands.get(name + query)
        if handler is None:
            other = name if query else name + "?"
            known = ILLEGAL_QUERY if query else ILLEGAL_SET
            raise RefusedError(known if other in self._commands else UNDEFINED_COMMAND)
        return handler(parameters)

    def _access(self, name: str, query: str, parameters: list[str]) -> str | None:
        """Set or tell one of the plain values."""
        field = FIELDS[name]
        expect(parameters, bool(field.count) + (not query))
        index = whole(parameters.pop(0), 0, field.count - 1) if field.count else 0
        if query:
            value = self._values[name][index]
            return format(int(value) if field.form == "d" else value, field.form)
        if field.step:
            value = number(parameters[0], field.low, field.high)
            self._values[name][index] = round(value / field.step) * field.step
        else:
            self._values[name][index] = whole(parameters[0], int(field.low), int(field.high))
        return None

    def _set_delay(self, parameters: list[str]) -> None:
        expect(parameters, 3)
        edge, reference = whole(parameters[0], 2, H), whole(parameters[1], T0, H)
        delay_s = round(number(parameters[2], -LONGEST_S, LONGEST_S, ILLEGAL_DELAY) / RESOLUTION_S) * RESOLUTION_S
        before = self._delays[edge]
        follow, steps = reference, 0
        while follow not in {T0, T1, edge} and steps < N_EDGES:
            follow, steps = self._delays[follow][0], steps + 1
        if follow == edge:
            raise RefusedError(ILLEGAL_LINK)
        self._delays[edge] = reference, delay_s
        if not all(0 <= self.delay_after_t0_s(each) < LONGEST_S for each in self._delays):
            self._delays[edge] = before
            raise RefusedError(ILLEGAL_DELAY)

    def _read_delay(self, parameters: list[str]) -> str:
        expect(parameters, 1)
        reference, delay_s = self._delays.get(whole(parameters[0], T0, H), (T0, 0.0))
        return f"{reference},{delay_s:+.12f}"

    def _set_display(self, parameters: list[str]) -> None:
        expect(parameters, 2)
        self._display = whole(parameters[0], 0, 14), whole(parameters[1], T0, H)

    def _identify(self, _parameters: list[str]) -> str:
        if Fault.WRONG_IDENTITY in self.faults:
            return "ACME,TOASTER,1,1.0"
        version = "ver99.99" if Fault.WRONG_FIRMWARE in self.faults else "ver1.14.10E"
        return f"Stanford Research Systems,DG645,s/n001776,{version}"

    def _reset(self, _parameters: list[str]) -> None:
        self._values = {name: [field.usual] * max(field.count, 1) for name, field in FIELDS.items()}
        self._delays = {edge: (reference, 0.0) for edge, reference in REFERENCES.items()}
        self._display = (11, 2)
        self._status = 0
        self._looked_s = self.world.now_s()

    def _clear_status(self, _parameters: list[str]) -> None:
        self._errors.clear()
        self._status = 0
        self._looked_s = self.world.now_s()

    def _trigger(self, _parameters: list[str]) -> None:
        if self._values["TSRC"][0] != SINGLE_SHOT:
            raise RefusedError(ILLEGAL_MODE)
        self._status |= TRIGGERED | DELAYS_OVER

    def _read_status(self, _parameters: list[str]) -> str:
        """Tell what happened since the last look, and forget it."""
        status, self._status = self._status, 0
        if self._values["TSRC"][0] == INTERNAL:
            period_s = 1 / self._values["TRAT"][0]
            if self.world.now_s() - self._looked_s >= period_s:
                status |= TRIGGERED | DELAYS_OVER
                busy_s = max(self.delay_after_t0_s(edge) for edge in self._delays)
                status |= TRIGGER_WHILE_BUSY if busy_s > period_s else 0
        if Fault.CLOCK_UNLOCK in self.faults:
            status |= PLL_UNLOCKED
        self._looked_s = self.world.now_s()
        return str(status)

    def _next_error(self, _parameters: list[str]) -> str:
        return str(self._errors.popleft() if self._errors else 0)

    def _queue_error(self, code: int) -> None:
        if len(self._errors) < QUEUE_LENGTH:
            self._errors.append(code)
        else:
            self._errors[-1] = TOO_MANY_ERRORS


def expect(parameters: list[str], count: int) -> None:
    """Refuse a wrong number of parameters."""
    if len(parameters) != count:
        raise RefusedError(MISSING_PARAMETERS if len(parameters) < count else EXTRA_PARAMETERS)


def number(text: str, low: float, high: float, code: int = ILLEGAL_VALUE) -> float:
    """Read a number in a range."""
    if not re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:E[+-]?[0-9]{1,3})?", text):
        raise RefusedError(INVALID_FLOAT)
    if not low <= float(text) <= high:
        raise RefusedError(code)
    return float(text)


def whole(text: str, low: int, high: int) -> int:
    """Read a whole number in a range."""
    if not re.fullmatch(r"[+-]?[0-9]{1,12}", text):
        raise RefusedError(INVALID_INTEGER)
    if not low <= int(text) <= high:
        raise RefusedError(ILLEGAL_VALUE)
    return int(text)
