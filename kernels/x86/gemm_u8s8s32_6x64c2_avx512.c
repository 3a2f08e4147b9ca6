/*
 * u8 x s8 -> s32, tile 6 x 64, AVX-512 F+BW without VNNI (Skylake-SP, Skylake-X), exact.
 *
 * The arithmetic and the proof are those of gemm_u8s8s32_6x16c2_avx2.c: both operands widened to
 * s16, vpmaddwd, vpaddd; a pair's sum is in [-65280, 64770].  The tile is that of the VNNI kernel.
 *
 *     registers: 24 accumulators (6 rows x 4 zmm), 4 for B, 1 for A, 1 for the product, of 32
 *     per 2 k:   24 vpmaddwd, 24 vpaddd, 4 vpmovsxbw on two ports = 26 cycles
 */
#include "kernels/gemm.h"

#include <immintrin.h>

enum {
    MR = 6,
    NV = 4, /* zmm per row of the tile */
    KR = 2,
    LANES = 16,
    STEP_BYTES = NV * 32,  /* panel bytes per k step */
    COPY_K = 512,          /* k of each row widened at a time: 6 KiB of stack, in L1 */
    PREFETCH_BYTES = 4096, /* single row: how far ahead of the panel stream */
};

#define INLINE static inline __attribute__((always_inline))
/* Whole loops over a register array: an index that survives puts the array into memory. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif

gemm_ukernel_fn gemm_u8s8s32_6x64c2_avx512;

INLINE __m512i broadcast_pair(const int16_t *p)
{
    int32_t pair;

    __builtin_memcpy(&pair, p, sizeof(pair));
    return _mm512_set1_epi32(pair);
}

/* One row of one k step. */
INLINE void row(const int16_t *a, const __m512i *b, __m512i *sum)
{
    __m512i pair = broadcast_pair(a);

    UNROLL
    for (size_t v = 0; v < NV; v++)
        sum[v] = _mm512_add_epi32(sum[v], _mm512_madd_epi16(pair, b[v]));
}

/* One k step: 2 elements of each of m rows, at element t, into accumulator set `sum`. */
INLINE void step(size_t m, const int16_t (*a)[COPY_K], size_t t, const int8_t *panel, __m512i *sum)
{
    __m512i b[NV];

    UNROLL
    for (size_t v = 0; v < NV; v++)
        b[v] = _mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)panel + v));
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
    __m512i sum[MR * NV];
    size_t t = 0;

    UNROLL
    for (size_t i = 0; i < unroll * m * NV; i++)
        sum[i] = _mm512_setzero_si512();
    if (accumulate) {
        UNROLL
        for (size_t i = 0; i < m * NV; i++)
            sum[i] = _mm512_load_si512(acc + i * LANES);
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
        sum[i % (m * NV)] = _mm512_add_epi32(sum[i % (m * NV)], sum[i]);
    UNROLL
    for (size_t i = 0; i < m * NV; i++)
        _mm512_store_si512(acc + i * LANES, sum[i]);
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

/* to[0 .. count) = from ^ flip as s16, and anything up to the next multiple of 32: those elements
 * only meet the zeros with which a panel is padded. */
static void widen_row(int16_t *to, const uint8_t *from, size_t count, __m256i flip)
{
    size_t t = 0;

    for (; t + 32 <= count; t += 32) {
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(from + t));

        _mm512_store_si512(to + t, _mm512_cvtepu8_epi16(_mm256_xor_si256(bytes, flip)));
    }
    if (t < count) {
        __mmask32 mask = ~UINT32_C(0) >> (32 - (count - t)); /* masked bytes cannot fault */
        __m256i bytes = _mm256_maskz_loadu_epi8(mask, from + t);

        _mm512_store_si512(to + t, _mm512_cvtepu8_epi16(_mm256_xor_si256(bytes, flip)));
    }
}

void gemm_u8s8s32_6x64c2_avx512(size_t m, size_t n, size_t k, const uint8_t *const *a,
                                uint8_t a_flip, const int8_t *panel, int32_t *acc)
{
    _Alignas(64) int16_t wide[MR][COPY_K];
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
