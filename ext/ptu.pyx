"""PicoQuant TTTR records to detection events.

Layouts, most significant bit first: PicoHarp T2 is channel 4, time 28; PicoHarp T3 is channel 4, dtime 12, nsync 16;
all later instruments share special 1, channel 6, time 25 (T2) and special 1, channel 6, dtime 15, nsync 10 (T3).

Every function writes at most one event a record and returns how many it wrote. `state` (int64, 4) is carried from
one chunk of a file to the next: ticks added by overflow records so far, overflow records so far, invalid records so
far, and the index in this chunk of its first invalid record or -1. An invalid record gives an event of kind 255
(INVALID) and channel 0 at the time of the overflows so far, for the caller to make a gap of. A channel is 0 for the
sync input, the input number from 1 for others, and the bit pattern for a marker (kind 1).

Source: PicoQuant, "Time Tagged File Format Demos", appendix "TTTR record types", and its PTU reading demos.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #if defined(__x86_64__)
    #include <immintrin.h>
    static int ptu_has_avx512(void)
    {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2");
    }

    /* The sum of each lane and the lanes below it. */
    __attribute__((target("avx512f,avx512dq"), always_inline)) static inline __m512i ptu_sums(__m512i v)
    {
        __m512i zero = _mm512_setzero_si512();
        v = _mm512_add_epi32(v, _mm512_alignr_epi32(v, zero, 15));
        v = _mm512_add_epi32(v, _mm512_alignr_epi32(v, zero, 14));
        v = _mm512_add_epi32(v, _mm512_alignr_epi32(v, zero, 12));
        return _mm512_add_epi32(v, _mm512_alignr_epi32(v, zero, 8));
    }

    /* Decode blocks of 16 HydraHarp records, T3 if fine is given, as long as all are valid; stop before others.
       Sums of overflows stay below limit by 2^60, what 1024 records can add. Returns the records decoded. Outputs have
       room for as many events as records; what lies beyond the events may be overwritten. */
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,bmi2,popcnt"))) static ptrdiff_t ptu_decode_avx512(
        const uint32_t *record, ptrdiff_t n, int64_t wrap, int counted, int64_t limit, int64_t *time, uint16_t *fine,
        uint8_t *channel, uint8_t *kind, ptrdiff_t *events, int64_t *base, int64_t *overflows)
    {
        ptrdiff_t i, k = 0;
        __m512i one = _mm512_set1_epi32(1), wraps = _mm512_set1_epi64(wrap), last = _mm512_set1_epi64(7);
        __m512i low = _mm512_set1_epi32(fine ? 0x3FF : 0x1FFFFFF), sum = _mm512_set1_epi64(*base);
        for (i = 0; i + 16 <= n; i += 16) {
            __m512i w = _mm512_loadu_si512(record + i);
            __mmask16 special = _mm512_movepi32_mask(w);
            __m512i source = _mm512_and_si512(_mm512_srli_epi32(w, 25), _mm512_set1_epi32(63));
            __m512i ticks = _mm512_and_si512(w, low);
            __mmask16 over = _mm512_mask_cmpeq_epi32_mask(special, source, _mm512_set1_epi32(63));
            __mmask16 other = special & ~over;
            __mmask16 invalid = _mm512_mask_cmpgt_epi32_mask(other, source, _mm512_set1_epi32(15));
            if (fine) invalid |= _mm512_mask_cmpeq_epi32_mask(other, source, _mm512_setzero_si512());
            if (invalid) break;
            if (i % 1024 == 0 && _mm_cvtsi128_si64(_mm512_castsi512_si128(sum)) >= limit) break;

            __m512i count = _mm512_maskz_max_epu32(over, counted ? ticks : one, one);
            count = ptu_sums(count); /* 16 times 2^25 fit 32 bits */
            __m512i step0 = _mm512_mul_epu32(_mm512_cvtepu32_epi64(_mm512_castsi512_si256(count)), wraps);
            __m512i step1 = _mm512_mul_epu32(_mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(count, 1)), wraps);
            step0 = _mm512_add_epi64(sum, step0);
            step1 = _mm512_add_epi64(sum, step1);
            sum = _mm512_permutexvar_epi64(last, step1);
            __m512i time0 = _mm512_add_epi64(step0, _mm512_cvtepu32_epi64(_mm512_castsi512_si256(ticks)));
            __m512i time1 = _mm512_add_epi64(step1, _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(ticks, 1)));

            __mmask16 keep = ~over;
            __m512i input = _mm512_mask_add_epi32(source, ~special, source, one);
            __mmask16 marker = _mm512_mask_test_epi32_mask(special, source, source);
            ptrdiff_t first = __builtin_popcount(keep & 255);
            _mm512_storeu_si512(time + k, _mm512_maskz_compress_epi64((__mmask8)keep, time0));
            _mm512_storeu_si512(time + k + first, _mm512_maskz_compress_epi64((__mmask8)(keep >> 8), time1));
            _mm_storeu_si128((__m128i *)(channel + k), _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(keep, input)));
            _mm_storeu_si128((__m128i *)(kind + k), _mm_maskz_set1_epi8((__mmask16)_pext_u32(marker, keep), 1));
            if (fine) {
                __m512i delay = _mm512_and_si512(_mm512_srli_epi32(w, 10), _mm512_set1_epi32(0x7FFF));
                _mm256_storeu_si256((__m256i *)(fine + k),
                    _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(keep, delay)));
            }
            k += __builtin_popcount(keep);
        }
        *events = k;
        *overflows += i - k; /* each record is one or the other */
        *base = _mm_cvtsi128_si64(_mm512_castsi512_si128(sum));
        return i;
    }
    #else
    static int ptu_has_avx512(void) { return 0; }
    static ptrdiff_t ptu_decode_avx512(
        const uint32_t *record, ptrdiff_t n, int64_t wrap, int counted, int64_t limit, int64_t *time, uint16_t *fine,
        uint8_t *channel, uint8_t *kind, ptrdiff_t *events, int64_t *base, int64_t *overflows)
    {
        *events = 0;
        return 0;
    }
    #endif
    """
    bint ptu_has_avx512() noexcept nogil
    Py_ssize_t ptu_decode_avx512(
        const uint32_t *record, Py_ssize_t n, int64_t wrap, bint counted, int64_t limit, int64_t *time, uint16_t *fine,
        uint8_t *channel, uint8_t *kind, Py_ssize_t *events, int64_t *base, int64_t *overflows) noexcept nogil

