"""Recordings of real time taggers, which lie beside the checkout: every number that independent readers found.

QKDHW_CAPTURES names the folder if it lies elsewhere. The recordings are not part of this project; without them these
tests are skipped.
"""

import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import fpfind
import numpy as np
import pytest
import tttrlib
from fpfind.lib import parse_timestamps

from qkdhw.formats import EventDecoder, open_events, report_events

FOLDER = Path(os.environ.get("QKDHW_CAPTURES", Path(__file__).resolve().parents[3] / "shared" / "data" / "events"))
T2 = "200204_HH400_T2_320MHz_HBT.timeres"
T3 = "200204_HH400_T3_320MHz_HBT.timeres"
QUTAG = "200204_qutag_320MHz_HBT_sync_filtered.qutag"
TDC2 = "timestamp7_c1234.Aa1.ts"
ROLLOVER = ("timestamp7_c14_rollover.Aa0f.ts", "timestamp7_c14_rollover.Aa1fX.ts", "timestamp7_c14_rollover.Aa2f.ts")
OLD_CARD = "pyS15_g2lib_test.raw"
MINIMAL = "min_t2.ptu"

pytestmark = [
    pytest.mark.captures,
    pytest.mark.skipif(not (FOLDER / T2).exists(), reason="no recordings beside the checkout (QKDHW_CAPTURES)"),
]


def report(name, max_events=1 << 16):
    return report_events(open_events(FOLDER / name), max_events=max_events)


def columns(name, max_events=1 << 16):
    blocks = list(open_events(FOLDER / name).read_blocks(max_events))
    return tuple(np.concatenate([getattr(b, c) for b in blocks]) for c in ("time_ticks", "channel", "kind"))


def test_hydraharp_t2():
    found = report(T2)
    assert (found.format, found.header["record_type"]) == ("ptu", "HYDRAHARP_V2_T2")
    assert found.tick_ps == 1
    assert (found.records, found.overflow_records, found.events) == (409_482, 25_463, 384_019)
    assert found.channels == {1: 159_298, 2: 224_721}
    assert (found.first_ticks, found.last_ticks) == (8_584_904, 999_986_166_686)
    assert found.duration_s == pytest.approx(0.999977581782)
    assert found.rate_hz == pytest.approx(384_027.6, abs=0.1)
    assert (found.backward_steps, found.repeated_events, found.anomalies) == (0, 0, ())


def test_hydraharp_t2_coincidences():
    time, channel, _ = columns(T2)
    one, two = time[channel == 1], time[channel == 2]

    def pairs(low_ps, high_ps):
        return int((np.searchsorted(two, one + high_ps, "right") - np.searchsorted(two, one + low_ps)).sum())

    assert [pairs(-w, w) for w in (1000, 2000, 5000, 40_000)] == [155, 756, 1648, 12_664]
    assert max(pairs(low, low + 99) for low in range(-200, 200, 100)) <= 1  # antibunching


def test_hydraharp_t3():
    found = report(T3)
    assert (found.records, found.overflow_records, found.events) == (456_812, 3_549, 453_263)
    assert found.channels == {1: 186_647, 2: 266_616}
    assert found.tick_ps == Fraction("12512.587663189168")
    assert found.fine_tick_ps == 16
    assert found.backward_steps == 0
    assert [line.split(" reaches ")[0] for line in found.anomalies] == ["the time since the sync"]


def test_qutag():
    found = report(QUTAG)
    assert (found.format, found.records, found.events) == ("qutag", 211_773, 211_773)
    assert found.channels == {1: 43_736, 2: 62_437, 5: 105_600}
    assert found.duration_s == pytest.approx(0.287, abs=0.0005)
    assert (found.backward_steps, found.anomalies) == (0, ())


def test_tdc2():
    found = report(TDC2)
    assert (found.format, found.tick_ps, found.records) == ("qcrypto-a1", Fraction(125, 32), 2000)
    assert found.pattern_records == {1: 614, 2: 481, 4: 476, 8: 417, 3: 2, 5: 2, 6: 3, 9: 3, 10: 2}
    assert found.events == 2012
    assert found.channels == {1: 614 + 2 + 2 + 3, 2: 481 + 2 + 3 + 2, 3: 476 + 2 + 3, 4: 417 + 3 + 2}
    assert 2000 / found.duration_s == pytest.approx(2.14e6, rel=0.002)
    assert found.backward_steps == 0


