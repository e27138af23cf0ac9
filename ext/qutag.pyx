"""quTAG and quTAU records to detection events.

BINARY records are 8 bytes of time and 2 bytes of channel, COMPRESSED ones 40 bits: 37 bits of time (low), 3 bits of
channel; all little-endian and unaligned.

Source: qutools, quTAG manual, file formats (BINARY, COMPRESSED).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    INVALID_RECORDS = 0
    FIRST_INVALID = 1

cdef enum:
    PREVIOUS_TICKS = 0
    BASE_TICKS = 1
    INVALID_COMPRESSED = 2
    FIRST_INVALID_COMPRESSED = 3

cdef enum:
    RECORD_BYTES = 10
    COMPRESSED_BYTES = 5
    COMPRESSED_TIME_BITS = 37
    PHOTON = 0
    INVALID = 255

# More wraps than this are no recording (at 81 ps it is six years).
cdef int64_t LARGEST_TICKS = <int64_t>1 << 61


def decode_records(
    const uint8_t[::1] data not None,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
):
    """Decode whole BINARY records, one event each; return the number of events.

    A record whose time is beyond int64 or whose channel is above 255 is invalid: its event has kind 255 (INVALID).

    Args:
        data: uint8 (10 n,).
        time: int64 (>= n,), out.
        channel: uint8 (>= n,), out.
        kind: uint8 (>= n,), out.
        state: int64 (2,): invalid records so far; index in this chunk of its first invalid record, or -1.
    """
    cdef Py_ssize_t n = data.shape[0] // RECORD_BYTES
    if data.shape[0] % RECORD_BYTES:
        raise ValueError("data is not a whole number of 10-byte records")
    if min(time.shape[0], channel.shape[0], kind.shape[0]) < n:
        raise ValueError("an output is shorter than the number of records")
    if state.shape[0] < 2:
        raise ValueError("state holds fewer than 2 numbers")
    with nogil:
        _decode(data, n, time, channel, kind, state)
    return n


def decode_compressed(
    const uint8_t[::1] data not None,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
):
    """Decode whole COMPRESSED records, one event each; return the number of events.

    The counter is unwrapped: a step back by more than half of its range is a wrap, a smaller one stays. A record that
    wraps beyond 2^61 ticks is invalid: its event has kind 255 (INVALID).

    Args:
        data: uint8 (5 n,).
        time: int64 (>= n,), out.
        channel: uint8 (>= n,), out, 0 to 7 as stored.
        kind: uint8 (>= n,), out.
        state: int64 (4,), carried between chunks: last raw time or -1, ticks added by wraps, invalid records so far,
            index in this chunk of its first invalid record or -1.
    """
    cdef Py_ssize_t n = data.shape[0] // COMPRESSED_BYTES
    if data.shape[0] % COMPRESSED_BYTES:
        raise ValueError("data is not a whole number of 5-byte records")
    if min(time.shape[0], channel.shape[0], kind.shape[0]) < n:
        raise ValueError("an output is shorter than the number of records")
    if state.shape[0] < 4:
        raise ValueError("state holds fewer than 4 numbers")
    with nogil:
        _decode_compressed(data, n, time, channel, kind, state)
    return n


cdef int _decode(
    const uint8_t[::1] data, Py_ssize_t n, int64_t[::1] time, uint8_t[::1] channel, uint8_t[::1] kind,
    int64_t[::1] state,
) except -1 nogil:
    cdef Py_ssize_t i
    cdef uint64_t ticks
    cdef uint16_t source
    state[FIRST_INVALID] = -1
    for i in range(n):
        memcpy(&ticks, &data[i * RECORD_BYTES], 8)
        memcpy(&source, &data[i * RECORD_BYTES + 8], 2)
        time[i] = <int64_t>ticks
        channel[i] = <uint8_t>source
        kind[i] = PHOTON
        if ticks >> 63 or source > 255:
            time[i] = 0
            channel[i] = 0
            kind[i] = INVALID
            if state[FIRST_INVALID] < 0:
                state[FIRST_INVALID] = i
            state[INVALID_RECORDS] += 1
    return 0


cdef int _decode_compressed(
    const uint8_t[::1] data, Py_ssize_t n, int64_t[::1] time, uint8_t[::1] channel, uint8_t[::1] kind,
    int64_t[::1] state,
) except -1 nogil:
    cdef Py_ssize_t i
    cdef uint64_t word = 0
    cdef int64_t raw, previous = state[PREVIOUS_TICKS], base = state[BASE_TICKS]
    cdef int64_t span = <int64_t>1 << COMPRESSED_TIME_BITS
    state[FIRST_INVALID_COMPRESSED] = -1
    for i in range(n):
        memcpy(&word, &data[i * COMPRESSED_BYTES], COMPRESSED_BYTES)
        raw = <int64_t>(word & ((<uint64_t>1 << COMPRESSED_TIME_BITS) - 1))
        kind[i] = PHOTON
        channel[i] = <uint8_t>(word >> COMPRESSED_TIME_BITS)
        if previous - raw > span >> 1:
            if base > LARGEST_TICKS - span:
                time[i] = base
                channel[i] = 0
                kind[i] = INVALID
                if state[FIRST_INVALID_COMPRESSED] < 0:
                    state[FIRST_INVALID_COMPRESSED] = i
                state[INVALID_COMPRESSED] += 1
                continue
            base += span
        elif raw - previous > span >> 1 and base > 0:
            base -= span
        previous = raw
        time[i] = base + raw
    state[PREVIOUS_TICKS] = previous
    state[BASE_TICKS] = base
    return 0
