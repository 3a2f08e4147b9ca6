/*
 * Which worker: the one that was named, else the user's of this NUMA node, else the system's, else
 * a new one.  A worker that is started outlives the program, is no child of it, keeps neither its
 * descriptors nor its directory (which could else not be unmounted), and ends when nobody has been
 * connected for a minute.  It serves the user's other programs, too: the CPUs it may use are those
 * of the system or container, not those to which the first program to come was pinned.
 */
#include "client/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef GEMMD_WORKER_PATH
#error "the build defines GEMMD_WORKER_PATH"
#endif

#define IDLE_EXIT_S "60"
/* The new worker's end of the pipe; descriptors above it are closed. */
#define READY_FD    3
/* A worker that ends before it is ready may have met another one that is just starting. */
#define RIVAL_NS    UINT64_C(500000000)
#define SYSTEM_DIRECTORY "/run/gemmd"

/* What the user's worker is called and where it lives. */
struct place {
    unsigned node;
    bool is_system; /* root's own worker is the system's */
    char directory[GEMMD_SOCKET_BYTES];
    char socket[GEMMD_SOCKET_BYTES + 24];
    char system_socket[sizeof(SYSTEM_DIRECTORY) + 24];
    char log[GEMMD_SOCKET_BYTES + 28];
};

static void pause_ms(long ms)
{
    const struct timespec pause = {0, ms * 1000000};

    nanosleep(&pause, NULL);
}

/* ---- where ----------------------------------------------------------------------------------- */

static int find_place(struct gemmd *session, struct place *place)
{
    const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
    unsigned cpu;
    int length;

    memset(place, 0, sizeof(*place));
    if (getcpu(&cpu, &place->node) < 0)
        place->node = 0;
    if (runtime && *runtime == '/') {
        length = snprintf(place->directory, sizeof(place->directory), "%s/gemmd", runtime);
    } else if (geteuid() == 0) {
        length = snprintf(place->directory, sizeof(place->directory), SYSTEM_DIRECTORY);
        place->is_system = true;
    } else {
        length = snprintf(place->directory, sizeof(place->directory), "/tmp/gemmd-%u",
                          (unsigned)geteuid());
    }
    if (length < 0 || (size_t)length >= sizeof(place->directory))
        return gemmd_fail(session, -EINVAL, "XDG_RUNTIME_DIR: %s is too long for a socket's path",
                          runtime);
    snprintf(place->socket, sizeof(place->socket), "%s/node%u.sock", place->directory, place->node);
    snprintf(place->log, sizeof(place->log), "%s.log", place->socket);
    snprintf(place->system_socket, sizeof(place->system_socket), SYSTEM_DIRECTORY "/node%u.sock",
             place->node);
    return 0;
}

/* A directory that only this user can put a socket into.  Its descriptor, or -errno. */
static int open_directory(struct gemmd *session, const struct place *place)
{
    struct stat status;
    int fd;

    if (mkdir(place->directory, place->is_system ? 0755 : 0700) < 0 && errno != EEXIST)
        return gemmd_fail(session, -ECONNREFUSED, "no worker runs, and none can be started: %s: %s",
                          place->directory, strerror(errno));
    fd = open(place->directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &status) == 0 && status.st_uid == geteuid() &&
        !(status.st_mode & 022))
        return fd;
    if (fd >= 0)
        close(fd);
    return gemmd_fail(session, -ECONNREFUSED, "no worker runs, and none can be started: %s is not "
                      "a directory that only this user can write to", place->directory);
}

/* ---- starting -------------------------------------------------------------------------------- */

static const char *choose_program(void)
{
    const char *named = secure_getenv("GEMMD_WORKER");

    if (named && *named)
        return named;
    return access(GEMMD_WORKER_PATH, X_OK) == 0 ? GEMMD_WORKER_PATH : "gemmd";
}

static void close_above_ready(void)
{
    long limit = sysconf(_SC_OPEN_MAX);

#ifdef SYS_close_range
    if (syscall(SYS_close_range, READY_FD + 1, ~0U, 0) == 0)
        return;
#endif
    for (int fd = READY_FD + 1; fd < limit; fd++)
        close(fd);
}

