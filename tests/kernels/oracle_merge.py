"""What merging does, event by event in plain Python, and with NumPy for its benchmark."""

import numpy as np


def correct(events, factor, skew, offset, window):
    """Kept events of a stream [(time, channel, kind)] in order, and the indices of the late ones."""
    latest, kept, late = None, [], []
    for index, (time, channel, kind) in enumerate(events):
        if latest is not None and time * factor < latest - window:
            late.append(index)
        elif kind == 0:
            kept.append((time * factor - skew.get(channel, 0), channel + offset, kind))
        else:
            kept.append((time * factor, channel, kind))
        latest = time * factor if latest is None else max(latest, time * factor)
    return sorted(kept, key=lambda event: event[0]), late


def merge(streams):
    """Merge ordered streams; of equal times the earlier stream's first."""
    return sorted((event for stream in streams for event in stream), key=lambda event: event[0])


def merge_vectorised(left, right):
    columns = [np.concatenate(pair) for pair in zip(left, right, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return [column[order] for column in columns]
