/*
 * The reference micro-kernel: the sum as the contract writes it.  It is the oracle of the tests and
 * the fallback of machines without a vector level; it is never optimised.
 *
 * Tile 4 x 16, kr 1: panel byte (t, j) at t * 16 + j.  Cost: one multiply-add at a time.
 */
#include "kernels/gemm.h"

#include <assert.h>

enum { MR = 4, NR = 16 };

gemm_ukernel_fn gemm_u8s8s32_4x16c1_ref;

void gemm_u8s8s32_4x16c1_ref(size_t m, size_t n, size_t k, const uint8_t *const *a,
                             uint8_t a_flip, const int8_t *panel, int32_t *acc)
{
    assert(m >= 1 && m <= MR && n == NR && k >= 1 && k <= GEMM_K_MAX);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < NR; j++) {
            int32_t sum = 0;

            for (size_t t = 0; t < k; t++)
                sum += (int32_t)(uint8_t)(a[i][t] ^ a_flip) * (int32_t)panel[t * NR + j];
            acc[i * NR + j] = sum;
        }
    }
}
