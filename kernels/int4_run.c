/*
 * The loops around the int4 micro-kernels.
 *
 * Few rows: panel by panel, the rows of a tile against the packed weights.  Many rows: a panel's
 * weights are unpacked once for all of them:
 *
 *     for each block of rows, so small that its A stays in L2
 *         for each panel of B in [n_begin, n_end)
 *             for each part of k, whose unpacked weights fit L1
 *                 unpack it
 *                 for each tile of rows
 *                     sums += A tile * part, group by group; after the last part the epilogue
 *
 * Either way makes the same additions to a sum in the same order.
 */
#include "kernels/int4.h"

#include <assert.h>
#include <stdalign.h>
#include <stdbool.h>
#include <string.h>

enum {
    A_COPY_BYTES = 512 * 1024, /* about as the macro-kernel's; blocks not copied are no larger */
    BLOCK_ROWS = 256,          /* whose float sums are 64 KiB */
    PART_BYTES = 16 * 1024,    /* of unpacked weights */
};

/* What the loops share. */
struct run {
    const struct int4_weights *weights;
    const struct gemm_epilogue *epilogue;
    size_t n_begin, n_end;
};

/* Rows [row, row + rows) of the call; a and c point at the first of them. */
struct block {
    size_t row, rows;
    size_t height; /* of tiles: equal, but the last */
    const uint8_t *const *a;
    const uint8_t *ends; /* their last k % group bytes, INT4_GROUP_MAX apart */
    void *const *c;
};

/* As many rows as fit, a multiple of mr where they hold a tile of it. */
static size_t rows_per_block(const struct int4_weights *weights)
{
    size_t fitting = A_COPY_BYTES / gemm_copy_stride(weights->k), mr = weights->kernel->mr;

    if (fitting > BLOCK_ROWS)
        fitting = BLOCK_ROWS;
    return fitting < mr ? fitting : fitting / mr * mr;
}

/* ---- few rows -------------------------------------------------------------------------------- */

static void run_few(const struct run *run, const struct block *block)
{
    alignas(GEMM_ALIGN) float acc[INT4_MR_MAX * GEMM_NR_MAX];
    const struct int4_kernel *kernel = run->weights->kernel;
    uint32_t k = run->weights->k, group = run->weights->group;
    size_t nr = kernel->nr, bytes = int4_panel_bytes(kernel, k, group);
    const uint8_t *panel = run->weights->panels + run->n_begin / nr * bytes;

    for (size_t column = run->n_begin; column < run->n_end; column += nr, panel += bytes) {
        size_t n = run->n_end - column < nr ? run->n_end - column : nr;

        for (size_t i = 0; i < block->rows; i += INT4_MR_MAX) {
            size_t m = block->rows - i < INT4_MR_MAX ? block->rows - i : INT4_MR_MAX;

            kernel->ukernel(m, k, group, block->a + i, panel, acc);
            kernel->epilogue(m, n, nr, (const int32_t *)(const void *)acc, run->epilogue,
                             block->row + i, column, block->c + i);
        }
    }
}

/* ---- many rows ------------------------------------------------------------------------------- */

/* sums += a tile of m rows, from the block's row i on, times a part of a panel that begins with
 * group `begin`.  The last group may be the one that rows end in. */
static void multiply(const struct run *run, const struct block *block, size_t m, size_t i,
                     struct int4_part part, size_t begin, float *sums)
{
    const struct int4_many *many = run->weights->kernel->many;
    size_t whole = run->weights->k / part.group, groups = part.groups;
    const uint8_t *a[GEMM_MR_MAX];

    part.a = a;
    if (begin < whole) {
        for (size_t row = 0; row < m; row++)
            a[row] = block->a[i + row] + begin * part.group;
        part.groups = whole - begin < groups ? whole - begin : groups;
        many->part(m, &part, sums);
        if (part.groups == groups)
            return;
        part.unpacked += part.groups * part.group * run->weights->kernel->nr;
        part.multipliers += part.groups * part.group_bytes;
        part.groups = 1;
    }
    for (size_t row = 0; row < m; row++)
        a[row] = block->ends + (i + row) * INT4_GROUP_MAX;
    many->part(m, &part, sums);
}

