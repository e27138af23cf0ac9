"""Read PicoQuant PTU files: T2 and T3 records of PicoHarp, HydraHarp, TimeHarp, MultiHarp (Generic).

Source: PicoQuant, "Time Tagged File Format Demos": appendices "Tag types", "Tag dictionary", "TTTR record types".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, unique
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import ptu as kernel
from qkdhw.errors import EventFormatError
from qkdhw.formats.event_file import (
    TOLERANT_REMEDY,
    EventFile,
    Tally,
    file_size_bytes,
    note_invalid_records,
    read_error,
    read_records,
)
from qkdhw.model import DetectionBlock
from qkdhw.quantities import PS_PER_S

MAGIC = b"PQTTTR\0\0"
TAG = struct.Struct("<32siI8s")
RECORD_BYTES = 4
T2_WRAP_TICKS = 33554432
T2_WRAP_TICKS_V1 = 33552000
MAX_TAGS = 100_000


@unique
class TagType(IntEnum):
    """Types of header tags (appendix "Tag types")."""

    EMPTY = 0xFFFF0008
    BOOL = 0x00000008
    INT = 0x10000008
    BIT_SET = 0x11000008
    COLOR = 0x12000008
    FLOAT = 0x20000008
    DATE_TIME = 0x21000008
    INT_ARRAY = 0x1001FFFF
    FLOAT_ARRAY = 0x2001FFFF
    ANSI_STRING = 0x4001FFFF
    WIDE_STRING = 0x4002FFFF
    BLOB = 0xFFFFFFFF


@unique
class RecordType(IntEnum):
    """Values of TTResultFormat_TTTRRecType (appendix "TTTR record types")."""

    PICOHARP_T2 = 0x00010203
    PICOHARP_T3 = 0x00010303
    HYDRAHARP_V1_T2 = 0x00010204
    HYDRAHARP_V1_T3 = 0x00010304
    HYDRAHARP_V2_T2 = 0x01010204
    HYDRAHARP_V2_T3 = 0x01010304
    TIMEHARP_260N_T2 = 0x00010205
    TIMEHARP_260N_T3 = 0x00010305
    TIMEHARP_260P_T2 = 0x00010206
    TIMEHARP_260P_T3 = 0x00010306
    GENERIC_T2 = 0x00010207
    GENERIC_T3 = 0x00010307

    @property
    def is_t3(self) -> bool:
        """Whether records count syncs and the time since the sync."""
        return self & 0xFF00 == 0x0300


_SINGLE_OVERFLOW = {RecordType.HYDRAHARP_V1_T2, RecordType.HYDRAHARP_V1_T3}
_LONG_TAGS = {
    TagType.INT_ARRAY,
    TagType.FLOAT_ARRAY,
    TagType.ANSI_STRING,
    TagType.WIDE_STRING,
    TagType.BLOB,
}


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the records of one file are and how to read them."""

    path: Path
    record_type: RecordType
    data_bytes: int
    records: int
    missing: int
    trailing_bytes: int
    tick_ps: Fraction
    fine_tick_ps: Fraction | None
    tolerant: bool


def open_ptu(path: Path, *, tolerant: bool = False) -> EventFile:
    """Read the header of a PTU file and make its events readable.

    Args:
        path: The file; its name need not end in .ptu.
        tolerant: Accept a file that is cut short and skip records that follow no rule, and count both.

    Raises:
        EventFormatError: Not a PTU file, a header that is cut or lacks what is needed, or fewer records than it says.
        EventError: The file cannot be read.

    Source: appendices "Tag dictionary" (mandatory tags) and "TTTR record types".
    """
    size_bytes = file_size_bytes(path)
    try:
        with path.open("rb") as file:
            header = _read_header(path, file, size_bytes)
            data_bytes = file.tell()
    except OSError as error:
        raise read_error(path, error) from error
    record_type = _record_type(path, header)
    promised = _positive(path, header, "TTResult_NumberOfRecords", zero_allowed=True)
    present, trailing_bytes = divmod(size_bytes - data_bytes, RECORD_BYTES)
    # A measurement that was cut off leaves 0 in the header.
    if not tolerant and (promised > present or promised == 0 < present):
        raise EventFormatError(
            f"{path}: the header promises {promised} records and the file holds {present}, up to byte {size_bytes}",
            offset_bytes=size_bytes,
            remedy=TOLERANT_REMEDY,
        )
    records = int(promised) if 0 < promised <= present else present
    source = _Source(
        path=path,
        record_type=record_type,
        data_bytes=data_bytes,
        records=records,
        missing=max(0, int(promised) - present),
        trailing_bytes=trailing_bytes + RECORD_BYTES * (present - records),
        tick_ps=_exact_ps(_positive(path, header, "MeasDesc_GlobalResolution")),
        fine_tick_ps=_exact_ps(_positive(path, header, "MeasDesc_Resolution")) if record_type.is_t3 else None,
        tolerant=tolerant,
    )
    return EventFile(
        path=path,
        format="ptu",
        tick_ps=source.tick_ps,
        fine_tick_ps=source.fine_tick_ps,
        header={**header, "record_type": record_type.name, "header_bytes": data_bytes},
        records_expected=records,
        decode=partial(_decode, source),
    )


