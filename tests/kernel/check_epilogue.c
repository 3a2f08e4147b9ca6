/*
 * The epilogue: each level against the reference, bit for bit, on hostile numbers and guarded rows;
 * and the reference against answers worked out by hand.
 */
#include "tests/kernel/check.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 4 * GEMM_NR_MAX, CANARY = 0xc3, TILES = 6000, ROWS_BEFORE_MAX = 5,
       ADJOINING_N_MAX = 16 };

gemm_epilogue_fn gemm_epilogue_ref;

static const enum gemm_type c_types[] = {GEMM_TYPE_U8, GEMM_TYPE_S8, GEMM_TYPE_S32, GEMM_TYPE_F32,
                                         GEMM_TYPE_BF16};

struct arrays {
    _Alignas(GEMM_ALIGN) int32_t acc[GEMM_MR_MAX * GEMM_NR_MAX];
    _Alignas(GEMM_ALIGN) int32_t offset[COLUMNS];
    _Alignas(GEMM_ALIGN) int32_t column_sums[COLUMNS];
    _Alignas(GEMM_ALIGN) int32_t b_zero_points[COLUMNS];
    _Alignas(GEMM_ALIGN) float scale[COLUMNS];
    _Alignas(GEMM_ALIGN) float bias[COLUMNS];
    _Alignas(GEMM_ALIGN) float weighted_sums[COLUMNS];
    float row_scales[ROWS_BEFORE_MAX + GEMM_MR_MAX];
    int32_t row_zero_points[ROWS_BEFORE_MAX + GEMM_MR_MAX];
    int32_t row_sums[ROWS_BEFORE_MAX + GEMM_MR_MAX];
    const void *residual[ROWS_BEFORE_MAX + GEMM_MR_MAX];
    struct guard c, residual_last; /* the last row of each: exactly n columns, then a fault */
    uint8_t residual_rows[GEMM_MR_MAX][GEMM_NR_MAX * 4];
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

/* Any float at all, NaN and infinities more often than chance would have them. */
static float any_float(void)
{
    static const uint32_t patterns[] = {0x7fc00000, 0xffc00000, 0x7f800001, 0xff812345,
                                        0x7f800000, 0xff800000, 0x7f7fffff, 0x80000000};
    uint32_t bits = random_below(4) ? (uint32_t)random_u64() : patterns[random_below(8)];
    float value;

    if (random_below(3) == 0)
        return hostile_float();
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static void arrays_fill(struct arrays *x, size_t sums, bool ties, bool float_acc)
{
    for (size_t i = 0; i < sums; i++) {
        float f;

        if (float_acc) {
            f = any_float();
            memcpy(&x->acc[i], &f, sizeof(f));
        } else {
            x->acc[i] = ties ? (int32_t)random_below(1024) - 512 : hostile_s32();
        }
    }
    for (size_t j = 0; j < COLUMNS; j++) {
        x->offset[j] = ties ? 0 : hostile_s32();
        x->column_sums[j] = hostile_s32();
        x->b_zero_points[j] = (int32_t)random_below(256) - 128;
        x->scale[j] = ties ? 0.5f : hostile_float();
        x->bias[j] = ties ? 0.0f : hostile_float();
        x->weighted_sums[j] = hostile_float();
    }
    for (size_t i = 0; i < ROWS_BEFORE_MAX + GEMM_MR_MAX; i++) {
        x->row_scales[i] = any_float();
        x->row_zero_points[i] = (int32_t)random_below(256);
        x->row_sums[i] = hostile_s32();
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

/* n elements of the residual, of any kind. */
static void residual_fill(enum gemm_type type, size_t n, uint8_t *to)
{
    size_t bytes = gemm_type_bytes(type);

    for (size_t j = 0; j < n; j++) {
        float f = any_float();
        uint32_t bits;

        memcpy(&bits, &f, sizeof(bits));
        bits >>= bytes == 4 ? 0 : 32 - 8 * bytes; /* the upper half: the same float as bf16 */
        memcpy(to + j * bytes, &bits, bytes);
    }
}

/* The extra steps, each present in every second tile. */
static void extend(struct gemm_epilogue *epilogue, struct arrays *x, size_t m, size_t n, size_t row,
                   size_t column)
{
    static const enum gemm_type types[] = {GEMM_TYPE_U8, GEMM_TYPE_S8, GEMM_TYPE_F32,
                                           GEMM_TYPE_BF16};
    enum gemm_type type = types[random_below(4)];

    if (random_below(2))
        epilogue->row_scales = x->row_scales;
    if (random_below(2))
        epilogue->row_zero_points = x->row_zero_points;
    if (random_below(2) && !epilogue->weighted_sums)
        epilogue->row_sums = x->row_sums;
    if (epilogue->c_type == GEMM_TYPE_S32 || random_below(2))
        return;
    if (random_below(2)) /* so that it can be C's own row */
        type = epilogue->c_type;
    epilogue->residual = x->residual;
    epilogue->residual_type = type;
    epilogue->residual_zero_point = any_zero_point(type);
    epilogue->residual_scale = hostile_float();
    guard_place(&x->residual_last, n * gemm_type_bytes(type),
                random_below(2) ? GUARD_AFTER : GUARD_BEFORE);
    for (size_t i = 0; i < m; i++) {
        uint8_t *data = i + 1 == m ? x->residual_last.data : x->residual_rows[i];

        residual_fill(type, n, data);
        x->residual[row + i] = data - column * gemm_type_bytes(type);
    }
}

/* The residual's m rows of n elements move to the rows of C: added to what they will be replaced
 * by. */
static void residual_to_c(const struct gemm_epilogue *epilogue, struct arrays *x, size_t m,
                          size_t n, size_t row, size_t column, uint8_t *const *c)
{
    size_t bytes = gemm_type_bytes(epilogue->c_type);

    for (size_t i = 0; i < m; i++) {
        const uint8_t *from = x->residual[row + i];

        memcpy(c[i] + column * bytes, from + column * bytes, n * bytes);
        x->residual[row + i] = c[i];
    }
}

/* One tile: kernel and reference into equally placed rows, compared with all bytes around.  The
 * last row has a guard page right behind it, or right before.  The kernel's residual may be C. */
static void check_tile(const struct gemm_kernel *kernel, const struct gemm_epilogue *epilogue,
                       struct arrays *x, size_t m, size_t n, size_t row, size_t column)
{
    size_t bytes = gemm_type_bytes(epilogue->c_type);
    uint8_t expected[GEMM_NR_MAX * 4];
    uint8_t *c[GEMM_MR_MAX], *c_ref[GEMM_MR_MAX];
    uint8_t scratch[GEMM_MR_MAX][COLUMNS * 4 + 64], scratch_ref[GEMM_MR_MAX][COLUMNS * 4 + 64];
    size_t inner = x->c.mapping_bytes - 2 * 4096, dirty = 0;
    const void *residual[ROWS_BEFORE_MAX + GEMM_MR_MAX];

    memset(scratch, CANARY, sizeof(scratch));
    memset(scratch_ref, CANARY, sizeof(scratch_ref));
    guard_place(&x->c, n * bytes, random_below(2) ? GUARD_AFTER : GUARD_BEFORE);
    memset(x->c.mapping + 4096, CANARY, inner);
    for (size_t i = 0; i < m; i++) { /* every alignment, 4-byte types included */
        c[i] = i + 1 == m ? x->c.data - column * bytes : scratch[i] + 16 + i;
        c_ref[i] = i + 1 == m ? expected - column * bytes : scratch_ref[i] + 16 + i;
    }
    memcpy(residual, x->residual, sizeof(residual));
    if (epilogue->residual && gemm_type_bytes(epilogue->residual_type) == bytes && random_below(2))
        residual_to_c(epilogue, x, m, n, row, column, c);
    kernel->epilogue(m, n, kernel->nr, x->acc, epilogue, row, column, (void *const *)c);
    memcpy(x->residual, residual, sizeof(residual));
    gemm_epilogue_ref(m, n, kernel->nr, x->acc, epilogue, row, column, (void *const *)c_ref);
    check(!memcmp(scratch, scratch_ref, sizeof(scratch)), "rows or their surroundings differ");
    check(!memcmp(x->c.data, expected, n * bytes), "guarded row differs");
    for (uint8_t *p = x->c.mapping + 4096; p < x->c.mapping + 4096 + inner; p++)
        dirty += (p < x->c.data || p >= x->c.data + n * bytes) && *p != CANARY;
    check(dirty == 0, "%zu bytes outside the row were written", dirty);
}

static void check_random_tile(const struct gemm_kernel *kernel, struct arrays *x, int round)
{
    bool ties = round % 8 == 0, float_acc = false;
    enum gemm_type c_type = c_types[random_below(5)];
    size_t n = (size_t)round < kernel->nr ? (size_t)round + 1 : random_below(kernel->nr) + 1;
    size_t m = 1 + random_below(kernel->mr), row = random_below(ROWS_BEFORE_MAX + 1);
    size_t column = random_below(COLUMNS / kernel->nr) * kernel->nr;
    struct gemm_epilogue epilogue = {
        .a_type = round % 2 ? GEMM_TYPE_S8 : GEMM_TYPE_U8,
        .c_type = c_type,
        .c_zero_point = any_zero_point(c_type),
        .inverse_c_scale = ties ? 1.0f : hostile_float(),
        .clip_lo = hostile_float(),
        .offset = x->offset,
        .scale = x->scale,
        .bias = x->bias,
        .column_sums = x->column_sums,
        .b_zero_points = x->b_zero_points,
    };

    if (c_type != GEMM_TYPE_S32) {
        epilogue.activation = (enum gemm_activation)random_below(GEMM_ACTIVATION_COUNT);
        float_acc = random_below(4) == 0;
    }
    epilogue.clip_hi = fmaxf(epilogue.clip_lo, hostile_float());
    epilogue.weighted_sums = float_acc ? x->weighted_sums : NULL;
    arrays_fill(x, m * kernel->nr, ties, float_acc);
    if (random_below(3))
        extend(&epilogue, x, m, n, row, column);
    check_step("epilogue m=%zu n=%zu row=%zu column=%zu type=%d activation=%d zero=%d inverse=%a "
               "extra=%d%d%d%d%d%s",
               m, n, row, column, c_type, epilogue.activation, epilogue.c_zero_point,
               (double)epilogue.inverse_c_scale, float_acc, epilogue.row_scales != NULL,
               epilogue.row_zero_points != NULL, epilogue.row_sums != NULL,
               epilogue.residual ? epilogue.residual_type : 0, ties ? " ties" : "");
    check(gemm_epilogue_check(&epilogue, COLUMNS) == 0, "refused");
    check_tile(kernel, &epilogue, x, m, n, row, column);
}

/* Rows of u8 C one behind the other, which a level may write together, or with a gap. */
static void check_adjoining_rows(const struct gemm_kernel *kernel,
                                 const struct gemm_epilogue *epilogue, struct arrays *x, size_t m,
                                 size_t n, size_t column)
{
    enum { MARGIN = 64, GAP_MAX = 1 };
    uint8_t rows[2 * MARGIN + GEMM_MR_MAX * (ADJOINING_N_MAX + GAP_MAX)], rows_ref[sizeof(rows)];
    void *c[GEMM_MR_MAX], *c_ref[GEMM_MR_MAX];
    size_t distance = n + random_below(GAP_MAX + 1);

    memset(rows, CANARY, sizeof(rows));
    memset(rows_ref, CANARY, sizeof(rows_ref));
    for (size_t i = 0; i < m; i++) {
        c[i] = rows + MARGIN + i * distance - column;
        c_ref[i] = rows_ref + MARGIN + i * distance - column;
    }
    check_step("adjoining rows m=%zu n=%zu distance=%zu column=%zu inverse=%a", m, n, distance,
               column, (double)epilogue->inverse_c_scale);
    kernel->epilogue(m, n, kernel->nr, x->acc, epilogue, 0, column, c);
    gemm_epilogue_ref(m, n, kernel->nr, x->acc, epilogue, 0, column, c_ref);
    check(!memcmp(rows, rows_ref, sizeof(rows)), "rows or their surroundings differ");
}

/* Whole tiles of u8 after RELU without a zero point, for which a level may leave steps out: with
 * every kind of scale, 0 and negative ones included. */
static void check_common_tile(const struct gemm_kernel *kernel, struct arrays *x, int round)
{
    static const float inverses[] = {1.0f, 0.0f, -0.0f, -1.0f, FLT_MIN, 1e-45f, FLT_MAX};
    size_t m = 1 + random_below(kernel->mr);
    size_t column = random_below(COLUMNS / kernel->nr) * kernel->nr;
    bool ties = round % 2;
    struct gemm_epilogue epilogue = {
        .a_type = GEMM_TYPE_U8,
        .c_type = GEMM_TYPE_U8,
        .activation = GEMM_ACTIVATION_RELU,
        .inverse_c_scale = ties         ? 1.0f
                           : round % 16 ? hostile_float()
                                        : inverses[random_below(7)],
        .offset = x->offset,
        .scale = x->scale,
        .bias = x->bias,
    };

    arrays_fill(x, m * kernel->nr, ties, false);
    check_step("common epilogue m=%zu n=%u column=%zu inverse=%a%s", m, kernel->nr, column,
               (double)epilogue.inverse_c_scale, ties ? " ties" : "");
    check_tile(kernel, &epilogue, x, m, kernel->nr, 0, column);
    check_adjoining_rows(kernel, &epilogue, x, m, 1 + random_below(ADJOINING_N_MAX), column);
}

void check_epilogue(const struct gemm_kernel *kernel)
{
    struct arrays *x = check_alloc(sizeof(*x));

    guard_alloc(&x->c, GEMM_NR_MAX * 4);
    guard_alloc(&x->residual_last, GEMM_NR_MAX * 4);
    for (int round = 0; round < TILES; round++)
        check_random_tile(kernel, x, round);
    for (int round = 0; round < TILES / 4; round++)
        check_common_tile(kernel, x, round);
    guard_free(&x->c);
    guard_free(&x->residual_last);
    free(x);
}

/* ---- what a layer's creation refuses --------------------------------------------------------- */

static void check_refusals(void)
{
    static const float ordinary[2] = {1.0f, 2.0f}, broken[2] = {1.0f, NAN}, wide[2] = {INFINITY, 0};
    static const int32_t zeros[2];
    static const void *rows[1];
    const struct gemm_epilogue good = {
        .a_type = GEMM_TYPE_U8,
        .c_type = GEMM_TYPE_U8,
        .inverse_c_scale = 1.0f,
        .offset = zeros,
        .scale = ordinary,
        .bias = ordinary,
    };
    struct gemm_epilogue bad;

    check_step("gemm_epilogue_check");
    check(gemm_epilogue_check(&good, 2) == 0, "a plain layer");
#define REFUSED(...)                                                                               \
    do {                                                                                           \
        bad = good;                                                                                \
        __VA_ARGS__;                                                                               \
        check(gemm_epilogue_check(&bad, 2) == -EINVAL, "accepted " #__VA_ARGS__);                  \
    } while (0)
    REFUSED(bad.a_type = GEMM_TYPE_F32);
    REFUSED(bad.c_type = (enum gemm_type)0);
    REFUSED(bad.c_type = (enum gemm_type)6);
    REFUSED(bad.activation = GEMM_ACTIVATION_COUNT);
    REFUSED(bad.c_type = GEMM_TYPE_S32, bad.activation = GEMM_ACTIVATION_RELU);
    REFUSED(bad.activation = GEMM_ACTIVATION_CLIP, bad.clip_lo = 1.0f, bad.clip_hi = 0.5f);
    REFUSED(bad.activation = GEMM_ACTIVATION_CLIP, bad.clip_hi = NAN);
    REFUSED(bad.activation = GEMM_ACTIVATION_CLIP, bad.clip_hi = INFINITY);
    REFUSED(bad.c_zero_point = 256);
    REFUSED(bad.c_zero_point = -1);
    REFUSED(bad.c_type = GEMM_TYPE_F32, bad.c_zero_point = 1);
    REFUSED(bad.inverse_c_scale = INFINITY);
    REFUSED(bad.scale = broken);
    REFUSED(bad.bias = wide);
    REFUSED(bad.scale = NULL);
    REFUSED(bad.offset = NULL);
    REFUSED(bad.row_zero_points = zeros);
    REFUSED(bad.row_sums = zeros);
    REFUSED(bad.weighted_sums = broken);
    REFUSED(bad.c_type = GEMM_TYPE_S32, bad.weighted_sums = ordinary);
    REFUSED(bad.residual = rows, bad.residual_type = (enum gemm_type)0);
    REFUSED(bad.residual = rows, bad.residual_type = GEMM_TYPE_S8, bad.residual_zero_point = 128);
    REFUSED(bad.residual = rows, bad.residual_type = GEMM_TYPE_F32, bad.residual_zero_point = 1);
    REFUSED(bad.c_type = GEMM_TYPE_S32, bad.residual = rows, bad.residual_type = GEMM_TYPE_F32);
    REFUSED(bad.residual = rows, bad.residual_type = GEMM_TYPE_U8, bad.residual_scale = NAN);
    REFUSED(bad.residual = rows, bad.residual_type = GEMM_TYPE_U8, bad.residual_zero_point = -1);
    REFUSED(bad.c_type = GEMM_TYPE_F32, bad.residual = rows, bad.residual_type = GEMM_TYPE_S32);
#undef REFUSED
    check_step("gemm_k_check");
    check(gemm_k_check(1, false) == 0 && gemm_k_check(65536, false) == 0, "k inside");
    check(gemm_k_check(0, false) == -ERANGE && gemm_k_check(65537, false) == -ERANGE &&
              gemm_k_check(UINT32_MAX, false) == -ERANGE,
          "k outside");
    check(gemm_k_check(33025, true) == 0 && gemm_k_check(33026, true) == -ERANGE, "k, zero points");
    /* The limits are the largest: one more product of the extremes would pass 2^31 - 1. */
    check(INT64_C(255) * 128 * GEMM_K_MAX <= INT32_MAX, "u8 * s8");
    check(INT64_C(255) * 255 * GEMM_K_MAX_B_ZERO_POINTS <= INT32_MAX &&
              INT64_C(255) * 255 * (GEMM_K_MAX_B_ZERO_POINTS + 1) > INT32_MAX,
          "u8 * (s8 - zero point)");
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
    check_refusals();
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
        gemm_epilogue_ref(1, 1, 1, &p->acc, &epilogue, 0, 0, (void *[]){&s32});
        check(s32 == p->s32, "s32 %d, expected %d", s32, p->s32);
        epilogue.c_type = GEMM_TYPE_F32;
        gemm_epilogue_ref(1, 1, 1, &p->acc, &epilogue, 0, 0, (void *[]){&f32});
        expected += p->bias;
        if (p->activation == GEMM_ACTIVATION_RELU && !(expected > 0))
            expected = 0;
        check(!memcmp(&f32, &expected, sizeof(f32)), "f32 %a, expected %a", (double)f32,
              (double)expected);
        epilogue.c_type = GEMM_TYPE_U8;
        epilogue.c_zero_point = p->c_zero_point;
        gemm_epilogue_ref(1, 1, 1, &p->acc, &epilogue, 0, 0, (void *[]){&u8});
        check(u8 == p->u8, "u8 %d, expected %d", u8, p->u8);
        epilogue.c_type = GEMM_TYPE_S8;
        epilogue.c_zero_point = p->c_zero_point - 128;
        gemm_epilogue_ref(1, 1, 1, &p->acc, &epilogue, 0, 0, (void *[]){&s8});
        check(s8 == p->s8, "s8 %d, expected %d", s8, p->s8);
    }
}
