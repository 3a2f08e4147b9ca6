/*
 * gemmd-bench path: what it costs to have a job done by the worker instead of calling its kernel.
 * Parts: bench_path.c the command line and the reports, bench_path_run.c the sides and clocks.
 */
#ifndef GEMMD_TOOLS_BENCH_PATH_H
#define GEMMD_TOOLS_BENCH_PATH_H

#include "client/gemmd.h"
#include "tools/bench.h"

enum path_side {
    PATH_OWN,      /* the kernel called on the worker's CPU, by whoever has A and wants C */
    PATH_HANDOVER, /* the same by a thread there that is told so through one cache line, and answers
                      through another: what any worker on another core costs */
    PATH_WORKER,   /* gemmd_run, both sides spinning */
    PATH_SIDES,
};

/* Medians. */
struct path_result {
    struct bench_shape shape;
    double ns[PATH_SIDES];      /* from A written to C complete */
    double read_ns[PATH_SIDES]; /* then reading a word of each cache line of C */
    double own_ratio, handover_ratio; /* of the worker's time; of neighbouring measurements */
    double own_more_ns, handover_more_ns;
};

struct path_bench {
    const char *socket;
    unsigned int rounds, client_cpu; /* client_cpu: UINT_MAX: chosen */
    double seconds;                  /* of each side in each round */
    bool untouched;                  /* nobody writes A or reads C */
    struct bench_machine machine;
    struct gemmd *session;
    struct gemmd_info info;
};

/* Connects, finds the worker's kernel, pins.  0 or an exit status, after a message. */
int path_open(struct path_bench *bench);
/* 0 or an exit status: results that differ are EX_SOFTWARE. */
int path_measure(struct path_bench *bench, const struct bench_shape *shape,
                 struct path_result *out);
void path_close(struct path_bench *bench);

/* argv[0] is "path".  An exit status. */
int bench_path(int argc, char **argv);

#endif
