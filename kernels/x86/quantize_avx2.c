/*
 * Row quantisation, AVX2: 32 elements a step, the last ones 8 at a time through a small copy.
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
 * Cost per 8 elements: 2 instructions and a load for the range; 5, a load and about 3 of packing
 * for the integers (bf16: two more each).
 */
#include "kernels/quantize.h"

#include <float.h>

#include <immintrin.h>

#include "kernels/x86/inline.h"

enum {
    LANES = 8,
    STEP = 4 * LANES,
    PREFETCH_BYTES = 2048, /* into L2, as quantize_avx512.c */
};

quantize_range_fn quantize_range_avx2;
quantize_apply_fn quantize_apply_avx2;

INLINE size_t bytes_of(enum gemm_type type)
{
    return type == GEMM_TYPE_F32 ? 4 : 2;
}

/* Elements t .. t + 8 of x, all inside the row. */
INLINE __m256 load(enum gemm_type type, const void *x, size_t t)
{
    const void *from = (const uint8_t *)x + t * bytes_of(type);

    if (type == GEMM_TYPE_F32)
        return _mm256_loadu_ps((const float *)from);
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16));
}

/* The same for a row that ends within them: zeros beyond (which change no range). */
INLINE __m256 load_last(enum gemm_type type, const void *x, size_t t, size_t k)
{
    uint8_t last[LANES * 4] = {0};

    if (k - t >= LANES)
        return load(type, x, t);
    __builtin_memcpy(last, (const uint8_t *)x + t * bytes_of(type), (k - t) * bytes_of(type));
    return load(type, last, 0);
}

static void reduce(__m256 min, __m256 max, float *lo, float *hi)
{
    float mins[LANES], maxs[LANES];

    _mm256_storeu_ps(mins, min);
    _mm256_storeu_ps(maxs, max);
    *lo = 0.0f;
    *hi = 0.0f;
    for (size_t i = 0; i < LANES; i++) {
        *lo = mins[i] < *lo ? mins[i] : *lo;
        *hi = maxs[i] > *hi ? maxs[i] : *hi;
    }
}

/* The range of the finite elements, tested one by one. */
INLINE void finite_range(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    const __m256 largest = _mm256_set1_ps(FLT_MAX), sign = _mm256_set1_ps(-0.0f);
    __m256 min = _mm256_setzero_ps(), max = _mm256_setzero_ps();

    for (size_t t = 0; t < k; t += LANES) {
        __m256 f = load_last(type, x, t, k);
        __m256 finite = _mm256_cmp_ps(_mm256_andnot_ps(sign, f), largest, _CMP_LE_OQ);

        f = _mm256_and_ps(f, finite); /* 0, which is in the range anyway */
        min = _mm256_min_ps(min, f);
        max = _mm256_max_ps(max, f);
    }
    reduce(min, max, lo, hi);
}

/* Four accumulators each: a minimum's latency is 4 cycles. */
INLINE void range(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    __m256 min[4], max[4];
    size_t t = 0;

    for (size_t i = 0; i < 4; i++)
        min[i] = max[i] = _mm256_setzero_ps();
    for (; t + STEP <= k; t += STEP) {
        for (size_t i = 0; i < 4; i++) {
            __m256 f = load(type, x, t + i * LANES);

            min[i] = _mm256_min_ps(f, min[i]);
            max[i] = _mm256_max_ps(f, max[i]);
        }
        for (size_t byte = 0; byte < STEP * bytes_of(type); byte += 64)
            _mm_prefetch((const uint8_t *)x + t * bytes_of(type) + byte + PREFETCH_BYTES,
                         _MM_HINT_T1);
    }
    for (; t < k; t += LANES) {
        __m256 f = load_last(type, x, t, k);

        min[0] = _mm256_min_ps(f, min[0]);
        max[0] = _mm256_max_ps(f, max[0]);
    }
    reduce(_mm256_min_ps(_mm256_min_ps(min[0], min[1]), _mm256_min_ps(min[2], min[3])),
           _mm256_max_ps(_mm256_max_ps(max[0], max[1]), _mm256_max_ps(max[2], max[3])), lo, hi);
    if (*lo < -FLT_MAX || *hi > FLT_MAX)
        finite_range(type, k, x, lo, hi);
}

void quantize_range_avx2(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    if (type == GEMM_TYPE_F32)
        range(GEMM_TYPE_F32, k, x, lo, hi);
    else
        range(GEMM_TYPE_BF16, k, x, lo, hi);
}

struct constants {
    __m256 inverse, t_max;
    __m256i zero_point; /* s16 */
    __m256i q_min;      /* u8 */
};

/* 8 integers without the zero point: not above 255 - zero_point, clamped below by the packs. */
INLINE __m256i round8(const struct constants *c, __m256 f)
{
    __m256 t = _mm256_mul_ps(f, c->inverse);

    t = _mm256_and_ps(t, _mm256_cmp_ps(t, t, _CMP_ORD_Q)); /* NaN: 0 */
    return _mm256_cvtps_epi32(_mm256_min_ps(t, c->t_max));
}

/* Four times 8 integers to 32 bytes in order. */
INLINE __m256i pack(const struct constants *c, const __m256i *four)
{
    /* The packs work inside 128-bit lanes: this puts the eight groups of 4 bytes in order. */
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(four[0], four[1]), c->zero_point);
    __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(four[2], four[3]), c->zero_point);
    __m256i bytes = _mm256_max_epu8(_mm256_packus_epi16(low, high), c->q_min);

    return _mm256_permutevar8x32_epi32(bytes, order);
}

INLINE uint32_t apply(enum gemm_type type, size_t k, const void *x, float inverse,
                      int32_t zero_point, int32_t q_min, uint8_t *q)
{
    const struct constants c = {
        .inverse = _mm256_set1_ps(inverse),
        .t_max = _mm256_set1_ps((float)(255 - zero_point)),
        .zero_point = _mm256_set1_epi16((int16_t)zero_point),
        .q_min = _mm256_set1_epi8((char)q_min),
    };
    __m256i sum = _mm256_setzero_si256(), four[4];
    uint64_t sums[4];
    uint8_t last[STEP];
    size_t t = 0;
    uint32_t total = 0;

    for (; t + STEP <= k; t += STEP) {
        __m256i bytes;

        for (size_t i = 0; i < 4; i++)
            four[i] = round8(&c, load(type, x, t + i * LANES));
        bytes = pack(&c, four);
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
        _mm256_storeu_si256((__m256i *)(void *)(q + t), bytes);
    }
    _mm256_storeu_si256((__m256i *)(void *)sums, sum);
    for (size_t i = 0; i < 4; i++)
        total += (uint32_t)sums[i];
    if (t == k)
        return total;
    for (size_t i = 0; i < 4; i++)
        four[i] = t + i * LANES < k ? round8(&c, load_last(type, x, t + i * LANES, k))
                                    : _mm256_setzero_si256();
    _mm256_storeu_si256((__m256i *)(void *)last, pack(&c, four));
    for (size_t i = 0; t < k; i++, t++) {
        q[t] = last[i];
        total += last[i];
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
