/*
 * u8 x s8 -> s32, tile 6 x 64 (or 12 x 32, 12 x 16 in the last panel), AVX-512 VNNI.
 *
 * vpdpbusd adds four u8*s8 products to each s32 lane, exactly: the sum of four is at most 4*255*128
 * in magnitude and is not saturated on the way.  B is loaded as packed (one zmm: 16 columns x 4 k),
 * A is broadcast four bytes at a time.
 *
 *     per 4 k:   24 vpdpbusd on two ports = 12 cycles, 10 loads (tile_12x64c4.h)
 *
 * 24 accumulators cover the latency of 5 cycles x 2 ports more than twice.
 */
#include "kernels/gemm.h"

#include <immintrin.h>

enum { CHAINS = 24 };

static inline __attribute__((always_inline)) __m512i dot4(__m512i sum, __m512i a, __m512i b)
{
    return _mm512_dpbusd_epi32(sum, a, b);
}

#include "kernels/x86/fused_12x64c4.h"

gemm_ukernel_fn gemm_u8s8s32_12x64c4_avx512vnni;
gemm_fused_fn gemm_avx512vnni_fused;

/* Any m: the amx kernel leaves more rows than MR to this one. */
void gemm_u8s8s32_12x64c4_avx512vnni(size_t m, size_t n, size_t k, const uint8_t *const *a,
                                     uint8_t a_flip, const int8_t *panel, int32_t *acc)
{
    ukernel(m, n, k, a, a_flip, panel, acc);
}

size_t gemm_avx512vnni_fused(const struct gemm_span *span, const struct gemm_epilogue *epilogue)
{
    return fused(span, epilogue);
}
