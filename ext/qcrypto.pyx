"""Event words of the S-Fifteen / CQT time tagger family to detection events.

A word holds the time in its upper bits (54 bits of 1/256 ns on a TDC2, 49 bits of 125 ps on the older cards), bit 4
marks a dummy that the tagger sends so that no roll-over is missed, bits 3..0 say which of four inputs fired. In its
fast mode a TDC2 sends words of 32 bits: 26 bits of 1/256 ns, then the same; a word 0 is an empty transfer.

Source: qcrypto project, remotecrypto/filespec.txt (raw event format) and the description of timestamp7 output.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #if defined(__x86_64__)
    #include <immintrin.h>
    static int qcrypto_has_avx512(void) { return __builtin_cpu_supports("avx512f"); }

    /* Decode words, 8 at once, as long as each is a dummy or has one input, and no wrap; stop before another. Returns
       the words decoded, each of which gave one event; up to 7 events beyond them may be overwritten. */
    __attribute__((target("avx512f"))) static ptrdiff_t qcrypto_decode_avx512(
        const uint64_t *word, ptrdiff_t n, int shift, int high_half_first, int64_t *time, uint8_t *channel,
        uint8_t *kind, int64_t *pattern_count, int64_t *dummies, int64_t *previous, int64_t base)
    {
        ptrdiff_t i, count[5] = {0};
        __m512i before = _mm512_set1_epi64(*previous), half = _mm512_set1_epi64((int64_t)1 << (63 - shift));
        for (i = 0; i + 8 <= n; i += 8) {
            __m512i w = _mm512_loadu_si512(word + i);
            if (high_half_first) w = _mm512_rol_epi64(w, 32);
            __m512i raw = _mm512_srl_epi64(w, _mm_cvtsi32_si128(shift));
            __m512i step = _mm512_sub_epi64(raw, _mm512_alignr_epi64(raw, before, 7));
            __m512i input = _mm512_and_si512(w, _mm512_set1_epi64(15));
            __mmask8 dummy = _mm512_test_epi64_mask(w, _mm512_set1_epi64(16));
            __mmask8 one = _mm512_mask_cmpeq_epi64_mask(~dummy, input, _mm512_set1_epi64(1));
            __mmask8 two = _mm512_mask_cmpeq_epi64_mask(~dummy, input, _mm512_set1_epi64(2));
            __mmask8 three = _mm512_mask_cmpeq_epi64_mask(~dummy, input, _mm512_set1_epi64(4));
            __mmask8 four = _mm512_mask_cmpeq_epi64_mask(~dummy, input, _mm512_set1_epi64(8));
            __mmask8 wrap = _mm512_cmpgt_epi64_mask(_mm512_abs_epi64(step), half);
            unsigned simple = (dummy | one | two | three | four) & ~wrap & 255;
            input = _mm512_mask_sub_epi64(input, three, input, _mm512_set1_epi64(1));
            input = _mm512_maskz_mov_epi64(~dummy, _mm512_mask_srli_epi64(input, four, input, 1));
            _mm512_storeu_si512(time + i, _mm512_add_epi64(raw, _mm512_set1_epi64(base)));
            _mm_storel_epi64((__m128i *)(channel + i), _mm512_cvtepi64_epi8(input));
            _mm_storel_epi64((__m128i *)(kind + i), _mm512_cvtepi64_epi8(_mm512_maskz_set1_epi64(dummy, 6)));
            unsigned done = simple == 255 ? 255 : simple & ~(simple + 1); /* the lanes below the first other one */
            count[0] += __builtin_popcount(one & done);
            count[1] += __builtin_popcount(two & done);
            count[2] += __builtin_popcount(three & done);
            count[3] += __builtin_popcount(four & done);
            count[4] += __builtin_popcount(dummy & done);
            if (simple != 255) {
                i += __builtin_popcount(done);
                break;
            }
            before = raw;
        }
        for (int bit = 0; bit < 4; bit++) pattern_count[1 << bit] += count[bit];
        *dummies += count[4];
        if (i) *previous = time[i - 1] - base;
        return i;
    }
    #else
    static int qcrypto_has_avx512(void) { return 0; }
    static ptrdiff_t qcrypto_decode_avx512(
        const uint64_t *word, ptrdiff_t n, int shift, int high_half_first, int64_t *time, uint8_t *channel,
        uint8_t *kind, int64_t *pattern_count, int64_t *dummies, int64_t *previous, int64_t base)
    {
        return 0;
    }
    #endif
    """
    bint qcrypto_has_avx512() noexcept nogil
    Py_ssize_t qcrypto_decode_avx512(
        const uint64_t *word, Py_ssize_t n, int shift, bint high_half_first, int64_t *time, uint8_t *channel,
        uint8_t *kind, int64_t *pattern_count, int64_t *dummies, int64_t *previous, int64_t base) noexcept nogil

