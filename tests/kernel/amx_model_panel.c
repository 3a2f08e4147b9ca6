/*
 * The AMX kernel of one panel and a short k compiled against a model of the tile unit.
 */
#include "tests/kernel/amx_model.h"

gemm_epilogue_fn gemm_epilogue_ref;

/* Instead of the vectors of kernels/x86/u8_relu_rows_avx512.h, the reference. */
#define GEMMD_KERNELS_X86_U8_RELU_ROWS_AVX512_H

enum { FINISHED_BYTES = 1 };

struct finish {
    size_t width, columns, column;
    int adjoin;
    const struct gemm_epilogue *epilogue;
};

static int finish_begin(struct finish *finish, const struct gemm_epilogue *epilogue, size_t nv)
{
    (void)nv;
    finish->epilogue = epilogue;
    return 1;
}

static void copy_rows(size_t m, size_t k, uint8_t flip, const uint8_t *const *a, uint8_t *to)
{
    for (size_t i = 0; i < m; i++) {
        for (size_t t = 0; t < ROW_BYTES; t++)
            to[i * ROW_BYTES + t] = t < k ? a[i][t] ^ flip : 0xff;
    }
}

/* All parts with the last. */
static void finish_part(size_t nv, size_t part, const struct finish *finish, const int32_t *sums,
                        uint8_t *bytes, void *const *c)
{
    static const int32_t no_offset[GEMM_NR_MAX];
    struct gemm_epilogue one = *finish->epilogue;
    void *rows[ROWS];

    (void)bytes;
    if (part + 1 < nv)
        return;
    one.offset = no_offset; /* it is in the sums */
    one.scale += finish->column;
    one.bias += finish->column;
    for (size_t i = 0; i < ROWS; i++)
        rows[i] = (uint8_t *)c[i] + finish->column;
    gemm_epilogue_ref(ROWS, finish->columns, finish->width, sums, &one, 0, 0, rows);
}

#define gemm_amx_fused_panel amx_model_fused_panel
#include "kernels/x86/fused_u8s8u8_16x64c4_amx.c"
