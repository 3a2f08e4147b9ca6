/*
 * Restrictions of a ring (Linux 5.10).  Bare system calls: liburing 2.3 declares the functions for
 * them and forgets to export them.
 */
#include "worker/event_limit.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <unistd.h>

int event_limit_ring(int ring_fd)
{
    struct io_uring_restriction allowed[] = {
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_POLL_ADD},
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_POLL_REMOVE},
    };

    if (syscall(__NR_io_uring_register, ring_fd, IORING_REGISTER_RESTRICTIONS, allowed,
                sizeof(allowed) / sizeof(allowed[0])) < 0 ||
        syscall(__NR_io_uring_register, ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
        return -errno;
    return 0;
}
