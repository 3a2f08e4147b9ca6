/*
 * An honest client beside each hostile one: it gets its share of the compute, whatever the others
 * do; and a latency job does not wait for a flood of large ones.
 *
 * Shares are of the compute that the worker charged, so that other load on the machine does not
 * count.  The worker has one CPU, the clients the others if there are any.
 */
#include "tests/harness.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "proto/status.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

/* Of its share, per mille. */
#define SHARE_MIN 950

/* Enough in flight that a client which loses its CPU for some ms is not without work. */
enum { DEPTH = 64, RUN_MS = 1200, FAVOURED_UID = 1001 };

enum hostile { GREEDY, HOARDER, CANCELLER, LATE, UNLOADED, HOSTILES };

static struct harness_worker worker;

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- clients --------------------------------------------------------------------------------- */

/* What a client has done again and again: its layer, and jobs of so many rows.  Of the same shape,
 * the layer is the same. */
struct work {
    uint32_t n, k, rows;
    enum gemmd_type a_type;
    unsigned depth; /* jobs in flight */
};

static const struct work middling = {512, 512, 2048, GEMMD_TYPE_U8, DEPTH};
static const struct work dearest = {2048, 4096, 512, GEMMD_TYPE_U8, DEPTH};
static const struct work tiny = {128, 128, 1, GEMMD_TYPE_U8, 1};
/* Making the rows costs more than what they are made for. */
static const struct work few_floats = {64, 4096, 4, GEMMD_TYPE_F32, DEPTH};
static const struct work many_floats = {64, 4096, 256, GEMMD_TYPE_F32, DEPTH};
/* One pass over the weights has room for some of both. */
static const struct work company = {1024, 4096, 1, GEMMD_TYPE_U8, 4};
static const struct work passengers = {1024, 4096, 15, GEMMD_TYPE_U8, DEPTH};

struct client {
    const struct work *work;
    struct gemmd *session;
    struct layer_case layer;
    struct gemmd_layer *handle;
    uint8_t *a;
    float *c;
    uint64_t count[GEMMD_STATUS_VIOLATION_MIN];
};

static void open_client(struct client *client, const struct work *work, int64_t spin_ns)
{
    const struct layer_kind kind = {.a_type = work->a_type};

    memset(client, 0, sizeof(*client));
    client->work = work;
    client->session = session_with(worker.socket, DEPTH, UINT64_C(64) << 20, spin_ns);
    REQUIRE(client->session);
    layer_case_init_kind(&client->layer, work->n, work->k, &kind, true, 1);
    REQUIRE(gemmd_layer_create(client->session, &client->layer.desc, &client->handle) >= 0);
    client->a = gemmd_buffer_alloc(client->session,
                                   work->rows * layer_case_a_row_bytes(&client->layer));
    REQUIRE(client->a);
    /* Nobody looks at the results. */
    client->c = gemmd_buffer_alloc(client->session, (size_t)work->rows * work->n * sizeof(float));
    REQUIRE(client->c);
}

static bool submit(struct client *client, uint64_t i, enum gemmd_priority priority,
                   uint64_t deadline_ns)
{
    struct gemmd_job job;

    gemmd_job_init(&job, client->handle, client->work->rows, client->a, client->c);
    job.user_data = i;
    job.priority = priority;
    job.deadline_ns = deadline_ns;
    return gemmd_submit(client->session, &job, 1) == 1;
}

static void reap(struct client *client, int timeout_ms)
{
    struct gemmd_completion done[DEPTH];
    int taken = gemmd_wait(client->session, done, DEPTH, timeout_ms);

    REQUIRE(taken >= 0 || taken == -ETIMEDOUT);
    for (int i = 0; i < taken; i++)
        client->count[done[i].status]++;
}

/* Always as many jobs in flight. */
static int run_honest(void *argument)
{
    const struct work *work = argument;
    uint64_t end_ns, i = 0;
    struct client client;

    open_client(&client, work, 0);
    end_ns = now_ns() + RUN_MS * UINT64_C(1000000);
    while (now_ns() < end_ns) {
        while (gemmd_in_flight(client.session) < work->depth &&
               submit(&client, i, GEMMD_PRIORITY_NORMAL, 0))
            i++;
        reap(&client, 10000);
    }
    REQUIRE(client.count[GEMMD_STATUS_OK] > 0);
    pause(); /* the session lives until its share was read */
    return 0;
}

