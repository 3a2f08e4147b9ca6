/* --verify-sample: wrong results are found before the client has them, right ones never are, and no
 * client can make a right one look wrong. */
#include "tests/harness.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/e2e/kept_layers.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/manager.h"

static const char *const every_job[] = {"--verify-sample", "1", "--pool-bytes", "512M", NULL};

static struct gemmd_stats stats_of(struct gemmd *session)
{
    struct gemmd_stats stats;

    assert_int_equal(gemmd_get_stats(session, &stats), 0);
    return stats;
}

/* ---- nothing wrong --------------------------------------------------------------------------- */

static void check_kind(struct gemmd *session, const struct layer_kind *kind, uint64_t seed)
{
    static const uint32_t shapes[][2] = {{1, 1}, {10, 64}, {37, 67}, {130, 333}, {1100, 96}};
    const uint32_t *shape = shapes[seed % 5];
    struct gemmd_layer *handle;
    struct layer_case layer;

    layer_case_init_kind(&layer, shape[0], shape[1], kind, seed % 2 == 0, seed);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    for (uint32_t m = 1; m <= 61; m += 20)
        assert_int_equal(layer_case_check(session, handle, &layer, m, seed + m), 0);
    assert_int_equal(gemmd_layer_close(session, &handle), 0);
    layer_case_fini(&layer);
}

/* All operands and outputs, on the kernels of several levels. */
static void test_no_false_alarm(void **state)
{
    static const char *const masks[] = {"GEMMD_CPU_MASK", "GEMMD_CPU_MASK=ref",
                                        "GEMMD_CPU_MASK=avx2", "GEMMD_CPU_MASK=ref,avx512vnni"};

    (void)state;
    for (size_t i = 0; i < (machine_is_sanitized() ? 2 : 4); i++) {
        const char *const environment[] = {masks[i], NULL};
        struct harness_worker worker;
        struct gemmd_stats stats;
        struct gemmd *session;
        uint64_t seed = 0;

        harness_start(&worker, every_job, environment);
        session = session_with(worker.socket, 64, UINT64_C(16) << 20, -1);
        assert_non_null(session);
        for (enum gemmd_type a = GEMMD_TYPE_U8; a <= GEMMD_TYPE_BF16; a++)
            for (enum gemmd_type c = GEMMD_TYPE_U8; c <= GEMMD_TYPE_BF16; c++)
                for (int weights = 0; weights < 3; weights++) {
                    bool floats = a >= GEMMD_TYPE_F32;
                    struct layer_kind kind = {.a_type = a,
                                              .c_type = c,
                                              .b_type = weights == 2 ? GEMMD_TYPE_S4
                                                                     : GEMMD_TYPE_S8,
                                              .group = weights == 2 ? 32 : 0,
                                              .b_zero_points = weights == 1};

                    if (a == GEMMD_TYPE_S32 || (a == GEMMD_TYPE_S8 && weights == 2) ||
                        (c == GEMMD_TYPE_S32 && (floats || weights == 2)))
                        continue;
                    if (c != GEMMD_TYPE_S32)
                        kind.activation = GEMMD_ACTIVATION_GELU_ERF;
                    check_kind(session, &kind, seed++);
                }
        stats = stats_of(session);
        print_message("%s: %lu of %lu jobs checked\n", masks[i], (unsigned long)stats.verified,
                      (unsigned long)stats.jobs);
        assert_int_equal(stats.verified, stats.jobs);
        assert_int_equal(stats.jobs, seed * 4);
        assert_int_equal(stats.verify_faults, 0);
        gemmd_close(&session);
        harness_stop(&worker);
    }
}

/* Off unless asked for; one in three. */
static void test_sample(void **state)
{
    static const char *const every[] = {"0", "3"};

    (void)state;
    for (uint64_t i = 0; i < 2; i++) {
        const char *const arguments[] = {"--verify-sample", every[i], NULL};
        struct harness_worker worker;
        struct gemmd_layer *handle;
        struct layer_case layer;
        struct gemmd *session;

        harness_start(&worker, i ? arguments : NULL, NULL);
        session = session_to(worker.socket);
        layer_case_plain(&layer, 70, 90, 1);
        assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
        for (unsigned job = 0; job < 30; job++)
            assert_int_equal(layer_case_check(session, handle, &layer, 3, job), 0);
        assert_int_equal(stats_of(session).verified, i * 10);
        layer_case_fini(&layer);
        gemmd_close(&session);
        harness_stop(&worker);
    }
}

/* ---- a client that rewrites its rows --------------------------------------------------------- */

struct rewriter {
    uint64_t *words; /* of A and C */
    size_t count;
    bool stop;
};

static void *rewrite(void *argument)
{
    struct rewriter *rewriter = argument;
    uint64_t seed = 5;

    for (size_t at = 0; !__atomic_load_n(&rewriter->stop, __ATOMIC_RELAXED); at++)
        __atomic_store_n(&rewriter->words[at % rewriter->count], random_next(&seed),
                         __ATOMIC_RELAXED);
    return NULL;
}

