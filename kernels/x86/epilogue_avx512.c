/*
 * Epilogue, AVX-512 F+BW+VL: 16 columns a step, the last one masked.
 *
 * Steps and order are those of kernels/epilogue.h, one instruction each; multiply and add are never
 * fused.  Rounding is the default mode of MXCSR, nearest even.  The per-column arrays and acc are
 * padded, so only stores and the residual need the mask.
 *
 * Output type, activation, and whether any per-row step is present are constants of a tile function
 * (kernels/epilogue_tiles.h): a plain tile has no branch in its inner loop.
 *
 * Cost: per 16 outputs 3 loads and 3 (f32) to 8 (u8) instructions; beside a tile's 64 * k
 * multiply-adds this shows for k below some hundred only.
 */
#include "kernels/epilogue.h"

#include <immintrin.h>

#include "kernels/x86/inline.h"

#define VEC           __m512
#define VEC_SET1(x)   _mm512_set1_ps(x)
#define VEC_MAX(x, y) _mm512_max_ps((x), (y))
#define VEC_MIN(x, y) _mm512_min_ps((x), (y))
#define VEC_ABS(x)    _mm512_abs_ps(x)
#define VEC_POW2(z)                                                                                \
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(z), 23),            \
                                         _mm512_set1_epi32(0x3f800000)))
#include "kernels/activation_vector.h"
#include "kernels/x86/u8_relu_avx512.h"

enum { LANES = 16 };

gemm_epilogue_fn gemm_epilogue_avx512;

/* What does not change inside a tile: loaded once, because a store to C could alias the epilogue
 * for all the compiler knows. */
struct constants {
    __m512 inverse, q_min, q_max, clip_lo, clip_hi;
    __m512i zero_point;
};

INLINE struct constants constants_of(const struct gemm_epilogue *epilogue)
{
    int lo = epilogue->c_type == GEMM_TYPE_U8 ? 0 : -128;

    return (struct constants){
        .inverse = _mm512_set1_ps(epilogue->inverse_c_scale),
        .q_min = _mm512_set1_ps((float)(lo - epilogue->c_zero_point)),
        .q_max = _mm512_set1_ps((float)(lo + 255 - epilogue->c_zero_point)),
        .clip_lo = _mm512_set1_ps(epilogue->clip_lo),
        .clip_hi = _mm512_set1_ps(epilogue->clip_hi),
        .zero_point = _mm512_set1_epi32(epilogue->c_zero_point),
    };
}

INLINE __m512i correct(__m512i s, int32_t row_value, const int32_t *column_values)
{
    return _mm512_sub_epi32(
        s, _mm512_mullo_epi32(_mm512_set1_epi32(row_value), _mm512_load_si512(column_values)));
}

/* acc + offset, and the corrections of a row whose zero point or B's zero points need them. */
INLINE __m512i integer_steps(int extended, const struct gemm_epilogue *epilogue, __m512i acc,
                             size_t i, size_t j)
{
    __m512i s = _mm512_add_epi32(acc, _mm512_load_si512(epilogue->offset + j));

    if (extended && epilogue->row_zero_points)
        s = correct(s, epilogue->row_zero_points[i], epilogue->column_sums + j);
    if (extended && epilogue->row_sums)
        s = correct(s, epilogue->row_sums[i], epilogue->b_zero_points + j);
    return s;
}

INLINE __m512 sum_float(int extended, const struct gemm_epilogue *epilogue, __m512i acc, size_t i,
                        size_t j)
{
    __m512 f, product;

    if (!extended || !epilogue->weighted_sums)
        return _mm512_cvtepi32_ps(integer_steps(extended, epilogue, acc, i, j));
    f = _mm512_castsi512_ps(acc);
    if (!epilogue->row_zero_points)
        return f;
    product = _mm512_mul_ps(_mm512_set1_ps((float)epilogue->row_zero_points[i]),
                            _mm512_load_ps(epilogue->weighted_sums + j));
    return _mm512_sub_ps(f, product);
}

INLINE __m512 residual_at(const struct gemm_epilogue *epilogue, size_t i, size_t j, __mmask16 mask)
{
    const uint8_t *row = epilogue->residual[i];
    __m512i integer;
    __m128i bytes;

    if (epilogue->residual_type == GEMM_TYPE_F32)
        return _mm512_maskz_loadu_ps(mask, row + j * 4);
    if (epilogue->residual_type == GEMM_TYPE_BF16) {
        integer = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + j * 2));
        return _mm512_castsi512_ps(_mm512_slli_epi32(integer, 16));
    }
    bytes = _mm_maskz_loadu_epi8(mask, row + j);
    integer = epilogue->residual_type == GEMM_TYPE_U8 ? _mm512_cvtepu8_epi32(bytes)
                                                      : _mm512_cvtepi8_epi32(bytes);
    integer = _mm512_sub_epi32(integer, _mm512_set1_epi32(epilogue->residual_zero_point));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(integer), _mm512_set1_ps(epilogue->residual_scale));
}

