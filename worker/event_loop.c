/*
 * Multishot polls on eventfds, harvested from an io_uring, or an edge-triggered epoll without one.
 *
 * user_data of a poll is generation << 32 | source.  A source's generation changes when it is
 * removed, so that completions that were already under way are recognised as stale; none of it is a
 * pointer.  Under F0 and F1 the kernel sets IORING_SQ_TASKRUN in the ring's flags at a doorbell:
 * one load a turn watches every source.  One enter runs at most max(20, wait_nr) pieces of that
 * work (Linux 6.13), hence the loop while the flag is set.
 *
 * A multishot poll ends when the completion queue is full (a client that rings without pause can
 * do that under F1 and F2): its completion lacks F_MORE, the poll is armed anew, and arming an
 * edge-triggered poll on a readable file fires at once, so nothing is lost.
 *
 * An eventfd's counter is never read: at 2^64 - 2 further writes fail with EAGAIN and ring no more,
 * which only its own client can bring about, and only to its own harm (the 100 ms sweep serves it).
 */
#include "worker/event_loop.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "worker/clock.h"
#include "worker/event_epoll.h"
#include "worker/event_limit.h"
#include "worker/log.h"

/* Linux 6.15: sleeping here is not waiting for a disk. */
#define ENTER_NO_IOWAIT (1u << 7)
#define FEAT_NO_IOWAIT  (1u << 17)

#define SQ_ENTRIES       64
#define CQ_ENTRIES_MIN   64
#define SOURCES_LIMIT    (1u << 14) /* twice that is the kernel's largest CQ */
#define HARVEST_ROUNDS   8
#define EPOLL_PERIOD_NS  UINT64_C(20000)
#define SOURCE_MAILBOX   UINT32_MAX
#define SOURCE_NOBODY    (UINT32_MAX - 1)

enum level { F0, F1, F2, F3 };

static const char *const level_names[EVENT_LEVEL_COUNT] = {"F0", "F1", "F2", "F3"};
static const unsigned setup_flags[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    0,
};

struct source {
    int fd; /* -1: none */
    uint32_t generation;
    uint32_t harvest; /* of the last event: several kicks of one harvest become one event */
};

struct event_loop {
    enum level level;
    struct io_uring ring; /* F0 … F2 */
    bool ring_open;
    unsigned enter_flags;
    struct event_epoll epoll; /* F3 */
    uint64_t epoll_looked_ns;
    uint32_t harvest;
    uint64_t syscalls;
    unsigned sources_max;
    char lost[160];
    struct source mailbox;
    struct source sources[];
};

static uint64_t user_data_of(const struct source *source, uint32_t index)
{
    return (uint64_t)source->generation << 32 | index;
}

/* Whom a completion concerns, unless it is stale. */
static struct source *find_source(struct event_loop *loop, uint64_t user_data)
{
    uint32_t index = (uint32_t)user_data;
    struct source *source;

    if (index == SOURCE_MAILBOX)
        return &loop->mailbox;
    if (index >= loop->sources_max)
        return NULL;
    source = &loop->sources[index];
    return source->fd >= 0 && source->generation == user_data >> 32 ? source : NULL;
}

/* Appends the event unless this harvest has it already. */
static unsigned deliver(struct event_loop *loop, struct source *source, struct event *out,
                        unsigned count)
{
    if (source->harvest == loop->harvest)
        return count;
    source->harvest = loop->harvest;
    if (source == &loop->mailbox)
        out[count] = (struct event){EVENT_MAILBOX, 0};
    else
        out[count] = (struct event){EVENT_DOORBELL, (uint32_t)(source - loop->sources)};
    return count + 1;
}

/* ---- F0 … F2: io_uring ----------------------------------------------------------------------- */

/* Work that only an enter brings into the completion queue. */
static bool ring_wants_enter(const struct event_loop *loop)
{
    return IO_URING_READ_ONCE(*loop->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* What cannot be submitted (the kernel is out of memory) stays queued for the next harvest. */
static int ring_submit(struct event_loop *loop)
{
    int result;

    do {
        loop->syscalls++;
        result = io_uring_submit(&loop->ring);
    } while (result == -EINTR);
    return result < 0 ? result : 0;
}

static struct io_uring_sqe *ring_get_sqe(struct event_loop *loop)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);

    if (sqe)
        return sqe;
    /* Submitting empties the queue; a second failure cannot be. */
    return ring_submit(loop) == 0 ? io_uring_get_sqe(&loop->ring) : NULL;
}

