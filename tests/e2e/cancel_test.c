/* Cancel, deadlines and classes through the library: each job completes once, as is its due. */
#include "tests/harness.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "proto/status.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

static struct harness_worker worker;

enum { N = 1024, K = 1024, M = 64, JOBS = 48 };

struct bench {
    struct gemmd *session;
    struct layer_case layer;
    struct gemmd_layer *handle;
    uint8_t *a;
    float *c[JOBS], *wanted;
};

static void open_bench(struct bench *bench)
{
    bench->session = session_with(worker.socket, 64, UINT64_C(32) << 20, -1);
    assert_non_null(bench->session);
    layer_case_plain(&bench->layer, N, K, 5);
    assert_true(gemmd_layer_create(bench->session, &bench->layer.desc, &bench->handle) >= 0);
    bench->a = gemmd_buffer_alloc(bench->session, (size_t)M * K);
    bench->wanted = malloc((size_t)M * N * sizeof(float));
    assert_true(bench->a && bench->wanted);
    for (size_t i = 0; i < (size_t)M * K; i++)
        bench->a[i] = (uint8_t)(i * 37 + i / 251);
    layer_case_expect(&bench->layer, M, bench->a, K, bench->wanted, N * sizeof(float));
    for (int i = 0; i < JOBS; i++) {
        bench->c[i] = gemmd_buffer_alloc(bench->session, (size_t)M * N * sizeof(float));
        assert_non_null(bench->c[i]);
    }
}

static void close_bench(struct bench *bench)
{
    gemmd_close(&bench->session);
    layer_case_fini(&bench->layer);
    free(bench->wanted);
}

static void submit(struct bench *bench, int i, enum gemmd_priority priority, uint64_t deadline_ns)
{
    struct gemmd_job job;

    gemmd_job_init(&job, bench->handle, M, bench->a, bench->c[i]);
    job.user_data = (uint64_t)i;
    job.priority = priority;
    job.deadline_ns = deadline_ns;
    assert_int_equal(gemmd_submit(bench->session, &job, 1), 1);
}

/* Reaps all; how often each status came.  What succeeded must be right. */
static void reap(struct bench *bench, int jobs, unsigned count[GEMMD_STATUS_VIOLATION_MIN])
{
    struct gemmd_completion done[JOBS];
    uint64_t seen = 0;

    memset(count, 0, GEMMD_STATUS_VIOLATION_MIN * sizeof(*count));
    while (jobs) {
        int taken = gemmd_wait(bench->session, done, JOBS, 10000);

        assert_true(taken > 0 && taken <= jobs);
        jobs -= taken;
        for (int i = 0; i < taken; i++) {
            assert_true(done[i].user_data < JOBS);
            assert_false(seen >> done[i].user_data & 1);
            seen |= UINT64_C(1) << done[i].user_data;
            count[done[i].status]++;
            if (done[i].status == GEMMD_STATUS_OK)
                assert_memory_equal(bench->c[done[i].user_data], bench->wanted,
                                    (size_t)M * N * sizeof(float));
        }
    }
    /* Only cancels can be left; they bring nothing. */
    assert_int_equal(gemmd_in_flight(bench->session), 0);
    assert_int_equal(gemmd_wait(bench->session, done, JOBS, 10000), 0);
}

static void test_cancel_all(void **state)
{
    unsigned count[GEMMD_STATUS_VIOLATION_MIN];
    struct bench bench;

    (void)state;
    open_bench(&bench);
    assert_int_equal(gemmd_cancel(bench.session, 7), -ENOENT);
    for (int round = 0; round < 20; round++) {
        unsigned asked = 0;

        for (int i = 0; i < 30; i++)
            submit(&bench, i, GEMMD_PRIORITY_NORMAL, 0);
        for (int i = 29; i >= 0; i--)
            asked += gemmd_cancel(bench.session, (uint64_t)i) == 1;
        assert_int_equal(asked, 30);
        reap(&bench, 30, count);
        assert_int_equal(count[GEMMD_STATUS_OK] + count[GEMMD_STATUS_CANCELLED], 30);
        assert_true(count[GEMMD_STATUS_CANCELLED] > 0); /* 64 x 1024 x 1024 takes its time */
    }
    close_bench(&bench);
}

