/*
 * From floats to integers: rows of A while they are in cache, weights once, and what that costs in
 * accuracy.
 *
 * Dynamic quantisation of a row x of k values (F32 or BF16, widened exactly), each operation IEEE
 * single precision, rounded to nearest even:
 *
 *     lo = min(0, finite x), hi = max(0, finite x)          range: NaN and infinities do not count
 *     asymmetric:  scale = hi / 255 - lo / 255              (cannot overflow)
 *     symmetric:   scale = max(hi, -lo) / 127
 *     scale = max(scale, FLT_MIN);  inverse = 1 / scale     both are normal numbers
 *     asymmetric:  zero_point = round-half-to-even(-lo * inverse), clamped to 0..255
 *                  q_min = 0, q_max = 255
 *     symmetric:   zero_point = 128, q_min = 1, q_max = 255
 *     t = x * inverse;  NaN: t = 0
 *     t = min(max(t, q_min - zero_point), q_max - zero_point)
 *     q = round-half-to-even(t) + zero_point                in u8 for both modes
 *
 * So x is about (q - zero_point) * scale; an x inside the range is off by scale / 2 at most, plus
 * rounding.  NaN becomes the zero point, that is 0; infinities saturate at the ends of the finite
 * values' range; a row without a finite non-zero value has the scale FLT_MIN.  Every level yields
 * the same bits (kernels/ref/quantize_ref.c is the oracle).
 *
 * No function here allocates, locks, or makes a system call.  Preconditions are asserted.
 */
#ifndef GEMMD_KERNELS_QUANTIZE_H
#define GEMMD_KERNELS_QUANTIZE_H

#include <stdbool.h>

#include "kernels/gemm.h"

/* ---- rows of A ------------------------------------------------------------------------------- */

enum quantize_mode {
    QUANTIZE_ASYMMETRIC = 0,
    QUANTIZE_SYMMETRIC = 1,
};

/* lo and hi as above.  Reads k elements of `type` at x, any alignment, and nothing beyond. */
typedef void quantize_range_fn(enum gemm_type type, size_t k, const void *x, float *lo, float *hi);

/* q[0 .. k) as above; returns the sum of q.  Reads and writes nothing beyond. */
typedef uint32_t quantize_apply_fn(enum gemm_type type, size_t k, const void *x, float inverse,
                                   int32_t zero_point, int32_t q_min, uint8_t *q);

struct quantize_kernel {
    const char *name; /* "quantize_avx512" */
    enum cpu_level level;
    quantize_range_fn *range;
    quantize_apply_fn *apply;
};

/* The best whose level is in `levels`; never NULL.  The table, best first, for the tests. */
const struct quantize_kernel *quantize_select(uint32_t levels);
const struct quantize_kernel *quantize_kernels(size_t *count);

struct quantize_params {
    float scale;
    int32_t zero_point;
};

struct quantize_row {
    struct quantize_params params;
    int32_t sum; /* of q - zero_point: gemm_epilogue.row_sums */
};

/* One row, F32 or BF16, k <= GEMM_K_MAX: two passes over x, the second out of L1 or L2. */
struct quantize_row quantize_row(const struct quantize_kernel *kernel, enum gemm_type type,
                                 enum quantize_mode mode, size_t k, const void *x, uint8_t *q);

/* ---- parameters from an observed range ------------------------------------------------------- */

/* Static parameters of a U8 or S8 operand for values in [lo, hi], both finite; 0 becomes part of
 * the range, so that it is exact (padding, ReLU).  Asymmetric: all 256 integers; symmetric: -127..
 * 127 about 0 (S8) or 1..255 about 128 (U8).  Same formulas as for rows. */
struct quantize_params quantize_params_of(enum gemm_type type, enum quantize_mode mode, float lo,
                                          float hi);

/* ---- weights (offline: double precision, plain loops) ---------------------------------------- */

enum quantize_method {
    QUANTIZE_MIN_MAX = 0, /* largest magnitude / (2^(bits-1) - 1): nothing is clipped */
    QUANTIZE_L2 = 1,      /* the scale of the least sum of squared errors, by search */
};

/* A symmetric scale for values w[i * stride] (in floats), i < count, finite, as integers of `bits`
 * (2..8), clamped to -2^(bits-1) .. 2^(bits-1) - 1.  All zeros: 1.
 *
 * L2 tries 800 + 65536 / count scales from a fiftieth of the min-max scale to a little above it,
 * looks closer at the six best, and then alternates rounding and fitting until neither changes: in
 * checkgemm at most 1 % above the best of 20,000 scales (8 bits: from 64 values on).  Costs about
 * count * 1 us. */
float quantize_scale(enum quantize_method method, unsigned int bits, size_t count, const float *w);

/* Scales of B [n x k], row j at w + j * stride (in floats): one for each channel, or (per_tensor)
 * the same one n times.  The L2 scale of a tensor is that of all its values. */
void quantize_weight_scales(enum quantize_method method, unsigned int bits, bool per_tensor,
                            size_t n, size_t k, const float *w, size_t stride, float *scales);

/* b[j][t] = clamp(round-half-to-even(w[j][t] / scales[j]) + zero_points[j]); zero_points may be
 * NULL.  Row j of b at b + j * k. */
void quantize_weights(unsigned int bits, size_t n, size_t k, const float *w, size_t stride,
                      const float *scales, const int32_t *zero_points, int8_t *b);

/*
 * One channel of k floats (finite) to s4 for kernels/int4.h: a scale for each group by `method`,
 * the largest of them / 65535 as the channel's scale, multipliers rounded to it (up below 8), and
 * the integers of the scales so rounded.  b: ceil(k / 2) bytes; multipliers: ceil(k / group);
 * group: 32, 64 or 128.  Returns the channel's scale, a normal number.
 */
float quantize_s4(enum quantize_method method, uint32_t k, uint32_t group, const float *w,
                  uint8_t *b, uint16_t *multipliers);

struct quantize_error {
    double max_abs; /* of w - scale * (b - zero_point) */
    double mean_abs;
    double sqnr_db; /* 10 log10(sum w^2 / sum error^2); infinity without error */
};

/* One report per channel, and in total[0] that of the whole tensor (NULL: not wanted). */
void quantize_error_report(size_t n, size_t k, const float *w, size_t stride, const float *scales,
                           const int32_t *zero_points, const int8_t *b,
                           struct quantize_error *channels, struct quantize_error *total);

/* Of one channel that quantize_s4 made. */
struct quantize_error quantize_s4_error(uint32_t k, uint32_t group, const float *w, float scale,
                                        const uint8_t *b, const uint16_t *multipliers);

#endif
