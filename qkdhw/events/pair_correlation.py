"""Where two streams of detections of photon pairs coincide: one clock to another, by fast Fourier transform.

Both streams are folded into histograms of the same period and correlated; a true offset stands out of the accidental
coincidences as one bin. While T is folded into bins of width d, the clocks may drift by no more than d: a rate that is
unknown by more is scanned in steps of d / T. How sure a peak is follows from the tail of the Poisson distribution and
from everything that was looked at.

Source: C. Ho, A. Lamas-Linares, C. Kurtsiefer, New J. Phys. 11, 045011 (2009), "Clock synchronization by remote
detection of correlated photon pairs".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import folding as kernels

ONE_TICK_Q32 = 1 << 32
ONE_Q48 = 1 << 48
_SLOW = 1024  # what varies over more than 1/512 of the period is no coincidence peak
_SIDE_LAGS = 512  # lags seen at least, to judge how much they vary


@dataclass(frozen=True, slots=True)
class PairClock:
    """The time of site B that belongs to a time of site A: four integers, so that no rounding grows with time.

    A time t of A is ref_b_ticks + phase_q32 / 2^32 + (t - ref_a_ticks) * rate_q48 / 2^48 in ticks of B.

    Attributes:
        ref_a_ticks: A time of A, in its ticks.
        ref_b_ticks: Whole ticks of B at that time.
        phase_q32: The rest of them in 2^-32 ticks, 0 .. 2^32 - 1.
        rate_q48: Ticks of B to a tick of A in units of 2^-48; the rate is 2^-16 to 2^14.

    Raises:
        ValueError: A number lies where the arithmetic would not be exact.
    """

    ref_a_ticks: int
    ref_b_ticks: int
    phase_q32: int
    rate_q48: int

    def __post_init__(self) -> None:
        kernels.check_pair_clock(self.ref_a_ticks, self.ref_b_ticks, self.phase_q32, self.rate_q48)

    @classmethod
    def nominal(cls, a_tick_ps: Fraction, b_tick_ps: Fraction) -> Self:
        """Make the clock of two sites that both count true time from the same moment."""
        return cls(0, 0, 0, round(a_tick_ps / b_tick_ps * ONE_Q48))

    @property
    def rate(self) -> Fraction:
        """Ticks of B to a tick of A, exact."""
        return Fraction(self.rate_q48, ONE_Q48)

    def map_q32(self, a_ticks: int) -> int:
        """Return the time of B in 2^-32 ticks."""
        return self.ref_b_ticks * ONE_TICK_Q32 + self.phase_q32 + ((a_ticks - self.ref_a_ticks) * self.rate_q48 >> 16)

    def map_ticks(self, a_ticks: int) -> Fraction:
        """Return the time of B in ticks, exact."""
        return Fraction(self.map_q32(a_ticks), ONE_TICK_Q32)

    def invert(self, b_ticks: int) -> int:
        """Return the time of A, in whole ticks, that belongs to a time of B."""
        return self.ref_a_ticks + (b_ticks - self.ref_b_ticks) * ONE_Q48 // self.rate_q48

    def rebased(self, a_ticks: int, *, shift_q32: int = 0, stretch_q48: int = 0) -> Self:
        """Return the clock with another reference, and corrections if given.

        Args:
            a_ticks: The new reference, a time of A.
            shift_q32: Added to the time of B there, in 2^-32 ticks.
            stretch_q48: Added to the rate, in 2^-48.

        Returns:
            A clock that without corrections maps every time as this one does, to 2^-32 ticks.
        """
        ticks, phase_q32 = divmod(self.map_q32(a_ticks) + shift_q32, ONE_TICK_Q32)
        return type(self)(a_ticks, ticks, phase_q32, self.rate_q48 + stretch_q48)


@dataclass(frozen=True, slots=True)
class Window:
    """What is correlated with what: a row of windows, one after the other.

    Attributes:
        first_ticks: The first moment of A.
        span_ticks: How long a window is, in ticks of A.
        count: Number of windows.
        reach_ticks: How far from where the clock says the offset may lie, in ticks of A.
        period_log2: The fold period is 2^this ticks of A; at least span + 2 reach, or coincidences are lost.
        bins: A power of two, at least 2^10.
    """

    first_ticks: int
    span_ticks: int
    count: int
    reach_ticks: int
    period_log2: int
    bins: int

    @property
    def total_ticks(self) -> int:
        """How long all windows are."""
        return self.count * self.span_ticks

    @property
    def middle_ticks(self) -> int:
        """The middle of them: where the offset is found."""
        return self.first_ticks + self.total_ticks // 2

    @property
    def lags(self) -> int:
        """Lags looked at on either side of zero."""
        return min((self.reach_ticks * self.bins >> self.period_log2) + 1, self.bins // 2 - self.count - 1)

    @property
    def coherence(self) -> float:
        """Bins that lie in all windows; a rate that is wrong by the inverse smears a peak over two bins."""
        return self.bins * self.total_ticks / 2.0**self.period_log2


@dataclass(frozen=True, slots=True)
class PairPeak:
    """The best offset and rate of those looked at.

    Attributes:
        clock: Its reference is the middle of the window; right within two bins there if the peak is significant.
        pairs: Coincidences of the peak above the background: one bin, or two beside each other.
        background: Accidental coincidences in as many bins.
        log_p: Logarithm of the probability that given bins have as many coincidences by accident.
        looks: How many bins, and pairs of bins, of how many rates were looked at.
    """

    clock: PairClock
    pairs: float
    background: float
    log_p: float
    looks: int

    @property
    def global_log_p(self) -> float:
        """Logarithm of the probability that any of the bins looked at has as many coincidences by accident."""
        return self.log_p + math.log(self.looks)


def find_pair_peak(
    a_ticks: NDArray[np.int64], b_ticks: NDArray[np.int64], clock: PairClock, window: Window, max_error: float
) -> PairPeak:
    """Correlate two streams at all offsets within reach and at all rates near that of a clock.

    A few rates are enough to correlate one window. To add the windows up, each is moved by whole bins for every rate
    that all of them together can tell.

    Args:
        a_ticks: int64 (n,), times of A, ascending.
        b_ticks: int64 (m,), times of B, ascending.
        clock: About where the offset lies.
        window: What is looked at.
        max_error: Largest relative error of the clock's rate.

    Returns:
        The highest peak, significant or not.
    """
    middle = clock.rebased(window.middle_ticks)
    firsts = [window.first_ticks + k * window.span_ticks for k in range(window.count)]
    a_parts = [cut(a_ticks, first, first + window.span_ticks) for first in firsts]
    a_spectra = [_spectrum(part, first, ONE_Q48, window).conj() for part, first in zip(a_parts, firsts, strict=True)]
    step = middle.rate_q48 / window.coherence
    steps = max(0, math.ceil(max_error * window.coherence - 0.5))
    best: tuple[float, int, int, NDArray[np.float32], float, PairClock] | None = None
    for coarse in range(-round(steps / window.count), round(steps / window.count) + 1):
        turned = middle.rebased(window.middle_ticks, stretch_q48=round(coarse * window.count * step))
        rows, background = _correlate(a_parts, a_spectra, b_ticks, turned, window, firsts)
        for fine in range(-(window.count // 2), window.count // 2 + 1):
            if abs(coarse * window.count + fine) > steps:
                continue
            excess = _add_moved(rows, fine, window)
            # An offset between two bins leaves half of the pairs in each: they are looked at together as well.
            for width, sums in ((1, excess), (2, excess[:-1] + excess[1:])):
                first = len(excess) // 2 - window.lags
                place = first + int(np.argmax(sums[first : first + 2 * window.lags + 1]))
                height = float(sums[place]) / math.sqrt(width)
                if best is None or height > best[0]:
                    stretched = turned.rebased(window.middle_ticks, stretch_q48=round(fine * step))
                    best = height, width, place, sums, width * background, stretched
    if best is None:
        raise ValueError("a window needs a bin and a lag at least")
    _, width, place, sums, background, found = best
    bin_q32 = (found.rate_q48 << window.period_log2 >> 16) // window.bins
    half_bins = 2 * (place - (len(sums) + width - 1) // 2) + width - 1
    return PairPeak(
        clock=found.rebased(window.middle_ticks, shift_q32=half_bins * bin_q32 // 2),
        pairs=float(sums[place]),
        background=background,
        log_p=_peak_log_p(sums, place, background),
        looks=2 * (2 * steps + 1) * (2 * window.lags + 1),
    )


def _correlate(
    a_parts: list[NDArray[np.int64]],
    a_spectra: list[NDArray[np.complex64]],
    b_ticks: NDArray[np.int64],
    clock: PairClock,
    window: Window,
    firsts: list[int],
) -> tuple[list[NDArray[np.float32]], float]:
    """Return, for each window, coincidences above the background at lags around 0, and all windows' background."""
    rows = []
    background = 0.0
    side = min(max(window.lags, _SIDE_LAGS) + window.count, window.bins // 2 - 1)
    for a_part, a_spectrum, first in zip(a_parts, a_spectra, firsts, strict=True):
        b_part = cut(
            b_ticks,
            clock.map_q32(first - window.reach_ticks) >> 32,
            clock.map_q32(first + window.span_ticks + window.reach_ticks) >> 32,
        )
        product = _spectrum(b_part, clock.map_q32(first) >> 32, clock.rate_q48, window)
        product *= a_spectrum
        excess = np.fft.irfft(product, window.bins).astype(np.float32, copy=False)
        rows.append(np.concatenate([excess[-side:], excess[: side + 1]]))
        background += len(a_part) * len(b_part) / window.bins
    return rows, background


def _add_moved(rows: list[NDArray[np.float32]], fine: int, window: Window) -> NDArray[np.float32]:
    """Add the windows' correlations, moved as a rate that is `fine` steps higher moves them."""
    if len(rows) == 1:
        return rows[0]
    margin = window.count
    size = len(rows[0]) - 2 * margin
    total = np.zeros(size, np.float32)
    for k, row in enumerate(rows):
        begin = margin + round(fine * (k - (window.count - 1) / 2) / window.count)
        total += row[begin : begin + size]
    return total


def cut(time_ticks: NDArray[np.int64], begin_ticks: int, end_ticks: int) -> NDArray[np.int64]:
    """Return the part of ascending times from `begin_ticks` on and before `end_ticks`."""
    first, last = np.searchsorted(time_ticks, [begin_ticks, end_ticks])
    return time_ticks[first:last]


def poisson_log_tail(count: float, mean: float) -> float:
    """Bound the logarithm of the probability of at least `count` events where `mean` are expected, from above."""
    if count <= mean or mean <= 0:
        return 0.0
    log_first = count * math.log(mean) - mean - math.lgamma(count + 1)
    return min(0.0, log_first + math.log((count + 1) / (count + 1 - mean)))


def _spectrum(time_ticks: NDArray[np.int64], ref_ticks: int, rate_q48: int, window: Window) -> NDArray[np.complex64]:
    """Fold times at 2^period_log2 * rate ticks and transform them; what varies slowly is left out."""
    fraction_bits = rate_q48.bit_length() + window.period_log2 - 50
    step = ((1 << 112 + fraction_bits - window.period_log2) + rate_q48 // 2) // rate_q48
    histogram = np.zeros(window.bins, np.float32)
    kernels.fold_events(time_ticks, ref_ticks, step, fraction_bits, histogram)
    histogram -= np.float32(len(time_ticks) / window.bins)  # a large mean would cost the small numbers their digits
    spectrum = np.fft.rfft(histogram).astype(np.complex64, copy=False)
    spectrum[: 1 + window.bins // _SLOW] = 0
    return spectrum


def _peak_log_p(excess: NDArray[np.float32], place: int, background: float) -> float:
    """Judge a peak by the Poisson law, or by a wider one if the other bins vary more than that."""
    if background <= 0:
        return 0.0
    peak = float(excess[place])
    near = excess[max(0, place - 2) : place + 3]
    variance = (float(np.vdot(excess, excess)) - float(np.vdot(near, near))) / len(excess)
    excessive = max(1.0, variance / background)
    return poisson_log_tail((peak + background) / excessive, background / excessive)
