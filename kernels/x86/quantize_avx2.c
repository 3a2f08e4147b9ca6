/*
 * Row quantisation, AVX2: 8 elements a step, the last ones through a small copy.
 *
 * Steps and order are those of kernels/quantize.h.  Minima and maxima do not depend on their order
 * but for the sign of a zero, which no later step sees.
 *
 * Cost: 5 instructions per 8 elements for the range, about 11 for the quantisation.
 */
#include "kernels/quantize.h"

#include <float.h>

#include <immintrin.h>

enum { LANES = 8 };

#define INLINE static inline __attribute__((always_inline))

quantize_range_fn quantize_range_avx2;
quantize_apply_fn quantize_apply_avx2;

/* Elements t .. t + 8 of x, those beyond k as zeros (which change neither range nor sum). */
INLINE __m256 load(enum gemm_type type, const void *x, size_t t, size_t k)
{
    const size_t bytes = type == GEMM_TYPE_F32 ? 4 : 2;
    const uint8_t *from = (const uint8_t *)x + t * bytes;
    uint8_t last[LANES * 4] = {0};

    if (k - t < LANES) {
        __builtin_memcpy(last, from, (k - t) * bytes);
        from = last;
    }
    if (type == GEMM_TYPE_F32)
        return _mm256_loadu_ps((const float *)from);
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16));
}

INLINE void range(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    const __m256 largest = _mm256_set1_ps(FLT_MAX), sign = _mm256_set1_ps(-0.0f);
    __m256 min = _mm256_setzero_ps(), max = _mm256_setzero_ps();
    float mins[LANES], maxs[LANES];

    for (size_t t = 0; t < k; t += LANES) {
        __m256 f = load(type, x, t, k);
        __m256 finite = _mm256_cmp_ps(_mm256_andnot_ps(sign, f), largest, _CMP_LE_OQ);

        f = _mm256_and_ps(f, finite); /* 0, which is in the range anyway */
        min = _mm256_min_ps(min, f);
        max = _mm256_max_ps(max, f);
    }
    _mm256_storeu_ps(mins, min);
    _mm256_storeu_ps(maxs, max);
    *lo = 0.0f;
    *hi = 0.0f;
    for (size_t i = 0; i < LANES; i++) {
        *lo = mins[i] < *lo ? mins[i] : *lo;
        *hi = maxs[i] > *hi ? maxs[i] : *hi;
    }
}

void quantize_range_avx2(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    if (type == GEMM_TYPE_F32)
        range(GEMM_TYPE_F32, k, x, lo, hi);
    else
        range(GEMM_TYPE_BF16, k, x, lo, hi);
}

INLINE uint32_t apply(enum gemm_type type, size_t k, const void *x, float inverse,
                      int32_t zero_point, int32_t q_min, uint8_t *q)
{
    const __m256 inverse_v = _mm256_set1_ps(inverse);
    const __m256 t_min = _mm256_set1_ps((float)(q_min - zero_point));
    const __m256 t_max = _mm256_set1_ps((float)(255 - zero_point));
    const __m256i zero_point_v = _mm256_set1_epi32(zero_point);
    uint32_t total = 0;

    for (size_t i = 0; i < k; i += LANES) {
        size_t count = k - i < LANES ? k - i : LANES;
        __m256 t = _mm256_mul_ps(load(type, x, i, k), inverse_v);
        __m256i y;
        __m128i bytes;

        t = _mm256_and_ps(t, _mm256_cmp_ps(t, t, _CMP_ORD_Q)); /* NaN: 0 */
        t = _mm256_min_ps(_mm256_max_ps(t, t_min), t_max);
        y = _mm256_add_epi32(_mm256_cvtps_epi32(t), zero_point_v);
        bytes = _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
        bytes = _mm_packus_epi16(bytes, _mm_setzero_si128());
        if (count == LANES) {
            _mm_storel_epi64((__m128i *)(q + i), bytes);
            bytes = _mm_sad_epu8(bytes, _mm_setzero_si128());
            total += (uint32_t)_mm_cvtsi128_si32(bytes);
        } else {
            uint8_t last[LANES];

            _mm_storel_epi64((__m128i *)last, bytes);
            for (size_t j = 0; j < count; j++) {
                q[i + j] = last[j];
                total += last[j];
            }
        }
    }
    return total;
}

uint32_t quantize_apply_avx2(enum gemm_type type, size_t k, const void *x, float inverse,
                             int32_t zero_point, int32_t q_min, uint8_t *q)
{
    if (type == GEMM_TYPE_F32)
        return apply(GEMM_TYPE_F32, k, x, inverse, zero_point, q_min, q);
    return apply(GEMM_TYPE_BF16, k, x, inverse, zero_point, q_min, q);
}
