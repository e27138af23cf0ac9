"""quTAG records with a NumPy record type, and 40-bit records in plain Python integers."""

from __future__ import annotations

import numpy as np

RECORD = np.dtype([("time", "<u8"), ("channel", "<u2")])
PHOTON, INVALID = 0, 255


def decode(data):
    """Return times, channels, kinds and the indices of invalid records."""
    record = np.frombuffer(data, RECORD)
    good = (record["time"] < 2**63) & (record["channel"] < 256)
    time = np.where(good, record["time"], 0).astype(np.int64)
    channel = np.where(good, record["channel"], 0).astype(np.uint8)
    return time, channel, np.where(good, PHOTON, INVALID).astype(np.uint8), np.flatnonzero(~good)


def decode_compressed(data):
    """Return events (time, channel) of 40-bit records."""
    base, previous, events = 0, None, []
    for first in range(0, len(data), 5):
        word = int.from_bytes(data[first : first + 5], "little")
        raw = word % 2**37
        if previous is not None:
            if previous - raw > 2**36:
                base += 2**37
            elif raw - previous > 2**36 and base:
                base -= 2**37
        previous = raw
        events.append((base + raw, word >> 37))
    return events
