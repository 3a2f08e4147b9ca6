/*
 * The loops around a micro-kernel.
 *
 *     for each block of rows, so small that its A stays in L2          (rows_per_block)
 *         A rows that the micro-kernel would have to copy for every panel: copy them here, once
 *         for each group of panels of B in [n_begin, n_end)    (columns_per_group; often one panel)
 *             for each tile of up to mr rows of the block
 *                 for each panel of the group
 *                     micro-kernel: acc = A tile * panel, in registers; then the epilogue to C
 *
 * A group is fetched once per block and then serves all its row tiles from L1 or L2; a block's A
 * rows serve all groups from L2.  k is not split: the accumulators live in registers over the whole
 * of k, C is written once and never read.  With one row the loops stream every panel exactly once.
 *
 * Groups of several panels are for tiles of 32 rows: from L1 such a tile leaves one operand to L2,
 * whose lines follow each other, where one panel after the other leaves two.
 *
 * Rejected: an epilogue that lags one tile behind, to run while the tile unit of AMX multiplies the
 * next one, row by row between its blocks.  It gained 3 to 10 % for up to 16 rows and lost as much
 * for more, where multiplication and epilogue wait for the same L1 and ports.
 *
 * Cost beside the micro-kernels: one store and one load of each s32 accumulator, in L1.
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
    /* Copied rows of a block, on the stack: as many as other blocks have, at the distance of
     * copy_stride.  Where this does not hold a tile, the micro-kernel copies rows piecewise, for
     * each panel. */
    A_COPY_BYTES = A_BLOCK_BYTES / 8 * 9,
    /* A tile of rows up to this stays in L1 (48 KiB) while panels pass by. */
    A_TILE_BYTES = 32 * 1024,
};

/* What the loops share. */
struct run {
    const struct gemm_weights *weights;
    const struct gemm_epilogue *epilogue;
    size_t n_begin, n_end;
};

/* Rows [row, row + rows) of the call; a and c point at the first of them. */
struct block {
    size_t row, rows;
    const uint8_t *const *a;
    uint8_t a_flip;
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

/* Distance of copied rows: whole cache lines, an odd number of them, so that rows spread over all
 * sets of L1. */
static size_t copy_stride(const struct gemm_weights *weights)
{
    return (round_up(weights->k, GEMM_ALIGN) / GEMM_ALIGN | 1) * GEMM_ALIGN;
}

static bool constant_stride(size_t rows, const uint8_t *const *a)
{
    for (size_t i = 2; i < rows; i++) {
        if (a[i] - a[i - 1] != a[1] - a[0])
            return false;
    }
    return true;
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

/* Rows to copy at a time; 0: none, the micro-kernel takes them as they are.  Worth it where it
 * would copy them again for each of several panels, and where the copy holds a tile. */
static size_t rows_per_copy(const struct run *run, size_t rows, const uint8_t *const *a,
                            uint8_t a_flip)
{
    const struct gemm_kernel *kernel = run->weights->kernel;
    size_t fitting = A_COPY_BYTES / copy_stride(run->weights);

    if (run->n_end - run->n_begin <= kernel->nr ||
        fitting < (rows < kernel->mr ? rows : kernel->mr))
        return 0;
    if (!a_flip && (!kernel->strided_a || constant_stride(rows, a)))
        return 0;
    if (run->n_end - run->n_begin <= columns_per_group(run->weights))
        return tile_rows(kernel, rows); /* serves all panels from L1 */
    return fitting < kernel->mr ? fitting : fitting / kernel->mr * kernel->mr;
}

/* Rows [i, i + height) of a block against the panel whose first column is `column`. */
static void run_tile(const struct run *run, const struct block *block, size_t height, size_t i,
                     size_t column)
{
    alignas(GEMM_ALIGN) int32_t acc[GEMM_MR_MAX * GEMM_NR_MAX];
    const struct gemm_kernel *kernel = run->weights->kernel;
    const int8_t *panel = run->weights->panels + column * round_up(run->weights->k, kernel->kr);
    size_t n = run->n_end - column < kernel->nr ? run->n_end - column : kernel->nr;
    size_t m = block->rows - i < height ? block->rows - i : height;
    size_t again = kernel->begin ? height - m : 0; /* computed before, not written twice */

    kernel->ukernel(m + again, run->weights->k, block->a + i - again, block->a_flip, panel, acc);
    kernel->epilogue(m, n, kernel->nr, acc + again * kernel->nr, run->epilogue, block->row + i,
                     column, block->c + i);
}

static void run_block(const struct run *run, const struct block *block)
{
    const struct gemm_kernel *kernel = run->weights->kernel;
    size_t height = tile_rows(kernel, block->rows), group = columns_per_group(run->weights);

    if (kernel->begin)
        kernel->begin(height);
    for (size_t begin = run->n_begin; begin < run->n_end; begin += group) {
        size_t end = run->n_end - begin < group ? run->n_end : begin + group;

        for (size_t i = 0; i < block->rows; i += height) {
            for (size_t column = begin; column < end; column += kernel->nr)
                run_tile(run, block, height, i, column);
        }
    }
    if (kernel->end)
        kernel->end(height);
}

/* The same for a block whose rows are first copied, as u8. */
static void run_block_copied(const struct run *run, struct block block)
{
    alignas(GEMM_ALIGN) uint8_t copy[A_COPY_BYTES];
    const uint8_t *copied[GEMM_ROWS_MAX];
    size_t k = run->weights->k, stride = copy_stride(run->weights);

    for (size_t i = 0; i < block.rows; i++) {
        const uint8_t *from = block.a[i];
        uint8_t *to = copy + i * stride;

        copied[i] = to;
        if (!block.a_flip)
            memcpy(to, from, k);
        for (size_t t = 0; t < k && block.a_flip; t++)
            to[t] = from[t] ^ block.a_flip;
    }
    block.a = copied;
    block.a_flip = 0;
    run_block(run, &block);
}

void gemm_run(const struct gemm_weights *weights, const struct gemm_epilogue *epilogue, size_t rows,
              const uint8_t *const *a, void *const *c, size_t n_begin, size_t n_end)
{
    const struct run run = {weights, epilogue, n_begin, n_end};
    const uint8_t a_flip = epilogue->a_type == GEMM_TYPE_S8 ? 0x80 : 0;
    size_t nr = weights->kernel->nr, copy_rows, step;

    assert(rows >= 1 && rows <= GEMM_ROWS_MAX);
    assert(weights->k >= 1 && weights->k <= GEMM_K_MAX);
    assert(weights->kernel->mr <= GEMM_MR_MAX && nr <= GEMM_NR_MAX);
    assert(n_begin % nr == 0 && n_end <= weights->n);
    assert(n_end % nr == 0 || n_end == weights->n);
    assert((uintptr_t)weights->panels % GEMM_ALIGN == 0);
    copy_rows = rows_per_copy(&run, rows, a, a_flip);
    step = copy_rows ? copy_rows : rows_per_block(weights);
    for (size_t i = 0; i < rows; i += step) {
        struct block block = {i, rows - i < step ? rows - i : step, a + i, a_flip, c + i};

        if (copy_rows)
            run_block_copied(&run, block);
        else
            run_block(&run, &block);
    }
}
