/*
 * u8 x s8 -> s32, tile 32 x 64, AMX-INT8: up to 16 x 16 sums of 64 products by one tdpbusd, which
 * is exact (it adds four u8*s8 products to an s32, as vpdpbusd does).
 *
 * The panel is that of gemm_u8s8s32_12x64c4_avx512vnni.c: a B tile (16 columns, 64 k) is 16 rows
 * of 64 bytes in it, 256 bytes apart.  So up to SMALL_M rows, and a k below a tile's, are left to
 * that kernel, on the same panel.
 *
 *     17-32 rows: 2 x 2 C tiles, then the same for the other 32 columns:  4 tile loads, 4 tdpbusd
 *     3-16 rows:  1 x 4 C tiles, all 64 columns:                          5 tile loads, 4 tdpbusd
 *
 * of at most 16 cycles each; a tile load takes 8 from L1.  The last panel has as many columns of
 * tiles as it needs.  The tiles of a long k come from L2,
 * which yields some 50 bytes a cycle where 2 x 2 tiles ask for 64: that is the bound for k above
 * 400 (kernels/README.md).  B passes but once, and is loaded as a stream, which leaves L1 to A.
 *
 * Configuring and releasing the tiles takes 90 ns, as long as 12 blocks, so that is done once for
 * many calls, in begin and end.
 *
 * A tile load has one stride for all its rows, so runs of 16 rows at a constant distance are read
 * in place, and others (and s8 rows, which need their flip) from a copy.  That is made some blocks
 * ahead of the multiplication; gather leaves it to the next panels.  The remainder of k modulo 64
 * meets a copy of the panel's end, zero-padded: no byte outside rows or panel is read.
 *
 * Plain C beside the tile intrinsics: tests/kernel/amx_model.c compiles this file against a model
 * of them, for machines without AMX.
 */
#include "kernels/x86/amx_tile.h"

#include <immintrin.h>
#include <string.h>

#include "kernels/pausing.h"

enum {
    SMALL_M = 2, /* kernels/README.md has both sides' figures */
    C_STRIDE = NR * 4,
    COPY_K = 512,              /* k of each row copied at a time: 18 KiB of stack, in L1 */
    COPY_STRIDE = COPY_K + 64, /* not a power of two: rows in different sets of L1 */
    PAUSE_BLOCKS = PAUSING_K / BLOCK_K,
};

gemm_ukernel_fn gemm_u8s8s32_32x64c4_amx;
gemm_gather_fn gemm_amx_gather;
gemm_pausing_fn gemm_amx_pausing;
gemm_begin_fn gemm_amx_begin, gemm_amx_end;
gemm_ukernel_fn gemm_u8s8s32_12x64c4_avx512vnni;

/* A run of k: `blocks` whole blocks, then perhaps one more from elsewhere. */
struct product {
    size_t m, blocks;
    struct rows a;         /* block b BLOCK_K * b further */
    size_t n;              /* columns */
    const int8_t *b;       /* block b at b + b * BLOCK_K * n; rows of a B tile n * KR apart */
    const int8_t *last_b;  /* NULL: no more */
    size_t last_k;         /* where that block begins in a row of A */
    const struct gather *gather; /* NULL: A is there already */
    const struct pausing *pausing; /* NULL: nobody is to be asked */
};

/* With C in tiles 0-3, where whoever is served may have its own. */
static void serve(size_t m, const struct pausing *pausing)
{
    _Alignas(64) int32_t c[4][TILE_ROWS * LANES];

    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    _tile_stored(2, c[2], 64);
    _tile_stored(3, c[3], 64);
    gemm_amx_end(m);
    pausing->serve(pausing->owner);
    gemm_amx_begin(m);
    _tile_loadd(0, c[0], 64);
    _tile_loadd(1, c[1], 64);
    _tile_loadd(2, c[2], 64);
    _tile_loadd(3, c[3], 64);
}

INLINE void ask(size_t m, const struct pausing *pausing, size_t block)
{
    if (pausing && block % PAUSE_BLOCKS == PAUSE_BLOCKS - 1 && pausing->look(pausing->owner))
        serve(m, pausing);
}

/* ---- 3 to 16 rows: nv C tiles ---------------------------------------------------------------- */

