/*
 * Layers whose weights allow the faster kernel of a level without VNNI: they get it, whether a
 * client brings them or a file does, and are exact, as are those in which one pair does not allow
 * it, wherever that is.
 */
#include "tests/harness.h"

#include <string.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/model_file.h"

/* Above 1 MiB: a file's layer is read, and judged, in more than one piece. */
enum { N = 1100, K = 1022 };

static const char *const masks[] = {"GEMMD_CPU_MASK=avx2", "GEMMD_CPU_MASK=ref,avx512",
                                    "GEMMD_CPU_MASK"};
static char directory[] = "/tmp/gemmd-narrow-XXXXXX";
static char model[64], packed[64];

static struct harness_worker worker;
static char any[64]; /* the worker's kernel, for any weights */

static struct gemmd *open_at(const char *mask)
{
    const char *const environment[] = {mask, NULL};
    struct gemmd *session;
    struct gemmd_info info;

    harness_start(&worker, NULL, environment);
    session = session_with(worker.socket, 64, UINT64_C(16) << 20, -1);
    assert_non_null(session);
    assert_int_equal(gemmd_get_info(session, &info), 0);
    memcpy(any, info.kernel, sizeof(any));
    return session;
}

static void close_worker(struct gemmd **session)
{
    gemmd_close(session);
    harness_stop(&worker);
}

/* What the named layer runs on is the level's kernel for narrow pairs, if it has one and they are,
 * or else the worker's. */
static void check_kernel(struct gemmd *session, const char *name, bool narrow)
{
    struct gemmd_layer_info info;
    bool has_narrow = strstr(any, "_avx2") || strstr(any, "_avx512");

    if (strstr(any, "vnni"))
        has_narrow = false;
    for (uint32_t i = 0; gemmd_get_layer_info(session, i, &info) == 0; i++)
        if (strcmp(info.name, name) == 0)
            break;
    assert_string_equal(info.name, name);
    if (narrow && has_narrow)
        assert_non_null(strstr(info.kernel, "gemm_u8s7s32_"));
    else
        assert_string_equal(info.kernel, any);
}

/* ---- weights --------------------------------------------------------------------------------- */

/* Of 7 bits, or pairs up to the limit of both signs; `bad`: the pair that is one beyond, or -1. */
static void narrow(struct layer_case *layer, bool at_limits, int64_t bad)
{
    uint32_t n = layer->desc.n, k = layer->desc.k;

    for (size_t j = 0; j < n; j++)
        for (size_t t = 0; t < k; t++) {
            int8_t *at = layer->weights + j * k + t;
            int before = at[-(int)(t % 2)], limit = before > 0 ? 128 : -128;

            if (!at_limits)
                *at = (int8_t)(*at >> 1);
            else if (t % 2 && (before > 0) == (*at > 0) && before)
                *at = (int8_t)(limit - before);
        }
    if (bad >= 0)
        memcpy(layer->weights + 2 * bad, (const int8_t[]){64, 65}, 2);
}

/* Rows of extremes make a pair that saturates show. */
static void check_extreme_rows(struct gemmd *session, struct gemmd_layer *handle,
                               const struct layer_case *layer)
{
    enum { M = 7 };
    uint32_t k = layer->desc.k, n = layer->desc.n;
    uint8_t *a = gemmd_buffer_alloc(session, (size_t)M * k);
    char *c = gemmd_buffer_alloc(session, (size_t)M * n * type_bytes(layer->desc.c_type));
    char *expected = malloc((size_t)M * n * type_bytes(layer->desc.c_type));
    struct gemmd_job job;

    assert_true(a && c && expected);
    memset(a, layer->desc.a_type == GEMMD_TYPE_S8 ? 127 : 255, (size_t)M * k);
    gemmd_job_init(&job, handle, M, a, c);
    assert_int_equal(gemmd_run(session, &job, 20000), 0);
    layer_case_expect(layer, M, a, k, expected, n * type_bytes(layer->desc.c_type));
    assert_memory_equal(c, expected, (size_t)M * n * type_bytes(layer->desc.c_type));
    free(expected);
    gemmd_buffer_free(session, a);
    gemmd_buffer_free(session, c);
}

