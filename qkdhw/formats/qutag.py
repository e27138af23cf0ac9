"""Read and write the files of quTAG and quTAU.

BINARY files are a 40-byte header, then 8 bytes of time and 2 bytes of channel an event; RAW ones the same records
without a header. The rest of the header is not documented: it is skipped, and written as zeros. COMPRESSED files are a
40-byte header whose content is not documented, then 40 bits an event: 37 of time, 3 of channel.

Source: qutools, quTAG manual, file formats (BINARY, RAW, COMPRESSED).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import qutag as kernel
from qkdhw.errors import EventFormatError, NonMonotonicTimeError
from qkdhw.formats.atomic import write_whole_file
from qkdhw.formats.encoding import KEEP_ALL_REMEDY, LeftOut, refuse_fine_ticks, rescaled_ticks
from qkdhw.formats.event_file import TOLERANT_REMEDY, EventFile, file_size_bytes, read_error
from qkdhw.formats.stream import Columns, FixedDecoder, decode_file
from qkdhw.model import DetectionBlock, EventKind

MAGIC = 0xFA91B387
HEADER = struct.Struct("<III28x")
HEADER_FORMAT = 0x800
TICK_PS = Fraction(1)
RECORD = np.dtype([("time", "<u8"), ("channel", "<u2")])
COMPRESSED_BYTES = 5
COMPRESSED_TIME_BITS = 37


class QutagDecoder(FixedDecoder):
    """Decodes a quTAG file as it comes: BINARY, or RAW if it has no header."""

    def __init__(self, *, raw: bool = False, tolerant: bool = False, name: str = "the stream") -> None:
        super().__init__(least_bytes=RECORD.itemsize, tick_ps=TICK_PS, tolerant=tolerant, name=name)
        self._awaits_header = not raw
        self._promised_bytes = 0
        self._state = np.zeros(2, np.int64)

    def _decode(self, data: bytes, *, final: bool) -> tuple[int, Columns]:
        at = 0
        if self._awaits_header:
            if len(data) < HEADER.size and not final:
                return 0, Columns()
            self._promised_bytes = _promised_bytes(data, self._name)
            self._awaits_header = False
            at = HEADER.size
            self.offset_bytes += at
        used, columns = super()._decode(data[at:] if at else data, final=final)
        self.offset_bytes -= at
        if final:
            self._check_size(self.offset_bytes + len(data))
        return at + used, columns

    def _check_size(self, size_bytes: int) -> None:
        # The header's size field has 32 bits; larger files keep the low ones.
        missing_bytes = max(0, self._promised_bytes - size_bytes)
        if missing_bytes and not self._tolerant:
            raise _too_short(self._name, size_bytes, self._promised_bytes)
        self.tally.missing_records = -(-missing_bytes // RECORD.itemsize)

    def _records(self, data: NDArray[np.uint8]) -> Columns:
        n, invalid = len(data) // RECORD.itemsize, int(self._state[0])
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        kernel.decode_records(data, time, channel, kind, self._state)
        self._note_invalid_record(
            int(self._state[0]) - invalid, int(self._state[1]), "its channel is above 255 or its time beyond 63 bits"
        )
        return Columns(time, channel, kind)


class CompressedDecoder(FixedDecoder):
    """Decodes a COMPRESSED file as it comes.

    Its counter is unwrapped: a step back by more than half of its range is a wrap, a smaller one stays. Silences of
    more than half a range (5.5 s of a quTAU, 69 ms at 1 ps) cannot be told from shorter ones.
    """

    def __init__(self, *, tick_ps: Fraction = TICK_PS, tolerant: bool = False, name: str = "the stream") -> None:
        super().__init__(least_bytes=COMPRESSED_BYTES, tick_ps=tick_ps, tolerant=tolerant, name=name)
        self._header_bytes = HEADER.size
        self._state = np.array([-1, 0, 0, -1], np.int64)

    def _decode(self, data: bytes, *, final: bool) -> tuple[int, Columns]:
        if self._header_bytes:
            if final and len(data) < self._header_bytes:
                raise EventFormatError(
                    f"{self._name} ends within its header",
                    offset_bytes=self.offset_bytes + len(data),
                    remedy="give the right format with --format",
                )
            skipped = min(len(data), self._header_bytes)
            self._header_bytes -= skipped
            return skipped, Columns()
        return super()._decode(data, final=final)

    def _records(self, data: NDArray[np.uint8]) -> Columns:
        n, invalid = len(data) // COMPRESSED_BYTES, int(self._state[2])
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        kernel.decode_compressed(data, time, channel, kind, self._state)
        self._note_invalid_record(
            int(self._state[2]) - invalid,
            int(self._state[3]),
            "the time has gone round more often than any recording can",
        )
        return Columns(time, channel, kind)


def open_qutag(path: Path, *, raw: bool = False, tolerant: bool = False) -> EventFile:
    """Read the header of a quTAG file and make its events readable.

    Args:
        path: The file.
        raw: The file has no header.
        tolerant: Accept a file that is cut short, make gaps of impossible records, and count both.

    Raises:
        EventFormatError: Wrong magic, a cut header, or a file shorter than its header says or cut within a record.
        EventError: The file cannot be read.

    Source: quTAG manual, file formats.
    """
    size_bytes = file_size_bytes(path)
    promised_bytes = 0 if raw else _read_promised_bytes(path)
    records, trailing_bytes = divmod(size_bytes - (0 if raw else HEADER.size), RECORD.itemsize)
    if (trailing_bytes or promised_bytes > size_bytes) and not tolerant:
        raise _too_short(str(path), size_bytes, promised_bytes, size_bytes - trailing_bytes)
    return EventFile(
        path=path,
        format="qutag-raw" if raw else "qutag",
        tick_ps=TICK_PS,
        fine_tick_ps=None,
        header={} if raw else {"file_bytes": promised_bytes},
        records_expected=records,
        decode=partial(
            decode_file,
            path,
            partial(QutagDecoder, raw=raw, tolerant=tolerant, name=str(path)),
            size_bytes,
            RECORD.itemsize,
        ),
    )


def open_compressed(path: Path, *, tick_ps: Fraction = TICK_PS, tolerant: bool = False) -> EventFile:
    """Make the events of a COMPRESSED file readable.

    Args:
        path: The file.
        tick_ps: What a tick of the instrument is, which the file does not say: 1 (quTAG) or about 81 (quTAU).
        tolerant: Accept a file that is cut short, and count what is left over.

    Raises:
        EventFormatError: A cut header or record.
        EventError: The file cannot be read.

    Source: quTAG manual, file formats.
    """
    size_bytes = file_size_bytes(path)
    records, trailing_bytes = divmod(size_bytes - HEADER.size, COMPRESSED_BYTES)
    if size_bytes < HEADER.size or (trailing_bytes and not tolerant):
        raise _too_short(str(path), size_bytes, 0, size_bytes - trailing_bytes)
    return EventFile(
        path=path,
        format="qutag-compressed",
        tick_ps=tick_ps,
        fine_tick_ps=None,
        header={},
        records_expected=records,
        decode=partial(
            decode_file,
            path,
            partial(CompressedDecoder, tick_ps=tick_ps, tolerant=tolerant, name=str(path)),
            size_bytes,
            COMPRESSED_BYTES,
        ),
    )


def _read_promised_bytes(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return _promised_bytes(file.read(HEADER.size), str(path))
    except OSError as error:
        raise read_error(path, error) from error


def _promised_bytes(head: bytes, name: str) -> int:
    if len(head) < HEADER.size or HEADER.unpack_from(head)[0] != MAGIC:
        raise EventFormatError(
            f"{name} has no quTAG header", offset_bytes=0, remedy="give --format qutag-raw if it has none"
        )
    return int(HEADER.unpack_from(head)[1])


def _too_short(name: str, size_bytes: int, promised_bytes: int, offset_bytes: int | None = None) -> EventFormatError:
    promise = f" and the header promises {promised_bytes}" if promised_bytes > size_bytes else ", within a record"
    return EventFormatError(
        f"{name} ends at byte {size_bytes}{promise}",
        offset_bytes=size_bytes if offset_bytes is None else offset_bytes,
        remedy=TOLERANT_REMEDY,
    )


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


def write_compressed(path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction) -> LeftOut:
    """Write a COMPRESSED file, whole or not at all, with a header of zeros.

    Args:
        path: The new file.
        blocks: Photons on channels 0 to 7, with steps (the first from 0) of at most 2^36 ticks either way;
            dummies are left out and counted.
        tick_ps: Tick of the events; times must be whole picoseconds.

    Raises:
        EventFormatError: An event that this format cannot hold exactly.
        NonMonotonicTimeError: A step back over the beginning or by more than half of the counter's range.
        EventError: The file cannot be written.

    Source: quTAG manual, file formats.
    """
    left_out = LeftOut()
    half, last = 1 << (COMPRESSED_TIME_BITS - 1), 0
    with write_whole_file(path) as file:
        file.write(bytes(HEADER.size))
        for block in blocks:
            refuse_fine_ticks(block, "quTAG files")
            keep = left_out.keep(block, "quTAG files", allowed={EventKind.PHOTON})
            time, channel = rescaled_ticks(block.time_ticks[keep], tick_ps, TICK_PS), block.channel[keep]
            if not len(time):
                continue
            is_first = left_out.events == len(time)
            step = np.diff(time, prepend=0 if is_first else last)
            if int(channel.max()) > 7 or int(step.max()) >= half:
                raise EventFormatError(
                    f"quTAG COMPRESSED files hold channels 0 to 7 and steps below {half} ticks",
                    remedy=KEEP_ALL_REMEDY,
                )
            if int(step.min()) < -half:
                index = left_out.events - len(time) + int(np.argmin(step))
                raise NonMonotonicTimeError(
                    f"event {index} goes back in time by more than {half} ticks", index=index, remedy=KEEP_ALL_REMEDY
                )
            last = int(time[-1])
            word = time & ((1 << COMPRESSED_TIME_BITS) - 1) | channel.astype(np.int64) << COMPRESSED_TIME_BITS
            file.write(word.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :COMPRESSED_BYTES].tobytes())
    return left_out
