"""The threads that read a unit while a block is processed: order, bounds, errors and deadlines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdhw.drivers.event_stream import EventStream
from qkdhw.errors import QkdhwError, TransportClosedError, TransportTimeoutError, UnitError
from qkdhw.interfaces import TimeTagger, TransmitterUnit
from qkdhw.link.streams import DetectionReader, PreparationReader, join_blocks
from qkdhw.model import DetectionBlock, PreparationBlock, UnitInfo, UnitStatus

TICK_PS = Fraction(125, 32)
PIECE_S = 1e-6
PIECE_TICKS = int(PIECE_S * 1e12 / TICK_PS)
TIMEOUT_S = 5.0


class _Unit:
    """What every unit can do, with nothing behind it."""

    def __init__(self) -> None:
        self.reads = 0
        self.stopped = threading.Event()

    def identify(self) -> UnitInfo:
        return UnitInfo("test", "in memory", "1")

    def read_status(self) -> UnitStatus:
        return UnitStatus("running")

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MemoryTagger(_Unit):
    """Gives the blocks it was made with, then raises `error`, or nothing more comes."""

    def __init__(self, blocks: Iterator[DetectionBlock], error: Exception | None = None) -> None:
        super().__init__()
        self._blocks = blocks
        self._error = error

    def read_block(self, max_events: int, *, timeout_s: float = 5.0) -> DetectionBlock:
        self.reads += 1
        block = next(self._blocks, None)
        if block is not None:
            return block
        if self._error is not None:
            raise self._error
        time.sleep(0.001)
        return detections([])

    def stream(self) -> EventStream:
        return EventStream(self)


class MemoryTransmitter(_Unit):
    """Gives the records it was made with, likewise."""

    def __init__(self, blocks: Iterator[PreparationBlock], error: Exception | None = None) -> None:
        super().__init__()
        self._blocks = blocks
        self._error = error

    def configure(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return settings

    def arm(self) -> None:
        pass

    def read_preparation(self, max_pulses: int, *, timeout_s: float = 5.0) -> PreparationBlock:
        self.reads += 1
        block = next(self._blocks, None)
        if block is not None:
            return block
        if self._error is not None:
            raise self._error
        time.sleep(0.001)
        return PreparationBlock(0, np.empty(0, np.uint8))


def test_the_units_of_this_file_are_units() -> None:
    assert isinstance(MemoryTagger(iter([])), TimeTagger)
    assert isinstance(MemoryTransmitter(iter([])), TransmitterUnit)


def detections(times: list[int], missed: int = 0, first: int = 0) -> DetectionBlock:
    ticks = np.array(times, np.int64)
    channel = (np.arange(first, first + ticks.size) % 4 + 1).astype(np.uint8)
    return DetectionBlock(ticks, channel, np.zeros(ticks.size, np.uint8), TICK_PS, missed=missed)


def split(times: list[int], places: list[int], missed: list[int] | None = None) -> list[DetectionBlock]:
    cuts = [0, *sorted(place % (len(times) + 1) for place in places), len(times)]
    spans = [(a, b) for a, b in pairwise(cuts) if b > a]
    counts = (missed or []) + [0] * len(spans)
    return [detections(times[a:b], counts[i], a) for i, (a, b) in enumerate(spans)]


def read_pieces(blocks: list[DetectionBlock], count: int) -> list[DetectionBlock]:
    with DetectionReader(MemoryTagger(iter(blocks)), PIECE_S, 10_000) as reader:
        return [reader.next_piece(timeout_s=TIMEOUT_S) for _ in range(count)]


def fields(pieces: list[DetectionBlock]) -> list[tuple[list[int], list[int], list[int], Fraction]]:
    return [(p.time_ticks.tolist(), p.channel.tolist(), p.kind.tolist(), p.tick_ps) for p in pieces]


# --- detections -----------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 20 * PIECE_TICKS), min_size=1, max_size=40).map(sorted),
    st.lists(st.integers(0, 100), max_size=8),
    st.lists(st.integers(0, 3), max_size=8),
)
def test_pieces_of_equal_time_do_not_depend_on_how_events_arrive(
    times: list[int], places: list[int], missed: list[int]
) -> None:
    count = (times[-1] - times[0]) // PIECE_TICKS
    want = [[t for t in times if i * PIECE_TICKS <= t - times[0] < (i + 1) * PIECE_TICKS] for i in range(count)]
    blocks = split(times, places, missed)
    pieces = read_pieces(blocks, count)
    assert [piece.time_ticks.tolist() for piece in pieces] == want
    assert fields(pieces) == fields(read_pieces([detections(times)], count))
    left = [t for t in times if t - times[0] >= count * PIECE_TICKS]
    told = sum(piece.missed for piece in pieces)
    assert told <= sum(block.missed for block in blocks)
    assert told >= sum(block.missed for block in blocks if block.time_ticks[-1] < left[0])


def test_what_the_stream_says_it_lost_is_told_once_even_over_a_long_silence() -> None:
    blocks = [detections([0, 1]), detections([10 * PIECE_TICKS], missed=7), detections([12 * PIECE_TICKS])]
    pieces = read_pieces(blocks, 12)
    assert [piece.missed for piece in pieces] == [0] * 10 + [7, 0]
    assert [len(piece) for piece in pieces] == [2] + [0] * 9 + [1, 0]


def test_a_piece_is_not_given_before_an_event_after_it() -> None:
    with DetectionReader(MemoryTagger(iter([detections([0, 1, 2])])), PIECE_S, 100) as reader:
        with pytest.raises(TransportTimeoutError, match="delivered no events") as raised:
            reader.next_piece(timeout_s=0.05)
        assert raised.value.remedy


def test_nothing_is_lost_by_a_timeout() -> None:
    go_on = threading.Event()

    def blocks() -> Iterator[DetectionBlock]:
        yield detections([0, 1])
        yield detections([2, 3], first=2)
        while not go_on.is_set():
            yield detections([])
        yield detections([PIECE_TICKS], first=4)

    with DetectionReader(MemoryTagger(blocks()), PIECE_S, 100) as reader:
        with pytest.raises(TransportTimeoutError):
            reader.next_piece(timeout_s=0.1)
        go_on.set()
        assert reader.next_piece(timeout_s=TIMEOUT_S).time_ticks.tolist() == [0, 1, 2, 3]


def test_the_reader_stops_reading_at_its_limit() -> None:
    endless = (detections(list(range(i * 100_000, (i + 1) * 100_000, 1000))) for i in range(10**9))
    tagger = MemoryTagger(endless)
    with DetectionReader(tagger, PIECE_S, 1000) as reader:
        time.sleep(0.2)
        held = tagger.reads
        assert held == 10
        time.sleep(0.1)
        assert tagger.reads == held
        assert len(reader.next_piece(timeout_s=TIMEOUT_S)) == 256
    assert tagger.reads <= held + 3


def test_a_unit_whose_time_stands_still_fills_neither_memory_nor_time() -> None:
    still = (detections([5] * 100) for _ in range(10**9))
    with DetectionReader(MemoryTagger(still), PIECE_S, 1000) as reader, pytest.raises(UnitError, match="time stands"):
        reader.next_piece(timeout_s=60.0)
    slow = (detections([5]) for _ in iter(lambda: time.sleep(0.002), 1))
    with DetectionReader(MemoryTagger(slow), PIECE_S, 1_000_000) as reader:
        started = time.monotonic()
        with pytest.raises(TransportTimeoutError):
            reader.next_piece(timeout_s=0.1)
        assert time.monotonic() - started < 2.0


# --- errors in the thread -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [TransportClosedError("unplugged"), UnitError("nonsense"), RuntimeError("a bug")])
def test_an_error_in_the_thread_is_raised_at_the_consumer_after_what_came_before(error: Exception) -> None:
    tagger = MemoryTagger(iter([detections([0, PIECE_TICKS])]), error)
    with DetectionReader(tagger, PIECE_S, 100) as reader:
        assert len(reader.next_piece(timeout_s=TIMEOUT_S)) == 1
        for _ in range(2):
            with pytest.raises(type(error), match=str(error)):
                reader.next_piece(timeout_s=TIMEOUT_S)
    unit = MemoryTransmitter(iter([PreparationBlock(0, np.ones(4, np.uint8))]), error)
    with PreparationReader(unit, 100) as records:
        assert records.take(0, 4, timeout_s=TIMEOUT_S).tolist() == [1] * 4
        with pytest.raises(type(error), match=str(error)):
            records.take(4, 1, timeout_s=TIMEOUT_S)


def test_leaving_stops_the_thread_also_when_it_is_full() -> None:
    tagger = MemoryTagger(detections([i]) for i in range(10**9))
    with DetectionReader(tagger, PIECE_S, 1) as reader:
        time.sleep(0.05)
    assert not reader._thread.is_alive()


# --- preparation records --------------------------------------------------------------------------------------------
RECORD = np.random.default_rng(4).integers(0, 12, 500, dtype=np.uint8)


def records(places: list[int]) -> Iterator[PreparationBlock]:
    cuts = [0, *sorted(set(places)), RECORD.size]
    for a, b in pairwise(cuts):
        if b > a:
            yield PreparationBlock(a, RECORD[a:b].copy())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 499), max_size=12),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 150)), min_size=1, max_size=5),
)
def test_records_are_taken_across_pieces_with_gaps_between(places: list[int], takes: list[tuple[int, int]]) -> None:
    first = 0
    with PreparationReader(MemoryTransmitter(records(places)), 10_000) as reader:
        for gap, n in takes:
            first += gap
            if first + n > RECORD.size:
                break
            assert reader.take(first, n, timeout_s=TIMEOUT_S).tolist() == RECORD[first : first + n].tolist()
            first += n


def test_what_was_taken_is_forgotten_and_wiped() -> None:
    pieces = list(records([100]))
    with PreparationReader(MemoryTransmitter(iter(pieces)), 10_000) as reader:
        reader.take(10, 120, timeout_s=TIMEOUT_S)
        assert not pieces[0].record.any()
        assert not pieces[1].record[:30].any()
        assert pieces[1].record[30:].tolist() == RECORD[130:].tolist()
        with pytest.raises(ValueError, match="before 130 are forgotten"):
            reader.take(129, 5, timeout_s=TIMEOUT_S)
        assert reader.take(130, 5, timeout_s=TIMEOUT_S).tolist() == RECORD[130:135].tolist()


@pytest.mark.parametrize("second", [9, 11, 0])
def test_a_jump_in_the_pulse_index_is_an_error(second: int) -> None:
    ten = np.ones(10, np.uint8)
    blocks = iter([PreparationBlock(0, ten.copy()), PreparationBlock(second, ten.copy())])
    with PreparationReader(MemoryTransmitter(blocks), 100) as reader:
        assert len(reader.take(0, 10, timeout_s=TIMEOUT_S)) == 10
        with pytest.raises(UnitError, match=f"jump from pulse 10 to {second}"):
            reader.take(10, 5, timeout_s=TIMEOUT_S)


def test_records_that_do_not_come_are_a_timeout() -> None:
    unit = MemoryTransmitter(iter([PreparationBlock(0, RECORD[:10].copy())]))
    with (
        PreparationReader(unit, 100) as reader,
        pytest.raises(TransportTimeoutError, match="no preparation records") as raised,
    ):
        reader.take(0, 11, timeout_s=0.05)
    assert raised.value.remedy
    assert isinstance(raised.value, QkdhwError)


def test_records_are_bounded_and_more_than_the_bound_can_be_taken() -> None:
    unit = MemoryTransmitter(PreparationBlock(i * 10, np.full(10, i % 7, np.uint8)) for i in range(10**9))
    with PreparationReader(unit, 100) as reader:
        time.sleep(0.1)
        assert unit.reads == 10
        taken = reader.take(0, 1000, timeout_s=TIMEOUT_S)
        assert taken.tolist() == [i // 10 % 7 for i in range(1000)]
    assert unit.reads <= 111


def test_joining_keeps_order_and_counts() -> None:
    joined = join_blocks([detections([1, 2], missed=1), detections([3], missed=2, first=2)])
    assert joined.time_ticks.tolist() == [1, 2, 3]
    assert joined.channel.tolist() == [1, 2, 3]
    assert joined.missed == 3
