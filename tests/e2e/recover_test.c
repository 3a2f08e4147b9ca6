/*
 * Recovery of a session (recover_ms): what stays, what is lost, and when it gives up.  Kills by the
 * hundred are in tests/stress/worker_kill_test.c.
 */
#include "tests/harness.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/hugepages.h"

#define N 40
#define K 64
/* A full ring: its last place is left to a cancel. */
#define JOBS 31
#define M 4

static struct harness_worker worker;
static struct layer_case layer;

struct scene {
    struct gemmd *session;
    struct gemmd_layer *layer;
    struct gemmd_job job;
    float wanted[M * N];
};

static void open_scene(struct scene *scene, uint64_t arena_bytes, int recover_ms, int keep_weights)
{
    struct gemmd_options options;
    uint64_t seed = 91;

    gemmd_options_init(&options);
    options.socket = worker.socket;
    options.ring_entries = JOBS + 1;
    options.arena_bytes = arena_bytes;
    options.recover_ms = recover_ms;
    options.keep_weights = keep_weights;
    assert_int_equal(gemmd_connect(&options, &scene->session), 0);
    assert_true(gemmd_layer_create(scene->session, &layer.desc, &scene->layer) >= 0);
    gemmd_job_init(&scene->job, scene->layer, M, gemmd_buffer_alloc(scene->session, M * K),
                   gemmd_buffer_alloc(scene->session, M * N * sizeof(float)));
    assert_true(scene->job.a && scene->job.c);
    random_bytes(&seed, (void *)(uintptr_t)scene->job.a, M * K);
    layer_case_expect(&layer, M, scene->job.a, K, scene->wanted, N * sizeof(float));
}

static void check_works(struct scene *scene)
{
    memset(scene->job.c, 0xee, sizeof(scene->wanted));
    assert_int_equal(gemmd_run(scene->session, &scene->job, 20000), 0);
    assert_memory_equal(scene->job.c, scene->wanted, sizeof(scene->wanted));
}

static uint64_t recoveries(struct scene *scene)
{
    struct gemmd_stats stats;

    assert_int_equal(gemmd_get_stats(scene->session, &stats), 0);
    return stats.session_recoveries;
}

/* Reaps `count` jobs with user_data 0, 1, …: each once, all with `status_name`. */
static void reap(struct scene *scene, unsigned count, const char *status_name)
{
    struct gemmd_completion done[JOBS];
    uint64_t seen = 0;

    for (unsigned reaped = 0; reaped < count;) {
        int got = gemmd_wait(scene->session, done, JOBS, 20000);

        assert_true(got > 0);
        for (int i = 0; i < got; i++) {
            assert_string_equal(gemmd_status_name(done[i].status), status_name);
            assert_true(done[i].user_data < count);
            assert_int_equal(seen >> done[i].user_data & 1, 0);
            seen |= UINT64_C(1) << done[i].user_data;
        }
        reaped += (unsigned)got;
    }
    assert_int_equal(gemmd_in_flight(scene->session), 0);
    assert_int_equal(gemmd_poll(scene->session, done, JOBS), 0);
}

/* Fills the ring while the worker is stopped, so that none of it is done. */
static void submit_stopped(struct scene *scene)
{
    kill(worker.pid, SIGSTOP);
    assert_int_equal(waitpid(worker.pid, NULL, WUNTRACED), worker.pid); /* every thread of it */
    for (unsigned i = 0; i < JOBS; i++) {
        scene->job.user_data = i;
        assert_int_equal(gemmd_submit(scene->session, &scene->job, 1), 1);
    }
    assert_int_equal(gemmd_submit(scene->session, &scene->job, 1), 0);
}

static void replace_worker(void)
{
    harness_kill(&worker);
    harness_restart(&worker, NULL);
}

