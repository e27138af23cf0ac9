"""Quasi-cyclic LDPC codes: syndromes, and layered sum-product decoding of an error pattern from its syndrome.

A code is a base matrix of circulants of one size Z. Row r holds the entries row_start[r] .. row_start[r + 1] - 1;
entry e stands for the Z checks (r, i), each touching the bit column[e] * Z + (i + shift[e]) mod Z.

The decoder takes each base row as a layer (D. E. Hocevar, IEEE SiPS 2004; layered schedule) and updates checks by
the tanh rule (F. R. Kschischang et al., IEEE Trans. Inf. Theory 47 (2001) 498) in float32, sixteen checks at a time,
with exp and log as polynomials good to 1e-5. A check whose syndrome bit is 1 starts from sign -1.

Encoding takes a time that depends on the code only. Decoding time depends on the error pattern.
"""
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #define LANES 16
    typedef float ldpc_f __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
    typedef int32_t ldpc_i __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
    #define LDPC_INLINE static inline __attribute__((always_inline))

    #define LDPC_SPLAT(x) ((ldpc_f){} + (x))
    #define LDPC_SIGN ((ldpc_i){} + (int32_t)0x80000000)
    #define LDPC_SELECT(mask, a, b) ((ldpc_f)(((ldpc_i)(a) & (mask)) | ((ldpc_i)(b) & ~(mask))))

    /* The work on one layer: posterior and message updated in place. prefix and value: degree * LANES floats. */
    LDPC_INLINE void ldpc_layer_body(
        float *posterior, float *message, const int32_t *column, const int32_t *shift, int degree, int size,
        const uint8_t *syndrome, float *value, float *prefix)
    {
        for (int z0 = 0; z0 < size; z0 += LANES) {
            int width = size - z0 < LANES ? size - z0 : LANES;
            int32_t start_bits[LANES];
            for (int k = 0; k < LANES; k++) start_bits[k] = 0x3F800000 | (k < width ? (int32_t)((uint32_t)syndrome[z0 + k] << 31) : 0);
            ldpc_f run;
            memcpy(&run, start_bits, sizeof run);
            for (int e = 0; e < degree; e++) {
                const float *bits = posterior + (size_t)column[e] * size;
                int first = (z0 + shift[e]) % size;
                ldpc_f v;
                if (first + LANES <= size && width == LANES) {
                    memcpy(&v, bits + first, sizeof v);
                } else {
                    float some[LANES];
                    for (int k = 0; k < LANES; k++) some[k] = bits[(first + (k < width ? k : 0)) % size];
                    memcpy(&v, some, sizeof v);
                }
                ldpc_f old = LDPC_SPLAT(0.0f);
                memcpy(&old, message + (size_t)e * size + z0, 4 * (size_t)width);
                v -= old;
                memcpy(value + e * LANES, &v, sizeof v);
            }
            ldpc_f one = LDPC_SPLAT(1.0f);
            for (int e = 0; e < degree; e++) {
                /* tanh(v / 2) = (1 - x) / (1 + x), x = exp(-|v|) = 2^(whole + part), part in (-1, 0] */
                ldpc_f v;
                memcpy(&v, value + e * LANES, sizeof v);
                ldpc_i sign = (ldpc_i)v & LDPC_SIGN;
                ldpc_f power = (ldpc_f)((ldpc_i)v | LDPC_SIGN) * 1.44269504f;
                power = LDPC_SELECT(power > -100.0f, power, LDPC_SPLAT(-100.0f));
                ldpc_i whole = __builtin_convertvector(power, ldpc_i);
                ldpc_f part = power - __builtin_convertvector(whole, ldpc_f);
                ldpc_f x = (((0.0067603f * part + 0.05305992f) * part + 0.2393317f) * part + 0.69302815f) * part
                    + 0.99999733f;
                x = (ldpc_f)((ldpc_i)x + (whole << 23));
                ldpc_f t = (ldpc_f)((ldpc_i)((one - x) / (one + x)) ^ sign);
                memcpy(value + e * LANES, &t, sizeof t);
                memcpy(prefix + e * LANES, &run, sizeof run);
                run *= t;
            }
            run = one;
            for (int e = degree - 1; e >= 0; e--) {
                /* 2 atanh(p) = ln((1 + p) / (1 - p)), by exponent and mantissa */
                ldpc_f t, before, old = LDPC_SPLAT(0.0f);
                memcpy(&t, value + e * LANES, sizeof t);
                memcpy(&before, prefix + e * LANES, sizeof before);
                ldpc_f p = before * run;
                run *= t;
                ldpc_i sign = (ldpc_i)p & LDPC_SIGN;
                p = (ldpc_f)((ldpc_i)p & ~LDPC_SIGN);
                p = LDPC_SELECT(p < 0.9999998f, p, LDPC_SPLAT(0.9999998f));
                ldpc_f ratio = (one + p) / (one - p);
                ldpc_i exponent = ((ldpc_i)ratio >> 23) - 127;
                ldpc_f u = (ldpc_f)(((ldpc_i)ratio & 0x007FFFFF) | 0x3F800000) - one;
                ldpc_f l = u * (((((-0.02397957f * u + 0.10150005f) * u - 0.21029369f) * u + 0.32529514f) * u
                    - 0.4993726f) * u + 0.99999183f);
                ldpc_f update = __builtin_convertvector(exponent, ldpc_f) * 0.69314718f + l;
                update = (ldpc_f)((ldpc_i)update ^ sign);

                float *bits = posterior + (size_t)column[e] * size;
                int first = (z0 + shift[e]) % size;
                memcpy(&old, message + (size_t)e * size + z0, 4 * (size_t)width);
                memcpy(message + (size_t)e * size + z0, &update, 4 * (size_t)width);
                if (first + LANES <= size && width == LANES) {
                    ldpc_f sum;
                    memcpy(&sum, bits + first, sizeof sum);
                    sum += update - old;
                    memcpy(bits + first, &sum, sizeof sum);
                } else {
                    ldpc_f change = update - old;
                    for (int k = 0; k < width; k++) bits[(first + k) % size] += change[k];
                }
            }
        }
    }

    #define LDPC_LAYER(name) static void name( \
        float *posterior, float *message, const int32_t *column, const int32_t *shift, int degree, int size, \
        const uint8_t *syndrome, float *value, float *prefix) \
        { ldpc_layer_body(posterior, message, column, shift, degree, size, syndrome, value, prefix); }
    typedef void (*ldpc_layer)(float *, float *, const int32_t *, const int32_t *, int, int, const uint8_t *,
        float *, float *);
    LDPC_LAYER(ldpc_layer_baseline)
    #if defined(__x86_64__)
    __attribute__((target("avx2,fma"))) LDPC_LAYER(ldpc_layer_avx2)
    __attribute__((target("avx512f,avx512dq,avx2,fma"))) LDPC_LAYER(ldpc_layer_avx512)
    static ldpc_layer ldpc_best_layer(void)
    {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return ldpc_layer_avx512;
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return ldpc_layer_avx2;
        return ldpc_layer_baseline;
    }
    #else
    static ldpc_layer ldpc_best_layer(void) { return ldpc_layer_baseline; }
    #endif
    """
    ctypedef void (*ldpc_layer)(
        float *posterior, float *message, const int32_t *column, const int32_t *shift, int degree, int size,
        const uint8_t *syndrome, float *value, float *prefix) noexcept nogil
    ldpc_layer ldpc_best_layer() noexcept nogil
    ldpc_layer ldpc_layer_baseline


cdef int add_syndrome(
    const int32_t *row_start, const int32_t *column, const int32_t *shift, Py_ssize_t rows, int size,
    const uint8_t *bits, uint8_t *out,
) except -1 nogil:
    cdef Py_ssize_t r, e, i, first
    cdef const uint8_t *source
    cdef uint8_t *target
    for r in range(rows):
        target = out + r * size
        for e in range(row_start[r], row_start[r + 1]):
            source = bits + <Py_ssize_t>column[e] * size
            first = shift[e]
            for i in range(size - first):
                target[i] ^= source[first + i]
            for i in range(first):
                target[size - first + i] ^= source[i]
    return 0


cdef int decode_layers(
    const int32_t *row_start, const int32_t *column, const int32_t *shift, Py_ssize_t rows, Py_ssize_t columns,
    int size, const uint8_t *syndrome, float *posterior, float *message, float *scratch, int degree_limit,
    uint8_t *error, uint8_t *left, int max_iterations, ldpc_layer layer,
) except -1 nogil:
    cdef int iteration
    cdef Py_ssize_t r, k, first
    cdef uint8_t wrong
    for iteration in range(1, max_iterations + 1):
        for r in range(rows):
            first = row_start[r]
            layer(
                posterior, message + first * size, column + first, shift + first, row_start[r + 1] - row_start[r],
                size, syndrome + r * size, scratch, scratch + 16 * degree_limit,
            )
        for k in range(columns * size):
            error[k] = posterior[k] < 0.0
        for k in range(rows * size):
            left[k] = syndrome[k]
        add_syndrome(row_start, column, shift, rows, size, error, left)
        wrong = 0
        for k in range(rows * size):
            wrong |= left[k]
        if wrong == 0:
            return iteration
    return 0


def check_code(
    const int32_t[::1] row_start not None, const int32_t[::1] column not None, const int32_t[::1] shift not None,
    Py_ssize_t columns, int size,
) -> int:
    """Check that a code's indices are in range and return the largest number of entries in a row.

    Raises:
        ValueError: They are not.
    """
    cdef Py_ssize_t rows = row_start.shape[0] - 1, entries = column.shape[0], k, degree = 0
    if rows < 1 or columns < 1 or size < 1 or shift.shape[0] != entries:
        raise ValueError("a code needs rows, columns, a circulant size and one shift an entry")
    if row_start[0] != 0 or row_start[rows] != entries:
        raise ValueError("row_start must run from 0 to the number of entries")
    for k in range(rows):
        if row_start[k + 1] < row_start[k]:
            raise ValueError("row_start must not decrease")
        degree = max(degree, row_start[k + 1] - row_start[k])
    for k in range(entries):
        if not 0 <= column[k] < columns or not 0 <= shift[k] < size:
            raise ValueError("a column or shift is out of range")
    return degree


def encode_syndrome(
    const int32_t[::1] row_start not None, const int32_t[::1] column not None, const int32_t[::1] shift not None,
    int size, const uint8_t[::1] bits not None, uint8_t[::1] out not None,
) -> None:
    """Compute the parity of each check.

    Args:
        row_start: int32 (rows + 1,).
        column: int32 (entries,), base column of each entry.
        shift: int32 (entries,), 0 .. size - 1.
        size: Circulant size Z.
        bits: uint8 (columns * Z,), each 0 or 1.
        out: uint8 (rows * Z,), overwritten.

    Raises:
        ValueError: A length or index does not fit.
    """
    cdef Py_ssize_t rows = row_start.shape[0] - 1
    if size < 1 or bits.shape[0] == 0 or bits.shape[0] % size or out.shape[0] != rows * size:
        raise ValueError("bits must fill whole circulants and out must have rows * size elements")
    check_code(row_start, column, shift, bits.shape[0] // size, size)
    with nogil:
        memset(&out[0], 0, out.shape[0])
        add_syndrome(&row_start[0], &column[0], &shift[0], rows, size, &bits[0], &out[0])


def decode_syndrome(
    const int32_t[::1] row_start not None, const int32_t[::1] column not None, const int32_t[::1] shift not None,
    int size, const uint8_t[::1] syndrome not None, float[::1] posterior not None, float[::1] workspace not None,
    uint8_t[::1] error not None, int max_iterations, bint portable=False,
) -> int:
    """Find a likely error pattern with this syndrome.

    Args:
        row_start: int32 (rows + 1,).
        column: int32 (entries,), base column of each entry.
        shift: int32 (entries,), 0 .. size - 1.
        size: Circulant size Z.
        syndrome: uint8 (rows * Z,), each 0 or 1.
        posterior: float32 (columns * Z,): ln(P(no error) / P(error)) of each bit before; overwritten with after.
        workspace: float32 (entries * Z + 32 * largest row + rows * Z / 4 + 1,), at least; overwritten.
        error: uint8 (columns * Z,), overwritten with the pattern, each 0 or 1.
        max_iterations: Most passes over all rows.
        portable: Do not use wider vector instructions than the build's baseline.

    Returns:
        Passes taken, or 0 if no pattern with this syndrome was found.

    Raises:
        ValueError: A length or index does not fit.
    """
    cdef Py_ssize_t rows = row_start.shape[0] - 1, messages = column.shape[0] * size, columns
    cdef int degree, result
    cdef float *scratch
    cdef ldpc_layer layer = ldpc_layer_baseline if portable else ldpc_best_layer()
    if size < 1 or error.shape[0] == 0 or error.shape[0] % size or posterior.shape[0] != error.shape[0]:
        raise ValueError("error and posterior must fill the same whole circulants")
    if syndrome.shape[0] != rows * size:
        raise ValueError("syndrome must have rows * size elements")
    columns = error.shape[0] // size
    degree = check_code(row_start, column, shift, columns, size)
    if workspace.shape[0] < messages + 32 * degree + (rows * size + 3) // 4:
        raise ValueError("workspace is too small")
    scratch = &workspace[0] + messages
    with nogil:
        memset(&workspace[0], 0, messages * sizeof(float))
        result = decode_layers(
            &row_start[0], &column[0], &shift[0], rows, columns, size, &syndrome[0], &posterior[0], &workspace[0],
            scratch, degree, &error[0], <uint8_t *>(scratch + 32 * degree), max_iterations, layer,
        )
    return result
