/*
 * u8 x s8 -> s32, tile 6 x 64, AVX-512 F+BW without VNNI (Skylake-SP, Skylake-X), exact.
 *
 * The arithmetic and the proof are those of gemm_u8s8s32_6x16c4_avx2.c: both operands widened to
 * s16, the even k of a panel's four by vpmaddubsw, the odd ones by a shift; vpmaddwd, vpaddd; a
 * pair's sum is in [-65280, 64770].  The tile is that of the VNNI kernel, and so is its last panel
 * of 16, 32 or 48 columns.
 *
 *     registers: 24 accumulators (6 rows x 4 zmm), 4 for B, 1 for A, 1 for the product, of 32
 *     per 4 k:   48 vpmaddwd, 48 vpaddd and 8 to widen B on two ports = 52 cycles
 */
#include "kernels/gemm.h"

#include <immintrin.h>

#include "kernels/x86/inline.h"

enum {
    MR = 6,
    NR = 64,
    NV = 4, /* zmm per row of a whole panel; of the last panel nv */
    KR = 4,
    LANES = 16,
    COPY_K = 512,          /* k of each row widened at a time: 6 KiB of stack, in L1 */
    ODD = COPY_K / 2,      /* where the odd elements of a widened row begin */
    PREFETCH_BYTES = 4096, /* single row: how far ahead of the panel stream */
};

gemm_ukernel_fn gemm_u8s8s32_6x64c4_avx512;

INLINE __m512i broadcast_pair(const int16_t *p)
{
    int32_t pair;

    __builtin_memcpy(&pair, p, sizeof(pair));
    return _mm512_set1_epi32(pair);
}

/* Half of a k step of one row.  vpaddd for the reason given in gemm_u8s7s32_6x16c4_avx2.c. */
INLINE void row(size_t nv, const int16_t *a, const __m512i *b, __m512i *sum)
{
    __m512i pair = broadcast_pair(a);

    UNROLL
    for (size_t v = 0; v < nv; v++)
        __asm__("vpaddd %1, %0, %0" : "+v"(sum[v]) : "v"(_mm512_madd_epi16(pair, b[v])));
}

/* Half of a k step: 2 elements of each of m rows. */
INLINE void rows(size_t m, size_t nv, const int16_t (*a)[COPY_K], size_t t, const __m512i *b,
                 __m512i *sum)
{
    /* Not a loop over m: clang 14 keeps `sum` in memory when a loop has but one iteration. */
    row(nv, a[0] + t, b, sum);
    if (m > 1)
        row(nv, a[1] + t, b, sum + nv);
    if (m > 2)
        row(nv, a[2] + t, b, sum + 2 * nv);
    if (m > 3)
        row(nv, a[3] + t, b, sum + 3 * nv);
    if (m > 4)
        row(nv, a[4] + t, b, sum + 4 * nv);
    if (m > 5)
        row(nv, a[5] + t, b, sum + 5 * nv);
}

/* k step t of each of m rows. */
INLINE void step(size_t m, size_t nv, const int16_t (*a)[COPY_K], size_t t, const int8_t *panel,
                 __m512i *sum)
{
    __m512i b[NV];

    UNROLL
    for (size_t v = 0; v < nv; v++)
        b[v] = _mm512_maddubs_epi16(_mm512_set1_epi16(1), _mm512_load_si512(panel + v * 64));
    rows(m, nv, a, 2 * t, b, sum);
    UNROLL
    for (size_t v = 0; v < nv; v++)
        b[v] = _mm512_srai_epi16(_mm512_load_si512(panel + v * 64), 8);
    rows(m, nv, a, ODD + 2 * t, b, sum);
}

/* acc (+)= A * panel over `steps` k steps, for a constant m and nv. */
INLINE void tile(size_t m, size_t nv, size_t steps, const int16_t (*a)[COPY_K], const int8_t *panel,
                 int32_t *acc, int accumulate)
{
    const size_t step_bytes = nv * 64;
    __m512i sum[MR * NV];

    UNROLL
    for (size_t i = 0; i < m * nv; i++)
        sum[i] = accumulate ? _mm512_load_si512(acc + i / nv * NR + i % nv * LANES)
                            : _mm512_setzero_si512();
    for (size_t t = 0; t < steps; t++, panel += step_bytes) {
        /* A later part of the panel, or the next panel; beyond the last it cannot fault. */
        for (size_t line = 0; m == 1 && line < nv; line++)
            _mm_prefetch(panel + PREFETCH_BYTES + line * 64, _MM_HINT_T0);
        step(m, nv, a, t, panel, sum);
    }
    UNROLL
    for (size_t i = 0; i < m * nv; i++)
        _mm512_store_si512(acc + i / nv * NR + i % nv * LANES, sum[i]);
}

/* A function for each m and nv, so that both are constants in it. */
typedef void tile_fn(size_t steps, const int16_t (*a)[COPY_K], const int8_t *panel, int32_t *acc,
                     int accumulate);

#define TILE(m, nv)                                                                                \
    static void tile_##m##_##nv(size_t steps, const int16_t(*a)[COPY_K], const int8_t *panel,      \
                                int32_t *acc, int accumulate)                                      \
    {                                                                                              \
        tile(m, nv, steps, a, panel, acc, accumulate);                                             \
    }
#define TILES(nv) TILE(1, nv) TILE(2, nv) TILE(3, nv) TILE(4, nv) TILE(5, nv) TILE(6, nv)

TILES(1)
TILES(2)
TILES(3)
TILES(4)

#define NAMES(nv)                                                                                  \
    {                                                                                              \
        tile_1_##nv, tile_2_##nv, tile_3_##nv, tile_4_##nv, tile_5_##nv, tile_6_##nv               \
    }

static tile_fn *const tiles[NV][MR] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4)};

/* 64 elements ^ flip as s16: the even ones to to[0 .. 32), the odd ones to to[ODD ..). */
INLINE void widen(int16_t *to, __m512i bytes, __m512i flip)
{
    bytes = _mm512_xor_si512(bytes, flip);
    _mm512_store_si512(to, _mm512_and_si512(bytes, _mm512_set1_epi16(0xff)));
    _mm512_store_si512(to + ODD, _mm512_srli_epi16(bytes, 8));
}

/* Beyond count elements, up to the next multiple of 64, there is anything: it only meets the zeros
 * with which a panel is padded. */
static void widen_row(int16_t *to, const uint8_t *from, size_t count, __m512i flip)
{
    size_t t = 0;

    for (; t + 64 <= count; t += 64)
        widen(to + t / 2, _mm512_loadu_si512(from + t), flip);
    if (t < count) {
        __mmask64 mask = ~UINT64_C(0) >> (64 - (count - t)); /* masked bytes cannot fault */

        widen(to + t / 2, _mm512_maskz_loadu_epi8(mask, from + t), flip);
    }
}

void gemm_u8s8s32_6x64c4_avx512(size_t m, size_t n, size_t k, const uint8_t *const *a,
                                uint8_t a_flip, const int8_t *panel, int32_t *acc)
{
    _Alignas(64) int16_t wide[MR][COPY_K];
    const __m512i flip = _mm512_set1_epi8((char)a_flip);

    for (size_t t = 0; t < k; t += COPY_K) {
        size_t count = k - t < COPY_K ? k - t : COPY_K;

        for (size_t i = 0; i < m; i++)
            widen_row(wide[i], a[i] + t, count, flip);
        tiles[n / LANES - 1][m - 1]((count + KR - 1) / KR, (const int16_t(*)[COPY_K])wide,
                                    panel + t * n, acc, t > 0);
    }
}
