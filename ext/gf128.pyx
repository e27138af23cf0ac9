"""Polynomial hash over GF(2^128): POLYVAL of the padded message and its length (RFC 8452, sections 3 and 4).

The field is GF(2)[x] / (x^128 + x^127 + x^126 + x^121 + 1), byte 0 of a block holds the coefficients of x^0..x^7, and
dot(a, b) = a b x^-128. The message is padded with zeros to whole 16-byte blocks and followed by one block with 64
zero bits and the message's length in bits (64 bits, little-endian), so that messages of different length differ.
From H = 0, each block in turn makes H = dot(H + block, key).

Time depends on the message's length only, never on the key or the message.
"""
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from clmul cimport clmul64, clmul_accelerated

cdef extern from *:
    """
    typedef void (*gf128_absorb)(uint64_t hash[2], const uint64_t key[2], const uint8_t *blocks, size_t n_blocks);

    /* a dot key; a is overwritten. The second half divides the 256-bit product by x^128, 64 bits at a time. */
    static void gf128_dot_portable(uint64_t a[2], const uint64_t key[2])
    {
        const uint64_t modulus = 0xC200000000000000ULL;     /* x^127 + x^126 + x^121, divided by x^64 */
        uint64_t p0, p1, p2, p3, low, high, low2, high2;
        clmul64(a[0], key[0], &p0, &p1);
        clmul64(a[1], key[1], &p2, &p3);
        clmul64(a[0], key[1], &low, &high);
        clmul64(a[1], key[0], &low2, &high2);
        p1 ^= low ^ low2;
        p2 ^= high ^ high2;
        clmul64(p0, modulus, &low, &high);
        p1 ^= low;
        p2 ^= high ^ p0;
        clmul64(p1, modulus, &low, &high);
        a[0] = p2 ^ low;
        a[1] = p3 ^ high ^ p1;
    }

    static void gf128_absorb_portable(uint64_t hash[2], const uint64_t key[2], const uint8_t *blocks, size_t n_blocks)
    {
        for (size_t k = 0; k < n_blocks; k++)
            for (int half = 0; half < 2; half++) {
                const uint8_t *byte = blocks + 16 * k + 8 * half;
                uint64_t word = 0;
                for (int b = 7; b >= 0; b--) word = (word << 8) | byte[b];
                hash[half] ^= word;
                if (half) gf128_dot_portable(hash, key);
            }
    }

    #if defined(__x86_64__)
    #define QKDHW_PCLMUL __attribute__((target("pclmul,sse4.1")))

    QKDHW_PCLMUL static inline void gf128_multiply_add(__m128i a, __m128i b, __m128i sum[3])
    {
        sum[0] = _mm_xor_si128(sum[0], _mm_clmulepi64_si128(a, b, 0x00));
        sum[1] = _mm_xor_si128(sum[1], _mm_clmulepi64_si128(a, b, 0x01));
        sum[1] = _mm_xor_si128(sum[1], _mm_clmulepi64_si128(a, b, 0x10));
        sum[2] = _mm_xor_si128(sum[2], _mm_clmulepi64_si128(a, b, 0x11));
    }

    QKDHW_PCLMUL static inline __m128i gf128_reduce(const __m128i sum[3])
    {
        const __m128i modulus = _mm_set_epi64x(0, (long long)0xC200000000000000ULL);
        __m128i low = _mm_xor_si128(sum[0], _mm_slli_si128(sum[1], 8));
        __m128i high = _mm_xor_si128(sum[2], _mm_srli_si128(sum[1], 8));
        for (int step = 0; step < 2; step++)
            low = _mm_xor_si128(_mm_shuffle_epi32(low, 0x4E), _mm_clmulepi64_si128(low, modulus, 0x00));
        return _mm_xor_si128(low, high);
    }

    /* Eight blocks share one reduction: H' = (H + X_1) k^8 + X_2 k^7 + ... + X_8 k. */
    QKDHW_PCLMUL static void gf128_absorb_accelerated(
        uint64_t hash[2], const uint64_t key[2], const uint8_t *blocks, size_t n_blocks)
    {
        __m128i h = _mm_loadu_si128((const __m128i *)hash), power[8];
        power[0] = _mm_loadu_si128((const __m128i *)key);
        if (n_blocks >= 8)
            for (int k = 1; k < 8; k++) {
                __m128i sum[3] = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
                gf128_multiply_add(power[k - 1], power[0], sum);
                power[k] = gf128_reduce(sum);
            }
        while (n_blocks) {
            int step = n_blocks >= 8 ? 8 : 1;
            __m128i sum[3] = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
            h = _mm_xor_si128(h, _mm_loadu_si128((const __m128i *)blocks));
            gf128_multiply_add(h, power[step - 1], sum);
            for (int k = 1; k < step; k++)
                gf128_multiply_add(_mm_loadu_si128((const __m128i *)(blocks + 16 * k)), power[step - 1 - k], sum);
            h = gf128_reduce(sum);
            blocks += 16 * step;
            n_blocks -= step;
        }
        _mm_storeu_si128((__m128i *)hash, h);
    }
    #else
    #define gf128_absorb_accelerated gf128_absorb_portable
    #endif
    """
    ctypedef void (*gf128_absorb)(
        uint64_t *hash, const uint64_t *key, const uint8_t *blocks, size_t n_blocks) noexcept nogil
    void gf128_absorb_portable(
        uint64_t *hash, const uint64_t *key, const uint8_t *blocks, size_t n_blocks) noexcept nogil
    void gf128_absorb_accelerated(
        uint64_t *hash, const uint64_t *key, const uint8_t *blocks, size_t n_blocks) noexcept nogil

