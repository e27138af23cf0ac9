"""The continuous health tests in NumPy, written to be read: on all samples since the start at once."""

import numpy as np


def samples_of(data: bytes, sample_bits: int):
    """Return the samples in their order."""
    octets = np.frombuffer(data, np.uint8)
    return np.unpackbits(octets) if sample_bits == 1 else octets


def first_failure(samples, repetition_cutoff: int, proportion_cutoff: int, window: int):
    """Return the index of the first sample at which a test fails and 1 or 2, or (-1, 0)."""
    failures = []
    if len(samples) >= repetition_cutoff:
        stretches = np.lib.stride_tricks.sliding_window_view(samples, repetition_cutoff)
        constant = np.flatnonzero((stretches == stretches[:, :1]).all(axis=1))
        failures += [(int(start) + repetition_cutoff - 1, 1) for start in constant[:1]]
    for begin in range(0, len(samples), window):
        part = samples[begin : begin + window]
        over = np.flatnonzero(np.cumsum(part == part[0]) >= proportion_cutoff)
        failures += [(begin + int(at), 2) for at in over[:1]]
    return min(failures, default=(-1, 0))
