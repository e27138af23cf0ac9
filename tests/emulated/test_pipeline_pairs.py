"""Pipelines of two sites that share pairs, on an emulated link: what they find is what the link is.

QKDHW_PIPELINE_PULSES, here pairs at the source, says how long the link is judged (2e7 if not set).
"""

import itertools
import os
import struct
from fractions import Fraction

import numpy as np
import pytest
from optics_judges import LEAST_P, changed, p_chi_square
from test_pipeline import check_balance, cut_at, whole

from qkdhw._core import rice
from qkdhw.bench.pipeline import PairAnnouncerPipeline, PairSifterPipeline, SeededBytes, sift_pairs
from qkdhw.bench.pipeline.pairs import parse_first_times
from qkdhw.bench.pipeline.photons import PhotonFilter
from qkdhw.errors import ClockAlignmentError, NonMonotonicTimeError, PeerProtocolError
from qkdhw.events.wiring import FOUR_DETECTORS
from qkdhw.model import DetectionBlock, EventKind
from qkdhw_emulators.optics.presets import load_setup
from qkdhw_emulators.optics.simulation import LinkSimulation
from qkdhw_emulators.simulate.run import LinkRun, RunOptions
from qkdhw_emulators.simulate.steady_pump import expected_coincidences
from qkdhw_emulators.simulate.writers import events_block

N_PAIRS = float(os.environ.get("QKDHW_PIPELINE_PULSES", "2e7"))
PRESET = "sfifteen-bbm92"
DURATION_S = max(10.0, N_PAIRS / load_setup(PRESET).source.pair_rate_hz)
WINDOW_PS = 3000  # about the window of the closed form: six standard deviations

pytestmark = pytest.mark.timeout(300 + N_PAIRS / 100_000)


def simulated(end, *, seed=9, duration_s=DURATION_S):
    """Yield the events of one end; two simulations of one seed have the same light."""
    with LinkSimulation(load_setup(PRESET), seed=seed) as link:
        tagger = link.setup.sender_tagger if end == "alice" else link.setup.tagger
        for _ in range(round(duration_s / link.cell_s)):
            events = getattr(link.next_cell(), end)
            yield events_block(events.ticks, events.channel, Fraction(tagger.tick_fs, 1000))


def p_of_report(report, setup, duration_s):
    """Return how probable these bits and errors, or worse ones, are on a link of this setup."""
    chi_square = 0.0
    for basis in (0, 1):
        expected = expected_coincidences(setup, basis)
        n = (expected.true_hz + expected.accidental_hz) * duration_s
        wrong = int(report.errors[basis])
        for found, share in ((wrong, expected.qber), (int(report.kept[basis]) - wrong, 1 - expected.qber)):
            chi_square += (found - n * share) ** 2 / (n * share)
    return p_chi_square(chi_square, 4)


def check_report(report):
    check_balance(report.announcer)
    check_balance(report.sifter)
    assert report.announcer.fates["waiting"] == report.announcer.fates["unanswered"] == 0
    assert (report.announcer.n_key, report.announcer.n_test) == tuple(report.kept)
    assert (report.sifter.n_key, report.sifter.n_test) == tuple(report.kept)


def check_model(report, duration_s):
    setup = load_setup(PRESET)
    assert p_of_report(report, setup, duration_s) > LEAST_P
    for wrong in ({"misalignment": (0.03, 0.015, 0.0)}, {"loss_db": 0.2}):
        assert p_of_report(report, changed(setup, receiver=wrong), duration_s) < LEAST_P


def test_a_live_link_is_what_its_model_says_and_not_another():
    report = sift_pairs(simulated("bob"), simulated("alice"), window_ps=WINDOW_PS)
    check_report(report)
    check_model(report, DURATION_S)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    with LinkRun(RunOptions(load_setup(PRESET), seed=4, duration_s=DURATION_S), folder) as run:
        run.run()
    return folder / "bob.parquet", folder / "alice.parquet"


@pytest.mark.parametrize("order", [1, -1])
def test_files_in_either_order(files, order):
    """Bits of the announcer are those of its detectors, at the positions that both sites kept."""
    announcer, sifter = files[::order]
    block = whole(announcer)
    _, once, clicks = np.unique(block.time_ticks, return_index=True, return_counts=True)
    detector = block.channel[once] - 1
    at, wrong = [0], [0]

    def look(ours, theirs):
        assert (ours.kept == theirs.kept).all()
        kept = at[0] + ours.kept
        wrong[0] += fewest_wrong(ours, detector[kept], np.flatnonzero(clicks[kept] > 1))
        at[0] += sizes.pop(0)

    sizes = announced_sizes(announcer)
    report = sift_pairs(announcer, sifter, window_ps=WINDOW_PS, on_sifted=look)
    check_report(report)
    check_model(report, DURATION_S)
    assert wrong[0] <= report.announcer.n_simultaneous


