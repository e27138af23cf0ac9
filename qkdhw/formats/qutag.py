"""Read and write quTAG BINARY files: a 40-byte header, then 8 bytes of time and 2 bytes of channel an event.

RAW files are the same records without a header. The rest of the header is not documented: it is skipped, and written
as zeros.

Source: qutools, quTAG manual, file formats (BINARY, RAW).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from qkdhw._core import qutag as kernel
from qkdhw.errors import EventFormatError
from qkdhw.formats.atomic import write_whole_file
from qkdhw.formats.encoding import LeftOut, refuse_fine_ticks, rescaled_ticks
from qkdhw.formats.event_file import (
    TOLERANT_REMEDY,
    EventFile,
    Tally,
    file_size_bytes,
    note_invalid_records,
    read_error,
    read_records,
)
from qkdhw.model import DetectionBlock, EventKind

MAGIC = 0xFA91B387
HEADER = struct.Struct("<III28x")
HEADER_FORMAT = 0x800
TICK_PS = Fraction(1)
RECORD = np.dtype([("time", "<u8"), ("channel", "<u2")])


def open_qutag(path: Path, *, raw: bool = False, tolerant: bool = False) -> EventFile:
    """Read the header of a quTAG file and make its events readable.

    Args:
        path: The file.
        raw: The file has no header.
        tolerant: Accept a file that is cut short and skip impossible records, and count both.

    Raises:
        EventFormatError: Wrong magic, a cut header, or a file shorter than its header says or cut within a record.
        EventError: The file cannot be read.

    Source: quTAG manual, file formats.
    """
    size_bytes = file_size_bytes(path)
    data_bytes = 0 if raw else HEADER.size
    promised_bytes = 0 if raw else _read_file_bytes(path)
    records, trailing_bytes = divmod(size_bytes - data_bytes, RECORD.itemsize)
    missing_bytes = max(0, promised_bytes - size_bytes)
    if (trailing_bytes or missing_bytes) and not tolerant:
        promise = f" and the header promises {promised_bytes}" if missing_bytes else ", within a record"
        raise EventFormatError(
            f"{path} ends at byte {size_bytes}{promise}",
            offset_bytes=size_bytes - trailing_bytes,
            remedy=TOLERANT_REMEDY,
        )
    return EventFile(
        path=path,
        format="qutag-raw" if raw else "qutag",
        tick_ps=TICK_PS,
        fine_tick_ps=None,
        header={} if raw else {"file_bytes": promised_bytes},
        records_expected=records,
        decode=partial(
            _decode,
            path,
            data_bytes,
            records,
            Tally(trailing_bytes=trailing_bytes, missing_records=-(-missing_bytes // RECORD.itemsize)),
            tolerant,
        ),
    )


def _read_file_bytes(path: Path) -> int:
    try:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
    except OSError as error:
        raise read_error(path, error) from error
    if len(head) < HEADER.size or HEADER.unpack(head)[0] != MAGIC:
        raise EventFormatError(
            f"{path} has no quTAG header", offset_bytes=0, remedy="give --format qutag-raw if it has none"
        )
    return int(HEADER.unpack(head)[1])


def _decode(
    path: Path,
    data_bytes: int,
    records: int,
    ending: Tally,
    tolerant: bool,
    max_events: int,
    tally: Tally,
) -> Iterator[DetectionBlock]:
    state = np.zeros(2, np.int64)
    invalid = 0
    tally.trailing_bytes, tally.missing_records = ending.trailing_bytes, ending.missing_records
    for offset_bytes, data in read_records(
        path,
        offset_bytes=data_bytes,
        record_bytes=RECORD.itemsize,
        records=records,
        chunk_records=max_events,
    ):
        n = len(data) // RECORD.itemsize
        time, channel = np.empty(n, np.int64), np.empty(n, np.uint8)
        count = kernel.decode_records(np.frombuffer(data, np.uint8), time, channel, state)
        tally.records += n
        note_invalid_records(
            path,
            tally,
            count=int(state[0]) - invalid,
            offset_bytes=offset_bytes + RECORD.itemsize * int(state[1]),
            tolerant=tolerant,
            why="its channel is above 255 or its time beyond 63 bits",
        )
        invalid = int(state[0])
        if count:
            yield DetectionBlock(time[:count], channel[:count], np.zeros(count, np.uint8), TICK_PS)


def write_qutag(path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, raw: bool = False) -> LeftOut:
    """Write a quTAG BINARY file, whole or not at all.

    Args:
        path: The new file.
        blocks: Events; dummies are left out and counted.
        tick_ps: Tick of the events; times must be whole picoseconds.
        raw: Write no header.

    Raises:
        EventFormatError: An event that this format cannot hold exactly.
        EventError: The file cannot be written.

    Source: quTAG manual, file formats.
    """
    left_out = LeftOut()
    with write_whole_file(path) as file:
        if not raw:
            file.write(bytes(HEADER.size))
        for block in blocks:
            refuse_fine_ticks(block, "quTAG files")
            keep = left_out.keep(block, "quTAG files", allowed={EventKind.PHOTON})
            record = np.empty(int(keep.sum()), RECORD)
            record["time"] = rescaled_ticks(block.time_ticks[keep], tick_ps, TICK_PS)
            record["channel"] = block.channel[keep]
            file.write(record.tobytes())
        if not raw:
            size_bytes = file.tell()
            file.seek(0)
            # The header's size field has 32 bits; larger files keep the low ones.
            file.write(HEADER.pack(MAGIC, size_bytes & 0xFFFFFFFF, HEADER_FORMAT))
    return left_out
