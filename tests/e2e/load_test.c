/*
 * Layers loaded by the operator: packed files and safetensors, exact for every kernel, switched
 * under running clients, unloaded and pinned.
 */
#include "tests/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/kept_layers.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/model_file.h"

static char directory[] = "/tmp/gemmd-model-XXXXXX";

static const char *path_of(const char *name)
{
    static char paths[4][128];
    static unsigned next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof(paths[0]), "%s/%s", directory, name);
    return path;
}

static void check_named(struct gemmd *session, const char *name, const struct layer_case *layer)
{
    struct gemmd_layer *handle;

    assert_int_equal(gemmd_layer_open(session, name, &handle), 0);
    assert_int_equal(layer_case_check(session, handle, layer, 5, 7), 0);
    assert_int_equal(gemmd_layer_close(session, &handle), 0);
}

#define KINDS 10
static struct layer_case kinds[KINDS];

static void check_kinds(struct gemmd *session, const char *prefix)
{
    for (unsigned i = 0; i < KINDS; i++) {
        char name[64];

        snprintf(name, sizeof(name), "%s%sl%u", prefix, *prefix ? "/" : "", i);
        check_named(session, name, &kinds[i]);
    }
}

/* ---- files ----------------------------------------------------------------------------------- */

static void test_loaded_at_the_start(void **state)
{
    static const char *const names[] = {"kinds.safetensors", "kinds.gpk", "raw.gpk",
                                        "packed.gpk"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char model[160];
        const char *arguments[] = {"--model", model, "--pack-program",
                                   getenv("GEMMD_TEST_PACK"), NULL};
        struct harness_worker worker;
        struct gemmd *session;

        snprintf(model, sizeof(model), "%s%s", path_of(names[i]), i % 2 ? ":some/model" : "");
        harness_start(&worker, arguments, NULL);
        session = session_with(worker.socket, 64, 4 << 20, -1);
        check_kinds(session, i % 2 ? "some/model" : "");
        gemmd_close(&session);
        harness_stop(&worker);
    }
}

/* Packed for this machine's kernel, loaded by workers of all the others: packed again from the raw
 * weights, or refused when there are none; never misread. */
static void test_other_kernels(void **state)
{
    static const char *const masks[] = {"GEMMD_CPU_MASK=ref", "GEMMD_CPU_MASK=avx2",
                                        "GEMMD_CPU_MASK=avxvnni", "GEMMD_CPU_MASK=ref,avx512",
                                        "GEMMD_CPU_MASK"};
    unsigned refused = 0, loaded = 0;

    (void)state;
    for (size_t i = 0; i < sizeof(masks) / sizeof(masks[0]); i++) {
        const char *const environment[] = {masks[i], NULL};
        struct harness_worker worker;
        struct gemmd *session;
        int result;

        harness_start(&worker, NULL, environment);
        session = session_with(worker.socket, 64, 4 << 20, -1);
        assert_int_equal(model_load(session, path_of("kinds.gpk"), "both", NULL), KINDS);
        check_kinds(session, "both");
        assert_int_equal(model_load(session, path_of("raw.gpk"), "raw", NULL), KINDS);
        check_kinds(session, "raw");
        result = model_load(session, path_of("packed.gpk"), "packed", NULL);
        if (result == KINDS) {
            check_kinds(session, "packed");
            loaded++;
        } else {
            assert_int_equal(result, -EBADMSG);
            assert_non_null(strstr(gemmd_error_text(session), "layer 'l0': packed for gemm_"));
            refused++;
        }
        gemmd_close(&session);
        harness_stop(&worker);
    }
    assert_true(loaded >= 1 && refused >= 1);
}

