/*
 * The tiles of tile_12x64c4.h and their epilogue together: one panel against any number of rows,
 * whose sums are finished in the registers they are in.  For the epilogue of u8_relu_avx512.h, u8
 * rows, and from MR rows on.
 *
 * With a short k the multiplication is the smaller part, so what surrounds it is spared:
 *
 *     a call, a switch over m and the way of the sums through L1, for each tile
 *     the offsets' additions: sums begin at them, modulo 2^32 as they are
 *     operations on columns that are none: two or four rows share a vector from 8 or 4 columns on
 *     loads of row pointers, and registers for them, where rows have a constant distance
 *     waits for L3: rows are fetched ahead, those at no constant distance by their pointers
 *
 * `width`: bytes that a row has in a packed vector, 4 or 8, or 16 for each zmm.
 */
#ifndef GEMMD_KERNELS_X86_FUSED_12X64C4_H
#define GEMMD_KERNELS_X86_FUSED_12X64C4_H

#include "kernels/x86/tile_12x64c4.h"
#include "kernels/x86/u8_relu_avx512.h"

enum {
    PACK = 4,           /* vectors packed into one */
    FETCH_K = 128,      /* of longer rows the hardware finds the next line in time */
    FETCH_BYTES = 2048, /* ahead, in rows that adjoin; kernels/README.md */
    FETCH_ROWS = 24,    /* ahead, in others: two tiles, more than L1 can have under way */
};

/* What all rows share. */
struct finish {
    __m512i offset[NV];
    __m512 scale[NV], bias[NV], inverse;
    size_t column;
    __mmask64 mask; /* of a row's columns */
};

/* ---- from sums to C -------------------------------------------------------------------------- */

INLINE size_t vectors(size_t width)
{
    return width < LANES ? 1 : width / LANES;
}

