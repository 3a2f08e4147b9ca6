/*
 * One panel of a k up to a tile's against many rows, multiplied and finished: tiles have k columns,
 * so nothing is filled with zeros, and rows at a constant distance are read in place.
 *
 *     a tile of rows:  1 load of A, and for each 16 columns a load of their offsets, one tdpbusd,
 *                      a store of the sums; after each of these, a part of the tile before is
 *                      finished
 *
 * B stays in tiles 0 to 3, whatever the number of rows.  What bounds 64 columns is the epilogue,
 * 6 operations per 16 outputs on two ports, 192 cycles for 16 rows, and the memory of C.
 *
 * Other rows are copied, one tile ahead: a tile load waits for stores.
 */
#include "kernels/x86/amx_tile.h"

#include <immintrin.h>

#include "kernels/x86/u8_relu_rows_avx512.h"

enum {
    FETCH_ROWS = 64,        /* ahead, where they are read in place */
    FETCH_COPIED_ROWS = 32, /* ahead of their copies */
};

gemm_fused_fn gemm_amx_fused_panel;

/* sums = offsets + A * 16 columns. */
INLINE void multiply(size_t v, const int32_t *offset, int32_t *sums, size_t bytes)
{
    if (v == 0) {
        _tile_loadd(5, offset, 0);
        _tile_dpbusd(5, 4, 0);
        _tile_stored(5, sums, bytes);
    } else if (v == 1) {
        _tile_loadd(6, offset + LANES, 0);
        _tile_dpbusd(6, 4, 1);
        _tile_stored(6, sums + LANES, bytes);
    } else if (v == 2) {
        _tile_loadd(7, offset + 2 * LANES, 0);
        _tile_dpbusd(7, 4, 2);
        _tile_stored(7, sums + 2 * LANES, bytes);
    } else {
        _tile_loadd(5, offset + 3 * LANES, 0);
        _tile_dpbusd(5, 4, 3);
        _tile_stored(5, sums + 3 * LANES, bytes);
    }
}

INLINE void load_panel(size_t nv, const int8_t *panel)
{
    const size_t stride = nv * B_TILE;

    _tile_loadd(0, panel, stride);
    if (nv > 1)
        _tile_loadd(1, panel + B_TILE, stride);
    if (nv > 2)
        _tile_loadd(2, panel + 2 * B_TILE, stride);
    if (nv > 3)
        _tile_loadd(3, panel + 3 * B_TILE, stride);
}

/* Rows i to i + TILE_ROWS to `to`, and some later ones towards L1. */
INLINE void copy_tile(const struct gemm_span *span, size_t i, uint8_t *to)
{
    for (size_t r = i + FETCH_COPIED_ROWS; r < i + FETCH_COPIED_ROWS + TILE_ROWS; r++) {
        if (r < span->m)
            _mm_prefetch((const char *)span->a[r], _MM_HINT_T0);
    }
    copy_rows(TILE_ROWS, span->k, span->a_flip, span->a + i, to);
}

INLINE void fetch_rows(const uint8_t *a, size_t stride)
{
    for (size_t r = FETCH_ROWS; r < FETCH_ROWS + TILE_ROWS; r++)
        _mm_prefetch((const char *)a + r * stride, _MM_HINT_T0);
}

/* All rows, for a constant nv; the last tile has rows of the one before, too. */
INLINE void run(size_t nv, int in_place, const struct gemm_span *span, const int32_t *offset,
                const struct finish *finish)
{
    _Alignas(GEMM_ALIGN) int32_t sums[2][TILE_ROWS * NR];
    _Alignas(GEMM_ALIGN) uint8_t copy[2][TILE_ROWS * BLOCK_K];
    uint8_t bytes[FINISHED_BYTES];
    const struct finish f = *finish; /* not read again after a store */
    const size_t stride = in_place ? (size_t)(span->a[1] - span->a[0]) : BLOCK_K;
    void *const *waiting = NULL;
    size_t turn = 0;

    load_panel(nv, span->panels);
    if (!in_place)
        copy_tile(span, 0, copy[0]);
    for (size_t i = 0, next; i < span->m; i = next, turn = !turn) {
        next = i + TILE_ROWS;
        if (next < span->m && next + TILE_ROWS > span->m)
            next = span->m - TILE_ROWS;
        if (in_place)
            fetch_rows(span->a[i], stride);
        else if (next < span->m)
            copy_tile(span, next, copy[!turn]);
        _tile_loadd(4, in_place ? span->a[i] : copy[turn], stride);
        UNROLL
        for (size_t v = 0; v < nv; v++) {
            multiply(v, offset, sums[turn], f.width * sizeof(int32_t));
            if (waiting)
                finish_part(nv, v, &f, sums[!turn], bytes, waiting);
        }
        waiting = span->c + i;
    }
    UNROLL
    for (size_t v = 0; v < nv; v++)
        finish_part(nv, v, &f, sums[!turn], bytes, waiting);
}

/* A function for each nv and way of reading rows. */
typedef void run_fn(const struct gemm_span *span, const int32_t *offset,
                    const struct finish *finish);

#define RUN(name, nv, in_place)                                                                    \
    static void name(const struct gemm_span *span, const int32_t *offset,                          \
                     const struct finish *finish)                                                  \
    {                                                                                              \
        run(nv, in_place, span, offset, finish);                                                   \
    }

RUN(in_place_1, 1, 1)
RUN(in_place_2, 2, 1)
RUN(in_place_3, 3, 1)
RUN(in_place_4, 4, 1)
RUN(copied_1, 1, 0)
RUN(copied_2, 2, 0)
RUN(copied_3, 3, 0)
RUN(copied_4, 4, 0)

static void configure(size_t k, size_t width)
{
    struct tile_config config = {.palette = 1};

    for (size_t i = 0; i < 8; i++) {
        config.rows[i] = (uint8_t)(i < 4 ? k / KR : TILE_ROWS);
        config.row_bytes[i] = (uint16_t)(i == 4 ? k : width < LANES ? width * KR : LANES * KR);
    }
    load_config(&config);
}

size_t gemm_amx_fused_panel(const struct gemm_span *span, const struct gemm_epilogue *epilogue)
{
    static run_fn *const run_of[2][NR / LANES] = {{copied_1, copied_2, copied_3, copied_4},
                                                  {in_place_1, in_place_2, in_place_3, in_place_4}};
    const size_t columns = span->columns, nv = (columns + LANES - 1) / LANES;
    const size_t width = columns <= 4 ? 4 : columns <= 8 ? 8 : nv * LANES;
    struct finish finish = {.width = width, .columns = columns, .column = span->column};
    int in_place;

    if (span->m < TILE_ROWS || span->k > BLOCK_K || !is_u8_relu(epilogue) ||
        !finish_begin(&finish, epilogue, nv))
        return 0;
    in_place = !span->a_flip && span->k % KR == 0 && gemm_is_run(span->m, span->a);
    finish.adjoin = columns == width && gemm_is_run(span->m, (const uint8_t *const *)span->c) &&
                    (uint8_t *)span->c[1] - (uint8_t *)span->c[0] == (ptrdiff_t)width;
    configure((span->k + KR - 1) / KR * KR, width);
    run_of[in_place][nv - 1](span, epilogue->offset + span->column, &finish);
    _tile_release();
    return columns;
}
