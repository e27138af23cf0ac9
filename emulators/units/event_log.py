"""The events of an emulated GRX/1 receiver, kept until they are released, and the frames that carry them."""

from __future__ import annotations

import zlib
from enum import IntEnum, unique

import numpy as np
from numpy.typing import NDArray

SPAN_TICKS = 1 << 44
MAX_MISSED = 65535


@unique
class Kind(IntEnum):
    """Kinds of records."""

    PHOTON = 0
    MARKER = 1
    GAP_BEGIN = 2
    GAP_END = 3
    MISSED = 4
    CLOCK_ERROR = 5
    DUMMY = 6


class EventLog:
    """Events by index since START.

    Attributes:
        first: Index of the oldest event that may still be asked for.
        end: Index after the newest.
        lost: Sum of all missed events.
        last_ticks: Time of the newest event.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop everything; indices begin at 0 again."""
        self.first = self.end = self.lost = self.last_ticks = 0
        self._ticks = np.empty(0, np.int64)
        self._words = np.empty(0, np.uint64)  # value and kind in their places

    def append(self, ticks: NDArray[np.int64], value: NDArray[np.int64], kind: NDArray[np.int64]) -> None:
        """Add events."""
        words = value.astype(np.uint64) << np.uint64(44) | kind.astype(np.uint64) << np.uint64(60)
        self._ticks = np.concatenate((self._ticks, ticks))
        self._words = np.concatenate((self._words, words))
        self.end += len(ticks)
        if len(ticks):
            self.last_ticks = int(ticks[-1])

    def add(self, ticks: int, kind: Kind, value: int = 0) -> None:
        """Add one event."""
        self.append(np.array([ticks]), np.array([value]), np.array([kind]))

    def add_loss(self, begin_ticks: int, end_ticks: int, n_missed: int) -> None:
        """Add what tells that events are missing."""
        self.add(begin_ticks, Kind.GAP_BEGIN)
        self.lost += n_missed
        while n_missed:
            self.add(end_ticks, Kind.MISSED, min(n_missed, MAX_MISSED))
            n_missed -= min(n_missed, MAX_MISSED)
        self.add(end_ticks, Kind.GAP_END)

    def release(self, below: int) -> None:
        """Forget the events below an index."""
        self._ticks, self._words = self._ticks[below - self.first :], self._words[below - self.first :]
        self.first = below

    def frame(self, limit: int) -> bytes:
        """Return the answer to EVT? for the oldest events: line, records, CRC."""
        ticks = self._ticks[:limit]
        base = int(ticks[0]) if len(ticks) else 0
        outside = np.flatnonzero((ticks < base) | (ticks - base >= SPAN_TICKS))
        n = int(outside[0]) if len(outside) else len(ticks)
        records = ((ticks[:n] - base).astype(np.uint64) | self._words[:n]).astype("<u8").tobytes()
        line = f"OK {self.first} {n} {base}\n".encode("ascii")
        return line + records + zlib.crc32(line + records).to_bytes(4, "little")
