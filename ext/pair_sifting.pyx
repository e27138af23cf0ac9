"""Sifting of an entangled source's pairs at the site that does not announce.

The peer's announcement (rice.pyx has the coding) is decoded block by block into the first-level cache; per block, its
times are laid on the own stream (windows), then the few that have an event near are matched.

Rule of matching. Own events within the window of an announced detection are its candidates. Detections choose in the
order in which they were announced: each takes the nearest candidate that is later in the stream than all that were
taken (the earlier one of two at the same distance). Nothing else chooses.

Timing: detectors are read at matched positions only, bits are written always and the index advances by bases. Neither
control flow nor an address depends on a bit value.
"""

from bit_stream cimport bits_at, trailing_zeros
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

cdef extern from *:
    ctypedef long long int128 "__int128"

cdef enum:  # places in `state`
    SERVO_Q32 = 0  # correction of the offset, ticks / 2^32
    DRIFT_Q48 = 1  # correction of the rate, ticks a unit / 2^48
    REFERENCE = 2  # unit at which the two were set
    CURSOR = 3  # own event: all before it lie before every later window
    FREE = 4  # own event: the first that was not taken and has none taken after it
    BIT = 5  # place in the message
    UNIT = 6  # time of the last decoded detection
    DECODED = 7  # detections that are decoded
    BLOCK_SIZE = 8  # of them, in the present block
    RESOLVED = 9  # of these, done
    DISTANCES = 10  # sum over the block's pairs within the tracking window
    PAIRS = 11  # how many these are
    N_KEPT = 12
    N_KEY = 13
    N_TEST = 14
    N_STATE = 15

cdef enum:  # places in `counts`
    MATCHED = 0
    SEVERAL = 1
    CONTESTED = 2
    EDGE = 3
    N_COUNTS = 4

cdef enum:
    BLOCK = 1024
    ESCAPE = 24

# The servo moves by at most this; and its rate by one part of this.
cdef int64_t LARGEST_SERVO_Q32 = <int64_t>1 << 62
cdef int64_t LARGEST_DRIFT = 1 << 13


cdef struct Rule:
    int64_t rate_q48  # own ticks a unit
    int64_t offset  # ticks
    int64_t window  # half width, ticks
    int64_t tracking  # half width, ticks
    int64_t edge  # distances above count as accidental, ticks
    int64_t gain_q32  # servo: correction per tick of summed distances


def check_events(const int64_t[::1] ticks not None, const uint8_t[::1] detectors not None, int64_t before):
    """Say whether times do not decrease, from `before` on, up to 2^61, and all detectors are below 4."""
    if detectors.shape[0] != ticks.shape[0]:
        raise ValueError("ticks and detectors must have one length")
    cdef int good
    with nogil:
        good = check(ticks, detectors, before)
    return good == 1


cdef int check(const int64_t[::1] ticks, const uint8_t[::1] detectors, int64_t before) except -1 nogil:
    cdef Py_ssize_t i, n = ticks.shape[0]
    cdef uint8_t any_detector = 0
    cdef uint64_t back = 0
    if n == 0:
        return 1
    if ticks[0] < before or ticks[0] < -(<int64_t>1 << 61) or ticks[n - 1] > (<int64_t>1 << 61):
        return 0
    for i in range(n):
        any_detector |= detectors[i]
    for i in range(1, n):
        # Differences wrap without harm: one of them is negative unless all times lie between the first and the last.
        back |= <uint64_t>ticks[i] - <uint64_t>ticks[i - 1]
    return any_detector < 4 and back >> 63 == 0