static void act(struct client *client, enum hostile kind, uint64_t *i)
{
    switch (kind) {
    case GREEDY:
        while (submit(client, *i, GEMMD_PRIORITY_LATENCY, 0))
            (*i)++;
        reap(client, 10000);
        break;
    case HOARDER:
        while (submit(client, *i, GEMMD_PRIORITY_LATENCY, 0))
            (*i)++;
        gemmd_flush(client->session);
        usleep(1000);
        break;
    case CANCELLER:
        for (int j = 0; j < 4; j++, (*i)++) {
            if (submit(client, *i, GEMMD_PRIORITY_LATENCY, 0))
                gemmd_cancel(client->session, *i);
        }
        reap(client, 10000);
        break;
    case LATE:
        while (submit(client, *i, GEMMD_PRIORITY_LATENCY, 1))
            (*i)++;
        reap(client, 10000);
        break;
    case UNLOADED:
        while (submit(client, *i, GEMMD_PRIORITY_LATENCY, 0))
            (*i)++;
        gemmd_flush(client->session);
        REQUIRE(gemmd_layer_close(client->session, &client->handle) == 0);
        while (gemmd_in_flight(client->session))
            reap(client, 10000);
        REQUIRE(gemmd_layer_create(client->session, &client->layer.desc, &client->handle) >= 0);
        break;
    case HOSTILES:
        break;
    }
}

/* What it is due, beside exactly one completion for each job. */
static void check_dues(const struct client *client, enum hostile kind)
{
    const uint64_t *count = client->count;
    uint64_t total = 0;

    for (int i = 0; i < GEMMD_STATUS_VIOLATION_MIN; i++)
        total += count[i];
    if (kind == GREEDY)
        REQUIRE(count[GEMMD_STATUS_OK] == total && total > 0);
    if (kind == CANCELLER)
        REQUIRE(count[GEMMD_STATUS_OK] + count[GEMMD_STATUS_CANCELLED] == total &&
                count[GEMMD_STATUS_CANCELLED] > 0);
    if (kind == LATE)
        REQUIRE(count[GEMMD_STATUS_DEADLINE] == total && total > 0);
    if (kind == UNLOADED)
        REQUIRE(count[GEMMD_STATUS_OK] + count[GEMMD_STATUS_LAYER_STALE] == total && total > 0);
}

static int run_hostile(void *argument)
{
    enum hostile kind = (enum hostile)(uintptr_t)argument;
    uint64_t end_ns, i = 0;
    struct client client;

    open_client(&client, &dearest, 0); /* does not spin on the CPU it shares */
    end_ns = now_ns() + RUN_MS * UINT64_C(1000000);
    while (now_ns() < end_ns)
        act(&client, kind, &i);
    check_dues(&client, kind);
    pause();
    return 0;
}

/* ---- shares ---------------------------------------------------------------------------------- */

/* Compute charged to that process's sessions; the others'. */
static void read_shares(struct gemmd *observer, pid_t own, uint64_t out[2])
{
    struct gemmd_session_info info;

    out[0] = out[1] = 0;
    for (uint32_t i = 0; gemmd_get_session_info(observer, i, &info) == 0; i++) {
        REQUIRE(info.weight == (info.uid == FAVOURED_UID ? 3 : 1));
        out[info.pid != (uint32_t)own] += info.exec_ns;
    }
}

/* As the user to whom start() gave a weight. */
static int run_favoured(void *argument)
{
    REQUIRE(setuid(FAVOURED_UID) == 0);
    return run_honest(argument);
}

/* A client, and what it does. */
struct part {
    int (*run)(void *);
    const void *argument;
};

enum { PARTS_MAX = 3 };

/* The first one's part of the compute of all, in thousandths. */
static double measure_share(const struct part parts[PARTS_MAX])
{
    struct gemmd *observer = session_to(worker.socket);
    pid_t pids[PARTS_MAX] = {0};
    uint64_t before[2], after[2];
    double got, all;

    assert_non_null(observer);
    for (int i = PARTS_MAX - 1; i >= 0; i--)
        if (parts[i].run)
            pids[i] = harness_fork(parts[i].run, (void *)(uintptr_t)parts[i].argument);
    do { /* until all are at work; some hostile ones never get any */
        usleep(50000);
        read_shares(observer, pids[0], before);
    } while (before[0] == 0);
    usleep(50000);
    read_shares(observer, pids[0], before);
    usleep(RUN_MS / 2 * 1000);
    read_shares(observer, pids[0], after);
    got = (double)(after[0] - before[0]);
    all = got + (double)(after[1] - before[1]);
    assert_true(got > 0);
    usleep(RUN_MS / 2 * 1000);
    for (int i = 0; i < PARTS_MAX; i++)
        if (pids[i])
            assert_int_equal(harness_join(pids[i], 200), -1); /* all wait, and are well */
    assert_true(harness_is_alive(&worker));
    gemmd_close(&observer);
    return 1000 * got / all;
}

/* The share is owed to a client that always has jobs waiting.  On a machine busy with other things
 * the honest one is at times not run for milliseconds, and what it did not ask for goes to the
 * other: the best of three counts. */
static void check_parts(const char *name, double due, const struct part parts[PARTS_MAX])
{
    double share = 0;

    if (machine_is_sanitized())
        harness_skip("a sanitized worker's time is spent on other things than jobs");
    for (int attempt = 0; attempt < 3 && share < due * SHARE_MIN; attempt++) {
        share = measure_share(parts);
        print_message("%s: the honest client got %.1f %% of the compute, due are %.1f %%\n", name,
                      share / 10, due * 100);
    }
    assert_true(share >= due * SHARE_MIN);
}

