/*
 * Blocks of float rows through the scratch into the macro-kernels.  See kernels/dynamic.h.
 *
 * Scratch: the block's u8 rows, each padded to a cache line, then the row pointers, scales, zero
 * points and sums.
 */
#include "kernels/dynamic.h"

#include <assert.h>

#include "kernels/int4.h"

enum {
    /* u8 rows of a block: a quarter of an L2 of 2 MiB, half of one of 1 MiB, as the macro-kernel's
     * own blocks, so that gemm_run makes one block of it. */
    BLOCK_BYTES = 512 * 1024,
    BLOCK_TILES_MIN = 4,
};

static size_t round_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static size_t rows_per_block(uint32_t k, uint32_t mr, size_t rows)
{
    size_t tiles = BLOCK_BYTES / ((size_t)k * mr);
    size_t block = (tiles < BLOCK_TILES_MIN ? BLOCK_TILES_MIN : tiles) * mr;

    return rows < block ? rows : block;
}

size_t gemm_dynamic_scratch_bytes(uint32_t k, uint32_t mr, size_t rows)
{
    size_t block = rows_per_block(k, mr, rows);

    return round_up(block * round_up(k, GEMM_ALIGN) +
                        block * (sizeof(const uint8_t *) + sizeof(float) + 2 * sizeof(int32_t)),
                    GEMM_ALIGN);
}

/* The parts of the scratch. */
struct block {
    uint8_t *q;
    size_t stride_bytes;
    const uint8_t **a;
    float *scales;
    int32_t *zero_points, *sums;
};

static struct block block_of(const struct gemm_dynamic *dynamic, uint32_t k, size_t rows)
{
    struct block block = {.q = dynamic->scratch, .stride_bytes = round_up(k, GEMM_ALIGN)};

    block.a = (const uint8_t **)(void *)(block.q + rows * block.stride_bytes);
    block.scales = (float *)(void *)(block.a + rows);
    block.zero_points = (int32_t *)(void *)(block.scales + rows);
    block.sums = block.zero_points + rows;
    return block;
}

static void quantise(const struct gemm_dynamic *dynamic, uint32_t k, size_t rows,
                     const void *const *a, const struct block *block)
{
    for (size_t i = 0; i < rows; i++) {
        uint8_t *q = block->q + i * block->stride_bytes;
        struct quantize_row row =
            quantize_row(dynamic->quantize, dynamic->a_type, dynamic->mode, k, a[i], q);

        block->a[i] = q;
        block->scales[i] = row.params.scale;
        block->zero_points[i] = row.params.zero_point;
        block->sums[i] = row.sum;
    }
}

/* Exactly one of the two weights is given. */
static void run(const struct gemm_weights *int8, const struct int4_weights *int4,
                const struct gemm_epilogue *epilogue, const struct gemm_dynamic *dynamic,
                size_t rows, const void *const *a, void *const *c, size_t n_begin, size_t n_end)
{
    uint32_t k = int8 ? int8->k : int4->k, mr = int8 ? int8->kernel->mr : int4->kernel->mr;
    size_t most = rows_per_block(k, mr, rows);
    struct block block = block_of(dynamic, k, most);
    struct gemm_epilogue own = *epilogue;

    assert(rows >= 1 && rows <= GEMM_ROWS_MAX);
    assert((uintptr_t)dynamic->scratch % GEMM_ALIGN == 0);
    assert(epilogue->a_type == GEMM_TYPE_U8 && epilogue->c_type != GEMM_TYPE_S32);
    assert(!epilogue->row_scales && !epilogue->row_zero_points && !epilogue->row_sums);
    own.row_scales = block.scales;
    own.row_zero_points = block.zero_points;
    own.row_sums = epilogue->b_zero_points ? block.sums : NULL;
    for (size_t i = 0; i < rows; i += most) {
        size_t m = rows - i < most ? rows - i : most;

        quantise(dynamic, k, m, a + i, &block);
        own.residual = epilogue->residual ? epilogue->residual + i : NULL;
        if (int8)
            gemm_run(int8, &own, m, block.a, c + i, n_begin, n_end);
        else
            int4_run(int4, &own, m, block.a, c + i, n_begin, n_end);
    }
}

void gemm_run_dynamic(const struct gemm_weights *weights, const struct gemm_epilogue *epilogue,
                      const struct gemm_dynamic *dynamic, size_t rows, const void *const *a,
                      void *const *c, size_t n_begin, size_t n_end)
{
    assert(epilogue->column_sums && !epilogue->weighted_sums);
    run(weights, NULL, epilogue, dynamic, rows, a, c, n_begin, n_end);
}

void int4_run_dynamic(const struct int4_weights *weights, const struct gemm_epilogue *epilogue,
                      const struct gemm_dynamic *dynamic, size_t rows, const void *const *a,
                      void *const *c, size_t n_begin, size_t n_end)
{
    run(NULL, weights, epilogue, dynamic, rows, a, c, n_begin, n_end);
}
