"""Histograms of delays between two channels (cross-correlation, g2) and of arrival times within a period."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import delays as kernels
from qkdhw.events.channels import OrderedChannels, PendingTimes
from qkdhw.events.coincidences import CoincidenceWindow, find_partners
from qkdhw.model import DetectionBlock
from qkdhw.quantities import PS_PER_S

MAX_BINS = 1 << 26


class DelayHistogram:
    """Counts, by delay, the pairs of a start and a stop event of a stream in time order: every stop of every start.

    Bin k holds delays (stop minus start) from `first_delay_ticks + k * bin_width_ticks` up to, not including, the next
    bin's. If start and stop are one channel it is the autocorrelation, and an event is not paired with itself.

    The result does not depend on how the stream is cut into chunks. Memory holds the range of delays, not the stream.

    Args:
        start_channel: Channel of the start events.
        stop_channel: Channel of the stop events.
        tick_ps: Exact tick of the stream, in picoseconds.
        bin_width_ticks: Width of a bin, at least 1. See `qkdhw.events.merging.whole_ticks` for one in picoseconds.
        n_bins: Number of bins, 1 to 2^26.
        first_delay_ticks: Least delay, of either sign; None lays the range symmetrically about 0, with 0 in the
            middle of the middle bin if the number of bins is odd and the width too.

    Raises:
        ValueError: A channel, a width, a number of bins or the range is out of range.
    """

    def __init__(
        self,
        start_channel: int,
        stop_channel: int,
        *,
        tick_ps: Fraction,
        bin_width_ticks: int,
        n_bins: int,
        first_delay_ticks: int | None = None,
    ) -> None:
        if not 1 <= n_bins <= MAX_BINS or bin_width_ticks < 1:
            raise ValueError(f"{n_bins} bins of {bin_width_ticks} ticks are out of range")
        low = -(n_bins * bin_width_ticks // 2) if first_delay_ticks is None else first_delay_ticks
        self._window = CoincidenceWindow(low, low + n_bins * bin_width_ticks - 1)
        self._bin_width_ticks = bin_width_ticks
        self._same = start_channel == stop_channel
        self._stream = OrderedChannels((start_channel, stop_channel), tick_ps)
        self._pending = PendingTimes((0, low), self._window.high_ticks)
        self._counts = np.zeros(n_bins, np.int64)
        self._n_start = self._n_stop = 0

    @property
    def tick_ps(self) -> Fraction:
        """Exact tick, in picoseconds."""
        return self._stream.tick_ps

    @property
    def is_autocorrelation(self) -> bool:
        """Whether start and stop are one channel."""
        return self._same

    @property
    def bin_width_ticks(self) -> int:
        """Width of a bin, in ticks."""
        return self._bin_width_ticks

    @property
    def delay_ticks(self) -> NDArray[np.int64]:
        """Least delay of each bin, in ticks: int64 (n_bins,)."""
        return self._window.low_ticks + self._bin_width_ticks * np.arange(len(self._counts), dtype=np.int64)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pairs in each bin: int64 (n_bins,), a copy. The last starts wait for their stops, or for `flush`."""
        return self._counts.copy()

    @property
    def n_start(self) -> int:
        """Start events so far."""
        return self._n_start

    @property
    def n_stop(self) -> int:
        """Stop events so far."""
        return self._n_stop

    @property
    def duration_ticks(self) -> int:
        """Time from the stream's first event to its last, of whatever channel and kind, in ticks."""
        if self._stream.first_ticks is None or self._stream.last_ticks is None:
            return 0
        return self._stream.last_ticks - self._stream.first_ticks

    def feed(self, block: DetectionBlock) -> None:
        """Take the next chunk.

        Args:
            block: The events that follow those of the last call.

        Raises:
            NonMonotonicTimeError: Time goes backwards; carries the index within `block`. The block was not taken.
            EventError: The block has another tick than the stream. The block was not taken.
        """
        fresh = self._stream.split(block)
        self._n_start += len(fresh[0])
        self._n_stop += len(fresh[1])
        self._bin(self._pending.extend(fresh, self._stream.last_ticks), self._stream.last_ticks)

    def flush(self) -> None:
        """Count the pairs of the last starts, at the end of the stream."""
        nothing = np.empty(0, np.int64)
        self._bin(self._pending.extend((nothing, nothing), None), None)

    def _bin(self, n_complete: int, now_ticks: int | None) -> None:
        first, second = self._pending.times
        first = first[:n_complete]
        offset = self._pending.n_retired[0] - self._pending.n_retired[1]
        kernels.bin_delays(
            first, second, *find_partners(first, second, self._window), self._window.low_ticks,
            self._bin_width_ticks, self._same, offset, self._counts,
        )  # fmt: skip
        self._pending.retire(n_complete, now_ticks)


