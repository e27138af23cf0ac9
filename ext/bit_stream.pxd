# Words of a bit stream, lowest bit first, as text for the kernels that need them (no module of its own).
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef extern from *:
    """
    #ifndef QKDHW_BIT_STREAM
    #define QKDHW_BIT_STREAM
    #include <stdint.h>
    #include <string.h>
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define QKDHW_LITTLE(word) __builtin_bswap64(word)
    #else
    #define QKDHW_LITTLE(word) (word)
    #endif

    static inline uint64_t bits_at(const uint8_t *data, int64_t bit)
    {
        uint64_t word;
        memcpy(&word, data + (bit >> 3), 8);
        return QKDHW_LITTLE(word) >> (bit & 7);
    }

    static inline void put_bits(uint8_t *data, int64_t bit, uint64_t value)
    {
        uint64_t written = data[bit >> 3] & ((1u << (bit & 7)) - 1);
        uint64_t word = QKDHW_LITTLE(written | value << (bit & 7));
        memcpy(data + (bit >> 3), &word, 8);
    }

    static inline int trailing_zeros(uint64_t word) { return __builtin_ctzll(word); }
    #endif
    """
    # At least 57 bits from a place on; 8 bytes from there must exist.
    uint64_t bits_at(const uint8_t* data, int64_t bit) nogil
    # Write up to 57 bits behind what was written; the 8 bytes from there are overwritten.
    void put_bits(uint8_t* data, int64_t bit, uint64_t value) nogil
    # Of a word that is not 0.
    int trailing_zeros(uint64_t word) nogil
