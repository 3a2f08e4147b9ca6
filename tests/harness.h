/*
 * What end-to-end tests share: a private worker in a directory of its own, processes that cannot
 * outlive the test, and looks at /proc.  Nothing a test starts survives it: every child gets
 * SIGKILL when its parent dies, and each program ends itself after its time limit.
 *
 * GEMMD_TEST_WORKER names the worker's program; meson sets it.
 */
#ifndef GEMMD_TESTS_HARNESS_H
#define GEMMD_TESTS_HARNESS_H

#ifdef NDEBUG
#error "tests need their assertions"
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

/* Children end by _exit, which forgets what they executed. */
#ifdef GEMMD_COVERAGE
void __gcov_dump(void);
#define GEMMD_COVERAGE_DUMP() __gcov_dump()
#else
#define GEMMD_COVERAGE_DUMP() ((void)0)
#endif

/* For code that may run in a child, where cmocka's jump would land in the parent's frames. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            harness_fail(__FILE__, __LINE__, #condition);                                          \
    } while (0)

/* Prints, and fails the test (in a child: ends it with status 99). */
void harness_fail(const char *file, int line, const char *what) __attribute__((noreturn));

/* ---- the program ----------------------------------------------------------------------------- */

/* Runs the tests of an array between the group's fixtures; the program's exit code: 77 when
 * every one was skipped (meson's SKIP; cmocka 1.1.5 would say 0).  `limit_s`: the whole
 * program's time. */
#define HARNESS_RUN(tests, setup, teardown, limit_s)                                               \
    (harness_begin(limit_s), harness_end(cmocka_run_group_tests(tests, setup, teardown),           \
                                         sizeof(tests) / sizeof((tests)[0])))
void harness_begin(unsigned limit_s);
int harness_end(int failed, size_t test_count);

/* Skips the test; tools/check lists the printed reason. */
void harness_skip(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* ---- a private worker ------------------------------------------------------------------------ */

struct harness_worker {
    pid_t pid;           /* 0: not running */
    char directory[64];  /* mode 0700, removed by harness_stop and harness_discard */
    char socket[96];
    char log[96];        /* what it wrote to stderr */
};

/* Starts a worker with --socket, --ready-fd, --pool-bytes 256M, --sandbox kill and `arguments`;
 * `environment` has "NAME=value" to set and "NAME" to remove.  Both end with NULL and may be NULL.
 * 0 once it is READY; its exit code (1000 + signal) if it ended before that. */
int harness_try_start(struct harness_worker *worker, const char *const *arguments,
                      const char *const *environment);
/* The same, and fails the test unless it gets READY. */
void harness_start(struct harness_worker *worker, const char *const *arguments,
                   const char *const *environment);
/* After harness_kill: another worker at the same socket, and READY. */
void harness_restart(struct harness_worker *worker, const char *const *arguments);
/* SIGTERM, then exit 0 within 15 s, socket gone, no file left behind but the lock and the log. */
void harness_stop(struct harness_worker *worker);
/* SIGKILL, and waits for it.  The directory stays. */
void harness_kill(struct harness_worker *worker);
/* Removes the directory of a worker that does not run. */
void harness_discard(struct harness_worker *worker);
/* True when its stderr holds `text`. */
bool harness_log_has(const struct harness_worker *worker, const char *text);
/* Fails unless the worker runs, is the same process as before, and `session` can ask it. */
bool harness_is_alive(const struct harness_worker *worker);

/* ---- processes ------------------------------------------------------------------------------- */

/* Runs body(argument) in a child whose status is its result. */
pid_t harness_fork(int (*body)(void *), void *argument);
/* Exit status, 1000 + signal, or -1 when it did not end in time (it is killed then). */
int harness_join(pid_t pid, int timeout_ms);
/* The same for a child that is to be ended: SIGKILL, then reaped. */
void harness_reap_killed(pid_t pid);

#endif
