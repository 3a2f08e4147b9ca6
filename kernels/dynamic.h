/*
 * GEMM of float rows: A in F32 or BF16, quantised row by row into u8 while it is in cache
 * (kernels/quantize.h), then the ordinary macro-kernel.
 *
 *     for each block of rows, so small that its u8 A stays in L2
 *         quantise the block's rows into the scratch: the only read of A from memory
 *         gemm_run over the block, the rows' scales and zero points in the epilogue
 *
 * No extra pass over memory: a row's second reading comes from L1 (k <= 8192 as f32) or L2, the
 * quantised block from L2, where the macro-kernel wants it anyway.
 */
#ifndef GEMMD_KERNELS_DYNAMIC_H
#define GEMMD_KERNELS_DYNAMIC_H

#include "kernels/epilogue.h"
#include "kernels/quantize.h"

struct gemm_dynamic {
    const struct quantize_kernel *quantize;
    enum gemm_type a_type; /* F32 or BF16 */
    enum quantize_mode mode;
    void *scratch; /* gemm_dynamic_scratch_bytes(), 64-byte aligned, of this thread only */
};

/* Bytes of scratch for calls of up to `rows` rows (<= GEMM_ROWS_MAX) with kernel tiles of up to mr
 * rows: at most the u8 rows of one block and 24 bytes a row. */
size_t gemm_dynamic_scratch_bytes(uint32_t k, uint32_t mr, size_t rows);

/*
 * As gemm_run, for rows a[i] of k elements of dynamic->a_type, any alignment.  `epilogue` is the
 * layer's: a_type U8; offset made with a_zero_point 0 (an s32 bias has no fixed scale here: use the
 * float one); column_sums given; b_zero_points where B has them; row_scales, row_zero_points and
 * row_sums NULL, because this function supplies them; c_type not S32.
 *
 * Calls for slices of columns quantise A again, each thread for itself; cut large jobs by rows.
 */
void gemm_run_dynamic(const struct gemm_weights *weights, const struct gemm_epilogue *epilogue,
                      const struct gemm_dynamic *dynamic, size_t rows, const void *const *a,
                      void *const *c, size_t n_begin, size_t n_end);

#endif
