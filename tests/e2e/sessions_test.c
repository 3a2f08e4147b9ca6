/* Many sessions at once, most of them idle: jobs stay exact, idle sessions wake when they ring,
 * others may come and go meanwhile, and nothing is left behind. */
#include "tests/harness.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

#define SESSIONS 320
#define BUSY     64
#define N        24
#define K        40

static struct harness_worker worker;
static struct layer_case layer;

struct client {
    struct gemmd *session;
    struct gemmd_layer *handle;
    struct gemmd_job job;
    uint8_t *a;
    float *c, wanted[N];
};

static void open_client(struct client *client, uint64_t seed)
{
    client->session = session_with(worker.socket, 8, 1 << 16, 0);
    REQUIRE(client->session != NULL);
    REQUIRE(gemmd_layer_open(client->session, "many", &client->handle) == 0);
    client->a = gemmd_buffer_alloc(client->session, K);
    client->c = gemmd_buffer_alloc(client->session, N * sizeof(float));
    REQUIRE(client->a && client->c);
    random_bytes(&seed, client->a, K);
    layer_case_expect(&layer, 1, client->a, K, client->wanted, N * sizeof(float));
    gemmd_job_init(&client->job, client->handle, 1, client->a, client->c);
}

static void submit(struct client *client)
{
    memset(client->c, 0xff, N * sizeof(float));
    REQUIRE(gemmd_submit(client->session, &client->job, 1) == 1);
    gemmd_flush(client->session);
}

static void complete(struct client *client)
{
    struct gemmd_completion done;

    REQUIRE(gemmd_wait(client->session, &done, 1, 20000) == 1);
    REQUIRE(done.status == 0);
    REQUIRE(memcmp(client->c, client->wanted, N * sizeof(float)) == 0);
}

static void serve(struct client *clients, unsigned first, unsigned count)
{
    for (unsigned i = first; i < first + count; i++)
        submit(&clients[i]);
    for (unsigned i = first; i < first + count; i++)
        complete(&clients[i]);
}

/* In a process of its own: sessions that do one job and leave, half of them with it in flight. */
static int churn(void *argument)
{
    const unsigned *rounds = argument;

    for (unsigned i = 0; i < *rounds; i++) {
        struct client client;

        open_client(&client, i);
        submit(&client);
        if (i % 2)
            complete(&client);
        gemmd_close(&client.session);
    }
    return 0;
}

static void test_many(void **state)
{
    struct client *clients = calloc(SESSIONS, sizeof(*clients));
    unsigned rounds = machine_is_sanitized() ? 20 : 200, descriptors;
    struct gemmd *owner;
    struct gemmd_layer *handle;
    struct gemmd_stats stats;
    struct gemmd_info info;
    pid_t child;

    (void)state;
    REQUIRE(clients != NULL);
    harness_start(&worker, NULL, NULL);
    owner = session_to(worker.socket);
    layer.desc.name = "many";
    assert_int_equal(gemmd_layer_create(owner, &layer.desc, &handle), 0);
    descriptors = machine_fds_settled(worker.pid);
    for (unsigned i = 0; i < SESSIONS; i++)
        open_client(&clients[i], i);
    assert_int_equal(gemmd_get_info(owner, &info), 0);
    assert_int_equal(info.session_count, SESSIONS + 1);

    child = harness_fork(churn, &rounds);
    for (unsigned round = 0; round < rounds; round++) {
        serve(clients, 0, BUSY);
        if (round % 10 == 0) /* every one of them, long after its last job: cold by then */
            serve(clients, 0, SESSIONS);
    }
    assert_int_equal(harness_join(child, 60000), 0);
    /* Slots in the middle become free and are used again. */
    for (unsigned i = BUSY; i < SESSIONS; i += 3)
        gemmd_close(&clients[i].session);
    for (unsigned i = BUSY; i < SESSIONS; i += 3)
        open_client(&clients[i], i + 1000);
    serve(clients, 0, SESSIONS);

    assert_int_equal(gemmd_get_stats(owner, &stats), 0);
    printf("%lu jobs, %lu doorbells, %lu sessions opened in all\n", (unsigned long)stats.jobs,
           (unsigned long)stats.doorbells, (unsigned long)stats.sessions_opened);
    assert_int_equal(stats.rescues, 0);
    assert_int_equal(stats.jobs_failed, 0);
    assert_true(stats.doorbells <= stats.jobs);
    for (unsigned i = 0; i < SESSIONS; i++)
        gemmd_close(&clients[i].session);
    for (int i = 0; i < 10000 && info.session_count > 1; i++) { /* they are ended one by one */
        assert_int_equal(gemmd_get_info(owner, &info), 0);
        usleep(1000);
    }
    assert_int_equal(info.session_count, 1);
    assert_int_equal(machine_fds_settled(worker.pid), descriptors);
    gemmd_close(&owner);
    harness_stop(&worker);
    free(clients);
}

static int start(void **state)
{
    struct rlimit files;

    (void)state;
    layer_case_plain(&layer, N, K, 21);
    REQUIRE(getrlimit(RLIMIT_NOFILE, &files) == 0);
    files.rlim_cur = files.rlim_max;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &files) == 0);
    if (files.rlim_max < 3 * SESSIONS + 64)
        harness_skip("only %lu file descriptors may be open", (unsigned long)files.rlim_max);
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
    static const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_many, start,
                                                                              stop)};

    return HARNESS_RUN(tests, NULL, NULL, 110);
}
