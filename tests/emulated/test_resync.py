"""A prepare-and-measure clock that is lost in mid-stream is found again with another sync frame, or ends the stream."""

from dataclasses import replace

import numpy as np
import pytest
from optics_judges import changed
from pipeline_truth import SimulatedEnds
from test_pipeline import check_balance, drop_all

from qkdhw.bench.pipeline import EventPipeline, SenderPipeline, SyncFrame, sift_both
from qkdhw.bench.pipeline.reacquire import ErrorWatch
from qkdhw.errors import ClockAlignmentError, EventError, PeerProtocolError
from qkdhw.events.wiring import FOUR_DETECTORS
from qkdhw.model import PreparationBlock
from qkdhw_emulators.optics.presets import load_setup

PERIOD_PS = 10_000
N_PULSES = 140_000_000
LENGTH_S = N_PULSES * PERIOD_PS * 1e-12
SYNC = 1 << 20
MARGIN_S = 0.02
HALF_S = 0.7
FIND_S = 0.3  # from the loss to the first sifted bit, here
SLOT_S = PERIOD_PS * 1e-12
WORST_QBER = 0.02  # of an honest link of this preset: 1 %

pytestmark = pytest.mark.timeout(600)


class Ends:
    """What a simulated link gave, kept to be disturbed."""

    def __init__(self):
        setup = changed(load_setup("rusca-2018"), source={"pulse_rate_hz": 10**12 // PERIOD_PS})
        ends = SimulatedEnds(setup, N_PULSES, seed=12)
        self.events, self.records = list(ends.events()), list(ends.record())

    def pipelines(self, events, **options):
        sender = SenderPipeline(iter(self.records), sync_pulses=SYNC)
        options = {"resync": sender.disclose, "resync_margin_s": MARGIN_S, "piece_s": 0.01} | options
        receiver = EventPipeline(
            iter(events), FOUR_DETECTORS, period_ps=PERIOD_PS, window_ps=2000,
            sync_frame=lambda: sender.sync_frame, **options,
        )  # fmt: skip
        return receiver, sender

    def sift(self, events, look=lambda *_: None, **options):
        receiver, sender = self.pipelines(events, **options)
        with receiver, sender:
            report = sift_both(receiver, sender, look)
            return report, receiver.clock_changes


@pytest.fixture(scope="module")
def ends():
    return Ends()


def disturbed(blocks, change):
    """Blocks whose times in seconds go through a function that returns what is added, nan for events that are lost."""
    out = []
    for block in blocks:
        tick_s = float(block.tick_ps) * 1e-12
        added = change(block.time_ticks * tick_s)
        there = ~np.isnan(added)
        ticks = block.time_ticks[there] + np.round(added[there] / tick_s).astype(np.int64)
        out.append(replace(block, time_ticks=ticks, channel=block.channel[there], kind=block.kind[there]))
    return out


def step_of(size_s):
    return lambda t: np.where(t < HALF_S, 0.0, size_s)


def faster(t):
    """The receiver's clock runs 15 ppm faster from a moment on: no pulse is where it was expected."""
    return np.where(t < HALF_S, 0.0, (t - HALF_S) * 15e-6)


def gap(t):
    """0.3 s without an event, in which the clock went wrong by 3.2 slots."""
    return np.where(t < 0.4, 0.0, np.where(t < HALF_S, np.nan, 3.2 * SLOT_S))


def check_found_again(report, changes, undisturbed, lost_s):
    check_balance(report.receiver, report.sender)
    assert report.receiver.n_clock_losses == report.receiver.n_relocks == 1
    assert [change.what for change in changes] == ["lost", "found"]
    assert HALF_S - 0.02 < changes[0].at_s < changes[1].at_s < HALF_S + lost_s
    assert report.receiver.fates["clock_lost"] > 0
    assert report.kept.sum() > undisturbed.kept.sum() * (1 - lost_s / (LENGTH_S - 0.01) - 0.02)


@pytest.fixture(scope="module")
def undisturbed(ends):
    report, changes = ends.sift(ends.events)
    assert not changes
    assert report.receiver.fates["clock_lost"] == 0
    assert report.qber() < WORST_QBER
    return report


@pytest.mark.parametrize("slots", [100_000, 100_000.45, -0.6])
def test_a_step_shows_in_the_errors_and_is_found_again(ends, undisturbed, slots):
    """The phase stays or is followed, so some bits of other slots are sifted; their errors tell, later bits are good."""
    seen = []

    def look(receiver, sender):
        wrong = int(np.unpackbits(receiver.key_bits ^ sender.key_bits).sum())
        seen.append((int(receiver.slot[0]), wrong, receiver.n_key))

    report, changes = ends.sift(disturbed(ends.events, step_of(slots * SLOT_S)), look)
    check_found_again(report, changes, undisturbed, 2 * FIND_S)
    assert "compared bits are wrong" in changes[0].reason
    after = [s for s in seen if s[0] > (changes[1].at_s / SLOT_S)]
    assert sum(n for _, _, n in after) > 1000
    assert sum(w for _, w, _ in after) < WORST_QBER * sum(n for _, _, n in after)
    assert int(changes[1].reason.split()[3].rstrip(",")) == pytest.approx(-slots, abs=0.6)
    assert report.qber() > WORST_QBER, "the bits between are not hidden"


def test_after_a_gap_the_clock_is_found_again(ends, undisturbed):
    report, changes = ends.sift(
        disturbed(ends.events, gap),
        max_rest_s=0.2,
    )
    check_balance(report.receiver, report.sender)
    assert [change.what for change in changes] == ["lost", "found"]
    assert "no light confirmed the clock" in changes[0].reason
    assert report.qber() < WORST_QBER
    assert report.kept.sum() > undisturbed.kept.sum() * (1 - (0.3 + FIND_S) / LENGTH_S)


def test_canary_without_the_rest_a_gap_slips_unnoticed_by_the_phase(ends):
    """The same without looking at the rest and the errors: bits are of other slots, and the judge above sees it."""
    receiver, sender = ends.pipelines(disturbed(ends.events, gap))
    receiver.report_errors = lambda wrong, compared: None
    with receiver, sender:
        report = sift_both(receiver, sender)
    assert report.receiver.n_clock_losses == 0
    assert report.qber() > 5 * WORST_QBER


def test_clicks_that_follow_no_pulses_are_not_sifted_and_the_clock_is_found_again(ends, undisturbed):
    report, changes = ends.sift(disturbed(ends.events, faster))
    check_found_again(report, changes, undisturbed, FIND_S)
    assert report.qber() < WORST_QBER


def test_a_clock_that_stays_lost_ends_the_stream_after_the_stated_time(ends):
    """After the loss the sender's record is of another link: no frame fits."""
    receiver, sender = ends.pipelines(disturbed(ends.events, faster), max_lost_s=0.15)
    other = np.random.default_rng(1)
    asked = []

    def resync(slot):
        asked.append(slot)
        return SyncFrame(slot, other.integers(0, 4, SYNC, np.uint8))

    receiver._resync = resync
    with receiver, sender:
        with pytest.raises(ClockAlignmentError, match=r"not found again for 0.15 s") as raised:
            sift_both(receiver, sender)
        assert raised.value.remedy
        check_balance(receiver.statistics)
        assert receiver.is_clock_lost
        assert receiver.statistics.n_clock_losses == 1
        assert receiver.statistics.n_relocks == 0
    assert len(asked) >= 2
    assert (np.diff(asked) >= SYNC).all()


def test_in_the_dark_no_frame_is_asked_for(ends):
    """Light that does not come back: clicks are dark counts, and the record is not given away for them."""
    rng = np.random.default_rng(4)

    def darkened(block):
        dark = block.time_ticks * float(block.tick_ps) * 1e-12 > HALF_S
        ticks = np.where(dark, block.time_ticks + rng.integers(0, 10 * PERIOD_PS, len(block)), block.time_ticks)
        return replace(block, time_ticks=np.maximum.accumulate(np.sort(ticks)))

    blocks, last = [], 0
    for block in map(darkened, ends.events):
        block.time_ticks[:] = np.maximum(block.time_ticks, last)
        last = int(block.time_ticks[-1])
        blocks.append(block)
    receiver, sender = ends.pipelines(blocks, max_lost_s=0.2, resync=lambda slot: pytest.fail(f"asked for {slot}"))
    with receiver, sender, pytest.raises(ClockAlignmentError, match="no light that follows the pulses"):
        sift_both(receiver, sender)
    check_balance(receiver.statistics)


def test_a_stream_that_ends_while_the_clock_is_lost_says_so(ends):
    cut = [b for b in disturbed(ends.events, faster) if b.time_ticks[0] < (HALF_S + 0.15) * 1e12]
    report, changes = ends.sift(cut)
    check_balance(report.receiver, report.sender)
    assert [change.what for change in changes] == ["lost"]
    assert report.receiver.n_clock_losses == 1
    assert report.receiver.fates["clock_lost"] > 1000
    assert report.qber() < 1.5 * WORST_QBER  # a sixteenth of a second goes by between two looks at the phase


def test_without_resync_a_lost_clock_ends_the_stream(ends):
    receiver, sender = ends.pipelines(disturbed(ends.events, faster), resync=None)
    with receiver, sender:
        with pytest.raises(ClockAlignmentError):
            drop_all(receiver)
        check_balance(receiver.statistics)


def test_what_was_answered_is_never_disclosed_and_what_was_disclosed_never_answered():
    record = np.arange(100_000) % 4
    blocks = [PreparationBlock(0, record.astype(np.uint8))]
    with SenderPipeline(iter(blocks), sync_pulses=1000) as sender:
        frame = sender.disclose(5000)
        assert (frame.first_slot, len(frame.record)) == (5000, 1000)
        assert (frame.record == record[5000:6000]).all()
        for slot in (0, 999, 4999, 5999):
            with pytest.raises(PeerProtocolError, match="were answered"):
                sender.disclose(slot)
        with pytest.raises(PeerProtocolError):
            sender.disclose(7000, (1 << 24) + 1)
        with pytest.raises(EventError, match="nothing of the sync frame"):
            sender.disclose(200_000)
    with SenderPipeline(iter(blocks), sync_pulses=1000, count_sent=True) as sender:
        sender.disclose(1000, 3000)
        sender.read_on()
        assert sender.sent.sum() == 96_000


def test_a_frame_of_announced_slots_is_refused(ends):
    receiver, sender = ends.pipelines(disturbed(ends.events, faster))
    receiver._resync = lambda slot: SyncFrame(5, np.zeros(SYNC, np.uint8))
    with receiver, sender, pytest.raises(PeerProtocolError, match="from slot 5"):
        sift_both(receiver, sender)


@pytest.mark.parametrize(("rate", "slipped"), [(0.02, False), (0.25, False), (0.33, False), (0.5, True)])
def test_only_bits_of_other_slots_err_so_much(rate, slipped):
    rng = np.random.default_rng(2)
    watch = ErrorWatch()
    for _ in range(200):
        watch.add(int(rng.binomial(40, rate)), 40)
        if watch.is_slipped:
            break
    assert watch.is_slipped == slipped
    assert bool(watch.said) == slipped
