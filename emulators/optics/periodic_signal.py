"""A signal generator at the inputs of a time tagger: steady pulses, as words made once and then only copied."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

N_INPUTS = 4


class PeriodicSignal:
    """The bytes of a stream that repeats itself.

    Args:
        block: Bytes of one period.
        total_bytes: Length of the whole stream, or None for endless.
    """

    def __init__(self, block: bytes, total_bytes: int | None) -> None:
        self._block = block
        self._left = total_bytes
        self._at = 0

    @classmethod
    def words_32(cls, rate_hz: float, gate_ticks: int) -> Self:
        """Make a TDC1's words: 27 bits of time in 2 ns, 5 of pattern; inputs 1, 2, 3, 4 fire in turn.

        There is a whole number of pulses in each wrap of the time field (0.27 s), at least 4.

        Args:
            rate_hz: Pulses at all inputs together; rounded to what fits.
            gate_ticks: Length of the stream in 2 ns, or 0 for endless.
        """
        span_ticks = 1 << 27
        ticks = even_ticks(rate_hz * 2e-9, span_ticks)
        pattern = np.left_shift(1, np.arange(ticks.shape[0]) % N_INPUTS)
        total = None
        if gate_ticks:
            wraps, rest = divmod(gate_ticks, span_ticks)
            total = 4 * (wraps * ticks.shape[0] + int(np.searchsorted(ticks, rest)))
        return cls((ticks << 5 | pattern).astype("<u4").tobytes(), total)

    def read(self, limit_bytes: int) -> bytes:
        """Return what comes next, at most this much."""
        size = limit_bytes if self._left is None else min(limit_bytes, self._left)
        data = self._block[self._at : self._at + size]
        self._at = (self._at + len(data)) % len(self._block)
        if self._left is not None:
            self._left -= len(data)
        return data


def even_ticks(pulses_per_tick: float, span_ticks: int) -> NDArray[np.int64]:
    """Spread a whole number of pulses, at least 4, evenly over a span: int64 (n,), rising."""
    n = max(N_INPUTS, round(pulses_per_tick * span_ticks))
    return np.arange(n, dtype=np.int64) * span_ticks // n
