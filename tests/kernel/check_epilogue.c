/*
 * The epilogue: each level against the reference, bit for bit, on hostile numbers and guarded rows;
 * and the reference against answers worked out by hand.
 */
#include "tests/kernel/check.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 4 * GEMM_NR_MAX, CANARY = 0xc3 };

gemm_epilogue_fn gemm_epilogue_ref;

static const enum gemm_type c_types[] = {GEMM_TYPE_U8, GEMM_TYPE_S8, GEMM_TYPE_S32, GEMM_TYPE_F32};

struct arrays {
    _Alignas(GEMM_ALIGN) int32_t acc[GEMM_MR_MAX * GEMM_NR_MAX];
    _Alignas(GEMM_ALIGN) int32_t offset[COLUMNS];
    _Alignas(GEMM_ALIGN) float scale[COLUMNS];
    _Alignas(GEMM_ALIGN) float bias[COLUMNS];
};

/* A finite float of any kind: ordinary, huge, subnormal, zero, or one whose product ends in .5 */
static float hostile_float(void)
{
    static const float values[] = {0.0f,    -0.0f,    1.0f,    0.5f,    -0.5f,     0.25f,
                                   FLT_MAX, -FLT_MAX, FLT_MIN, 1e-45f,  -1e-40f,   3e38f,
                                   1e-3f,   0.0625f,  127.5f,  -128.5f, 8388609.0f};
    uint32_t bits;
    float value;

    switch (random_below(4)) {
    case 0:
        return values[random_below(sizeof(values) / sizeof(values[0]))];
    case 1: /* any finite pattern */
        do {
            bits = (uint32_t)random_u64();
            memcpy(&value, &bits, sizeof(value));
        } while (!isfinite(value));
        return value;
    case 2: /* ties: odd multiples of a half */
        return (float)((int32_t)random_below(1024) - 512) + 0.5f;
    default:
        return (float)((double)random_u64() / 18446744073709551616.0 * 0.02);
    }
}

static int32_t hostile_s32(void)
{
    static const int32_t values[] = {0, 1, -1, INT32_MAX, INT32_MIN, 16777217, -16777217, 255};

    switch (random_below(3)) {
    case 0:
        return values[random_below(sizeof(values) / sizeof(values[0]))];
    case 1:
        return (int32_t)random_below(2048) - 1024;
    default:
        return (int32_t)random_u64();
    }
}

static void arrays_fill(struct arrays *x, bool ties)
{
    for (size_t i = 0; i < GEMM_MR_MAX * GEMM_NR_MAX; i++)
        x->acc[i] = ties ? (int32_t)random_below(1024) - 512 : hostile_s32();
    for (size_t j = 0; j < COLUMNS; j++) {
        x->offset[j] = ties ? 0 : hostile_s32();
        x->scale[j] = ties ? 0.5f : hostile_float();
        x->bias[j] = ties ? 0.0f : hostile_float();
    }
}

static int32_t any_zero_point(enum gemm_type c_type)
{
    int32_t lo = c_type == GEMM_TYPE_U8 ? 0 : -128;

    if (c_type != GEMM_TYPE_U8 && c_type != GEMM_TYPE_S8)
        return 0;
    switch (random_below(3)) {
    case 0:
        return lo;
    case 1:
        return lo + 255;
    default:
        return lo + (int32_t)random_below(256);
    }
}

