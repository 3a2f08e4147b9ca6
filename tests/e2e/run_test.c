/* Layers and jobs through a worker: every type combination, bit for bit against the oracle. */
#include "tests/harness.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

static struct harness_worker worker;

static const uint32_t row_counts[] = {0, 1, 2, 5, 17, 64};

static void check_combination(struct gemmd *session, const struct layer_case *layer, uint64_t seed)
{
    struct gemmd_layer *handle;
    int created = gemmd_layer_create(session, &layer->desc, &handle);

    if (created != 0)
        fprintf(stderr, "gemmd_layer_create: %d %s\n", created, gemmd_error_text(session));
    assert_int_equal(created, 0);
    assert_true(gemmd_layer_bytes_new(handle) >= (uint64_t)layer->desc.n * layer->desc.k);
    for (size_t i = 0; i < sizeof(row_counts) / sizeof(row_counts[0]); i++)
        assert_int_equal(layer_case_check(session, handle, layer, row_counts[i], seed + i), 0);
    assert_int_equal(gemmd_layer_close(session, &handle), 0);
    assert_null(handle);
}

/* 40 combinations of types, bias and activation, each at five shapes around the tiles' edges. */
static void test_all_combinations(void **state)
{
    static const uint32_t shapes[][2] = {{1, 1}, {10, 64}, {37, 67}, {64, 128}, {130, 333}};
    struct gemmd *session = session_to(worker.socket);
    unsigned count = 0;

    (void)state;
    assert_non_null(session);
    for (enum gemmd_type a = GEMMD_TYPE_U8; a <= GEMMD_TYPE_S8; a++)
        for (enum gemmd_type c = GEMMD_TYPE_U8; c <= GEMMD_TYPE_F32; c++)
            for (enum gemmd_type bias = GEMMD_TYPE_NONE; bias <= GEMMD_TYPE_F32; bias++)
                for (enum gemmd_activation f = 0; f <= GEMMD_ACTIVATION_RELU; f++) {
                    bool s32 = c == GEMMD_TYPE_S32;

                    if (bias == GEMMD_TYPE_U8 || bias == GEMMD_TYPE_S8 ||
                        (s32 && (bias == GEMMD_TYPE_F32 || f)))
                        continue;
                    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
                        struct layer_case layer;

                        count++;
                        layer_case_init(&layer, shapes[i][0], shapes[i][1], a, c, bias, f,
                                        count % 2 == 0, 1000 + count);
                        check_combination(session, &layer, 7777 * count);
                        layer_case_fini(&layer);
                    }
                }
    assert_int_equal(count, 200);
    gemmd_close(&session);
}

/* Sums of the largest magnitude: 255 * 127 and 255 * -128 over the deepest layer. */
static void test_extreme_sums(void **state)
{
    struct gemmd *session = session_to(worker.socket);
    const uint32_t k = 65536;
    struct layer_case layer;
    struct gemmd_layer *handle;
    struct gemmd_job job;
    uint8_t *a = gemmd_buffer_alloc(session, k);
    int32_t *c = gemmd_buffer_alloc(session, 2 * sizeof(*c));

    (void)state;
    assert_true(a && c);
    layer_case_init(&layer, 2, k, GEMMD_TYPE_U8, GEMMD_TYPE_S32, GEMMD_TYPE_NONE,
                    GEMMD_ACTIVATION_NONE, false, 1);
    layer.desc.a_zero_point = 0;
    memset(layer.weights, 127, k);
    memset(layer.weights + k, -128, k);
    memset(a, 255, k);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    gemmd_job_init(&job, handle, 1, a, c);
    assert_int_equal(gemmd_run(session, &job, 20000), 0);
    assert_int_equal(c[0], 255 * 127 * 65536);
    assert_int_equal(c[1], -255 * 128 * 65536);
    layer_case_fini(&layer);
    gemmd_close(&session);
}

