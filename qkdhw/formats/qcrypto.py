"""Read and write the raw event files of the S-Fifteen / CQT time taggers: 64-bit words as text or binary.

The mode says how a word is stored: a0 is text, 8 hexadecimal digits a line, low half first; a1 is binary, 64 bits
little-endian; a2 is text, 16 digits a line. An x after the mode means high half first ("legacy" order). The time has
54 bits of 1/256 ns on a TDC2 and 49 bits of 125 ps on the older cards; the names of the latter begin with qcrypto49.

Source: qcrypto project, remotecrypto/filespec.txt and the option -a, -X and -s of its readevents programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import qcrypto as kernel
from qkdhw.errors import EventFormatError
from qkdhw.formats.atomic import write_whole_file
from qkdhw.formats.encoding import KEEP_ALL_REMEDY, LeftOut, refuse_fine_ticks, rescaled_ticks
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

TDC2_BITS = 54
OLD_CARD_BITS = 49
_TICK_PS = {TDC2_BITS: Fraction(125, 32), OLD_CARD_BITS: Fraction(125)}
DUMMY_BIT = 16
TDC2_FIXED_BITS = 0x300  # bits 9 and 8 of every word of a TDC2 are set
_HEX_DIGITS = np.full(256, 255, np.uint8)
_HEX_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = range(16)
_HEX_DIGITS[np.frombuffer(b"ABCDEF", np.uint8)] = range(10, 16)
_HEX_TEXT = np.frombuffer(b"0123456789abcdef", np.uint8)


@dataclass(frozen=True, slots=True)
class WordLayout:
    """How one of these formats stores a word.

    Attributes:
        line_digits: Hexadecimal digits a line, or 0 for binary.
        high_half_first: The upper 32 bits come first.
        time_bits: 54 (TDC2) or 49 (older cards).
    """

    line_digits: int
    high_half_first: bool
    time_bits: int

    @property
    def record_bytes(self) -> int:
        """Bytes a word takes in the file, line ends included."""
        return 8 if not self.line_digits else 16 + 16 // self.line_digits

    @property
    def tick_ps(self) -> Fraction:
        """Exact length of a tick in picoseconds."""
        return _TICK_PS[self.time_bits]


LAYOUTS = {
    f"qcrypto{card}-{mode}": WordLayout(digits, high_half_first, bits)
    for card, bits in (("", TDC2_BITS), ("49", OLD_CARD_BITS))
    for mode, digits, high_half_first in (
        ("a0", 8, False),
        ("a0x", 8, True),
        ("a1", 0, False),
        ("a1x", 0, True),
        ("a2", 16, True),
    )
}


def open_qcrypto(path: Path, format_name: str, *, tolerant: bool = False) -> EventFile:
    """Make the events of a raw event file readable.

    Args:
        path: The file. It has no header: nothing in it says which format it is.
        format_name: A name in LAYOUTS.
        tolerant: Accept a file that is cut short, and count what is left over.

    Raises:
        EventFormatError: The last record is cut.
        EventError: The file cannot be read.

    Source: remotecrypto/filespec.txt.
    """
    layout = LAYOUTS[format_name]
    size_bytes = file_size_bytes(path)
    if layout.line_digits and size_bytes and _last_byte(path) != b"\n":
        size_bytes += 1  # the last line may lack its line end
    records, trailing_bytes = divmod(size_bytes, layout.record_bytes)
    if trailing_bytes and not tolerant:
        offset_bytes = records * layout.record_bytes
        raise EventFormatError(
            f"{path}: the record at byte {offset_bytes} is cut, only {trailing_bytes} of its "
            f"{layout.record_bytes} bytes are there",
            offset_bytes=offset_bytes,
            remedy=TOLERANT_REMEDY,
        )
    return EventFile(
        path=path,
        format=format_name,
        tick_ps=layout.tick_ps,
        fine_tick_ps=None,
        header={},
        records_expected=records,
        decode=partial(_decode, path, layout, records, trailing_bytes, tolerant),
    )


def _last_byte(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1)
    except OSError as error:
        raise read_error(path, error) from error


def read_words(path: Path, layout: WordLayout, *, records: int, chunk_records: int) -> Iterator[NDArray[np.uint64]]:
    """Yield the words of a file as stored (halves in the file's order), uint64 (n,).

    Raises:
        EventFormatError: A line of a text file is not hexadecimal digits of the right number.
        EventError: The file cannot be read.
    """
    line_end_missing = layout.line_digits and file_size_bytes(path) < records * layout.record_bytes
    whole = records - 1 if line_end_missing else records
    chunks = read_records(
        path, offset_bytes=0, record_bytes=layout.record_bytes, records=whole, chunk_records=chunk_records
    )
    for offset_bytes, data in chunks:
        yield _words_of(path, layout, offset_bytes, data)
    if line_end_missing:
        offset_bytes = whole * layout.record_bytes
        last = read_records(
            path, offset_bytes=offset_bytes, record_bytes=layout.record_bytes - 1, records=1, chunk_records=1
        )
        yield from (_words_of(path, layout, offset_bytes, data + b"\n") for _, data in last)


def _words_of(path: Path, layout: WordLayout, offset_bytes: int, data: bytes) -> NDArray[np.uint64]:
    if not layout.line_digits:
        return np.frombuffer(data, "<u8")
    line = np.frombuffer(data, np.uint8).reshape(-1, layout.line_digits + 1)
    digit = _HEX_DIGITS[line[:, :-1]]
    bad_line = (digit > 15).any(axis=1) | (line[:, -1] != ord("\n"))
    if bad_line.any():
        where = offset_bytes + int(np.argmax(bad_line)) * (layout.line_digits + 1)
        raise EventFormatError(
            f"{path}: the line at byte {where} is not {layout.line_digits} hexadecimal digits",
            offset_bytes=where,
            remedy="give the right format with --format, or repair the line",
        )
    octet = (digit[:, ::2] << 4) | digit[:, 1::2]
    half = octet.view(">u4").astype("<u4").reshape(-1, 2)
    return np.ascontiguousarray(half).view("<u8").reshape(-1)


def _decode(
    path: Path,
    layout: WordLayout,
    records: int,
    trailing_bytes: int,
    tolerant: bool,
    max_events: int,
    tally: Tally,
) -> Iterator[DetectionBlock]:
    state = np.array([-1, 0, 0, 0, -1], np.int64)
    patterns = np.zeros(16, np.int64)
    invalid = 0
    tally.trailing_bytes = trailing_bytes
    for word in read_words(path, layout, records=records, chunk_records=max_events):
        n = 4 * len(word)
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        count = kernel.decode_words(
            word, layout.time_bits, layout.high_half_first, time, channel, kind, patterns, state
        )
        note_invalid_records(
            path,
            tally,
            count=int(state[3]) - invalid,
            offset_bytes=(tally.records + int(state[4])) * layout.record_bytes,
            tolerant=tolerant,
            why="the time has gone round more often than any recording can",
        )
        invalid = int(state[3])
        tally.records += len(word)
        tally.pattern_records = {p: int(c) for p, c in enumerate(patterns) if c}
        if count:
            yield DetectionBlock(time[:count], channel[:count], kind[:count], layout.tick_ps)


def write_qcrypto(path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction, format_name: str) -> LeftOut:
    """Write a raw event file, whole or not at all.

    Events that follow each other at the same time on rising inputs become one word, as the tagger itself does.

    Args:
        path: The new file.
        blocks: Photons on inputs 1 to 4 and dummies.
        tick_ps: Tick of the events; times must be whole ticks of the format.
        format_name: A name in LAYOUTS.

    Raises:
        EventFormatError: An event that this format cannot hold exactly.
        EventError: The file cannot be written.

    Source: remotecrypto/filespec.txt.
    """
    layout = LAYOUTS[format_name]
    left_out = LeftOut()
    kinds = {EventKind.PHOTON, EventKind.DUMMY}
    with write_whole_file(path) as file:
        pending: NDArray[np.uint64] = np.empty(0, np.uint64)
        for block in blocks:
            refuse_fine_ticks(block, "qcrypto files")
            left_out.keep(block, "qcrypto files", allowed=kinds)
            if len(block):
                word = np.concatenate((pending, _encode(block, layout, tick_ps)))
                # The last word waits: the next block may begin with another input of the same pattern.
                word = _merged(word)
                file.write(_stored(word[:-1], layout))
                pending = word[-1:]
        file.write(_stored(pending, layout))
    return left_out


def _encode(block: DetectionBlock, layout: WordLayout, tick_ps: Fraction) -> NDArray[np.uint64]:
    """Make one word an event."""
    ticks = rescaled_ticks(block.time_ticks, tick_ps, layout.tick_ps)
    dummy = block.kind == EventKind.DUMMY
    if ((block.channel < 1) | (block.channel > 4))[~dummy].any():
        raise EventFormatError("qcrypto files hold inputs 1 to 4 only", remedy=KEEP_ALL_REMEDY)
    if int(ticks.max()) >> layout.time_bits:
        raise EventFormatError(f"a time is beyond the {layout.time_bits} bits of the format", remedy=KEEP_ALL_REMEDY)
    fixed = TDC2_FIXED_BITS if layout.time_bits == TDC2_BITS else 0
    pattern = np.where(dummy, DUMMY_BIT, (1 << block.channel.astype(np.int64)) >> 1)
    return (ticks.astype(np.uint64) << np.uint64(64 - layout.time_bits)) | (pattern | fixed).astype(np.uint64)


def _merged(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Join neighbours of the same time whose inputs rise."""
    pattern = word & np.uint64(15)
    joins = np.zeros(len(word), bool)
    joins[1:] = (word[1:] >> np.uint64(4) == word[:-1] >> np.uint64(4)) & (pattern[1:] > pattern[:-1])
    joins[1:] &= (pattern[1:] > 0) & (pattern[:-1] > 0)
    first = np.flatnonzero(~joins)
    merged: NDArray[np.uint64] = np.bitwise_or.reduceat(word, first)
    return merged


def _stored(word: NDArray[np.uint64], layout: WordLayout) -> bytes:
    if layout.high_half_first:
        word = (word << np.uint64(32)) | (word >> np.uint64(32))
    half = word.astype("<u8").view("<u4").reshape(-1, 2)
    if not layout.line_digits:
        return half.tobytes()
    octet = half.astype(">u4").view(np.uint8).reshape(-1, layout.line_digits // 2)
    line = np.full((len(octet), layout.line_digits + 1), ord("\n"), np.uint8)
    line[:, 0:-1:2] = _HEX_TEXT[octet >> 4]
    line[:, 1:-1:2] = _HEX_TEXT[octet & 15]
    return line.tobytes()