/* One tile: kernel and reference into equally placed rows, compared with all bytes around. */
static void check_tile(const struct gemm_kernel *kernel, const struct gemm_epilogue *epilogue,
                       const int32_t *acc, size_t m, size_t n, size_t column, struct guard *row)
{
    size_t bytes = gemm_type_bytes(epilogue->c_type);
    size_t row_bytes = (column + n) * bytes;
    uint8_t expected[COLUMNS * 4];
    uint8_t *last = row->data + row->bytes - row_bytes; /* ends at the guard page */
    uint8_t *c[GEMM_MR_MAX], *c_ref[GEMM_MR_MAX];
    uint8_t scratch[GEMM_MR_MAX][COLUMNS * 4 + 64], scratch_ref[GEMM_MR_MAX][COLUMNS * 4 + 64];

    memset(scratch, CANARY, sizeof(scratch));
    memset(scratch_ref, CANARY, sizeof(scratch_ref));
    memset(row->data, CANARY, row->bytes);
    memset(expected, CANARY, sizeof(expected));
    for (size_t i = 0; i < m; i++) { /* every alignment, 4-byte types included */
        c[i] = i + 1 == m ? last : scratch[i] + 16 + i;
        c_ref[i] = i + 1 == m ? expected : scratch_ref[i] + 16 + i;
    }
    kernel->epilogue(m, n, kernel->nr, acc, epilogue, column, (void *const *)c);
    gemm_epilogue_ref(m, n, kernel->nr, acc, epilogue, column, (void *const *)c_ref);
    check(!memcmp(scratch, scratch_ref, sizeof(scratch)), "rows or their surroundings differ");
    check(!memcmp(last, expected, row_bytes), "guarded row differs");
    for (uint8_t *p = row->data; p < last; p++) {
        if (*p != CANARY) {
            check(false, "wrote before the row");
            break;
        }
    }
}

void check_epilogue(const struct gemm_kernel *kernel)
{
    struct arrays *x = check_alloc(sizeof(*x));
    struct guard row;

    guard_alloc(&row, COLUMNS * 4);
    for (int round = 0; round < 3 * 64; round++) {
        for (size_t type = 0; type < sizeof(c_types) / sizeof(c_types[0]); type++) {
            bool ties = round % 4 == 0;
            enum gemm_activation activation = (enum gemm_activation)(round / 2 % 2);
            struct gemm_epilogue epilogue = {
                .a_type = round % 2 ? GEMM_TYPE_S8 : GEMM_TYPE_U8,
                .c_type = c_types[type],
                .activation = activation,
                .c_zero_point = any_zero_point(c_types[type]),
                .inverse_c_scale = ties ? 1.0f : hostile_float(),
                .offset = x->offset,
                .scale = x->scale,
                .bias = x->bias,
            };
            size_t n =
                (size_t)round < kernel->nr ? (size_t)round + 1 : random_below(kernel->nr) + 1;
            size_t m = 1 + random_below(kernel->mr);
            size_t column = random_below(COLUMNS / kernel->nr) * kernel->nr;

            check_step("epilogue m=%zu n=%zu column=%zu type=%d relu=%d zero=%d inverse=%a%s", m, n,
                       column, epilogue.c_type, activation, epilogue.c_zero_point,
                       (double)epilogue.inverse_c_scale, ties ? " ties" : "");
            arrays_fill(x, ties);
            check_tile(kernel, &epilogue, x->acc, m, n, column, &row);
        }
    }
    guard_free(&row);
    free(x);
}

/* ---- the reference against paper ------------------------------------------------------------- */

struct paper_case {
    int32_t acc, offset;
    float scale, bias, inverse_c_scale;
    int32_t c_zero_point;
    enum gemm_activation activation;
    int32_t s32;
    uint8_t u8;
    int8_t s8; /* with c_zero_point - 128 */
};

