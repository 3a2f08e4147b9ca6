/*
 * u8_relu_avx512.h for 16 rows whose sums, offsets included, lie one after the other, `width`
 * columns each: 4 or 8, of which several rows share a vector, or 16 for each of nv vectors.
 */
#ifndef GEMMD_KERNELS_X86_U8_RELU_ROWS_AVX512_H
#define GEMMD_KERNELS_X86_U8_RELU_ROWS_AVX512_H

#include "kernels/x86/u8_relu_avx512.h"

enum { VECTORS = 4, ROWS_FINISHED = 16, FINISHED_BYTES = ROWS_FINISHED * 64 + 64 };

struct finish {
    __m512 scale[VECTORS], bias[VECTORS], inverse;
    size_t width, columns, column; /* columns that a row has, from `column` on */
    int adjoin;                    /* rows of C are `width` bytes long and follow each other */
};

/* False: the sums need more than this epilogue. */
INLINE int finish_begin(struct finish *finish, const struct gemm_epilogue *epilogue, size_t nv)
{
    finish->inverse = _mm512_set1_ps(epilogue->inverse_c_scale);
    for (size_t v = 0; v < nv; v++) {
        const struct columns columns = columns_at(epilogue, finish->column + v * 16);

        if (needs_clamp(1, &columns, finish->inverse))
            return 0;
        finish->scale[v] = repeat(finish->width, columns.scale);
        finish->bias[v] = repeat(finish->width, columns.bias);
    }
    return 1;
}

/* The first k bytes of rows, flipped; what follows up to 64 only meets zeros of the panel. */
INLINE void copy_rows(size_t m, size_t k, uint8_t flip, const uint8_t *const *a, uint8_t *to)
{
    const __mmask64 mask = ~UINT64_C(0) >> (64 - k); /* masked bytes cannot fault */

    for (size_t i = 0; i < m; i++)
        _mm512_store_si512(to + i * 64,
                           _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, a[i]),
                                            _mm512_set1_epi8((char)flip)));
}

/* Part `part` of nv of all rows, both constants: to C, or to `bytes` and at last to C. */
INLINE void finish_part(size_t nv, size_t part, const struct finish *f, const int32_t *sums,
                        uint8_t *bytes, void *const *c)
{
    const __mmask64 mask = ~UINT64_C(0) >> (64 - f->columns);

    if (f->adjoin)
        bytes = (uint8_t *)c[0] + f->column;
    UNROLL
    for (size_t p = part * 4; p < part * 4 + 4; p++) {
        __m512i q[4];

        if (nv == 1 && p * 4 >= f->width) /* columns that share vectors are done */
            break;
        UNROLL
        for (size_t v = 0; v < 4; v++)
            q[v] = to_u8(0, f->scale[(p * 4 + v) % nv], f->bias[(p * 4 + v) % nv], f->inverse,
                         _mm512_load_si512(sums + (p * 4 + v) * 16));
        if (nv == 4)
            _mm512_mask_storeu_epi8((uint8_t *)c[p] + f->column, mask, pack(q));
        else
            _mm512_storeu_si512(bytes + p * 64, pack(q));
    }
    if (nv == 4 || f->adjoin || part + 1 < nv)
        return;
    for (size_t i = 0; i < ROWS_FINISHED; i++)
        _mm512_mask_storeu_epi8((uint8_t *)c[i] + f->column, mask,
                                _mm512_loadu_si512(bytes + i * f->width));
}

#endif