def sift_announced(
    const uint8_t[::1] message not None,
    int64_t n_detections,
    int64_t limit,
    const int64_t[::1] ticks not None,
    const uint8_t[::1] detectors not None,
    int64_t rate_q48,
    int64_t offset,
    int64_t window,
    int64_t tracking,
    int64_t edge,
    int64_t gain_q32,
    int64_t[::1] state not None,
    int64_t[::1] block_time not None,
    uint8_t[::1] block_basis not None,
    int64_t[::1] kept not None,
    uint8_t[::1] key_bits not None,
    uint8_t[::1] test_bits not None,
    int64_t[::1] counts not None,
):
    """Decode and match as far as the own events reach.

    Args:
        message: uint8 (m + 8,), the announcement and 8 bytes after it.
        n_detections: How many it announces.
        limit: Largest time in units that it may hold.
        ticks, detectors: int64 and uint8 (n,), own events that check_events() accepts.
        rate_q48: Own ticks a unit, in 2^-48; positive.
        offset: Own ticks at unit 0.
        window, tracking: Half widths in ticks, window <= tracking < 2^20.
        edge: Pairs at distances above are counted, window <= edge <= tracking.
        gain_q32: 2^12 .. 2^22, or 0 for no servo.
        state: int64 (15,), carried; see the enum above. For each message all but the first five start at 0, BIT at
            the end of the header and UNIT at the message's start.
        block_time, block_basis: int64 and uint8 (1024,), carried.
        kept: int64 (n_detections,), out: indices of detections in the message, state[12] of them.
        key_bits, test_bits: uint8 (n_detections,), out, state[13] and state[14] of them.
        counts: int64 (4,), added to: detections matched, with several candidates, with candidates that were all
            taken; pairs at distances above edge and up to tracking.

    Returns:
        1 if the message is done, 0 if later own events are needed, or -1 - offset of its first wrong byte.
    """
    if message.shape[0] < 8 or ticks.shape[0] != detectors.shape[0]:
        raise ValueError("message needs 8 bytes after it, and ticks and detectors one length")
    if state.shape[0] != N_STATE or counts.shape[0] != N_COUNTS:
        raise ValueError("state needs 15 places and counts 4")
    if block_time.shape[0] != BLOCK or block_basis.shape[0] != BLOCK:
        raise ValueError("a block has 1024 places")
    if min(kept.shape[0], key_bits.shape[0], test_bits.shape[0]) < n_detections:
        raise ValueError("every output needs a place for each detection")
    if not (0 <= window <= edge <= tracking < 1 << 20 and rate_q48 > 0 and 0 <= gain_q32 <= 1 << 22):
        raise ValueError("rate, window, edge, tracking or gain is out of range")
    if limit >= <int64_t>1 << 61:
        raise ValueError("limit is out of range")
    cdef int64_t resolved = state[DECODED] - state[BLOCK_SIZE] + state[RESOLVED]
    if not (
        0 <= state[CURSOR] <= ticks.shape[0]
        and 0 <= state[FREE] <= ticks.shape[0]
        and state[BIT] >= 0
        and 0 <= state[RESOLVED] <= state[BLOCK_SIZE] <= min(BLOCK, state[DECODED])
        and state[DECODED] <= n_detections
        and 0 <= min(state[N_KEPT], state[N_KEY], state[N_TEST])
        and max(state[N_KEPT], state[N_KEY], state[N_TEST]) <= resolved
    ):
        raise ValueError("state is out of range")
    cdef Rule rule = Rule(rate_q48, offset, window, tracking, edge, gain_q32)
    cdef int64_t done
    with nogil:
        done = sift(
            message, n_detections, limit, ticks, detectors, &rule, state, block_time, block_basis, kept, key_bits,
            test_bits, counts,
        )
    return done if done >= 0 else done + 1


cdef int64_t sift(
    const uint8_t[::1] message, int64_t n_detections, int64_t limit, const int64_t[::1] ticks,
    const uint8_t[::1] detectors, Rule* rule, int64_t[::1] state, int64_t[::1] block_time, uint8_t[::1] block_basis,
    int64_t[::1] kept, uint8_t[::1] key_bits, uint8_t[::1] test_bits, int64_t[::1] counts,
) except -1 nogil:
    """As sift_announced, but -2 - offset of the wrong byte."""
    cdef int64_t bad, end = 8 * (message.shape[0] - 8)
    cdef Py_ssize_t n_near
    cdef int32_t[BLOCK] near_detection
    cdef int64_t[BLOCK] near_event
    while True:
        if state[RESOLVED] == state[BLOCK_SIZE]:
            steer(rule, state)
            if state[DECODED] == n_detections:
                bad = padding(message, state[BIT], end)
                return 1 if bad < 0 else -2 - bad
            bad = decode_block(message, n_detections, limit, end, rule, state, block_time, block_basis)
            if bad >= 0:
                return -2 - bad
        n_near = lay(ticks, rule, state, block_time, near_detection, near_event)
        match(
            ticks, detectors, rule, state, block_time, block_basis, n_near, near_detection, near_event, kept, key_bits,
            test_bits, counts,
        )
        if state[RESOLVED] < state[BLOCK_SIZE]:
            return 0


