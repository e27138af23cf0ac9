# From clicks in the window to one outcome a slot, as text for the gating kernel (no module of its own).
#
# Timing: as ext/gating.pyx says; never by which detector of a basis clicked, nor is an address.
from libc.stdint cimport int64_t, uint64_t, uint8_t, uint16_t

cdef enum:
    BLOCK = 512            # most events that are gated together

# Places in `counts`, in the order of qkdhw.events.gating.GatingStatistics.
cdef enum:
    COUNT_PHOTONS
    COUNT_UNWIRED
    COUNT_BEFORE_START
    COUNT_OUTSIDE_WINDOW
    COUNT_DEAD_TIME
    COUNT_SLOTS
    COUNT_MERGED
    COUNT_DOUBLE_KEY
    COUNT_DOUBLE_TEST
    COUNT_CROSS_BASIS
    COUNT_LOSS_MARKS
    COUNT_CLICKS           # four places: (key, 0), (key, 1), (test, 0), (test, 1)
    COUNT_SIZE = 15


cdef struct Carry:
    int64_t is_open
    int64_t slot           # the open slot
    int64_t mask           # bit 2 * basis + bit of each of its detectors that clicked
    int64_t clicks
    int64_t live
    int64_t last_ticks     # last click of any detector, or loss mark
    Py_ssize_t n_out
    Py_ssize_t n_random


cdef struct Block:
    int64_t[BLOCK] ticks       # of the clicks with a detector, if some have none
    uint8_t[BLOCK] mark        # 2 << detector of every click
    int64_t[BLOCK + 1] slot    # of the clicks in the window, in order; place 0 is the open slot
    uint8_t[BLOCK + 1] tag     # their marks, and 1 if the click finds all detectors live


cdef inline int add_clicks(Py_ssize_t n, const uint8_t* tag, int64_t[::1] counts) except -1 nogil:
    """Count the clicks of each detector in tags (2 << detector), in bytes, which hold 255."""
    cdef Py_ssize_t i, end, begin = 0
    cdef uint8_t key_0, key_1, test_0, test_1
    while begin < n:
        end = min(begin + 240, n)
        key_0 = key_1 = test_0 = test_1 = 0
        for i in range(begin, end):
            key_0 += (tag[i] >> 1) & 1
            key_1 += (tag[i] >> 2) & 1
            test_0 += (tag[i] >> 3) & 1
            test_1 += (tag[i] >> 4) & 1
        counts[COUNT_CLICKS] += key_0
        counts[COUNT_CLICKS + 1] += key_1
        counts[COUNT_CLICKS + 2] += test_0
        counts[COUNT_CLICKS + 3] += test_1
        begin = end
    return 0


cdef inline int draw_outcome(
    int64_t mask, Py_ssize_t k, Py_ssize_t* n_random, const uint8_t[::1] random_bytes, uint8_t[::1] basis,
    uint8_t[::1] bit, int64_t[::1] counts,
) except -1 nogil:
    """Choose basis, then bit, of a live slot; arithmetic only, whichever detectors clicked."""
    cdef int64_t random = random_bytes[n_random[0]]
    cdef int64_t in_key = (mask | mask >> 1) & 1
    cdef int64_t in_test = (mask >> 2 | mask >> 3) & 1
    cdef int64_t cross = in_key & in_test
    cdef int64_t chosen = (cross & random) | ((cross ^ 1) & in_test)
    cdef int64_t pair = mask >> (2 * chosen)
    cdef int64_t both = pair & (pair >> 1) & 1
    basis[k] = <uint8_t>chosen
    bit[k] = <uint8_t>((pair >> 1) & ((pair ^ 1) | (random >> 1)) & 1)
    n_random[0] += cross | both
    counts[COUNT_DOUBLE_KEY] += both & (chosen ^ 1)
    counts[COUNT_DOUBLE_TEST] += both & chosen
    counts[COUNT_CROSS_BASIS] += cross
    return 0


cdef inline int close_slot(
    Carry* carry, const uint8_t[::1] random_bytes, int64_t[::1] slot, uint8_t[::1] basis, uint8_t[::1] bit,
    int64_t[::1] counts,
) except -1 nogil:
    """Write the outcome of the open slot, if there is one and it is live."""
    if carry.is_open and carry.live:
        slot[carry.n_out] = carry.slot
        draw_outcome(carry.mask, carry.n_out, &carry.n_random, random_bytes, basis, bit, counts)
        counts[COUNT_MERGED] += carry.clicks - 1
        carry.n_out += 1
    elif carry.is_open:
        counts[COUNT_DEAD_TIME] += carry.clicks
    carry.is_open = 0
    return 0


cdef inline int make_outcomes(
    Py_ssize_t n, Block* block, const uint8_t[::1] random_bytes, Carry* carry, int64_t[::1] slot,
    uint8_t[::1] basis, uint8_t[::1] bit, int64_t[::1] counts,
) except -1 nogil:
    """Make one outcome of each slot; the last one stays open."""
    cdef Py_ssize_t i, k = 0, first = carry.n_out, n_several = 0, last_clicks = 0
    cdef int64_t clicks = n + carry.is_open * carry.clicks
    cdef int64_t mask = carry.is_open * (carry.mask << 1 | carry.live)  # bit 0: the slot's first click found all live
    cdef int64_t live_clicks = (mask & 1) * carry.clicks
    cdef int64_t is_new
    cdef uint8_t one
    cdef uint8_t[BLOCK + 1] masks
    cdef uint8_t[BLOCK] drawn
    cdef uint16_t[BLOCK] several
    cdef int64_t* made = &slot[first]
    cdef int64_t here, previous
    # No slot has the number of a slot that is not open.
    block.slot[0] = previous = carry.slot if carry.is_open else <int64_t>(<uint64_t>1 << 63)
    made[0] = carry.slot
    masks[0] = <uint8_t>mask
    for i in range(1, n + 1):
        here = block.slot[i]
        is_new = here != previous
        previous = here
        k += is_new & mask
        mask = (mask & (is_new - 1)) | (block.tag[i] & (0xFE | is_new))
        made[k] = here
        masks[k] = <uint8_t>mask
        live_clicks += mask & 1
    add_clicks(n, &block.tag[1], counts)
    while last_clicks < n and block.slot[n - last_clicks] == block.slot[n]:
        last_clicks += 1
    if last_clicks == n and block.slot[0] == block.slot[n]:
        last_clicks += carry.clicks
    carry.is_open = 1
    carry.slot = block.slot[n]
    carry.mask = mask >> 1
    carry.clicks = last_clicks
    carry.live = mask & 1
    carry.n_out = first + k
    clicks -= last_clicks
    live_clicks -= carry.live * last_clicks
    counts[COUNT_DEAD_TIME] += clicks - live_clicks
    counts[COUNT_MERGED] += live_clicks - k
    for i in range(k):
        one = masks[i] >> 1
        basis[first + i] = one > 3
        bit[first + i] = (one >> 1 | one >> 3) & 1
        masks[i] = one
        drawn[i] = (one & (one - 1)) != 0
    for i in range(k):
        several[n_several] = <uint16_t>i
        n_several += drawn[i]
    for i in range(n_several):
        draw_outcome(masks[several[i]], first + several[i], &carry.n_random, random_bytes, basis, bit, counts)
    return 0
