/*
 * The loops of a 6 x 16 tile of ymm over panels of 4 k: what a kernel adds is the step from four
 * products to their s32 lane.  The file that includes this has defined
 *
 *     static inline __m256i dot4(__m256i sum, __m256i a, __m256i b)
 *         sum + a * b in each lane: four u8 of a, the same in all lanes, by four s8 of b
 *     CHAINS
 *         sums that have to be under way at once to hide dot4's latency, up to MR * NV
 *
 *     registers: 12 accumulators (6 rows x 2 ymm), 2 for B, 1 for A; the rest is dot4's
 *     per 4 k:   12 dot4, 8 loads
 *
 * With fewer than four rows a round takes 6 / m steps, and as many sets of accumulators as CHAINS
 * asks for.  A rows are read directly, four bytes at a time; the last k % 4 bytes as the end of the
 * last four, because a row may end at a page's end.  What cannot be (rows shorter than that, s8
 * rows) is first copied to the stack, zero-padded.
 */
#ifndef GEMMD_KERNELS_X86_TILE_6X16C4_H
#define GEMMD_KERNELS_X86_TILE_6X16C4_H

#include "kernels/gemm.h"

#include <immintrin.h>

#include "kernels/x86/inline.h"

enum {
    MR = 6,
    NV = 2, /* ymm per row of the tile */
    KR = 4,
    LANES = 8,
    STEP_BYTES = NV * 32,  /* panel bytes per k step */
    COPY_BYTES = 1024,     /* k bytes of each row copied at a time: 6 KiB of stack, in L1 */
    PREFETCH_BYTES = 2048, /* how far ahead of the panel stream; a step is a line */
};

/* One row of one k step: four bytes; at_end: the last 1 to 3 of them, then zeros, where shift is 8
 * bits for each byte missing. */
INLINE void row(const uint8_t *a, int at_end, uint32_t shift, const __m256i *b, __m256i *sum)
{
    uint32_t four;
    __m256i all;

    __builtin_memcpy(&four, a, sizeof(four));
    all = _mm256_set1_epi32((int32_t)(at_end ? four >> shift : four));
    UNROLL
    for (size_t v = 0; v < NV; v++)
        sum[v] = dot4(sum[v], all, b[v]);
}

/* One k step of m rows, at byte t of each, into accumulator set `sum`. */
INLINE void rows(size_t m, const uint8_t *const *a, size_t t, int at_end, uint32_t shift,
                 const int8_t *panel, __m256i *sum)
{
    __m256i b[NV];

    UNROLL
    for (size_t v = 0; v < NV; v++) {
        b[v] = _mm256_load_si256((const __m256i *)panel + v);
        /* Else gcc 12 loads it for each row of so few, and waits for the loads. */
        if (m == 2 || m == 3)
            __asm__("" : "+x"(b[v]));
    }
    /* Not a loop over m: clang 14 keeps `sum` in memory when a loop has but one iteration. */
    row(a[0] + t, at_end, shift, b, sum);
    if (m > 1)
        row(a[1] + t, at_end, shift, b, sum + NV);
    if (m > 2)
        row(a[2] + t, at_end, shift, b, sum + 2 * NV);
    if (m > 3)
        row(a[3] + t, at_end, shift, b, sum + 3 * NV);
    if (m > 4)
        row(a[4] + t, at_end, shift, b, sum + 4 * NV);
    if (m > 5)
        row(a[5] + t, at_end, shift, b, sum + 5 * NV);
}

INLINE void step(size_t m, const uint8_t *const *a, size_t t, const int8_t *panel, __m256i *sum)
{
    rows(m, a, t, 0, 0, panel, sum);
}

/* What one round will read of a later part of the panel, or of the next panel; a
 * prefetch beyond the last cannot fault. */
INLINE void prefetch(const int8_t *panel, size_t lines)
{
    UNROLL
    for (size_t line = 0; line < lines; line++)
        _mm_prefetch(panel + line * STEP_BYTES, _MM_HINT_T0);
}

