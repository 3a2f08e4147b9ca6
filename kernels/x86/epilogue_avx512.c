/*
 * Epilogue, AVX-512 F+BW+VL: 16 columns a step, the last one masked.
 *
 * Steps and order are those of kernels/epilogue.h, one instruction each; multiply and add are never
 * fused.  Rounding is the default mode of MXCSR, nearest even.  The per-column arrays and acc are
 * padded, so only stores need the mask.
 *
 * Cost: per 16 outputs 3 loads and 3 (f32) to 8 (u8) instructions; beside a tile's 64 * k
 * multiply-adds this shows for k below some hundred only.
 */
#include "kernels/epilogue.h"

#include <immintrin.h>

enum { LANES = 16 };

#define INLINE static inline __attribute__((always_inline))

gemm_epilogue_fn gemm_epilogue_avx512;

/* acc + offset, then everything up to the activation. */
INLINE __m512 to_float(const struct gemm_epilogue *epilogue, __m512i s, size_t j)
{
    __m512 f = _mm512_mul_ps(_mm512_cvtepi32_ps(s), _mm512_load_ps(epilogue->scale + j));

    f = _mm512_add_ps(f, _mm512_load_ps(epilogue->bias + j));
    if (epilogue->activation == GEMM_ACTIVATION_RELU)
        f = _mm512_max_ps(f, _mm512_setzero_ps()); /* f > 0 ? f : +0 in this operand order */
    return f;
}

/* Clamp, round, add the zero point: 16 s32 inside the output type's range. */
INLINE __m512i requantise(const struct gemm_epilogue *epilogue, __m512 f)
{
    int lo = epilogue->c_type == GEMM_TYPE_U8 ? 0 : -128;
    __m512 q_min = _mm512_set1_ps((float)(lo - epilogue->c_zero_point));
    __m512 q_max = _mm512_set1_ps((float)(lo + 255 - epilogue->c_zero_point));
    __m512 q = _mm512_mul_ps(f, _mm512_set1_ps(epilogue->inverse_c_scale));

    q = _mm512_min_ps(_mm512_max_ps(q, q_min), q_max);
    return _mm512_add_epi32(_mm512_cvtps_epi32(q), _mm512_set1_epi32(epilogue->c_zero_point));
}

/* One row: n columns from `column` on, to c, which points at column 0. */
INLINE void row(enum gemm_type c_type, size_t n, const int32_t *acc,
                const struct gemm_epilogue *epilogue, size_t column, uint8_t *c)
{
    for (size_t j = 0; j < n; j += LANES) {
        __mmask16 mask = n - j < LANES ? (__mmask16)((1u << (n - j)) - 1) : 0xffff;
        __m512i s = _mm512_add_epi32(_mm512_load_si512(acc + j),
                                     _mm512_load_si512(epilogue->offset + column + j));

        if (c_type == GEMM_TYPE_S32)
            _mm512_mask_storeu_epi32(c + (column + j) * 4, mask, s);
        else if (c_type == GEMM_TYPE_F32)
            _mm512_mask_storeu_ps(c + (column + j) * 4, mask, to_float(epilogue, s, column + j));
        else
            _mm512_mask_cvtepi32_storeu_epi8(
                c + column + j, mask, requantise(epilogue, to_float(epilogue, s, column + j)));
    }
}

void gemm_epilogue_avx512(size_t m, size_t n, size_t nr, const int32_t *acc,
                          const struct gemm_epilogue *epilogue, size_t column, void *const *c)
{
    for (size_t i = 0; i < m; i++) {
        /* The type is a constant in each branch, so that the inner loop has none. */
        if (epilogue->c_type == GEMM_TYPE_S32)
            row(GEMM_TYPE_S32, n, acc + i * nr, epilogue, column, c[i]);
        else if (epilogue->c_type == GEMM_TYPE_F32)
            row(GEMM_TYPE_F32, n, acc + i * nr, epilogue, column, c[i]);
        else
            row(GEMM_TYPE_U8, n, acc + i * nr, epilogue, column, c[i]);
    }
}
