"""What emulated SCPI instruments share: the command tree, the error queue, IEEE 488.2 common commands.

Source:
    SCPI-1999 volume 1, chapters 5 to 7 (headers, short and long forms, chaining) and volume 2, chapter 21 (errors).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import ClassVar

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.text_unit import TextUnit
from qkdhw_emulators.world import World

QUEUE_LENGTH = 30
ERROR_AVAILABLE = 0x04
MULTIPLIERS = {"": 1.0, "P": 1e-12, "N": 1e-9, "U": 1e-6, "M": 1e-3, "K": 1e3, "MA": 1e6, "G": 1e9}
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:E[+-]?[0-9]+)?"
Handler = Callable[..., "str | bytes | None"]


class RefusedError(Exception):
    """A command goes into the error queue; the arguments are number and text."""


class ScpiUnit(TextUnit):
    """Base of emulated SCPI instruments.

    A subclass's `command_table` has header patterns such as "INPut#[:CHANnel#]:ATTenuation" (capitals are the short
    form, # an optional number handed over as an int, brackets optional), with a "?" for queries. A handler gets the
    numbers, then the parameters as texts; it returns the answer, or None.

    Attributes:
        identity: Answer to *IDN?.
    """

    identity: ClassVar[str] = ""
    unit_faults: ClassVar[frozenset[Fault]] = frozenset(
        {Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE, Fault.STUCK_VALUE}
    )

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = ()) -> None:
        self._errors: deque[tuple[int, str]] = deque(maxlen=QUEUE_LENGTH)
        common: dict[str, Handler] = {
            "*IDN?": self._identify, "*CLS": self._clear_errors, "*RST": self.reset, "*OPC?": lambda: "1",
            "*STB?": lambda: str(self.status_byte()), "*TST?": lambda: "0", "*OPC": lambda: None, "*WAI": lambda: None,
            "SYSTem:ERRor[:NEXT]?": self._next_error,
        }  # fmt: skip
        self._patterns = [(pattern_of(h), handler) for h, handler in (common | self.command_table()).items()]
        super().__init__(world, faults=faults)

    def command_table(self) -> dict[str, Handler]:
        """Return what the instrument understands beside the common commands."""
        raise NotImplementedError

    def reset(self) -> None:
        """*RST: settings of power-up."""
        raise NotImplementedError

    def power_cycle(self) -> None:
        """Go back to the state of power-up."""
        self._errors.clear()
        self.reset()

    def status_byte(self) -> int:
        """Return the status byte: bit 2 for a waiting error."""
        return ERROR_AVAILABLE if self._errors else 0

    def clear(self) -> None:
        """Device clear."""
        self.reset_input()

    def trigger(self) -> None:
        """Group execute trigger: nothing waits for one."""

    def nak(self) -> bytes:
        """Queue a command error; a SCPI instrument then answers nothing."""
        self._errors.append((-100, "Command error"))
        return b""

    def answer(self, line: str) -> bytes:
        """Carry out a line, which may chain several commands by semicolons."""
        replies: list[bytes] = []
        path = ""
        for command in (part for part in line.strip().split(";") if part.strip()):
            header, _, rest = command.strip().partition(" ")
            header = header.upper()
            full = header.lstrip(":") if header.startswith((":", "*")) or not path else f"{path}:{header}"
            if not header.startswith("*"):
                path = full.rpartition(":")[0]
            try:
                reply = self._execute(full, [p.strip() for p in rest.split(",")] if rest.strip() else [])
            except RefusedError as error:
                self._errors.append((int(error.args[0]), str(error.args[1])))
                continue
            if reply is not None:
                replies.append(reply if isinstance(reply, bytes) else reply.encode("ascii"))
        return b";".join(replies) + b"\n" if replies else b""

    def _execute(self, header: str, parameters: list[str]) -> str | bytes | None:
        for pattern, handler in self._patterns:
            match = pattern.fullmatch(header)
            if match is None:
                continue
            if Fault.STUCK_VALUE in self.faults and not header.endswith("?") and not header.startswith("*"):
                return None
            try:
                return handler(*(int(n or 1) for n in match.groups()), *parameters)
            except TypeError:
                raise RefusedError(-109, "Missing parameter") from None
        raise RefusedError(-113, "Undefined header")

    def _identify(self) -> str:
        if Fault.WRONG_IDENTITY in self.faults:
            return "ACME,TOASTER,1,1.0"
        fields = self.identity.split(",")
        return ",".join([*fields[:3], "99.99"]) if Fault.WRONG_FIRMWARE in self.faults else self.identity

    def _next_error(self) -> str:
        number, text = self._errors.popleft() if self._errors else (0, "No error")
        return f'{number:+d},"{text}"'

    def _clear_errors(self) -> None:
        self._errors.clear()


def pattern_of(header: str) -> re.Pattern[str]:
    """Turn a header such as "INPut#[:CHANnel#]:ATTenuation?" into what it matches, short and long forms."""

    def keyword(match: re.Match[str]) -> str:
        word = match[0]
        short = re.match(r"[A-Z0-9*]+", word)
        stem = short[0] if short else ""
        tail = word[len(stem) :].upper()
        return re.escape(stem) + (f"(?:{tail})?" if tail else "")

    text = re.sub(r"[*A-Za-z]+", keyword, header.replace("?", "\\?"))
    return re.compile(text.replace("[", "(?:").replace("]", ")?").replace("#", "([0-9]*)"))


def number_from(text: str, unit: str = "", *, low: float, high: float, default: float | None = None) -> float:
    """Read a SCPI number with MINimum, MAXimum, DEFault or a unit's suffix.

    Raises:
        RefusedError: It is no number, or out of range.
    """
    word = text.upper()
    named = {"MIN": low, "MINIMUM": low, "MAX": high, "MAXIMUM": high, "DEF": default, "DEFAULT": default}
    if (value := named.get(word)) is not None:
        return value
    match = re.fullmatch(
        rf"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:E[+-]?[0-9]+)?)\s*(?:(MA|[PNUMKG]?){unit.upper()})?", word
    )
    if match is None:
        raise RefusedError(-104, "Data type error")
    number = float(match[1]) * MULTIPLIERS[match[2] or ""]
    if not low <= number <= high:
        raise RefusedError(-222, "Data out of range")
    return number
