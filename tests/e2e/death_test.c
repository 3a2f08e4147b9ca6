/* Either side dies, at any moment: the other goes on, and nothing is left behind. */
#include "tests/harness.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

static struct harness_worker worker;
static struct layer_case layer;

#define N 64
#define K 256
#define M 64

struct baseline {
    unsigned fds, arenas, segments;
};

static struct baseline measure(void)
{
    return (struct baseline){.fds = machine_fds_settled(worker.pid),
                             .arenas = machine_mappings(worker.pid, "gemmd-arena"),
                             .segments = machine_mappings(worker.pid, "gemmd-")};
}

/* Back to `before` within a second. */
static void check_freed(const struct baseline *before)
{
    uint64_t deadline_ns = machine_now_ns() + UINT64_C(1000000000);
    struct baseline now = measure();

    while (memcmp(&now, before, sizeof(now)) != 0 && machine_now_ns() < deadline_ns) {
        usleep(1000);
        now = measure();
    }
    if (memcmp(&now, before, sizeof(now)) != 0)
        fprintf(stderr, "fds %u (before %u) arenas %u (%u) segments %u (%u)\n", now.fds,
                before->fds, now.arenas, before->arenas, now.segments, before->segments);
    assert_memory_equal(&now, before, sizeof(now));
}

/* ---- a client dies --------------------------------------------------------------------------- */

/* Keeps its ring full for ever; says so by a byte once jobs run. */
static int flood(void *argument)
{
    int fd = *(const int *)argument;
    struct gemmd *session = session_with(worker.socket, 64, 4 << 20, -1);
    struct gemmd_completion done[64];
    struct gemmd_layer *handle;
    struct gemmd_job job;
    bool said = false;

    REQUIRE(session != NULL);
    REQUIRE(gemmd_layer_create(session, &layer.desc, &handle) >= 0);
    gemmd_job_init(&job, handle, M, gemmd_buffer_alloc(session, M * K),
                   gemmd_buffer_alloc(session, M * N * 4));
    REQUIRE(job.a && job.c);
    for (;;) {
        int got;

        while (gemmd_submit(session, &job, 1) == 1)
            ;
        got = gemmd_wait(session, done, 64, 10000);
        REQUIRE(got > 0);
        if (!said)
            REQUIRE(write(fd, "!", 1) == 1);
        said = true;
    }
}

/* Starts `count` flooding clients, and returns when all run. */
static void start_flood(pid_t *pids, unsigned count)
{
    int channel[2];

    REQUIRE(pipe(channel) == 0);
    for (unsigned i = 0; i < count; i++)
        pids[i] = harness_fork(flood, &channel[1]);
    for (unsigned i = 0; i < count; i++) {
        char byte;

        REQUIRE(read(channel[0], &byte, 1) == 1);
    }
    close(channel[0]);
    close(channel[1]);
}

static void test_client_killed(void **state)
{
    struct gemmd *honest = session_to(worker.socket);
    struct gemmd_info info;
    struct gemmd_layer *handle;
    struct baseline before;
    uint64_t seed = 1, arena_bytes;

    (void)state;
    assert_int_equal(gemmd_layer_create(honest, &layer.desc, &handle), 0);
    assert_int_equal(gemmd_get_info(honest, &info), 0);
    arena_bytes = info.arena_bytes;
    before = measure();
    for (int round = 0; round < 15; round++) {
        pid_t pids[3];

        start_flood(pids, 3);
        assert_int_equal(gemmd_get_info(honest, &info), 0);
        assert_int_equal(info.session_count, 4);
        assert_true(info.arena_bytes > arena_bytes);
        for (int i = 0; i < 10; i++)
            assert_int_equal(layer_case_check(honest, handle, &layer, 1 + i, ++seed), 0);
        usleep((useconds_t)(random_next(&seed) % 3000));
        for (int i = 0; i < 3; i++) {
            kill(pids[i], SIGKILL);
            assert_int_equal(layer_case_check(honest, handle, &layer, 5, ++seed), 0);
        }
        for (int i = 0; i < 3; i++)
            assert_int_equal(harness_join(pids[i], 5000), 1000 + SIGKILL);
        check_freed(&before);
        assert_int_equal(gemmd_get_info(honest, &info), 0);
        assert_int_equal(info.session_count, 1);
        assert_int_equal(info.arena_bytes, arena_bytes);
        assert_int_equal(layer_case_check(honest, handle, &layer, 7, ++seed), 0);
    }
    assert_true(harness_is_alive(&worker));
    gemmd_close(&honest);
}

