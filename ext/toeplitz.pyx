"""Toeplitz hashing over GF(2), exact, in packed words.

y_i = XOR_j t[n - 1 + i - j] x_j is coefficient n - 1 + i of the product of the polynomials T(z) and X(z) over GF(2).
Only those m coefficients are computed: x and y are cut into blocks of one length, and each Toeplitz block times
vector is split in two with three half-size products (Karatsuba's method transposed; G. Hanrot, M. Quercia,
P. Zimmermann, "The middle product algorithm I", AAECC 14 (2004); S. Winograd's two-way Toeplitz split) down to a
leaf of a few words, which is schoolbook carry-less multiplication.

Time depends on the lengths only, never on the bits.
"""
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free

from clmul cimport clmul64, clmul_accelerated

cdef extern from "string.h" nogil:
    void explicit_bzero(void *area, size_t size)

cdef extern from *:
    """
    /* y ^= leaf of T x for `words` words: T has 2 words, x and y have 1 each (times `words`). */
    typedef void (*toeplitz_leaf)(const uint64_t *t, const uint64_t *x, uint64_t *y, int words);

    static void toeplitz_leaf_portable(const uint64_t *t, const uint64_t *x, uint64_t *y, int words)
    {
        uint64_t below = 0, carry = 0;      /* word p - 1 of the product, high half of column p - 1 */
        for (int p = words - 1; p < 2 * words; p++) {
            uint64_t low = 0, high = 0, l, h;
            for (int c = 0; c < words; c++) {
                clmul64(t[p - c], x[c], &l, &h);
                low ^= l;
                high ^= h;
            }
            uint64_t word = low ^ carry;
            if (p >= words) y[p - words] ^= (below >> 63) | (word << 1);
            below = word;
            carry = high;
        }
    }

    #if defined(__x86_64__)
    #define QKDHW_PCLMUL __attribute__((target("pclmul,sse4.1")))
    QKDHW_PCLMUL static inline __attribute__((always_inline))
    void toeplitz_leaf_of(const uint64_t *t, const uint64_t *x, uint64_t *y, const int words)
    {
        uint64_t below = 0, carry = 0;
        for (int p = words - 1; p < 2 * words; p++) {
            __m128i column = _mm_setzero_si128(), column2 = _mm_setzero_si128();
            for (int c = 0; c < words; c += 2) {
                __m128i two_t = _mm_loadu_si128((const __m128i *)(t + p - c - 1));
                __m128i two_x = _mm_loadu_si128((const __m128i *)(x + c));
                column = _mm_xor_si128(column, _mm_clmulepi64_si128(two_t, two_x, 0x01));
                column2 = _mm_xor_si128(column2, _mm_clmulepi64_si128(two_t, two_x, 0x10));
            }
            column = _mm_xor_si128(column, column2);
            uint64_t word = (uint64_t)_mm_cvtsi128_si64(column) ^ carry;
            if (p >= words) y[p - words] ^= (below >> 63) | (word << 1);
            below = word;
            carry = (uint64_t)_mm_extract_epi64(column, 1);
        }
    }

    QKDHW_PCLMUL static void toeplitz_leaf_accelerated(const uint64_t *t, const uint64_t *x, uint64_t *y, int words)
    {
        if (words == 6) toeplitz_leaf_of(t, x, y, 6);
        else if (words == 8) toeplitz_leaf_of(t, x, y, 8);
        else toeplitz_leaf_of(t, x, y, 10);
    }
    #else
    #define toeplitz_leaf_accelerated toeplitz_leaf_portable
    #endif
    """
    ctypedef void (*toeplitz_leaf)(const uint64_t *t, const uint64_t *x, uint64_t *y, int words) noexcept nogil
    void toeplitz_leaf_portable(const uint64_t *t, const uint64_t *x, uint64_t *y, int words) noexcept nogil
    void toeplitz_leaf_accelerated(const uint64_t *t, const uint64_t *x, uint64_t *y, int words) noexcept nogil