static void test_all_of_it(void **state)
{
    struct scene scene;
    uint8_t *buffers[100];
    uint64_t seed = 5;

    (void)state;
    open_scene(&scene, 1 << 20, 20000, 1);
    for (unsigned i = 0; i < 100; i++) {
        buffers[i] = gemmd_buffer_alloc(scene.session, 1 + random_next(&seed) % 5000);
        assert_non_null(buffers[i]);
        memset(buffers[i], (int)i, 1);
    }
    for (unsigned i = 0; i < 100; i += 3)
        gemmd_buffer_free(scene.session, buffers[i]);
    for (uint64_t round = 1; round <= 5; round++) {
        submit_stopped(&scene);
        replace_worker();
        reap(&scene, JOBS, "OK");
        assert_memory_equal(scene.job.c, scene.wanted, sizeof(scene.wanted));
        assert_int_equal(recoveries(&scene), round);
        for (unsigned i = 0; i < 100; i++)
            if (i % 3)
                assert_int_equal(buffers[i][0], i);
        check_works(&scene);
    }
    for (unsigned i = 0; i < 100; i++)
        if (i % 3)
            gemmd_buffer_free(scene.session, buffers[i]);
    gemmd_close(&scene.session);
}

/* A job that adds to C must not run twice, and nobody knows whether it has run; with a residual of
 * its own it may. */
static void test_residual(void **state)
{
    struct layer_case with = layer;
    struct gemmd_layer *added;
    struct scene scene;
    float *residual;

    (void)state;
    with.desc.residual_type = GEMMD_TYPE_F32;
    open_scene(&scene, 1 << 20, 20000, 1);
    assert_true(gemmd_layer_create(scene.session, &with.desc, &added) >= 0);
    residual = gemmd_buffer_alloc(scene.session, sizeof(scene.wanted));
    memset(residual, 0, sizeof(scene.wanted));
    scene.job.layer = added;
    scene.job.residual = residual;
    submit_stopped(&scene);
    replace_worker();
    reap(&scene, JOBS, "OK");
    assert_memory_equal(scene.job.c, scene.wanted, sizeof(scene.wanted));
    scene.job.residual = scene.job.c;
    submit_stopped(&scene);
    replace_worker();
    reap(&scene, JOBS, "WORKER_LOST");
    memset(scene.job.c, 0, sizeof(scene.wanted));
    assert_int_equal(gemmd_run(scene.session, &scene.job, 20000), 0);
    assert_memory_equal(scene.job.c, scene.wanted, sizeof(scene.wanted));
    gemmd_close(&scene.session);
}

/* Idle when it happens: the next call of any kind goes on. */
static void test_each_call_recovers(void **state)
{
    struct gemmd_layer *other;
    struct gemmd_completion done;
    struct gemmd_info info;
    struct layer_case second;
    struct scene scene;

    (void)state;
    open_scene(&scene, 0, 20000, 1);
    layer_case_plain(&second, 8, 8, 3);
    replace_worker();
    check_works(&scene); /* submit and wait */
    replace_worker();
    assert_int_equal(gemmd_submit(scene.session, &scene.job, 1), 1);
    assert_int_equal(gemmd_wait(scene.session, &done, 1, -1), 1);
    assert_int_equal(done.status, 0);
    replace_worker();
    /* The first control call may be the one that finds out. */
    if (gemmd_get_info(scene.session, &info) < 0)
        assert_int_equal(gemmd_get_info(scene.session, &info), 0);
    assert_int_equal(info.pid, worker.pid);
    replace_worker();
    if (gemmd_layer_create(scene.session, &second.desc, &other) < 0)
        assert_int_equal(gemmd_layer_create(scene.session, &second.desc, &other), 0);
    assert_int_equal(layer_case_check(scene.session, other, &second, 3, 1), 0);
    replace_worker();
    assert_int_equal(layer_case_check(scene.session, other, &second, 3, 2), 0);
    check_works(&scene);
    assert_int_equal(gemmd_layer_close(scene.session, &other), 0);
    assert_int_equal(recoveries(&scene), 5);
    layer_case_fini(&second);
    gemmd_close(&scene.session);
}

