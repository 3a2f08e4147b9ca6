/*
 * A layer of random full-range data, and the oracle: the arithmetic of gemmd.h written down once
 * more as the obvious loops, sharing no code with kernels/ but the polynomials of GELU and SiLU,
 * whose bits nothing else can give (tests/kernel holds them against libm).
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
    int8_t *weights;              /* s4: two in a byte */
    float *scales;
    void *bias;
    uint16_t *multipliers;
    int8_t *zero_points;
    float *source; /* what the weights were made of (model_file.h); NULL: they were not */
    enum gemmd_quantize_method method; /* how */
};

/* What a layer is made of, beside its shape; zeros: u8 rows of s8 weights to f32, and no more. */
struct layer_kind {
    enum gemmd_type a_type, b_type, c_type, bias_type;
    enum gemmd_activation activation;
    enum gemmd_quantize_mode quantize_mode;
    uint32_t group;
    bool b_zero_points;
    enum gemmd_type residual_type;
    bool a_row_scales;
};

/* Weights over all of s8, zero points anywhere in range, scales per channel when `per_channel`,
 * such that a U8 or S8 output is mostly inside its range and sometimes saturates. */
void layer_case_init(struct layer_case *layer, uint32_t n, uint32_t k, enum gemmd_type a_type,
                     enum gemmd_type c_type, enum gemmd_type bias_type,
                     enum gemmd_activation activation, bool per_channel, uint64_t seed);
void layer_case_init_kind(struct layer_case *layer, uint32_t n, uint32_t k,
                          const struct layer_kind *kind, bool per_channel, uint64_t seed);
/* The usual one: u8 -> f32, f32 bias, ReLU, per channel. */
void layer_case_plain(struct layer_case *layer, uint32_t n, uint32_t k, uint64_t seed);
void layer_case_fini(struct layer_case *layer);

size_t type_bytes(enum gemmd_type type);

size_t layer_case_a_row_bytes(const struct layer_case *layer);
/* `bytes` of dense rows of A: u8 and s8 of all values, their scales about 1 and now and then
 * any; f32 and bf16 mostly within -4 .. 4, with now and then a NaN, an infinity, a zero, or
 * something tiny or huge. */
void layer_case_fill(const struct layer_case *layer, uint64_t *seed, void *a, size_t bytes);
/* The same of rows of the residual. */
void layer_case_fill_residual(const struct layer_case *layer, uint64_t *seed, void *residual,
                              size_t bytes);

/* c[i] = layer(a[i], residual[i]) for i < m; the residual lies as C does, element by element. */
void layer_case_expect_residual(const struct layer_case *layer, uint32_t m, const void *a,
                                size_t a_stride_bytes, const void *residual, void *c,
                                size_t c_stride_bytes);
/* Of a layer without residual. */
void layer_case_expect(const struct layer_case *layer, uint32_t m, const void *a,
                       size_t a_stride_bytes, void *c, size_t c_stride_bytes);

/* Fills A (dense) as layer_case_fill, runs the job, and compares with the oracle, bit for bit.  A
 * residual is C itself where that can be and m is odd.
 * 0, or the failing call's -errno; -EILSEQ when the bits differ. */
int layer_case_check(struct gemmd *session, struct gemmd_layer *handle,
                     const struct layer_case *layer, uint32_t m, uint64_t seed);

/* connect + options for tests: autostart off, the given socket; NULL after printing why not. */
struct gemmd *session_to(const char *socket);
struct gemmd *session_with(const char *socket, uint32_t ring_entries, uint64_t arena_bytes,
                           int64_t spin_ns);

#endif
