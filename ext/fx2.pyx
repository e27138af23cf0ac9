"""Decode the events of the CQT/qcrypto FX2 timestamp card: two little-endian 32-bit words each.

First word: bits 31..24 low bits of the slow counter, 17..14 inputs, 13..9 fast counter (2 ns), 8..0 code of the phase
interpolator; second word: high bits of the slow counter (64 ns). Together 49 bits of 125 ps, with 4 bits of phase.

Source:
    qcrypto, the vendor's reader readevents3 (what it makes of the card's raw words) and its calibrated phase table.
"""

from libc.stdint cimport int16_t, int64_t, uint8_t, uint32_t

# The slow counter is read before it has moved on while the fast counter is below 17: then 64 ns are missing.
# Two words are never a minute apart, as detectors have dark counts; a longer step is a lost byte, or, if it leads to at
# most 10 us before the last word, a step back.
cdef enum:
    FAST_LATE = 17
    SLOW_TICKS = 512
    LONGEST_BACK_TICKS = 80000
    VOIDS = 0
    NO_INPUT = 1
    NO_PHASE = 2

cdef int64_t WRAP_TICKS = <int64_t>1 << 49
cdef int64_t LONGEST_STEP_TICKS = <int64_t>480000000000


cdef struct Progress:
    Py_ssize_t events
    Py_ssize_t words
    Py_ssize_t bad


cdef uint32_t _word(const uint8_t[::1] data, Py_ssize_t at) except? 0 nogil:
    return (
        <uint32_t>data[at] | (<uint32_t>data[at + 1] << 8) | (<uint32_t>data[at + 2] << 16)
        | (<uint32_t>data[at + 3] << 24)
    )


cdef int _decode(
    const uint8_t[::1] data, const int16_t[::1] phase_of, int64_t[::1] state, int64_t[::1] counts,
    int64_t[::1] time_ticks, uint8_t[::1] channel, uint8_t[::1] kind, Progress* progress,
) except -1 nogil:
    cdef Py_ssize_t n_words = data.shape[0] >> 3
    cdef Py_ssize_t capacity = time_ticks.shape[0]
    cdef Py_ssize_t i = 0, k = 0
    cdef int64_t wraps = state[0], last = state[1], raw, step, ticks
    cdef uint32_t low, high, pattern, fast, c
    cdef int16_t phase
    progress.bad = -1
    # Four slots are always written, so a word is begun only while there are four.
    while i < n_words and k + 4 <= capacity:
        low, high = _word(data, 8 * i), _word(data, 8 * i + 4)
        if low == 0 and high == 0:
            counts[VOIDS] += 1
            i += 1
            continue
        fast = (low >> 9) & 31
        phase = phase_of[low & 511]
        if phase < 0:
            counts[NO_PHASE] += 1
            phase = 0
        raw = (<int64_t>high << 17) | ((low >> 24) << 9) | (fast << 4) | phase
        if fast < FAST_LATE:
            raw = (raw + SLOW_TICKS) & (WRAP_TICKS - 1)
        step = (raw - last) & (WRAP_TICKS - 1)
        if last >= 0 and step > LONGEST_STEP_TICKS:
            if step < WRAP_TICKS - LONGEST_BACK_TICKS:
                progress.bad = i
                break
            wraps -= raw > last
        else:
            wraps += raw < last
        last = raw
        ticks = wraps * WRAP_TICKS + raw
        pattern = ((low >> 12) & 12) | ((low >> 16) & 3)
        counts[NO_INPUT] += pattern == 0
        for c in range(4):
            time_ticks[k] = ticks
            channel[k] = <uint8_t>(c + 1)
            kind[k] = 0
            k += (pattern >> c) & 1
        i += 1
    state[0] = wraps
    state[1] = last
    progress.events = k
    progress.words = i
    return 0


def decode_fx2(
    const uint8_t[::1] data not None,
    const int16_t[::1] phase_of not None,
    int64_t[::1] state not None,
    int64_t[::1] counts not None,
    int64_t[::1] time_ticks not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
):
    """Decode whole events into one PHOTON for each input that fired.

    Stops before an event that cannot be true (a time step above a minute), before one that may not fit the outputs
    (fewer than four free slots), and before the last incomplete one. A step back of at most 10 us is kept as it is.

    Args:
        data: Bytes of the stream, beginning at an event.
        phase_of: int16 (512,), phase 0..15 in 125 ps of each code of the interpolator, -1 for an unknown one (taken
            as 0).
        state: int64 (2,), carried from call to call: wraps of the time so far, last time or -1.
        counts: int64 (3,), in and out: void events (all zero), events without an input, unknown phase codes.
        time_ticks: int64 (m,) out, ticks of 125 ps, wraps included.
        channel: uint8 (m,) out, input 1..4.
        kind: uint8 (m,) out, EventKind.

    Returns:
        Photons written, events consumed, and the index of an impossible one or -1.

    Raises:
        ValueError: Lengths do not match.
    """
    cdef Progress progress
    if phase_of.shape[0] != 512 or state.shape[0] != 2 or counts.shape[0] != 3:
        raise ValueError("phase_of must have 512 elements, state 2 and counts 3")
    if channel.shape[0] != time_ticks.shape[0] or kind.shape[0] != time_ticks.shape[0]:
        raise ValueError("time_ticks, channel and kind must have the same length")
    with nogil:
        _decode(data, phase_of, state, counts, time_ticks, channel, kind, &progress)
    return progress.events, progress.words, progress.bad
