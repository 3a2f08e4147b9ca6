/*
 * The tile of gemm_u8s8s32_32x64c4_amx.c and its epilogue together: while the tile unit multiplies
 * 32 columns, the vector unit finishes the 32 before, some rows after each block of 64 k.  The sums
 * of one wait in L1 while those of the other are made.
 *
 *     a block:  4 tile loads, 4 tdpbusd of 16 cycles each; for k = 1024 two rows of the epilogue:
 *               4 loads, 32 vector operations, 2 stores, 2 prefetches
 *
 * Two things make this pay (kernels/README.md), neither does alone: B, which passes once, is loaded
 * as a stream, so that A and the sums stay in L1; and the lines of C are fetched for writing one
 * panel ahead, because a store that waits for its line holds back the tile stores behind it.
 *
 * For 17 to 32 rows (copied beside the first 32 columns where they are no runs, or s8), whole
 * blocks of k, and the epilogue of u8_relu_avx512.h, which keeps what columns have in registers.
 */
#include "kernels/x86/amx_tile.h"

#include <immintrin.h>

#include "kernels/x86/u8_relu_avx512.h"

enum {
    COLUMNS = 2 * LANES, /* multiplied at a time */
    SUMS_STRIDE = COLUMNS * 4,
    PANELS_MIN = 2, /* the last COLUMNS are finished beside nothing */
};

gemm_fused_fn gemm_amx_fused;

/* Sums that wait for their epilogue; count 0: none. */
struct waiting {
    const int32_t *sums; /* rows SUMS_STRIDE apart */
    void *const *c;      /* their rows */
    size_t count, column;
    size_t step; /* sums that are finished after a block */
    int fetch;   /* the lines of C one panel further are this call's, too */
};

/* Two rows that wait.  Where the next lines are is a constant: there is no register left. */
INLINE void finish_two(int fetch, const struct column_pair *pair, const int32_t *sums,
                       void *const *c, size_t column)
{
    uint8_t *c_0 = (uint8_t *)c[0] + column, *c_1 = (uint8_t *)c[1] + column;

    two_rows(pair, sums, sums + COLUMNS, c_0, c_1);
    if (fetch) {
        __asm__ volatile("prefetchw %0" : : "m"(c_0[NR]));
        __asm__ volatile("prefetchw %0" : : "m"(c_1[NR]));
    }
}

