/*
 * No system call per job while both sides are awake: the counters of both sides say so, and so does
 * strace, which shares no code with them.
 */
#include "tests/harness.h"

#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

#define JOBS  100000
#define DEPTH 32
#define TRIES 10

static struct harness_worker worker;

/* Spins until each of `count` jobs has completed; never sleeps in the kernel. */
static void spin_jobs(struct gemmd *session, struct gemmd_layer *handle, unsigned count)
{
    struct gemmd_completion done[DEPTH];
    struct gemmd_job job;
    unsigned submitted = 0, reaped = 0;
    void *memory = gemmd_buffer_alloc(session, 4096);

    REQUIRE(memory != NULL);
    gemmd_job_init(&job, handle, 0, memory, memory);
    while (reaped < count) {
        int got;

        while (submitted < count && submitted - reaped < DEPTH) {
            if (gemmd_submit(session, &job, 1) != 1)
                break;
            submitted++;
        }
        gemmd_flush(session);
        got = gemmd_poll(session, done, DEPTH);
        REQUIRE(got >= 0);
        for (int i = 0; i < got; i++)
            REQUIRE(done[i].status == 0);
        reaped += (unsigned)got;
    }
    gemmd_buffer_free(session, memory);
}

static bool may_trace(void)
{
    static const char *const probe = "strace -qq -o /dev/null true 2>/dev/null";

    return system(probe) == 0;
}

/* strace -c -f -p PID in the background; its table goes to `path`. */
static pid_t start_strace(pid_t pid, const char *path)
{
    char target[16], status_path[64], line[256];
    pid_t tracer;

    snprintf(target, sizeof(target), "%d", (int)pid);
    fflush(NULL);
    tracer = fork();
    REQUIRE(tracer >= 0);
    if (tracer == 0) {
        execlp("strace", "strace", "-c", "-f", "-o", path, "-p", target, (char *)NULL);
        _exit(97);
    }
    /* Attached when every thread has a tracer. */
    snprintf(status_path, sizeof(status_path), "/proc/%d/status", (int)pid);
    for (int i = 0; i < 5000; i++) {
        FILE *file = fopen(status_path, "re");
        int attached = 0;

        REQUIRE(file != NULL);
        while (fgets(line, sizeof(line), file))
            if (sscanf(line, "TracerPid: %d", &attached) == 1 && attached)
                break;
        fclose(file);
        if (attached) {
            usleep(200000); /* the other threads */
            return tracer;
        }
        usleep(1000);
    }
    harness_reap_killed(tracer);
    REQUIRE(!"strace attached");
    return -1;
}

/* The "total" line of the table: its "calls" column. */
static uint64_t strace_total(const char *path)
{
    char line[256];
    uint64_t total = 0;
    FILE *file = fopen(path, "re");

    REQUIRE(file != NULL);
    while (fgets(line, sizeof(line), file)) {
        unsigned long calls;

        if (strstr(line, "total") && sscanf(line, "%*f %*f %*u %lu", &calls) == 1)
            total = calls;
        if (isdigit((unsigned char)line[strspn(line, " ")]))
            printf("  strace: %s", line);
    }
    fclose(file);
    return total;
}

static struct gemmd *open_session(struct gemmd_layer **handle)
{
    struct gemmd *session = session_with(worker.socket, 256, 1 << 20, 1000000000);
    struct layer_case layer;

    REQUIRE(session != NULL);
    layer_case_plain(&layer, 16, 16, 3);
    REQUIRE(gemmd_layer_create(session, &layer.desc, handle) >= 0);
    layer_case_fini(&layer);
    return session;
}

/* The worker's spin outlasts most pauses of the client.  What it learns from the longer ones may
 * make it sleep all the same, and so may a machine that runs something else. */
static void start_spinning(void)
{
    static const char *const arguments[] = {"--spin-us", "1000000", NULL};

    harness_start(&worker, arguments, NULL);
}

