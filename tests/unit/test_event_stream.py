"""The ring between a tagger and its reader: order, views, back-pressure, counts, errors, the end."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from qkdhw.drivers.event_stream import EventBuffer, EventStream
from qkdhw.errors import EventOverflowError, TransportClosedError, UnitStateError
from qkdhw.model import DetectionBlock, EventKind

TICK_PS = Fraction(1000)


class PlainTagger:
    """A unit with `read_block` alone; gives `n_events` events 0, 1, 2 ..., then raises `error` or falls silent."""

    stream_alarms = ("clock_unlocked",)

    def __init__(self, n_events, error=None, stop_error=None):
        self.n_events, self.error, self.stop_error = n_events, error, stop_error
        self.given = 0
        self.state = []

    def start(self):
        self.state.append("started")

    def stop(self):
        self.state.append("stopped")
        if self.stop_error:
            raise self.stop_error

    def read_block(self, max_events, *, timeout_s=5.0):
        buffer = EventBuffer.of_size(max_events)
        self.put(buffer, timeout_s)
        return buffer.block(TICK_PS)

    def put(self, buffer, timeout_s):
        ticks, channel, kind = buffer.free
        n = min(len(ticks), self.n_events - self.given)
        if n == 0:
            if self.error:
                raise self.error
            time.sleep(min(timeout_s, 0.01))
            return
        ticks[:n] = np.arange(self.given, self.given + n)
        channel[:n] = 1 + ticks[:n] % 4
        kind[:n] = EventKind.PHOTON
        self.given += n
        buffer.filled += n


class FillingTagger(PlainTagger):
    """The same with `fill_events`, at most 10 events at a time."""

    tick_ps = TICK_PS
    events_at_once = 4

    def fill_events(self, buffer, *, timeout_s):
        part = EventBuffer(*(array[:10] for array in buffer.free))
        self.put(part, timeout_s)
        buffer.filled += part.filled


TAGGERS = pytest.mark.parametrize("tagger", [PlainTagger, FillingTagger])


def read_all(stream, n_events):
    """Copies of the times, in order."""
    times = []
    for block in stream:
        times.extend(block.time_ticks.tolist())
        if len(times) >= n_events:
            return times
    raise AssertionError("a stream does not end by itself")


@TAGGERS
def test_each_event_comes_once_in_order(tagger):
    unit = tagger(1000)
    with EventStream(unit, max_events=64, buffer_events=256) as stream:
        assert read_all(stream, 1000) == list(range(1000))
        assert stream.counts.photons == 1000
        assert stream.counts.non_monotone == 0
    assert unit.state == ["started", "stopped"]
    assert stream.alarms == ("clock_unlocked",)


@TAGGERS
def test_silence_gives_empty_blocks(tagger):
    with EventStream(tagger(5), timeout_s=0.05) as stream:
        assert read_all(stream, 5) == [0, 1, 2, 3, 4]
        began_s = time.monotonic()
        block = next(stream)
        assert (len(block), block.tick_ps) == (0, TICK_PS)
        assert 0.01 < time.monotonic() - began_s < 2.0


@TAGGERS
def test_a_slow_reader_stops_the_reading_and_nothing_is_lost(tagger):
    unit = tagger(10_000)
    with EventStream(unit, max_events=50, buffer_events=200) as stream:
        first = next(stream)
        kept, seen = first.time_ticks, first.time_ticks.tolist()
        deadline_s = time.monotonic() + 5
        while stream.counts.stalls == 0 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert stream.counts.stalls == 1
        assert unit.given <= 250
        assert kept.tolist() == seen  # still untouched, however full the ring is
        assert seen + read_all(stream, 10_000 - len(seen)) == list(range(10_000))


def test_a_block_lies_in_the_ring_and_is_not_copied():
    with EventStream(FillingTagger(100_000), max_events=50, buffer_events=100) as stream:
        bases = {id(next(stream).time_ticks.base) for _ in range(20)}
    assert len(bases) == 2


@TAGGERS
def test_an_error_is_raised_after_the_events_before_it_and_the_unit_is_stopped(tagger):
    unit = tagger(100, TransportClosedError("gone", remedy="plug it in"))
    stream = EventStream(unit, max_events=30, buffer_events=60)
    seen = []

    def watch():
        with stream:
            for block in stream:
                seen.extend(block.time_ticks.tolist())

    with pytest.raises(TransportClosedError):
        watch()
    assert seen == list(range(100))
    with pytest.raises(UnitStateError, match="earlier error"):
        next(stream)
    assert unit.state == ["started", "stopped"]


def test_an_error_that_nobody_saw_is_raised_at_the_end():
    unit = PlainTagger(0, TransportClosedError("gone"))
    stream = EventStream(unit)
    stream.__enter__()
    stream._thread.join(5)
    with pytest.raises(TransportClosedError):
        stream.__exit__(None, None, None)
    assert unit.state == ["started", "stopped"]


def test_an_overflow_is_told_and_counted_at_the_end():
    unit = FillingTagger(10, stop_error=EventOverflowError("lost"))
    with pytest.raises(EventOverflowError), EventStream(unit) as stream:
        read_all(stream, 10)
    assert stream.counts.overflows == 1


def test_the_first_error_is_not_hidden_by_one_while_stopping():
    with pytest.raises(KeyError), EventStream(PlainTagger(1, stop_error=EventOverflowError("lost"))):
        raise KeyError


def test_a_unit_that_cannot_start_leaves_no_thread():
    class Broken(PlainTagger):
        def start(self):
            raise UnitStateError("it runs already")

    before = threading.active_count()
    with pytest.raises(UnitStateError), EventStream(Broken(1)):
        pass
    assert threading.active_count() == before


def test_every_kind_of_trouble_is_counted():
    class Troubled(PlainTagger):
        def read_block(self, max_events, *, timeout_s=5.0):
            if self.given:
                time.sleep(0.01)
                return DetectionBlock(*(np.empty(0, t) for t in (np.int64, np.uint8, np.uint8)), TICK_PS)
            self.given = 1
            kind = np.array([0, 1, 2, 3, 4, 5, 6, 6, 0], np.uint8)
            times = np.array([1, 2, 3, 4, 5, 6, 7, 8, 6])
            return DetectionBlock(times, np.zeros(9, np.uint8), kind, TICK_PS, missed=17)

    with EventStream(Troubled(1)) as stream:
        read_all(stream, 9)
        counts = stream.counts
    assert (counts.photons, counts.markers, counts.gaps, counts.clock_errors, counts.dummies) == (2, 1, 1, 1, 2)
    assert (counts.missed, counts.non_monotone, counts.overflows, counts.stalls) == (17, 1, 0, 0)


@pytest.mark.parametrize("sizes", [{"max_events": 3}, {"max_events": 50, "buffer_events": 99}])
def test_too_little_room_is_refused(sizes):
    with pytest.raises(ValueError, match="at least"):
        EventStream(FillingTagger(1), **sizes)
