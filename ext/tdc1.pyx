"""Decode the S-Fifteen TDC1's stream of 32-bit little-endian words.

Source:
    S-Fifteen TDC1 documentation, "Timestamp mode": bits 31..5 time in 2 ns, bit 4 dummy, bits 3..0 input pattern.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

# The time field wraps after 2^27 ticks of 2 ns. The unit sends a dummy about every 140 ms when idle, so two words are
# never 200 ms apart; a longer step is a lost byte, or, if it leads to at most 10 us before the last word, a step back.
cdef enum:
    WRAP_TICKS = 1 << 27
    LONGEST_STEP_TICKS = 100000000
    LONGEST_BACK_TICKS = 5000
    KIND_PHOTON = 0
    KIND_DUMMY = 6


cdef struct Progress:
    Py_ssize_t events
    Py_ssize_t words
    Py_ssize_t bad


cdef int _decode(
    const uint8_t[::1] data, int64_t[::1] state, int64_t[::1] time_ticks, uint8_t[::1] channel, uint8_t[::1] kind,
    Progress* progress,
) except -1 nogil:
    cdef Py_ssize_t n_words = data.shape[0] >> 2
    cdef Py_ssize_t capacity = time_ticks.shape[0]
    cdef Py_ssize_t i = 0, k = 0
    cdef int64_t rollovers = state[0], last = state[1], raw, ticks, step
    cdef uint32_t word, pattern, dummy, c
    progress.bad = -1
    # Four slots are always written, so a word is begun only while there are four.
    while i < n_words and k + 4 <= capacity:
        word = (
            <uint32_t>data[4 * i] | (<uint32_t>data[4 * i + 1] << 8)
            | (<uint32_t>data[4 * i + 2] << 16) | (<uint32_t>data[4 * i + 3] << 24)
        )
        raw = word >> 5
        dummy = (word >> 4) & 1
        pattern = word & 15
        step = (raw - last) & (WRAP_TICKS - 1)
        if (pattern == 0 and dummy == 0) or (
            last >= 0 and step > LONGEST_STEP_TICKS and step < WRAP_TICKS - LONGEST_BACK_TICKS
        ):
            progress.bad = i
            break
        if last >= 0 and step > LONGEST_STEP_TICKS:
            rollovers -= raw > last  # back over a wrap
        else:
            rollovers += raw < last
        last = raw
        ticks = rollovers * WRAP_TICKS + raw
        if dummy:
            time_ticks[k] = ticks
            channel[k] = 0
            kind[k] = KIND_DUMMY
            k += 1
        else:
            # Patterns are random: writing always and advancing by the bit avoids mispredicted branches.
            for c in range(4):
                time_ticks[k] = ticks
                channel[k] = <uint8_t>(c + 1)
                kind[k] = KIND_PHOTON
                k += (pattern >> c) & 1
        i += 1
    state[0] = rollovers
    state[1] = last
    progress.events = k
    progress.words = i
    return 0


def decode_tdc1(
    const uint8_t[::1] data not None,
    int64_t[::1] state not None,
    int64_t[::1] time_ticks not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
):
    """Decode whole words into events: one PHOTON for each set pattern bit, one DUMMY for each dummy word.

    Stops before a word that cannot be true (no input and no dummy, or a time step above 200 ms), before a word that
    may not fit the outputs (fewer than four free slots), and before the last incomplete word. A step back of at most
    10 us is kept as it is.

    Args:
        data: Bytes of the stream, beginning at a word.
        state: int64 (2,), carried from call to call: wraps of the time field so far, last time field or -1.
        time_ticks: int64 (m,) out, ticks of 2 ns since the field's zero, wraps included.
        channel: uint8 (m,) out, input 1..4; 0 for a dummy.
        kind: uint8 (m,) out, EventKind.

    Returns:
        Events written, words consumed, and the index of an impossible word or -1.

    Raises:
        ValueError: Lengths do not match.
    """
    cdef Progress progress
    if state.shape[0] != 2:
        raise ValueError("state must have 2 elements")
    if channel.shape[0] != time_ticks.shape[0] or kind.shape[0] != time_ticks.shape[0]:
        raise ValueError("time_ticks, channel and kind must have the same length")
    with nogil:
        _decode(data, state, time_ticks, channel, kind, &progress)
    return progress.events, progress.words, progress.bad
