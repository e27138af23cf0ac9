"""Histogram kernels equal their oracle in exact integers, to the ends of the range of times."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracle_delays import arrival_counts, arrival_counts_vectorised, delay_counts, delay_counts_vectorised

from qkdhw._core import coincidences, delays

FAR = (1 << 62) - 1
steps = st.integers(0, 4) | st.integers(0, 60) | st.just(1 << 40)
streams = st.lists(steps, max_size=30).map(lambda steps: np.cumsum(np.array(steps, np.int64)) - 70)


def binned(first, second, low, width, bins, *, same=False):
    rows = [np.empty(len(first), np.int64) for _ in range(3)]
    n = coincidences.find_partners(first, second, low, low + width * bins - 1, *rows)
    counts = np.zeros(bins, np.int64)
    rows = [row[:n] for row in rows]
    assert delays.bin_delays(first, second, *rows, low, width, same, 0, counts) == counts.sum()
    return counts.tolist()


@given(streams, streams, st.integers(-60, 60), st.integers(1, 9) | st.just(1 << 40), st.integers(1, 30))
def test_every_stop_of_every_start_counts(first, second, low, width, bins):
    want = delay_counts(first.tolist(), second.tolist(), low, width, bins)
    assert binned(first, second, low, width, bins) == want
    assert delay_counts_vectorised(first, second, low, width, bins).tolist() == want


@given(streams, st.integers(-60, 10), st.integers(1, 9), st.integers(1, 30))
def test_an_event_is_not_its_own_partner(times, low, width, bins):
    want = delay_counts(times.tolist(), times.tolist(), low, width, bins, same=True)
    assert binned(times, times, low, width, bins, same=True) == want


def test_rows_and_delays_outside_are_refused():
    times, counts = np.array([0, 10], np.int64), np.zeros(2, np.int64)

    def rows(*values):
        return [np.array([value], np.int64) for value in values]

    for anchor, begin, number in ((2, 0, 1), (-1, 0, 1), (0, 1, 2), (0, -1, 1), (0, 0, 2), (1, 0, 1)):
        assert delays.bin_delays(times, times, *rows(anchor, begin, number), 0, 5, False, 0, counts) == -1
    for bad in ((0, False, 0, counts), (1, False, 0, counts[:0])):
        with pytest.raises(ValueError, match=r"bin of 0|1 to"):
            delays.bin_delays(times, times, *rows(0, 0, 1), 0, *bad)


periods = st.fractions(1, 60, max_denominator=50) | st.tuples(st.integers(1, 1 << 61), st.integers(1, 1 << 61)).map(
    lambda pair: Fraction(max(pair), min(pair))
)
far_times = st.integers(-FAR, FAR) | st.integers(-500, 500)


@given(st.lists(far_times, max_size=20), far_times, periods, st.integers(1, 200))
@example([FAR, -FAR, 0], -FAR, Fraction(FAR), 1 << 20)
@example([FAR, -FAR, 3], FAR, Fraction(FAR, FAR - 1), 7)
@example(list(range(20)), 0, Fraction(4), 4)
@example(list(range(20)), 0, Fraction(1), 1)
def test_phases_are_exact(times, origin, period, bins):
    counts = np.zeros(bins, np.int64)
    delays.bin_arrivals(np.array(times, np.int64), origin, period.numerator, period.denominator, counts)
    assert counts.tolist() == arrival_counts(times, origin, period, bins)


def test_a_long_stream_keeps_its_phase():
    times = np.cumsum(np.random.default_rng(1).integers(0, 5000, 100_000)).astype(np.int64)
    counts = np.zeros(500, np.int64)
    delays.bin_arrivals(times, 7, 25_003, 10, counts)
    np.testing.assert_array_equal(counts, arrival_counts_vectorised(times, 7, 25_003, 10, 500))


@pytest.mark.parametrize("period", [(0, 1), (1, 0), (1, 2), (1 << 62, 1)])
def test_impossible_periods_are_refused(period):
    with pytest.raises(ValueError, match="period"):
        delays.bin_arrivals(np.empty(0, np.int64), 0, *period, np.zeros(2, np.int64))
