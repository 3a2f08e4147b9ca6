/*
 * GELU and SiLU as fixed sequences of IEEE single-precision operations, so that every level yields
 * the same bits: add, multiply, divide, minimum and maximum only, each rounded to nearest even,
 * never contracted, no library call.  This header holds the constants; the sequence stands twice,
 * as scalar statements in kernels/ref/activation_ref.c (the oracle) and as a text over a vector
 * type in kernels/activation_vector.h, compiled once per level.
 *
 * exp(t), for t inside [EXP_MIN, EXP_MAX]:
 *     z = t * log2(e) + MAGIC             the low bits of z are n = round(t * log2(e))
 *     n = z - MAGIC
 *     r = (t - n * LN2_HI) - n * LN2_LO   n * LN2_HI is exact: 15 bits times 7
 *     exp = P6(r) * 2^n                   Horner; 2^n from the bits of z; relative error 1.9e-9
 *                                         before rounding
 * SILU       x / (1 + exp(-x))
 * GELU_TANH  x / (1 + exp(-2u)), u = sqrt(2/pi) * (x + 0.044715 x^3): the same as
 *            x / 2 * (1 + tanh(u)), without its cancellation
 * GELU_ERF   max(x, 0) - a * Q(a), a = |x|, Q(a) the upper tail of the normal distribution,
 *            Q(a) = exp(-a^2 / 2) * P8(1 / (1 + 0.3 a)), relative error 5.7e-8 before rounding
 *
 * The polynomials are least-maximum fits of the relative error, made for this file (iteratively
 * reweighted least squares on 3000 Chebyshev nodes).
 *
 * Error against libm in double precision, y the exact value: bounds that checkgemm enforces on
 * every 1009th float (measured: half to two thirds of them).
 *
 *                 |error| / max(1, |y|)    |error| / |y|, where |y| > 1e-30
 *     SILU        2e-7                     3e-7
 *     GELU_TANH   2e-7                     3e-6 for x > -5, 2e-5 below
 *     GELU_ERF    2e-7                     1e-6 for x > -5, 6e-6 below
 *
 * Far on the negative side, where the exact result is below 1e-35, the result stays at the value of
 * the clamp (between -1e-35 and 0), also for -infinity, whose limit is 0.  +infinity yields
 * +infinity, NaN yields NaN.  GELU_ERF of -0 is +0.
 */
#ifndef GEMMD_KERNELS_ACTIVATION_H
#define GEMMD_KERNELS_ACTIVATION_H

#include "kernels/gemm.h"

#define ACTIVATION_EXP_MIN (-87.0f)
#define ACTIVATION_EXP_MAX 88.0f
#define ACTIVATION_LOG2E   1.44269504f
#define ACTIVATION_MAGIC   12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */
#define ACTIVATION_LN2_HI  0.693145751953125f
#define ACTIVATION_LN2_LO  1.42860677e-6f
/* P6, lowest power first */
#define ACTIVATION_EXP_0 1.0f
#define ACTIVATION_EXP_1 1.0f
#define ACTIVATION_EXP_2 0x1.fffffap-2f
#define ACTIVATION_EXP_3 0x1.55540ap-3f
#define ACTIVATION_EXP_4 0x1.55589ep-5f
#define ACTIVATION_EXP_5 0x1.126dbep-7f
#define ACTIVATION_EXP_6 0x1.6ab8cep-10f

#define ACTIVATION_SILU_MIN (-88.0f)      /* exp(-x) stays finite */
#define ACTIVATION_TANH_MIN (-10.0f)      /* 2u = -87.3 */
#define ACTIVATION_TANH_1   1.59576912f   /* 2 sqrt(2/pi) */
#define ACTIVATION_TANH_3   0.0713548163f /* 2 sqrt(2/pi) * 0.044715 */

#define ACTIVATION_ERF_MAX 12.8f /* a * Q(a) is still a normal number: subnormals are slow */
#define ACTIVATION_ERF_P   0.3f
/* P8, lowest power first */
#define ACTIVATION_ERF_0 6.3828693e-06f
#define ACTIVATION_ERF_1 0.119501f
#define ACTIVATION_ERF_2 0.12182585f
#define ACTIVATION_ERF_3 0.095051244f
#define ACTIVATION_ERF_4 0.14167543f
#define ACTIVATION_ERF_5 (-0.07526515f)
#define ACTIVATION_ERF_6 0.22757769f
#define ACTIVATION_ERF_7 (-0.1686434f)
#define ACTIVATION_ERF_8 0.038270976f

/* One value through any activation (lo, hi: CLIP's): what every level must equal. */
float activation_ref(enum gemm_activation activation, float lo, float hi, float x);

#endif
