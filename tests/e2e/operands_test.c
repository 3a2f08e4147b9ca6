/*
 * Operands beyond u8 rows and s8 weights: float rows that the worker quantises, s4 weights, zero
 * points of the weights, residuals, all outputs and activations; on the kernels of every level, bit
 * for bit against the oracle.
 */
#include "tests/harness.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

static const char *const masks[] = {"GEMMD_CPU_MASK",         "GEMMD_CPU_MASK=ref",
                                    "GEMMD_CPU_MASK=avx2",    "GEMMD_CPU_MASK=ref,avxvnni",
                                    "GEMMD_CPU_MASK=ref,avx512", "GEMMD_CPU_MASK=ref,avx512vnni"};
enum { MASK_COUNT = sizeof(masks) / sizeof(masks[0]) };

static struct harness_worker worker;

static struct gemmd *open_at(const char *mask)
{
    const char *const environment[] = {mask, NULL};
    struct gemmd_info info;
    struct gemmd *session;

    harness_start(&worker, NULL, environment);
    session = session_with(worker.socket, 64, UINT64_C(64) << 20, -1);
    assert_non_null(session);
    assert_int_equal(gemmd_get_info(session, &info), 0);
    print_message("%s: %s\n", mask, info.kernel);
    return session;
}

static void close_worker(struct gemmd **session)
{
    gemmd_close(session);
    harness_stop(&worker);
}

static void check(struct gemmd *session, uint32_t n, uint32_t k, const struct layer_kind *kind,
                  uint64_t seed)
{
    /* Under a sanitizer, where all takes many times as long, one of them, and no long one. */
    const bool brief = machine_is_sanitized();
    const uint32_t row_counts[] = {1, 5, brief ? 9 : 37};
    struct layer_case layer;
    struct gemmd_layer *handle;
    int created;

    layer_case_init_kind(&layer, n, k, kind, seed % 2 == 0, seed);
    created = gemmd_layer_create(session, &layer.desc, &handle);
    if (created != 0)
        fprintf(stderr, "gemmd_layer_create: %d %s\n", created, gemmd_error_text(session));
    assert_int_equal(created, 0);
    assert_int_equal(gemmd_layer_a_type(handle), layer.desc.a_type);
    assert_int_equal(gemmd_layer_b_type(handle), layer.desc.b_type);
    assert_int_equal(gemmd_layer_residual_type(handle), layer.desc.residual_type);
    for (size_t i = brief ? seed % 3 : 0; i < 3; i += brief ? 3 : 1)
        assert_int_equal(layer_case_check(session, handle, &layer, row_counts[i], seed + i), 0);
    assert_int_equal(gemmd_layer_close(session, &handle), 0);
    layer_case_fini(&layer);
}

/* Every bias and activation of one combination of the types, each at a shape of its own.  Under a
 * sanitizer each level has a third of them, the levels one after the other another third. */
static unsigned check_outputs(struct gemmd *session, struct layer_kind kind, uint64_t seed,
                              unsigned level)
{
    static const uint32_t shapes[][2] = {{1, 1}, {10, 64}, {37, 67}, {64, 128}, {130, 333}};
    static const enum gemmd_type residual_types[] = {GEMMD_TYPE_NONE, GEMMD_TYPE_U8, GEMMD_TYPE_S8,
                                                     GEMMD_TYPE_F32, GEMMD_TYPE_BF16};
    bool floats = kind.a_type == GEMMD_TYPE_F32 || kind.a_type == GEMMD_TYPE_BF16;
    bool s4 = kind.b_type == GEMMD_TYPE_S4, varies = floats || s4 || kind.a_row_scales;
    unsigned count = 0;

    for (kind.c_type = GEMMD_TYPE_U8; kind.c_type <= GEMMD_TYPE_BF16; kind.c_type++)
        for (kind.bias_type = 0; kind.bias_type <= GEMMD_TYPE_F32; kind.bias_type++)
            for (kind.activation = 0; kind.activation <= GEMMD_ACTIVATION_SILU; kind.activation++) {
                const uint32_t *shape = shapes[(seed + count) % 5];
                bool s32 = kind.c_type == GEMMD_TYPE_S32;

                if (kind.bias_type == GEMMD_TYPE_U8 || kind.bias_type == GEMMD_TYPE_S8 ||
                    (kind.bias_type == GEMMD_TYPE_S32 && varies) ||
                    (s32 && (varies || kind.activation || kind.bias_type == GEMMD_TYPE_F32)))
                    continue;
                /* u8, s8, f32, bf16 and none in turn, so that each meets each other operand */
                kind.residual_type = s32 ? GEMMD_TYPE_NONE : residual_types[(seed + count) % 5];
                if (!machine_is_sanitized() || (seed + count) % 3 == level % 3)
                    check(session, shape[0], shape[1], &kind, seed * 1000 + count);
                count++;
            }
    return count;
}

