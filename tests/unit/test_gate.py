"""The Gate over a stream: counts add up, the clock is followed, and nothing secret is printed."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from sync_stream import TICK_PS, Link, as_block, make_record, make_stream, piece

from qkdhw.errors import ClockAlignmentError, EventError, NonMonotonicTimeError
from qkdhw.events.alignment import align_to_sync_frame
from qkdhw.events.clock import ONE_TICK_Q32, SlotClock
from qkdhw.events.gating import Gate, GatedBlock, GatingStatistics
from qkdhw.events.wiring import FOUR_DETECTORS, Wiring
from qkdhw.model import Basis, DetectionBlock

LINK = Link(clicks_hz=1e5, ppm=12.0, drift_per_s=1e-8, offset_s=0.02)


@pytest.fixture(scope="module")
def lit():
    rng = np.random.default_rng(21)
    record = make_record(rng, 20_000_000)
    block, truth = make_stream(rng, LINK, record)
    clock = align_to_sync_frame(piece(block, 0, 0.06), FOUR_DETECTORS, record[: 1 << 18], 0, Fraction(25)).clock
    return record, block, truth, clock


def gate(clock, *, window_ps=12_000, dead_time_ps=0, seed=1):
    source = np.random.default_rng(seed)
    return Gate(clock, FOUR_DETECTORS, window_ps, dead_time_ps, TICK_PS, random_bytes=source.bytes)


def run(gate, block, cuts=()):
    edges = [0, *cuts, len(block)]
    parts = [gate.feed(as_block(block.time_ticks[a:b], block.channel[a:b])) for a, b in pairwise(edges)]
    parts.append(gate.flush())
    return tuple(np.concatenate([getattr(p, name) for p in parts]) for name in ("slot", "basis", "bit")), parts


def check_sum(s, pending=0):
    dropped = s.n_unwired + s.n_before_start + s.n_outside_window + s.n_dead_time
    assert s.n_photons == dropped + s.n_slots + s.n_merged + pending


def test_true_clicks_come_out_in_their_slots_with_their_bits(lit):
    record, block, truth, clock = lit
    g = gate(clock)
    (slot, basis, bit), parts = run(g, block)
    true_slots = truth[truth >= 0]
    assert np.isin(true_slots, slot).mean() > 0.999
    assert (np.diff(slot) > 0).all()
    assert slot[0] >= 0
    same = record[slot] >> 1 & 1 == basis
    assert 0.01 < np.mean(bit[same] != record[slot][same] & 1) < 0.04
    check_sum(g.statistics)
    assert g.statistics == sum((p.statistics for p in parts), GatingStatistics())
    assert g.statistics.n_photons == len(block)
    assert g.residual_histogram.sum() == len(block)
    assert g.residual_histogram[96:160].sum() > 0.98 * len(block)
    assert float(g.clock.period_ticks / 25 - 1) == pytest.approx(12e-6 + 1e-8, abs=5e-9)


@pytest.mark.parametrize("dead_time_ps", [0, 10_000_000])
def test_chunks_change_no_outcome(lit, dead_time_ps):
    _, block, _, clock = lit
    short = piece(block, 0, 0.0215)  # fewer clicks than one correction of the clock needs
    assert 50 < len(short) < 256
    whole, _ = run(gate(clock, dead_time_ps=dead_time_ps), short)
    for cuts in (range(1, len(short)), [7, 7, 30], [len(short) - 1]):
        cut, _ = run(gate(clock, dead_time_ps=dead_time_ps), short, cuts)
        assert [a.tolist() for a in cut] == [a.tolist() for a in whole]


def test_many_small_chunks_follow_the_drift(lit):
    _, block, truth, clock = lit
    (slot, *_), _ = run(gate(clock), block, range(500, len(block), 500))
    assert np.isin(truth[truth >= 0], slot).mean() > 0.999


def test_dead_time_keeps_what_a_non_paralysable_rule_must(lit):
    _, block, _, clock = lit
    g = gate(clock, dead_time_ps=5_000_000)
    run(g, block)
    check_sum(g.statistics)
    assert g.statistics.n_dead_time / g.statistics.n_photons == pytest.approx(1 - np.exp(-100_400 * 5e-6), abs=0.01)


def test_the_gate_notices_when_the_light_goes(lit):
    _, block, _, clock = lit
    g = gate(clock)
    g.feed(piece(block, 0, 0.3))
    rng = np.random.default_rng(1)
    dark = np.sort(rng.integers(150_000_000, 250_000_000, 5000))
    with pytest.raises(ClockAlignmentError, match="no longer follow"):
        g.feed(as_block(dark, rng.integers(1, 5, 5000).astype(np.uint8)))


def test_a_few_dark_counts_are_no_reason_to_stop(lit):
    _, block, _, clock = lit
    g = gate(clock)
    g.feed(piece(block, 0, 0.3))
    before = g.clock
    dark = np.sort(np.random.default_rng(1).integers(150_000_000, 250_000_000, 1000))
    g.feed(as_block(dark, np.ones(1000, np.uint8)))
    assert g.clock == before


def test_the_clock_is_not_led_by_what_comes_before_the_first_pulse(lit):
    *_, clock = lit
    g = gate(clock)
    dark = np.sort(np.random.default_rng(1).integers(0, 9_000_000, 6000))
    g.feed(as_block(dark, np.ones(6000, np.uint8)))
    assert g.statistics.n_before_start == 6000
    assert g.clock == clock


@pytest.mark.parametrize("chunk", [4000, 65_536, 10**9])
def test_a_bright_stream_is_tracked_as_well_from_a_choice_of_its_clicks(chunk):
    """A clock that is wrong by 0.02 ppm and drifts by 1e-8/s: clicks spread as their jitter, not as the clock's error."""
    rng = np.random.default_rng(8)
    jitter_ticks = 0.6
    slot = np.cumsum(rng.integers(1, 30, 1_500_000))  # 1.2 s at 1.3 Mcps
    exact = 25.0 * slot * (1 + 2e-8) + 1e-8 / 2 * (25.0 * slot) ** 2 * 2e-9 + rng.normal(0, jitter_ticks, len(slot))
    order = np.argsort(exact)
    ticks, slot = np.floor(exact[order]).astype(np.int64), slot[order]
    keep = ticks >= 0
    stream = as_block(ticks[keep], rng.integers(1, 5, len(order)).astype(np.uint8)[keep])
    g = gate(SlotClock.nominal(Fraction(25)))
    got = 0
    for begin in range(0, len(stream), chunk):
        got += len(g.feed(as_block(stream.time_ticks[begin : begin + chunk], stream.channel[begin : begin + chunk])))
    late = g.clock.assign(stream.time_ticks[-20_000:])[1] / ONE_TICK_Q32
    assert got > 0.999 * len(stream)
    # The tick spreads by 1/sqrt(12); its half is the mean. A sixteenth of a second of this drift is far below both.
    assert late.std() == pytest.approx(np.hypot(jitter_ticks, 12**-0.5), rel=0.02)
    assert abs(late.mean()) < 0.06
    assert (g.clock.assign(stream.time_ticks[-20_000:])[0] == slot[keep][-20_000:]).mean() > 0.999


