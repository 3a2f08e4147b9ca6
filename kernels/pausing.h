/*
 * gemm_run for a thread that may be called away in the middle of a panel: the same bits, and every
 * PAUSING_K k it asks whether somebody is there.  Kernels that do so by themselves keep their sums
 * in registers unless somebody is.  For the others k is cut into parts, whose sums are added in
 * memory.  Either costs some percent of the rate; so it is for the time in which somebody is
 * expected.
 */
#ifndef GEMMD_KERNELS_PAUSING_H
#define GEMMD_KERNELS_PAUSING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/epilogue.h"

/* 16 KiB of a panel of 64 columns: some 0.6 us from L3. */
#define PAUSING_K 256

struct pausing {
    bool (*look)(void *owner);  /* is somebody there? */
    void (*serve)(void *owner); /* may run kernels */
    void *owner;
};

/* Arguments as for gemm_run. */
void pausing_run(const struct pausing *pausing, const struct gemm_weights *weights,
                 const struct gemm_epilogue *epilogue, size_t rows, const uint8_t *const *a,
                 void *const *c, size_t n_begin, size_t n_end);

#endif
