"""quTAG records with a NumPy record type."""

from __future__ import annotations

import numpy as np

RECORD = np.dtype([("time", "<u8"), ("channel", "<u2")])


def decode(data):
    """Return times, channels and the indices of invalid records."""
    record = np.frombuffer(data, RECORD)
    good = (record["time"] < 2**63) & (record["channel"] < 256)
    time, channel = record["time"][good].astype(np.int64), record["channel"][good].astype(np.uint8)
    return time, channel, np.flatnonzero(~good)
