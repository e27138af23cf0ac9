"""Sifting: which detections count, at both sites, and the coding of the slots that are announced.

Timing: every sifted bit is written and the index advances by the result of a comparison of public values (bases,
slots, the reply). Neither control flow nor an address depends on a bit value. Bases and slots are public when these
kernels run; the transmitter's record is read at announced slots only.

Both sites work in blocks that fit the nearest cache: what each detection is worth, for many at a time, then one store
to either end of key and test bits, then intensities split off.

A reply byte is 0 (not kept) or 1 + intensity + 4 * basis, with intensity 0 .. 2 and basis 0 (key) or 1 (test).
"""

from libc.stdint cimport int64_t, uint64_t, uint8_t

from compress cimport compress_avx512, compress_has_avx512

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void* address) nogil

cdef enum:
    BLOCK = 1024
    AHEAD = 256            # detections whose place in the record is fetched ahead
    OUTSIDE = 0x80


cdef int check_outputs(
    Py_ssize_t n, Py_ssize_t key_bits, Py_ssize_t test_bits, Py_ssize_t key_intensity, Py_ssize_t test_intensity,
    Py_ssize_t counts,
) except -1:
    if key_bits != n or test_bits != n or key_intensity != n or test_intensity != n:
        raise ValueError("every output must be as long as the announcement")
    if counts != 2:
        raise ValueError("counts needs 2 places")
    return 0


def sift_transmitter(
    const int64_t[::1] slot not None,
    const uint8_t[::1] rx_basis not None,
    const uint8_t[::1] record not None,
    int64_t first_slot,
    uint8_t[::1] reply not None,
    uint8_t[::1] key_bits not None,
    uint8_t[::1] test_bits not None,
    uint8_t[::1] key_intensity not None,
    uint8_t[::1] test_intensity not None,
    int64_t[::1] counts not None,
    bint portable=False,
):
    """Write reply, bits and intensities; `counts` becomes (n_key, n_test).

    Return n, or the first index whose slot does not increase, whose basis is above 1 or whose record byte is above 11
    (intensity 3 does not exist).
    """
    cdef Py_ssize_t n = slot.shape[0]
    if rx_basis.shape[0] != n or reply.shape[0] != n:
        raise ValueError("slot, rx_basis and reply must have one length")
    check_outputs(
        n, key_bits.shape[0], test_bits.shape[0], key_intensity.shape[0], test_intensity.shape[0], counts.shape[0]
    )
    cdef bint fast = compress_has_avx512() and not portable
    cdef Py_ssize_t done
    with nogil:
        done = transmitter(
            slot, rx_basis, record, first_slot, reply, key_bits, test_bits, key_intensity, test_intensity, counts,
            fast,
        )
    return done


cdef struct Worth:
    uint8_t[BLOCK] prepared    # transmitter: the record's byte, or OUTSIDE
    uint8_t[BLOCK] value       # bit + 2 * intensity
    uint8_t[BLOCK] to_key      # 1 if it is a key bit
    uint8_t[BLOCK] to_test


cdef struct Sifted:
    Py_ssize_t n_key
    Py_ssize_t n_test


cdef int append(
    Py_ssize_t n, Worth* worth, Sifted* sifted, bint fast, uint8_t[::1] key_bits, uint8_t[::1] test_bits,
    uint8_t[::1] key_intensity, uint8_t[::1] test_intensity,
) except -1 nogil:
    """Append a block's bits and intensities; n_key + n_test never exceeds what came before, so all places exist."""
    cdef Py_ssize_t i, n_key = sifted.n_key, n_test = sifted.n_test
    if fast:
        sifted.n_key += compress_avx512(n, worth.value, worth.to_key, &key_bits[n_key], &key_intensity[n_key])
        sifted.n_test += compress_avx512(n, worth.value, worth.to_test, &test_bits[n_test], &test_intensity[n_test])
        return 0
    for i in range(n):
        key_bits[n_key] = worth.value[i]
        test_bits[n_test] = worth.value[i]
        n_key += worth.to_key[i]
        n_test += worth.to_test[i]
    for i in range(sifted.n_key, n_key):
        key_intensity[i] = key_bits[i] >> 1
        key_bits[i] &= 1
    for i in range(sifted.n_test, n_test):
        test_intensity[i] = test_bits[i] >> 1
        test_bits[i] &= 1
    sifted.n_key = n_key
    sifted.n_test = n_test
    return 0