cdef enum:
    PHOTON = 0
    DUMMY = 6
    INVALID = 255
    LANES = 8
    FAST_BITS = 26

cdef enum:
    PREVIOUS_TICKS = 0
    BASE_TICKS = 1
    DUMMY_RECORDS = 2
    INVALID_RECORDS = 3
    FIRST_INVALID = 4
    VOID_RECORDS = 5

# Times that add up to more than this are corrupt (a TDC2 needs 256 wraps, half a year, to get there).
cdef int64_t LARGEST_TICKS = <int64_t>1 << 62

# The channel of a pattern with one bit set, else 0.
cdef uint8_t[16] SINGLE_CHANNEL = [0, 1, 2, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]


def decode_words(
    const uint64_t[::1] word not None,
    int time_bits,
    bint high_word_first,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] pattern_count not None,
    int64_t[::1] state not None,
    bint portable=False,
):
    """Decode event words; return the number of events.

    A word with several inputs gives one event each, lowest input first, all at the same time. A dummy gives one
    event on channel 0. A word with no input and no dummy bit gives no event and counts as pattern 0. The tagger's
    counter is unwrapped: a step back by more than half of its range is a wrap, a smaller one is left as it is.

    Args:
        word: uint64 (n,).
        time_bits: 54 or 49.
        high_word_first: The file stores the upper 32 bits first ("legacy" order).
        time: int64 (>= 4 n,), out.
        channel: uint8 (>= 4 n,), out.
        kind: uint8 (>= 4 n,), out.
        pattern_count: int64 (16,), in and out: words per input pattern, without dummies.
        state: int64 (5,), carried between chunks: last raw time or -1, ticks added by wraps, dummies so far, invalid
            words so far, index in this chunk of its first invalid word or -1. A word is invalid if its time is out
            of range after unwrapping; it gives one event of kind 255 (INVALID) and channel 0.
        portable: Take the plain loop where a faster one would be; the answer is the same.
    """
    cdef Py_ssize_t n = word.shape[0]
    cdef Py_ssize_t count
    if time_bits not in (49, 54):
        raise ValueError("time_bits is not 49 or 54")
    if min(time.shape[0], channel.shape[0], kind.shape[0]) < 4 * n:
        raise ValueError("an output is shorter than four times word")
    if pattern_count.shape[0] != 16 or state.shape[0] < 5:
        raise ValueError("pattern_count needs 16 numbers and state 5")
    with nogil:
        count = _decode(word, time_bits, high_word_first, time, channel, kind, pattern_count, state, portable)
    return count


def decode_fast_words(
    const uint32_t[::1] word not None,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] pattern_count not None,
    int64_t[::1] state not None,
):
    """Decode the 32-bit words of a TDC2's fast mode; return the number of events.

    As `decode_words`, but times have 26 bits, a word 0 is skipped and counted, and a wrap is a step back by more than
    a quarter of the range: the tagger sends a dummy every half of it, so no true step is longer than three quarters.

    Args:
        word: uint32 (n,).
        time: int64 (>= 4 n,), out.
        channel: uint8 (>= 4 n,), out.
        kind: uint8 (>= 4 n,), out.
        pattern_count: int64 (16,), in and out.
        state: int64 (6,), carried between chunks: as for `decode_words`, then empty words so far.
    """
    cdef Py_ssize_t n = word.shape[0]
    cdef Py_ssize_t count
    if min(time.shape[0], channel.shape[0], kind.shape[0]) < 4 * n:
        raise ValueError("an output is shorter than four times word")
    if pattern_count.shape[0] != 16 or state.shape[0] < 6:
        raise ValueError("pattern_count needs 16 numbers and state 6")
    with nogil:
        count = _decode_fast(word, time, channel, kind, pattern_count, state)
    return count


cdef inline bint _unwrap(int64_t raw, int64_t span, int64_t back, int64_t* previous, int64_t* base) noexcept nogil:
    """Put the wraps before a time into base and return True, or return False if there are too many."""
    if previous[0] - raw > back and previous[0] >= 0:
        if base[0] > LARGEST_TICKS - span:
            return False
        base[0] += span
    elif raw - previous[0] > span - back and base[0] > 0:
        base[0] -= span
    previous[0] = raw
    return True


