/*
 * Sleep and wake at each event-loop level, both sides sleeping on every job: no lost wake-up (the
 * rescue counter stays 0), at most one doorbell per job, and a worker that costs nothing when idle.
 */
#include "tests/harness.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

#define ROUND_TRIPS 20000
/* 0.1 % of 2 s is 2 ms, less than one clock tick: no whole tick may pass... one may straddle. */
#define IDLE_NS     UINT64_C(2000000000)
#define IDLE_LOOKS  6
/* The control thread looks after things once a second, the dispatcher ten times. */
#define WAKES_PER_S 30

static struct harness_worker worker;
static struct layer_case layer;

static void pause_ns(long ns)
{
    struct timespec pause = {0, ns};

    nanosleep(&pause, NULL);
}

/* Starts a worker that never spins, at the level; skips when it says that it cannot. */
static void start_at(const char *level)
{
    static const char *const arguments[] = {"--spin-us", "0", NULL};
    char setting[32];
    const char *const environment[] = {setting, NULL};
    int code;

    snprintf(setting, sizeof(setting), "GEMMD_EVENT_LEVEL=%s", level);
    code = harness_try_start(&worker, arguments, environment);
    if (worker.pid == 0) {
        assert_in_range(code, 69, 78); /* an honest exit, not a crash */
        harness_discard(&worker);
        harness_skip("event level %s is not available here (gemmd exit code %d)", level, code);
    }
}

/* Random pauses move the two sides' sleeping and waking against each other: none, shorter and
 * longer than a wake-up. */
static void round_trips(struct gemmd *session, struct gemmd_layer *handle)
{
    uint8_t *a = gemmd_buffer_alloc(session, layer.desc.k);
    float *c = gemmd_buffer_alloc(session, layer.desc.n * sizeof(*c)), wanted[16];
    uint64_t seed = 2026, deadline_ns = machine_now_ns() + UINT64_C(25000000000);
    uint64_t longest_ns = 0;
    unsigned done = 0;

    random_bytes(&seed, a, layer.desc.k);
    layer_case_expect(&layer, 1, a, layer.desc.k, wanted, sizeof(wanted));
    while (done < ROUND_TRIPS && machine_now_ns() < deadline_ns) {
        uint64_t dice = random_next(&seed), before_ns;
        struct gemmd_job job;

        gemmd_job_init(&job, handle, done % 8 ? 0 : 1, a, c);
        before_ns = machine_now_ns();
        assert_int_equal(gemmd_run(session, &job, 5000), 0);
        before_ns = machine_now_ns() - before_ns;
        longest_ns = before_ns > longest_ns ? before_ns : longest_ns;
        if (job.m)
            assert_memory_equal(c, wanted, sizeof(wanted));
        if (dice % 4 == 1)
            pause_ns((long)(dice >> 8) % 20000);
        else if (dice % 16 == 2)
            pause_ns((long)(dice >> 8) % 400000);
        done++;
    }
    printf("%u round trips, the longest %.3f ms\n", done, (double)longest_ns / 1e6);
    assert_true(done >= ROUND_TRIPS / (machine_is_sanitized() ? 10 : 2));
}

/* Few wake-ups, and short ones.  The figure to reach is 0.1 % of a CPU, but where a host takes its
 * CPUs back a wake-up has been seen to read as 0.5 ms, so the time is the best of some looks, and
 * loose.  A sanitizer's threads work. */
static void check_idle(void)
{
    double best = 100, limit = machine_is_sanitized() ? 5 : 1, wakes = 0;

    for (int look = 0; look < IDLE_LOOKS && best >= limit; look++) {
        uint64_t cpu_ns = machine_cpu_ns(worker.pid), turns = machine_turns(worker.pid);
        uint64_t since_ns = machine_now_ns();
        double percent, passed_ns;

        while (machine_now_ns() - since_ns < IDLE_NS)
            pause_ns(100000000);
        passed_ns = (double)(machine_now_ns() - since_ns);
        percent = 100.0 * (double)(machine_cpu_ns(worker.pid) - cpu_ns) / passed_ns;
        best = percent < best ? percent : best;
        wakes = (double)(machine_turns(worker.pid) - turns) * 1e9 / passed_ns;
    }
    printf("idle: %.3f %% of a CPU, %.1f wake-ups a second\n", best, wakes);
    assert_true(machine_is_sanitized() || wakes < WAKES_PER_S);
    assert_true(best < limit);
}

