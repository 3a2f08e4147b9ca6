/*
 * Row quantisation, AVX-512 F+BW: 64 elements a step, the last ones masked.
 *
 * Steps and results are those of kernels/quantize.h; what is cheaper here is equal there:
 *
 *   - minps returns its second operand when one is NaN, so min(x, lo) passes over NaN; only when an
 *     infinity comes out is the row read again with a test for each element.  Minima and maxima do
 *     not depend on their order but for the sign of a zero, which no later step sees.
 *   - A clamp to integers before rounding equals one after it.  Above, it comes before, because the
 *     conversion of what is too large yields INT_MIN; below, the saturation of the packs is the
 *     clamp at 0.
 *
 * Cost per 16 elements: 2 instructions and a load for the range; 4, a load and about 2 of packing
 * for the integers (bf16: two more each).
 */
#include "kernels/quantize.h"

#include <float.h>

#include <immintrin.h>

#include "kernels/x86/inline.h"

enum {
    LANES = 16,
    STEP = 4 * LANES,
    /* Into L2, across the end of a row into the next, where the hardware's prefetcher starts anew:
     * rows of 16 KiB from memory at 14.4 GB/s, 11 without; 1 and 4 KiB 13.2 and 13.0. */
    PREFETCH_BYTES = 2048,
    /* vfixupimm: what becomes of each class of number, four bits for each, NaN classes first.
     * 0 keeps the destination, 8 is +0. */
    FIXUP_NAN_TO_ZERO = 0x88,
};

quantize_range_fn quantize_range_avx512;
quantize_apply_fn quantize_apply_avx512;

INLINE size_t bytes_of(enum gemm_type type)
{
    return type == GEMM_TYPE_F32 ? 4 : 2;
}

/* Elements t .. t + 16 of x, those outside the mask as zeros (which change no range). */
INLINE __m512 load(enum gemm_type type, const void *x, size_t t, __mmask16 mask)
{
    const uint8_t *from = (const uint8_t *)x + t * bytes_of(type);

    if (type == GEMM_TYPE_F32)
        return _mm512_maskz_loadu_ps(mask, from);
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}

INLINE __mmask16 mask_of(size_t count)
{
    return count < LANES ? (__mmask16)((1u << count) - 1) : 0xffff;
}

/* The range of the finite elements, tested one by one. */
INLINE void finite_range(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    __m512 min = _mm512_setzero_ps(), max = _mm512_setzero_ps();

    for (size_t t = 0; t < k; t += LANES) {
        __m512 f = load(type, x, t, mask_of(k - t));
        __mmask16 finite =
            _mm512_cmp_ps_mask(_mm512_abs_ps(f), _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ);

        min = _mm512_mask_min_ps(min, finite, min, f);
        max = _mm512_mask_max_ps(max, finite, max, f);
    }
    *lo = _mm512_reduce_min_ps(min);
    *hi = _mm512_reduce_max_ps(max);
}

/* Four accumulators each: a minimum's latency is 4 cycles. */
INLINE void range(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    __m512 min[4], max[4];
    size_t t = 0;

    for (size_t i = 0; i < 4; i++)
        min[i] = max[i] = _mm512_setzero_ps();
    for (; t + STEP <= k; t += STEP) {
        for (size_t i = 0; i < 4; i++) {
            const uint8_t *from = (const uint8_t *)x + (t + i * LANES) * bytes_of(type);
            __m512 f = load(type, x, t + i * LANES, 0xffff);

            if (type == GEMM_TYPE_F32 || i % 2 == 0)
                _mm_prefetch(from + PREFETCH_BYTES, _MM_HINT_T1);
            min[i] = _mm512_min_ps(f, min[i]);
            max[i] = _mm512_max_ps(f, max[i]);
        }
    }
    for (; t < k; t += LANES) {
        __m512 f = load(type, x, t, mask_of(k - t));

        min[0] = _mm512_min_ps(f, min[0]);
        max[0] = _mm512_max_ps(f, max[0]);
    }
    *lo = _mm512_reduce_min_ps(
        _mm512_min_ps(_mm512_min_ps(min[0], min[1]), _mm512_min_ps(min[2], min[3])));
    *hi = _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3])));
    if (*lo < -FLT_MAX || *hi > FLT_MAX)
        finite_range(type, k, x, lo, hi);
}