/* acc (+)= A * panel over k bytes, at least KR, for a constant m. */
INLINE void tile(size_t m, size_t k, const uint8_t *const *a, const int8_t *panel, int32_t *acc,
                 int accumulate)
{
    const size_t steps = k / KR, unroll = MR / m, sets = CHAINS < m * NV ? 1 : CHAINS / (m * NV);
    __m256i sum[MR * NV];
    size_t t = 0;

    UNROLL
    for (size_t i = 0; i < sets * m * NV; i++)
        sum[i] = _mm256_setzero_si256();
    if (accumulate) {
        UNROLL
        for (size_t i = 0; i < m * NV; i++)
            sum[i] = _mm256_load_si256((const __m256i *)(acc + i * LANES));
    }
    for (; t + unroll <= steps; t += unroll) {
        prefetch(panel + PREFETCH_BYTES, unroll);
        step(m, a, t * KR, panel, sum);
        if (unroll > 1)
            step(m, a, (t + 1) * KR, panel + STEP_BYTES, sum + 1 % sets * m * NV);
        if (unroll > 2)
            step(m, a, (t + 2) * KR, panel + 2 * STEP_BYTES, sum + 2 % sets * m * NV);
        if (unroll > 3) {
            step(m, a, (t + 3) * KR, panel + 3 * STEP_BYTES, sum + 3 % sets * m * NV);
            step(m, a, (t + 4) * KR, panel + 4 * STEP_BYTES, sum + 4 % sets * m * NV);
            step(m, a, (t + 5) * KR, panel + 5 * STEP_BYTES, sum + 5 % sets * m * NV);
        }
        panel += unroll * STEP_BYTES;
        /* Without this gcc 12 moves accumulators between registers and memory in each round. */
        UNROLL
        for (size_t i = 0; i < sets * m * NV; i++)
            __asm__("" : "+x"(sum[i]));
    }
    for (; t < steps; t++, panel += STEP_BYTES)
        step(m, a, t * KR, panel, sum);
    if (k % KR)
        rows(m, a, k - KR, 1, 8 * (KR - k % KR), panel, sum);
    UNROLL
    for (size_t i = m * NV; i < sets * m * NV; i++)
        sum[i % (m * NV)] = _mm256_add_epi32(sum[i % (m * NV)], sum[i]);
    UNROLL
    for (size_t i = 0; i < m * NV; i++)
        _mm256_store_si256((__m256i *)(acc + i * LANES), sum[i]);
}

/* A function for each m, so that m is a constant in it. */
typedef void tile_fn(size_t k, const uint8_t *const *a, const int8_t *panel, int32_t *acc,
                     int accumulate);

#define TILE(m)                                                                                    \
    static void tile_##m(size_t k, const uint8_t *const *a, const int8_t *panel, int32_t *acc,     \
                         int accumulate)                                                           \
    {                                                                                              \
        tile(m, k, a, panel, acc, accumulate);                                                     \
    }

TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)

static tile_fn *const tiles[MR + 1] = {NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6};

/* to[0 .. bytes) = from ^ flip, then zeros up to the next multiple of KR: they only meet
 * the zeros with which a panel is padded, but a memory checker wants them written. */
static void copy_row(uint8_t *to, const uint8_t *from, size_t bytes, uint8_t a_flip)
{
    const __m256i flip = _mm256_set1_epi8((char)a_flip);
    size_t t = 0;

    for (; t + 32 <= bytes; t += 32)
        _mm256_store_si256((__m256i *)(to + t),
                           _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(from + t)), flip));
    for (; t < bytes; t++)
        to[t] = from[t] ^ a_flip;
    for (; t % KR; t++)
        to[t] = 0;
}

static void run_copied(size_t m, size_t k, const uint8_t *const *a, uint8_t a_flip,
                       const int8_t *panel, int32_t *acc)
{
    _Alignas(32) uint8_t copy[MR][COPY_BYTES];
    const uint8_t *copied[MR];

    for (size_t t = 0; t < k; t += COPY_BYTES) {
        size_t bytes = k - t < COPY_BYTES ? k - t : COPY_BYTES;

        for (size_t i = 0; i < m; i++) {
            copy_row(copy[i], a[i] + t, bytes, a_flip);
            copied[i] = copy[i];
        }
        tiles[m]((bytes + KR - 1) / KR * KR, copied, panel + t / KR * STEP_BYTES, acc, t > 0);
    }
}

INLINE void ukernel(size_t m, size_t k, const uint8_t *const *a, uint8_t a_flip,
                    const int8_t *panel, int32_t *acc)
{
    if (!a_flip && k >= KR)
        tiles[m](k, a, panel, acc, 0);
    else
        run_copied(m, k, a, a_flip, panel, acc);
}

#endif
