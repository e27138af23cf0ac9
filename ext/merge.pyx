"""Streams of events in time order: correct a stream's times, order it, and merge two ordered ones.

An event is late if its time, as the instrument tells it, lies more than `window` before the latest one of its stream
so far: a property of the stream alone, however it is cut. Of events of equal time the one that came first stays
first, and the left stream's stand before the right one's.

Merging takes four parts of the streams side by side, each without a branch a step (see coincidences.pyx).
Times decide the control flow; nothing here knows of key bits.
"""

from libc.stdint cimport int64_t, uint8_t

cdef enum:
    LANES = 4
    TILE = 65536
    MIN_STEPS = 16
    KIND_PHOTON = 0        # qkdhw.model.EventKind

# Places in `state`.
cdef enum:
    STATE_LATEST           # latest time so far, in common ticks, before the skew is corrected
    STATE_LATE             # events dropped so far
    STATE_FIRST_LATE       # index of the first one in this chunk, or n
    STATE_SIZE

cdef int64_t TIME_LIMIT = <int64_t>1 << 62


def reset_state(int64_t[::1] state not None):
    """Make `state` that of a stream's beginning."""
    if state.shape[0] != STATE_SIZE:
        raise ValueError(f"state needs {STATE_SIZE} places")
    state[:] = 0
    state[STATE_LATEST] = -TIME_LIMIT


def correct_events(
    const int64_t[::1] time_ticks not None,
    const uint8_t[::1] channel not None,
    const uint8_t[::1] kind not None,
    int64_t factor,
    const int64_t[::1] shift not None,
    const uint8_t[::1] renumbered not None,
    int64_t window,
    int64_t[::1] state not None,
    int64_t[::1] out_ticks not None,
    uint8_t[::1] out_channel not None,
    uint8_t[::1] out_kind not None,
):
    """Write time * factor + shift[channel], the new channel and the kind of each event that is not late.

    Photons alone are shifted and renumbered. Return how many were written, or -1 - i if event i leaves +-2^62 ticks.
    """
    cdef Py_ssize_t n = time_ticks.shape[0]
    cdef Py_ssize_t c, written
    cdef int64_t largest = 0
    if channel.shape[0] != n or kind.shape[0] != n:
        raise ValueError("time_ticks, channel and kind must have one length")
    if out_ticks.shape[0] < n or out_channel.shape[0] < n or out_kind.shape[0] < n:
        raise ValueError("the outputs need a place for each event")
    if shift.shape[0] != 256 or renumbered.shape[0] != 256 or state.shape[0] != STATE_SIZE:
        raise ValueError(f"shift and renumbered need 256 places, state {STATE_SIZE}")
    for c in range(256):
        if not -TIME_LIMIT < shift[c] < TIME_LIMIT:
            raise ValueError(f"a skew of {shift[c]} ticks is out of range")
        largest = max(largest, abs(shift[c]))
    if not 1 <= factor < TIME_LIMIT or not 0 <= window < TIME_LIMIT:
        raise ValueError("factor or window is out of range")
    with nogil:
        written = correct_all(
            time_ticks, channel, kind, factor, (TIME_LIMIT - 1 - largest) // factor, shift, renumbered, window, state,
            out_ticks, out_channel, out_kind,
        )
    return written


cdef Py_ssize_t correct_all(
    const int64_t[::1] time_ticks, const uint8_t[::1] channel, const uint8_t[::1] kind, int64_t factor, int64_t limit,
    const int64_t[::1] shift, const uint8_t[::1] renumbered, int64_t window, int64_t[::1] state,
    int64_t[::1] out_ticks, uint8_t[::1] out_channel, uint8_t[::1] out_kind,
) except? -1 nogil:
    cdef Py_ssize_t n = time_ticks.shape[0]
    cdef Py_ssize_t i, k = 0, first_late = n
    cdef int64_t ticks, latest = state[STATE_LATEST]
    cdef uint8_t c
    for i in range(n):
        if not -limit <= time_ticks[i] <= limit:
            return -1 - i
        ticks = time_ticks[i] * factor
        c = channel[i]
        out_ticks[k] = ticks + (shift[c] if kind[i] == KIND_PHOTON else 0)
        out_channel[k] = renumbered[c] if kind[i] == KIND_PHOTON else c
        out_kind[k] = kind[i]
        if ticks < latest - window:
            first_late = min(first_late, i)
        else:
            k += 1
        latest = max(latest, ticks)
    state[STATE_LATEST] = latest
    state[STATE_LATE] += n - k
    state[STATE_FIRST_LATE] = first_late
    return k


def order_events(
    int64_t[::1] time_ticks not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t max_moves,
):
    """Sort events that are almost in order, in place; return whether `max_moves` moves of an event were enough.

    If not, the events are all still there, equal times in their old order, and partly sorted.
    """
    cdef bint sorted_
    if channel.shape[0] != time_ticks.shape[0] or kind.shape[0] != time_ticks.shape[0]:
        raise ValueError("time_ticks, channel and kind must have one length")
    with nogil:
        sorted_ = order_all(time_ticks, channel, kind, max_moves)
    return bool(sorted_)


