"""Counts over time and intervals: no event is lost however a stream is cut, and a long stream keeps its sums."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from qkdhw.bench.curves import TIME_BINS, EventCurves
from qkdhw.model import DetectionBlock, EventKind

TICK_PS = Fraction(125)


def block(ticks, channel):
    ticks = np.asarray(ticks, np.int64)
    return DetectionBlock(ticks, np.asarray(channel, np.uint8), np.zeros(len(ticks), np.uint8), TICK_PS)


@pytest.fixture
def stream():
    rng = np.random.default_rng(5)
    return np.cumsum(rng.integers(0, 5000, 40_000)) + 10**12, rng.integers(1, 4, 40_000).astype(np.uint8)


def curves_of(ticks, channel, cut):
    curves = EventCurves(TICK_PS)
    for at in range(0, len(ticks), cut):
        curves.add(block(ticks[at : at + cut], channel[at : at + cut]))
    return curves


def test_the_sums_are_those_of_numpy(stream):
    ticks, channel = stream
    curves = curves_of(ticks, channel, 7001)
    assert curves.channels == (1, 2, 3)
    width = round(curves.bin_s * 1e12 / 125)
    assert width & (width - 1) == 0
    for number in curves.channels:
        own = ticks[channel == number]
        whole = (ticks[-1] + 1 - ticks[0]) // width
        counted = np.bincount((own - ticks[0]) // width, minlength=whole)[:whole]
        assert np.array_equal(np.rint(curves.rates_hz(number) * curves.bin_s), counted)
        assert TIME_BINS // 2 <= len(counted) <= TIME_BINS
        edges_ticks = np.rint(curves.interval_edges_ps / 125)
        gaps = np.diff(own)
        expected = [np.count_nonzero((gaps >= a) & (gaps < b)) for a, b in pairwise(edges_ticks)]
        assert curves.intervals(number).tolist() == expected


@pytest.mark.parametrize("cut", [1, 97, 40_000])
def test_cuts_change_nothing(stream, cut):
    ticks, channel = (part[:3000] for part in stream)
    one, other = curves_of(ticks, channel, cut), curves_of(ticks, channel, 1000)
    assert one.bin_s == other.bin_s
    for number in (1, 2, 3):
        assert np.array_equal(one.rates_hz(number), other.rates_hz(number))
        assert np.array_equal(one.intervals(number), other.intervals(number))


def test_steady_light_does_not_fall_at_the_end_of_a_stream():
    for last in (5000, 5100, 5117):  # bins of 8 ticks; some end in the last of them
        curves = EventCurves(TICK_PS)
        curves.add(block(np.arange(last), np.ones(last)))
        assert np.allclose(curves.rates_hz(1), 8e9)
        assert len(curves.rates_hz(1)) == last // 8
    curves = EventCurves(TICK_PS)
    curves.add(block([7, 7], [1, 1]))
    assert np.allclose(curves.rates_hz(1), 2 * 8e9)


def test_only_photons_count_and_an_early_event_counts_in_the_first_bin():
    curves = EventCurves(TICK_PS)
    curves.add(DetectionBlock(np.array([5]), np.array([1], np.uint8), np.array([EventKind.DUMMY], np.uint8), TICK_PS))
    assert curves.channels == ()
    curves.add(block([100, 90, 101], [2, 2, 2]))
    assert np.rint(curves.rates_hz(2) * curves.bin_s).tolist() == [2, 1]
