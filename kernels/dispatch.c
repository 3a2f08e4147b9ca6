/*
 * The dispatch table: one row per kernel, best first, ending at the reference.  Level, tile, packed
 * layout and epilogue are chosen together, so that a layout cannot disagree with its kernel.
 *
 * An id names a packed layout in completions and in files: never reuse one (2 and 4 were avx2 and
 * avx512 with kr = 2), and give a kernel whose nr, kr or packing order changes a new one.  Adding a
 * kernel: kernels/README.md.
 *
 * A row for narrow pairs stands behind the row of its level that takes any weights, whose layout it
 * has: gemm_select does not come to it, gemm_select_for_weights does.
 *
 * GEMM_X86 is decided by kernels/meson.build, which alone knows what was compiled.
 */
#include "kernels/gemm.h"

/* Declared here and, again through the same function types, in the files that define them: a
 * disagreement cannot compile. */
gemm_ukernel_fn gemm_u8s8s32_4x16c1_ref;
gemm_epilogue_fn gemm_epilogue_ref;
#if GEMM_X86
gemm_ukernel_fn gemm_u8s8s32_32x64c4_amx;
gemm_gather_fn gemm_amx_gather;
gemm_pausing_fn gemm_amx_pausing;
gemm_begin_fn gemm_amx_begin, gemm_amx_end;
gemm_fused_fn gemm_amx_fused, gemm_amx_fused_panel, gemm_avx512vnni_fused, gemm_avx512_fused;
gemm_ukernel_fn gemm_u8s8s32_12x64c4_avx512vnni;
gemm_ukernel_fn gemm_u8s8s32_6x64c4_avx512;
gemm_ukernel_fn gemm_u8s7s32_12x64c4_avx512;
gemm_ukernel_fn gemm_u8s8s32_6x16c4_avxvnni;
gemm_ukernel_fn gemm_u8s8s32_6x16c4_avx2;
gemm_ukernel_fn gemm_u8s7s32_6x16c4_avx2;
gemm_epilogue_fn gemm_epilogue_avx512;
gemm_epilogue_fn gemm_epilogue_avx2;
#endif

#define ROW_OF(types, number, level_, suffix, mr_, nr_, kr_, n_step_, epilogue_, ...)              \
    {                                                                                              \
        .name = "gemm_" #types "_" #mr_ "x" #nr_ "c" #kr_ "_" #suffix, .level = (level_),          \
        .id = (number), .mr = (mr_), .nr = (nr_), .kr = (kr_), .n_step = (n_step_),                \
        .ukernel = gemm_##types##_##mr_##x##nr_##c##kr_##_##suffix, .epilogue = (epilogue_),       \
        __VA_ARGS__                                                                                \
    }
#define ROW(...) ROW_OF(u8s8s32, __VA_ARGS__)
#define NARROW_ROW(...) ROW_OF(u8s7s32, __VA_ARGS__, .narrow_pairs = true)

/* Half of the L2 of the machines that have AMX. */
enum { AMX_GROUP_BYTES = 1024 * 1024 };

static const struct gemm_kernel kernels[] = {
#if GEMM_X86
    ROW(6, CPU_LEVEL_AMX, amx, 32, 64, 4, 16, gemm_epilogue_avx512, .gather = gemm_amx_gather,
        .fused = gemm_amx_fused, .b_group_bytes = AMX_GROUP_BYTES, .pausing = gemm_amx_pausing,
        .begin = gemm_amx_begin, .end = gemm_amx_end, .fused_panel = gemm_amx_fused_panel,
        .fused_panel_k = 64),
    ROW(5, CPU_LEVEL_AVX512VNNI, avx512vnni, 12, 64, 4, 16, gemm_epilogue_avx512,
        .fused_panel = gemm_avx512vnni_fused, .fused_panel_k = GEMM_K_MAX),
    ROW(3, CPU_LEVEL_AVXVNNI, avxvnni, 6, 16, 4, 16, gemm_epilogue_avx2),
    ROW(9, CPU_LEVEL_AVX512, avx512, 6, 64, 4, 16, gemm_epilogue_avx512),
    NARROW_ROW(10, CPU_LEVEL_AVX512, avx512, 12, 64, 4, 16, gemm_epilogue_avx512,
               .fused_panel = gemm_avx512_fused, .fused_panel_k = GEMM_K_MAX),
    ROW(7, CPU_LEVEL_AVX2, avx2, 6, 16, 4, 16, gemm_epilogue_avx2),
    NARROW_ROW(8, CPU_LEVEL_AVX2, avx2, 6, 16, 4, 16, gemm_epilogue_avx2),
#endif
    ROW(1, CPU_LEVEL_REF, ref, 4, 16, 1, 16, gemm_epilogue_ref),
};

enum { KERNEL_COUNT = sizeof(kernels) / sizeof(kernels[0]) };

const struct gemm_kernel *gemm_kernels(size_t *count)
{
    *count = KERNEL_COUNT;
    return kernels;
}

const struct gemm_kernel *gemm_select(uint32_t levels)
{
    size_t row = 0;

    while (row + 1 < KERNEL_COUNT && !(levels & (UINT32_C(1) << kernels[row].level)))
        row++;
    return &kernels[row];
}

const struct gemm_kernel *gemm_narrow(const struct gemm_kernel *kernel)
{
    for (size_t row = 0; row < KERNEL_COUNT; row++) {
        if (kernels[row].narrow_pairs && kernels[row].level == kernel->level)
            return &kernels[row];
    }
    return NULL;
}
