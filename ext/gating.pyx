"""Slots of detection events, in exact integer arithmetic, and one outcome a slot.

A clock is four integers. The centre of slot s, in units of 2^-32 ticks, lies at

    ref_ticks * 2^32 + phase_q32 + (s - ref_slot) * period_q32

An event belongs to the slot whose centre is nearest (a tie belongs to the later one) and its residual is its time
minus that centre. No time is ever a floating-point number.

Timing: control flow depends on arrival times, on whether a slot has several clicks and on whether it is live, never on
which detector of a basis clicked.
"""

from libc.stdint cimport int64_t, uint64_t, uint8_t

cdef extern from *:
    ctypedef long long int128 "__int128"
    ctypedef unsigned long long uint128 "unsigned __int128"

cdef enum:
    UNWIRED = 255          # wiring table: no detector here
    KIND_PHOTON = 0        # qkdhw.model.EventKind
    KIND_GAP_BEGIN = 2
    KIND_CLOCK_ERROR = 5   # GAP_BEGIN, GAP_END, MISSED, CLOCK_ERROR: clicks may have been lost

# Places in `state`, carried from chunk to chunk.
cdef enum:
    STATE_OPEN
    STATE_SLOT
    STATE_MASK
    STATE_CLICKS
    STATE_LIVE
    STATE_LAST_CLICK_TICKS
    STATE_RANDOM_USED
    STATE_EMITTED
    STATE_SIZE

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

cdef int64_t NEVER = -(<int64_t>1 << 62)
cdef int64_t TIME_LIMIT = <int64_t>1 << 62
cdef uint64_t SPAN_TICKS = <uint64_t>1 << 30


cdef struct Clock:
    int64_t ref_slot
    int64_t ref_ticks
    int64_t phase_q32
    int64_t period_q32
    uint64_t reciprocal    # floor((2^64 - 1) / period): one multiplication and one correction replace a division
    int64_t anchor_ticks   # an event seen before, its slot, and its distance from that slot's beginning
    int64_t anchor_slot
    int64_t anchor_rest


cdef inline int anchor(Clock* clock, int64_t ticks) except -1 nogil:
    """Move the anchor to `ticks`, in 128 bits: distances from it then fit 64 bits for the next 2^30 ticks."""
    cdef int128 distance = ((<int128>ticks - clock.ref_ticks) << 32) - clock.phase_q32 + (clock.period_q32 >> 1)
    cdef int128 slots = distance / clock.period_q32
    if slots * clock.period_q32 > distance:
        slots -= 1
    clock.anchor_ticks = ticks
    clock.anchor_slot = clock.ref_slot + <int64_t>slots
    clock.anchor_rest = <int64_t>(distance - slots * clock.period_q32)
    return 0


cdef Clock make_clock(int64_t ref_slot, int64_t ref_ticks, int64_t phase_q32, int64_t period_q32):
    cdef Clock clock
    clock.ref_slot = ref_slot
    clock.ref_ticks = ref_ticks
    clock.phase_q32 = phase_q32
    clock.period_q32 = period_q32
    clock.reciprocal = <uint64_t>0xFFFFFFFFFFFFFFFF // <uint64_t>period_q32
    anchor(&clock, ref_ticks)
    return clock


cdef inline int locate(Clock* clock, int64_t ticks, int64_t* slot, uint64_t* rest) except -1 nogil:
    """Find the slot of an event and its distance from the slot's beginning (centre minus half a period)."""
    cdef uint64_t distance, quotient, remainder, over
    if <uint64_t>(ticks - clock.anchor_ticks) >= SPAN_TICKS:
        anchor(clock, ticks)
    distance = (<uint64_t>(ticks - clock.anchor_ticks) << 32) + <uint64_t>clock.anchor_rest
    quotient = <uint64_t>((<uint128>distance * clock.reciprocal) >> 64)
    remainder = distance - quotient * <uint64_t>clock.period_q32
    over = remainder >= <uint64_t>clock.period_q32
    slot[0] = clock.anchor_slot + <int64_t>(quotient + over)
    rest[0] = remainder - over * <uint64_t>clock.period_q32
    return 0


def check_clock(ref_slot, ref_ticks, phase_q32, period_q32):
    """Raise ValueError unless the clock lies where the arithmetic is exact."""
    if not (1 << 33) <= period_q32 < (1 << 60):
        raise ValueError(f"period_q32 is {period_q32}; a slot must be 2 to 2^28 ticks long")
    if not 0 <= phase_q32 < (1 << 32):
        raise ValueError(f"phase_q32 is {phase_q32}, outside 0 .. 2^32 - 1")
    if abs(ref_slot) >= (1 << 61) or abs(ref_ticks) >= (1 << 62):
        raise ValueError(f"clock reference (slot {ref_slot}, tick {ref_ticks}) is out of range")


