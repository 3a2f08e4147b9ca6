/*
 * u8 x s8 -> s32, tile 6 x 16, AVX2, exact over the full range.
 *
 * The obvious instruction, vpmaddubsw, is wrong: it adds two u8*s8 products with saturation to s16,
 * and 2 * 255 * 127 = 64770 > 32767.  Here both operands are widened to s16 and multiplied by
 * vpmaddwd, which adds two s16*s16 products into s32.  Proof that nothing is lost: a is in [0, 255]
 * and b in [-128, 127] as s16, a product is in [-32640, 32385], a pair's sum in [-65280, 64770],
 * far inside s32; the running sum stays there because k <= GEMM_K_MAX.
 *
 * Rejected: splitting a = (a & 0x7f) + 128 * (a >> 7), which keeps each vpmaddubsw inside s16
 * ([-32512, 32258] and, for the high bit, [-256, 254]) but needs two of them and two vpmaddwd for
 * what widening does with two vpmaddwd.  Figures in kernels/README.md.
 *
 * The panels hold 4 k of a column together, as the kernel of narrow pairs wants them
 * (gemm_u8s7s32_6x16c4_avx2.c), so that one packed layout serves both.  A 16-bit lane then has two
 * k: the even ones are widened by vpmaddubsw with 1 and 0 (which cannot saturate), the odd ones by
 * a shift, as many instructions as vpmovsxbw takes; A's even and odd elements are widened apart.
 *
 *     registers: 12 accumulators (6 rows x 2 ymm), 2 for B, 1 for A, 1 for the product, of 16
 *     per 4 k:   24 vpmaddwd and 4 to widen B (two ports), 24 vpaddd (three ports) = 17.3 cycles
 *
 * A is widened once per tile into a copy on the stack (three instructions and two stores per 32
 * bytes against 64 * 2 multiplies for each row), which also takes care of the flip of s8 rows and
 * of row ends.
 */
#include "kernels/gemm.h"

#include <immintrin.h>

#include "kernels/x86/inline.h"

enum {
    MR = 6,
    NV = 2, /* ymm per row of the tile */
    KR = 4,
    LANES = 8,
    STEP_BYTES = NV * 32,  /* panel bytes per k step */
    COPY_K = 512,          /* k of each row widened at a time: 6 KiB of stack, in L1 */
    ODD = COPY_K / 2,      /* where the odd elements of a widened row begin */
    PREFETCH_BYTES = 2048, /* how far ahead of the panel stream; a step is a line */
};

gemm_ukernel_fn gemm_u8s8s32_6x16c4_avx2;

INLINE __m256i broadcast_pair(const int16_t *p)
{
    int32_t pair;

    __builtin_memcpy(&pair, p, sizeof(pair));
    return _mm256_set1_epi32(pair);
}

/* Half of a k step of one row.  vpaddd for the reason given in gemm_u8s7s32_6x16c4_avx2.c. */
INLINE void row(const int16_t *a, const __m256i *b, __m256i *sum)
{
    __m256i pair = broadcast_pair(a);

    UNROLL
    for (size_t v = 0; v < NV; v++)
        __asm__("vpaddd %1, %0, %0" : "+x"(sum[v]) : "x"(_mm256_madd_epi16(pair, b[v])));
}

/* Half of a k step: 2 elements of each of m rows. */
INLINE void rows(size_t m, const int16_t (*a)[COPY_K], size_t t, const __m256i *b, __m256i *sum)
{
    /* Not a loop over m: clang 14 keeps `sum` in memory when a loop has but one iteration. */
    row(a[0] + t, b, sum);
    if (m > 1)
        row(a[1] + t, b, sum + NV);
    if (m > 2)
        row(a[2] + t, b, sum + 2 * NV);
    if (m > 3)
        row(a[3] + t, b, sum + 3 * NV);
    if (m > 4)
        row(a[4] + t, b, sum + 4 * NV);
    if (m > 5)
        row(a[5] + t, b, sum + 5 * NV);
}