/* Gaps between rows stay as they were, at offsets that no vector likes. */
static void check_strided(struct gemmd *session, struct gemmd_layer *handle,
                          const struct layer_case *layer, uint32_t m, size_t a_gap, size_t c_gap)
{
    size_t c_row = layer->desc.n * type_bytes(layer->desc.c_type);
    size_t a_stride = layer->desc.k + a_gap, c_stride = c_row + c_gap;
    size_t c_bytes = m * c_stride + 64;
    uint8_t *a = gemmd_buffer_alloc(session, m * a_stride + 3), *wanted = malloc(c_bytes);
    uint8_t *c = gemmd_buffer_alloc(session, c_bytes);
    uint64_t seed = 99 + a_gap;
    struct gemmd_job job;

    REQUIRE(a && c && wanted);
    random_bytes(&seed, a, m * a_stride + 3);
    memset(c, 0x5a, c_bytes);
    memset(wanted, 0x5a, c_bytes);
    gemmd_job_init(&job, handle, m, a + 3, c + 4);
    job.a_stride_bytes = (uint32_t)a_stride;
    job.c_stride_bytes = (uint32_t)c_stride;
    assert_int_equal(gemmd_run(session, &job, 20000), 0);
    layer_case_expect(layer, m, a + 3, a_stride, wanted + 4, c_stride);
    assert_memory_equal(c, wanted, c_bytes);
    free(wanted);
    gemmd_buffer_free(session, a);
    gemmd_buffer_free(session, c);
}

static void test_strided_rows(void **state)
{
    struct gemmd *session = session_to(worker.socket);

    (void)state;
    for (enum gemmd_type c_type = GEMMD_TYPE_U8; c_type <= GEMMD_TYPE_F32; c_type++) {
        struct layer_case layer;
        struct gemmd_layer *handle;

        layer_case_init(&layer, 77, 131, GEMMD_TYPE_S8, c_type, GEMMD_TYPE_S32,
                        GEMMD_ACTIVATION_NONE, true, 5);
        assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
        check_strided(session, handle, &layer, 19, 0, 0);
        check_strided(session, handle, &layer, 19, 5, 12);
        check_strided(session, handle, &layer, 7, 4096, 256);
        layer_case_fini(&layer);
    }
    gemmd_close(&session);
}

/* ---- sharing --------------------------------------------------------------------------------- */

static void test_attach(void **state)
{
    struct gemmd *first = session_to(worker.socket), *second = session_to(worker.socket);
    struct gemmd_layer *layer_1, *layer_2;
    struct gemmd_info before, after;
    struct gemmd_layer_info info;
    struct layer_case layer;

    (void)state;
    layer_case_plain(&layer, 300, 200, 42);
    assert_int_equal(gemmd_layer_create(first, &layer.desc, &layer_1), 0);
    assert_true(gemmd_layer_bytes_new(layer_1) >= 300 * 200);
    assert_int_equal(gemmd_get_info(first, &before), 0);
    assert_int_equal(gemmd_layer_create(second, &layer.desc, &layer_2), 1);
    assert_int_equal(gemmd_layer_bytes_new(layer_2), 0);
    assert_int_equal(gemmd_get_info(first, &after), 0);
    assert_int_equal(after.pool_bytes_used, before.pool_bytes_used);
    assert_int_equal(after.layer_count, before.layer_count);
    assert_int_equal(gemmd_get_layer_info(first, after.layer_count - 1, &info), 0);
    assert_int_equal(info.references, 2);
    assert_int_equal(info.hits, 1);
    assert_int_equal(layer_case_check(first, layer_1, &layer, 5, 1), 0);
    gemmd_close(&first); /* its creator's end does not take the layer away */
    assert_int_equal(layer_case_check(second, layer_2, &layer, 5, 2), 0);
    gemmd_close(&second);
    layer_case_fini(&layer);
}

/* A model of more layers than are asked for ahead; some are there, the first and the last not. */
#define MODEL_LAYERS 75

static void test_a_model_at_once(void **state)
{
    struct gemmd *first = session_to(worker.socket), *second = session_to(worker.socket);
    struct gemmd_layer *before[MODEL_LAYERS], *handles[MODEL_LAYERS];
    struct gemmd_layer_desc descs[MODEL_LAYERS];
    struct layer_case layers[MODEL_LAYERS];
    struct gemmd_session_info info;
    int present = 0;

    (void)state;
    for (uint32_t i = 0; i < MODEL_LAYERS; i++) {
        layer_case_plain(&layers[i], 20 + i, 300 - i, 500 + i);
        descs[i] = layers[i].desc;
        if (i % 3 == 1)
            assert_int_equal(gemmd_layer_create(first, &descs[i], &before[present++]), 0);
    }
    assert_int_equal(gemmd_layers_create(second, descs, MODEL_LAYERS, handles), present);
    for (uint32_t i = 0; i < MODEL_LAYERS; i++) {
        assert_int_equal(gemmd_layer_bytes_new(handles[i]) == 0, i % 3 == 1);
        assert_int_equal(layer_case_check(second, handles[i], &layers[i], 3, i), 0);
        assert_int_equal(gemmd_layer_close(second, &handles[i]), 0);
    }
    /* All or none, and the reason is the first failure's. */
    layers[40].scales[7] = NAN;
    descs[60].n = 0;
    assert_int_equal(gemmd_layers_create(second, descs, MODEL_LAYERS, handles), -EINVAL);
    assert_non_null(strstr(gemmd_error_text(second), "scale"));
    for (uint32_t i = 0; i < MODEL_LAYERS; i++)
        assert_null(handles[i]);
    for (uint32_t i = 0; gemmd_get_session_info(first, i, &info) == 0; i++)
        assert_true(info.layers == 0 || info.layers == (uint32_t)present);
    assert_int_equal(gemmd_layers_create(second, descs, 0, handles), 0);
    assert_int_equal(gemmd_layers_create(second, descs, 5, handles), 5);
    gemmd_close(&first);
    gemmd_close(&second);
    for (uint32_t i = 0; i < MODEL_LAYERS; i++)
        layer_case_fini(&layers[i]);
}

