/*
 * The AVX-VNNI micro-kernel compiled against a model of vpdpbusd.
 */
#include "tests/kernel/avxvnni_model.h"

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
