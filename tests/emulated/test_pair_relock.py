"""Pipelines of two sites with pairs whose clocks step, drift or lose the light: found again, told, and never disagreed."""

from dataclasses import replace

import numpy as np
import pytest
from test_pipeline import check_balance
from test_pipeline_pairs import WINDOW_PS, simulated

from qkdhw.bench.pipeline import PairAnnouncerPipeline, PairSifterPipeline, sift_pairs
from qkdhw.bench.pipeline.placing import PairPlacer
from qkdhw.errors import ClockAlignmentError, PeerProtocolError
from qkdhw.events.wiring import FOUR_DETECTORS
from qkdhw.postprocessing.announced_times import announced_times
from qkdhw.postprocessing.pair_sifting import PairAnnouncer

DURATION_S = 16.0
STEP_S = 7.3
HONEST_QBER = 0.045  # of this link: 3 %, some standard deviations more
EPOCHS_S = 3 * 0.6  # the longest that a step may cost, see PairTracker

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def light():
    """Both ends of a link, and what they give undisturbed."""
    ends = {end: list(simulated(end, duration_s=DURATION_S)) for end in ("alice", "bob")}
    return ends, sift(ends)


def sift(ends, **options):
    return sift_pairs(iter(ends["bob"]), iter(ends["alice"]), window_ps=WINDOW_PS, **options)


def disturbed(blocks, change):
    """Blocks whose times in seconds go through a function that returns what is added, nan for events that are lost."""
    out, first = [], None
    for block in blocks:
        tick_s = float(block.tick_ps) * 1e-12
        first = int(block.time_ticks[0]) if first is None else first
        added = change((block.time_ticks - first) * tick_s)
        there = ~np.isnan(added)
        ticks = block.time_ticks[there] + np.round(added[there] / tick_s).astype(np.int64)
        out.append(replace(block, time_ticks=ticks, channel=block.channel[there], kind=block.kind[there]))
    return out


def step_of(size_s):
    return lambda t: np.where(t < STEP_S, 0.0, size_s)


def gap_of(begin_s, end_s, then_s=0.0):
    return lambda t: np.where(t < begin_s, 0.0, np.where(t < end_s, np.nan, then_s))


def check_recovered(report, undisturbed, lost_s, *, losses=1):
    """Both sites count alike, nothing is astray, all but the lost time was sifted as well as ever."""
    check_balance(report.announcer)
    check_balance(report.sifter)
    assert (report.announcer.n_key, report.announcer.n_test) == tuple(report.kept)
    assert (report.sifter.n_key, report.sifter.n_test) == tuple(report.kept)
    assert report.sifter.n_clock_losses == report.sifter.n_relocks == losses
    assert report.qber() < HONEST_QBER
    expected = undisturbed.kept.sum() * (1 - lost_s / DURATION_S)
    assert report.kept.sum() > expected - 5 * np.sqrt(expected)


def check_told(report, size_s):
    lost, found = report.clock_changes
    assert (lost.what, found.what) == ("lost", "found")
    assert STEP_S - 1 < lost.at_s <= found.at_s < STEP_S + EPOCHS_S
    said_us = float(found.reason.split()[2])
    assert said_us == pytest.approx(size_s * 1e6, abs=1)


@pytest.mark.parametrize("size_s", [1e-3, 9e-3, 3e-6])
@pytest.mark.parametrize("end", ["alice", "bob"])
def test_a_step_is_found_again_and_told(light, end, size_s):
    ends, undisturbed = light
    told = []
    report = sift(ends | {end: disturbed(ends[end], step_of(size_s))}, on_clock=told.append)
    check_recovered(report, undisturbed, EPOCHS_S)
    check_told(report, size_s if end == "alice" else -size_s)
    assert tuple(told) == report.clock_changes


def test_a_step_that_is_followed_is_told_too(light):
    ends, undisturbed = light
    report = sift(ends | {"alice": disturbed(ends["alice"], step_of(20e-9))})
    check_recovered(report, undisturbed, EPOCHS_S, losses=0)
    (moved,) = report.clock_changes
    assert moved.what == "moved"
    assert report.sifter.n_clock_moves == 1
    assert float(moved.reason.split()[2]) == pytest.approx(0.02, abs=0.001)


def test_canary_a_clock_that_is_not_taken_over_is_noticed(light, monkeypatch):
    """A pipeline that goes on with the old clock after a step must fail the test above."""
    ends, undisturbed = light
    monkeypatch.setattr(PairPlacer, "replace_clock", lambda self, clock: None)
    report = sift(ends | {"alice": disturbed(ends["alice"], step_of(1e-3))})
    with pytest.raises(AssertionError):
        check_recovered(report, undisturbed, EPOCHS_S)


@pytest.mark.parametrize("end", ["alice", "bob"])
@pytest.mark.parametrize("then_s", [0.0, 1e-3])
def test_after_a_gap_the_clock_is_found_again(light, end, then_s):
    """One tagger sees nothing for 3 s; its clock may come back with a step."""
    ends, undisturbed = light
    report = sift(ends | {end: disturbed(ends[end], gap_of(6.0, 9.0, then_s))})
    check_recovered(report, undisturbed, 3.0 + EPOCHS_S)
    lost, found = report.clock_changes
    assert 5 < lost.at_s < 8 < found.at_s < 9.0 + EPOCHS_S
    if end == "alice":  # the announcer's events of that time had no clock to be placed with
        assert report.announcer.fates["clock_lost"] > 20_000