/* Everything from the accumulator up to the activation. */
INLINE __m512 to_float(enum gemm_activation activation, int extended,
                       const struct gemm_epilogue *epilogue, const struct constants *constants,
                       __m512i acc, size_t i, size_t j, __mmask16 mask)
{
    __m512 f = sum_float(extended, epilogue, acc, i, j);

    f = _mm512_mul_ps(f, _mm512_load_ps(epilogue->scale + j));
    if (extended && epilogue->row_scales)
        f = _mm512_mul_ps(f, _mm512_set1_ps(epilogue->row_scales[i]));
    f = _mm512_add_ps(f, _mm512_load_ps(epilogue->bias + j));
    if (extended && epilogue->residual)
        f = _mm512_add_ps(f, residual_at(epilogue, i, j, mask));
    f = activation_apply(activation, constants->clip_lo, constants->clip_hi, f);
    if (extended) /* one quiet NaN for all; a plain row cannot meet one */
        f = _mm512_mask_mov_ps(f, _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q),
                               _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
    return f;
}

/* Clamp, round, add the zero point: 16 bytes of u8 or s8. */
INLINE __m128i requantise(const struct constants *constants, __m512 f)
{
    __m512 q = _mm512_mul_ps(f, constants->inverse);

    q = _mm512_min_ps(_mm512_max_ps(q, constants->q_min), constants->q_max);
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(q), constants->zero_point));
}

/* Nearest even by integers: vcvtneps2bf16 is another level's, and flushes subnormals. */
INLINE __m256i to_bf16(__m512 f)
{
    __m512i bits = _mm512_castps_si512(f);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));

    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
}

INLINE void tile(enum gemm_type c_type, enum gemm_activation activation, int extended, size_t m,
                 size_t n, size_t nr, const int32_t *acc, const struct gemm_epilogue *given,
                 size_t row, size_t column, void *const *c)
{
    const struct gemm_epilogue copy = *given, *epilogue = &copy;
    const struct constants constants = constants_of(epilogue);
    const size_t bytes = c_type == GEMM_TYPE_U8 ? 1 : c_type == GEMM_TYPE_BF16 ? 2 : 4;

    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j += LANES) {
            __mmask16 mask = n - j < LANES ? (__mmask16)((1u << (n - j)) - 1) : 0xffff;
            __m512i sum = _mm512_load_si512(acc + i * nr + j);
            uint8_t *to = (uint8_t *)c[i] + (column + j) * bytes;
            __m512 f;

            if (c_type == GEMM_TYPE_S32) {
                sum = integer_steps(extended, epilogue, sum, row + i, column + j);
                _mm512_mask_storeu_epi32(to, mask, sum);
                continue;
            }
            f = to_float(activation, extended, epilogue, &constants, sum, row + i, column + j,
                         mask);
            if (c_type == GEMM_TYPE_F32)
                _mm512_mask_storeu_ps(to, mask, f);
            else if (c_type == GEMM_TYPE_BF16)
                _mm256_mask_storeu_epi16(to, mask, to_bf16(f));
            else
                _mm_mask_storeu_epi8(to, mask, requantise(&constants, f));
        }
    }
}

/*
 * The tiles of u8_relu_avx512.h, all 64 columns or up to 16: 64 outputs take 28 operations
 * on the two vector ports instead of 48.  Only the upper bound may have to stay: `clamp`.
 */
enum { PACKED = 4, PACKED_BYTES = PACKED * LANES };

INLINE void rows_u8_relu(int clamp, size_t m, size_t nr, const int32_t *acc, __m512 inverse,
                         const struct columns *columns, size_t column, void *const *c)
{
    for (size_t i = 0; i < m; i++) {
        __m512i q[PACKED];

        for (size_t v = 0; v < PACKED; v++)
            q[v] = u8_relu(clamp, &columns[v], inverse,
                           _mm512_load_si512(acc + i * nr + v * LANES));
        _mm512_storeu_si512((uint8_t *)c[i] + column, pack(q));
    }
}

static void tile_u8_relu(size_t m, size_t nr, const int32_t *acc,
                         const struct gemm_epilogue *epilogue, size_t column, void *const *c)
{
    const __m512 inverse = _mm512_set1_ps(epilogue->inverse_c_scale);
    struct columns columns[PACKED];

    for (size_t v = 0; v < PACKED; v++)
        columns[v] = columns_at(epilogue, column + v * LANES);
    /* With few rows the question takes as long as what it spares. */
    if (m < 4 || needs_clamp(PACKED, columns, inverse))
        rows_u8_relu(1, m, nr, acc, inverse, columns, column, c);
    else
        rows_u8_relu(0, m, nr, acc, inverse, columns, column, c);
}