static int ring_arm(struct event_loop *loop, const struct source *source, uint32_t index)
{
    struct io_uring_sqe *sqe = ring_get_sqe(loop);

    if (!sqe)
        return -EBUSY;
    io_uring_prep_poll_multishot(sqe, source->fd, POLLIN);
    sqe->user_data = user_data_of(source, index);
    return 0;
}

static void ring_disarm(struct event_loop *loop, const struct source *source, uint32_t index)
{
    struct io_uring_sqe *sqe = ring_get_sqe(loop);

    if (!sqe)
        return; /* its completions are stale, and the poll ends with the ring */
    io_uring_prep_poll_remove(sqe, user_data_of(source, index));
    sqe->user_data = SOURCE_NOBODY;
    ring_submit(loop);
}

/* The oldest completion, or NULL.  Not io_uring_peek_cqe, which may enter the kernel. */
static struct io_uring_cqe *ring_peek(struct event_loop *loop)
{
    struct io_uring_cqe *cqe;
    unsigned head;

    io_uring_for_each_cqe(&loop->ring, head, cqe)
        return cqe;
    return NULL;
}

/* Takes completions while there is room for events.  Polls that ended are armed anew; the caller
 * submits. */
static void ring_reap(struct event_loop *loop, struct event *out, unsigned capacity,
                      unsigned *count)
{
    struct io_uring_cqe *cqe;

    while (*count < capacity && io_uring_sq_space_left(&loop->ring) > 0 &&
           (cqe = ring_peek(loop)) != NULL) {
        uint64_t user_data = cqe->user_data;
        bool ended = !(cqe->flags & IORING_CQE_F_MORE);
        int result = cqe->res;
        struct source *source = find_source(loop, user_data);

        io_uring_cqe_seen(&loop->ring, cqe);
        if (!source)
            continue;
        *count = deliver(loop, source, out, *count);
        /* Anything but these says that polling this file cannot work: arming again would spin. */
        if (ended && (result >= 0 || result == -ECANCELED || result == -ENOMEM))
            ring_arm(loop, source, (uint32_t)user_data);
    }
}

/* One io_uring_enter.  timeout_ns 0: only runs what waits; else sleeps. */
static int ring_enter(struct event_loop *loop, int64_t timeout_ns)
{
    struct __kernel_timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    struct io_uring_getevents_arg argument = {
        .sigmask_sz = _NSIG / 8,
        .ts = timeout_ns > 0 ? (uint64_t)(uintptr_t)&timeout : 0,
    };
    unsigned flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG | loop->enter_flags;

    loop->syscalls++;
    if (syscall(__NR_io_uring_enter, loop->ring.ring_fd, 0, timeout_ns != 0, flags, &argument,
                sizeof(argument)) < 0)
        return -errno;
    return 0;
}

static unsigned ring_harvest(struct event_loop *loop, struct event *out, unsigned capacity)
{
    unsigned count = 0;

    loop->harvest++;
    for (int round = 0; round < HARVEST_ROUNDS; round++) {
        ring_reap(loop, out, capacity, &count);
        if (io_uring_sq_ready(&loop->ring) > 0)
            ring_submit(loop);
        if (count == capacity)
            break;
        if (ring_wants_enter(loop))
            ring_enter(loop, 0);
        else if (io_uring_cq_ready(&loop->ring) == 0)
            break;
    }
    return count;
}

static int ring_wait(struct event_loop *loop, struct event *out, unsigned capacity,
                     int64_t timeout_ns)
{
    uint64_t deadline_ns = timeout_ns > 0 ? clock_now_ns() + (uint64_t)timeout_ns : 0;
    int64_t left_ns = timeout_ns;

    for (;;) {
        unsigned count = ring_harvest(loop, out, capacity);
        int error;

        if (count > 0 || timeout_ns == 0)
            return (int)count;
        if (timeout_ns > 0) {
            uint64_t now_ns = clock_now_ns();

            if (now_ns >= deadline_ns)
                return 0;
            left_ns = (int64_t)(deadline_ns - now_ns);
        }
        error = ring_enter(loop, left_ns);
        /* EBUSY and EAGAIN: the completion queue overflowed; the harvest makes room. */
        if (error < 0 && error != -ETIME && error != -EINTR && error != -EBUSY && error != -EAGAIN)
            return error;
    }
}

