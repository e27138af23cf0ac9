"""Entries of qcrypto epoch files: differences (T2: times, T4: indices) with base bits, and bare values (T3).

Entries are packed without gaps, most significant bit first, into 32-bit words. A T2 or T4 entry is a code of
`time_order` bits, then base bits. Code 0 says that the full 32-bit difference follows, code 1 (with base bits 0) ends
the file; others are the difference itself. T4 stores differences of indices plus 2.

Source: qcrypto project, remotecrypto/filespec.txt, where it agrees with the packets that its chopper program writes:
the text swaps the order of the code and the base bits.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    MORE = 0
    ENDED = 1
    WRONG = 2

cdef enum:
    ESCAPE_BITS = 32


cdef struct Writer:
    uint32_t* word
    Py_ssize_t words
    uint64_t bits
    int pending


cdef inline void _write(Writer* to, uint64_t value, int width) noexcept nogil:
    to.bits = (to.bits << width) | value
    to.pending += width
    if to.pending >= 32:
        to.pending -= 32
        to.word[to.words] = <uint32_t>(to.bits >> to.pending)
        to.words += 1


cdef inline void _flush(Writer* to) noexcept nogil:
    if to.pending:
        to.word[to.words] = <uint32_t>(to.bits << (32 - to.pending))
        to.words += 1
        to.pending = 0


cdef inline uint64_t _read(const uint32_t* word, Py_ssize_t bit, int width) noexcept nogil:
    """Read up to 32 bits that are there."""
    cdef Py_ssize_t first = bit >> 5
    cdef int left = 64 - <int>(bit & 31) - width
    cdef uint64_t window = <uint64_t>word[first] << 32
    if left < 32:
        window |= word[first + 1]
    return (window >> left) & ((<uint64_t>1 << width) - 1)


def decode_differences(
    const uint32_t[::1] word not None,
    Py_ssize_t bit,
    int time_order,
    int base_bits,
    int offset,
    int64_t limit,
    int64_t[::1] value not None,
    uint8_t[::1] base not None,
    int64_t[::1] state not None,
):
    """Decode whole entries from a bit position on, up to the end entry or as far as the words and outputs go.

    Args:
        word: uint32 (n,), all words of the body from its beginning, or from where the last call left off.
        bit: First bit to read, 0..31 from the first word's most significant bit.
        time_order: Bits of a code, 2..32.
        base_bits: Base bits, 0..8.
        offset: What is added to stored differences: 0 (T2) or 2 (T4).
        limit: Values above it are wrong.
        value: int64 (m,), out: sums of differences.
        base: uint8 (m,), out.
        state: int64 (1,), carried from call to call: the last value.

    Returns:
        Entries written, the bit after the last of them (or after the end entry), and 0 for more to come, 1 for the
        end, 2 for an entry that is wrong: a value below 0 or beyond the limit, or base bits in the end entry.
    """
    if not 2 <= time_order <= 32 or not 0 <= base_bits <= 8:
        raise ValueError("time_order is outside 2..32 or base_bits outside 0..8")
    if not 0 <= bit <= 31:
        raise ValueError("bit is outside 0..31")
    if value.shape[0] != base.shape[0] or state.shape[0] < 1:
        raise ValueError("value and base must have the same length, state 1 number")
    if limit < 0 or limit > <int64_t>1 << 61:
        raise ValueError("limit is outside 0..2^61")
    cdef Py_ssize_t entries = 0
    cdef int status = MORE
    if word.shape[0]:
        with nogil:
            status = _decode(
                &word[0], 32 * word.shape[0], &bit, time_order, base_bits, offset, limit, value, base, state, &entries
            )
    return entries, bit, status


cdef int _decode(
    const uint32_t* word, Py_ssize_t end, Py_ssize_t* position, int time_order, int base_bits, int offset,
    int64_t limit, int64_t[::1] value, uint8_t[::1] base, int64_t[::1] state, Py_ssize_t* entries,
) except -1 nogil:
    cdef Py_ssize_t bit = position[0], at, k = 0, room = value.shape[0]
    cdef int64_t last = state[0], difference
    cdef int status = MORE
    while bit + time_order + base_bits <= end:
        at = bit + time_order
        difference = <int64_t>_read(word, bit, time_order)
        if difference == 1:
            status = ENDED if base_bits == 0 or _read(word, at, base_bits) == 0 else WRONG
            if status == ENDED:
                bit = at + base_bits
            break
        if k == room:
            break
        if difference == 0:
            if at + ESCAPE_BITS + base_bits > end:
                break
            difference = <int64_t>_read(word, at, ESCAPE_BITS)
            at += ESCAPE_BITS
        if last + difference < offset or last + difference - offset > limit:
            status = WRONG
            break
        last += difference - offset
        value[k] = last
        base[k] = <uint8_t>_read(word, at, base_bits) if base_bits else 0
        bit = at + base_bits
        k += 1
    state[0] = last
    position[0] = bit
    entries[0] = k
    return status


def encode_differences(
    const int64_t[::1] value not None,
    const uint8_t[::1] base not None,
    int time_order,
    int base_bits,
    int offset,
    bint as_chopper,
    uint32_t[::1] word not None,
    uint8_t[::1] written not None,
):
    """Encode entries and the end entry.

    Differences below 2 have no code of their own and are written in full, which is exact. `as_chopper` does as the
    chopper program does: it drops an event that is not later than the one before (or than 0, for the first), and
    sends a difference of 1 as 3 without moving its reference, so that all later times of the file read 2 late.

    Args:
        value: int64 (n,), from 0, rising by 0..2^32 - 1 - offset.
        base: uint8 (n,), below 2^base_bits.
        time_order: Bits of a code, 2..31.
        base_bits: Base bits, 0..8.
        offset: 0 (T2) or 2 (T4).
        as_chopper: See above.
        word: uint32 (m,), out, 32 m >= (n + 1) (time_order + base_bits + 32) + 32.
        written: uint8 (n,), out: whether each entry was written.

    Returns:
        Words written, or -1 - i if entry i is no rise of 0..2^32 - 1 - offset or has a base that does not fit.
    """
    cdef Py_ssize_t n = value.shape[0]
    if not 2 <= time_order <= 31 or not 0 <= base_bits <= 8 or offset not in (0, 2):
        raise ValueError("time_order is outside 2..31, base_bits outside 0..8, or offset not 0 or 2")
    if base.shape[0] != n or written.shape[0] != n:
        raise ValueError("value, base and written must have the same length")
    if 32 * word.shape[0] < (n + 1) * (time_order + base_bits + ESCAPE_BITS) + 32:
        raise ValueError("word is too short")
    cdef Py_ssize_t words
    with nogil:
        words = _encode(value, base, time_order, base_bits, offset, as_chopper, &word[0], written)
    return words


cdef Py_ssize_t _encode(
    const int64_t[::1] value, const uint8_t[::1] base, int time_order, int base_bits, int offset, bint as_chopper,
    uint32_t* word, uint8_t[::1] written,
) except? -1 nogil:
    cdef Writer to
    cdef Py_ssize_t i
    cdef int64_t last = 0, difference
    to.word, to.words, to.bits, to.pending = word, 0, 0, 0
    for i in range(value.shape[0]):
        if value[i] < 0 or base[i] >> base_bits:
            return -1 - i
        written[i] = not (as_chopper and value[i] <= last)
        if not written[i]:
            continue
        difference = value[i] - last + offset
        if difference < 0 or difference >> ESCAPE_BITS or value[i] < last:
            return -1 - i
        if as_chopper and difference == 1:
            difference = 3
        if difference < 2 or difference >> time_order:
            _write(&to, 0, time_order)
            _write(&to, difference, ESCAPE_BITS)
        else:
            _write(&to, difference, time_order)
        _write(&to, base[i], base_bits)
        last = value[i]
    _write(&to, 1, time_order)
    _write(&to, 0, base_bits)
    _flush(&to)
    return to.words


def pack_values(const uint8_t[::1] value not None, int bits, uint32_t[::1] word not None):
    """Pack values of some bits (T3); return the words written, the last filled with zeros.

    Args:
        value: uint8 (n,), below 2^bits.
        bits: 1..8.
        word: uint32 (>= (n bits + 31) // 32,), out.

    Raises:
        ValueError: Lengths do not match, or a value does not fit.
    """
    cdef Py_ssize_t i
    cdef Writer to
    cdef uint8_t all_bits = 0
    if not 1 <= bits <= 8:
        raise ValueError("bits is outside 1..8")
    if 32 * word.shape[0] < value.shape[0] * bits:
        raise ValueError("word is too short")
    if not value.shape[0]:
        return 0
    to.word, to.words, to.bits, to.pending = &word[0], 0, 0, 0
    with nogil:
        for i in range(value.shape[0]):
            all_bits |= value[i]
            _write(&to, value[i] & ((1 << bits) - 1), bits)
        _flush(&to)
    if all_bits >> bits:
        raise ValueError("a value has more bits")
    return to.words


def unpack_values(const uint32_t[::1] word not None, int bits, uint8_t[::1] value not None):
    """Unpack as many values of some bits (T3) as `value` has room for.

    Args:
        word: uint32 (>= (n bits + 31) // 32,).
        bits: 1..8.
        value: uint8 (n,), out.
    """
    cdef Py_ssize_t i
    if not 1 <= bits <= 8:
        raise ValueError("bits is outside 1..8")
    if 32 * word.shape[0] < value.shape[0] * bits:
        raise ValueError("word is too short")
    with nogil:
        for i in range(value.shape[0]):
            value[i] = <uint8_t>_read(&word[0], i * bits, bits)
