"""quTAG BINARY records (little-endian, 8 bytes time, 2 bytes channel, unaligned) to detection events.

Source: qutools, quTAG manual, file formats (BINARY).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    INVALID_RECORDS = 0
    FIRST_INVALID = 1

cdef enum:
    RECORD_BYTES = 10


def decode_records(
    const uint8_t[::1] data not None,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    int64_t[::1] state not None,
):
    """Decode whole records; return the number of events.

    A record whose time is beyond int64 or whose channel is above 255 is invalid and gives no event.

    Args:
        data: uint8 (10 n,).
        time: int64 (>= n,), out.
        channel: uint8 (>= n,), out.
        state: int64 (2,): invalid records so far; index in this chunk of its first invalid record, or -1.
    """
    cdef Py_ssize_t n = data.shape[0] // RECORD_BYTES
    cdef Py_ssize_t count
    if data.shape[0] % RECORD_BYTES:
        raise ValueError("data is not a whole number of 10-byte records")
    if min(time.shape[0], channel.shape[0]) < n:
        raise ValueError("an output is shorter than the number of records")
    if state.shape[0] < 2:
        raise ValueError("state holds fewer than 2 numbers")
    with nogil:
        count = _decode(data, n, time, channel, state)
    return count


cdef Py_ssize_t _decode(
    const uint8_t[::1] data, Py_ssize_t n, int64_t[::1] time, uint8_t[::1] channel, int64_t[::1] state
) except -1 nogil:
    cdef Py_ssize_t i, k = 0
    cdef uint64_t ticks
    cdef uint16_t source
    state[FIRST_INVALID] = -1
    for i in range(n):
        memcpy(&ticks, &data[i * RECORD_BYTES], 8)
        memcpy(&source, &data[i * RECORD_BYTES + 8], 2)
        time[k] = <int64_t>ticks
        channel[k] = <uint8_t>source
        if ticks >> 63 or source > 255:
            if state[FIRST_INVALID] < 0:
                state[FIRST_INVALID] = i
            state[INVALID_RECORDS] += 1
        else:
            k += 1
    return k
