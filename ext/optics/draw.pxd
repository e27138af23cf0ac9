# Random numbers in line, for kernels that draw some for every detection (text, no module of its own): eight lanes of
# xoshiro256++ of D. Blackman and S. Vigna (ACM Trans. Math. Softw. 47, 36, 2021) that take turns, seeded from 32 words,
# and the ziggurat of G. Marsaglia and W. W. Tsang (J. Stat. Softw. 5, 8, 2000) with 256 layers in the form of J. A.
# Doornik: the layer and the place in it come from different bits. Many at a time they are drawn side by side where the
# processor can; the numbers are the same ones everywhere, but for the last digits that a C library's exp may differ in.
from libc.stdint cimport uint64_t
from numpy.random cimport bitgen_t

cdef extern from *:
    """
    #ifndef QKDHW_DRAW
    #define QKDHW_DRAW
    #include <math.h>
    #include <stdint.h>
    #include <string.h>

    #define DRAW_LANES 8
    #define DRAW_MANY 256
    #define DRAW_SELDOM __attribute__((noinline, cold))
    #define DRAW_UNUSED __attribute__((unused)) static

    typedef struct {
        uint64_t s[4][DRAW_LANES];
        uint64_t next[DRAW_LANES];  /* the last of them are left */
        int64_t left;
    } draw_t;

    /* A ziggurat: where its layers end, how much of each lies under the next, the height of the curve there. */
    typedef struct {
        double x[257], r[256], y[257];
    } draw_layers_t;

    static draw_layers_t draw_normal_layers, draw_exponential_layers;
    #define DRAW_NORMAL_END 3.6541528853610088
    #define DRAW_EXPONENTIAL_END 7.69711747013104972

    typedef struct {
        void (*words)(draw_t *d, uint64_t *word, long n);  /* n is a multiple of 8 */
        void (*normals)(draw_t *d, const uint64_t *word, double *out, long n);
        void (*exponentials)(draw_t *d, const uint64_t *word, double *out, long n);
    } draw_how_t;

    static void draw_words_plain(draw_t *d, uint64_t *word, long n)
    {
        for (; n > 0; n -= DRAW_LANES, word += DRAW_LANES)
            for (int lane = 0; lane < DRAW_LANES; lane++) {
                uint64_t s0 = d->s[0][lane], s1 = d->s[1][lane], s2 = d->s[2][lane], s3 = d->s[3][lane];
                const uint64_t sum = s0 + s3, t = s1 << 17;
                word[lane] = ((sum << 23) | (sum >> 41)) + s0;
                s2 ^= s0;
                s3 ^= s1;
                s1 ^= s2;
                s0 ^= s3;
                s2 ^= t;
                s3 = (s3 << 45) | (s3 >> 19);
                d->s[0][lane] = s0;
                d->s[1][lane] = s1;
                d->s[2][lane] = s2;
                d->s[3][lane] = s3;
            }
    }

    static inline uint64_t draw_word(draw_t *d)
    {
        if (d->left == 0) {
            draw_words_plain(d, d->next, DRAW_LANES);
            d->left = DRAW_LANES;
        }
        return d->next[DRAW_LANES - d->left--];
    }

    static inline double draw_uniform(draw_t *d)
    {
        return (double)(draw_word(d) >> 11) * 0x1p-53;
    }

    static inline double draw_signed(uint64_t word)
    {
        return (double)((int64_t)word >> 11) * 0x1p-52;
    }

    static inline double draw_positive(uint64_t word)
    {
        return (double)(int64_t)(word >> 11) * 0x1p-53;
    }

    static double draw_normal(draw_t *d);
    static double draw_exponential(draw_t *d);

    /* Whether a place in layer i, beyond the next layer, is under the curve there, which has the given height. */
    static inline int draw_is_under(draw_t *d, const draw_layers_t *layers, int i, double height)
    {
        return layers->y[i + 1] + draw_uniform(d) * (layers->y[i] - layers->y[i + 1]) < height;
    }

    DRAW_SELDOM static double draw_normal_edge(draw_t *d, uint64_t word)
    {
        const int i = (int)(word & 0xff);
        const double u = draw_signed(word), x = u * draw_normal_layers.x[i];
        if (i == 0) {
            double beyond, height;
            do {
                beyond = draw_exponential(d) / DRAW_NORMAL_END;
                height = draw_exponential(d);
            } while (2 * height < beyond * beyond);
            return u < 0 ? -(DRAW_NORMAL_END + beyond) : DRAW_NORMAL_END + beyond;
        }
        return draw_is_under(d, &draw_normal_layers, i, exp(-x * x / 2)) ? x : draw_normal(d);
    }

    DRAW_SELDOM static double draw_exponential_edge(draw_t *d, uint64_t word)
    {
        const int i = (int)(word & 0xff);
        const double x = draw_positive(word) * draw_exponential_layers.x[i];
        if (i == 0)
            return DRAW_EXPONENTIAL_END + draw_exponential(d);
        return draw_is_under(d, &draw_exponential_layers, i, exp(-x)) ? x : draw_exponential(d);
    }

    static inline double draw_normal_of(draw_t *d, uint64_t word)
    {
        const int i = (int)(word & 0xff);
        const double u = draw_signed(word);
        return fabs(u) < draw_normal_layers.r[i] ? u * draw_normal_layers.x[i] : draw_normal_edge(d, word);
    }

    static inline double draw_exponential_of(draw_t *d, uint64_t word)
    {
        const int i = (int)(word & 0xff);
        const double u = draw_positive(word);
        return u < draw_exponential_layers.r[i] ? u * draw_exponential_layers.x[i] : draw_exponential_edge(d, word);
    }

    static double draw_normal(draw_t *d) { return draw_normal_of(d, draw_word(d)); }
    static double draw_exponential(draw_t *d) { return draw_exponential_of(d, draw_word(d)); }

    static void draw_normals_plain(draw_t *d, const uint64_t *word, double *out, long n)
    {
        for (long k = 0; k < n; k++)
            out[k] = draw_normal_of(d, word[k]);
    }

    static void draw_exponentials_plain(draw_t *d, const uint64_t *word, double *out, long n)
    {
        for (long k = 0; k < n; k++)
            out[k] = draw_exponential_of(d, word[k]);
    }

    static const draw_how_t draw_plain = {draw_words_plain, draw_normals_plain, draw_exponentials_plain};

    #if defined(__x86_64__)
    #include <immintrin.h>
    #define DRAW_WIDE __attribute__((target("avx512f,avx512dq")))

    DRAW_WIDE static void draw_words_avx512(draw_t *d, uint64_t *word, long n)
    {
        __m512i s0 = _mm512_loadu_si512(d->s[0]), s1 = _mm512_loadu_si512(d->s[1]);
        __m512i s2 = _mm512_loadu_si512(d->s[2]), s3 = _mm512_loadu_si512(d->s[3]);
        for (; n > 0; n -= DRAW_LANES, word += DRAW_LANES) {
            const __m512i t = _mm512_slli_epi64(s1, 17);
            _mm512_storeu_si512(word, _mm512_add_epi64(_mm512_rol_epi64(_mm512_add_epi64(s0, s3), 23), s0));
            s2 = _mm512_xor_si512(s2, s0);
            s3 = _mm512_xor_si512(s3, s1);
            s1 = _mm512_xor_si512(s1, s2);
            s0 = _mm512_xor_si512(s0, s3);
            s2 = _mm512_xor_si512(s2, t);
            s3 = _mm512_rol_epi64(s3, 45);
        }
        _mm512_storeu_si512(d->s[0], s0);
        _mm512_storeu_si512(d->s[1], s1);
        _mm512_storeu_si512(d->s[2], s2);
        _mm512_storeu_si512(d->s[3], s3);
    }

    #define DRAW_ZIGGURAT_AVX512(law, shift, scale)                                                                   \
        DRAW_WIDE static void draw_##law##s_avx512(draw_t *d, const uint64_t *word, double *out, long n)              \
        {                                                                                                             \
            for (long k = 0; k < n; k += DRAW_LANES) {                                                                \
                const __mmask8 lanes = n - k < DRAW_LANES ? (__mmask8)((1 << (n - k)) - 1) : 0xFF;                    \
                const __m512i w = _mm512_maskz_loadu_epi64(lanes, word + k);                                          \
                const __m512i i = _mm512_and_si512(w, _mm512_set1_epi64(0xff));                                       \
                const __m512d u = _mm512_mul_pd(_mm512_cvtepi64_pd(shift(w, 11)), _mm512_set1_pd(scale));             \
                const __m512d x = _mm512_i64gather_pd(i, draw_##law##_layers.x, 8);                                   \
                const __m512d r = _mm512_i64gather_pd(i, draw_##law##_layers.r, 8);                                   \
                unsigned edge = lanes & ~_mm512_cmp_pd_mask(_mm512_abs_pd(u), r, _CMP_LT_OQ);                         \
                _mm512_mask_storeu_pd(out + k, lanes, _mm512_mul_pd(u, x));                                           \
                for (; __builtin_expect(edge, 0); edge &= edge - 1)                                                   \
                    out[k + __builtin_ctz(edge)] = draw_##law##_edge(d, word[k + __builtin_ctz(edge)]);               \
            }                                                                                                         \
        }
    DRAW_ZIGGURAT_AVX512(normal, _mm512_srai_epi64, 0x1p-52)
    DRAW_ZIGGURAT_AVX512(exponential, _mm512_srli_epi64, 0x1p-53)

    static const draw_how_t draw_avx512 = {draw_words_avx512, draw_normals_avx512, draw_exponentials_avx512};
    #endif

    /* Many at a time: the words first, for a ziggurat does not wait for the one before. */
    static void draw_words(const draw_how_t *how, draw_t *d, uint64_t *word, long n)
    {
        const long kept = n < d->left ? n : d->left;
        memcpy(word, d->next + DRAW_LANES - d->left, kept * sizeof *word);
        d->left -= kept;
        word += kept;
        n -= kept;
        how->words(d, word, n - n % DRAW_LANES);
        for (word += n - n % DRAW_LANES, n %= DRAW_LANES; n > 0; n--)
            *word++ = draw_word(d);
    }

    DRAW_UNUSED void draw_normals_by(const draw_how_t *how, draw_t *d, double *out, long n)
    {
        uint64_t word[DRAW_MANY];
        for (; n > 0; n -= DRAW_MANY, out += DRAW_MANY) {
            const long m = n < DRAW_MANY ? n : DRAW_MANY;
            draw_words(how, d, word, m);
            how->normals(d, word, out, m);
        }
    }

    DRAW_UNUSED void draw_exponentials_by(const draw_how_t *how, draw_t *d, double *out, long n)
    {
        uint64_t word[DRAW_MANY];
        for (; n > 0; n -= DRAW_MANY, out += DRAW_MANY) {
            const long m = n < DRAW_MANY ? n : DRAW_MANY;
            draw_words(how, d, word, m);
            how->exponentials(d, word, out, m);
        }
    }

    static const draw_how_t *draw_widest(void)
    {
    #if defined(__x86_64__)
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
            return &draw_avx512;
    #endif
        return &draw_plain;
    }

    static const draw_how_t *draw_here = &draw_plain;
    #define draw_normals(d, out, n) draw_normals_by(draw_here, d, out, n)
    #define draw_exponentials(d, out, n) draw_exponentials_by(draw_here, d, out, n)

    static void draw_prepare(void)
    {
        const double n = DRAW_NORMAL_END, e = DRAW_EXPONENTIAL_END;
        const double normal_area = n * exp(-n * n / 2) + sqrt(acos(-1.0) / 2) * erfc(n / sqrt(2.0));
        const double exponential_area = (e + 1) * exp(-e);
        draw_layers_t *normal = &draw_normal_layers, *exponential = &draw_exponential_layers;
        normal->x[0] = normal_area * exp(n * n / 2);
        normal->x[1] = n;
        exponential->x[0] = exponential_area * exp(e);
        exponential->x[1] = e;
        for (int i = 2; i < 256; i++) {
            const double x = normal->x[i - 1], y = exponential->x[i - 1];
            normal->x[i] = sqrt(-2 * log(normal_area / x + exp(-x * x / 2)));
            exponential->x[i] = -log(exponential_area / y + exp(-y));
        }
        normal->x[256] = exponential->x[256] = 0;
        for (int i = 0; i <= 256; i++) {
            normal->y[i] = exp(-normal->x[i] * normal->x[i] / 2);
            exponential->y[i] = exp(-exponential->x[i]);
        }
        for (int i = 0; i < 256; i++) {
            normal->r[i] = normal->x[i + 1] / normal->x[i];
            exponential->r[i] = exponential->x[i + 1] / exponential->x[i];
        }
        draw_here = draw_widest();
    }
    #endif
    """
    ctypedef struct draw_t:
        uint64_t s[4][8]
        long long left
    ctypedef struct draw_how_t:
        pass
    const draw_how_t draw_plain
    const draw_how_t *draw_here
    void draw_prepare() nogil  # once for each kernel that draws
    double draw_uniform(draw_t *d) nogil
    double draw_normal(draw_t *d) nogil
    double draw_exponential(draw_t *d) nogil
    void draw_normals(draw_t *d, double *out, long n) nogil
    void draw_exponentials(draw_t *d, double *out, long n) nogil
    void draw_normals_by(const draw_how_t *how, draw_t *d, double *out, long n) nogil
    void draw_exponentials_by(const draw_how_t *how, draw_t *d, double *out, long n) nogil


cdef inline void draw_seed(draw_t *d, bitgen_t *bits) noexcept nogil:
    """Seed from a NumPy bit generator."""
    cdef int i, lane
    for i in range(4):
        for lane in range(8):
            d.s[i][lane] = bits.next_uint64(bits.state)
    draw_begin(d)


cdef inline void draw_begin(draw_t *d) noexcept nogil:
    """Make a stream of any 32 words."""
    cdef int lane
    for lane in range(8):
        d.s[0][lane] |= 1  # never all zeros
    d.left = 0
