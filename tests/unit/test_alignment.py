"""Alignment finds the right slot for every true click, never locks onto noise, and notices when the light goes."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from sync_stream import Link, as_block, make_record, make_stream, piece

from qkdhw.errors import ClockAlignmentError, NonMonotonicTimeError
from qkdhw.events.alignment import align_to_sync_frame, recover_period, sigma_of, spans, track
from qkdhw.events.clock import SlotClock
from qkdhw.events.wiring import FOUR_DETECTORS

FRAME = 1 << 18


def random_link(rng, **fixed):
    drawn = Link(
        clicks_hz=float(10 ** rng.uniform(4.7, 5.3)),
        dark_hz=float(10 ** rng.uniform(1, 3.5)),
        jitter_s=rng.uniform(0.3e-9, 1e-9),
        ppm=rng.uniform(-20, 20),
        drift_per_s=rng.uniform(-2e-8, 2e-8),
        offset_s=rng.uniform(-0.004, 0.12),
        qber=rng.uniform(0.01, 0.05),
    )
    return dataclasses.replace(drawn, **fixed)


def align(block, record, link, first_slot=0):
    return align_to_sync_frame(block, FOUR_DETECTORS, record, first_slot, link.period_ticks)


def fraction_right(clock, block, truth):
    """Follow the clock through a stream and compare every true click's slot."""
    right = 0
    start = clock.centre_q32(0) >> 32
    for begin, end in spans(block.time_ticks, block.tick_ps):
        chunk = as_block(block.time_ticks[begin:end], block.channel[begin:end])
        lit = chunk.time_ticks >= start
        clock = track(clock, as_block(chunk.time_ticks[lit], chunk.channel[lit]), wiring=FOUR_DETECTORS)
        right += np.count_nonzero(clock.assign(chunk.time_ticks)[0] == truth[begin:end])
    return right / np.count_nonzero(truth >= 0)


@pytest.mark.parametrize("seed", range(5))
def test_every_true_click_gets_its_slot_for_seconds(seed):
    rng = np.random.default_rng(seed)
    link = random_link(rng)
    record = make_record(rng, int(2 * link.pulse_rate_hz))
    block, truth = make_stream(rng, link, record)
    alignment = align(piece(block, 0, 0.16), record[:FRAME], link)
    assert alignment.significance >= 6
    assert alignment.matched > 80
    assert abs(alignment.qber_estimate - link.qber) < 0.1
    assert fraction_right(alignment.clock, block, truth) >= 0.999


@pytest.mark.parametrize(
    "fixed",
    [
        {"pulse_rate_hz": 150e6, "clicks_hz": 3e5, "jitter_s": 0.3e-9},  # 3 1/3 ticks a slot
        {"pulse_rate_hz": 20.1e6},
        {"ppm": 0.0, "drift_per_s": 0.0, "jitter_s": 0.05e-9},  # the tick is all the jitter there is
        {"clicks_hz": 6e4, "dark_hz": 2e4},
        {"drift_per_s": 1e-7},
    ],
    ids=str,
)
def test_unusual_links(fixed):
    rng = np.random.default_rng(5)
    link = random_link(rng, offset_s=0.01, **fixed)
    record = make_record(rng, int(0.5 * link.pulse_rate_hz))
    block, truth = make_stream(rng, link, record)
    alignment = align(piece(block, 0, 0.05), record[: 2 * FRAME], link)
    assert fraction_right(alignment.clock, block, truth) >= 0.999


def test_slots_are_numbered_from_the_frame_s_first_slot():
    rng = np.random.default_rng(3)
    link = Link(clicks_hz=1e5)
    record = make_record(rng, 1 << 20)
    block, truth = make_stream(rng, link, record)
    begin = 300_000
    clock = align(block, record[begin : begin + FRAME], link, first_slot=begin).clock
    assert clock.ref_slot == begin
    assert np.mean(clock.assign(block.time_ticks)[0][truth >= 0] == truth[truth >= 0]) > 0.999


def test_no_false_lock_in_200_runs_without_correlation():
    rng = np.random.default_rng(11)
    link = Link(clicks_hz=2e5)
    significances = []
    for _ in range(200):
        block, _ = make_stream(rng, link, make_record(rng, 200_000))
        with pytest.raises(ClockAlignmentError, match="do not match the sync frame") as error:
            align(block, make_record(rng, 1 << 13), link)
        significances.append(float(str(error.value).split("correlation ")[1].split()[0]))
    # The bound counts every place looked at, so chance rarely reaches even two standard deviations.
    assert sum(s > 2 for s in significances) <= 15


def test_the_same_size_does_lock_on_its_own_frame():
    rng = np.random.default_rng(11)
    link = Link(clicks_hz=2e5)
    for _ in range(5):
        record = make_record(rng, 200_000)
        block, _ = make_stream(rng, link, record)
        assert align(block, record[100_000 : 100_000 + (1 << 14)], link).significance > 6


