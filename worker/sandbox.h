/*
 * What a worker that was taken over could still do: little.  After start-up each thread gives up
 * the system calls it does not need (seccomp); new programs, files for writing, sockets, processes
 * and executable memory are out of reach.
 *
 * One filter per thread rather than one for all: the dispatcher, which works on what clients write,
 * needs a dozen calls; the control thread's thirty would be a gift.
 */
#ifndef GEMMD_WORKER_SANDBOX_H
#define GEMMD_WORKER_SANDBOX_H

enum sandbox_mode {
    SANDBOX_ERRNO = 0, /* a forbidden call fails with EPERM */
    SANDBOX_KILL,      /* it ends the process: the tests' mode */
    SANDBOX_OFF,
};

enum sandbox_thread {
    SANDBOX_CONTROL,
    SANDBOX_DISPATCHER, /* and compute threads */
    SANDBOX_WATCHDOG,
    SANDBOX_HELPER, /* of the control thread */
};

/* Before the first thread: the mode of all later calls, and no new privileges by any exec. */
int sandbox_open(enum sandbox_mode mode);

/* The calling thread has all it needs.  0 or -errno; in a sanitized build always 0 with no filter,
 * because the sanitizers' run-times make calls of their own. */
int sandbox_enter(enum sandbox_thread thread);

/* The calling thread reads no files from now on but below /sys and /proc/self (what huge pages
 * there are, and why not more), and removes none but beside the socket.  Before sandbox_enter.  0;
 * -errno where the kernel has no Landlock or does not allow it: then nothing has changed. */
int sandbox_limit_files(const char *socket);

#endif
