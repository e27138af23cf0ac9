"""Read and write the files of a TDC2's fast mode: words of 32 bits, 26 of them time in 1/256 ns.

The counter goes round every 262 us; the tagger's dummies see to it that no round is missed. A word 0 is an empty
transfer: it is skipped and counted.

Source: qcrypto project, option -f of its readevents program for timestamp7.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qkdhw._core import qcrypto as kernel
from qkdhw.formats.encoding import LeftOut
from qkdhw.formats.event_file import EventFile, file_size_bytes
from qkdhw.formats.short_words import ShortWords, write_short_words
from qkdhw.formats.stream import Columns, FixedDecoder, decode_file, refuse_a_cut_record
from qkdhw.model import DetectionBlock

WORD_BYTES = 4
TIME_BITS = 26
WORDS = ShortWords(
    name="TDC2 fast mode files",
    tick_ps=Fraction(125, 32),
    time_bits=TIME_BITS,
    silence_ticks=1 << (TIME_BITS - 1),
    back_ticks=1 << (TIME_BITS - 2),
)


class FastModeDecoder(FixedDecoder):
    """Decodes fast mode words as they come.

    The counter is unwrapped: a step back by more than a quarter of its range is a wrap, a smaller one stays as it is.
    """

    def __init__(self, *, tolerant: bool = False, name: str = "the stream") -> None:
        super().__init__(least_bytes=WORD_BYTES, tick_ps=WORDS.tick_ps, tolerant=tolerant, name=name)
        self._state = np.array([-1, 0, 0, 0, -1, 0], np.int64)
        self._patterns = np.zeros(16, np.int64)

    def _records(self, data: NDArray[np.uint8]) -> Columns:
        state, n, invalid = self._state, len(data), int(self._state[3])
        time, channel, kind = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.uint8)
        count = kernel.decode_fast_words(data.view("<u4"), time, channel, kind, self._patterns, state)
        self._note_invalid_record(
            int(state[3]) - invalid, int(state[4]), "the time has gone round more often than any recording can"
        )
        self.tally.pattern_records = {p: int(c) for p, c in enumerate(self._patterns) if c}
        self.tally.empty_records = int(state[5])
        return Columns(time[:count], channel[:count], kind[:count])


def open_fast_mode(path: Path, *, tolerant: bool = False) -> EventFile:
    """Make the events of a fast mode file readable.

    Args:
        path: The file. Nothing in it says which format it is.
        tolerant: Accept a file that is cut short, and count what is left over.

    Raises:
        EventFormatError: The last word is cut.
        EventError: The file cannot be read.

    Source: option -f of readevents.
    """
    size_bytes = file_size_bytes(path)
    refuse_a_cut_record(path, size_bytes, WORD_BYTES, tolerant=tolerant)
    make = partial(FastModeDecoder, tolerant=tolerant, name=str(path))
    return EventFile(
        path=path,
        format="qcrypto-fast",
        tick_ps=WORDS.tick_ps,
        fine_tick_ps=None,
        header={},
        records_expected=size_bytes // WORD_BYTES,
        decode=partial(decode_file, path, make, size_bytes, WORD_BYTES),
    )


def write_fast_mode(path: Path, blocks: Iterable[DetectionBlock], *, tick_ps: Fraction) -> LeftOut:
    """Write a fast mode file; see `write_short_words`."""
    return write_short_words(path, blocks, tick_ps=tick_ps, words=WORDS)
