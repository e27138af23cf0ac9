"""Read PicoQuant PTU files: T2 and T3 records of PicoHarp, HydraHarp, TimeHarp, MultiHarp (Generic).

Source: PicoQuant, "Time Tagged File Format Demos": appendices "Tag types", "Tag dictionary", "TTTR record types".
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import ptu as kernel
from qkdhw.errors import EventFormatError
from qkdhw.formats.event_file import TOLERANT_REMEDY, EventFile, Tally, file_size_bytes, read_error
from qkdhw.formats.ptu_header import PtuHeader, RecordType
from qkdhw.formats.stream import Columns, StreamDecoder, decode_file
from qkdhw.model import DetectionBlock

RECORD_BYTES = 4
T2_WRAP_TICKS = 33554432
T2_WRAP_TICKS_V1 = 33552000
HEADER_PIECE_BYTES = 1 << 16
_SINGLE_OVERFLOW = {RecordType.HYDRAHARP_V1_T2, RecordType.HYDRAHARP_V1_T3}


class PtuDecoder(StreamDecoder):
    """Decodes a PTU file as it comes: its header, then its records, as many as the header promises.

    A header that promises 0 records belongs to a measurement that was cut off: all that come are decoded, and then
    the file is refused, unless reading is tolerant.

    Attributes:
        header: What the header says; complete when `header.is_complete()`.
    """

    def __init__(self, *, tolerant: bool = False, name: str = "the stream") -> None:
        super().__init__(least_bytes=RECORD_BYTES, tick_ps=Fraction(1), tolerant=tolerant, name=name)
        self.header = PtuHeader(name)
        self._record_type = RecordType.GENERIC_T2
        self._promised = 0
        self._state = np.zeros(4, np.int64)

    def begin(self, header: PtuHeader) -> None:
        """Take a header that was read already.

        Raises:
            EventFormatError: It lacks what is needed.
        """
        self.header = header
        self._record_type = header.record_type()
        self._promised = int(header.positive("TTResult_NumberOfRecords", zero_allowed=True))
        self.tick_ps, self.fine_tick_ps = header.resolutions_ps()

    def _decode(self, data: bytes, *, final: bool) -> tuple[int, Columns]:
        at = 0
        if not self.header.is_complete():
            at = self.header.parse(data)
            if not self.header.is_complete():
                if final:
                    raise self.header.error("the header ends before its Header_End tag", self.header.size_bytes)
                return at, Columns()
            self.begin(self.header)
        n = (len(data) - at) // RECORD_BYTES
        if self._promised:
            n = min(n, self._promised - self.tally.records)
        columns = self._records(np.frombuffer(data, "<u4", n, at), self.offset_bytes + at) if n else Columns()
        at += n * RECORD_BYTES
        if self._promised == self.tally.records > 0:
            self.tally.trailing_bytes += len(data) - at
            at = len(data)
        if final:
            self._check_number(self.offset_bytes + at)
        return at, columns

    def _check_number(self, offset_bytes: int) -> None:
        """Count records that the header promises and that did not come, or refuse to go without them."""
        records = self.tally.records
        if not self._tolerant and (self._promised > records or self._promised == 0 < records):
            raise self._error(
                f"the header promises {self._promised} records and there are {records}, up to byte {offset_bytes}",
                offset_bytes,
            )
        self.tally.missing_records = max(0, self._promised - records)

    def _records(self, record: NDArray[np.uint32], offset_bytes: int) -> Columns:
        n, state, record_type = len(record), self._state, self._record_type
        invalid = int(state[2])
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
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
        self.tally.records += n
        self.tally.overflow_records = int(state[1])
        self._note_invalid(
            int(state[2]) - invalid,
            offset_bytes + RECORD_BYTES * int(state[3]),
            f"no {record_type.name} record looks like this",
        )
        return Columns(time[:count], channel[:count], kind[:count], None if fine is None else fine[:count])


def open_ptu(path: Path, *, tolerant: bool = False) -> EventFile:
    """Read the header of a PTU file and make its events readable.

    Args:
        path: The file; its name need not end in .ptu.
        tolerant: Accept a file that is cut short, make gaps of records that follow no rule, and count both.

    Raises:
        EventFormatError: Not a PTU file, a header that is cut or lacks what is needed, or fewer records than it says.
        EventError: The file cannot be read.

    Source: appendices "Tag dictionary" (mandatory tags) and "TTTR record types".
    """
    size_bytes = file_size_bytes(path)
    header = _read_header(path, size_bytes)
    record_type = header.record_type()
    tick_ps, fine_tick_ps = header.resolutions_ps()
    promised = int(header.positive("TTResult_NumberOfRecords", zero_allowed=True))
    present = (size_bytes - header.size_bytes) // RECORD_BYTES
    if not tolerant and (promised > present or promised == 0 < present):
        raise EventFormatError(
            f"{path}: the header promises {promised} records and the file holds {present}, up to byte {size_bytes}",
            offset_bytes=size_bytes,
            remedy=TOLERANT_REMEDY,
        )
    return EventFile(
        path=path,
        format="ptu",
        tick_ps=tick_ps,
        fine_tick_ps=fine_tick_ps,
        header={**header.tags, "record_type": record_type.name, "header_bytes": header.size_bytes},
        records_expected=promised if 0 < promised <= present else present,
        decode=partial(_read, path, header, size_bytes - header.size_bytes, tolerant),
    )


def _read_header(path: Path, size_bytes: int) -> PtuHeader:
    header = PtuHeader(str(path))
    try:
        with path.open("rb") as file:
            data = b""
            while not header.is_complete():
                piece = file.read(HEADER_PIECE_BYTES)
                if not piece:
                    raise header.error("the header ends before its Header_End tag", size_bytes)
                data += piece
                data = data[header.parse(data, limit_bytes=size_bytes) :]
    except OSError as error:
        raise read_error(path, error) from error
    return header


def _read(
    path: Path, header: PtuHeader, size_bytes: int, tolerant: bool, max_events: int, tally: Tally
) -> Iterator[DetectionBlock]:
    def make() -> PtuDecoder:
        decoder = PtuDecoder(tolerant=tolerant, name=str(path))
        decoder.begin(header)
        return decoder

    return decode_file(path, make, size_bytes, RECORD_BYTES, max_events, tally, offset_bytes=header.size_bytes)
