/* gemmd_get_fd in an event loop: level- and edge-triggered, with its worker dying, and beside a
 * client that abuses the descriptor. */
#include "tests/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"

#define ROUNDS  4000
#define BURST   48
#define SEEN    4096 /* more than are ever in flight */
#define WAIT_MS 10000

static struct harness_worker worker;
static struct layer_case layer;

struct client {
    struct gemmd *session;
    struct gemmd_layer *handle;
    int fd, epoll;
    struct gemmd_job jobs[BURST];
    uint64_t next, reaped;
    uint64_t seen[SEEN]; /* user_data + 1 of completed jobs */
};

/* Jobs alternate between empty and one row, so that the worker's batches end at odd places. */
static void open_client(struct client *client, const char *socket, uint32_t events)
{
    struct epoll_event event = {.events = events};
    char *memory;

    memset(client, 0, sizeof(*client));
    client->session = session_with(socket, 64, 1 << 20, 0);
    REQUIRE(client->session != NULL);
    REQUIRE(gemmd_layer_create(client->session, &layer.desc, &client->handle) >= 0);
    memory = gemmd_buffer_alloc(client->session, 4096);
    REQUIRE(memory != NULL);
    for (uint32_t i = 0; i < BURST; i++)
        gemmd_job_init(&client->jobs[i], client->handle, i % 3 == 1, memory, memory + 2048);
    client->fd = gemmd_get_fd(client->session);
    REQUIRE(client->fd >= 0);
    REQUIRE(gemmd_get_fd(client->session) == client->fd);
    client->epoll = epoll_create1(EPOLL_CLOEXEC);
    REQUIRE(epoll_ctl(client->epoll, EPOLL_CTL_ADD, client->fd, &event) == 0);
}

static void close_client(struct client *client)
{
    gemmd_close(&client->session);
    close(client->epoll);
}

static void submit(struct client *client, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        client->jobs[i].user_data = client->next++;
    REQUIRE(gemmd_submit(client->session, client->jobs, count) == (int)count);
    REQUIRE(gemmd_flush(client->session) >= 0);
}

static bool readable(const struct client *client, int timeout_ms)
{
    struct epoll_event event;

    return epoll_wait(client->epoll, &event, 1, timeout_ms) == 1;
}

/* Each job completes once, in any order. */
static int reap(struct client *client, unsigned capacity)
{
    struct gemmd_completion done[BURST];
    int got = gemmd_poll(client->session, done, capacity);

    for (int i = 0; i < got; i++) {
        REQUIRE(done[i].status == 0);
        REQUIRE(done[i].user_data < client->next);
        REQUIRE(client->seen[done[i].user_data % SEEN] != done[i].user_data + 1);
        client->seen[done[i].user_data % SEEN] = done[i].user_data + 1;
        client->reaped++;
    }
    return got;
}

/* Until the worker has written everything; the descriptor is not looked at. */
static void settle(const struct client *client)
{
    struct gemmd_stats stats;

    for (int i = 0; i < 5000; i++) {
        REQUIRE(gemmd_get_stats(client->session, &stats) == 0);
        if (stats.jobs >= client->next)
            return;
        usleep(1000);
    }
    REQUIRE(!"the jobs completed");
}

static void test_level_triggered(void **state)
{
    struct client client;

    (void)state;
    harness_start(&worker, NULL, NULL);
    open_client(&client, worker.socket, EPOLLIN);
    assert_false(readable(&client, 20));
    submit(&client, 10);
    settle(&client);
    for (int i = 0; i < 10; i++) {
        assert_true(readable(&client, WAIT_MS)); /* each time anew, and still when looked at */
        assert_true(readable(&client, 0));
        assert_int_equal(reap(&client, 1), 1);
    }
    assert_in_range(reap(&client, 1), 0, 0);
    assert_false(readable(&client, 20));
    /* An array with room to spare: one poll, and silence. */
    submit(&client, 10);
    settle(&client);
    assert_true(readable(&client, WAIT_MS));
    assert_int_equal(reap(&client, BURST), 10);
    assert_false(readable(&client, 20));
    /* gemmd_wait and gemmd_run serve themselves of the same descriptor. */
    for (int i = 0; i < 100; i++) {
        struct gemmd_completion done;

        assert_int_equal(gemmd_run(client.session, &client.jobs[i % 2], WAIT_MS), 0);
        assert_int_equal(gemmd_wait(client.session, &done, 1, 10), 0);
    }
    assert_false(readable(&client, 20));
    close_client(&client);
    harness_stop(&worker);
}

