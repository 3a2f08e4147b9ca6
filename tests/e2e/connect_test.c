/* Finding a worker, starting one, not finding one; and fork. */
#include "tests/harness.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

static char directory[] = "/tmp/gemmd-test-XXXXXX";
static char nowhere[64];

static int try_connect(const char *socket, int autostart, int timeout_ms, struct gemmd **out)
{
    struct gemmd_options options;

    gemmd_options_init(&options);
    options.socket = socket;
    options.autostart = autostart;
    options.timeout_ms = timeout_ms;
    return gemmd_connect(&options, out);
}

static void check_refused(const char *socket, int timeout_ms, int error, const char *word)
{
    struct gemmd *session = (struct gemmd *)(uintptr_t)1;
    int result = try_connect(socket, 0, timeout_ms, &session);

    if (result != error || !strstr(gemmd_error_text(NULL), word))
        fprintf(stderr, "%d \"%s\"\n", result, gemmd_error_text(NULL));
    assert_int_equal(result, error);
    assert_null(session);
    assert_non_null(strstr(gemmd_error_text(NULL), word));
}

/* ---- nobody there ---------------------------------------------------------------------------- */

static void test_no_worker(void **state)
{
    (void)state;
    check_refused(nowhere, 10000, -ECONNREFUSED, nowhere);
    check_refused(nowhere, 10000, -ECONNREFUSED, "gemmd --socket"); /* the fix */
    setenv("GEMMD_SOCKET", nowhere, 1);
    check_refused(NULL, 10000, -ECONNREFUSED, nowhere);
    unsetenv("GEMMD_SOCKET");
}

/* A socket that is named is never started for: autostart has no say. */
static void test_named_socket_is_not_started(void **state)
{
    struct gemmd *session;

    (void)state;
    assert_int_equal(try_connect(nowhere, 1, 10000, &session), -ECONNREFUSED);
    assert_int_equal(access(nowhere, F_OK), -1);
}

static void test_bad_options(void **state)
{
    struct gemmd_options options;
    struct gemmd *session;

    (void)state;
    for (int i = 0; i < 6; i++) {
        gemmd_options_init(&options);
        options.socket = nowhere;
        options.autostart = 0;
        switch (i) {
        case 0:
            options.ring_entries = 12;
            break;
        case 1:
            options.ring_entries = 8192;
            break;
        case 2:
            options.arena_bytes = 1;
            break;
        case 3:
            options.arena_bytes = UINT64_MAX;
            break;
        case 4:
            options.size = 3;
            break;
        default:
            options.reserved[6] = 1;
            break;
        }
        assert_int_equal(gemmd_connect(&options, &session), -EINVAL);
        assert_null(session);
        assert_true(strlen(gemmd_error_text(NULL)) > 0);
    }
}

/* ---- somebody else there --------------------------------------------------------------------- */

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    REQUIRE(fd >= 0 && strlen(path) < sizeof(address.sun_path));
    memcpy(address.sun_path, path, strlen(path) + 1);
    REQUIRE(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    REQUIRE(listen(fd, 8) == 0);
    return fd;
}

/* Accepts once; says `count` bytes of rubbish (0: nothing), and waits for the client to leave. */
static int speak_rubbish(void *argument)
{
    const int *parameters = argument; /* listening fd, bytes */
    char buffer[4096];
    int fd = accept(parameters[0], NULL, NULL);

    REQUIRE(fd >= 0);
    REQUIRE(recv(fd, buffer, sizeof(buffer), 0) > 0);
    memset(buffer, 0x5a, sizeof(buffer));
    if (parameters[1])
        REQUIRE(send(fd, buffer, (size_t)parameters[1], MSG_NOSIGNAL) > 0);
    while (recv(fd, buffer, sizeof(buffer), 0) > 0)
        ;
    return 0;
}

static void check_impostor(int bytes, int timeout_ms, int error)
{
    char path[96];
    int parameters[2];
    pid_t pid;

    snprintf(path, sizeof(path), "%s/impostor", directory);
    unlink(path);
    parameters[0] = listen_at(path);
    parameters[1] = bytes;
    pid = harness_fork(speak_rubbish, parameters);
    check_refused(path, timeout_ms, error, path);
    assert_int_equal(harness_join(pid, 5000), 0);
    close(parameters[0]);
    unlink(path);
}

static void test_impostors(void **state)
{
    (void)state;
    check_impostor(4, 5000, -EPROTO);
    check_impostor(96, 5000, -EPROTO); /* the right length, the wrong words */
    check_impostor(4096, 5000, -EPROTO);
    check_impostor(0, 300, -ETIMEDOUT); /* says nothing */
}

/* ---- autostart ------------------------------------------------------------------------------- */

static void use_private_runtime(void)
{
    unsetenv("GEMMD_SOCKET");
    setenv("XDG_RUNTIME_DIR", directory, 1);
    setenv("GEMMD_WORKER", getenv("GEMMD_TEST_WORKER"), 1);
}

