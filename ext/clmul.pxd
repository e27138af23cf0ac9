# 64 x 64 -> 128 bit carry-less multiplication, as text for the kernels that need it (no module of its own).
#
# The portable form multiplies integers whose used bits stand five apart, so that no carry reaches a used bit (at
# most 13 terms meet in one, and 13 < 32). It has no branch and no table: its time does not depend on the operands
# where the machine's multiplier takes constant time. Idea: T. Pornin, "Constant-Time Crypto", BearSSL (GHASH).
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #ifndef QKDHW_CLMUL
    #define QKDHW_CLMUL
    #include <stdint.h>
    #if defined(__x86_64__)
    #include <immintrin.h>
    static inline int clmul_accelerated(void) { return __builtin_cpu_supports("pclmul") != 0; }
    #else
    static inline int clmul_accelerated(void) { return 0; }
    #endif

    static inline void clmul64(uint64_t a, uint64_t b, uint64_t *low, uint64_t *high)
    {
        typedef unsigned __int128 uint128;
        const uint64_t every_fifth = 0x1084210842108421ULL;
        const uint128 every_fifth_wide = ((uint128)0x2108421084210842ULL << 64) | every_fifth;
        uint128 result = 0;
        for (int k = 0; k < 5; k++) {
            uint128 sum = 0;
            for (int i = 0; i < 5; i++)
                sum ^= (uint128)(a & (every_fifth << i)) * (b & (every_fifth << ((k - i + 5) % 5)));
            result ^= sum & (every_fifth_wide << k);
        }
        *low = (uint64_t)result;
        *high = (uint64_t)(result >> 64);
    }
    #endif
    """
    int clmul_accelerated() nogil
    void clmul64(uint64_t a, uint64_t b, uint64_t *low, uint64_t *high) nogil