@pytest.mark.parametrize("name", ROLLOVER)
def test_tdc2_rollover(name):
    found = report(name)
    assert (found.records, found.kinds) == (1000, {"photon": 862, "dummy": 138})
    assert found.channels == {1: 431, 4: 431}
    assert (found.backward_steps, found.backward_steps_with_dummies) == (4, 8)
    assert found.anomalies == ("steps back in time: 4, first at event 278; --order-within 96969133 puts them right",)


def test_the_three_forms_of_one_recording_are_the_same_events():
    first, *others = [columns(name) for name in ROLLOVER]
    assert [open_events(FOLDER / name).format for name in ROLLOVER] == ["qcrypto-a0", "qcrypto-a1x", "qcrypto-a2"]
    for other in others:
        for column, same in zip(first, other, strict=True):
            np.testing.assert_array_equal(column, same)


def test_older_card():
    found = report(OLD_CARD)
    assert (found.format, found.tick_ps, found.events) == ("qcrypto49-a1x", 125, 185)
    assert found.backward_steps == 0


def test_a_298_count_overflow_record():
    found = report(MINIMAL)
    assert (found.records, found.overflow_records, found.events) == (20_298, 298, 20_000)
    assert found.channels == {0: 3994, 1: 3969, 2: 4084, 3: 4029, 4: 3924}
    assert (found.first_ticks, found.last_ticks) == (850_624, 19_985_453_689)
    record = np.fromfile(FOLDER / MINIMAL, "<u4", offset=536)
    counts = (record & 0x1FFFFFF)[record >> 25 == 0x7F].tolist()
    assert sorted(counts) == [1] * 297 + [298]
    wanted, base = [], 0
    for word in record.tolist():
        if word >> 25 == 0x7F:
            base += (word & 0x1FFFFFF) * 2**25
        else:
            wanted.append(base + (word & 0x1FFFFFF))
    time, _, _ = columns(MINIMAL)
    assert time.tolist() == wanted


@pytest.mark.parametrize("name", [T2, QUTAG, TDC2, *ROLLOVER, OLD_CARD, MINIMAL])
def test_any_block_size_gives_the_same_events(name):
    whole = columns(name, 10**7)
    cut = columns(name, 997)
    for column, same in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(column, same)


@pytest.mark.parametrize("name", [T2, T3, QUTAG, TDC2, *ROLLOVER, OLD_CARD, MINIMAL])
@pytest.mark.parametrize("tolerant", [False, True])
def test_bytes_as_they_come_give_the_same_events(name, tolerant):
    source = open_events(FOLDER / name)
    data = (FOLDER / name).read_bytes()
    whole = columns(name, 10**7)
    # Single bytes first, then pieces of a number of bytes that is prime, so that records are cut everywhere.
    decoder = EventDecoder(source.format, tolerant=tolerant)
    edges = [
        *range(200_000 if tolerant else 20_000),
        *range(200_000 if tolerant else 20_000, len(data), 1009),
        len(data),
    ]
    blocks = [
        decoder.feed(data[first:end]) for first, end in pairwise(sorted({min(edge, len(data)) for edge in edges}))
    ]
    blocks.append(decoder.finish())
    assert decoder.tick_ps == source.tick_ps
    assert decoder.tally.invalid_records == decoder.tally.missing_records == decoder.tally.trailing_bytes == 0
    for column, wanted in zip(("time_ticks", "channel", "kind"), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate([getattr(block, column) for block in blocks]), wanted)


@pytest.mark.parametrize("name", [T2, T3, MINIMAL])
def test_tttrlib_reads_the_same_times(name, tmp_path):
    # It looks at the name's ending; it numbers inputs from 0, and calls the sync input 0 as well.
    (tmp_path / "x.ptu").write_bytes((FOLDER / name).read_bytes())
    found = tttrlib.TTTR(str(tmp_path / "x.ptu"), "PTU")
    time, channel, _ = columns(name)
    np.testing.assert_array_equal(found.macro_times.astype(np.int64), time)
    np.testing.assert_array_equal(found.routing_channels, np.maximum(channel.astype(int) - 1, 0))


def test_fpfind_reads_the_same_words():
    exact = {"resolution": fpfind.TSRES.PS4, "fractional": False}
    time, pattern = parse_timestamps.read_a1(FOLDER / TDC2, **exact)
    ours, channel, _ = columns(TDC2)
    index, bit = np.nonzero(pattern[:, None] >> np.arange(4, dtype=np.uint32) & 1)
    np.testing.assert_array_equal(ours, time[index].astype(np.int64))
    np.testing.assert_array_equal(channel, bit + 1)