/* One among many: the others are not touched. */
static void test_cancel_one(void **state)
{
    unsigned count[GEMMD_STATUS_VIOLATION_MIN], cancelled = 0;
    struct bench bench;

    (void)state;
    open_bench(&bench);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < JOBS; i++)
            submit(&bench, i, GEMMD_PRIORITY_NORMAL, 0);
        assert_int_equal(gemmd_cancel(bench.session, JOBS - 1), 1);
        reap(&bench, JOBS, count);
        assert_true(count[GEMMD_STATUS_CANCELLED] <= 1);
        assert_int_equal(count[GEMMD_STATUS_OK] + count[GEMMD_STATUS_CANCELLED], JOBS);
        cancelled += count[GEMMD_STATUS_CANCELLED];
    }
    assert_true(cancelled > 0);
    close_bench(&bench);
}

/* Jobs cannot take the place that a cancel needs; the next one finds it taken until the answer has
 * been reaped.  The last job overtakes the others. */
static void test_full_ring(void **state)
{
    unsigned overtook = 0;
    struct gemmd_job job;
    struct bench bench;

    (void)state;
    open_bench(&bench);
    for (int round = 0; round < 20; round++) {
        unsigned ended = 0;

        for (int i = 0; i < 63; i++) {
            gemmd_job_init(&job, bench.handle, M, bench.a, bench.c[i % JOBS]);
            job.user_data = (uint64_t)i;
            assert_int_equal(gemmd_submit(bench.session, &job, 1), 1);
        }
        assert_int_equal(gemmd_submit(bench.session, &job, 1), 0);
        assert_int_equal(gemmd_cancel(bench.session, 62), 1);
        assert_int_equal(gemmd_cancel(bench.session, 61), -EAGAIN);
        while (gemmd_in_flight(bench.session)) {
            struct gemmd_completion done[8];
            int taken = gemmd_wait(bench.session, done, 8, 10000);

            assert_true(taken >= 0);
            for (int i = 0; i < taken; i++, ended++)
                overtook += done[i].status == GEMMD_STATUS_CANCELLED && ended < 62;
        }
        assert_int_equal(ended, 63);
    }
    assert_true(overtook > 0);
    close_bench(&bench);
}

static void test_deadlines(void **state)
{
    unsigned count[GEMMD_STATUS_VIOLATION_MIN];
    struct gemmd_layer_info layer;
    struct gemmd_stats stats;
    struct timespec now;
    struct bench bench;
    uint64_t now_ns;

    (void)state;
    open_bench(&bench);
    clock_gettime(CLOCK_MONOTONIC, &now);
    now_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    memset(bench.c[0], 0x5a, (size_t)M * N * sizeof(float));
    for (int i = 0; i < 10; i++)
        submit(&bench, i, GEMMD_PRIORITY_LATENCY, now_ns - 1);
    for (int i = 10; i < 20; i++)
        submit(&bench, i, GEMMD_PRIORITY_NORMAL, now_ns + UINT64_C(60000000000));
    reap(&bench, 20, count);
    assert_int_equal(count[GEMMD_STATUS_DEADLINE], 10);
    assert_int_equal(count[GEMMD_STATUS_OK], 10);
    for (size_t i = 0; i < (size_t)M * N * sizeof(float); i++)
        assert_int_equal(((uint8_t *)bench.c[0])[i], 0x5a); /* not run */
    assert_int_equal(gemmd_get_stats(bench.session, &stats), 0);
    assert_true(stats.deadline_misses >= 10);
    assert_int_equal(gemmd_get_layer_info(bench.session, 0, &layer), 0);
    assert_int_equal(layer.deadline_misses, 10);
    close_bench(&bench);
}

/* A layer is closed under its jobs: each ends once, as done or as stale. */
static void test_closed_layer(void **state)
{
    unsigned count[GEMMD_STATUS_VIOLATION_MIN], stale = 0;
    struct bench bench;

    (void)state;
    open_bench(&bench);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < JOBS; i++)
            submit(&bench, i, (enum gemmd_priority)(i % 3), 0);
        gemmd_flush(bench.session);
        assert_int_equal(gemmd_layer_close(bench.session, &bench.handle), 0);
        reap(&bench, JOBS, count);
        assert_int_equal(count[GEMMD_STATUS_OK] + count[GEMMD_STATUS_LAYER_STALE], JOBS);
        stale += count[GEMMD_STATUS_LAYER_STALE];
        assert_true(gemmd_layer_create(bench.session, &bench.layer.desc, &bench.handle) >= 0);
    }
    assert_true(stale > 0);
    close_bench(&bench);
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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cancel_all), cmocka_unit_test(test_cancel_one),
        cmocka_unit_test(test_full_ring),  cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_closed_layer),
    };

    return HARNESS_RUN(tests, start, stop, 100);
}
