"""Merging kernels equal their oracle, also where lanes and tiles meet."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_merge import correct, merge, merge_vectorised

from qkdhw._core import merge as kernels

events = st.lists(st.tuples(st.integers(-40, 40), st.integers(0, 5), st.sampled_from([0, 0, 0, 1, 2])), max_size=40)


def columns(stream):
    return [np.array([event[i] for event in stream], t) for i, t in enumerate((np.int64, np.uint8, np.uint8))]


def listed(columns):
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(events, st.integers(1, 5), st.integers(0, 60), st.dictionaries(st.integers(0, 5), st.integers(-50, 50)))
def test_a_stream_is_corrected_and_put_in_order(stream, factor, window, skew):
    shift, state = np.zeros(256, np.int64), np.empty(3, np.int64)
    for channel, ticks in skew.items():
        shift[channel] = -ticks
    kernels.reset_state(state)
    out = columns(stream)
    want, late = correct(stream, factor, skew, 8, window)
    renumbered = (np.arange(256) + 8).astype(np.uint8)
    n = kernels.correct_events(*columns(stream), factor, shift, renumbered, window, state, *out)
    assert n == len(want)
    assert state[1] == len(late)
    assert state[2] == min(late, default=len(stream))
    out = [column[:n] for column in out]
    assert kernels.order_events(*out, 10_000)
    assert listed(out) == want


@given(events, st.integers(0, 10))
def test_too_few_moves_lose_nothing(stream, moves):
    out = columns(stream)
    enough = kernels.order_events(*out, moves)
    want = sorted(stream, key=lambda event: event[0])
    assert sorted(listed(out), key=lambda event: event[0]) == want
    assert not enough or listed(out) == want


@given(events, events)
def test_two_streams_merge_as_the_oracle(left, right):
    left, right = (sorted(stream, key=lambda event: event[0]) for stream in (left, right))
    out = columns([*left, *right])
    kernels.merge_two(*columns(left), *columns(right), *out)
    assert listed(out) == merge([left, right])


@pytest.mark.parametrize("steps", [(2000, 3000), (1, 2), (10, 4000), (2, 2)])
def test_lanes_and_tiles_meet_seamlessly(steps):
    rng = np.random.default_rng(steps)
    left, right = (
        (np.cumsum(rng.integers(0, step, 150_000)).astype(np.int64), *rng.integers(0, 9, (2, 150_000), dtype=np.uint8))
        for step in steps
    )
    right = (right[0] + 20_000, *right[1:])
    out = columns([(0, 0, 0)] * 300_000)
    kernels.merge_two(*left, *right, *out)
    for column, want in zip(out, merge_vectorised(left, right), strict=True):
        np.testing.assert_array_equal(column, want)


def test_times_that_leave_the_range_are_named():
    state, shift = np.empty(3, np.int64), np.zeros(256, np.int64)
    kernels.reset_state(state)
    stream = columns([(0, 1, 0), (1 << 61, 1, 0), (1 << 62, 1, 0)])
    renumbered = np.arange(256, dtype=np.uint8)
    assert kernels.correct_events(*stream, 1, shift, renumbered, 0, state, *columns([(0, 0, 0)] * 3)) == -3
    assert kernels.correct_events(*stream, 2, shift, renumbered, 0, state, *columns([(0, 0, 0)] * 3)) == -2


def test_wrong_lengths_are_refused():
    one, none = columns([(0, 0, 0)]), columns([])
    with pytest.raises(ValueError, match="as long as both"):
        kernels.merge_two(*one, *one, *one)
    with pytest.raises(ValueError, match="one length"):
        kernels.merge_two(one[0], none[1], one[2], *one, *columns([(0, 0, 0)] * 2))
    with pytest.raises(ValueError, match="3 places"):
        kernels.reset_state(np.empty(2, np.int64))
