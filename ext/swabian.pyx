"""Swabian Time Tagger `Dump` records (16 bytes, little-endian) to detection events.

A record is: type (1 byte), a reserved byte, missed events (2 bytes), channel (int32), time (int64) in ps. A channel is
negative for falling edges; here those are 128 + its number, so rising edges are 1 to 127 and falling ones 129 to 255.

Source: Swabian Instruments, Time Tagger documentation, `Dump` and `Tag` (tag types and fields).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy

cdef enum:
    RECORD_BYTES = 16

cdef enum:
    TYPE_TAG = 0
    TYPE_ERROR = 1
    TYPE_OVERFLOW_BEGIN = 2
    TYPE_OVERFLOW_END = 3
    TYPE_MISSED = 4

cdef enum:
    PHOTON = 0
    GAP_BEGIN = 2
    GAP_END = 3
    MISSED = 4
    CLOCK_ERROR = 5
    INVALID = 255

cdef enum:
    MISSED_EVENTS = 0
    INVALID_RECORDS = 1
    FIRST_INVALID = 2


def decode_records(
    const uint8_t[::1] data not None,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
):
    """Decode whole records, one event each; return the number of events.

    A record of an unknown type, with a reserved byte that is not 0, a tag of a channel beyond 127 or with missed
    events, or an event other than a tag on an impossible channel is invalid and gives an event of kind 255 (INVALID).

    Args:
        data: uint8 (16 n,).
        time: int64 (>= n,), out, ps.
        channel: uint8 (>= n,), out; 0 for what concerns all channels.
        kind: uint8 (>= n,), out, EventKind: overflow begin and end are a gap, a clock error is an error record.
        state: int64 (3,), carried between chunks: missed events so far, invalid records so far, index in this chunk
            of its first invalid record or -1.
    """
    cdef Py_ssize_t n = data.shape[0] // RECORD_BYTES
    if data.shape[0] % RECORD_BYTES:
        raise ValueError("data is not a whole number of 16-byte records")
    if min(time.shape[0], channel.shape[0], kind.shape[0]) < n:
        raise ValueError("an output is shorter than the number of records")
    if state.shape[0] < 3:
        raise ValueError("state holds fewer than 3 numbers")
    with nogil:
        _decode(data, n, time, channel, kind, state)
    return n


cdef uint8_t[5] KIND = [PHOTON, CLOCK_ERROR, GAP_BEGIN, GAP_END, MISSED]


cdef int _decode(
    const uint8_t[::1] data, Py_ssize_t n, int64_t[::1] time, uint8_t[::1] channel, uint8_t[::1] kind,
    int64_t[::1] state,
) except -1 nogil:
    cdef Py_ssize_t i
    cdef const uint8_t* record
    cdef uint16_t missed
    cdef int32_t source
    cdef bint is_tag, valid
    state[FIRST_INVALID] = -1
    for i in range(n):
        record = &data[RECORD_BYTES * i]
        memcpy(&missed, record + 2, 2)
        memcpy(&source, record + 4, 4)
        memcpy(&time[i], record + 8, 8)
        is_tag = record[0] == TYPE_TAG
        valid = (
            record[0] <= TYPE_MISSED and record[1] == 0 and -127 <= source <= 127 and (source != 0 or not is_tag)
            and (missed == 0 or record[0] == TYPE_MISSED)
        )
        channel[i] = <uint8_t>(source if source >= 0 else 128 - <int64_t>source)
        if valid:
            kind[i] = KIND[record[0]]
            state[MISSED_EVENTS] += missed
        else:
            channel[i] = 0
            kind[i] = INVALID
            if state[FIRST_INVALID] < 0:
                state[FIRST_INVALID] = i
            state[INVALID_RECORDS] += 1
    return 0
