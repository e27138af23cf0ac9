"""Coincidences of a stream do not depend on its cuts; accidentals are estimated; bad streams are refused."""

import math
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.errors import EventError, NonMonotonicTimeError
from qkdhw.events.coincidences import (
    CoincidenceFinder,
    CoincidenceStatistics,
    CoincidenceWindow,
    count_coincidences,
    find_coincidences,
)
from qkdhw.model import DetectionBlock

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from oracle_coincidences import all_pairs, one_partner, tuples

PS = Fraction(1)
windows = st.tuples(st.integers(-20, 20), st.integers(0, 30)).map(lambda w: CoincidenceWindow(w[0], w[0] + w[1]))


def block(events, tick_ps=PS):
    columns = (np.array([event[i] for event in events], t) for i, t in enumerate((np.int64, np.uint8, np.uint8)))
    return DetectionBlock(*columns, tick_ps)


@st.composite
def streams(draw):
    steps = draw(st.lists(st.integers(0, 3) | st.integers(0, 30), max_size=30))
    events = [
        (time, draw(st.integers(0, 4)), draw(st.sampled_from([0, 0, 0, 0, 1, 2]))) for time in np.cumsum(steps).tolist()
    ]
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=4)))
    return events, [events[a:b] for a, b in pairwise([0, *cuts, len(events)])]


@given(
    streams(),
    st.permutations(range(5)),
    st.integers(2, 4),
    windows,
    st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 4)), windows, max_size=3),
    st.booleans(),
    st.lists(st.integers(-40, 40), max_size=2),
)
def test_any_cut_gives_the_coincidences_of_the_whole(stream, permutation, order, window, special, single, delays):
    events, chunks = stream
    channels = permutation[:order]
    special = {pair: w for pair, w in special.items() if pair[0] != pair[1] and set(pair) <= set(channels)}
    special = {pair: w for pair, w in special.items() if pair[::-1] not in special or pair < pair[::-1]}
    finder = CoincidenceFinder(
        channels, window, PS, pair_windows=special, one_partner=single, accidental_delays_ticks=delays
    )
    found = [finder.feed(block(chunk)) for chunk in chunks] + [finder.flush()]
    times = [[t for t, c, kind in events if c == channel and kind == 0] for channel in channels]

    def expected(delay):
        limits = {}
        for d in range(order):
            for c in range(d):
                w = special.get((channels[c], channels[d]), window)
                if (channels[d], channels[c]) in special:
                    w = special[channels[d], channels[c]].reversed()
                limits[c, d] = (w.low_ticks + (d - c) * delay, w.high_ticks + (d - c) * delay)
        return tuples(times, limits, single=single)

    want = [[times[c][i] for c, i in enumerate(row)] for row in expected(0)]
    assert np.concatenate([part.time_ticks for part in found]).tolist() == want
    assert sum(map(len, found)) == len(want)
    statistics = finder.statistics
    assert statistics.n_singles == tuple(map(len, times))
    assert statistics.n_coincidences == len(want)
    assert statistics.n_delayed == tuple(len(expected(delay)) for delay in delays)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("order", [2, 3])
def test_counting_alone_counts_the_same(order, single):
    rng = np.random.default_rng(1)
    events = [
        (t, c, 0) for t, c in zip(np.cumsum(rng.integers(0, 9, 600)).tolist(), rng.integers(1, 4, 600), strict=True)
    ]
    finders = [
        CoincidenceFinder(range(1, order + 1), CoincidenceWindow(-9, 9), PS, one_partner=single, collect=collect)
        for collect in (True, False)
    ]
    for finder in finders:
        for part in (events[:250], events[250:]):
            finder.feed(block(part))
        assert len(finder.flush().time_ticks.T) == order
    assert finders[0].statistics == finders[1].statistics
    assert finders[0].statistics.n_coincidences > 50


@given(st.lists(st.integers(0, 200), max_size=20), st.lists(st.integers(0, 200), max_size=20), windows)
def test_functions_equal_the_oracle(first, second, window):
    first, second = sorted(first), sorted(second)
    arrays = np.array(first, np.int64), np.array(second, np.int64)
    for single, oracle in ((False, all_pairs), (True, one_partner)):
        want = oracle(first, second, window.low_ticks, window.high_ticks)
        assert count_coincidences(*arrays, window, one_partner=single) == len(want)
        found = find_coincidences(*arrays, window, one_partner=single)
        assert list(zip(*(index.tolist() for index in found), strict=True)) == want


