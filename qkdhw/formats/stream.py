"""Decode a format's bytes as they come: cut anywhere, in pieces of any size, always to the same events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import EventFormatError
from qkdhw.formats.event_file import TOLERANT_REMEDY, Tally, read_records
from qkdhw.model import DetectionBlock, EventKind

INVALID_KIND = 255  # what the kernels write in the place of an invalid record


@dataclass(frozen=True, slots=True)
class Columns:
    """Events as the kernels give them, invalid records included.

    Attributes:
        time: int64 (n,), ticks.
        channel: uint8 (n,).
        kind: uint8 (n,), an EventKind each, or INVALID_KIND.
        fine: uint16 (n,) or None.
        missed: Events that the stream says were lost.
    """

    time: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    channel: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    kind: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    fine: NDArray[np.uint16] | None = None
    missed: int = 0

    @classmethod
    def invalid(cls) -> Columns:
        """Return one invalid record."""
        return cls(np.zeros(1, np.int64), np.zeros(1, np.uint8), np.full(1, INVALID_KIND, np.uint8))

    @classmethod
    def joined(cls, parts: list[Columns]) -> Columns:
        """Return the events of all parts, which have no fine times."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.time for part in parts] or [np.empty(0, np.int64)]),
            np.concatenate([part.channel for part in parts] or [np.empty(0, np.uint8)]),
            np.concatenate([part.kind for part in parts] or [np.empty(0, np.uint8)]),
            missed=sum(part.missed for part in parts),
        )


class StreamDecoder(ABC):
    """The decoder of one stream or file. What a format adds is `_decode`.

    Attributes:
        tick_ps: Exact length of a tick in picoseconds; 1 as long as a header that says it has not come.
        fine_tick_ps: The same of a fine tick, for start-stop (T3) events, else None.
        tally: What was met so far.
        offset_bytes: Where in the stream the first byte is that was not decoded yet.
    """

    def __init__(
        self,
        *,
        least_bytes: int,
        tick_ps: Fraction,
        fine_tick_ps: Fraction | None = None,
        tolerant: bool = False,
        name: str = "the stream",
    ) -> None:
        self.tick_ps = tick_ps
        self.fine_tick_ps = fine_tick_ps
        self.tally = Tally()
        self.offset_bytes = 0
        self._least_bytes = least_bytes
        self._tolerant = tolerant
        self._name = name
        self._rest = b""
        self._last_ticks = 0
        self._in_gap = False
        self._some_invalid = False

    def feed(self, data: bytes | bytearray | memoryview) -> DetectionBlock:
        """Decode what is whole by now; the rest waits for the next call.

        Raises:
            EventFormatError: The stream does not follow its format; carries the byte offset. Not in tolerant mode,
                where what is wrong becomes a gap (GAP_BEGIN at the last event before, GAP_END at the first after) and
                is counted.
        """
        waiting = self._rest + bytes(data) if self._rest else bytes(data)
        if len(waiting) < self._least_bytes:
            self._rest = waiting
            return self._block(Columns())
        return self._block(self._decode_some(waiting, final=False))

    def finish(self) -> DetectionBlock:
        """Decode what was left over at the end of the stream.

        Raises:
            EventFormatError: The stream ends within a record, or before it says that it does. Not in tolerant mode.
        """
        columns = self._decode_some(self._rest, final=True)
        if self._rest:
            if not self._tolerant:
                raise self._error(
                    f"the record at byte {self.offset_bytes} is cut, only {len(self._rest)} bytes of it are there",
                    self.offset_bytes,
                )
            self.tally.trailing_bytes += len(self._rest)
        block = self._block(columns)
        if not self._in_gap:
            return block
        self._in_gap = False
        end = _gap_end(self._last_ticks, has_fine=self.fine_tick_ps is not None)
        parts = [Columns(block.time_ticks, block.channel, block.kind, block.fine_ticks, block.missed), end]
        joined = Columns.joined(parts)
        fine = None if end.fine is None else np.concatenate([_fine(part) for part in parts])
        return self._as_block(Columns(joined.time, joined.channel, joined.kind, fine, joined.missed))

    def _decode_some(self, data: bytes, *, final: bool) -> Columns:
        used, columns = self._decode(data, final=final)
        self._rest = data[used:]
        self.offset_bytes += used
        return columns

    @abstractmethod
    def _decode(self, data: bytes, *, final: bool) -> tuple[int, Columns]:
        """Decode from `offset_bytes` on; return the bytes used and the events. What is not used comes again."""

    def _note_invalid(self, count: int, offset_bytes: int, why: str) -> None:
        """Count invalid records, the first of which is at a byte, or refuse them."""
        if count == 0:
            return
        if not self._tolerant:
            raise self._error(f"invalid record at byte {offset_bytes}: {why}", offset_bytes)
        self._some_invalid = True
        self.tally.invalid_records += count
        if self.tally.first_invalid_offset_bytes is None:
            self.tally.first_invalid_offset_bytes = offset_bytes

    def _error(self, what: str, offset_bytes: int) -> EventFormatError:
        return EventFormatError(f"{self._name}: {what}", offset_bytes=offset_bytes, remedy=TOLERANT_REMEDY)

    def _block(self, columns: Columns) -> DetectionBlock:
        if len(columns.time):
            if self._some_invalid or self._in_gap:
                columns = self._with_gaps(columns)
            else:
                self._last_ticks = int(columns.time[-1])
        return self._as_block(columns)

    def _as_block(self, columns: Columns) -> DetectionBlock:
        return DetectionBlock(
            time_ticks=columns.time,
            channel=columns.channel,
            kind=columns.kind,
            tick_ps=self.tick_ps,
            fine_ticks=_fine(columns) if self.fine_tick_ps is not None else None,
            fine_tick_ps=self.fine_tick_ps,
            missed=columns.missed,
        )

    def _with_gaps(self, columns: Columns) -> Columns:
        """Put a begin and an end event in the place of each run of invalid records."""
        bad = columns.kind == INVALID_KIND
        bad_before = np.concatenate(([self._in_gap], bad[:-1]))
        begins, ends = bad & ~bad_before, ~bad & bad_before
        # The last good event before each: its index, or -1 if it was in an earlier call.
        good = np.maximum.accumulate(np.where(bad, -1, np.arange(len(bad))))
        time = np.where(bad, np.where(good < 0, self._last_ticks, columns.time[good]), columns.time)
        copies = np.where(bad, begins, 1 + ends.astype(np.int64))
        index = np.repeat(np.arange(len(bad)), copies)
        kind = np.where(bad, np.uint8(EventKind.GAP_BEGIN), columns.kind)[index]
        channel, fine = columns.channel[index], _fine(columns)[index]
        at_end = (np.cumsum(copies) - copies)[ends]
        kind[at_end], channel[at_end], fine[at_end] = EventKind.GAP_END, 0, 0
        self._in_gap, self._some_invalid = bool(bad[-1]), False
        self._last_ticks = int(time[-1])
        return Columns(time[index], channel, kind, fine, columns.missed)