/* Bursts of random size, arrays of random size, random pauses: nothing may stall. */
static void bursts(uint32_t events, const char *spin_us, const char *level)
{
    const char *const arguments[] = {"--spin-us", spin_us, NULL};
    char setting[32];
    const char *const environment[] = {setting, NULL};
    unsigned rounds = machine_is_sanitized() ? ROUNDS / 8 : ROUNDS;
    struct gemmd_stats stats;
    struct client client;
    uint64_t seed = 97;

    snprintf(setting, sizeof(setting), "GEMMD_EVENT_LEVEL=%s", level);
    harness_start(&worker, arguments, environment);
    open_client(&client, worker.socket, events);
    for (unsigned round = 0; round < rounds; round++) {
        uint64_t dice = random_next(&seed);

        submit(&client, 1 + (unsigned)(dice % BURST));
        if (dice >> 16 & 1)
            usleep((useconds_t)(dice >> 20 & 127));
        while (client.reaped < client.next) {
            unsigned capacity = 1 + (unsigned)(random_next(&seed) % BURST);

            if (!readable(&client, WAIT_MS))
                fail_msg("job %lu of %lu: the descriptor stays silent",
                         (unsigned long)client.reaped, (unsigned long)client.next);
            if (events & EPOLLET)
                while (reap(&client, capacity) == (int)capacity)
                    ;
            else
                assert_true(reap(&client, capacity) >= 0);
        }
    }
    assert_int_equal(gemmd_get_stats(client.session, &stats), 0);
    printf("%s spin %s: %lu jobs in %u bursts, woken %lu times, %lu system calls here\n", level,
           spin_us, (unsigned long)client.next, rounds, (unsigned long)stats.wakes,
           (unsigned long)stats.session_syscalls);
    assert_int_equal(stats.rescues, 0);
    assert_true(stats.wakes > 0);
    assert_true(stats.wakes < client.next / 4); /* a burst is 24 jobs: wake-ups are coalesced */
    close_client(&client);
    harness_stop(&worker);
}

static void test_bursts(void **state)
{
    (void)state;
    bursts(EPOLLIN, "50", "F0");
    bursts(EPOLLIN, "0", "F0");
    bursts(EPOLLIN, "0", "F3");
}

static void test_bursts_edge_triggered(void **state)
{
    (void)state;
    bursts(EPOLLIN | EPOLLET, "50", "F0");
    bursts(EPOLLIN | EPOLLET, "0", "F0");
}

static void test_refusals(void **state)
{
    struct gemmd_options options;
    struct gemmd *session;

    (void)state;
    harness_start(&worker, NULL, NULL);
    gemmd_options_init(&options);
    options.socket = worker.socket;
    options.control_only = 1;
    assert_int_equal(gemmd_connect(&options, &session), 0);
    assert_int_equal(gemmd_get_fd(session), -EINVAL);
    gemmd_close(&session);
    harness_stop(&worker);
}

static void test_worker_dies(void **state)
{
    struct gemmd_completion done[BURST];
    struct client client;

    (void)state;
    harness_start(&worker, NULL, NULL);
    open_client(&client, worker.socket, EPOLLIN);
    submit(&client, 5);
    settle(&client);
    assert_int_equal(reap(&client, BURST), 5);
    harness_kill(&worker);
    assert_true(readable(&client, WAIT_MS));
    assert_int_equal(gemmd_poll(client.session, done, BURST), -ECONNRESET);
    assert_int_equal(gemmd_submit(client.session, client.jobs, 1), -ECONNRESET);
    close_client(&client);
    harness_discard(&worker);

    /* With jobs in flight: stopped first, so that none of them completes. */
    harness_start(&worker, NULL, NULL);
    open_client(&client, worker.socket, EPOLLIN);
    assert_int_equal(kill(worker.pid, SIGSTOP), 0);
    assert_int_equal(waitpid(worker.pid, NULL, WUNTRACED), worker.pid); /* every thread of it */
    submit(&client, 5);
    harness_kill(&worker);
    for (int lost = 0; lost < 5;) {
        int got;

        assert_true(readable(&client, WAIT_MS));
        got = gemmd_poll(client.session, done, 2);
        assert_in_range(got, 1, 2);
        for (int i = 0; i < got; i++)
            assert_string_equal(gemmd_status_name(done[i].status), "WORKER_LOST");
        lost += got;
    }
    assert_int_equal(gemmd_poll(client.session, done, 2), -ECONNRESET);
    close_client(&client);
    harness_discard(&worker);
}

/* ---- a client that means harm ---------------------------------------------------------------- */

