/*
 * u8 x s8 -> s32 for weights whose pairs are narrow, tile 6 x 64 (or 12 x 32, 12 x 16 in the last
 * panel), AVX-512 F+BW without VNNI (Skylake-SP, Skylake-X), exact.
 *
 * The arithmetic and the proof are those of gemm_u8s7s32_6x16c4_avx2.c, the loops those of the
 * VNNI kernel.
 *
 *     registers: 24 accumulators, 4 for B, 1 for A, 1 for the ones, 1 for the product, of 32
 *     per 4 k:   24 vpmaddubsw, 24 vpmaddwd, 24 vpaddd on two ports = 36 cycles; 52 are what
 *                gemm_u8s8s32_6x64c4_avx512.c takes
 */
#include "kernels/gemm.h"

#include <immintrin.h>

enum { CHAINS = 2 }; /* vpaddd: 1 cycle on two ports */

/* In assembly for the reason given in gemm_u8s7s32_6x16c4_avx2.c. */
static inline __attribute__((always_inline)) __m512i dot4(__m512i sum, __m512i a, __m512i b)
{
    __m512i pairs = _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1));

    __asm__("vpaddd %1, %0, %0" : "+v"(sum) : "v"(pairs));
    return sum;
}

#include "kernels/x86/fused_12x64c4.h"

gemm_ukernel_fn gemm_u8s7s32_12x64c4_avx512;
gemm_fused_fn gemm_avx512_fused;

void gemm_u8s7s32_12x64c4_avx512(size_t m, size_t n, size_t k, const uint8_t *const *a,
                                 uint8_t a_flip, const int8_t *panel, int32_t *acc)
{
    ukernel(m, n, k, a, a_flip, panel, acc);
}

size_t gemm_avx512_fused(const struct gemm_span *span, const struct gemm_epilogue *epilogue)
{
    return fused(span, epilogue);
}
