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

#define VEC           __m512
#define VEC_SET1(x)   _mm512_set1_ps(x)
#define VEC_MAX(x, y) _mm512_max_ps((x), (y))
#define VEC_MIN(x, y) _mm512_min_ps((x), (y))
#define VEC_ABS(x)    _mm512_abs_ps(x)
#define VEC_POW2(z)                                                                                \
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(z), 23),            \
                                         _mm512_set1_epi32(0x3f800000)))
#include "kernels/activation_vector.h"

enum { LANES = 16 };

#define INLINE static inline __attribute__((always_inline))

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
 * The common tile of a quantised network: u8, RELU, zero point 0, no per-row step, all 64 columns.
 * Packing four vectors at a time saturates below at 0, so RELU and the lower bound of the clamp are
 * for nothing: a row of 64 outputs takes 32 operations on the two vector ports instead of 48, and
 * one store.  The upper bound stays, because vcvtps2dq gives 0x80000000 from 2^31 on.
 */
enum { U8_RELU_COLUMNS = 64, U8_RELU_VECTORS = U8_RELU_COLUMNS / LANES };

INLINE int is_u8_relu(const struct gemm_epilogue *epilogue, size_t n)
{
    /* Not 0, and so no infinity * 0; a NaN fails the comparison, too. */
    return n == U8_RELU_COLUMNS && epilogue->c_type == GEMM_TYPE_U8 &&
           epilogue->activation == GEMM_ACTIVATION_RELU && epilogue->c_zero_point == 0 &&
           epilogue->inverse_c_scale > 0.0f && !gemm_epilogue_is_extended(epilogue);
}

static void tile_u8_relu(size_t m, size_t nr, const int32_t *acc,
                         const struct gemm_epilogue *epilogue, size_t column, void *const *c)
{
    const __m512 inverse = _mm512_set1_ps(epilogue->inverse_c_scale), most = _mm512_set1_ps(255);
    /* The packs keep to 128-bit lanes: dword 4 * lane + v of their result belongs to vector v. */
    const __m512i order =
        _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    __m512i offset[U8_RELU_VECTORS];
    __m512 scale[U8_RELU_VECTORS], bias[U8_RELU_VECTORS];

    for (size_t v = 0; v < U8_RELU_VECTORS; v++) {
        offset[v] = _mm512_load_si512(epilogue->offset + column + v * LANES);
        scale[v] = _mm512_load_ps(epilogue->scale + column + v * LANES);
        bias[v] = _mm512_load_ps(epilogue->bias + column + v * LANES);
    }
    for (size_t i = 0; i < m; i++) {
        __m512i q[U8_RELU_VECTORS], packed;

        for (size_t v = 0; v < U8_RELU_VECTORS; v++) {
            __m512i sum = _mm512_load_si512(acc + i * nr + v * LANES);
            __m512 f = _mm512_cvtepi32_ps(_mm512_add_epi32(sum, offset[v]));

            f = _mm512_mul_ps(_mm512_add_ps(_mm512_mul_ps(f, scale[v]), bias[v]), inverse);
            q[v] = _mm512_cvtps_epi32(_mm512_min_ps(f, most));
        }
        packed = _mm512_packus_epi16(_mm512_packus_epi32(q[0], q[1]),
                                     _mm512_packus_epi32(q[2], q[3]));
        packed = _mm512_permutexvar_epi32(order, packed);
        _mm512_storeu_si512((uint8_t *)c[i] + column, packed);
    }
}

#include "kernels/epilogue_tiles.h"

void gemm_epilogue_avx512(size_t m, size_t n, size_t nr, const int32_t *acc,
                          const struct gemm_epilogue *epilogue, size_t row, size_t column,
                          void *const *c)
{
    if (is_u8_relu(epilogue, n))
        tile_u8_relu(m, nr, acc, epilogue, column, c);
    else
        tile_of(epilogue)(m, n, nr, acc, epilogue, row, column, c);
}
