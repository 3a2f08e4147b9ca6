/*
 * The tile functions of a vector epilogue: the level's tile() once for each output type, activation
 * and absence or presence of per-row steps, and the choice among them.  u8 and s8 share theirs.
 * Included by each level after its tile(), which must be always_inline.
 */
#ifndef GEMMD_KERNELS_EPILOGUE_TILES_H
#define GEMMD_KERNELS_EPILOGUE_TILES_H

#include "kernels/epilogue.h"

#define TILE_FUNCTION(type, activation, extended)                                                  \
    static void tile_##type##_##activation##_##extended(                                           \
        size_t m, size_t n, size_t nr, const int32_t *acc, const struct gemm_epilogue *epilogue,   \
        size_t row, size_t column, void *const *c)                                                 \
    {                                                                                              \
        tile(GEMM_TYPE_##type, GEMM_ACTIVATION_##activation, extended, m, n, nr, acc, epilogue,    \
             row, column, c);                                                                      \
    }
#define TILE_FUNCTIONS(type, extended)                                                             \
    TILE_FUNCTION(type, NONE, extended)                                                            \
    TILE_FUNCTION(type, RELU, extended)                                                            \
    TILE_FUNCTION(type, CLIP, extended)                                                            \
    TILE_FUNCTION(type, GELU_TANH, extended)                                                       \
    TILE_FUNCTION(type, GELU_ERF, extended)                                                        \
    TILE_FUNCTION(type, SILU, extended)
#define TILE_NAMES(type, extended)                                                                 \
    {                                                                                              \
        tile_##type##_NONE_##extended, tile_##type##_RELU_##extended,                              \
            tile_##type##_CLIP_##extended, tile_##type##_GELU_TANH_##extended,                     \
            tile_##type##_GELU_ERF_##extended, tile_##type##_SILU_##extended,                      \
    }

TILE_FUNCTION(S32, NONE, 0)
TILE_FUNCTION(S32, NONE, 1)
TILE_FUNCTIONS(U8, 0)
TILE_FUNCTIONS(U8, 1)
TILE_FUNCTIONS(F32, 0)
TILE_FUNCTIONS(F32, 1)
TILE_FUNCTIONS(BF16, 0)
TILE_FUNCTIONS(BF16, 1)

/* The function for an epilogue's type, activation and rows: one load, because with one row a tile
 * is 64 outputs and the choice itself shows. */
static inline gemm_epilogue_fn *tile_of(const struct gemm_epilogue *epilogue)
{
    static gemm_epilogue_fn *const tiles[2][GEMM_TYPE_BF16 + 1][GEMM_ACTIVATION_COUNT] = {
        {{NULL},
         TILE_NAMES(U8, 0),
         TILE_NAMES(U8, 0),
         {tile_S32_NONE_0},
         TILE_NAMES(F32, 0),
         TILE_NAMES(BF16, 0)},
        {{NULL},
         TILE_NAMES(U8, 1),
         TILE_NAMES(U8, 1),
         {tile_S32_NONE_1},
         TILE_NAMES(F32, 1),
         TILE_NAMES(BF16, 1)},
    };

    return tiles[gemm_epilogue_is_extended(epilogue)][epilogue->c_type]
                [epilogue->c_type == GEMM_TYPE_S32 ? 0 : epilogue->activation];
}

#endif
