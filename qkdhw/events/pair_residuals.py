"""Time differences of single pairs of events: the fine steps of aligning two sites.

Residuals are counted by the time of A (rows) and by size (columns). The true pairs lie on a line, whose slope is the
error of the clock's rate; sheared by as much, they stand on one column. The columns are narrowed, then the window is
lengthened, and at last a line is fitted to the pairs themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import folding as kernels
from qkdhw.errors import NonMonotonicTimeError
from qkdhw.events.coincidences import CoincidenceWindow, find_coincidences
from qkdhw.events.pair_correlation import PairClock, Window, cut, poisson_log_tail

COLUMNS = 128
MAX_RESIDUALS = 2e6  # pairs of events that are looked at where fewer would do as well
_ROWS = 32
_REACH = 24  # columns to either side that the offset, and the shear from the first row to the last, may be off
SLOPES = 2 * _REACH + 1  # that are looked at for the best one
_NEAR = 2.5  # columns to either side that belong to the peak
_RIVAL_DISTANCE = 5  # columns from the peak on that another may begin
_MAX_SIDE = 1 << 19
_MAX_MOVES = 4
_MIN_KEPT = 0.35  # fraction of the pairs that a finer column or a longer window must keep


@dataclass(frozen=True, slots=True)
class Residuals:
    """Residuals by time (rows) and size (columns), and the line through the peak.

    Attributes:
        base: The clock that residuals are counted from; its reference is the middle row.
        histogram: int64 (_ROWS, COLUMNS).
        bin_shift: A column is 2^this / 2^32 ticks of B wide.
        span_log2: All rows are 2^this ticks of A long.
        place: Where the line crosses the middle row, in columns from the middle.
        slope: Columns from the first row to the last.
        pairs: Coincidences in the column at the best slope, accidentals subtracted.
        accidentals: Expected there.
        log_p: Logarithm of the probability that a given column at a given slope has as many by accident.
    """

    base: PairClock
    histogram: NDArray[np.int64]
    bin_shift: int
    span_log2: int
    place: float
    slope: float
    pairs: float
    accidentals: float
    log_p: float

    @property
    def clock(self) -> PairClock:
        """The clock that the line stands for."""
        return self.base.rebased(
            self.base.ref_a_ticks,
            shift_q32=round(self.place * 2.0**self.bin_shift),
            stretch_q48=round(self.slope * 2.0 ** (self.bin_shift + 16 - self.span_log2)),
        )


def refine_pairs(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    clock: PairClock,
    window: Window,
    bin_q32: int,
    finest: int,
    common: tuple[int, int],
    span_ticks: int,
) -> Residuals:
    """Narrow the columns to `finest` (as a power of two of 2^-32 ticks), then lengthen the window, then fit a line."""
    span_log2 = window.total_ticks.bit_length() - 1
    bin_shift = max(bin_q32.bit_length() - 3, finest)
    best = _fold(a_ticks, b_ticks, clock, bin_shift, span_log2, common)
    while best.bin_shift > finest:
        next_shift = max(best.bin_shift - 2, finest)
        finer = _fold(a_ticks, b_ticks, best.clock, next_shift, span_log2, common)
        if finer.pairs < _MIN_KEPT * best.pairs:
            break  # narrower than the peak
        best = finer
    longest = min(span_ticks, common[1] - common[0]).bit_length() - 1
    while best.span_log2 < longest:
        next_span = min(best.span_log2 + 2, longest)
        longer = _fold(a_ticks, b_ticks, best.clock, best.bin_shift, next_span, common)
        if longer.pairs < _MIN_KEPT * best.pairs * 2 ** (next_span - best.span_log2):
            break  # the rate is not constant for so long, or the light went out
        best = longer
    return _fitted(a_ticks, b_ticks, best)


def fold_pairs(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    clock: PairClock,
    within: tuple[int, int],
    slice_log2: int,
    bin_shift: int,
    histogram: NDArray[np.int64],
) -> None:
    """Add the residuals of all pairs of events to a histogram.

    Args:
        a_ticks: int64 (n,), times of A, ascending.
        b_ticks: int64 (m,), times of B, ascending.
        clock: What residuals are counted from.
        within: The first moment of A looked at and the one after the last.
        slice_log2: A row is 2^this ticks of A long.
        bin_shift: A column is 2^this / 2^32 ticks of B wide.
        histogram: int64 (rows, columns), added to; a residual of 0 begins column columns / 2.

    Raises:
        NonMonotonicTimeError: Time goes backwards.
    """
    first, end = within
    margin = (histogram.shape[1] << bin_shift >> 33) + 1
    done = kernels.fold_residuals(
        cut(a_ticks, first, end),
        cut(b_ticks, (clock.map_q32(first) >> 32) - margin, (clock.map_q32(end) >> 32) + margin + 1),
        clock.ref_a_ticks, clock.ref_b_ticks, clock.phase_q32, clock.rate_q48, first, slice_log2, bin_shift, histogram,
    )  # fmt: skip
    if done < 0:
        raise NonMonotonicTimeError(
            f"time goes backwards near photon {-1 - done} of the window",
            index=-1 - done,
            remedy="Sort the streams by time first, or check the time taggers for overflows.",
        )


def settle_rivals(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    best: Residuals,
    common: tuple[int, int],
    reach_q32: int,
    density: float,
) -> tuple[Residuals, float]:
    """Look for a higher peak in the neighbourhood: pulsed light, for one, makes accidentals coincide at every pulse.

    Args:
        a_ticks: int64 (n,), times of A, ascending.
        b_ticks: int64 (m,), times of B, ascending.
        best: The peak so far.
        common: The first and the last moment of A that may be looked at.
        reach_q32: How far to look to either side, in 2^-32 ticks of B.
        density: Pairs of events to a tick of A and a tick of B.

    Returns:
        The highest peak, and the logarithm of the probability that what makes the next one makes this as well.
    """
    half = min(max(reach_q32 >> best.bin_shift, COLUMNS), _MAX_SIDE)
    width_ticks = 2 * half * 2.0 ** (best.bin_shift - 32)
    for _ in range(_MAX_MOVES):
        middle = best.clock.ref_a_ticks
        span = math.ceil(min(1 << best.span_log2, MAX_RESIDUALS / (density * width_ticks)))
        histogram = np.zeros((1, 2 * half), np.int64)
        within = (middle - span // 2, middle + span - span // 2)
        fold_pairs(a_ticks, b_ticks, best.clock, within, span.bit_length(), best.bin_shift, histogram)
        sums = histogram[0, :-1] + histogram[0, 1:]  # the peak lies around the middle, where two columns meet
        near = slice(half - 1 - _RIVAL_DISTANCE, half + _RIVAL_DISTANCE)
        own = int(sums[near].max())
        sums[near] = 0
        place = int(np.argmax(sums))
        rival = int(sums[place])
        if own >= rival:
            break
        moved = best.clock.rebased(middle, shift_q32=(place + 1 - half) << best.bin_shift)
        best = _fitted(a_ticks, b_ticks, _fold(a_ticks, b_ticks, moved, best.bin_shift, best.span_log2, common))
    return best, poisson_log_tail(own, max(rival, 1.0)) + math.log(2 * half)


def _fitted(a_ticks: NDArray[np.int64], b_ticks: NDArray[np.int64], residuals: Residuals) -> Residuals:
    """Return the same with a line fitted through the peak, first of the columns and then of the pairs themselves.

    Columns alone would be wrong by half a tick, or by a part of a column if the peak is narrower, wherever residuals
    are whole ticks and the clocks do not drift: they do not fill a column evenly.
    """
    place, slope = _fit_line(residuals.histogram, residuals.place, residuals.slope)
    fitted = replace(residuals, place=place, slope=slope)
    place_change, slope_change = _fit_pairs(*_near_pairs(a_ticks, b_ticks, fitted), _row_accidentals(fitted))
    return replace(fitted, place=place + place_change, slope=slope + slope_change)


def _near_pairs(
    a_ticks: NDArray[np.int64], b_ticks: NDArray[np.int64], residuals: Residuals
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where in the window (-0.5 to 0.5) the pairs near the line lie, and how many columns from the line."""
    clock, span = residuals.clock, 1 << residuals.span_log2
    column_ticks = 2.0 ** (residuals.bin_shift - 32)
    reach = math.ceil(2 * _NEAR * column_ticks) + 1  # more than belongs to the peak: it may be moved
    first = clock.ref_a_ticks - span // 2
    since = cut(a_ticks, first, first + span) - clock.ref_a_ticks
    whole_rate, rest_q48 = divmod(clock.rate_q48, 1 << 48)
    # Whole ticks are exact; the rest is off by less than 2^-10 of a tick in the longest of windows.
    rest = since * (rest_q48 / 2.0**48) + clock.phase_q32 / 2.0**32
    mapped = clock.ref_b_ticks + since * whole_rate + np.floor(rest).astype(np.int64)
    near_b = cut(b_ticks, int(mapped[0]) - reach, int(mapped[-1]) + reach + 1) if len(mapped) else b_ticks[:0]
    index_a, index_b = find_coincidences(mapped, near_b, CoincidenceWindow(-reach, reach))
    error = near_b[index_b] - mapped[index_a] - (rest % 1.0)[index_a]
    return since[index_a] / span, error / column_ticks


