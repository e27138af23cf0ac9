"""Skews and channels of one file and of two of the same clock."""

from fractions import Fraction

import numpy as np
import pytest

from qkdhw.bench.ordered import OrderedEvents, first_events
from qkdhw.errors import ConfigurationError, EventError
from qkdhw.formats import open_events, write_events
from qkdhw.model import DetectionBlock


def events(path, channel, ticks=(1000, 2000), tick_ps=Fraction(1)):
    ticks = np.asarray(ticks, np.int64)
    block = DetectionBlock(ticks, np.full(len(ticks), channel, np.uint8), np.zeros(len(ticks), np.uint8), tick_ps)
    write_events(path, [block], tick_ps=tick_ps)
    return open_events(path)


def merged(files, skew_ps):
    blocks = list(OrderedEvents(files, skew_ps=skew_ps))
    return [(int(t), int(c)) for block in blocks for t, c in zip(block.time_ticks, block.channel, strict=True)]


@pytest.mark.parametrize("channel", [1, 99, 100, 101, 255])
def test_a_skew_is_that_of_the_channel_named(tmp_path, channel):
    assert merged([events(tmp_path / "a.parquet", channel)], {channel: Fraction(300)}) == [
        (700, channel),
        (1700, channel),
    ]


@pytest.mark.parametrize("channel", [0, 1, 155])
def test_a_skew_of_the_second_file_is_not_the_firsts(tmp_path, channel):
    files = [events(tmp_path / "a.parquet", min(channel, 99)), events(tmp_path / "b.parquet", channel)]
    found = merged(files, {100 + channel: Fraction(300)})
    assert found == [(700, 100 + channel), (1000, min(channel, 99)), (1700, 100 + channel), (2000, min(channel, 99))]


def test_a_skew_of_no_channel_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no channel 256"):
        OrderedEvents([events(tmp_path / "a.parquet", 1)], skew_ps={256: Fraction(1)})


def test_channels_of_the_first_file_are_not_taken_for_the_seconds(tmp_path):
    files = [events(tmp_path / "a.parquet", 101), events(tmp_path / "b.parquet", 1)]
    with pytest.raises(EventError, match="has channel 101"):
        merged(files, {})


def common(files, common_of, **options):
    blocks = list(OrderedEvents(files, common_of=common_of, **options))
    return [(int(t), int(c)) for block in blocks for t, c in zip(block.time_ticks, block.channel, strict=True)]


def test_only_the_time_that_both_files_cover_is_kept_if_asked(tmp_path):
    files = [
        events(tmp_path / "a.parquet", 1, [10, 20, 30, 40, 50], Fraction(2)),
        events(tmp_path / "b.parquet", 1, [45, 50, 60, 70, 200, 300]),
    ]
    assert common(files, ()) == merged(files, {})
    kept = [(45, 101), (50, 101), (60, 1), (60, 101), (70, 101), (80, 1), (100, 1)]
    assert common(files, (1, 101)) == kept
    # The second file's times less 20 are what counts, if its channel is told so much later.
    skewed = common(files, (1, 101), skew_ps={101: Fraction(20)})
    assert skewed == [(25, 101), (30, 101), (40, 1), (40, 101), (50, 101), (60, 1), (80, 1), (100, 1)]
    assert common(files, (1, 2)) == [event for event in merged(files, {}) if 20 <= event[0] <= 100]


def test_files_without_common_time_are_named(tmp_path):
    files = [events(tmp_path / "a.parquet", 1), events(tmp_path / "b.parquet", 1, [3000, 4000])]
    with pytest.raises(EventError, match=r"a.parquet and .*b.parquet have no time in common"):
        common(files, (1, 101))


def test_ticks_without_a_common_one_are_refused(tmp_path):
    files = [events(tmp_path / "a.parquet", 1), events(tmp_path / "b.parquet", 1, tick_ps=Fraction(10) ** 30)]
    with pytest.raises(ConfigurationError, match="too long for a common one"):
        OrderedEvents(files)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan"), 1e300])
def test_seconds_that_are_none_are_refused(tmp_path, seconds):
    with pytest.raises(ConfigurationError, match="no number of seconds"):
        first_events(events(tmp_path / "a.parquet", 1), seconds)
