"""Clock alignment of two sites that share photon pairs, from their detections alone.

Three steps. A scan over rates with ever more bins finds offset and rate coarsely: few bins need few rates, and more are
only tried if these do not suffice. While there are plenty of pairs, shorter and finer windows follow. At last the time
differences of single pairs of events, by time, are sheared until they stand on one column, over narrower columns and
then over longer windows. Times stay integers throughout.

At no step is a peak taken for the offset unless chance would make one as high with less than the probability of 6
standard deviations, all bins and rates looked at included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import folding as kernels
from qkdhw.errors import ClockAlignmentError, NonMonotonicTimeError
from qkdhw.events.alignment import MAX_PPM, MIN_SIGMA, check_ascending, sigma_of
from qkdhw.events.pair_correlation import PairClock, PairPeak, Window, cut, find_pair_peak, poisson_log_tail
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.quantities import PS_PER_S

MAX_OFFSET_S = 0.1
RESOLUTION_PS = 1000.0
MAX_BINS = 1 << 22
SPAN_S = 2.0
_MIN_EVENTS = 16
_MIN_BINS = 1 << 14
_ENOUGH_PAIRS = 400.0
_ROWS, _COLUMNS = 32, 128
_REACH = 24  # columns to either side that the offset, and the shear from the first row to the last, may be off
_MIN_KEPT = 0.35  # fraction of the pairs that a finer column or a longer window must keep


@dataclass(frozen=True, slots=True)
class PairAlignment:
    """The clock of one site in terms of the other's, and how sure that is.

    Attributes:
        clock: Its reference is the middle of the events used; exact integers.
        relative_rate: Rate of the clock of B over that of A, less 1, exact (2e-5 is 20 ppm).
        resolution_ticks: Final bin in ticks of B, exact.
        span_ticks: How long a piece of A the final fit saw, in its ticks.
        pairs: Coincidences of the final peak bin, accidentals subtracted.
        accidentals: Expected there.
        significance: Gaussian standard deviations of the final peak, after all offsets and rates that it might have
            had at this resolution and span.
        search_significance: The same of the coarse peak that started it.
    """

    clock: PairClock
    relative_rate: Fraction
    resolution_ticks: Fraction
    span_ticks: int
    pairs: float
    accidentals: float
    significance: float
    search_significance: float


@dataclass(frozen=True, slots=True)
class _Sheared:
    """The best column of a sheared histogram."""

    clock: PairClock
    bin_shift: int
    span_log2: int
    pairs: float
    accidentals: float
    log_p: float


def align_pairs(
    a: DetectionBlock,
    b: DetectionBlock,
    *,
    max_offset_s: float = MAX_OFFSET_S,
    max_ppm: float = MAX_PPM,
    resolution_ps: float = RESOLUTION_PS,
    span_s: float = SPAN_S,
    max_bins: int = MAX_BINS,
) -> PairAlignment:
    """Find the clock of B in terms of A's from the photons of two blocks.

    The cost grows with the number of bins it takes, not with the blocks' lengths: 64 S_A S_B / C^2 bins and more for
    singles S and pairs C a second. About 50 pairs must lie in what is searched, which is twice `max_offset_s` or more.

    Args:
        a: Detections of one site, times ascending; their channels do not matter.
        b: Detections of the other, which may count in other ticks.
        max_offset_s: Largest difference of the two times of the same moment.
        max_ppm: Largest relative difference of the two clocks, parts per million.
        resolution_ps: Width of the finest bin: about as wide as the peak. Rounded down to 2^n ticks of B.
        span_s: How long a piece the final fit may see; over less if the rate is not constant over as much.
        max_bins: Largest transform, a power of two; above, give up.

    Returns:
        Clock, exact offset and rate, and significance.

    Raises:
        NonMonotonicTimeError: Time goes backwards.
        ClockAlignmentError: No peak of at least 6 standard deviations.
    """
    return align_pair_times(
        a.time_ticks[a.kind == EventKind.PHOTON],
        b.time_ticks[b.kind == EventKind.PHOTON],
        PairClock.nominal(a.tick_ps, b.tick_ps),
        reach_ticks=math.ceil(Fraction(max_offset_s) * PS_PER_S / a.tick_ps),
        max_ppm=max_ppm,
        resolution_ticks=Fraction(resolution_ps) / b.tick_ps,
        span_ticks=math.ceil(Fraction(span_s) * PS_PER_S / a.tick_ps),
        max_bins=max_bins,
    )


def align_pair_times(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    nominal: PairClock,
    *,
    reach_ticks: int,
    max_ppm: float,
    resolution_ticks: Fraction,
    span_ticks: int,
    max_bins: int = MAX_BINS,
) -> PairAlignment:
    """Do what `align_pairs` does, given the times of the photons, int64 and ascending, and a clock to start from.

    Args:
        a_ticks: int64 (n,), times of A.
        b_ticks: int64 (m,), times of B.
        nominal: About where the offset lies.
        reach_ticks: How far from there, in ticks of A.
        max_ppm: Largest relative error of the clock's rate, parts per million.
        resolution_ticks: Width of the finest bin in ticks of B.
        span_ticks: How long a piece the final fit may see, in ticks of A.
        max_bins: Largest transform, a power of two.

    Returns:
        As `align_pairs`.

    Raises:
        NonMonotonicTimeError: Time goes backwards.
        ClockAlignmentError: No peak of at least 6 standard deviations.
    """
    low, high = _common(a_ticks, b_ticks, nominal)
    window, peak = _search(a_ticks, b_ticks, nominal, (low, high), reach_ticks, max_ppm, max_bins)
    search_significance = sigma_of(peak.global_log_p)
    window, peak = _zoom(a_ticks, b_ticks, window, peak)
    bin_q32 = (peak.clock.rate_q48 << window.period_log2 >> 16) // window.bins
    finest = max(2, math.floor(resolution_ticks * (1 << 32)).bit_length() - 1)
    sheared = _refine(a_ticks, b_ticks, peak.clock, window, bin_q32, finest, (low, high), span_ticks)
    bins = (2 * reach_ticks * nominal.rate_q48 >> 16) >> sheared.bin_shift
    rates = 2e-6 * max_ppm * (nominal.rate_q48 << sheared.span_log2 >> 16) / 2.0**sheared.bin_shift
    significance = sigma_of(sheared.log_p + math.log((bins + 1) * (rates + 1)))
    if significance < MIN_SIGMA:
        raise _no_peak(significance, "single pairs of events", sheared.pairs)
    return PairAlignment(
        clock=sheared.clock,
        relative_rate=sheared.clock.rate / nominal.rate - 1,
        resolution_ticks=Fraction(1 << sheared.bin_shift, 1 << 32),
        span_ticks=1 << sheared.span_log2,
        pairs=sheared.pairs,
        accidentals=sheared.accidentals,
        significance=significance,
        search_significance=search_significance,
    )


def _no_peak(sigma: float, where: str, pairs: float) -> ClockAlignmentError:
    return ClockAlignmentError(
        f"the two streams show no common offset: {sigma:.1f} of {MIN_SIGMA:g} standard deviations in {where} "
        f"({pairs:.0f} coincidences above chance)",
        remedy="Check that both streams cover the same time, or allow a larger offset, more parts per million, "
        "more bins or a longer stream.",
    )


def _common(a_ticks: NDArray[np.int64], b_ticks: NDArray[np.int64], clock: PairClock) -> tuple[int, int]:
    """Return the first and the last moment, in ticks of A, at which the nominal clock has events of both."""
    if min(len(a_ticks), len(b_ticks)) < _MIN_EVENTS:
        raise ClockAlignmentError(
            f"{len(a_ticks)} and {len(b_ticks)} photons are too few to align two clocks",
            remedy="Collect longer, or check that light reaches the detectors.",
        )
    low = max(int(a_ticks[0]), clock.invert(int(b_ticks[0])))
    high = min(int(a_ticks[-1]), clock.invert(int(b_ticks[-1])))
    if high <= low:
        raise ClockAlignmentError(
            "the two streams do not overlap in time",
            remedy="Check the start times of both sites.",
        )
    return low, high


def _search(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    nominal: PairClock,
    common: tuple[int, int],
    reach_ticks: int,
    max_ppm: float,
    max_bins: int,
) -> tuple[Window, PairPeak]:
    """Scan offsets and rates with more and more bins until a peak is significant."""
    low, high = common
    a_rate = len(a_ticks) / (int(a_ticks[-1]) - int(a_ticks[0]) + 1)
    b_rate = len(b_ticks) / (nominal.invert(int(b_ticks[-1])) - nominal.invert(int(b_ticks[0])) + 1)
    bins, looks, best = _MIN_BINS, 0, None
    while bins <= max_bins:
        # At 9 accidentals a bin and 9 standard deviations 36 pairs do; fewer accidentals would ask for as many pairs.
        wanted = max(2 * reach_ticks, math.ceil(3 * math.sqrt(bins / (a_rate * b_rate))))
        period_log2 = (min(wanted, high - low) + 2 * reach_ticks).bit_length()
        span = min((1 << period_log2) - 2 * reach_ticks, high - low)
        first = low + min(reach_ticks, max(0, (high - low - span) // 2))
        window = Window(first, span, reach_ticks, period_log2, bins)
        end = first + span + reach_ticks
        for ticks, begin_ticks, end_ticks in (
            (a_ticks, first, end),
            (b_ticks, nominal.map_q32(first - reach_ticks) >> 32, nominal.map_q32(end) >> 32),
        ):
            check_ascending(cut(ticks, begin_ticks, end_ticks))
        steps = math.ceil(max_ppm * 1e-6 * window.coherence)
        width = max_ppm * 1e-6 * nominal.rate_q48 / max(steps, 1)
        peak = find_pair_peak(
            a_ticks, b_ticks, nominal, window, [nominal.rate_q48 + round(k * width) for k in range(-steps, steps + 1)]
        )
        looks += peak.looks
        if sigma_of(peak.log_p + math.log(looks)) >= MIN_SIGMA:
            return window, peak
        if best is None or peak.log_p < best.log_p:
            best = peak
        bins *= 2
    if best is None:
        raise ValueError(f"max_bins is {max_bins}, less than {_MIN_BINS}")
    raise _no_peak(sigma_of(best.log_p + math.log(looks)), f"up to {max_bins} bins", best.pairs)


def _zoom(
    a_ticks: NDArray[np.int64], b_ticks: NDArray[np.int64], window: Window, peak: PairPeak
) -> tuple[Window, PairPeak]:
    """Correlate shorter windows, with as many bins, as long as they have plenty of pairs: the bins grow finer."""
    while True:
        span = max(window.span_ticks >> 3, math.ceil(window.span_ticks * _ENOUGH_PAIRS / max(peak.pairs, 1.0)))
        reach = 4 * max(1, (1 << window.period_log2) // window.bins)
        period_log2 = (span + 2 * reach).bit_length()
        if period_log2 >= window.period_log2 or 1 << period_log2 < window.bins:
            return window, peak
        finer = Window(peak.clock.ref_a_ticks - span // 2, span, reach, period_log2, window.bins)
        step = peak.clock.rate_q48 / finer.coherence
        error = math.ceil(2 * finer.coherence / window.coherence)
        rates = [peak.clock.rate_q48 + round(k * step) for k in range(-error, error + 1)]
        found = find_pair_peak(a_ticks, b_ticks, peak.clock, finer, rates)
        if sigma_of(found.global_log_p) < MIN_SIGMA:
            return window, peak
        window, peak = finer, found


def _refine(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    clock: PairClock,
    window: Window,
    bin_q32: int,
    finest: int,
    common: tuple[int, int],
    span_ticks: int,
) -> _Sheared:
    """Narrow the columns to `finest` (as a power of two of 2^-32 ticks), then lengthen the window, then fit a line."""
    span_log2 = window.span_ticks.bit_length() - 1
    bin_shift = max(bin_q32.bit_length() - 3, finest)
    best = _shear(a_ticks, b_ticks, clock, bin_shift, span_log2, common)
    while best.bin_shift > finest:
        next_shift = max(best.bin_shift - 2, finest)
        finer = _shear(a_ticks, b_ticks, best.clock, next_shift, span_log2, common)
        if finer.pairs < _MIN_KEPT * best.pairs:
            break  # narrower than the peak
        best = finer
    longest = min(span_ticks, common[1] - common[0]).bit_length() - 1
    while best.span_log2 < longest:
        next_span = min(best.span_log2 + 2, longest)
        longer = _shear(a_ticks, b_ticks, best.clock, best.bin_shift, next_span, common)
        if longer.pairs < _MIN_KEPT * best.pairs * 2 ** (next_span - best.span_log2):
            break  # the rate is not constant for so long, or the light went out
        best = longer
    return best


def _shear(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    clock: PairClock,
    bin_shift: int,
    span_log2: int,
    common: tuple[int, int],
) -> _Sheared:
    """Find the offset and the rate at which the residuals of most pairs share one column, then fit a line."""
    span = 1 << span_log2
    slice_log2 = span_log2 - (_ROWS.bit_length() - 1)
    first = max(min(clock.ref_a_ticks - span // 2, common[1] - span), common[0])
    clock = clock.rebased(first + span // 2)
    a_part = cut(a_ticks, first, first + span)
    margin = (_COLUMNS << bin_shift >> 33) + 1
    b_part = cut(b_ticks, (clock.map_q32(first) >> 32) - margin, (clock.map_q32(first + span) >> 32) + margin + 1)
    histogram = np.zeros((_ROWS, _COLUMNS), np.int64)
    done = kernels.fold_residuals(
        a_part, b_part, clock.ref_a_ticks, clock.ref_b_ticks, clock.phase_q32, clock.rate_q48, first, slice_log2,
        bin_shift, histogram,
    )  # fmt: skip
    if done < 0:
        raise NonMonotonicTimeError(
            f"time goes backwards near photon {-1 - done} of the window",
            index=-1 - done,
            remedy="Sort the streams by time first, or check the time taggers for overflows.",
        )
    slope, column, pairs, accidentals, log_p = _best_column(histogram)
    offset, slope = _fit_line(histogram, column, slope, accidentals / _ROWS)
    return _Sheared(
        clock=clock.rebased(
            clock.ref_a_ticks,
            shift_q32=round(offset * 2.0**bin_shift),
            stretch_q48=round(slope * 2.0 ** (bin_shift + 16 - span_log2)),
        ),
        bin_shift=bin_shift,
        span_log2=span_log2,
        pairs=pairs,
        accidentals=accidentals,
        log_p=log_p,
    )


def _best_column(histogram: NDArray[np.int64]) -> tuple[float, float, float, float, float]:
    """Return shear (columns over all rows), place (columns from the middle), pairs, accidentals and log of chance."""
    slopes = np.arange(-_REACH, _REACH + 1)
    places = np.arange(_COLUMNS // 2 - _REACH, _COLUMNS // 2 + _REACH)
    row = np.arange(_ROWS)
    moved = np.rint(slopes[:, None] * ((row + 0.5) / _ROWS - 0.5)).astype(np.int64)
    total = sum(histogram[k, moved[:, k, None] + places] for k in range(_ROWS))
    best_slope, best_place = np.unravel_index(int(np.argmax(total)), total.shape)
    count = int(total[best_slope, best_place])
    accidentals = (int(histogram.sum()) - count) / (_COLUMNS - 1)
    log_p = poisson_log_tail(count, accidentals if accidentals > 0 else 1e-9)
    place = float(places[best_place]) + 0.5 - _COLUMNS / 2
    return float(slopes[best_slope]), place, count - accidentals, accidentals, log_p


def _fit_line(histogram: NDArray[np.int64], place: float, slope: float, accidentals: float) -> tuple[float, float]:
    """Fit a line through the peak by least squares, accidentals subtracted; return place in the middle and slope."""
    x = ((np.arange(_ROWS) + 0.5) / _ROWS - 0.5)[:, None] + np.zeros((1, _COLUMNS))
    y = (np.arange(_COLUMNS) + 0.5 - _COLUMNS / 2)[None, :] + np.zeros((_ROWS, 1))
    weight = histogram - accidentals
    for _ in range(3):
        error = y - place - slope * x
        w = np.where(np.abs(error) <= 2.5, weight, 0.0)
        sum_w = float(w.sum())
        mean_x, mean_y = float((w * x).sum()) / sum_w, float((w * error).sum()) / sum_w
        variance = float((w * (x - mean_x) ** 2).sum())
        if sum_w <= 0 or variance <= 0:
            break
        change = float((w * (x - mean_x) * error).sum()) / variance
        place += mean_y - change * mean_x
        slope += change
    return place, slope
