"""Count what came in a stream of events: how many of each kind, and how often time went back."""

from libc.stdint cimport int64_t, uint8_t

cdef enum:
    N_KINDS = 7


cdef int _tally(
    const int64_t[::1] time_ticks, const uint8_t[::1] kind, int64_t[::1] counts, int64_t[::1] last
) except -1 nogil:
    cdef Py_ssize_t i
    cdef int64_t previous = last[0], back = 0, photons = 0
    cdef uint8_t k
    for i in range(time_ticks.shape[0]):
        back += time_ticks[i] < previous
        previous = time_ticks[i]
    for i in range(time_ticks.shape[0]):
        k = kind[i]
        photons += k == 0
        if k != 0 and k < N_KINDS:
            counts[k] += 1
    counts[0] += photons
    counts[N_KINDS] += back
    last[0] = previous
    return 0


def tally_events(
    const int64_t[::1] time_ticks not None,
    const uint8_t[::1] kind not None,
    int64_t[::1] counts not None,
    int64_t[::1] last not None,
):
    """Add up one block of a stream.

    Args:
        time_ticks: int64 (n,).
        kind: uint8 (>= n,), EventKind; larger numbers than those are not counted.
        counts: int64 (8,), in and out: events of each kind, and last the events earlier than the one before them.
        last: int64 (1,), in and out: time of the event before the block.

    Raises:
        ValueError: Lengths do not match.
    """
    if counts.shape[0] != N_KINDS + 1 or last.shape[0] != 1:
        raise ValueError("counts must have 8 elements and last 1")
    if kind.shape[0] < time_ticks.shape[0]:
        raise ValueError("kind is shorter than time_ticks")
    with nogil:
        _tally(time_ticks, kind, counts, last)
