/*
 * A layer of random full-range data, and the oracle: the arithmetic of gemmd.h written down once
 * more as the obvious loops, sharing no code with kernels/.
 */
#ifndef GEMMD_TESTS_E2E_LAYER_CASE_H
#define GEMMD_TESTS_E2E_LAYER_CASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/gemmd.h"

/* splitmix64 (G. Steele et al., OOPSLA 2014). */
uint64_t random_next(uint64_t *state);
void random_bytes(uint64_t *state, void *out, size_t bytes);

struct layer_case {
    struct gemmd_layer_desc desc; /* points into the arrays below */
    int8_t *weights;
    float *scales;
    void *bias;
};

/* Weights over all of s8, zero points anywhere in range, scales per channel when `per_channel`,
 * such that a U8 or S8 output is mostly inside its range and sometimes saturates. */
void layer_case_init(struct layer_case *layer, uint32_t n, uint32_t k, enum gemmd_type a_type,
                     enum gemmd_type c_type, enum gemmd_type bias_type,
                     enum gemmd_activation activation, bool per_channel, uint64_t seed);
/* The usual one: u8 -> f32, f32 bias, ReLU, per channel. */
void layer_case_plain(struct layer_case *layer, uint32_t n, uint32_t k, uint64_t seed);
void layer_case_fini(struct layer_case *layer);

size_t type_bytes(enum gemmd_type type);

/* c[i] = layer(a[i]) for i < m. */
void layer_case_expect(const struct layer_case *layer, uint32_t m, const void *a,
                       size_t a_stride_bytes, void *c, size_t c_stride_bytes);

/* Fills A (dense) with random bytes, runs the job, and compares with the oracle, bit for bit.
 * 0, or the failing call's -errno; -EILSEQ when the bits differ. */
int layer_case_check(struct gemmd *session, struct gemmd_layer *handle,
                     const struct layer_case *layer, uint32_t m, uint64_t seed);

/* connect + options for tests: autostart off, the given socket; NULL after printing why not. */
struct gemmd *session_to(const char *socket);
struct gemmd *session_with(const char *socket, uint32_t ring_entries, uint64_t arena_bytes,
                           int64_t spin_ns);

#endif
