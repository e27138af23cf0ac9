"""Tagger equals its NumPy oracle: ticks, order, what waits; its noise and its uneven bins are as they should be."""

import math

import numpy as np
import oracle_tagger as oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from statistics_of_counts import LEAST_P, p_chi_square, p_gauss, p_kolmogorov

from qkdhw_emulators._optics.tagger import Tagger
from qkdhw_emulators.optics.detection import bin_edges


def merged(tagger, end_tick):
    n = tagger.waiting
    out = np.full(n, -1, np.int64), np.full(n, 99, np.uint8), np.full(n, 99, np.uint8), np.full(n, -9, np.int64)
    n = tagger.merge(end_tick, *out)
    return list(zip(*(column[:n].tolist() for column in out), strict=True))


def add(tagger, channel, time_ps, first, begin=(0, 0.0, 1.0)):
    n = len(time_ps)
    cause, origin = (np.arange(n) % 5).astype(np.uint8), np.arange(first, first + n)
    tagger.add(np.array(time_ps, float), np.full(n, channel, np.uint8), cause, origin, *begin)
    return cause.tolist(), origin.tolist()


times = st.lists(st.floats(-2000, 1e6), max_size=40)
EDGES = bin_edges(0.7, np.random.SFC64(4))


@given(
    channels=st.lists(st.tuples(times, times, st.floats(-500, 500)), min_size=1, max_size=8),
    begin=st.tuples(st.integers(0, 1 << 60), st.floats(0, 3.9), st.floats(0.999, 1.001)),
    tick_ps=st.sampled_from([1.0, 3.90625, 125.0, 0.001]),
    uneven=st.booleans(),
)
@example(channels=[([-1e-20], [-1e-20], 0.0)], begin=(0, 0.0, 1.0), tick_ps=1.0, uneven=True)
@settings(max_examples=150)
def test_two_cells_are_as_the_oracle_says(channels, begin, tick_ps, uneven):
    edges = EDGES if uneven else None
    tagger = Tagger(np.random.SFC64(1), [skew for *_, skew in channels], tick_ps=tick_ps, bin_edges=edges)
    waits, first = [[] for _ in channels], 0
    begin_2 = begin[0] + int(9e5 / tick_ps), begin[1] / 2, 1.0
    last = -(1 << 62)
    for cell, (where, end_ps) in enumerate(((begin, 9e5), (begin_2, 2e7))):
        for c, (*cells, skew_ps) in enumerate(channels):
            cause, origin = add(tagger, c, cells[cell], first, where)
            tick = np.maximum(oracle.ticks(cells[cell], *where, skew_ps, tick_ps, edges), last)
            waits[c] += list(zip(tick.tolist(), cause, origin, strict=True))
            first += len(cause)
        last = tagger.tick_at(end_ps, *where)
        assert last == oracle.ticks([end_ps], *where, 0.0, tick_ps, edges)[0]
        want, waits = oracle.merge(waits, last)
        assert merged(tagger, last) == want
        assert tagger.waiting == sum(map(len, waits))
    assert tagger.waiting == 0