cdef bint order_all(int64_t[::1] time_ticks, uint8_t[::1] channel, uint8_t[::1] kind, int64_t moves) except -1 nogil:
    cdef Py_ssize_t i, j
    cdef int64_t ticks
    cdef uint8_t c, k
    for i in range(1, time_ticks.shape[0]):
        ticks = time_ticks[i]
        if ticks >= time_ticks[i - 1]:
            continue
        c = channel[i]
        k = kind[i]
        j = i
        while j > 0 and time_ticks[j - 1] > ticks:
            time_ticks[j], channel[j], kind[j] = time_ticks[j - 1], channel[j - 1], kind[j - 1]
            j -= 1
        time_ticks[j], channel[j], kind[j] = ticks, c, k
        moves -= i - j
        if moves < 0:
            return False
    return True


def merge_two(
    const int64_t[::1] left_ticks not None,
    const uint8_t[::1] left_channel not None,
    const uint8_t[::1] left_kind not None,
    const int64_t[::1] right_ticks not None,
    const uint8_t[::1] right_channel not None,
    const uint8_t[::1] right_kind not None,
    int64_t[::1] ticks not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
):
    """Merge two ordered streams."""
    cdef Py_ssize_t n = left_ticks.shape[0], m = right_ticks.shape[0]
    if left_channel.shape[0] != n or left_kind.shape[0] != n or right_channel.shape[0] != m or right_kind.shape[0] != m:
        raise ValueError("times, channels and kinds of a stream must have one length")
    if ticks.shape[0] != n + m or channel.shape[0] != n + m or kind.shape[0] != n + m:
        raise ValueError("the outputs must be as long as both streams")
    with nogil:
        merge_all(
            left_ticks, left_channel, left_kind, right_ticks, right_channel, right_kind, ticks, channel, kind
        )


cdef Py_ssize_t split(
    const int64_t[::1] left_ticks, const int64_t[::1] right_ticks, Py_ssize_t total
) except -1 nogil:
    """Of the first `total` events of both: how many are of the left stream."""
    cdef Py_ssize_t begin = max(<Py_ssize_t>0, total - right_ticks.shape[0])
    cdef Py_ssize_t end = min(total, left_ticks.shape[0])
    cdef Py_ssize_t middle
    while begin < end:
        middle = (begin + end) >> 1
        if left_ticks[middle] <= right_ticks[total - 1 - middle]:
            begin = middle + 1
        else:
            end = middle
    return begin


cdef int merge_all(
    const int64_t[::1] left_ticks, const uint8_t[::1] left_channel, const uint8_t[::1] left_kind,
    const int64_t[::1] right_ticks, const uint8_t[::1] right_channel, const uint8_t[::1] right_kind,
    int64_t[::1] ticks, uint8_t[::1] channel, uint8_t[::1] kind,
) except -1 nogil:
    cdef Py_ssize_t size = ticks.shape[0]
    cdef Py_ssize_t i[LANES]
    cdef Py_ssize_t j[LANES]
    cdef Py_ssize_t i_end[LANES]
    cdef Py_ssize_t j_end[LANES]
    cdef Py_ssize_t total = 0, total_end, lane, cut, step, steps
    cdef bint right
    cdef Py_ssize_t p, q
    while total < size:
        total_end = min(total + TILE, size)
        for lane in range(LANES):
            cut = total + (total_end - total) * lane // LANES
            i[lane] = split(left_ticks, right_ticks, cut)
            j[lane] = cut - i[lane]
            cut = total + (total_end - total) * (lane + 1) // LANES
            i_end[lane] = split(left_ticks, right_ticks, cut)
            j_end[lane] = cut - i_end[lane]
        total = total_end
        while True:
            steps = TILE
            for lane in range(LANES):
                steps = min(steps, min(i_end[lane] - i[lane], j_end[lane] - j[lane]))
            if steps < MIN_STEPS:
                break
            for step in range(steps):
                for lane in range(LANES):
                    p, q = i[lane], j[lane]
                    right = right_ticks[q] < left_ticks[p]
                    ticks[p + q] = min(right_ticks[q], left_ticks[p])
                    channel[p + q] = right_channel[q] if right else left_channel[p]
                    kind[p + q] = right_kind[q] if right else left_kind[p]
                    i[lane] = p + (right ^ 1)
                    j[lane] = q + right
        for lane in range(LANES):
            p, q = i[lane], j[lane]
            while p < i_end[lane] or q < j_end[lane]:
                if q < j_end[lane] and (p == i_end[lane] or right_ticks[q] < left_ticks[p]):
                    ticks[p + q], channel[p + q], kind[p + q] = right_ticks[q], right_channel[q], right_kind[q]
                    q += 1
                else:
                    ticks[p + q], channel[p + q], kind[p + q] = left_ticks[p], left_channel[p], left_kind[p]
                    p += 1
    return 0