/* k step t of each of m rows. */
INLINE void step(size_t m, const int16_t (*a)[COPY_K], size_t t, const int8_t *panel, __m256i *sum)
{
    const __m256i *four = (const __m256i *)panel;
    __m256i b[NV];

    UNROLL
    for (size_t v = 0; v < NV; v++)
        b[v] = _mm256_maddubs_epi16(_mm256_set1_epi16(1), _mm256_load_si256(four + v));
    rows(m, a, 2 * t, b, sum);
    UNROLL
    for (size_t v = 0; v < NV; v++)
        b[v] = _mm256_srai_epi16(_mm256_load_si256(four + v), 8);
    rows(m, a, ODD + 2 * t, b, sum);
}

/* acc (+)= A * panel over `steps` k steps, for a constant m. */
INLINE void tile(size_t m, size_t steps, const int16_t (*a)[COPY_K], const int8_t *panel,
                 int32_t *acc, int accumulate)
{
    __m256i sum[MR * NV];

    UNROLL
    for (size_t i = 0; i < m * NV; i++)
        sum[i] = accumulate ? _mm256_load_si256((const __m256i *)(acc + i * LANES))
                            : _mm256_setzero_si256();
    for (size_t t = 0; t < steps; t++, panel += STEP_BYTES) {
        /* Of this panel or the next one; beyond the last it cannot fault. */
        _mm_prefetch(panel + PREFETCH_BYTES, _MM_HINT_T0);
        step(m, a, t, panel, sum);
    }
    UNROLL
    for (size_t i = 0; i < m * NV; i++)
        _mm256_store_si256((__m256i *)(acc + i * LANES), sum[i]);
}

/* A function for each m, so that m is a constant in it. */
typedef void tile_fn(size_t steps, const int16_t (*a)[COPY_K], const int8_t *panel, int32_t *acc,
                     int accumulate);

#define TILE(m)                                                                                    \
    static void tile_##m(size_t steps, const int16_t(*a)[COPY_K], const int8_t *panel,             \
                         int32_t *acc, int accumulate)                                             \
    {                                                                                              \
        tile(m, steps, a, panel, acc, accumulate);                                                 \
    }

TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)

static tile_fn *const tiles[MR + 1] = {NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};

/* 32 elements ^ flip as s16: the even ones to to[0 .. 16), the odd ones to to[ODD ..). */
INLINE void widen(int16_t *to, __m256i bytes, __m256i flip)
{
    bytes = _mm256_xor_si256(bytes, flip);
    _mm256_store_si256((__m256i *)to, _mm256_and_si256(bytes, _mm256_set1_epi16(0xff)));
    _mm256_store_si256((__m256i *)(to + ODD), _mm256_srli_epi16(bytes, 8));
}

/* Beyond count elements, up to the next multiple of 32, there is anything: it only meets the zeros
 * with which a panel is padded. */
static void widen_row(int16_t *to, const uint8_t *from, size_t count, __m256i flip)
{
    __m256i rest = _mm256_setzero_si256();
    size_t t = 0;

    for (; t + 32 <= count; t += 32)
        widen(to + t / 2, _mm256_loadu_si256((const __m256i *)(from + t)), flip);
    if (t == count)
        return;
    __builtin_memcpy(&rest, from + t, count - t);
    widen(to + t / 2, rest, flip);
}

void gemm_u8s8s32_6x16c4_avx2(size_t m, size_t n, size_t k, const uint8_t *const *a,
                              uint8_t a_flip, const int8_t *panel, int32_t *acc)
{
    _Alignas(32) int16_t wide[MR][COPY_K];
    const __m256i flip = _mm256_set1_epi8((char)a_flip);

    (void)n; /* NR, the only one */
    for (size_t t = 0; t < k; t += COPY_K) {
        size_t count = k - t < COPY_K ? k - t : COPY_K;

        for (size_t i = 0; i < m; i++)
            widen_row(wide[i], a[i] + t, count, flip);
        tiles[m]((count + KR - 1) / KR, (const int16_t(*)[COPY_K])wide, panel + t / KR * STEP_BYTES,
                 acc, t > 0);
    }
}