cdef extern from "string.h" nogil:
    void explicit_bzero(void *area, size_t size)


cdef inline uint64_t load_word(const uint8_t *bytes_in) except? 0 nogil:
    cdef uint64_t word = 0
    cdef int k
    for k in range(8):
        word |= <uint64_t>bytes_in[k] << (8 * k)
    return word


cdef int hash_message(
    const uint8_t *key, const uint8_t *message, Py_ssize_t n_bytes, uint8_t *out, gf128_absorb absorb
) except -1 nogil:
    cdef uint64_t h[2]
    cdef uint64_t k[2]
    cdef uint8_t last[32]
    cdef Py_ssize_t whole = n_bytes // 16, rest = n_bytes % 16, i
    cdef uint64_t length_bits = 8 * <uint64_t>n_bytes
    h[0] = h[1] = 0
    k[0] = load_word(key)
    k[1] = load_word(key + 8)
    absorb(h, k, message, whole)
    for i in range(32):
        last[i] = 0
    if rest:
        memcpy(last, message + 16 * whole, rest)
    for i in range(8):
        last[24 + i] = <uint8_t>((length_bits >> (8 * i)) & 0xFF)
    if rest:
        absorb(h, k, last, 2)
    else:
        absorb(h, k, last + 16, 1)
    for i in range(16):
        out[i] = <uint8_t>((h[i >> 3] >> (8 * (i & 7))) & 0xFF)
    explicit_bzero(h, sizeof(h))
    explicit_bzero(k, sizeof(k))
    explicit_bzero(last, sizeof(last))
    return 0


def accelerated() -> bool:
    """Tell whether this machine has the carry-less multiplication instruction that the kernel can use."""
    return clmul_accelerated() != 0


def polynomial_hash(
    const uint8_t[::1] key not None, const uint8_t[::1] message not None, uint8_t[::1] out not None,
    bint portable=False,
) -> None:
    """Hash a message of L 16-byte blocks; for a random key two messages' hashes have any given sum with
    probability at most (L + 1) / 2^128.

    Args:
        key: uint8 (16,).
        message: uint8 (n,), n >= 0.
        out: uint8 (16,), overwritten.
        portable: Do not use the carry-less multiplication instruction.

    Raises:
        ValueError: Key or out is not 16 bytes long.
    """
    cdef Py_ssize_t n_bytes = message.shape[0]
    cdef const uint8_t *start = NULL
    cdef gf128_absorb absorb = gf128_absorb_portable
    if key.shape[0] != 16 or out.shape[0] != 16:
        raise ValueError("key and out must have 16 bytes")
    if n_bytes:
        start = &message[0]
    if not portable and clmul_accelerated():
        absorb = gf128_absorb_accelerated
    with nogil:
        hash_message(&key[0], start, n_bytes, &out[0], absorb)
