/*
 * A model of the tile unit, in place of the intrinsics of a kernel that is compiled after it, so
 * that its logic is tested on machines without AMX.  The model does what the SDM (vol. 2,
 * TILELOADD, TDPBUSD, …) says, reads and writes exactly the bytes the instruction would, and turns
 * each condition of a #GP or #UD into a failed assertion.
 */
#ifndef GEMMD_TESTS_KERNEL_AMX_MODEL_H
#define GEMMD_TESTS_KERNEL_AMX_MODEL_H

#include <immintrin.h>
#include <string.h>

#include "kernels/epilogue.h"
#include "tests/kernel/check.h"

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

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

/* After a call the tiles are as a context switch wants them. */
static inline bool model_released(void)
{
    return tile_state.palette == 0;
}

/* As kernels/x86/u8_relu_avx512.h has it, in whose place the reference stands. */
static inline int is_u8_relu(const struct gemm_epilogue *epilogue)
{
    return epilogue->c_type == GEMM_TYPE_U8 && epilogue->activation == GEMM_ACTIVATION_RELU &&
           epilogue->c_zero_point == 0 && !gemm_epilogue_is_extended(epilogue);
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbusd
#define _tile_loadconfig   model_loadconfig
#define _tile_release      model_release
#define _tile_zero         model_zero
#define _tile_loadd        model_loadd
#define _tile_stream_loadd model_loadd
#define _tile_stored       model_stored
#define _tile_dpbusd       model_dpbusd

#endif
