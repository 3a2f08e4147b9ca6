/*
 * Epilogue, AVX2: 8 columns a step, the last one through a small copy.
 *
 * Steps and order are those of kernels/epilogue.h, one instruction each; multiply and add are never
 * fused (no -mfma here, and -ffp-contract=off).  Rounding is the default mode of MXCSR, nearest
 * even.  The per-column arrays and acc are padded, so only stores and the residual need care.
 *
 * Output type, activation, and whether any per-row step is present are constants of a tile function
 * (kernels/epilogue_tiles.h): a plain tile has no branch on them in its inner loop.
 *
 * Cost: per 8 outputs 3 loads and 3 (f32) to 10 (u8) instructions.
 */
#include "kernels/epilogue.h"

#include <immintrin.h>

#include "kernels/x86/inline.h"

#define VEC           __m256
#define VEC_SET1(x)   _mm256_set1_ps(x)
#define VEC_MAX(x, y) _mm256_max_ps((x), (y))
#define VEC_MIN(x, y) _mm256_min_ps((x), (y))
#define VEC_ABS(x)    _mm256_andnot_ps(_mm256_set1_ps(-0.0f), (x))
#define VEC_POW2(z)                                                                                \
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(z), 23),            \
                                         _mm256_set1_epi32(0x3f800000)))
#include "kernels/activation_vector.h"

enum { LANES = 8 };

gemm_epilogue_fn gemm_epilogue_avx2;

/* What does not change inside a tile: loaded once, because a store to C could alias the epilogue
 * for all the compiler knows. */
struct constants {
    __m256 inverse, q_min, q_max, clip_lo, clip_hi;
    __m256i zero_point;
    int is_u8;
};

INLINE struct constants constants_of(const struct gemm_epilogue *epilogue)
{
    int is_u8 = epilogue->c_type == GEMM_TYPE_U8, lo = is_u8 ? 0 : -128;

    return (struct constants){
        .inverse = _mm256_set1_ps(epilogue->inverse_c_scale),
        .q_min = _mm256_set1_ps((float)(lo - epilogue->c_zero_point)),
        .q_max = _mm256_set1_ps((float)(lo + 255 - epilogue->c_zero_point)),
        .clip_lo = _mm256_set1_ps(epilogue->clip_lo),
        .clip_hi = _mm256_set1_ps(epilogue->clip_hi),
        .zero_point = _mm256_set1_epi32(epilogue->c_zero_point),
        .is_u8 = is_u8,
    };
}

INLINE __m256i load_s32(const int32_t *p)
{
    return _mm256_load_si256((const __m256i *)p);
}

INLINE __m256i correct(__m256i s, int32_t row_value, const int32_t *column_values)
{
    return _mm256_sub_epi32(
        s, _mm256_mullo_epi32(_mm256_set1_epi32(row_value), load_s32(column_values)));
}

/* acc + offset, and the corrections of a row whose zero point or B's zero points need them. */
INLINE __m256i integer_steps(int extended, const struct gemm_epilogue *epilogue, __m256i acc,
                             size_t i, size_t j)
{
    __m256i s = _mm256_add_epi32(acc, load_s32(epilogue->offset + j));

    if (extended && epilogue->row_zero_points)
        s = correct(s, epilogue->row_zero_points[i], epilogue->column_sums + j);
    if (extended && epilogue->row_sums)
        s = correct(s, epilogue->row_sums[i], epilogue->b_zero_points + j);
    return s;
}

INLINE __m256 sum_float(int extended, const struct gemm_epilogue *epilogue, __m256i acc, size_t i,
                        size_t j)
{
    __m256 f, product;

    if (!extended || !epilogue->weighted_sums)
        return _mm256_cvtepi32_ps(integer_steps(extended, epilogue, acc, i, j));
    f = _mm256_castsi256_ps(acc);
    if (!epilogue->row_zero_points)
        return f;
    product = _mm256_mul_ps(_mm256_set1_ps((float)epilogue->row_zero_points[i]),
                            _mm256_load_ps(epilogue->weighted_sums + j));
    return _mm256_sub_ps(f, product);
}

