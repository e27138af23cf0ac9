"""What stands after a format's name (`idq:channel=3`): read and written alike by the library and by the commands."""

import json
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_events_cli import qkdhw

from qkdhw.errors import ConfigurationError, EventFormatError
from qkdhw.formats import FORMATS, EventDecoder, open_events, write_events
from qkdhw.formats.epoch_packets import PacketHeader
from qkdhw.formats.format_options import OPTIONS
from qkdhw.formats.swabian import DumpDecoder, write_dump
from qkdhw.model import DetectionBlock, EventKind

LAYOUTS = Path(__file__).parents[1] / "vectors" / "layouts"
LIST = "swabian-dump:channels=101,-101,201,-300001"


def block(rows, tick_ps=Fraction(1), missed=0):
    time, channel, kind = zip(*rows, strict=True)
    columns = np.array(time, np.int64), np.array(channel, np.uint8), np.array(kind, np.uint8)
    return DetectionBlock(*columns, tick_ps=tick_ps, missed=missed)


def rows_of(blocks):
    return [row for b in blocks for row in zip(*(a.tolist() for a in (b.time_ticks, b.channel, b.kind)), strict=True)]


def wanted(name):
    lines = (LAYOUTS / f"{name}.events").read_text().splitlines()[1:]
    return [(int(t), int(c), int(EventKind[k.upper()])) for t, c, k in (line.split() for line in lines)]


def test_idq_options_read_what_their_names_say():
    for name, text in (
        ("idq-reference", "idq:channel=3:reference_period_ps=12500"),
        ("idq-records", "idq:record_period_ps=2000000000"),
    ):
        source = open_events(LAYOUTS / f"{name}.bin", text)
        assert rows_of(source.read_blocks()) == wanted(name)
        assert source.format == "idq"
        decoder = EventDecoder(text)
        data = (LAYOUTS / f"{name}.bin").read_bytes()
        assert rows_of([decoder.feed(data[:11]), decoder.feed(data[11:]), decoder.finish()]) == wanted(name)


def test_options_of_writing_make_the_golden_bytes(tmp_path):
    for name, text in (
        ("idq-reference", "idq:reference_period_ps=12500"),
        ("qcrypto-t2", "qcrypto-t2:protocol=1:time_order=8:epoch_offset=1698824192"),
        ("qcrypto-t2-service", "qcrypto-t2"),
    ):
        tick_ps = Fraction((LAYOUTS / f"{name}.events").read_text().split()[1])
        write_events(tmp_path / name, [block(wanted(name), tick_ps)], text, tick_ps=tick_ps)
        assert (tmp_path / name).read_bytes() == (LAYOUTS / f"{name}.bin").read_bytes()


def test_extended_epochs_of_type_1_and_the_chopper_s_way(tmp_path):
    path = tmp_path / "x"
    write_events(path, [block([(9, 1, 0)], Fraction(125, 32))], "qcrypto-t1:epoch_offset=131072", tick_ps=Fraction(125, 32))  # fmt: skip
    header = PacketHeader.parse(path.read_bytes(), 1)
    assert (header.extended, header.epoch) == (True, 131072)
    events = block([(100, 1, 0), (101, 2, 0), (101, 3, 0), (200, 4, 0)], Fraction(125))
    chopped = "qcrypto-t2:protocol=1:time_order=8:as_chopper=yes"
    assert write_events(path, [events], chopped, tick_ps=Fraction(125)).events == 3
    assert path.read_bytes() == (LAYOUTS / "qcrypto-t2-chopper.bin").read_bytes()
    assert write_events(path, [events], chopped.replace("yes", "no"), tick_ps=Fraction(125)).events == 4


def test_a_tick_of_another_instrument():
    source = open_events(LAYOUTS / "qutag-compressed.bin", "qutag-compressed:tick_ps=80.955")
    assert source.tick_ps == Fraction("80.955")
    (part,) = source.read_blocks()
    assert part.tick_ps == Fraction("80.955")


def dump(*rows):
    return b"".join(struct.pack("<BBHiq", *row) for row in rows)


def test_channels_beyond_127_have_the_numbers_of_their_list(tmp_path):
    data = dump(
        (0, 0, 0, 101, 10), (0, 0, 0, -101, 11), (0, 0, 0, 201, 12), (0, 0, 0, -300001, 13), (2, 0, 0, 0, 14),
        (4, 0, 5, 201, 15), (3, 0, 0, 0, 16),
    )  # fmt: skip
    (tmp_path / "x.dump").write_bytes(data)
    with pytest.raises(EventFormatError, match="channels=LIST") as caught:
        list(open_events(tmp_path / "x.dump", "swabian-dump").read_blocks())
    assert caught.value.offset_bytes == 32  # 101 and -101 are within 127
    source = open_events(tmp_path / "x.dump", LIST)
    blocks = list(source.read_blocks())
    assert rows_of(blocks) == [(10, 1, 0), (11, 2, 0), (12, 3, 0), (13, 4, 0), (14, 0, 2), (15, 3, 4), (16, 0, 3)]
    assert sum(part.missed for part in blocks) == 5
    write_events(tmp_path / "y.dump", blocks, LIST, tick_ps=Fraction(1))
    assert (tmp_path / "y.dump").read_bytes() == data


