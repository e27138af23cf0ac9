"""PTU records in plain Python integers: one record after the other, as the record tables say it."""

from __future__ import annotations

import numpy as np

PHOTON, MARKER, INVALID = 0, 1, 255
LARGEST = 1 << 61


def fields(word: int, *widths: int) -> list[int]:
    """Cut a 32-bit word into fields, most significant first."""
    assert sum(widths) == 32
    left, parts = 32, []
    for width in widths:
        left -= width
        parts.append(word >> left & (1 << width) - 1)
    return parts


def picoharp_t2(words):
    base, events, overflows, invalid = 0, [], 0, []
    for i, word in enumerate(words):
        source, time = fields(word, 4, 28)
        if source <= 4:
            events.append((base + time, source, PHOTON))
        elif source == 15 and time % 16:
            events.append((base + time - time % 16, time % 16, MARKER))
        elif source == 15:
            base, overflows = base + 210698240, overflows + 1
        else:
            invalid.append(i)
            events.append((base, 0, INVALID))
    return events, overflows, invalid


def picoharp_t3(words):
    base, events, overflows, invalid = 0, [], 0, []
    for i, word in enumerate(words):
        source, delay, syncs = fields(word, 4, 12, 16)
        if 1 <= source <= 4:
            events.append((base + syncs, source, PHOTON, delay))
        elif source == 15 and delay == 0:
            base, overflows = base + 65536, overflows + 1
        elif source == 15 and delay < 16:
            events.append((base + syncs, delay, MARKER, 0))
        else:
            invalid.append(i)
            events.append((base, 0, INVALID, 0))
    return events, overflows, invalid


def hydraharp_t2(words, wrap_ticks, counted):
    base, events, overflows, invalid = 0, [], 0, []
    for i, word in enumerate(words):
        special, source, time = fields(word, 1, 6, 25)
        if not special:
            events.append((base + time, source + 1, PHOTON))
        elif source == 63:
            step = wrap_ticks * (max(time, 1) if counted else 1)
            if base + step > LARGEST:
                invalid.append(i)
                events.append((base, 0, INVALID))
            else:
                base, overflows = base + step, overflows + 1
        elif source == 0:
            events.append((base + time, 0, PHOTON))
        elif source < 16:
            events.append((base + time, source, MARKER))
        else:
            invalid.append(i)
            events.append((base, 0, INVALID))
    return events, overflows, invalid


def hydraharp_t3(words, counted):
    base, events, overflows, invalid = 0, [], 0, []
    for i, word in enumerate(words):
        special, source, delay, syncs = fields(word, 1, 6, 15, 10)
        if not special:
            events.append((base + syncs, source + 1, PHOTON, delay))
        elif source == 63:
            base, overflows = base + 1024 * (max(syncs, 1) if counted else 1), overflows + 1
        elif 0 < source < 16:
            events.append((base + syncs, source, MARKER, delay))
        else:
            invalid.append(i)
            events.append((base, 0, INVALID, 0))
    return events, overflows, invalid


def numpy_hydraharp_t2(record):
    """Vectorised decoder of counted T2 records, the fair opponent of the kernel in the benchmark."""
    special = record >> 31
    source = (record >> 25 & 63).astype(np.uint8)
    ticks = (record & 0x1FFFFFF).astype(np.int64)
    overflow = (special == 1) & (source == 63)
    base = np.cumsum(np.where(overflow, np.maximum(ticks, 1) * 33554432, 0))
    keep = ~overflow
    special, source = special[keep], source[keep]
    time = (base + ticks)[keep]
    marker = (special == 1) & (source > 0)
    channel = np.where(special == 1, source, source + np.uint8(1))
    return time, channel, marker.astype(np.uint8)
