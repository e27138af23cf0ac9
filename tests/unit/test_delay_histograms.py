"""Histograms do not depend on how the stream is cut; g2 of unrelated light is 1 within its error bars."""

import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.errors import EventError, NonMonotonicTimeError
from qkdhw.events.delays import ArrivalHistogram, DelayHistogram, even_bins, second_order_correlation
from qkdhw.model import DetectionBlock

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from oracle_delays import arrival_counts, delay_counts

PS = Fraction(1)


def block(events, tick_ps=PS):
    columns = (np.array([event[i] for event in events], t) for i, t in enumerate((np.int64, np.uint8, np.uint8)))
    return DetectionBlock(*columns, tick_ps)


def photons(*streams):
    """One stream of channels 1, 2 ... with these times."""
    times = np.concatenate(streams)
    channel = np.repeat(np.arange(1, len(streams) + 1, dtype=np.uint8), list(map(len, streams)))
    order = np.argsort(times, kind="stable")
    return DetectionBlock(times[order], channel[order], np.zeros(len(times), np.uint8), PS)


@st.composite
def streams(draw):
    steps = draw(st.lists(st.integers(0, 3) | st.integers(0, 30), max_size=30))
    events = [
        (time, draw(st.integers(1, 3)), draw(st.sampled_from([0, 0, 0, 1, 2]))) for time in np.cumsum(steps).tolist()
    ]
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=4)))
    return events, [events[a:b] for a, b in pairwise([0, *cuts, len(events)])]


