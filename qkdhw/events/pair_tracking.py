"""Tracking of two sites' clocks by their photon pairs: a filtered centroid an epoch, and a new search when it is lost.

In every epoch the time differences of pairs around 0 are counted. If a peak stands out of the accidentals by 6
standard deviations, its centroid, accidentals subtracted, corrects offset and rate. If none does, after a step of a
clock or a gap in the light, the clock runs on, the state is LOST, and what came since then is searched for the offset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, unique
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ClockAlignmentError, NonMonotonicTimeError
from qkdhw.events.alignment import MIN_SIGMA, check_ascending, sigma_of
from qkdhw.events.pair_alignment import RESOLUTION_PS, align_pair_times
from qkdhw.events.pair_correlation import ONE_TICK_Q32, PairClock, cut, poisson_log_tail
from qkdhw.events.pair_residuals import COLUMNS, fold_pairs
from qkdhw.quantities import PS_PER_S

EPOCH_S = 0.536870912  # 2^32 ticks of 125 ps: the epoch of the qcrypto programs
SEARCH_OFFSET_S = 0.01
SEARCH_PPM = 0.5
SEARCH_BINS = 1 << 20
_OFFSET_GAIN = 0.75
_RATE_GAIN = _OFFSET_GAIN**2 / (2 - _OFFSET_GAIN)  # critically damped
_ENOUGH_PAIRS = 4096.0  # of an epoch that has more, a part is looked at
_STRIPES = 16
_PEAK = 3  # columns taken for the peak
_NEAR = 3.0  # columns to either side of the centroid that are averaged
_SEARCHED_EPOCHS = 3
_AS_GOOD = 0.95  # of a found peak's significance that the rate of before must reach to be kept
_PATIENCE = 4  # epochs after which a silent site is waited for no longer


@unique
class TrackingState(Enum):
    """Whether the clock is known."""

    TRACKING = "tracking"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class TrackedEpoch:
    """What an epoch says about the clock.

    Attributes:
        first_ticks: Where it begins, in ticks of A.
        state: LOST if this epoch's `clock` is only what the last one foretells.
        found_again: The clock was found anew by a search that ended with this epoch.
        clock: The corrected clock; its reference is the middle of the epoch.
        measured: What the clock foretold, moved onto the centroid; the same as `clock` if LOST.
        residual_ticks: The centroid less what the clock foretold, in ticks of B; 0 if LOST.
        pairs: Coincidences within the peak, accidentals subtracted.
        accidentals: Expected there.
        significance: Gaussian standard deviations of the peak, all places looked at included.
    """

    first_ticks: int
    state: TrackingState
    found_again: bool
    clock: PairClock
    measured: PairClock
    residual_ticks: float
    pairs: float
    accidentals: float
    significance: float


class PairTracker:
    """Follow the clock of B in terms of A's through two streams, epoch by epoch.

    It follows a peak that moves by less than `capture_ticks` from one epoch to the next; with 125 ps ticks and a
    resolution of 1 ns these are +-62 ns, or a change of the rate of 1.1e-7. What moves further is searched for within
    +-`search_offset_s`: 1 ms takes one epoch if that has pairs enough, see `align_pairs`, else up to three.

    Args:
        clock: From `align_pairs`.
        a_tick_ps: Length of a tick of A.
        b_tick_ps: Length of a tick of B.
        epoch_s: How much of the streams corrects the clock at a time.
        resolution_ps: Width of a column: about as wide as the peak. Rounded down to 2^n ticks of B.
        search_offset_s: How far a lost offset is searched for.
        search_ppm: How far the rate may have changed by then, parts per million.
        search_bins: As `max_bins` of `align_pairs`: more find fewer pairs and take longer.
        patience: Epochs after which a site that is silent is waited for no longer; None if both are sure to come.
    """

    def __init__(
        self,
        clock: PairClock,
        a_tick_ps: Fraction,
        b_tick_ps: Fraction,
        *,
        epoch_s: float = EPOCH_S,
        resolution_ps: float = RESOLUTION_PS,
        search_offset_s: float = SEARCH_OFFSET_S,
        search_ppm: float = SEARCH_PPM,
        search_bins: int = SEARCH_BINS,
        patience: int | None = _PATIENCE,
    ) -> None:
        self._clock = clock
        self._state = TrackingState.TRACKING
        self._epoch_ticks = math.ceil(Fraction(epoch_s) * PS_PER_S / a_tick_ps)
        self._resolution_ticks = Fraction(resolution_ps) / b_tick_ps
        self._bin_shift = math.floor(self._resolution_ticks * ONE_TICK_Q32).bit_length() - 1
        self._reach_ticks = math.ceil(Fraction(search_offset_s) * PS_PER_S / a_tick_ps)
        self._search_ppm = search_ppm
        self._search_bins = search_bins
        self._patience = patience
        self._first_ticks: int | None = None
        self._lost_epochs = 0
        self._pairs = 0.0  # of the last epoch that confirmed the clock
        self._a, self._b = _Times(), _Times()

    @property
    def epoch_ticks(self) -> int:
        """Length of an epoch in ticks of A."""
        return self._epoch_ticks

    @property
    def clock(self) -> PairClock:
        """The clock after the last whole epoch."""
        return self._clock

    @property
    def state(self) -> TrackingState:
        """Whether the last whole epoch confirmed the clock."""
        return self._state

    @property
    def capture_ticks(self) -> float:
        """How far from the foretold offset a peak may lie in the next epoch to be followed, in ticks of B."""
        return (COLUMNS // 2 - _PEAK // 2 - 1) * 2.0 ** (self._bin_shift - 32)

    def step(self, clock: PairClock) -> None:
        """Go on from another clock, such as `TrackedEpoch.measured` after a step that changed no rate."""
        self._clock = clock

    def track(self, a_ticks: NDArray[np.int64], b_ticks: NDArray[np.int64]) -> list[TrackedEpoch]:
        """Take the next chunk of both streams, of any lengths, and judge the epochs that it completes.

        An epoch is complete when both sites have got past its end, or one of them by four epochs. At most so much is
        kept, and three epochs more while the clock is lost.

        Args:
            a_ticks: int64 (n,), times of A's next photons, ascending.
            b_ticks: int64 (m,), times of B's next photons, ascending.

        Returns:
            The epochs, in order; often none. Epochs in which neither site saw anything are passed over.

        Raises:
            NonMonotonicTimeError: Time goes backwards, within a chunk or from one to the next.
        """
        self.add(a_ticks, b_ticks)
        return list(self.epochs())

    def add(self, a_ticks: NDArray[np.int64], b_ticks: NDArray[np.int64]) -> None:
        """Take the next chunk of both streams, as `track` does, and judge nothing."""
        self._a.append(a_ticks)
        self._b.append(b_ticks)
        if self._first_ticks is None and len(self._a):
            self._first_ticks = int(self._a.ticks[0])

    def epochs(self, *, ended: bool = False) -> Iterator[TrackedEpoch]:
        """Judge complete epochs one by one, each when it is asked for; `step` may come between.

        Args:
            ended: Both streams have ended: what is left is judged too; the last epoch may hold too little to be found.
        """
        while self._first_ticks is not None:
            is_left = ended and self._a.last is not None and self._a.last >= self._first_ticks
            if not is_left and not self._is_complete(self._first_ticks + self._epoch_ticks):
                return
            yield self._judge_next(self._first_ticks)

    def _judge_next(self, first_ticks: int) -> TrackedEpoch:
        epoch = self._judge(first_ticks)
        self._first_ticks = self._next_epoch(first_ticks + self._epoch_ticks)
        self._forget(self._first_ticks - self._lost_epochs * self._epoch_ticks)
        return epoch

    def _is_complete(self, end_ticks: int) -> bool:
        a_last = end_ticks - 1 if self._a.last is None else self._a.last
        b_last = end_ticks - 1 if self._b.last is None else self._clock.invert(self._b.last) - self._reach_ticks
        if min(a_last, b_last) >= end_ticks:
            return True
        return self._patience is not None and max(a_last, b_last) >= end_ticks + self._patience * self._epoch_ticks

    def _next_epoch(self, first_ticks: int) -> int:
        """Pass over epochs in which neither site saw anything, however many they are."""
        a_next = self._a.since(first_ticks)[:1]
        b_next = self._b.since(self._clock.map_q32(first_ticks) >> 32)[:1]
        following = [*a_next.tolist(), *(self._clock.invert(t) for t in b_next.tolist())]
        silent = max(0, min(following, default=first_ticks) - first_ticks)
        return first_ticks + silent // self._epoch_ticks * self._epoch_ticks

    def _forget(self, first_ticks: int) -> None:
        """Drop what no coming epoch looks at; the last photon of each stream stays to tell its time."""
        self._a.forget(first_ticks)
        self._b.forget(self._clock.map_q32(first_ticks - self._reach_ticks) >> 32)

    def _judge(self, first_ticks: int) -> TrackedEpoch:
        """Correct the clock by one epoch, or search for it."""
        share = min(1.0, _ENOUGH_PAIRS / self._pairs) if self._pairs else 1.0
        epoch = self._measure(first_ticks, self._clock, share=share)
        if epoch.state is TrackingState.LOST and share < 1:
            epoch = self._measure(first_ticks, self._clock)
        self._pairs = epoch.pairs if epoch.state is TrackingState.TRACKING else 0.0
        if epoch.state is TrackingState.LOST:
            self._lost_epochs = min(self._lost_epochs + 1, _SEARCHED_EPOCHS)
            found = self._search(first_ticks)
            if found is not None:
                epoch = self._measure(first_ticks, found, found_again=True)
                # A step changes no rate as a rule, and a rate found in little light is none to go on with.
                same_rate = found.rebased(found.ref_a_ticks, stretch_q48=self._clock.rate_q48 - found.rate_q48)
                steady = self._measure(first_ticks, same_rate, found_again=True)
                if steady.significance >= _AS_GOOD * epoch.significance:
                    epoch = steady
        if epoch.state is TrackingState.TRACKING:
            self._lost_epochs = 0
        self._clock, self._state = epoch.clock, epoch.state
        return epoch

    def _measure(
        self, first_ticks: int, clock: PairClock, *, found_again: bool = False, share: float = 1.0
    ) -> TrackedEpoch:
        """Find the peak of an epoch, or of evenly spread stripes of it, near where a clock foretells it."""
        clock = clock.rebased(first_ticks + self._epoch_ticks // 2)
        histogram = np.zeros((1, COLUMNS), np.int64)
        slice_log2 = self._epoch_ticks.bit_length()
        stripes = 1 if share == 1 else _STRIPES
        stripe_ticks = math.ceil(share * self._epoch_ticks / stripes)
        for k in range(stripes):
            begin = first_ticks + k * self._epoch_ticks // stripes
            within = begin, begin + stripe_ticks
            fold_pairs(self._a.ticks, self._b.ticks, clock, within, slice_log2, self._bin_shift, histogram)
        counts = histogram[0]
        place, pairs, accidentals, significance = _find_centroid(counts)
        locked = significance >= MIN_SIGMA
        residual_q32 = place * 2.0**self._bin_shift if locked else 0.0
        return TrackedEpoch(
            first_ticks=first_ticks,
            state=TrackingState.TRACKING if locked else TrackingState.LOST,
            found_again=found_again and locked,
            clock=clock.rebased(
                clock.ref_a_ticks,
                shift_q32=round(_OFFSET_GAIN * residual_q32),
                stretch_q48=round(_RATE_GAIN * residual_q32 * 2.0**16 / self._epoch_ticks),
            ),
            measured=clock.rebased(clock.ref_a_ticks, shift_q32=round(residual_q32)),
            residual_ticks=residual_q32 / 2.0**32,
            pairs=pairs / share,
            accidentals=accidentals / share,
            significance=significance,
        )

    def _search(self, first_ticks: int) -> PairClock | None:
        """Look for the clock in all epochs since it was lost, three at most."""
        begin_ticks = first_ticks - (self._lost_epochs - 1) * self._epoch_ticks
        end_ticks = first_ticks + self._epoch_ticks
        try:
            return align_pair_times(
                cut(self._a.ticks, begin_ticks, end_ticks),
                cut(
                    self._b.ticks,
                    self._clock.map_q32(begin_ticks - self._reach_ticks) >> 32,
                    self._clock.map_q32(end_ticks + self._reach_ticks) >> 32,
                ),
                self._clock.rebased(first_ticks),
                reach_ticks=self._reach_ticks,
                max_ppm=self._search_ppm,
                resolution_ticks=self._resolution_ticks,
                span_ticks=self._epoch_ticks,
                max_bins=self._search_bins,
            ).clock
        except ClockAlignmentError:
            return None


class _Times:
    """Times of one site, in memory that is used again: what is new goes behind, what is done goes."""

    def __init__(self) -> None:
        self._memory = np.empty(1 << 12, np.int64)
        self._begin = self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def ticks(self) -> NDArray[np.int64]:
        """The times, until the next `append`."""
        return self._memory[self._begin : self._end]

    @property
    def last(self) -> int | None:
        return int(self._memory[self._end - 1]) if len(self) else None

    def append(self, chunk: NDArray[np.int64]) -> None:
        check_ascending(chunk)
        if len(chunk) and self.last is not None and chunk[0] < self.last:
            raise NonMonotonicTimeError(
                "a chunk begins earlier than the one before it ended",
                index=0,
                remedy="Feed the chunks in their order, and check the time tagger for overflows.",
            )
        n = len(self)
        if self._end + len(chunk) > len(self._memory):
            kept, enough = self.ticks, 2 * (n + len(chunk)) <= len(self._memory)
            if not enough:
                self._memory = np.empty(3 * (n + len(chunk)), np.int64)
            self._memory[:n] = kept
            self._begin, self._end = 0, n
        self._memory[self._end : self._end + len(chunk)] = chunk
        self._end += len(chunk)

    def since(self, first_ticks: int) -> NDArray[np.int64]:
        return self.ticks[np.searchsorted(self.ticks, first_ticks) :]

    def forget(self, before_ticks: int) -> None:
        """Drop what is earlier; the last time stays to tell where the stream is."""
        self._begin += min(int(np.searchsorted(self.ticks, before_ticks)), max(0, len(self) - 1))


def _find_centroid(counts: NDArray[np.int64]) -> tuple[float, float, float, float]:
    """Return centroid (columns from the middle), pairs, accidentals and significance of the highest peak."""
    column = np.arange(COLUMNS) + 0.5 - COLUMNS / 2
    sums = np.convolve(counts, np.ones(_PEAK, np.int64), "valid")
    best = int(np.argmax(sums))
    place = float(column[best + _PEAK // 2])
    background = 0.0
    for _ in range(4):
        near = np.abs(column - place) <= _NEAR
        background = float(counts[~near].sum()) / int((~near).sum())
        weight = counts[near] - background
        if weight.sum() <= 0:
            break
        place = float(np.clip((weight * column[near]).sum() / weight.sum(), column[0], column[-1]))
    accidentals = _PEAK * background
    log_p = poisson_log_tail(float(sums[best]), max(accidentals, 1e-9)) + math.log(len(sums))
    return place, float(sums[best]) - accidentals, accidentals, sigma_of(log_p)