/* A stopped client holds its arena and nothing else. */
static void test_client_stopped(void **state)
{
    struct gemmd *honest = session_to(worker.socket);
    struct gemmd_layer *handle;
    struct baseline before;
    pid_t pid;

    (void)state;
    assert_true(gemmd_layer_create(honest, &layer.desc, &handle) >= 0);
    before = measure();
    start_flood(&pid, 1);
    kill(pid, SIGSTOP);
    for (uint64_t i = 0; i < 200; i++)
        assert_int_equal(layer_case_check(honest, handle, &layer, 3, i), 0);
    kill(pid, SIGCONT);
    usleep(5000);
    assert_int_equal(layer_case_check(honest, handle, &layer, 3, 9), 0);
    harness_reap_killed(pid);
    check_freed(&before);
    gemmd_close(&honest);
}

/* Memory of a dead client's layer: taken by another that has it open, else available again. */
static void test_layers_outlive_their_creator(void **state)
{
    struct gemmd *honest = session_to(worker.socket);
    struct gemmd_layer *handle;
    pid_t pid;

    (void)state;
    start_flood(&pid, 1); /* it creates the layer */
    assert_int_equal(gemmd_layer_create(honest, &layer.desc, &handle), 1);
    harness_reap_killed(pid);
    usleep(20000);
    for (uint64_t i = 0; i < 20; i++)
        assert_int_equal(layer_case_check(honest, handle, &layer, 9, i), 0);
    gemmd_close(&honest);
}

/* ---- the worker dies ------------------------------------------------------------------------- */

/* Every job in flight completes once; returns how many were lost. */
static unsigned reap_all(struct gemmd *session, unsigned in_flight, int allowed_error)
{
    struct gemmd_completion done[64];
    uint64_t seen = 0, deadline_ns = machine_now_ns() + UINT64_C(2000000000);
    unsigned lost = 0, reaped = 0;

    while (reaped < in_flight) {
        int got = gemmd_wait(session, done, 64, 2000);

        assert_true(got > 0);
        for (int i = 0; i < got; i++) {
            assert_true(done[i].user_data < 64);
            assert_int_equal(seen >> done[i].user_data & 1, 0);
            seen |= UINT64_C(1) << done[i].user_data;
            if (done[i].error == 0)
                continue;
            assert_int_equal(done[i].error, allowed_error);
            if (allowed_error == -ECONNRESET)
                assert_string_equal(gemmd_status_name(done[i].status), "WORKER_LOST");
            lost++;
        }
        reaped += (unsigned)got;
    }
    assert_true(machine_now_ns() < deadline_ns);
    assert_int_equal(gemmd_in_flight(session), 0);
    assert_int_equal(gemmd_poll(session, done, 64), 0);
    return lost;
}

static unsigned fill_ring(struct gemmd *session, struct gemmd_layer *handle, uint32_t m)
{
    struct gemmd_job job;
    unsigned count = 0;

    gemmd_job_init(&job, handle, m, gemmd_buffer_alloc(session, (size_t)m * K),
                   gemmd_buffer_alloc(session, (size_t)m * N * 4));
    REQUIRE(job.a && job.c);
    for (; count < 64; count++) {
        job.user_data = count;
        REQUIRE(gemmd_submit(session, &job, 1) == 1);
    }
    return count;
}

static void check_worker_killed(int64_t spin_ns, bool flush_first)
{
    struct harness_worker victim;
    struct gemmd_layer *handle, *other;
    struct gemmd_completion done;
    struct gemmd_info info;
    struct gemmd_job job;
    struct gemmd *session;
    uint64_t before_ns;
    unsigned lost;

    harness_start(&victim, NULL, NULL);
    session = session_with(victim.socket, 128, 32 << 20, spin_ns);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    fill_ring(session, handle, 20000);
    if (flush_first)
        gemmd_flush(session);
    usleep(2000);
    harness_kill(&victim);
    lost = reap_all(session, 64, -ECONNRESET);
    printf("killed: %u of 64 jobs lost\n", lost);
    assert_true(lost > 0);
    before_ns = machine_now_ns();
    gemmd_job_init(&job, handle, 0, gemmd_buffer_alloc(session, 64), NULL);
    job.c = (void *)(uintptr_t)job.a;
    assert_int_equal(gemmd_submit(session, &job, 1), -ECONNRESET);
    assert_int_equal(gemmd_run(session, &job, 60000), -ECONNRESET);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &other), -ECONNRESET);
    assert_null(other);
    assert_int_equal(gemmd_layer_open(session, "x", &other), -ECONNRESET);
    assert_int_equal(gemmd_get_info(session, &info), -ECONNRESET);
    assert_int_equal(gemmd_wait(session, &done, 1, 60000), 0);
    assert_true(strlen(gemmd_error_text(session)) > 0);
    assert_int_equal(gemmd_layer_close(session, &handle), -ECONNRESET);
    assert_null(handle);
    assert_true(machine_now_ns() - before_ns < UINT64_C(20000000000)); /* none of them waits */
    gemmd_close(&session);
    harness_discard(&victim);
}

