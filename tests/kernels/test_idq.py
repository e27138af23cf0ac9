"""decode_id900 and merge_id900 equal their oracles, and stop where a stream cannot be true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_idq import decode_and_merge_fast
from oracle_idq import decode_id900 as decode_oracle
from oracle_idq import merge_id900 as merge_oracle

from qkdhw._core.idq import decode_id900, merge_id900

WIDTH = 200_000_000_000
rising = st.lists(st.integers(0, 10**6), max_size=50).map(lambda steps: np.cumsum([0, *steps])[1:].astype(np.int64))


def decode(data, begin, width, period):
    out = np.full(len(data) // (16 if period else 8), -7, np.int64)
    bad = decode_id900(data, begin, width, period, out)
    return out[: bad if bad >= 0 else None], bad


def agree(data, begin, width, period):
    got, bad = decode(data, begin, width, period)
    want, want_bad = decode_oracle(data, begin, width, period)
    assert bad == want_bad
    np.testing.assert_array_equal(got, want)
    return bad


@given(rising, st.integers(0, 2**62))
def test_true_timestamps(times, begin):
    assert agree(times.astype("<u8").tobytes(), begin, 10**9, 0) == -1


@given(rising, st.integers(1, 10**6), st.integers(0, 2**62))
def test_true_timestamps_with_index(times, period, begin):
    pairs = np.stack([times % period, times // period], axis=1).astype("<u8")
    assert agree(pairs.tobytes(), begin, 10**9, period) == -1
    got, _ = decode(pairs.tobytes(), begin, 10**9, period)
    np.testing.assert_array_equal(got, begin + times)


words = st.one_of(st.integers(0, 50), st.integers(0, 2**64 - 1))


@given(st.lists(words, max_size=20), st.integers(0, 2**62 - 1), st.integers(0, 2**62))
def test_any_words(values, begin, width):
    agree(np.array(values, "<u8").tobytes(), begin, width, 0)


@given(st.lists(st.tuples(words, words), max_size=20), st.integers(0, 2**62), st.integers(1, 2**62))
def test_any_pairs(values, width, period):
    agree(np.array(values, "<u8").tobytes(), 5, width, period)


def test_a_step_back_and_a_time_after_the_end_are_found():
    assert decode(np.array([1, 5, 4, 9], "<u8").tobytes(), 0, WIDTH, 0)[1] == 2
    assert decode(np.array([1, WIDTH, WIDTH + 1], "<u8").tobytes(), 0, WIDTH, 0)[1] == 2
    assert decode(np.array([7, 7, 7], "<u8").tobytes(), 0, WIDTH, 0)[1] == -1


@given(st.tuples(rising, rising, rising, rising))
def test_merge(streams):
    n = sum(map(len, streams))
    time_ticks, channel = np.full(n, -7, np.int64), np.full(n, 99, np.uint8)
    assert merge_id900(*streams, np.array([1, 2, 3, 4], np.uint8), time_ticks, channel) == n
    want_time, want_channel = merge_oracle(streams, [1, 2, 3, 4])
    np.testing.assert_array_equal(time_ticks, want_time)
    np.testing.assert_array_equal(channel, want_channel)


def test_vectorised_oracle_is_the_readable_one():
    rng = np.random.default_rng(1)
    streams = [np.sort(rng.integers(0, 1000, n)) for n in (0, 1, 500, 300)]
    messages = [stream.astype("<u8").tobytes() for stream in streams]
    decoded = [decode_oracle(message, 10, 1000, 0)[0] for message in messages]
    for fast, readable in zip(
        decode_and_merge_fast(messages, [1, 2, 3, 4], 10, 1000), merge_oracle(decoded, [1, 2, 3, 4]), strict=True
    ):
        np.testing.assert_array_equal(fast, readable)


def test_what_does_not_match_is_refused():
    out = np.zeros(2, np.int64)
    for size, period in ((15, 0), (17, 0), (16, 5), (33, 5)):
        with pytest.raises(ValueError, match="8 bytes"):
            decode_id900(bytes(size), 0, 1, period, out)
    for begin, width, period in ((-1, 0, 0), (0, -1, 0), (2**62, 2**62, 0)):
        with pytest.raises(ValueError, match="negative"):
            decode_id900(bytes(16), begin, width, period, out)
    none, numbers = np.zeros(0, np.int64), np.zeros(4, np.uint8)
    with pytest.raises(ValueError, match="4 elements"):
        merge_id900(none, none, none, none, numbers[:3], none, np.zeros(0, np.uint8))
    with pytest.raises(ValueError, match="together"):
        merge_id900(out, none, none, none, numbers, out, np.zeros(1, np.uint8))