static void check_level(const char *level)
{
    struct gemmd *session;
    struct gemmd_layer *handle;
    struct gemmd_info info;
    struct gemmd_stats stats;

    start_at(level);
    session = session_with(worker.socket, 0, 1 << 20, 0);
    assert_non_null(session);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    assert_int_equal(gemmd_get_info(session, &info), 0);
    assert_string_equal(info.event_level, level);
    round_trips(session, handle);
    assert_int_equal(gemmd_get_stats(session, &stats), 0);
    assert_int_equal(stats.rescues, 0);
    assert_true(stats.session_jobs >= ROUND_TRIPS / 10);
    assert_true(stats.session_doorbells <= stats.session_jobs + 2);
    assert_true(stats.doorbells <= stats.session_doorbells + 2);
    /* Both really slept: else this test has shown nothing. */
    assert_true(stats.session_doorbells > stats.session_jobs / 4);
    assert_true(stats.session_sleeps > stats.session_jobs / 4);
    assert_true(stats.sleeps > stats.session_jobs / 4);
    assert_true(stats.wakes > stats.session_jobs / 4);

    assert_true(machine_wait_asleep(worker.pid, 5000));
    check_idle();
    gemmd_close(&session);
    harness_stop(&worker);
}

static void test_f0(void **state)
{
    (void)state;
    check_level("F0");
}

static void test_f1(void **state)
{
    (void)state;
    check_level("F1");
}

static void test_f2(void **state)
{
    (void)state;
    check_level("F2");
}

static void test_f3(void **state)
{
    (void)state;
    check_level("F3");
}

static void test_unknown_level(void **state)
{
    static const char *const environment[] = {"GEMMD_EVENT_LEVEL=F4", NULL};

    (void)state;
    assert_int_equal(harness_try_start(&worker, NULL, environment), 78);
    assert_true(harness_log_has(&worker, "GEMMD_EVENT_LEVEL"));
    harness_discard(&worker);
}

/* Both sides on one CPU: who spins keeps the other from the CPU, so the client does not. */
static void test_one_cpu(void **state)
{
    static const char *const arguments[] = {"--spin-us", "50", NULL};
    struct gemmd *session;
    struct gemmd_layer *handle;
    struct gemmd_stats stats;
    struct gemmd_job job;
    cpu_set_t all, one;
    uint64_t start_ns;
    const unsigned jobs = machine_is_sanitized() ? 200 : 2000;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    harness_start(&worker, arguments, NULL); /* inherits the CPU */
    session = session_with(worker.socket, 0, 1 << 20, 1000000000);
    assert_non_null(session);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    gemmd_job_init(&job, handle, 0, gemmd_buffer_alloc(session, 64),
                   gemmd_buffer_alloc(session, 64));
    start_ns = machine_now_ns();
    for (unsigned i = 0; i < jobs; i++)
        assert_int_equal(gemmd_run(session, &job, 10000), 0);
    printf("one CPU: %.1f us a job\n", (double)(machine_now_ns() - start_ns) / 1e3 / jobs);
    assert_int_equal(gemmd_get_stats(session, &stats), 0);
    /* One that spun for up to its 1 s would have slept in hardly any of them. */
    assert_true(stats.session_sleeps > jobs / 2);
    assert_int_equal(stats.rescues, 0);
    gemmd_close(&session);
    harness_stop(&worker);
    assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
}

/* gemmd_wait gives up in time while nothing completes, and a later completion is not lost. */
static void test_timeout(void **state)
{
    struct gemmd *session;
    struct gemmd_layer *handle;
    struct gemmd_completion done;
    struct layer_case large;
    struct gemmd_job job;
    uint64_t before_ns;
    int result;

    (void)state;
    harness_start(&worker, NULL, NULL);
    session = session_with(worker.socket, 0, 64 << 20, 0);
    layer_case_plain(&large, 1024, 4096, 3);
    assert_int_equal(gemmd_layer_create(session, &large.desc, &handle), 0);
    gemmd_job_init(&job, handle, 4096, gemmd_buffer_alloc(session, 4096 * 4096),
                   gemmd_buffer_alloc(session, 4096 * 1024 * 4));
    assert_true(job.a && job.c);
    assert_int_equal(gemmd_submit(session, &job, 1), 1); /* 17 G multiply-accumulates */
    before_ns = machine_now_ns();
    result = gemmd_wait(session, &done, 1, 1);
    assert_int_equal(result, -ETIMEDOUT);
    assert_true(machine_now_ns() - before_ns < UINT64_C(20000000000));
    assert_int_equal(gemmd_in_flight(session), 1);
    assert_int_equal(gemmd_run(session, &job, 1), -EBUSY);
    assert_int_equal(gemmd_wait(session, &done, 1, 60000), 1);
    assert_int_equal(done.status, 0);
    gemmd_close(&session);
    layer_case_fini(&large);
    harness_stop(&worker);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, 16, 32, 15);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    layer_case_fini(&layer);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f0), cmocka_unit_test(test_f1),
        cmocka_unit_test(test_f2), cmocka_unit_test(test_f3),
        cmocka_unit_test(test_unknown_level), cmocka_unit_test(test_one_cpu),
        cmocka_unit_test(test_timeout),
    };

    return HARNESS_RUN(tests, start, stop, 170);
}
