"""Coincidences of any order: one event on each of several channels, every two of them within the window of the two.

The sorted times of the channels stand one behind the other in one array; channel c has begin[c] .. begin[c + 1] - 1.
Events a of channel c and b of channel d > c, at distance b - a ticks, fit if low[c, d] <= b - a <= high[c, d]. The
scan goes along the first channel and looks in the others for events that fit, channel by channel, in time order.

Times lie within +-2^62 ticks and windows within +-2^61, so no sum or difference leaves 64 bits.
"""

from libc.stdint cimport int64_t

cdef enum:
    MAX_ORDER = 16

cdef int64_t WINDOW_LIMIT = <int64_t>1 << 61


def match_tuples(
    const int64_t[::1] time_ticks not None,
    const int64_t[::1] begin not None,
    const int64_t[:, ::1] low not None,
    const int64_t[:, ::1] high not None,
    bint one_partner,
    int64_t[::1] next_event not None,
    int64_t[:, ::1] index,
):
    """Find the coincidences; write a row of indices (into time_ticks) for each that `index` has room for, if not None.

    With `one_partner` an event is in one coincidence at most: each event of the first channel, in time order, takes
    the first free ones that fit. `next_event` is in and out: the first event of each channel that may still be used.

    Return the number of coincidences. Streams that are not sorted are a caller's mistake; the number is then wrong.
    """
    cdef Py_ssize_t order = begin.shape[0] - 1
    cdef Py_ssize_t c
    cdef int64_t found
    if not 2 <= order <= MAX_ORDER:
        raise ValueError(f"a coincidence has 2 to {MAX_ORDER} channels, not {order}")
    if low.shape[0] != order or low.shape[1] != order or high.shape[0] != order or high.shape[1] != order:
        raise ValueError("low and high need a row and a column for each channel")
    if next_event.shape[0] != order or (index is not None and index.shape[1] != order):
        raise ValueError("next_event and the rows of index need a place for each channel")
    if begin[0] != 0 or begin[order] != time_ticks.shape[0]:
        raise ValueError("begin must run from 0 to the number of events")
    for c in range(order):
        if not begin[c] <= next_event[c] <= begin[c + 1]:
            raise ValueError("next_event must lie within its channel, and begin ascend")
        for d in range(c + 1, order):
            if not -WINDOW_LIMIT < low[c, d] <= high[c, d] < WINDOW_LIMIT:
                raise ValueError(f"the window from {low[c, d]} to {high[c, d]} ticks is empty or out of range")
    with nogil:
        found = match_all(time_ticks, begin, low, high, one_partner, next_event, index)
    return found


cdef inline bint fits(
    const int64_t[::1] time_ticks, const int64_t[:, ::1] low, const int64_t[:, ::1] high, Py_ssize_t* at, Py_ssize_t d
) except -1 nogil:
    """Whether the event chosen for channel d fits those chosen for channels 1 .. d - 1."""
    cdef Py_ssize_t c
    cdef int64_t delay
    for c in range(1, d):
        delay = time_ticks[at[d]] - time_ticks[at[c]]
        if delay < low[c, d] or delay > high[c, d]:
            return False
    return True


cdef int64_t match_all(
    const int64_t[::1] time_ticks, const int64_t[::1] begin, const int64_t[:, ::1] low, const int64_t[:, ::1] high,
    bint one_partner, int64_t[::1] next_event, int64_t[:, ::1] index,
) except -1 nogil:
    cdef Py_ssize_t order = begin.shape[0] - 1
    cdef Py_ssize_t rows = 0 if index is None else index.shape[0]
    cdef Py_ssize_t at[MAX_ORDER]
    cdef Py_ssize_t anchor, c, d
    cdef int64_t ticks, found = 0
    for anchor in range(next_event[0], begin[1]):
        ticks = time_ticks[anchor]
        at[0] = anchor
        d = 1
        at[1] = first_fitting(time_ticks, next_event, begin, ticks + low[0, 1], 1)
        while d > 0:
            if at[d] == begin[d + 1] or time_ticks[at[d]] - ticks > high[0, d]:
                d -= 1
                at[d] += d > 0
            elif not fits(time_ticks, low, high, at, d):
                at[d] += 1
            elif d < order - 1:
                d += 1
                at[d] = first_fitting(time_ticks, next_event, begin, ticks + low[0, d], d)
            else:
                if found < rows:
                    for c in range(order):
                        index[found, c] = at[c]
                found += 1
                if one_partner:
                    for c in range(1, order):
                        next_event[c] = at[c] + 1
                    break
                at[d] += 1
    next_event[0] = begin[1]
    return found


cdef inline Py_ssize_t first_fitting(
    const int64_t[::1] time_ticks, int64_t[::1] next_event, const int64_t[::1] begin, int64_t ticks, Py_ssize_t c
) except -1 nogil:
    """Move a channel's first usable event up to `ticks`: no later anchor will look below."""
    while next_event[c] < begin[c + 1] and time_ticks[next_event[c]] < ticks:
        next_event[c] += 1
    return next_event[c]
