/* What the dispatcher's io_uring may be used for: polls, and nothing else. */
#ifndef GEMMD_WORKER_EVENT_LIMIT_H
#define GEMMD_WORKER_EVENT_LIMIT_H

/* Restricts a ring made with IORING_SETUP_R_DISABLED to POLL_ADD and POLL_REMOVE and to no further
 * registration, and enables it.  A seccomp filter sees io_uring_enter, but not what it submits, so
 * this is the other half of the sandbox.  0 or -errno. */
int event_limit_ring(int ring_fd);

#endif
