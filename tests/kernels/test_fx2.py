"""decode_fx2 equals its oracle for any bytes, in any split, and stops where the stream cannot be true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_fx2 import decode_fx2 as oracle

from qkdhw._core.fx2 import decode_fx2

PHASE_OF = np.array([code % 17 - 1 for code in range(512)], np.int16)
WRAP = 1 << 49


def run(data, state, capacity):
    times, channel, kind = (np.full(capacity, 99, t) for t in (np.int64, np.uint8, np.uint8))
    counts = np.zeros(3, np.int64)
    events, words, bad = decode_fx2(data, PHASE_OF, state, counts, times, channel, kind)
    assert not kind[:events].any()
    return times[:events].tolist(), channel[:events].tolist(), counts.tolist(), tuple(state), words, bad


def event(ticks, pattern):
    """An event as the card sends it."""
    phase, fast, slow = ticks % 16, ticks // 16 % 32, ticks // 512
    slow = (slow - (fast < 17)) % (1 << 40)
    low = slow % 256 << 24 | (pattern & 3) << 16 | pattern >> 2 << 14 | fast << 9 | phase + 1
    return low.to_bytes(4, "little") + (slow // 256).to_bytes(4, "little")


@given(st.binary(max_size=200), st.integers(0, 3), st.integers(-1, WRAP - 1))
def test_any_bytes_decode_as_the_oracle_says(data, wraps, last):
    got = run(data, np.array([wraps, last], np.int64), 4 * len(data) + 4)
    assert got == oracle(data, PHASE_OF, wraps, last)


steps = st.lists(
    st.tuples(st.one_of(st.integers(0, 3000), st.integers(0, 480_000_000_000)), st.integers(1, 15)), max_size=40
)


@given(st.integers(0, WRAP - 1), steps, st.integers(4, 20))
def test_true_streams_come_out_as_they_went_in_in_any_capacity(start, found, capacity):
    ticks = start + np.cumsum([step for step, _ in found], dtype=np.int64) if found else []
    data = b"".join(event(int(t) % WRAP, pattern) for t, (_, pattern) in zip(ticks, found, strict=True))
    state, times, channels = np.array([0, -1], np.int64), [], []
    while data:
        more_times, more_channels, counts, _, words, bad = run(data, state, capacity)
        assert (counts, bad) == ([0, 0, 0], -1)
        times += more_times
        channels += more_channels
        data = data[8 * words :]
    first = int(ticks[0]) // WRAP * WRAP if found else 0
    want = [(int(t) - first, c + 1) for t, (_, p) in zip(ticks, found, strict=True) for c in range(4) if p >> c & 1]
    assert list(zip(times, channels, strict=True)) == want


def test_a_small_step_back_is_kept_and_a_large_one_is_bad():
    data = event(100_000, 1) + event(20_001, 2) + event(WRAP - 60_000, 4)
    times, channels, _, _, words, bad = run(data, np.array([0, -1], np.int64), 16)
    assert (times, channels, words, bad) == ([100_000, 20_001], [1, 2], 2, 2)


def test_voids_and_events_without_an_input_and_with_an_unknown_phase_are_counted():
    data = bytes(8) + event(5000, 0) + (0x01004000).to_bytes(8, "little")
    assert run(data, np.array([0, -1], np.int64), 16)[2] == [1, 1, 1]


@pytest.mark.parametrize("lost", [1, 2, 3, 4, 5])
def test_lost_bytes_are_noticed_soon(lost):
    rng = np.random.default_rng(5)
    ticks = np.cumsum(rng.integers(1, 5000, 4000)) + 7 * 10**13
    good = b"".join(event(int(t), 1 << int(p)) for t, p in zip(ticks, rng.integers(0, 4, 4000), strict=True))
    *_, words, bad = run(good[:800] + good[800 + lost :], np.array([0, -1], np.int64), 20_000)
    assert 99 <= bad == words < 110


@pytest.mark.parametrize("sizes", [(511, 2, 3, 4, 4), (512, 3, 3, 4, 4), (512, 2, 2, 4, 4), (512, 2, 3, 4, 5)])
def test_lengths_that_do_not_match_are_refused(sizes):
    phases, state, counts, times, channels = sizes
    with pytest.raises(ValueError, match="must have"):
        decode_fx2(
            b"", np.zeros(phases, np.int16), np.zeros(state, np.int64), np.zeros(counts, np.int64),
            np.zeros(times, np.int64), np.zeros(channels, np.uint8), np.zeros(times, np.uint8),
        )  # fmt: skip
