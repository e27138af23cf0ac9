"""Whatever a format can hold comes back from it unchanged, in any block size, or is refused by name."""

import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw.errors import EventFormatError, NonMonotonicTimeError
from qkdhw.formats import format_of_name, open_events, report_events, write_events
from qkdhw.formats.qcrypto import LAYOUTS
from qkdhw.model import DetectionBlock, EventKind

PATIENT = settings(deadline=None, max_examples=60)  # the machine may be busy

TDC2_TICK_PS = Fraction(125, 32)
PHOTON, MARKER, DUMMY = EventKind.PHOTON, EventKind.MARKER, EventKind.DUMMY


def block_of(events, tick_ps, fine_tick_ps=None):
    """Make a block of (time, channel, kind, fine) rows."""
    time, channel, kind, fine = zip(*events, strict=True) if events else ((), (), (), ())
    return DetectionBlock(
        time_ticks=np.array(time, np.int64),
        channel=np.array(channel, np.uint8),
        kind=np.array(kind, np.uint8),
        tick_ps=tick_ps,
        fine_ticks=None if fine_tick_ps is None else np.array(fine, np.uint16),
        fine_tick_ps=fine_tick_ps,
    )


def events_of(blocks):
    rows = []
    for block in blocks:
        fine = [0] * len(block) if block.fine_ticks is None else block.fine_ticks.tolist()
        rows += zip(block.time_ticks.tolist(), block.channel.tolist(), block.kind.tolist(), fine, strict=True)
    return rows


