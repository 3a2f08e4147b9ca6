/*
 * A descriptor for the application's event loop: edge W of proto/ring.h, with an epoll instance
 * where the futex was.
 *
 *   app (ours, given out)  watches  wake   the worker's epoll instance over its private eventfd
 *                                   self   an eventfd of our own
 *                                   fd     the control connection, for its end only
 *
 * Each arming (cq_arm, a new epoch) is answered by exactly one write of the worker, and `wake` is
 * readable from that write until we harvest it; the next arming comes after the harvest, so none
 * is ever mistaken for another's.  The worker changes cq_futex before it writes: a harvest may find
 * nothing yet, and is then repeated, since the descriptor becomes readable by the write to come.
 *
 * Level-triggered means that what lies in the ring untaken has made the descriptor readable.  What
 * the worker wrote after it had seen our arming has; what it wrote in the moment before may not
 * have.  That is looked at once after each arming, and in that rare case, if the caller's array is
 * full, `self` makes up for it; so it does for jobs that recovery has given up, of which no worker
 * tells.
 *
 * Cost: arming is two stores and a fence; a harvest one system call; the worker's side the same as
 * for a futex.  A second instance (`app`) because reconnecting replaces `wake` and `fd`, and what
 * the application watches must stay.
 */
#include "client/internal.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static int watch(const struct gemmd *session, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events};

    return epoll_ctl(session->pollable.app, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* ---- arming ---------------------------------------------------------------------------------- */

static void arm(struct gemmd *session)
{
    session->pollable.seen = gemmd_wake_arm(session->client_line, &session->wake_epoch,
                                            session->worker_line, session->cq.index + 1);
    session->pollable.announced = !gemmd_cq_ready(&session->cq);
}

/* Takes the worker's answer to the last arming.  False: not written yet. */
static bool harvest(struct gemmd *session)
{
    struct epoll_event event;
    int count;

    do {
        count = epoll_wait(session->pollable.wake, &event, 1, 0);
        session->syscalls++;
    } while (count < 0 && errno == EINTR);
    return count > 0;
}

void gemmd_fd_arm(struct gemmd *session)
{
    if (gemmd_load_acquire(&session->worker_line->cq_futex) != session->pollable.seen &&
        harvest(session))
        arm(session);
}

void gemmd_fd_settle(struct gemmd *session)
{
    struct gemmd_fd *pollable = &session->pollable;
    bool left = gemmd_cq_ready(&session->cq), raise;
    uint64_t count = 1;

    if (!left)
        pollable->announced = true; /* later ones come after the arming */
    raise = (left && !pollable->announced) || session->verdicts;
    if (raise == pollable->raised)
        return;
    /* Neither can block or fail: the counter is 0 before the write, 1 before the read. */
    if ((raise ? write(pollable->self, &count, sizeof(count))
               : read(pollable->self, &count, sizeof(count))) == (ssize_t)sizeof(count))
        pollable->raised = raise;
    session->syscalls++;
}

int gemmd_fd_sleep(struct gemmd *session, uint64_t slice_ns)
{
    struct timespec slice = {.tv_sec = (time_t)(slice_ns / 1000000000),
                             .tv_nsec = (long)(slice_ns % 1000000000)};
    struct pollfd app = {.fd = session->pollable.app, .events = POLLIN};
    int count;

    gemmd_fd_arm(session);
    if (gemmd_cq_ready(&session->cq))
        return 0;
    count = ppoll(&app, 1, &slice, NULL);
    session->syscalls++;
    session->sleeps++;
    if (count < 0)
        return errno == EINTR ? -EINTR : 0;
    return count == 0 ? -ETIMEDOUT : 0;
}

/* ---- life ------------------------------------------------------------------------------------ */

int gemmd_fd_attach(struct gemmd *session)
{
    struct gemmd_msg_wake_fd message = {.header.type = GEMMD_MSG_WAKE_FD};
    struct gemmd_msg_wake_fd_reply reply;
    uint64_t deadline_ns = gemmd_now_ns() + (uint64_t)session->timeout_ms * 1000000;
    struct gemmd_fd *pollable = &session->pollable;
    int error;

    if (!gemmd_has_fd(session))
        return 0;
    error = gemmd_call(session, &message, sizeof(message), &reply, sizeof(reply), &pollable->wake,
                       1, deadline_ns, NULL);
    if (error < 0)
        return error;
    if (pollable->wake < 0)
        return gemmd_fail(session, -EPROTO, "the worker at %s sent no descriptor to wait on",
                          session->socket);
    error = watch(session, pollable->wake, EPOLLIN);
    if (error == 0)
        error = watch(session, session->fd, EPOLLRDHUP); /* and EPOLLHUP; not its replies */
    if (error < 0) {
        close_fd(&pollable->wake);
        return gemmd_fail(session, error, "a descriptor to wait on: %s", gemmd_strerror(error));
    }
    arm(session);
    gemmd_fd_settle(session);
    return 0;
}

void gemmd_fd_detach(struct gemmd *session)
{
    struct epoll_event event = {.events = 0};

    if (!gemmd_has_fd(session))
        return;
    /* A file leaves an epoll instance when its last descriptor is closed: not at ours, if a child
     * has inherited it. */
    epoll_ctl(session->pollable.app, EPOLL_CTL_DEL, session->pollable.wake, &event);
    epoll_ctl(session->pollable.app, EPOLL_CTL_DEL, session->fd, &event);
    close_fd(&session->pollable.wake);
}

void gemmd_fd_close(struct gemmd *session)
{
    if (gemmd_is_ours(session)) /* the instance is shared with the parent */
        gemmd_fd_detach(session);
    close_fd(&session->pollable.wake);
    close_fd(&session->pollable.self);
    close_fd(&session->pollable.app);
}

int gemmd_get_fd(struct gemmd *session)
{
    struct gemmd_fd *pollable = &session->pollable;
    int error = gemmd_check(session);

    if (error < 0)
        return error;
    if (session->control_only)
        return gemmd_fail(session, -EINVAL, "get_fd: a control-only session has no rings");
    if (gemmd_has_fd(session))
        return pollable->app;
    pollable->self = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pollable->app = epoll_create1(EPOLL_CLOEXEC);
    error = pollable->self < 0 || pollable->app < 0 ? -errno : 0;
    if (error == 0)
        error = watch(session, pollable->self, EPOLLIN);
    if (error < 0)
        gemmd_fail(session, error, "a descriptor to wait on: %s", gemmd_strerror(error));
    else
        error = gemmd_fd_attach(session);
    session->syscalls += 5;
    if (error == 0)
        return pollable->app;
    gemmd_fd_close(session);
    return error;
}
