/*
 * The loops of a 6 x 64 tile of zmm (or 12 x 32, 12 x 16 in the last panel) over panels of 4 k:
 * what a kernel adds is the step from four products to their s32 lane.  The file that includes this
 * has defined
 *
 *     static inline __m512i dot4(__m512i sum, __m512i a, __m512i b)
 *         sum + a * b in each lane: four u8 of a, the same in all lanes, by four s8 of b
 *     CHAINS
 *         sums that have to be under way at once to hide dot4's latency, up to SUMS
 *
 *     registers: 24 accumulators (6 rows x 4 zmm), 4 for B, 1 for A, of 32; dot4 has the rest
 *     per 4 k:   24 dot4, 10 loads
 *
 * With two or three rows, or a narrow last panel, the free accumulators take further k steps,
 * summed at the end, as far as CHAINS asks for it.  A single row is bound by the read of the panel:
 * 8 chains suffice, and one step per line, without prefetches, reads L2 13 % faster than 24 chains
 * do (kernels/README.md).
 *
 * A rows are read directly, four bytes at a time; the last k % 4 bytes as the end of the last four,
 * because a row may end at a page's end.  What cannot be is first copied to the stack: rows shorter
 * than that, and s8 rows, whose bytes need a flip that would compete with dot4 for its two ports
 * once per row and step.
 */
#ifndef GEMMD_KERNELS_X86_TILE_12X64C4_H
#define GEMMD_KERNELS_X86_TILE_12X64C4_H

#include "kernels/gemm.h"

#include <immintrin.h>

#include "kernels/x86/inline.h"

enum {
    MR = 12,     /* of a last panel of one or two zmm a row */
    MR_WIDE = 6, /* of others */
    SUMS = 24,
    NR = 64,
    NV = 4, /* zmm per row of a whole panel; of the last panel nv */
    KR = 4,
    LANES = 16,
    UNROLL_MAX = 4,
    COPY_BYTES = 1024,     /* k bytes of each row copied at a time: 12 KiB of stack, in L1 */
    PREFETCH_BYTES = 1024, /* four steps of a whole panel ahead, some 50 cycles */
};

/* Four bytes of a row; at_end: the last 1 to 3 of them, then zeros, where shift is 8 bits for each
 * byte missing. */
INLINE __m512i four_of(const uint8_t *p, int at_end, uint32_t shift)
{
    uint32_t four;

    __builtin_memcpy(&four, p, sizeof(four));
    return _mm512_set1_epi32((int32_t)(at_end ? four >> shift : four));
}

/* One row of one k step. */
INLINE void row(size_t nv, __m512i four, const __m512i *b, __m512i *sum)
{
    /* Not a loop over nv, nor below over m: clang 14 keeps `sum` in memory when a loop has but one
     * iteration. */
    sum[0] = dot4(sum[0], four, b[0]);
    if (nv > 1)
        sum[1] = dot4(sum[1], four, b[1]);
    if (nv > 2)
        sum[2] = dot4(sum[2], four, b[2]);
    if (nv > 3)
        sum[3] = dot4(sum[3], four, b[3]);
}

INLINE void load_step(size_t m, size_t nv, const int8_t *panel, __m512i *b)
{
    b[0] = _mm512_load_si512(panel);
    if (nv > 1)
        b[1] = _mm512_load_si512(panel + 64);
    if (nv > 2)
        b[2] = _mm512_load_si512(panel + 2 * 64);
    if (nv > 3)
        b[3] = _mm512_load_si512(panel + 3 * 64);
    if (m != 2 && m != 3)
        return;
    /* Else gcc 12 loads it for each row of so few, and waits for the loads: 370 for 510 GOPS. */
    UNROLL
    for (size_t v = 0; v < nv; v++)
        __asm__("" : "+v"(b[v]));
}

/* Up to six rows of one k step: 4 bytes of each, at byte t; with a shift, the ends of the rows. */
INLINE void rows(size_t m, size_t nv, const uint8_t *const *a, size_t t, int at_end, uint32_t shift,
                 const __m512i *b, __m512i *sum)
{
    row(nv, four_of(a[0] + t, at_end, shift), b, sum);
    if (m > 1)
        row(nv, four_of(a[1] + t, at_end, shift), b, sum + nv);
    if (m > 2)
        row(nv, four_of(a[2] + t, at_end, shift), b, sum + 2 * nv);
    if (m > 3)
        row(nv, four_of(a[3] + t, at_end, shift), b, sum + 3 * nv);
    if (m > 4)
        row(nv, four_of(a[4] + t, at_end, shift), b, sum + 4 * nv);
    if (m > 5)
        row(nv, four_of(a[5] + t, at_end, shift), b, sum + 5 * nv);
}

