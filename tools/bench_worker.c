#include "tools/bench_worker.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

bool bench_worker_argument(struct bench_worker *worker, const char *argument)
{
    if (worker->argument_count == BENCH_WORKER_ARGUMENTS_MAX)
        return false;
    worker->arguments[worker->argument_count++] = argument;
    return true;
}

/* A build's worker/gemmd for tools/gemmd-bench, an installation's gemmd. */
static void find_program(const struct bench_worker *worker, char *out, size_t bytes)
{
    static const char *const beside[] = {"/../worker/gemmd", "/gemmd"};
    const char *given = worker->program ? worker->program : getenv("GEMMD_WORKER");
    char self[512];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);

    snprintf(out, bytes, "%s", given ? given : "gemmd");
    if (given || length < 0)
        return;
    self[length] = '\0';
    *strrchr(self, '/') = '\0';
    for (size_t i = 0; i < 2; i++) {
        char path[600];

        snprintf(path, sizeof(path), "%s%s", self, beside[i]);
        if (access(path, X_OK) == 0) {
            snprintf(out, bytes, "%s", path);
            return;
        }
    }
}

static void exec_worker(const struct bench_worker *worker, int ready_fd)
{
    char path[600], fd[16];
    const char *arguments[8 + BENCH_WORKER_ARGUMENTS_MAX] = {path, "--socket", worker->socket,
                                                             "--ready-fd", fd};
    uint32_t count = 5;

    find_program(worker, path, sizeof(path));
    snprintf(fd, sizeof(fd), "%d", ready_fd);
    for (uint32_t i = 0; i < worker->argument_count; i++)
        arguments[count++] = worker->arguments[i];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execvp(path, (char *const *)(uintptr_t)arguments);
    fprintf(stderr, "gemmd-bench: %s: %s; see --worker\n", path, strerror(errno));
    _exit(EX_UNAVAILABLE);
}

static void remove_directory(const struct bench_worker *worker)
{
    char lock[128];

    snprintf(lock, sizeof(lock), "%s.lock", worker->socket);
    unlink(worker->socket); /* there only if the worker was killed */
    unlink(lock);
    rmdir(worker->directory);
}

/* The worker's parent, which ends the worker and removes its directory: at SIGTERM, which comes
 * from bench_worker_stop or when the benchmark has died of whatever; or when the worker ends.
 * Signals from the terminal are for the others. */
static void keep_worker(const struct bench_worker *worker, pid_t bench, int ready_fd)
{
    sigset_t signals, before;
    pid_t pid;
    int number;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, &before);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != bench)
        raise(SIGTERM); /* it died before that */
    pid = fork();
    if (pid == 0) {
        sigprocmask(SIG_SETMASK, &before, NULL);
        exec_worker(worker, ready_fd);
    }
    close(ready_fd);
    do
        sigwait(&signals, &number);
    while (number != SIGTERM && number != SIGCHLD && pid > 0);
    if (pid > 0) {
        kill(pid, SIGTERM);
        waitpid(pid, NULL, 0);
    }
    remove_directory(worker);
    _exit(0);
}

bool bench_worker_start(struct bench_worker *worker)
{
    pid_t bench = getpid();
    int ready[2];
    char byte;
    bool is_ready;

    snprintf(worker->directory, sizeof(worker->directory), "/tmp/gemmd-bench-XXXXXX");
    if (!mkdtemp(worker->directory) || pipe(ready) < 0) {
        fprintf(stderr, "gemmd-bench: %s: %s\n", worker->directory, strerror(errno));
        return false;
    }
    snprintf(worker->socket, sizeof(worker->socket), "%s/worker.sock", worker->directory);
    worker->keeper = fork();
    if (worker->keeper == 0) {
        close(ready[0]);
        keep_worker(worker, bench, ready[1]);
    }
    close(ready[1]);
    is_ready = worker->keeper > 0 && read(ready[0], &byte, 1) == 1;
    close(ready[0]);
    return is_ready;
}

void bench_worker_stop(struct bench_worker *worker)
{
    if (worker->keeper > 0) {
        kill(worker->keeper, SIGTERM);
        waitpid(worker->keeper, NULL, 0);
    } else if (*worker->socket) {
        remove_directory(worker);
    }
}