cdef enum:
    PHOTON = 0
    MARKER = 1
    INVALID = 255
    LANES = 16

cdef enum:
    OVERFLOW_TICKS = 0
    OVERFLOW_RECORDS = 1
    INVALID_RECORDS = 2
    FIRST_INVALID = 3

# A file that adds up to more than this is corrupt; staying below it keeps every sum inside int64.
cdef int64_t LARGEST_TICKS = <int64_t>1 << 61
# Up to here 1024 records, each of at most 2^25 wraps of 2^25 ticks, cannot reach it.
cdef int64_t ANY_TICKS = LARGEST_TICKS - (<int64_t>1 << 60)


def decode_picoharp_t2(
    const uint32_t[::1] record not None,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
):
    """Decode PicoHarp 300 T2 records; return the number of events."""
    _check_lengths(record.shape[0], time.shape[0], channel.shape[0], kind.shape[0], state.shape[0])
    cdef Py_ssize_t count
    with nogil:
        count = _picoharp_t2(record, time, channel, kind, state)
    return count


def decode_picoharp_t3(
    const uint32_t[::1] record not None,
    int64_t[::1] time not None,
    uint16_t[::1] fine not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
):
    """Decode PicoHarp 300 T3 records; return the number of events."""
    _check_lengths(record.shape[0], time.shape[0], channel.shape[0], kind.shape[0], state.shape[0])
    if fine.shape[0] < record.shape[0]:
        raise ValueError("fine is shorter than record")
    cdef Py_ssize_t count
    with nogil:
        count = _picoharp_t3(record, time, fine, channel, kind, state)
    return count


def decode_hydraharp_t2(
    const uint32_t[::1] record not None,
    int64_t wrap_ticks,
    bint counted,
    int64_t[::1] time not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
    bint portable=False,
):
    """Decode HydraHarp, TimeHarp and Generic T2 records; return the number of events.

    An overflow record adds `wrap_ticks`, times its time field if `counted` (0 counts as 1). `portable` asks for the
    plain loop where a faster one would be taken; the answer is the same.
    """
    _check_lengths(record.shape[0], time.shape[0], channel.shape[0], kind.shape[0], state.shape[0])
    if not 0 < wrap_ticks <= 33554432:
        raise ValueError("wrap_ticks is outside 1..33554432")
    cdef Py_ssize_t count
    with nogil:
        count = _hydraharp_t2(record, wrap_ticks, counted, time, channel, kind, state, portable)
    return count