def test_a_channel_that_is_not_in_the_list_is_invalid(tmp_path):
    path = tmp_path / "x.dump"
    for other in (1, 102, -201, 300001, 2**31 - 1, -(2**31), 0):
        path.write_bytes(dump((0, 0, 0, 101, 10), (0, 0, 0, other, 11), (0, 0, 0, 201, 12)))
        with pytest.raises(EventFormatError) as caught:
            list(open_events(path, LIST).read_blocks())
        assert caught.value.offset_bytes == 16
        tolerant = list(open_events(path, LIST, tolerant=True).read_blocks())
        assert rows_of(tolerant) == [(10, 1, 0), (10, 0, 2), (12, 0, 3), (12, 3, 0)]
    with pytest.raises(EventFormatError, match="4 channels that are listed"):
        write_events(path, [block([(1, 5, 0)])], LIST, tick_ps=Fraction(1))


def test_wrong_lists_are_the_caller_s_mistake(tmp_path):
    for channels in ((0,), (1, 1), (1 << 31,), tuple(range(1, 129))):
        with pytest.raises(ValueError, match="channels"):
            DumpDecoder(channels=channels)
        with pytest.raises(ValueError, match="channels"):
            write_dump(tmp_path / "x", [], tick_ps=Fraction(1), channels=channels)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("idq:", "''"),
        ("idq:channel", "'channel'"),
        ("idq:channel=", "OPTION=VALUE"),
        ("idq:channel=1:channel=2", "twice"),
        ("idq:channel=0", "from 1 to 255"),
        ("idq:channel=256", "from 1 to 255"),
        ("idq:channel=-1", "from 1 to 255"),
        ("idq:channel=³", "from 1 to 255"),
        ("idq:channel=" + "9" * 5000, "from 1 to 255"),
        ("idq:record_period_ps=0", "from 1"),
        ("idq:resolution=4", "without an option 'resolution'"),
        ("tdc1:channel=1", "without an option 'channel'"),
        ("csv:channel=1", "without an option 'channel'"),
        ("qcrypto-t2:protocol=1", "are read without an option 'protocol'"),
        ("qutag-compressed:tick_ps=0", "above 0"),
        ("qutag-compressed:tick_ps=1/0", "impossible"),
        ("qutag-compressed:tick_ps=1e9999999", "impossible"),
        ("swabian-dump:channels=1,,2", "whole numbers"),
        ("swabian-dump:channels=1,1", "different"),
        ("swabian-dump:channels=0", "different"),
        ("swabian-dump:channels=99999999999", "whole numbers"),
        ("ttbin:channel=1", "there is no event format 'ttbin'"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(text, said):
    with pytest.raises(ConfigurationError) as caught:
        open_events(LAYOUTS / "idq.bin", text)
    assert said in str(caught.value)
    assert caught.value.remedy
    with pytest.raises(ConfigurationError):
        EventDecoder(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qcrypto-t2:protocol=2", "one of 0, 1, 6"),
        ("qcrypto-t2:time_order=28", "from 4 to 27"),
        ("qcrypto-t1:protocol=1", "without an option"),
        ("qcrypto-t1:epoch_offset=1", "multiple of 131072"),
        ("qcrypto-t1:as_chopper=1", "yes or no"),
        ("idq:channel=2", "are written without an option 'channel'"),
    ],
)
def test_what_is_wrong_with_writing_so_is_said_before_anything_is_written(tmp_path, text, said):
    with pytest.raises(ConfigurationError) as caught:
        write_events(tmp_path / "x", [block([(1, 1, 0)])], text, tick_ps=Fraction(1))
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_every_option_has_its_place():
    assert {name: known.options for name, known in FORMATS.items() if known.options} == OPTIONS
    assert all(each.reading or each.writing for options in OPTIONS.values() for each in options)


GAPS = [(5, 1, 0), (5, 0, 2), (9, 0, 3), (9, 2, 0), (11, 1, 0), (11, 0, 2), (20, 0, 3), (20, 3, 0)]


def test_gaps_are_dropped_only_when_asked_and_counted(tmp_path):
    for size in (1, 2, 3, 8):
        blocks = [block(GAPS[first : first + size]) for first in range(0, len(GAPS), size)]
        with pytest.raises(EventFormatError, match="GAP_BEGIN") as caught:
            write_events(tmp_path / "x.ptu", blocks, tick_ps=Fraction(1))
        assert "--drop-gaps" in caught.value.remedy
        left_out = write_events(tmp_path / "x.qutag", blocks, tick_ps=Fraction(1), drop_gaps=True)
        assert (left_out.events, left_out.gaps) == (4, 2)
        photons = [row for row in GAPS if row[2] == 0]
        assert rows_of(open_events(tmp_path / "x.qutag").read_blocks()) == photons
        kept = write_events(tmp_path / "x.dump", blocks, tick_ps=Fraction(1), drop_gaps=True)
        assert (kept.events, kept.gaps) == (8, 0)


