"""Event streams folded into small histograms, in exact integer arithmetic.

A stream by itself: the phase of an event is (time - ref) * step / 2^fraction_bits turns of 2^64, taken modulo one turn;
the leading bits of the phase are its bin. The fold period is exactly 2^(64 + fraction_bits) / step ticks, whatever the
time, and two streams whose clocks differ are folded alike by two values of `step`.

Two streams against each other: the clock of a pair of sites maps a time of stream A to stream B, in 2^-32 ticks of B,

    ref_b_ticks * 2^32 + phase_q32 + floor((time_a - ref_a_ticks) * rate_q48 / 2^16)

and the residual of a pair of events is the time of B minus that. No time is ever a floating-point number.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    ctypedef long long int128 "__int128"
    ctypedef unsigned long long uint128 "unsigned __int128"

cdef int64_t TIME_LIMIT = <int64_t>1 << 62
cdef int64_t ONE_TICK_Q32 = <int64_t>1 << 32


cdef struct PairMap:
    int64_t ref_a_ticks
    int64_t rate_q48
    int128 ref_b_q32


cdef inline int128 map_q32(PairMap* clock, int64_t ticks) except? -1 nogil:
    """Return the time of stream B, in 2^-32 ticks, that belongs to a time of stream A."""
    return clock.ref_b_q32 + (((<int128>ticks - clock.ref_a_ticks) * clock.rate_q48) >> 16)


def fold_events(
    const int64_t[::1] time_ticks not None,
    int64_t ref_ticks,
    uint64_t step,
    int fraction_bits,
    float[::1] histogram not None,
):
    """Add one to the bin of each event; a bin is exact up to 2^24 events.

    `histogram` has 2^1 to 2^32 bins, a power of two; `fraction_bits` is 0 to 63. Returns the number of events.
    """
    cdef uint64_t bins = histogram.shape[0]
    cdef int shift = 64
    if bins < 2 or bins & (bins - 1) or bins > (<uint64_t>1 << 32):
        raise ValueError("the number of bins must be a power of two, 2 to 2^32")
    if not 0 <= fraction_bits <= 63:
        raise ValueError(f"fraction_bits is {fraction_bits}, outside 0 .. 63")
    while bins > 1:
        bins >>= 1
        shift -= 1
    cdef Py_ssize_t done
    with nogil:
        done = fold_all(time_ticks, ref_ticks, step, fraction_bits, shift, histogram)
    return done


cdef Py_ssize_t fold_all(
    const int64_t[::1] time_ticks, int64_t ref_ticks, uint64_t step, int fraction_bits, int shift, float[::1] histogram
) except -1 nogil:
    cdef Py_ssize_t i
    cdef uint128 phase
    for i in range(time_ticks.shape[0]):
        # Modulo 2^128, so that a time before the reference, a negative distance, is right as well.
        phase = <uint128>(<int128>time_ticks[i] - ref_ticks) * step
        histogram[<Py_ssize_t>(<uint64_t>(phase >> fraction_bits) >> shift)] += 1
    return time_ticks.shape[0]


def fold_residuals(
    const int64_t[::1] a_ticks not None,
    const int64_t[::1] b_ticks not None,
    int64_t ref_a_ticks,
    int64_t ref_b_ticks,
    int64_t phase_q32,
    int64_t rate_q48,
    int64_t first_ticks,
    int slice_shift,
    int bin_shift,
    int64_t[:, ::1] histogram not None,
):
    """Add to `histogram` every pair of events, by the time of A (rows) and by the residual (columns).

    Rows are 2^slice_shift ticks of A long, the first begins at `first_ticks`; events of A outside the rows are left
    out. Columns are 2^bin_shift / 2^32 ticks of B wide and lie around a residual of 0, which begins column
    columns / 2. Both streams must ascend. Returns the number of pairs, or -1 - i if event i of A is the first at which
    an order is found broken or at which a time, mapped or not, leaves +-2^62 ticks; the histogram is then worthless.
    """
    cdef Py_ssize_t columns = histogram.shape[1]
    if not 0 <= slice_shift <= 61:
        raise ValueError(f"slice_shift is {slice_shift}, outside 0 .. 61")
    if columns < 2 or columns & 1:
        raise ValueError("histogram must have an even number of columns")
    if not 0 <= bin_shift <= 80 or columns > <int128>1 << (92 - bin_shift):
        raise ValueError("histogram spans more than 2^60 ticks")
    if abs(first_ticks) >= TIME_LIMIT:
        raise ValueError(f"first_ticks is {first_ticks}, beyond 2^62")
    cdef PairMap clock = make_map(ref_a_ticks, ref_b_ticks, phase_q32, rate_q48)
    cdef int64_t pairs = 0
    with nogil:
        pairs = fold_pairs(a_ticks, b_ticks, &clock, first_ticks, slice_shift, bin_shift, histogram)
    return pairs


cdef PairMap make_map(int64_t ref_a_ticks, int64_t ref_b_ticks, int64_t phase_q32, int64_t rate_q48):
    cdef PairMap clock
    check_pair_clock(ref_a_ticks, ref_b_ticks, phase_q32, rate_q48)
    clock.ref_a_ticks = ref_a_ticks
    clock.rate_q48 = rate_q48
    clock.ref_b_q32 = <int128>ref_b_ticks * ONE_TICK_Q32 + phase_q32
    return clock


def check_pair_clock(ref_a_ticks, ref_b_ticks, phase_q32, rate_q48):
    """Raise ValueError unless the clock lies where the arithmetic is exact."""
    if not (1 << 32) <= rate_q48 < (1 << 62):
        raise ValueError(f"rate_q48 is {rate_q48}; the rate must be 2^-16 to 2^14 ticks a tick")
    if not 0 <= phase_q32 < (1 << 32):
        raise ValueError(f"phase_q32 is {phase_q32}, outside 0 .. 2^32 - 1")
    if abs(ref_a_ticks) >= (1 << 62) or abs(ref_b_ticks) >= (1 << 62):
        raise ValueError(f"clock reference (ticks {ref_a_ticks}, {ref_b_ticks}) is out of range")


cdef int64_t fold_pairs(
    const int64_t[::1] a_ticks,
    const int64_t[::1] b_ticks,
    PairMap* clock,
    int64_t first_ticks,
    int slice_shift,
    int bin_shift,
    int64_t[:, ::1] histogram,
) except? -1 nogil:
    cdef Py_ssize_t i, j, row, lowest = 0
    cdef Py_ssize_t rows = histogram.shape[0], columns = histogram.shape[1]
    cdef int128 half_q32 = <int128>(columns >> 1) << bin_shift
    cdef int64_t half_ticks = <int64_t>(half_q32 >> 32) + 1
    cdef int64_t pairs = 0, previous = -TIME_LIMIT, ticks, target, rest_q32
    cdef int128 residual_q32, mapped, limit_q32 = <int128>TIME_LIMIT * ONE_TICK_Q32
    for i in range(a_ticks.shape[0]):
        ticks = a_ticks[i]
        if ticks < previous or ticks >= TIME_LIMIT:
            return -1 - i
        previous = ticks
        if ticks < first_ticks:
            continue
        row = <Py_ssize_t>((<uint64_t>ticks - <uint64_t>first_ticks) >> slice_shift)
        if row >= rows:
            break
        mapped = map_q32(clock, ticks)
        if not -limit_q32 < mapped < limit_q32:
            return -1 - i
        target = <int64_t>(mapped >> 32)
        rest_q32 = <int64_t>(mapped - <int128>target * ONE_TICK_Q32)
        while lowest < b_ticks.shape[0] and b_ticks[lowest] < target - half_ticks:
            lowest += 1
        for j in range(lowest, b_ticks.shape[0]):
            if b_ticks[j] > target + half_ticks:
                break
            if b_ticks[j] < target - half_ticks:
                return -1 - i
            residual_q32 = <int128>(b_ticks[j] - target) * ONE_TICK_Q32 - rest_q32
            if -half_q32 <= residual_q32 < half_q32:
                histogram[row, <Py_ssize_t>((residual_q32 + half_q32) >> bin_shift)] += 1
                pairs += 1
    return pairs