static int raw_wake_fd(struct raw *raw)
{
    struct gemmd_msg_wake_fd message = {
        .header = raw_header(raw, GEMMD_MSG_WAKE_FD, sizeof(message))};
    struct gemmd_msg_wake_fd_reply reply;
    int fds[GEMMD_HELLO_FD_COUNT];
    unsigned count;

    REQUIRE(raw_send(raw->fd, &message, sizeof(message), NULL, 0));
    REQUIRE(raw_receive(raw->fd, &reply, sizeof(reply), fds, &count, WAIT_MS) == sizeof(reply));
    REQUIRE(reply.header.status == GEMMD_STATUS_OK && count == 1);
    return fds[0];
}

/* Whatever it does with what it was given: it holds no descriptor on which the worker writes. */
static void abuse(int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT};
    const uint64_t full = UINT64_MAX - 1;
    int flags = fcntl(fd, F_GETFL), own[2];

    assert_true(fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0);
    assert_true(write(fd, &full, sizeof(full)) < 0);
    REQUIRE(pipe2(own, O_CLOEXEC) == 0);
    assert_int_equal(epoll_ctl(fd, EPOLL_CTL_ADD, own[1], &event), 0); /* readable for ever */
    for (int number = 0; number < 64; number++) {
        epoll_ctl(fd, EPOLL_CTL_MOD, number, &event);
        if (number != own[1])
            epoll_ctl(fd, EPOLL_CTL_DEL, number, &event);
    }
    for (int i = 0; i < 64; i++) { /* each is told of each wake-up; they end with the process */
        int outer = epoll_create1(EPOLL_CLOEXEC);

        REQUIRE(outer >= 0 && epoll_ctl(outer, EPOLL_CTL_ADD, fd, &event) == 0);
    }
}

/* Never harvests, arms without pause, and has jobs completed all the while. */
static int run_abuser(void *argument)
{
    struct raw raw;
    struct gemmd_msg_layer_reply layer_reply;
    uint32_t epoch = 0;
    int fd, second;

    (void)argument;
    raw_open(&raw, worker.socket, 8, 1 << 16);
    raw_open_layer(&raw, "abused", &layer_reply);
    fd = raw_wake_fd(&raw);
    second = raw_wake_fd(&raw); /* the same instance again, and again */
    REQUIRE(fd >= 0 && second >= 0);
    abuse(fd);
    for (;;) {
        struct gemmd_sqe sqe = {.op = GEMMD_OP_GEMM, .layer_id = layer_reply.layer_id,
                                .layer_gen = layer_reply.layer_gen};
        struct gemmd_cqe cqe;

        gemmd_wake_arm(raw.client, &epoch, raw.worker, raw.cq.index + 1);
        raw_submit(&raw, &sqe);
        while (!gemmd_cq_take(&raw.cq, &cqe))
            ;
        gemmd_cq_release(&raw.cq, raw.client);
    }
    return 0;
}

static void test_abuser(void **state)
{
    struct client client;
    struct gemmd_layer *named;
    struct gemmd_stats stats;
    uint64_t start_ns;
    pid_t abuser;

    (void)state;
    harness_start(&worker, NULL, NULL);
    open_client(&client, worker.socket, EPOLLIN);
    layer.desc.name = "abused";
    REQUIRE(gemmd_layer_create(client.session, &layer.desc, &named) >= 0);
    layer.desc.name = NULL;
    abuser = harness_fork(run_abuser, NULL);
    start_ns = machine_now_ns();
    while (machine_now_ns() - start_ns < UINT64_C(1500000000)) {
        submit(&client, 4);
        while (client.reaped < client.next) {
            assert_true(readable(&client, WAIT_MS));
            assert_true(reap(&client, BURST) >= 0);
        }
    }
    assert_int_equal(gemmd_get_stats(client.session, &stats), 0);
    printf("%lu jobs beside the abuser's; %lu wake-ups\n", (unsigned long)client.reaped,
           (unsigned long)stats.wakes);
    assert_true(client.reaped > 400);
    assert_int_equal(stats.rescues, 0);
    harness_reap_killed(abuser);
    assert_true(harness_is_alive(&worker));
    close_client(&client);
    harness_stop(&worker);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, 16, 32, 5);
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
        cmocka_unit_test(test_level_triggered), cmocka_unit_test(test_bursts),
        cmocka_unit_test(test_bursts_edge_triggered), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_worker_dies), cmocka_unit_test(test_abuser),
    };

    return HARNESS_RUN(tests, start, stop, 110);
}