def decode_hydraharp_t3(
    const uint32_t[::1] record not None,
    bint counted,
    int64_t[::1] time not None,
    uint16_t[::1] fine not None,
    uint8_t[::1] channel not None,
    uint8_t[::1] kind not None,
    int64_t[::1] state not None,
    bint portable=False,
):
    """Decode HydraHarp, TimeHarp and Generic T3 records; return the number of events.

    An overflow record adds 1024 syncs, times its nsync field if `counted` (0 counts as 1). `portable` as above.
    """
    _check_lengths(record.shape[0], time.shape[0], channel.shape[0], kind.shape[0], state.shape[0])
    if fine.shape[0] < record.shape[0]:
        raise ValueError("fine is shorter than record")
    cdef Py_ssize_t count
    with nogil:
        count = _hydraharp_t3(record, counted, time, fine, channel, kind, state, portable)
    return count


cdef int _check_lengths(
    Py_ssize_t records, Py_ssize_t time, Py_ssize_t channel, Py_ssize_t kind, Py_ssize_t state
) except -1:
    if min(time, channel, kind) < records:
        raise ValueError("an output is shorter than record")
    if state < 4:
        raise ValueError("state holds fewer than 4 numbers")
    return 0


cdef Py_ssize_t _put_invalid(
    int64_t[::1] state, Py_ssize_t i, int64_t[::1] time, uint8_t[::1] channel, uint8_t[::1] kind, Py_ssize_t k,
    int64_t base,
) except -1 nogil:
    """Note an invalid record, write an event in its place, and return the next event's index."""
    if state[FIRST_INVALID] < 0:
        state[FIRST_INVALID] = i
    state[INVALID_RECORDS] += 1
    time[k] = base
    channel[k] = 0
    kind[k] = INVALID
    return k + 1


cdef int _add_overflow(int64_t[::1] state, int64_t* base, int64_t ticks) except -1 nogil:
    """Carry the clock on and return 1, or return 0 if that is beyond any recording."""
    if ticks > LARGEST_TICKS - base[0]:
        return 0
    state[OVERFLOW_RECORDS] += 1
    base[0] += ticks
    return 1


cdef Py_ssize_t _picoharp_t2(
    const uint32_t[::1] record, int64_t[::1] time, uint8_t[::1] channel, uint8_t[::1] kind, int64_t[::1] state
) except -1 nogil:
    cdef Py_ssize_t i, k = 0
    cdef uint32_t word, source
    cdef int64_t ticks, base = state[OVERFLOW_TICKS]
    state[FIRST_INVALID] = -1
    for i in range(record.shape[0]):
        word = record[i]
        source = word >> 28
        ticks = word & 0x0FFFFFFF
        if source <= 4:
            time[k] = base + ticks
            channel[k] = <uint8_t>source
            kind[k] = PHOTON
            k += 1
        elif source != 15:
            k = _put_invalid(state, i, time, channel, kind, k, base)
        elif word & 15:
            # The low four bits are the markers and no part of the time.
            time[k] = base + (ticks & ~<int64_t>15)
            channel[k] = <uint8_t>(word & 15)
            kind[k] = MARKER
            k += 1
        elif not _add_overflow(state, &base, 210698240):
            k = _put_invalid(state, i, time, channel, kind, k, base)
    state[OVERFLOW_TICKS] = base
    return k


cdef Py_ssize_t _picoharp_t3(
    const uint32_t[::1] record,
    int64_t[::1] time,
    uint16_t[::1] fine,
    uint8_t[::1] channel,
    uint8_t[::1] kind,
    int64_t[::1] state,
) except -1 nogil:
    cdef Py_ssize_t i, k = 0
    cdef uint32_t word, source, delay
    cdef int64_t base = state[OVERFLOW_TICKS]
    state[FIRST_INVALID] = -1
    for i in range(record.shape[0]):
        word = record[i]
        source = word >> 28
        delay = (word >> 16) & 0xFFF
        if 1 <= source <= 4:
            time[k] = base + (word & 0xFFFF)
            fine[k] = <uint16_t>delay
            channel[k] = <uint8_t>source
            kind[k] = PHOTON
            k += 1
        elif source != 15 or delay > 15:
            fine[k] = 0
            k = _put_invalid(state, i, time, channel, kind, k, base)
        elif delay:
            time[k] = base + (word & 0xFFFF)
            fine[k] = 0
            channel[k] = <uint8_t>delay
            kind[k] = MARKER
            k += 1
        elif not _add_overflow(state, &base, 65536):
            fine[k] = 0
            k = _put_invalid(state, i, time, channel, kind, k, base)
    state[OVERFLOW_TICKS] = base
    return k


