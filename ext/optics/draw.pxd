# Random numbers in line, for kernels that draw some for every detection (text, no module of its own): xoshiro256++ of
# D. Blackman and S. Vigna (ACM Trans. Math. Softw. 47, 36, 2021), seeded from a NumPy bit generator, and the ziggurat
# of G. Marsaglia and W. W. Tsang (J. Stat. Softw. 5, 8, 2000) with 256 layers in the form of J. A. Doornik: the layer
# and the place in it come from different bits. Two to three times as fast as calls through NumPy's bit generators.
from libc.stdint cimport uint64_t
from numpy.random cimport bitgen_t

cdef extern from *:
    """
    #ifndef QKDHW_DRAW
    #define QKDHW_DRAW
    #include <math.h>
    #include <stdint.h>

    typedef struct { uint64_t s[4]; } draw_t;

    static double draw_normal_x[257], draw_normal_r[256], draw_exponential_x[257], draw_exponential_r[256];
    #define DRAW_NORMAL_END 3.6541528853610088
    #define DRAW_EXPONENTIAL_END 7.69711747013104972

    static void draw_prepare(void)
    {
        const double n = DRAW_NORMAL_END, e = DRAW_EXPONENTIAL_END;
        const double normal_area = n * exp(-n * n / 2) + sqrt(acos(-1.0) / 2) * erfc(n / sqrt(2.0));
        const double exponential_area = (e + 1) * exp(-e);
        draw_normal_x[0] = normal_area * exp(n * n / 2);
        draw_normal_x[1] = n;
        draw_exponential_x[0] = exponential_area * exp(e);
        draw_exponential_x[1] = e;
        for (int i = 2; i < 256; i++) {
            const double x = draw_normal_x[i - 1], y = draw_exponential_x[i - 1];
            draw_normal_x[i] = sqrt(-2 * log(normal_area / x + exp(-x * x / 2)));
            draw_exponential_x[i] = -log(exponential_area / y + exp(-y));
        }
        draw_normal_x[256] = draw_exponential_x[256] = 0;
        for (int i = 0; i < 256; i++) {
            draw_normal_r[i] = draw_normal_x[i + 1] / draw_normal_x[i];
            draw_exponential_r[i] = draw_exponential_x[i + 1] / draw_exponential_x[i];
        }
    }

    static inline uint64_t draw_word(draw_t *d)
    {
        uint64_t *s = d->s;
        const uint64_t sum = s[0] + s[3], word = ((sum << 23) | (sum >> 41)) + s[0], t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = (s[3] << 45) | (s[3] >> 19);
        return word;
    }

    static void draw_words(draw_t *d, uint64_t *word, int n)
    {
        draw_t local = *d;
        for (int k = 0; k < n; k++)
            word[k] = draw_word(&local);
        *d = local;
    }

    static inline double draw_uniform(draw_t *d)
    {
        return (double)(draw_word(d) >> 11) * 0x1p-53;
    }

    #define DRAW_SELDOM __attribute__((noinline, cold))
    static double draw_exponential(draw_t *d);
    static double draw_normal(draw_t *d);

    DRAW_SELDOM static double draw_normal_edge(draw_t *d, int i, double u)
    {
        const double x = u * draw_normal_x[i];
        if (i == 0) {
            double beyond, height;
            do {
                beyond = draw_exponential(d) / DRAW_NORMAL_END;
                height = draw_exponential(d);
            } while (2 * height < beyond * beyond);
            return u < 0 ? -(DRAW_NORMAL_END + beyond) : DRAW_NORMAL_END + beyond;
        }
        const double low = exp(-(draw_normal_x[i] * draw_normal_x[i] - x * x) / 2);
        const double high = exp(-(draw_normal_x[i + 1] * draw_normal_x[i + 1] - x * x) / 2);
        return high + draw_uniform(d) * (low - high) < 1 ? x : draw_normal(d);
    }

    static inline double draw_normal_of(draw_t *d, uint64_t word)
    {
        const int i = (int)(word & 0xff);
        const double u = (double)((int64_t)word >> 11) * 0x1p-52;
        return fabs(u) < draw_normal_r[i] ? u * draw_normal_x[i] : draw_normal_edge(d, i, u);
    }

    static inline double draw_normal(draw_t *d)
    {
        return draw_normal_of(d, draw_word(d));
    }

    DRAW_SELDOM static double draw_exponential_edge(draw_t *d, int i, double u)
    {
        const double x = u * draw_exponential_x[i];
        if (i == 0)
            return DRAW_EXPONENTIAL_END + draw_exponential(d);
        const double low = exp(x - draw_exponential_x[i]), high = exp(x - draw_exponential_x[i + 1]);
        return high + draw_uniform(d) * (low - high) < 1 ? x : draw_exponential(d);
    }

    static inline double draw_exponential_of(draw_t *d, uint64_t word)
    {
        const int i = (int)(word & 0xff);
        const double u = (double)(word >> 11) * 0x1p-53;
        return u < draw_exponential_r[i] ? u * draw_exponential_x[i] : draw_exponential_edge(d, i, u);
    }

    static inline double draw_exponential(draw_t *d)
    {
        return draw_exponential_of(d, draw_word(d));
    }

    /* Many at a time: the words first, for a ziggurat does not wait for the one before. */
    #define DRAW_MANY 256

    __attribute__((unused)) static void draw_normals(draw_t *d, double *out, long n)
    {
        uint64_t word[DRAW_MANY];
        for (; n > 0; n -= DRAW_MANY, out += DRAW_MANY) {
            const int m = n < DRAW_MANY ? (int)n : DRAW_MANY;
            draw_words(d, word, m);
            for (int k = 0; k < m; k++)
                out[k] = draw_normal_of(d, word[k]);
        }
    }

    __attribute__((unused)) static void draw_exponentials(draw_t *d, double *out, long n)
    {
        uint64_t word[DRAW_MANY];
        for (; n > 0; n -= DRAW_MANY, out += DRAW_MANY) {
            const int m = n < DRAW_MANY ? (int)n : DRAW_MANY;
            draw_words(d, word, m);
            for (int k = 0; k < m; k++)
                out[k] = draw_exponential_of(d, word[k]);
        }
    }
    #endif
    """
    ctypedef struct draw_t:
        uint64_t s[4]
    void draw_prepare() nogil  # once for each kernel that draws
    uint64_t draw_word(draw_t *d) nogil
    double draw_uniform(draw_t *d) nogil
    double draw_normal(draw_t *d) nogil
    double draw_exponential(draw_t *d) nogil
    void draw_normals(draw_t *d, double *out, long n) nogil
    void draw_exponentials(draw_t *d, double *out, long n) nogil


cdef inline void draw_seed(draw_t *d, bitgen_t *bits) noexcept nogil:
    """Seed from a NumPy bit generator."""
    cdef int i
    for i in range(4):
        d.s[i] = bits.next_uint64(bits.state)
    d.s[0] |= 1  # never all zeros
