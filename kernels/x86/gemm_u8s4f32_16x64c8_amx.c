/*
 * u8 x s4 -> f32 with group multipliers for many rows, tile 16 x 64, AMX-INT8, on weights unpacked
 * to s8 (kernels/int4.h).
 *
 * Every group ends in a float addition to every sum, 3 instructions and a load for 16 of them, when
 * one or two tdpbusd have made them.  The sums of one C tile of 16 rows, or of two of up to 8, stay
 * in 16 registers for all groups; the dots go through L1.  So that the tile and the vector units
 * work at the same time, group g is multiplied while group g - 1 is stored and g - 2 added:
 *
 *     per group of 64, 16 x 16: 2 tile loads, 1 tdpbusd, 1 tile store, 16 x (load, cvt, mul, add)
 *
 * The s8 kernel's 2 x 2 C tiles, with the sums in L1, took 1.2 times as long: the stores of sums
 * take as much as those of tiles, 16 cycles.  Starting C tiles at 1.5 * 2^23 in place of 0, so that
 * one fused operation replaces conversion and product, exactly, gained nothing: loading such a tile
 * costs as much.  Nor did prefetches of the next rows.
 *
 * Plain C beside the tile intrinsics: tests/kernel/amx_model_int4.c compiles this file against a
 * model of them, for machines without AMX.
 */
#include "kernels/int4.h"

#include <immintrin.h>
#include <string.h>

#include "kernels/x86/amx_tile.h"

enum {
    PAIR_ROWS = 8, /* up to which two C tiles have their sums in registers */
    SUMS = 16,
};

int4_part_fn gemm_u8s4f32_16x64c8_amx;
int4_begin_fn int4_amx_begin;
int4_end_fn int4_amx_end;

typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef uint16_t words __attribute__((vector_size(LANES * 2)));

/* Of one group, the dots of two C tiles. */
struct dots {
    ints of[2][TILE_ROWS];
};

/* Where a stage is: all groups of the first columns, then of the next. */
struct place {
    size_t group, column;
};

INLINE void advance(struct place *at, const struct int4_part *part, size_t count)
{
    if (++at->group < part->groups)
        return;
    at->group = 0;
    at->column += count * LANES;
}

/* C tiles 0 and 1 (of odd turns 2 and 3) = a tile of rows * `count` tiles of columns. */
INLINE void multiply(int odd, size_t count, const struct int4_part *part, struct place at)
{
    const size_t stride = (size_t)(part->a[1] - part->a[0]);
    const uint8_t *a = part->a[0] + at.group * part->group;
    const int8_t *b = part->unpacked + (at.group * part->group * NR + at.column * KR);

    if (odd) {
        _tile_zero(2);
        if (count > 1)
            _tile_zero(3);
    } else {
        _tile_zero(0);
        if (count > 1)
            _tile_zero(1);
    }
    for (size_t t = 0; t < part->group; t += BLOCK_K, a += BLOCK_K, b += BLOCK_K * NR) {
        if (odd) {
            _tile_loadd(6, a, stride);
            _tile_loadd(7, b, NR * KR);
            _tile_dpbusd(2, 6, 7);
            if (count > 1) {
                _tile_loadd(7, b + LANES * KR, NR * KR);
                _tile_dpbusd(3, 6, 7);
            }
        } else {
            _tile_loadd(4, a, stride);
            _tile_loadd(5, b, NR * KR);
            _tile_dpbusd(0, 4, 5);
            if (count > 1) {
                _tile_loadd(5, b + LANES * KR, NR * KR);
                _tile_dpbusd(1, 4, 5);
            }
        }
    }
}

INLINE void store(int odd, size_t count, struct dots *dots)
{
    if (odd)
        _tile_stored(2, dots->of[0], LANES * 4);
    else
        _tile_stored(0, dots->of[0], LANES * 4);
    if (count == 1)
        return;
    if (odd)
        _tile_stored(3, dots->of[1], LANES * 4);
    else
        _tile_stored(1, dots->of[1], LANES * 4);
}

/* Of one C tile, whose first `rows` there are. */
INLINE void add_tile(size_t rows, const ints *dots, const uint8_t *multipliers, floats *sum)
{
    words multiplier;
    floats scale;

    memcpy(&multiplier, multipliers, sizeof(multiplier));
    scale = __builtin_convertvector(__builtin_convertvector(multiplier, ints), floats) *
            (1.0f / INT4_UNPACKED);
    UNROLL
    for (size_t i = 0; i < rows; i++)
        sum[i] += __builtin_convertvector(dots[i], floats) * scale;
}

INLINE void add(size_t count, const struct dots *dots, const struct int4_part *part,
                struct place at, floats *sum)
{
    const uint8_t *multipliers =
        part->multipliers + at.group * part->group_bytes + at.column * sizeof(uint16_t);

    add_tile(SUMS / count, dots->of[0], multipliers, sum);
    if (count > 1)
        add_tile(SUMS / count, dots->of[1], multipliers + sizeof(words), sum + SUMS / count);
}

/* Where the sum i of `count` C tiles is. */
INLINE size_t sum_place(size_t count, size_t i)
{
    return i % (SUMS / count) * NR + i / (SUMS / count) * LANES;
}

INLINE void load_sums(size_t count, const float *from, floats *sum)
{
    UNROLL
    for (size_t i = 0; i < SUMS; i++)
        memcpy(&sum[i], from + sum_place(count, i), sizeof(floats));
}

INLINE void store_sums(size_t count, float *to, const floats *sum)
{
    UNROLL
    for (size_t i = 0; i < SUMS; i++)
        memcpy(to + sum_place(count, i), &sum[i], sizeof(floats));
}

/* For a constant count of C tiles. */
INLINE void run(size_t count, const struct int4_part *part, float *sums)
{
    const size_t turns = part->groups * (NR / LANES / count);
    struct place first = {0, 0}, last = {0, 0};
    struct dots dots[2];
    floats sum[SUMS];

    for (size_t even = 0; even < turns + 2; even += 2) {
        UNROLL
        for (size_t odd = 0; odd < 2; odd++) {
            const size_t turn = even + odd;

            if (turn < turns) {
                multiply(odd, count, part, first);
                advance(&first, part, count);
            }
            if (turn >= 2 && turn < turns + 2) {
                if (last.group == 0)
                    load_sums(count, sums + last.column, sum);
                add(count, &dots[odd], part, last, sum);
                if (last.group == part->groups - 1)
                    store_sums(count, sums + last.column, sum);
                advance(&last, part, count);
            }
            if (turn >= 1 && turn < turns + 1)
                store(!odd, count, &dots[!odd]);
            __asm__ volatile("" : : : "memory"); /* gcc 12 does not know what a store writes */
        }
    }
}

void gemm_u8s4f32_16x64c8_amx(size_t m, const struct int4_part *part, float *sums)
{
    if (m <= PAIR_ROWS)
        run(2, part, sums);
    else
        run(1, part, sums);
}

/* Tiles 0-3: C.  4 and, of odd turns, 6: A.  5 and 7: B. */
void int4_amx_begin(size_t m, size_t group)
{
    const size_t k = group < BLOCK_K ? group : BLOCK_K;
    struct tile_config config = {.palette = 1};

    for (size_t i = 0; i < 8; i++) {
        config.row_bytes[i] = i == 4 || i == 6 ? (uint16_t)k : LANES * 4;
        config.rows[i] = i <= 4 || i == 6 ? (uint8_t)m : (uint8_t)(k / KR);
    }
    load_config(&config);
}

/* Tiles released need not be saved at a context switch. */
void int4_amx_end(void)
{
    _tile_release();
}
