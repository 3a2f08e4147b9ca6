/* The control thread's rarer duties: a full table, a successor that stays silent, threads that lost
 * their CPU, the trace, and who is left alone when another violates the protocol. */
#include "tests/harness.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"

/* A session that computes. */
static void check_service(const struct harness_worker *worker)
{
    struct gemmd *session = session_to(worker->socket);
    struct gemmd_layer *handle;
    struct layer_case layer;

    assert_non_null(session);
    layer_case_plain(&layer, 40, 70, 3);
    assert_true(gemmd_layer_create(session, &layer.desc, &handle) >= 0);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(layer_case_check(session, handle, &layer, 5, i), 0);
    layer_case_fini(&layer);
    gemmd_close(&session);
}

static void test_a_full_table(void **state)
{
    static const char *const arguments[] = {"--uid-sessions", "1100", NULL};
    struct rlimit files = {4096, 4096};
    int fds[GEMMD_WORKER_SESSIONS_MAX];
    struct gemmd_msg_error_reply reply;
    struct harness_worker worker;
    struct gemmd *session = NULL;

    (void)state;
    if (setrlimit(RLIMIT_NOFILE, &files) < 0)
        harness_skip("%u descriptors are not allowed here", GEMMD_WORKER_SESSIONS_MAX);
    harness_start(&worker, arguments, NULL);
    for (unsigned i = 0; i < GEMMD_WORKER_SESSIONS_MAX; i++)
        fds[i] = raw_connect(worker.socket);
    for (int i = 0; i < 3; i++) {
        int fd = raw_connect(worker.socket);

        assert_int_equal(raw_receive(fd, &reply, sizeof(reply), NULL, NULL, 10000), sizeof(reply));
        assert_int_equal(reply.header.status, GEMMD_STATUS_SESSIONS_FULL);
        close(fd);
    }
    close(fds[500]);
    for (int i = 0; i < 10000 && !session; i++) { /* until the end of that one is heard of */
        struct gemmd_options options;

        gemmd_options_init(&options);
        options.socket = worker.socket;
        if (gemmd_connect(&options, &session) < 0)
            usleep(1000);
    }
    assert_non_null(session);
    gemmd_close(&session);
    for (unsigned i = 0; i < GEMMD_WORKER_SESSIONS_MAX; i++)
        if (i != 500)
            close(fds[i]);
    harness_stop(&worker);
}

/* It may hold the others up for five seconds, and no longer. */
static void test_a_silent_successor(void **state)
{
    struct gemmd_msg_takeover_reply reply;
    struct gemmd_msg_list list = {.index = 0};
    struct harness_worker worker;
    struct raw raw;
    uint64_t since_ns;

    (void)state;
    harness_start(&worker, NULL, NULL);
    raw_open(&raw, worker.socket, 8, 1 << 16);
    list.header = raw_header(&raw, GEMMD_MSG_TAKEOVER, sizeof(list));
    assert_int_equal(raw_call(&raw, &list, &reply, sizeof(reply)), GEMMD_STATUS_OK);
    since_ns = machine_now_ns();
    check_service(&worker);
    assert_true(raw_is_ended(&raw, 10000));
    assert_true(machine_now_ns() - since_ns > UINT64_C(4000000000));
    raw_close(&raw);
    harness_stop(&worker);
}

/* A connection that has not said hello is not the violator. */
static void test_the_violator_alone(void **state)
{
    struct harness_worker worker;
    struct raw violator, half;
    struct gemmd_sqe sqe = {.op = GEMMD_OP_CANCEL};
    struct gemmd_cqe cqe;
    int fd;

    (void)state;
    harness_start(&worker, NULL, NULL);
    fd = raw_connect(worker.socket);
    raw_open_mapping(&half, worker.socket, 8, 1 << 16);
    raw_open(&violator, worker.socket, 8, 1 << 16);
    gemmd_store_release(&violator.client->cq_head, violator.cq.index + 1000);
    for (int i = 0; i < 8; i++) { /* until the worker has to look at cq_head */
        raw_submit(&violator, &sqe);
        assert_true(raw_complete(&violator, &cqe, false, 10000));
    }
    raw_submit(&violator, &sqe);
    assert_true(raw_is_ended(&violator, 10000));
    assert_int_equal(raw_receive(fd, &sqe, sizeof(sqe), NULL, NULL, 20), -1);
    assert_int_equal(raw_receive(half.fd, &sqe, sizeof(sqe), NULL, NULL, 20), -1);
    check_service(&worker);
    raw_close(&violator);
    raw_close(&half);
    close(fd);
    harness_stop(&worker);
}