static void test_gemmctl(void **state)
{
    static const char *const commands[][2] = {{"load", NULL},      {"pin", "digits"},
                                              {"unpin", "digits"}, {"layers", NULL},
                                              {"info", NULL},      {"unload", "digits"}};
    static const int unload_again = 66;
    struct harness_worker worker;
    char file[160];

    (void)state;
    harness_start(&worker, NULL, NULL);
    snprintf(file, sizeof(file), "%s:digits", path_of("kinds.gpk"));
    for (size_t i = 0; i <= sizeof(commands) / sizeof(commands[0]); i++) {
        const char *const *command = commands[i < 6 ? i : 5];
        const char *gemmctl = getenv("GEMMD_TEST_GEMMCTL");
        pid_t pid;

        fflush(NULL);
        pid = fork();
        if (pid == 0) {
            if (!freopen("/dev/null", "w", stdout) ||
                (i == 6 && !freopen("/dev/null", "w", stderr)))
                _exit(96);
            execl(gemmctl, gemmctl, "--socket", worker.socket, "--json", command[0],
                  i == 0 ? file : command[1], (char *)NULL);
            _exit(97);
        }
        assert_int_equal(harness_join(pid, 10000), i < 6 ? 0 : unload_again);
    }
    harness_stop(&worker);
}

/* ---- names ----------------------------------------------------------------------------------- */

/* An open handle stays with the old version, the name means the new one, at once for all. */
static void test_switch(void **state)
{
    struct harness_worker worker;
    struct gemmd *old_user, *session;
    struct gemmd_layer *old, *other;
    struct layer_case versions[2];
    struct gemmd_info before, after;
    uint64_t bytes;

    (void)state;
    layer_case_plain(&versions[0], 256, 256, 100);
    layer_case_plain(&versions[1], 320, 192, 101); /* another shape, too */
    harness_start(&worker, NULL, NULL);
    session = session_with(worker.socket, 64, 4 << 20, -1);
    old_user = session_with(worker.socket, 64, 4 << 20, -1);
    for (int version = 0; version < 2; version++) {
        model_write(path_of("v.safetensors"), &versions[version], 1);
        assert_int_equal(model_pack(path_of("v.safetensors"),
                                    path_of(version ? "v2.gpk" : "v1.gpk"), NULL, NULL, NULL, 0),
                         0);
    }
    assert_int_equal(gemmd_get_info(session, &before), 0);
    assert_int_equal(model_load(session, path_of("v1.gpk"), "m", &bytes), 1);
    assert_true(bytes >= 256 * 256);
    assert_int_equal(gemmd_layer_open(old_user, "m/l0", &old), 0);
    assert_int_equal(model_load(session, path_of("v2.gpk"), "m", &bytes), 1);
    for (uint64_t i = 0; i < 20; i++)
        assert_int_equal(layer_case_check(old_user, old, &versions[0], 4, i), 0);
    check_named(session, "m/l0", &versions[1]);
    assert_int_equal(gemmd_layer_open(old_user, "m/l0", &other), 0);
    assert_int_equal(gemmd_layer_n(other), 320);
    /* The same file again: nothing is read, nothing is new. */
    assert_int_equal(model_load(session, path_of("v2.gpk"), "m", &bytes), 1);
    assert_int_equal(bytes, 0);
    /* Unloaded while open: works on, nobody else gets it, and then it is gone. */
    assert_int_equal(gemmd_layers_unload(session, "m", &bytes), 1);
    assert_int_equal(bytes, 0);
    assert_int_equal(gemmd_layers_unload(session, "m", &bytes), -ENOENT);
    assert_int_equal(layer_case_check(old_user, other, &versions[1], 4, 1), 0);
    gemmd_close(&old_user);
    usleep(50000);
    assert_int_equal(gemmd_get_info(session, &after), 0);
    /* The first version lost its pin with its name: it lingers, unused. */
    assert_int_equal(after.layer_count, before.layer_count + 1);
    assert_int_equal(after.layer_bytes, after.layer_bytes_unused);
    gemmd_close(&session);
    harness_stop(&worker);
    layer_case_fini(&versions[0]);
    layer_case_fini(&versions[1]);
}

/* A client cannot take the name of an operator's layer, and eviction does not touch it. */
static void test_operators_names_are_kept(void **state)
{
    static const char *const arguments[] = {"--pool-bytes", "8M", NULL};
    struct harness_worker worker;
    struct gemmd *session;
    struct gemmd_layer *handle;
    struct layer_case layer;

    (void)state;
    harness_start(&worker, arguments, NULL);
    session = session_with(worker.socket, 64, 4 << 20, -1);
    assert_int_equal(model_load(session, path_of("kinds.gpk"), "op", NULL), KINDS);
    layer_case_plain(&layer, 64, 64, 5);
    layer.desc.name = "op/l0";
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), -EEXIST);
    layer_case_fini(&layer);
    for (uint64_t i = 0; i < 12; i++) { /* 12 MiB through a pool of 8 */
        layer_case_plain(&layer, 1024, 1000, 200 + i);
        assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
        assert_int_equal(layer_case_check(session, handle, &layer, 2, i), 0);
        assert_int_equal(gemmd_layer_close(session, &handle), 0);
        layer_case_fini(&layer);
    }
    check_kinds(session, "op");
    gemmd_close(&session);
    harness_stop(&worker);
}

