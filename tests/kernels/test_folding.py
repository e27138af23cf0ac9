"""Folding equals its oracle in plain integers, in any cut of the stream, wherever the times lie."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle_folding import fold, fold_pairs

from qkdhw._core.folding import check_pair_clock, fold_events, fold_residuals

ONE = 1 << 32
RATE = 1 << 48
times = st.one_of(st.integers(-(1 << 62) + 1, (1 << 62) - 1), st.integers(-1000, 1000))
steps = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(1 << 62, 1 << 63))


@given(
    st.lists(times, max_size=30),
    times,
    steps,
    st.integers(0, 63),
    st.integers(1, 12),
    st.lists(st.integers(0, 30), max_size=3),
)
@example([], 0, 1, 0, 1, [])
@example([(1 << 62) - 1], -(1 << 62) + 1, (1 << 64) - 1, 63, 12, [])
def test_folding_equals_the_oracle_in_any_cut(ticks, ref, step, fraction_bits, bins_log2, cuts):
    histogram = np.zeros(1 << bins_log2, np.float32)
    edges = [0, *sorted(min(c, len(ticks)) for c in cuts), len(ticks)]
    for first, last in pairwise(edges):
        assert fold_events(np.array(ticks[first:last], np.int64), ref, step, fraction_bits, histogram) == last - first
    assert histogram.tolist() == fold(ticks, ref, step, fraction_bits, 1 << bins_log2)


def test_a_day_folds_as_exactly_as_a_second():
    # A period of 1024.25 ticks: 4 * 1024.25 is whole, so a multiple of it, 2^50 ticks on, folds like the origin.
    fraction_bits, bins = 9, 1 << 10
    step = (1 << 64 + fraction_bits + 2) // 4097
    period = (1 << 64 + fraction_bits) / step
    assert period == pytest.approx(1024.25, rel=1e-15)
    near, far = (np.zeros(bins, np.float32) for _ in range(2))
    events = np.arange(0, 4097, dtype=np.int64)
    fold_events(events, 0, step, fraction_bits, near)
    fold_events(events + 4097 * (1 << 38), 4097 * (1 << 38), step, fraction_bits, far)
    np.testing.assert_array_equal(near, far)


@pytest.mark.parametrize(("bins", "fraction_bits"), [(0, 0), (1, 0), (3, 0), (6, 0), (4, -1), (4, 64)])
def test_histograms_that_do_not_fit_are_refused(bins, fraction_bits):
    with pytest.raises(ValueError, match=r"bins|fraction_bits"):
        fold_events(np.zeros(1, np.int64), 0, 1, fraction_bits, np.zeros(bins, np.float32))


@st.composite
def two_streams(draw):
    """Two short streams that coincide often, a clock between them, and a histogram over part of them."""
    start = draw(st.integers(-200, 200) | st.integers(-(1 << 59), 1 << 59))
    offset = draw(st.integers(-200, 200) | st.integers(-(1 << 59), 1 << 59))
    gaps = st.lists(st.integers(0, 9), max_size=25)
    a = [start + int(t) for t in np.cumsum(draw(gaps))]
    rate = draw(st.integers(RATE // 4, 4 * RATE) | st.integers(RATE - (1 << 34), RATE + (1 << 34)))
    b = [start + offset + int(t) for t in np.cumsum(draw(gaps))]
    clock = (
        start + draw(st.integers(-50, 50)),
        start + offset + draw(st.integers(-9, 9)),
        draw(st.integers(0, ONE - 1)),
        rate,
    )
    return a, b, clock, start + draw(st.integers(-20, 60))


@settings(max_examples=60)
@given(
    two_streams(),
    st.integers(0, 7),
    st.integers(0, 36) | st.integers(0, 80),
    st.integers(0, 5),
    st.integers(1, 20),
    st.lists(st.integers(0, 25), max_size=3),
)
def test_residuals_equal_the_oracle_in_any_cut_of_a(streams, slice_shift, bin_shift, rows, half, cuts):
    a, b, clock, first = streams
    histogram = np.zeros((rows, 2 * half), np.int64)
    edges = [0, *sorted(min(c, len(a)) for c in cuts), len(a)]
    pairs = [
        fold_residuals(
            np.array(a[i:j], np.int64), np.array(b, np.int64), *clock, first, slice_shift, bin_shift, histogram
        )
        for i, j in pairwise(edges)
    ]
    want = fold_pairs(a, b, clock, first, slice_shift, bin_shift, rows, 2 * half)
    np.testing.assert_array_equal(histogram, want)
    assert min(pairs) >= 0
    assert sum(pairs) == want.sum()


def pairs_of(a, b, *, clock=(0, 0, 0, RATE), first=0, slice_shift=10, bin_shift=32, shape=(1, 8)):
    return fold_residuals(
        np.array(a, np.int64), np.array(b, np.int64), *clock, first, slice_shift, bin_shift, np.zeros(shape, np.int64)
    )


def test_broken_order_is_named():
    assert pairs_of([5, 9, 8], [5]) == -3
    assert pairs_of([5, 9, 12], [9, 900, 3, 9]) == 2  # hidden behind an event that is too late
    assert pairs_of([5, 9, 12], [9, 2, 12]) == -2


def test_times_beyond_the_exact_range_are_named():
    assert pairs_of([5, 1 << 62], [5]) == -2
    assert pairs_of([-(1 << 62) - 1], []) == -1
    assert pairs_of([0, 1 << 61], [0], clock=(0, 0, 0, 4 * RATE), slice_shift=61, shape=(2, 8)) == -2


@pytest.mark.parametrize(
    "wrong",
    [
        {"slice_shift": -1},
        {"slice_shift": 62},
        {"bin_shift": -1},
        {"bin_shift": 81},
        {"bin_shift": 80, "shape": (1, 8192)},
        {"shape": (1, 7)},
        {"shape": (1, 0)},
        {"first": 1 << 62},
        {"clock": (0, 0, 0, ONE - 1)},
        {"clock": (0, 0, 0, 1 << 62)},
        {"clock": (0, 0, ONE, RATE)},
        {"clock": (0, 0, -1, RATE)},
        {"clock": (1 << 62, 0, 0, RATE)},
        {"clock": (0, -(1 << 62), 0, RATE)},
    ],
)
def test_what_is_not_exact_is_refused(wrong):
    with pytest.raises(ValueError, match=r"slice_shift|columns|histogram|first_ticks|rate_q48|phase_q32|reference"):
        pairs_of([1], [1], **wrong)


def test_the_smallest_and_the_largest_clock_pass():
    check_pair_clock(-(1 << 62) + 1, (1 << 62) - 1, ONE - 1, ONE)
    check_pair_clock(0, 0, 0, (1 << 62) - 1)
