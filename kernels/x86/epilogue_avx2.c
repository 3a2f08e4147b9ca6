/*
 * Epilogue, AVX2: 8 columns a step, the last one through a small copy.
 *
 * Steps and order are those of kernels/epilogue.h, one instruction each; multiply and add are never
 * fused (no -mfma here, and -ffp-contract=off).  Rounding is the default mode of MXCSR, nearest
 * even.  The per-column arrays and acc are padded, so only stores need care.
 *
 * Cost: per 8 outputs 3 loads and 3 (f32) to 10 (u8) instructions.
 */
#include "kernels/epilogue.h"

#include <immintrin.h>

enum { LANES = 8 };

#define INLINE static inline __attribute__((always_inline))

gemm_epilogue_fn gemm_epilogue_avx2;

/* acc + offset, then everything up to the activation. */
INLINE __m256 to_float(const struct gemm_epilogue *epilogue, __m256i s, size_t j)
{
    __m256 f = _mm256_mul_ps(_mm256_cvtepi32_ps(s), _mm256_load_ps(epilogue->scale + j));

    f = _mm256_add_ps(f, _mm256_load_ps(epilogue->bias + j));
    if (epilogue->activation == GEMM_ACTIVATION_RELU)
        f = _mm256_max_ps(f, _mm256_setzero_ps()); /* f > 0 ? f : +0 in this operand order */
    return f;
}

/* Clamp, round, add the zero point: the 8 bytes of u8 or s8, in the low half. */
INLINE __m128i requantise(const struct gemm_epilogue *epilogue, __m256 f)
{
    int lo = epilogue->c_type == GEMM_TYPE_U8 ? 0 : -128;
    __m256 q_min = _mm256_set1_ps((float)(lo - epilogue->c_zero_point));
    __m256 q_max = _mm256_set1_ps((float)(lo + 255 - epilogue->c_zero_point));
    __m256 q = _mm256_mul_ps(f, _mm256_set1_ps(epilogue->inverse_c_scale));
    __m256i y;
    __m128i words;

    q = _mm256_min_ps(_mm256_max_ps(q, q_min), q_max);
    y = _mm256_add_epi32(_mm256_cvtps_epi32(q), _mm256_set1_epi32(epilogue->c_zero_point));
    /* In range already: neither pack saturates. */
    words = _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    return lo ? _mm_packs_epi16(words, words) : _mm_packus_epi16(words, words);
}

/* One row: n columns from `column` on, to c, which points at column 0. */
INLINE void row(enum gemm_type c_type, size_t n, const int32_t *acc,
                const struct gemm_epilogue *epilogue, size_t column, uint8_t *c)
{
    const size_t bytes = c_type == GEMM_TYPE_U8 ? 1 : 4;

    for (size_t j = 0; j < n; j += LANES) {
        uint8_t *to = c + (column + j) * bytes;
        uint8_t last[LANES * 4];
        size_t count = n - j < LANES ? n - j : LANES;
        uint8_t *out = count < LANES ? last : to;
        __m256i s =
            _mm256_add_epi32(_mm256_load_si256((const __m256i *)(acc + j)),
                             _mm256_load_si256((const __m256i *)(epilogue->offset + column + j)));

        if (c_type == GEMM_TYPE_S32)
            _mm256_storeu_si256((__m256i *)out, s);
        else if (c_type == GEMM_TYPE_F32)
            _mm256_storeu_ps((float *)out, to_float(epilogue, s, column + j));
        else
            _mm_storel_epi64((__m128i *)out,
                             requantise(epilogue, to_float(epilogue, s, column + j)));
        if (out == last)
            __builtin_memcpy(to, last, count * bytes);
    }
}

void gemm_epilogue_avx2(size_t m, size_t n, size_t nr, const int32_t *acc,
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
