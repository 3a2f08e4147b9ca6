/*
 * The reference epilogue: one element at a time, each step of kernels/epilogue.h one statement.
 * The oracle of the vector epilogues; never optimised.
 */
#include "kernels/epilogue.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/activation.h"
#include "kernels/bf16.h"

gemm_epilogue_fn gemm_epilogue_ref;

static int32_t integer_steps(const struct gemm_epilogue *epilogue, int32_t acc, size_t i, size_t j)
{
    uint32_t s = (uint32_t)acc + (uint32_t)epilogue->offset[j];

    if (epilogue->row_zero_points)
        s -= (uint32_t)epilogue->row_zero_points[i] * (uint32_t)epilogue->column_sums[j];
    if (epilogue->row_sums)
        s -= (uint32_t)epilogue->row_sums[i] * (uint32_t)epilogue->b_zero_points[j];
    return (int32_t)s;
}

/* The sum as a float, whichever kind of accumulator this is. */
static float sum_float(const struct gemm_epilogue *epilogue, int32_t acc, size_t i, size_t j)
{
    float f;

    if (!epilogue->weighted_sums)
        return (float)integer_steps(epilogue, acc, i, j);
    memcpy(&f, &acc, sizeof(f));
    if (epilogue->row_zero_points)
        f = f - (float)epilogue->row_zero_points[i] * epilogue->weighted_sums[j];
    return f;
}

static float residual_at(const struct gemm_epilogue *epilogue, size_t i, size_t j)
{
    const uint8_t *row = epilogue->residual[i];
    int32_t integer;
    uint16_t half;
    float f;

    switch (epilogue->residual_type) {
    case GEMM_TYPE_F32:
        memcpy(&f, row + j * sizeof(f), sizeof(f));
        return f;
    case GEMM_TYPE_BF16:
        memcpy(&half, row + j * sizeof(half), sizeof(half));
        return bf16_to_f32(half);
    default:
        integer = epilogue->residual_type == GEMM_TYPE_U8 ? row[j] : (int8_t)row[j];
        return (float)(integer - epilogue->residual_zero_point) * epilogue->residual_scale;
    }
}

static float to_float(const struct gemm_epilogue *epilogue, int32_t acc, size_t i, size_t j)
{
    float f = sum_float(epilogue, acc, i, j);

    f = f * epilogue->scale[j];
    if (epilogue->row_scales)
        f = f * epilogue->row_scales[i];
    f = f + epilogue->bias[j];
    if (epilogue->residual)
        f = f + residual_at(epilogue, i, j);
    return activation_ref(epilogue->activation, epilogue->clip_lo, epilogue->clip_hi, f);
}

/* The clamp comes before rounding, so that an infinity never meets the integer conversion. */
static uint8_t requantise(const struct gemm_epilogue *epilogue, float f)
{
    int32_t lo = epilogue->c_type == GEMM_TYPE_U8 ? 0 : -128;
    float q_min = (float)(lo - epilogue->c_zero_point);
    float q_max = (float)(lo + 255 - epilogue->c_zero_point);
    float q = f * epilogue->inverse_c_scale;

    q = q > q_min ? q : q_min;
    q = q < q_max ? q : q_max;
    return (uint8_t)(lrintf(q) + epilogue->c_zero_point); /* ties to even: the default mode */
}

static void store(const struct gemm_epilogue *epilogue, float f, uint8_t *to)
{
    uint32_t quiet_nan = 0x7fc00000u;
    uint16_t half;

    if (isnan(f))
        memcpy(&f, &quiet_nan, sizeof(f));
    half = bf16_from_f32(f);
    if (epilogue->c_type == GEMM_TYPE_F32)
        memcpy(to, &f, sizeof(f));
    else if (epilogue->c_type == GEMM_TYPE_BF16)
        memcpy(to, &half, sizeof(half));
    else
        *to = requantise(epilogue, f);
}

void gemm_epilogue_ref(size_t m, size_t n, size_t nr, const int32_t *acc,
                       const struct gemm_epilogue *epilogue, size_t row, size_t column,
                       void *const *c)
{
    size_t bytes = gemm_type_bytes(epilogue->c_type);

    assert(m >= 1 && n >= 1 && n <= nr);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            uint8_t *to = (uint8_t *)c[i] + (column + j) * bytes; /* possibly unaligned */
            int32_t sum = acc[i * nr + j];

            if (epilogue->c_type == GEMM_TYPE_S32) {
                sum = integer_steps(epilogue, sum, row + i, column + j);
                memcpy(to, &sum, sizeof(sum));
            } else {
                store(epilogue, to_float(epilogue, sum, row + i, column + j), to);
            }
        }
    }
}
