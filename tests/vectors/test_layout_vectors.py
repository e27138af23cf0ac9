"""Files made field by field from published layouts (tests/vectors/layouts): read to the events that were written down
for them, wherever they are cut, and written again to the same bytes."""

from fractions import Fraction
from functools import partial
from pathlib import Path

import layout_vectors
import numpy as np
import pytest

from qkdhw.errors import EventFormatError
from qkdhw.formats import FORMATS, detect_format, idq, swabian
from qkdhw.formats.epoch_packets import PacketHeader, decode_t3, decode_t4, encode_differences, encode_t3
from qkdhw.formats.qcrypto_epoch import EpochDecoder
from qkdhw.formats.qcrypto_epoch_writer import EpochLayout, write_epochs
from qkdhw.formats.qcrypto_fast import FastModeDecoder, write_fast_mode
from qkdhw.formats.qutag import CompressedDecoder, write_compressed
from qkdhw.formats.tdc1 import Tdc1Decoder, write_tdc1
from qkdhw.model import DetectionBlock, EventKind

FOLDER = Path(__file__).parent / "layouts"
NAMES = sorted(path.stem for path in FOLDER.glob("*.events"))
EXTENDED = {"packet_type": 2, "epoch_offset": 0x65420000}

DECODERS = {
    "tdc1": Tdc1Decoder,
    "qcrypto-fast": FastModeDecoder,
    "qcrypto-fast-void": FastModeDecoder,
    "qcrypto-t1": partial(EpochDecoder, 1),
    "qcrypto-t1-gap": partial(EpochDecoder, 1),
    "qcrypto-t2": partial(EpochDecoder, 2),
    "qcrypto-t2-service": partial(EpochDecoder, 2),
    "qcrypto-t2-chopper": partial(EpochDecoder, 2),
    "qutag-compressed": CompressedDecoder,
    "idq": idq.IdqDecoder,
    "idq-reference": partial(idq.IdqDecoder, channel=3, reference_period_ps=12_500),
    "idq-records": partial(idq.IdqDecoder, record_period_ps=2_000_000_000),
    "swabian-dump": swabian.DumpDecoder,
}
WRITERS = {
    "tdc1": write_tdc1,
    "qcrypto-fast": write_fast_mode,
    "qcrypto-t1": partial(write_epochs, layout=EpochLayout(1)),
    "qcrypto-t2": partial(write_epochs, layout=EpochLayout(protocol=1, time_order=8, **EXTENDED)),
    "qcrypto-t2-service": partial(write_epochs, layout=EpochLayout(2)),
    "qutag-compressed": write_compressed,
    "idq": idq.write_idq,
    "idq-reference": partial(idq.write_idq, reference_period_ps=12_500),
    "swabian-dump": swabian.write_dump,
}  # fmt: skip


def expected(name):
    """Return tick and events of NAME.events."""
    tick, *lines = (FOLDER / f"{name}.events").read_text().splitlines()
    rows = [line.split() for line in lines]
    return Fraction(tick.split()[1]), [(int(t), int(c), int(EventKind[k.upper()])) for t, c, k in rows]


def events_of(blocks):
    return [row for b in blocks for row in zip(*(a.tolist() for a in (b.time_ticks, b.channel, b.kind)), strict=True)]


def block_of(events, tick_ps, missed=0):
    time, channel, kind = zip(*events, strict=True)
    columns = np.array(time, np.int64), np.array(channel, np.uint8), np.array(kind, np.uint8)
    return DetectionBlock(*columns, tick_ps=tick_ps, missed=missed)


def test_every_file_is_made_again_and_has_its_provenance(tmp_path):
    layout_vectors.write_all(tmp_path)
    names = sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".md")
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    text = (FOLDER / "PROVENANCE.md").read_text()
    for name in names:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name
        assert name.replace(".events", ".bin") in text


def test_the_maker_of_the_files_uses_nothing_of_the_project():
    lines = (FOLDER.parent / "layout_vectors.py").read_text().splitlines()
    imported = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    assert imported == ["__future__", "struct", "sys", "pathlib"]


def test_every_format_with_a_decoder_has_a_golden_file():
    others = {path.name.split(".")[0] for path in (FOLDER.parent / "events").iterdir()}
    assert others >= {"t2", "binary", "tdc2", "old-card"}  # ptu, qutag and its raw form, qcrypto-*, qcrypto49-*
    elsewhere = (
        "ptu",
        "qutag",
        "qutag-raw",
        *(name for name in FORMATS if name.startswith(("qcrypto-a", "qcrypto49"))),
    )
    assert {name for name, known in FORMATS.items() if known.decoder} == {name for name in NAMES if name in FORMATS} | set(elsewhere)  # fmt: skip


