/*
 * u8 x s4 -> f32 with group multipliers, tile 4 x 64, AVX-512 VNNI.
 *
 * A weight is taken from its half byte into the upper half of a byte, so that its value is 16 times
 * the weight, in s8: one instruction for the high halves, two for the low ones.  vpdpbusd then sums
 * 16 * dot, exactly (below 2^22), and an arithmetic shift takes the 16 away.
 *
 *     registers: 16 sums (8 sums twice for up to two rows, so that 10 chains hide the latency of 5
 *                cycles), 2 weights, 1 of A, 1 mask; the float sums are in L1
 *     per 8 k:   4 loads and 12 instructions to unpack 64 columns, 8 vpdpbusd for each row
 *
 * One row needs 20 instructions on two ports for 256 bytes of weights, 25 bytes a cycle: well above
 * the bandwidth of memory and about that of L3.  The panels of a layer follow each other, so the
 * prefetch runs on from one into the next.
 */
#include "kernels/int4.h"

#include <immintrin.h>

#include "kernels/x86/inline.h"

enum {
    MR = 4,
    NV = 4, /* zmm per row of the tile */
    NR = 64,
    KR = 8,
    LANES = 16,
    BLOCK_BYTES = NR * 4, /* 8 k of 64 columns */
    /* Into L2: from memory 16.1 GB/s with groups of 32, against 14.2 without, 14.9 into L1 at the
     * same distance (whose line fill buffers it exhausts), and 14.9 into L2 at 1 KiB. */
    PREFETCH_BYTES = 4096,
};

int4_ukernel_fn gemm_u8s4f32_4x64c8_avx512vnni;

INLINE __m512i broadcast4(const uint8_t *p)
{
    int32_t four;

    __builtin_memcpy(&four, p, sizeof(four));
    return _mm512_set1_epi32(four);
}

/* 8 k of m rows, at byte t of each.  `sum` holds the low halves', `sum_high` the high halves'. */
INLINE void block(size_t m, const uint8_t *const *a, size_t t, const uint8_t *blocks, __m512i *sum,
                  __m512i *sum_high)
{
    const __m512i upper = _mm512_set1_epi8((char)0xf0);
    __m512i low[NV], high[NV];

    UNROLL
    for (size_t v = 0; v < NV; v++) {
        __m512i both = _mm512_load_si512(blocks + v * 64);

        low[v] = _mm512_and_si512(_mm512_slli_epi16(both, 4), upper);
        high[v] = _mm512_and_si512(both, upper);
    }
    UNROLL
    for (size_t i = 0; i < m; i++) {
        __m512i first = broadcast4(a[i] + t), second = broadcast4(a[i] + t + 4);

        UNROLL
        for (size_t v = 0; v < NV; v++) {
            sum[i * NV + v] = _mm512_dpbusd_epi32(sum[i * NV + v], first, low[v]);
            sum_high[i * NV + v] = _mm512_dpbusd_epi32(sum_high[i * NV + v], second, high[v]);
        }
    }
}

/* Past the panels' end a prefetch cannot fault. */
INLINE void prefetch(const uint8_t *from, size_t lines)
{
    UNROLL
    for (size_t line = 0; line < lines; line++)
        _mm_prefetch(from + PREFETCH_BYTES + line * 64, _MM_HINT_T1);
}

/* acc += float of one group of `length` k (a multiple of 8). */
INLINE void add_group(size_t m, size_t length, const uint8_t *const *a, const uint8_t *panel,
                      float *acc)
{
    const uint8_t *blocks = panel + NR * sizeof(uint16_t);
    __m512i sum[MR * NV], other[MR * NV];
    const int twice = m <= 2;

    UNROLL
    for (size_t i = 0; i < m * NV; i++) {
        sum[i] = _mm512_setzero_si512();
        other[i] = _mm512_setzero_si512();
    }
    prefetch(panel, NR * sizeof(uint16_t) / 64);
    for (size_t t = 0; t < length; t += KR, blocks += BLOCK_BYTES) {
        prefetch(blocks, BLOCK_BYTES / 64);
        block(m, a, t, blocks, sum, twice ? other : sum);
    }
    UNROLL
    for (size_t v = 0; v < NV; v++) {
        __m512 multiplier = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(
            _mm256_load_si256((const __m256i *)(const void *)(panel + v * 32))));

        UNROLL
        for (size_t i = 0; i < m; i++) {
            __m512i dot =
                _mm512_srai_epi32(_mm512_add_epi32(sum[i * NV + v], other[i * NV + v]), 4);
            float *to = acc + i * NR + v * LANES;

            _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to),
                                              _mm512_mul_ps(_mm512_cvtepi32_ps(dot), multiplier)));
        }
    }
}

INLINE void tile(size_t m, size_t k, size_t group, const uint8_t *const *a, const uint8_t *panel,
                 float *acc)
{
    _Alignas(64) uint8_t last[MR][INT4_GROUP_MAX] = {{0}};
    const uint8_t *rows[MR];
    size_t begin = 0, rest;

    for (size_t i = 0; i < m * NV; i++)
        _mm512_store_ps(acc + i * LANES, _mm512_setzero_ps());
    for (; begin + group <= k; begin += group, panel += NR * (sizeof(uint16_t) + group / 2)) {
        for (size_t i = 0; i < m; i++)
            rows[i] = a[i] + begin;
        add_group(m, group, rows, panel, acc);
    }
    rest = k - begin;
    if (!rest)
        return;
    for (size_t i = 0; i < m; i++) { /* rows may end at a page's end */
        __builtin_memcpy(last[i], a[i] + begin, rest);
        rows[i] = last[i];
    }
    add_group(m, (rest + KR - 1) / KR * KR, rows, panel, acc);
}

void gemm_u8s4f32_4x64c8_avx512vnni(size_t m, size_t k, size_t group, const uint8_t *const *a,
                                    const uint8_t *panel, float *acc)
{
    switch (m) { /* a constant in each branch */
    case 1:
        tile(1, k, group, a, panel, acc);
        break;
    case 2:
        tile(2, k, group, a, panel, acc);
        break;
    case 3:
        tile(3, k, group, a, panel, acc);
        break;
    default:
        tile(4, k, group, a, panel, acc);
        break;
    }
}
