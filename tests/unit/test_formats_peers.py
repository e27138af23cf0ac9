"""Files that our writers make, read by independent programs: ptufile, tttrlib and fpfind."""

from fractions import Fraction

import fpfind
import numpy as np
import ptufile
import pytest
import tttrlib
from fpfind.lib import parse_epochs, parse_timestamps

from qkdhw.formats import EventDecoder, open_events, write_events
from qkdhw.formats.epoch_packets import PacketHeader, decode_t4, encode_differences
from qkdhw.formats.qcrypto_epoch_writer import EpochLayout, write_epoch_folder
from qkdhw.model import DetectionBlock, EventKind

TDC2_TICK_PS = Fraction(125, 32)
EXACT = {"resolution": fpfind.TSRES.PS4, "fractional": False}


def block_of(time, channel, tick_ps, kind=None, fine=None):
    kind = np.zeros(len(time), np.uint8) if kind is None else kind
    fine_tick_ps = None if fine is None else Fraction(16)
    return DetectionBlock(time, channel.astype(np.uint8), kind.astype(np.uint8), tick_ps, fine, fine_tick_ps)


def some_times(n, longest, seed):
    return np.cumsum(np.random.default_rng(seed).integers(1, longest, n))


@pytest.fixture(scope="module")
def t2(tmp_path_factory):
    """A T2 file with silences of up to 100 overflows in one record, and its events."""
    rng = np.random.default_rng(1)
    time = some_times(5000, 1_000_000, 2) + np.cumsum(rng.integers(0, 200, 5000) // 198 * 100 * 2**25)
    kind = np.where(rng.random(5000) < 0.02, EventKind.MARKER, EventKind.PHOTON)
    block = block_of(time, rng.integers(1, 5, 5000), Fraction(1), kind)
    path = tmp_path_factory.mktemp("ptu") / "t2.ptu"
    write_events(path, [block], tick_ps=Fraction(1))
    return path, block


@pytest.fixture(scope="module")
def t3(tmp_path_factory):
    rng = np.random.default_rng(3)
    sync = some_times(5000, 300, 4)
    fine = rng.integers(0, 2**15, 5000).astype(np.uint16)
    block = block_of(sync, rng.integers(1, 5, 5000), Fraction(12500), fine=fine)
    path = tmp_path_factory.mktemp("ptu") / "t3.ptu"
    write_events(path, [block], tick_ps=Fraction(12500), fine_tick_ps=Fraction(16))
    return path, block


def test_tttrlib_reads_our_t2(t2):
    path, block = t2
    found = tttrlib.TTTR(str(path), "PTU")
    photon = found.event_types == 0
    ours = block.kind == EventKind.PHOTON
    np.testing.assert_array_equal(found.macro_times[photon].astype(np.int64), block.time_ticks[ours])
    np.testing.assert_array_equal(found.routing_channels[photon], block.channel[ours] - 1)


def test_tttrlib_reads_our_t3(t3):
    path, block = t3
    found = tttrlib.TTTR(str(path), "PTU")
    np.testing.assert_array_equal(found.macro_times.astype(np.int64), block.time_ticks)
    np.testing.assert_array_equal(found.micro_times, block.fine_ticks)
    np.testing.assert_array_equal(found.routing_channels, block.channel - 1)


def test_ptufile_reads_our_t2(t2):
    # It is right as long as an overflow record counts fewer than 128.
    path, block = t2
    with ptufile.PtuFile(path) as file:
        found = file.decode_records()
    photon, marker = found["channel"] >= 0, found["marker"] > 0
    ours = block.kind == EventKind.PHOTON
    np.testing.assert_array_equal(found["time"][photon].astype(np.int64), block.time_ticks[ours])
    np.testing.assert_array_equal(found["channel"][photon], block.channel[ours] - 1)
    np.testing.assert_array_equal(found["time"][marker].astype(np.int64), block.time_ticks[~ours])
    np.testing.assert_array_equal(found["marker"][marker], block.channel[~ours])


def test_ptufile_reads_our_t3(t3):
    path, block = t3
    with ptufile.PtuFile(path) as file:
        found = file.decode_records()
        assert file.global_resolution == pytest.approx(12.5e-9)
    found = found[found["channel"] >= 0]
    np.testing.assert_array_equal(found["time"].astype(np.int64), block.time_ticks)
    np.testing.assert_array_equal(found["dtime"], block.fine_ticks)
    np.testing.assert_array_equal(found["channel"], block.channel - 1)


@pytest.mark.parametrize(
    ("mode", "read", "options"),
    [
        ("a0", parse_timestamps.read_a0, {}),
        ("a1", parse_timestamps.read_a1, {}),
        ("a1x", parse_timestamps.read_a1, {"legacy": True}),
        ("a2", parse_timestamps.read_a2, {}),
    ],
)
def test_fpfind_reads_our_words(tmp_path, mode, read, options):
    time = 2**53 + some_times(2000, 5000, 5)
    channel = np.random.default_rng(6).integers(1, 5, 2000)
    write_events(tmp_path / "x", [block_of(time, channel, TDC2_TICK_PS)], f"qcrypto-{mode}", tick_ps=TDC2_TICK_PS)
    found_time, found_pattern = read(tmp_path / "x", **options, **EXACT)
    np.testing.assert_array_equal(found_time.astype(np.int64), time)
    np.testing.assert_array_equal(found_pattern, 1 << (channel - 1))


def epoch_folder(tmp_path, packet_type, tick_ps, **options):
    folder = tmp_path / f"t{packet_type}"
    folder.mkdir()
    time = (77 << (37 if packet_type == 1 else 32)) + some_times(3000, 2**20 if packet_type == 2 else 2**26, 7)
    channel = np.random.default_rng(8).integers(1, 5, 3000)
    layout = EpochLayout(packet_type, epoch_offset=24_000 << 17, **options)
    write_epoch_folder(folder, [block_of(time, channel, tick_ps)], tick_ps=tick_ps, layout=layout)
    return folder, time, channel


def test_fpfind_reads_our_epoch_files_of_type_1(tmp_path):
    folder, time, channel = epoch_folder(tmp_path, 1, TDC2_TICK_PS)
    parts = [parse_epochs.read_T1(path, **EXACT) for path in sorted(folder.iterdir())]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]).astype(np.int64), time)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), 1 << (channel - 1))


