/*
 * The AMX micro-kernel for int4 weights compiled against a model of the tile unit.
 */
#include "tests/kernel/amx_model.h"

#include "kernels/int4.h"

gemm_epilogue_fn gemm_epilogue_ref;
int4_part_fn amx_model_int4_part;
int4_begin_fn amx_model_int4_begin;
int4_end_fn amx_model_int4_end;

#define int4_amx_begin           amx_model_int4_begin
#define int4_amx_end             amx_model_int4_end
#define gemm_u8s4f32_16x64c8_amx amx_model_int4_part
#include "kernels/x86/gemm_u8s4f32_16x64c8_amx.c"

static void unpack(const struct int4_part *part, int8_t *to)
{
    for (size_t g = 0; g < part->groups; g++) {
        const uint8_t *blocks = part->multipliers + g * part->group_bytes + NR * 2;

        for (size_t i = 0; i < part->group * NR / 2; i++) {
            int8_t *low = to + i / (NR * KR) * 2 * NR * KR + i % (NR * KR);

            low[0] = (int8_t)(uint8_t)(blocks[i] << 4);
            low[NR * KR] = (int8_t)(blocks[i] & 0xf0);
        }
        to += part->group * NR;
    }
}

/* A row, from the packed weights. */
static void few_rows(size_t m, size_t k, size_t group, const uint8_t *const *a,
                     const uint8_t *panel, float *acc)
{
    assert(m == 1);
    for (size_t j = 0; j < NR; j++) {
        acc[j] = 0;
        for (size_t begin = 0; begin < k; begin += group) {
            const uint8_t *packed = panel + begin / group * NR * (2 + group / 2);
            float product;
            uint16_t multiplier;
            int32_t dot = 0;

            memcpy(&multiplier, packed + j * 2, sizeof(multiplier));
            for (size_t t = 0; t < group && begin + t < k; t++) {
                unsigned int both = packed[NR * 2 + t / 8 * NR * 4 + j * 4 + t % 4];
                int32_t half = (int32_t)(t % 8 < 4 ? both & 15 : both >> 4);

                dot += a[0][begin + t] * (half < 8 ? half : half - 16);
            }
            product = (float)dot * (float)multiplier;
            acc[j] += product;
        }
    }
}

const struct int4_kernel *amx_model_int4(void)
{
    static const struct int4_many many = {
        .rows_min = 2,
        .in_place = true,
        .unpack = unpack,
        .part = amx_model_int4_part,
        .begin = amx_model_int4_begin,
        .end = amx_model_int4_end,
    };
    static const struct int4_kernel kernel = {
        .name = "gemm_u8s4f32_16x64c8_amx on a model of the tiles",
        .level = CPU_LEVEL_REF,
        .mr = TILE_ROWS,
        .nr = NR,
        .ukernel = few_rows,
        .many = &many,
        .epilogue = gemm_epilogue_ref,
    };

    return &kernel;
}

bool amx_model_int4_released(void)
{
    return model_released();
}
