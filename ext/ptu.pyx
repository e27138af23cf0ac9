"""PicoQuant TTTR records to detection events.

Layouts, most significant bit first: PicoHarp T2 is channel 4, time 28; PicoHarp T3 is channel 4, dtime 12, nsync 16;
all later instruments share special 1, channel 6, time 25 (T2) and special 1, channel 6, dtime 15, nsync 10 (T3).

Every function writes at most one event a record and returns how many it wrote. `state` (int64, 4) is carried from
one chunk of a file to the next: ticks added by overflow records so far, overflow records so far, invalid records so
far, and the index in this chunk of its first invalid record or -1. An invalid record gives no event. A channel is
0 for the sync input, the input number from 1 for others, and the bit pattern for a marker (kind 1).

Source: PicoQuant, "Time Tagged File Format Demos", appendix "TTTR record types", and its PTU reading demos.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

cdef enum:
    PHOTON = 0
    MARKER = 1

cdef enum:
    OVERFLOW_TICKS = 0
    OVERFLOW_RECORDS = 1
    INVALID_RECORDS = 2
    FIRST_INVALID = 3

# A file that adds up to more than this is corrupt; staying below it keeps every sum inside int64.
cdef int64_t LARGEST_TICKS = <int64_t>1 << 61


def decode_picoharp_t2(
    const uint32_t[::1] record not None,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
):
    """Decode PicoHarp 300 T2 records; return the number of events."""
    _check_lengths(record.shape[0], time.shape[0], channel.shape[0], kind.shape[0], state.shape[0])
    cdef Py_ssize_t count
    with nogil:
        count = _picoharp_t2(record, time, channel, kind, state)
    return count


def decode_picoharp_t3(
    const uint32_t[::1] record not None,
    int64_t[::1] time not None,
    uint16_t[::1] fine not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
):
    """Decode PicoHarp 300 T3 records; return the number of events."""
    _check_lengths(record.shape[0], time.shape[0], channel.shape[0], kind.shape[0], state.shape[0])
    if fine.shape[0] < record.shape[0]:
        raise ValueError("fine is shorter than record")
    cdef Py_ssize_t count
    with nogil:
        count = _picoharp_t3(record, time, fine, channel, kind, state)
    return count


def decode_hydraharp_t2(
    const uint32_t[::1] record not None,
    int64_t wrap_ticks,
    bint counted,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
):
    """Decode HydraHarp, TimeHarp and Generic T2 records; return the number of events.

    An overflow record adds `wrap_ticks`, times its time field if `counted` (0 counts as 1).
    """
    _check_lengths(record.shape[0], time.shape[0], channel.shape[0], kind.shape[0], state.shape[0])
    if not 0 < wrap_ticks <= 33554432:
        raise ValueError("wrap_ticks is outside 1..33554432")
    cdef Py_ssize_t count
    with nogil:
        count = _hydraharp_t2(record, wrap_ticks, counted, time, channel, kind, state)
    return count


def decode_hydraharp_t3(
    const uint32_t[::1] record not None,
    bint counted,
    int64_t[::1] time not None,
    uint16_t[::1] fine not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
):
    """Decode HydraHarp, TimeHarp and Generic T3 records; return the number of events.

    An overflow record adds 1024 syncs, times its nsync field if `counted` (0 counts as 1).
    """
    _check_lengths(record.shape[0], time.shape[0], channel.shape[0], kind.shape[0], state.shape[0])
    if fine.shape[0] < record.shape[0]:
        raise ValueError("fine is shorter than record")
    cdef Py_ssize_t count
    with nogil:
        count = _hydraharp_t3(record, counted, time, fine, channel, kind, state)
    return count


cdef int _check_lengths(
    Py_ssize_t records, Py_ssize_t time, Py_ssize_t channel, Py_ssize_t kind, Py_ssize_t state
) except -1:
    if min(time, channel, kind) < records:
        raise ValueError("an output is shorter than record")
    if state < 4:
        raise ValueError("state holds fewer than 4 numbers")
    return 0


cdef int _note_invalid(int64_t[::1] state, Py_ssize_t i) except -1 nogil:
    if state[FIRST_INVALID] < 0:
        state[FIRST_INVALID] = i
    state[INVALID_RECORDS] += 1
    return 0


cdef int64_t _add_overflow(int64_t[::1] state, int64_t base, int64_t ticks, Py_ssize_t i) except? -1 nogil:
    if ticks > LARGEST_TICKS - base:
        _note_invalid(state, i)
        return base
    state[OVERFLOW_RECORDS] += 1
    return base + ticks


cdef Py_ssize_t _picoharp_t2(
    const uint32_t[::1] record, int64_t[::1] time, uint8_t[::1] channel, uint8_t[::1] kind, int64_t[::1] state
) except -1 nogil:
    cdef Py_ssize_t i, k = 0
    cdef uint32_t word, source
    cdef int64_t ticks, base = state[OVERFLOW_TICKS]
    state[FIRST_INVALID] = -1
    for i in range(record.shape[0]):
        word = record[i]
        source = word >> 28
        ticks = word & 0x0FFFFFFF
        if source <= 4:
            time[k] = base + ticks
            channel[k] = <uint8_t>source
            kind[k] = PHOTON
            k += 1
        elif source != 15:
            _note_invalid(state, i)
        elif word & 15:
            # The low four bits are the markers and no part of the time.
            time[k] = base + (ticks & ~<int64_t>15)
            channel[k] = <uint8_t>(word & 15)
            kind[k] = MARKER
            k += 1
        else:
            base = _add_overflow(state, base, 210698240, i)
    state[OVERFLOW_TICKS] = base
    return k


cdef Py_ssize_t _picoharp_t3(
    const uint32_t[::1] record,
    int64_t[::1] time,
    uint16_t[::1] fine,
    uint8_t[::1] channel,
    uint8_t[::1] kind,
    int64_t[::1] state,
) except -1 nogil:
    cdef Py_ssize_t i, k = 0
    cdef uint32_t word, source, delay
    cdef int64_t base = state[OVERFLOW_TICKS]
    state[FIRST_INVALID] = -1
    for i in range(record.shape[0]):
        word = record[i]
        source = word >> 28
        delay = (word >> 16) & 0xFFF
        if 1 <= source <= 4:
            time[k] = base + (word & 0xFFFF)
            fine[k] = <uint16_t>delay
            channel[k] = <uint8_t>source
            kind[k] = PHOTON
            k += 1
        elif source != 15 or delay > 15:
            _note_invalid(state, i)
        elif delay:
            time[k] = base + (word & 0xFFFF)
            fine[k] = 0
            channel[k] = <uint8_t>delay
            kind[k] = MARKER
            k += 1
        else:
            base = _add_overflow(state, base, 65536, i)
    state[OVERFLOW_TICKS] = base
    return k


cdef Py_ssize_t _hydraharp_t2(
    const uint32_t[::1] record,
    int64_t wrap_ticks,
    bint counted,
    int64_t[::1] time,
    uint8_t[::1] channel,
    uint8_t[::1] kind,
    int64_t[::1] state,
) except -1 nogil:
    cdef Py_ssize_t i, k = 0
    cdef uint32_t word, source
    cdef int64_t ticks, base = state[OVERFLOW_TICKS]
    state[FIRST_INVALID] = -1
    for i in range(record.shape[0]):
        word = record[i]
        source = (word >> 25) & 63
        ticks = word & 0x1FFFFFF
        if word < 0x80000000u:
            time[k] = base + ticks
            channel[k] = <uint8_t>(source + 1)
            kind[k] = PHOTON
            k += 1
        elif source == 63:
            # In 64 bits: the field reaches 2^25 - 1 and a wrap is 2^25 ticks.
            if not counted or ticks == 0:
                ticks = 1
            base = _add_overflow(state, base, ticks * wrap_ticks, i)
        elif source <= 15:
            time[k] = base + ticks
            channel[k] = <uint8_t>source
            kind[k] = MARKER if source else PHOTON
            k += 1
        else:
            _note_invalid(state, i)
    state[OVERFLOW_TICKS] = base
    return k


cdef Py_ssize_t _hydraharp_t3(
    const uint32_t[::1] record,
    bint counted,
    int64_t[::1] time,
    uint16_t[::1] fine,
    uint8_t[::1] channel,
    uint8_t[::1] kind,
    int64_t[::1] state,
) except -1 nogil:
    cdef Py_ssize_t i, k = 0
    cdef uint32_t word, source
    cdef int64_t syncs, base = state[OVERFLOW_TICKS]
    state[FIRST_INVALID] = -1
    for i in range(record.shape[0]):
        word = record[i]
        source = (word >> 25) & 63
        syncs = word & 0x3FF
        if word < 0x80000000u:
            time[k] = base + syncs
            fine[k] = <uint16_t>((word >> 10) & 0x7FFF)
            channel[k] = <uint8_t>(source + 1)
            kind[k] = PHOTON
            k += 1
        elif source == 63:
            if not counted or syncs == 0:
                syncs = 1
            base = _add_overflow(state, base, syncs * 1024, i)
        elif 1 <= source <= 15:
            time[k] = base + syncs
            fine[k] = <uint16_t>((word >> 10) & 0x7FFF)
            channel[k] = <uint8_t>source
            kind[k] = MARKER
            k += 1
        else:
            _note_invalid(state, i)
    state[OVERFLOW_TICKS] = base
    return k
