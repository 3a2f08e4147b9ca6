/* See manager.h. */
#include "tests/e2e/manager.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/machine.h"

#define START_MS      20000
#define ARGUMENTS_MAX 32

void manager_open(struct manager *manager, struct harness_worker *worker)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    memset(manager, 0, sizeof(*manager));
    memset(worker, 0, sizeof(*worker));
    snprintf(worker->directory, sizeof(worker->directory), "/tmp/gemmd-test-XXXXXX");
    REQUIRE(mkdtemp(worker->directory) != NULL);
    snprintf(worker->socket, sizeof(worker->socket), "%s/w.sock", worker->directory);
    snprintf(worker->log, sizeof(worker->log), "%s/log", worker->directory);
    snprintf(manager->path, sizeof(manager->path), "%s/notify", worker->directory);
    memcpy(address.sun_path, manager->path, strlen(manager->path));
    manager->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    REQUIRE(manager->fd >= 0);
    REQUIRE(bind(manager->fd, (struct sockaddr *)&address, sizeof(address)) == 0);
}

void manager_close(struct manager *manager)
{
    for (unsigned i = 0; i < manager->count; i++)
        close(manager->files[i].fd);
    close(manager->fd);
    unlink(manager->path);
    manager->count = 0;
}

int manager_find(const struct manager *manager, const char *name)
{
    for (unsigned i = 0; i < manager->count; i++)
        if (strcmp(manager->files[i].name, name) == 0)
            return manager->files[i].fd;
    return -1;
}

/* systemd keeps one of several descriptors of the same file. */
static bool has_file(const struct manager *manager, const char *name, int fd)
{
    struct stat a, b;

    REQUIRE(fstat(fd, &a) == 0);
    for (unsigned i = 0; i < manager->count; i++) {
        REQUIRE(fstat(manager->files[i].fd, &b) == 0);
        if (a.st_ino == b.st_ino && a.st_dev == b.st_dev &&
            strcmp(manager->files[i].name, name) == 0)
            return true;
    }
    return false;
}

void manager_add(struct manager *manager, const char *name, int fd)
{
    REQUIRE(manager->count < MANAGER_FILES_MAX && fd >= 0);
    snprintf(manager->files[manager->count].name, sizeof(manager->files[0].name), "%s", name);
    manager->files[manager->count++].fd = fd;
}

static void remove_named(struct manager *manager, const char *name)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < manager->count; i++) {
        if (strcmp(manager->files[i].name, name) == 0)
            close(manager->files[i].fd);
        else
            manager->files[kept++] = manager->files[i];
    }
    manager->count = kept;
}

/* One datagram: assignments on lines of their own. */
static void understand(struct manager *manager, char *text, int fd)
{
    char *name = NULL, *save = NULL;
    bool store = false, remove = false;

    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        manager->ready += strcmp(line, "READY=1") == 0;
        manager->stopping += strcmp(line, "STOPPING=1") == 0;
        manager->watchdog += strcmp(line, "WATCHDOG=1") == 0;
        store |= strcmp(line, "FDSTORE=1") == 0;
        remove |= strcmp(line, "FDSTOREREMOVE=1") == 0;
        if (strncmp(line, "FDNAME=", 7) == 0)
            name = line + 7;
        if (strncmp(line, "STATUS=", 7) == 0)
            snprintf(manager->status, sizeof(manager->status), "%s", line + 7);
    }
    REQUIRE(store == (fd >= 0));
    REQUIRE(!(store || remove) || (name && *name));
    manager->stored += store;
    manager->removed += remove;
    if (remove)
        remove_named(manager, name);
    if (store && !has_file(manager, name, fd))
        manager_add(manager, name, fd);
    else if (store)
        close(fd);
}