/* ---- moved layers ---------------------------------------------------------------------------- */

#define HELD 4

struct mover {
    const char *socket;
    int stop_fd;
};

/* Jobs on layers that stay open, checked bit for bit, until the pipe ends. */
static int user_of_moved(void *argument)
{
    const struct mover *mover = argument;
    struct gemmd *session = session_with(mover->socket, 64, 4 << 20, -1);
    struct layer_case cases[HELD];
    struct gemmd_layer *handles[HELD];
    uint64_t count = 0;
    char byte;

    REQUIRE(session != NULL);
    for (uint32_t i = 0; i < HELD; i++) {
        char name[16];

        layer_case_plain(&cases[i], 256, 1000, 900 + i);
        snprintf(name, sizeof(name), "held/%u", i);
        REQUIRE(gemmd_layer_open(session, name, &handles[i]) == 0);
    }
    fcntl(mover->stop_fd, F_SETFL, O_NONBLOCK);
    for (; read(mover->stop_fd, &byte, 1) < 0; count++)
        REQUIRE(layer_case_check(session, handles[count % HELD], &cases[count % HELD], 3,
                                 count) == 0);
    gemmd_close(&session);
    return count >= HELD ? 0 : 1;
}

/* Open layers of 256 KiB are strewn over a small pool, and layers that need their room come and go:
 * what is open moves, and its jobs notice nothing. */
static void test_moved_under_jobs(void **state)
{
    /* One extent, in which each held layer finds another place whatever has to go. */
    static const char *const small_pool[] = {"--pool-bytes", "8M", "--hugepages", "none", NULL};
    static const char *const environment[] = {"GEMMD_LOG=pool:info", NULL};
    struct harness_worker worker;
    struct gemmd *session;
    struct gemmd_layer *held[HELD], *handle;
    struct layer_case layer;
    struct mover mover;
    int ends[2];
    pid_t pid;

    (void)state;
    harness_start(&worker, small_pool, environment);
    session = session_with(worker.socket, 64, 4 << 20, -1);
    for (uint32_t i = 0; i < HELD; i++) {
        char name[16];

        layer_case_plain(&layer, 256, 1000, 900 + i);
        snprintf(name, sizeof(name), "held/%u", i);
        layer.desc.name = name;
        assert_int_equal(gemmd_layer_create(session, &layer.desc, &held[i]), 0);
        layer_case_fini(&layer);
        layer_case_plain(&layer, 1700, 1000, 950 + i); /* between two of them */
        assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
        assert_int_equal(gemmd_layer_close(session, &handle), 0);
        layer_case_fini(&layer);
    }
    assert_int_equal(pipe(ends), 0);
    mover = (struct mover){worker.socket, ends[0]};
    pid = harness_fork(user_of_moved, &mover);
    usleep(100000);
    /* 5 MiB, 2 MiB, … of the 7 that are free. */
    for (uint32_t i = 0; i < (machine_is_sanitized() ? 8u : 30u); i++) {
        layer_case_plain(&layer, i % 2 ? 2000 : 5000, 1000, 1000 + i);
        assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
        assert_int_equal(layer_case_check(session, handle, &layer, 1, i), 0);
        assert_int_equal(gemmd_layer_close(session, &handle), 0);
        layer_case_fini(&layer);
    }
    assert_int_equal(write(ends[1], "x", 1), 1);
    assert_int_equal(harness_join(pid, 60000), 0);
    assert_true(harness_log_has(&worker, "to make room"));
    close(ends[0]);
    close(ends[1]);
    gemmd_close(&session);
    harness_stop(&worker);
}