def test_no_pattern_of_inputs_hides_from_the_clock():
    """Every second event is of another input."""
    slot = 250 * np.arange(1, 600_001)
    ticks = np.floor(np.repeat(slot * (1 + 9e-7), 2)).astype(np.int64)
    g = gate(SlotClock.nominal(Fraction(25)))
    for begin in range(0, len(ticks), 50_000):
        part = ticks[begin : begin + 50_000]
        g.feed(as_block(part, np.tile(np.array([9, 1], np.uint8), len(part) // 2)))
    assert float(g.clock.period_ticks / 25 - 1) == pytest.approx(9e-7, abs=5e-8)


def test_doubles_are_counted_and_drawn_evenly():
    clock = SlotClock.nominal(Fraction(25))
    ticks = np.repeat(25 * np.arange(1, 101), 2)
    key_double = as_block(ticks, np.tile(np.array([1, 2], np.uint8), 100))
    g = gate(clock)
    (slot, basis, bit), _ = run(g, key_double)
    assert len(slot) == 100
    assert not basis.any()
    assert 30 < bit.sum() < 70
    assert (g.statistics.n_double_key, g.statistics.n_merged, g.statistics.n_cross_basis) == (100, 100, 0)
    assert (g.statistics.n_click_key_0, g.statistics.n_click_key_1) == (100, 100)


def test_every_random_byte_is_used_once_and_in_order():
    bytes_drawn = np.random.default_rng(3).integers(0, 256, 1000, dtype=np.uint8).tobytes()
    handed_out = iter(bytes_drawn)
    g = Gate(
        SlotClock.nominal(Fraction(25)), FOUR_DETECTORS, 12_000, 0, TICK_PS,
        random_bytes=lambda n: bytes(next(handed_out) for _ in range(n)),
    )  # fmt: skip
    ticks = np.repeat(25 * np.arange(1, 101), 2)
    (_, _, bit), _ = run(g, as_block(ticks, np.tile(np.array([1, 2], np.uint8), 100)), range(9, 200, 9))
    assert bit.tolist() == [byte >> 1 & 1 for byte in bytes_drawn[:100]]


def test_no_bit_is_printed_and_wiping_erases():
    block = GatedBlock(np.arange(3), np.zeros(3, np.uint8), np.ones(3, np.uint8))
    assert "bit=" not in repr(block)
    block.wipe()
    assert not block.bit.any()


def test_a_stream_that_goes_back_or_changes_its_tick_is_refused():
    g = gate(SlotClock.nominal(Fraction(25)))
    one = np.ones(2, np.uint8)
    with pytest.raises(NonMonotonicTimeError) as error:
        g.feed(as_block(np.array([75, 50]), one))
    assert error.value.index == 1
    g.feed(as_block(np.array([75, 100]), one))
    with pytest.raises(NonMonotonicTimeError):
        g.feed(as_block(np.array([50, 200]), one))
    with pytest.raises(EventError, match="tick changed"):
        g.feed(DetectionBlock(np.array([300]), one[:1], one[:1] * 0, Fraction(1)))


@pytest.mark.parametrize(("window_ps", "dead_time_ps"), [(0, 0), (50_000, 0), (1000, -1), (1000, 1 << 62)])
def test_settings_that_do_not_fit_are_refused(window_ps, dead_time_ps):
    with pytest.raises(ValueError, match="ps"):
        gate(SlotClock.nominal(Fraction(25)), window_ps=window_ps, dead_time_ps=dead_time_ps)


@pytest.mark.parametrize(
    "detectors",
    [
        {1: (Basis.KEY, 0), 2: (Basis.KEY, 1), 3: (Basis.TEST, 0)},
        {1: (Basis.KEY, 0), 2: (Basis.KEY, 1), 3: (Basis.TEST, 0), 4: (Basis.TEST, 0)},
        {256: (Basis.KEY, 0), 2: (Basis.KEY, 1), 3: (Basis.TEST, 0), 4: (Basis.TEST, 1)},
        {1: (Basis.KEY, 2), 2: (Basis.KEY, 1), 3: (Basis.TEST, 0), 4: (Basis.TEST, 1)},
    ],
    ids=["missing", "twice", "input", "bit"],
)
def test_wiring_names_each_detector_once(detectors):
    with pytest.raises(ValueError, match="detector"):
        Wiring(detectors)
