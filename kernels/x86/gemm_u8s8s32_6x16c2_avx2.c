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
 *     registers: 12 accumulators (6 rows x 2 ymm), 2 for B, 1 for A, 1 for the product, of 16
 *     per 2 k:   12 vpmaddwd (two ports), 12 vpaddd and 2 vpmovsxbw (three ports) = 9 cycles
 *
 * A is widened once per tile into a copy on the stack (one vpmovzxbw and store per 16 bytes against
 * 16 * 2 multiplies for each row), which also takes care of the flip of s8 rows and of row ends.
 */
#include "kernels/gemm.h"

#include <immintrin.h>

enum {
    MR = 6,
    NV = 2, /* ymm per row of the tile */
    KR = 2,
    LANES = 8,
    STEP_BYTES = NV * 16,  /* panel bytes per k step */
    COPY_K = 512,          /* k of each row widened at a time: 6 KiB of stack, in L1 */
    PREFETCH_BYTES = 2048, /* single row: how far ahead of the panel stream */
};

#define INLINE static inline __attribute__((always_inline))
/* Whole loops over a register array: an index that survives puts the array into memory. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif

gemm_ukernel_fn gemm_u8s8s32_6x16c2_avx2;

INLINE __m256i broadcast_pair(const int16_t *p)
{
    int32_t pair;

    __builtin_memcpy(&pair, p, sizeof(pair));
    return _mm256_set1_epi32(pair);
}

/* One row of one k step. */
INLINE void row(const int16_t *a, const __m256i *b, __m256i *sum)
{
    __m256i pair = broadcast_pair(a);

    UNROLL
    for (size_t v = 0; v < NV; v++)
        sum[v] = _mm256_add_epi32(sum[v], _mm256_madd_epi16(pair, b[v]));
}

/* One k step: 2 elements of each of m rows, at element t, into accumulator set `sum`. */
INLINE void step(size_t m, const int16_t (*a)[COPY_K], size_t t, const int8_t *panel, __m256i *sum)
{
    __m256i b[NV];

    UNROLL
    for (size_t v = 0; v < NV; v++)
        b[v] = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)panel + v));
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

/* What one round of the single row will read of a later part of the panel, or of the next panel; a
 * prefetch beyond the last cannot fault. */
INLINE void prefetch(const int8_t *panel)
{
    UNROLL
    for (size_t line = 0; line < MR * STEP_BYTES / 64; line++)
        _mm_prefetch(panel + line * 64, _MM_HINT_T0);
}

/* acc (+)= A * panel over `steps` k steps, for a constant m. */
INLINE void tile(size_t m, size_t steps, const int16_t (*a)[COPY_K], const int8_t *panel,
                 int32_t *acc, int accumulate)
{
    const size_t unroll = MR / m;
    __m256i sum[MR * NV];
    size_t t = 0;

    UNROLL
    for (size_t i = 0; i < unroll * m * NV; i++)
        sum[i] = _mm256_setzero_si256();
    if (accumulate) {
        UNROLL
        for (size_t i = 0; i < m * NV; i++)
            sum[i] = _mm256_load_si256((const __m256i *)(acc + i * LANES));
    }
    for (; t + unroll <= steps; t += unroll) {
        if (m == 1)
            prefetch(panel + PREFETCH_BYTES);
        step(m, a, t * KR, panel, sum);
        if (unroll > 1)
            step(m, a, (t + 1) * KR, panel + STEP_BYTES, sum + m * NV);
        if (unroll > 2)
            step(m, a, (t + 2) * KR, panel + 2 * STEP_BYTES, sum + 2 * m * NV);
        if (unroll > 3) {
            step(m, a, (t + 3) * KR, panel + 3 * STEP_BYTES, sum + 3 * m * NV);
            step(m, a, (t + 4) * KR, panel + 4 * STEP_BYTES, sum + 4 * m * NV);
            step(m, a, (t + 5) * KR, panel + 5 * STEP_BYTES, sum + 5 * m * NV);
        }
        panel += unroll * STEP_BYTES;
    }
    for (; t < steps; t++, panel += STEP_BYTES)
        step(m, a, t * KR, panel, sum);
    UNROLL
    for (size_t i = m * NV; i < unroll * m * NV; i++)
        sum[i % (m * NV)] = _mm256_add_epi32(sum[i % (m * NV)], sum[i]);
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

/* to[0 .. count) = from ^ flip as s16, then zeros up to the next multiple of KR: they only meet
 * the zeros with which a panel is padded, but a memory checker wants them written. */
static void widen_row(int16_t *to, const uint8_t *from, size_t count, uint8_t a_flip)
{
    const __m128i flip = _mm_set1_epi8((char)a_flip);
    size_t t = 0;

    for (; t + 16 <= count; t += 16) {
        __m128i bytes = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(from + t)), flip);

        _mm256_store_si256((__m256i *)(to + t), _mm256_cvtepu8_epi16(bytes));
    }
    for (; t < count; t++)
        to[t] = from[t] ^ a_flip;
    for (; t % KR; t++)
        to[t] = 0;
}

void gemm_u8s8s32_6x16c2_avx2(size_t m, size_t n, size_t k, const uint8_t *const *a,
                              uint8_t a_flip, const int8_t *panel, int32_t *acc)
{
    _Alignas(32) int16_t wide[MR][COPY_K];

    (void)n; /* NR, the only one */
    for (size_t t = 0; t < k; t += COPY_K) {
        size_t count = k - t < COPY_K ? k - t : COPY_K;

        for (size_t i = 0; i < m; i++)
            widen_row(wide[i], a[i] + t, count, a_flip);
        tiles[m]((count + KR - 1) / KR, (const int16_t(*)[COPY_K])wide, panel + t / KR * STEP_BYTES,
                 acc, t > 0);
    }
}
