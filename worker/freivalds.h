/*
 * Freivalds' check (R. Freivalds, 1977) of one row of accumulators: with a factor r[j] for each
 * column of B [n x k] and w = sum over j of r[j] * B[j], made once from the packed weights,
 *
 *     sum over j of r[j] * acc[j]  =  sum over t of a[t] * w[t]        modulo 2^64
 *
 * at n + k multiplications instead of n * k, and without a look at the weights as they are now.
 * The factors are odd, so a single wrong accumulator always shows; several hide each other with a
 * probability below 2^-31.  They are the same in every worker: memory and CPUs do not aim, and
 * clients can change neither side.
 */
#ifndef GEMMD_WORKER_FREIVALDS_H
#define GEMMD_WORKER_FREIVALDS_H

#include <stdint.h>

#include "worker/layer_memory.h"

/* The factor of column j: splitmix64 (G. Steele et al., OOPSLA 2014), made odd. */
static inline uint64_t freivalds_factor(uint64_t j)
{
    uint64_t z = (j + 1) * UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (z ^ (z >> 31)) | 1;
}

/* w of a layer of s8 weights: k values, the caller's to free.  NULL: no memory. */
uint64_t *freivalds_weights(const struct layer_view *view);

#endif