/* The sums of as many rows as share a vector. */
INLINE __m512i share(size_t width, const __m512i *sum)
{
    if (width == 4) {
        __m256i low = _mm256_inserti128_si256(_mm512_castsi512_si256(sum[0]),
                                              _mm512_castsi512_si128(sum[1]), 1);
        __m256i high = _mm256_inserti128_si256(_mm512_castsi512_si256(sum[2]),
                                               _mm512_castsi512_si128(sum[3]), 1);

        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    if (width == 8)
        return _mm512_inserti64x4(sum[0], _mm512_castsi512_si256(sum[1]), 1);
    return sum[0];
}

INLINE __m128i quarter(__m512i bytes, size_t i)
{
    return i == 0   ? _mm512_castsi512_si128(bytes)
           : i == 1 ? _mm512_extracti32x4_epi32(bytes, 1)
           : i == 2 ? _mm512_extracti32x4_epi32(bytes, 2)
                    : _mm512_extracti32x4_epi32(bytes, 3);
}

/* Row i of packed ones to `to`. */
INLINE void store_row(size_t width, __mmask64 mask, __m512i bytes, size_t i, uint8_t *to)
{
    __m128i part = quarter(bytes, i * width / 16 % 4);

    if (width > 32)
        _mm512_mask_storeu_epi8(to, mask, bytes);
    else if (width == 32)
        _mm256_mask_storeu_epi8(to, (__mmask32)mask,
                                i ? _mm512_extracti64x4_epi64(bytes, 1)
                                  : _mm512_castsi512_si256(bytes));
    else if (i * width % 16 == 0)
        _mm_mask_storeu_epi8(to, (__mmask16)mask, part);
    else if (i * width % 16 == 4)
        _mm_mask_storeu_epi8(to, (__mmask16)mask, _mm_bsrli_si128(part, 4));
    else if (i * width % 16 == 8)
        _mm_mask_storeu_epi8(to, (__mmask16)mask, _mm_bsrli_si128(part, 8));
    else
        _mm_mask_storeu_epi8(to, (__mmask16)mask, _mm_bsrli_si128(part, 12));
}

/* `adjoin`: the rows of C are `width` bytes long and follow each other. */
INLINE void finish_tile(size_t m, size_t width, int adjoin, const struct finish *finish,
                        const __m512i *sum, void *const *c)
{
    const size_t nv = vectors(width), rows = width < LANES ? LANES / width : 1; /* of a vector */
    const size_t step = nv == 3 ? 1 : 64 / width;                               /* of a pack */

    UNROLL
    for (size_t i = 0; i < m; i += step) {
        const size_t count = m - i < step ? m - i : step;
        __m512i q[PACK], bytes;

        UNROLL
        for (size_t v = 0; v < PACK; v++)
            q[v] = v * rows < count * nv
                       ? to_u8(0, finish->scale[v % nv], finish->bias[v % nv], finish->inverse,
                               share(width, sum + i * nv + v * rows))
                       : q[0];
        bytes = pack(q);
        if (adjoin) {
            _mm512_mask_storeu_epi8((uint8_t *)c[i] + finish->column,
                                    ~UINT64_C(0) >> (64 - count * width), bytes);
            continue;
        }
        UNROLL
        for (size_t r = 0; r < count; r++)
            store_row(width, finish->mask, bytes, r, (uint8_t *)c[i + r] + finish->column);
    }
}

/* ---- multiplication -------------------------------------------------------------------------- */

INLINE void begin_sums(size_t m, size_t nv, const struct finish *finish, __m512i *sum)
{
    UNROLL
    for (size_t i = 0; i < m * nv; i++)
        sum[i] = finish->offset[i % nv];
}

/* multiply() of MR rows at a constant distance, in five registers instead of twelve. */
INLINE void multiply_strided(size_t nv, size_t k, const uint8_t *a, size_t stride,
                             const int8_t *panel, __m512i *sum)
{
    const uint8_t *third[] = {a, a + 3 * stride, a + 6 * stride, a + 9 * stride};
    const int8_t *end = panel + k / KR * nv * 64;
    __m512i b[NV];

    for (; panel != end; panel += nv * 64) {
        load_step(MR, nv, panel, b);
        UNROLL
        for (size_t i = 0; i < 4; i++) {
            row(nv, four_of(third[i], 0, 0), b, sum + 3 * i * nv);
            row(nv, four_of(third[i] + stride, 0, 0), b, sum + (3 * i + 1) * nv);
            row(nv, four_of(third[i] + 2 * stride, 0, 0), b, sum + (3 * i + 2) * nv);
            third[i] += KR;
        }
        __asm__("" : "+r"(stride)); /* else its multiples are registers */
        keep(MR * nv, sum);
    }
    if (k % KR) {
        const uint32_t shift = 8 * (KR - k % KR);

        load_step(MR, nv, panel, b);
        UNROLL
        for (size_t i = 0; i < MR; i++)
            row(nv, four_of(third[i / 3] + i % 3 * stride + k % KR - KR, 1, shift), b,
                sum + i * nv);
        keep(MR * nv, sum);
    }
}

/* The lines of rows some tiles after rows i to i + m; what lies behind the last is no fault. */
INLINE void fetch(size_t m, const struct gemm_span *span, size_t i)
{
    const uint8_t *const *a = span->a + i;

    if (span->k > FETCH_K)
        return;
    if ((size_t)(a[m - 1] - a[0]) < m * 64) {
        for (size_t t = 0; t < m * span->k; t += 64)
            _mm_prefetch(a[0] + FETCH_BYTES + t, _MM_HINT_T0);
        return;
    }
    for (size_t r = FETCH_ROWS; r < FETCH_ROWS + m && i + r < span->m; r++) {
        _mm_prefetch(a[r], _MM_HINT_T0);
        _mm_prefetch(a[r] + span->k - 1, _MM_HINT_T0);
    }
}

INLINE void fused_tile(size_t m, size_t width, int ahead, const struct gemm_span *span, size_t i,
                       const struct finish *finish)
{
    __m512i sum[SUMS];

    begin_sums(m, vectors(width), finish, sum);
    multiply(m, vectors(width), ahead, span->k, span->a + i, span->panels, sum);
    finish_tile(m, width, 0, finish, sum, span->c + i);
}

/* Up to 32 columns.  The last tile has rows of the one before, too. */
INLINE void narrow_rows(size_t width, int strided, int adjoin, const struct gemm_span *span,
                        const struct finish *finish)
{
    const size_t nv = vectors(width), stride = (size_t)(span->a[1] - span->a[0]);

    for (size_t i = 0, next; i < span->m; i = next) {
        __m512i sum[SUMS];

        next = i + MR;
        if (next < span->m && next + MR > span->m)
            next = span->m - MR;
        fetch(MR, span, i);
        begin_sums(MR, nv, finish, sum);
        if (strided)
            multiply_strided(nv, span->k, span->a[i], stride, span->panels, sum);
        else
            multiply(MR, nv, 0, span->k, span->a + i, span->panels, sum);
        finish_tile(MR, width, adjoin, finish, sum, span->c + i);
    }
}

INLINE int follow(size_t bytes, size_t m, void *const *c)
{
    return (uint8_t *)c[1] - (uint8_t *)c[0] == (ptrdiff_t)bytes &&
           gemm_is_run(m, (const uint8_t *const *)c);
}

INLINE void narrow(size_t width, const struct gemm_span *span, const struct finish *finish)
{
    const int strided = gemm_is_run(span->m, span->a);
    const int adjoin = span->columns == width && follow(width, span->m, span->c);

    if (strided && adjoin)
        narrow_rows(width, 1, 1, span, finish);
    else if (strided)
        narrow_rows(width, 1, 0, span, finish);
    else if (adjoin)
        narrow_rows(width, 0, 1, span, finish);
    else
        narrow_rows(width, 0, 0, span, finish);
}

/* More columns.  Of MR rows or more the first tile has MR_WIDE, and the last at least three. */
INLINE void wide(size_t width, const struct gemm_span *span, const struct finish *finish)
{
    fused_tile(MR_WIDE, width, 1, span, 0, finish);
    for (size_t i = MR_WIDE, count; i < span->m; i += count) {
        count = rows_of_tile(span->m - i);
        fetch(count, span, i);
        if (count == MR_WIDE)
            fused_tile(MR_WIDE, width, 0, span, i, finish);
        else if (count == 5)
            fused_tile(5, width, 0, span, i, finish);
        else if (count == 4)
            fused_tile(4, width, 0, span, i, finish);
        else
            fused_tile(3, width, 0, span, i, finish);
    }
}

/* A function for each width, so that it is a constant in it. */
#define FUSED(kind, width)                                                                         \
    static void kind##_##width(const struct gemm_span *span, const struct finish *finish)          \
    {                                                                                              \
        kind(width, span, finish);                                                                 \
    }

FUSED(narrow, 4)
FUSED(narrow, 8)
FUSED(narrow, 16)
FUSED(narrow, 32)
FUSED(wide, 48)
FUSED(wide, 64)

INLINE size_t fused(const struct gemm_span *span, const struct gemm_epilogue *epilogue)
{
    static void (*const of_nv[NV])(const struct gemm_span *, const struct finish *) = {
        narrow_16, narrow_32, wide_48, wide_64};
    const size_t nv = (span->columns + LANES - 1) / LANES;
    const size_t width = span->columns <= 4 ? 4 : span->columns <= 8 ? 8 : nv * LANES;
    struct finish finish = {.inverse = _mm512_set1_ps(epilogue->inverse_c_scale),
                            .column = span->column,
                            .mask = ~UINT64_C(0) >> (NR - span->columns)};

    if (span->m < MR || span->k < KR || span->a_flip || !is_u8_relu(epilogue))
        return 0;
    for (size_t v = 0; v < nv; v++) {
        const struct columns columns = columns_at(epilogue, span->column + v * LANES);

        if (needs_clamp(1, &columns, finish.inverse))
            return 0;
        finish.offset[v] = columns.offset;
        finish.scale[v] = repeat(width, columns.scale);
        finish.bias[v] = repeat(width, columns.bias);
    }
    (width == 4 ? narrow_4 : width == 8 ? narrow_8 : of_nv[nv - 1])(span, &finish);
    return span->columns;
}

#endif
