"""Prepare-and-measure pipelines on emulated links: what they find is what the links are, and nothing goes astray.

QKDHW_PIPELINE_PULSES says over how many simulated pulses each link is judged (2e7 if not set; 1e9 takes some minutes).
"""

import os
import threading
from contextlib import ExitStack
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from optics_judges import LEAST_P, changed
from pipeline_truth import SimulatedEnds, p_of_report

from qkdhw.bench.pipeline import (
    EventPipeline,
    Merged,
    RecordReader,
    SeededBytes,
    SenderPipeline,
    SyncFrame,
    sift_files,
)
from qkdhw.bench.pipeline.receiver import MAX_UNANSWERED
from qkdhw.errors import ClockAlignmentError, EventError, PeerProtocolError
from qkdhw.events.merging import MergeSource
from qkdhw.events.wiring import FOUR_DETECTORS
from qkdhw.formats import open_events, write_events
from qkdhw.model import DetectionBlock
from qkdhw.postprocessing.sifting import announce
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.optics.simulation import LinkSimulation
from qkdhw_emulators.simulate.run import LinkRun, RunOptions

N_PULSES = int(float(os.environ.get("QKDHW_PIPELINE_PULSES", "2e7")))
SYNC = 1 << 20
PASSIVE = "rusca-2018"

