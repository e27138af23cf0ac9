"""What the histogram kernels do, in plain Python integers, and with NumPy for their benchmarks."""

import numpy as np
from oracle_coincidences import all_pairs_vectorised


def delay_counts(first, second, low, width, bins, *, same=False):
    counts = [0] * bins
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            place = (b - a - low) // width
            if 0 <= place < bins and not (same and i == j):
                counts[place] += 1
    return counts


def arrival_counts(times, origin, period, bins):
    """`period` is a Fraction."""
    counts = [0] * bins
    for ticks in times:
        phase = (ticks - origin) % period
        counts[int(phase * bins // period)] += 1
    return counts


def delay_counts_vectorised(first, second, low, width, bins):
    i, j = all_pairs_vectorised(first, second, low, low + width * bins - 1)
    return np.bincount((second[j] - first[i] - low) // width, minlength=bins)


def arrival_counts_vectorised(times, origin, numerator, denominator, bins):
    phase = (times - origin) * denominator % numerator
    return np.bincount(phase * bins // numerator, minlength=bins)
