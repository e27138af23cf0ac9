"""decode_tdc1 equals its NumPy oracle, in any split of the bytes, and stops where the stream cannot be true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_tdc1 import decode_tdc1 as oracle

from qkdhw._core.tdc1 import decode_tdc1

WRAP = 1 << 27


def run(data, state, capacity):
    time_ticks = np.full(capacity, -7, np.int64)
    channel = np.full(capacity, 99, np.uint8)
    kind = np.full(capacity, 99, np.uint8)
    events, words, bad = decode_tdc1(data, state, time_ticks, channel, kind)
    return time_ticks[:events], channel[:events], kind[:events], words, bad


steps = st.lists(st.tuples(st.one_of(st.integers(0, 50), st.integers(0, 100_000_000)), st.integers(1, 31)), max_size=60)


def encode(start, words):
    raw = (start + np.cumsum([0] + [step for step, _ in words])[1:]) % WRAP
    return (raw.astype("<u4") << 5 | np.array([low for _, low in words], "<u4")).tobytes()


@given(st.integers(0, WRAP - 1), steps)
def test_true_streams_decode_as_the_oracle_says(start, words):
    data = encode(start, words)
    state = np.array([3, -1], np.int64)
    got = run(data, state, 4 * len(words) + 4)
    want = oracle(data, 3, -1)
    for column in range(3):
        np.testing.assert_array_equal(got[column], want[column])
    assert (tuple(state), got[3], got[4]) == want[3:]
    assert got[4] == -1
    assert got[3] == len(words)


@given(st.binary(max_size=200), st.integers(0, 5), st.integers(-1, WRAP - 1))
def test_any_bytes_decode_as_the_oracle_says(data, rollovers, last):
    state = np.array([rollovers, last], np.int64)
    got = run(data, state, len(data) + 4)
    want = oracle(data, rollovers, last)
    for column in range(3):
        np.testing.assert_array_equal(got[column], want[column])
    assert (tuple(state), got[3], got[4]) == want[3:]


@given(st.integers(0, WRAP - 1), steps, st.integers(4, 40), st.lists(st.integers(0, 30), max_size=20))
def test_any_split_and_any_capacity_give_the_same_events(start, words, capacity, cuts):
    data = encode(start, words)
    whole = run(data, np.array([0, -1], np.int64), 4 * len(words) + 4)
    state = np.array([0, -1], np.int64)
    kept, position, parts = b"", 0, []
    for cut in [*cuts, len(data)]:
        kept += data[position : position + cut]
        position += cut
        while True:
            *columns, n_words, bad = run(kept, state, capacity)
            assert bad == -1
            parts.append(columns)
            kept = kept[4 * n_words :]
            if n_words == 0:
                break
    for column in range(3):
        np.testing.assert_array_equal(np.concatenate([part[column] for part in parts]), whole[column])


@pytest.mark.parametrize("start", [50_000, 300])  # the second goes back over the wrap
def test_a_small_step_back_is_kept(start):
    data = encode(start, [(1, 1), (WRAP - 2000, 2), (100, 4), (WRAP - 5001, 1)])
    ticks, channel, _, words, bad = run(data, np.array([5, -1], np.int64), 16)
    assert (ticks - 5 * WRAP).tolist() == [start + 1, start - 1999, start - 1899]
    assert channel.tolist() == [1, 2, 3]
    assert (words, bad) == (3, 3)


def test_empty_one_word_and_incomplete_word():
    state = np.array([0, -1], np.int64)
    assert run(b"", state, 0)[3:] == (0, -1)
    assert run(b"\x21\x00\x00", state, 8)[3:] == (0, -1)
    time_ticks, channel, kind, words, bad = run(b"\x2f\x00\x00\x00", state, 8)
    assert (time_ticks.tolist(), channel.tolist(), kind.tolist()) == ([1] * 4, [1, 2, 3, 4], [0] * 4)
    assert (words, bad) == (1, -1)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_byte_is_noticed_within_34_ms_of_stream(lost):
    # Three bytes lost is the worst case: time bits 19..23 then pose as pattern, and are all 0 once in 2^24 ticks.
    rng = np.random.default_rng(5)
    ticks = np.cumsum(rng.integers(1, 5000, 40_000))
    good = ((ticks % WRAP).astype("<u4") << 5 | (1 << rng.integers(0, 4, 40_000)).astype("<u4")).tobytes()
    slipped = good[: 4 * 1000] + good[4 * 1000 + lost :]
    *_, words, bad = run(slipped, np.array([0, -1], np.int64), 200_000)
    assert 999 <= bad == words
    assert ticks[bad] - ticks[1000] < 1.1 * 2**24


@pytest.mark.parametrize("sizes", [(1, 4, 4, 4), (3, 4, 4, 4), (2, 4, 3, 4), (2, 4, 4, 5)])
def test_lengths_that_do_not_match_are_refused(sizes):
    state, *columns = sizes
    arrays = [np.zeros(n, t) for n, t in zip(columns, (np.int64, np.uint8, np.uint8), strict=True)]
    with pytest.raises(ValueError, match="must have"):
        decode_tdc1(b"", np.zeros(state, np.int64), *arrays)
