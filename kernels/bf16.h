/* bf16 is the upper half of a float: to it by rounding, from it by appending zeros. */
#ifndef GEMMD_KERNELS_BF16_H
#define GEMMD_KERNELS_BF16_H

#include <stdint.h>
#include <string.h>

/* Round to nearest even; beyond the range: infinity; NaN stays NaN, quiet, with sign and the upper
 * payload bits. */
static inline uint16_t bf16_from_f32(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* Exact. */
static inline float bf16_to_f32(uint16_t value)
{
    uint32_t bits = (uint32_t)value << 16;
    float result;

    memcpy(&result, &bits, sizeof(result));
    return result;
}

#endif
