/*
 * The AMX micro-kernel compiled against a model of the tile unit, so that its logic is tested on
 * machines without AMX.  The model does what the SDM (vol. 2, TILELOADD, TDPBUSD, …) says, reads
 * and writes exactly the bytes the instruction would, and turns each condition of a #GP or #UD into
 * a failed assertion.
 */
#include "tests/kernel/check.h"

#include <immintrin.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, GROUP_BYTES = 32 * 1024 }; /* several groups a test */

gemm_epilogue_fn gemm_epilogue_ref;

struct model_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static struct model_config tile_state; /* palette 0: not configured */
static uint8_t tiles[TILES][ROWS][ROW_BYTES];

static void model_release(void)
{
    memset(&tile_state, 0, sizeof(tile_state));
    memset(tiles, 0, sizeof(tiles));
}

static void model_loadconfig(const void *operand)
{
    model_release();
    memcpy(&tile_state, operand, sizeof(tile_state));
    assert(sizeof(tile_state) == 64 && tile_state.palette == 1 && tile_state.start_row == 0);
    for (size_t i = 0; i < sizeof(tile_state.reserved); i++)
        assert(tile_state.reserved[i] == 0);
    for (size_t i = 0; i < 16; i++) {
        assert(tile_state.row_bytes[i] <= ROW_BYTES && tile_state.rows[i] <= ROWS);
        assert((tile_state.row_bytes[i] == 0) == (tile_state.rows[i] == 0));
        assert(i < TILES || tile_state.rows[i] == 0);
    }
}

static void check_configured(int tile)
{
    assert(tile_state.palette == 1 && tile >= 0 && tile < TILES && tile_state.rows[tile]);
}

static void model_zero(int tile)
{
    check_configured(tile);
    memset(tiles[tile], 0, sizeof(tiles[tile]));
}

static void model_loadd(int tile, const void *base, size_t stride)
{
    model_zero(tile);
    for (size_t i = 0; i < tile_state.rows[tile]; i++)
        memcpy(tiles[tile][i], (const uint8_t *)base + i * stride, tile_state.row_bytes[tile]);
}

static void model_stored(int tile, void *base, size_t stride)
{
    check_configured(tile);
    for (size_t i = 0; i < tile_state.rows[tile]; i++)
        memcpy((uint8_t *)base + i * stride, tiles[tile][i], tile_state.row_bytes[tile]);
}

static void model_dpbusd(int c, int a, int b)
{
    check_configured(a);
    check_configured(b);
    check_configured(c);
    assert(a != b && a != c && b != c);
    assert(tile_state.rows[c] == tile_state.rows[a] &&
           tile_state.row_bytes[c] == tile_state.row_bytes[b]);
    assert(tile_state.row_bytes[a] == tile_state.rows[b] * 4 && tile_state.row_bytes[c] % 4 == 0);
    for (size_t i = 0; i < tile_state.rows[c]; i++) {
        uint32_t sums[ROW_BYTES / 4];

        memcpy(sums, tiles[c][i], sizeof(sums));
        for (size_t t = 0; t < tile_state.row_bytes[a]; t++) {
            for (size_t j = 0; j < tile_state.row_bytes[c] / 4; j++)
                sums[j] += (uint32_t)(tiles[a][i][t] * (int8_t)tiles[b][t / 4][j * 4 + t % 4]);
        }
        memcpy(tiles[c][i], sums, sizeof(sums));
    }
}

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

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbusd
#define _tile_loadconfig               model_loadconfig
#define _tile_release                  model_release
#define _tile_zero                     model_zero
#define _tile_loadd                    model_loadd
#define _tile_stream_loadd             model_loadd
#define _tile_stored                   model_stored
#define _tile_dpbusd                   model_dpbusd
#define gemm_amx_begin                 amx_model_begin
#define gemm_amx_end                   amx_model_end
#define gemm_amx_gather                amx_model_gather
#define gemm_u8s8s32_32x64c4_amx       amx_model_ukernel
#define gemm_u8s8s32_12x64c4_avx512vnni few_rows
#define gemm_amx_fused                 amx_model_fused
#include "kernels/x86/gemm_u8s8s32_32x64c4_amx.c"

/* Instead of the vectors of kernels/u8_relu_avx512.h, the reference. */
#define GEMMD_KERNELS_U8_RELU_AVX512_H
#include "kernels/epilogue.h"

struct column_pair {
    const struct gemm_epilogue *epilogue;
    size_t column;
};

static int is_u8_relu(const struct gemm_epilogue *epilogue)
{
    return epilogue->c_type == GEMM_TYPE_U8 && epilogue->activation == GEMM_ACTIVATION_RELU &&
           epilogue->c_zero_point == 0 && !gemm_epilogue_is_extended(epilogue);
}

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
        .begin = amx_model_begin,
        .end = amx_model_end,
        .epilogue = gemm_epilogue_ref,
        .fused = amx_model_fused,
    };

    return &kernel;
}

/* After a call the tiles are as a context switch wants them. */
bool amx_model_released(void)
{
    return tile_state.palette == 0;
}
