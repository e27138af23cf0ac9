"""What an emulated tagger generated, so that what a driver made of its bytes can be compared with it."""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

KEPT_EVENTS = 8192


class SentEvents:
    """The first events since `clear`, as they were generated, before they were written as bytes.

    Args:
        tick_ps: Exact length of the ticks in which their times are.
    """

    def __init__(self, tick_ps: Fraction) -> None:
        self.tick_ps = Fraction(tick_ps)
        self.clear()

    def clear(self) -> None:
        """Forget them; those that come next are kept."""
        self._pieces: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._n = 0

    def add(self, ticks: NDArray[np.int64], channel: NDArray[np.int64]) -> None:
        """Keep events, if there is room: their times since the stream's start, and their inputs from 1."""
        kept = min(len(ticks), KEPT_EVENTS - self._n)
        if kept > 0:
            self._pieces.append((np.array(ticks[:kept], np.int64), np.array(channel[:kept], np.int64)))
            self._n += kept

    def times(self, tick_ps: Fraction) -> list[tuple[Fraction, int]]:
        """Return time, in ticks of this length, and input of each."""
        ratio = self.tick_ps / tick_ps
        return [(int(t) * ratio, int(c)) for piece in self._pieces for t, c in zip(*piece, strict=True)]


@runtime_checkable
class KnowsEvents(Protocol):
    """An emulated tagger that keeps what it generated.

    Attributes:
        sent_events: The events of its stream.
    """

    sent_events: SentEvents
