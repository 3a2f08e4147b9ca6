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
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

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

/* ---- the machine's huge pages: root's to set, put back by hugepages_restore ------------------ */

#define NR_HUGEPAGES   "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
#define FREE_HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
/* Pages that go when their last user does: not of the number to restore. */
#define SURPLUS_HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages"

static long hugepages_before = -1;
static int hugepages_lock = -1;

static void hugepages_write(long count)
{
    FILE *file = fopen(NR_HUGEPAGES, "we");

    if (!file)
        return;
    fprintf(file, "%ld", count);
    fclose(file);
}

/* True: there are `count` pages, all free.  Two programs that set the number take turns. */
__attribute__((unused)) static bool hugepages_set(long count)
{
    if (geteuid() != 0 || access(NR_HUGEPAGES, W_OK) < 0)
        return false;
    if (hugepages_lock < 0) {
        hugepages_lock = open(NR_HUGEPAGES, O_RDONLY | O_CLOEXEC);
        flock(hugepages_lock, LOCK_EX);
        hugepages_before = read_number(NR_HUGEPAGES) - read_number(SURPLUS_HUGEPAGES);
    }
    hugepages_write(count);
    return read_number(NR_HUGEPAGES) == count && read_number(FREE_HUGEPAGES) == count;
}

__attribute__((unused)) static int hugepages_restore(void **state)
{
    (void)state;
    if (hugepages_lock < 0)
        return 0;
    hugepages_write(hugepages_before);
    close(hugepages_lock);
    hugepages_lock = -1;
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
