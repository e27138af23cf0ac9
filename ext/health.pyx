"""Continuous health tests of a noise source: repetition count and adaptive proportion.

Source:
    NIST SP 800-90B (January 2018), 4.4.1 and 4.4.2.
"""

from libc.stdint cimport int64_t, uint8_t

cdef enum:
    PASSED = 0
    REPETITION_COUNT = 1
    ADAPTIVE_PROPORTION = 2


cdef struct Counts:
    int64_t last       # the sample before, -1 at the start
    int64_t run        # how often it came in a row
    int64_t first      # first sample of the window
    int64_t hits       # how often it came in the window
    int64_t seen       # samples of the window
    int64_t longest    # run that fails
    int64_t most       # hits that fail
    int64_t window


cdef inline int _take(Counts *counts, int64_t sample) except -1 nogil:
    """Take one sample. No branch depends on its value unless a test fails."""
    counts.run = counts.run * (sample == counts.last) + 1
    counts.last = sample
    if counts.run >= counts.longest:
        return REPETITION_COUNT
    if counts.seen == 0:
        counts.first = sample
        counts.hits = 0
    counts.hits += sample == counts.first
    if counts.hits >= counts.most:
        return ADAPTIVE_PROPORTION
    counts.seen += 1
    if counts.seen == counts.window:
        counts.seen = 0
    return PASSED


cdef int _check(
    const uint8_t[::1] data, int64_t[::1] state, int sample_bits, Counts counts, Py_ssize_t *taken
) except -1 nogil:
    cdef Py_ssize_t i
    cdef int bit, failed = PASSED
    counts.last = state[0]
    counts.run = state[1]
    counts.first = state[2]
    counts.hits = state[3]
    counts.seen = state[4]
    taken[0] = 0
    for i in range(data.shape[0]):
        if sample_bits == 8:
            failed = _take(&counts, data[i])
            taken[0] += 1
        else:
            for bit in range(7, -1, -1):
                failed = _take(&counts, (data[i] >> bit) & 1)
                taken[0] += 1
                if failed:
                    break
        if failed:
            break
    state[0] = counts.last
    state[1] = counts.run
    state[2] = counts.first
    state[3] = counts.hits
    state[4] = counts.seen
    return failed


def check_samples(
    const uint8_t[::1] data not None,
    int64_t[::1] state not None,
    int sample_bits,
    int64_t repetition_cutoff,
    int64_t proportion_cutoff,
    int64_t window,
):
    """Run both tests on the next samples, and stop at the one at which a test fails.

    Time does not depend on the samples, but for where a test fails. `state` holds the last sample, which is secret.

    Args:
        data: The samples; bits are taken from the most significant one of each byte.
        state: int64 (5,), carried from call to call: last sample or -1, its run, first sample of the window, how often it
            came, samples of the window so far. (-1, 0, 0, 0, 0) at the start.
        sample_bits: 1 or 8.
        repetition_cutoff: Run at which the repetition count test fails, 2 or more.
        proportion_cutoff: Count at which the adaptive proportion test fails, 2 or more.
        window: Samples of a window, 2 or more.

    Returns:
        Samples taken, with the failing one, and 0 (passed), 1 (repetition count) or 2 (adaptive proportion).

    Raises:
        ValueError: An argument is out of range.
    """
    cdef Counts counts
    cdef Py_ssize_t taken
    cdef int failed
    if state.shape[0] != 5:
        raise ValueError("state must have 5 elements")
    if sample_bits != 1 and sample_bits != 8:
        raise ValueError("a sample must have 1 or 8 bits")
    if repetition_cutoff < 2 or proportion_cutoff < 2 or window < 2:
        raise ValueError("cutoffs and window must be 2 or more")
    counts.longest = repetition_cutoff
    counts.most = proportion_cutoff
    counts.window = window
    with nogil:
        failed = _check(data, state, sample_bits, counts, &taken)
    return taken, failed
