"""The ID900 decoder and merger in NumPy, written to be read."""

import numpy as np


def decode_id900(data: bytes, begin: int, width: int, reference_period: int):
    """Return the times up to the first impossible event, and its index or -1."""
    words = np.frombuffer(data, "<u8").reshape(-1, 2 if reference_period else 1).tolist()
    times = []
    for i, (time, *index) in enumerate(words):
        ticks = time + (index[0] * reference_period if index else 0)
        if ticks > width or (times and begin + ticks < times[-1]):
            return np.array(times, np.int64), i
        times.append(begin + ticks)
    return np.array(times, np.int64), -1


def merge_id900(streams, numbers):
    """Return times and channel numbers in order of time; of equal times, the earlier stream's first."""
    times = np.concatenate(streams)
    channel = np.repeat(np.asarray(numbers, np.uint8), [len(stream) for stream in streams])
    order = np.argsort(times, kind="stable")
    return times[order], channel[order]


def decode_and_merge_fast(messages, numbers, begin: int, width: int):
    """Do both, vectorised, for true streams without a reference: what the kernels are measured against."""
    streams = []
    for message in messages:
        times = np.frombuffer(message, "<u8")
        if len(times) and (times[-1] > width or (times[1:] < times[:-1]).any()):
            raise ValueError("not a true stream")
        streams.append(times.astype(np.int64) + begin)
    return merge_id900(streams, numbers)
