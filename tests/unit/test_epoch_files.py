"""Epoch files of the qcrypto programs: folders, gaps, headers, what stays at a site, and how the chopper program does it."""

from fractions import Fraction

import numpy as np
import pytest

from qkdhw.errors import EventError, EventFormatError
from qkdhw.formats import EventDecoder, detect_format, open_events, report_events
from qkdhw.formats.epoch_packets import PacketHeader, decode_t3, decode_t4, encode_differences, encode_t3
from qkdhw.formats.qcrypto_epoch_writer import EpochLayout, write_epoch_folder, write_epochs
from qkdhw.model import DetectionBlock, EventKind

TICK_PS = {1: Fraction(125, 32), 2: Fraction(125)}
BITS = {1: 37, 2: 32}


def block_of(time, channel, packet_type=2):
    time, channel = np.asarray(time, np.int64), np.asarray(channel, np.uint8)
    return DetectionBlock(time, channel, np.zeros(len(time), np.uint8), TICK_PS[packet_type])


def write_folder(folder, time, channel, layout, **options):
    folder.mkdir(exist_ok=True)
    packet_type = layout.packet_type
    return write_epoch_folder(
        folder, [block_of(time, channel, packet_type)], tick_ps=TICK_PS[packet_type], layout=layout, **options
    )


def events_of(path, **options):
    blocks = list(open_events(path, **options).read_blocks(50))
    return [row for b in blocks for row in zip(b.time_ticks.tolist(), b.channel.tolist(), b.kind.tolist(), strict=True)]


@pytest.fixture(params=[1, 2])
def folder(request, tmp_path):
    """A folder of five epochs, one of them silent, beside a file that is none; its type and its events."""
    rng = np.random.default_rng(request.param)
    bits = BITS[request.param]
    time = np.sort(rng.integers(7 << bits, 12 << bits, 400))
    time = time[time >> bits != 9]
    channel = rng.integers(1, 5, len(time))
    layout = EpochLayout(request.param, epoch_offset=23_170 << 17, time_order=20)
    write_folder(tmp_path / "epochs", time, channel, layout)
    (tmp_path / "epochs" / "README").write_text("no epoch")
    return tmp_path / "epochs", request.param, list(zip(time.tolist(), channel.tolist(), [0] * len(time), strict=True))


def test_a_folder_is_one_stream_and_a_silent_epoch_is_no_gap(folder):
    path, packet_type, events = folder
    assert sorted(p.name for p in path.iterdir()) == ["README", *(f"{(23_170 << 17) + e:08x}" for e in range(7, 12))]
    assert detect_format(path) == f"qcrypto-t{packet_type}"
    assert events_of(path) == events
    source = open_events(path)
    assert source.header["first_epoch"] == (23_170 << 17) + 7
    assert report_events(source).anomalies == ()


def test_the_same_packets_in_one_file_are_the_same_stream(folder):
    path, packet_type, events = folder
    joined = b"".join(p.read_bytes() for p in sorted(path.iterdir()) if p.name != "README")
    decoder = EventDecoder(f"qcrypto-t{packet_type}")
    blocks = [decoder.feed(joined[a : a + 13]) for a in range(0, len(joined), 13)]
    blocks.append(decoder.finish())
    assert [t for block in blocks for t in block.time_ticks.tolist()] == [t for t, _, _ in events]


def test_an_epoch_that_is_not_there_is_a_gap(folder):
    path, packet_type, events = folder
    bits = BITS[packet_type]
    (path / f"{(23_170 << 17) + 10:08x}").unlink()
    found = events_of(path)
    assert found == [
        *[event for event in events if event[0] >> bits < 10],
        (10 << bits, 0, EventKind.GAP_BEGIN),
        (11 << bits, 0, EventKind.GAP_END),
        *[event for event in events if event[0] >> bits > 10],
    ]


def test_a_damaged_file_is_refused_by_name_or_costs_its_own_rest(folder):
    path, packet_type, events = folder
    bits = BITS[packet_type]
    victim = path / f"{(23_170 << 17) + 8:08x}"
    victim.write_bytes(victim.read_bytes()[:-30])
    with pytest.raises(EventFormatError, match=victim.name) as caught:
        events_of(path)
    assert caught.value.offset_bytes <= victim.stat().st_size
    found = events_of(path, tolerant=True)
    assert [e for e in found if e[2] == 0 and e[0] >> bits != 8] == [e for e in events if e[0] >> bits != 8]
    lost = [e for e in events if e[0] >> bits == 8 and e not in found]
    assert 0 < len(lost) < 20
    assert [e[2] for e in found if e[2]] == [EventKind.GAP_BEGIN, EventKind.GAP_END]
    report = report_events(open_events(path, tolerant=True))
    assert report.missing_records == len(lost)


def test_short_epochs_go_round(tmp_path):
    time = [(131_070 << 32) + 5, (131_071 << 32) + 6, (131_072 << 32) + 7]
    write_epochs(tmp_path / "x.t2", [block_of(time, [1, 2, 3])], tick_ps=Fraction(125), layout=EpochLayout(2))
    assert [t for t, _, _ in events_of(tmp_path / "x.t2")] == time
    assert open_events(tmp_path / "x.t2").header["extended_epoch"] is False


@pytest.mark.parametrize(
    ("protocol", "bases", "values"), [(1, [0, 1, 0, 1], [0, 0, 1, 1]), (6, [0, 0, 1, 1], [1, 0, 1, 0])]
)
def test_bases_go_to_the_peer_and_values_stay(tmp_path, protocol, bases, values):
    (tmp_path / "t3").mkdir()
    layout = EpochLayout(2, protocol=protocol)
    write_folder(tmp_path / "t2", [100, 200, 300, 400], [1, 2, 3, 4], layout, values_folder=tmp_path / "t3")
    assert events_of(tmp_path / "t2") == [(100 * (i + 1), 1 + base, 0) for i, base in enumerate(bases)]
    header, kept = decode_t3((tmp_path / "t3" / "00000000").read_bytes())
    assert (header.length, header.entry_bits, kept.tolist()) == (4, 1, values)


