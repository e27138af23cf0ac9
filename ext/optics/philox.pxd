# Philox2x64-10 as text for the kernels that need it (no module of its own): 128 bits from a counter and a key, so that
# what was drawn for a pulse can be had again at any time without what was drawn before it. Idea and constants:
# J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11; ten rounds are theirs, six pass all tests.
# Half as many multiplications as the Philox4x64-10 of NumPy, and of its two words the first is all that is used.
#
# A key has two words: the generator's key, and the upper half of the counter; the lower half is the number of the pulse.
from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #ifndef QKDHW_PHILOX
    #define QKDHW_PHILOX
    #include <stdint.h>
    static inline uint64_t philox_word(int64_t pulse, const uint64_t *key)
    {
        uint64_t low = (uint64_t)pulse, high = key[1], round_key = key[0];
        for (int round = 0; round < 10; round++) {
            const unsigned __int128 product = (unsigned __int128)0xD2B74407B1CE6E93ULL * low;
            low = (uint64_t)(product >> 64) ^ round_key ^ high;
            high = (uint64_t)product;
            round_key += 0x9E3779B97F4A7C15ULL;
        }
        return low;
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
    /* One round of eight lanes; the upper half of a product of 64 bits each is made of four products of 32. */
    __attribute__((target("avx512f,avx512dq"), always_inline)) static inline void philox_round(
        __m512i *low, __m512i *high, __m512i round_key)
    {
        const __m512i factor = _mm512_set1_epi64((long long)0xD2B74407B1CE6E93ULL);
        const __m512i factor_high = _mm512_set1_epi64(0xD2B74407), half = _mm512_set1_epi64(0xFFFFFFFF);
        const __m512i low_high = _mm512_srli_epi64(*low, 32);
        const __m512i first = _mm512_srli_epi64(_mm512_mul_epu32(factor, *low), 32);
        const __m512i second = _mm512_add_epi64(_mm512_mul_epu32(factor_high, *low), first);
        const __m512i third = _mm512_add_epi64(_mm512_mul_epu32(factor, low_high), _mm512_and_si512(second, half));
        const __m512i upper = _mm512_add_epi64(
            _mm512_add_epi64(_mm512_mul_epu32(factor_high, low_high), _mm512_srli_epi64(second, 32)),
            _mm512_srli_epi64(third, 32));
        const __m512i lower = _mm512_mullo_epi64(factor, *low);
        *low = _mm512_ternarylogic_epi64(upper, *high, round_key, 0x96);
        *high = lower;
    }

    __attribute__((target("avx512f,avx512dq"))) static void philox_words_avx512(
        const int64_t *pulse, const uint64_t *key, uint64_t *word, long n)
    {
        uint64_t keys[10];
        for (int round = 0; round < 10; round++)
            keys[round] = key[0] + round * 0x9E3779B97F4A7C15ULL;
        for (; n > 0; n -= 16, pulse += 16, word += 16) {
            const __mmask16 lanes = n < 16 ? (__mmask16)((1 << n) - 1) : 0xFFFF;
            const __mmask8 lanes0 = (__mmask8)lanes, lanes1 = (__mmask8)(lanes >> 8);
            __m512i high0 = _mm512_set1_epi64((long long)key[1]), high1 = high0;
            __m512i low0 = _mm512_maskz_loadu_epi64(lanes0, pulse), low1 = _mm512_maskz_loadu_epi64(lanes1, pulse + 8);
            for (int round = 0; round < 10; round++) {
                const __m512i round_key = _mm512_set1_epi64((long long)keys[round]);
                philox_round(&low0, &high0, round_key);
                philox_round(&low1, &high1, round_key);
            }
            _mm512_mask_storeu_epi64(word, lanes0, low0);
            _mm512_mask_storeu_epi64(word + 8, lanes1, low1);
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
