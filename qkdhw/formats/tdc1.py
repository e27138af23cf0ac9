"""Read and write the stream of a TDC1 as a file: words of 32 bits, 27 of them time in 2 ns.

The counter goes round every 0.27 s; the unit sends a dummy about every 140 ms when it is idle.

Source: S-Fifteen TDC1 documentation, "Timestamp mode".
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import tdc1 as kernel
from qkdhw.formats.encoding import LeftOut
from qkdhw.formats.event_file import EventFile, file_size_bytes
from qkdhw.formats.short_words import ShortWords, write_short_words
from qkdhw.formats.stream import Columns, StreamDecoder, decode_file, refuse_a_cut_record
from qkdhw.model import DetectionBlock

WORD_BYTES = 4
TIME_BITS = 27
TIME_SHIFT = 32 - TIME_BITS
WORDS = ShortWords(
    name="TDC1 files", tick_ps=Fraction(2000), time_bits=TIME_BITS, silence_ticks=70_000_000, back_ticks=5000
)
NAMES = 31  # the bits of a word that name its inputs, or a dummy
LONGEST_STEP_TICKS = 100_000_000  # as the kernel has it
CERTAIN_WORDS = 16  # so many in a row tell where words begin
RUN_BYTES = WORD_BYTES * CERTAIN_WORDS
SEARCHED_BYTES = 4096  # at once
NEVER = 1 << 62


class Tdc1Decoder(StreamDecoder):
    """Decodes a TDC1's words as they come.

    A word is impossible if it names neither an input nor a dummy, or if its time is more than 200 ms after the one
    before (or, what looks the same, more than 10 us before it). In tolerant mode the words' beginning is then looked
    for byte by byte: a byte that is lost or too many costs some words, and
    how often the counter went round meanwhile is not known.
    """

    def __init__(self, *, tolerant: bool = False, name: str = "the stream") -> None:
        super().__init__(least_bytes=WORD_BYTES, tick_ps=WORDS.tick_ps, tolerant=tolerant, name=name)
        self._clock = np.array([0, -1], np.int64)
        self._lost = False

    def _decode(self, data: bytes, *, final: bool) -> tuple[int, Columns]:
        at = 0
        parts: list[Columns] = []
        while True:
            if self._lost:
                at = self._find_words(data, at, final=final)
                if self._lost:
                    break
            part, words, bad = self._words(data, at)
            parts.append(part)
            at += words * WORD_BYTES
            if bad < 0:
                break
            self._note_invalid(
                1, self.offset_bytes + at, "it names neither an input nor a dummy, or its time cannot be true"
            )
            self.tally.records += 1
            parts.append(Columns.invalid())
            at, self._lost = at + 1, True
        return at, Columns.joined(parts)

    def _words(self, data: bytes, at: int) -> tuple[Columns, int, int]:
        n = 4 * ((len(data) - at) // WORD_BYTES)
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        events, words, bad = kernel.decode_tdc1(memoryview(data)[at:], self._clock, time, channel, kind)
        self.tally.records += words
        return Columns(time[:events], channel[:events], kind[:events]), words, bad

    def _find_words(self, data: bytes, at: int, *, final: bool) -> int:
        """Move on to where words that could be true follow each other; `_lost` stays set if that is not there yet."""
        least_bytes = WORD_BYTES if final else RUN_BYTES + WORD_BYTES - 1
        while len(data) - at >= least_bytes:
            places = min(SEARCHED_BYTES, len(data) - at - least_bytes + 1)
            possible = _beginnings(data[at : at + places + WORD_BYTES + RUN_BYTES])
            possible = possible[possible < -(-places // WORD_BYTES) * WORD_BYTES]
            if not len(possible):
                at += -(-places // WORD_BYTES) * WORD_BYTES
                continue
            at += int(possible[0]) // WORD_BYTES * WORD_BYTES
            # Words that begin elsewhere have times that jump: the true ones are those that take the shortest time.
            spans = [(_span(data[first : first + RUN_BYTES]), first) for first in range(at, at + WORD_BYTES)]
            _, at = min(spans)
            # The clock goes on from the first of them, whatever the step to it is.
            field = int.from_bytes(data[at : at + WORD_BYTES], "little") >> TIME_SHIFT
            self._clock[:] = self._clock[0] + (field < self._clock[1]), field
            self._lost = False
            break
        return min(at, len(data))


def _beginnings(data: bytes) -> NDArray[np.int64]:
    """Return where words begin that could all be true: so many that it is certain, or as many as there are."""
    octets = np.frombuffer(data, np.uint8).astype(np.int64)
    n = max(len(octets) - WORD_BYTES + 1, 0)
    word = octets[:n] | octets[1 : n + 1] << 8 | octets[2 : n + 2] << 16 | octets[3 : n + 3] << 24
    names_something = word & NAMES != 0
    step = ((word[WORD_BYTES:] >> TIME_SHIFT) - (word[:-WORD_BYTES] >> TIME_SHIFT)) % (1 << TIME_BITS)
    follows = names_something[WORD_BYTES:] & (
        (step <= LONGEST_STEP_TICKS) | (step >= (1 << TIME_BITS) - WORDS.back_ticks)
    )
    true = names_something
    for later in range(0, min(RUN_BYTES - WORD_BYTES, len(follows)), WORD_BYTES):
        true[: len(follows) - later] &= follows[later:]
    return np.flatnonzero(true)


def _span(data: bytes) -> int:
    """Return the ticks from the first to the last of some words, or NEVER if they cannot all be true."""
    time, clock = np.empty(WORD_BYTES * CERTAIN_WORDS, np.int64), np.array([0, -1], np.int64)
    channel, kind = np.empty((2, len(time)), np.uint8)
    events, _, bad = kernel.decode_tdc1(data, clock, time, channel, kind)
    return int(time[events - 1] - time[0]) if bad < 0 and events else NEVER


def open_tdc1(path: Path, *, tolerant: bool = False) -> EventFile:
    """Make the events of a file of TDC1 words readable.

    Args:
        path: The file. Nothing in it says which format it is.
        tolerant: Accept a file that is cut short, make gaps of impossible words, and count both.

    Raises:
        EventFormatError: The last word is cut.
        EventError: The file cannot be read.

    Source: TDC1 documentation, "Timestamp mode".
    """
    size_bytes = file_size_bytes(path)
    refuse_a_cut_record(path, size_bytes, WORD_BYTES, tolerant=tolerant)
    make = partial(Tdc1Decoder, tolerant=tolerant, name=str(path))
    return EventFile(
        path=path,
        format="tdc1",
        tick_ps=WORDS.tick_ps,
        fine_tick_ps=None,
        header={},
        records_expected=size_bytes // WORD_BYTES,
        decode=partial(decode_file, path, make, size_bytes, WORD_BYTES),
    )


def write_tdc1(path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction) -> LeftOut:
    """Write a file of TDC1 words; see `write_short_words`."""
    return write_short_words(path, blocks, tick_ps=tick_ps, words=WORDS)