static void test_counters(void **state)
{
    struct gemmd_stats before, after;
    struct gemmd_layer *handle;
    struct gemmd *session;
    uint64_t calls = 1;

    (void)state;
    machine_skip_unless_cpus(2);
    start_spinning();
    session = open_session(&handle);
    /* Until the worker was awake all the time; whatever the client called was a doorbell. */
    for (int i = 0; i < TRIES && calls; i++) {
        spin_jobs(session, handle, 1000);
        assert_int_equal(gemmd_get_stats(session, &before), 0);
        spin_jobs(session, handle, JOBS);
        assert_int_equal(gemmd_get_stats(session, &after), 0);
        assert_int_equal(after.session_jobs - before.session_jobs, JOBS);
        assert_int_equal(after.jobs - before.jobs, JOBS);
        calls = after.session_syscalls - before.session_syscalls;
        /* A sanitized build is so slow that the library may look whether the worker still lives. */
        if (!machine_is_sanitized())
            assert_int_equal(calls, after.session_doorbells - before.session_doorbells);
    }
    printf("%d jobs: %lu system calls of the client, %lu of the dispatcher, %lu doorbells\n", JOBS,
           (unsigned long)calls, (unsigned long)(after.syscalls - before.syscalls),
           (unsigned long)(after.session_doorbells - before.session_doorbells));
    assert_int_equal(calls, 0);
    assert_true(after.syscalls - before.syscalls < JOBS / 100);
    assert_int_equal(after.rescues, 0);
    gemmd_close(&session);
    harness_stop(&worker);
}

static void test_strace(void **state)
{
    char path[128];
    struct gemmd_stats before, after;
    struct gemmd_layer *handle;
    struct gemmd *session;
    uint64_t total;
    pid_t tracer;

    (void)state;
    machine_skip_unless_cpus(2);
    if (!may_trace())
        harness_skip("strace is missing or ptrace is not permitted");
    start_spinning();
    session = open_session(&handle);
    spin_jobs(session, handle, 1000);
    snprintf(path, sizeof(path), "%s/strace", worker.directory);
    tracer = start_strace(worker.pid, path);
    spin_jobs(session, handle, 1000); /* awake again */
    assert_int_equal(gemmd_get_stats(session, &before), 0);
    spin_jobs(session, handle, JOBS);
    assert_int_equal(gemmd_get_stats(session, &after), 0);
    kill(tracer, SIGINT); /* detaches, prints */
    assert_true(harness_join(tracer, 10000) >= 0);
    total = strace_total(path);
    printf("%d jobs under strace: %lu system calls of the whole worker, attaching and waking "
           "included; its own counter says %lu\n",
           JOBS, (unsigned long)total, (unsigned long)(after.syscalls - before.syscalls));
    assert_true(total < JOBS / 100);
    assert_true(after.syscalls - before.syscalls <= total);
    assert_int_equal(after.session_syscalls - before.session_syscalls,
                     after.session_doorbells - before.session_doorbells);
    unlink(path);
    gemmd_close(&session);
    harness_stop(&worker);
}

/* The test of the test: when both sleep, strace does see calls for each job. */
static void test_strace_sees_sleepers(void **state)
{
    static const char *const arguments[] = {"--spin-us", "0", NULL};
    char path[128];
    struct gemmd_layer *handle;
    struct gemmd *session;
    pid_t tracer;

    (void)state;
    if (!may_trace())
        harness_skip("strace is missing or ptrace is not permitted");
    harness_start(&worker, arguments, NULL);
    session = open_session(&handle);
    snprintf(path, sizeof(path), "%s/strace", worker.directory);
    tracer = start_strace(worker.pid, path);
    for (int i = 0; i < 300; i++) {
        spin_jobs(session, handle, 1);
        usleep(500);
    }
    kill(tracer, SIGINT);
    assert_true(harness_join(tracer, 10000) >= 0);
    assert_true(strace_total(path) >= 300);
    unlink(path);
    gemmd_close(&session);
    harness_stop(&worker);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counters),
        cmocka_unit_test(test_strace),
        cmocka_unit_test(test_strace_sees_sleepers),
    };

    return HARNESS_RUN(tests, NULL, NULL, 120);
}