static unsigned rewritten_jobs(void)
{
    return machine_is_sanitized() ? 50 : 500;
}

static void check_rewriting(struct gemmd *session, const struct layer_kind *kind)
{
    size_t a_bytes, c_bytes;
    struct gemmd_layer *handle;
    struct rewriter rewriter = {.stop = false};
    struct layer_case layer;
    struct gemmd_job job;
    pthread_t thread;

    layer_case_init_kind(&layer, 512, 1024, kind, true, 9);
    a_bytes = 24 * 1024 * type_bytes(layer.desc.a_type);
    c_bytes = 24 * 512 * type_bytes(layer.desc.c_type);
    rewriter.count = (a_bytes + c_bytes) / sizeof(uint64_t);
    rewriter.words = gemmd_buffer_alloc(session, a_bytes + c_bytes);
    assert_non_null(rewriter.words);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    gemmd_job_init(&job, handle, 24, rewriter.words, (char *)rewriter.words + a_bytes);
    assert_int_equal(pthread_create(&thread, NULL, rewrite, &rewriter), 0);
    for (unsigned i = 0; i < rewritten_jobs(); i++)
        assert_int_equal(gemmd_run(session, &job, 20000), 0);
    __atomic_store_n(&rewriter.stop, true, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    gemmd_buffer_free(session, rewriter.words);
    assert_int_equal(gemmd_layer_close(session, &handle), 0);
    layer_case_fini(&layer);
}

static void test_rewriting_is_no_alarm(void **state)
{
    static const struct layer_kind kinds[] = {
        {.c_type = GEMMD_TYPE_S32},
        {.a_type = GEMMD_TYPE_S8, .c_type = GEMMD_TYPE_S8, .b_zero_points = true},
        {.a_type = GEMMD_TYPE_F32},
        {.c_type = GEMMD_TYPE_BF16, .b_type = GEMMD_TYPE_S4, .group = 32},
    };
    struct harness_worker worker;
    struct gemmd_stats stats;
    struct gemmd *session;

    (void)state;
    harness_start(&worker, every_job, NULL);
    session = session_with(worker.socket, 64, UINT64_C(16) << 20, -1);
    assert_non_null(session);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        check_rewriting(session, &kinds[i]);
    stats = stats_of(session);
    assert_int_equal(stats.verified, 4 * rewritten_jobs());
    assert_int_equal(stats.verify_faults, 0);
    assert_int_equal(stats.jobs_failed, 0);
    gemmd_close(&session);
    harness_stop(&worker);
}

/* ---- one bit of the weights ------------------------------------------------------------------ */

static void flip(const struct manager *manager, size_t at)
{
    int fd = manager_find(manager, "gemmd-pool-1");
    struct stat status;
    uint8_t *memory;

    assert_true(fd >= 0 && fstat(fd, &status) == 0);
    memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    memory[at] ^= 1;
    munmap(memory, (size_t)status.st_size);
}

/* The first job that meets it fails, and after a second no other can. */
static void test_a_flipped_bit(void **state)
{
    uint64_t deadline_ns = machine_now_ns() + UINT64_C(30000000000);
    struct harness_worker worker;
    struct manager manager;
    struct gemmd_layer *handles[2];
    struct gemmd_stats stats;
    struct gemmd *session;
    int error;

    (void)state;
    manager_open(&manager, &worker);
    assert_true(manager_start(&manager, &worker, every_job, NULL, 0));
    create_layers(&worker, 2);
    manager_listen(&manager, NULL, 0, 0);
    session = session_with(worker.socket, 64, 4 << 20, -1);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(gemmd_layer_open(session, i ? "m/1" : "m/0", &handles[i]), 0);
    assert_int_equal(layer_case_check(session, handles[0], &layers[0], 1, 1), 0);
    flip(&manager, 1000);
    error = layer_case_check(session, handles[0], &layers[0], 1, 1);
    assert_true(error == -EIO || error == -ESTALE); /* the scrub may have been first */
    stats = stats_of(session);
    assert_int_equal(stats.verify_faults, error == -EIO);
    while (error == -EIO && machine_now_ns() < deadline_ns) {
        usleep(100000);
        error = layer_case_check(session, handles[0], &layers[0], 1, 1);
    }
    assert_int_equal(error, -ESTALE);
    assert_int_equal(layer_case_check(session, handles[1], &layers[1], 1, 1), 0);
    assert_true(harness_log_has(&worker, "have changed in memory"));
    if (stats.verify_faults)
        assert_true(harness_log_has(&worker, "its weights are at fault"));
    gemmd_close(&session);
    manager_close(&manager);
    harness_stop(&worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_false_alarm),
        cmocka_unit_test(test_sample),
        cmocka_unit_test(test_rewriting_is_no_alarm),
        cmocka_unit_test_setup_teardown(test_a_flipped_bit, kept_set_up, kept_tear_down),
    };

    return HARNESS_RUN(tests, NULL, NULL, 230);
}
