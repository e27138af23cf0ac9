"""Gating equals its oracle in plain integers, in any cut of the stream, and never leaves exact arithmetic."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracle_gating import NAMES, gate, locate

from qkdhw._core.gating import assign_slots, gate_events, reset_state

WIRING = np.full(256, 255, np.uint8)
WIRING[[1, 2, 3, 4]] = [0, 1, 2, 3]
ONE = 1 << 32
periods = st.one_of(st.integers(2 * ONE, 60 * ONE), st.integers(2 * ONE, (1 << 60) - 1))
clocks = st.tuples(st.integers(-(1 << 60), 1 << 60), st.integers(-(1 << 61), 1 << 61), st.integers(0, ONE - 1), periods)
times = st.one_of(st.integers(-(1 << 62) + 1, (1 << 62) - 1), st.integers(-1000, 1000))


@given(clocks, st.lists(times, max_size=20))
@example((0, 0, 0, 25 * ONE), [(1 << 62) - 1, -(1 << 62) + 1, 0, 12, 13, -12, -13])
@example((0, -(1 << 62) + 1, 0, 2 * ONE), [(1 << 62) - 1, -(1 << 62) + 1])
def test_slots_are_exact(clock, ticks):
    array = np.array(ticks, np.int64)
    slot, residual = np.empty(len(ticks), np.int64), np.empty(len(ticks), np.int64)
    assert assign_slots(array, *clock, slot, residual) == len(ticks)
    assert list(zip(slot.tolist(), residual.tolist(), strict=True)) == [locate(t, clock) for t in ticks]


def test_time_out_of_range_is_named():
    array = np.array([0, 1 << 62, 0], np.int64)
    assert assign_slots(array, 0, 0, 0, 25 * ONE, np.empty(3, np.int64), np.empty(3, np.int64)) == 1


@pytest.mark.parametrize(
    "clock",
    [
        (0, 0, 0, 2 * ONE - 1),
        (0, 0, 0, 1 << 60),
        (0, 0, ONE, 25 * ONE),
        (0, 0, -1, 25 * ONE),
        (1 << 61, 0, 0, 25 * ONE),
    ],
)
def test_inexact_clocks_are_refused(clock):
    with pytest.raises(ValueError, match=r"period_q32|phase_q32|out of range"):
        assign_slots(np.empty(0, np.int64), *clock, np.empty(0, np.int64), np.empty(0, np.int64))


@st.composite
def streams(draw):
    """Clicks dense enough for doubles, dead time and window to matter, with unwired inputs, gaps and markers."""
    steps = draw(st.lists(st.integers(0, 30) | st.integers(0, 3) | st.just(3 << 30), max_size=40))
    channel = draw(st.lists(st.integers(1, 4) | st.integers(0, 6), min_size=len(steps), max_size=len(steps)))
    kind = draw(st.lists(st.sampled_from([0] * 12 + [1, 2, 3, 4, 5, 6]), min_size=len(steps), max_size=len(steps)))
    start = draw(st.integers(-200, 200) | st.integers(-(1 << 60), 1 << 60))
    return [(start + int(t), c, k) for t, c, k in zip(np.cumsum(steps), channel, kind, strict=True)], start


def run(chunks, clock, first_slot, half_width, dead_time, random, bins):
    """Feed chunks as the Gate does: carry, unused random bytes kept, flush at the end."""
    state, counts, histogram = np.empty(8, np.int64), np.zeros(15, np.int64), np.zeros(bins, np.int64)
    reset_state(state)
    out, used = [], 0
    for index, chunk in enumerate([*chunks, []]):
        n = len(chunk)
        ticks = np.array([e[0] for e in chunk], np.int64)
        channel, kind = (np.array([e[i] for e in chunk], np.uint8) for i in (1, 2))
        slot, basis, bit = np.empty(n + 1, np.int64), np.empty(n + 1, np.uint8), np.empty(n + 1, np.uint8)
        last = index == len(chunks)
        bytes_left = np.frombuffer(random, np.uint8)[used : used + n // 2 + 2]
        done = gate_events(
            ticks, channel, kind, WIRING, *clock, first_slot, half_width, dead_time, bytes_left, last,
            state, slot, basis, bit, counts, histogram,
        )  # fmt: skip
        assert done == n
        used += int(state[6])
        k = int(state[7])
        out += zip(slot[:k].tolist(), basis[:k].tolist(), bit[:k].tolist(), strict=True)
    return out, dict(zip(NAMES, counts.tolist(), strict=True)), histogram.tolist(), used


@given(
    streams(),
    st.fractions(2, 40),
    st.integers(0, ONE - 1),
    st.integers(0, 10),
    st.fractions(0, 1),
    st.integers(0, 70).map(lambda ticks: ticks * ONE) | st.integers(0, 70 * ONE) | st.just(3 << 61 >> 2),
    st.binary(min_size=64, max_size=64),
    st.integers(1, 300),
    st.lists(st.integers(0, 40), max_size=5),
)
def test_gating_equals_the_oracle_in_any_cut(stream, period, phase, first, width, dead_time, random, bins, cuts):
    events, start = stream
    clock = (-5, start, phase, int(period * ONE))
    half_width = min(int(width * clock[3] / 2), clock[3] // 2 - 1)
    edges = [0, *sorted(min(c, len(events)) for c in cuts), len(events)]
    chunks = [events[a:b] for a, b in pairwise(edges)]
    want = gate(events, WIRING.tolist(), clock, first - 8, half_width, dead_time, random, bins)
    got = run(chunks, clock, first - 8, half_width, dead_time, random, bins)
    assert got == want
    counts = got[1]
    drops = ("unwired", "before_start", "outside_window", "dead_time")
    assert counts["photons"] == sum(counts[d] for d in drops) + counts["slots"] + counts["merged"]
    slots = [slot for slot, _, _ in got[0]]
    assert all(a < b for a, b in pairwise(slots))


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 4, 20, 300, 1 << 24]),
    st.fractions(2, 40),
    st.sampled_from([0, 5, 60]),
    st.sampled_from([0.0, 0.3]),
    st.lists(st.integers(0, 3000), max_size=3),
)
def test_whole_blocks_equal_the_oracle_in_any_cut(seed, mean_step, period, dead_ticks, share, cuts):
    """Streams of many blocks: all of them clicks of detectors, or mixed with other inputs and a few marks."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 3000))
    start = int(rng.integers(-(1 << 60), 1 << 60))
    ticks = start + np.cumsum(rng.geometric(1 / mean_step, n) - 1)
    channel = np.where(rng.random(n) < share, 9, rng.integers(1, 5, n))
    kind = np.where(rng.random(n) < share / 500, rng.integers(1, 7, n), 0)
    events = list(zip(ticks.tolist(), channel.tolist(), kind.tolist(), strict=True))
    clock = (7, start - 3, int(rng.integers(0, ONE)), int(period * ONE))
    half_width = int(rng.integers(0, clock[3] // 2))
    random = rng.bytes(n + 4)
    edges = [0, *sorted(min(c, n) for c in cuts), n]
    chunks = [events[a:b] for a, b in pairwise(edges)]
    first_slot = int(rng.choice([-(1 << 60), 9]))
    want = gate(events, WIRING.tolist(), clock, first_slot, half_width, dead_ticks * ONE, random, 256)
    assert run(chunks, clock, first_slot, half_width, dead_ticks * ONE, random, 256) == want


@pytest.mark.parametrize("seed", range(8))
def test_the_first_event_that_goes_back_is_named_in_a_block(seed):
    rng = np.random.default_rng(seed)
    n, bad = 3000, int(rng.integers(1, 3000))
    ticks = np.cumsum(rng.integers(0, 9, n))
    ticks[bad] = [ticks[bad - 1] - 1, -(1 << 63), (1 << 63) - 1, 1 << 62][seed % 4]
    zeros = np.zeros(n, np.uint8)
    state, out = np.empty(8, np.int64), np.empty(n + 1, np.uint8)
    reset_state(state)
    done = gate_events(
        ticks, zeros + np.uint8(1), zeros, WIRING, 0, 0, 0, 25 * ONE, -(1 << 60), ONE, 0, np.zeros(n, np.uint8), False,
        state, np.empty(n + 1, np.int64), out, out.copy(), np.zeros(15, np.int64), np.zeros(9, np.int64),
    )  # fmt: skip
    assert done == bad


@pytest.mark.parametrize("table", [{1: 0, 2: 1, 3: 2}, {1: 0, 2: 1, 3: 2, 4: 3, 5: 3}, {1: 0, 2: 1, 3: 2, 4: 4}])
def test_a_wiring_without_each_detector_once_is_refused(table):
    wiring = np.full(256, 255, np.uint8)
    for place, detector in table.items():
        wiring[place] = detector
    empty, out, nothing = np.empty(0, np.int64), np.empty(1, np.uint8), np.empty(0, np.uint8)
    with pytest.raises(ValueError, match="once"):
        gate_events(
            empty, nothing, nothing, wiring, 0, 0, 0, 25 * ONE, 0, ONE, 0, np.zeros(2, np.uint8), False,
            np.zeros(8, np.int64), np.empty(1, np.int64), out, out, np.zeros(15, np.int64), np.zeros(9, np.int64),
        )  # fmt: skip


def simple(events, dead_time=0, random=b"\0" * 64):
    return run([events], (0, 0, 0, 25 * ONE), 0, 3 * ONE, dead_time, random, 25)


def test_a_slot_split_between_chunks_is_one_outcome():
    events = [(25, 1, 0), (26, 2, 0)]
    clock = (0, 0, 0, 25 * ONE)
    whole = run([events], clock, 0, 3 * ONE, 0, b"\2" * 64, 25)
    assert whole[0] == [(1, 0, 1)]
    assert run([events[:1], [], events[1:]], clock, 0, 3 * ONE, 0, b"\2" * 64, 25) == whole


@pytest.mark.parametrize(("byte", "outcome"), [(0, (1, 0, 0)), (1, (1, 1, 1)), (2, (1, 0, 0)), (3, (1, 1, 1))])
def test_clicks_in_both_bases_draw_the_basis_only(byte, outcome):
    assert simple([(25, 1, 0), (25, 4, 0)], random=bytes([byte]) * 64)[0] == [outcome]


def test_any_detector_keeps_the_others_out_while_it_is_dead():
    # 100 ticks of dead time: the click at 125 is dropped though another detector made the one at 50.
    events = [(50, 1, 0), (125, 4, 0), (325, 2, 0)]
    outcomes, counts, *_ = simple(events, dead_time=100 * ONE)
    assert [slot for slot, _, _ in outcomes] == [2, 13]
    assert counts["dead_time"] == 1


def test_the_dead_time_is_counted_to_the_opening_of_the_window():
    # The click at 51 lies in the window of slot 2, which opens at 47: 17 ticks after the click at 30.
    events = [(30, 1, 0), (51, 2, 0)]
    assert [slot for slot, _, _ in simple(events, dead_time=17 * ONE)[0]] == [2]
    assert simple(events, dead_time=17 * ONE + 1)[0] == []


def test_a_click_outside_the_window_is_dropped_and_still_makes_its_detector_dead():
    outcomes, counts, *_ = simple([(40, 1, 0), (50, 2, 0)], dead_time=50 * ONE)
    assert outcomes == []
    assert (counts["outside_window"], counts["dead_time"]) == (1, 1)


def test_time_that_goes_backwards_is_named():
    ticks, zeros = np.array([50, 75, 60], np.int64), np.zeros(3, np.uint8)
    state = np.empty(8, np.int64)
    reset_state(state)
    done = gate_events(
        ticks, zeros + np.uint8(1), zeros, WIRING, 0, 0, 0, 25 * ONE, 0, ONE, 0, np.zeros(9, np.uint8), False, state,
        np.empty(4, np.int64), np.empty(4, np.uint8), np.empty(4, np.uint8), np.zeros(15, np.int64), np.zeros(9, np.int64),
    )  # fmt: skip
    assert done == 2


@pytest.mark.parametrize("broken", range(6))
def test_arrays_that_do_not_fit_are_refused(broken):
    sizes = [2, 256, 2, 2, 8, 15]
    sizes[broken] -= 1
    n_channel, n_wiring, n_out, n_random, n_state, n_counts = sizes
    with pytest.raises(ValueError, match=r"must|need"):
        gate_events(
            np.zeros(2, np.int64), np.zeros(n_channel, np.uint8), np.zeros(2, np.uint8), np.zeros(n_wiring, np.uint8),
            0, 0, 0, 25 * ONE, 0, ONE, 0, np.zeros(n_random + 1, np.uint8), False, np.zeros(n_state, np.int64),
            np.empty(n_out + 1, np.int64), np.empty(3, np.uint8), np.empty(3, np.uint8), np.zeros(n_counts, np.int64),
            np.zeros(9, np.int64),
        )  # fmt: skip
