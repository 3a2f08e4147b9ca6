/* What every level's epilogue shares: element sizes, the integer offset of each column, and the
 * checks that a layer's creation makes. */
#include "kernels/epilogue.h"

#include <assert.h>
#include <errno.h>
#include <math.h>

size_t gemm_type_bytes(enum gemm_type type)
{
    switch (type) {
    case GEMM_TYPE_U8:
    case GEMM_TYPE_S8:
        return 1;
    case GEMM_TYPE_S32:
    case GEMM_TYPE_F32:
        return 4;
    case GEMM_TYPE_BF16:
        return 2;
    }
    assert(!"a type outside the enumeration");
    return 0;
}

void gemm_offset(uint32_t n, enum gemm_type a_type, int32_t a_zero_point,
                 const int32_t *column_sums, const int32_t *bias, int32_t *offset)
{
    /* The kernels compute with a + 128 for s8 rows, so that zero point is shifted too. */
    uint32_t zero_point = (uint32_t)a_zero_point + (a_type == GEMM_TYPE_S8 ? 128u : 0u);

    assert(a_type == GEMM_TYPE_U8 || a_type == GEMM_TYPE_S8);
    assert(zero_point <= 255);
    /* Unsigned, because modulo 2^32 is the contract and signed overflow is undefined. */
    for (uint32_t j = 0; j < n; j++)
        offset[j] =
            (int32_t)((bias ? (uint32_t)bias[j] : 0u) - zero_point * (uint32_t)column_sums[j]);
}

int32_t gemm_row_sum(enum gemm_type a_type, int32_t a_zero_point, size_t k, const uint8_t *a)
{
    /* s8 as u8: the flip adds 128 to each. */
    uint8_t flip = a_type == GEMM_TYPE_S8 ? 0x80 : 0;
    uint32_t sum = 0;

    assert((a_type == GEMM_TYPE_U8 || a_type == GEMM_TYPE_S8) && k <= GEMM_K_MAX);
    for (size_t t = 0; t < k; t++)
        sum += a[t] ^ flip;
    return (int32_t)sum - (int32_t)k * (a_zero_point + (flip ? 128 : 0));
}

int gemm_k_check(uint32_t k, bool b_zero_points)
{
    return k >= 1 && k <= (b_zero_points ? GEMM_K_MAX_B_ZERO_POINTS : GEMM_K_MAX) ? 0 : -ERANGE;
}

static bool is_narrow(enum gemm_type type)
{
    return type == GEMM_TYPE_U8 || type == GEMM_TYPE_S8;
}

static bool is_float(enum gemm_type type)
{
    return type == GEMM_TYPE_F32 || type == GEMM_TYPE_BF16;
}

/* A zero point inside an 8-bit type's range; of other types: 0. */
static bool zero_point_valid(enum gemm_type type, int32_t zero_point)
{
    int32_t lo = type == GEMM_TYPE_U8 ? 0 : -128;

    return is_narrow(type) ? zero_point >= lo && zero_point <= lo + 255 : zero_point == 0;
}

static bool residual_valid(const struct gemm_epilogue *e)
{
    if (!e->residual)
        return true;
    if (e->c_type == GEMM_TYPE_S32 || !zero_point_valid(e->residual_type, e->residual_zero_point))
        return false;
    return is_narrow(e->residual_type) ? isfinite(e->residual_scale) : is_float(e->residual_type);
}

static bool all_finite(uint32_t n, const float *values)
{
    for (uint32_t j = 0; j < n; j++) {
        if (!isfinite(values[j]))
            return false;
    }
    return true;
}

int gemm_epilogue_check(const struct gemm_epilogue *e, uint32_t n)
{
    bool is_s32 = e->c_type == GEMM_TYPE_S32;

    if (!is_narrow(e->a_type) || !(is_narrow(e->c_type) || is_float(e->c_type) || is_s32))
        return -EINVAL;
    if ((unsigned int)e->activation >= GEMM_ACTIVATION_COUNT ||
        (is_s32 && e->activation != GEMM_ACTIVATION_NONE))
        return -EINVAL;
    if (e->activation == GEMM_ACTIVATION_CLIP &&
        !(isfinite(e->clip_lo) && isfinite(e->clip_hi) && e->clip_lo <= e->clip_hi))
        return -EINVAL;
    if (!zero_point_valid(e->c_type, e->c_zero_point) ||
        (is_narrow(e->c_type) && !isfinite(e->inverse_c_scale)) || !residual_valid(e))
        return -EINVAL;
    if (e->weighted_sums) {
        if (is_s32 || e->row_sums || !all_finite(n, e->weighted_sums))
            return -EINVAL;
    } else if (!e->offset || (e->row_zero_points && !e->column_sums) ||
               (e->row_sums && !e->b_zero_points)) {
        return -EINVAL;
    }
    if (!is_s32 && !(e->scale && e->bias && all_finite(n, e->scale) && all_finite(n, e->bias)))
        return -EINVAL;
    return 0;
}