/* True when /proc/PID/cmdline holds the argument. */
static bool has_argument(pid_t pid, const char *argument)
{
    char path[64], text[4096];
    bool found = false;
    size_t bytes;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
    file = fopen(path, "re");
    REQUIRE(file != NULL);
    bytes = fread(text, 1, sizeof(text) - 1, file);
    text[bytes] = '\0';
    for (const char *at = text; at < text + bytes; at += strlen(at) + 1)
        found |= strcmp(at, argument) == 0;
    fclose(file);
    return found;
}

/* To one CPU; how many there could have been. */
static int pin_to_one(void)
{
    cpu_set_t cpus;
    int count, cpu = 0;

    memset(&cpus, 0xff, sizeof(cpus));
    REQUIRE(sched_setaffinity(0, sizeof(cpus), &cpus) == 0);
    REQUIRE(sched_getaffinity(0, sizeof(cpus), &cpus) == 0);
    count = CPU_COUNT(&cpus);
    while (!CPU_ISSET(cpu, &cpus))
        cpu++;
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    REQUIRE(sched_setaffinity(0, sizeof(cpus), &cpus) == 0);
    return count;
}

/* Connects through autostart, pinned to one CPU, computes, and sends the
 * worker's pid. */
static int start_and_use(void *argument)
{
    int fd = *(const int *)argument, cpus = pin_to_one();
    struct gemmd_layer *handle;
    struct gemmd_info info;
    struct layer_case layer;
    struct gemmd *session;

    REQUIRE(chdir(directory) == 0);
    setenv("GEMMD_WORKER", "./worker", 1); /* found from here, executed elsewhere */
    if (gemmd_connect(NULL, &session) < 0) {
        fprintf(stderr, "gemmd_connect: %s\n", gemmd_error_text(NULL));
        return 1;
    }
    layer_case_plain(&layer, 20, 30, 4);
    REQUIRE(gemmd_layer_create(session, &layer.desc, &handle) >= 0);
    REQUIRE(layer_case_check(session, handle, &layer, 5, 6) == 0);
    REQUIRE(gemmd_get_info(session, &info) == 0);
    REQUIRE(strncmp(info.socket, directory, strlen(directory)) == 0);
    REQUIRE(info.cpu_count > 1 || cpus == 1);
    REQUIRE(write(fd, &info.pid, sizeof(info.pid)) == sizeof(info.pid));
    layer_case_fini(&layer);
    gemmd_close(&session);
    return 0;
}

/* Not our child (or no longer): waits until it is gone. */
static bool is_gone(pid_t pid, int timeout_ms)
{
    uint64_t deadline_ns = machine_now_ns() + (uint64_t)timeout_ms * 1000000;

    while (machine_now_ns() < deadline_ns) {
        while (waitpid(pid, NULL, WNOHANG) > 0)
            ;
        if (kill(pid, 0) < 0)
            return true;
        usleep(5000);
    }
    return false;
}

/* Six processes find no worker at the same moment: exactly one is started. */
static void test_autostart(void **state)
{
    enum { CLIENTS = 6 };
    uint32_t pids[CLIENTS];
    pid_t clients[CLIENTS];
    char link[32], place[8], program[64];
    int channel[2];

    (void)state;
    if (access("/run/gemmd/node0.sock", F_OK) == 0)
        harness_skip("a system worker runs here");
    use_private_runtime();
    snprintf(program, sizeof(program), "%s/worker", directory);
    REQUIRE(symlink(getenv("GEMMD_TEST_WORKER"), program) == 0);
    REQUIRE(pipe(channel) == 0);
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = harness_fork(start_and_use, &channel[1]);
    for (int i = 0; i < CLIENTS; i++)
        assert_int_equal(harness_join(clients[i], 30000), 0);
    for (int i = 0; i < CLIENTS; i++) {
        REQUIRE(read(channel[0], &pids[i], sizeof(pids[i])) == sizeof(pids[i]));
        assert_int_equal(pids[i], pids[0]);
    }
    close(channel[0]);
    close(channel[1]);
    assert_int_equal(kill((pid_t)pids[0], 0), 0); /* it outlives who started it */
    assert_true(has_argument((pid_t)pids[0], "--idle-exit"));
    snprintf(link, sizeof(link), "/proc/%d/cwd", (int)pids[0]);
    assert_int_equal(readlink(link, place, sizeof(place)), 1); /* "/" */
    kill((pid_t)pids[0], SIGTERM);
    assert_true(is_gone((pid_t)pids[0], 10000));
    unlink(program);
}

