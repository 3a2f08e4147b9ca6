/*
 * The reference row quantisation: one element at a time, each step of kernels/quantize.h one
 * statement.  The oracle of the vector levels; never optimised.
 */
#include "kernels/quantize.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/bf16.h"

quantize_range_fn quantize_range_ref;
quantize_apply_fn quantize_apply_ref;

static float element(enum gemm_type type, const void *x, size_t t)
{
    uint16_t half;
    float f;

    if (type == GEMM_TYPE_BF16) {
        memcpy(&half, (const uint8_t *)x + t * sizeof(half), sizeof(half));
        return bf16_to_f32(half);
    }
    memcpy(&f, (const uint8_t *)x + t * sizeof(f), sizeof(f));
    return f;
}

void quantize_range_ref(enum gemm_type type, size_t k, const void *x, float *lo, float *hi)
{
    *lo = 0.0f;
    *hi = 0.0f;
    for (size_t t = 0; t < k; t++) {
        float f = element(type, x, t);

        if (!isfinite(f))
            continue;
        *lo = f < *lo ? f : *lo;
        *hi = f > *hi ? f : *hi;
    }
}

uint32_t quantize_apply_ref(enum gemm_type type, size_t k, const void *x, float inverse,
                            int32_t zero_point, int32_t q_min, uint8_t *q)
{
    float t_min = (float)(q_min - zero_point), t_max = (float)(255 - zero_point);
    uint32_t sum = 0;

    for (size_t i = 0; i < k; i++) {
        float t = element(type, x, i) * inverse;

        if (isnan(t))
            t = 0.0f;
        t = t > t_min ? t : t_min;
        t = t < t_max ? t : t_max;
        q[i] = (uint8_t)(lrintf(t) + zero_point); /* ties to even: the default mode */
        sum += q[i];
    }
    return sum;
}