def _row_accidentals(residuals: Residuals) -> NDArray[np.float64]:
    """Return how many accidentals each row has within what belongs to the peak."""
    x = ((np.arange(_ROWS) + 0.5) / _ROWS - 0.5)[:, None]
    far = np.abs(np.arange(COLUMNS) + 0.5 - COLUMNS / 2 - residuals.place - residuals.slope * x) > _NEAR
    per_column = np.where(far, residuals.histogram, 0).sum(axis=1) / np.maximum(1, far.sum(axis=1))
    accidentals: NDArray[np.float64] = 2 * _NEAR * per_column
    return accidentals


def _fit_pairs(x: NDArray[np.float64], y: NDArray[np.float64], accidentals: NDArray[np.float64]) -> tuple[float, float]:
    """Fit a line through pairs by least squares, accidentals subtracted; return its place in the middle and slope."""
    row_x = (np.arange(_ROWS) + 0.5) / _ROWS - 0.5
    place = slope = 0.0
    for _ in range(3):
        error = y - place - slope * x
        near = np.abs(error) <= _NEAR
        near_x, near_error = x[near], error[near]
        # Accidentals lie evenly about the line: they add to the weight and not to the error.
        sum_w = len(near_x) - float(accidentals.sum())
        if sum_w <= 0:
            break
        mean_x = (float(near_x.sum()) - float((accidentals * row_x).sum())) / sum_w
        variance = float(((near_x - mean_x) ** 2).sum()) - float((accidentals * (row_x - mean_x) ** 2).sum())
        if variance <= 0:
            break
        change = float(((near_x - mean_x) * near_error).sum()) / variance
        place += float(near_error.sum()) / sum_w - change * mean_x
        slope += change
    return place, slope


