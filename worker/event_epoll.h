/* The event loop's level F3: edge-triggered epoll.  For event_loop.c only. */
#ifndef GEMMD_WORKER_EVENT_EPOLL_H
#define GEMMD_WORKER_EVENT_EPOLL_H

#include <stdbool.h>
#include <stdint.h>

struct event_epoll {
    int fd;
    bool no_pwait2; /* before Linux 5.11, or denied */
    uint64_t *syscalls;
};

/* More than this many are found by the next look. */
#define EVENT_EPOLL_BATCH 64

/* Counts its system calls in *syscalls.  0 or -errno. */
int event_epoll_open(struct event_epoll *epoll, uint64_t *syscalls);
void event_epoll_close(struct event_epoll *epoll);

/* 0 or -errno. */
int event_epoll_add(struct event_epoll *epoll, int fd, uint64_t user_data);
void event_epoll_remove(struct event_epoll *epoll, int fd);

/* The user_data of up to `count` readable files; one call, one sleep.  Timeout 0: none, negative:
 * no limit.  Number (0 = timeout) or -errno, -EINTR included. */
int event_epoll_look(struct event_epoll *epoll, uint64_t user_data[], unsigned count,
                     int64_t timeout_ns);

#endif