static void test_nobody_comes(void **state)
{
    uint64_t before_ns;
    struct scene scene;

    (void)state;
    open_scene(&scene, 1 << 20, 300, 1);
    submit_stopped(&scene);
    harness_kill(&worker);
    before_ns = machine_now_ns();
    reap(&scene, JOBS, "WORKER_LOST");
    assert_in_range((machine_now_ns() - before_ns) / 1000000, 290, 20000);
    assert_int_equal(gemmd_submit(scene.session, &scene.job, 1), -ECONNRESET);
    harness_restart(&worker, NULL); /* late, but not too late for the next call */
    check_works(&scene);
    gemmd_close(&scene.session);
}

/* Without the weights here, they must be there. */
static void test_weights_not_kept(void **state)
{
    struct scene scene, other;

    (void)state;
    open_scene(&scene, 1 << 20, 20000, 0);
    submit_stopped(&scene);
    replace_worker();
    reap(&scene, JOBS, "WORKER_LOST");
    assert_int_equal(gemmd_submit(scene.session, &scene.job, 1), -EINVAL);
    assert_non_null(strstr(gemmd_error_text(scene.session), "create it again"));
    assert_int_equal(gemmd_layer_close(scene.session, &scene.layer), -ENOENT);
    assert_int_equal(gemmd_layer_create(scene.session, &layer.desc, &scene.layer), 0);
    scene.job.layer = scene.layer;
    check_works(&scene);

    /* Somebody else has brought them: by contents. */
    harness_kill(&worker);
    harness_restart(&worker, NULL);
    open_scene(&other, 1 << 20, 0, 0);
    check_works(&scene);
    gemmd_close(&scene.session);
    gemmd_close(&other.session);
}

/* A layer that was closed while its jobs wait stays closed. */
static void test_closed_layer(void **state)
{
    struct scene scene;

    (void)state;
    open_scene(&scene, 1 << 20, 20000, 1);
    for (unsigned i = 0; i < JOBS; i++) {
        scene.job.user_data = i;
        scene.job.m = 0;
        assert_int_equal(gemmd_submit(scene.session, &scene.job, 1), 1);
    }
    assert_int_equal(gemmd_layer_close(scene.session, &scene.layer), 0);
    harness_kill(&worker);
    harness_restart(&worker, NULL);
    /* Those that were not done before have no layer now; none may be lost or done twice. */
    for (unsigned reaped = 0; reaped < JOBS;) {
        struct gemmd_completion done[JOBS];
        int got = gemmd_wait(scene.session, done, JOBS, 20000);

        assert_true(got > 0);
        for (int i = 0; i < got; i++)
            assert_true(done[i].status == 0 || strcmp(gemmd_status_name(done[i].status),
                                                      "LAYER_STALE") == 0);
        reaped += (unsigned)got;
    }
    gemmd_close(&scene.session);
}

/* A worker that is told to end completes what it has; the next one goes on. */
static void test_drain(void **state)
{
    struct scene scene;

    (void)state;
    open_scene(&scene, 1 << 20, 20000, 1);
    for (unsigned i = 0; i < JOBS; i++) {
        scene.job.user_data = i;
        assert_int_equal(gemmd_submit(scene.session, &scene.job, 1), 1);
    }
    kill(worker.pid, SIGTERM);
    assert_int_equal(harness_join(worker.pid, 15000), 0);
    worker.pid = 0;
    harness_restart(&worker, NULL);
    reap(&scene, JOBS, "OK");
    check_works(&scene);
    gemmd_close(&scene.session);
}

static int restore_hugepages(void **state)
{
    (void)state;
    hugepages_restore();
    return 0;
}

