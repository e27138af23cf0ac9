"""What people look at first in a stream: counts over time and intervals between clicks, channel by channel."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qkdhw.model import DetectionBlock, EventKind
from qkdhw.quantities import PS_PER_S

TIME_BINS = 1024
INTERVAL_EDGES_PER_DECADE = 10
_CHANNELS = 256
_LONGEST_INTERVAL_S = 100


class EventCurves:
    """Counts photons over time and the intervals between them, in memory that does not grow.

    Time is cut into at most 1,024 bins of one width, a power of two ticks, which doubles when they do not suffice. An
    event earlier than the first one counts in the first bin.

    Args:
        tick_ps: Exact tick of the stream.

    Attributes:
        interval_edges_ps: float64 (k + 1,), edges of the intervals' bins, ten a decade from one tick to 100 s.
    """

    def __init__(self, tick_ps: Fraction) -> None:
        self.tick_ps = tick_ps
        decades = np.log10(float(_LONGEST_INTERVAL_S * PS_PER_S / tick_ps))
        edges = np.floor(np.logspace(0, decades, int(decades * INTERVAL_EDGES_PER_DECADE) + 1)).astype(np.int64)
        self._edges = np.unique(edges)
        self.interval_edges_ps = self._edges * float(tick_ps)
        self._counts = np.zeros((TIME_BINS, _CHANNELS), np.int64)
        self._intervals = np.zeros((_CHANNELS, len(self._edges) + 1), np.int64)
        self._last: dict[int, int] = {}
        self._first_ticks: int | None = None
        self._width_ticks = 1
        self._bins = 0
        self._ticks = 0  # from the first event to behind the last

    def add(self, block: DetectionBlock) -> None:
        """Count the photons of a block."""
        photons = block.kind == EventKind.PHOTON
        ticks, channel = block.time_ticks[photons], block.channel[photons]
        if len(ticks) == 0:
            return
        if self._first_ticks is None:
            self._first_ticks = int(ticks[0])
        self._count(np.maximum(ticks - self._first_ticks, 0), channel)
        for number in np.unique(channel).tolist():
            self._add_intervals(number, ticks[channel == number])

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels that clicked."""
        return tuple(np.flatnonzero(self._counts.sum(axis=0)).tolist())

    @property
    def bin_s(self) -> float:
        """Width of a time bin in seconds."""
        return float(self._width_ticks * self.tick_ps / PS_PER_S)

    def rates_hz(self, channel: int) -> NDArray[np.float64]:
        """Return the rate in each time bin, float64 (bins,); a last bin that the stream's end cuts short is left out.

        If there is no other, its rate is that of the time until the end.
        """
        whole = self._ticks // self._width_ticks
        if not whole:
            return self._counts[: self._bins, channel] / float(max(1, self._ticks) * self.tick_ps / PS_PER_S)
        rates: NDArray[np.float64] = self._counts[:whole, channel] / self.bin_s
        return rates

    def intervals(self, channel: int) -> NDArray[np.int64]:
        """Return how many intervals between clicks of a channel lie in each bin, int64 (k,); the rest is left out."""
        return self._intervals[channel, 1:-1].copy()

    def _count(self, since_ticks: NDArray[np.int64], channel: NDArray[np.uint8]) -> None:
        last = int(since_ticks.max())
        self._ticks = max(self._ticks, last + 1)
        while last >= TIME_BINS * self._width_ticks:
            self._counts[: TIME_BINS // 2] = self._counts[::2] + self._counts[1::2]
            self._counts[TIME_BINS // 2 :] = 0
            self._width_ticks *= 2
            self._bins = -(-self._bins // 2)
        self._bins = max(self._bins, last // self._width_ticks + 1)
        place = (since_ticks // self._width_ticks) * _CHANNELS + channel
        counts = np.bincount(place)
        self._counts.reshape(-1)[: len(counts)] += counts

    def _add_intervals(self, channel: int, ticks: NDArray[np.int64]) -> None:
        before = self._last.get(channel)
        gaps = np.diff(ticks) if before is None else np.diff(ticks, prepend=before)
        self._last[channel] = int(ticks[-1])
        bins = np.searchsorted(self._edges, gaps, side="right")
        self._intervals[channel] += np.bincount(bins, minlength=len(self._edges) + 1)