def _fold(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    clock: PairClock,
    bin_shift: int,
    span_log2: int,
    common: tuple[int, int],
) -> Residuals:
    """Find the offset and the rate at which the residuals of most pairs share one column."""
    span = 1 << span_log2
    slice_log2 = span_log2 - (_ROWS.bit_length() - 1)
    first = max(min(clock.ref_a_ticks - span // 2, common[1] - span), common[0])
    clock = clock.rebased(first + span // 2)
    histogram = np.zeros((_ROWS, COLUMNS), np.int64)
    fold_pairs(a_ticks, b_ticks, clock, (first, first + span), slice_log2, bin_shift, histogram)
    slope, place, pairs, accidentals, log_p = _best_column(histogram)
    return Residuals(clock, histogram, bin_shift, span_log2, place, slope, pairs, accidentals, log_p)


def _best_column(histogram: NDArray[np.int64]) -> tuple[float, float, float, float, float]:
    """Return shear (columns over all rows), place (columns from the middle), pairs, accidentals and log of chance."""
    slopes = np.arange(-_REACH, _REACH + 1)
    places = np.arange(COLUMNS // 2 - _REACH, COLUMNS // 2 + _REACH)
    row = np.arange(_ROWS)
    moved = np.rint(slopes[:, None] * ((row + 0.5) / _ROWS - 0.5)).astype(np.int64)
    total = sum(histogram[k, moved[:, k, None] + places] for k in range(_ROWS))
    best_slope, best_place = np.unravel_index(int(np.argmax(total)), total.shape)
    count = int(total[best_slope, best_place])
    accidentals = (int(histogram.sum()) - count) / (COLUMNS - 1)
    log_p = poisson_log_tail(count, accidentals if accidentals > 0 else 1e-9)
    place = float(places[best_place]) + 0.5 - COLUMNS / 2
    return float(slopes[best_slope]), place, count - accidentals, accidentals, log_p


def _fit_line(histogram: NDArray[np.int64], place: float, slope: float) -> tuple[float, float]:
    """Fit a line through the peak by least squares, accidentals subtracted; return place in the middle and slope."""
    x = ((np.arange(_ROWS) + 0.5) / _ROWS - 0.5)[:, None] + np.zeros((1, COLUMNS))
    y = (np.arange(COLUMNS) + 0.5 - COLUMNS / 2)[None, :] + np.zeros((_ROWS, 1))
    for _ in range(3):
        error = y - place - slope * x
        near = np.abs(error) <= _NEAR
        accidentals = np.where(near, 0, histogram).sum(axis=1) / np.maximum(1, (~near).sum(axis=1))
        w = np.where(near, histogram - accidentals[:, None], 0.0)
        sum_w = float(w.sum())
        if sum_w <= 0:
            break
        mean_x, mean_y = float((w * x).sum()) / sum_w, float((w * error).sum()) / sum_w
        variance = float((w * (x - mean_x) ** 2).sum())
        if variance <= 0:
            break
        change = float((w * (x - mean_x) * error).sum()) / variance
        place += mean_y - change * mean_x
        slope += change
    return place, slope