cdef Py_ssize_t _hydraharp_t2(
    const uint32_t[::1] record,
    int64_t wrap_ticks,
    bint counted,
    int64_t[::1] time,
    uint8_t[::1] channel,
    uint8_t[::1] kind,
    int64_t[::1] state,
    bint portable,
) except -1 nogil:
    cdef Py_ssize_t i = 0, k = 0, events, n = record.shape[0], end
    cdef uint32_t word, source
    cdef int64_t ticks, base = state[OVERFLOW_TICKS]
    cdef bint fast = ptu_has_avx512() and not portable
    state[FIRST_INVALID] = -1
    while i < n:
        if fast and n - i >= LANES:
            i += ptu_decode_avx512(
                &record[i], n - i, wrap_ticks, counted, ANY_TICKS, &time[k], NULL, &channel[k], &kind[k], &events,
                &base, &state[OVERFLOW_RECORDS],
            )
            k += events
        end = min(i + LANES, n) if fast else n
        while i < end:
            word = record[i]
            source = (word >> 25) & 63
            ticks = word & 0x1FFFFFF
            if word < 0x80000000u:
                time[k] = base + ticks
                channel[k] = <uint8_t>(source + 1)
                kind[k] = PHOTON
                k += 1
            elif source == 63:
                # In 64 bits: the field reaches 2^25 - 1 and a wrap is 2^25 ticks.
                if not counted or ticks == 0:
                    ticks = 1
                if not _add_overflow(state, &base, ticks * wrap_ticks):
                    k = _put_invalid(state, i, time, channel, kind, k, base)
            elif source <= 15:
                time[k] = base + ticks
                channel[k] = <uint8_t>source
                kind[k] = MARKER if source else PHOTON
                k += 1
            else:
                k = _put_invalid(state, i, time, channel, kind, k, base)
            i += 1
    state[OVERFLOW_TICKS] = base
    return k


cdef Py_ssize_t _hydraharp_t3(
    const uint32_t[::1] record,
    bint counted,
    int64_t[::1] time,
    uint16_t[::1] fine,
    uint8_t[::1] channel,
    uint8_t[::1] kind,
    int64_t[::1] state,
    bint portable,
) except -1 nogil:
    cdef Py_ssize_t i = 0, k = 0, events, n = record.shape[0], end
    cdef uint32_t word, source
    cdef int64_t syncs, base = state[OVERFLOW_TICKS]
    cdef bint fast = ptu_has_avx512() and not portable
    state[FIRST_INVALID] = -1
    while i < n:
        if fast and n - i >= LANES:
            i += ptu_decode_avx512(
                &record[i], n - i, 1024, counted, ANY_TICKS, &time[k], &fine[k], &channel[k], &kind[k], &events, &base,
                &state[OVERFLOW_RECORDS],
            )
            k += events
        end = min(i + LANES, n) if fast else n
        while i < end:
            word = record[i]
            source = (word >> 25) & 63
            syncs = word & 0x3FF
            if word < 0x80000000u:
                time[k] = base + syncs
                fine[k] = <uint16_t>((word >> 10) & 0x7FFF)
                channel[k] = <uint8_t>(source + 1)
                kind[k] = PHOTON
                k += 1
            elif source == 63:
                if not counted or syncs == 0:
                    syncs = 1
                if not _add_overflow(state, &base, syncs * 1024):
                    fine[k] = 0
                    k = _put_invalid(state, i, time, channel, kind, k, base)
            elif 1 <= source <= 15:
                time[k] = base + syncs
                fine[k] = <uint16_t>((word >> 10) & 0x7FFF)
                channel[k] = <uint8_t>source
                kind[k] = MARKER
                k += 1
            else:
                fine[k] = 0
                k = _put_invalid(state, i, time, channel, kind, k, base)
            i += 1
    state[OVERFLOW_TICKS] = base
    return k
