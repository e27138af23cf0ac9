# Slots of times in exact integers, as text for the kernels that need it (no module of its own). qkdhw.events.clock tells
# what a clock is.
from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #define SPAN_TICKS ((uint64_t)1 << 30)
    """
    ctypedef long long int128 "__int128"
    ctypedef unsigned long long uint128 "unsigned __int128"
    const uint64_t SPAN_TICKS


cdef struct Clock:
    int64_t ref_slot
    int64_t ref_ticks
    int64_t phase_q32
    int64_t period_q32
    uint64_t magic         # distance / period is (distance * magic) >> (64 + shift), exact for distances below 2^63
    int shift
    int64_t anchor_ticks   # an event seen before, its slot, and its distance from that slot's beginning
    int64_t anchor_slot
    int64_t anchor_rest


cdef inline int anchor(Clock* clock, int64_t ticks) except -1 nogil:
    """Move the anchor to `ticks`, in 128 bits: distances from it then fit 63 bits for the next 2^30 ticks."""
    cdef int128 distance = (<int128>ticks - clock.ref_ticks) * (<int128>1 << 32) - clock.phase_q32 + (clock.period_q32 >> 1)
    cdef int128 slots = distance / clock.period_q32
    if slots * clock.period_q32 > distance:
        slots -= 1
    clock.anchor_ticks = ticks
    clock.anchor_slot = clock.ref_slot + <int64_t>slots
    clock.anchor_rest = <int64_t>(distance - slots * clock.period_q32)
    return 0


cdef inline Clock make_clock(int64_t ref_slot, int64_t ref_ticks, int64_t phase_q32, int64_t period_q32):
    """Make a clock; its multiplier is that of T. Granlund and P. L. Montgomery, PLDI 1994, theorem 4.2, for N = 63."""
    cdef Clock clock
    cdef int bits = 0
    clock.ref_slot = ref_slot
    clock.ref_ticks = ref_ticks
    clock.phase_q32 = phase_q32
    clock.period_q32 = period_q32
    while (<int64_t>1 << bits) < period_q32:
        bits += 1
    clock.magic = <uint64_t>(((<uint128>1 << (63 + bits)) + <uint128>(period_q32 - 1)) / <uint128>period_q32)
    clock.shift = bits - 1
    anchor(&clock, ref_ticks)
    return clock


cdef inline int locate(Clock* clock, int64_t ticks, int64_t* slot, uint64_t* rest) except -1 nogil:
    """Find the slot of an event and its distance from the slot's beginning (centre minus half a period)."""
    cdef uint64_t distance, quotient
    if <uint64_t>ticks - <uint64_t>clock.anchor_ticks >= SPAN_TICKS:
        anchor(clock, ticks)
    distance = (<uint64_t>(ticks - clock.anchor_ticks) << 32) + <uint64_t>clock.anchor_rest
    quotient = <uint64_t>((<uint128>distance * clock.magic) >> 64) >> clock.shift
    slot[0] = clock.anchor_slot + <int64_t>quotient
    rest[0] = distance - quotient * <uint64_t>clock.period_q32
    return 0
