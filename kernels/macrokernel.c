/*
 * The loops around a micro-kernel.
 *
 *     for each block of rows, so small that its A stays in L2          (rows_per_block)
 *         for each panel of B in [n_begin, n_end)
 *             for each tile of up to mr rows of the block
 *                 micro-kernel: acc = A tile * panel, in registers; then the epilogue to C
 *
 * A panel is fetched once per block and then serves all its row tiles from L1 or L2; a block's A
 * rows serve all panels from L2.  k is not split: the accumulators live in registers over the whole
 * of k, C is written once and never read.  With one row the loops stream every panel exactly once.
 *
 * Cost beside the micro-kernels: one store and one load of each s32 accumulator, in L1.
 */
#include "kernels/epilogue.h"

#include <assert.h>
#include <stdalign.h>

enum {
    /* A of a row block: half of the smallest L2 of the AVX-512 machines (1 MiB), so that panel and
     * output find room beside it. */
    A_BLOCK_BYTES = 512 * 1024,
    /* Below this many tiles per block the panels' traffic would cost more than A's L2 misses. */
    BLOCK_TILES_MIN = 4,
};

/* Rows of a block: as many as fit, at least BLOCK_TILES_MIN tiles, a multiple of mr. */
static size_t rows_per_block(const struct gemm_weights *weights)
{
    size_t mr = weights->kernel->mr;
    size_t tiles = A_BLOCK_BYTES / (weights->k * mr);

    return (tiles < BLOCK_TILES_MIN ? BLOCK_TILES_MIN : tiles) * mr;
}

/* All row tiles of one block, whose first row is `row`, against the panel at `column`. */
static void run_panel(const struct gemm_weights *weights, const struct gemm_epilogue *epilogue,
                      size_t rows, const uint8_t *const *a, void *const *c, size_t row,
                      size_t column, size_t n)
{
    alignas(GEMM_ALIGN) int32_t acc[GEMM_MR_MAX * GEMM_NR_MAX];
    const struct gemm_kernel *kernel = weights->kernel;
    size_t k_padded = (weights->k + (size_t)kernel->kr - 1) / kernel->kr * kernel->kr;
    const int8_t *panel = weights->panels + column * k_padded;
    uint8_t a_flip = epilogue->a_type == GEMM_TYPE_S8 ? 0x80 : 0;

    for (size_t i = 0; i < rows; i += kernel->mr) {
        size_t m = rows - i < kernel->mr ? rows - i : kernel->mr;

        kernel->ukernel(m, weights->k, a + i, a_flip, panel, acc);
        kernel->epilogue(m, n, kernel->nr, acc, epilogue, row + i, column, c + i);
    }
}

void gemm_run(const struct gemm_weights *weights, const struct gemm_epilogue *epilogue, size_t rows,
              const uint8_t *const *a, void *const *c, size_t n_begin, size_t n_end)
{
    size_t nr = weights->kernel->nr;
    size_t block = rows_per_block(weights);

    assert(rows >= 1 && rows <= GEMM_ROWS_MAX);
    assert(weights->k >= 1 && weights->k <= GEMM_K_MAX);
    assert(weights->kernel->mr <= GEMM_MR_MAX && nr <= GEMM_NR_MAX);
    assert(n_begin % nr == 0 && n_end <= weights->n);
    assert(n_end % nr == 0 || n_end == weights->n);
    assert((uintptr_t)weights->panels % GEMM_ALIGN == 0);
    for (size_t i = 0; i < rows; i += block) {
        size_t m = rows - i < block ? rows - i : block;

        for (size_t column = n_begin; column < n_end; column += nr) {
            size_t n = n_end - column < nr ? n_end - column : nr;

            run_panel(weights, epilogue, m, a + i, c + i, i, column, n);
        }
    }
}
