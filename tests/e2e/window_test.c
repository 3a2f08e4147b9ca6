/*
 * Layers whose jobs wait for company (--window): for how long, for whom not, and that a client that
 * cancels, asks for a deadline or dies meanwhile loses nothing.
 */
#include "tests/harness.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "proto/status.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

enum { N = 48, K = 96, TRIES = 50 };
#define WINDOW_NS 10000000u

static struct harness_worker worker;
static struct layer_case layer;

struct client {
    struct gemmd *session;
    struct gemmd_layer *handle;
    uint8_t *a;
    float *c;
};

static void open_client(struct client *client, const char *name)
{
    client->session = session_with(worker.socket, 16, 1 << 20, -1);
    REQUIRE(client->session);
    layer.desc.name = name;
    REQUIRE(gemmd_layer_create(client->session, &layer.desc, &client->handle) >= 0);
    client->a = gemmd_buffer_alloc(client->session, K);
    client->c = gemmd_buffer_alloc(client->session, N * sizeof(float));
    REQUIRE(client->a && client->c);
    memset(client->a, 3, K);
}

static void submit(struct client *client, enum gemmd_priority priority, uint64_t deadline_ns)
{
    struct gemmd_job job;

    gemmd_job_init(&job, client->handle, 1, client->a, client->c);
    job.priority = priority;
    job.deadline_ns = deadline_ns;
    job.user_data = 7;
    REQUIRE(gemmd_submit(client->session, &job, 1) == 1);
    gemmd_flush(client->session);
}

static struct gemmd_completion reap(struct client *client)
{
    struct gemmd_completion done;

    REQUIRE(gemmd_wait(client->session, &done, 1, 20000) == 1);
    return done;
}

/* The shortest of some jobs' times in the queue. */
static uint32_t queue_ns(struct client *client, enum gemmd_priority priority, uint64_t in_ns)
{
    uint32_t least = UINT32_MAX;

    for (int i = 0; i < TRIES && least >= WINDOW_NS / 2; i++) {
        struct gemmd_completion done;

        submit(client, priority, in_ns ? machine_now_ns() + in_ns : 0);
        done = reap(client);
        if (done.status == GEMMD_STATUS_OK && done.queue_ns < least)
            least = done.queue_ns;
    }
    return least;
}

static void start_worker(void)
{
    static const char *const arguments[] = {"--window", "slow:10000", NULL};

    harness_start(&worker, arguments, NULL);
}

static void test_who_waits(void **state)
{
    struct client client;

    (void)state;
    start_worker();
    open_client(&client, "slow/fc");
    for (int i = 0; i < 3; i++) {
        submit(&client, GEMMD_PRIORITY_NORMAL, 0);
        assert_true(reap(&client).queue_ns >= WINDOW_NS);
    }
    assert_int_equal(layer_case_check(client.session, client.handle, &layer, 5, 1), 0);
    assert_true(queue_ns(&client, GEMMD_PRIORITY_LATENCY, 0) < WINDOW_NS / 2);
    assert_true(queue_ns(&client, GEMMD_PRIORITY_NORMAL, WINDOW_NS / 2) < WINDOW_NS / 2);
    gemmd_close(&client.session);
    harness_stop(&worker);

    start_worker();
    open_client(&client, "slowly");
    assert_true(queue_ns(&client, GEMMD_PRIORITY_NORMAL, 0) < WINDOW_NS / 2);
    gemmd_close(&client.session);
    harness_stop(&worker);
}

/* Two clients whose jobs never meet by themselves. */
static void test_who_meets(void **state)
{
    struct client first, second;
    struct gemmd_stats stats;

    (void)state;
    start_worker();
    open_client(&first, "slow");
    open_client(&second, "slow");
    for (int i = 0; i < TRIES; i++) {
        submit(&first, GEMMD_PRIORITY_NORMAL, 0);
        submit(&second, GEMMD_PRIORITY_NORMAL, 0);
        assert_int_equal(reap(&first).status, GEMMD_STATUS_OK);
        assert_int_equal(reap(&second).status, GEMMD_STATUS_OK);
        assert_memory_equal(first.c, second.c, N * sizeof(float));
        assert_int_equal(gemmd_get_stats(first.session, &stats), 0);
        if (stats.shared_slices)
            break; /* this client may have lost its CPU for a window between the two */
    }
    assert_true(stats.shared_slices > 0);
    gemmd_close(&first.session);
    gemmd_close(&second.session);
    harness_stop(&worker);
}

static int submit_and_die(void *argument)
{
    struct client client;

    (void)argument;
    open_client(&client, "slow");
    submit(&client, GEMMD_PRIORITY_NORMAL, 0);
    kill(getpid(), SIGKILL);
    return 0;
}

static void test_who_leaves(void **state)
{
    unsigned cancelled = 0;
    struct client client;
    int status;

    (void)state;
    start_worker();
    open_client(&client, "slow");
    for (int i = 0; i < TRIES && !cancelled; i++) {
        struct gemmd_completion done;

        submit(&client, GEMMD_PRIORITY_NORMAL, 0);
        assert_int_equal(gemmd_cancel(client.session, 7), 1);
        gemmd_flush(client.session);
        done = reap(&client);
        assert_true(done.status == GEMMD_STATUS_OK || done.status == GEMMD_STATUS_CANCELLED);
        cancelled += done.status == GEMMD_STATUS_CANCELLED && done.exec_ns == 0;
    }
    assert_true(cancelled > 0);
    for (int i = 0; i < 5; i++)
        assert_int_equal(harness_join(harness_fork(submit_and_die, NULL), 20000), 1000 + SIGKILL);
    submit(&client, GEMMD_PRIORITY_NORMAL, 0);
    assert_int_equal(gemmd_layer_close(client.session, &client.handle), 0);
    status = reap(&client).status;
    assert_true(status == GEMMD_STATUS_LAYER_STALE || status == GEMMD_STATUS_OK);
    gemmd_close(&client.session);
    /* What gathers when the worker is told to end is run. */
    open_client(&client, "slow");
    submit(&client, GEMMD_PRIORITY_NORMAL, 0);
    harness_stop(&worker);
    assert_int_equal(reap(&client).status, GEMMD_STATUS_OK);
    gemmd_close(&client.session);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, N, K, 9);
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
        cmocka_unit_test(test_who_waits),
        cmocka_unit_test(test_who_meets),
        cmocka_unit_test(test_who_leaves),
    };

    return HARNESS_RUN(tests, start, stop, 110);
}
