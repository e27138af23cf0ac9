# Bytes that are kept, moved together, as text for the kernels that need it (no module of its own).
#
# Timing: a byte's place is chosen by `keep` alone, never by the byte.
from libc.stdint cimport uint8_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #if defined(__x86_64__)
    #include <immintrin.h>
    static int compress_has_avx512(void)
    {
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi2");
    }

    /* Write the lowest bit and the bits above it of each value whose keep is not 0; return how many. Reads both
       arrays to the next multiple of 64, writes what is kept and no more. */
    __attribute__((target("avx512f,avx512bw,avx512vbmi2,popcnt"))) static ptrdiff_t compress_avx512(
        ptrdiff_t n, const uint8_t *value, const uint8_t *keep, uint8_t *low, uint8_t *above)
    {
        ptrdiff_t i, k = 0;
        const __m512i one = _mm512_set1_epi8(1);
        for (i = 0; i < n; i += 64) {
            __mmask64 wanted = n - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n - i)) - 1;
            __m512i flags = _mm512_loadu_si512(keep + i);
            wanted &= _mm512_test_epi8_mask(flags, flags);
            int count = __builtin_popcountll(wanted);
            __mmask64 places = count == 64 ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1;
            __m512i kept = _mm512_maskz_compress_epi8(wanted, _mm512_loadu_si512(value + i));
            _mm512_mask_storeu_epi8(low + k, places, _mm512_and_si512(kept, one));
            _mm512_mask_storeu_epi8(
                above + k, places, _mm512_and_si512(_mm512_srli_epi16(kept, 1), _mm512_set1_epi8(127)));
            k += count;
        }
        return k;
    }
    #else
    static int compress_has_avx512(void) { return 0; }
    static ptrdiff_t compress_avx512(
        ptrdiff_t n, const uint8_t *value, const uint8_t *keep, uint8_t *low, uint8_t *above)
    {
        return 0;
    }
    #endif
    """
    bint compress_has_avx512() noexcept nogil
    Py_ssize_t compress_avx512(
        Py_ssize_t n, const uint8_t *value, const uint8_t *keep, uint8_t *low, uint8_t *above) noexcept nogil