@pytest.mark.parametrize("skew_ps", [0, 50_000, 5_000_000])
def test_order_is_the_same_however_far_clicks_are_from_their_place(skew_ps):
    """50 ns puts some tens of clicks before a click that comes late, 5 us thousands."""
    rng = np.random.default_rng(7)
    n, skews = 30_000, [0.0, float(skew_ps), -float(skew_ps)]
    time_ps, channel = np.sort(rng.integers(0, 20_000, n)) * 1000.0, rng.integers(0, 3, n).astype(np.uint8)
    tagger = Tagger(np.random.SFC64(1), skews, tick_ps=1000.0)
    got = []
    for part in np.array_split(np.arange(n), 7):
        tagger.add(time_ps[part], channel[part], np.zeros(len(part), np.uint8), part, 100_000, 0.0, 1.0)
        got += merged(tagger, 100_000 + int((time_ps[part[-1]] - skew_ps) // 1000))
    got += merged(tagger, 1 << 60)
    tick = 100_000 + (time_ps + np.array(skews)[channel]).astype(np.int64) // 1000
    order = np.lexsort((np.arange(n), channel, tick))
    assert [event[0] for event in got] == tick[order].tolist()
    assert [event[1] for event in got] == channel[order].tolist()
    assert [event[3] for event in got] == order.tolist()


def test_two_clicks_of_a_channel_in_a_tick_stay_and_late_ones_never_go_back():
    tagger = Tagger(np.random.SFC64(1), [0.0, 0.0], tick_ps=100.0)
    add(tagger, 1, [250, 201, 1000], 10)
    add(tagger, 0, [299], 20)
    assert merged(tagger, 10) == [(2, 0, 0, 20), (2, 1, 0, 10), (2, 1, 1, 11)]
    add(tagger, 0, [500], 30)
    assert merged(tagger, 11) == [(10, 0, 0, 30), (10, 1, 2, 12)]


@pytest.mark.parametrize("noise_ps", [0.0, 30.0])
def test_noise_is_gaussian(noise_ps):
    tagger = Tagger(np.random.SFC64(2), [0.0], tick_ps=0.001, noise_ps=noise_ps)
    true_ps = np.arange(50_000) * 1000.0
    add(tagger, 0, true_ps, 0)
    event = np.array(merged(tagger, 1 << 60))
    late_ps = event[:, 0] / 1000 - true_ps[event[:, 3]]
    if not noise_ps:
        assert not late_ps.any()
        return
    cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
    assert p_kolmogorov(late_ps, lambda x: cdf(x / 30)) > LEAST_P
    assert p_kolmogorov(late_ps, lambda x: cdf(x / 33)) < LEAST_P


def test_uneven_bins_are_a_pattern_that_light_at_any_time_shows():
    widths = np.diff(EDGES)
    assert math.isclose(np.abs(widths - 1).max(), 0.7)
    assert EDGES[0] == 0
    assert EDGES[256] == 256
    tagger = Tagger(np.random.SFC64(3), [0.0], tick_ps=10.0, bin_edges=EDGES)
    add(tagger, 0, np.sort(np.random.default_rng(3).uniform(0, 1e9, 1_000_000)), 0, (77, 3.0, 1.0))
    counts = np.bincount([tick % 256 for tick, *_ in merged(tagger, 1 << 60)], minlength=256)
    assert p_chi_square(counts, 1_000_000 / 256 * widths) > LEAST_P
    assert p_chi_square(counts, np.full(256, 1_000_000 / 256)) < LEAST_P
    assert p_gauss(counts[10], 1_000_000 / 256 * widths[11], 70) < LEAST_P
    assert bin_edges(0.0, np.random.SFC64(4)) is None


def test_what_cannot_be_is_refused():
    bits = np.random.SFC64(1)
    for n in (0, 9):
        with pytest.raises(ValueError, match="1 to 8"):
            Tagger(bits, [0.0] * n, tick_ps=1.0)
    with pytest.raises(ValueError, match="257"):
        Tagger(bits, [0.0], tick_ps=1.0, bin_edges=EDGES[:-1])
    with pytest.raises(ValueError, match="rise"):
        Tagger(bits, [0.0], tick_ps=1.0, bin_edges=np.r_[0.0, 2.0, 1.0, np.arange(3.0, 257)])
    tagger = Tagger(bits, [0.0, 0.0], tick_ps=1.0)
    f, u, i = np.zeros(2), np.zeros(2, np.uint8), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="channel 2"):
        tagger.add(f, u + 2, u, i, 0, 0.0, 1.0)
    with pytest.raises(ValueError, match="lengths"):
        tagger.add(f, u, u[:1], i, 0, 0.0, 1.0)
    tagger.add(f, u, u, i, 0, 0.0, 1.0)
    with pytest.raises(ValueError, match="shorter"):
        tagger.merge(5, i[:1], u, u, i)
    for wrong in ({"tick_ps": 0.0}, {"tick_ps": np.nan}, {"tick_ps": 1.0, "noise_ps": np.inf}):
        with pytest.raises(ValueError, match=r"tick_ps|noise_ps"):
            Tagger(bits, [0.0], **wrong)
    with pytest.raises(ValueError, match="rise"):
        Tagger(bits, [0.0], tick_ps=1.0, bin_edges=np.r_[0.0, np.nan, np.arange(2.0, 257)])
    with pytest.raises(TypeError):
        Tagger.__new__(Tagger)


@pytest.mark.parametrize("edges", [None, EDGES])
@pytest.mark.parametrize("wrong_ps", [-1e30, 1e30, 1.1e15, np.nan, np.inf])
def test_times_that_are_no_times_are_refused(edges, wrong_ps):
    tagger = Tagger(np.random.SFC64(1), [0.0, wrong_ps], tick_ps=1.0, bin_edges=edges)
    with pytest.raises(ValueError, match="at most 1e15"):
        add(tagger, 1, [5.0, 7.0], 0)
    with pytest.raises(ValueError, match="at most 1e15"):
        add(tagger, 0, [wrong_ps], 0)
    with pytest.raises(ValueError, match="at most 1e15"):
        tagger.tick_at(wrong_ps, 0, 0.0, 1.0)
    with pytest.raises(ValueError, match="begin_tick"):
        tagger.tick_at(0.0, (1 << 62) + 1, 0.0, 1.0)
    assert tagger.waiting == 0


def test_after_a_flush_ticks_may_be_lower():
    tagger = Tagger(np.random.SFC64(1), [0.0, 0.0], tick_ps=1.0)
    add(tagger, 0, [900, 2000], 0)
    add(tagger, 1, [1500], 5)
    assert [event[0] for event in merged(tagger, 1000)] == [900]
    out = np.empty(2, np.int64), np.empty(2, np.uint8), np.empty(2, np.uint8), np.empty(2, np.int64)
    assert tagger.flush(*out) == 2
    assert out[0].tolist() == [1500, 2000]
    add(tagger, 0, [10], 9)
    assert merged(tagger, 11) == [(10, 0, 0, 9)]
