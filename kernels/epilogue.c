/* What every level's epilogue shares: element sizes, and the integer offset of each column. */
#include "kernels/epilogue.h"

#include <assert.h>

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