void quantize_range_avx512(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    if (type == GEMM_TYPE_F32)
        range(GEMM_TYPE_F32, k, x, lo, hi);
    else
        range(GEMM_TYPE_BF16, k, x, lo, hi);
}

struct constants {
    __m512 inverse, t_max;
    __m512i zero_point; /* s16 */
    __m512i q_min;      /* u8 */
};

/* 16 integers without the zero point: not above 255 - zero_point, clamped below by the packs. */
INLINE __m512i round16(const struct constants *c, __m512 f)
{
    __m512 t = _mm512_mul_ps(f, c->inverse);

    t = _mm512_fixupimm_ps(t, t, _mm512_set1_epi32(FIXUP_NAN_TO_ZERO), 0);
    return _mm512_cvtps_epi32(_mm512_min_ps(t, c->t_max));
}

/* 64 elements from t on, `count` of them within the row, to 64 bytes in order. */
INLINE __m512i quantise(enum gemm_type type, const struct constants *c, const void *x, size_t t,
                        size_t count)
{
    /* The packs work inside 128-bit lanes: this puts the sixteen groups of 4 bytes in order. */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i four[4], low, high;

    for (size_t i = 0; i < 4; i++) {
        size_t have = count > i * LANES ? count - i * LANES : 0;

        four[i] = round16(c, load(type, x, t + i * LANES, mask_of(have)));
    }
    low = _mm512_adds_epi16(_mm512_packs_epi32(four[0], four[1]), c->zero_point);
    high = _mm512_adds_epi16(_mm512_packs_epi32(four[2], four[3]), c->zero_point);
    return _mm512_permutexvar_epi32(order,
                                    _mm512_max_epu8(_mm512_packus_epi16(low, high), c->q_min));
}

INLINE uint32_t apply(enum gemm_type type, size_t k, const void *x, float inverse,
                      int32_t zero_point, int32_t q_min, uint8_t *q)
{
    const struct constants c = {
        .inverse = _mm512_set1_ps(inverse),
        .t_max = _mm512_set1_ps((float)(255 - zero_point)),
        .zero_point = _mm512_set1_epi16((int16_t)zero_point),
        .q_min = _mm512_set1_epi8((char)q_min),
    };
    const __m512i zero = _mm512_setzero_si512();
    __m512i sum = zero;
    size_t t = 0;

    for (; t + STEP <= k; t += STEP) {
        __m512i bytes = quantise(type, &c, x, t, STEP);

        sum = _mm512_add_epi64(sum, _mm512_sad_epu8(bytes, zero));
        _mm512_storeu_si512(q + t, bytes);
    }
    if (t < k) {
        __mmask64 mask = ~UINT64_C(0) >> (STEP - (k - t));
        __m512i bytes = _mm512_maskz_mov_epi8(mask, quantise(type, &c, x, t, k - t));

        sum = _mm512_add_epi64(sum, _mm512_sad_epu8(bytes, zero));
        _mm512_mask_storeu_epi8(q + t, mask, bytes);
    }
    return (uint32_t)_mm512_reduce_add_epi64(sum);
}

uint32_t quantize_apply_avx512(enum gemm_type type, size_t k, const void *x, float inverse,
                               int32_t zero_point, int32_t q_min, uint8_t *q)
{
    if (type == GEMM_TYPE_F32)
        return apply(GEMM_TYPE_F32, k, x, inverse, zero_point, q_min, q);
    return apply(GEMM_TYPE_BF16, k, x, inverse, zero_point, q_min, q);
}
