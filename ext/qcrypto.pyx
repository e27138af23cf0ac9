"""64-bit event words of the S-Fifteen / CQT time tagger family to detection events.

A word holds the time in its upper bits (54 bits of 1/256 ns on a TDC2, 49 bits of 125 ps on the older cards), bit 4
marks a dummy that the tagger sends so that no roll-over is missed, bits 3..0 say which of four inputs fired.

Source: qcrypto project, remotecrypto/filespec.txt (raw event format) and the description of timestamp7 output.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    PHOTON = 0
    DUMMY = 6

cdef enum:
    PREVIOUS_TICKS = 0
    BASE_TICKS = 1
    DUMMY_RECORDS = 2
    INVALID_RECORDS = 3
    FIRST_INVALID = 4

# Times that add up to more than this are corrupt (a TDC2 needs 256 wraps, half a year, to get there).
cdef int64_t LARGEST_TICKS = <int64_t>1 << 62

# The channel of a pattern with one bit set, else 0.
cdef uint8_t[16] SINGLE_CHANNEL = [0, 1, 2, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]


def decode_words(
    const uint64_t[::1] word not None,
    int time_bits,
    bint high_word_first,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] pattern_count not None,
    int64_t[::1] state not None,
):
    """Decode event words; return the number of events.

    A word with several inputs gives one event each, lowest input first, all at the same time. A dummy gives one
    event on channel 0. A word with no input and no dummy bit gives no event and counts as pattern 0. The tagger's
    counter is unwrapped: a step back by more than half of its range is a wrap, a smaller one is left as it is.

    Args:
        word: uint64 (n,).
        time_bits: 54 or 49.
        high_word_first: The file stores the upper 32 bits first ("legacy" order).
        time: int64 (>= 4 n,), out.
        channel: uint8 (>= 4 n,), out.
        kind: uint8 (>= 4 n,), out.
        pattern_count: int64 (16,), in and out: words per input pattern, without dummies.
        state: int64 (5,), carried between chunks: last raw time or -1, ticks added by wraps, dummies so far, invalid
            words so far, index in this chunk of its first invalid word or -1. A word is invalid, and gives no
            event, if its time is out of range after unwrapping.
    """
    cdef Py_ssize_t n = word.shape[0]
    cdef Py_ssize_t count
    if time_bits not in (49, 54):
        raise ValueError("time_bits is not 49 or 54")
    if min(time.shape[0], channel.shape[0], kind.shape[0]) < 4 * n:
        raise ValueError("an output is shorter than four times word")
    if pattern_count.shape[0] != 16 or state.shape[0] < 5:
        raise ValueError("pattern_count needs 16 numbers and state 5")
    with nogil:
        count = _decode(word, time_bits, high_word_first, time, channel, kind, pattern_count, state)
    return count


cdef Py_ssize_t _decode(
    const uint64_t[::1] word,
    int time_bits,
    bint high_word_first,
    int64_t[::1] time,
    uint8_t[::1] channel,
    uint8_t[::1] kind,
    int64_t[::1] pattern_count,
    int64_t[::1] state,
) except -1 nogil:
    cdef Py_ssize_t i, k = 0
    cdef int bit
    cdef int shift = 64 - time_bits
    cdef int64_t span = <int64_t>1 << time_bits
    cdef int64_t half = span >> 1
    cdef int64_t raw, ticks
    cdef int64_t previous = state[PREVIOUS_TICKS]
    cdef int64_t base = state[BASE_TICKS]
    cdef int64_t dummies = 0
    cdef uint64_t w
    cdef uint8_t single
    cdef unsigned int pattern
    state[FIRST_INVALID] = -1
    for i in range(word.shape[0]):
        w = word[i]
        if high_word_first:
            w = (w << 32) | (w >> 32)
        raw = <int64_t>(w >> shift)
        if previous - raw > half and previous >= 0:
            if base > LARGEST_TICKS - span:
                if state[FIRST_INVALID] < 0:
                    state[FIRST_INVALID] = i
                state[INVALID_RECORDS] += 1
                continue
            base += span
        elif raw - previous > half and base > 0:
            base -= span
        previous = raw
        ticks = base + raw
        pattern = w & 15
        if w & 16:
            time[k] = ticks
            channel[k] = 0
            kind[k] = DUMMY
            k += 1
            dummies += 1
            continue
        pattern_count[pattern] += 1
        single = SINGLE_CHANNEL[pattern]
        if single:
            time[k] = ticks
            channel[k] = single
            kind[k] = PHOTON
            k += 1
            continue
        for bit in range(4):
            if (pattern >> bit) & 1:
                time[k] = ticks
                channel[k] = <uint8_t>(bit + 1)
                kind[k] = PHOTON
                k += 1
    state[PREVIOUS_TICKS] = previous
    state[BASE_TICKS] = base
    state[DUMMY_RECORDS] += dummies
    return k