def test_an_end_without_a_begin_is_a_gap_too_and_missed_events_are_never_dropped(tmp_path):
    end = block([(5, 0, 3), (6, 1, 0), (6, 0, 2), (8, 0, 3)])
    assert write_events(tmp_path / "x.qutag", [end], tick_ps=Fraction(1), drop_gaps=True).gaps == 2
    missed = block([(5, 0, 2), (6, 1, 4), (7, 0, 3)], missed=3)
    with pytest.raises(EventFormatError, match="MISSED"):
        write_events(tmp_path / "y.qutag", [missed], tick_ps=Fraction(1), drop_gaps=True)
    assert not (tmp_path / "y.qutag").exists()


def test_gaps_of_start_stop_events_are_dropped_with_their_fine_times(tmp_path):
    rows = block([(5, 1, 0), (5, 0, 2), (9, 0, 3), (9, 2, 0)], Fraction(12500))
    t3 = DetectionBlock(
        rows.time_ticks, rows.channel, rows.kind, rows.tick_ps, np.array([7, 0, 0, 8], np.uint16), Fraction(16)
    )
    left_out = write_events(tmp_path / "x.ptu", [t3], tick_ps=t3.tick_ps, fine_tick_ps=Fraction(16), drop_gaps=True)
    (part,) = open_events(tmp_path / "x.ptu").read_blocks()
    assert (left_out.gaps, part.fine_ticks.tolist(), part.channel.tolist()) == (1, [7, 8], [1, 2])


def test_the_commands_say_it(tmp_path):
    data = dump((0, 0, 0, 101, 10), (0, 0, 0, 201, 12), (9, 0, 0, 201, 13), (0, 0, 0, -101, 14))
    (tmp_path / "x.dump").write_bytes(data)
    arguments = ("convert", tmp_path / "x.dump", tmp_path / "x.qutag", "--format", LIST, "--tolerant")
    refused = qkdhw(*arguments)
    assert refused.returncode == 1
    assert "GAP_BEGIN" in refused.stderr
    assert "--drop-gaps" in refused.stderr
    done = qkdhw(*arguments, "--drop-gaps")
    assert done.returncode == 0, done.stderr
    assert "3 events written" in done.stdout
    assert "1 gap left out: x.qutag does not show where events are missing" in done.stdout
    assert "1 invalid records skipped" in done.stdout
    found = json.loads(qkdhw(*arguments, "--drop-gaps", "--force", "--json").stdout)
    assert (found["gaps_left_out"], found["invalid_records"]) == (1, 1)
    into = ("convert", LAYOUTS / "qcrypto-t2.bin", tmp_path / "y", "--out-format")
    again = qkdhw(*into, "qcrypto-t2:protocol=1:time_order=8:epoch_offset=1698824192")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "y").read_bytes() == (LAYOUTS / "qcrypto-t2.bin").read_bytes()
    wrong = qkdhw("info", LAYOUTS / "idq.bin", "--format", "idq:channel=300")
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (1, False)
    assert "from 1 to 255" in wrong.stderr


def test_commands_of_two_files_take_formats_that_no_content_tells(tmp_path):
    for path, channel in ((tmp_path / "a.bin", 1), (tmp_path / "b.bin", 1)):
        rows = [(1000 * k + 40 * (path.name == "b.bin"), channel, 0) for k in range(1, 51)]
        write_events(path, [block(rows)], "idq", tick_ps=Fraction(1))
    unnamed = qkdhw("coincidences", tmp_path / "a.bin", tmp_path / "b.bin", "--channels", "2,102")
    assert (unnamed.returncode, "--format" in unnamed.stderr) == (1, True)
    named = ("--format", "idq:channel=2", "--json")
    found = json.loads(qkdhw("coincidences", tmp_path / "a.bin", tmp_path / "b.bin", "--channels", "2,102", "--window", "101", *named).stdout)  # fmt: skip
    assert (found["singles_2"], found["singles_102"], found["coincidences"]) == (50, 50, 50)
    delays = json.loads(qkdhw("correlate", tmp_path / "a.bin", tmp_path / "b.bin", "--start", "2", "--stop", "102", *named).stdout)  # fmt: skip
    assert (delays["start_events"], abs(delays["largest_delay_ps"] - 40) <= 5) == (50, True)  # bins of 10 ps
    counted = json.loads(qkdhw("process", tmp_path / "a.bin", tmp_path / "b.bin", *named).stdout)
    assert [file["facts"]["channels"] for file in counted["files"]] == [{"2": 50}, {"2": 50}]


def test_the_options_are_listed():
    listed = json.loads(qkdhw("formats", "--json").stdout)
    assert listed["idq"]["options"]["channel"]["reading"] is True
    assert listed["tdc1"]["options"] == {}
    assert "swabian-dump:channels=" in qkdhw("formats").stdout