/* One k step, into accumulator set `sum`. */
INLINE void step(size_t m, size_t nv, const uint8_t *const *a, size_t t, const int8_t *panel,
                 __m512i *sum)
{
    __m512i b[NV];

    load_step(m, nv, panel, b);
    rows(m, nv, a, t, 0, 0, b, sum);
    if (m > MR_WIDE)
        rows(m - MR_WIDE, nv, a + MR_WIDE, t, 0, 0, b, sum + MR_WIDE * nv);
}

/* The step of the rows' ends, at byte k of each. */
INLINE void last_step(size_t m, size_t nv, const uint8_t *const *a, size_t k, const int8_t *panel,
                      __m512i *sum)
{
    const uint32_t shift = 8 * (KR - k % KR);
    __m512i b[NV];

    load_step(m, nv, panel, b);
    rows(m, nv, a, k - KR, 1, shift, b, sum);
    if (m > MR_WIDE)
        rows(m - MR_WIDE, nv, a + MR_WIDE, k - KR, 1, shift, b, sum + MR_WIDE * nv);
}

/* The panel is longer than L1 for k above 700: without this the multiplies wait for L2 now and then
 * (2-3 % on the machine of kernels/README.md).  Past the panel's end lies the next one, and a
 * prefetch beyond the last cannot fault. */
INLINE void prefetch(const int8_t *panel, size_t bytes)
{
    UNROLL
    for (size_t line = 0; line < bytes / 64; line++)
        _mm_prefetch(panel + line * 64, _MM_HINT_T0);
}

/* k steps of a round, which accumulate apart: as many as there are registers for. */
INLINE size_t steps_unrolled(size_t m, size_t nv)
{
    size_t fitting = SUMS / (m * nv);

    if (m == 1 && nv == NV)
        return 2;
    if (m == MR) /* enough chains, and a k of 36 leaves no step over */
        return 1;
    if (m == MR_WIDE && nv == NV) /* few instructions beside dot4: 2 % */
        return 2;
    return fitting < UNROLL_MAX ? fitting : UNROLL_MAX;
}

/* Without this gcc 12 moves accumulators between registers in each round (for one row 8 moves
 * beside 8 vpdpbusd), and beside a step that may not be taken to the stack and back. */
INLINE void keep(size_t count, __m512i *sum)
{
    UNROLL
    for (size_t i = 0; i < count; i++)
        __asm__("" : "+v"(sum[i]));
}

INLINE void zero_sums(size_t m, size_t nv, __m512i *sum)
{
    UNROLL
    for (size_t i = 0; i < m * nv; i++)
        sum[i] = _mm512_setzero_si512();
}

/* sum, m * nv of them, += A * panel over k bytes, at least KR, for a constant m, nv and `ahead`,
 * which fetches the panel: for rows that are the first to meet it. */
INLINE void multiply(size_t m, size_t nv, int ahead, size_t k, const uint8_t *const *a,
                     const int8_t *panel, __m512i *sum)
{
    const size_t steps = k / KR;
    const size_t unroll = steps_unrolled(m, nv), step_bytes = nv * 64;
    const size_t fitting = CHAINS / (m * nv);
    const size_t sets = fitting < 1 ? 1 : fitting < unroll ? fitting : unroll;
    size_t t = 0;

    UNROLL
    for (size_t i = m * nv; i < sets * m * nv; i++)
        sum[i] = _mm512_setzero_si512();
    for (; t + unroll <= steps; t += unroll) {
        if (ahead)
            prefetch(panel + PREFETCH_BYTES, unroll * step_bytes);
        step(m, nv, a, t * KR, panel, sum);
        if (unroll > 1)
            step(m, nv, a, (t + 1) * KR, panel + step_bytes, sum + 1 % sets * m * nv);
        if (unroll > 2)
            step(m, nv, a, (t + 2) * KR, panel + 2 * step_bytes, sum + 2 % sets * m * nv);
        if (unroll > 3)
            step(m, nv, a, (t + 3) * KR, panel + 3 * step_bytes, sum + 3 % sets * m * nv);
        panel += unroll * step_bytes;
        keep(sets * m * nv, sum);
    }
    for (; t < steps; t++, panel += step_bytes)
        step(m, nv, a, t * KR, panel, sum);
    if (k % KR)
        last_step(m, nv, a, k, panel, sum);
    keep(sets * m * nv, sum);
    UNROLL
    for (size_t i = m * nv; i < sets * m * nv; i++)
        sum[i % (m * nv)] = _mm512_add_epi32(sum[i % (m * nv)], sum[i]);
}