@pytest.mark.parametrize(("protocol", "order"), [(0, 17), (0, 27), (1, 12), (6, 17)])
def test_fpfind_reads_our_epoch_files_of_type_2(tmp_path, protocol, order):
    folder, time, channel = epoch_folder(tmp_path, 2, Fraction(125), protocol=protocol, time_order=order)
    options = {"resolution": fpfind.TSRES.PS125, "fractional": False}
    parts = [parse_epochs.read_T2(path, **options) for path in sorted(folder.iterdir())]
    assert len(parts) == (time[-1] >> 32) - 76
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]).astype(np.int64), time)
    base = {0: 1 << (channel - 1), 1: (channel - 1) % 2, 6: (channel - 1) // 2}[protocol]
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), base)


def test_fpfind_and_we_read_a_packet_of_type_4_alike(tmp_path):
    index = some_times(500, 3000, 9) - 1
    base = np.random.default_rng(10).integers(0, 2, 500).astype(np.uint8)
    packet, _ = encode_differences(PacketHeader(4, 0xB1234567, extended=True, time_order=9, base_bits=1), index, base)
    (tmp_path / "b1234567").write_bytes(packet)
    found_index, found_base = parse_epochs.read_T4(tmp_path / "b1234567")
    header, our_index, our_base = decode_t4(packet)
    assert header.length == 500
    for found in (found_index, our_index):
        np.testing.assert_array_equal(found, index)
    for found in (found_base, our_base):
        np.testing.assert_array_equal(found, base)


def test_we_read_epoch_files_that_fpfind_writes(tmp_path):
    time = some_times(200, 2**20, 11)
    for epoch in (0x5, 0x6):
        path = parse_epochs.write_T1(tmp_path, epoch, time.tolist(), 4)
        path.rename(tmp_path / f"{epoch:08x}")
    source = open_events(tmp_path)
    blocks = list(source.read_blocks())
    assert source.format == "qcrypto-t1"
    wanted = np.concatenate([(epoch << 37) + time for epoch in (5, 6)])
    np.testing.assert_array_equal(np.concatenate([block.time_ticks for block in blocks]), wanted)
    assert {int(c) for block in blocks for c in block.channel} == {3}


def test_a_long_overflow_is_right_where_ptufile_is_not(tmp_path):
    time = np.array([5, 5 + 298 * 2**25])
    write_events(tmp_path / "x.ptu", [block_of(time, np.array([1, 2]), Fraction(1))], tick_ps=Fraction(1))
    data = (tmp_path / "x.ptu").read_bytes()
    decoder = EventDecoder("ptu")
    assert decoder.feed(data).time_ticks.tolist() == time.tolist()
    found = tttrlib.TTTR(str(tmp_path / "x.ptu"), "PTU")
    assert found.macro_times.astype(np.int64).tolist() == time.tolist()
