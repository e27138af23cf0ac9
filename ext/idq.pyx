"""Decode the IDQ Time Controller's timestamps, and merge the streams of its channels.

Source:
    IDQ Time Controller Series User Manual, 6.3.4: 64-bit little-endian picoseconds since the reference event or the
    beginning of the acquisition, optionally followed by the 64-bit number of the reference event.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

cdef Py_ssize_t _decode(
    const uint8_t[::1] data, Py_ssize_t words, uint64_t reference_period, uint64_t width, int64_t begin,
    int64_t[::1] time_ticks,
) except -2 nogil:
    cdef Py_ssize_t i
    cdef uint64_t time, index = 0, ticks, last = 0
    # What exceeds the width in any part is wrong, so no true product or sum overflows.
    cdef uint64_t last_index = width // reference_period if reference_period else 0
    for i in range(time_ticks.shape[0]):
        memcpy(&time, &data[8 * words * i], 8)
        if words == 2:
            memcpy(&index, &data[16 * i + 8], 8)
        ticks = time + index * reference_period
        if time > width or index > last_index or ticks > width or ticks < last:
            return i
        last = ticks
        time_ticks[i] = begin + <int64_t>ticks
    return -1


def decode_id900(
    const uint8_t[::1] data not None,
    int64_t begin_ticks,
    int64_t width_ticks,
    int64_t reference_period_ticks,
    int64_t[::1] time_ticks not None,
):
    """Decode the timestamps of one sub-acquisition of one channel, which rise from 0 to at most its width.

    Args:
        data: Whole events of 8 bytes, or, with a reference, of 16.
        begin_ticks: When the sub-acquisition began, >= 0: the record's period times its number.
        width_ticks: Length of the sub-acquisition, >= 0; begin and width together fit int64.
        reference_period_ticks: Picoseconds from one reference event to the next, >= 1; or 0: events have no reference
            and no index.
        time_ticks: int64 (n,) out, ticks of 1 ps: begin + index x reference period + timestamp.

    Returns:
        Index of the first event that is earlier than the one before it or later than the width, or -1. Times from
        there on are not written.

    Raises:
        ValueError: Lengths do not match, or a number is out of range.
    """
    cdef Py_ssize_t words = 2 if reference_period_ticks else 1
    cdef Py_ssize_t bad
    if data.shape[0] != 8 * words * time_ticks.shape[0]:
        raise ValueError("data must have 8 bytes an element of time_ticks, 16 with a reference")
    if begin_ticks < 0 or width_ticks < 0 or reference_period_ticks < 0 or begin_ticks > INT64_MAX - width_ticks:
        raise ValueError("begin, width and reference period must not be negative, and their sum must fit 64 bits")
    with nogil:
        bad = _decode(data, words, <uint64_t>reference_period_ticks, <uint64_t>width_ticks, begin_ticks, time_ticks)
    return bad


cdef inline int64_t _head(const int64_t* at, const int64_t* end) except? -1 nogil:
    return at[0] if at != end else INT64_MAX


cdef Py_ssize_t _merge(
    const int64_t[::1] a, const int64_t[::1] b, const int64_t[::1] c, const int64_t[::1] d, const uint8_t[::1] numbers,
    int64_t[::1] time_ticks, uint8_t[::1] channel,
) except -2 nogil:
    cdef Py_ssize_t n = time_ticks.shape[0], k
    cdef const int64_t *p0, *p1, *p2, *p3, *e0, *e1, *e2, *e3
    cdef int64_t h0, h1, h2, h3, low, high
    cdef Py_ssize_t is1, is3, is_high
    p0 = &a[0] if a.shape[0] else NULL
    p1 = &b[0] if b.shape[0] else NULL
    p2 = &c[0] if c.shape[0] else NULL
    p3 = &d[0] if d.shape[0] else NULL
    e0, e1, e2, e3 = p0 + a.shape[0], p1 + b.shape[0], p2 + c.shape[0], p3 + d.shape[0]
    h0, h1, h2, h3 = _head(p0, e0), _head(p1, e1), _head(p2, e2), _head(p3, e3)
    for k in range(n):
        # Which stream is next is random: choosing by arithmetic avoids mispredicted branches.
        is1 = h1 < h0
        is3 = h3 < h2
        low = h1 if is1 else h0
        high = h3 if is3 else h2
        is_high = high < low
        time_ticks[k] = high if is_high else low
        channel[k] = numbers[(is1 & (1 - is_high)) + (2 + is3) * is_high]
        p0 += (1 - is1) & (1 - is_high)
        p1 += is1 & (1 - is_high)
        p2 += (1 - is3) & is_high
        p3 += is3 & is_high
        h0, h1, h2, h3 = _head(p0, e0), _head(p1, e1), _head(p2, e2), _head(p3, e3)
    return n


def merge_id900(
    const int64_t[::1] a not None,
    const int64_t[::1] b not None,
    const int64_t[::1] c not None,
    const int64_t[::1] d not None,
    const uint8_t[::1] numbers not None,
    int64_t[::1] time_ticks not None,
    uint8_t[::1] channel not None,
):
    """Merge four rising streams of times, any of which may be empty; of equal times, the earlier stream's comes first.

    Args:
        a: int64, ticks below 2^63 - 1, rising; so are b, c and d.
        b: The second stream.
        c: The third.
        d: The fourth.
        numbers: uint8 (4,), the channel number of each.
        time_ticks: int64 (n,) out, as many as the four have together.
        channel: uint8 (n,) out, whose event each is.

    Returns:
        Events written.

    Raises:
        ValueError: Lengths do not match.
    """
    cdef Py_ssize_t n = a.shape[0] + b.shape[0] + c.shape[0] + d.shape[0]
    if numbers.shape[0] != 4:
        raise ValueError("numbers must have 4 elements")
    if time_ticks.shape[0] != n or channel.shape[0] != n:
        raise ValueError("time_ticks and channel must have as many elements as the streams together")
    with nogil:
        n = _merge(a, b, c, d, numbers, time_ticks, channel)
    return n
