# Philox2x64-10 as text for the kernels that need it (no module of its own): 128 bits from a counter and a key, so that
# what was drawn for a pulse can be had again at any time without what was drawn before it. Idea and constants:
# J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11; ten rounds are theirs, six pass all tests.
# Half as many multiplications as the Philox4x64-10 of NumPy, and of its two words the first is all that is used.
#
# A key has two words: the generator's key, and the upper half of the counter; the lower half is the number of the pulse.
from libc.stdint cimport uint64_t

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
    #endif
    """
    uint64_t philox_word(long long pulse, const uint64_t *key) nogil
