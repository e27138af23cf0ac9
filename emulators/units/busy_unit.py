"""What emulated instruments share that do one thing after the other: commands wait while one is carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qkdhw_emulators.faults import Fault, spoil_reply
from qkdhw_emulators.units.text_unit import MAX_LINE_BYTES, TextUnit
from qkdhw_emulators.world import World


class BusyUnit(TextUnit):
    """Base of emulated instruments that answer a command when it is done, by the bench's clock.

    What comes meanwhile waits in the input buffer.
    """

    def __init__(self, world: World | None = None, *, faults: Iterable[Fault | str] = ()) -> None:
        self._waiting = bytearray()
        self._job: tuple[float, Callable[[], bytes]] | None = None
        super().__init__(world, faults=faults)

    def be_busy(self, duration_s: float, finish: Callable[[], bytes]) -> None:
        """Do nothing else for a while, and answer then."""
        self._job = (self.world.now_s() + duration_s, finish)

    def receive(self, data: bytes) -> bytes:
        """Take bytes of commands in any split and return the answers that are due."""
        self._waiting += data[: MAX_LINE_BYTES - len(self._waiting)]
        return self.poll()

    def poll(self) -> bytes:
        """Return the answers that are due by the bench's clock."""
        replies = []
        while True:
            if self._job is not None:
                due_s, finish = self._job
                if self.world.now_s() < due_s:
                    break
                self._job = None
                replies.append(spoil_reply(finish(), self.faults, self._rng))
            elif self._waiting:
                replies.append(super().receive(bytes([self._waiting.pop(0)])))
            else:
                break
        return b"".join(replies)

    def wait_s(self) -> float | None:
        """Bench seconds until something will be due, or None."""
        return None if self._job is None else max(0.0, self._job[0] - self.world.now_s())

    def reset_input(self) -> None:
        """Forget what was not yet begun: the client has gone."""
        super().reset_input()
        self._waiting.clear()

    def power_cycle(self) -> None:
        """Stop what is being done and forget what was to be done."""
        self._job = None
        self.reset_input()
