/*
 * The AVX-VNNI micro-kernel compiled against a model of vpdpbusd, so that its logic is tested on
 * machines that have AVX2 alone.  The model does what the SDM (vol. 2, VPDPBUSD) says of each lane.
 */
#include "tests/kernel/check.h"

#include <immintrin.h>
#include <string.h>

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
#define _mm256_dpbusd_avx_epi32     model_dpbusd
#define gemm_u8s8s32_6x16c4_avxvnni avxvnni_model_ukernel
#include "kernels/x86/gemm_u8s8s32_6x16c4_avxvnni.c"

gemm_epilogue_fn gemm_epilogue_ref;

const struct gemm_kernel *avxvnni_model(void)
{
    static const struct gemm_kernel kernel = {
        .name = "gemm_u8s8s32_6x16c4_avxvnni on a model of vpdpbusd",
        .level = CPU_LEVEL_AVX2, /* what the rest of it is made of */
        .mr = MR,
        .nr = NV * LANES,
        .kr = KR,
        .n_step = NV * LANES,
        .ukernel = avxvnni_model_ukernel,
        .epilogue = gemm_epilogue_ref,
    };

    return &kernel;
}