static void check_all(unsigned level)
{
    struct gemmd *session = open_at(masks[level]);
    unsigned count = 0, seed = 1;

    for (enum gemmd_type a = GEMMD_TYPE_U8; a <= GEMMD_TYPE_BF16; a++)
        for (int mode = 0; mode < (a >= GEMMD_TYPE_F32 ? 2 : 1); mode++) {
            struct layer_kind kind = {.a_type = a, .quantize_mode = mode};

            if (a == GEMMD_TYPE_S32)
                continue;
            for (int zero_points = 0; zero_points < 2; zero_points++) {
                kind.b_zero_points = zero_points;
                count += check_outputs(session, kind, seed++, level);
            }
            kind.a_row_scales = a < GEMMD_TYPE_F32; /* with zero points, then with s4 weights */
            count += kind.a_row_scales ? check_outputs(session, kind, seed++, level) : 0;
            kind.b_zero_points = false;
            kind.b_type = GEMMD_TYPE_S4;
            for (kind.group = 32; a != GEMMD_TYPE_S8 && kind.group <= 128; kind.group *= 2) {
                count += check_outputs(session, kind, seed++, level);
                kind.a_row_scales = false;
            }
        }
    /* 74 of s8 weights for u8 and s8 rows of one scale, 48 of all others. */
    assert_int_equal(count, 2 * 2 * 74 + (2 + 4 * 2 + 5 * 3) * 48);
    close_worker(&session);
}

static void test_all_kinds(void **state)
{
    (void)state;
    for (unsigned level = 0; level < MASK_COUNT; level++)
        check_all(level);
}

/* ---- where the limits are -------------------------------------------------------------------- */

/* Jobs of more rows than a scan takes on board, and the deepest layers. */
static void check_large(struct gemmd *session, uint32_t n, uint32_t k,
                        const struct layer_kind *kind, uint32_t m)
{
    struct layer_case layer;
    struct gemmd_layer *handle;

    layer_case_init_kind(&layer, n, k, kind, true, n + k);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    assert_int_equal(layer_case_check(session, handle, &layer, m, m), 0);
    assert_int_equal(gemmd_layer_close(session, &handle), 0);
    layer_case_fini(&layer);
}

static void test_large(void **state)
{
    static const struct layer_kind kinds[] = {
        {.a_type = GEMMD_TYPE_F32},
        {.a_type = GEMMD_TYPE_BF16, .quantize_mode = GEMMD_QUANTIZE_SYMMETRIC},
        {.a_type = GEMMD_TYPE_F32, .b_type = GEMMD_TYPE_S4, .group = 64},
        {.b_type = GEMMD_TYPE_S4, .group = 128},
        {.residual_type = GEMMD_TYPE_F32},
        {.a_type = GEMMD_TYPE_S8, .a_row_scales = true},
    };
    static const struct layer_kind zero_points = {.a_type = GEMMD_TYPE_F32, .b_zero_points = true};
    struct gemmd *session = open_at("GEMMD_CPU_MASK");

    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        check_large(session, 70, 200, &kinds[i], 2500);
        check_large(session, 200, 1023, &kinds[i], 700);
        check_large(session, 5, 65536, &kinds[i], 75);
    }
    check_large(session, 5, 33025, &zero_points, 75);
    close_worker(&session);
}