static void test_worker_killed(void **state)
{
    (void)state;
    check_worker_killed(-1, true);
    check_worker_killed(0, true);         /* asleep in futex when it happens */
    check_worker_killed(1000000000, true); /* spinning */
    check_worker_killed(-1, false);
}

struct sleeper {
    const char *socket;
    int fd; /* gets a byte once the ring is full */
};

static int wait_for_dead_worker(void *argument)
{
    const struct sleeper *sleeper = argument;
    struct gemmd *session = session_with(sleeper->socket, 128, 32 << 20, 0);
    struct gemmd_completion done[64];
    struct gemmd_layer *handle;
    int got;

    REQUIRE(session != NULL);
    REQUIRE(gemmd_layer_create(session, &layer.desc, &handle) >= 0);
    fill_ring(session, handle, 30000);
    REQUIRE(write(sleeper->fd, "!", 1) == 1);
    do {
        got = gemmd_wait(session, done, 64, -1); /* for ever */
        for (int i = 0; i < got; i++)
            if (done[i].error == -ECONNRESET)
                return 0;
    } while (got > 0);
    return 1;
}

/* The sleeper has no time limit of its own: the library must notice. */
static void test_sleeping_client_notices(void **state)
{
    struct harness_worker victim;
    struct sleeper sleeper;
    int channel[2];
    char byte;
    pid_t pid;

    (void)state;
    harness_start(&victim, NULL, NULL);
    REQUIRE(pipe(channel) == 0);
    sleeper = (struct sleeper){victim.socket, channel[1]};
    pid = harness_fork(wait_for_dead_worker, &sleeper);
    REQUIRE(read(channel[0], &byte, 1) == 1);
    usleep(2000);
    harness_kill(&victim);
    close(channel[0]);
    close(channel[1]);
    assert_int_equal(harness_join(pid, 2000), 0);
    harness_discard(&victim);
}

/* ---- the worker is told to go ---------------------------------------------------------------- */

static void test_drain(void **state)
{
    struct harness_worker leaving;
    struct gemmd_layer *handle;
    struct gemmd_job job;
    struct gemmd *session;
    uint8_t *a;
    float *c, *wanted;
    uint64_t seed = 77;

    (void)state;
    harness_start(&leaving, NULL, NULL);
    session = session_with(leaving.socket, 128, 8 << 20, -1);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    a = gemmd_buffer_alloc(session, M * K);
    c = gemmd_buffer_alloc(session, 64 * M * N * 4);
    wanted = malloc(M * N * 4);
    REQUIRE(a && c && wanted);
    random_bytes(&seed, a, M * K);
    layer_case_expect(&layer, M, a, K, wanted, N * 4);
    for (uint64_t i = 0; i < 64; i++) {
        gemmd_job_init(&job, handle, M, a, c + i * M * N);
        job.user_data = i;
        assert_int_equal(gemmd_submit(session, &job, 1), 1);
    }
    gemmd_flush(session);
    harness_stop(&leaving); /* exit 0 */
    assert_int_equal(reap_all(session, 64, 0), 0); /* all of them completed, none lost */
    for (uint64_t i = 0; i < 64; i++)
        assert_memory_equal(c + i * M * N, wanted, M * N * 4);
    assert_int_equal(gemmd_submit(session, &job, 1), -ECONNRESET);
    free(wanted);
    gemmd_close(&session);
}

/* A second worker may not take a live one's socket; a dead one's it may. */
static void test_socket_is_taken(void **state)
{
    struct harness_worker victim, second;
    char socket[sizeof(victim.socket)];
    const char *const same[] = {"--socket", socket, NULL};
    struct gemmd *session;
    struct gemmd_options options;

    (void)state;
    harness_start(&victim, NULL, NULL);
    memcpy(socket, victim.socket, sizeof(socket));
    assert_int_equal(harness_try_start(&second, same, NULL), 69);
    harness_discard(&second);
    session = session_to(socket); /* the first is unharmed */
    assert_non_null(session);
    gemmd_close(&session);
    harness_kill(&victim); /* leaves its socket behind */
    gemmd_options_init(&options);
    options.socket = socket;
    options.autostart = 0;
    assert_int_equal(gemmd_connect(&options, &session), -ECONNREFUSED);
    assert_non_null(strstr(gemmd_error_text(NULL), socket));
    assert_int_equal(harness_try_start(&second, same, NULL), 0);
    session = session_to(socket);
    assert_non_null(session);
    gemmd_close(&session);
    harness_stop(&second);
    harness_discard(&victim);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, N, K, 16);
    harness_start(&worker, NULL, NULL);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    layer_case_fini(&layer);
    harness_stop(&worker);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_client_killed),
        cmocka_unit_test(test_client_stopped),
        cmocka_unit_test(test_layers_outlive_their_creator),
        cmocka_unit_test(test_worker_killed),
        cmocka_unit_test(test_sleeping_client_notices),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_socket_is_taken),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
