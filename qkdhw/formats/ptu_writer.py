"""Write PicoQuant PTU files: Generic T2 or T3 records and the mandatory header tags only.

Source: PicoQuant, "Time Tagged File Format Demos": appendices "Tag types", "Tag dictionary", "TTTR record types".
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw.errors import EventFormatError, NonMonotonicTimeError
from qkdhw.formats.atomic import write_whole_file
from qkdhw.formats.encoding import KEEP_ALL_REMEDY, LeftOut, refuse_fine_ticks, rescaled_ticks
from qkdhw.formats.ptu import T2_WRAP_TICKS
from qkdhw.formats.ptu_header import MAGIC, TAG, RecordType, TagType
from qkdhw.model import DetectionBlock, EventKind
from qkdhw.quantities import PS_PER_S

T3_WRAP_SYNCS = 1024
SPECIAL = 1 << 31
OVERFLOW_SOURCE = 63
_END_TICKS = 1 << 60  # readers of this package, too, keep away from the end of int64
_MAX_OVERFLOWS = 1 << 24  # between two blocks' ends


def write_ptu(
    path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, fine_tick_ps: Fraction | None = None
) -> LeftOut:
    """Write a PTU file, whole or not at all: T3 if there are fine ticks, else T2.

    The file's GUID is taken from a hash of its records, so the same events give the same file.

    Args:
        path: The new file.
        blocks: Photons on inputs 0 (sync, T2 only) to 63, markers 1 to 15; dummies are left out and counted.
        tick_ps: Tick of the events (T3: the sync period); a double of seconds must hold it exactly.
        fine_tick_ps: Tick of the time since the last sync, for T3.

    Raises:
        EventFormatError: An event or tick that this format cannot hold exactly.
        NonMonotonicTimeError: A time goes back over an overflow record.
        EventError: The file cannot be written.

    Source: appendices "Tag dictionary" (mandatory tags) and "TTTR record types" (Generic T2, T3).
    """
    left_out = LeftOut()
    seconds = (_exact_seconds(tick_ps), _exact_seconds(tick_ps if fine_tick_ps is None else fine_tick_ps))
    record_type = RecordType.GENERIC_T2 if fine_tick_ps is None else RecordType.GENERIC_T3
    digest = hashlib.sha256()
    records = wraps = 0
    with write_whole_file(path) as file:
        file.write(_header(record_type, seconds, records, digest.digest()))
        for block in blocks:
            if not record_type.is_t3:
                refuse_fine_ticks(block, "PTU T2 files")
            keep = left_out.keep(block, "PTU files", allowed={EventKind.PHOTON, EventKind.MARKER})
            time = rescaled_ticks(block.time_ticks[keep], tick_ps, tick_ps)
            low, wrap_ticks = _event_words(block, keep, record_type)
            record, wraps = _with_overflows(low, time, wraps, wrap_ticks, left_out.events - len(time))
            data = record.astype("<u4").tobytes()
            digest.update(data)
            records += len(record)
            file.write(data)
        file.seek(0)
        file.write(_header(record_type, seconds, records, digest.digest()))
    return left_out


def _exact_seconds(tick_ps: Fraction) -> float:
    seconds = float(tick_ps / PS_PER_S)
    if seconds <= 0 or Fraction(repr(seconds)) * PS_PER_S != tick_ps:
        raise EventFormatError(
            f"a PTU header holds its resolution as a double and cannot say {tick_ps} ps exactly",
            remedy=KEEP_ALL_REMEDY,
        )
    return seconds


def _header(record_type: RecordType, seconds: tuple[float, float], records: int, digest: bytes) -> bytes:
    # RFC 9562 version 8: the other bits are ours to choose.
    guid = bytearray(digest[:16])
    guid[6] = guid[6] & 0x0F | 0x80
    guid[8] = guid[8] & 0x3F | 0x80
    text = guid.hex().upper()
    name = f"{{{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}}}".encode().ljust(40, b"\0")
    sync_rate_hz = round(1 / seconds[0]) if record_type.is_t3 else 0
    number = struct.Struct("<q").pack
    real = struct.Struct("<d").pack
    tags = (
        ("File_GUID", TagType.ANSI_STRING, number(len(name)), name),
        ("Measurement_Mode", TagType.INT, number(3 if record_type.is_t3 else 2), b""),
        ("Measurement_SubMode", TagType.INT, number(0), b""),
        ("MeasDesc_GlobalResolution", TagType.FLOAT, real(seconds[0]), b""),
        ("MeasDesc_Resolution", TagType.FLOAT, real(seconds[1]), b""),
        ("TTResult_SyncRate", TagType.INT, number(sync_rate_hz), b""),
        ("TTResult_NumberOfRecords", TagType.INT, number(records), b""),
        ("TTResultFormat_BitsPerRecord", TagType.INT, number(32), b""),
        ("TTResultFormat_TTTRRecType", TagType.INT, number(record_type), b""),
        ("Header_End", TagType.EMPTY, number(0), b""),
    )
    return b"".join(
        (
            MAGIC,
            b"1.0.00\0\0",
            *(TAG.pack(ident.encode(), -1, tag_type, value) + extra for ident, tag_type, value, extra in tags),
        )
    )


def _event_words(
    block: DetectionBlock, keep: NDArray[np.bool_], record_type: RecordType
) -> tuple[NDArray[np.int64], int]:
    """Return the event records without their time field, and how many ticks that field holds."""
    channel = block.channel[keep].astype(np.int64)
    marker = block.kind[keep] == EventKind.MARKER
    lowest = 1 if record_type.is_t3 else 0
    if ((channel < 1) | (channel > 15))[marker].any():
        raise EventFormatError("a PTU marker has a pattern of 1 to 15", remedy=KEEP_ALL_REMEDY)
    if ((channel < lowest) | (channel > 64))[~marker].any():
        raise EventFormatError(
            f"PTU {'T3' if lowest else 'T2'} files hold inputs {lowest} to 64", remedy=KEEP_ALL_REMEDY
        )
    special = marker | (channel == 0)
    word = np.where(special, SPECIAL | channel << 25, (channel - 1) << 25)
    if not record_type.is_t3:
        return word, T2_WRAP_TICKS
    if block.fine_ticks is None:
        raise EventFormatError("T3 events without their time since the sync", remedy=KEEP_ALL_REMEDY)
    fine = block.fine_ticks[keep].astype(np.int64)
    if len(fine) and int(fine.max()) >> 15:
        raise EventFormatError("PTU T3 files hold fine times below 32768 ticks", remedy=KEEP_ALL_REMEDY)
    return word | fine << 10, T3_WRAP_SYNCS


def _with_overflows(
    word: NDArray[np.int64], time: NDArray[np.int64], wraps: int, wrap_ticks: int, first_index: int
) -> tuple[NDArray[np.int64], int]:
    """Put the time into the event records and counted overflow records between them."""
    if not len(time):
        return word, wraps
    if int(time.max()) >= _END_TICKS:
        raise EventFormatError("PTU files hold times below 2^60 ticks", remedy=KEEP_ALL_REMEDY)
    largest = wrap_ticks - 1
    wrap = time // wrap_ticks
    step = np.diff(wrap, prepend=wraps)
    if (step < 0).any():
        index = first_index + int(np.argmax(step < 0))
        raise NonMonotonicTimeError(
            f"event {index} goes back in time by more than a PTU file can say",
            index=index,
            remedy="sort the events, or write HDF5 or Parquet, which keep their order",
        )
    overflows = -(-step // largest)
    if int(overflows.sum()) > _MAX_OVERFLOWS:
        raise EventFormatError(
            f"a gap in the events takes {int(overflows.sum()):,} overflow records in a PTU file",
            remedy="shift the times to begin near 0, or " + KEEP_ALL_REMEDY,
        )
    position = np.arange(len(time)) + np.cumsum(overflows)
    record = np.full(len(time) + int(overflows.sum()), SPECIAL | OVERFLOW_SOURCE << 25 | largest, np.int64)
    record[position] = word | time % wrap_ticks
    # All overflow records before an event are full but the last, which takes the rest.
    some = overflows > 0
    record[position[some] - 1] -= (overflows * largest - step)[some]
    return record, int(wrap[-1])
