"""Read and write the raw event files of the S-Fifteen / CQT time taggers: 64-bit words as text or binary.

The mode says how a word is stored: a0 is text, 8 hexadecimal digits a line, low half first; a1 is binary, 64 bits
little-endian; a2 is text, 16 digits a line. An x after the mode means high half first ("legacy" order). The time has
54 bits of 1/256 ns on a TDC2 and 49 bits of 125 ps on the older cards; the names of the latter begin with qcrypto49.

Source: qcrypto project, remotecrypto/filespec.txt and the option -a, -X and -s of its readevents programs.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from qkdhw.formats.event_file import EventFile, file_size_bytes, read_error
from qkdhw.formats.stream import Columns, StreamDecoder, decode_file, refuse_a_cut_record
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


class QcryptoDecoder(StreamDecoder):
    """Decodes the words of a raw event file as they come."""

    def __init__(self, format_name: str, *, tolerant: bool = False, name: str = "the stream") -> None:
        layout = LAYOUTS[format_name]
        super().__init__(least_bytes=layout.record_bytes, tick_ps=layout.tick_ps, tolerant=tolerant, name=name)
        self._layout = layout
        self._state = np.array([-1, 0, 0, 0, -1], np.int64)
        self._patterns = np.zeros(16, np.int64)
        self._skips_line = False

    def _decode(self, data: bytes, *, final: bool) -> tuple[int, Columns]:
        layout = self._layout
        if not layout.line_digits:
            words = len(data) // 8
            return 8 * words, self._events(np.frombuffer(data, "<u8", words), self.offset_bytes)
        missing_end = final and len(data) % layout.record_bytes == layout.record_bytes - 1
        used, columns = self._decode_text(data + b"\n" if missing_end else data)
        return min(used, len(data)), columns

    def _decode_text(self, data: bytes) -> tuple[int, Columns]:
        """Decode whole records of text, and find the way back to a line's beginning after lines that are none."""
        size, at = self._layout.record_bytes, 0
        parts: list[Columns] = []
        wanted = len(data) // size if not self._in_gap else 1
        while True:
            if self._skips_line:
                end = data.find(b"\n", at)
                if end < 0:
                    return len(data), Columns.joined(parts)
                at, self._skips_line = end + 1, False
            records = min(wanted, (len(data) - at) // size)
            if not records:
                return at, Columns.joined(parts)
            line = np.frombuffer(data, np.uint8, records * size, at).reshape(records, size)
            whole = _whole_lines(line, self._layout.line_digits)
            good = records if whole.all() else int(np.argmin(whole))
            if good:
                parts.append(self._text_events(line[:good], self.offset_bytes + at))
            at += good * size
            wanted = 4 * wanted
            if good < records:
                self._note_bad_line(self.offset_bytes + at)
                parts.append(Columns.invalid())
                self._skips_line, wanted = True, 1

    def _note_bad_line(self, offset_bytes: int) -> None:
        self.tally.records += 1
        self._note_invalid(1, offset_bytes, f"it is not {self._layout.line_digits} hexadecimal digits a line")

    def _text_events(self, line: NDArray[np.uint8], offset_bytes: int) -> Columns:
        """Decode records whose line ends are where they belong; digits may be wrong."""
        size, digits = self._layout.record_bytes, self._layout.line_digits
        digit = _HEX_DIGITS[line.reshape(-1, digits + 1)[:, :-1]].reshape(len(line), 16)
        parts, first = [], 0
        for bad in np.flatnonzero((digit > 15).any(axis=1)).tolist():
            if first < bad:
                parts.append(self._events(_words_of(digit[first:bad]), offset_bytes + first * size))
            self._note_bad_line(offset_bytes + bad * size)
            parts.append(Columns.invalid())
            first = bad + 1
        if first < len(digit):
            parts.append(self._events(_words_of(digit[first:]), offset_bytes + first * size))
        return Columns.joined(parts)

    def _events(self, word: NDArray[np.uint64], offset_bytes: int) -> Columns:
        layout, state, n = self._layout, self._state, 4 * len(word)
        dummies, invalid = int(state[2]), int(state[3])
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        count = kernel.decode_words(
            word, layout.time_bits, layout.high_half_first, time, channel, kind, self._patterns, state
        )
        self.tally.records += len(word)
        self._note_invalid(
            int(state[3]) - invalid,
            offset_bytes + int(state[4]) * layout.record_bytes,
            "the time has gone round more often than any recording can",
        )
        if len(word) > int(state[2]) - dummies:
            self.tally.pattern_records = {p: int(c) for p, c in enumerate(self._patterns) if c}
        return Columns(time[:count], channel[:count], kind[:count])


def open_qcrypto(path: Path, format_name: str, *, tolerant: bool = False) -> EventFile:
    """Make the events of a raw event file readable.

    Args:
        path: The file. It has no header: nothing in it says which format it is.
        format_name: A name in LAYOUTS.
        tolerant: Accept a file that is cut short, and make gaps of lines that are none; count both.

    Raises:
        EventFormatError: The last record is cut.
        EventError: The file cannot be read.

    Source: remotecrypto/filespec.txt.
    """
    layout = LAYOUTS[format_name]
    size_bytes = file_size_bytes(path)
    # The last line may lack its line end.
    ended = not layout.line_digits or not size_bytes or _last_byte(path) == b"\n"
    refuse_a_cut_record(path, size_bytes + (not ended), layout.record_bytes, tolerant=tolerant)
    return EventFile(
        path=path,
        format=format_name,
        tick_ps=layout.tick_ps,
        fine_tick_ps=None,
        header={},
        records_expected=-(-size_bytes // layout.record_bytes),
        decode=partial(
            decode_file,
            path,
            partial(QcryptoDecoder, format_name, tolerant=tolerant, name=str(path)),
            size_bytes,
            layout.record_bytes,
        ),
    )


def _last_byte(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1)
    except OSError as error:
        raise read_error(path, error) from error


def _whole_lines(line: NDArray[np.uint8], digits: int) -> NDArray[np.bool_]:
    """Return which records, uint8 (n, record bytes), have their line ends where they belong and nowhere else."""
    is_end = line == ord("\n")
    is_end[:, digits :: digits + 1] ^= True
    whole: NDArray[np.bool_] = ~is_end.any(axis=1)
    return whole


def _words_of(digit: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Make words of their 16 digits each, halves in the order in which they are stored."""
    octet = (digit[:, ::2] << 4) | digit[:, 1::2]
    half = octet.view(">u4").astype("<u4").reshape(-1, 2)
    return np.ascontiguousarray(half).view("<u8").reshape(-1)


def sample_words(data: bytes, layout: WordLayout) -> NDArray[np.uint64] | None:
    """Return the words in the first bytes of a file, halves as stored, or None if they are not in this layout."""
    records = len(data) // layout.record_bytes
    if not layout.line_digits:
        return np.frombuffer(data, "<u8", records)
    line = np.frombuffer(data, np.uint8, records * layout.record_bytes).reshape(records, layout.record_bytes)
    digit = _HEX_DIGITS[line.reshape(-1, layout.line_digits + 1)[:, :-1]].reshape(records, 16)
    fits = _whole_lines(line, layout.line_digits).all() and (digit <= 15).all()
    return _words_of(digit) if fits else None


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
