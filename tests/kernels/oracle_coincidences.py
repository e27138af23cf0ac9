"""What the coincidence kernels do, in plain Python, and with NumPy for their benchmarks."""

from itertools import product

import numpy as np


def all_pairs(first, second, low, high):
    """Every (i, j) with low <= second[j] - first[i] <= high."""
    return [(i, j) for i, a in enumerate(first) for j, b in enumerate(second) if low <= b - a <= high]


def one_partner(first, second, low, high):
    """Each event of `first`, in order, takes the first one of `second` that fits and comes after those taken."""
    pairs, free = [], 0
    for i, a in enumerate(first):
        fitting = [j for j, b in enumerate(second) if j >= free and low <= b - a <= high]
        if fitting:
            pairs.append((i, fitting[0]))
            free = fitting[0] + 1
    return pairs


def tuples(channels, windows, *, single):
    """Index tuples, one event of each channel, each two in their window; windows[c, d] is (low, high)."""
    found, free = [], [0] * len(channels)
    for i in range(len(channels[0])):
        for others in product(*(range(len(channel)) for channel in channels[1:])):
            at = (i, *others)
            if all(
                low <= channels[d][at[d]] - channels[c][at[c]] <= high for (c, d), (low, high) in windows.items()
            ) and all(index >= least for index, least in zip(at, free, strict=True)):
                found.append(at)
                if single:
                    free = [index + 1 for index in at]
                    break
    return found


def count_pairs_vectorised(first, second, low, high):
    """Every pair, by two bisections an event."""
    return int((np.searchsorted(second, first + high, "right") - np.searchsorted(second, first + low)).sum())


def all_pairs_vectorised(first, second, low, high):
    """Index arrays of every pair."""
    begin = np.searchsorted(second, first + low)
    number = np.searchsorted(second, first + high, "right") - begin
    i = np.repeat(np.arange(len(first)), number)
    j = np.arange(len(i)) - np.repeat(np.cumsum(number) - number, number) + np.repeat(begin, number)
    return i, j
