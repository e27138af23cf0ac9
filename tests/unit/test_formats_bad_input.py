"""Damaged files, unknown files and full disks: typed errors that say where, and nothing half-written."""

import resource
import struct
import sys
from contextlib import contextmanager, suppress
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qkdhw.errors import ConfigurationError, EventError, EventFormatError, QkdhwError
from qkdhw.formats import FORMATS, detect_format, format_of_name, open_events, report_events, write_events
from qkdhw.model import DetectionBlock

OWN = {"hdf5", "parquet", "csv"}
EPOCHS = {"qcrypto-t1", "qcrypto-t2"}
NAMELESS = {"qutag-raw", "qutag-compressed", "qcrypto-fast", "tdc1", "idq"}


def tick_of(name):
    if name.startswith(("qutag", "ptu", "idq", "swabian")):
        return Fraction(1)
    if name == "tdc1":
        return Fraction(2000)
    return Fraction(125) if "49" in name or name == "qcrypto-t2" else Fraction(125, 32)


def some_events(n, tick_ps, inputs=4):
    rng = np.random.default_rng(5)
    return DetectionBlock(
        time_ticks=np.cumsum(rng.integers(1, 3_000_000, n)),
        channel=rng.integers(1, inputs + 1, n).astype(np.uint8),
        kind=np.zeros(n, np.uint8),
        tick_ps=tick_ps,
    )


def write(path, name, n=100):
    inputs = 1 if name == "idq" else 4
    write_events(path, [some_events(n, tick_of(name), inputs)], name, tick_ps=tick_of(name))
    return path


