/*
 * The system calls each thread of the worker may make once it serves.  tests/e2e/sandbox_test.c
 * compares this table with what strace sees: a rule that no test needs is removed, or says here
 * why it stays ("rare").
 *
 * X(name, threads, rare)   threads: C control, D dispatcher and compute, W watchdog,
 *                          H the control thread's helper
 */
#ifndef GEMMD_WORKER_SANDBOX_RULES_H
#define GEMMD_WORKER_SANDBOX_RULES_H

#define SANDBOX_C 1u
#define SANDBOX_D 2u
#define SANDBOX_W 4u
#define SANDBOX_H 8u
#define SANDBOX_ALL (SANDBOX_C | SANDBOX_D | SANDBOX_W | SANDBOX_H)

#define SANDBOX_RULES(X)                                                                           \
    /* sleeping and waking */                                                                      \
    X(epoll_wait, SANDBOX_C | SANDBOX_D, "")                                                       \
    X(epoll_pwait2, SANDBOX_D, "")                                                                 \
    X(epoll_ctl, SANDBOX_C | SANDBOX_D, "")                                                        \
    X(io_uring_enter, SANDBOX_D, "")                                                               \
    X(futex, SANDBOX_ALL, "")                                                                      \
    X(restart_syscall, SANDBOX_ALL, "a stopped and continued process")                             \
    X(clock_nanosleep, SANDBOX_C, "others wait: a successor takes over, accept finds no memory")   \
    X(read, SANDBOX_C | SANDBOX_D | SANDBOX_H, "")                                                 \
    X(write, SANDBOX_C | SANDBOX_D | SANDBOX_H, "")                                                \
    X(write, SANDBOX_W, "its last words")                                                          \
    X(clock_gettime, SANDBOX_ALL, "a machine whose vDSO has no clock")                             \
    X(epoll_pwait, SANDBOX_C | SANDBOX_D, "an architecture without epoll_wait")                    \
    X(sched_yield, SANDBOX_D, "a team's thread whose CPU somebody else wants")                     \
    /* pinning, looked after once a second */                                                      \
    X(sched_getaffinity, SANDBOX_C, "")                                                            \
    X(sched_setaffinity, SANDBOX_C, "a cpuset that changes")                                       \
    /* connections */                                                                              \
    X(accept4, SANDBOX_C, "")                                                                      \
    X(getsockopt, SANDBOX_C, "")                                                                   \
    X(recvmsg, SANDBOX_C, "")                                                                      \
    X(sendmsg, SANDBOX_C, "")                                                                      \
    X(close, SANDBOX_C | SANDBOX_H, "")                                                            \
    X(fcntl, SANDBOX_C, "")                                                                        \
    X(unlink, SANDBOX_C, "")                                                                       \
    X(unlinkat, SANDBOX_C, "an architecture without unlink")                                       \
    /* segments, weights */                                                                        \
    X(memfd_create, SANDBOX_C | SANDBOX_H, "")                                                     \
    X(ftruncate, SANDBOX_C | SANDBOX_H, "")                                                        \
    X(fallocate, SANDBOX_C | SANDBOX_H, "Linux before 5.14: populating a segment")                 \
    X(pread64, SANDBOX_C, "")                                                                      \
    X(pread64, SANDBOX_H, "a cgroup with a limit of memory")                                       \
    X(epoll_create1, SANDBOX_C, "")                                                                \
    X(eventfd2, SANDBOX_C, "")                                                                     \
    X(mmap, SANDBOX_C | SANDBOX_H, "")                                                             \
    X(mmap, SANDBOX_D, "a page under a fault, worker/fault.c")                                     \
    X(munmap, SANDBOX_C | SANDBOX_H, "")                                                           \
    X(mprotect, SANDBOX_C | SANDBOX_H, "")                                                         \
    X(madvise, SANDBOX_ALL, "")                                                                    \
    X(mbind, SANDBOX_C | SANDBOX_H, "a kernel with NUMA")                                          \
    X(move_pages, SANDBOX_C, "a kernel with NUMA")                                                 \
    X(brk, SANDBOX_C | SANDBOX_H, "a heap that grows")                                             \
    X(mremap, SANDBOX_C | SANDBOX_H, "a block of malloc that grows")                               \
    /* reports: the kind of pages, from smaps */                                                   \
    X(openat, SANDBOX_C | SANDBOX_H, "where huge pages are short, sysfs and smaps tell why")       \
    X(newfstatat, SANDBOX_C | SANDBOX_H, "")                                                       \
    X(fstat, SANDBOX_C | SANDBOX_H, "another C library's fopen")                                   \
    X(lseek, SANDBOX_C | SANDBOX_H, "another C library's fopen")                                   \
    X(getpid, SANDBOX_C, "")                                                                       \
    X(geteuid, SANDBOX_C, "")                                                                      \
    /* ending */                                                                                   \
    X(exit, SANDBOX_D | SANDBOX_W | SANDBOX_H, "")                                                 \
    X(exit_group, SANDBOX_C, "")                                                                   \
    X(exit_group, SANDBOX_W, "the end of a wedged worker")                                         \
    X(rt_sigprocmask, SANDBOX_D | SANDBOX_W | SANDBOX_H, "")                                       \
    X(rt_sigprocmask, SANDBOX_C, "abort")                                                          \
    X(getpid, SANDBOX_D | SANDBOX_W | SANDBOX_H, "abort")                                          \
    X(gettid, SANDBOX_ALL, "abort")                                                                \
    X(tgkill, SANDBOX_ALL, "abort")                                                                \
    X(rt_sigaction, SANDBOX_ALL, "abort, and SIGBUS in the weights")                               \
    X(rt_sigreturn, SANDBOX_ALL, "after a fault that was survived")

#endif
