/*
 * The reference epilogue: one element at a time, each step of kernels/epilogue.h one statement.
 * The oracle of the vector epilogues; never optimised.
 */
#include "kernels/epilogue.h"

#include <assert.h>
#include <math.h>
#include <string.h>

gemm_epilogue_fn gemm_epilogue_ref;

static float to_float(const struct gemm_epilogue *epilogue, int32_t s, size_t j)
{
    float f = (float)s * epilogue->scale[j];

    f = f + epilogue->bias[j];
    if (epilogue->activation == GEMM_ACTIVATION_RELU)
        f = f > 0.0f ? f : 0.0f;
    return f;
}

/* The clamp comes before rounding, so that an infinity never meets the integer conversion. */
static int32_t requantise(const struct gemm_epilogue *epilogue, float f)
{
    int32_t lo = epilogue->c_type == GEMM_TYPE_U8 ? 0 : -128;
    float q_min = (float)(lo - epilogue->c_zero_point);
    float q_max = (float)(lo + 255 - epilogue->c_zero_point);
    float q = f * epilogue->inverse_c_scale;

    q = q > q_min ? q : q_min;
    q = q < q_max ? q : q_max;
    return (int32_t)lrintf(q) + epilogue->c_zero_point; /* ties to even: the default mode */
}

void gemm_epilogue_ref(size_t m, size_t n, size_t nr, const int32_t *acc,
                       const struct gemm_epilogue *epilogue, size_t column, void *const *c)
{
    size_t bytes = gemm_type_bytes(epilogue->c_type);

    assert(m >= 1 && n >= 1 && n <= nr && epilogue->c_type != GEMM_TYPE_BF16);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            int32_t s =
                (int32_t)((uint32_t)acc[i * nr + j] + (uint32_t)epilogue->offset[column + j]);
            uint8_t *to = (uint8_t *)c[i] + (column + j) * bytes; /* possibly unaligned */
            float f;

            if (epilogue->c_type == GEMM_TYPE_S32) {
                memcpy(to, &s, sizeof(s));
                continue;
            }
            f = to_float(epilogue, s, column + j);
            if (epilogue->c_type == GEMM_TYPE_F32)
                memcpy(to, &f, sizeof(f));
            else
                *to = (uint8_t)requantise(epilogue, f);
        }
    }
}