static void check_share(enum hostile kind)
{
    static const char *const names[] = {"greedy", "hoarder", "canceller", "late", "unloaded"};
    const struct part parts[PARTS_MAX] = {{run_honest, &middling},
                                          {run_hostile, (const void *)(uintptr_t)kind}};

    check_parts(names[kind], 1.0 / 2, parts);
}

static void test_greedy(void **state)
{
    (void)state;
    check_share(GREEDY);
}

static void test_hoarder(void **state)
{
    (void)state;
    check_share(HOARDER);
}

static void test_canceller(void **state)
{
    (void)state;
    check_share(CANCELLER);
}

static void test_late(void **state)
{
    (void)state;
    check_share(LATE);
}

static void test_unloaded(void **state)
{
    (void)state;
    check_share(UNLOADED);
}

/* Three shares of four. */
static void test_weight(void **state)
{
    static const struct part parts[PARTS_MAX] = {{run_favoured, &middling},
                                                 {run_hostile, (const void *)GREEDY}};

    (void)state;
    machine_skip_unless_root();
    check_parts("weight 3", 3.0 / 4, parts);
}

/* On one layer, whose rows cost more to make than to compute. */
static void test_float_rows(void **state)
{
    static const struct part parts[PARTS_MAX] = {{run_honest, &few_floats},
                                                 {run_honest, &many_floats}};

    (void)state;
    check_parts("floats", 1.0 / 2, parts);
}

/* The others share a layer and its scans, which are not to be theirs for next to nothing. */
static void test_free_seats(void **state)
{
    static const struct part parts[PARTS_MAX] = {{run_honest, &middling},
                                                 {run_honest, &company},
                                                 {run_honest, &passengers}};

    (void)state;
    check_parts("free seats", 1.0 / 3, parts);
}

/* ---- latency --------------------------------------------------------------------------------- */

enum { SAMPLES = 20000 };

static int compare(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

/* Round trips of small latency jobs, sorted. */
static void measure(struct client *client, uint64_t *samples)
{
    struct gemmd_job job;

    gemmd_job_init(&job, client->handle, client->work->rows, client->a, client->c);
    job.priority = GEMMD_PRIORITY_LATENCY;
    for (int i = 0; i < SAMPLES; i++) {
        uint64_t start_ns = now_ns();

        assert_int_equal(gemmd_run(client->session, &job, 10000), 0);
        samples[i] = now_ns() - start_ns;
    }
    qsort(samples, SAMPLES, sizeof(*samples), compare);
}

/* Its large jobs have begun to complete. */
static bool is_flooding(struct gemmd *session, pid_t pid)
{
    uint64_t shares[2];

    read_shares(session, pid, shares);
    return shares[0] > 20000000;
}

/* Out of the latency client's way on the CPU that both share: the worker is measured, not the
 * kernel's scheduler.  It sleeps nearly all the time, with 64 jobs in flight. */
static int run_flood(void *argument)
{
    (void)argument;
    setpriority(PRIO_PROCESS, 0, 19);
    return run_hostile((void *)(uintptr_t)GREEDY);
}

static void test_latency_beside_flood(void **state)
{
    static uint64_t alone[SAMPLES], beside[SAMPLES];
    struct client client;
    pid_t hostile;

    (void)state;
    if (machine_is_sanitized())
        harness_skip("times of a sanitized worker mean nothing");
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
        harness_skip("one CPU: the client's own time slices would be measured");
    open_client(&client, &tiny, -1);
    measure(&client, alone);
    hostile = harness_fork(run_flood, NULL);
    while (!is_flooding(client.session, hostile))
        usleep(10000);
    measure(&client, beside);
    harness_reap_killed(hostile);
    print_message("p50 %llu ns alone, %llu beside; p99 %llu alone, %llu beside\n",
                  (unsigned long long)alone[SAMPLES / 2], (unsigned long long)beside[SAMPLES / 2],
                  (unsigned long long)alone[SAMPLES * 99 / 100],
                  (unsigned long long)beside[SAMPLES * 99 / 100]);
    /* Without preemption each would wait for a job of 2 GMAC, 5 ms and more.  The figure to reach
     * is p99 <= 3 x; here other load on the machine must not fail the test. */
    assert_true(beside[SAMPLES / 2] < 1000000);
    gemmd_close(&client.session);
    layer_case_fini(&client.layer);
}

static int start(void **state)
{
    static const char *const arguments[] = {"--allow-uid", "1001", "--uid-weight", "1001:3", NULL};

    (void)state;
    machine_start_apart(&worker, arguments);
    REQUIRE(chmod(worker.directory, 0755) == 0);
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
        cmocka_unit_test(test_greedy),   cmocka_unit_test(test_hoarder),
        cmocka_unit_test(test_canceller), cmocka_unit_test(test_late),
        cmocka_unit_test(test_unloaded), cmocka_unit_test(test_weight),
        cmocka_unit_test(test_float_rows), cmocka_unit_test(test_free_seats),
        cmocka_unit_test(test_latency_beside_flood),
    };

    return HARNESS_RUN(tests, start, stop, 100);
}