def test_light_that_fails_leaves_the_noise_unplaced(light):
    """Pairs stop, both taggers go on: what they see meanwhile is counted as not placed at both sites."""
    ends, undisturbed = light
    other = list(simulated("alice", seed=77, duration_s=DURATION_S))
    dark = []
    for here, noise in zip(ends["alice"], other, strict=True):
        at_s = (int(here.time_ticks[0]) - int(ends["alice"][0].time_ticks[0])) * float(here.tick_ps) * 1e-12
        dark.append(noise if 5 < at_s < 9 else here)
    report = sift(ends | {"alice": in_order(dark)})
    check_recovered(report, undisturbed, 4 + EPOCHS_S)
    assert report.announcer.fates["clock_lost"] > 40_000
    assert report.sifter.fates["clock_lost"] > 80_000


def in_order(blocks):
    last = -(1 << 62)
    for block in blocks:
        keep = block.time_ticks >= last
        yield replace(block, time_ticks=block.time_ticks[keep], channel=block.channel[keep], kind=block.kind[keep])
        last = int(block.time_ticks[-1])


@pytest.mark.parametrize(
    "change",
    [lambda t: 2e-8 * t, lambda t: 5e-10 * t * t, lambda t: 20e-9 * np.sin(t / 3)],
    ids=["2e-8", "1e-9 a second", "forth and back"],
)
def test_drift_is_followed_without_loss(light, change):
    ends, undisturbed = light
    report = sift(ends | {"alice": disturbed(ends["alice"], change)})
    check_recovered(report, undisturbed, 0.2, losses=0)
    assert report.sifter.fates["clock_lost"] == report.announcer.fates["clock_lost"] == 0


def answer_all(announcer, sifter):
    for announcement in announcer:
        for answer in sifter.answer(announcement):
            announcer.sift(answer.reply)


def test_a_clock_that_stays_lost_ends_the_stream_with_an_error(light):
    """A step far beyond what is searched: the error comes after the stated time, and all events have a fate."""
    ends, _ = light
    far = disturbed(ends["alice"], step_of(0.5))
    with (
        PairAnnouncerPipeline(iter(ends["bob"]), FOUR_DETECTORS) as announcer,
        PairSifterPipeline(iter(far), FOUR_DETECTORS, window_ps=WINDOW_PS, max_lost_s=2.0) as sifter,
    ):
        sifter.align(announcer.first_times())
        with pytest.raises(ClockAlignmentError, match=r"lost and not found for 2 s") as raised:
            answer_all(announcer, sifter)
        assert raised.value.remedy
        check_balance(announcer.statistics)
        check_balance(sifter.statistics)
        assert sifter.is_clock_lost
        assert announcer.statistics.fates["clock_lost"] > 10_000
        with pytest.raises(ClockAlignmentError):
            sifter.finish()


def test_announced_times_are_what_was_announced():
    rng = np.random.default_rng(1)
    announcer = PairAnnouncer(unit_ticks=3)
    last = -(10**9)
    for sequence, n in enumerate((1, 0, 1023, 1024, 1025, 4000)):
        ticks = last + np.sort(rng.integers(0, 10 ** rng.integers(3, 14), n))
        last = int(ticks[-1]) if n else last
        message = announcer.announce(ticks, rng.integers(0, 4, n).astype(np.uint8))
        found, units = announced_times(message)
        assert found == sequence
        assert (units == ticks // 3).all()
        for wrong in (message[:19], b"QPX" + message[3:], message[:8] + b"\xff\xff\xff\x7f" + message[12:]):
            with pytest.raises(PeerProtocolError, match="bad announcement"):
                announced_times(wrong)
        if n:
            with pytest.raises(PeerProtocolError, match="bad announcement"):
                announced_times(message + b"\x01")


def test_a_reply_that_places_nothing_is_for_what_waits():
    announcer = PairAnnouncerPipeline([], FOUR_DETECTORS)
    with pytest.raises(PeerProtocolError, match="no announcement 7"):
        announcer.sift(b"QPL\x01" + (7).to_bytes(4, "little"))


def test_an_announcement_far_in_the_future_is_refused_before_own_events_are_kept_for_it(light):
    ends, _ = light
    with (
        PairAnnouncerPipeline(iter(ends["bob"]), FOUR_DETECTORS) as announcer,
        PairSifterPipeline(iter(ends["alice"]), FOUR_DETECTORS, window_ps=WINDOW_PS, max_lost_s=5.0) as sifter,
    ):
        sifter.align(announcer.first_times())
        before = sifter.statistics.n_events
        first = next(announcer)
        far = PairAnnouncer().announce(np.array([1 << 58]), np.zeros(1, np.uint8))
        with pytest.raises(PeerProtocolError, match="more than 5 s at once"):
            sifter.answer(far)
        assert sifter.statistics.n_events == before
        sifter.answer(first)  # what it refused changed nothing


def test_an_announcement_out_of_order_is_refused(light):
    ends, _ = light
    with (
        PairAnnouncerPipeline(iter(ends["bob"]), FOUR_DETECTORS) as announcer,
        PairSifterPipeline(iter(ends["alice"]), FOUR_DETECTORS, window_ps=WINDOW_PS) as sifter,
    ):
        sifter.align(announcer.first_times())
        first, second = next(announcer), next(announcer)
        sifter.answer(second)
        for message in (first, second):
            with pytest.raises(PeerProtocolError, match="does not follow"):
                sifter.answer(message)
