/*
 * The AMX micro-kernel compiled against a model of the tile unit.
 */
#include "tests/kernel/amx_model.h"

enum { GROUP_BYTES = 32 * 1024 }; /* several groups a test */

gemm_epilogue_fn gemm_epilogue_ref;
gemm_fused_fn amx_model_fused_panel;

/* The vector kernel to which few rows are left: here a sum over the same panel. */
gemm_ukernel_fn amx_model_ukernel;
static gemm_ukernel_fn few_rows;

static void few_rows(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                     const int8_t *panel, int32_t *acc)
{
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            acc[i * 64 + j] = 0;
            for (size_t t = 0; t < k; t++)
                acc[i * 64 + j] +=
                    (uint8_t)(a[i][t] ^ a_flip) * panel[t / 4 * n * 4 + j * 4 + t % 4];
        }
    }
}

#define gemm_amx_begin                 amx_model_begin
#define gemm_amx_end                   amx_model_end
#define gemm_amx_gather                amx_model_gather
#define gemm_amx_pausing               amx_model_pausing
#define gemm_u8s8s32_32x64c4_amx       amx_model_ukernel
#define gemm_u8s8s32_12x64c4_avx512vnni few_rows
#define gemm_amx_fused                 amx_model_fused
#include "kernels/x86/gemm_u8s8s32_32x64c4_amx.c"

/* Instead of the vectors of kernels/x86/u8_relu_avx512.h, the reference. */
#define GEMMD_KERNELS_X86_U8_RELU_AVX512_H

struct column_pair {
    const struct gemm_epilogue *epilogue;
    size_t column;
};

static struct column_pair column_pair_at(const struct gemm_epilogue *epilogue, size_t column)
{
    return (struct column_pair){epilogue, column};
}

static void two_rows(const struct column_pair *pair, const int32_t *acc_0, const int32_t *acc_1,
                     uint8_t *c_0, uint8_t *c_1)
{
    gemm_epilogue_ref(1, 32, 32, acc_0, pair->epilogue, 0, pair->column,
                      (void *[]){c_0 - pair->column});
    gemm_epilogue_ref(1, 32, 32, acc_1, pair->epilogue, 0, pair->column,
                      (void *[]){c_1 - pair->column});
}

#include "kernels/x86/fused_u8s8u8_32x64c4_amx.c"

const struct gemm_kernel *amx_model(void)
{
    static const struct gemm_kernel kernel = {
        .name = "gemm_u8s8s32_32x64c4_amx on a model of the tiles",
        .level = CPU_LEVEL_REF,
        .mr = MR,
        .nr = NR,
        .kr = KR,
        .n_step = LANES,
        .b_group_bytes = GROUP_BYTES,
        .ukernel = amx_model_ukernel,
        .gather = amx_model_gather,
        .pausing = amx_model_pausing,
        .begin = amx_model_begin,
        .end = amx_model_end,
        .epilogue = gemm_epilogue_ref,
        .fused = amx_model_fused,
        .fused_panel = amx_model_fused_panel,
        .fused_panel_k = BLOCK_K,
    };

    return &kernel;
}

bool amx_model_released(void)
{
    return model_released();
}
