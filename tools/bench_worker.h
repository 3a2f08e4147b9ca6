/* A private worker for a benchmark, in a directory of its own; both go with this process. */
#ifndef GEMMD_TOOLS_BENCH_WORKER_H
#define GEMMD_TOOLS_BENCH_WORKER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { BENCH_WORKER_ARGUMENTS_MAX = 16 };

struct bench_worker {
    const char *program; /* NULL: $GEMMD_WORKER, else gemmd beside this program, else in PATH */
    const char *arguments[BENCH_WORKER_ARGUMENTS_MAX];
    uint32_t argument_count;
    pid_t keeper; /* the process between this one and the worker */
    char directory[64], socket[96];
};

/* False when the worker has room for no more. */
bool bench_worker_argument(struct bench_worker *worker, const char *argument);

/* Returns once it listens; false after a message.  Stop it in either case. */
bool bench_worker_start(struct bench_worker *worker);
void bench_worker_stop(struct bench_worker *worker);

#endif
