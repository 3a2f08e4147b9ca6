/* What the worker's unit tests share.  Everything is static: each test is one program. */
#ifndef GEMMD_TESTS_UNIT_WORKER_UNIT_H
#define GEMMD_TESTS_UNIT_WORKER_UNIT_H

#ifdef NDEBUG
#error "tests need their assertions"
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/hugepages.h"

#ifdef GEMMD_COVERAGE
void __gcov_dump(void);
#endif

/* Runs body(argument) in a child: its exit status, or 1000 + the signal that ended it. */
__attribute__((unused)) static int in_child(int (*body)(void *), void *argument)
{
    int status;
    pid_t pid;

    fflush(NULL);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(20); /* a hang is a failure, too */
        status = body(argument);
#ifdef GEMMD_COVERAGE
        __gcov_dump(); /* _exit forgets what was executed */
#endif
        _exit(status);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* The first number of a file; -1: no such file. */
__attribute__((unused)) static long read_number(const char *path)
{
    FILE *file = fopen(path, "re");
    long value = -1;

    if (!file)
        return -1;
    if (fscanf(file, "%ld", &value) != 1)
        value = -1;
    fclose(file);
    return value;
}

/* ---- the machine's huge pages ---------------------------------------------------------------- */

/* A group's teardown. */
__attribute__((unused)) static int restore_hugepages(void **state)
{
    (void)state;
    hugepages_restore();
    return 0;
}

#define NEED_HUGEPAGES(count)                                                                      \
    do {                                                                                           \
        if (!hugepages_set(count)) {                                                               \
            print_message("skipped: cannot set vm.nr_hugepages=%d (needs root and free memory)\n", \
                          count);                                                                  \
            skip();                                                                                \
        }                                                                                          \
    } while (0)

#endif