/* What the kernel does to masks when a cpuset changes or a CPU goes offline: every thread of the
 * worker may run anywhere.  Each is put back where it was (tests/numa has a CPU that goes). */
static void test_a_lost_cpu(void **state)
{
    static const char *const arguments[] = {"--cpus", "0", NULL};
    uint64_t deadline_ns = machine_now_ns() + UINT64_C(20000000000);
    cpu_set_t all, first, cpus;
    struct harness_worker worker;
    struct gemmd_stats stats;
    struct gemmd *session;
    pid_t threads[3];

    (void)state;
    machine_skip_unless_cpus(2);
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    harness_start(&worker, arguments, NULL);
    session = session_to(worker.socket);
    assert_non_null(session);
    threads[0] = worker.pid; /* control */
    threads[1] = machine_thread(worker.pid, "gemmd-dispatch");
    threads[2] = machine_thread(worker.pid, "gemmd-helper");
    for (int i = 0; i < 3; i++)
        assert_int_equal(sched_setaffinity(threads[i], sizeof(all), &all), 0);
    for (int i = 0; i < 3; usleep(50000)) {
        assert_true(machine_now_ns() < deadline_ns);
        assert_int_equal(sched_getaffinity(threads[i], sizeof(cpus), &cpus), 0);
        i += CPU_EQUAL(&cpus, &first);
    }
    assert_int_equal(gemmd_get_stats(session, &stats), 0);
    assert_true(stats.repinned > 0);
    while (!harness_log_has(&worker, "threads had lost their CPU"))
        assert_true(machine_now_ns() < deadline_ns);
    gemmd_close(&session);
    check_service(&worker);
    harness_stop(&worker);
}

/* GEMMD_TRACE: a file that is complete once the worker has ended, with an event for each job. */
static void test_the_trace(void **state)
{
    char variable[128], path[] = "/tmp/gemmd-trace-XXXXXX", line[512], last[512] = "";
    const char *environment[] = {variable, NULL};
    struct harness_worker worker;
    unsigned jobs = 0;
    FILE *file;

    (void)state;
    close(mkstemp(path));
    snprintf(variable, sizeof(variable), "GEMMD_TRACE=%s", path);
    harness_start(&worker, NULL, environment);
    check_service(&worker);
    harness_stop(&worker);
    file = fopen(path, "re");
    assert_non_null(file);
    while (fgets(line, sizeof(line), file)) {
        jobs += strstr(line, "\"job") != NULL;
        memcpy(last, line, sizeof(last));
    }
    fclose(file);
    unlink(path);
    assert_true(jobs >= 20);
    assert_non_null(strchr(last, ']'));
}

/* A full disk ends the trace, not the worker, and that is said. */
static void test_a_lost_trace(void **state)
{
    static const char *const environment[] = {"GEMMD_TRACE=/dev/full", NULL};
    uint64_t deadline_ns = machine_now_ns() + UINT64_C(20000000000);
    struct harness_worker worker;

    (void)state;
    harness_start(&worker, NULL, environment);
    check_service(&worker);
    while (!harness_log_has(&worker, "No space left on device; nothing more is traced"))
        assert_true(machine_now_ns() < deadline_ns);
    check_service(&worker);
    harness_stop(&worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_full_table),       cmocka_unit_test(test_a_silent_successor),
        cmocka_unit_test(test_the_violator_alone), cmocka_unit_test(test_a_lost_cpu),
        cmocka_unit_test(test_the_trace),           cmocka_unit_test(test_a_lost_trace),
    };

    return HARNESS_RUN(tests, NULL, NULL, 110);
}