def test_accidentals_of_independent_channels_are_what_their_rates_say():
    """Two channels of 2e5 events in 1e9 ticks, window 201 ticks, true pairs on top."""
    rng = np.random.default_rng(7)
    first, second = rng.integers(0, 10**9, (2, 200_000))
    pairs = rng.integers(0, 10**9, 5000)
    times = np.concatenate((first, second, pairs, pairs + rng.integers(-50, 51, 5000)))
    channel = np.repeat(np.array([1, 2, 1, 2], np.uint8), [200_000, 200_000, 5000, 5000])
    order = np.argsort(times, kind="stable")
    stream = DetectionBlock(times[order], channel[order], np.zeros(len(times), np.uint8), PS)
    delays = [k * 10_000 for k in range(1, 11)]
    finder = CoincidenceFinder((1, 2), CoincidenceWindow(-100, 100), PS, accidental_delays_ticks=delays)
    finder.feed(stream)
    finder.flush()
    statistics = finder.statistics
    expected = 205_000**2 * 201 / 1e9
    assert abs(statistics.accidentals - expected) < 5 * statistics.accidentals_error
    assert abs(statistics.net_coincidences - 5000) < 5 * math.sqrt(statistics.n_coincidences)
    assert statistics.coincidences_to_accidentals == statistics.n_coincidences / statistics.accidentals


def test_a_dip_has_a_ratio_below_one_and_none_below_zero():
    assert CoincidenceStatistics((9, 9), 5, (10, 10)).coincidences_to_accidentals == 0.5
    assert CoincidenceStatistics((9, 9), 0, (10, 10)).coincidences_to_accidentals == 0


def test_statistics_without_delayed_windows_say_so():
    assert math.isnan(CoincidenceStatistics((1, 1), 1, ()).accidentals)
    assert math.isnan(CoincidenceStatistics((1, 1), 1, ()).accidentals_error)
    assert math.isnan(CoincidenceStatistics((1, 1), 1, ()).coincidences_to_accidentals)
    assert math.isinf(CoincidenceStatistics((1, 1), 1, (0,)).coincidences_to_accidentals)
    assert math.isnan(CoincidenceStatistics((1, 1), 0, (0,)).coincidences_to_accidentals)


def test_a_window_in_picoseconds_is_rounded_inwards():
    tick = Fraction(1000, 256)
    assert CoincidenceWindow.around(1000, tick) == CoincidenceWindow(-128, 128)
    assert CoincidenceWindow.around(999, tick, centre_ps=tick) == CoincidenceWindow(-126, 128)
    assert CoincidenceWindow(-3, 5).delayed(10) == CoincidenceWindow(7, 15)
    assert CoincidenceWindow(-3, 5).reversed() == CoincidenceWindow(-5, 3)
    with pytest.raises(ValueError, match="empty"):
        CoincidenceWindow.around(1, tick, centre_ps=tick / 2)


def test_memory_holds_the_window_and_not_the_stream():
    finder = CoincidenceFinder((1, 2, 3), CoincidenceWindow(-5, 5), PS, accidental_delays_ticks=[100])
    for start in range(0, 50_000, 1000):
        finder.feed(block([(t, t % 3 + 1, 0) for t in range(start, start + 1000)]))
        kept = [len(times) for scan in finder._scans for times in scan._pending.times]
        assert max(kept) <= 210


@pytest.mark.parametrize("chunks", [[[(5, 1, 0), (4, 2, 0)]], [[(5, 1, 0)], [(4, 2, 0)]], [[(5, 1, 1)], [(4, 2, 0)]]])
def test_time_must_not_go_backwards(chunks):
    finder = CoincidenceFinder((1, 2), CoincidenceWindow(-5, 5), PS)
    for chunk in chunks[:-1]:
        finder.feed(block(chunk))
    with pytest.raises(NonMonotonicTimeError) as caught:
        finder.feed(block(chunks[-1]))
    assert caught.value.index == len(chunks[-1]) - 1
    finder.feed(block([(6, 2, 0)]))


def test_functions_refuse_what_is_not_sorted():
    good, bad = np.array([1, 2], np.int64), np.array([1, 5, 4], np.int64)
    for single in (False, True):
        for call in (count_coincidences, find_coincidences):
            for pair in ((good, bad), (bad, good)):
                with pytest.raises(NonMonotonicTimeError) as caught:
                    call(*pair, CoincidenceWindow(0, 0), one_partner=single)
                assert caught.value.index == 2


def test_bad_arguments_are_refused():
    window = CoincidenceWindow(0, 0)
    for channels in ((1,), (1, 1), range(17)):
        with pytest.raises(ValueError, match="2 to 16 different"):
            CoincidenceFinder(channels, window, PS)
    with pytest.raises(ValueError, match="0 to 255"):
        CoincidenceFinder((1, 256), window, PS)
    for pair in ((1, 1), (1, 3), (3, 1)):
        with pytest.raises(ValueError, match="no two of"):
            CoincidenceFinder((1, 2), window, PS, pair_windows={pair: window})
    with pytest.raises(ValueError, match="out of range"):
        CoincidenceWindow(0, 1 << 60)
    with pytest.raises(EventError, match="tick changed"):
        CoincidenceFinder((1, 2), window, PS).feed(block([], Fraction(2)))