@dataclass(frozen=True, slots=True)
class SecondOrderCorrelation:
    """g2 by delay; 1 means that start and stop have nothing to do with each other.

    Attributes:
        delay_ps: float64 (n,), the middle of each bin.
        g2: float64 (n,), NaN where no pair could be expected.
        g2_error: float64 (n,), one standard deviation of Poissonian counts, right as long as a start has much less than
            one stop in a bin; a bin without pairs gets that of one pair.
        counts: int64 (n,), pairs.
        expected: float64 (n,), pairs expected of unrelated streams of these rates.
        duration_s: Length of the stream.
    """

    delay_ps: NDArray[np.float64] = field(repr=False)
    g2: NDArray[np.float64] = field(repr=False)
    g2_error: NDArray[np.float64] = field(repr=False)
    counts: NDArray[np.int64] = field(repr=False)
    expected: NDArray[np.float64] = field(repr=False)
    duration_s: float


def second_order_correlation(histogram: DelayHistogram) -> SecondOrderCorrelation:
    """Normalise a delay histogram to g2.

    A stream of length T with N_start and N_stop events at unrelated times has N_start N_stop w (T - |d|) / T^2 pairs
    in a bin of width w at delay d, for of a stop near an end of the stream the start may lie outside. In the
    autocorrelation N_start N_stop is N (N - 1).

    Args:
        histogram: A histogram after `flush`; before it, the pairs of the last starts are missing.
    """
    width, duration = histogram.bin_width_ticks, histogram.duration_ticks
    middle: NDArray[np.float64] = histogram.delay_ticks + np.float64((width - 1) / 2)
    pairs = float(histogram.n_start) * (histogram.n_stop - histogram.is_autocorrelation)
    length = duration + 1  # ticks at which an event can be
    expected = np.maximum(pairs * width * (length - np.abs(middle)) / float(length) ** 2, 0.0)
    counts = histogram.counts
    possible = expected > 0
    scale = np.full(len(counts), math.nan)
    scale[possible] = 1 / expected[possible]
    tick_ps = float(histogram.tick_ps)
    return SecondOrderCorrelation(
        delay_ps=middle * tick_ps,
        g2=counts * scale,
        g2_error=np.sqrt(np.maximum(counts, 1)) * scale,
        counts=counts,
        expected=expected,
        duration_s=float(duration * histogram.tick_ps / PS_PER_S),
    )


def even_bins(period_ticks: Fraction, most: int = 256) -> int:
    """Choose how many bins a period has, so that each holds as many phases of whole ticks if that can be.

    Args:
        period_ticks: Exact period, in ticks.
        most: Largest number of bins.
    """
    phases = max(1, period_ticks.numerator)
    fair = [n for n in range(min(most, phases), 0, -1) if phases % n == 0]
    return fair[0] if fair[0] >= min(phases, most // 4) else most


class ArrivalHistogram:
    """Counts the photons of a channel by their arrival time within a period, exactly over any length of stream.

    Bin k of n holds the phases (time since `origin_ticks`, modulo the period) from k / n of the period on.

    Args:
        channel: Channel of the photons.
        tick_ps: Exact tick of the stream, in picoseconds.
        period_ticks: Exact period in ticks, at least 1; numerator below 2^62.
        n_bins: Number of bins, 1 to 2^20.
        origin_ticks: A time at which a period begins.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, channel: int, *, tick_ps: Fraction, period_ticks: Fraction | int, n_bins: int, origin_ticks: int = 0
    ) -> None:
        self._period_ticks = Fraction(period_ticks)
        if not (self._period_ticks >= 1 and self._period_ticks.numerator < 1 << 62 and 1 <= n_bins <= 1 << 20):
            raise ValueError(f"{n_bins} bins of a period of {period_ticks} ticks are out of range")
        if abs(origin_ticks) >= 1 << 62:
            raise ValueError(f"an origin of {origin_ticks} ticks is out of range")
        self._origin_ticks = origin_ticks
        self._stream = OrderedChannels((channel,), tick_ps)
        self._counts = np.zeros(n_bins, np.int64)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Photons in each bin: int64 (n_bins,), a copy."""
        return self._counts.copy()

    @property
    def bin_width_ticks(self) -> Fraction:
        """Exact width of a bin, in ticks."""
        return self._period_ticks / len(self._counts)

    @property
    def even_counts(self) -> NDArray[np.float64]:
        """Photons that each bin would have were all equally wide: float64 (n_bins,); NaN where no time can lie.

        A time is a whole number of ticks, and some bins hold one phase of them more than others unless the width is a
        whole number of phases; the bare counts then show steps that are not in the light.
        """
        phases, n_bins = self._period_ticks.numerator, len(self._counts)
        edges = np.array([-(-k * phases // n_bins) for k in range(n_bins + 1)], np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            even: NDArray[np.float64] = self._counts * (phases / n_bins) / np.diff(edges)
        return even

    def feed(self, block: DetectionBlock) -> None:
        """Count the next chunk.

        Args:
            block: The events that follow those of the last call.

        Raises:
            NonMonotonicTimeError: Time goes backwards; carries the index within `block`. The block was not taken.
            EventError: The block has another tick than the stream. The block was not taken.
        """
        (times,) = self._stream.split(block)
        period = self._period_ticks
        kernels.bin_arrivals(times, self._origin_ticks, period.numerator, period.denominator, self._counts)
