"""Clocks of two files: times moved exactly, a clock's file read strictly, and where a search begins."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.bench.clocks import FileClock, guess_offset, qber_facts, read_clock
from qkdhw.errors import ClockAlignmentError, ConfigurationError, EventError
from qkdhw.formats import open_events, write_events
from qkdhw.model import DetectionBlock

TICKS = [Fraction(1), Fraction(125), Fraction(125, 32), Fraction(81)]
CLOCK = {"a_ticks": 5, "b_ticks": "-17/2", "b_ticks_per_a_tick": "1", "a_tick_ps": "125", "b_tick_ps": "125"}


def block(ticks, tick_ps):
    return DetectionBlock(
        np.asarray(ticks, np.int64), np.ones(len(ticks), np.uint8), np.zeros(len(ticks), np.uint8), tick_ps
    )


def true_time(clock, ticks):
    """The time of A's clock in ticks of B, exact."""
    return (clock.a_ticks + (ticks - clock.b_ticks) / clock.rate) * clock.a_tick_ps / clock.b_tick_ps


@given(
    st.integers(-(1 << 55), 1 << 55),
    st.fractions(-(1 << 55), 1 << 55, max_denominator=1 << 32),
    st.integers(-(10**9), 10**9),
    st.sampled_from(TICKS),
    st.sampled_from(TICKS),
    st.lists(st.integers(-(1 << 55), 1 << 55), min_size=1, max_size=30),
)
def test_times_on_the_other_clock_are_right_to_half_a_tick_and_stay_in_order(a, b, parts_per_trillion, ta, tb, ticks):
    rate = ta / tb * (1 + Fraction(parts_per_trillion, 10**12))
    clock = FileClock(a, b, rate, ta, tb)
    ticks = sorted(t + more for t in ticks for more in (0, 1, 1 << 40))
    moved = clock.on_a(block(ticks, tb)).time_ticks
    for before, after in zip(ticks, moved.tolist(), strict=True):
        assert abs(after - true_time(clock, before)) <= Fraction(1, 2) + Fraction(1, 128)
    assert np.all(np.diff(moved) >= 0)
    one_by_one = [int(clock.on_a(block([t], tb)).time_ticks[0]) for t in ticks]
    assert moved.tolist() == one_by_one


def test_whole_ticks_at_one_rate_are_moved_without_any_rounding():
    clock = FileClock(1000, Fraction(10**17 + 1000), Fraction(1), Fraction(125), Fraction(125))
    ticks = np.array([10**17, 10**17 + 7, 10**17 + (1 << 50)])
    assert np.array_equal(clock.on_a(block(ticks, Fraction(125))).time_ticks, ticks - 10**17)
    assert clock.offset_ps == 125 * 10**17


def test_a_time_that_leaves_the_range_is_refused():
    clock = FileClock(1 << 61, Fraction(-(1 << 61)), Fraction(1), Fraction(1), Fraction(1))
    with pytest.raises(EventError, match="beyond 2\\^62"):
        clock.on_a(block([1 << 61], Fraction(1)))


def test_a_clock_is_read_as_it_was_written(tmp_path):
    clock = FileClock(-3, Fraction(7, 1 << 32), Fraction((1 << 48) + 12345, 1 << 48), Fraction(125), Fraction(125))
    path = tmp_path / "clock.json"
    path.write_text(json.dumps({"clock": clock.as_dict()}))
    assert read_clock(path) == clock


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "7", '{"clock": 3}', "[" * 100_000, "\x00", '{"clock": {"a_ticks": 1}}',
        *(json.dumps({"clock": CLOCK | changed}) for changed in (
            {"a_ticks": 1.0}, {"a_ticks": True}, {"a_ticks": 1 << 70}, {"b_ticks": 3}, {"b_ticks": "1/0"},
            {"b_ticks": "9" * 200}, {"b_ticks": "1e99"}, {"b_ticks_per_a_tick": "0"}, {"b_ticks_per_a_tick": "-1"},
            {"b_ticks_per_a_tick": "1.1"}, {"a_tick_ps": "0"}, {"b_tick_ps": "nan"},
        )),
    ],
)  # fmt: skip
def test_what_is_no_clock_is_refused_with_what_to_do(tmp_path, text):
    path = tmp_path / "clock.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        read_clock(path)
    assert "align" in refused.value.remedy
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_clock(tmp_path / "none.json")


def test_where_a_search_begins(tmp_path):
    second = 8 * 10**9
    files = []
    for name, first in (("a", 5 * second), ("b", 6 * second), ("far", 5000 * second)):
        ticks = first + np.arange(100)
        write_events(tmp_path / f"{name}.parquet", [block(ticks, Fraction(125))], tick_ps=Fraction(125))
        files.append(open_events(tmp_path / f"{name}.parquet"))
    a, b, far = files
    near = guess_offset(a, b, offset_s=None, max_offset_s=0.1, seconds=2.0)
    assert (near.offset_s, near.max_offset_s, near.source) == (0, 0.1, "same epoch")
    guessed = guess_offset(a, far, offset_s=None, max_offset_s=0.1, seconds=2.0)
    assert (guessed.offset_s, guessed.max_offset_s, guessed.source) == (4995, 1.0, "first events")
    write_events(tmp_path / "long.parquet", [block(second * np.arange(5001), Fraction(125))], tick_ps=Fraction(125))
    long = open_events(tmp_path / "long.parquet")
    for first, other, late_s in ((long, far, 5000), (far, long, -5000)):
        same = guess_offset(first, other, offset_s=None, max_offset_s=0.1, seconds=2.0)
        assert (same.offset_s, same.max_offset_s, same.source, same.late_s) == (0, 0.1, "same epoch", late_s)
    told = guess_offset(a, far, offset_s=Fraction(4990), max_offset_s=0.1, seconds=2.0)
    assert (told.offset_s, told.max_offset_s, told.source, told.late_s) == (4990, 0.1, "given", 5)
    assert told.a_ticks == 5 * second
    failed = ClockAlignmentError("no peak", remedy="more light")
    assert told.explained(failed) is failed
    assert "4995 s apart" in str(guessed.explained(failed))
    assert "--offset" in guessed.explained(failed).remedy


def test_an_error_rate_has_an_error_also_where_none_was_seen():
    found = qber_facts({"key": 10_000, "test": 0}, {"key": 300, "test": 0})
    assert found["qber"] == {"key": 0.03, "test": None}
    assert found["qber_error"]["key"] == pytest.approx(math.sqrt(0.03 * 0.97 / 10_000), rel=0.01)
    assert found["qber_error"]["test"] is None
    assert 0 < qber_facts({"key": 100}, {"key": 0})["qber_error"]["key"] < 0.02