@contextmanager
def files_end_at(limit_bytes):
    """Let every write beyond a size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python would cut the byte code of what is imported meanwhile, and never notice.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = before


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_leaves_nothing_behind(tmp_path, name):
    old = tmp_path / "events"
    old.write_bytes(b"what was there before")
    with files_end_at(4096), pytest.raises(EventError, match="cannot write") as caught:
        write(old, name, n=20_000)
    assert caught.value.remedy
    assert [p.name for p in tmp_path.iterdir()] == ["events"]
    assert old.read_bytes() == b"what was there before"


def test_an_error_of_the_reader_leaves_no_copy_behind(tmp_path):
    def blocks():
        yield some_events(10, Fraction(1))
        raise EventFormatError("damaged", offset_bytes=7)

    for name in ("ptu", "qutag", "hdf5", "parquet", "csv"):
        with pytest.raises(EventFormatError, match="damaged"):
            write_events(tmp_path / "x", blocks(), name, tick_ps=Fraction(1))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(EventError, match="cannot write") as caught:
        write(tmp_path / "none" / "x.ptu", "ptu")
    assert "make the folder" in caught.value.remedy
    assert "space" not in caught.value.remedy
    (tmp_path / "file").write_text("")
    with pytest.raises(EventError, match="cannot write") as caught:
        write(tmp_path / "file" / "x.ptu", "ptu")
    assert "part of this path is a file" in caught.value.remedy


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(EventError, match="cannot read"):
        open_events(tmp_path / "none", name)
    with pytest.raises(EventError, match="cannot read"):
        open_events(tmp_path / "none")


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in OWN | EPOCHS])
def test_a_cut_file_says_where_and_is_read_as_far_as_it_goes_if_asked(tmp_path, name):
    path = write(tmp_path / "events", name)
    size_bytes = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(EventFormatError, match="byte") as caught:
        report_events(open_events(path, name))
    assert caught.value.offset_bytes is not None
    assert size_bytes - 40 < caught.value.offset_bytes < size_bytes
    assert "--tolerant" in caught.value.remedy
    report = report_events(open_events(path, name, tolerant=True))
    assert report.events == 99
    assert report.anomalies


@pytest.mark.parametrize("name", ["hdf5", "parquet", "csv"])
def test_a_cut_file_of_our_own_formats(tmp_path, name):
    path = write(tmp_path / "events", name)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(EventFormatError, match="events"):
        report_events(open_events(path, name))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in NAMELESS])
def test_the_format_is_found_from_the_content(tmp_path, name):
    assert detect_format(write(tmp_path / "events.dat", name)) == name


def test_words_of_a_tdc2_that_imitates_the_older_cards_are_told_by_their_clear_bits(tmp_path):
    time = np.arange(50, dtype=np.uint64) << np.uint64(15)
    (tmp_path / "x").write_bytes((time | np.uint64(0x301)).tobytes())
    assert detect_format(tmp_path / "x") == "qcrypto49-a1"


def test_a_file_too_short_to_tell_asks_for_its_format(tmp_path):
    (tmp_path / "x").write_bytes((0x301).to_bytes(8, "little"))
    with pytest.raises(EventFormatError, match="too short to tell") as caught:
        detect_format(tmp_path / "x")
    assert "--format" in caught.value.remedy
    assert report_events(open_events(tmp_path / "x", "qcrypto-a1")).events == 1


@pytest.mark.parametrize("content", [b"", b"PQT", b"hello, this is text\n" * 9, bytes(range(256)) * 4, b"zz\n", b"\n"])
def test_what_is_no_event_file(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(EventFormatError) as caught:
        open_events(tmp_path / "x")
    assert caught.value.remedy


@pytest.mark.parametrize("name", FORMATS)
def test_the_wrong_magic(tmp_path, name):
    (tmp_path / "x").write_bytes(b"none of them\n" * 20 + b"x")
    with pytest.raises(EventFormatError):
        report_events(open_events(tmp_path / "x", name))


def test_unknown_names():
    with pytest.raises(ConfigurationError, match="no event format"):
        open_events("x", "ttbin")
    with pytest.raises(ConfigurationError, match="does not say"):
        format_of_name(__import__("pathlib").Path("x.xyz"))


def test_a_bad_line_of_text_is_named(tmp_path):
    path = write(tmp_path / "x", "qcrypto-a2")
    data = bytearray(path.read_bytes())
    data[17 * 50 + 3] = ord("g")
    path.write_bytes(data)
    with pytest.raises(EventFormatError) as caught:
        list(open_events(path, "qcrypto-a2").read_blocks(7))
    assert caught.value.offset_bytes == 17 * 50


def test_text_whose_last_line_end_is_missing_is_whole(tmp_path):
    for name in ("qcrypto-a0", "qcrypto-a2"):
        path = write(tmp_path / "x", name)
        path.write_bytes(path.read_bytes()[:-1])
        assert report_events(open_events(path)).events == 100


@pytest.mark.parametrize("bad", [b"1,2\n", b"1,2,3,4\n", b"1,2,x\n", b"-1,1,0\n", b"1,256,0\n", b"1,1,7\n", b"1,1,0"])
def test_bad_lines_of_csv(tmp_path, bad):
    head = b"# qkdhw events 1 tick_ps=1\ntime_ticks,channel,kind\n5,1,0\n"
    (tmp_path / "x").write_bytes(head + bad)
    with pytest.raises(EventFormatError) as caught:
        list(open_events(tmp_path / "x").read_blocks())
    assert caught.value.offset_bytes == len(head)


def ptu_with(tmp_path, old, new):
    path = write(tmp_path / "x.ptu", "ptu")
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


def tag(name, kind, value):
    return name.encode().ljust(32, b"\0") + struct.pack("<iI", -1, kind) + value


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (tag("Measurement_Mode", 0x10000008, b""), tag("Measurement_Mode", 0x12345678, b""), "unknown tag type"),
        (b"TTResultFormat_TTTRRecType", b"TTResultFormat_TTTRRecTypo", "unknown record type"),
        (struct.pack("<q", 0x00010207), struct.pack("<q", 0x00010209), "unknown record type 0x00010209"),
        (b"MeasDesc_GlobalResolution", b"MeasDesc_GlobalResolutiom", "GlobalResolution is missing"),
        (b"TTResult_NumberOfRecords", b"TTResult_NumberOfRecordz", "NumberOfRecords is missing"),
        (tag("File_GUID", 0x4001FFFF, struct.pack("<q", 40)), tag("File_GUID", 0x4001FFFF, struct.pack("<q", 2**40)), "beyond"),
        (b"Header_End", b"Header_Emd", "Header_End|unknown tag type"),
        (tag("TTResultFormat_BitsPerRecord", 0x10000008, struct.pack("<q", 32)), tag("TTResultFormat_BitsPerRecord", 0x10000008, struct.pack("<q", 64)), "32 bits"),
    ],
)  # fmt: skip
def test_damaged_ptu_headers(tmp_path, old, new, message):
    with pytest.raises(EventFormatError, match=message) as caught:
        open_events(ptu_with(tmp_path, old, new))
    assert caught.value.offset_bytes is not None


@pytest.mark.parametrize("length", [4, 8, 15, 16, 40, 63, 64, 100, 300, 535])
def test_a_cut_ptu_header(tmp_path, length):
    path = write(tmp_path / "x.ptu", "ptu")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(EventFormatError):
        open_events(path, "ptu", tolerant=True)


def test_a_ptu_of_a_measurement_that_was_cut_off(tmp_path):
    path = write(tmp_path / "x.ptu", "ptu")
    whole = report_events(open_events(path))
    count = tag("TTResult_NumberOfRecords", 0x10000008, struct.pack("<q", whole.records))
    path.write_bytes(path.read_bytes().replace(count, count[:40] + bytes(8)))
    with pytest.raises(EventFormatError, match="promises 0 records"):
        open_events(path)
    assert report_events(open_events(path, tolerant=True)).events == 100


def test_invalid_ptu_records_are_refused_with_their_offset_or_become_gaps_and_are_counted(tmp_path):
    path = write(tmp_path / "x.ptu", "ptu")
    header = open_events(path).header["header_bytes"]
    data = bytearray(path.read_bytes())
    records = (len(data) - header) // 4
    words = np.frombuffer(data, "<u4", offset=header)
    victims = np.flatnonzero(words < 2**31)[[20, 60]]
    for i in victims:
        data[header + 4 * i : header + 4 * i + 4] = (1 << 31 | 20 << 25).to_bytes(4, "little")
    path.write_bytes(data)
    for size in (1, 7, 1000):
        with pytest.raises(EventFormatError) as caught:
            list(open_events(path).read_blocks(size))
        assert caught.value.offset_bytes == header + 4 * victims[0]
        report = report_events(open_events(path, tolerant=True), max_events=size)
        assert (report.records, report.invalid_records) == (records, 2)
        assert report.kinds == {"photon": 98, "gap_begin": 2, "gap_end": 2}
        assert any(str(header + 4 * victims[0]) in line for line in report.anomalies)


def test_a_qutag_file_cut_between_records_is_told_by_its_header(tmp_path):
    path = write(tmp_path / "x.qutag", "qutag")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(EventFormatError, match="promises 1040") as caught:
        open_events(path)
    assert caught.value.offset_bytes == 1010
    report = report_events(open_events(path, tolerant=True))
    assert (report.events, report.missing_records) == (97, 3)


def test_a_qutag_channel_above_255(tmp_path):
    path = write(tmp_path / "x.qutag", "qutag")
    data = bytearray(path.read_bytes())
    data[40 + 10 * 30 + 9] = 1
    path.write_bytes(data)
    with pytest.raises(EventFormatError) as caught:
        list(open_events(path).read_blocks(9))
    assert caught.value.offset_bytes == 40 + 10 * 30
    report = report_events(open_events(path, tolerant=True))
    assert (report.invalid_records, report.kinds) == (1, {"photon": 99, "gap_begin": 1, "gap_end": 1})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(list(FORMATS)), st.data())
def test_garbage_gives_events_or_a_typed_error_and_nothing_else(tmp_path, name, data):
    path = write(tmp_path / "x", name, n=20)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for tolerant in (False, True):
        with suppress(QkdhwError):
            for block in open_events(path, name, tolerant=tolerant).read_blocks(9):
                assert len(block.channel) == len(block.kind) == len(block)


def test_a_block_size_of_zero_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="max_events"):
        list(open_events(write(tmp_path / "x", "csv")).read_blocks(0))


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = write(tmp_path / "x.ptu", "ptu", n=3000)
    blocks = open_events(path).read_blocks(5)
    next(blocks)
    with path.open("r+b") as file:
        file.truncate(file.seek(0, 2) - 2000)
    with pytest.raises(EventFormatError, match="while it is being read"):
        list(blocks)


@pytest.mark.parametrize(("ending", "ticks"), [("csv", -1), ("csv", -(2**63)), ("ptu", 2**60), ("ptu", 2**63 - 1)])
def test_times_that_a_format_cannot_give_back_are_not_written(tmp_path, ending, ticks):
    block = DetectionBlock(np.array([ticks]), np.ones(1, np.uint8), np.zeros(1, np.uint8), Fraction(1))
    with pytest.raises(EventFormatError, match="hold"):
        write_events(tmp_path / f"x.{ending}", [block], tick_ps=Fraction(1))
    assert list(tmp_path.iterdir()) == []


def test_ptu_times_up_to_the_limit_are_read_as_written(tmp_path):
    ticks = np.array([0, 2**60 - 1])
    block = DetectionBlock(ticks, np.ones(2, np.uint8), np.zeros(2, np.uint8), Fraction(1))
    write_events(tmp_path / "x.ptu", [block], tick_ps=Fraction(1))
    assert [t for b in open_events(tmp_path / "x.ptu").read_blocks() for t in b.time_ticks.tolist()] == ticks.tolist()


def test_a_gap_of_more_overflows_than_fit_is_not_written(tmp_path):
    sync = np.array([0, 2**50])
    block = DetectionBlock(
        sync, np.ones(2, np.uint8), np.zeros(2, np.uint8), Fraction(12500), np.zeros(2, np.uint16), Fraction(1)
    )
    with pytest.raises(EventFormatError, match="overflow records"):
        write_events(tmp_path / "x.ptu", [block], tick_ps=Fraction(12500), fine_tick_ps=Fraction(1))
