/*
 * A model of vpdpbusd, in place of the intrinsic of a kernel that is compiled after it, so that its
 * logic is tested on machines that have AVX2 alone.  The model does what the SDM (vol. 2, VPDPBUSD)
 * says of each lane.
 */
#ifndef GEMMD_TESTS_KERNEL_AVXVNNI_MODEL_H
#define GEMMD_TESTS_KERNEL_AVXVNNI_MODEL_H

#include <immintrin.h>
#include <string.h>

#include "tests/kernel/check.h"

static __m256i model_dpbusd(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes)
{
    uint8_t a[32];
    int8_t b[32];
    uint32_t lanes[8];

    memcpy(a, &unsigned_bytes, sizeof(a));
    memcpy(b, &signed_bytes, sizeof(b));
    memcpy(lanes, &sum, sizeof(lanes));
    for (int i = 0; i < 32; i++)
        lanes[i / 4] += (uint32_t)(a[i] * b[i]);
    memcpy(&sum, lanes, sizeof(sum));
    return sum;
}

#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32 model_dpbusd

#endif
