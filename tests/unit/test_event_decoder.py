"""Bytes decoded as they come: any cuts give the same events, and what is wrong becomes a gap or an error that says where."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw.errors import ConfigurationError, EventFormatError
from qkdhw.formats import FORMATS, STREAM_FORMATS, EventDecoder, open_events, write_events
from qkdhw.model import DetectionBlock, EventKind

FOLDER = Path(__file__).parents[1] / "vectors" / "events"
VECTORS = {
    name: (FOLDER / name, open_events(FOLDER / name).format)
    for name in ("t2.ptu", "t3.ptu", "binary.qutag", "tdc2.a0.ts", "tdc2.a1x.ts", "tdc2.a2.ts", "old-card.a1.raw")
}
TICKS = {"tdc1": Fraction(2000), "qcrypto-t2": Fraction(125)}
GAP = (EventKind.GAP_BEGIN, EventKind.GAP_END)


def tick_of(name):
    return TICKS.get(name, Fraction(125, 32) if name.startswith("qcrypto") else Fraction(1))


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """Bytes of a file of every format, by name of format and of vector."""
    found = {name: (path.read_bytes(), known) for name, (path, known) in VECTORS.items()}
    for name in STREAM_FORMATS:
        rng = np.random.default_rng(3)
        channel = rng.integers(1, 2 if name == "idq" else 5, 120).astype(np.uint8)
        tick_ps = tick_of(name) if "49" not in name else Fraction(125)
        # Longer than a round of every short counter, and than an epoch.
        step = {"qcrypto-fast": 2**24, "tdc1": 2**27, "qutag-compressed": 2**35}.get(name, 2**31)
        time = np.cumsum(rng.integers(0, step, 120))
        block = DetectionBlock(time, channel, np.zeros(120, np.uint8), tick_ps)
        path = tmp_path_factory.mktemp("streams") / "x"
        write_events(path, [block], name, tick_ps=tick_ps)
        found[name] = path.read_bytes(), name
    return found


def decode(data, name, cuts, *, tolerant=False):
    """Return the events of bytes cut at places, and the tally."""
    decoder = EventDecoder(name, tolerant=tolerant)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    blocks = [decoder.feed(data[a:b]) for a, b in pairwise(edges)]
    blocks.append(decoder.finish())
    fine = [np.zeros(len(b), np.uint16) if b.fine_ticks is None else b.fine_ticks for b in blocks]
    columns = [np.concatenate([getattr(b, c) for b in blocks]) for c in ("time_ticks", "channel", "kind")]
    rows = list(zip(*(c.tolist() for c in (*columns, np.concatenate(fine))), strict=True))
    return rows, sum(b.missed for b in blocks), decoder.tally


def of_file(path, name, *, tolerant=False):
    rows = []
    for block in open_events(path, name, tolerant=tolerant).read_blocks(7):
        fine = [0] * len(block) if block.fine_ticks is None else block.fine_ticks.tolist()
        rows += zip(block.time_ticks.tolist(), block.channel.tolist(), block.kind.tolist(), fine, strict=True)
    return rows


ALL = [*VECTORS, *STREAM_FORMATS]


@pytest.mark.parametrize("name", ALL)
def test_single_bytes_give_the_events_of_the_whole(streams, tmp_path, name):
    data, known = streams[name]
    whole = decode(data, known, [])
    assert len(whole[0]) >= 120
    assert decode(data, known, range(1, len(data))) == whole
    (tmp_path / "x").write_bytes(data)
    assert of_file(tmp_path / "x", known) == whole[0]


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_the_same_gaps_however_they_are_cut(streams, name, data):
    whole, known = streams[name]
    damaged = bytearray(whole)
    first = 600 if known == "ptu" else 40
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(first, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.integers(first, len(whole)))
    damaged = bytes(damaged[:end])
    wanted = decode(damaged, known, [], tolerant=True)
    cuts = data.draw(st.lists(st.integers(0, end), max_size=5))
    assert decode(damaged, known, cuts, tolerant=True) == wanted
    assert decode(damaged, known, range(1, end), tolerant=True) == wanted
    kinds = [row[2] for row in wanted[0]]
    assert [kind for kind in kinds if kind == EventKind.GAP_BEGIN] or wanted[2].invalid_records == 0
    assert set(kinds) <= set(EventKind)
    errors = []
    for pieces in ([], range(1, end)):
        try:
            decode(damaged, known, pieces)
        except EventFormatError as error:
            errors.append((str(error), error.offset_bytes))
    if errors:
        assert all(offset is not None and 0 <= offset <= end for _, offset in errors)
        assert len(errors) == 2
        if wanted[2].invalid_records:
            assert errors[0] == errors[1]


def kinds_around_the_gap(rows):
    at = [row[2] for row in rows].index(EventKind.GAP_BEGIN)
    return rows[at - 1 : at + 3]


def test_a_gap_begins_at_the_last_event_before_and_ends_at_the_first_after(streams):
    data, _ = streams["qutag"]
    right, _, _ = decode(data, "qutag", [])
    damaged = bytearray(data)
    for index in (50, 51, 52):
        damaged[40 + 10 * index + 9] = 7  # a channel beyond 255
    rows, _, tally = decode(bytes(damaged), "qutag", [], tolerant=True)
    assert (tally.invalid_records, tally.first_invalid_offset_bytes) == (3, 40 + 500)
    before, after = right[49], right[53]
    assert kinds_around_the_gap(rows) == [before, (before[0], 0, GAP[0], 0), (after[0], 0, GAP[1], 0), after]
    assert len(rows) == len(right) - 3 + 2


def test_a_stream_that_ends_in_a_gap_closes_it(streams):
    data, _ = streams["swabian-dump"]
    rows, _, _ = decode(data[:-16] + b"\x09" * 16, "swabian-dump", [], tolerant=True)
    assert [row[2] for row in rows[-2:]] == list(GAP)
    assert rows[-1][0] == rows[-2][0] == rows[-3][0]


def test_a_lost_byte_of_a_tdc1_costs_some_words_and_no_more():
    time = np.cumsum(np.random.default_rng(1).integers(100, 90_000, 3000))
    words = (time % 2**27 << 5 | 1).astype("<u4").tobytes()
    for lost in (5000, 5001, 5002, 5003):
        rows, _, tally = decode(words[:lost] + words[lost + 1 :], "tdc1", [], tolerant=True)
        found = [row[0] for row in rows if row[2] == EventKind.PHOTON]
        assert found[:1250] == time[:1250].tolist()
        # Over the gap the counter may have gone round.
        later = np.array(found[-1650:]) - found[-1]
        np.testing.assert_array_equal(later, time[-1650:] - time[-1])
        assert tally.invalid_records >= 1
        with pytest.raises(EventFormatError) as caught:
            decode(words[:lost] + words[lost + 1 :], "tdc1", [])
        assert 5000 <= caught.value.offset_bytes <= 5100


def test_a_damaged_line_of_text_costs_itself(streams):
    data, _ = streams["qcrypto-a2"]
    right, _, _ = decode(data, "qcrypto-a2", [])
    for bad in (b"no such digits!!\n", b"short\n", b"\n", b"much longer than a line of these should be\n"):
        rows, _, tally = decode(data[:170] + bad + data[187:], "qcrypto-a2", [], tolerant=True)
        assert [row for row in rows if row[2] not in GAP] == right[:10] + right[11:]
        assert (tally.invalid_records, tally.first_invalid_offset_bytes) == (1, 170)


def test_a_ptu_says_its_tick_with_its_header(streams):
    data, _ = streams["t3.ptu"]
    decoder = EventDecoder("ptu")
    assert decoder.feed(data[:500]).tick_ps == 1
    assert decoder.feed(data[500:]).tick_ps == decoder.tick_ps == Fraction("12512.587663189168")
    assert decoder.offset_bytes == len(data)


@pytest.mark.parametrize("end", [0, 7, 300])
def test_a_ptu_without_its_whole_header_is_always_refused(streams, end):
    for tolerant in (False, True):
        decoder = EventDecoder("ptu", tolerant=tolerant)
        decoder.feed(streams["t2.ptu"][0][:end])
        with pytest.raises(EventFormatError, match="Header_End"):
            decoder.finish()


@pytest.mark.parametrize("name", ["hdf5", "parquet", "csv", "ttbin"])
def test_what_cannot_be_decoded_as_it_comes(name):
    with pytest.raises(ConfigurationError, match="as they come") as caught:
        EventDecoder(name)
    assert "ptu" in caught.value.remedy
    assert name == "ttbin" or name in FORMATS