INLINE void wide_block(size_t nv, const uint8_t *a, size_t a_stride, const int8_t *b)
{
    const size_t b_stride = nv * LANES * KR;

    _tile_loadd(4, a, a_stride);
    _tile_stream_loadd(5, b, b_stride);
    _tile_dpbusd(0, 4, 5);
    if (nv > 1) {
        _tile_stream_loadd(6, b + B_TILE, b_stride);
        _tile_dpbusd(1, 4, 6);
    }
    if (nv > 2) {
        _tile_stream_loadd(7, b + 2 * B_TILE, b_stride);
        _tile_dpbusd(2, 4, 7);
    }
    if (nv > 3) {
        _tile_stream_loadd(5, b + 3 * B_TILE, b_stride);
        _tile_dpbusd(3, 4, 5);
    }
}

/* For a constant nv, or for one that may be called away. */
INLINE void wide(size_t nv, const struct product *p, const struct pausing *pausing, int32_t *acc,
                 int accumulate)
{
    const struct gather *gather = p->gather;
    const uint8_t *a = p->a.upper;
    const int8_t *b = p->b;

    if (accumulate) {
        _tile_loadd(0, acc, C_STRIDE);
        _tile_loadd(1, acc + LANES, C_STRIDE);
        _tile_loadd(2, acc + 2 * LANES, C_STRIDE);
        _tile_loadd(3, acc + 3 * LANES, C_STRIDE);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t i = 0; i < p->blocks; i++) {
        if (gather)
            gather_block(gather, i + AHEAD);
        wide_block(nv, a, p->a.upper_stride, b);
        ask(p->m, pausing, i);
        a += BLOCK_K;
        b += BLOCK_K * nv * LANES;
    }
    if (p->last_b)
        wide_block(nv, p->a.upper + p->last_k, p->a.upper_stride, p->last_b);
    _tile_stored(0, acc, C_STRIDE);
    if (nv > 1)
        _tile_stored(1, acc + LANES, C_STRIDE);
    if (nv > 2)
        _tile_stored(2, acc + 2 * LANES, C_STRIDE);
    if (nv > 3)
        _tile_stored(3, acc + 3 * LANES, C_STRIDE);
}

/* ---- 17 to 32 rows: 2 x 2 C tiles, or 2 x 1 -------------------------------------------------- */

/* The block that begins at k of each row. */
INLINE void tall_block(int two, const struct rows *a, size_t k, const int8_t *b, size_t b_stride)
{
    _tile_stream_loadd(6, b, b_stride);
    _tile_loadd(4, a->upper + k, a->upper_stride);
    _tile_dpbusd(0, 4, 6);
    if (two) {
        _tile_stream_loadd(7, b + B_TILE, b_stride);
        _tile_dpbusd(1, 4, 7);
    }
    _tile_loadd(5, a->lower + k, a->lower_stride);
    _tile_dpbusd(2, 5, 6);
    if (two)
        _tile_dpbusd(3, 5, 7);
}

/* The columns from `column` on: 32, or (for a constant `two` of 0) 16. */
INLINE void tall(int two, const struct product *p, const struct gather *gather,
                 const struct pausing *pausing, size_t column, int32_t *acc, int accumulate)
{
    const size_t b_stride = p->n * KR;
    int32_t *upper = acc + column, *lower = upper + TILE_ROWS * NR;
    const struct rows a = p->a; /* not read again after a store of copied rows */
    const int8_t *b = p->b + column * KR;

    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (accumulate) {
        _tile_loadd(0, upper, C_STRIDE);
        _tile_loadd(2, lower, C_STRIDE);
    }
    if (accumulate && two) {
        _tile_loadd(1, upper + LANES, C_STRIDE);
        _tile_loadd(3, lower + LANES, C_STRIDE);
    }
    for (size_t i = 0; i < p->blocks; i++) {
        if (gather)
            gather_block(gather, i + AHEAD);
        tall_block(two, &a, i * BLOCK_K, b, b_stride);
        ask(p->m, pausing, i);
        b += BLOCK_K * p->n;
    }
    if (p->last_b)
        tall_block(two, &a, p->last_k, p->last_b + column * KR, b_stride);
    _tile_stored(0, upper, C_STRIDE);
    _tile_stored(2, lower, C_STRIDE);
    if (two) {
        _tile_stored(1, upper + LANES, C_STRIDE);
        _tile_stored(3, lower + LANES, C_STRIDE);
    }
}

