/*
 * The AMX micro-kernel compiled against a model of the tile unit.
 */
#include "tests/kernel/amx_model.h"

enum { GROUP_BYTES = 32 * 1024 }; /* several groups a test */

gemm_epilogue_fn gemm_epilogue_ref;

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
#define gemm_u8s8s32_32x64c4_amx       amx_model_ukernel
#define gemm_u8s8s32_12x64c4_avx512vnni few_rows
#include "kernels/x86/gemm_u8s8s32_32x64c4_amx.c"

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
        .begin = amx_model_begin,
        .end = amx_model_end,
        .epilogue = gemm_epilogue_ref,
    };

    return &kernel;
}

bool amx_model_released(void)
{
    return model_released();
}
