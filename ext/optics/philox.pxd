# Philox4x32-10 as text for the kernels that need it (no module of its own): 128 bits from a counter and a key, so that
# what was drawn for a pulse can be had again at any time without what was drawn before it. Idea and constants:
# J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11; ten rounds are theirs, seven pass all tests.
# Of its four words of 32 bits the first two are all that is used. Its products are of 32 bits, which vectors have.
#
# A key has two words: the generator's, and the upper half of the counter; the lower half is the number of the pulse.
from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #ifndef QKDHW_PHILOX
    #define QKDHW_PHILOX
    #include <stdint.h>
    #define PHILOX_M0 0xD2511F53u
    #define PHILOX_M1 0xCD9E8D57u
    #define PHILOX_W0 0x9E3779B9u
    #define PHILOX_W1 0xBB67AE85u

    static inline uint64_t philox_word(int64_t pulse, const uint64_t *key)
    {
        uint32_t c0 = (uint32_t)pulse, c1 = (uint32_t)((uint64_t)pulse >> 32);
        uint32_t c2 = (uint32_t)key[1], c3 = (uint32_t)(key[1] >> 32);
        uint32_t k0 = (uint32_t)key[0], k1 = (uint32_t)(key[0] >> 32);
        for (int round = 0; round < 10; round++) {
            const uint64_t p0 = (uint64_t)PHILOX_M0 * c0, p1 = (uint64_t)PHILOX_M1 * c2;
            c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
            c1 = (uint32_t)p1;
            c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
            c3 = (uint32_t)p0;
            k0 += PHILOX_W0;
            k1 += PHILOX_W1;
        }
        return (uint64_t)c1 << 32 | c0;
    }

    /* Many at a time, each a lane of its own where the processor has lanes. */
    typedef void (*philox_many)(const int64_t *pulse, const uint64_t *key, uint64_t *word, long n);

    static void philox_words_plain(const int64_t *pulse, const uint64_t *key, uint64_t *word, long n)
    {
        for (long k = 0; k < n; k++)
            word[k] = philox_word(pulse[k], key);
    }

    #if defined(__x86_64__)
    #include <immintrin.h>
    typedef struct {
        __m512i c0, c1, c2, c3;  /* in the lower halves of their lanes; the upper ones are of no account */
    } philox_lanes;

    __attribute__((target("avx512f,avx512dq"), always_inline)) static inline philox_lanes philox_round(
        philox_lanes c, __m512i k0, __m512i k1)
    {
        const __m512i p0 = _mm512_mul_epu32(_mm512_set1_epi64(PHILOX_M0), c.c0);
        const __m512i p1 = _mm512_mul_epu32(_mm512_set1_epi64(PHILOX_M1), c.c2);
        c.c0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c.c1, k0, 0x96);
        c.c1 = p1;
        c.c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c.c3, k1, 0x96);
        c.c3 = p0;
        return c;
    }

    __attribute__((target("avx512f,avx512dq"), always_inline)) static inline __m512i philox_first(philox_lanes c)
    {
        return _mm512_mask_blend_epi32(0xAAAA, c.c0, _mm512_slli_epi64(c.c1, 32));
    }

    __attribute__((target("avx512f,avx512dq"))) static void philox_words_avx512(
        const int64_t *pulse, const uint64_t *key, uint64_t *word, long n)
    {
        for (; n > 0; n -= 16, pulse += 16, word += 16) {
            const __mmask16 lanes = n < 16 ? (__mmask16)((1 << n) - 1) : 0xFFFF;
            const __mmask8 lanes_a = (__mmask8)lanes, lanes_b = (__mmask8)(lanes >> 8);
            philox_lanes a, b;
            uint32_t k0 = (uint32_t)key[0], k1 = (uint32_t)(key[0] >> 32);
            a.c0 = _mm512_maskz_loadu_epi64(lanes_a, pulse);
            b.c0 = _mm512_maskz_loadu_epi64(lanes_b, pulse + 8);
            a.c1 = _mm512_srli_epi64(a.c0, 32);
            b.c1 = _mm512_srli_epi64(b.c0, 32);
            a.c2 = b.c2 = _mm512_set1_epi64((long long)key[1]);
            a.c3 = b.c3 = _mm512_srli_epi64(a.c2, 32);
            for (int round = 0; round < 10; round++) {
                const __m512i key0 = _mm512_set1_epi64(k0), key1 = _mm512_set1_epi64(k1);
                a = philox_round(a, key0, key1);
                b = philox_round(b, key0, key1);
                k0 += PHILOX_W0;
                k1 += PHILOX_W1;
            }
            _mm512_mask_storeu_epi64(word, lanes_a, philox_first(a));
            _mm512_mask_storeu_epi64(word + 8, lanes_b, philox_first(b));
        }
    }

    static philox_many philox_widest(void)
    {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") ? philox_words_avx512
                                                                                      : philox_words_plain;
    }
    #else
    static philox_many philox_widest(void) { return philox_words_plain; }
    #endif
    #endif
    """
    ctypedef void (*philox_many)(const int64_t *pulse, const uint64_t *key, uint64_t *word, long n) noexcept nogil
    uint64_t philox_word(long long pulse, const uint64_t *key) nogil
    void philox_words_plain(const int64_t *pulse, const uint64_t *key, uint64_t *word, long n) noexcept nogil
    philox_many philox_widest() nogil
