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

bool bench_worker_start(struct bench_worker *worker)
{
    int ready[2];
    char byte;
    bool is_ready;

    snprintf(worker->directory, sizeof(worker->directory), "/tmp/gemmd-bench-XXXXXX");
    if (!mkdtemp(worker->directory) || pipe(ready) < 0) {
        fprintf(stderr, "gemmd-bench: %s: %s\n", worker->directory, strerror(errno));
        return false;
    }
    snprintf(worker->socket, sizeof(worker->socket), "%s/worker.sock", worker->directory);
    worker->pid = fork();
    if (worker->pid == 0) {
        close(ready[0]);
        exec_worker(worker, ready[1]);
    }
    close(ready[1]);
    is_ready = worker->pid > 0 && read(ready[0], &byte, 1) == 1;
    close(ready[0]);
    return is_ready;
}

void bench_worker_stop(struct bench_worker *worker)
{
    char lock[128];

    if (worker->pid > 0) {
        kill(worker->pid, SIGTERM);
        waitpid(worker->pid, NULL, 0);
    }
    snprintf(lock, sizeof(lock), "%s.lock", worker->socket);
    unlink(lock);
    rmdir(worker->directory);
}
