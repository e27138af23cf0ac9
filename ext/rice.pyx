"""Rice coding of increasing numbers, each with up to one bit beside it, with a parameter per block.

The stream is read lowest bit first. A block of up to 1,024 numbers is 5 bits k, then per number with the gap g:
q = g >> k zeros, a one, the k low bits of g, the bit beside. A quotient of 24 or more is 24 zeros, 62 bits of g, the bit
beside. Bits after the last number up to the byte's end are zero. Numbers, not key bits, are coded here.

Source: R. F. Rice and J. R. Plaunt, IEEE Trans. Commun. 19, 889 (1971); choice of k: A. Kiely, IPN Progress Report
42-159 (2004), the k for which 2^k is next above 0.4812 means of a geometric law.
"""

from bit_stream cimport bits_at, put_bits, trailing_zeros
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    BLOCK = 1024
    ESCAPE = 24  # zeros
    LARGEST_K = 31

# 24 zeros, 62 bits, the bit beside and a share of a block's k, in bytes; and the word that is written beyond the end.
cdef int BYTES_A_NUMBER = 12
cdef int BYTES_BEYOND = 9


def encode_gaps(
    const int64_t[::1] number not None,
    const uint8_t[::1] beside not None,
    int64_t least,
    int step,
    uint8_t[::1] data not None,
):
    """Write numbers of which the first is at least `least` and each is at least the one before plus `step`.

    Args:
        number: int64 (n,), within 0 .. 2^62 - 1 of `least`.
        beside: uint8 (n,) of 0 and 1, or (0,) for none.
        least: At most the first number.
        step: 0 or 1.
        data: uint8 (>= 12 n + 9,), out.

    Returns:
        Bytes written, or -1 - i for the first number that is too small, too large or has a wrong byte beside.
    """
    if beside.shape[0] not in (0, number.shape[0]):
        raise ValueError("beside must be empty or as long as number")
    if step not in (0, 1) or not -(1 << 62) < least < (1 << 62):
        raise ValueError("step is not 0 or 1, or least is out of range")
    if data.shape[0] < BYTES_A_NUMBER * number.shape[0] + BYTES_BEYOND:
        raise ValueError("data needs 12 bytes a number and 9 more")
    cdef Py_ssize_t written, bad = -1
    with nogil:
        written = encode(number, beside, least, step, data, &bad)
    return written if bad < 0 else -1 - bad


cdef int best_k(int64_t span, Py_ssize_t n) except -1 nogil:
    """The k for n gaps that add up to span: the least with 2^k >= 0.4812 means."""
    cdef int k = 0
    cdef int64_t mean = span // n
    while k < LARGEST_K and ((<int64_t>2128 << k) >> 10) < mean:
        k += 1
    return k


cdef Py_ssize_t encode(
    const int64_t[::1] number, const uint8_t[::1] beside, int64_t least, int step, uint8_t[::1] data, Py_ssize_t* bad
) except -1 nogil:
    cdef Py_ssize_t i, stop, n = number.shape[0]
    cdef int k = 0, q, width = beside.shape[0] > 0
    cdef int64_t bit = 0
    cdef uint64_t gap, last, quotient
    for i in range(n):
        if i % BLOCK == 0:
            stop = min(i + BLOCK, n)
            # Numbers that do not increase are found below; any k will do for them.
            k = best_k(number[stop - 1] - least if number[stop - 1] > least else 0, stop - i)
            put_bits(&data[bit >> 3], bit & 7, k)
            bit += 5
        last = beside[i] if width else 0
        gap = <uint64_t>number[i] - <uint64_t>least
        if number[i] < least or gap >= (<uint64_t>1 << 62) or number[i] >= (<int64_t>1 << 62) or last > 1:
            bad[0] = i
            return 0
        quotient = gap >> k
        if quotient < ESCAPE:
            q = <int>quotient
            gap &= (<uint64_t>1 << k) - 1
            put_bits(&data[bit >> 3], bit & 7, <uint64_t>1 << q | gap << (q + 1) | last << (q + 1 + k))
            bit += q + 1 + k + width
        else:
            put_bits(&data[bit >> 3], bit & 7, (gap & 0x7FFFFFFF) << ESCAPE)
            bit += ESCAPE + 31
            put_bits(&data[bit >> 3], bit & 7, gap >> 31 | last << 31)
            bit += 31 + width
        least = number[i] + step
    return (bit + 7) >> 3


def decode_gaps(const uint8_t[::1] data not None, int64_t least, int step, int64_t limit, int64_t[::1] number not None):
    """Read exactly len(number) numbers without bits beside from `data`, of which the last 8 bytes are not the stream's.

    Returns:
        Bytes read, or -1 - offset of the byte in which the first wrong number begins: the stream ends before it, it
        is above `limit` or not in its shortest form; or of the first byte that is too many or has padding that is
        not zero.
    """
    if step not in (0, 1) or not -(1 << 62) < least <= (1 << 62) or not -(1 << 62) < limit < (1 << 62):
        raise ValueError("step is not 0 or 1, or least or limit is out of range")
    if data.shape[0] < 8:
        raise ValueError("data needs 8 bytes after the stream")
    cdef Py_ssize_t read, bad = -1
    with nogil:
        read = decode(data, least, step, limit, number, &bad)
    return read if bad < 0 else -1 - bad


cdef Py_ssize_t decode(
    const uint8_t[::1] data, int64_t least, int step, int64_t limit, int64_t[::1] number, Py_ssize_t* bad
) except -1 nogil:
    cdef Py_ssize_t i
    cdef int k = 0, q
    cdef int64_t bit = 0, begin, end = 8 * (data.shape[0] - 8)
    cdef uint64_t word, gap
    for i in range(number.shape[0]):
        begin = bit
        if i % BLOCK == 0:
            if bit < end:
                k = <int>(bits_at(&data[bit >> 3], bit & 7) & 31)
            bit += 5
        if bit >= end:
            bad[0] = begin >> 3
            return 0
        word = bits_at(&data[bit >> 3], bit & 7)
        q = trailing_zeros(word | <uint64_t>1 << ESCAPE)
        if q < ESCAPE:
            gap = <uint64_t>q << k | ((word >> (q + 1)) & ((<uint64_t>1 << k) - 1))
            bit += q + 1 + k
        else:
            gap = (word >> ESCAPE) & 0x7FFFFFFF
            bit += ESCAPE + 31
            if bit < end:
                gap |= (bits_at(&data[bit >> 3], bit & 7) & 0x7FFFFFFF) << 31
            bit += 31
            if gap >> k < ESCAPE:
                bit = end + 1
        if bit > end or least > limit or gap > <uint64_t>limit - <uint64_t>least:
            bad[0] = begin >> 3
            return 0
        number[i] = least + <int64_t>gap
        least = number[i] + step
    if bit & 7 and data[bit >> 3] >> (bit & 7):
        bad[0] = bit >> 3
    elif bit + 8 <= end:
        bad[0] = (bit + 7) >> 3
    return (bit + 7) >> 3
