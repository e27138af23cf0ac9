# Philox4x64-10 as text for the kernels that need it (no module of its own): 256 bits from a counter and a key, so that
# what was drawn for a pulse can be had again at any time without what was drawn before it.
#
# NumPy's Philox counts before its first block: its words after Philox(key=key, counter=c) are those of the counters
# c + 1, c + 2 ... The four words of counter (b, 0, 0, 0) here are Philox(key=key, counter=b - 1).random_raw(4), with
# 2^256 - 1 for b = 0. Idea and constants: J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #ifndef QKDHW_PHILOX
    #define QKDHW_PHILOX
    #include <stdint.h>
    static inline void philox(uint64_t counter, uint64_t key0, uint64_t key1, uint64_t word[4])
    {
        typedef unsigned __int128 uint128;
        uint64_t c0 = counter, c1 = 0, c2 = 0, c3 = 0;
        for (int round = 0; round < 10; round++) {
            const uint128 left = (uint128)0xD2E7470EE14C6C93ULL * c0, right = (uint128)0xCA5A826395121157ULL * c2;
            c0 = (uint64_t)(right >> 64) ^ c1 ^ key0;
            c1 = (uint64_t)right;
            c2 = (uint64_t)(left >> 64) ^ c3 ^ key1;
            c3 = (uint64_t)left;
            key0 += 0x9E3779B97F4A7C15ULL;
            key1 += 0xBB67AE8584CAA73BULL;
        }
        word[0] = c0;
        word[1] = c1;
        word[2] = c2;
        word[3] = c3;
    }

    static inline uint64_t philox_word(int64_t pulse, const uint64_t *key)
    {
        uint64_t word[4];
        philox((uint64_t)pulse >> 2, key[0], key[1], word);
        return word[pulse & 3];
    }
    #endif
    """
    void philox(uint64_t counter, uint64_t key0, uint64_t key1, uint64_t *word) nogil
    uint64_t philox_word(long long pulse, const uint64_t *key) nogil
