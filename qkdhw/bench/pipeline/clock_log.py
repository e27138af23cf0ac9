"""What happened to a pipeline's clock: when it was lost, why, and when it was found again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

MAX_LOST_S = 60.0
_KEPT = 256


@dataclass(frozen=True, slots=True)
class ClockChange:
    """One thing that happened to the clock.

    Attributes:
        what: "lost"; "found" again after that; "moved": it stepped by so little that it was never lost.
        at_s: When, seconds of the stream's own time since its first event.
        reason: What was seen, in words.
    """

    what: Literal["lost", "found", "moved"]
    at_s: float
    reason: str


def ignore(_change: ClockChange) -> None:
    """Take a change and do nothing."""


@dataclass(slots=True)
class ClockLog:
    """Counts changes, keeps the latest 256 and tells each as it comes.

    Attributes:
        tell: Called with each change.
        n_lost: How often the clock was lost.
        n_found: How often it was found again.
        n_moved: How often it stepped without being lost.
        latest: The latest changes, oldest first.
    """

    tell: Callable[[ClockChange], None] = ignore
    n_lost: int = 0
    n_found: int = 0
    n_moved: int = 0
    latest: deque[ClockChange] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def add(self, change: ClockChange) -> None:
        """Note a change and tell it."""
        match change.what:
            case "lost":
                self.n_lost += 1
            case "found":
                self.n_found += 1
            case _:
                self.n_moved += 1
        self.latest.append(change)
        self.tell(change)