pytestmark = pytest.mark.timeout(300 + N_PULSES // 100_000)


def sift_ends(ends, **options):
    """Sift a simulated link while it is simulated."""
    period_ps = ends.setup.source.period_ps
    with ExitStack() as stack:
        if ends.setup.receiver.basis_choice == "active":
            options["measured"] = stack.enter_context(RecordReader(ends.bases()))
        return sift_files(ends.events(), ends.record(), period_ps=period_ps, window_ps=window_ps(ends.setup), **options)


def window_ps(setup):
    return setup.source.period_ps * 98 // 100


def check_balance(statistics, sender=None):
    fates = statistics.fates
    assert sum(fates.values()) == statistics.n_events
    assert min(fates.values()) >= 0
    if sender is not None:
        rest = (sender.n_unprepared, sender.n_basis_differs, sender.n_key, sender.n_test)
        assert sender.n_announced == sum(rest)
        assert (sender.n_key, sender.n_test) == (statistics.n_key, statistics.n_test)


@pytest.mark.parametrize("preset", [PASSIVE, "lim-2014", "toshiba-t12-2013"])
def test_a_live_link_is_what_its_model_says_and_not_another(preset):
    """Chi-square of kept bits and errors by basis and intensity; the same data must refute a link that errs more."""
    setup = load_setup(preset)
    seen = np.zeros(2, np.int64)
    link = LinkSimulation(setup, seed=5)

    def look(receiver, sender):
        for slot, bits, intensity, basis in (
            (sender.key_slot, sender.key_bits, sender.key_intensity, 0),
            (sender.test_slot, sender.test_bits, sender.test_intensity, 1),
        ):
            choice = link.prepared_at(slot)
            assert (np.unpackbits(bits, count=len(slot), bitorder="little") == choice % 2).all()
            assert (choice // 2 == 3 * intensity + basis).all()
            assert not len(slot) or slot[0] >= SYNC
        assert (receiver.key_slot == sender.key_slot).all()
        assert (receiver.test_slot == sender.test_slot).all()
        seen[:] += receiver.n_key, receiver.n_test

    with link:
        report = sift_ends(SimulatedEnds(setup, N_PULSES, seed=5), on_sifted=look)
    assert tuple(seen) == (report.receiver.n_key, report.receiver.n_test)
    check_balance(report.receiver, report.sender)
    assert report.receiver.n_open == 0
    assert report.sent.sum() == N_PULSES - SYNC
    judged = N_PULSES - SYNC, window_ps(setup)
    assert p_of_report(report, setup, *judged) > LEAST_P
    worse = changed(setup, receiver={"misalignment": (0.03, 0.03, 0.0)})
    assert p_of_report(report, worse, *judged) < LEAST_P
    dimmer = changed(setup, channel={"length_km": setup.channel.length_km + 2})
    assert p_of_report(report, dimmer, *judged) < LEAST_P


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run of `qkdhw link simulate`: the receiver's events, the sender's record of detected pulses, the truth."""
    folder = tmp_path_factory.mktemp("run")
    duration_s = max(N_PULSES, 20_000_000) * 1e-9
    options = RunOptions(load_setup(PASSIVE), seed=7, duration_s=duration_s, record="detected", truth=True)
    with LinkRun(options, folder) as run:
        observed = run.run()
    return folder, observed


def test_files_give_the_bits_of_the_truth(files):
    """A slot in which one detector saw light of that pulse has that detector's bit; the model holds; another does not."""
    import pyarrow.parquet

    folder, observed = files
    with pyarrow.parquet.ParquetFile(folder / "bob.truth.parquet") as table:
        pulse = np.concatenate([b.column("pulse").to_numpy() for b in table.iter_batches()])
    channel = np.concatenate([b.channel for b in open_events(folder / "bob.parquet").read_blocks()])
    pulse, channel = pulse[pulse >= 0], channel[pulse >= 0]
    unique, first, times = np.unique(pulse, return_index=True, return_counts=True)
    single, bit = unique[times == 1], ((channel[first] - 1) & 1)[times == 1]
    agreed = [0, 0]

    def look(receiver, _):
        for slot, bits in ((receiver.key_slot, receiver.key_bits), (receiver.test_slot, receiver.test_bits)):
            known = np.isin(slot, single)
            own = np.unpackbits(bits, count=len(slot), bitorder="little")[known]
            agreed[0] += int((own == bit[np.searchsorted(single, slot[known])]).sum())
            agreed[1] += len(slot)

    report = sift_files(
        folder / "bob.parquet", folder / "alice.record.parquet", period_ps=1000, window_ps=980, on_sifted=look
    )
    check_balance(report.receiver, report.sender)
    # Noise in the same slot may win the draw of a bit against light: some in 10^4.
    assert agreed[1] - agreed[0] <= 20 + agreed[1] * 1e-3
    assert report.sent is None
    assert report.gains is None
    judged = observed.pulses - SYNC, 980
    setup = load_setup(PASSIVE)
    assert p_of_report(report, setup, *judged) > LEAST_P
    assert p_of_report(report, changed(setup, channel={"length_km": 101}), *judged) < LEAST_P


def test_ten_lines_from_files_to_a_qber(files):
    folder, _ = files
    report = sift_files(folder / "bob.parquet", folder / "alice.record.parquet", period_ps=1000, window_ps=980)
    assert report.qber() == pytest.approx(0.01, abs=0.003)


def test_with_dead_time_the_balance_holds_and_the_error_rate_stays(files):
    folder, _ = files
    report = sift_files(
        folder / "bob.parquet", folder / "alice.record.parquet", period_ps=1000, window_ps=200, dead_time_ps=100_000
    )
    check_balance(report.receiver, report.sender)
    assert report.receiver.gating.n_dead_time > 0.1 * report.receiver.n_events
    assert report.qber() == pytest.approx(0.01, abs=0.003)


def whole(path):
    blocks = list(open_events(path).read_blocks())
    arrays = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("time_ticks", "channel", "kind"))
    return DetectionBlock(*arrays, blocks[0].tick_ps)


def cut_at(block, places):
    edges = [0, *places, len(block)]
    for begin, end in pairwise(edges):
        part = slice(begin, end)
        yield DetectionBlock(block.time_ticks[part], block.channel[part], block.kind[part], block.tick_ps)


def frame_of(folder):
    with SenderPipeline(folder / "alice.record.parquet") as sender:
        return SyncFrame.from_bytes(sender.sync_frame.to_bytes())


def test_announcements_do_not_depend_on_how_events_came(files):
    folder, _ = files
    events, frame = whole(folder / "bob.parquet"), frame_of(folder)
    options = {"period_ps": 1000, "window_ps": 980, "sync_frame": frame, "piece_events": 10_000}

    def announcements(source):
        out = []
        random_bytes = SeededBytes(bytes(32))
        with EventPipeline(source, FOUR_DETECTORS, random_bytes=random_bytes, **options) as pipeline:
            for message in pipeline:
                out.append(message)
                with pytest.raises(PeerProtocolError):
                    pipeline.sift(b"")
        return out

    at_once = announcements([events])
    rng = np.random.default_rng(1)
    cuts = np.sort(rng.integers(0, len(events), 300))
    assert len(at_once) > 3
    assert announcements(cut_at(events, cuts)) == at_once
    assert announcements(cut_at(events, range(1, 2000))) == at_once


def test_every_event_has_one_fate_whatever_it_is(files):
    """Markers, an input without detector, clicks before the frame and between slots, refused replies."""
    folder, _ = files
    events = whole(folder / "bob.parquet")
    ticks = np.concatenate((np.arange(5) * 1000, events.time_ticks))
    channel = np.concatenate((np.array([1, 2, 9, 9, 9], np.uint8), events.channel))
    kind = np.concatenate((np.array([0, 0, 0, 1, 6], np.uint8), events.kind))
    block = DetectionBlock(ticks, channel, kind, events.tick_ps, missed=17)
    with (
        SenderPipeline(folder / "alice.record.parquet") as sender,
        EventPipeline(
            [block], FOUR_DETECTORS, period_ps=1000, window_ps=300, dead_time_ps=2000,
            sync_frame=sender.sync_frame, piece_events=5000,
        ) as pipeline,
    ):  # fmt: skip
        for number, message in enumerate(pipeline):
            check_balance(pipeline.statistics)
            reply, _ = sender.answer(message)
            if number == 1:
                with pytest.raises(PeerProtocolError, match="has 1 bytes"):
                    pipeline.sift(reply[:1])
            else:
                pipeline.sift(reply)
        statistics = pipeline.statistics
    check_balance(statistics)
    assert statistics.n_events == len(block)
    fates = statistics.fates
    assert (fates["not_photons"], fates["unwired"], fates["waiting"], fates["open"]) == (2, 1, 0, 0)
    assert fates["before_start"] >= 2
    for name in ("sync_frame", "dead_time", "refused", "key", "test"):
        assert fates[name] > 0
    assert 4000 < fates["unanswered"] < 5001
    assert statistics.n_missed == 17


def test_a_consumer_that_does_not_come_slows_the_reader(files):
    folder, _ = files
    events = whole(folder / "bob.parquet")
    given = []

    def blocks():
        for block in cut_at(events, range(1000, len(events), 1000)):
            given.append(len(block))
            yield block

    frame = frame_of(folder)
    with EventPipeline(
        blocks(), FOUR_DETECTORS, period_ps=1000, window_ps=980, sync_frame=frame, piece_events=1000
    ) as pipeline:
        while pipeline._ahead.stalls == 0:  # nobody takes anything
            threading.Event().wait(0.01)
        threading.Event().wait(0.2)
        assert sum(given) <= 7000
        for _ in range(MAX_UNANSWERED):
            next(pipeline)
        with pytest.raises(ValueError, match="wait for their replies"):
            next(pipeline)
        assert pipeline.statistics.n_stalls > 0
        check_balance(pipeline.statistics)


def test_a_sender_answers_a_slot_once_and_none_of_the_sync_frame():
    slot = np.array([5, SYNC - 1, SYNC, SYNC + 7], np.int64)
    ends = SimulatedEnds(load_setup(PASSIVE), 2 * SYNC, seed=7)
    for basis in (0, 1):
        with SenderPipeline(ends.record()) as sender:
            with pytest.raises(PeerProtocolError, match="is announced after"):
                sender.answer(announce(slot, np.full(4, basis, np.uint8)))
            sender.answer(announce(slot[2:], np.full(2, basis, np.uint8)))
            with pytest.raises(PeerProtocolError, match="is announced after"):
                sender.answer(announce(slot[2:], np.full(2, 1 - basis, np.uint8)))


def test_no_frame_of_this_link_no_clock(files):
    folder, _ = files
    rng = np.random.default_rng(3)
    few = [next(cut_at(whole(folder / "bob.parquet"), [4000]))]
    frame = SyncFrame(0, rng.integers(0, 4, SYNC >> 4, np.uint8))
    with (
        EventPipeline(few, FOUR_DETECTORS, period_ps=1000, window_ps=980, sync_frame=frame) as pipeline,
        pytest.raises(ClockAlignmentError),
    ):
        next(pipeline)
    check_balance(pipeline.statistics)
    assert pipeline.statistics.n_waiting == pipeline.statistics.n_events > 0


def drop_all(pipeline):
    for _ in pipeline:
        with pytest.raises(PeerProtocolError):
            pipeline.sift(b"")


def test_a_lost_clock_ends_the_stream_and_the_balance_says_where_events_are():
    """The receiver's clock jumps to a rate that is far off: 1,000 ppm."""
    ends = SimulatedEnds(load_setup("lim-2014"), 30_000_000, seed=2)
    blocks = list(ends.events())
    for block in blocks[len(blocks) // 2 :]:
        begin = blocks[len(blocks) // 2].time_ticks[0]
        block.time_ticks[:] += (block.time_ticks - begin) // 1000
    with (
        SenderPipeline(ends.record()) as sender,
        EventPipeline(
            blocks, FOUR_DETECTORS, period_ps=10_000, window_ps=2000, sync_frame=sender.sync_frame, piece_s=0.02
        ) as pipeline,
    ):
        with pytest.raises(ClockAlignmentError):
            drop_all(pipeline)
        check_balance(pipeline.statistics)
        assert pipeline.statistics.fates["clock_lost"] > 0


def test_two_taggers_of_one_clock_are_one_source(files):
    """Key detectors on one tagger, test detectors on the other, one of them late by a skew: the same bits come out."""
    folder, _ = files
    events, frame = whole(folder / "bob.parquet"), frame_of(folder)
    is_key = events.channel <= 2
    late = events.time_ticks + np.where(events.channel == 4, 700, 0)
    parts = []
    for chosen, first in ((is_key, 0), (~is_key, 2)):
        order = np.argsort(late[chosen], kind="stable")
        columns = (late[chosen][order], events.channel[chosen][order] - np.uint8(first), events.kind[chosen][order])
        parts.append(list(cut_at(DetectionBlock(*columns, events.tick_ps), range(500, int(chosen.sum()), 3000))))
    source = Merged(parts, [MergeSource(Fraction(1)), MergeSource(Fraction(1), channel_offset=2, skew_ps={2: 700})])

    def run(source):
        out = []
        with EventPipeline(
            source, FOUR_DETECTORS, period_ps=1000, window_ps=980, sync_frame=frame, random_bytes=SeededBytes(b""),
        ) as pipeline:  # fmt: skip
            for message in pipeline:
                out.append(message)
                with pytest.raises(PeerProtocolError):
                    pipeline.sift(b"")
        check_balance(pipeline.statistics)
        assert pipeline.statistics.n_events == len(events)
        return out

    assert run(source) == run([events])


@pytest.mark.parametrize("message", [b"", b"QF\x01\x00", b"QX\x01\x00" + bytes(9), b"QF\x01\x00" + bytes(8) + b"\x0c"])
def test_bytes_that_are_no_sync_frame(message):
    with pytest.raises(PeerProtocolError):
        SyncFrame.from_bytes(message)


def test_records_that_cannot_be_read(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(EventError, match="no sender's record"), SenderPipeline(tmp_path / "a.parquet"):
        pass
    write_events(tmp_path / "b.parquet", [], "parquet", tick_ps=Fraction(1))
    with pytest.raises(EventError), SenderPipeline(tmp_path / "b.parquet"):
        pass