static void test_autostart_fails(void **state)
{
    struct gemmd *session;

    (void)state;
    if (access("/run/gemmd/node0.sock", F_OK) == 0)
        harness_skip("a system worker runs here");
    use_private_runtime();
    setenv("GEMMD_WORKER", nowhere, 1);
    assert_int_equal(try_connect(NULL, 1, 5000, &session), -ECONNREFUSED);
    assert_null(session);
    assert_non_null(strstr(gemmd_error_text(NULL), nowhere));
    assert_int_equal(try_connect(NULL, 0, 5000, &session), -ECONNREFUSED);
    setenv("GEMMD_WORKER", "/bin/false", 1); /* starts, and ends */
    assert_int_equal(try_connect(NULL, 1, 5000, &session), -ECONNREFUSED);
    assert_non_null(strstr(gemmd_error_text(NULL), "/bin/false"));
    use_private_runtime();
}

static void test_idle_exit(void **state)
{
    static const char *const arguments[] = {"--idle-exit", "1", NULL};
    struct harness_worker worker;
    struct gemmd *session;

    (void)state;
    harness_start(&worker, arguments, NULL);
    session = session_to(worker.socket);
    usleep(3500000);
    assert_true(harness_is_alive(&worker)); /* somebody is connected */
    gemmd_close(&session);
    assert_int_equal(harness_join(worker.pid, 6000), 0);
    worker.pid = 0;
    assert_int_equal(access(worker.socket, F_OK), -1);
    harness_discard(&worker);
}

/* ---- fork ------------------------------------------------------------------------------------ */

struct forked {
    struct gemmd *session;
    struct gemmd_layer *layer;
    struct gemmd_job job;
};

/* In the child: every call says -EOWNERDEAD, and closing harms nobody. */
static int use_parents_session(void *argument)
{
    struct forked *forked = argument;
    struct gemmd_completion done;
    struct gemmd_layer *layer = forked->layer;
    struct gemmd_info info;
    struct gemmd_stats stats;
    struct layer_case own;

    REQUIRE(gemmd_submit(forked->session, &forked->job, 1) == -EOWNERDEAD);
    REQUIRE(gemmd_flush(forked->session) == -EOWNERDEAD);
    REQUIRE(gemmd_poll(forked->session, &done, 1) == -EOWNERDEAD);
    REQUIRE(gemmd_wait(forked->session, &done, 1, 100) == -EOWNERDEAD);
    REQUIRE(gemmd_run(forked->session, &forked->job, 100) == -EOWNERDEAD);
    REQUIRE(gemmd_get_info(forked->session, &info) == -EOWNERDEAD);
    REQUIRE(gemmd_get_stats(forked->session, &stats) == -EOWNERDEAD);
    REQUIRE(gemmd_buffer_alloc(forked->session, 64) == NULL);
    layer_case_plain(&own, 4, 4, 1);
    REQUIRE(gemmd_layer_create(forked->session, &own.desc, &layer) == -EOWNERDEAD);
    REQUIRE(gemmd_layer_open(forked->session, "x", &layer) == -EOWNERDEAD);
    gemmd_close(&forked->session);
    return 0;
}

static void test_fork(void **state)
{
    struct harness_worker worker;
    struct gemmd_completion done[8];
    struct layer_case layer;
    struct forked forked;
    unsigned reaped = 0;

    (void)state;
    harness_start(&worker, NULL, NULL);
    forked.session = session_with(worker.socket, 64, 16 << 20, -1);
    layer_case_plain(&layer, 256, 512, 5);
    assert_int_equal(gemmd_layer_create(forked.session, &layer.desc, &forked.layer), 0);
    gemmd_job_init(&forked.job, forked.layer, 2000, gemmd_buffer_alloc(forked.session, 2000 * 512),
                   gemmd_buffer_alloc(forked.session, 2000 * 256 * 4));
    for (int i = 0; i < 8; i++)
        assert_int_equal(gemmd_submit(forked.session, &forked.job, 1), 1);
    gemmd_flush(forked.session);
    for (int i = 0; i < 3; i++) /* with jobs in flight */
        assert_int_equal(harness_join(harness_fork(use_parents_session, &forked), 10000), 0);
    while (reaped < 8) {
        int got = gemmd_wait(forked.session, done, 8, 20000);

        assert_true(got > 0);
        for (int i = 0; i < got; i++)
            assert_int_equal(done[i].status, 0);
        reaped += (unsigned)got;
    }
    for (uint64_t i = 0; i < 20; i++)
        assert_int_equal(layer_case_check(forked.session, forked.layer, &layer, 3, i), 0);
    gemmd_close(&forked.session);
    layer_case_fini(&layer);
    harness_stop(&worker);
}

static int start(void **state)
{
    (void)state;
    REQUIRE(mkdtemp(directory) != NULL);
    snprintf(nowhere, sizeof(nowhere), "%s/nobody.sock", directory);
    return 0;
}

static int stop(void **state)
{
    char path[96];

    (void)state;
    snprintf(path, sizeof(path), "rm -rf '%s'", directory);
    return system(path) == 0 ? 0 : -1;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_worker),
        cmocka_unit_test(test_named_socket_is_not_started),
        cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_impostors),
        cmocka_unit_test(test_autostart),
        cmocka_unit_test(test_autostart_fails),
        cmocka_unit_test(test_idle_exit),
        cmocka_unit_test(test_fork),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
