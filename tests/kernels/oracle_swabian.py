"""Swabian Dump records, one by one, with struct."""

from __future__ import annotations

import struct

RECORD = struct.Struct("<BBHiq")
KINDS = {0: 0, 1: 5, 2: 2, 3: 3, 4: 4}  # tag, error, overflow begin, overflow end, missed events
INVALID = 255


def decode(data):
    """Return events (time, channel, kind), missed events, and the indices of invalid records."""
    events, missed_events, invalid = [], 0, []
    for i, (kind, reserved, missed, channel, time) in enumerate(RECORD.iter_unpack(data)):
        right = kind in KINDS and not reserved and abs(channel) < 128
        right &= not (kind == 0 and channel == 0) and not (missed and kind != 4)
        if right:
            events.append((time, channel if channel >= 0 else 128 - channel, KINDS[kind]))
            missed_events += missed
        else:
            events.append((time, 0, INVALID))
            invalid.append(i)
    return events, missed_events, invalid
