/* What the AMX files share: tiles and their configuration, the panel, and where rows lie. */
#ifndef GEMMD_KERNELS_X86_AMX_TILE_H
#define GEMMD_KERNELS_X86_AMX_TILE_H

#include "kernels/gemm.h"

#include <immintrin.h>
#include <string.h>

#include "kernels/x86/inline.h"

enum {
    MR = 32,
    NR = 64,
    KR = 4,
    TILE_ROWS = GEMM_RUN_ROWS,
    LANES = 16, /* columns of a tile */
    BLOCK_K = 64,
    BLOCK_BYTES = BLOCK_K * NR, /* panel bytes of BLOCK_K k, of a whole panel */
    B_TILE = LANES * KR,        /* from one B tile of a block to the next */
    AHEAD = 2, /* blocks copied before they are multiplied: a tile load waits for stores */
};

/* The operand of ldtilecfg, palette 1 (Intel SDM vol. 1, 18.2). */
struct tile_config {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

INLINE void load_config(const struct tile_config *config)
{
    /* gcc 12 believes that _tile_loadconfig reads 8 bytes, and drops the stores of the others. */
    __asm__ volatile("" : : "r"(config) : "memory");
    _tile_loadconfig(config);
}

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

/* Rows that are copied while the copy is multiplied. */
struct gather {
    size_t m, bytes; /* of each row, at least BLOCK_K */
    const uint8_t *const *from;
    size_t offset; /* in each row */
    uint8_t flip;
    uint8_t *to;
    size_t to_stride;
};

INLINE void copy_block(uint8_t *to, const uint8_t *from, uint8_t flip)
{
    typedef uint8_t block_vector __attribute__((vector_size(BLOCK_K)));
    block_vector block;

    memcpy(&block, from, BLOCK_K);
    block ^= flip;
    memcpy(to, &block, BLOCK_K);
}

/* Block b of each row, flipped; nothing beyond the last, which is the row's last BLOCK_K bytes.
 * What follows a row's end only meets zeros of the panel.  Four rows a turn: few instructions leave
 * the reorder buffer to the tile loads that this runs beside. */
INLINE void gather_block(const struct gather *g, size_t b)
{
    const size_t m = g->m, stride = g->to_stride, last = g->bytes - BLOCK_K;
    const size_t at = b * BLOCK_K < last ? b * BLOCK_K : last, offset = g->offset + at;
    const uint8_t *const *from = g->from;
    const uint8_t flip = g->flip;
    uint8_t *to = g->to + at;
    size_t i = 0;

    if (b * BLOCK_K >= g->bytes)
        return;
    for (; i + 4 <= m; i += 4, to += 4 * stride) {
        copy_block(to, from[i] + offset, flip);
        copy_block(to + stride, from[i + 1] + offset, flip);
        copy_block(to + 2 * stride, from[i + 2] + offset, flip);
        copy_block(to + 3 * stride, from[i + 3] + offset, flip);
    }
    for (; i < m; i++, to += stride)
        copy_block(to, from[i] + offset, flip);
}

#endif
