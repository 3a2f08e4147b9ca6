/*
 * Row quantisation, AVX-512 F+BW: 64 elements a step, the last ones masked.
 *
 * Steps and order are those of kernels/quantize.h.  Minima and maxima do not depend on their order
 * but for the sign of a zero, which no later step sees.
 *
 * Cost: 5 instructions per 16 elements for the range, 8 for the quantisation (f32; bf16 one more
 * each): the pair runs at a third of the bandwidth of L2 and above that of memory.
 */
#include "kernels/quantize.h"

#include <float.h>

#include <immintrin.h>

enum { LANES = 16 };

#define INLINE static inline __attribute__((always_inline))

quantize_range_fn quantize_range_avx512;
quantize_apply_fn quantize_apply_avx512;

/* Elements t .. t + 16 of x, those beyond k as zeros (which change neither range nor sum). */
INLINE __m512 load(enum gemm_type type, const void *x, size_t t, size_t k)
{
    __mmask16 mask = k - t < LANES ? (__mmask16)((1u << (k - t)) - 1) : 0xffff;

    if (type == GEMM_TYPE_F32)
        return _mm512_maskz_loadu_ps(mask, (const uint8_t *)x + t * 4);
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, (const uint8_t *)x + t * 2)), 16));
}

/* Two accumulators each: a minimum's latency is 4 cycles. */
INLINE void range(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    const __m512 largest = _mm512_set1_ps(FLT_MAX);
    __m512 min[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    __m512 max[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};

    for (size_t t = 0; t < k; t += 2 * LANES) {
        for (size_t i = 0; i < 2 && t + i * LANES < k; i++) {
            __m512 f = load(type, x, t + i * LANES, k);
            __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(f), largest, _CMP_LE_OQ);

            min[i] = _mm512_mask_min_ps(min[i], finite, min[i], f);
            max[i] = _mm512_mask_max_ps(max[i], finite, max[i], f);
        }
    }
    *lo = _mm512_reduce_min_ps(_mm512_min_ps(min[0], min[1]));
    *hi = _mm512_reduce_max_ps(_mm512_max_ps(max[0], max[1]));
}

void quantize_range_avx512(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    if (type == GEMM_TYPE_F32)
        range(GEMM_TYPE_F32, k, x, lo, hi);
    else
        range(GEMM_TYPE_BF16, k, x, lo, hi);
}

struct constants {
    __m512 inverse, t_min, t_max;
    __m512i zero_point;
};

/* 16 s32 in 0..255. */
INLINE __m512i quantise(const struct constants *c, __m512 f)
{
    __m512 t = _mm512_mul_ps(f, c->inverse);

    t = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(t, t, _CMP_ORD_Q), t); /* NaN: 0 */
    t = _mm512_min_ps(_mm512_max_ps(t, c->t_min), c->t_max);
    return _mm512_add_epi32(_mm512_cvtps_epi32(t), c->zero_point);
}

INLINE uint32_t apply(enum gemm_type type, size_t k, const void *x, float inverse,
                      int32_t zero_point, int32_t q_min, uint8_t *q)
{
    const struct constants c = {
        .inverse = _mm512_set1_ps(inverse),
        .t_min = _mm512_set1_ps((float)(q_min - zero_point)),
        .t_max = _mm512_set1_ps((float)(255 - zero_point)),
        .zero_point = _mm512_set1_epi32(zero_point),
    };
    /* The packs work inside 128-bit lanes: this puts the sixteen groups of 4 bytes in order. */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i sum = _mm512_setzero_si512();
    size_t t = 0;
    uint32_t total;

    for (; t + 4 * LANES <= k; t += 4 * LANES) {
        __m512i low = _mm512_packs_epi32(quantise(&c, load(type, x, t, k)),
                                         quantise(&c, load(type, x, t + LANES, k)));
        __m512i high = _mm512_packs_epi32(quantise(&c, load(type, x, t + 2 * LANES, k)),
                                          quantise(&c, load(type, x, t + 3 * LANES, k)));
        __m512i bytes = _mm512_packus_epi16(low, high);

        sum = _mm512_add_epi64(sum, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
        _mm512_storeu_si512(q + t, _mm512_permutexvar_epi32(order, bytes));
    }
    total = (uint32_t)_mm512_reduce_add_epi64(sum);
    for (; t < k; t += LANES) {
        __mmask16 mask = k - t < LANES ? (__mmask16)((1u << (k - t)) - 1) : 0xffff;
        __m512i four = _mm512_maskz_mov_epi32(mask, quantise(&c, load(type, x, t, k)));

        _mm_mask_storeu_epi8(q + t, mask, _mm512_cvtepi32_epi8(four));
        total += (uint32_t)_mm512_reduce_add_epi32(four);
    }
    return total;
}

uint32_t quantize_apply_avx512(enum gemm_type type, size_t k, const void *x, float inverse,
                               int32_t zero_point, int32_t q_min, uint8_t *q)
{
    if (type == GEMM_TYPE_F32)
        return apply(GEMM_TYPE_F32, k, x, inverse, zero_point, q_min, q);
    return apply(GEMM_TYPE_BF16, k, x, inverse, zero_point, q_min, q);
}
