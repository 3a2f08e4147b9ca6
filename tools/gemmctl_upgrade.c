/*
 * gemmctl upgrade: starts a successor of the worker with the worker's own arguments and
 * --take-over.  It fetches the layers, then the socket; the old worker completes what is submitted
 * and ends.  Under a service manager, restart the service instead: the manager keeps the weights.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/gemmctl.h"

#define ARGUMENTS_MAX 256
#define READY_MS      120000

struct successor {
    char program[PATH_MAX];
    char text[65536]; /* the old worker's arguments, each with its zero */
    const char *arguments[ARGUMENTS_MAX + 6];
    size_t count;
};

static int complain(const char *what, const char *text)
{
    fprintf(stderr, "gemmctl: upgrade: %s: %s\n", what, text);
    return EX_SOFTWARE;
}

static ssize_t read_proc(unsigned pid, const char *name, char *out, size_t out_bytes)
{
    char path[64];
    ssize_t count;
    int fd;

    snprintf(path, sizeof(path), "/proc/%u/%s", pid, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    count = read(fd, out, out_bytes - 1);
    close(fd);
    if (count >= 0)
        out[count] = '\0';
    return count;
}

/* The old worker's command line without what was for its own start only. */
static int read_arguments(struct successor *successor, unsigned pid)
{
    ssize_t bytes = read_proc(pid, "cmdline", successor->text, sizeof(successor->text));
    const char *end = successor->text + bytes;
    const char *at = successor->text;

    if (bytes <= 0)
        return complain("its command line cannot be read", strerror(errno));
    for (; at < end; at += strlen(at) + 1) {
        if (strcmp(at, "--take-over") == 0 || strncmp(at, "--ready-fd=", 11) == 0 ||
            strncmp(at, "--socket=", 9) == 0)
            continue;
        if (strcmp(at, "--ready-fd") == 0 || strcmp(at, "--socket") == 0) {
            at += strlen(at) + 1;
            continue;
        }
        if (successor->count == ARGUMENTS_MAX)
            return complain("its command line", "too long");
        successor->arguments[successor->count++] = at;
    }
    return 0;
}

/* The given program, or the one the old worker was started from (the file that has this name now).
 */
static int choose_program(struct successor *successor, unsigned pid, const char *given)
{
    char path[64];
    ssize_t length;
    char *deleted;

    if (given) {
        snprintf(successor->program, sizeof(successor->program), "%s", given);
        return 0;
    }
    snprintf(path, sizeof(path), "/proc/%u/exe", pid);
    length = readlink(path, successor->program, sizeof(successor->program) - 1);
    if (length < 0)
        return complain("its program is not known", strerror(errno));
    successor->program[length] = '\0';
    deleted = strstr(successor->program, " (deleted)");
    if (deleted)
        *deleted = '\0';
    return 0;
}

/* Never returns: becomes the successor, with the old one's directory and log. */
static void become(struct successor *successor, unsigned pid, const char *socket, int ready_fd)
{
    char path[64], ready_text[12];
    int null = open("/dev/null", O_RDWR), log;

    snprintf(path, sizeof(path), "/proc/%u/cwd", pid);
    if (chdir(path) < 0)
        _exit(complain(path, strerror(errno)));
    snprintf(path, sizeof(path), "/proc/%u/fd/2", pid);
    log = open(path, O_WRONLY | O_APPEND); /* a socket cannot be opened so: then ours stays */
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    if (log >= 0)
        dup2(log, STDERR_FILENO);
    setsid();
    snprintf(ready_text, sizeof(ready_text), "%d", ready_fd);
    successor->arguments[successor->count++] = "--take-over";
    successor->arguments[successor->count++] = "--socket";
    successor->arguments[successor->count++] = socket;
    successor->arguments[successor->count++] = "--ready-fd";
    successor->arguments[successor->count++] = ready_text;
    successor->arguments[successor->count] = NULL;
    execv(successor->program, (char *const *)(uintptr_t)successor->arguments);
    _exit(complain(successor->program, strerror(errno)));
}

static bool await_ready(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    char text[6];

    return poll(&poll_fd, 1, READY_MS) == 1 && read(fd, text, sizeof(text)) == sizeof(text) &&
           memcmp(text, "READY\n", sizeof(text)) == 0;
}

int gemmctl_upgrade(struct gemmctl *ctl)
{
    static struct successor successor;
    struct gemmd_info info;
    int ready[2], error = gemmd_get_info(ctl->session, &info);
    pid_t pid;

    if (error < 0)
        return error;
    error = read_arguments(&successor, info.pid);
    if (error == 0)
        error = choose_program(&successor, info.pid, ctl->argument);
    if (error)
        return error;
    if (pipe(ready) < 0)
        return complain("pipe", strerror(errno));
    fcntl(ready[0], F_SETFD, FD_CLOEXEC);
    fflush(NULL);
    pid = fork();
    if (pid == 0)
        become(&successor, info.pid, info.socket, ready[1]);
    close(ready[1]);
    if (pid < 0 || !await_ready(ready[0]))
        return complain(successor.program, "the successor did not get ready; the worker stays");
    if (!ctl->json)
        printf("worker %u has handed over to %d\n", info.pid, (int)pid);
    else
        printf("{\"pid\": %d, \"pid_before\": %u}\n", (int)pid, info.pid);
    return 0;
}