cdef int choose_block(Py_ssize_t x_words, Py_ssize_t y_words, int *leaf_words, int *levels) except -1 nogil:
    # The cheapest cut: multiplications per leaf, times three for each split, times the number of blocks.
    cdef int words, level, best_words = 6, best_levels = 0
    cdef double cost, best_cost = -1.0
    cdef Py_ssize_t block
    for words in range(6, 11, 2):
        for level in range(0, 30):
            block = <Py_ssize_t>words << level
            cost = <double>((x_words + block - 1) // block) * <double>((y_words + block - 1) // block)
            cost *= words * (words + 1) + 12
            cost *= 3.0 ** level
            if best_cost < 0 or cost < best_cost:
                best_cost = cost
                best_words = words
                best_levels = level
    leaf_words[0] = best_words
    levels[0] = best_levels
    return 0


cdef int add_product(
    const uint64_t *t, const uint64_t *x, uint64_t *y, Py_ssize_t words, int leaf_words, uint64_t *scratch,
    toeplitz_leaf leaf,
) except -1 nogil:
    # y ^= T x: t has 2 * words words (its last bit is not used), x and y have `words`; scratch has 4 * words.
    cdef Py_ssize_t k, half = words >> 1
    cdef uint64_t *mixed_t = scratch
    cdef uint64_t *mixed_x = scratch + words
    cdef uint64_t *shared = scratch + words + half
    cdef uint64_t *rest = scratch + 2 * words
    if words == leaf_words:
        leaf(t, x, y, leaf_words)
        return 0
    for k in range(half):
        mixed_x[k] = x[k] ^ x[half + k]
        shared[k] = 0
    add_product(t + half, mixed_x, shared, half, leaf_words, rest, leaf)
    for k in range(half):
        y[k] ^= shared[k]
        y[half + k] ^= shared[k]
    for k in range(words):
        mixed_t[k] = t[k] ^ t[half + k]
    add_product(mixed_t, x + half, y, half, leaf_words, rest, leaf)
    for k in range(words):
        mixed_t[k] = t[half + k] ^ t[words + k]
    add_product(mixed_t, x, y + half, half, leaf_words, rest, leaf)
    return 0


cdef inline uint8_t reversed_bits(uint8_t value) noexcept nogil:
    value = <uint8_t>(((value & 0x55) << 1) | ((value >> 1) & 0x55))
    value = <uint8_t>(((value & 0x33) << 2) | ((value >> 2) & 0x33))
    return <uint8_t>((value << 4) | (value >> 4))


cdef int load_seed(const uint8_t *seed, Py_ssize_t seed_bits, uint64_t *t, Py_ssize_t shift) except -1 nogil:
    # Bit k of the seed (first bit = most significant bit of byte 0) becomes bit shift + k of the words t.
    cdef Py_ssize_t k, bit, n_bytes = (seed_bits + 7) // 8
    cdef uint64_t byte
    for k in range(n_bytes):
        byte = reversed_bits(seed[k])
        if k == n_bytes - 1 and seed_bits % 8:
            byte &= (1 << (seed_bits % 8)) - 1
        bit = shift + 8 * k
        t[bit >> 6] ^= byte << (bit & 63)
        if (bit & 63) > 56:
            t[(bit >> 6) + 1] ^= byte >> (64 - (bit & 63))
    return 0


cdef int hash_words(
    const uint8_t *bits, Py_ssize_t n_bits, const uint8_t *seed, uint8_t *out, Py_ssize_t out_bytes,
    uint64_t *workspace, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t block, int leaf_words, toeplitz_leaf leaf,
) except -1 nogil:
    cdef uint64_t *x = workspace
    cdef uint64_t *y = x + columns * block
    cdef uint64_t *t = y + rows * block
    cdef uint64_t *scratch = t + (rows + columns) * block + 1
    cdef Py_ssize_t k, row, column
    for k in range(n_bits):
        x[k >> 6] |= <uint64_t>(bits[k] & 1) << (k & 63)
    load_seed(seed, n_bits + 8 * out_bytes - 1, t, 64 * columns * block - n_bits)
    for row in range(rows):
        for column in range(columns):
            add_product(
                t + (columns - 1 - column + row) * block, x + column * block, y + row * block, block, leaf_words,
                scratch, leaf,
            )
    for k in range(out_bytes):
        out[k] = reversed_bits(<uint8_t>((y[k >> 3] >> (8 * (k & 7))) & 0xFF))
    return 0


def accelerated() -> bool:
    """Tell whether this machine has the carry-less multiplication instruction that the kernel can use."""
    return clmul_accelerated() != 0


def toeplitz_hash(
    const uint8_t[::1] bits not None, const uint8_t[::1] seed not None, uint8_t[::1] out not None,
    bint portable=False,
) -> None:
    """Hash n bits to m = 8 * len(out) bits with the Toeplitz matrix T[i, j] = t[n - 1 + i - j].

    Args:
        bits: uint8 (n,), each 0 or 1 (only the lowest bit counts).
        seed: uint8 (ceil((n + m - 1) / 8),), t[0] is the most significant bit of byte 0; spare bits are ignored.
        out: uint8 (m / 8,), overwritten; y[0] is the most significant bit of byte 0.
        portable: Do not use the carry-less multiplication instruction.

    Raises:
        ValueError: No bits, or the seed's length does not fit.
        MemoryError: No memory for the working copy, which is wiped on return.
    """
    cdef Py_ssize_t n_bits = bits.shape[0], out_bytes = out.shape[0], words, block
    cdef Py_ssize_t rows, columns
    cdef int leaf_words = 0, levels = 0
    cdef uint64_t *workspace
    cdef toeplitz_leaf leaf = toeplitz_leaf_portable
    if n_bits < 1 or out_bytes < 1:
        raise ValueError("bits and out must not be empty")
    if seed.shape[0] != (n_bits + 8 * out_bytes - 1 + 7) // 8:
        raise ValueError("seed must have ceil((n + m - 1) / 8) bytes")
    if not portable and clmul_accelerated():
        leaf = toeplitz_leaf_accelerated
    choose_block((n_bits + 63) // 64, (out_bytes + 7) // 8, &leaf_words, &levels)
    block = <Py_ssize_t>leaf_words << levels
    columns = ((n_bits + 63) // 64 + block - 1) // block
    rows = ((out_bytes + 7) // 8 + block - 1) // block
    words = 2 * (rows + columns) * block + 1 + 4 * block
    workspace = <uint64_t *>calloc(words, sizeof(uint64_t))
    if workspace == NULL:
        raise MemoryError("no memory for the Toeplitz working copy")
    try:
        with nogil:
            hash_words(
                &bits[0], n_bits, &seed[0], &out[0], out_bytes, workspace, rows, columns, block, leaf_words, leaf
            )
    finally:
        explicit_bzero(workspace, words * sizeof(uint64_t))
        free(workspace)
