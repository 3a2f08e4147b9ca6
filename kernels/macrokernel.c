/*
 * The loops around a micro-kernel.
 *
 *     for each block of rows, so small that its A stays in L2          (rows_per_block)
 *         for each group of panels of B in [n_begin, n_end)    (columns_per_group; often one panel)
 *             for each tile of up to mr rows of the block
 *                 for each panel of the group (or all that the kernel fuses with their epilogue)
 *                     micro-kernel: acc = A tile * panel, in registers; then the epilogue to C;
 *                     rows that it would have to copy for every panel are copied at the first one
 *
 * A group is fetched once per block and then serves all its row tiles from L1 or L2; a block's A
 * rows serve all groups from L2.  k is not split: the accumulators live in registers over the whole
 * of k, C is written once and never read.  With one row the loops stream every panel exactly once.
 *
 * Groups of several panels are for tiles of 32 rows: from L1 such a tile leaves one operand to L2,
 * whose lines follow each other, where one panel after the other leaves two.
 *
 * Cost beside the micro-kernels: one store and one load of each s32 accumulator, in L1, and a call
 * for each tile; where a kernel fuses, less or none.
 */
#include "kernels/epilogue.h"

#include <assert.h>
#include <stdalign.h>
#include <stdbool.h>
#include <string.h>

enum {
    /* A of a row block: half of the smallest L2 of the AVX-512 machines (1 MiB), so that panel and
     * output find room beside it. */
    A_BLOCK_BYTES = 512 * 1024,
    /* Below this many tiles per block the panels' traffic would cost more than A's L2 misses. */
    BLOCK_TILES_MIN = 4,
    /* Copied rows of a block, on the stack: as many as other blocks have, gemm_copy_stride apart.
     * Where this does not hold a tile, the micro-kernel copies rows piecewise, for each panel. */
    A_COPY_BYTES = A_BLOCK_BYTES / 8 * 9,
    /* A tile of rows up to this stays in L1 (48 KiB) while panels pass by. */
    A_TILE_BYTES = 32 * 1024,
};

/* What the loops share. */
struct run {
    const struct gemm_weights *weights;
    const struct gemm_epilogue *epilogue;
    size_t n_begin, n_end;
    size_t k_padded; /* to a multiple of kr; kept, because a division per panel shows at one row */
};

/* Rows [row, row + rows) of the call; a and c point at the first of them. */
struct block {
    size_t row, rows;
    const uint8_t *const *a;
    uint8_t a_flip;
    uint8_t *copy;                /* NULL: rows are taken as they are */
    const uint8_t *const *copied; /* its rows */
    bool one_tile;                /* of rows in the copy: each meets all panels at once */
    void *const *c;
};

static size_t round_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* Rows of a block: as many as fit, at least BLOCK_TILES_MIN tiles, a multiple of mr. */
static size_t rows_per_block(const struct gemm_weights *weights)
{
    size_t mr = weights->kernel->mr;
    size_t tiles = A_BLOCK_BYTES / (weights->k * mr);

    return (tiles < BLOCK_TILES_MIN ? BLOCK_TILES_MIN : tiles) * mr;
}

/* Rows whose copies fit, a multiple of mr where they hold a tile of it. */
static size_t rows_per_copy(const struct gemm_weights *weights)
{
    size_t fitting = A_COPY_BYTES / gemm_copy_stride(weights->k), mr = weights->kernel->mr;

    return fitting < mr ? fitting : fitting / mr * mr;
}

/* Rows of a tile.  A kernel with begin takes but one m between begin and end: tiles of equal
 * height, of which the last one may overlap the one before. */
static size_t tile_rows(const struct gemm_kernel *kernel, size_t rows)
{
    size_t tiles = (rows + kernel->mr - 1) / kernel->mr;

    return kernel->begin ? (rows + tiles - 1) / tiles : kernel->mr;
}

/* Columns that a tile of rows meets before the next tile does: one panel, or as many as the kernel
 * wants in L2 while its rows lie in L1. */
static size_t columns_per_group(const struct gemm_weights *weights)
{
    const struct gemm_kernel *kernel = weights->kernel;
    size_t panels = kernel->b_group_bytes / (kernel->nr * weights->k);

    return panels && kernel->mr * weights->k <= A_TILE_BYTES ? panels * kernel->nr : kernel->nr;
}