struct progress {
    uint64_t calls, bytes_sent, bytes;
};

static void note_progress(void *context, uint64_t bytes_sent, uint64_t bytes)
{
    struct progress *progress = context;

    assert_true(bytes_sent > progress->bytes_sent && bytes_sent <= bytes);
    *progress = (struct progress){progress->calls + 1, bytes_sent, bytes};
}

/* An upload of several arenas tells how far it is; what is attached to is not sent. */
static void test_progress(void **state)
{
    struct gemmd *session = session_with(worker.socket, 8, 1 << 19, -1);
    struct progress first = {0}, second = {0};
    struct gemmd_layer *handle, *again;
    struct layer_case layer;

    (void)state;
    assert_non_null(session);
    layer_case_plain(&layer, 1500, 1100, 47);
    layer.desc.progress = note_progress;
    layer.desc.progress_context = &first;
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    assert_true(first.calls > 3);
    assert_int_equal(first.bytes_sent, first.bytes);
    assert_true(first.bytes >= 1500 * 1100);
    assert_int_equal(layer_case_check(session, handle, &layer, 2, 1), 0);
    layer.desc.progress_context = &second;
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &again), 1);
    assert_int_equal(second.calls, 0);
    gemmd_close(&session);
    layer_case_fini(&layer);
}

static void test_names(void **state)
{
    struct gemmd *first = session_to(worker.socket), *second = session_to(worker.socket);
    struct gemmd_layer *created, *opened, *other;
    struct layer_case layer;

    (void)state;
    layer_case_plain(&layer, 31, 70, 43);
    layer.desc.name = "net/fc-1.0";
    assert_int_equal(gemmd_layer_create(first, &layer.desc, &created), 0);
    assert_int_equal(gemmd_layer_open(second, "net/fc-1.0", &opened), 0);
    assert_int_equal(gemmd_layer_n(opened), 31);
    assert_int_equal(gemmd_layer_k(opened), 70);
    assert_int_equal(gemmd_layer_a_type(opened), GEMMD_TYPE_U8);
    assert_int_equal(gemmd_layer_c_type(opened), GEMMD_TYPE_F32);
    assert_int_equal(gemmd_layer_bytes_new(opened), 0);
    assert_int_equal(layer_case_check(second, opened, &layer, 9, 3), 0);
    assert_int_equal(gemmd_layer_open(second, "net/fc-2", &other), -ENOENT);
    assert_null(other);
    assert_non_null(strstr(gemmd_error_text(second), "name"));
    layer.weights[0] ^= 1; /* other contents, same name */
    assert_int_equal(gemmd_layer_create(second, &layer.desc, &other), -EEXIST);
    layer.weights[0] ^= 1;
    assert_int_equal(layer_case_check(second, opened, &layer, 3, 4), 0);
    gemmd_close(&first);
    gemmd_close(&second);
    layer_case_fini(&layer);
}

/* Jobs that lie in the ring when their layer is closed: the worker sleeps (--spin-us 0, and no
 * doorbell rung), so it sees them only afterwards.  The rescue sweep may come first on a stalled
 * machine, hence the attempts. */
