/*
 * u8 x s8 -> s32, tile 6 x 16, AVX-VNNI (vpdpbusd on ymm, VEX-encoded): the E-cores and client
 * parts without AVX-512.
 *
 * The same shape as gemm_u8s8s32_12x64c4_avx512vnni.c at half the register width; vpdpbusd is exact
 * here, too (its saturating sibling is vpdpbusds).
 *
 *     per 4 k:   12 vpdpbusd on two ports = 6 cycles (tile_6x16c4.h)
 */
#include "kernels/gemm.h"

#include <immintrin.h>

enum { CHAINS = 12 };

static inline __attribute__((always_inline)) __m256i dot4(__m256i sum, __m256i a, __m256i b)
{
    return _mm256_dpbusd_avx_epi32(sum, a, b);
}

#include "kernels/x86/tile_6x16c4.h"

gemm_ukernel_fn gemm_u8s8s32_6x16c4_avxvnni;

void gemm_u8s8s32_6x16c4_avxvnni(size_t m, size_t n, size_t k, const uint8_t *const *a,
                                 uint8_t a_flip, const int8_t *panel, int32_t *acc)
{
    (void)n; /* NR, the only one */
    ukernel(m, k, a, a_flip, panel, acc);
}