cdef Py_ssize_t transmitter(
    const int64_t[::1] slot, const uint8_t[::1] rx_basis, const uint8_t[::1] record, int64_t first_slot,
    uint8_t[::1] reply, uint8_t[::1] key_bits, uint8_t[::1] test_bits, uint8_t[::1] key_intensity,
    uint8_t[::1] test_intensity, int64_t[::1] counts, bint fast,
) except -1 nogil:
    cdef Py_ssize_t i, m, begin = 0, n = slot.shape[0]
    cdef uint64_t index, n_record = <uint64_t>record.shape[0], start = <uint64_t>&record[0] if n_record > 0 else 0
    cdef uint8_t same, prepared, basis, bad
    cdef Worth worth
    cdef Sifted sifted
    sifted.n_key = sifted.n_test = 0
    while begin < n:
        m = min(<Py_ssize_t>BLOCK, n - begin)
        for i in range(m):
            if begin + i > 0 and slot[begin + i] <= slot[begin + i - 1]:
                m = i
                break
            if begin + i + AHEAD < n:
                prefetch(<const void*>(start + <uint64_t>slot[begin + i + AHEAD] - <uint64_t>first_slot))
            index = <uint64_t>slot[begin + i] - <uint64_t>first_slot
            worth.prepared[i] = record[<Py_ssize_t>index] if index < n_record else OUTSIDE
        bad = 0
        for i in range(m):
            prepared = worth.prepared[i]
            basis = (prepared >> 1) & 1
            bad |= (rx_basis[begin + i] > 1) | ((prepared > 11) & (prepared != OUTSIDE))
            same = (prepared < 12) & (basis == rx_basis[begin + i])
            worth.value[i] = (prepared & 1) | ((prepared >> 1) & 6)
            worth.to_key[i] = same & (basis ^ 1)
            worth.to_test[i] = same & basis
            reply[begin + i] = same * (1 + (prepared >> 2) + 4 * basis)
        if bad:
            for i in range(m):
                prepared = worth.prepared[i]
                if rx_basis[begin + i] > 1 or (prepared > 11 and prepared != OUTSIDE):
                    return begin + i
        append(m, &worth, &sifted, fast, key_bits, test_bits, key_intensity, test_intensity)
        if m < BLOCK and begin + m < n:
            return begin + m
        begin += m
    counts[0] = sifted.n_key
    counts[1] = sifted.n_test
    return n


def sift_receiver(
    const uint8_t[::1] rx_basis not None,
    const uint8_t[::1] rx_bit not None,
    const uint8_t[::1] reply not None,
    uint8_t[::1] key_bits not None,
    uint8_t[::1] test_bits not None,
    uint8_t[::1] key_intensity not None,
    uint8_t[::1] test_intensity not None,
    int64_t[::1] counts not None,
    bint portable=False,
):
    """Write bits and intensities; `counts` becomes (n_key, n_test).

    Return n, or the first index whose reply is not a reply byte or names another basis than was announced.
    """
    cdef Py_ssize_t n = rx_basis.shape[0]
    if rx_bit.shape[0] != n or reply.shape[0] != n:
        raise ValueError("rx_basis, rx_bit and reply must have one length")
    check_outputs(
        n, key_bits.shape[0], test_bits.shape[0], key_intensity.shape[0], test_intensity.shape[0], counts.shape[0]
    )
    cdef bint fast = compress_has_avx512() and not portable
    cdef Py_ssize_t done
    with nogil:
        done = receiver(rx_basis, rx_bit, reply, key_bits, test_bits, key_intensity, test_intensity, counts, fast)
    return done