/* acc (+)= A * panel, likewise. */
INLINE void tile(size_t m, size_t nv, size_t k, const uint8_t *const *a, const int8_t *panel,
                 int32_t *acc, int accumulate)
{
    __m512i sum[SUMS];

    zero_sums(m, nv, sum);
    if (accumulate) {
        UNROLL
        for (size_t i = 0; i < m * nv; i++)
            sum[i] = _mm512_load_si512(acc + i / nv * NR + i % nv * LANES);
    }
    multiply(m, nv, m > 1, k, a, panel, sum);
    UNROLL
    for (size_t i = 0; i < m * nv; i++)
        _mm512_store_si512(acc + i / nv * NR + i % nv * LANES, sum[i]);
}

/* A function for each m and nv, so that both are constants in it. */
typedef void tile_fn(size_t k, const uint8_t *const *a, const int8_t *panel, int32_t *acc,
                     int accumulate);

#define TILE(m, nv)                                                                                \
    static void tile_##m##_##nv(size_t k, const uint8_t *const *a, const int8_t *panel,            \
                                int32_t *acc, int accumulate)                                      \
    {                                                                                              \
        tile(m, nv, k, a, panel, acc, accumulate);                                                 \
    }
#define TILES(nv) TILE(1, nv) TILE(2, nv) TILE(3, nv) TILE(4, nv) TILE(5, nv) TILE(6, nv)

TILES(1)
TILES(2)
TILES(3)
TILES(4)

TILE(12, 1)
TILE(12, 2)

#define NAMES(nv)                                                                                  \
    {                                                                                              \
        tile_1_##nv, tile_2_##nv, tile_3_##nv, tile_4_##nv, tile_5_##nv, tile_6_##nv               \
    }

static tile_fn *const tiles[NV][MR_WIDE] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4)};

/* to[0 .. bytes) = from ^ flip, and anything up to the next multiple of 64: those bytes only meet
 * the zeros with which a panel is padded. */
static void copy_row(uint8_t *to, const uint8_t *from, size_t bytes, __m512i flip)
{
    size_t t = 0;

    for (; t + 64 <= bytes; t += 64)
        _mm512_store_si512(to + t, _mm512_xor_si512(_mm512_loadu_si512(from + t), flip));
    if (t < bytes) {
        __mmask64 mask = ~UINT64_C(0) >> (64 - (bytes - t)); /* masked bytes cannot fault */

        _mm512_store_si512(to + t, _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, from + t), flip));
    }
}

static void run_copied(tile_fn *tile_of_m, size_t m, size_t n, size_t k, const uint8_t *const *a,
                       uint8_t a_flip, const int8_t *panel, int32_t *acc)
{
    _Alignas(64) uint8_t copy[MR][COPY_BYTES];
    const __m512i flip = _mm512_set1_epi8((char)a_flip);
    const uint8_t *copied[MR];

    for (size_t t = 0; t < k; t += COPY_BYTES) {
        size_t bytes = k - t < COPY_BYTES ? k - t : COPY_BYTES;

        for (size_t i = 0; i < m; i++) {
            copy_row(copy[i], a[i] + t, bytes, flip);
            copied[i] = copy[i];
        }
        tile_of_m((bytes + KR - 1) / KR * KR, copied, panel + t * n, acc, t > 0);
    }
}

/* Of the rows that are left.  The last two tiles are of about one height, because one or two rows
 * take a panel from L2 as long as three or four do. */
INLINE size_t rows_of_tile(size_t left)
{
    return left >= 2 * MR_WIDE ? MR_WIDE : left > MR_WIDE ? (left + 1) / 2 : left;
}

/* Any m: the amx kernel leaves more rows than MR to this one. */
INLINE void ukernel(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                    const int8_t *panel, int32_t *acc)
{
    const size_t nv = n / LANES;

    for (size_t i = 0, count; i < m; i += count) {
        tile_fn *tile_of_m;

        count = m - i >= MR && nv <= 2 ? MR : rows_of_tile(m - i);
        tile_of_m = count < MR ? tiles[nv - 1][count - 1] : nv == 1 ? tile_12_1 : tile_12_2;
        if (!a_flip && k >= KR)
            tile_of_m(k, a + i, panel, acc + i * NR, 0);
        else
            run_copied(tile_of_m, count, n, k, a + i, a_flip, panel, acc + i * NR);
    }
}

#endif
