/*
 * u8 x s8 -> s32 for weights whose pairs are narrow, tile 6 x 16, AVX2, exact.
 *
 * vpmaddubsw adds two u8*s8 products with saturation to s16.  Call two weights of consecutive k,
 * as a panel pairs them (t and t + 1, t even), a narrow pair when their positive parts sum up to at
 * most 128 and their negative parts to at least -128 (gemm_pairs_are_narrow).  With a in [0, 255]
 *
 *     a0 * b0 + a1 * b1 <=  255 * (max(b0, 0) + max(b1, 0)) <=  255 *  128 =  32640 <=  32767
 *     a0 * b0 + a1 * b1 >=  255 * (min(b0, 0) + min(b1, 0)) >= -255 *  128 = -32640 >= -32768
 *
 * so nothing saturates, whatever the rows hold.  The bound is sharp: a = 255, 255 meets a pair of
 * 129 at 32895.  All weights of 7 bits are narrow (64 + 64, -64 - 64), as are -128 beside 127, and
 * 127 beside 1.  vpmaddwd with ones then adds two such pairs, at most 65280 in magnitude, and the
 * s32 sums are those of gemm_u8s8s32_6x16c4_avx2.c, which takes any weights.
 *
 * s8 rows come as u8 (flipped by 0x80): a is in [0, 255] for them, too.  Bytes of a row's copy
 * beyond k meet zeros.
 *
 *     registers: 12 accumulators, 2 for B, 1 for A, 1 for the ones, 1 for the product: one more
 *                than there are, so that one accumulator or the ones come from L1
 *     per 4 k:   12 vpmaddubsw and 12 vpmaddwd (two ports), 12 vpaddd (three ports) = 12 cycles;
 *                17.3 are what the kernel for any weights takes
 *
 * Rejected: adding the s16 of two steps before vpmaddwd, which saves a sixth of the instructions,
 * and asks for weights of 6 bits.
 */
#include "kernels/gemm.h"

#include <immintrin.h>

enum { CHAINS = 2 }; /* vpaddd: 1 cycle, and no more than two of them find a port in one */

/* In assembly: gcc 12 otherwise sums products before it adds them to `sum`, for which it lacks
 * registers, and gives `sum` another register in each step and moves it back. */
static inline __attribute__((always_inline)) __m256i dot4(__m256i sum, __m256i a, __m256i b)
{
    __m256i pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));

    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(pairs));
    return sum;
}

#include "kernels/x86/tile_6x16c4.h"

gemm_ukernel_fn gemm_u8s7s32_6x16c4_avx2;

void gemm_u8s7s32_6x16c4_avx2(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                              const int8_t *panel, int32_t *acc)
{
    (void)n; /* NR, the only one */
    ukernel(m, k, a, a_flip, panel, acc);
}