/* Whether the opcodes are there is asked of the kernel, not concluded from its version. */
static int ring_probe(struct event_loop *loop)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(&loop->ring);
    bool known = probe && io_uring_opcode_supported(probe, IORING_OP_POLL_ADD) &&
                 io_uring_opcode_supported(probe, IORING_OP_POLL_REMOVE);

    io_uring_free_probe(probe);
    return known && (loop->ring.features & IORING_FEAT_EXT_ARG) ? 0 : -EOPNOTSUPP;
}

static int ring_open(struct event_loop *loop)
{
    struct io_uring_params params = {.flags = setup_flags[loop->level] | IORING_SETUP_CQSIZE |
                                              IORING_SETUP_R_DISABLED};
    unsigned wanted = 2 * loop->sources_max;
    int error;

    params.cq_entries = wanted > CQ_ENTRIES_MIN ? wanted : CQ_ENTRIES_MIN;
    error = io_uring_queue_init_params(SQ_ENTRIES, &loop->ring, &params);
    if (error < 0)
        return error;
    loop->ring_open = true;
    loop->enter_flags = params.features & FEAT_NO_IOWAIT ? ENTER_NO_IOWAIT : 0;
    error = ring_probe(loop);
    return error < 0 ? error : event_limit_ring(loop->ring.ring_fd);
}

/* A kernel that has polls but no multishot ones (before 5.13) refuses the first at once. */
static int ring_check_poll(struct event_loop *loop)
{
    const struct io_uring_cqe *cqe = ring_peek(loop);

    return cqe && cqe->res < 0 ? cqe->res : 0;
}

static void ring_close(struct event_loop *loop)
{
    if (loop->ring_open)
        io_uring_queue_exit(&loop->ring);
    loop->ring_open = false;
}

/* ---- F3: epoll ------------------------------------------------------------------------------- */

static int epoll_wait_events(struct event_loop *loop, struct event *out, unsigned capacity,
                             int64_t timeout_ns)
{
    uint64_t deadline_ns = timeout_ns > 0 ? clock_now_ns() + (uint64_t)timeout_ns : 0;
    uint64_t readable[EVENT_EPOLL_BATCH];
    unsigned batch = capacity < EVENT_EPOLL_BATCH ? capacity : EVENT_EPOLL_BATCH;
    int64_t left_ns = timeout_ns;

    for (;;) {
        int found = event_epoll_look(&loop->epoll, readable, batch, left_ns);
        unsigned count = 0;
        uint64_t now_ns = clock_now_ns();

        loop->epoll_looked_ns = now_ns;
        if (found < 0 && found != -EINTR)
            return found;
        loop->harvest++;
        for (int i = 0; i < found; i++) {
            struct source *source = find_source(loop, readable[i]);

            if (source)
                count = deliver(loop, source, out, count);
        }
        if (count > 0 || timeout_ns == 0)
            return (int)count;
        if (timeout_ns > 0 && now_ns >= deadline_ns)
            return 0;
        if (timeout_ns > 0)
            left_ns = (int64_t)(deadline_ns - now_ns);
    }
}

/* ---- the loop -------------------------------------------------------------------------------- */

static int arm(struct event_loop *loop, const struct source *source, uint32_t index)
{
    int error;

    if (loop->level == F3)
        return event_epoll_add(&loop->epoll, source->fd, user_data_of(source, index));
    error = ring_arm(loop, source, index);
    return error < 0 ? error : ring_submit(loop);
}

static int open_level(struct event_loop *loop, enum level level, int mailbox_fd)
{
    int error;

    loop->level = level;
    error = level == F3 ? event_epoll_open(&loop->epoll, &loop->syscalls) : ring_open(loop);
    if (error == 0) {
        loop->mailbox.fd = mailbox_fd;
        error = arm(loop, &loop->mailbox, SOURCE_MAILBOX);
    }
    if (error == 0 && level != F3)
        error = ring_check_poll(loop);
    if (error < 0)
        ring_close(loop);
    return error;
}