/* ---- figures --------------------------------------------------------------------------------- */

#define SAMPLES 200000

struct latencies {
    uint64_t p50_ns, p99_ns, p999_ns, max_ns;
};

static int compare_u64(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return (left > right) - (left < right);
}

/* Small jobs, one at a time, until a byte comes; then the distribution goes back. */
static int small_client(void *argument)
{
    const int *ends = argument;
    static uint64_t samples[SAMPLES];
    struct gemmd *session = session_with(path_of("socket"), 64, 1 << 20, -1);
    struct layer_case layer;
    struct gemmd_layer *handle;
    struct gemmd_job job;
    struct latencies result;
    uint32_t count = 0;

    REQUIRE(session != NULL);
    layer_case_plain(&layer, 64, 256, 9);
    REQUIRE(gemmd_layer_create(session, &layer.desc, &handle) >= 0);
    gemmd_job_init(&job, handle, 1, gemmd_buffer_alloc(session, 256),
                   gemmd_buffer_alloc(session, 256));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    for (char byte; read(ends[0], &byte, 1) < 0;) {
        uint64_t start_ns = machine_now_ns();

        REQUIRE(gemmd_run(session, &job, 5000) == 0);
        samples[count++ % SAMPLES] = machine_now_ns() - start_ns;
        usleep(50);
    }
    count = count < SAMPLES ? count : SAMPLES;
    qsort(samples, count, sizeof(samples[0]), compare_u64);
    result = (struct latencies){samples[count / 2], samples[count / 100 * 99],
                                samples[(uint64_t)count * 999 / 1000], samples[count - 1]};
    REQUIRE(write(ends[1], &result, sizeof(result)) == sizeof(result));
    gemmd_close(&session);
    return 0;
}

static struct latencies measure(struct gemmd *session, const char *file, unsigned loads)
{
    int to[2], from[2], ends[2];
    struct latencies result;
    uint64_t load_ns = 0;
    pid_t pid;

    assert_true(pipe(to) == 0 && pipe(from) == 0);
    ends[0] = to[0];
    ends[1] = from[1];
    pid = harness_fork(small_client, ends);
    usleep(200000);
    for (unsigned i = 0; i < loads; i++) {
        uint64_t start_ns = machine_now_ns(), freed;

        assert_int_equal(model_load(session, file, "big", NULL), LAYERS);
        load_ns += machine_now_ns() - start_ns;
        assert_int_equal(gemmd_layers_unload(session, "big", &freed), LAYERS);
    }
    if (!loads)
        usleep(1000000);
    assert_int_equal(write(to[1], "x", 1), 1);
    assert_int_equal(read(from[0], &result, sizeof(result)), sizeof(result));
    assert_int_equal(harness_join(pid, 10000), 0);
    for (int i = 0; i < 2; i++) {
        close(to[i]);
        close(from[i]);
    }
    print_message("small jobs beside %u loads of 96 MiB (%.0f ms each): p50 %.1f p99 %.1f "
                  "p99.9 %.1f max %.1f us\n", loads,
                  loads ? (double)load_ns / 1e6 / loads : 0.0, (double)result.p50_ns / 1e3,
                  (double)result.p99_ns / 1e3, (double)result.p999_ns / 1e3,
                  (double)result.max_ns / 1e3);
    return result;
}

/* Other clients' jobs while a big model comes in. */
static void test_loading_beside_others(void **state)
{
    static const char *const arguments[] = {"--pool-bytes", "512M", NULL};
    struct harness_worker worker;
    struct gemmd *session;
    struct latencies alone, beside;

    (void)state;
    machine_skip_unless_cpus(2);
    model_write(path_of("big.safetensors"), layers, LAYERS);
    assert_int_equal(model_pack(path_of("big.safetensors"), path_of("big.gpk"), NULL, NULL, NULL,
                                0), 0);
    harness_start(&worker, arguments, NULL);
    assert_int_equal(symlink(worker.socket, path_of("socket")), 0);
    session = session_to(worker.socket);
    alone = measure(session, path_of("big.gpk"), 0);
    beside = measure(session, path_of("big.gpk"), 8);
    if (!machine_is_sanitized()) /* a scheduler's share on a busy machine, never a whole load */
        assert_true(beside.p99_ns < alone.p99_ns + UINT64_C(20000000));
    gemmd_close(&session);
    unlink(path_of("socket"));
    harness_stop(&worker);
}

