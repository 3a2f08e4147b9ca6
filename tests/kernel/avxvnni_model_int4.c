/*
 * The AVX-VNNI micro-kernel for int4 weights compiled against a model of vpdpbusd.
 */
#include "tests/kernel/avxvnni_model.h"

#include "kernels/int4.h"

#define gemm_u8s4f32_6x16c8_avxvnni avxvnni_model_int4_part
#define int4_unpack_avxvnni         avxvnni_model_int4_unpack
#include "kernels/x86/gemm_u8s4f32_6x16c8_avxvnni.c"

int4_ukernel_fn gemm_u8s4f32_1x16c8_ref;
gemm_epilogue_fn gemm_epilogue_ref;

const struct int4_kernel *avxvnni_model_int4(void)
{
    static const struct int4_many many = {
        .rows_min = 2,
        .unpack = avxvnni_model_int4_unpack,
        .part = avxvnni_model_int4_part,
    };
    static const struct int4_kernel kernel = {
        .name = "gemm_u8s4f32_6x16c8_avxvnni on a model of vpdpbusd",
        .level = CPU_LEVEL_AVX2, /* what the rest of it is made of */
        .mr = MR,
        .nr = NR,
        .ukernel = gemm_u8s4f32_1x16c8_ref,
        .many = &many,
        .epilogue = gemm_epilogue_ref,
    };

    return &kernel;
}