def through_file(format_name, events, tick_ps, *, fine_tick_ps=None, cut=0, max_events=7):
    """Write events in two blocks, read them back."""
    parts = [block_of(part, tick_ps, fine_tick_ps) for part in (events[:cut], events[cut:])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        write_events(path, parts, format_name, tick_ps=tick_ps, fine_tick_ps=fine_tick_ps)
        assert [p.name for p in Path(folder).iterdir()] == ["events"]
        assert path.stat().st_mode & 0o077 == 0  # events of a receiver are raw key
        source = open_events(path, format_name)
        assert source.tick_ps == tick_ps
        assert source.fine_tick_ps == fine_tick_ps
        blocks = list(source.read_blocks(max_events))
        assert all(0 < len(block) <= max_events for block in blocks)
        assert events_of(source.read_blocks(max_events)) == events_of(blocks)
        return events_of(blocks)


def rising(step, row):
    """Lists of events whose times rise by steps, with rare large ones."""
    return st.lists(st.tuples(step, row), max_size=30).map(
        lambda rows: [
            (time, *rest)
            for time, (_, rest) in zip(np.cumsum([s for s, _ in rows], dtype=np.int64).tolist(), rows, strict=True)
        ]
    )


STEP = st.integers(0, 50) | st.integers(0, 2**26) | st.integers(0, 2**48)
INPUT = st.tuples(st.integers(1, 4), st.just(PHOTON), st.just(0))
SYNC_OR_INPUT = st.tuples(st.integers(0, 64), st.just(PHOTON), st.just(0))
A_MARKER = st.tuples(st.integers(1, 15), st.just(MARKER), st.just(0))
A_DUMMY = st.just((0, DUMMY, 0))
ANY_ROW = st.tuples(st.integers(0, 255), st.sampled_from(EventKind), st.integers(0, 2**16 - 1))
CUT = st.integers(0, 30)
SIZE = st.integers(1, 40)


@PATIENT
@given(rising(STEP, SYNC_OR_INPUT | A_MARKER), CUT, SIZE, st.sampled_from([Fraction(1), Fraction(4), TDC2_TICK_PS]))
def test_ptu_t2(events, cut, size, tick_ps):
    assert through_file("ptu", events, tick_ps, cut=cut, max_events=size) == events


T3_ROW = st.tuples(st.integers(1, 64), st.just(PHOTON), st.integers(0, 2**15 - 1)) | st.tuples(
    st.integers(1, 15), st.just(MARKER), st.integers(0, 2**15 - 1)
)


@PATIENT
@given(rising(st.integers(0, 3) | st.integers(0, 2**22), T3_ROW), CUT, SIZE)
def test_ptu_t3(events, cut, size):
    tick_ps = Fraction("1.2512587663189168e-08") * 10**12
    answer = through_file("ptu", events, tick_ps, fine_tick_ps=Fraction(16), cut=cut, max_events=size)
    assert answer == events


@PATIENT
@given(rising(STEP, st.tuples(st.integers(0, 255), st.just(PHOTON), st.just(0))), CUT, SIZE)
def test_qutag(events, cut, size):
    assert through_file("qutag", events, Fraction(1), cut=cut, max_events=size) == events
    assert through_file("qutag-raw", events, Fraction(1), cut=cut, max_events=size) == events


QCRYPTO_EVENTS = rising(st.integers(0, 2) | st.integers(0, 2**40), INPUT | A_DUMMY)


@pytest.mark.parametrize("name", list(LAYOUTS))
@PATIENT
@given(events=QCRYPTO_EVENTS, cut=CUT, size=SIZE)
def test_qcrypto(name, events, cut, size):
    tick_ps = Fraction(125) if "49" in name else TDC2_TICK_PS
    assert through_file(name, events, tick_ps, cut=cut, max_events=size) == events


def without_dummies(events):
    return [event for event in events if event[2] != DUMMY]


@pytest.mark.parametrize(
    ("name", "tick_ps", "longest"), [("tdc1", Fraction(2000), 2**34), ("qcrypto-fast", TDC2_TICK_PS, 2**30)]
)
@PATIENT
@given(data=st.data(), cut=CUT, size=SIZE)
def test_words_of_a_short_counter(name, tick_ps, longest, data, cut, size):
    events = data.draw(rising(st.integers(0, 2) | st.integers(0, longest), INPUT | A_DUMMY))
    answer = through_file(name, events, tick_ps, cut=cut, max_events=size)
    assert without_dummies(answer) == without_dummies(events)
    assert set(events) <= set(answer)  # a silence has more dummies than were asked for


@PATIENT
@given(
    rising(st.integers(0, 3) | st.integers(0, 2**36 - 1), st.tuples(st.integers(0, 7), st.just(PHOTON), st.just(0))),
    CUT,
    SIZE,
)
def test_qutag_compressed(events, cut, size):
    assert through_file("qutag-compressed", events, Fraction(1), cut=cut, max_events=size) == events


@PATIENT
@given(rising(st.integers(0, 3) | st.integers(0, 2**50), st.just((1, PHOTON, 0))), CUT, SIZE)
def test_idq(events, cut, size):
    assert through_file("idq", events, Fraction(1), cut=cut, max_events=size) == events


DUMP_ROW = st.tuples(
    st.integers(1, 127) | st.integers(129, 255),
    st.sampled_from([PHOTON, PHOTON, EventKind.GAP_BEGIN, EventKind.GAP_END, EventKind.CLOCK_ERROR, EventKind.MISSED]),
    st.just(0),
)


@PATIENT
@given(rising(STEP, DUMP_ROW), CUT, SIZE)
def test_swabian_dump(events, cut, size):
    assert through_file("swabian-dump", events, Fraction(1), cut=cut, max_events=size) == events


@pytest.mark.parametrize(
    ("name", "tick_ps", "epoch"), [("qcrypto-t1", TDC2_TICK_PS, 2**37), ("qcrypto-t2", Fraction(125), 2**32)]
)
@PATIENT
@given(data=st.data(), cut=CUT, size=SIZE)
def test_epoch_files(name, tick_ps, epoch, data, cut, size):
    events = data.draw(rising(st.integers(0, 2) | st.integers(0, 2**20) | st.integers(0, 5 * epoch), INPUT))
    if events:  # a file without packets has no header
        assert through_file(name, events, tick_ps, cut=cut, max_events=size) == events


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_epoch_entries_that_were_joined_are_not_joined_again(cut):
    events = [(0, input_number, PHOTON, 0) for input_number in (1, 1, 1, 2, 1)]
    assert through_file("qcrypto-t2", events, Fraction(125), cut=cut, max_events=9) == events


ANY_EVENTS = st.lists(st.tuples(st.integers(0, 2**63 - 1), ANY_ROW).map(lambda e: (e[0], *e[1])), max_size=20)


@pytest.mark.parametrize("name", ["hdf5", "parquet", "csv"])
@PATIENT
@given(events=ANY_EVENTS, cut=CUT, size=SIZE)
def test_own_formats_hold_everything(name, events, cut, size):
    tick_ps, fine_tick_ps = Fraction(1, 3), Fraction(2**63 - 1, 10**18)
    answer = through_file(name, events, tick_ps, fine_tick_ps=fine_tick_ps, cut=cut, max_events=size)
    assert answer == events


def test_a_pattern_over_a_block_border_becomes_one_word(tmp_path):
    blocks = [block_of([(5, 1, PHOTON, 0)], TDC2_TICK_PS), block_of([(5, 3, PHOTON, 0)], TDC2_TICK_PS)]
    write_events(tmp_path / "x.ts", blocks, tick_ps=TDC2_TICK_PS)
    assert (tmp_path / "x.ts").read_bytes() == (5 << 10 | 0x300 | 0b101).to_bytes(8, "little")


def test_hdf5_keeps_the_count_of_missed_events_and_others_refuse_it(tmp_path):
    block = DetectionBlock(*(np.zeros(2, t) for t in (np.int64, np.uint8, np.uint8)), tick_ps=Fraction(1), missed=9)
    write_events(tmp_path / "x.h5", [block], tick_ps=Fraction(1))
    assert report_events(open_events(tmp_path / "x.h5"), max_events=1).missed == 9
    for name in ("ptu", "csv", "parquet", "qutag", "qcrypto-a1", "tdc1", "idq", "qcrypto-t1"):
        with pytest.raises(EventFormatError, match="MISSED"):
            write_events(tmp_path / "y", [block], name, tick_ps=Fraction(125, 32))


@pytest.mark.parametrize(
    ("name", "event", "tick_ps", "message"),
    [
        ("qutag", (1, 1, PHOTON, 0), TDC2_TICK_PS, "no whole numbers"),
        ("qutag", (1, 1, MARKER, 0), Fraction(1), "no place for MARKER"),
        ("qutag", (2**62, 1, PHOTON, 0), Fraction(4), "63 bits"),
        ("qutag", (-1, 1, PHOTON, 0), Fraction(1), "negative"),
        ("qcrypto-a1", (1, 5, PHOTON, 0), TDC2_TICK_PS, "inputs 1 to 4"),
        ("qcrypto-a1", (1, 0, PHOTON, 0), TDC2_TICK_PS, "inputs 1 to 4"),
        ("qcrypto-a1", (2**54, 1, PHOTON, 0), TDC2_TICK_PS, "54 bits"),
        ("qcrypto49-a1", (1, 1, PHOTON, 0), Fraction(10**30 + 1, 10**18), "no whole numbers"),
        ("hdf5", (1, 1, PHOTON, 0), Fraction(2**63), "63 bits"),
        ("ptu", (1, 65, PHOTON, 0), Fraction(1), "inputs 0 to 64"),
        ("ptu", (1, 16, MARKER, 0), Fraction(1), "pattern of 1 to 15"),
        ("ptu", (1, 1, EventKind.GAP_BEGIN, 0), Fraction(1), "no place for GAP_BEGIN"),
        ("ptu", (1, 1, PHOTON, 0), Fraction(1, 3), "exactly"),
        ("tdc1", (1, 5, PHOTON, 0), Fraction(2000), "inputs 1 to 4"),
        ("tdc1", (2**60, 1, PHOTON, 0), Fraction(2000), "more than 4194304 dummies"),
        ("qcrypto-fast", (2**54, 1, PHOTON, 0), TDC2_TICK_PS, "more than 4194304 dummies"),
        ("qutag-compressed", (1, 8, PHOTON, 0), Fraction(1), "channels 0 to 7"),
        ("qutag-compressed", (2**36, 1, PHOTON, 0), Fraction(1), "steps below"),
        ("idq", (2**61 + 1, 1, PHOTON, 0), Fraction(1), "up to 2\\^61"),
        ("swabian-dump", (1, 0, PHOTON, 0), Fraction(1), "channels 1 to 127"),
        ("swabian-dump", (1, 128, PHOTON, 0), Fraction(1), "channels 1 to 127"),
        ("swabian-dump", (1, 1, MARKER, 0), Fraction(1), "no place for MARKER"),
        ("qcrypto-t1", (2**54, 1, PHOTON, 0), TDC2_TICK_PS, "17 bits"),
        ("qcrypto-t2", (1, 5, PHOTON, 0), Fraction(125), "inputs 1 to 4"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_left(tmp_path, name, event, tick_ps, message):
    with pytest.raises(EventFormatError, match=message) as caught:
        write_events(tmp_path / "x", [block_of([event], tick_ps)], name, tick_ps=tick_ps)
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tick_ps", "back"),
    [("tdc1", Fraction(2000), 6000), ("qutag-compressed", Fraction(1), 2**36 + 1), ("idq", Fraction(1), 1), ("qcrypto-fast", TDC2_TICK_PS, 2**24 + 1), ("qcrypto-t1", TDC2_TICK_PS, 2**37), ("qcrypto-t2", Fraction(125), 1)],
)  # fmt: skip
def test_a_step_back_that_a_reader_would_take_for_a_wrap_is_refused(tmp_path, name, tick_ps, back):
    far = [(t, 1, PHOTON, 0) for t in range(2**20, 2**37, 2**24)] if name == "qcrypto-fast" else []
    start = 2**36 - 1 if name == "qutag-compressed" else 2**30
    steps = far or [(k * start, 1, PHOTON, 0) for k in (1, 2)] if name != "qcrypto-t1" else [(2**40, 1, PHOTON, 0)]
    events = [*steps[:9000], (steps[:9000][-1][0] - back, 1, PHOTON, 0)]
    with pytest.raises(NonMonotonicTimeError) as caught:
        write_events(tmp_path / "x", [block_of(events, tick_ps)], name, tick_ps=tick_ps)
    assert caught.value.index == len(events) - 1


def test_missed_events_of_a_dump_are_shared_out_or_refused(tmp_path):
    block = block_of([(1, 1, PHOTON, 0), (2, 0, EventKind.MISSED, 0), (3, 0, EventKind.MISSED, 0)], Fraction(1))
    for missed in (0, 7, 70_000):
        part = DetectionBlock(block.time_ticks, block.channel, block.kind, Fraction(1), missed=missed)
        write_events(tmp_path / "x.dump", [part], tick_ps=Fraction(1))
        assert report_events(open_events(tmp_path / "x.dump")).missed == missed
    part = DetectionBlock(block.time_ticks, block.channel, block.kind, Fraction(1), missed=131_071)
    with pytest.raises(EventFormatError, match="65535"):
        write_events(tmp_path / "y.dump", [part], tick_ps=Fraction(1))


@pytest.mark.parametrize("name", ["qutag", "qcrypto-a1", "ptu"])
def test_start_stop_events_do_not_lose_their_fine_time(tmp_path, name):
    block = block_of([(1, 1, PHOTON, 5)], Fraction(125), Fraction(16))
    with pytest.raises(EventFormatError, match="T3"):
        write_events(tmp_path / "x", [block], name, tick_ps=Fraction(125))


def test_a_step_back_over_an_overflow_cannot_be_written_as_ptu(tmp_path):
    blocks = [block_of([(t, 1, PHOTON, 0)], Fraction(1)) for t in (2**25 + 1, 2**25, 5)]
    with pytest.raises(NonMonotonicTimeError) as caught:
        write_events(tmp_path / "x.ptu", blocks, tick_ps=Fraction(1))
    assert caught.value.index == 2


def test_dummies_are_left_out_and_counted(tmp_path):
    blocks = [block_of([(1, 1, PHOTON, 0), (2, 0, DUMMY, 0)], Fraction(1))]
    left_out = write_events(tmp_path / "x.ptu", blocks, tick_ps=Fraction(1))
    assert (left_out.events, left_out.dummies) == (1, 1)


def test_ticks_are_converted_exactly_or_not_at_all(tmp_path):
    write_events(tmp_path / "x.ts", [block_of([(3, 1, PHOTON, 0)], Fraction(125))], tick_ps=Fraction(125))
    assert events_of(open_events(tmp_path / "x.ts", "qcrypto-a1").read_blocks()) == [(96, 1, PHOTON, 0)]


@pytest.mark.parametrize(
    ("file_name", "format_name"),
    [
        ("a.ptu", "ptu"),
        ("a.TS", "qcrypto-a1"),
        ("a.a0.ts", "qcrypto-a0"),
        ("a.h5", "hdf5"),
        ("a.qutag", "qutag"),
        ("a.fast.ts", "qcrypto-fast"),
        ("a.dump", "swabian-dump"),
    ],
)
def test_the_ending_of_a_new_file_names_its_format(file_name, format_name):
    assert format_of_name(Path(file_name)) == format_name