static int set_up(void **state)
{
    static const struct layer_kind float_rows = {.a_type = GEMMD_TYPE_F32,
                                                 .c_type = GEMMD_TYPE_BF16,
                                                 .bias_type = GEMMD_TYPE_F32,
                                                 .activation = GEMMD_ACTIVATION_GELU_ERF};
    static const struct layer_kind bf16_rows = {.a_type = GEMMD_TYPE_BF16,
                                                .activation = GEMMD_ACTIVATION_CLIP,
                                                .residual_type = GEMMD_TYPE_S8,
                                                .quantize_mode = GEMMD_QUANTIZE_SYMMETRIC};
    static const struct layer_kind s4_weights = {.b_type = GEMMD_TYPE_S4,
                                                 .a_row_scales = true,
                                                 .bias_type = GEMMD_TYPE_F32,
                                                 .activation = GEMMD_ACTIVATION_SILU,
                                                 .group = 32};

    REQUIRE(mkdtemp(directory) != NULL);
    layer_case_plain(&kinds[0], 100, 70, 1);
    layer_case_init(&kinds[1], 64, 256, GEMMD_TYPE_S8, GEMMD_TYPE_U8, GEMMD_TYPE_NONE,
                    GEMMD_ACTIVATION_NONE, false, 2);
    layer_case_init(&kinds[2], 33, 1001, GEMMD_TYPE_U8, GEMMD_TYPE_S32, GEMMD_TYPE_S32,
                    GEMMD_ACTIVATION_NONE, true, 3);
    layer_case_init(&kinds[3], 1, 1, GEMMD_TYPE_U8, GEMMD_TYPE_S8, GEMMD_TYPE_F32,
                    GEMMD_ACTIVATION_RELU, true, 4);
    layer_case_init(&kinds[4], 300, 64, GEMMD_TYPE_S8, GEMMD_TYPE_F32, GEMMD_TYPE_S32,
                    GEMMD_ACTIVATION_NONE, true, 5);
    layer_case_init_kind(&kinds[5], 70, 130, &float_rows, true, 6);
    layer_case_init_kind(&kinds[6], 20, 90, &bf16_rows, false, 7);
    model_quantised_case(&kinds[7], 66, 201, &s4_weights, GEMMD_QUANTIZE_MIN_MAX, 8);
    model_quantised_case(&kinds[8], 40, 99, &float_rows, GEMMD_QUANTIZE_L2, 9);
    model_quantised_case(&kinds[9], 9, 65, &s4_weights, GEMMD_QUANTIZE_L2, 10);
    model_write(path_of("kinds.safetensors"), kinds, KINDS);
    REQUIRE(model_pack(path_of("kinds.safetensors"), path_of("kinds.gpk"), NULL, NULL, NULL, 0) ==
            0);
    REQUIRE(model_pack(path_of("kinds.safetensors"), path_of("raw.gpk"), "--kernel", "none", NULL,
                       0) == 0);
    REQUIRE(model_pack(path_of("kinds.safetensors"), path_of("packed.gpk"), "--no-raw", NULL, NULL,
                       0) == 0);
    return kept_set_up(state);
}

static int tear_down(void **state)
{
    static const char *const names[] = {"kinds.safetensors", "kinds.gpk", "raw.gpk",
                                        "packed.gpk",        "v.safetensors", "v1.gpk",
                                        "v2.gpk",            "big.safetensors", "big.gpk"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        unlink(path_of(names[i]));
    REQUIRE(rmdir(directory) == 0);
    for (unsigned i = 0; i < KINDS; i++)
        layer_case_fini(&kinds[i]);
    return kept_tear_down(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loaded_at_the_start),
        cmocka_unit_test(test_other_kernels),
        cmocka_unit_test(test_gemmctl),
        cmocka_unit_test(test_switch),
        cmocka_unit_test(test_operators_names_are_kept),
        cmocka_unit_test(test_moved_under_jobs),
        cmocka_unit_test(test_loading_beside_others),
    };

    return HARNESS_RUN(tests, set_up, tear_down, 110);
}
