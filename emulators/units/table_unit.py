"""What emulated instruments share that are mostly a table of numbers: `NAME?` reads one, `NAME VALUE` sets it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from qkdhw_emulators.faults import Fault
from qkdhw_emulators.units.text_unit import TextUnit

_NUMBER = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]{0,9})?")


@dataclass(frozen=True, slots=True)
class Entry:
    """What one number can be.

    Attributes:
        minimum: Smallest value that is taken.
        maximum: Largest value that is taken.
        step: The nearest multiple of it is kept.
        at_power_up: Value after power-up.
    """

    minimum: float
    maximum: float
    step: float = 1.0
    at_power_up: float = 0.0

    def printed(self, value: float) -> str:
        """Return a value with the decimals of its step."""
        return f"{value:.{max(0, math.ceil(-math.log10(self.step)))}f}"


class TableUnit(TextUnit):
    """Base of such emulated instruments; sets are answered by OK, what is not understood or out of range by ERR.

    A subclass gives `identity` and `table`, and does the rest in `carry_out`.

    Attributes:
        identity: Answer to *IDN?: vendor, model, serial number and firmware with commas between.
        table: The numbers by name.
        values: What they are now.
    """

    identity: ClassVar[str] = ""
    table: ClassVar[Mapping[str, Entry]] = {}
    unit_faults: ClassVar[frozenset[Fault]] = frozenset(
        {Fault.SILENT, Fault.GARBAGE, Fault.WRONG_IDENTITY, Fault.WRONG_FIRMWARE, Fault.STUCK_VALUE}
    )

    def power_cycle(self) -> None:
        """Go back to the state of power-up."""
        self.values = {name: entry.at_power_up for name, entry in self.table.items()}

    def nak(self) -> bytes:
        """Return the answer that says no."""
        return b"ERR\n"

    def answer(self, line: str) -> bytes:
        """Carry out one command and return the answer with its end."""
        command, _, argument = line.strip().partition(" ")
        return self.carry_out(command, argument)

    def carry_out(self, command: str, argument: str) -> bytes:
        """Carry out one command: identify, read, or set and round; a number that it does not know is refused."""
        name = command.removesuffix("?")
        entry = self.table.get(name)
        if command == "*IDN?":
            return f"{self._identity()}\n".encode("ascii")
        if entry is None:
            return self.nak()
        if command != name:
            return f"{entry.printed(self.values[name])}\n".encode("ascii")
        if not _NUMBER.fullmatch(argument) or not entry.minimum <= float(argument) <= entry.maximum:
            return self.nak()
        if Fault.STUCK_VALUE not in self.faults:
            self.values[name] = round(float(argument) / entry.step) * entry.step
        return b"OK\n"

    def _identity(self) -> str:
        if Fault.WRONG_IDENTITY in self.faults:
            return "NOBODY,TOASTER,1,1.0"
        return self.identity.rpartition(",")[0] + ",99.99" if Fault.WRONG_FIRMWARE in self.faults else self.identity
