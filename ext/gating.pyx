# distutils: extra_compile_args = -funroll-loops
"""Slots of detection events, in exact integer arithmetic, and one outcome a slot.

A clock is four integers. The centre of slot s, in units of 2^-32 ticks, lies at

    ref_ticks * 2^32 + phase_q32 + (s - ref_slot) * period_q32

An event belongs to the slot whose centre is nearest (a tie belongs to the later one) and its residual is its time
minus that centre. No time is ever a floating-point number.

Events go through in blocks that fit the nearest cache. The usual block holds clicks alone, in order, none before the
first slot: a first pass finds slot and residual and keeps what lies in the window, a second makes one outcome a slot,
both without a branch that depends on the light. Any other block is gated event by event, by the rules as they are told.

Timing: control flow depends on arrival times, on whether a slot has several clicks and on whether it is live, never on
which detector of a basis clicked; nor does an address.
"""

from libc.stdint cimport int64_t, uint64_t, uint8_t

from slot_clock cimport SPAN_TICKS, Clock, anchor, locate, make_clock, uint128
from slot_outcomes cimport (
    BLOCK, COUNT_BEFORE_START, COUNT_LOSS_MARKS, COUNT_OUTSIDE_WINDOW, COUNT_PHOTONS, COUNT_SIZE, COUNT_SLOTS,
    COUNT_UNWIRED, Block, Carry, add_clicks, close_slot, make_outcomes,
)

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void* address) nogil

cdef enum:
    SMALL_BLOCK = 16       # fewest events that are gated together
    AHEAD = 1024           # events that are fetched ahead
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

cdef int64_t NEVER = -(<int64_t>1 << 62)
cdef int64_t TIME_LIMIT = <int64_t>1 << 62


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


cdef struct Rules:
    Clock clock
    uint8_t key_0_input    # inputs of the four detectors
    uint8_t key_1_input
    uint8_t test_0_input
    uint8_t test_1_input
    int64_t first_slot
    int64_t half_width_q32
    int64_t dead_time_q32
    uint64_t bins_q64