/* Sums of the largest magnitude, of u8 and of s8 rows, with zero points at the other end. */
static void check_extreme(struct gemmd *session, enum gemmd_type a_type, int a, int a_zero_point)
{
    const struct layer_kind kind = {
        .a_type = a_type, .c_type = GEMMD_TYPE_S32, .b_zero_points = true};
    const uint32_t k = 33025;
    uint8_t *rows = gemmd_buffer_alloc(session, k);
    int32_t *sums = gemmd_buffer_alloc(session, 2 * sizeof(*sums));
    struct gemmd_layer *handle;
    struct layer_case layer;
    struct gemmd_job job;

    assert_true(rows && sums);
    layer_case_init_kind(&layer, 2, k, &kind, false, 1);
    layer.desc.a_zero_point = a_zero_point;
    memset(layer.weights, 127, k);
    memset(layer.weights + k, -128, k);
    layer.zero_points[0] = -128;
    layer.zero_points[1] = 127;
    memset(rows, a, k);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    gemmd_job_init(&job, handle, 1, rows, sums);
    assert_int_equal(gemmd_run(session, &job, 20000), 0);
    assert_int_equal(sums[0], (a - a_zero_point) * 255 * 33025);
    assert_int_equal(sums[1], (a - a_zero_point) * -255 * 33025);
    layer_case_fini(&layer);
    gemmd_buffer_free(session, rows);
    gemmd_buffer_free(session, sums);
}

static void test_extreme_sums(void **state)
{
    (void)state;
    for (int i = 0; i < MASK_COUNT; i++) {
        struct gemmd *session = open_at(masks[i]);

        check_extreme(session, GEMMD_TYPE_U8, 255, 0);
        check_extreme(session, GEMMD_TYPE_U8, 0, 255);
        check_extreme(session, GEMMD_TYPE_S8, 127, -128);
        check_extreme(session, GEMMD_TYPE_S8, -128, 127);
        close_worker(&session);
    }
}

/* ---- floats that are no numbers -------------------------------------------------------------- */

/* One row through weights of 1: NaN counts as 0, infinities as the ends of the finite range. */
static void check_row(struct gemmd *session, const float *row, uint32_t k, float expected)
{
    static const int8_t ones[4] = {1, 1, 1, 1};
    struct gemmd_layer_desc desc;
    struct gemmd_layer *handle;
    struct gemmd_job job;
    float *a = gemmd_buffer_alloc(session, k * sizeof(*a));
    float *c = gemmd_buffer_alloc(session, sizeof(*c));

    assert_true(a && c);
    gemmd_layer_desc_init(&desc);
    desc.n = 1;
    desc.k = k;
    desc.a_type = GEMMD_TYPE_F32;
    desc.weights = ones;
    assert_true(gemmd_layer_create(session, &desc, &handle) >= 0);
    memcpy(a, row, k * sizeof(*a));
    gemmd_job_init(&job, handle, 1, a, c);
    assert_int_equal(gemmd_run(session, &job, 20000), 0);
    assert_true(fabsf(*c - expected) <= 1e-6f * fabsf(expected));
    gemmd_buffer_free(session, a);
    gemmd_buffer_free(session, c);
}

static void test_special_floats(void **state)
{
    static const float nothing[] = {NAN, NAN, -NAN, 0}, one[] = {NAN, 255, NAN, 0};
    static const float infinite[] = {INFINITY, 255, 0, NAN};
    static const float both[] = {INFINITY, 255, -INFINITY, 0};
    static const float only_infinite[] = {INFINITY, 0, 0, 0};
    struct gemmd *session = open_at("GEMMD_CPU_MASK");

    (void)state;
    check_row(session, nothing, 4, 0);
    check_row(session, one, 4, 255);
    check_row(session, infinite, 4, 510);
    check_row(session, both, 4, 510); /* the range's lower end is 0 */
    check_row(session, only_infinite, 4, 255 * 0x1p-126f);
    close_worker(&session);
}

/* The zero point of u8 rows goes into the bias of s4 weights: it must not leave a float's range. */
static void test_s4_bias_overflows(void **state)
{
    const struct layer_kind kind = {.b_type = GEMMD_TYPE_S4, .group = 32};
    struct gemmd *session = open_at("GEMMD_CPU_MASK");
    struct gemmd_layer *handle;
    struct layer_case layer;

    (void)state;
    layer_case_init_kind(&layer, 3, 64, &kind, true, 3);
    layer.desc.a_zero_point = 200;
    layer.scales[1] = 1e38f;
    layer.desc.a_scale = 1.0f;
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), -EINVAL);
    assert_non_null(strstr(gemmd_error_text(session), "bias"));
    layer.desc.a_zero_point = 0;
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    layer_case_fini(&layer);
    close_worker(&session);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_kinds),      cmocka_unit_test(test_large),
        cmocka_unit_test(test_extreme_sums),   cmocka_unit_test(test_special_floats),
        cmocka_unit_test(test_s4_bias_overflows),
    };

    return HARNESS_RUN(tests, NULL, NULL, 500);
}
