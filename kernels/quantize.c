/*
 * Row quantisation: the table of levels, and the parameters that follow from a row's range.  The
 * parameters are scalar code here, once per row, so that no level can differ in them.
 */
#include "kernels/quantize.h"

#include <assert.h>
#include <float.h>
#include <math.h>

quantize_range_fn quantize_range_ref;
quantize_apply_fn quantize_apply_ref;
#if GEMM_X86
quantize_range_fn quantize_range_avx512;
quantize_apply_fn quantize_apply_avx512;
quantize_range_fn quantize_range_avx2;
quantize_apply_fn quantize_apply_avx2;
#endif

static const struct quantize_kernel kernels[] = {
#if GEMM_X86
    {"quantize_avx512", CPU_LEVEL_AVX512, quantize_range_avx512, quantize_apply_avx512},
    {"quantize_avx2", CPU_LEVEL_AVX2, quantize_range_avx2, quantize_apply_avx2},
#endif
    {"quantize_ref", CPU_LEVEL_REF, quantize_range_ref, quantize_apply_ref},
};

enum { KERNEL_COUNT = sizeof(kernels) / sizeof(kernels[0]) };

const struct quantize_kernel *quantize_kernels(size_t *count)
{
    *count = KERNEL_COUNT;
    return kernels;
}

const struct quantize_kernel *quantize_select(uint32_t levels)
{
    size_t row = 0;

    while (row + 1 < KERNEL_COUNT && !(levels & (UINT32_C(1) << kernels[row].level)))
        row++;
    return &kernels[row];
}

/* For u8, lo <= 0 <= hi. */
static struct quantize_params params_of_range(enum quantize_mode mode, float lo, float hi,
                                              float *inverse)
{
    struct quantize_params params = {.zero_point = 128};

    if (mode == QUANTIZE_SYMMETRIC)
        params.scale = (hi > -lo ? hi : -lo) / 127.0f;
    else
        params.scale = hi / 255.0f - lo / 255.0f;
    params.scale = params.scale > FLT_MIN ? params.scale : FLT_MIN;
    *inverse = 1.0f / params.scale;
    if (mode == QUANTIZE_ASYMMETRIC) {
        float z = -lo * *inverse; /* at most 255 and some rounding */

        params.zero_point = (int32_t)lrintf(z < 255.0f ? z : 255.0f);
    }
    return params;
}

struct quantize_row quantize_row(const struct quantize_kernel *kernel, enum gemm_type type,
                                 enum quantize_mode mode, size_t k, const void *x, uint8_t *q)
{
    struct quantize_row row;
    float lo, hi, inverse;
    uint32_t sum;

    assert(type == GEMM_TYPE_F32 || type == GEMM_TYPE_BF16);
    assert(k >= 1 && k <= GEMM_K_MAX);
    kernel->range(type, k, x, &lo, &hi);
    row.params = params_of_range(mode, lo, hi, &inverse);
    sum = kernel->apply(type, k, x, inverse, row.params.zero_point, mode == QUANTIZE_SYMMETRIC, q);
    row.sum = (int32_t)sum - (int32_t)k * row.params.zero_point;
    return row;
}

struct quantize_params quantize_params_of(enum gemm_type type, enum quantize_mode mode, float lo,
                                          float hi)
{
    struct quantize_params params;
    float inverse;

    assert(type == GEMM_TYPE_U8 || type == GEMM_TYPE_S8);
    assert(isfinite(lo) && isfinite(hi) && lo <= hi);
    params = params_of_range(mode, lo < 0.0f ? lo : 0.0f, hi > 0.0f ? hi : 0.0f, &inverse);
    if (type == GEMM_TYPE_S8)
        params.zero_point -= 128;
    return params;
}
