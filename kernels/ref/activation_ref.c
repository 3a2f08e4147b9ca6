/*
 * The reference activations: each operation of kernels/activation.h one statement or operator.  The
 * oracle of the vector levels; never optimised.
 *
 * A comparison with NaN is false: larger() and smaller() return their second argument then, as
 * maxps and minps do.
 */
#include "kernels/activation.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static float larger(float x, float y)
{
    return x > y ? x : y;
}

static float smaller(float x, float y)
{
    return x < y ? x : y;
}

/* e^t for t clamped to where the result is a normal number. */
static float exponential(float t)
{
    float z, n, r, p, power;
    uint32_t bits;

    t = larger(ACTIVATION_EXP_MIN, t);
    t = smaller(ACTIVATION_EXP_MAX, t);
    z = t * ACTIVATION_LOG2E + ACTIVATION_MAGIC;
    n = z - ACTIVATION_MAGIC;
    r = (t - n * ACTIVATION_LN2_HI) - n * ACTIVATION_LN2_LO;
    p = ACTIVATION_EXP_6;
    p = p * r + ACTIVATION_EXP_5;
    p = p * r + ACTIVATION_EXP_4;
    p = p * r + ACTIVATION_EXP_3;
    p = p * r + ACTIVATION_EXP_2;
    p = p * r + ACTIVATION_EXP_1;
    p = p * r + ACTIVATION_EXP_0;
    memcpy(&bits, &z, sizeof(bits));
    bits = (bits << 23) + 0x3f800000u; /* the float 2^n; MAGIC's own bits are shifted out */
    memcpy(&power, &bits, sizeof(power));
    return p * power;
}

static float gelu_erf(float x)
{
    float a = smaller(ACTIVATION_ERF_MAX, fabsf(x));
    float t = 1.0f / (a * ACTIVATION_ERF_P + 1.0f);
    float p = ACTIVATION_ERF_8;

    p = p * t + ACTIVATION_ERF_7;
    p = p * t + ACTIVATION_ERF_6;
    p = p * t + ACTIVATION_ERF_5;
    p = p * t + ACTIVATION_ERF_4;
    p = p * t + ACTIVATION_ERF_3;
    p = p * t + ACTIVATION_ERF_2;
    p = p * t + ACTIVATION_ERF_1;
    p = p * t + ACTIVATION_ERF_0;
    p = p * exponential((a * a) * -0.5f);
    return larger(x, 0.0f) - a * p;
}

float activation_ref(enum gemm_activation activation, float lo, float hi, float x)
{
    float c;

    switch (activation) {
    case GEMM_ACTIVATION_NONE:
        return x;
    case GEMM_ACTIVATION_RELU:
        return larger(x, 0.0f);
    case GEMM_ACTIVATION_CLIP:
        return smaller(larger(x, lo), hi);
    case GEMM_ACTIVATION_GELU_TANH:
        c = larger(ACTIVATION_TANH_MIN, x);
        return c / (exponential((c * ((c * c) * ACTIVATION_TANH_3 + ACTIVATION_TANH_1)) * -1.0f) +
                    1.0f);
    case GEMM_ACTIVATION_GELU_ERF:
        return gelu_erf(x);
    case GEMM_ACTIVATION_SILU:
        c = larger(ACTIVATION_SILU_MIN, x);
        return c / (exponential(c * -1.0f) + 1.0f);
    case GEMM_ACTIVATION_COUNT:
        break;
    }
    assert(!"an activation outside the enumeration");
    return 0.0f;
}