cdef Rules make_rules(const uint8_t[::1] wiring) except *:
    """Find the input of each detector, so that no table is looked up at an address that tells a detector."""
    cdef Rules rules
    if wiring.shape[0] != 256:
        raise ValueError("wiring must have 256 places")
    plugged = sorted((wiring[place], place) for place in range(256) if wiring[place] != UNWIRED)
    if [detector for detector, _ in plugged] != [0, 1, 2, 3]:
        raise ValueError("wiring must name each of the detectors 0 to 3 once")
    rules.key_0_input, rules.key_1_input, rules.test_0_input, rules.test_1_input = (place for _, place in plugged)
    return rules


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
    outputs, `state`, `counts` and `histogram` must be thrown away.
    """
    cdef Py_ssize_t n = time_ticks.shape[0]
    check_clock(ref_slot, ref_ticks, phase_q32, period_q32)
    if channel.shape[0] != n or kind.shape[0] != n:
        raise ValueError("time_ticks, channel and kind must have one length")
    cdef Rules rules = make_rules(wiring)
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
    rules.clock = make_clock(ref_slot, ref_ticks, phase_q32, period_q32)
    rules.first_slot = first_slot
    rules.half_width_q32 = half_width_q32
    rules.dead_time_q32 = dead_time_q32
    rules.bins_q64 = <uint64_t>((<uint128>histogram.shape[0] << 64) / <uint128>period_q32)
    cdef Py_ssize_t done
    with nogil:
        done = gate_all(
            time_ticks, channel, kind, &rules, random_bytes, flush, state, slot, basis, bit, counts, histogram
        )
    return done


cdef inline uint8_t mark_of(Rules* rules, uint8_t channel) noexcept nogil:
    """Return 2 << detector, or 0 without one; arithmetic only."""
    return (
        (channel == rules.key_0_input) << 1 | (channel == rules.key_1_input) << 2
        | (channel == rules.test_0_input) << 3 | (channel == rules.test_1_input) << 4
    )


cdef Py_ssize_t gate_all(
    const int64_t[::1] time_ticks, const uint8_t[::1] channel, const uint8_t[::1] kind, Rules* rules,
    const uint8_t[::1] random_bytes, bint flush, int64_t[::1] state,
    int64_t[::1] slot, uint8_t[::1] basis, uint8_t[::1] bit, int64_t[::1] counts, int64_t[::1] histogram,
) except -1 nogil:
    cdef Py_ssize_t begin = 0, end, done, n = time_ticks.shape[0]
    cdef Carry carry
    carry.is_open = state[STATE_OPEN]
    carry.slot = state[STATE_SLOT]
    carry.mask = state[STATE_MASK]
    carry.clicks = state[STATE_CLICKS]
    carry.live = state[STATE_LIVE]
    carry.last_ticks = state[STATE_LAST_CLICK_TICKS]
    carry.n_out = carry.n_random = 0
    while begin < n:
        done = gate_block(
            begin, time_ticks, channel, kind, rules, random_bytes, &carry, slot, basis, bit, counts, histogram
        )
        if done == 0:
            end = min(begin + BLOCK, n)
            done = gate_each(
                begin, end, time_ticks, channel, kind, rules, random_bytes, &carry, slot, basis, bit, counts, histogram
            )
            if done < end:
                return done
            done -= begin
        begin += done
    if flush:
        close_slot(&carry, random_bytes, slot, basis, bit, counts)
    counts[COUNT_SLOTS] += carry.n_out
    state[STATE_OPEN] = carry.is_open
    state[STATE_SLOT] = carry.slot
    state[STATE_MASK] = carry.mask
    state[STATE_CLICKS] = carry.clicks
    state[STATE_LIVE] = carry.live
    state[STATE_LAST_CLICK_TICKS] = carry.last_ticks
    state[STATE_RANDOM_USED] = carry.n_random
    state[STATE_EMITTED] = carry.n_out
    return n


cdef Py_ssize_t gate_each(
    Py_ssize_t begin, Py_ssize_t end, const int64_t[::1] time_ticks, const uint8_t[::1] channel,
    const uint8_t[::1] kind, Rules* rules, const uint8_t[::1] random_bytes, Carry* carry,
    int64_t[::1] slot, uint8_t[::1] basis, uint8_t[::1] bit, int64_t[::1] counts, int64_t[::1] histogram,
) except -1 nogil:
    """Gate any block, event by event; return `end` or the first bad index."""
    cdef Py_ssize_t i
    cdef int64_t ticks, here, residual, half = rules.clock.period_q32 >> 1
    cdef uint64_t rest
    cdef uint8_t mark
    for i in range(begin, end):
        ticks = time_ticks[i]
        if kind[i] != KIND_PHOTON and not (KIND_GAP_BEGIN <= kind[i] <= KIND_CLOCK_ERROR):
            continue
        if ticks < carry.last_ticks or ticks <= NEVER or ticks >= TIME_LIMIT:
            return i
        if kind[i] != KIND_PHOTON:
            counts[COUNT_LOSS_MARKS] += 1
            carry.last_ticks = ticks
            continue
        counts[COUNT_PHOTONS] += 1
        mark = mark_of(rules, channel[i])
        if mark == 0:
            counts[COUNT_UNWIRED] += 1
            continue
        locate(&rules.clock, ticks, &here, &rest)
        residual = <int64_t>rest - half
        histogram[<Py_ssize_t>((<uint128>rest * rules.bins_q64) >> 64)] += 1
        if here < rules.first_slot:
            counts[COUNT_BEFORE_START] += 1
        elif residual > rules.half_width_q32 or residual < -rules.half_width_q32:
            counts[COUNT_OUTSIDE_WINDOW] += 1
        else:
            if here != carry.slot or not carry.is_open:
                if carry.is_open and here < carry.slot:
                    return i
                close_slot(carry, random_bytes, slot, basis, bit, counts)
                carry.is_open = 1
                carry.slot = here
                carry.mask = 0
                carry.clicks = 0
                # Live: no click, of any detector, in the dead time before this slot's window opened.
                carry.live = <uint64_t>(ticks - carry.last_ticks) >= SPAN_TICKS or (
                    ((ticks - carry.last_ticks) << 32) - residual - rules.half_width_q32 >= rules.dead_time_q32
                )
            carry.mask |= mark >> 1
            carry.clicks += 1
            add_clicks(1, &mark, counts)
        carry.last_ticks = ticks
    return end


cdef Py_ssize_t gate_block(
    Py_ssize_t begin, const int64_t[::1] time_ticks, const uint8_t[::1] channel,
    const uint8_t[::1] kind, Rules* rules, const uint8_t[::1] random_bytes, Carry* carry,
    int64_t[::1] slot, uint8_t[::1] basis, uint8_t[::1] bit, int64_t[::1] counts, int64_t[::1] histogram,
) except -1 nogil:
    """Gate some of the next events, if they are clicks in order; return how many, or 0: go event by event."""
    cdef Block block
    cdef Py_ssize_t i, n_wired, n_inside, n = min(<Py_ssize_t>BLOCK, time_ticks.shape[0] - begin)
    cdef const int64_t* ticks = &time_ticks[begin]
    cdef int64_t first = time_ticks[begin]
    cdef uint64_t steps = 0
    cdef uint8_t kinds = 0, unwired = 0
    while n > 1 and <uint64_t>time_ticks[begin + n - 1] - <uint64_t>first >= SPAN_TICKS:
        n >>= 1
    n_wired = n
    if n < SMALL_BLOCK or not (NEVER < first < TIME_LIMIT - <int64_t>SPAN_TICKS) or first < carry.last_ticks:
        return 0
    for i in range(n):
        kinds |= kind[begin + i]
    for i in range(n - 1):
        steps |= <uint64_t>time_ticks[begin + i + 1] - <uint64_t>time_ticks[begin + i]
    anchor(&rules.clock, first)
    if kinds != KIND_PHOTON or steps >= SPAN_TICKS or rules.clock.anchor_slot < rules.first_slot:
        return 0
    for i in range(n):
        block.mark[i] = mark_of(rules, channel[begin + i])
    for i in range(n):
        unwired |= block.mark[i] == 0
    if unwired:
        n_wired = drop_unwired(n, &time_ticks[begin], &block)
        ticks = block.ticks
    n_inside = keep_inside(n_wired, ticks, rules, carry.last_ticks, &block, histogram)
    if n_inside > 0 and carry.is_open and block.slot[1] < carry.slot:
        return 0  # the clock was set back: event by event finds which click is bad
    counts[COUNT_PHOTONS] += n
    counts[COUNT_UNWIRED] += n - n_wired
    counts[COUNT_OUTSIDE_WINDOW] += n_wired - n_inside
    if n_wired > 0:
        carry.last_ticks = ticks[n_wired - 1]
    if n_inside > 0:
        make_outcomes(n_inside, &block, random_bytes, carry, slot, basis, bit, counts)
    return n


cdef Py_ssize_t drop_unwired(Py_ssize_t n, const int64_t* time_ticks, Block* block) except -1 nogil:
    """Move the clicks that have a detector together; return how many."""
    cdef Py_ssize_t i, k = 0
    cdef uint8_t mark
    for i in range(n):
        mark = block.mark[i]
        block.ticks[k] = time_ticks[i]
        block.mark[k] = mark
        k += mark != 0
    return k


cdef Py_ssize_t keep_inside(
    Py_ssize_t n, const int64_t* time_ticks, Rules* rules, int64_t last_ticks, Block* block, int64_t[::1] histogram
) except -1 nogil:
    """Find slots, bins and live clicks, keep those in the window from place 1 on, return how many."""
    cdef Py_ssize_t i, k = 1
    cdef Clock clock = rules.clock
    cdef int64_t period = clock.period_q32, half = period >> 1
    # Distances are from the beginning of the anchor's slot; `before` is that of the last click, at most 2^30 ticks ago.
    cdef int64_t before = clock.anchor_rest - (min(clock.anchor_ticks - last_ticks, <int64_t>SPAN_TICKS) << 32)
    cdef int64_t closed = rules.dead_time_q32 + rules.half_width_q32 - half
    cdef uint64_t base = <uint64_t>clock.anchor_rest - (<uint64_t>clock.anchor_ticks << 32)
    cdef uint64_t opens = <uint64_t>(half - rules.half_width_q32), width = 2 * <uint64_t>rules.half_width_q32
    cdef uint64_t magic = clock.magic, bins_q64 = rules.bins_q64, distance, quotient, rest
    cdef int64_t begins, anchor_slot = clock.anchor_slot
    cdef int shift = clock.shift
    for i in range(n):
        prefetch(&time_ticks[i] + AHEAD)
        distance = (<uint64_t>time_ticks[i] << 32) + base
        quotient = <uint64_t>((<uint128>distance * magic) >> 64) >> shift
        begins = <int64_t>quotient * period
        rest = distance - <uint64_t>begins
        histogram[<Py_ssize_t>((<uint128>rest * bins_q64) >> 64)] += 1
        block.slot[k] = anchor_slot + <int64_t>quotient
        block.tag[k] = block.mark[i] | (begins - before >= closed)
        before = <int64_t>distance
        k += rest - opens <= width
    return k - 1
