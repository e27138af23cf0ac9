"""Clocks of two sites that share photon pairs: found at every offset and rate asked for, and never where there is none.

The long campaigns that the short ones here stand for: tests/benchmarks/campaign_alignment.py.
"""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from pair_streams import TICK_PS, pair_streams
from qkdhw.errors import ClockAlignmentError, NonMonotonicTimeError
from qkdhw.events.pair_alignment import align_pairs
from qkdhw.events.pair_correlation import PairClock, Window, find_pair_peak, poisson_log_tail
from qkdhw.model import DetectionBlock

MAX_OFFSET_S = 0.1
MAX_PPM = 20.0


def block(ticks, tick_ps=TICK_PS):
    return DetectionBlock(ticks, np.ones(len(ticks), np.uint8), np.zeros(len(ticks), np.uint8), tick_ps)


def blocks(streams):
    return block(streams.a_ticks, streams.a_tick_ps), block(streams.b_ticks, streams.b_tick_ps)


def aligned_anywhere(seed, **options):
    """Align streams with an offset and a rate drawn from all that is asked for; return streams and alignment."""
    rng = np.random.default_rng([seed, 1])
    rate = rng.uniform(-MAX_PPM, MAX_PPM) * 1e-6
    # The offset is what it is at the moment looked at; the clocks part by 40 us until then.
    offset_s = rng.uniform(-1, 1) * (MAX_OFFSET_S - 50e-6)
    streams = pair_streams([seed, 2], offset_s=offset_s, rate=rate, **options)
    return streams, align_pairs(*blocks(streams), max_offset_s=MAX_OFFSET_S, max_ppm=MAX_PPM)


def assert_within_a_bin(streams, found):
    assert found.resolution_ticks <= 8  # 1 ns
    assert abs(streams.error_ticks(found.clock)) <= found.resolution_ticks
    assert abs(float(found.relative_rate) - streams.rate) < 1e-9
    assert found.significance >= 6


@pytest.mark.parametrize("seed", range(4))
def test_the_offset_is_found_within_one_bin(seed):
    assert_within_a_bin(*aligned_anywhere(seed))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_corners_of_the_search_are_reached(sign):
    for other in (-1, 1):
        streams = pair_streams(5, offset_s=sign * (MAX_OFFSET_S - 50e-6), rate=other * MAX_PPM * 1e-6)
        assert_within_a_bin(streams, align_pairs(*blocks(streams), max_offset_s=MAX_OFFSET_S, max_ppm=MAX_PPM))


@pytest.mark.parametrize("apart_s", [-90_000, 43_200.25])
def test_clocks_that_share_no_moment_are_found_where_a_guess_says(apart_s):
    """Which clock began first, and how long ago, makes no difference: a guess moves times by whole ticks."""
    streams = pair_streams(5, offset_s=0.03, rate=1e-5)
    near = align_pairs(*blocks(streams))
    moved = round(Fraction(apart_s) * 10**12 / streams.b_tick_ps)
    far = block(streams.b_ticks + moved, streams.b_tick_ps)
    with pytest.raises(ClockAlignmentError, match="overlap") as refused:
        align_pairs(blocks(streams)[0], far)
    assert "--offset" in refused.value.remedy
    assert "--max-offset" in refused.value.remedy
    found = align_pairs(blocks(streams)[0], far, offset_s=apart_s)
    assert found.clock == replace(near.clock, ref_b_ticks=near.clock.ref_b_ticks + moved)
    assert found.relative_rate == near.relative_rate


@pytest.mark.parametrize("turned", [False, True])
def test_light_that_is_switched_on_late_in_one_file_does_not_hide_the_pairs(turned):
    """Where one stream gets brighter is a high, wide peak, which is no clock: the search goes on behind it."""
    streams = pair_streams(5, singles=(5e4, 2e4), pairs=3e3, span_s=2.0, offset_s=0.01, rate=1e-5)
    shift = int(10 * 10**12 / streams.b_tick_ps)
    dark = np.sort(np.random.default_rng(1).integers(0, shift, 70_000))
    a, b = block(streams.a_ticks), block(np.concatenate((dark, streams.b_ticks + shift)))
    if turned:
        found = align_pairs(b, a, max_offset_s=15)
        assert abs(float(found.relative_rate) + 1e-5) < 1e-8
    else:
        found = align_pairs(a, b, max_offset_s=15)
        assert abs(streams.error_ticks(replace(found.clock, ref_b_ticks=found.clock.ref_b_ticks - shift))) <= 8
    assert found.significance > 20


