"""Counting of events in NumPy, written to be read."""

import numpy as np


def tally_events(time_ticks, kind, last: int):
    """Return events of each of seven kinds and the steps back in time, and the last time."""
    kinds = np.bincount(kind, minlength=256)[:7]
    back = int((np.diff(np.concatenate([[last], time_ticks])) < 0).sum())
    return [*kinds.tolist(), back], int(time_ticks[-1]) if len(time_ticks) else last
