"""A tagger's events as an iterator of blocks that starts the unit and stops it again."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from qkdhw.interfaces import TimeTagger
from qkdhw.model import DetectionBlock

BLOCK_EVENTS = 1 << 16
WAIT_S = 0.5


class EventStream:
    """An `interfaces.EventSource`: entering it starts the unit, leaving it stops the unit.

    Iterating gives a block as soon as there are events, and an empty one every half second in which none came, so
    that a loop can look at other things; it never ends by itself.

    Args:
        unit: The unit; nobody else reads its events meanwhile.
        max_events: Longest block.
    """

    def __init__(self, unit: TimeTagger, *, max_events: int = BLOCK_EVENTS) -> None:
        self._unit = unit
        self._max_events = max_events

    def __enter__(self) -> Self:
        self._unit.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unit.stop()

    def __iter__(self) -> Iterator[DetectionBlock]:
        while True:
            yield self._unit.read_block(self._max_events, timeout_s=WAIT_S)