def _read_header(path: Path, file: BinaryIO, size_bytes: int) -> dict[str, Any]:
    if file.read(8) != MAGIC:
        raise EventFormatError(
            f"{path} does not start with PQTTTR", offset_bytes=0, remedy="give the right format with --format"
        )
    header: dict[str, Any] = {"file_version": file.read(8).rstrip(b"\0").decode("ascii", "replace")}
    for _ in range(MAX_TAGS):
        offset_bytes = file.tell()
        raw = file.read(TAG.size)
        if len(raw) < TAG.size:
            raise _header_error(path, size_bytes, "the header ends before its Header_End tag")
        ident, index, type_code, value = TAG.unpack(raw)
        name = ident.split(b"\0", 1)[0].decode("ascii", "replace")
        if name == "Header_End":
            return header
        key = name if index < 0 else f"{name}[{index}]"
        header[key] = _read_value(path, file, offset_bytes, size_bytes, type_code, value)
    raise _header_error(path, file.tell(), f"the header has more than {MAX_TAGS} tags")


def _read_value(path: Path, file: BinaryIO, offset_bytes: int, size_bytes: int, type_code: int, value: bytes) -> Any:
    try:
        tag_type = TagType(type_code)
    except ValueError as error:
        raise _header_error(path, offset_bytes, f"unknown tag type {type_code:#010x}") from error
    if tag_type in {TagType.FLOAT, TagType.DATE_TIME}:
        return struct.unpack("<d", value)[0]
    number = int(struct.unpack("<q", value)[0])
    if tag_type not in _LONG_TAGS:
        return bool(number) if tag_type is TagType.BOOL else number
    if not 0 <= number <= size_bytes - file.tell():
        raise _header_error(path, offset_bytes, f"a tag of {number} bytes reaches beyond the end of the file")
    data = file.read(number)
    if tag_type is TagType.ANSI_STRING:
        return data.split(b"\0", 1)[0].decode("utf-8", "replace")
    if tag_type is TagType.WIDE_STRING:
        return data.decode("utf-16-le", "replace").split("\0", 1)[0]
    return f"<{number} bytes>"


def _header_error(path: Path, offset_bytes: int, what: str) -> EventFormatError:
    return EventFormatError(
        f"{path}: {what} (byte {offset_bytes})",
        offset_bytes=offset_bytes,
        remedy="the header is damaged: copy the file again or record it again",
    )


def _positive(path: Path, header: Mapping[str, Any], name: str, *, zero_allowed: bool = False) -> float:
    """Return a number that the header must have: an int tag as int, a float tag as float."""
    value = header.get(name)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (0 < value < 2**63 or (zero_allowed and value == 0))
    ):
        raise _header_error(path, 0, f"tag {name} is {'missing' if value is None else f'unusable ({value!r})'}")
    return value


def _record_type(path: Path, header: Mapping[str, Any]) -> RecordType:
    code = header.get("TTResultFormat_TTTRRecType")
    if header.get("TTResultFormat_BitsPerRecord", 32) != 32:
        raise _header_error(path, 0, "records are not 32 bits long")
    try:
        return RecordType(code)  # type: ignore[arg-type]
    except ValueError as error:
        shown = f"{code:#010x}" if isinstance(code, int) else code
        raise EventFormatError(
            f"{path}: unknown record type {shown}",
            offset_bytes=0,
            remedy="convert it with the maker's software to a PTU of a known instrument",
        ) from error


def _exact_ps(seconds: float) -> Fraction:
    """Take the shortest decimal that gives this double: 1e-12 s is one picosecond, and not a little less."""
    return Fraction(repr(seconds)) * PS_PER_S


def _decode(source: _Source, max_events: int, tally: Tally) -> Iterator[DetectionBlock]:
    state = np.zeros(4, np.int64)
    invalid = 0
    tally.missing_records = source.missing
    tally.trailing_bytes = source.trailing_bytes
    for offset_bytes, data in read_records(
        source.path,
        offset_bytes=source.data_bytes,
        record_bytes=RECORD_BYTES,
        records=source.records,
        chunk_records=max_events,
    ):
        block = _decode_records(source, np.frombuffer(data, "<u4"), state)
        tally.records += len(data) // RECORD_BYTES
        tally.overflow_records = int(state[1])
        note_invalid_records(
            source.path,
            tally,
            count=int(state[2]) - invalid,
            offset_bytes=offset_bytes + RECORD_BYTES * int(state[3]),
            tolerant=source.tolerant,
            why=f"no {source.record_type.name} record looks like this",
        )
        invalid = int(state[2])
        if len(block):
            yield block


def _decode_records(source: _Source, record: NDArray[np.uint32], state: NDArray[np.int64]) -> DetectionBlock:
    n = len(record)
    time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
    record_type = source.record_type
    counted = record_type not in _SINGLE_OVERFLOW
    fine = np.empty(n, np.uint16) if record_type.is_t3 else None
    if record_type is RecordType.PICOHARP_T2:
        count = kernel.decode_picoharp_t2(record, time, channel, kind, state)
    elif fine is None:
        wrap_ticks = T2_WRAP_TICKS if counted else T2_WRAP_TICKS_V1
        count = kernel.decode_hydraharp_t2(record, wrap_ticks, counted, time, channel, kind, state)
    elif record_type is RecordType.PICOHARP_T3:
        count = kernel.decode_picoharp_t3(record, time, fine, channel, kind, state)
    else:
        count = kernel.decode_hydraharp_t3(record, counted, time, fine, channel, kind, state)
    return DetectionBlock(
        time_ticks=time[:count],
        channel=channel[:count],
        kind=kind[:count],
        tick_ps=source.tick_ps,
        fine_ticks=None if fine is None else fine[:count],
        fine_tick_ps=source.fine_tick_ps,
    )