static void note_lost(struct event_loop *loop, int error)
{
    const char *fix = "";

    if (loop->level == F3 && error == -EPERM)
        fix = "; allow io_uring in the seccomp profile and sysctl kernel.io_uring_disabled=0";
    else if (loop->level == F3 && error == -ENOSYS)
        fix = "; allow io_uring in the seccomp profile, or use Linux 5.13 or later";
    snprintf(loop->lost, sizeof(loop->lost), "event loop %s instead of F0 (%s)%s",
             level_names[loop->level], strerror(-error), fix);
    log_info(LOG_TOPIC_LOOP, "%s", loop->lost);
}

/* Tries the levels downwards; a forced one alone. */
static int open_best(struct event_loop *loop, int forced_level, int mailbox_fd)
{
    int first = forced_level >= 0 ? forced_level : F0;
    int last = forced_level >= 0 ? forced_level : F3;
    int error = -ENOTSUP, lost_error = 0;

    for (int level = first; level <= last; level++) {
        error = open_level(loop, (enum level)level, mailbox_fd);
        if (error == 0) {
            if (lost_error)
                note_lost(loop, lost_error);
            return 0;
        }
        lost_error = error;
    }
    if (forced_level < 0)
        return error;
    log_error(LOG_TOPIC_LOOP, "event level %s cannot be had: %s; unset GEMMD_EVENT_LEVEL",
              level_names[forced_level], strerror(-error));
    return -ENOTSUP;
}

int event_loop_open(struct event_loop **out, int forced_level, unsigned sources_max, int mailbox_fd)
{
    struct event_loop *loop;
    int error;

    *out = NULL;
    if (forced_level >= EVENT_LEVEL_COUNT || sources_max == 0 || sources_max > SOURCES_LIMIT)
        return -EINVAL;
    loop = calloc(1, sizeof(*loop) + sources_max * sizeof(loop->sources[0]));
    if (!loop)
        return -ENOMEM;
    loop->sources_max = sources_max;
    loop->epoll.fd = -1;
    for (unsigned i = 0; i < sources_max; i++)
        loop->sources[i].fd = -1;
    error = open_best(loop, forced_level, mailbox_fd);
    if (error < 0) {
        event_loop_close(&loop);
        return error;
    }
    *out = loop;
    return 0;
}

void event_loop_close(struct event_loop **loop_p)
{
    struct event_loop *loop = *loop_p;

    if (!loop)
        return;
    ring_close(loop);
    event_epoll_close(&loop->epoll);
    free(loop);
    *loop_p = NULL;
}

int event_loop_add(struct event_loop *loop, uint32_t index, int fd)
{
    struct source *source;
    int error;

    if (index >= loop->sources_max || fd < 0)
        return -EINVAL;
    source = &loop->sources[index];
    if (source->fd >= 0)
        return -EEXIST;
    source->fd = fd;
    error = arm(loop, source, index);
    if (error < 0) {
        source->fd = -1;
        source->generation++;
    }
    return error;
}

void event_loop_remove(struct event_loop *loop, uint32_t index)
{
    struct source *source;

    if (index >= loop->sources_max || loop->sources[index].fd < 0)
        return;
    source = &loop->sources[index];
    if (loop->level == F3)
        event_epoll_remove(&loop->epoll, source->fd);
    else
        ring_disarm(loop, source, index);
    source->fd = -1;
    source->generation++;
}

bool event_loop_pending(const struct event_loop *loop)
{
    if (loop->level == F3)
        return clock_now_ns() - loop->epoll_looked_ns >= EPOLL_PERIOD_NS;
    return ring_wants_enter(loop) || io_uring_cq_ready(&loop->ring) > 0;
}

int event_loop_wait(struct event_loop *loop, struct event *out, unsigned capacity,
                    int64_t timeout_ns)
{
    if (capacity == 0)
        return -EINVAL;
    if (loop->level == F3)
        return epoll_wait_events(loop, out, capacity, timeout_ns);
    return ring_wait(loop, out, capacity, timeout_ns);
}

uint64_t event_loop_syscalls(const struct event_loop *loop)
{
    return loop->syscalls;
}

const char *event_loop_level_name(const struct event_loop *loop)
{
    return level_names[loop->level];
}

const char *event_loop_lost(const struct event_loop *loop)
{
    return loop->lost;
}