def test_sites_may_count_in_different_ticks():
    streams = pair_streams(
        6, offset_s=-0.0123, rate=7e-6, singles=(2e5, 5e4), pairs=5e3, span_s=1.0,
        a_tick_ps=Fraction(125, 32), b_tick_ps=Fraction(81),
    )  # fmt: skip
    found = align_pairs(*blocks(streams))
    assert abs(streams.error_ticks(found.clock)) * 81 <= 1000
    assert abs(float(found.relative_rate) - 7e-6) < 1e-9


@pytest.mark.parametrize("ticks", [0, 1, 3, 5, 100_001])
def test_a_difference_of_whole_ticks_is_found_exactly(ticks):
    a = pair_streams(1).a_ticks
    found = align_pairs(block(a), block(a + ticks))
    assert abs(found.clock.map_ticks(found.clock.ref_a_ticks) - found.clock.ref_a_ticks - ticks) < 1e-5
    assert abs(found.relative_rate) < 1e-14


@pytest.mark.parametrize("rate", [0.0, 3e-6])
def test_a_peak_narrower_than_a_column_is_placed_by_its_pairs(rate):
    for part in (0.0, 0.3, 0.5):  # of a tick
        streams = pair_streams(
            [int(10 * part), 9], pairs=1e4, jitter_s=5e-11, offset_s=1e-4 + part * 125e-12, rate=rate
        )
        found = align_pairs(*blocks(streams))
        assert found.resolution_ticks == 8
        assert abs(streams.error_ticks(found.clock)) < 0.03


def test_bright_short_streams_need_no_more_than_they_hold():
    streams = pair_streams(7, singles=(1e6, 3e5), pairs=1e5, span_s=0.05, offset_s=2e-3, rate=-2e-5)
    found = align_pairs(*blocks(streams), max_offset_s=5e-3)
    assert abs(streams.error_ticks(found.clock)) <= found.resolution_ticks


def test_coarse_pulses_need_a_coarse_resolution():
    streams = pair_streams(8, singles=(5e4, 5e4), pairs=5e3, offset_s=0.01, jitter_s=1e-7, span_s=1.0)
    found = align_pairs(*blocks(streams), resolution_ps=2e5)
    assert abs(streams.error_ticks(found.clock)) <= found.resolution_ticks
    with pytest.raises(ClockAlignmentError, match="finer"):
        align_pairs(*blocks(streams), resolution_ps=1000)


@pytest.mark.parametrize("seed", range(2))
def test_streams_without_pairs_are_refused(seed):
    streams = pair_streams([seed, 9], pairs=0)
    with pytest.raises(ClockAlignmentError, match="no common offset"):
        align_pairs(*blocks(streams), max_bins=1 << 16)


def test_light_that_flickers_alike_at_both_sites_is_no_lock():
    rng = np.random.default_rng(10)

    def flickering():
        t = np.sort(rng.uniform(0, 2.0, 400_000))
        return t[rng.random(len(t)) < 0.5 + 0.45 * np.sin(2 * np.pi * 100 * t)]

    a, b = ((flickering() / 125e-12).astype(np.int64) for _ in range(2))
    with pytest.raises(ClockAlignmentError):
        align_pairs(block(a), block(b), max_ppm=1.0, max_bins=1 << 17)


def test_the_pulse_of_a_pair_is_told_from_the_next():
    streams = pair_streams(15, singles=(1e5, 1e5), pairs=3e3, span_s=1.0, offset_s=0.037, rate=1.3e-5, pulse_s=12.5e-9)
    assert_within_a_bin(streams, align_pairs(*blocks(streams)))


def test_pulses_with_more_accidentals_than_pairs_are_no_lock():
    # Every pulse coincides with every other: 10^4 accidentals a second, 3,000 pairs.
    streams = pair_streams(16, singles=(1e5, 1e5), pairs=3e3, span_s=1.0, offset_s=0.037, rate=1.3e-5, pulse_s=1e-6)
    try:
        found = align_pairs(*blocks(streams))
    except ClockAlignmentError:
        return
    assert_within_a_bin(streams, found)