static void check_layer(struct gemmd *session, const struct layer_kind *kind, uint32_t n,
                        uint32_t k, bool at_limits, int64_t bad, uint64_t seed)
{
    struct gemmd *other = session_with(worker.socket, 64, 1 << 20, -1);
    struct gemmd_layer *handle, *again;
    struct layer_case layer;

    layer_case_init_kind(&layer, n, k, kind, true, seed);
    narrow(&layer, at_limits, bad);
    layer.desc.name = "layer";
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    check_kernel(session, "layer", bad < 0);
    for (uint32_t m = 1; m < 20; m += 6)
        assert_int_equal(layer_case_check(session, handle, &layer, m, seed + m), 0);
    if (kind->a_type <= GEMMD_TYPE_S8)
        check_extreme_rows(session, handle, &layer);
    assert_int_equal(gemmd_layer_create(other, &layer.desc, &again), 1); /* attached */
    assert_int_equal(layer_case_check(other, again, &layer, 3, seed), 0);
    gemmd_close(&other);
    assert_int_equal(gemmd_layer_close(session, &handle), 0);
    layer_case_fini(&layer);
}

static void test_clients(void **state)
{
    static const struct layer_kind kinds[] = {
        {.a_type = GEMMD_TYPE_U8, .c_type = GEMMD_TYPE_F32},
        {.a_type = GEMMD_TYPE_S8, .c_type = GEMMD_TYPE_S32},
        {.a_type = GEMMD_TYPE_U8, .c_type = GEMMD_TYPE_S32, .b_zero_points = true},
        {.a_type = GEMMD_TYPE_F32, .c_type = GEMMD_TYPE_F32}};

    (void)state;
    for (size_t level = 0; level < sizeof(masks) / sizeof(masks[0]); level++) {
        struct gemmd *session = open_at(masks[level]);

        print_message("%s: %s\n", masks[level], any);
        for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
            check_layer(session, &kinds[i], 70, 333, false, -1, 3 * i);
            check_layer(session, &kinds[i], 130, 66, true, -1, 3 * i + 1);
            check_layer(session, &kinds[i], 130, 66, i % 2, 130 * 33 - 1, 3 * i + 2);
        }
        close_worker(&session);
    }
}

/* ---- files ----------------------------------------------------------------------------------- */

/* A file says nothing of its weights that the worker would believe: it looks at all of them. */
static void test_files(void **state)
{
    static const int64_t bad[] = {-1, 0, (int64_t)N * K / 2 - 1};
    struct layer_case layers[3];

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        layer_case_plain(&layers[i], N, K, i);
        narrow(&layers[i], true, bad[i]);
    }
    model_write(model, layers, 3);
    for (size_t level = 0; level < sizeof(masks) / sizeof(masks[0]); level++) {
        struct gemmd *session = open_at(masks[level]);

        assert_int_equal(model_pack(model, packed, "--kernel", any, NULL, 0), 0);
        assert_int_equal(model_load(session, packed, NULL, NULL), 3);
        for (int i = 0; i < 3; i++) {
            struct gemmd_layer *handle;
            char name[8];

            snprintf(name, sizeof(name), "l%d", i);
            check_kernel(session, name, bad[i] < 0);
            assert_int_equal(gemmd_layer_open(session, name, &handle), 0);
            check_extreme_rows(session, handle, &layers[i]);
            assert_int_equal(gemmd_layer_close(session, &handle), 0);
        }
        close_worker(&session);
    }
    for (size_t i = 0; i < 3; i++)
        layer_case_fini(&layers[i]);
}

/* Files are packed by the level's one layout, which the kernel for any weights names. */
static void test_packing_names_no_kernel_of_the_weights(void **state)
{
    char error[512];

    (void)state;
    assert_int_equal(model_pack(model, packed, "--kernel", "gemm_u8s7s32_6x16c4_avx2", error,
                                sizeof(error)), 64);
    assert_null(strstr(error, "  gemm_u8s7s32"));
    assert_non_null(strstr(error, "  gemm_u8s8s32"));
}

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(directory))
        return -1;
    snprintf(model, sizeof(model), "%s/model.safetensors", directory);
    snprintf(packed, sizeof(packed), "%s/model.gpk", directory);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(model);
    unlink(packed);
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clients),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_packing_names_no_kernel_of_the_weights),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