/* `count` elements of the residual; the other lanes are 0. */
INLINE __m256 residual_at(const struct gemm_epilogue *epilogue, size_t i, size_t j, size_t count)
{
    const size_t bytes = gemm_type_bytes(epilogue->residual_type);
    const uint8_t *from = (const uint8_t *)epilogue->residual[i] + j * bytes;
    uint8_t last[LANES * 4] = {0};
    __m256i integer;

    if (count < LANES) {
        __builtin_memcpy(last, from, count * bytes);
        from = last;
    }
    switch (epilogue->residual_type) {
    case GEMM_TYPE_F32:
        return _mm256_loadu_ps((const float *)from);
    case GEMM_TYPE_BF16:
        integer = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
        return _mm256_castsi256_ps(_mm256_slli_epi32(integer, 16));
    case GEMM_TYPE_U8:
        integer = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
        break;
    default:
        integer = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
        break;
    }
    integer = _mm256_sub_epi32(integer, _mm256_set1_epi32(epilogue->residual_zero_point));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(integer), _mm256_set1_ps(epilogue->residual_scale));
}

/* Everything from the accumulator up to the activation. */
INLINE __m256 to_float(enum gemm_activation activation, int extended,
                       const struct gemm_epilogue *epilogue, const struct constants *constants,
                       __m256i acc, size_t i, size_t j, size_t count)
{
    __m256 f = sum_float(extended, epilogue, acc, i, j);

    f = _mm256_mul_ps(f, _mm256_load_ps(epilogue->scale + j));
    if (extended && epilogue->row_scales)
        f = _mm256_mul_ps(f, _mm256_set1_ps(epilogue->row_scales[i]));
    f = _mm256_add_ps(f, _mm256_load_ps(epilogue->bias + j));
    if (extended && epilogue->residual)
        f = _mm256_add_ps(f, residual_at(epilogue, i, j, count));
    f = activation_apply(activation, constants->clip_lo, constants->clip_hi, f);
    if (extended) /* one quiet NaN for all; a plain row cannot meet one */
        f = _mm256_blendv_ps(f, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)),
                             _mm256_cmp_ps(f, f, _CMP_UNORD_Q));
    return f;
}

/* Clamp, round, add the zero point: the 8 bytes of u8 or s8, in the low half. */
INLINE __m128i requantise(const struct constants *constants, __m256 f)
{
    __m256 q = _mm256_mul_ps(f, constants->inverse);
    __m256i y;
    __m128i words;

    q = _mm256_min_ps(_mm256_max_ps(q, constants->q_min), constants->q_max);
    y = _mm256_add_epi32(_mm256_cvtps_epi32(q), constants->zero_point);
    /* In range already: neither pack saturates. */
    words = _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    return constants->is_u8 ? _mm_packus_epi16(words, words) : _mm_packs_epi16(words, words);
}

/* Nearest even by integers; the results are at most 0xffff, so the pack does not saturate. */
INLINE __m128i to_bf16(__m256 f)
{
    __m256i bits = _mm256_castps_si256(f);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));

    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    bits = _mm256_srli_epi32(bits, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
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
            uint8_t last[LANES * 4], *to = (uint8_t *)c[i] + (column + j) * bytes;
            size_t count = n - j < LANES ? n - j : LANES;
            uint8_t *out = count < LANES ? last : to;
            __m256i sum = load_s32(acc + i * nr + j);
            __m256 f;

            if (c_type == GEMM_TYPE_S32) {
                sum = integer_steps(extended, epilogue, sum, row + i, column + j);
                _mm256_storeu_si256((__m256i *)out, sum);
            } else {
                f = to_float(activation, extended, epilogue, &constants, sum, row + i, column + j,
                             count);
                if (c_type == GEMM_TYPE_F32)
                    _mm256_storeu_ps((float *)out, f);
                else if (c_type == GEMM_TYPE_BF16)
                    _mm_storeu_si128((__m128i *)out, to_bf16(f));
                else
                    _mm_storel_epi64((__m128i *)out, requantise(&constants, f));
            }
            if (out == last)
                __builtin_memcpy(to, last, count * bytes);
        }
    }
}

#include "kernels/epilogue_tiles.h"

void gemm_epilogue_avx2(size_t m, size_t n, size_t nr, const int32_t *acc,
                        const struct gemm_epilogue *epilogue, size_t row, size_t column,
                        void *const *c)
{
    tile_of(epilogue)(m, n, nr, acc, epilogue, row, column, c);
}