static void test_close_makes_jobs_stale(void **state)
{
    static const char *const no_spin[] = {"--spin-us", "0", NULL};
    struct gemmd_completion done[8];
    struct harness_worker sleeper;
    struct layer_case layer;
    struct gemmd *session;
    unsigned stale = 0;

    (void)state;
    harness_start(&sleeper, no_spin, NULL);
    session = session_to(sleeper.socket);
    layer_case_plain(&layer, 16, 16, 44);
    for (int attempt = 0; attempt < 5 && stale != 8; attempt++) {
        struct gemmd_layer *handle;
        struct gemmd_job job;
        void *a = gemmd_buffer_alloc(session, 16), *c = gemmd_buffer_alloc(session, 64);

        stale = 0;
        assert_true(gemmd_layer_create(session, &layer.desc, &handle) >= 0);
        gemmd_job_init(&job, handle, 1, a, c);
        assert_true(machine_wait_asleep(sleeper.pid, 2000));
        for (uint64_t i = 0; i < 8; i++) {
            job.user_data = 100 + i;
            assert_int_equal(gemmd_submit(session, &job, 1), 1);
        }
        assert_int_equal(gemmd_layer_close(session, &handle), 0);
        for (unsigned got = 0; got < 8;) {
            int count = gemmd_wait(session, done + got, 8 - got, 10000);

            assert_true(count > 0);
            got += (unsigned)count;
        }
        assert_int_equal(gemmd_in_flight(session), 0);
        for (unsigned i = 0; i < 8; i++) {
            assert_int_equal(done[i].user_data, 100 + i);
            stale += strcmp(gemmd_status_name(done[i].status), "LAYER_STALE") == 0 &&
                     done[i].error == -ESTALE;
        }
        gemmd_buffer_free(session, a);
        gemmd_buffer_free(session, c);
    }
    assert_int_equal(stale, 8);
    gemmd_close(&session);
    layer_case_fini(&layer);
    harness_stop(&sleeper);
}

static int classify(void *argument)
{
    uint64_t index = (uint64_t)(uintptr_t)argument;
    struct gemmd *session = session_to(worker.socket);
    struct gemmd_layer *shared, *own;
    struct layer_case layer_1, layer_2;

    REQUIRE(session != NULL);
    layer_case_plain(&layer_1, 120, 96, 45);
    layer_case_plain(&layer_2, 33, 50, 4600 + index);
    REQUIRE(gemmd_layer_create(session, &layer_1.desc, &shared) >= 0);
    REQUIRE(gemmd_layer_create(session, &layer_2.desc, &own) == 0);
    for (uint64_t i = 0; i < 150; i++) {
        REQUIRE(layer_case_check(session, shared, &layer_1, 1 + i % 7, 1000 * index + i) == 0);
        REQUIRE(layer_case_check(session, own, &layer_2, 1 + i % 5, 2000 * index + i) == 0);
    }
    gemmd_close(&session);
    layer_case_fini(&layer_1);
    layer_case_fini(&layer_2);
    return 0;
}

static void test_four_processes(void **state)
{
    pid_t pids[4];

    (void)state;
    for (uintptr_t i = 0; i < 4; i++)
        pids[i] = harness_fork(classify, (void *)i);
    for (int i = 0; i < 4; i++)
        assert_int_equal(harness_join(pids[i], 30000), 0);
}

static void wait_until_alone(struct gemmd *witness)
{
    struct gemmd_info info;

    do {
        usleep(1000); /* the worker hears of a session's end a moment later */
        assert_int_equal(gemmd_get_info(witness, &info), 0);
    } while (info.session_count > 1);
}

/* Last: after all of the above the worker holds what it held before. */
static void test_nothing_leaks(void **state)
{
    struct gemmd *witness = session_to(worker.socket);
    unsigned own = machine_fds(getpid()), fds;

    (void)state;
    wait_until_alone(witness);
    fds = machine_fds(worker.pid);
    for (int i = 0; i < 20; i++) {
        struct gemmd *session = session_to(worker.socket);

        assert_non_null(session);
        gemmd_close(&session);
        assert_null(session);
    }
    assert_int_equal(machine_fds(getpid()), own);
    wait_until_alone(witness);
    assert_int_equal(machine_fds(worker.pid), fds);
    assert_int_equal(machine_mappings(worker.pid, "gemmd-arena"), 1);
    assert_int_equal(machine_mappings(worker.pid, "gemmd-c2w"), 1);
    gemmd_close(&witness);
}

static int start(void **state)
{
    (void)state;
    harness_start(&worker, NULL, NULL);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    harness_stop(&worker);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_combinations), cmocka_unit_test(test_extreme_sums),
        cmocka_unit_test(test_strided_rows),     cmocka_unit_test(test_attach),
        cmocka_unit_test(test_a_model_at_once),  cmocka_unit_test(test_progress),
        cmocka_unit_test(test_names),            cmocka_unit_test(test_close_makes_jobs_stale),
        cmocka_unit_test(test_four_processes),   cmocka_unit_test(test_nothing_leaks),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