/* ---- up to 16 columns: one, two or four rows in a vector, `width` columns each --------------- */

/* Rows from i on, the last one again where there are no more. */
INLINE __m512i load_rows(size_t width, size_t m, size_t nr, const int32_t *acc, size_t i)
{
    const int32_t *row[PACKED];

    for (size_t r = 0; r < PACKED; r++)
        row[r] = acc + (i + r < m ? i + r : m - 1) * nr;
    if (width == 4) {
        __m512i rows = _mm512_castsi128_si512(_mm_load_si128((const __m128i *)(row[0])));

        rows = _mm512_inserti32x4(rows, _mm_load_si128((const __m128i *)(row[1])), 1);
        rows = _mm512_inserti32x4(rows, _mm_load_si128((const __m128i *)(row[2])), 2);
        return _mm512_inserti32x4(rows, _mm_load_si128((const __m128i *)(row[3])), 3);
    }
    if (width == 8)
        return _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_load_si256((const __m256i *)(row[0]))),
            _mm256_load_si256((const __m256i *)(row[1])), 1);
    return _mm512_load_si512(row[0]);
}

/* Whether the rows of C follow each other, `width` bytes apart. */
INLINE int adjoin(size_t width, size_t m, void *const *c)
{
    const __m512i step = _mm512_set1_epi64((int64_t)(8 * width));
    __m512i expected = _mm512_add_epi64(
        _mm512_set1_epi64((int64_t)(uintptr_t)c[0]),
        _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                           _mm512_set1_epi64((int64_t)width)));
    __mmask8 differ = 0;

    for (size_t i = 0; i < m; i += 8, expected = _mm512_add_epi64(expected, step)) {
        __mmask8 mask = m - i < 8 ? (__mmask8)((1u << (m - i)) - 1) : 0xff;

        differ |= _mm512_mask_cmpneq_epi64_mask(mask, _mm512_maskz_loadu_epi64(mask, c + i),
                                                expected);
    }
    return !differ;
}

INLINE void narrow(size_t width, size_t m, size_t n, size_t nr, const int32_t *acc,
                   const struct gemm_epilogue *epilogue, size_t column, void *const *c)
{
    const __m512 inverse = _mm512_set1_ps(epilogue->inverse_c_scale);
    const size_t rows = PACKED_BYTES / width; /* of a step */
    const int together = n == width && adjoin(width, m, c);
    const __mmask16 mask = (__mmask16)((1u << n) - 1);
    struct columns columns = columns_at(epilogue, column);
    uint8_t bytes[PACKED_BYTES + LANES];

    columns.offset =
        _mm512_castps_si512(repeat(width, _mm512_castsi512_ps(columns.offset)));
    columns.scale = repeat(width, columns.scale);
    columns.bias = repeat(width, columns.bias);
    for (size_t i = 0; i < m; i += rows) {
        size_t count = m - i < rows ? m - i : rows;
        __m512i q[PACKED];

        for (size_t v = 0; v < PACKED; v++)
            q[v] = u8_relu(1, &columns, inverse,
                           load_rows(width, m, nr, acc, i + v * (LANES / width)));
        if (together) {
            __mmask64 part = ~UINT64_C(0) >> (PACKED_BYTES - count * width);

            _mm512_mask_storeu_epi8((uint8_t *)c[i] + column, part, pack(q));
            continue;
        }
        _mm512_storeu_si512(bytes, pack(q));
        for (size_t r = 0; r < count; r++)
            _mm_mask_storeu_epi8((uint8_t *)c[i + r] + column, mask,
                                 _mm_loadu_si128((const __m128i *)(bytes + r * width)));
    }
}

static void tile_u8_relu_narrow(size_t m, size_t n, size_t nr, const int32_t *acc,
                                const struct gemm_epilogue *epilogue, size_t column,
                                void *const *c)
{
    if (n <= 4)
        narrow(4, m, n, nr, acc, epilogue, column, c);
    else if (n <= 8)
        narrow(8, m, n, nr, acc, epilogue, column, c);
    else
        narrow(16, m, n, nr, acc, epilogue, column, c);
}

#include "kernels/epilogue_tiles.h"

void gemm_epilogue_avx512(size_t m, size_t n, size_t nr, const int32_t *acc,
                          const struct gemm_epilogue *epilogue, size_t row, size_t column,
                          void *const *c)
{
    if (n == PACKED_BYTES && is_u8_relu(epilogue))
        tile_u8_relu(m, nr, acc, epilogue, column, c);
    else if (n <= LANES && m >= 4 && is_u8_relu(epilogue))
        tile_u8_relu_narrow(m, n, nr, acc, epilogue, column, c);
    else
        tile_of(epilogue)(m, n, nr, acc, epilogue, row, column, c);
}