/* From huge pages to small ones and back: the same addresses. */
static void test_other_pages(void **state)
{
    struct scene scene;
    void *c;

    (void)state;
    machine_skip_unless_root();
    if (!hugepages_set(64))
        harness_skip("nr_hugepages cannot be set to 64 here");
    replace_worker();
    open_scene(&scene, 3 << 20, 20000, 1);
    c = scene.job.c;
    check_works(&scene);
    harness_kill(&worker);
    hugepages_set(0); /* but for those that our own mapping still holds */
    harness_restart(&worker, NULL);
    check_works(&scene);
    assert_true(hugepages_set(64));
    replace_worker();
    check_works(&scene);
    assert_ptr_equal(scene.job.c, c);
    assert_int_equal(recoveries(&scene), 2);
    gemmd_close(&scene.session);
    hugepages_set(0);
    replace_worker(); /* without a huge page in use */
}

/* What the application watches stays, and says when there is something to take. */
static void test_descriptor(void **state)
{
    struct gemmd_completion done[JOBS];
    struct pollfd watched = {.events = POLLIN};
    struct scene scene;

    (void)state;
    for (int keep_weights = 0; keep_weights < 2; keep_weights++) {
        open_scene(&scene, 1 << 20, 20000, keep_weights);
        watched.fd = gemmd_get_fd(scene.session);
        assert_true(watched.fd >= 0);
        for (uint64_t round = 1; round <= 3; round++) {
            unsigned reaped = 0;

            submit_stopped(&scene);
            replace_worker();
            while (reaped < JOBS) {
                int got;

                assert_int_equal(poll(&watched, 1, 10000), 1);
                got = gemmd_poll(scene.session, done, 5);
                assert_true(got >= 0);
                for (int i = 0; i < got; i++)
                    assert_int_equal(done[i].error, keep_weights ? 0 : -ECONNRESET);
                reaped += (unsigned)got;
            }
            assert_int_equal(gemmd_get_fd(scene.session), watched.fd);
            assert_int_equal(recoveries(&scene), round);
            if (!keep_weights)
                break; /* the layer is lost */
            check_works(&scene);
        }
        gemmd_close(&scene.session);
    }
}

static int use_in_child(void *argument)
{
    struct scene *scene = argument;
    struct gemmd_completion done;

    REQUIRE(gemmd_submit(scene->session, &scene->job, 1) == -EOWNERDEAD);
    REQUIRE(gemmd_wait(scene->session, &done, 1, 100) == -EOWNERDEAD);
    gemmd_close(&scene->session);
    return 0;
}

/* A child with the parent's jobs in flight does not recover in its stead. */
static void test_fork(void **state)
{
    struct scene scene;
    pid_t child;

    (void)state;
    open_scene(&scene, 1 << 20, 20000, 1);
    submit_stopped(&scene);
    harness_kill(&worker);
    child = harness_fork(use_in_child, &scene);
    assert_int_equal(harness_join(child, 5000), 0);
    harness_restart(&worker, NULL);
    child = harness_fork(use_in_child, &scene);
    reap(&scene, JOBS, "OK");
    assert_int_equal(harness_join(child, 5000), 0);
    check_works(&scene);
    assert_int_equal(recoveries(&scene), 1);
    gemmd_close(&scene.session);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, N, K, 93);
    harness_start(&worker, NULL, NULL);
    return 0;
}

static int stop(void **state)
{
    layer_case_fini(&layer);
    harness_stop(&worker);
    return restore_hugepages(state);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_of_it),
        cmocka_unit_test(test_residual),
        cmocka_unit_test(test_each_call_recovers),
        cmocka_unit_test(test_nobody_comes),
        cmocka_unit_test(test_weights_not_kept),
        cmocka_unit_test(test_closed_layer),
        cmocka_unit_test(test_drain),
        cmocka_unit_test_teardown(test_other_pages, restore_hugepages),
        cmocka_unit_test(test_descriptor),
        cmocka_unit_test(test_fork),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
