/*
 * Workers and children are tied to the test by PR_SET_PDEATHSIG and waited for by polling waitpid
 * against CLOCK_MONOTONIC: no signal handler, so a test may use its own.
 */
#include "tests/harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/machine.h"

#define START_MS      20000 /* a sanitized worker on a busy machine */
#define STOP_MS       15000 /* the drain's own limit is 10 s */
#define ARGUMENTS_MAX 32
#define SKIPS_MAX     64

static pid_t test_pid;
static size_t skip_count;
static unsigned failure_count; /* cmocka 1.1.5 does not count a failed group teardown */

void harness_fail(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: failed: %s (errno %s)\n", file, line, what, strerror(errno));
    if (getpid() != test_pid)
        _exit(99);
    failure_count++;
    _fail(file, line);
    abort(); /* _fail jumps */
}

void harness_begin(unsigned limit_s)
{
    test_pid = getpid();
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    /* Its default action ends the program, and children follow.  Under valgrind all takes long. */
    alarm(getenv("GEMMD_TEST_SLOW") ? 20 * limit_s : limit_s);
}

int harness_end(int failed, size_t test_count)
{
    int status;

    while (waitpid(-1, &status, WNOHANG) > 0)
        ; /* killed ones of a failed test */
    if (waitpid(-1, &status, WNOHANG) == 0) {
        fprintf(stderr, "a child of the test still runs\n");
        failed++;
    }
    if (failed || failure_count)
        return 1;
    return skip_count == test_count ? 77 : 0;
}

void harness_skip(const char *format, ...)
{
    va_list arguments;

    fputs("SKIP: ", stdout);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    skip_count++;
    skip();
    abort(); /* skip() jumps */
}

/* ---- processes ------------------------------------------------------------------------------- */

/* In a fresh child: dies with its parent, whenever that was. */
static void tie_to_parent(pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(98);
}

pid_t harness_fork(int (*body)(void *), void *argument)
{
    pid_t parent = getpid(), pid;

    fflush(NULL);
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        int status;

        tie_to_parent(parent);
        status = body(argument);
        fflush(NULL);
        GEMMD_COVERAGE_DUMP();
        _exit(status);
    }
    return pid;
}

int harness_join(pid_t pid, int timeout_ms)
{
    uint64_t deadline_ns = machine_now_ns() + (uint64_t)timeout_ms * 1000000;
    int status;

    for (;;) {
        pid_t ended = waitpid(pid, &status, WNOHANG);

        if (ended == pid)
            return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
        REQUIRE(ended == 0);
        if (machine_now_ns() > deadline_ns) {
            harness_reap_killed(pid);
            return -1;
        }
        usleep(1000);
    }
}