static const struct paper_case paper_cases[] = {
    /* ties go to even: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, -0.5 -> 0, -1.5 -> -2 (about 128) */
    {1, 0, 0.5f, 0, 1, 128, GEMM_ACTIVATION_NONE, 1, 128, 0},
    {3, 0, 0.5f, 0, 1, 128, GEMM_ACTIVATION_NONE, 3, 130, 2},
    {5, 0, 0.5f, 0, 1, 128, GEMM_ACTIVATION_NONE, 5, 130, 2},
    {-1, 0, 0.5f, 0, 1, 128, GEMM_ACTIVATION_NONE, -1, 128, 0},
    {-3, 0, 0.5f, 0, 1, 128, GEMM_ACTIVATION_NONE, -3, 126, -2},
    /* a tie with an odd zero point: rounding comes first, 0.5 -> 0, then + 3 */
    {1, 0, 0.5f, 0, 1, 3, GEMM_ACTIVATION_NONE, 1, 3, -125},
    /* the offset is added before the scale, the bias after it */
    {10, 5, 2.0f, 0.75f, 1, 0, GEMM_ACTIVATION_NONE, 15, 31, -97},
    /* ReLU acts after the bias and before the zero point */
    {-2, 0, 1.0f, 5.0f, 1, 0, GEMM_ACTIVATION_RELU, -2, 3, -125},
    {-50, 0, 1.0f, 0, 1, 100, GEMM_ACTIVATION_RELU, -50, 100, -28},
    {-50, 0, 1.0f, 0, 1, 100, GEMM_ACTIVATION_NONE, -50, 50, -78},
    /* clamped at both ends, infinities too */
    {1000, 0, 1.0f, 0, 1, 10, GEMM_ACTIVATION_NONE, 1000, 255, 127},
    {-1000, 0, 1.0f, 0, 1, 10, GEMM_ACTIVATION_NONE, -1000, 0, -128},
    {2, 0, FLT_MAX, 0, 1, 10, GEMM_ACTIVATION_NONE, 2, 255, 127},
    {-2, 0, FLT_MAX, 0, FLT_MAX, 10, GEMM_ACTIVATION_NONE, -2, 0, -128},
    /* the sum wraps modulo 2^32 */
    {INT32_MAX, 1, 1.0f, 0, 1, 0, GEMM_ACTIVATION_NONE, INT32_MIN, 0, -128},
    /* the inverse output scale */
    {100, 0, 1.0f, 0, 0.25f, 7, GEMM_ACTIVATION_NONE, 100, 32, -96},
};

void check_reference(void)
{
    check_context.kernel_name = "epilogue_ref";
    for (size_t i = 0; i < sizeof(paper_cases) / sizeof(paper_cases[0]); i++) {
        const struct paper_case *p = &paper_cases[i];
        struct gemm_epilogue epilogue = {
            .a_type = GEMM_TYPE_U8,
            .activation = p->activation,
            .inverse_c_scale = p->inverse_c_scale,
            .offset = &p->offset,
            .scale = &p->scale,
            .bias = &p->bias,
        };
        uint8_t u8 = 0;
        int8_t s8 = 0;
        int32_t s32 = 0;
        float f32 = 0, expected = (float)p->s32 * p->scale;

        check_step("paper case %zu", i);
        epilogue.c_type = GEMM_TYPE_S32;
        gemm_epilogue_ref(1, 1, 1, &p->acc, &epilogue, 0, (void *[]){&s32});
        check(s32 == p->s32, "s32 %d, expected %d", s32, p->s32);
        epilogue.c_type = GEMM_TYPE_F32;
        gemm_epilogue_ref(1, 1, 1, &p->acc, &epilogue, 0, (void *[]){&f32});
        expected += p->bias;
        if (p->activation == GEMM_ACTIVATION_RELU && !(expected > 0))
            expected = 0;
        check(!memcmp(&f32, &expected, sizeof(f32)), "f32 %a, expected %a", (double)f32,
              (double)expected);
        epilogue.c_type = GEMM_TYPE_U8;
        epilogue.c_zero_point = p->c_zero_point;
        gemm_epilogue_ref(1, 1, 1, &p->acc, &epilogue, 0, (void *[]){&u8});
        check(u8 == p->u8, "u8 %d, expected %d", u8, p->u8);
        epilogue.c_type = GEMM_TYPE_S8;
        epilogue.c_zero_point = p->c_zero_point - 128;
        gemm_epilogue_ref(1, 1, 1, &p->acc, &epilogue, 0, (void *[]){&s8});
        check(s8 == p->s8, "s8 %d, expected %d", s8, p->s8);
    }
}
