/*
 * Edge-triggered, like the multishot polls of io_uring, and for a second reason: a level-triggered
 * loop has to read the eventfd, and a client that clears O_NONBLOCK on the file it shares and reads
 * first makes that read block the dispatcher for ever.
 */
#include "worker/event_epoll.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

int event_epoll_open(struct event_epoll *epoll, uint64_t *syscalls)
{
    epoll->syscalls = syscalls;
    epoll->no_pwait2 = false;
    ++*syscalls;
    epoll->fd = epoll_create1(EPOLL_CLOEXEC);
    return epoll->fd < 0 ? -errno : 0;
}

void event_epoll_close(struct event_epoll *epoll)
{
    if (epoll->fd >= 0)
        close(epoll->fd);
    epoll->fd = -1;
}

int event_epoll_add(struct event_epoll *epoll, int fd, uint64_t user_data)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = user_data};

    ++*epoll->syscalls;
    return epoll_ctl(epoll->fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

void event_epoll_remove(struct event_epoll *epoll, int fd)
{
    ++*epoll->syscalls;
    epoll_ctl(epoll->fd, EPOLL_CTL_DEL, fd, NULL);
}

/* epoll_wait knows milliseconds only: rounded up, so that it never returns early. */
static int timeout_ms(int64_t timeout_ns)
{
    int64_t ms = timeout_ns / 1000000 + (timeout_ns % 1000000 > 0);

    if (timeout_ns < 0)
        return -1;
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

int event_epoll_look(struct event_epoll *epoll, uint64_t user_data[], unsigned count,
                     int64_t timeout_ns)
{
    struct timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    struct epoll_event events[EVENT_EPOLL_BATCH];
    int batch = count < EVENT_EPOLL_BATCH ? (int)count : EVENT_EPOLL_BATCH, found = -1;

    errno = ENOSYS;
    if (timeout_ns > 0 && !epoll->no_pwait2) {
        ++*epoll->syscalls;
        found = epoll_pwait2(epoll->fd, events, batch, &timeout, NULL);
        epoll->no_pwait2 = found < 0 && (errno == ENOSYS || errno == EPERM);
    }
    if (timeout_ns <= 0 || epoll->no_pwait2) {
        ++*epoll->syscalls;
        found = epoll_wait(epoll->fd, events, batch, timeout_ms(timeout_ns));
    }
    if (found < 0)
        return -errno;
    for (int i = 0; i < found; i++)
        user_data[i] = events[i].data.u64;
    return found;
}