/* Whether tiles of the rows are copied: worth it where the micro-kernel would copy them again for
 * each of several panels (flipped, at no constant distance, or to pad them), and possible where the
 * copy holds a tile. */
static bool want_copy(const struct run *run, size_t rows, const uint8_t *const *a, uint8_t a_flip)
{
    const struct gemm_kernel *kernel = run->weights->kernel;
    size_t k = run->weights->k;

    if (run->n_end - run->n_begin <= kernel->nr ||
        A_COPY_BYTES / gemm_copy_stride(run->weights->k) < (rows < kernel->mr ? rows : kernel->mr))
        return false;
    if (a_flip)
        return true;
    return kernel->gather && k >= GEMM_ALIGN && (k < run->k_padded || !gemm_is_run(rows, a));
}

/* The place in the copy of a block's row i, where a tile begins. */
static size_t slot(const struct block *block, size_t i)
{
    return block->one_tile ? 0 : i;
}

/* Whether a tile of a block with a copy does without: rows of one job or two among others. */
static bool stays(const struct run *run, const struct block *block, size_t m, size_t i)
{
    return run->weights->kernel->gather && !block->a_flip && run->weights->k == run->k_padded &&
           gemm_are_runs(m, block->a + i);
}

/* Rows [i, i + m) of a block against the first panel, and to where the next panels find them. */
static __attribute__((noinline)) void run_and_copy(const struct run *run,
                                                   const struct block *block, size_t m, size_t n,
                                                   size_t i, const int8_t *panel, int32_t *acc)
{
    const struct gemm_kernel *kernel = run->weights->kernel;
    size_t k = run->weights->k, stride = gemm_copy_stride(run->weights->k);
    uint8_t flip = block->a_flip;
    uint8_t *to = block->copy + slot(block, i) * stride;

    if (kernel->gather) {
        kernel->gather(m, n, k, block->a + i, block->a_flip, panel, to, stride, acc);
        return;
    }
    for (size_t row = 0; row < m; row++, to += stride) {
        const uint8_t *from = block->a[i + row];

        for (size_t t = 0; t < k; t++)
            to[t] = from[t] ^ flip;
        memset(to + k, 0, run->k_padded - k);
    }
    kernel->ukernel(m, n, run->k_padded, block->copied + slot(block, i), 0, panel, acc);
}

/* Rows [i, i + height) of a block against the panel whose first column is `column`. */
static void run_tile(const struct run *run, const struct block *block, size_t height, size_t i,
                     size_t column)
{
    alignas(GEMM_ALIGN) int32_t acc[GEMM_MR_MAX * GEMM_NR_MAX];
    const struct gemm_kernel *kernel = run->weights->kernel;
    const int8_t *panel = run->weights->panels + column * run->k_padded;
    size_t n = run->n_end - column < kernel->nr ? run->n_end - column : kernel->nr;
    size_t m = block->rows - i < height ? block->rows - i : height;
    size_t n_padded = n < kernel->nr ? round_up(n, kernel->n_step) : n;
    size_t again = kernel->begin ? height - m : 0; /* computed before, not written twice */
    size_t from = i - again;

    if (!block->copy || stays(run, block, m + again, from))
        kernel->ukernel(m + again, n_padded, run->weights->k, block->a + from, block->a_flip,
                        panel, acc);
    else if (column == run->n_begin)
        run_and_copy(run, block, m + again, n_padded, from, panel, acc);
    else
        kernel->ukernel(m + again, n_padded, run->k_padded, block->copied + slot(block, from), 0,
                        panel, acc);
    kernel->epilogue(m, n, kernel->nr, acc + again * kernel->nr, run->epilogue, block->row + i,
                     column, block->c + i);
}

/* The tile that begins at row i against as many panels of [column, end) as the kernel multiplies
 * and finishes together; their columns. */
static size_t run_fused(const struct run *run, const struct block *block, size_t height, size_t i,
                        size_t column, size_t end)
{
    const struct gemm_kernel *kernel = run->weights->kernel;
    size_t again = block->rows - i < height ? height - (block->rows - i) : 0, from = i - again;
    struct gemm_span span = {.m = height,
                             .k = run->weights->k,
                             .a = block->a + from,
                             .a_flip = block->a_flip,
                             .copy_stride = gemm_copy_stride(run->weights->k),
                             .panels = run->weights->panels + column * run->k_padded,
                             .column = column,
                             .columns = end - column,
                             .c = block->c + from,
                             .again = again};

    if (!kernel->fused || end - column <= kernel->nr || run->weights->k != run->k_padded)
        return 0;
    if (block->copy && !stays(run, block, height, from)) {
        if (column == run->n_begin) {
            span.copy = block->copy + slot(block, from) * span.copy_stride;
        } else {
            span.a = block->copied + slot(block, from);
            span.a_flip = 0;
        }
    }
    return kernel->fused(&span, run->epilogue);
}

