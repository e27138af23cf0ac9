"""qcrypto event words in plain Python integers, and vectorised for the benchmark."""

from __future__ import annotations

import numpy as np

PHOTON, DUMMY = 0, 6


def decode(words, time_bits, high_word_first):
    """Return events (time, channel, kind), words per pattern and dummies."""
    span = 1 << time_bits
    base, previous, events, patterns, dummies = 0, None, [], [0] * 16, 0
    for stored in words:
        word = (stored & 0xFFFFFFFF) << 32 | stored >> 32 if high_word_first else stored
        raw = word >> (64 - time_bits)
        if previous is not None:
            if previous - raw > span // 2:
                base += span
            elif raw - previous > span // 2 and base:
                base -= span
        previous = raw
        if word & 16:
            events.append((base + raw, 0, DUMMY))
            dummies += 1
            continue
        patterns[word & 15] += 1
        events += [(base + raw, bit + 1, PHOTON) for bit in range(4) if word >> bit & 1]
    return events, patterns, dummies


def decode_fast(words):
    """Return events, words per pattern, dummies and empty words of 32-bit fast mode words."""
    some = [word for word in words if word]
    base, previous, events, patterns, dummies = 0, None, [], [0] * 16, 0
    for word in some:
        raw = word >> 6
        if previous is not None:
            if previous - raw > 2**24:
                base += 2**26
            elif raw - previous > 3 * 2**24 and base:
                base -= 2**26
        previous = raw
        if word & 16:
            events.append((base + raw, 0, DUMMY))
            dummies += 1
            continue
        patterns[word & 15] += 1
        events += [(base + raw, bit + 1, PHOTON) for bit in range(4) if word >> bit & 1]
    return events, patterns, dummies, len(words) - len(some)


def numpy_decode(word, time_bits):
    """Vectorised decoder of monotone low-half-first words: one event an input, dummies on channel 0."""
    ticks = (word >> np.uint64(64 - time_bits)).astype(np.int64)
    low = (word & np.uint64(31)).astype(np.uint8)
    dummy = low >= 16
    hit = np.empty((len(word), 5), bool)
    hit[:, 0] = dummy
    for bit in range(4):
        hit[:, bit + 1] = (low >> bit & 1).astype(bool) & ~dummy
    index, channel = np.nonzero(hit)
    kind = np.where(channel == 0, DUMMY, PHOTON).astype(np.uint8)
    return ticks[index], channel.astype(np.uint8), kind