/* In the child of the child: becomes the worker.  Calls that are safe after fork only. */
static void become_worker(const char *program, char *const *arguments, int ready_fd, int log_fd)
{
    const struct sigaction by_default = {.sa_handler = SIG_DFL};
    sigset_t none;
    cpu_set_t every;
    int null_fd = open("/dev/null", O_RDWR), error;

    for (int number = 1; number < NSIG; number++)
        sigaction(number, &by_default, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    memset(&every, 0xff, sizeof(every));
    sched_setaffinity(0, sizeof(every), &every); /* the kernel takes those of the cpuset */
    if (chdir("/") < 0)
        _exit(126);
    /* All of them out of the way of 0 … 3 first. */
    null_fd = fcntl(null_fd, F_DUPFD, READY_FD + 1);
    log_fd = fcntl(log_fd, F_DUPFD, READY_FD + 1);
    ready_fd = fcntl(ready_fd, F_DUPFD, READY_FD + 1);
    if (null_fd >= 0 && log_fd >= 0 && ready_fd >= 0 && dup2(null_fd, 0) >= 0 &&
        dup2(log_fd, 1) >= 0 && dup2(log_fd, 2) >= 0 && dup2(ready_fd, READY_FD) >= 0) {
        close_above_ready();
        execvp(program, arguments);
        ready_fd = READY_FD;
    }
    error = errno;
    if (write(ready_fd, &error, sizeof(error)) < 0)
        _exit(126);
    _exit(127);
}

/* Starts it by way of a child that ends at once, so that the worker is init's to bury, not ours.
 * Signals are blocked: the program's handlers must not run in the copies.  0 or -errno. */
static int spawn(const char *program, char *const *arguments, int ready_fd, int log_fd)
{
    sigset_t all, before;
    pid_t pid;
    int error = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid = fork();
    if (pid == 0) {
        setsid();
        if (fork() == 0)
            become_worker(program, arguments, ready_fd, log_fd);
        _exit(0);
    }
    if (pid < 0)
        error = -errno;
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ; /* ECHILD: the program ignores SIGCHLD, nothing is left to reap */
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

/* The last line of the worker's log: its reason. */
static void read_reason(const struct place *place, char *out, size_t out_bytes)
{
    char line[256];
    FILE *file = fopen(place->log, "re");

    snprintf(out, out_bytes, "it ended before it was ready");
    while (file && fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = '\0';
        if (*line)
            snprintf(out, out_bytes, "%s", line);
    }
    if (file)
        fclose(file);
}

/* 0 once READY has come; else the reason is in `text`: -errno. */
static int await_ready(int fd, uint64_t deadline_ns, char *text, size_t text_bytes)
{
    char said[8] = "";
    size_t count = 0;
    int error;

    while (count < 6) {
        uint64_t now_ns = gemmd_now_ns();
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        int left_ms = now_ns < deadline_ns ? (int)((deadline_ns - now_ns) / 1000000) + 1 : 0;
        int ready = poll(&poll_fd, 1, left_ms);
        ssize_t got = ready > 0 ? read(fd, said + count, 6 - count) : 0;

        if ((ready < 0 || got < 0) && errno == EINTR)
            continue;
        if (ready == 0) {
            snprintf(text, text_bytes, "it was not ready in time");
            return -ETIMEDOUT;
        }
        if (got <= 0)
            break;
        count += (size_t)got;
    }
    if (strcmp(said, "READY\n") == 0)
        return 0;
    if (count == sizeof(error)) { /* it was never executed */
        memcpy(&error, said, sizeof(error));
        snprintf(text, text_bytes, "%s", strerror(error));
        return -ENOEXEC;
    }
    return -ECHILD;
}

/* Starts a worker and waits until it is ready.  0, -ETIMEDOUT, -ECHILD or -errno with a text. */
static int start_worker(const struct place *place, const char *program, uint64_t deadline_ns,
                        char *text, size_t text_bytes)
{
    char node[12], absolute[PATH_MAX]; /* the worker is executed in another directory */
    const char *found = strchr(program, '/') ? realpath(program, absolute) : NULL;
    const char *const arguments[] = {found ? found : program, "--socket", place->socket,
                                     "--node", node, "--idle-exit", IDLE_EXIT_S,
                                     "--ready-fd", "3", NULL};
    int ready[2], error;
    int log_fd = open(place->log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW | O_CLOEXEC,
                      0600);

    snprintf(node, sizeof(node), "%u", place->node);
    snprintf(text, text_bytes, "%s: %s", place->log, strerror(errno));
    if (log_fd < 0)
        return -EIO;
    if (pipe2(ready, O_CLOEXEC) < 0) {
        snprintf(text, text_bytes, "pipe: %s", strerror(errno));
        close(log_fd);
        return -EIO;
    }
    error = spawn(arguments[0], (char *const *)(uintptr_t)arguments, ready[1], log_fd);
    close(ready[1]);
    close(log_fd);
    if (error < 0)
        snprintf(text, text_bytes, "fork: %s", strerror(-error));
    else
        error = await_ready(ready[0], deadline_ns, text, text_bytes);
    close(ready[0]);
    if (error == -ECHILD)
        read_reason(place, text, text_bytes);
    return error;
}

static_assert(READY_FD == 3, "the text of --ready-fd");

/* Holding the lock: nobody else of this library starts one. */
static int start_and_connect(struct gemmd *session, const struct place *place, uint64_t deadline_ns)
{
    const char *program = choose_program();
    char text[256];
    uint64_t rival_ns;
    /* Somebody may have started one while we waited for the lock. */
    int started, error = gemmd_open_at(session, place->socket, (long)geteuid(), deadline_ns);

    if (error != -ECONNREFUSED)
        return error;
    started = start_worker(place, program, deadline_ns, text, sizeof(text));
    rival_ns = gemmd_now_ns() + (started == -ECHILD ? RIVAL_NS : 0);
    do {
        error = gemmd_open_at(session, place->socket, (long)geteuid(), deadline_ns);
        if (error != -ECONNREFUSED || started == 0)
            return error;
        pause_ms(10);
    } while (gemmd_now_ns() < rival_ns);
    return gemmd_fail(session, started == -ETIMEDOUT ? -ETIMEDOUT : -ECONNREFUSED,
                      "no worker answers at %s, and %s cannot be started: %s; set GEMMD_WORKER to "
                      "the program, or start one with: gemmd --socket %s", place->socket, program,
                      text, place->socket);
}

/* The directory's lock lets one process start a worker while the others wait for it. */
static int autostart(struct gemmd *session, const struct place *place, uint64_t deadline_ns)
{
    int fd = open_directory(session, place), error;

    if (fd < 0)
        return fd;
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            break; /* a file system without locks: the worker's own lock decides */
        if (gemmd_now_ns() >= deadline_ns) {
            close(fd);
            return gemmd_fail(session, -ETIMEDOUT, "another process is starting the worker at %s, "
                              "and it is not ready in time", place->socket);
        }
        pause_ms(2);
    }
    error = start_and_connect(session, place, deadline_ns);
    close(fd);
    return error;
}

/* ---- finding --------------------------------------------------------------------------------- */

int gemmd_find_worker(struct gemmd *session, uint64_t deadline_ns)
{
    const char *named = session->options.socket;
    struct place place;
    int error, system_error;

    if (!named)
        named = secure_getenv("GEMMD_SOCKET");
    if (named && *named)
        return gemmd_open_at(session, named, -1, deadline_ns);
    error = find_place(session, &place);
    if (error < 0)
        return error;
    error = gemmd_open_at(session, place.socket, (long)geteuid(), deadline_ns);
    if (error != -ECONNREFUSED && error != -EACCES)
        return error;
    /* /run is root's: whoever serves there was put there by it. */
    system_error = place.is_system ? error
                                   : gemmd_open_at(session, place.system_socket, -1, deadline_ns);
    if (system_error != -ECONNREFUSED && system_error != -EACCES)
        return system_error;
    if (session->options.autostart && error == -ECONNREFUSED)
        return autostart(session, &place, deadline_ns);
    if (error == -EACCES || system_error == -EACCES)
        return -EACCES; /* the text is the last one's, which names its socket */
    return gemmd_fail(session, -ECONNREFUSED, "no worker answers at %s or %s; start one with: "
                      "gemmd --socket %s", place.socket, place.system_socket, place.socket);
}