cdef Py_ssize_t receiver(
    const uint8_t[::1] rx_basis, const uint8_t[::1] rx_bit, const uint8_t[::1] reply, uint8_t[::1] key_bits,
    uint8_t[::1] test_bits, uint8_t[::1] key_intensity, uint8_t[::1] test_intensity, int64_t[::1] counts, bint fast,
) except -1 nogil:
    cdef Py_ssize_t i, m, begin = 0, n = rx_basis.shape[0]
    cdef uint8_t kept, basis, intensity, bad
    cdef Worth worth
    cdef Sifted sifted
    sifted.n_key = sifted.n_test = 0
    while begin < n:
        m = min(<Py_ssize_t>BLOCK, n - begin)
        bad = 0
        for i in range(m):
            kept = reply[begin + i] != 0
            basis = ((reply[begin + i] - kept) >> 2) & 1
            intensity = (reply[begin + i] - kept) & 3
            bad |= refused(rx_basis[begin + i], reply[begin + i])
            worth.value[i] = (rx_bit[begin + i] & 1) | (intensity << 1)
            worth.to_key[i] = kept & (basis ^ 1)
            worth.to_test[i] = kept & basis
        if bad:
            for i in range(begin, begin + m):
                if refused(rx_basis[i], reply[i]):
                    return i
        append(m, &worth, &sifted, fast, key_bits, test_bits, key_intensity, test_intensity)
        begin += m
    counts[0] = sifted.n_key
    counts[1] = sifted.n_test
    return n


cdef inline uint8_t refused(uint8_t rx_basis, uint8_t answer) noexcept nogil:
    """Whether a byte is no reply, or one about another basis than was announced; 4 would be an intensity 3."""
    return (rx_basis > 1) | (answer > 7) | (answer == 4) | ((answer != 0) & ((answer > 3) != rx_basis))


def encode_slots(const int64_t[::1] slot not None, int64_t base, uint8_t[::1] data not None):
    """Write slots as variable-length gaps (7 bits a byte, low bits first, high bit: more follows).

    The first gap is slot[0] - base, every other slot[i] - slot[i - 1] - 1. `data` needs 9 bytes a slot. Return the
    number of bytes written, or -1 - i for the first index that does not increase (or leaves base .. 2^62 - 1).
    """
    if data.shape[0] < 9 * slot.shape[0]:
        raise ValueError("data needs 9 bytes a slot")
    if not -(1 << 62) < base < (1 << 62):
        raise ValueError("base is out of range")
    cdef Py_ssize_t written, bad = -1
    with nogil:
        written = encode(slot, base, data, &bad)
    return written if bad < 0 else -1 - bad


cdef Py_ssize_t encode(
    const int64_t[::1] slot, int64_t base, uint8_t[::1] data, Py_ssize_t* bad
) except -1 nogil:
    cdef Py_ssize_t i, k = 0
    cdef int64_t least = base
    cdef uint64_t gap
    for i in range(slot.shape[0]):
        if slot[i] < least or slot[i] >= (<int64_t>1 << 62):
            bad[0] = i
            return k
        gap = <uint64_t>slot[i] - <uint64_t>least
        while gap >= 128:
            data[k] = <uint8_t>(gap & 127) | 128
            gap >>= 7
            k += 1
        data[k] = <uint8_t>gap
        k += 1
        least = slot[i] + 1
    return k


def decode_slots(const uint8_t[::1] data not None, int64_t base, int64_t[::1] slot not None):
    """Read exactly len(slot) slots from exactly len(data) bytes, shortest form only.

    Return the number of bytes, or -1 - offset of the first byte that is wrong: the last byte of a number that is too
    large or not in its shortest form, the first byte too many, or the end of data that stops early.
    """
    if not -(1 << 62) < base < (1 << 62):
        raise ValueError("base is out of range")
    cdef Py_ssize_t offset, bad = -1
    with nogil:
        offset = decode(data, base, slot, &bad)
    return offset if bad < 0 else -1 - bad


cdef Py_ssize_t decode(
    const uint8_t[::1] data, int64_t base, int64_t[::1] slot, Py_ssize_t* bad
) except -1 nogil:
    cdef Py_ssize_t i, k = 0, size = data.shape[0]
    cdef int64_t least = base
    cdef uint64_t gap, byte
    cdef int shift
    for i in range(slot.shape[0]):
        gap = 0
        shift = 0
        while True:
            # 9 bytes hold 63 bits, more than any slot needs.
            if k >= size or shift > 56:
                bad[0] = k
                return k
            byte = data[k]
            gap |= (byte & 127) << shift
            shift += 7
            k += 1
            if byte < 128:
                break
        if (byte == 0 and shift > 7) or gap >= <uint64_t>((<int64_t>1 << 62) - least):
            bad[0] = k - 1
            return k
        slot[i] = least + <int64_t>gap
        least = slot[i] + 1
    if k < size:
        bad[0] = k
    return k
