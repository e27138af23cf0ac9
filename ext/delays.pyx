"""Histograms of delays between two streams, and of arrival times within a period, in exact integer arithmetic.

Bins of a delay histogram are `width` ticks wide; those of an arrival histogram are equal parts of a period that is a
fraction of ticks, so an event's bin is right to the tick after days. A division costs more than the rest of a bin, so
it is one multiplication by a reciprocal and one correction. Arrival times decide the control flow; nothing here knows
of key bits.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    ctypedef long long int128 "__int128"
    ctypedef unsigned long long uint128 "unsigned __int128"

cdef enum:
    MAX_BINS = 1 << 26

cdef int64_t TIME_LIMIT = <int64_t>1 << 62


cdef inline uint64_t reciprocal_of(uint64_t divisor) except? 0 nogil:
    return <uint64_t>0xFFFFFFFFFFFFFFFF // divisor


cdef inline uint64_t quotient_of(uint64_t dividend, uint64_t divisor, uint64_t reciprocal) except? 7 nogil:
    """Divide: the estimate is right or one too small."""
    cdef uint64_t quotient = <uint64_t>((<uint128>dividend * reciprocal) >> 64)
    return quotient + (dividend - quotient * divisor >= divisor)


def bin_delays(
    const int64_t[::1] first not None,
    const int64_t[::1] second not None,
    const int64_t[::1] anchor not None,
    const int64_t[::1] begin not None,
    const int64_t[::1] number not None,
    int64_t low,
    int64_t width,
    bint same,
    int64_t same_offset,
    int64_t[::1] counts not None,
):
    """Add the delays second[j] - first[i] of each row of `find_partners` to `counts`; return how many.

    Bin k holds delays from low + k * width on. If `same`, both are one stream and an event is not paired with
    itself: first[i] is second[i + same_offset].

    Return -1 if a row or a delay lies outside; `counts` is then of no use.
    """
    cdef int64_t pairs
    if begin.shape[0] != anchor.shape[0] or number.shape[0] != anchor.shape[0]:
        raise ValueError("anchor, begin and number must have one length")
    if not 1 <= counts.shape[0] <= MAX_BINS:
        raise ValueError(f"a histogram has 1 to {MAX_BINS} bins")
    if not 1 <= width < TIME_LIMIT:
        raise ValueError(f"a bin of {width} ticks is out of range")
    with nogil:
        pairs = bin_rows(first, second, anchor, begin, number, low, width, same, same_offset, counts)
    return pairs


cdef int64_t bin_rows(
    const int64_t[::1] first, const int64_t[::1] second, const int64_t[::1] anchor, const int64_t[::1] begin,
    const int64_t[::1] number, int64_t low, int64_t width, bint same, int64_t same_offset, int64_t[::1] counts,
) except? -2 nogil:
    cdef Py_ssize_t row
    cdef int64_t i, j, origin, own = -1, pairs = 0
    cdef uint64_t bin
    cdef uint64_t bins = counts.shape[0]
    cdef uint64_t reciprocal = reciprocal_of(width)
    for row in range(anchor.shape[0]):
        i = anchor[row]
        if not 0 <= i < first.shape[0] or begin[row] < 0 or not 0 <= number[row] <= second.shape[0] - begin[row]:
            return -1
        origin = first[i] + low
        if same:
            own = i + same_offset
        for j in range(begin[row], begin[row] + number[row]):
            bin = quotient_of(<uint64_t>(second[j] - origin), width, reciprocal)
            if bin >= bins:
                return -1
            counts[bin] += j != own
            pairs += j != own
    return pairs


def bin_arrivals(
    const int64_t[::1] time_ticks not None,
    int64_t origin,
    int64_t period_numerator,
    int64_t period_denominator,
    int64_t[::1] counts not None,
):
    """Add each time, modulo the period, counted from `origin`, to `counts`: bin floor(phase * bins / period)."""
    if not 1 <= counts.shape[0] <= MAX_BINS:
        raise ValueError(f"a histogram has 1 to {MAX_BINS} bins")
    if not 1 <= period_denominator <= period_numerator < TIME_LIMIT:
        raise ValueError("a period must be 1 tick at least, and its fraction of ticks below 2^62")
    if period_numerator <= counts.shape[0]:
        scale = counts.shape[0] // period_numerator + 1
        period_numerator, period_denominator = scale * period_numerator, scale * period_denominator
    with nogil:
        bin_phases(time_ticks, origin, period_numerator, period_denominator, counts)


cdef int bin_phases(
    const int64_t[::1] time_ticks, int64_t origin, int64_t numerator, int64_t denominator, int64_t[::1] counts
) except -1 nogil:
    """Phases are counted in 1/denominator ticks, from an event seen before as long as the distance fits 64 bits."""
    cdef Py_ssize_t i
    cdef uint64_t bins = counts.shape[0]
    cdef uint64_t span = (<uint64_t>1 << 62) // <uint64_t>denominator
    cdef uint64_t reciprocal = reciprocal_of(numerator)
    cdef uint64_t bins_q64 = <uint64_t>((<uint128>bins << 64) / <uint128>numerator)
    cdef uint64_t distance, phase, bin, anchor_phase = 0
    cdef int64_t anchor = origin
    cdef int128 whole
    for i in range(time_ticks.shape[0]):
        if <uint64_t>time_ticks[i] - <uint64_t>anchor >= span:
            anchor = time_ticks[i]
            whole = (<int128>anchor - origin) * denominator % numerator
            anchor_phase = <uint64_t>(whole + numerator if whole < 0 else whole)
        distance = (<uint64_t>time_ticks[i] - <uint64_t>anchor) * <uint64_t>denominator + anchor_phase
        phase = distance - quotient_of(distance, numerator, reciprocal) * <uint64_t>numerator
        bin = <uint64_t>((<uint128>phase * bins_q64) >> 64)
        bin += <uint128>phase * bins - <uint128>bin * <uint64_t>numerator >= <uint64_t>numerator
        counts[bin] += 1
    return 0
