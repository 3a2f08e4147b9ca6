/*
 * The activations over a vector type: the text that every vector level compiles.  The file that
 * includes this defines the type and the few operations C's operators lack:
 *
 *     VEC           a vector of float, with the operators + - * /
 *     VEC_SET1(x)   x in every lane
 *     VEC_MAX(x,y)  x > y ? x : y, that is y when either is NaN (maxps); VEC_MIN likewise
 *     VEC_ABS(x)    the sign bit cleared
 *     VEC_POW2(z)   the float whose bits are (bits(z) << 23) + 0x3f800000
 *
 * The operations and their order are those of kernels/activation.h; -ffp-contract=off keeps the
 * compiler from fusing them where the level has FMA.
 *
 * Cost per vector: SILU 1 division and about 20 operations, GELU_ERF 1 and 40.
 */
#ifndef GEMMD_KERNELS_ACTIVATION_VECTOR_H
#define GEMMD_KERNELS_ACTIVATION_VECTOR_H

#include "kernels/activation.h"

#define ACTIVATION_INLINE static inline __attribute__((always_inline))

ACTIVATION_INLINE VEC activation_exp(VEC t)
{
    const VEC magic = VEC_SET1(ACTIVATION_MAGIC);
    VEC z, n, r, p;

    t = VEC_MAX(VEC_SET1(ACTIVATION_EXP_MIN), t);
    t = VEC_MIN(VEC_SET1(ACTIVATION_EXP_MAX), t);
    z = t * VEC_SET1(ACTIVATION_LOG2E) + magic;
    n = z - magic;
    r = (t - n * VEC_SET1(ACTIVATION_LN2_HI)) - n * VEC_SET1(ACTIVATION_LN2_LO);
    p = VEC_SET1(ACTIVATION_EXP_6);
    p = p * r + VEC_SET1(ACTIVATION_EXP_5);
    p = p * r + VEC_SET1(ACTIVATION_EXP_4);
    p = p * r + VEC_SET1(ACTIVATION_EXP_3);
    p = p * r + VEC_SET1(ACTIVATION_EXP_2);
    p = p * r + VEC_SET1(ACTIVATION_EXP_1);
    p = p * r + VEC_SET1(ACTIVATION_EXP_0);
    return p * VEC_POW2(z);
}

ACTIVATION_INLINE VEC activation_gelu_erf(VEC x)
{
    const VEC one = VEC_SET1(1.0f);
    VEC a = VEC_MIN(VEC_SET1(ACTIVATION_ERF_MAX), VEC_ABS(x));
    VEC t = one / (a * VEC_SET1(ACTIVATION_ERF_P) + one);
    VEC p = VEC_SET1(ACTIVATION_ERF_8);

    p = p * t + VEC_SET1(ACTIVATION_ERF_7);
    p = p * t + VEC_SET1(ACTIVATION_ERF_6);
    p = p * t + VEC_SET1(ACTIVATION_ERF_5);
    p = p * t + VEC_SET1(ACTIVATION_ERF_4);
    p = p * t + VEC_SET1(ACTIVATION_ERF_3);
    p = p * t + VEC_SET1(ACTIVATION_ERF_2);
    p = p * t + VEC_SET1(ACTIVATION_ERF_1);
    p = p * t + VEC_SET1(ACTIVATION_ERF_0);
    p = p * activation_exp((a * a) * VEC_SET1(-0.5f));
    return VEC_MAX(x, VEC_SET1(0.0f)) - a * p;
}

ACTIVATION_INLINE VEC activation_gelu_tanh(VEC x)
{
    VEC c = VEC_MAX(VEC_SET1(ACTIVATION_TANH_MIN), x);
    VEC u = c * ((c * c) * VEC_SET1(ACTIVATION_TANH_3) + VEC_SET1(ACTIVATION_TANH_1));

    return c / (activation_exp(u * VEC_SET1(-1.0f)) + VEC_SET1(1.0f));
}

ACTIVATION_INLINE VEC activation_silu(VEC x)
{
    VEC c = VEC_MAX(VEC_SET1(ACTIVATION_SILU_MIN), x);

    return c / (activation_exp(c * VEC_SET1(-1.0f)) + VEC_SET1(1.0f));
}

/* `activation` is a constant at every call. */
ACTIVATION_INLINE VEC activation_apply(enum gemm_activation activation, VEC lo, VEC hi, VEC x)
{
    switch (activation) {
    case GEMM_ACTIVATION_RELU:
        return VEC_MAX(x, VEC_SET1(0.0f));
    case GEMM_ACTIVATION_CLIP:
        return VEC_MIN(VEC_MAX(x, lo), hi);
    case GEMM_ACTIVATION_GELU_TANH:
        return activation_gelu_tanh(x);
    case GEMM_ACTIVATION_GELU_ERF:
        return activation_gelu_erf(x);
    case GEMM_ACTIVATION_SILU:
        return activation_silu(x);
    default:
        return x;
    }
}

#endif
