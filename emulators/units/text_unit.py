"""What emulated instruments share that speak lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from qkdhw_emulators.faults import Fault, FaultSwitches, spoil_reply
from qkdhw_emulators.world import World

MAX_LINE_BYTES = 65536


class TextUnit:
    """Base of emulated instruments that answer lines; no I/O, no clock of its own.

    Args:
        world: Surroundings: time, randomness, physical conditions.
        faults: Faults that are on.

    Attributes:
        faults: Faults that are on; may be changed while the unit runs.
    """

    line_ends: ClassVar[bytes] = b"\n"
    """Bytes that each end a command."""
    conditions: ClassVar[dict[str, float]] = {}
    """Physical conditions that it senses, with their usual values."""
    unit_faults: ClassVar[frozenset[Fault]] = frozenset()
    """Faults of its own, beside the line's, that it can have."""

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = ()) -> None:
        self.world = world or World()
        self.world.declare(self.conditions)
        self.faults = FaultSwitches(faults, rng=self.world.rng("faults"))
        self._rng = self.world.rng("unit")
        self._line = bytearray()
        self.power_cycle()

    def power_cycle(self) -> None:
        """Go back to the state of power-up."""
        raise NotImplementedError

    def answer(self, line: str) -> bytes:
        """Carry out one command and return the answer with its end, or b""."""
        raise NotImplementedError

    def receive(self, data: bytes) -> bytes:
        """Take bytes of commands in any split and return the answers to those that are complete."""
        replies = []
        for byte in data:
            if byte in self.line_ends:
                if len(self._line) <= MAX_LINE_BYTES:
                    line = self._line.decode("latin-1")
                    replies.append(spoil_reply(self.answer(line), self.faults, self._rng))
                self._line.clear()
            elif len(self._line) <= MAX_LINE_BYTES:
                self._line.append(byte)
        return b"".join(replies)

    def reset_input(self) -> None:
        """Forget a half-received command: its client has gone."""
        self._line.clear()