void harness_reap_killed(pid_t pid)
{
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* ---- a private worker ------------------------------------------------------------------------ */

static void apply_environment(const char *const *environment)
{
    /* What the caller's shell has set must not steer the test. */
    unsetenv("GEMMD_SOCKET");
    unsetenv("GEMMD_DEBUG");
    for (; environment && *environment; environment++) {
        const char *equals = strchr(*environment, '=');
        char name[64];
        size_t length = equals ? (size_t)(equals - *environment) : strlen(*environment);

        REQUIRE(length < sizeof(name));
        memcpy(name, *environment, length);
        name[length] = '\0';
        if (equals)
            setenv(name, equals + 1, 1);
        else
            unsetenv(name);
    }
}

/* Never returns: becomes the worker. */
static void become_worker(const struct harness_worker *worker, int ready_fd,
                          const char *const *arguments, const char *const *environment)
{
    const char *program = getenv("GEMMD_TEST_WORKER");
    const char *vector[ARGUMENTS_MAX];
    char ready_text[12];
    size_t count = 0;
    int log_fd = open(worker->log, O_WRONLY | O_CREAT | O_APPEND, 0600);

    REQUIRE(program != NULL && log_fd >= 0);
    snprintf(ready_text, sizeof(ready_text), "%d", ready_fd);
    vector[count++] = program;
    vector[count++] = "--socket";
    vector[count++] = worker->socket;
    vector[count++] = "--ready-fd";
    vector[count++] = ready_text;
    vector[count++] = "--pool-bytes";
    vector[count++] = "256M";
    vector[count++] = "--sandbox"; /* whatever else is tested: no thread leaves its list of calls */
    vector[count++] = "kill";
    for (; arguments && *arguments && count + 1 < ARGUMENTS_MAX; arguments++)
        vector[count++] = *arguments;
    vector[count] = NULL;
    apply_environment(environment);
    dup2(log_fd, STDERR_FILENO);
    close(log_fd);
    execv(program, (char *const *)(uintptr_t)vector);
    _exit(97);
}

static void print_log(const struct harness_worker *worker)
{
    char text[4096];
    size_t bytes;
    FILE *file = fopen(worker->log, "re");

    if (!file)
        return;
    fprintf(stderr, "--- the worker's log\n");
    while ((bytes = fread(text, 1, sizeof(text), file)) > 0)
        fwrite(text, 1, bytes, stderr);
    fprintf(stderr, "---\n");
    fclose(file);
}

/* True when READY came; false when the pipe closed, or in START_MS. */
static bool await_ready(int fd)
{
    char text[16] = "";
    size_t count = 0;
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    while (count < 6 && poll(&poll_fd, 1, START_MS) == 1) {
        ssize_t bytes = read(fd, text + count, 6 - count);

        if (bytes <= 0)
            return false;
        count += (size_t)bytes;
    }
    return strcmp(text, "READY\n") == 0;
}

static int start_there(struct harness_worker *worker, const char *const *arguments,
                       const char *const *environment)
{
    pid_t parent = getpid();
    int ready[2], code;

    REQUIRE(pipe(ready) == 0);
    fcntl(ready[0], F_SETFD, FD_CLOEXEC);
    fflush(NULL);
    worker->pid = fork();
    REQUIRE(worker->pid >= 0);
    if (worker->pid == 0) {
        tie_to_parent(parent);
        become_worker(worker, ready[1], arguments, environment);
    }
    close(ready[1]);
    if (await_ready(ready[0])) {
        close(ready[0]);
        return 0;
    }
    close(ready[0]);
    code = harness_join(worker->pid, 5000);
    worker->pid = 0;
    return code;
}

int harness_try_start(struct harness_worker *worker, const char *const *arguments,
                      const char *const *environment)
{
    memset(worker, 0, sizeof(*worker));
    snprintf(worker->directory, sizeof(worker->directory), "/tmp/gemmd-test-XXXXXX");
    REQUIRE(mkdtemp(worker->directory) != NULL);
    snprintf(worker->socket, sizeof(worker->socket), "%s/w.sock", worker->directory);
    snprintf(worker->log, sizeof(worker->log), "%s/log", worker->directory);
    return start_there(worker, arguments, environment);
}

void harness_restart(struct harness_worker *worker, const char *const *arguments)
{
    REQUIRE(worker->pid == 0);
    REQUIRE(start_there(worker, arguments, NULL) == 0 && worker->pid);
}

void harness_start(struct harness_worker *worker, const char *const *arguments,
                   const char *const *environment)
{
    int code = harness_try_start(worker, arguments, environment);

    if (code == 0 && worker->pid)
        return;
    fprintf(stderr, "the worker did not start: %d\n", code);
    print_log(worker);
    harness_fail(__FILE__, __LINE__, "harness_start");
}

bool harness_is_alive(const struct harness_worker *worker)
{
    int status;

    if (waitpid(worker->pid, &status, WNOHANG) == 0)
        return true;
    fprintf(stderr, "the worker ended: wait status 0x%x\n", (unsigned)status);
    print_log(worker);
    return false;
}

void harness_stop(struct harness_worker *worker)
{
    int code;

    if (!worker->pid)
        return;
    kill(worker->pid, SIGTERM);
    code = harness_join(worker->pid, STOP_MS);
    worker->pid = 0;
    if (code != 0) {
        fprintf(stderr, "the worker ended with %d\n", code);
        print_log(worker);
    }
    REQUIRE(code == 0);
    REQUIRE(access(worker->socket, F_OK) < 0);
    harness_discard(worker);
}

void harness_kill(struct harness_worker *worker)
{
    if (worker->pid)
        harness_reap_killed(worker->pid);
    worker->pid = 0;
}

void harness_discard(struct harness_worker *worker)
{
    static const char *const names[] = {"w.sock", "w.sock.lock", "log"};
    char path[sizeof(worker->directory) + 16];

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", worker->directory, names[i]);
        unlink(path);
    }
    REQUIRE(rmdir(worker->directory) == 0); /* ENOTEMPTY: it left something behind */
}

bool harness_log_has(const struct harness_worker *worker, const char *text)
{
    char line[1024];
    bool found = false;
    FILE *file = fopen(worker->log, "re");

    REQUIRE(file != NULL);
    while (!found && fgets(line, sizeof(line), file))
        found = strstr(line, text) != NULL;
    fclose(file);
    return found;
}