@pytest.mark.parametrize("piece_bytes", [1, 3, 7, 1 << 20])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_what_was_written_down(name, piece_bytes):
    data, (tick_ps, events) = (FOLDER / f"{name}.bin").read_bytes(), expected(name)
    decoder = DECODERS[name]()
    blocks = [decoder.feed(data[at : at + piece_bytes]) for at in range(0, len(data), piece_bytes)]
    blocks.append(decoder.finish())
    assert events_of(blocks) == events
    assert decoder.tick_ps == tick_ps
    assert sum(block.missed for block in blocks) == (65_538 if name == "swabian-dump" else 0)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("block_events", [1, 2, 1000])
def test_the_events_are_written_to_the_same_bytes(name, block_events, tmp_path):
    tick_ps, events = expected(name)
    missed = iter((65_535, 3))
    blocks = []
    for first in range(0, len(events), block_events):
        part = events[first : first + block_events]
        blocks.append(block_of(part, tick_ps, sum(next(missed) for row in part if row[2] == EventKind.MISSED)))
    left_out = WRITERS[name](tmp_path / "again", blocks, tick_ps=tick_ps)
    assert (tmp_path / "again").read_bytes() == (FOLDER / f"{name}.bin").read_bytes()
    assert (left_out.events, left_out.dummies) == (len(events), 0)


@pytest.mark.parametrize("name", [name for name in NAMES if name in FORMATS])
def test_the_format_s_name_opens_it(name):
    tick_ps, events = expected(name)
    source = FORMATS[name].open(FOLDER / f"{name}.bin", False)
    assert (source.tick_ps, events_of(source.read_blocks(2))) == (tick_ps, events)


def test_files_without_a_mark_are_told_only_if_their_records_tell():
    told = {}
    for name in NAMES:
        try:
            told[name] = detect_format(FOLDER / f"{name}.bin")
        except EventFormatError:
            told[name] = None
    for name in ("qcrypto-t1", "qcrypto-t1-gap", "qcrypto-t2", "qcrypto-t2-service", "qcrypto-t2-chopper"):
        assert told[name] == name[: len("qcrypto-t1")]
    assert told["swabian-dump"] == "swabian-dump"
    assert told["tdc1"] is told["qcrypto-fast"] is told["qutag-compressed"] is None


def test_silences_and_words_get_the_tagger_s_dummies(tmp_path):
    tick_ps, events = expected("tdc1")
    # Without the dummies that the writer puts itself, 70,000,000 ticks after the event before, the file is the same.
    kept = [row for row in events if row[2] == EventKind.PHOTON or row[0] == 65_000_000]
    write_tdc1(tmp_path / "again", [block_of(kept, tick_ps)], tick_ps=tick_ps)
    assert (tmp_path / "again").read_bytes() == (FOLDER / "tdc1.bin").read_bytes()


def test_empty_words_are_counted():
    decoder = FastModeDecoder()
    decoder.feed((FOLDER / "qcrypto-fast-void.bin").read_bytes())
    assert (decoder.tally.records, decoder.tally.empty_records) == (12, 3)
    assert decoder.tally.pattern_records[0] == 1


def test_the_chopper_s_bytes_are_made_from_what_it_was_given(tmp_path):
    photons = [(time, channel, 0) for time, channel in layout_vectors.CHOPPED]
    layout = EpochLayout(2, protocol=1, time_order=8, as_chopper=True)
    left_out = write_epochs(
        tmp_path / "again", [block_of(photons, Fraction(125))], tick_ps=Fraction(125), layout=layout
    )
    assert (tmp_path / "again").read_bytes() == (FOLDER / "qcrypto-t2-chopper.bin").read_bytes()
    assert left_out.events == 3


@pytest.mark.parametrize("entry_bits", [1, 4])
def test_packets_of_type_3_both_ways(entry_bits):
    data, values = (FOLDER / f"qcrypto-t3-{entry_bits}bit.bin").read_bytes(), layout_vectors.T3_VALUES[entry_bits]
    header, read = decode_t3(data)
    assert (header.epoch, header.entry_bits, read.tolist()) == (0x1A2B3, entry_bits, values)
    assert encode_t3(0x1A2B3, np.array(values, np.uint8), entry_bits=entry_bits) == data


def test_packets_of_type_4_both_ways():
    data = (FOLDER / "qcrypto-t4.bin").read_bytes()
    header, index, base = decode_t4(data)
    assert (header.epoch, header.time_order, header.base_bits) == (0x1A2B3, 8, 1)
    assert list(zip(index.tolist(), base.tolist(), strict=True)) == layout_vectors.T4_ENTRIES
    indices, bases = zip(*layout_vectors.T4_ENTRIES, strict=True)
    made, kept = encode_differences(
        PacketHeader(4, 0x1A2B3, time_order=8, base_bits=1), np.array(indices, np.int64), np.array(bases, np.uint8)
    )
    assert made == data
    assert kept.all()