@given(streams(), st.integers(1, 2), st.integers(1, 5), st.integers(1, 20), st.none() | st.integers(-60, 60))
def test_any_cut_gives_the_delays_of_the_whole(stream, stop, width, bins, low):
    events, chunks = stream
    histogram = DelayHistogram(1, stop, tick_ps=PS, bin_width_ticks=width, n_bins=bins, first_delay_ticks=low)
    for chunk in chunks:
        histogram.feed(block(chunk))
    histogram.flush()
    times = [[t for t, c, kind in events if c == channel and kind == 0] for channel in (1, stop)]
    low = -(bins * width // 2) if low is None else low
    assert histogram.counts.tolist() == delay_counts(*times, low, width, bins, same=stop == 1)
    assert histogram.delay_ticks.tolist() == [low + k * width for k in range(bins)]
    assert (histogram.n_start, histogram.n_stop) == tuple(map(len, times))
    assert histogram.duration_ticks == (events[-1][0] - events[0][0] if events else 0)


@given(streams(), st.fractions(1, 30, max_denominator=9), st.integers(1, 50), st.integers(-50, 50))
def test_any_cut_gives_the_phases_of_the_whole(stream, period, bins, origin):
    events, chunks = stream
    histogram = ArrivalHistogram(2, tick_ps=PS, period_ticks=period, n_bins=bins, origin_ticks=origin)
    for chunk in chunks:
        histogram.feed(block(chunk))
    times = [t for t, c, kind in events if c == 2 and kind == 0]
    assert histogram.counts.tolist() == arrival_counts(times, origin, period, bins)
    assert histogram.bin_width_ticks * bins == period


@given(st.fractions(1, 40, max_denominator=7), st.integers(1, 60), st.integers(-50, 50))
def test_steady_light_is_flat_in_even_counts_whatever_the_bins(period, bins, origin):
    histogram = ArrivalHistogram(1, tick_ps=PS, period_ticks=period, n_bins=bins, origin_ticks=origin)
    histogram.feed(photons(np.arange(3 * period.numerator)))  # each phase three times as often as a period has ticks
    even = histogram.even_counts
    seen = np.isfinite(even)
    np.testing.assert_allclose(even[seen], 3 * period.numerator / bins)
    assert np.array_equal(seen, histogram.counts > 0)


@pytest.mark.parametrize(
    ("period", "bins"), [(1000, 250), (80, 80), (7, 7), (1009, 256), (Fraction(12513, 125), 129), (Fraction(1, 3), 1)]
)
def test_bins_are_chosen_that_hold_as_many_ticks_each(period, bins):
    assert even_bins(Fraction(period)) == bins


@pytest.mark.parametrize("stop", [1, 2])
def test_unrelated_light_has_g2_of_one(stop):
    times = np.sort(np.random.default_rng(stop).integers(0, 10**9, (2, 20_000)), axis=1)
    histogram = DelayHistogram(1, stop, tick_ps=Fraction(4), bin_width_ticks=1001, n_bins=101)
    stream = photons(*times)
    histogram.feed(DetectionBlock(stream.time_ticks, stream.channel, stream.kind, Fraction(4)))
    histogram.flush()
    g2 = second_order_correlation(histogram)
    pull = (g2.g2 - 1) / np.sqrt(1 / g2.expected)
    assert abs(pull.mean()) < 0.5
    assert 0.7 < pull.std() < 1.4
    np.testing.assert_allclose(g2.g2_error, np.sqrt(g2.counts) / g2.expected)
    assert g2.delay_ps[50] == 0.0
    assert g2.duration_s == pytest.approx(4e-3, rel=0.01)


def test_delays_that_are_long_against_the_stream_are_normalised_to_the_overlap():
    times = np.sort(np.random.default_rng(3).integers(0, 1_000_000, (2, 5000)), axis=1)
    histogram = DelayHistogram(1, 2, tick_ps=PS, bin_width_ticks=20_000, n_bins=80)
    histogram.feed(photons(*times))
    histogram.flush()
    g2 = second_order_correlation(histogram)
    assert g2.delay_ps[0] < -790_000
    assert np.all(abs(g2.g2 - 1) < 0.15)


def test_a_single_photon_source_shows_antibunching_and_pairs_show_a_peak():
    slots = np.arange(0, 2_000_000, 100)
    to_second = np.random.default_rng(1).random(len(slots)) < 0.5
    histogram = DelayHistogram(1, 2, tick_ps=PS, bin_width_ticks=100, n_bins=11, first_delay_ticks=-550)
    histogram.feed(photons(slots[~to_second], slots[to_second]))
    histogram.flush()
    g2 = second_order_correlation(histogram).g2
    assert g2[5] == 0.0
    assert all(abs(other - 1) < 0.1 for k, other in enumerate(g2) if k != 5)
    histogram = DelayHistogram(1, 2, tick_ps=PS, bin_width_ticks=100, n_bins=11, first_delay_ticks=-550)
    histogram.feed(photons(slots[::2], slots[::2]))
    histogram.flush()
    assert second_order_correlation(histogram).g2[5] == pytest.approx(2, rel=0.01)


def test_empty_bins_have_an_error_and_impossible_ones_no_value():
    histogram = DelayHistogram(1, 2, tick_ps=PS, bin_width_ticks=10, n_bins=40)
    histogram.feed(block([(0, 1, 0), (100, 2, 0)]))
    histogram.flush()
    g2 = second_order_correlation(histogram)
    possible = g2.expected > 0
    assert np.isnan(g2.g2[~possible]).all()
    assert np.isnan(g2.g2_error[~possible]).all()
    assert 18 <= np.count_nonzero(possible) <= 22
    np.testing.assert_allclose(g2.g2_error[possible], 1 / g2.expected[possible])
    nothing = second_order_correlation(DelayHistogram(1, 2, tick_ps=PS, bin_width_ticks=10, n_bins=4))
    assert np.isnan(nothing.g2).all()


def test_memory_holds_the_range_and_not_the_stream():
    histogram = DelayHistogram(1, 2, tick_ps=PS, bin_width_ticks=10, n_bins=10)
    for start in range(0, 50_000, 1000):
        histogram.feed(block([(t, t % 2 + 1, 0) for t in range(start, start + 1000)]))
        assert max(map(len, histogram._pending.times)) <= 60


def test_bad_streams_are_refused():
    for histogram in (
        DelayHistogram(1, 2, tick_ps=PS, bin_width_ticks=10, n_bins=10),
        ArrivalHistogram(1, tick_ps=PS, period_ticks=10, n_bins=10),
    ):
        with pytest.raises(NonMonotonicTimeError):
            histogram.feed(block([(1, 1, 0), (0, 1, 0)]))
        with pytest.raises(EventError, match="tick changed"):
            histogram.feed(block([], Fraction(2)))


def test_bad_arguments_are_refused():
    for width, bins in ((0, 1), (1, 0), (1, (1 << 26) + 1), (1 << 60, 4)):
        with pytest.raises(ValueError, match="out of range"):
            DelayHistogram(1, 2, tick_ps=PS, bin_width_ticks=width, n_bins=bins)
    for period, bins, origin in ((Fraction(1, 2), 1, 0), (1 << 62, 1, 0), (5, 0, 0), (5, 1, 1 << 62)):
        with pytest.raises(ValueError, match="out of range"):
            ArrivalHistogram(1, tick_ps=PS, period_ticks=period, n_bins=bins, origin_ticks=origin)
