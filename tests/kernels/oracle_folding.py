"""Folding, written to be read (Python integers) and written to be fast (NumPy)."""

import numpy as np


def fold(ticks, ref_ticks, step, fraction_bits, bins):
    """Counts by leading bits of the phase; a turn is 2^(64 + fraction_bits) of what a tick is worth `step` of."""
    turn = 1 << 64 + fraction_bits
    histogram = [0] * bins
    for t in ticks:
        histogram[(t - ref_ticks) * step % turn * bins // turn] += 1
    return histogram


def residual(a, b, clock):
    """Time of B minus the time of B that belongs to A's, in 2^-32 ticks."""
    ref_a, ref_b, phase, rate = clock
    return (b << 32) - ((ref_b << 32) + phase + ((a - ref_a) * rate >> 16))


def fold_pairs(a_ticks, b_ticks, clock, first_ticks, slice_shift, bin_shift, rows, columns):
    """Every pair of events, one by one."""
    histogram = np.zeros((rows, columns), np.int64)
    for a in a_ticks:
        row = (a - first_ticks) >> slice_shift
        if 0 <= row < rows:
            for b in b_ticks:
                column = (residual(a, b, clock) >> bin_shift) + columns // 2
                if 0 <= column < columns:
                    histogram[row, column] += 1
    return histogram


def fold_vectorised(ticks, ref_ticks, step, fraction_bits, bins):
    """The same as `fold` while (ticks - ref_ticks) * (step >> fraction_bits) needs no more than 64 bits."""
    phase = (ticks - ref_ticks).astype(np.uint64) * np.uint64(step >> fraction_bits)
    return np.bincount((phase >> np.uint64(65 - bins.bit_length())).astype(np.int64), minlength=bins)


def fold_pairs_vectorised(a_ticks, b_ticks, clock, first_ticks, slice_shift, bin_shift, rows, columns):
    """The same as `fold_pairs` in float64: bins may differ at their edges. No event of A outside the rows."""
    ref_a, ref_b, phase, rate = clock
    mapped = (a_ticks - ref_a) * (rate / 2.0**48) + (ref_b + phase / 2.0**32)
    width = 2.0 ** (bin_shift - 32)
    half = columns // 2 * width
    first = np.searchsorted(b_ticks, mapped - half)
    count = np.searchsorted(b_ticks, mapped + half) - first
    source = np.repeat(np.arange(len(a_ticks)), count)
    place = np.arange(len(source)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    column = np.floor((b_ticks[place] - mapped[source]) / width).astype(np.int64) + columns // 2
    inside = (column >= 0) & (column < columns)
    row = (a_ticks[source] - first_ticks) >> slice_shift
    return np.bincount((row * columns + column)[inside], minlength=rows * columns).reshape(rows, columns)