def assign_slots(
    const int64_t[::1] time_ticks not None,
    int64_t ref_slot,
    int64_t ref_ticks,
    int64_t phase_q32,
    int64_t period_q32,
    int64_t[::1] slot not None,
    int64_t[::1] residual_q32 not None,
):
    """Write each event's slot and residual; return n, or the first index whose time is out of range."""
    cdef Py_ssize_t n = time_ticks.shape[0]
    check_clock(ref_slot, ref_ticks, phase_q32, period_q32)
    if slot.shape[0] != n or residual_q32.shape[0] != n:
        raise ValueError("slot and residual_q32 must be as long as time_ticks")
    cdef Clock clock = make_clock(ref_slot, ref_ticks, phase_q32, period_q32)
    cdef Py_ssize_t done
    with nogil:
        done = assign_all(time_ticks, &clock, slot, residual_q32)
    return done


cdef Py_ssize_t assign_all(
    const int64_t[::1] time_ticks, Clock* clock, int64_t[::1] slot, int64_t[::1] residual_q32
) except -1 nogil:
    cdef Py_ssize_t i
    cdef int64_t ticks
    cdef uint64_t rest
    cdef int64_t half = clock.period_q32 >> 1
    for i in range(time_ticks.shape[0]):
        ticks = time_ticks[i]
        if ticks <= -TIME_LIMIT or ticks >= TIME_LIMIT:
            return i
        locate(clock, ticks, &slot[i], &rest)
        residual_q32[i] = <int64_t>rest - half
    return time_ticks.shape[0]


def reset_state(int64_t[::1] state not None):
    """Make `state` the carry of a stream's beginning: no open slot, no click yet."""
    if state.shape[0] != STATE_SIZE:
        raise ValueError(f"state needs {STATE_SIZE} places")
    state[:] = 0
    state[STATE_LAST_CLICK_TICKS] = NEVER


def gate_events(
    const int64_t[::1] time_ticks not None,
    const uint8_t[::1] channel not None,
    const uint8_t[::1] kind not None,
    const uint8_t[::1] wiring not None,
    int64_t ref_slot,
    int64_t ref_ticks,
    int64_t phase_q32,
    int64_t period_q32,
    int64_t first_slot,
    int64_t half_width_q32,
    int64_t dead_time_q32,
    const uint8_t[::1] random_bytes not None,
    bint flush,
    int64_t[::1] state not None,
    int64_t[::1] slot not None,
    uint8_t[::1] basis not None,
    uint8_t[::1] bit not None,
    int64_t[::1] counts not None,
    int64_t[::1] histogram not None,
):
    """Gate a chunk; return n, or the first index at which time goes backwards (or leaves +-2^62 ticks).

    `state[7]` is then how many slots were written and `state[6]` how many random bytes were used. On a bad index the
    outputs, `state` and `counts` must be thrown away.
    """
    cdef Py_ssize_t n = time_ticks.shape[0]
    check_clock(ref_slot, ref_ticks, phase_q32, period_q32)
    if channel.shape[0] != n or kind.shape[0] != n:
        raise ValueError("time_ticks, channel and kind must have one length")
    if wiring.shape[0] != 256:
        raise ValueError("wiring must have 256 places")
    if slot.shape[0] < n + 1 or basis.shape[0] < n + 1 or bit.shape[0] < n + 1:
        raise ValueError("slot, basis and bit need room for n + 1 outcomes")
    if random_bytes.shape[0] < n // 2 + 2:
        raise ValueError("random_bytes needs n // 2 + 2 bytes")
    if state.shape[0] != STATE_SIZE or counts.shape[0] != COUNT_SIZE:
        raise ValueError(f"state needs {STATE_SIZE} and counts {COUNT_SIZE} places")
    if not 1 <= histogram.shape[0] <= 65536:
        raise ValueError("histogram needs 1 to 65536 bins")
    if not 0 <= half_width_q32 < period_q32 // 2:
        raise ValueError("half_width_q32 must be less than half a slot")
    if not 0 <= dead_time_q32 < (1 << 61):
        raise ValueError("dead_time_q32 is out of range")
    cdef Clock clock = make_clock(ref_slot, ref_ticks, phase_q32, period_q32)
    cdef Py_ssize_t done
    with nogil:
        done = gate_all(
            time_ticks, channel, kind, wiring, &clock, first_slot, half_width_q32, dead_time_q32, random_bytes,
            flush, state, slot, basis, bit, counts, histogram,
        )
    return done


cdef struct OpenSlot:
    int64_t is_open
    int64_t slot
    int64_t mask           # bit 2 * basis + bit of each detector that clicked
    int64_t clicks
    int64_t live