@pytest.mark.parametrize(
    ("pairs", "rate", "is_found"), [(1000, 0.0, True), (100, 0.0, False), (1000, 1e-6, True), (1000, 5e-6, False)]
)
def test_success_follows_the_design_formula(pairs, rate, is_found):
    # 2^20 bins of 256 ns, 0.5 s: z = 0.75 pairs sqrt(2^20) / singles is 15.4 and 1.5; at 5 ppm the peak is ten bins wide.
    streams = pair_streams([pairs, 17], pairs=pairs, span_s=0.5, offset_s=0.0123, rate=rate)
    window = Window(0, 4 * 10**9, 1, 1 << 30, 31, 1 << 20)
    peak = find_pair_peak(streams.a_ticks, streams.b_ticks, PairClock.nominal(TICK_PS, TICK_PS), window, 0.0)
    assert (abs(streams.error_ticks(peak.clock)) <= 2 * 2048) == is_found
    if rate == 0:
        assert abs(peak.pairs / math.sqrt(peak.background) - (15.4 if is_found else 5.1)) < 4
    assert (peak.global_log_p < -20.7) == is_found  # 6 standard deviations


def test_an_offset_or_a_rate_beyond_what_is_searched_is_refused():
    for options in ({"offset_s": 0.03}, {"rate": 60e-6}):
        streams = pair_streams(11, singles=(2e4, 2e4), pairs=1e3, span_s=1.0, **options)
        with pytest.raises(ClockAlignmentError):
            align_pairs(*blocks(streams), max_offset_s=0.02, max_ppm=10, max_bins=1 << 17)


def test_a_rate_a_little_beyond_what_is_searched_is_found_and_all_slopes_looked_at_are_counted():
    streams = pair_streams(19, rate=3e-6)
    found = [align_pairs(*blocks(streams), max_ppm=max_ppm) for max_ppm in (0, 1e-6, 20)]
    for each in found:
        assert_within_a_bin(streams, each)
    assert found[0].significance == found[1].significance  # few rates searched, but no fewer slopes


def test_the_reported_chance_is_not_smaller_than_the_true_one():
    # Without pairs, at most one search in twenty may claim a chance of 5 % or less.
    runs, claims = 200, 0
    window = Window(1 << 24, 1 << 27, 2, 1 << 24, 28, 1 << 13)
    for seed in range(runs):
        streams = pair_streams([seed, 12], pairs=0, span_s=0.06, singles=(2e5, 2e5))
        peak = find_pair_peak(streams.a_ticks, streams.b_ticks, PairClock.nominal(TICK_PS, TICK_PS), window, 1e-3)
        claims += peak.global_log_p <= math.log(0.05)
    assert claims <= 22  # 10 expected; 22 has a chance of 4e-4


def test_the_bound_of_the_tail_lies_above_the_tail_and_near_it():
    for mean in (0.01, 0.7, 5.0, 300.0, 4e4):
        for sigmas in (2, 8):
            count = math.ceil(mean + sigmas * math.sqrt(mean) + 3)
            first = count * math.log(mean) - mean - math.lgamma(count + 1)
            ratios = np.cumprod(mean / np.arange(count + 1.0, count + 2000))
            tail = first + math.log(1 + ratios.sum())
            assert tail <= poisson_log_tail(count, mean) + 1e-9 <= tail + 0.3
    assert poisson_log_tail(3, 5.0) == 0.0
    assert poisson_log_tail(3, 0.0) == 0.0


def test_too_few_photons_or_no_common_time_are_named():
    few = block(np.arange(15))
    many = block(np.arange(0, 10**6, 100))
    with pytest.raises(ClockAlignmentError, match="too few"):
        align_pairs(few, many)
    with pytest.raises(ClockAlignmentError, match="overlap"):
        align_pairs(many, block(many.time_ticks + 10**10))


def test_time_that_goes_backwards_is_named():
    streams = pair_streams(13, span_s=0.5)
    ticks = streams.b_ticks.copy()
    ticks[len(ticks) // 2] = ticks[len(ticks) // 2 + 5]
    with pytest.raises(NonMonotonicTimeError):
        align_pairs(block(streams.a_ticks), block(ticks))


def test_too_few_bins_are_a_mistake():
    streams = pair_streams(14, span_s=0.1)
    with pytest.raises(ValueError, match="max_bins"):
        align_pairs(*blocks(streams), max_bins=1 << 10)


def test_a_clock_is_exact_after_a_day():
    clock = PairClock.nominal(Fraction(125), Fraction(1)).rebased(10**9, shift_q32=12345, stretch_q48=-777)
    far = 10**9 + 691_200_000_000_000  # a day of 125 ps
    assert clock.rebased(far).map_q32(far + 4096) == clock.map_q32(far + 4096)
    assert clock.map_ticks(far) == Fraction(clock.map_q32(far), 1 << 32)
    assert clock.rate == 125 - Fraction(777, 1 << 48)
    assert abs(clock.invert(math.floor(clock.map_ticks(far))) - far) <= 1
