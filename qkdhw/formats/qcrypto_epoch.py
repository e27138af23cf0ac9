"""Read the epoch files of the qcrypto programs, types 1 and 2: one file, one with many packets, or a folder.

Times are those of the tagger's own counter (17 bits of epoch, then the time in it) and go on from there: files of two
sites that use extended epochs have the same times. Epochs that are not there are a gap in the events; those that the
writer here makes for a silence have no entries, so a silence is no gap.

Source: qcrypto project, remotecrypto/filespec.txt; for the order of bits what its chopper program writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import epoch as kernel
from qkdhw._core import qcrypto as word_kernel
from qkdhw.errors import EventFormatError
from qkdhw.formats.epoch_packets import EPOCH_BITS, LONG_TIME, PacketHeader
from qkdhw.formats.event_file import EventFile, Tally, file_size_bytes, read_error
from qkdhw.formats.stream import Columns, StreamDecoder, decode_file
from qkdhw.model import DetectionBlock, EventKind

RAW_BITS = 54
TICK_PS = {1: Fraction(125, 32), 2: Fraction(125)}
TIME_BITS = {1: 37, 2: 32}  # of the time within an epoch
MAX_EPOCHS = 1 << 24  # three months
FILE_NAME_DIGITS = 8
# What the chopper program writes may reach some ticks into the next epoch: two for each event that it put off.
LATEST = (1 << LONG_TIME) + (1 << 22)
ENDED, WRONG = 1, 2
ENTRY_BYTES = {1: 8, 2: 3}


class EpochDecoder(StreamDecoder):
    """Decodes packets of type 1 or 2 that follow each other in a stream.

    An input of a type 1 event, or of a type 2 event of protocol 0, gives an event each; other events of type 2 give
    one on channel 1 + base bits. In tolerant mode a packet that goes wrong is lost from there to the end of its file.
    """

    def __init__(self, packet_type: Literal[1, 2], *, tolerant: bool = False, name: str = "the stream") -> None:
        super().__init__(least_bytes=4, tick_ps=TICK_PS[packet_type], tolerant=tolerant, name=name)
        self._type: Literal[1, 2] = packet_type
        self._header: PacketHeader | None = None
        self._count = -1  # epochs since the tagger's counter was 0
        self._last_epoch = 0
        self._entries = 0
        self._bit = 0
        self._state = np.zeros(1, np.int64)
        self._patterns = np.zeros(16, np.int64)
        self._lost = False

    def begin_file(self, name: str) -> None:
        """Go on with another file; what went wrong in the last one is over."""
        self._name, self.offset_bytes, self._lost = name, 0, False

    def finish_file(self) -> DetectionBlock:
        """Decode what was left over at the end of a file that another may follow.

        Raises:
            EventFormatError: It ends within a packet. Not in tolerant mode.
        """
        return self._block(self._decode_some(self._rest, final=True))

    def _decode(self, data: bytes, *, final: bool) -> tuple[int, Columns]:
        at, used = 0, -1
        parts: list[Columns] = []
        while used and not self._lost:
            before = at
            if self._header is None:
                size = PacketHeader.size_bytes(self._type)
                used = size if len(data) - at >= size else 0
                if used:
                    parts.append(self._begin(data[at : at + size], self.offset_bytes + at))
            else:
                body = self._raw_events if self._type == 1 else self._timed_events
                used, columns = body(data, at, self._header)
                parts.append(columns)
            at = before + used
        if self._lost:
            at = len(data)
        if final and (self._header is not None or at < len(data)):
            parts.append(self._cut(self.offset_bytes + at, len(data) - at))
            at = len(data)
        return at, Columns.joined(parts)

    def _begin(self, data: bytes, offset_bytes: int) -> Columns:
        """Take a packet's header; return a gap if epochs before it are not there."""
        try:
            header = PacketHeader.parse(data, self._type, offset_bytes=offset_bytes)
        except EventFormatError as error:
            return self._lose(offset_bytes, str(error))
        bits = 32 if header.extended else EPOCH_BITS
        is_first = self._count < 0
        step = (header.epoch - self._last_epoch) & ((1 << bits) - 1)
        if is_first:
            self._count = header.epoch & ((1 << EPOCH_BITS) - 1)
        elif not 0 < step < MAX_EPOCHS >> (0 if header.extended else 8):
            return self._lose(offset_bytes, f"epoch {header.epoch:#x} does not follow {self._last_epoch:#x}")
        else:
            self._count += step
        if self._count >= MAX_EPOCHS:
            return self._lose(offset_bytes, "epochs go on for longer than any recording can")
        self._header, self._last_epoch = header, header.epoch
        self._entries, self._bit, self._state[0] = 0, 0, 0
        if is_first or step == 1:
            return Columns()
        kind = np.array([EventKind.GAP_BEGIN, EventKind.GAP_END], np.uint8)
        time = np.array([self._count - step + 1, self._count], np.int64) << TIME_BITS[self._type]
        return Columns(time, np.zeros(2, np.uint8), kind)

    def _raw_events(self, data: bytes, at: int, header: PacketHeader) -> tuple[int, Columns]:
        stored = np.frombuffer(data, "<u8", (len(data) - at) // 8, at)
        ends = np.flatnonzero(stored == 0)
        word = stored[: ends[0]] if len(ends) else stored
        wrong = (word & np.uint64(0xFFFFFFFF)) >> np.uint64(32 - EPOCH_BITS) != header.epoch & ((1 << EPOCH_BITS) - 1)
        parts, first = [], 0
        for bad in np.flatnonzero(wrong).tolist():
            parts.append(self._patterns_of(word[first:bad]))
            self._note_invalid(1, self.offset_bytes + at + 8 * bad, "its time is not in the packet's epoch")
            parts.append(Columns.invalid())
            first = bad + 1
        parts.append(self._patterns_of(word[first:]))
        self._count_entries(len(word))
        used = 8 * len(word)
        if len(ends):
            used += 8
            parts.append(self._end(header, self.offset_bytes + at + used))
        return used, Columns.joined(parts)

    def _patterns_of(self, stored: NDArray[np.uint64]) -> Columns:
        n, state = 4 * len(stored), np.array([-1, 0, 0, 0, -1], np.int64)
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        patterns = np.zeros(16, np.int64)
        count = word_kernel.decode_words(stored, RAW_BITS, True, time, channel, kind, patterns, state)
        self._count_patterns(patterns)
        rounds = self._count >> EPOCH_BITS
        return Columns(time[:count] + (rounds << RAW_BITS), channel[:count], kind[:count])

    def _timed_events(self, data: bytes, at: int, header: PacketHeader) -> tuple[int, Columns]:
        word = np.frombuffer(data, "<u4", (len(data) - at) // 4, at)
        room = 32 * len(word) // (header.time_order + header.base_bits) + 1
        time, base = np.empty(room, np.int64), np.empty(room, np.uint8)
        count, bit, status = kernel.decode_differences(
            word, self._bit, header.time_order, header.base_bits, 0, LATEST, time, base, self._state
        )
        self._count_entries(count)
        parts = [self._entries_of(time[:count], base[:count], header)]
        used, self._bit = 4 * (bit // 32), bit % 32
        if status == ENDED:
            used = 4 * -(-bit // 32)
            parts.append(self._end(header, self.offset_bytes + at + used))
        elif status == WRONG:
            parts.append(self._lose(self.offset_bytes + at + used, "a time leaves its epoch, or the end is wrong"))
        return used, Columns.joined(parts)

    def _entries_of(self, time: NDArray[np.int64], base: NDArray[np.uint8], header: PacketHeader) -> Columns:
        time = time + (self._count << LONG_TIME)
        if header.protocol:
            return Columns(time, base + np.uint8(1), np.zeros(len(time), np.uint8))
        self._count_patterns(np.bincount(base, minlength=16))
        index, bit = np.nonzero(base[:, None] >> np.arange(4, dtype=np.uint8) & 1)
        return Columns(time[index], (bit + 1).astype(np.uint8), np.zeros(len(index), np.uint8))

    def _count_patterns(self, patterns: NDArray[np.int64]) -> None:
        self._patterns += patterns
        self.tally.pattern_records = {p: int(c) for p, c in enumerate(self._patterns) if c}

    def _count_entries(self, entries: int) -> None:
        self._entries += entries
        self.tally.records += entries

    def _end(self, header: PacketHeader, offset_bytes: int) -> Columns:
        """Finish a packet."""
        self._header = None
        if header.length in (0, self._entries):
            return Columns()
        return self._lose(offset_bytes, f"the packet has {self._entries} entries and its header says {header.length}")

    def _lose(self, offset_bytes: int, why: str) -> Columns:
        self._note_invalid(1, offset_bytes, why)
        self._header, self._lost = None, True
        return Columns.invalid()

    def _cut(self, offset_bytes: int, left_bytes: int) -> Columns:
        """Count what is missing at the end of a packet that was cut, or refuse it."""
        if not self._tolerant:
            raise self._error(f"it ends within a packet, at byte {offset_bytes + left_bytes}", offset_bytes)
        if self._header is not None:
            self.tally.missing_records += max(0, self._header.length - self._entries)
        self._header, self._some_invalid = None, True
        self.tally.trailing_bytes += left_bytes
        return Columns.invalid()


def open_epochs(path: Path, packet_type: Literal[1, 2], *, tolerant: bool = False) -> EventFile:
    """Make the events of epoch files readable.

    Args:
        path: A file of one packet or many, or a folder of files that are named by their epoch, 8 lower-case
            hexadecimal digits; others in it are left alone.
        packet_type: 1 or 2.
        tolerant: Go on with the next file after a packet that is cut or goes wrong, and count both.

    Raises:
        EventFormatError: The first header is wrong, or a folder has no such files.
        EventError: A file cannot be read.

    Source: filespec.txt, types 1 and 2.
    """
    files = _epoch_files(path) if path.is_dir() else [path]
    with_header = files[0]
    try:
        with with_header.open("rb") as file:
            head = file.read(PacketHeader.size_bytes(packet_type))
    except OSError as error:
        raise read_error(with_header, error) from error
    try:
        header = PacketHeader.parse(head, packet_type)
    except EventFormatError as error:
        raise EventFormatError(f"{with_header}: {error}", offset_bytes=0, remedy=error.remedy) from error
    facts = {"first_epoch": header.epoch, "extended_epoch": header.extended, "files": len(files)}
    if packet_type == 2:
        facts |= {"time_order": header.time_order, "base_bits": header.base_bits, "protocol": header.protocol}
    make = partial(EpochDecoder, packet_type, tolerant=tolerant, name=str(path))
    if path.is_dir():
        decode = partial(_decode_folder, files, make)
    else:
        decode = partial(decode_file, path, make, file_size_bytes(path), ENTRY_BYTES[packet_type])
    return EventFile(
        path=path,
        format=f"qcrypto-t{packet_type}",
        tick_ps=TICK_PS[packet_type],
        fine_tick_ps=None,
        header=facts,
        records_expected=None,
        decode=decode,
    )


def is_epoch_name(name: str) -> bool:
    """Say whether a file's name is that of an epoch file."""
    return len(name) == FILE_NAME_DIGITS and set(name) <= set("0123456789abcdef")


def _epoch_files(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if is_epoch_name(path.name))
    except OSError as error:
        raise read_error(folder, error) from error
    if not files:
        raise EventFormatError(
            f"{folder} has no epoch files, whose names are {FILE_NAME_DIGITS} lower-case hexadecimal digits",
            remedy="give the folder that the chopper program wrote to",
        )
    return files


def _decode_folder(
    files: list[Path], make: partial[EpochDecoder], max_events: int, tally: Tally
) -> Iterator[DetectionBlock]:
    decoder = make()
    decoder.tally = tally
    for path in files:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise read_error(path, error) from error
        decoder.begin_file(str(path))
        for first in range(0, len(data), 8 * max_events):
            block = decoder.feed(data[first : first + 8 * max_events])
            if len(block):
                yield block
        block = decoder.finish_file()
        if len(block):
            yield block
    block = decoder.finish()
    if len(block):
        yield block