class FixedDecoder(StreamDecoder):
    """The decoder of records of one size; what a format adds is `_records`."""

    def _decode(self, data: bytes, *, final: bool) -> tuple[int, Columns]:
        n = len(data) // self._least_bytes
        if not n:
            return 0, Columns()
        columns = self._records(np.frombuffer(data, np.uint8, n * self._least_bytes))
        self.tally.records += n
        return n * self._least_bytes, columns

    @abstractmethod
    def _records(self, data: NDArray[np.uint8]) -> Columns:
        """Decode whole records, at least one, the first of which is at `offset_bytes`."""

    def _note_invalid_record(self, count: int, index: int, why: str) -> None:
        self._note_invalid(count, self.offset_bytes + index * self._least_bytes, why)


def _fine(columns: Columns) -> NDArray[np.uint16]:
    return np.zeros(len(columns.time), np.uint16) if columns.fine is None else columns.fine


def _gap_end(ticks: int, *, has_fine: bool) -> Columns:
    kind = np.full(1, EventKind.GAP_END, np.uint8)
    return Columns(np.full(1, ticks), np.zeros(1, np.uint8), kind, np.zeros(1, np.uint16) if has_fine else None)


def refuse_a_cut_record(path: Path, size_bytes: int, record_bytes: int, *, tolerant: bool) -> None:
    """Refuse a file of so many bytes of records that ends within one.

    Raises:
        EventFormatError: It does, and reading is not tolerant.
    """
    whole, left = divmod(size_bytes, record_bytes)
    if left and not tolerant:
        offset_bytes = whole * record_bytes
        raise EventFormatError(
            f"{path}: the record at byte {offset_bytes} is cut, only {left} of its {record_bytes} bytes are there",
            offset_bytes=offset_bytes,
            remedy=TOLERANT_REMEDY,
        )


def decode_file(
    path: Path,
    make: Callable[[], StreamDecoder],
    size_bytes: int,
    record_bytes: int,
    max_events: int,
    tally: Tally,
    *,
    offset_bytes: int = 0,
) -> Iterator[DetectionBlock]:
    """Yield the events of a file.

    Args:
        path: The file.
        make: Makes its decoder.
        size_bytes: Bytes to decode.
        record_bytes: Of a record: as many bytes are read at once as `max_events` of these have.
        max_events: See above.
        tally: Is told what is met.
        offset_bytes: Where to begin.

    Raises:
        EventFormatError: The file does not follow its format; carries the byte offset.
        EventError: The file cannot be read.
    """
    decoder = make()
    decoder.tally = tally
    decoder.offset_bytes = offset_bytes
    pieces = read_records(
        path, offset_bytes=offset_bytes, record_bytes=1, records=size_bytes, chunk_records=max_events * record_bytes
    )
    for _, data in pieces:
        block = decoder.feed(data)
        if len(block) or block.missed:
            yield block
    block = decoder.finish()
    if len(block):
        yield block