def test_no_period_in_200_runs_of_dark_counts():
    rng = np.random.default_rng(12)
    for _ in range(200):
        ticks = np.sort(rng.integers(0, 10**7, 1500))
        with pytest.raises(ClockAlignmentError, match="no slot period"):
            recover_period(ticks, Fraction(25), 20.0)


def test_a_clock_error_beyond_the_range_is_no_period():
    rng = np.random.default_rng(2)
    block, _ = make_stream(rng, Link(clicks_hz=1e5, ppm=60.0), make_record(rng, 1 << 20))
    with pytest.raises(ClockAlignmentError, match="no slot period"):
        recover_period(block.time_ticks, Fraction(25), 20.0)


def test_the_period_is_found_to_parts_per_billion():
    rng = np.random.default_rng(4)
    block, _ = make_stream(rng, Link(clicks_hz=1e5, ppm=-17.3), make_record(rng, 10_000_000))
    clock = recover_period(block.time_ticks, Fraction(25), 20.0)
    assert float(clock.period_ticks / 25 - 1) == pytest.approx(-17.3e-6, abs=2e-9)


def test_too_few_clicks_say_so():
    with pytest.raises(ClockAlignmentError, match="too few"):
        align(as_block(np.arange(10), np.ones(10, np.uint8)), make_record(np.random.default_rng(0), 64), Link())


def test_a_jump_in_time_is_an_error_not_an_endless_search():
    rng = np.random.default_rng(8)
    pulses = np.sort(rng.choice(10**6, 2000, replace=False))
    ticks = 25 * pulses + np.where(np.arange(2000) < 1000, 0, 25 << 55)
    with pytest.raises(ClockAlignmentError, match="too far"):
        track(SlotClock.nominal(Fraction(25)), on_clock(None, ticks))
    with pytest.raises(ClockAlignmentError):
        align(on_clock(None, ticks), make_record(rng, FRAME), Link())


def test_time_that_goes_backwards_is_named():
    ticks = 25 * np.arange(1000)
    ticks[500] = 0
    with pytest.raises(NonMonotonicTimeError) as error:
        align(on_clock(None, ticks), make_record(np.random.default_rng(0), 64), Link())
    assert error.value.index == 500


def on_clock(clock, ticks):
    return as_block(np.asarray(ticks, np.int64), np.ones(len(ticks), np.uint8))


def test_track_reports_light_that_is_gone():
    rng = np.random.default_rng(6)
    dark = on_clock(None, np.sort(rng.integers(0, 10**8, 5000)))
    with pytest.raises(ClockAlignmentError, match="no longer follow"):
        track(SlotClock.nominal(Fraction(25)), dark)


def test_dark_counts_hardly_move_the_phase():
    clock = SlotClock.nominal(Fraction(25))
    errors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        lit = 25 * np.sort(rng.choice(10**6, 1000, replace=False)) + 2.5 + 0.25 * rng.standard_normal(1000)
        ticks = np.sort(np.concatenate((np.floor(lit).astype(np.int64), rng.integers(0, 25 * 10**6, 1000))))
        found = track(clock, on_clock(None, ticks))
        errors.append(found.centre_q32(500_000) / 2**32 - 25 * 500_000 - 2.0)
    # A circular mean over the whole slot would be off by 0.13 ticks.
    assert np.std(errors) < 0.04
    assert abs(np.mean(errors)) < 0.03


def test_track_reports_a_phase_jump():
    rng = np.random.default_rng(7)
    pulses = np.sort(rng.choice(10**6, 2000, replace=False))
    clock = SlotClock.nominal(Fraction(25))
    assert track(clock, on_clock(clock, 25 * pulses + 4)).slot_at(25 * 10**6 + 4) == 10**6
    with pytest.raises(ClockAlignmentError, match="jumped"):
        track(clock, on_clock(clock, 25 * pulses + 12))


def test_track_leaves_other_inputs_and_small_chunks_alone():
    clock = SlotClock.nominal(Fraction(25))
    ticks = 25 * np.arange(1000) + 4
    assert track(clock, as_block(ticks, np.full(1000, 9, np.uint8)), wiring=FOUR_DETECTORS) is clock
    assert track(clock, on_clock(clock, ticks[:255])) is clock
    assert track(clock, on_clock(clock, ticks)) != clock


@pytest.mark.parametrize(("sigma", "probability"), [(2.0, 0.02275013), (3.0, 1.349898e-3), (6.0, 9.865876e-10)])
def test_sigma_of_a_tail_probability(sigma, probability):
    assert sigma_of(math.log(probability)) == pytest.approx(sigma, abs=0.03)


def test_spans_cover_every_event_once():
    ticks = np.array([0, 1, 124_999_999, 125_000_000, 700_000_000, 700_000_001])
    cuts = spans(ticks, Fraction(2000))
    assert cuts == [(0, 3), (3, 4), (4, 6)]
    assert spans(ticks[:0], Fraction(2000)) == []
    assert spans(ticks[:1], Fraction(2000)) == [(0, 1)]
