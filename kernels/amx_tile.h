/* What the AMX files share: the tile of 32 x 64, its panel, and where rows lie. */
#ifndef GEMMD_KERNELS_AMX_TILE_H
#define GEMMD_KERNELS_AMX_TILE_H

#include "kernels/gemm.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    MR = 32,
    NR = 64,
    KR = 4,
    TILE_ROWS = GEMM_RUN_ROWS,
    LANES = 16, /* columns of a tile */
    BLOCK_K = 64,
    BLOCK_BYTES = BLOCK_K * NR, /* panel bytes of BLOCK_K k, of a whole panel */
    B_TILE = LANES * KR,        /* from one B tile of a block to the next */
};

/* Of A.  Row i at upper + i * upper_stride, or (from TILE_ROWS on) likewise from `lower`. */
struct rows {
    const uint8_t *upper, *lower;
    size_t upper_stride, lower_stride;
};

/* Of m row pointers that are runs; a single row has no distance. */
static inline struct rows rows_of(size_t m, const uint8_t *const *a)
{
    const uint8_t *const *lower = m > TILE_ROWS ? a + TILE_ROWS : a;

    return (struct rows){a[0], lower[0], (size_t)(a[1] - a[0]),
                         m != TILE_ROWS + 1 ? (size_t)(lower[1] - lower[0]) : 0};
}

#endif