cdef inline Py_ssize_t _put(
    unsigned int low, int64_t ticks, int64_t* time, uint8_t* channel, uint8_t* kind, int64_t* pattern_count,
    int64_t* dummies,
) noexcept nogil:
    """Write the events of one word; return how many."""
    cdef Py_ssize_t k = 0
    cdef int bit
    if low & 16:
        time[0] = ticks
        channel[0] = 0
        kind[0] = DUMMY
        dummies[0] += 1
        return 1
    pattern_count[low] += 1
    if SINGLE_CHANNEL[low]:
        time[0] = ticks
        channel[0] = SINGLE_CHANNEL[low]
        kind[0] = PHOTON
        return 1
    for bit in range(4):
        if (low >> bit) & 1:
            time[k] = ticks
            channel[k] = <uint8_t>(bit + 1)
            kind[k] = PHOTON
            k += 1
    return k


cdef inline Py_ssize_t _put_invalid(
    int64_t[::1] state, Py_ssize_t i, int64_t ticks, int64_t* time, uint8_t* channel, uint8_t* kind
) except -1 nogil:
    if state[FIRST_INVALID] < 0:
        state[FIRST_INVALID] = i
    state[INVALID_RECORDS] += 1
    time[0] = ticks
    channel[0] = 0
    kind[0] = INVALID
    return 1


cdef Py_ssize_t _decode(
    const uint64_t[::1] word,
    int time_bits,
    bint high_word_first,
    int64_t[::1] time,
    uint8_t[::1] channel,
    uint8_t[::1] kind,
    int64_t[::1] pattern_count,
    int64_t[::1] state,
    bint portable,
) except -1 nogil:
    cdef Py_ssize_t i = 0, k = 0, n = word.shape[0], end, done
    cdef int shift = 64 - time_bits
    cdef int64_t span = <int64_t>1 << time_bits
    cdef int64_t raw, previous = state[PREVIOUS_TICKS], base = state[BASE_TICKS]
    cdef bint fast = qcrypto_has_avx512() and not portable
    cdef uint64_t w
    state[FIRST_INVALID] = -1
    while i < n:
        if fast and previous >= 0 and n - i >= LANES:
            done = qcrypto_decode_avx512(
                &word[i], n - i, shift, high_word_first, &time[k], &channel[k], &kind[k], &pattern_count[0],
                &state[DUMMY_RECORDS], &previous, base,
            )
            i += done
            k += done
        end = i + 1 if fast and n - i >= LANES else n
        while i < end:
            w = word[i]
            if high_word_first:
                w = (w << 32) | (w >> 32)
            raw = <int64_t>(w >> shift)
            if _unwrap(raw, span, span >> 1, &previous, &base):
                k += _put(
                    w & 31, base + raw, &time[k], &channel[k], &kind[k], &pattern_count[0], &state[DUMMY_RECORDS]
                )
            else:
                k += _put_invalid(state, i, base, &time[k], &channel[k], &kind[k])
            i += 1
    state[PREVIOUS_TICKS] = previous
    state[BASE_TICKS] = base
    return k


cdef Py_ssize_t _decode_fast(
    const uint32_t[::1] word,
    int64_t[::1] time,
    uint8_t[::1] channel,
    uint8_t[::1] kind,
    int64_t[::1] pattern_count,
    int64_t[::1] state,
) except -1 nogil:
    cdef Py_ssize_t i, k = 0
    cdef int64_t span = <int64_t>1 << FAST_BITS
    cdef int64_t raw, previous = state[PREVIOUS_TICKS], base = state[BASE_TICKS]
    state[FIRST_INVALID] = -1
    for i in range(word.shape[0]):
        if word[i] == 0:
            state[VOID_RECORDS] += 1
            continue
        raw = word[i] >> (32 - FAST_BITS)
        if _unwrap(raw, span, span >> 2, &previous, &base):
            k += _put(
                word[i] & 31, base + raw, &time[k], &channel[k], &kind[k], &pattern_count[0], &state[DUMMY_RECORDS]
            )
        else:
            k += _put_invalid(state, i, base, &time[k], &channel[k], &kind[k])
    state[PREVIOUS_TICKS] = previous
    state[BASE_TICKS] = base
    return k
