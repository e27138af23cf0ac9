"""Coincidence kernels equal their oracle, also where lanes and tiles meet, and refuse what is not sorted."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracle_coincidences import all_pairs, all_pairs_vectorised, count_pairs_vectorised, one_partner, tuples

from qkdhw._core import coincidences as kernels
from qkdhw._core.multifold import match_tuples

FAR = (1 << 62) - 1


@st.composite
def streams(draw, *, max_size=60):
    """Sorted times, dense or thin, bunched or not, with equal ones."""
    step = st.integers(0, 4) | st.integers(0, 40) | st.just(1 << 40)
    steps = draw(st.lists(step, max_size=max_size))
    return np.cumsum(np.array([draw(st.integers(-50, 50)), *steps], np.int64))[: len(steps)]


windows = st.tuples(st.integers(-30, 30), st.integers(0, 40)).map(lambda w: (w[0], w[0] + w[1]))


def found_pairs(first, second, low, high):
    rows = [np.empty(len(first), np.int64) for _ in range(3)]
    n = kernels.find_partners(first, second, low, high, *rows)
    anchor, begin, number = (row[:n] for row in rows)
    pairs = np.empty((2, int(number.sum())), np.int64)
    assert kernels.spread_partners(anchor, begin, number, pairs[0], pairs[1]) == pairs.shape[1]
    return pairs


def matched_pairs(first, second, low, high):
    pairs, state = np.empty((2, len(first)), np.int64), np.zeros(1, np.int64)
    n = kernels.match_pairs(first, second, low, high, pairs[0], pairs[1], state)
    assert kernels.match_pairs(first, second, low, high, None, None, state) == n
    return pairs[:, :n]


def as_tuples(pairs):
    return list(zip(*pairs.tolist(), strict=True))


@given(streams(), streams(), windows)
@example(np.array([-FAR, FAR]), np.array([-FAR, FAR]), (0, 0))
@example(np.array([-FAR, FAR]), np.array([-FAR, FAR]), (-(1 << 61) + 1, (1 << 61) - 1))
def test_pairs_equal_the_oracle(first, second, window):
    want = all_pairs(first.tolist(), second.tolist(), *window)
    assert kernels.count_pairs(first, second, *window) == len(want)
    assert as_tuples(found_pairs(first, second, *window)) == want
    assert as_tuples(matched_pairs(first, second, *window)) == one_partner(first.tolist(), second.tolist(), *window)


def one_partner_fast(first, second, low, high):
    """As the oracle, in one scan."""
    i = j = 0
    pairs = []
    while i < len(first) and j < len(second):
        delay = second[j] - first[i]
        if low <= delay <= high:
            pairs.append((i, j))
        i, j = i + (delay >= low), j + (delay <= high)
    return pairs


@pytest.mark.parametrize("mean_step", [1, 30, 300, 5000])
@pytest.mark.parametrize("window", [(-8, 8), (3, 40), (-2000, -1990)])
def test_lanes_and_tiles_meet_seamlessly(mean_step, window):
    """More events than a tile has; bursts, and one stream beginning and ending before the other."""
    rng = np.random.default_rng([mean_step, *np.abs(window)])
    first = np.cumsum(rng.integers(0, 2 * mean_step, 200_000)).astype(np.int64)
    second = np.cumsum(rng.integers(0, 5 * mean_step, 120_000)).astype(np.int64) - 10_000 * mean_step
    second[60_000:] += 50_000 * mean_step
    if mean_step == 1:
        first, second = first[:40_000], second[8_000:20_000]
    want = np.array(all_pairs_vectorised(first, second, *window))
    assert kernels.count_pairs(first, second, *window) == want.shape[1]
    assert count_pairs_vectorised(first, second, *window) == want.shape[1]
    np.testing.assert_array_equal(found_pairs(first, second, *window), want)
    assert as_tuples(matched_pairs(first, second, *window)) == one_partner_fast(
        first.tolist(), second.tolist(), *window
    )


def test_the_state_is_where_the_second_stream_is_taken_up_again():
    first, second, state = np.array([10, 20]), np.array([9, 10, 20, 21, 50]), np.zeros(1, np.int64)
    assert kernels.match_pairs(first, second, -1, 1, None, None, state) == 2
    assert state[0] == 3


@pytest.mark.parametrize("bad", [[5, 4], [0, 1 << 62], [-(1 << 62), 0], [0, FAR, -(1 << 63), -1, 0]])
def test_what_is_not_sorted_or_too_far_is_refused(bad):
    bad, good = np.array(bad, np.int64), np.array([1, 2, 3], np.int64)
    for first, second in ((bad, good), (good, bad)):
        rows = [np.empty(5, np.int64) for _ in range(3)]
        assert kernels.count_pairs(first, second, -1, 1) == -1
        assert kernels.find_partners(first, second, -1, 1, *rows) == -1
        assert kernels.match_pairs(first, second, -1, 1, None, None, np.zeros(1, np.int64)) == -1
    assert kernels.first_descent(bad) in (0, 1, 2)
    assert kernels.first_descent(good) == 3


def test_disorder_is_seen_wherever_it_is():
    rng = np.random.default_rng(5)
    first = np.cumsum(rng.integers(0, 10, 300_000)).astype(np.int64)
    for at in (1, 77_777, 150_000, 299_999):
        bad = first.copy()
        bad[at] = bad[at - 1] - 1
        assert kernels.first_descent(bad) == at
        assert kernels.count_pairs(bad, first, 0, 0) == -1
        assert kernels.match_pairs(first, bad, 0, 0, None, None, np.zeros(1, np.int64)) == -1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.sampled_from([0, 0, 1, 2])), max_size=20))
def test_a_channel_is_its_photons(events):
    time_ticks = np.array([e[0] for e in events], np.int64)
    channel, kind = (np.array([e[i] for e in events], np.uint8) for i in (1, 2))
    out = np.empty(len(events) + 1, np.int64)
    n = kernels.select_channel(time_ticks, channel, kind, 2, out)
    assert out[:n].tolist() == [t for t, c, k in events if c == 2 and k == 0]


@st.composite
def folds(draw):
    channels = [draw(streams(max_size=8)) for _ in range(draw(st.integers(2, 4)))]
    pairs = [(c, d) for d in range(len(channels)) for c in range(d)]
    return channels, {pair: draw(windows) for pair in pairs}, draw(st.booleans())


def matched_tuples(channels, limits, *, single):
    order = len(channels)
    begin = np.cumsum([0, *map(len, channels)])
    low, high = np.zeros((2, order, order), np.int64)
    for pair, window in limits.items():
        low[pair], high[pair] = window
    times = np.concatenate(channels)
    n = match_tuples(times, begin, low, high, single, begin[:-1].copy(), None)
    index = np.empty((n, order), np.int64)
    assert match_tuples(times, begin, low, high, single, begin[:-1].copy(), index) == n
    return [tuple(row) for row in (index - begin[:-1]).tolist()]


@given(folds())
def test_tuples_equal_the_oracle(fold):
    channels, limits, single = fold
    want = tuples([channel.tolist() for channel in channels], limits, single=single)
    assert matched_tuples(channels, limits, single=single) == want


def test_bad_arguments_are_refused():
    one, state = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for window in ((1, 0), (-(1 << 61), 0), (0, 1 << 61)):
        with pytest.raises(ValueError, match="window"):
            kernels.count_pairs(one, one, *window)
    with pytest.raises(ValueError, match="as many places"):
        kernels.find_partners(one, one, 0, 0, one[:0], one, one)
    with pytest.raises(ValueError, match="both arrays or both None"):
        kernels.match_pairs(one, one, 0, 0, one, None, state)
    with pytest.raises(ValueError, match="2 to 16 channels"):
        match_tuples(one, np.array([0, 1]), np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64), False, state, None)
    assert kernels.spread_partners(one, one, one + 2, one.copy(), one.copy()) == -1