def test_as_the_chopper_program_does_it(tmp_path):
    time = [100, 101, 101, 5000, (2 << 32) + 3]
    layout = EpochLayout(2, protocol=1, as_chopper=True)
    (tmp_path / "t3").mkdir()
    left_out = write_folder(tmp_path / "t2", time, [1, 2, 3, 4, 1], layout, values_folder=tmp_path / "t3")
    # An event at the time of the one before is dropped; one a unit later makes what follows late by two.
    assert left_out.events == 4
    assert sorted(p.name for p in (tmp_path / "t2").iterdir()) == ["00000000", "00000002"]
    wanted = [(100, 1, 0), (103, 2, 0), (5002, 2, 0), (1 << 32, 0, 2), (2 << 32, 0, 3), ((2 << 32) + 3, 1, 0)]
    assert events_of(tmp_path / "t2") == wanted
    assert decode_t3((tmp_path / "t3" / "00000000").read_bytes())[1].tolist() == [0, 0, 1]
    exact = EpochLayout(2, protocol=1)
    write_folder(tmp_path / "exact", time, [1, 2, 3, 4, 1], exact)
    assert [t for t, _, kind in events_of(tmp_path / "exact")] == time


@pytest.mark.parametrize(
    ("packet_type", "header", "what"),
    [
        (1, [1, 5, 0, 48, 4], "entry_bits is 48"),
        (1, [1, 5, 0, 49, 3], "base_bits is 3"),
        (1, [2, 5, 0, 49, 4], "not those of a type-1"),
        (1, [0x201, 5, 0, 49, 4], "not those of a type-1"),
        (1, [1, 1 << 17, 0, 49, 4], "not those of a type-1"),
        (2, [2, 5, 0, 1, 1, 1], "time_order is 1"),
        (2, [2, 5, 0, 32, 1, 1], "time_order is 32"),
        (2, [2, 5, 0, 17, 5, 1], "base_bits is 5"),
        (2, [2, 5, 0, 17, 1, 7], "protocol is 7"),
        (3, [3, 5, 0, 9], "entry_bits is 9"),
        (4, [4, 5, 0, 17, 9], "base_bits is 9"),
        (4, [4, 5], "cut"),
    ],
)
def test_headers_are_strict(packet_type, header, what):
    with pytest.raises(EventFormatError, match=what) as caught:
        PacketHeader.parse(np.array(header, "<u4").tobytes(), packet_type)
    assert caught.value.remedy


def test_headers_come_back():
    for header in (
        PacketHeader(1, 5, length=7, base_bits=4, entry_bits=49),
        PacketHeader(2, 2**32 - 1, True, 7, 17, 1, 6),
        PacketHeader(3, 5, length=7, entry_bits=8),
        PacketHeader(4, 5, True, 7, 12, 1),
    ):
        assert PacketHeader.parse(header.pack(), header.packet_type) == header


def test_a_count_that_is_wrong_is_refused():
    packet, _ = encode_differences(
        PacketHeader(2, 5, time_order=17, base_bits=1, protocol=1), np.array([9, 99]), np.zeros(2, np.uint8)
    )
    decoder = EventDecoder("qcrypto-t2")
    with pytest.raises(EventFormatError, match="2 entries and its header says 3"):
        decoder.feed(packet[:8] + b"\x03" + packet[9:])


def test_bodies_of_types_3_and_4_that_are_wrong():
    t3 = encode_t3(5, np.arange(9, dtype=np.uint8), entry_bits=4)
    for wrong in (t3[:-4], t3 + bytes(4)):
        with pytest.raises(EventFormatError, match="bytes after its header"):
            decode_t3(wrong)
    t4, _ = encode_differences(
        PacketHeader(4, 5, time_order=9, base_bits=1), np.array([0, 7, 4000]), np.zeros(3, np.uint8)
    )
    assert decode_t4(t4)[1].tolist() == [0, 7, 4000]
    for wrong in (t4[:-4], t4 + bytes(4), t4[:8] + b"\x04" + t4[9:]):
        with pytest.raises(EventFormatError, match="goes wrong"):
            decode_t4(wrong)


def test_epochs_that_do_not_rise_are_refused(tmp_path):
    time = [5, 1 << 32]
    write_epochs(tmp_path / "x.t2", [block_of(time, [1, 2])], tick_ps=Fraction(125), layout=EpochLayout(2))
    data = (tmp_path / "x.t2").read_bytes()
    decoder = EventDecoder("qcrypto-t2")
    decoder.feed(data)
    with pytest.raises(EventFormatError, match="does not follow") as caught:
        decoder.feed(data)
    assert caught.value.offset_bytes == len(data)


def test_folders_without_epochs_and_layouts_that_are_none(tmp_path):
    with pytest.raises(EventError):
        open_events(tmp_path)
    with pytest.raises(EventFormatError, match="no epoch files"):
        open_events(tmp_path, "qcrypto-t2")
    for wrong in ({"protocol": 2}, {"time_order": 3}, {"time_order": 28}, {"epoch_offset": 5}):
        with pytest.raises(ValueError, match="must be"):
            EpochLayout(2, **wrong)


def test_a_long_silence_is_refused(tmp_path):
    blocks = [block_of([5, (2**16 + 2) << 32], [1, 1])]
    with pytest.raises(EventFormatError, match="silence"):
        write_epochs(tmp_path / "x.t2", blocks, tick_ps=Fraction(125), layout=EpochLayout(2))
