/*
 * From s32 accumulators to the output: zero-point correction, scale, bias, activation, requantise.
 *
 * For column j, with acc exact in s32, every step in this order, in IEEE single precision, each
 * operation rounded to nearest even and never contracted (-ffp-contract=off):
 *
 *     s = acc + offset[j]                      (modulo 2^32; offset holds s32 bias - zero points)
 *     S32 output:  y = s                       (no float step at all)
 *     f = (float)s * scale[j]
 *     f = f + bias[j]                          (always executed: bias is +0.0f where there is none)
 *     RELU:        f = f > 0 ? f : +0.0f
 *     F32 output:  y = f
 *     U8/S8:       q = f * inverse_c_scale
 *                  q = min(max(q, lo - zero_point), hi - zero_point), lo..hi the output type's
 * range y = round-half-to-even(q) + zero_point
 *
 * scale, bias and inverse_c_scale are finite (checked at layer creation), so NaN cannot arise; an
 * overflow to infinity is clamped for U8/S8 and kept for F32.
 */
#ifndef GEMMD_KERNELS_EPILOGUE_H
#define GEMMD_KERNELS_EPILOGUE_H

#include "kernels/gemm.h"

struct gemm_epilogue {
    enum gemm_type a_type; /* U8 or S8: S8 selects a_flip in the micro-kernel */
    enum gemm_type c_type; /* U8, S8, S32 or F32 */
    enum gemm_activation activation;
    int32_t c_zero_point;    /* inside c_type's range; 0 unless U8/S8 */
    float inverse_c_scale;   /* 1 / c_scale, used for U8/S8 */
    /* Arrays of n elements, padded with zeros to a multiple of GEMM_NR_MAX, 64-byte aligned. */
    const int32_t *offset;
    const float *scale;
    const float *bias;
};

/* Bytes of one element of `type`: 1, 1, 4, 4, 2. */
size_t gemm_type_bytes(enum gemm_type type);

/* offset[j] = bias[j] - (a_zero_point + (S8 ? 128 : 0)) * column_sums[j]  (modulo 2^32), where
 * bias may be NULL (0).  a_zero_point is in a_type's range.  `offset` may alias `column_sums`. */
void gemm_offset(uint32_t n, enum gemm_type a_type, int32_t a_zero_point,
                 const int32_t *column_sums, const int32_t *bias, int32_t *offset);

#endif