cdef int draw_outcome(
    OpenSlot* current, Py_ssize_t k, Py_ssize_t* n_random, const uint8_t[::1] random_bytes, uint8_t[::1] basis,
    uint8_t[::1] bit, int64_t[::1] counts,
) except -1 nogil:
    """Choose basis, then bit, of a live slot with several clicks; arithmetic only, whichever detectors they were."""
    cdef int64_t mask = current.mask
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
    counts[COUNT_MERGED] += current.clicks - 1
    counts[COUNT_DOUBLE_KEY] += both & (chosen ^ 1)
    counts[COUNT_DOUBLE_TEST] += both & chosen
    counts[COUNT_CROSS_BASIS] += cross
    return 0


cdef inline int close_slot(
    OpenSlot* current, Py_ssize_t* n_out, Py_ssize_t* n_random, const uint8_t[::1] random_bytes,
    int64_t[::1] slot, uint8_t[::1] basis, uint8_t[::1] bit, int64_t[::1] counts,
) except -1 nogil:
    """Write the outcome of the open slot, if it is live."""
    cdef Py_ssize_t k = n_out[0]
    if not current.live:
        counts[COUNT_DEAD_TIME] += current.clicks
        return 0
    slot[k] = current.slot
    if current.clicks == 1:
        basis[k] = (current.mask > 3)
        bit[k] = (current.mask >> 1 | current.mask >> 3) & 1
    else:
        draw_outcome(current, k, n_random, random_bytes, basis, bit, counts)
    n_out[0] = k + 1
    return 0


cdef Py_ssize_t gate_all(
    const int64_t[::1] time_ticks, const uint8_t[::1] channel, const uint8_t[::1] kind, const uint8_t[::1] wiring,
    Clock* clock, int64_t first_slot, int64_t half_width_q32, int64_t dead_time_q32,
    const uint8_t[::1] random_bytes, bint flush, int64_t[::1] state,
    int64_t[::1] slot, uint8_t[::1] basis, uint8_t[::1] bit, int64_t[::1] counts, int64_t[::1] histogram,
) except -1 nogil:
    cdef Py_ssize_t i, n_out = 0, n_random = 0
    cdef int64_t ticks, here, residual, photons = 0, last = state[STATE_LAST_CLICK_TICKS]
    cdef int64_t half = clock.period_q32 >> 1
    cdef uint64_t rest
    cdef uint64_t bins_q64 = <uint64_t>((<uint128>histogram.shape[0] << 64) / <uint128>clock.period_q32)
    cdef uint8_t detector
    cdef OpenSlot current
    current.is_open = state[STATE_OPEN]
    current.slot = state[STATE_SLOT]
    current.mask = state[STATE_MASK]
    current.clicks = state[STATE_CLICKS]
    current.live = state[STATE_LIVE]
    for i in range(time_ticks.shape[0]):
        ticks = time_ticks[i]
        if kind[i] != KIND_PHOTON and not (KIND_GAP_BEGIN <= kind[i] <= KIND_CLOCK_ERROR):
            continue
        if ticks < last or ticks <= NEVER or ticks >= TIME_LIMIT:
            return i
        if kind[i] != KIND_PHOTON:
            counts[COUNT_LOSS_MARKS] += 1
            last = ticks
            continue
        photons += 1
        detector = wiring[channel[i]]
        if detector == UNWIRED:
            counts[COUNT_UNWIRED] += 1
            continue
        locate(clock, ticks, &here, &rest)
        residual = <int64_t>rest - half
        histogram[<Py_ssize_t>((<uint128>rest * bins_q64) >> 64)] += 1
        if here < first_slot:
            counts[COUNT_BEFORE_START] += 1
        elif residual > half_width_q32 or residual < -half_width_q32:
            counts[COUNT_OUTSIDE_WINDOW] += 1
        else:
            if here != current.slot or not current.is_open:
                if current.is_open:
                    if here < current.slot:
                        return i
                    close_slot(&current, &n_out, &n_random, random_bytes, slot, basis, bit, counts)
                current.is_open = 1
                current.slot = here
                current.mask = 0
                current.clicks = 0
                # Live: no click, of any detector, in the dead time before this slot's window opened.
                current.live = <uint64_t>(ticks - last) >= SPAN_TICKS or (
                    ((ticks - last) << 32) - residual - half_width_q32 >= dead_time_q32
                )
            current.mask |= <int64_t>1 << (detector & 3)
            current.clicks += 1
            counts[COUNT_CLICKS + (detector & 3)] += 1
        last = ticks
    if flush and current.is_open:
        close_slot(&current, &n_out, &n_random, random_bytes, slot, basis, bit, counts)
        current.is_open = 0
    counts[COUNT_PHOTONS] += photons
    counts[COUNT_SLOTS] += n_out
    state[STATE_OPEN] = current.is_open
    state[STATE_SLOT] = current.slot
    state[STATE_MASK] = current.mask
    state[STATE_CLICKS] = current.clicks
    state[STATE_LIVE] = current.live
    state[STATE_LAST_CLICK_TICKS] = last
    state[STATE_RANDOM_USED] = n_random
    state[STATE_EMITTED] = n_out
    return time_ticks.shape[0]
