"""Coincidences of two or more channels, counted or collected, with the accidental ones estimated beside them.

A window is an interval of delays, both ends included: a pair of events a of channel c and b of channel d fits if
low <= time(b) - time(a) <= high, in ticks. Which of the pairs that fit are coincidences follows one of two rules:

- every pair counts (the rule of a correlation function, and of rates and accidentals that add up);
- one partner: an event is in one coincidence at most. Each event of the first channel, in time order, takes the
  earliest event of the second that fits and that lies behind those taken before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from qkdhw._core import coincidences as kernels
from qkdhw._core import multifold
from qkdhw.events.channels import OrderedChannels, PendingTimes, Times, disorder_error
from qkdhw.model import DetectionBlock


@dataclass(frozen=True, slots=True)
class CoincidenceWindow:
    """The delays at which two events coincide: time of the second channel's minus time of the first's.

    Attributes:
        low_ticks: Least delay, included.
        high_ticks: Largest delay, included; both within +-2^60 ticks.

    Raises:
        ValueError: The window is empty or out of range.
    """

    low_ticks: int
    high_ticks: int

    def __post_init__(self) -> None:
        if not -(1 << 60) < self.low_ticks <= self.high_ticks < 1 << 60:
            raise ValueError(f"a window from {self.low_ticks} to {self.high_ticks} ticks is empty or out of range")

    @classmethod
    def around(cls, width_ps: Fraction | int, tick_ps: Fraction, *, centre_ps: Fraction | int = 0) -> CoincidenceWindow:
        """Make the window of the delays that differ from `centre_ps` by half of `width_ps` at most, exactly.

        Raises:
            ValueError: No whole number of ticks lies in it.
        """
        half, centre = Fraction(width_ps) / 2, Fraction(centre_ps)
        return cls(math.ceil((centre - half) / tick_ps), math.floor((centre + half) / tick_ps))

    def delayed(self, ticks: int) -> CoincidenceWindow:
        """Return the same window, later by a number of ticks."""
        return CoincidenceWindow(self.low_ticks + ticks, self.high_ticks + ticks)

    def reversed(self) -> CoincidenceWindow:
        """Return the window for the two channels in the other order."""
        return CoincidenceWindow(-self.high_ticks, -self.low_ticks)


def count_coincidences(
    first_ticks: Times, second_ticks: Times, window: CoincidenceWindow, *, one_partner: bool = False
) -> int:
    """Count the pairs of two streams.

    Args:
        first_ticks: int64 (n,), times, ascending (equal ones allowed), within +-2^62 ticks.
        second_ticks: int64 (m,), likewise.
        window: Delays of second minus first.
        one_partner: Whether an event is in one pair at most; otherwise every pair that fits counts.

    Raises:
        NonMonotonicTimeError: Time goes backwards; carries the index.
    """
    first, second = np.ascontiguousarray(first_ticks), np.ascontiguousarray(second_ticks)
    if one_partner:
        n = kernels.match_pairs(first, second, window.low_ticks, window.high_ticks, None, None, np.empty(1, np.int64))
    else:
        n = kernels.count_pairs(first, second, window.low_ticks, window.high_ticks)
    if n < 0:
        raise disorder_error(first, second)
    return n


def find_coincidences(
    first_ticks: Times, second_ticks: Times, window: CoincidenceWindow, *, one_partner: bool = False
) -> tuple[Times, Times]:
    """Find the pairs of two streams.

    Args:
        first_ticks: int64 (n,), times, ascending (equal ones allowed), within +-2^62 ticks.
        second_ticks: int64 (m,), likewise.
        window: Delays of second minus first.
        one_partner: Whether an event is in one pair at most; otherwise every pair that fits is one.

    Returns:
        Index into `first_ticks` and index into `second_ticks` of each pair, int64 (pairs,), ascending.

    Raises:
        NonMonotonicTimeError: Time goes backwards; carries the index.
    """
    first, second = np.ascontiguousarray(first_ticks), np.ascontiguousarray(second_ticks)
    if one_partner:
        return _matched(first, second, window)[:2]
    anchor, begin, number = find_partners(first, second, window)
    n_pairs = int(number.sum())
    index_first, index_second = np.empty(n_pairs, np.int64), np.empty(n_pairs, np.int64)
    kernels.spread_partners(anchor, begin, number, index_first, index_second)
    return index_first, index_second


def find_partners(first: Times, second: Times, window: CoincidenceWindow) -> tuple[Times, Times, Times]:
    """Find, for each event of the first stream with partners in the second, its index, its first partner and how many.

    Raises:
        NonMonotonicTimeError: Time goes backwards; carries the index.
    """
    rows = [np.empty(len(first), np.int64) for _ in range(3)]
    n = kernels.find_partners(first, second, window.low_ticks, window.high_ticks, *rows)
    if n < 0:
        raise disorder_error(first, second)
    return rows[0][:n], rows[1][:n], rows[2][:n]


def _matched(first: Times, second: Times, window: CoincidenceWindow) -> tuple[Times, Times, int]:
    """Return the pairs of one partner each, and where the second stream is taken up again."""
    index_first, index_second = np.empty(len(first), np.int64), np.empty(len(first), np.int64)
    state = np.empty(1, np.int64)
    n = kernels.match_pairs(first, second, window.low_ticks, window.high_ticks, index_first, index_second, state)
    if n < 0:
        raise disorder_error(first, second)
    return index_first[:n], index_second[:n], int(state[0])


@dataclass(frozen=True, slots=True)
class CoincidenceBlock:
    """Coincidences that were completed by one chunk.

    Attributes:
        n_coincidences: How many.
        time_ticks: int64 (n_coincidences, order), the time of each channel's event, in the order of the channels;
            (0, order) if they are only counted.
    """

    n_coincidences: int
    time_ticks: Times = field(repr=False)

    def __len__(self) -> int:
        return self.n_coincidences


@dataclass(frozen=True, slots=True)
class CoincidenceStatistics:
    """Counts since the beginning.

    Attributes:
        n_singles: Photons of each channel, in the order of the channels.
        n_coincidences: Coincidences, accidental ones included.
        n_delayed: Coincidences at each of the accidental delays.
    """

    n_singles: tuple[int, ...]
    n_coincidences: int
    n_delayed: tuple[int, ...]

    @property
    def accidentals(self) -> float:
        """Estimated accidental ones among the coincidences: the mean of the delayed windows; NaN if there are none."""
        return sum(self.n_delayed) / len(self.n_delayed) if self.n_delayed else math.nan

    @property
    def accidentals_error(self) -> float:
        """Standard error of `accidentals`, for Poissonian counts; NaN if there are no delayed windows."""
        return math.sqrt(sum(self.n_delayed)) / len(self.n_delayed) if self.n_delayed else math.nan

    @property
    def net_coincidences(self) -> float:
        """Coincidences less the accidental ones; negative by chance; NaN if there are no delayed windows."""
        return self.n_coincidences - self.accidentals

    @property
    def coincidences_to_accidentals(self) -> float:
        """CAR: all coincidences over the accidental ones: 1 without correlation; NaN or infinite if there are none."""
        if not self.accidentals > 0:
            return math.nan if not self.n_delayed or self.n_coincidences == 0 else math.inf
        return self.n_coincidences / self.accidentals


class CoincidenceFinder:
    """Finds coincidences of any order in a stream of events in time order.

    A coincidence has one event of each channel, every two of them at a delay in the window of their channels. With
    `one_partner` an event is in one coincidence at most: each event of the first channel, in time order, takes the
    first combination that fits (the second channel's earliest, then the third's ...), and in each channel what lies
    before a taken event is passed over.

    The result does not depend on how the stream is cut into chunks. Memory holds the windows, not the stream.

    Accidental coincidences are those of windows at delays where no light coincides: at an accidental delay D the
    second channel is looked at D ticks later than the first, the third 2 D, and so on. For more than two channels
    this counts coincidences of unrelated events only, not a true pair with an unrelated third.

    Args:
        channels: 2 to 16 different channels.
        window: Window of every two channels (delay of the one that stands later in `channels`), unless named below.
        tick_ps: Exact tick of the stream, in picoseconds.
        pair_windows: Windows of single pairs of channels (c, d), for the time of d minus that of c.
        one_partner: Whether an event is in one coincidence at most; otherwise every combination that fits counts.
        accidental_delays_ticks: Delays at which accidental coincidences are counted, in ticks. Take several, all
            longer than the windows and than any correlation of the light.
        collect: Whether the coincidences are handed out; otherwise they are only counted, which is faster.

    Raises:
        ValueError: Channels, windows or delays are out of range.
    """

    def __init__(
        self,
        channels: Sequence[int],
        window: CoincidenceWindow,
        tick_ps: Fraction,
        *,
        pair_windows: Mapping[tuple[int, int], CoincidenceWindow] | None = None,
        one_partner: bool = False,
        accidental_delays_ticks: Sequence[int] = (),
        collect: bool = True,
    ) -> None:
        order = len(channels)
        if not 2 <= order <= 16 or len(set(channels)) != order:
            raise ValueError(f"a coincidence has 2 to 16 different channels, not {list(channels)}")
        windows = {(c, d): window for d in range(order) for c in range(d)}
        for (c, d), special in (pair_windows or {}).items():
            if c == d or c not in channels or d not in channels:
                raise ValueError(f"channels {c} and {d} of a window are no two of {list(channels)}")
            i, j = channels.index(c), channels.index(d)
            windows[min(i, j), max(i, j)] = special if i < j else special.reversed()
        self._stream = OrderedChannels(channels, tick_ps)
        self._scans = [
            _Scan({(c, d): w.delayed((d - c) * delay) for (c, d), w in windows.items()}, order, one_partner, collected)
            for delay, collected in ((0, collect), *((delay, False) for delay in accidental_delays_ticks))
        ]
        self._n_singles = [0] * order
        self._counts = [0] * len(self._scans)

    @property
    def statistics(self) -> CoincidenceStatistics:
        """Counts since the beginning; those of the last events wait for what follows, or for `flush`."""
        return CoincidenceStatistics(tuple(self._n_singles), self._counts[0], tuple(self._counts[1:]))

    def feed(self, block: DetectionBlock) -> CoincidenceBlock:
        """Take the next chunk.

        Args:
            block: The events that follow those of the last call.

        Returns:
            The coincidences whose first channel's event has seen all its partners.

        Raises:
            NonMonotonicTimeError: Time goes backwards; carries the index within `block`. The block was not taken.
            EventError: The block has another tick than the stream. The block was not taken.
        """
        fresh = self._stream.split(block)
        self._n_singles = [n + len(times) for n, times in zip(self._n_singles, fresh, strict=True)]
        return self._scan(fresh, self._stream.last_ticks)

    def flush(self) -> CoincidenceBlock:
        """Find the last coincidences, at the end of the stream."""
        return self._scan([np.empty(0, np.int64)] * len(self._n_singles), None)

    def _scan(self, fresh: Sequence[Times], now_ticks: int | None) -> CoincidenceBlock:
        found = [scan.feed(fresh, now_ticks) for scan in self._scans]
        self._counts = [n + len(block) for n, block in zip(self._counts, found, strict=True)]
        return found[0]


class _Scan:
    """One set of windows on its way through a stream."""

    def __init__(
        self, windows: Mapping[tuple[int, int], CoincidenceWindow], order: int, one_partner: bool, collect: bool
    ) -> None:
        self._low, self._high = np.zeros((2, order, order), np.int64)
        for pair, window in windows.items():
            self._low[pair], self._high[pair] = window.low_ticks, window.high_ticks
        self._windows = windows
        self._order = order
        self._one_partner = one_partner
        self._collect = collect
        self._pending = PendingTimes(self._low[0].tolist(), int(self._high[0, 1:].max()))

    def feed(self, fresh: Sequence[Times], now_ticks: int | None) -> CoincidenceBlock:
        n_complete = self._pending.extend(fresh, now_ticks)
        times = self._pending.times
        if self._order > 2:
            n, index, next_event = self._tuples([times[0][:n_complete], *times[1:]])
        else:
            n, index, next_event = self._pairs(times[0][:n_complete], times[1])
        columns = [column[rows] for column, rows in zip(times, index, strict=True)]
        self._pending.retire(n_complete, now_ticks, next_event if self._one_partner else None)
        return CoincidenceBlock(n, np.ascontiguousarray(np.transpose(columns)))

    def _pairs(self, first: Times, second: Times) -> tuple[int, Sequence[Times], Sequence[int]]:
        window = self._windows[0, 1]
        nothing = np.empty(0, np.int64)
        if self._one_partner:
            index_first, index_second, taken_up = _matched(first, second, window)
            n = len(index_first)
            return n, (index_first, index_second) if self._collect else (nothing, nothing), (0, taken_up)
        if self._collect:
            index = find_coincidences(first, second, window)
            return len(index[0]), index, ()
        return count_coincidences(first, second, window), (nothing, nothing), ()

    def _tuples(self, channels: Sequence[Times]) -> tuple[int, Sequence[Times], Sequence[int]]:
        times = np.concatenate(channels)
        begin = np.cumsum([0, *map(len, channels)], dtype=np.int64)
        next_event = begin[:-1].copy()
        arguments = (times, begin, self._low, self._high, self._one_partner)
        index = np.empty((0, self._order), np.int64)
        n = multifold.match_tuples(*arguments, next_event, None)
        if self._collect:
            index = np.empty((n, self._order), np.int64)
            multifold.match_tuples(*arguments, begin[:-1].copy(), index)
        return n, list((index - begin[:-1]).T), (next_event - begin[:-1]).tolist()