INLINE void zero(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

INLINE void store(int32_t *sums)
{
    _tile_stored(0, sums, SUMS_STRIDE);
    _tile_stored(1, sums + LANES, SUMS_STRIDE);
    _tile_stored(2, sums + TILE_ROWS * COLUMNS, SUMS_STRIDE);
    _tile_stored(3, sums + TILE_ROWS * COLUMNS + LANES, SUMS_STRIDE);
}

/* One block of A and B; both go on to the next. */
INLINE void multiply(struct rows *a, const int8_t **b)
{
    _tile_stream_loadd(6, *b, NR * KR);
    _tile_loadd(4, a->upper, a->upper_stride);
    _tile_dpbusd(0, 4, 6);
    _tile_stream_loadd(7, *b + B_TILE, NR * KR);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(5, a->lower, a->lower_stride);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
    a->upper += BLOCK_K;
    a->lower += BLOCK_K;
    *b += BLOCK_BYTES;
}

/* As many blocks as it takes to finish what waits. */
INLINE void multiply_and_finish(int fetch, struct rows *a, const int8_t **b,
                                const struct gemm_epilogue *epilogue,
                                const struct waiting *waiting)
{
    const struct column_pair pair = column_pair_at(epilogue, waiting->column);
    const int32_t *sums = waiting->sums, *end = sums + waiting->count / 2 * 2 * COLUMNS;
    const size_t column = waiting->column, step = waiting->step;
    void *const *c = waiting->c;

    while (sums != end) {
        const int32_t *some = (size_t)(end - sums) > step ? sums + step : end;

        multiply(a, b);
        for (; sums != some; sums += 2 * COLUMNS, c += 2)
            finish_two(fetch, &pair, sums, c, column);
    }
    if (waiting->count % 2) {
        uint8_t *last = (uint8_t *)c[0] + column;

        two_rows(&pair, sums, sums, last, last);
    }
}

/* sums = A * COLUMNS columns at b over k, and what waits to C meanwhile. */
static __attribute__((noinline)) void multiply_pair(const struct rows *rows, size_t k,
                                                    const int8_t *b, int32_t *sums,
                                                    const struct gemm_epilogue *epilogue,
                                                    const struct waiting *waiting)
{
    const int8_t *b_end = b + k * NR;
    struct rows a = *rows;

    zero();
    if (waiting->count && waiting->fetch)
        multiply_and_finish(1, &a, &b, epilogue, waiting);
    else if (waiting->count)
        multiply_and_finish(0, &a, &b, epilogue, waiting);
    while (b != b_end)
        multiply(&a, &b);
    store(sums);
}

/* What waits in the end, beside nothing. */
static void finish(const struct gemm_epilogue *epilogue, const struct waiting *waiting)
{
    const struct column_pair pair = column_pair_at(epilogue, waiting->column);
    const int32_t *sums = waiting->sums;

    for (size_t i = 0; i < waiting->count; i += 2) {
        size_t next = i + 1 < waiting->count ? i + 1 : i;

        two_rows(&pair, sums + i * COLUMNS, sums + next * COLUMNS,
                 (uint8_t *)waiting->c[i] + waiting->column,
                 (uint8_t *)waiting->c[next] + waiting->column);
    }
}

/* sums = A * COLUMNS columns at b over k; A is copied meanwhile. */
static __attribute__((noinline)) void multiply_copied(const struct rows *rows, size_t k,
                                                      const int8_t *b, int32_t *sums,
                                                      const struct gather *gather)
{
    struct rows a = *rows;

    for (size_t block = 0; block < AHEAD; block++)
        gather_block(gather, block);
    zero();
    for (size_t block = 0; block < k / BLOCK_K; block++) {
        gather_block(gather, block + AHEAD);
        multiply(&a, &b);
    }
    store(sums);
}

size_t gemm_amx_fused(const struct gemm_span *span, const struct gemm_epilogue *epilogue)
{
    _Alignas(GEMM_ALIGN) int32_t sums[2][MR * COLUMNS];
    const size_t whole = span->columns / NR * NR, k = span->k, blocks = k / BLOCK_K;
    const size_t count = span->m - span->again;
    struct waiting waiting = {.c = span->c + span->again};
    struct rows rows;

    if (span->m <= TILE_ROWS || k % BLOCK_K || whole < PANELS_MIN * NR || !is_u8_relu(epilogue) ||
        (!span->copy && (span->a_flip || !gemm_are_runs(span->m, span->a))))
        return 0;
    rows = span->copy ? (struct rows){span->copy, span->copy + TILE_ROWS * span->copy_stride,
                                      span->copy_stride, span->copy_stride}
                      : rows_of(span->m, span->a);
    waiting.step = (count / 2 + blocks - 1) / blocks * 2 * COLUMNS;
    for (size_t done = 0; done < whole; done += COLUMNS) {
        const int8_t *b = span->panels + done / NR * NR * k + done % NR * KR;
        int32_t *to = sums[done / COLUMNS % 2];

        if (!done && span->copy) {
            const struct gather gather = {span->m,      k,          span->a,          0,
                                          span->a_flip, span->copy, span->copy_stride};

            multiply_copied(&rows, k, b, to, &gather);
        } else {
            multiply_pair(&rows, k, b, to, epilogue, &waiting);
        }
        waiting.sums = to + span->again * COLUMNS;
        waiting.count = count;
        waiting.column = span->column + done;
        waiting.fetch = done + NR < whole;
    }
    finish(epilogue, &waiting);
    return whole;
}