/* Apart, because a loop that may copy costs one that does not up to 4 %. */
static void tall_pair(const struct product *p, const struct gather *gather, size_t column,
                      int32_t *acc, int accumulate)
{
    if (gather)
        tall(1, p, gather, NULL, column, acc, accumulate);
    else
        tall(1, p, NULL, NULL, column, acc, accumulate);
}

static void tall_single(const struct product *p, const struct gather *gather, size_t column,
                        int32_t *acc, int accumulate)
{
    if (gather)
        tall(0, p, gather, NULL, column, acc, accumulate);
    else
        tall(0, p, NULL, NULL, column, acc, accumulate);
}

static void wide_whole(const struct product *p, int32_t *acc, int accumulate)
{
    wide(4, p, NULL, acc, accumulate);
}

/* Of the last panel. */
static void wide_part(const struct product *p, int32_t *acc, int accumulate)
{
    if (p->n == LANES)
        wide(1, p, NULL, acc, accumulate);
    else if (p->n == 2 * LANES)
        wide(2, p, NULL, acc, accumulate);
    else
        wide(3, p, NULL, acc, accumulate);
}

static void run_pausing(const struct product *p, int32_t *acc, int accumulate)
{
    const struct gather *gather = p->gather;

    if (p->m <= TILE_ROWS) {
        wide(p->n / LANES, p, p->pausing, acc, accumulate);
        return;
    }
    for (size_t column = 0; column < p->n; column += 2 * LANES, gather = NULL)
        tall(p->n - column >= 2 * LANES, p, gather, p->pausing, column, acc, accumulate);
}

static void run(const struct product *p, int32_t *acc, int accumulate)
{
    const struct gather *gather = p->gather;
    size_t column = 0;

    if (p->pausing) {
        run_pausing(p, acc, accumulate);
        return;
    }
    if (p->m <= TILE_ROWS) {
        (p->n == NR ? wide_whole : wide_part)(p, acc, accumulate);
        return;
    }
    for (; p->n - column >= 2 * LANES; column += 2 * LANES, gather = NULL)
        tall_pair(p, gather, column, acc, accumulate);
    if (column < p->n)
        tall_single(p, gather, column, acc, accumulate);
}

/* ---- operands -------------------------------------------------------------------------------- */

/* `to`: the `bytes` of a panel of n columns at the beginning of a block of zeros. */
static void copy_last_b(int8_t *to, size_t n, const int8_t *from, size_t bytes)
{
    memset(to, 0, BLOCK_K * n);
    memcpy(to, from, bytes);
}

/* `to`: a panel's last k modulo BLOCK_K at the end of a block of zeros.  Each column's bytes move
 * up by `shift` bits: where KR does not divide k, the block's end divides the panel's groups. */
static void move_last_b(int8_t *to, size_t n, const int8_t *from, size_t k)
{
    const size_t begin = BLOCK_K - k % BLOCK_K, shift = begin % KR * 8;
    const size_t bytes = n * KR, groups = BLOCK_K / KR - begin / KR;

    memset(to, 0, BLOCK_K * n);
    to += begin / KR * bytes;
    for (size_t t = 0; t < groups; t++, to += bytes, from += bytes) {
        for (size_t j = 0; j < bytes; j += KR) {
            uint32_t group, before = 0;

            memcpy(&group, from + j, KR);
            if (t > 0 && shift)
                memcpy(&before, from + j - bytes, KR);
            group = group << shift | (uint32_t)((uint64_t)before << shift >> 32);
            memcpy(to + j, &group, KR);
        }
    }
}

/* Rows in place.  A last part of block reads the row's last BLOCK_K bytes again, against zeros. */
static void run_in_place(size_t m, size_t n, size_t k, const uint8_t *const *a,
                         const int8_t *panel, const struct pausing *pausing, int32_t *acc)
{
    _Alignas(64) int8_t last[BLOCK_BYTES];
    size_t done = k / BLOCK_K * BLOCK_K;
    struct product p = {.m = m,
                        .blocks = k / BLOCK_K,
                        .a = rows_of(m, a),
                        .n = n,
                        .b = panel,
                        .pausing = pausing};

    if (done < k) {
        move_last_b(last, n, panel + done * n, k);
        p.last_k = k - BLOCK_K;
        p.last_b = last;
    }
    run(&p, acc, 0);
}

