"""An opened file of detection events: what its header says, how to read its blocks, what was met while reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from qkdhw.errors import EventError, EventFormatError
from qkdhw.model import DetectionBlock

TOLERANT_REMEDY = "read it with tolerant=True (--tolerant) to get what is whole, or record it again"
DEFAULT_BLOCK_EVENTS = 1 << 18


@dataclass(slots=True)
class Tally:
    """What reading met so far; complete when the blocks of a file have been read to the end.

    Attributes:
        records: Records read, all sorts.
        overflow_records: Records that only carry the clock on.
        invalid_records: Records that follow no rule of the format; a gap in the events, in tolerant mode only.
        first_invalid_offset_bytes: Where the first invalid record is, or None.
        missing_records: Records that the header promises and the file does not have, in tolerant mode only.
        trailing_bytes: Bytes after the last whole record.
        empty_records: Records that say nothing at all, such as the words 0 of a TDC2's fast mode.
        pattern_records: Records per pattern of inputs (bit 0 is input 1) for formats that store patterns.
    """

    records: int = 0
    overflow_records: int = 0
    invalid_records: int = 0
    first_invalid_offset_bytes: int | None = None
    missing_records: int = 0
    trailing_bytes: int = 0
    empty_records: int = 0
    pattern_records: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class EventFile:
    """A file of detection events. Nothing is held open; blocks may be read again from the start.

    Attributes:
        path: Where it is.
        format: Name in `qkdhw.formats.FORMATS`.
        tick_ps: Exact length of a tick in picoseconds.
        fine_tick_ps: Exact length of a fine tick for start-stop (T3) files, else None.
        header: Facts from the file's header, by the names of its format.
        records_expected: Number of records that reading will give at most, or None if unknown before reading.
        decode: Yields blocks of at most so many events and keeps the tally.
        tally: What the last read met.
    """

    path: Path
    format: str
    tick_ps: Fraction
    fine_tick_ps: Fraction | None
    header: Mapping[str, Any]
    records_expected: int | None
    decode: Callable[[int, Tally], Iterator[DetectionBlock]]
    tally: Tally = field(default_factory=Tally)

    def read_blocks(self, max_events: int = DEFAULT_BLOCK_EVENTS) -> Iterator[DetectionBlock]:
        """Yield the events from the file's start in blocks of 1..max_events.

        Raises:
            EventFormatError: The file does not follow its format; carries the byte offset.
            EventError: The file cannot be read.
            ValueError: max_events < 1.
        """
        if max_events < 1:
            msg = "max_events is below 1"
            raise ValueError(msg)
        self.tally = Tally()
        for block in self.decode(max_events, self.tally):
            for first in range(0, len(block), max_events):
                yield block if len(block) <= max_events else _part(block, first, first + max_events)


def _part(block: DetectionBlock, first: int, end: int) -> DetectionBlock:
    fine = block.fine_ticks
    return DetectionBlock(
        time_ticks=block.time_ticks[first:end],
        channel=block.channel[first:end],
        kind=block.kind[first:end],
        tick_ps=block.tick_ps,
        fine_ticks=None if fine is None else fine[first:end],
        fine_tick_ps=block.fine_tick_ps,
        missed=block.missed if first == 0 else 0,
    )


def read_error(path: Path, error: OSError) -> EventError:
    """Make the typed error for a file that cannot be read."""
    return EventError(f"cannot read {path}: {error.strerror or error}", remedy="check the path and its permissions")


def file_size_bytes(path: Path) -> int:
    """Return the size of a file.

    Raises:
        EventError: It cannot be read.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise read_error(path, error) from error


def read_records(
    path: Path, *, offset_bytes: int, record_bytes: int, records: int, chunk_records: int
) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, bytes) of chunks of whole records.

    Raises:
        EventFormatError: The file became shorter than it was when it was opened.
        EventError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset_bytes)
            left = records
            while left:
                wanted = min(left, chunk_records) * record_bytes
                data = file.read(wanted)
                if len(data) != wanted:
                    raise EventFormatError(
                        f"{path} ends at byte {offset_bytes + len(data)} while it is being read",
                        offset_bytes=offset_bytes + len(data),
                        remedy="wait until the recording is finished and read it again",
                    )
                yield offset_bytes, data
                offset_bytes += wanted
                left -= wanted // record_bytes
    except OSError as error:
        raise read_error(path, error) from error
