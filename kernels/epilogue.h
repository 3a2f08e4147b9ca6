/*
 * From accumulators to the output: zero-point corrections, scales, bias, residual, activation,
 * requantise.
 *
 * For row i and column j, every step in this order, each float operation IEEE single precision,
 * rounded to nearest even and never contracted (-ffp-contract=off; MXCSR at its default).  A step
 * in [brackets] is executed only where its array is given.
 *
 *     s = acc + offset[j]                               modulo 2^32; offset holds the s32 bias and
 *                                                       the zero points that do not change
 *     [s = s - row_zero_points[i] * column_sums[j]]     modulo 2^32
 *     [s = s - row_sums[i] * b_zero_points[j]]          modulo 2^32
 *     S32 output:  y = s, and no float step at all
 *     f = (float)s
 *     f = f * scale[j]
 *     [f = f * row_scales[i]]
 *     f = f + bias[j]                                   always; bias is +0.0f where there is none
 *     [f = f + r]       of residuals in F32 and BF16:   r = (float)residual[i][j]
 *                       in U8 and S8:   r = (float)(residual[i][j] - residual_zero_point) * scale,
 *                                       with residual_scale; whatever the output's type is
 *     f = activation(f)                                 kernels/activation.h
 *     F32 output:  y = f
 *     BF16 output: y = f rounded to nearest even
 *     U8/S8:       q = f * inverse_c_scale
 *                  q = min(max(q, lo - zero_point), hi - zero_point), lo..hi the output type's
 * range y = round-half-to-even(q) + zero_point
 *
 * Float accumulators (kernels/int4.h; weighted_sums given) replace the s32 steps by
 *
 *     f = acc
 *     [f = f - (float)row_zero_points[i] * weighted_sums[j]]
 *
 * NaN and infinities.  row_scales may be any floats; scale, bias, inverse_c_scale and the clip
 * bounds are finite (gemm_epilogue_check, and layer creation).  NaN then comes only from a
 * residual or a row scale that is one, or from infinity * 0 and infinity - infinity after an
 * overflow.  max(x, y) is x > y ? x : y and min likewise, so NaN becomes: +0 by RELU, clip_lo by
 * CLIP, NaN by the others; the smallest value of the type by U8/S8; the quiet NaN 0x7fc00000 (F32)
 * or 0x7fc0 (BF16), whatever its sign and payload were, so that no level and no compiler can
 * differ.  Infinities are kept for F32 and BF16 and clamped for U8/S8; a finite f beyond the range
 * of BF16 rounds to infinity.
 */
#ifndef GEMMD_KERNELS_EPILOGUE_H
#define GEMMD_KERNELS_EPILOGUE_H

#include <stdbool.h>

#include "kernels/gemm.h"

/* Zero-initialised members are absent or neutral: a plain layer sets the first group only. */
struct gemm_epilogue {
    enum gemm_type a_type; /* U8 or S8: S8 selects a_flip in the micro-kernel */
    enum gemm_type c_type; /* U8, S8, S32, F32 or BF16 */
    enum gemm_activation activation;
    int32_t c_zero_point;   /* inside c_type's range; 0 unless U8/S8 */
    float inverse_c_scale;  /* 1 / c_scale, used for U8/S8 */
    float clip_lo, clip_hi; /* CLIP: finite, lo <= hi */
    /* Arrays of n elements, padded with zeros to a multiple of GEMM_NR_MAX, 64-byte aligned. */
    const int32_t *offset;
    const float *scale;
    const float *bias;
    const int32_t *column_sums;   /* of B; read with row_zero_points */
    const int32_t *b_zero_points; /* read with row_sums */
    const float *weighted_sums;   /* not NULL: the accumulators are floats */

    /* Of one call, not of the layer: one element per row of the call, NULL where absent. */
    const float *row_scales;
    const int32_t *row_zero_points; /* of A */
    const int32_t *row_sums;        /* sum over k of A's row minus its zero point */
    /* Row i's columns [n_begin, n_end) are read, any alignment, each element once, and before the
     * same column of C is written: it may be C's own row if their elements are equally long. */
    const void *const *residual;
    enum gemm_type residual_type;   /* U8, S8, F32 or BF16; none with S32 output */
    int32_t residual_zero_point;
    float residual_scale;
};

/* Bytes of one element of `type`: 1, 1, 4, 4, 2. */
size_t gemm_type_bytes(enum gemm_type type);

/* offset[j] = bias[j] - (a_zero_point + (S8 ? 128 : 0)) * column_sums[j]  (modulo 2^32), where
 * bias may be NULL (0).  a_zero_point is in a_type's range.  `offset` may alias `column_sums`. */
void gemm_offset(uint32_t n, enum gemm_type a_type, int32_t a_zero_point,
                 const int32_t *column_sums, const int32_t *bias, int32_t *offset);

/* gemm_epilogue.row_sums of one row: sum over t < k of (a[t] - a_zero_point), with a as u8 or s8.
 */
int32_t gemm_row_sum(enum gemm_type a_type, int32_t a_zero_point, size_t k, const uint8_t *a);

/* 0, or -ERANGE where a sum over k products could wrap (or k is 0): what a layer's creation asks
 * before it packs. */
int gemm_k_check(uint32_t k, bool b_zero_points);

/* 0, or -EINVAL for types, an activation, a zero point, a scale or clip bounds outside the contract
 * above, for arrays that miss their partner, or for a value among the first n of scale and bias
 * that is not finite.  The epilogues themselves only assert. */
int gemm_epilogue_check(const struct gemm_epilogue *epilogue, uint32_t n);

/* True where a step in [brackets] is present: the rows that take the general path. */
static inline bool gemm_epilogue_is_extended(const struct gemm_epilogue *epilogue)
{
    /* Not ||: five branches per tile cost more than the loads. */
    return ((uintptr_t)epilogue->row_scales | (uintptr_t)epilogue->row_zero_points |
            (uintptr_t)epilogue->row_sums | (uintptr_t)epilogue->residual |
            (uintptr_t)epilogue->weighted_sums) != 0;
}

#endif
