/*
 * Where the dispatcher sleeps: doorbells and the mailbox → typed events.
 *
 *   F0  io_uring SINGLE_ISSUER | DEFER_TASKRUN | TASKRUN_FLAG   (kernel 6.1)
 *   F1  io_uring COOP_TASKRUN | TASKRUN_FLAG                    (5.19)
 *   F2  io_uring                                                (5.13)
 *   F3  epoll
 *
 * All calls but event_loop_close on the one thread that opened it (event_loop_close: also on
 * another, once that thread has ended).  An event is a hint: at least one follows each kick, more
 * may, and several kicks may share one.  No file is ever read here: polls are edge-triggered, and a
 * client could make a read block, since O_NONBLOCK belongs to the file it shares.
 */
#ifndef GEMMD_WORKER_EVENT_LOOP_H
#define GEMMD_WORKER_EVENT_LOOP_H

#include <stdbool.h>
#include <stdint.h>

enum event_type {
    EVENT_DOORBELL,
    EVENT_MAILBOX, /* source is 0 */
};

struct event {
    enum event_type type;
    uint32_t source;
};

#define EVENT_LEVEL_COUNT 4

struct event_loop;

/* The best level that works, or exactly forced_level (0 … 3; -1 = any).  Sources are 0 …
 * sources_max - 1.  mailbox_fd, an eventfd, stays the caller's.  0; -ENOTSUP: the forced level
 * cannot be had (logged); -errno; *out is NULL then.  Allocates everything it will ever need. */
int event_loop_open(struct event_loop **out, int forced_level, unsigned sources_max,
                    int mailbox_fd);
/* Accepts NULL; *loop becomes NULL. */
void event_loop_close(struct event_loop **loop);

/* Watches a session's eventfd; a kick made before is reported, too.  0; -EINVAL; -EEXIST; -errno.
 */
int event_loop_add(struct event_loop *loop, uint32_t source, int fd);
/* No event of this source follows, whatever is still under way; the fd may be closed afterwards (F0
 * holds the file itself until it next enters the kernel). */
void event_loop_remove(struct event_loop *loop, uint32_t source);

/* The check of each busy turn: is event_loop_wait(…, 0) worth while?  No system call.  Under F3
 * there is nothing to look at, so it says yes each 20 us. */
bool event_loop_pending(const struct event_loop *loop);

/* Up to `capacity` events.  Timeout 0: only what is there; negative: no limit.  0 = timeout. */
int event_loop_wait(struct event_loop *loop, struct event *out, unsigned capacity,
                    int64_t timeout_ns);

/* System calls made so far. */
uint64_t event_loop_syscalls(const struct event_loop *loop);
/* "F0" … "F3". */
const char *event_loop_level_name(const struct event_loop *loop);
/* One line: which levels could not be had, and why; "" under F0 and under a forced level. */
const char *event_loop_lost(const struct event_loop *loop);

#endif