cdef int steer(Rule* rule, int64_t[::1] state) except -1 nogil:
    """Move offset and rate by the block's distances: by n / N and (n / 4 N)^2 of their mean, n pairs, N = 2^32 / gain.

    The offset's step is at most the tracking window. The rate's is per unit of the time since the last step.
    """
    cdef int64_t most = (rule.tracking << 32) // rule.gain_q32 if rule.gain_q32 else 0
    cdef int64_t distances = clamp(state[DISTANCES], most), span = state[UNIT] - state[REFERENCE]
    cdef int64_t pairs = min(state[PAIRS], BLOCK)
    cdef int128 drift = (<int128>distances * pairs * rule.gain_q32) * rule.gain_q32
    state[SERVO_Q32] = clamp(
        state[SERVO_Q32] + distances * rule.gain_q32 + ((<int128>state[DRIFT_Q48] * span) >> 16), LARGEST_SERVO_Q32
    )
    if span > 0:
        state[DRIFT_Q48] = clamp(state[DRIFT_Q48] + drift / (<int128>span << 20), rule.rate_q48 // LARGEST_DRIFT)
    state[REFERENCE] = state[UNIT]
    state[DISTANCES] = state[PAIRS] = 0
    return 0


cdef inline int64_t clamp(int128 value, int64_t most) except? -1 nogil:
    return -most if value < -most else most if value > most else <int64_t>value


cdef int64_t padding(const uint8_t[::1] message, int64_t bit, int64_t end) except -2 nogil:
    """The first byte that is too many or not zero after the last number, or -1."""
    if bit & 7 and message[bit >> 3] >> (bit & 7):
        return bit >> 3
    return (bit + 7) >> 3 if bit + 8 <= end else -1


cdef inline bint read_detection(
    const uint8_t[::1] message, int64_t* bit, int64_t end, int k, uint64_t* gap, uint8_t* basis
) except -1 nogil:
    """Read a gap and a basis and go on by them; return whether they are coded as they must be."""
    cdef uint64_t word
    cdef int q
    if bit[0] >= end:
        return False
    word = bits_at(&message[bit[0] >> 3], bit[0] & 7)
    q = trailing_zeros(word | <uint64_t>1 << ESCAPE)
    if q < ESCAPE:
        word >>= q + 1
        gap[0] = (<uint64_t>q << k) + (word & ((<uint64_t>1 << k) - 1))
        bit[0] += q + 2 + k
        basis[0] = (word >> k) & 1
        return True
    gap[0] = (word >> ESCAPE) & 0x7FFFFFFF
    bit[0] += ESCAPE + 31
    if bit[0] + 32 > end:
        return False
    word = bits_at(&message[bit[0] >> 3], bit[0] & 7)
    gap[0] |= (word & 0x7FFFFFFF) << 31
    bit[0] += 32
    basis[0] = (word >> 31) & 1
    return gap[0] >> k >= ESCAPE


def read_times(
    const uint8_t[::1] message not None, int64_t bit, int64_t first, int64_t limit, int64_t[::1] time not None
):
    """Read the times of an announcement alone, as `sift_announced` would.

    Args:
        message: With 8 bytes more than was received.
        bit: Where its detections begin.
        first: Time from which the first gap counts.
        limit: Largest time.
        time: Output, as long as it has detections.

    Returns:
        -1, or the offset of the byte that is wrong.

    Raises:
        ValueError: The message is shorter than that, or `bit` is not in it.
    """
    if message.shape[0] < 8 or not 0 <= bit <= 8 * (message.shape[0] - 8):
        raise ValueError("message: give 8 bytes more, and a bit in it")
    cdef int64_t wrong
    with nogil:
        wrong = read_all(message, bit, 8 * (message.shape[0] - 8), first, limit, time)
    return wrong


cdef int64_t read_all(
    const uint8_t[::1] message, int64_t bit, int64_t end, int64_t unit, int64_t limit, int64_t[::1] time
) except -2 nogil:
    cdef int64_t i, begin, n = time.shape[0]
    cdef uint64_t gap = 0
    cdef uint8_t basis = 0
    cdef int k = 0
    for i in range(n):
        if i % BLOCK == 0:
            if bit + 5 >= end:
                return bit >> 3
            k = <int>(bits_at(&message[bit >> 3], bit & 7) & 31)
            bit += 5
        begin = bit
        if not read_detection(message, &bit, end, k, &gap, &basis):
            return begin >> 3
        unit += <int64_t>gap
        if bit > end or unit > limit:
            return begin >> 3
        time[i] = unit
    return padding(message, bit, end)


cdef int64_t decode_block(
    const uint8_t[::1] message, int64_t n_detections, int64_t limit, int64_t end, Rule* rule, int64_t[::1] state,
    int64_t[::1] block_time, uint8_t[::1] block_basis,
) except -2 nogil:
    """Write the own ticks and bases of the next block; return -1, or the byte in which the first wrong number begins."""
    cdef int64_t rate_q48 = rule.rate_q48 + state[DRIFT_Q48]
    cdef int128 origin = rule.offset * (<int128>1 << 48) + state[SERVO_Q32] * (<int128>1 << 16) + (rule.rate_q48 >> 1)
    cdef int64_t n = min(n_detections - state[DECODED], BLOCK), i, unit = state[UNIT], bit = state[BIT], begin = bit
    cdef uint64_t gap = 0
    cdef int k
    origin -= <int128>state[REFERENCE] * state[DRIFT_Q48]
    if bit + 5 >= end:
        return bit >> 3
    k = <int>(bits_at(&message[bit >> 3], bit & 7) & 31)
    bit += 5
    for i in range(n):
        begin = bit
        if not read_detection(message, &bit, end, k, &gap, &block_basis[i]):
            return begin >> 3
        unit += <int64_t>gap
        if bit > end or unit > limit:
            return begin >> 3
        block_time[i] = <int64_t>((<int128>unit * rate_q48 + origin) >> 48)
    state[UNIT] = unit
    state[BIT] = bit
    state[DECODED] += n
    state[BLOCK_SIZE] = n
    state[RESOLVED] = 0
    return -1


cdef Py_ssize_t lay(
    const int64_t[::1] ticks, Rule* rule, int64_t[::1] state, int64_t[::1] block_time, int32_t* near_detection,
    int64_t* near_event,
) except -1 nogil:
    """Find, for each detection whose window the own stream has passed, the first own event in its tracking window.

    Write those that have one; return how many. Four parts of the block are scanned in turns, so that the processor
    need not wait for one place to look for the next. The last own event lies beyond each window: it ends every scan.
    """
    cdef Py_ssize_t n = ticks.shape[0], n_near = 0, p0 = state[CURSOR], p1, p2, p3
    cdef int64_t tracking = rule.tracking, begin = state[RESOLVED], end = begin, size = state[BLOCK_SIZE], part, i
    while end < size and n and block_time[end] + tracking < ticks[n - 1]:
        end += 1
    part = (end - begin) // 4
    if part:
        p1 = gallop(ticks, p0, block_time[begin + part] - tracking)
        p2 = gallop(ticks, p1, block_time[begin + 2 * part] - tracking)
        p3 = gallop(ticks, p2, block_time[begin + 3 * part] - tracking)
        for i in range(begin, begin + part):
            p0 = near_event[i] = advance(ticks, n, p0, block_time[i] - tracking)
            p1 = near_event[i + part] = advance(ticks, n, p1, block_time[i + part] - tracking)
            p2 = near_event[i + 2 * part] = advance(ticks, n, p2, block_time[i + 2 * part] - tracking)
            p3 = near_event[i + 3 * part] = advance(ticks, n, p3, block_time[i + 3 * part] - tracking)
        p0 = p3
    for i in range(begin + 4 * part, end):
        p0 = near_event[i] = advance(ticks, n, p0, block_time[i] - tracking)
    for i in range(begin, end):
        near_detection[n_near] = <int32_t>i
        p1 = near_event[n_near] = near_event[i]  # n_near <= i
        n_near += ticks[p1] <= block_time[i] + tracking
    if end < size:
        p0 = gallop(ticks, p0, block_time[end] - tracking)
    state[CURSOR] = p0
    state[RESOLVED] = end
    return n_near


cdef inline Py_ssize_t advance(const int64_t[::1] ticks, Py_ssize_t n, Py_ssize_t p, int64_t low) except -1 nogil:
    """The first of the own events p .. n - 1 that is not before low; one is not. It is near."""
    cdef uint64_t less
    cdef int e
    while p + 8 <= n:
        less = 0
        for e in range(8):
            less += <uint64_t>(ticks[p + e] - low) >> 63
        p += less
        if less < 8:
            return p
    while ticks[p] < low:
        p += 1
    return p


cdef Py_ssize_t gallop(const int64_t[::1] ticks, Py_ssize_t p, int64_t low) except -1 nogil:
    """The first of the own events p .. that is not before low, or how many there are. It may be far."""
    cdef Py_ssize_t n = ticks.shape[0], step = 8, middle
    while p + step < n and ticks[p + step] < low:
        p += step + 1
        step *= 2
    n = min(n, p + step)
    while p < n:
        middle = (p + n) >> 1
        if ticks[middle] < low:
            p = middle + 1
        else:
            n = middle
    return p


cdef int match(
    const int64_t[::1] ticks, const uint8_t[::1] detectors, Rule* rule, int64_t[::1] state, int64_t[::1] block_time,
    uint8_t[::1] block_basis, Py_ssize_t n_near, int32_t* near_detection, int64_t* near_event, int64_t[::1] kept,
    uint8_t[::1] key_bits, uint8_t[::1] test_bits, int64_t[::1] counts,
) except -1 nogil:
    """Apply the rule of matching to the detections that have an own event near, and write what is kept."""
    cdef Py_ssize_t m, j, best, n_kept = state[N_KEPT], n_key = state[N_KEY], n_test = state[N_TEST]
    cdef int64_t i, time, distance, size, least, free = state[FREE], distances = state[DISTANCES], pairs = state[PAIRS], candidates
    cdef int64_t block_begin = state[DECODED] - state[BLOCK_SIZE]
    cdef uint8_t detector, same, basis, closer
    for m in range(n_near):
        i = near_detection[m]
        j = near_event[m]
        time = block_time[i]
        best = j
        least = rule.window + 1
        candidates = 0
        while ticks[j] <= time + rule.tracking:
            distance = ticks[j] - time
            size = -distance if distance < 0 else distance
            distances += distance
            pairs += 1
            candidates += size <= rule.window
            counts[EDGE] += size > rule.edge
            closer = (size < least) & (j >= free)
            best = j if closer else best
            least = size if closer else least
            j += 1
        detector = detectors[best]
        basis = block_basis[i]
        closer = least <= rule.window
        free = best + 1 if closer else free
        same = closer & ((detector >> 1) == basis)
        kept[n_kept] = block_begin + i
        key_bits[n_key] = detector & 1
        test_bits[n_test] = detector & 1
        n_kept += same
        n_key += same & (basis ^ 1)
        n_test += same & basis
        counts[MATCHED] += closer
        counts[SEVERAL] += candidates > 1
        counts[CONTESTED] += (candidates > 0) & (closer ^ 1)
    state[FREE] = free
    state[N_KEPT] = n_kept
    state[N_KEY] = n_key
    state[N_TEST] = n_test
    state[DISTANCES] = distances
    state[PAIRS] = pairs
    return 0
