/*
 * The reference int4 micro-kernel: the sum as kernels/int4.h writes it.  The oracle of the vector
 * levels; never optimised.
 */
#include "kernels/int4.h"

#include <assert.h>
#include <string.h>

enum { NR = 16, KR = 8 };

int4_ukernel_fn gemm_u8s4f32_1x16c8_ref;

/* Element t of column j of a group whose blocks begin at `blocks`. */
static int32_t weight(const uint8_t *blocks, size_t t, size_t j)
{
    uint8_t both = blocks[t / KR * NR * 4 + j * 4 + t % 4];
    int32_t half = t % KR < 4 ? both & 15 : both >> 4;

    return half < 8 ? half : half - 16;
}

static void row(size_t k, size_t group, const uint8_t *a, const uint8_t *panel, float *acc)
{
    memset(acc, 0, NR * sizeof(*acc));
    for (size_t begin = 0; begin < k; begin += group) {
        size_t length = k - begin < group ? k - begin : group;
        const uint8_t *blocks = panel + NR * sizeof(uint16_t);

        for (size_t j = 0; j < NR; j++) {
            uint16_t multiplier;
            int32_t dot = 0;
            float product;

            memcpy(&multiplier, panel + j * sizeof(multiplier), sizeof(multiplier));
            for (size_t t = 0; t < length; t++)
                dot += a[begin + t] * weight(blocks, t, j);
            product = (float)dot * (float)multiplier;
            acc[j] = acc[j] + product;
        }
        panel = blocks + NR * group / 2;
    }
}

void gemm_u8s4f32_1x16c8_ref(size_t m, size_t k, size_t group, const uint8_t *const *a,
                             const uint8_t *panel, float *acc)
{
    assert(m >= 1 && m <= INT4_MR_MAX && k >= 1 && k <= GEMM_K_MAX);
    for (size_t i = 0; i < m; i++)
        row(k, group, a[i], panel, acc + i * NR);
}