/* All tiles of the block against the panel at `column`. */
static void run_panel(const struct run *run, const struct block *block, size_t column,
                      int8_t *unpacked, float *sums)
{
    const struct int4_weights *weights = run->weights;
    const struct int4_kernel *kernel = weights->kernel;
    size_t nr = kernel->nr, n = run->n_end - column < nr ? run->n_end - column : nr;
    size_t groups = (weights->k + (size_t)weights->group - 1) / weights->group;
    size_t step = PART_BYTES / (weights->group * nr), height = block->height, end;
    struct int4_part part = {.group = weights->group,
                             .unpacked = unpacked,
                             .group_bytes = int4_group_bytes(kernel, weights->group)};

    part.multipliers = weights->panels + column / nr * groups * part.group_bytes;
    for (size_t begin = 0; begin < groups; begin = end) {
        float *tile_sums = sums;

        part.groups = groups - begin < step ? groups - begin : step;
        end = begin + part.groups;
        kernel->many->unpack(&part, unpacked);
        for (size_t i = 0; i < block->rows; i += height, tile_sums += kernel->mr * nr) {
            size_t m = block->rows - i < height ? block->rows - i : height;
            size_t again = kernel->many->begin ? height - m : 0; /* computed, not written twice */

            if (begin == 0)
                memset(tile_sums, 0, kernel->mr * nr * sizeof(*tile_sums));
            multiply(run, block, m + again, i - again, part, begin, tile_sums);
            if (end == groups)
                kernel->epilogue(m, n, nr, (const int32_t *)(const void *)(tile_sums + again * nr),
                                 run->epilogue, block->row + i, column, block->c + i);
        }
        part.multipliers += part.groups * part.group_bytes;
    }
}

/* The rows' last k % group bytes, with zeros up to a group. */
static void copy_ends(const struct int4_weights *weights, const struct block *block, uint8_t *ends)
{
    size_t whole = weights->k / weights->group * weights->group, rest = weights->k - whole;

    for (size_t i = 0; rest && i < block->rows; i++, ends += INT4_GROUP_MAX) {
        memcpy(ends, block->a[i] + whole, rest);
        memset(ends + rest, 0, weights->group - rest);
    }
}

static void run_many(const struct run *run, struct block block)
{
    alignas(GEMM_ALIGN) float sums[BLOCK_ROWS * GEMM_NR_MAX];
    alignas(GEMM_ALIGN) int8_t unpacked[PART_BYTES];
    alignas(GEMM_ALIGN) uint8_t ends[BLOCK_ROWS * INT4_GROUP_MAX];
    const struct int4_kernel *kernel = run->weights->kernel;

    copy_ends(run->weights, &block, ends);
    block.ends = ends;
    if (kernel->many->begin)
        kernel->many->begin(block.height, run->weights->group);
    for (size_t column = run->n_begin; column < run->n_end; column += kernel->nr)
        run_panel(run, &block, column, unpacked, sums);
    if (kernel->many->end)
        kernel->many->end();
}

/* The same for rows at no constant distance. */
static void run_copied(const struct run *run, struct block block)
{
    alignas(GEMM_ALIGN) uint8_t copy[A_COPY_BYTES];
    const uint8_t *copied[BLOCK_ROWS];
    size_t stride = gemm_copy_stride(run->weights->k);

    for (size_t i = 0; i < block.rows; i++) {
        memcpy(copy + i * stride, block.a[i], run->weights->k);
        copied[i] = copy + i * stride;
    }
    block.a = copied;
    run_many(run, block);
}

static void run_block(const struct run *run, struct block *block)
{
    const struct int4_kernel *kernel = run->weights->kernel;
    const struct int4_many *many = kernel->many;
    size_t tiles = (block->rows + kernel->mr - 1u) / kernel->mr;

    block->height = (block->rows + tiles - 1) / tiles;
    if (!many || block->rows < many->rows_min)
        run_few(run, block);
    else if (many->in_place && !gemm_is_run(block->rows, block->a))
        run_copied(run, *block);
    else
        run_many(run, *block);
}

void int4_run(const struct int4_weights *weights, const struct gemm_epilogue *epilogue, size_t rows,
              const uint8_t *const *a, void *const *c, size_t n_begin, size_t n_end)
{
    const struct run run = {weights, epilogue, n_begin, n_end};
    size_t nr = weights->kernel->nr, step = rows_per_block(weights);

    assert(rows >= 1 && rows <= GEMM_ROWS_MAX && int4_check(weights->k, weights->group) == 0);
    assert(weights->kernel->mr <= GEMM_MR_MAX && nr <= GEMM_NR_MAX);
    assert((uintptr_t)weights->panels % GEMM_ALIGN == 0);
    assert(n_begin % nr == 0 && n_end <= weights->n);
    assert(n_end % nr == 0 || n_end == weights->n);
    assert(epilogue->weighted_sums && epilogue->a_type == GEMM_TYPE_U8 &&
           epilogue->c_type != GEMM_TYPE_S32);
    for (size_t i = 0; i < rows; i += step) {
        struct block block = {.row = i,
                              .rows = rows - i < step ? rows - i : step,
                              .a = a + i,
                              .c = c + i};

        run_block(&run, &block);
    }
}
