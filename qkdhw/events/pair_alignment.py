"""Clock alignment of two sites that share photon pairs, from their detections alone.

Three steps. A scan over rates with ever more bins finds offset and rate coarsely: few bins need few rates, and more are
only tried if these do not suffice. While there are plenty of pairs, shorter and finer windows follow. At last the time
differences of single pairs of events, by time, are fine until they stand on one column, over narrower columns and
then over longer windows. Times stay integers throughout.

At no step is a peak taken for the offset unless chance would make one as high with less than the probability of 6
standard deviations, all bins and rates looked at included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import ClockAlignmentError, ConfigurationError, EventError
from qkdhw.events.alignment import MAX_PPM, MIN_SIGMA, check_ascending, sigma_of
from qkdhw.events.pair_correlation import PairClock, PairPeak, Window, cut, find_pair_peak
from qkdhw.events.pair_residuals import COLUMNS, MAX_RESIDUALS, SLOPES, Residuals, refine_pairs, settle_rivals
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.quantities import PS_PER_S

MAX_OFFSET_S = 0.1
RESOLUTION_PS = 1000.0
MAX_BINS = 1 << 21
SPAN_S = 2.0
_MIN_EVENTS = 16
_MIN_BINS = 1 << 14
_MAX_COUNT = 16
_MIN_COHERENCE = 1 << 10  # bins in all windows: with fewer their ends alone make a peak
_MAX_TICKS = 1 << 60
_MAX_RATIO = 1 << 12
_WIDEST_LOG2 = 10  # as many bins, a power of two, lie in what is looked at
_MAX_BIN_TICKS = 1 << 40
_ENOUGH_PAIRS = 400.0
_MAX_COARSER = 2  # the finest column may be 2^this times as wide as asked for


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


def align_pairs(
    a: DetectionBlock,
    b: DetectionBlock,
    *,
    offset_s: Fraction | float = 0,
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
        offset_s: About how much later B's clock reads at the same moment.
        max_offset_s: How far from that the true difference may lie.
        max_ppm: Largest relative difference of the two clocks that is searched, parts per million. The fine steps look
            a little around what the search finds, so that one somewhat beyond is found, and told, as well.
        resolution_ps: Width of the finest bin: about as wide as the peak. Rounded down to 2^n ticks of B.
        span_s: How long a piece the final fit may see; over less if the rate is not constant over as much.
        max_bins: Give up when bins and windows together tell more rates apart than so many bins would.

    Returns:
        Clock, exact offset and rate, and significance.

    Raises:
        ConfigurationError: Ticks differ too much, or a number is not positive, not finite or too large.
        NonMonotonicTimeError: Time goes backwards.
        ClockAlignmentError: No peak of at least 6 standard deviations.
        EventError: A time lies beyond 2^60 ticks.
    """
    for name, number in (("offset", max_offset_s), ("resolution", resolution_ps), ("span", span_s)):
        if not 0 < number < math.inf:
            raise ConfigurationError(f"a largest {name} of {number} is none", remedy="Give a number above 0.")
    return align_pair_times(
        photon_times(a),
        photon_times(b),
        nominal_clock(a.tick_ps, b.tick_ps, offset_s),
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
        max_bins: As `align_pairs`.

    Returns:
        As `align_pairs`.

    Raises:
        ConfigurationError, NonMonotonicTimeError, ClockAlignmentError, EventError: As `align_pairs`.
    """
    if not (0 <= max_ppm < 1e5 and 0 < resolution_ticks < _MAX_BIN_TICKS):
        raise ConfigurationError(
            f"{max_ppm} parts per million and bins of {float(resolution_ticks):g} ticks cannot be looked for",
            remedy="Ask for less than 10 % and for bins about as wide as the jitter.",
        )
    _refuse_unfit(a_ticks, b_ticks, nominal)
    reach_ticks = min(reach_ticks, _extent(a_ticks, b_ticks, nominal))
    common = _common(a_ticks, b_ticks, nominal, reach_ticks)
    a_rate = len(a_ticks) / (int(a_ticks[-1]) - int(a_ticks[0]) + 1)
    b_rate = len(b_ticks) / (nominal.invert(int(b_ticks[-1])) - nominal.invert(int(b_ticks[0])) + 1)
    density = a_rate * b_rate
    failure: ClockAlignmentError | None = None
    for window, peak in _search(a_ticks, b_ticks, nominal, common, density, reach_ticks, max_ppm * 1e-6, max_bins):
        try:
            fine = _settled(a_ticks, b_ticks, nominal, (window, peak), density, resolution_ticks, span_ticks)
            significance = _significance(fine, nominal, reach_ticks, max_ppm)
        except ClockAlignmentError as error:  # where light is switched on is a peak too: finer bins leave it behind
            failure = failure or error
            continue
        return PairAlignment(
            clock=fine.clock,
            relative_rate=fine.clock.rate / nominal.rate - 1,
            resolution_ticks=Fraction(1 << fine.bin_shift, 1 << 32),
            span_ticks=1 << fine.span_log2,
            pairs=fine.pairs,
            accidentals=fine.accidentals,
            significance=significance,
            search_significance=sigma_of(peak.global_log_p),
        )
    raise failure or AssertionError("a search ends with a peak or an error")


def _settled(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    nominal: PairClock,
    coarse: tuple[Window, PairPeak],
    density: float,
    resolution_ticks: Fraction,
    span_ticks: int,
) -> Residuals:
    """Follow a coarse peak to the finest bins, and see that no other one nearby is as good."""
    window, peak = _zoom(a_ticks, b_ticks, *coarse, density)
    common = _common(a_ticks, b_ticks, peak.clock)
    bin_q32 = (peak.clock.rate_q48 << window.period_log2 >> 16) // window.bins
    finest = max(2, math.floor(resolution_ticks * (1 << 32)).bit_length() - 1)
    if 1 << finest > window.total_ticks * nominal.rate_q48 >> 16 + _WIDEST_LOG2:
        raise ConfigurationError(
            f"bins of {float(resolution_ticks):g} ticks are too wide for what is looked at",
            remedy="Ask for bins about as wide as the jitter.",
        )
    fine = refine_pairs(a_ticks, b_ticks, peak.clock, window, bin_q32, finest, common, span_ticks)
    fine, rival_log_p = settle_rivals(
        a_ticks, b_ticks, fine, common, 2 * bin_q32, density * (1 << 48) / nominal.rate_q48
    )
    if sigma_of(rival_log_p) < MIN_SIGMA:
        raise ClockAlignmentError(
            f"another offset fits as well: {sigma_of(rival_log_p):.1f} of {MIN_SIGMA:g} standard deviations apart",
            remedy="Reduce what makes accidentals coincide, such as bright pulses, align on a longer stream, or say "
            "about where the offset lies (--offset) and how far from there at most (--max-offset).",
        )
    if fine.bin_shift > finest + _MAX_COARSER:
        raise ClockAlignmentError(
            f"no pairs stand out in bins finer than {2.0 ** (fine.bin_shift - 32):g} ticks",
            remedy="Ask for a coarser resolution if the jitter is as wide, else look for what both streams share.",
        )
    return fine


def _significance(fine: Residuals, nominal: PairClock, reach_ticks: int, max_ppm: float) -> float:
    """Judge the final peak by all offsets and rates that it might have had."""
    bins = (2 * reach_ticks * nominal.rate_q48 >> 16) >> fine.bin_shift
    rates = 2e-6 * max_ppm * (nominal.rate_q48 << fine.span_log2 >> 16) / 2.0**fine.bin_shift
    significance = sigma_of(fine.log_p + math.log((bins + 1) * max(rates + 1, SLOPES)))
    if significance < MIN_SIGMA:
        raise _no_peak(significance, "single pairs of events", fine.pairs)
    return significance


def nominal_clock(a_tick_ps: Fraction, b_tick_ps: Fraction, offset_s: Fraction | float = 0) -> PairClock:
    """Make the clock of two sites that both count true time, B from `offset_s` before A on, to a whole tick.

    Raises:
        ConfigurationError: One tick is more than 4096 times as long as the other, or the offset is no number or more
            than 2^60 ticks.
    """
    if not Fraction(1, _MAX_RATIO) <= a_tick_ps / b_tick_ps <= _MAX_RATIO:
        raise ConfigurationError(
            f"ticks of {float(a_tick_ps):g} ps and {float(b_tick_ps):g} ps differ by more than {_MAX_RATIO} times",
            remedy="Record both sites with ticks of about one length.",
        )
    offset_ticks = round(Fraction(offset_s) * PS_PER_S / b_tick_ps) if math.isfinite(offset_s) else _MAX_TICKS
    if abs(offset_ticks) >= _MAX_TICKS:
        raise ConfigurationError(
            f"an offset of {float(offset_s):g} s is more than 2^60 ticks of {float(b_tick_ps):g} ps",
            remedy="Give about how many seconds later the second clock reads (--offset); it may be negative.",
        )
    return replace(PairClock.nominal(a_tick_ps, b_tick_ps), ref_b_ticks=offset_ticks)


def photon_times(block: DetectionBlock) -> NDArray[np.int64]:
    """Return the times of a block's photons; no copy if it holds nothing else."""
    photon = block.kind == EventKind.PHOTON
    return block.time_ticks if photon.all() else block.time_ticks[photon]


def _no_peak(sigma: float, where: str, pairs: float) -> ClockAlignmentError:
    return ClockAlignmentError(
        f"the two streams show no common offset: {sigma:.1f} of {MIN_SIGMA:g} standard deviations in {where} "
        f"({pairs:.0f} coincidences above chance)",
        remedy="Check that both streams cover the same time. If the clocks count from different moments say about how "
        "many seconds later B's reads (--offset) or allow more (--max-offset); else allow more parts per million "
        "(--max-ppm), more bins or a longer stream.",
    )


def _refuse_unfit(a_ticks: NDArray[np.int64], b_ticks: NDArray[np.int64], clock: PairClock) -> None:
    """Refuse too few photons, and times for which the arithmetic would not be exact."""
    if min(len(a_ticks), len(b_ticks)) < _MIN_EVENTS:
        raise ClockAlignmentError(
            f"{len(a_ticks)} and {len(b_ticks)} photons are too few to align two clocks",
            remedy="Collect longer, or check that light reaches the detectors.",
        )
    ends = [int(ticks[place]) for ticks in (a_ticks, b_ticks) for place in (0, -1)]
    ends += [clock.invert(int(b_ticks[place])) for place in (0, -1)]
    if max(map(abs, ends)) >= _MAX_TICKS:
        raise EventError(
            "a time lies beyond 2^60 ticks", remedy="Shift the times first; `qkdhw events info` says where they begin."
        )


def _common(
    a_ticks: NDArray[np.int64], b_ticks: NDArray[np.int64], clock: PairClock, reach_ticks: int = 0
) -> tuple[int, int]:
    """Return the first and the last moment, in ticks of A, at which a clock that is as far off has events of both."""
    low = max(int(a_ticks[0]), clock.invert(int(b_ticks[0])) - reach_ticks)
    high = min(int(a_ticks[-1]), clock.invert(int(b_ticks[-1])) + reach_ticks)
    if high <= low:
        raise ClockAlignmentError(
            "the two streams do not overlap in time",
            remedy="Check the start times of both sites. If the clocks count from different moments say about how many "
            "seconds later B's reads (--offset), or allow more (--max-offset).",
        )
    return low, high


def _extent(a_ticks: NDArray[np.int64], b_ticks: NDArray[np.int64], clock: PairClock) -> int:
    """Return from when to when there is anything at all, in ticks of A: the streams share nothing at more offset."""
    first, last = (clock.invert(int(b_ticks[place])) for place in (0, -1))
    return max(int(a_ticks[-1]), last) - min(int(a_ticks[0]), first)


def _search(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    nominal: PairClock,
    common: tuple[int, int],
    density: float,
    reach_ticks: int,
    max_error: float,
    max_bins: int,
) -> Iterator[tuple[Window, PairPeak]]:
    """Scan offsets and rates with more and more bins; yield what is significant, and raise if nothing was."""
    looks, best, found = 0, None, False
    for window in _windows(common, density, reach_ticks, max_bins):
        end = window.first_ticks + window.total_ticks + reach_ticks
        check_ascending(cut(a_ticks, window.first_ticks, end))
        check_ascending(
            cut(b_ticks, nominal.map_q32(window.first_ticks - reach_ticks) >> 32, nominal.map_q32(end) >> 32)
        )
        peak = find_pair_peak(a_ticks, b_ticks, nominal, window, max_error)
        looks += peak.looks
        if sigma_of(peak.log_p + math.log(looks)) >= MIN_SIGMA:
            found = True
            yield window, peak
        if best is None or peak.log_p < best.log_p:
            best = peak
    if found:
        return
    if max_bins < _MIN_BINS:
        raise ValueError(f"max_bins is {max_bins}; a search begins with {_MIN_BINS}")
    if best is None:
        raise ClockAlignmentError(
            "the time that both streams cover is too short for the offsets that are looked for",
            remedy="Allow a smaller offset (--max-offset) around a guess (--offset), or give longer streams.",
        )
    raise _no_peak(sigma_of(best.log_p + math.log(looks)), f"up to {max_bins} bins", best.pairs)


def _windows(common: tuple[int, int], density: float, reach_ticks: int, max_bins: int) -> Iterator[Window]:
    """Yield what to correlate: more and more bins, and more windows of each number of bins where more fit."""
    bins, count, last = _MIN_BINS, 1, None
    while (window := _place_window(common, density, reach_ticks, bins, count)).coherence <= max_bins:
        if bins > min(8 * max_bins, 1 << window.period_log2):
            break  # finer than a tick, or more than fit: what both streams share is too short for so large a reach
        if window.coherence < _MIN_COHERENCE:
            bins *= 2
            continue
        if window != last:
            yield window
        last = window
        if window.count == count < _MAX_COUNT:
            count *= 4
        else:
            bins *= 2


def _place_window(common: tuple[int, int], density: float, reach_ticks: int, bins: int, count: int) -> Window:
    """Choose windows long enough for the reach and for enough pairs, as many as the streams hold."""
    low, high = common
    # At 9 accidentals a bin and 9 standard deviations 36 pairs do; fewer accidentals would ask for as many pairs.
    wanted = max(2 * reach_ticks, math.ceil(3 * math.sqrt(bins / density)))
    period_log2 = (min(wanted, high - low) + 2 * reach_ticks).bit_length()
    span = min((1 << period_log2) - 2 * reach_ticks, high - low)
    fitting = max(1, min(count, (high - low - 2 * reach_ticks) // span))
    first = low + max(0, min(reach_ticks, (high - low - fitting * span) // 2))
    return Window(first, span, fitting, reach_ticks, period_log2, bins)


def _zoom(
    a_ticks: NDArray[np.int64],
    b_ticks: NDArray[np.int64],
    window: Window,
    peak: PairPeak,
    density: float,
) -> tuple[Window, PairPeak]:
    """Correlate shorter windows, with as many bins in all, while single pairs of events are too many to look at."""
    bins = 2 << math.ceil(math.log2(window.coherence))
    while True:
        bin_ticks = 2.0**window.period_log2 / window.bins
        total = window.total_ticks
        if density * total * COLUMNS / 4 * bin_ticks <= MAX_RESIDUALS:
            return window, peak
        span = max(total >> 3, math.ceil(total * _ENOUGH_PAIRS / max(peak.pairs, 1.0)))
        reach = math.ceil(4 * bin_ticks)
        period_log2 = (span + 2 * reach).bit_length()
        if 2.0**period_log2 >= bin_ticks * bins or 1 << period_log2 < bins:
            return window, peak
        finer = Window(peak.clock.ref_a_ticks - span // 2, span, 1, reach, period_log2, bins)
        found = find_pair_peak(a_ticks, b_ticks, peak.clock, finer, 2 / window.coherence)
        if sigma_of(found.global_log_p) < MIN_SIGMA:
            return window, peak
        window, peak = finer, found
