"""The event files in tests/vectors/events: made again byte for byte, and read back event for event."""

from fractions import Fraction
from pathlib import Path

import event_vectors
import numpy as np
import pytest

from qkdhw.formats import detect_format, open_events, report_events

FOLDER = Path(__file__).parent / "events"
NAMES = sorted(p.name for p in FOLDER.iterdir() if p.suffix != ".md")


def whole(name):
    blocks = list(open_events(FOLDER / name).read_blocks(41))
    columns = ("time_ticks", "channel", "kind", "fine_ticks")
    return [None if blocks[0].fine_ticks is None and c == "fine_ticks" else np.concatenate([getattr(b, c) for b in blocks]) for c in columns]  # fmt: skip


def test_every_file_is_made_again_byte_for_byte(tmp_path):
    event_vectors.write_all(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == NAMES
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_every_file_is_small_and_has_its_provenance():
    text = (FOLDER / "PROVENANCE.md").read_text()
    for name in NAMES:
        stem, *mode, ending = name.split(".")
        assert name in text or (f"{stem}.MODE.{ending}" in text and mode[0] in text)
        assert (FOLDER / name).stat().st_size < 50_000


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("t2.ptu", event_vectors.t2_events()),
        ("t3.ptu", event_vectors.t3_events()),
        ("t3.csv", event_vectors.t3_events()),
        ("binary.qutag", event_vectors.photon_events()),
        *((name, event_vectors.tdc2_events(Fraction(125, 32), 2**53 + 1)) for name in NAMES if name.startswith(("tdc2", "every"))),
        *((name, event_vectors.tdc2_events(Fraction(125), 2**48 + 1)) for name in NAMES if name.startswith("old")),
    ],
)  # fmt: skip
def test_what_is_read_is_what_was_written(name, wanted):
    time, channel, kind, fine = whole(name)
    np.testing.assert_array_equal(time, wanted.time_ticks)
    np.testing.assert_array_equal(channel, wanted.channel)
    np.testing.assert_array_equal(kind, wanted.kind)
    assert (fine is None) == (wanted.fine_ticks is None)
    if fine is not None:
        np.testing.assert_array_equal(fine, wanted.fine_ticks)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("old-card")])
def test_old_cards_are_told_from_a_tdc2(name):
    assert detect_format(FOLDER / name) == f"qcrypto49-{name.split('.')[1]}"


def test_reports_name_what_is_wrong():
    t2 = report_events(open_events(FOLDER / "t2.ptu"), max_events=3)
    assert (t2.events, t2.kinds, t2.repeated_events) == (500, {"photon": 490, "marker": 10}, 1)
    assert t2.anomalies == ("events equal to the one before: 1",)
    tdc2 = report_events(open_events(FOLDER / "tdc2.a1.ts"), max_events=3)
    assert (tdc2.records, tdc2.events) == (296, 300)
    assert (tdc2.pattern_records[0b0101], tdc2.pattern_records[0b1110]) == (1, 1)
    assert tdc2.backward_steps == 1
    assert tdc2.first_backward_index == np.flatnonzero(np.diff([t for t, k in zip(*whole("tdc2.a1.ts")[0:3:2], strict=True) if k == 0]) < 0)[0] + 1  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_report_does_not_depend_on_the_block_size(name):
    whole_file = report_events(open_events(FOLDER / name))
    assert whole_file == report_events(open_events(FOLDER / name), max_events=1)
    assert whole_file == report_events(open_events(FOLDER / name), max_events=7)