def fewest_wrong(sifted, detector, drawn):
    """Count the bits that are not those of the detectors; where several clicked at once the basis was drawn."""
    found = []
    for bases in itertools.product((0, 1), repeat=len(drawn)):
        is_test = detector > 1
        is_test[drawn] = bases
        if (sifted.n_key, sifted.n_test) == ((~is_test).sum(), is_test.sum()):
            bit = detector & 1
            key, test = (
                np.unpackbits(bits, count=n)
                for bits, n in ((sifted.key_bits, sifted.n_key), (sifted.test_bits, sifted.n_test))
            )
            found.append(int((key != bit[~is_test]).sum() + (test != bit[is_test]).sum()))
    return min(found)


def announced_sizes(path):
    sizes = []
    with PairAnnouncerPipeline(path, FOUR_DETECTORS) as pipeline:
        for message in pipeline:
            sizes.append(int.from_bytes(message[8:12], "little"))
            pipeline.sift(b"QPR\x01" + message[4:8] + bytes(4))
    assert len(sizes) > 20
    return sizes


def test_what_is_exchanged_does_not_depend_on_how_events_came(files):
    def exchanged(cuts):
        out = []
        blocks = [whole(path) for path in files]
        bob, alice = (cut_at(block, [c for c in cuts if c < len(block)]) for block in blocks)
        with (
            PairAnnouncerPipeline(bob, FOUR_DETECTORS, random_bytes=SeededBytes(b"a"), duration_s=5.0) as announcer,
            PairSifterPipeline(alice, FOUR_DETECTORS, random_bytes=SeededBytes(b"b"), window_ps=WINDOW_PS) as sifter,
        ):
            out.append(announcer.first_times())
            sifter.align(out[0])
            for announcement in announcer:
                out.append(announcement)
                out += [answer.reply for answer in sifter.answer(announcement)]
            out += [answer.reply for answer in sifter.finish()]
            for message in out[1:]:
                if message.startswith(b"QPR"):
                    announcer.sift(message)
        return out

    at_once = exchanged([])
    assert len(at_once) > 30
    assert exchanged(range(1000, 1_000_000, 777)) == at_once


def test_streams_that_share_nothing_have_no_clock(files):
    other = simulated("alice", seed=10, duration_s=5.0)
    with pytest.raises(ClockAlignmentError):
        sift_pairs(files[0], other, window_ps=WINDOW_PS, duration_s=5.0, max_ppm=1.0, max_offset_s=0.02)


def test_of_detections_at_one_tick_each_is_kept_as_often():
    ticks = np.repeat(np.arange(30_000), 2)
    channel = np.tile(np.array([1, 4], np.uint8), 30_000)
    block = DetectionBlock(ticks, channel, np.zeros(60_000, np.uint8), Fraction(125))
    photons = PhotonFilter(FOUR_DETECTORS, SeededBytes(bytes(32)))
    parts = [photons.feed(part) for part in cut_at(block, [1, 2, 7, 8, 9, 4001])]
    parts.append(photons.flush())
    assert (np.concatenate([p.ticks for p in parts]) == np.arange(30_000)).all()
    kept = np.bincount(np.concatenate([p.detectors for p in parts]), minlength=4)
    assert kept[[1, 2]].sum() == 0
    assert abs(int(kept[0]) - 15_000) < 500  # nearly 6 standard deviations
    assert photons.n_simultaneous == 30_000


def test_what_is_no_detection_is_counted_and_time_goes_forwards():
    photons = PhotonFilter(FOUR_DETECTORS, bytes)
    kind = np.array([EventKind.PHOTON, EventKind.MARKER, EventKind.PHOTON, EventKind.PHOTON], np.uint8)
    block = DetectionBlock(np.array([5, 6, 7, 9]), np.array([1, 1, 9, 2], np.uint8), kind, Fraction(1))
    assert len(photons.feed(block)) + len(photons.flush()) == 2
    assert (photons.n_not_photons, photons.n_unwired) == (1, 1)
    photons.feed(block)
    with pytest.raises(NonMonotonicTimeError):
        photons.feed(block)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"QPT\x02" + bytes(30),
        b"QPT\x01\xff" + bytes(30),
        b"QPT\x01" + struct.pack("<Iqqq", 0, 0, 1 << 62, 1),
        b"QPT\x01" + struct.pack("<Iqqq", 0, 0, 1, 1 << 62),
    ],
)
def test_bytes_that_are_no_first_times(message):
    with PairSifterPipeline([], FOUR_DETECTORS, window_ps=1000) as sifter, pytest.raises(PeerProtocolError):
        sifter.align(message)


def test_first_times_of_more_than_an_hour_are_refused():
    """Else a few bytes could make a site keep all of its events."""
    data = np.empty(12 * 20 + 9, np.uint8)
    size = rice.encode_gaps(np.arange(20) * 200, np.empty(0, np.uint8), 0, 0, data)
    head, body = b"QPT\x01" + struct.pack("<Iq", 20, 0), data[:size].tobytes()
    units, unit_ps = parse_first_times(head + struct.pack("<qq", 9 * 10**11, 1) + body)
    assert (units[-1], unit_ps) == (3800, 9 * 10**11)
    with pytest.raises(PeerProtocolError):
        parse_first_times(head + struct.pack("<qq", 10**12, 1) + body)


def test_answers_need_a_clock():
    with PairSifterPipeline([], FOUR_DETECTORS, window_ps=1000) as sifter, pytest.raises(ValueError, match="align"):
        sifter.answer(b"")