/* All rows of a block against one panel after the other, up to one that the kernel has no function
 * for; the first column left. */
static size_t run_fused_panels(const struct run *run, const struct block *block)
{
    const struct gemm_kernel *kernel = run->weights->kernel;
    struct gemm_span span = {.m = block->rows,
                             .k = run->weights->k,
                             .a = block->a,
                             .a_flip = block->a_flip,
                             .c = block->c};
    size_t column = run->n_begin;

    for (; column < run->n_end; column += span.columns) {
        span.panels = run->weights->panels + column * run->k_padded;
        span.column = column;
        span.columns = run->n_end - column < kernel->nr ? run->n_end - column : kernel->nr;
        if (!kernel->fused_panel(&span, run->epilogue))
            break;
    }
    return column;
}

static void run_block(const struct run *run, const struct block *block)
{
    const struct gemm_kernel *kernel = run->weights->kernel;
    size_t height = tile_rows(kernel, block->rows), group = columns_per_group(run->weights);
    size_t begin = run->n_begin;

    if (kernel->fused_panel && run->weights->k <= kernel->fused_panel_k && !block->copy &&
        block->rows >= kernel->mr)
        begin = run_fused_panels(run, block);
    if (begin == run->n_end)
        return;
    if (kernel->begin)
        kernel->begin(height);
    for (; begin < run->n_end; begin += group) {
        size_t end = run->n_end - begin < group ? run->n_end : begin + group;

        for (size_t i = 0; i < block->rows; i += height) {
            for (size_t column = begin, done; column < end; column += done) {
                done = run_fused(run, block, height, i, column, end);
                if (done)
                    continue;
                run_tile(run, block, height, i, column);
                done = kernel->nr;
            }
        }
    }
    if (kernel->end)
        kernel->end(height);
}

/* The same for a block whose rows are copied, as u8, when they meet the first panel. */
static void run_block_copied(const struct run *run, struct block *block)
{
    alignas(GEMM_ALIGN) uint8_t copy[A_COPY_BYTES];
    const uint8_t *copied[GEMM_ROWS_MAX];

    for (size_t i = 0; i < block->rows; i++)
        copied[i] = copy + i * gemm_copy_stride(run->weights->k);
    block->copy = copy;
    block->copied = copied;
    block->one_tile = run->n_end - run->n_begin <= columns_per_group(run->weights);
    run_block(run, block);
}

void gemm_run(const struct gemm_weights *weights, const struct gemm_epilogue *epilogue, size_t rows,
              const uint8_t *const *a, void *const *c, size_t n_begin, size_t n_end)
{
    const struct run run = {weights, epilogue, n_begin, n_end,
                            round_up(weights->k, weights->kernel->kr)};
    const uint8_t a_flip = epilogue->a_type == GEMM_TYPE_S8 ? 0x80 : 0;
    size_t nr = weights->kernel->nr, step = rows_per_block(weights);
    bool copy;

    assert(rows >= 1 && rows <= GEMM_ROWS_MAX);
    assert(weights->k >= 1 && weights->k <= GEMM_K_MAX);
    assert(weights->kernel->mr <= GEMM_MR_MAX && nr <= GEMM_NR_MAX);
    assert(n_begin % nr == 0 && n_end <= weights->n);
    assert(n_end % nr == 0 || n_end == weights->n);
    assert((uintptr_t)weights->panels % GEMM_ALIGN == 0);
    copy = want_copy(&run, rows, a, a_flip);
    if (copy && step > A_COPY_BYTES / gemm_copy_stride(weights->k))
        step = rows_per_copy(weights);
    for (size_t i = 0; i < rows; i += step) {
        struct block block = {.row = i,
                              .rows = rows - i < step ? rows - i : step,
                              .a = a + i,
                              .a_flip = a_flip,
                              .c = c + i};

        if (copy)
            run_block_copied(&run, &block);
        else
            run_block(&run, &block);
    }
}
