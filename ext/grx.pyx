"""Decode the event records of GRX/1: 64-bit little-endian words, time since a base, value, kind.

Source:
    docs/reference/generic-receiver-protocol.md, "Event records".
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    TIME_BITS = 44
    KIND_PHOTON = 0
    KIND_MARKER = 1
    KIND_MISSED = 4
    N_KINDS = 7
    N_DETECTORS = 4

cdef int64_t LARGEST_BASE = 0x7FFFFFFFFFFFFFFF - (<int64_t>1 << TIME_BITS)


cdef struct Outcome:
    int64_t missed
    Py_ssize_t bad
    Py_ssize_t back


cdef int _decode(
    const uint8_t[::1] data, int64_t base, int64_t last, int64_t[::1] time_ticks, uint8_t[::1] channel,
    uint8_t[::1] kind, Outcome* outcome,
) except -1 nogil:
    cdef Py_ssize_t i, at
    cdef uint64_t record, what, value, largest
    cdef int64_t ticks
    outcome.missed = 0
    outcome.bad = outcome.back = -1
    for i in range(time_ticks.shape[0]):
        at = 8 * i
        record = (
            <uint64_t>data[at] | (<uint64_t>data[at + 1] << 8) | (<uint64_t>data[at + 2] << 16)
            | (<uint64_t>data[at + 3] << 24) | (<uint64_t>data[at + 4] << 32) | (<uint64_t>data[at + 5] << 40)
            | (<uint64_t>data[at + 6] << 48) | (<uint64_t>data[at + 7] << 56)
        )
        ticks = base + <int64_t>(record & ((<uint64_t>1 << TIME_BITS) - 1))
        value = (record >> TIME_BITS) & 0xFFFF
        what = record >> 60
        largest = N_DETECTORS if what == KIND_PHOTON else 255 if what == KIND_MARKER else 0
        if what == KIND_MISSED:
            outcome.missed += value
            value = 0 if value else 1  # a count of 0 cannot be
        if what >= N_KINDS or value > largest or (largest and not value):
            outcome.bad = i
            break
        if ticks < last:
            outcome.back = i
            break
        last = ticks
        time_ticks[i] = ticks
        channel[i] = <uint8_t>value
        kind[i] = <uint8_t>what
    return 0


def decode_grx(
    const uint8_t[::1] data not None,
    int64_t base,
    int64_t last,
    int64_t[::1] time_ticks not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
):
    """Decode the records of one frame; stops at a record that cannot be true or whose time goes backwards.

    Args:
        data: uint8 (8 n,), the records.
        base: Time that the records' times are counted from, 0 to 2^63 - 2^44 - 1.
        last: Time of the event before, or -1.
        time_ticks: int64 (n,) out, absolute times.
        channel: uint8 (n,) out: detector 1 to 4 of a photon, bit pattern of a marker, else 0.
        kind: uint8 (n,) out, EventKind.

    Returns:
        Sum of the counts of missed events; index of a record that cannot be true, or -1; index of a record whose
        time lies before that of its predecessor, or -1.

    Raises:
        ValueError: Lengths do not match, or `base` is out of range.
    """
    cdef Outcome outcome
    cdef Py_ssize_t n = time_ticks.shape[0]
    if data.shape[0] != 8 * n or channel.shape[0] != n or kind.shape[0] != n:
        raise ValueError("time_ticks, channel and kind must have one element for each 8 bytes of data")
    if not 0 <= base <= LARGEST_BASE:
        raise ValueError(f"base is {base}")
    with nogil:
        _decode(data, base, last, time_ticks, channel, kind, &outcome)
    return outcome.missed, outcome.bad, outcome.back