static bool receive(struct manager *manager, int timeout_ms)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } ancillary;
    char text[4096];
    struct iovec iov = {text, sizeof(text) - 1};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = ancillary.space,
                             .msg_controllen = sizeof(ancillary.space)};
    struct pollfd poll_fd = {.fd = manager->fd, .events = POLLIN};
    ssize_t bytes;
    int fd = -1;

    if (poll(&poll_fd, 1, timeout_ms) != 1)
        return false;
    bytes = recvmsg(manager->fd, &message, MSG_CMSG_CLOEXEC);
    REQUIRE(bytes > 0);
    text[bytes] = '\0';
    if (CMSG_FIRSTHDR(&message))
        memcpy(&fd, CMSG_DATA(&ancillary.header), sizeof(fd));
    understand(manager, text, fd);
    return true;
}

void manager_listen(struct manager *manager, const unsigned *counter, unsigned until,
                    int timeout_ms)
{
    uint64_t deadline_ns = machine_now_ns() + (uint64_t)timeout_ms * 1000000;

    while (receive(manager, 0))
        ;
    while (counter && *counter < until && machine_now_ns() < deadline_ns)
        receive(manager, 20);
}

/* Never returns: becomes the worker, with the files from 3 on. */
static void become_worker(const struct manager *manager, const struct harness_worker *worker,
                          const char *const *arguments, const char *const *environment,
                          unsigned watchdog_us)
{
    const char *vector[ARGUMENTS_MAX] = {getenv("GEMMD_TEST_WORKER"), "--socket", worker->socket};
    int log_fd = open(worker->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    char names[64 * MANAGER_FILES_MAX] = "", number[24];
    size_t count = 3;

    REQUIRE(log_fd >= 0);
    dup2(log_fd, STDERR_FILENO);
    for (; arguments && *arguments && count + 1 < ARGUMENTS_MAX; arguments++)
        vector[count++] = *arguments;
    for (; environment && *environment; environment++)
        putenv((char *)(uintptr_t)*environment);
    setenv("NOTIFY_SOCKET", manager->path, 1);
    unsetenv("GEMMD_SOCKET");
    snprintf(number, sizeof(number), "%u", watchdog_us);
    if (watchdog_us)
        setenv("WATCHDOG_USEC", number, 1);
    /* Out of the way first: 3 … may be in use for others of them. */
    for (unsigned i = 0; i < manager->count; i++) {
        int high = fcntl(manager->files[i].fd, F_DUPFD, 500 + (int)i);

        REQUIRE(high >= 500);
        snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s", i ? ":" : "",
                 manager->files[i].name);
    }
    for (unsigned i = 0; i < manager->count; i++)
        REQUIRE(dup2(500 + (int)i, 3 + (int)i) >= 0);
    for (int fd = 3 + (int)manager->count; fd < 600; fd++)
        close(fd);
    snprintf(number, sizeof(number), "%u", manager->count);
    setenv("LISTEN_FDS", number, 1);
    setenv("LISTEN_FDNAMES", names, 1);
    snprintf(number, sizeof(number), "%d", (int)getpid());
    setenv("LISTEN_PID", number, 1);
    execv(vector[0], (char *const *)(uintptr_t)vector);
    _exit(97);
}

bool manager_start(struct manager *manager, struct harness_worker *worker,
                   const char *const *arguments, const char *const *environment,
                   unsigned watchdog_us)
{
    uint64_t deadline_ns = machine_now_ns() + UINT64_C(1000000) * START_MS;
    unsigned before = manager->ready;
    pid_t parent = getpid();

    fflush(NULL);
    worker->pid = fork();
    REQUIRE(worker->pid >= 0);
    if (worker->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(98);
        become_worker(manager, worker, arguments, environment, watchdog_us);
    }
    while (manager->ready == before && machine_now_ns() < deadline_ns) {
        int status;

        receive(manager, 20);
        if (waitpid(worker->pid, &status, WNOHANG) == worker->pid) {
            worker->pid = 0;
            return false;
        }
    }
    return manager->ready > before;
}
