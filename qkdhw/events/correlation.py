"""Where in a stream of clicks a disclosed sync frame lies: correlation by fast Fourier transform.

Key-basis bits are written as +-1 and test-basis bits as +-i, clicks likewise; the real part of the correlation then
counts right minus wrong bits over the clicks whose basis matches, and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SYMBOL = np.array([1, -1, 1j, -1j], np.complex64)  # by 2 * basis + bit
_CERTAIN_LOG_P = -80.0  # beyond twelve standard deviations no better place needs to be looked for


@dataclass(frozen=True, slots=True)
class CorrelationPeak:
    """The best place of the frame.

    Attributes:
        slot: Where the frame's first pulse lies, in the clicks' slot numbers.
        matched: Clicks inside the frame with the basis of preparation.
        wrong: Those of them with the other bit.
        log_p: Logarithm of the probability that clicks that have nothing to do with the frame agree this well in any
            of the places looked at. The frame's bits being independent and fair, this is Hoeffding's bound for a sum
            of `matched` signs, times the number of places.
    """

    slot: int
    matched: int
    wrong: int
    log_p: float


def correlate_sync_frame(
    slot: NDArray[np.int64], detector: NDArray[np.uint8], record: NDArray[np.uint8]
) -> CorrelationPeak:
    """Find the frame.

    Args:
        slot: int64 (n,), slots of clicks, ascending, numbered from anywhere. A slot with several clicks is left out.
        detector: uint8 (n,), 2 * basis + bit of each click.
        record: uint8 (L,), preparation record of the frame: bit 0 value, bit 1 basis.

    Returns:
        The best place; with `matched` 0 and `log_p` 0 if there is none.
    """
    slot, detector = _single_clicks(slot, detector)
    if len(slot) == 0 or len(record) == 0:
        return CorrelationPeak(slot=0, matched=0, wrong=0, log_p=0.0)
    prepared = ((record & 2) | (record & 1)).astype(np.uint8)
    size = max(1 << 16, 1 << (2 * len(record) - 1).bit_length())
    step = size - len(record) + 1
    begin = int(slot[0]) - len(record) + 1
    places = int(slot[-1]) - begin + 1
    frame = np.conj(np.fft.fft(_SYMBOL[prepared], size)).astype(np.complex64)
    best = CorrelationPeak(slot=0, matched=0, wrong=0, log_p=0.0)
    base = begin
    while True:
        lo, hi = np.searchsorted(slot, (base, base + size))
        if lo == len(slot):
            break
        if lo == hi:
            base = int(slot[lo]) - len(record) + 1  # no click, no correlation: go on where the frame meets one again
            continue
        at, kind = slot[lo:hi] - base, detector[lo:hi]
        place = _strongest_place(at, kind, frame, len(record), step)
        matched, right = _compare(at - place, kind, prepared)
        excess = max(0, 2 * right - matched)
        log_p = math.log(places) - excess**2 / (2 * matched) if matched else 0.0
        if log_p < best.log_p:
            best = CorrelationPeak(slot=base + place, matched=matched, wrong=matched - right, log_p=log_p)
        if best.log_p < _CERTAIN_LOG_P:
            break
        base += step
    return best


def _single_clicks(slot: NDArray[np.int64], detector: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Leave out slots with several clicks: a sum of signs is bounded only if each is +-1."""
    again = np.diff(slot) == 0
    single = np.ones(len(slot), np.bool_)
    single[1:] &= ~again
    single[:-1] &= ~again
    return slot[single], detector[single]


def _strongest_place(
    at: NDArray[np.int64], detector: NDArray[np.uint8], frame: NDArray[np.complex64], length: int, step: int
) -> int:
    """Return the place (0 .. step - 1) with the largest correlation per root of the clicks inside the frame."""
    size = len(frame)
    clicks = np.zeros(size, np.complex64)
    clicks[at] = _SYMBOL[detector]
    correlation = np.fft.ifft(np.fft.fft(clicks) * frame).real[:step]
    before = np.zeros(size + 1, np.int32)
    before[at + 1] = 1
    np.cumsum(before, out=before)
    inside = before[length : length + step] - before[:step]
    return int(np.argmax(correlation / np.sqrt(np.maximum(inside, 1))))


def _compare(pulse: NDArray[np.int64], detector: NDArray[np.uint8], prepared: NDArray[np.uint8]) -> tuple[int, int]:
    """Count clicks with the basis of preparation, and those of them with the right bit, exactly."""
    inside = (pulse >= 0) & (pulse < len(prepared))
    sent, got = prepared[pulse[inside]], detector[inside]
    matched = (sent ^ got) < 2
    return int(np.count_nonzero(matched)), int(np.count_nonzero(sent == got))
