"""The transmitter's bounded memory of what it prepared."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray


class RecordBuffer:
    """Preparation records of consecutive pulses, two a byte; the oldest go first.

    Args:
        capacity_pulses: How many it holds.

    Attributes:
        first: Index of the oldest pulse that may still be asked for.
        end: Index after the newest.
        lost: Pulses dropped because the buffer ran over.
        overrun: Whether it ran over; latched.
    """

    def __init__(self, capacity_pulses: int) -> None:
        self.capacity_pulses = capacity_pulses
        self.overrun = False
        self.clear()

    def clear(self) -> None:
        """Drop everything; pulse indices begin at 0 again."""
        self._parts: deque[NDArray[np.uint8]] = deque()
        self._parts_first = 0
        self.first = self.end = self.lost = 0

    @property
    def buffered(self) -> int:
        """Pulses held."""
        return self.end - self.first

    def append(self, records: NDArray[np.uint8]) -> None:
        """Add packed records; drop the oldest if there is no room."""
        self._parts.append(records)
        self.end += 2 * records.shape[0]
        if self.buffered > self.capacity_pulses:
            self.overrun = True
            self.lost += self.buffered - self.capacity_pulses
            self.forget(self.end - self.capacity_pulses)

    def forget(self, below: int) -> None:
        """Let go of the pulses below an index."""
        self.first = max(self.first, min(below, self.end))
        while self._parts and self._parts_first + 2 * self._parts[0].shape[0] <= self.first:
            self._parts_first += 2 * self._parts.popleft().shape[0]

    def read(self, first: int, n_pulses: int) -> bytes:
        """Return the packed records of pulses that are held; `first` is even."""
        begin, out = (first - self._parts_first) // 2, []
        missing = (n_pulses + 1) // 2
        for part in self._parts:
            piece = part[begin : begin + missing]
            out.append(piece.tobytes())
            missing -= piece.shape[0]
            begin = max(0, begin - part.shape[0])
            if missing == 0:
                break
        return b"".join(out)
