/*
 * The commonest epilogue of a quantised network, AVX-512: u8, RELU, zero point 0, no per-row step.
 * Packing four vectors at a time saturates to 0 and 255, so RELU and the lower clamp are for
 * nothing.  Steps and order are those of kernels/epilogue.h.  Included after <immintrin.h>.
 */
#ifndef GEMMD_KERNELS_X86_U8_RELU_AVX512_H
#define GEMMD_KERNELS_X86_U8_RELU_AVX512_H

#include "kernels/epilogue.h"
#include "kernels/x86/inline.h"

/* What a vector's columns have. */
struct columns {
    __m512i offset;
    __m512 scale, bias;
};

INLINE struct columns columns_at(const struct gemm_epilogue *epilogue, size_t column)
{
    return (struct columns){_mm512_load_si512(epilogue->offset + column),
                            _mm512_load_ps(epilogue->scale + column),
                            _mm512_load_ps(epilogue->bias + column)};
}

/* Of 16 columns the first `width`, again and again. */
INLINE __m512 repeat(size_t width, __m512 columns)
{
    if (width == 4)
        return _mm512_broadcast_f32x4(_mm512_castps512_ps128(columns));
    if (width == 8)
        return _mm512_broadcast_f32x8(_mm512_castps512_ps256(columns));
    return columns;
}

INLINE int is_u8_relu(const struct gemm_epilogue *epilogue)
{
    /* Not 0, and so no infinity * 0; a NaN fails the comparison, too. */
    return epilogue->c_type == GEMM_TYPE_U8 && epilogue->activation == GEMM_ACTIVATION_RELU &&
           epilogue->c_zero_point == 0 && epilogue->inverse_c_scale > 0.0f &&
           !gemm_epilogue_is_extended(epilogue);
}

/* From a sum and its offset.  Without `clamp` the result has to stay below 2^31: vcvtps2dq gives
 * 0x80000000 from there on. */
INLINE __m512i to_u8(int clamp, __m512 scale, __m512 bias, __m512 inverse, __m512i sum)
{
    __m512 f = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);

    f = _mm512_mul_ps(_mm512_add_ps(f, bias), inverse);
    return _mm512_cvtps_epi32(clamp ? _mm512_min_ps(f, _mm512_set1_ps(255)) : f);
}

INLINE __m512i u8_relu(int clamp, const struct columns *columns, __m512 inverse,
                       __m512i sum)
{
    return to_u8(clamp, columns->scale, columns->bias, inverse,
                 _mm512_add_epi32(sum, columns->offset));
}

/* Whether some sum could reach 2^31 in the end: never with the scales of a quantised network. Each
 * rounded step is monotonic, so what bounds the factors bounds the result; neither an infinity nor
 * a NaN is less than anything. */
INLINE int needs_clamp(size_t count, const struct columns *columns, __m512 inverse)
{
    __mmask16 large = 0;

    for (size_t v = 0; v < count; v++) {
        __m512 f = _mm512_mul_ps(_mm512_abs_ps(columns[v].scale), _mm512_set1_ps(0x1p31f));

        f = _mm512_mul_ps(_mm512_add_ps(f, _mm512_abs_ps(columns[v].bias)), inverse);
        large |= _mm512_cmp_ps_mask(f, _mm512_set1_ps(0x1p30f), _CMP_NLT_UQ);
    }
    return large != 0;
}

/* 64 bytes of four vectors, one after the other. */
INLINE __m512i pack(const __m512i *q)
{
    /* The packs keep to 128-bit lanes: dword 4 * lane + v of their result belongs to vector v. */
    const __m512i order =
        _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);

    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]),
                                                               _mm512_packs_epi32(q[2], q[3])));
}

/* 32 columns, for rows that are finished two at a time. */
struct column_pair {
    struct columns low, high;
    __m512 inverse;
};

INLINE struct column_pair column_pair_at(const struct gemm_epilogue *epilogue,
                                         size_t column)
{
    return (struct column_pair){columns_at(epilogue, column), columns_at(epilogue, column + 16),
                                _mm512_set1_ps(epilogue->inverse_c_scale)};
}

/* Both rows' 32 columns: sums from acc_0 and acc_1, bytes to c_0 and c_1. */
INLINE void two_rows(const struct column_pair *pair, const int32_t *acc_0,
                     const int32_t *acc_1, uint8_t *c_0, uint8_t *c_1)
{
    const __m512i q[] = {
        u8_relu(1, &pair->low, pair->inverse, _mm512_load_si512(acc_0)),
        u8_relu(1, &pair->high, pair->inverse, _mm512_load_si512(acc_0 + 16)),
        u8_relu(1, &pair->low, pair->inverse, _mm512_load_si512(acc_1)),
        u8_relu(1, &pair->high, pair->inverse, _mm512_load_si512(acc_1 + 16)),
    };
    const __m512i bytes = pack(q);

    _mm256_storeu_si256((__m256i *)(void *)c_0, _mm512_castsi512_si256(bytes));
    _mm256_storeu_si256((__m256i *)(void *)c_1, _mm512_extracti64x4_epi64(bytes, 1));
}

#endif
