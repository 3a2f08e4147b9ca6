/*
 * int4 weights: the table of levels, and packing.  The loops: int4_run.c.
 *
 * Cost of packing: a pass over the weights, once per layer, plain.
 */
#include "kernels/int4.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

enum { KR = 8 }; /* k of a block: 4 in the low halves, 4 in the high ones */

int4_ukernel_fn gemm_u8s4f32_1x16c8_ref;
gemm_epilogue_fn gemm_epilogue_ref;
#if GEMM_X86
int4_part_fn gemm_u8s4f32_16x64c8_amx;
int4_begin_fn int4_amx_begin;
int4_end_fn int4_amx_end;
int4_ukernel_fn gemm_u8s4f32_4x64c8_avx512vnni;
int4_part_fn gemm_u8s4f32_6x64c8_avx512vnni;
int4_unpack_fn int4_unpack_avx512;
int4_part_fn gemm_u8s4f32_6x16c8_avxvnni;
int4_unpack_fn int4_unpack_avxvnni;
int4_ukernel_fn gemm_u8s4f32_4x16c8_avx2;
gemm_epilogue_fn gemm_epilogue_avx512;
gemm_epilogue_fn gemm_epilogue_avx2;

static const struct int4_many amx = {
    .rows_min = 5,
    .in_place = true,
    .unpack = int4_unpack_avx512,
    .part = gemm_u8s4f32_16x64c8_amx,
    .begin = int4_amx_begin,
    .end = int4_amx_end,
};

static const struct int4_many avx512vnni = {
    .rows_min = 5,
    .unpack = int4_unpack_avx512,
    .part = gemm_u8s4f32_6x64c8_avx512vnni,
};

static const struct int4_many avxvnni = {
    .rows_min = 3,
    .unpack = int4_unpack_avxvnni,
    .part = gemm_u8s4f32_6x16c8_avxvnni,
};
#endif

static const struct int4_kernel kernels[] = {
#if GEMM_X86
    {"gemm_u8s4f32_16x64c8_amx", CPU_LEVEL_AMX, 4, 16, 64, gemm_u8s4f32_4x64c8_avx512vnni, &amx,
     gemm_epilogue_avx512},
    {"gemm_u8s4f32_6x64c8_avx512vnni", CPU_LEVEL_AVX512VNNI, 3, 6, 64,
     gemm_u8s4f32_4x64c8_avx512vnni, &avx512vnni, gemm_epilogue_avx512},
    {"gemm_u8s4f32_6x16c8_avxvnni", CPU_LEVEL_AVXVNNI, 5, 6, 16, gemm_u8s4f32_4x16c8_avx2, &avxvnni,
     gemm_epilogue_avx2},
    {"gemm_u8s4f32_4x16c8_avx2", CPU_LEVEL_AVX2, 2, 4, 16, gemm_u8s4f32_4x16c8_avx2, NULL,
     gemm_epilogue_avx2},
#endif
    {"gemm_u8s4f32_1x16c8_ref", CPU_LEVEL_REF, 1, 1, 16, gemm_u8s4f32_1x16c8_ref, NULL,
     gemm_epilogue_ref},
};

enum { KERNEL_COUNT = sizeof(kernels) / sizeof(kernels[0]) };

const struct int4_kernel *int4_kernels(size_t *count)
{
    *count = KERNEL_COUNT;
    return kernels;
}

const struct int4_kernel *int4_select(uint32_t levels)
{
    size_t row = 0;

    while (row + 1 < KERNEL_COUNT && !(levels & (UINT32_C(1) << kernels[row].level)))
        row++;
    return &kernels[row];
}

int int4_check(uint32_t k, uint32_t group)
{
    if (group != 32 && group != 64 && group != 128)
        return -EINVAL;
    return k >= 1 && k <= GEMM_K_MAX ? 0 : -ERANGE;
}

static size_t groups_of(uint32_t k, uint32_t group)
{
    return (k + (size_t)group - 1) / group;
}

size_t int4_packed_bytes(const struct int4_kernel *kernel, uint32_t n, uint32_t k, uint32_t group)
{
    size_t bytes = (n + kernel->nr - (size_t)1) / kernel->nr * int4_panel_bytes(kernel, k, group);

    return (bytes + GEMM_ALIGN - 1) / GEMM_ALIGN * GEMM_ALIGN;
}

static unsigned int half_of(const uint8_t *row, size_t t)
{
    return t % 2 ? row[t / 2] >> 4 : row[t / 2] & 15u;
}

/* One group of one column; `row` is its weights.  Returns the sum of the weights. */
static int32_t pack_group(const struct int4_kernel *kernel, size_t begin, size_t length,
                          const uint8_t *row, size_t column, uint8_t *blocks)
{
    int32_t sum = 0;

    for (size_t t = 0; t < length; t++) {
        unsigned int half = half_of(row, begin + t);
        size_t at = t / KR * kernel->nr * 4 + column * 4 + t % 4;

        blocks[at] = (uint8_t)(blocks[at] | half << (t % KR < 4 ? 0 : 4));
        sum += half < 8 ? (int32_t)half : (int32_t)half - 16;
    }
    return sum;
}

void int4_pack(const struct int4_kernel *kernel, uint32_t n, uint32_t k, uint32_t group,
               const uint8_t *b, size_t stride_bytes, const uint16_t *multipliers, uint8_t *panels,
               float *weighted_sums)
{
    size_t groups = groups_of(k, group);

    assert(n > 0 && int4_check(k, group) == 0 && (uintptr_t)panels % GEMM_ALIGN == 0);
    memset(panels, 0, int4_packed_bytes(kernel, n, k, group));
    for (size_t j = 0; j < n; j++) {
        size_t column = j % kernel->nr;
        uint8_t *panel = panels + j / kernel->nr * int4_panel_bytes(kernel, k, group);
        int64_t weighted = 0;

        for (size_t g = 0; g < groups; g++, panel += int4_group_bytes(kernel, group)) {
            uint16_t multiplier = multipliers[j * groups + g];
            size_t begin = g * group, length = k - begin < group ? k - begin : group;

            memcpy(panel + column * sizeof(multiplier), &multiplier, sizeof(multiplier));
            weighted +=
                (int64_t)multiplier * pack_group(kernel, begin, length, b + j * stride_bytes,
                                                 column, panel + kernel->nr * sizeof(multiplier));
        }
        weighted_sums[j] = (float)weighted;
    }
}

void int4_bias(uint32_t n, int32_t a_zero_point, const float *weighted_sums, const float *scale,
               float *bias)
{
    for (uint32_t j = 0; j < n; j++)
        bias[j] = bias[j] - (float)a_zero_point * weighted_sums[j] * scale[j];
}