/* Rows copied on their way, `chunk` bytes of each at a time and up to a block more at the end, to
 * `copy`. */
static void run_gathered(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                         const int8_t *panel, uint8_t *copy, size_t copy_stride, size_t chunk,
                         const struct pausing *pausing, int32_t *acc)
{
    _Alignas(64) int8_t last[BLOCK_BYTES];

    for (size_t t = 0, bytes; t < k; t += bytes) {
        bytes = k - t <= chunk + BLOCK_K ? k - t : chunk; /* so never less than a block is left */

        size_t whole = bytes / BLOCK_K * BLOCK_K;
        struct gather gather = {m, bytes, a, t, a_flip, copy, copy_stride};
        struct product p = {.m = m,
                            .blocks = bytes / BLOCK_K,
                            .a = {copy, copy + TILE_ROWS * copy_stride, copy_stride, copy_stride},
                            .n = n,
                            .b = panel + t * n,
                            .gather = &gather,
                            .pausing = pausing};

        for (size_t block = 0; block < AHEAD; block++)
            gather_block(&gather, block);
        if (whole < bytes) {
            copy_last_b(last, n, p.b + whole * n, (bytes - whole + KR - 1) / KR * KR * n);
            p.last_k = whole;
            p.last_b = last;
        }
        run(&p, acc, t > 0);
    }
}

/* Tiles 0-3: C.  4 and, for the lower rows of 17-32, 5: A.  The rest: B. */
void gemm_amx_begin(size_t m)
{
    struct tile_config config = {.palette = 1};
    size_t upper = m < TILE_ROWS ? m : TILE_ROWS;
    size_t lower = m > TILE_ROWS ? m - TILE_ROWS : m;

    if (m <= SMALL_M)
        return;
    for (size_t i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = TILE_ROWS;
    }
    config.rows[0] = config.rows[1] = config.rows[4] = (uint8_t)upper;
    config.rows[2] = config.rows[3] = (uint8_t)lower;
    if (m > TILE_ROWS)
        config.rows[5] = (uint8_t)lower;
    load_config(&config);
}

/* Tiles released need not be saved at a context switch. */
void gemm_amx_end(size_t m)
{
    if (m > SMALL_M)
        _tile_release();
}

/* Few rows or a short k: the vector kernel, on the same panel. */
static int for_vectors(size_t m, size_t k)
{
    return m <= SMALL_M || k < BLOCK_K;
}

void gemm_amx_gather(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                     const int8_t *panel, uint8_t *copy, size_t copy_stride, int32_t *acc)
{
    if (!for_vectors(m, k)) {
        run_gathered(m, n, k, a, a_flip, panel, copy, copy_stride, k, NULL, acc);
        return;
    }
    for (size_t i = 0; i < m; i++) {
        for (size_t t = 0; t < k; t++)
            copy[i * copy_stride + t] = a[i][t] ^ a_flip;
    }
    gemm_u8s8s32_12x64c4_avx512vnni(m, n, k, a, a_flip, panel, acc);
}

static void run_tiles(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                      const int8_t *panel, const struct pausing *pausing, int32_t *acc)
{
    _Alignas(64) uint8_t copy[MR][COPY_STRIDE];

    if (!a_flip && gemm_are_runs(m, a))
        run_in_place(m, n, k, a, panel, pausing, acc);
    else
        run_gathered(m, n, k, a, a_flip, panel, copy[0], COPY_STRIDE, COPY_K, pausing, acc);
}

void gemm_u8s8s32_32x64c4_amx(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                              const int8_t *panel, int32_t *acc)
{
    if (for_vectors(m, k))
        gemm_u8s8s32_12x64c4_avx512vnni(m, n, k, a, a_flip, panel, acc);
    else
        run_tiles(m, n, k, a, a_flip, panel, NULL, acc);
}

bool gemm_amx_pausing(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                      const int8_t *panel, int32_t *acc, const struct pausing *pausing)
{
    if (for_vectors(m, k))
        return false;
    run_tiles(m, n, k, a, a_flip, panel, pausing, acc);
    return true;
}
