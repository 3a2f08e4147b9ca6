/*
 * gemmd-bench operands: one layer's shape with each kind of operand, by the kernels in process on
 * one thread and by a private worker; each beside u8 rows and s8 weights of the same run, in turn.
 * Parts: bench_operands.c the command line and the reports, bench_operands_run.c the sides.
 */
#ifndef GEMMD_TOOLS_BENCH_OPERANDS_H
#define GEMMD_TOOLS_BENCH_OPERANDS_H

#include "client/gemmd.h"
#include "kernels/gemm.h"
#include "tools/bench.h"

enum { OPERANDS_KINDS = 8 };

/* Medians of the times of a job, and of the ratios of one round's. */
struct operands_result {
    const char *kind;
    double own_ns, worker_ns;
    double own_ratio, worker_ratio; /* to u8's */
    double path_ratio;              /* the worker's to its kernel's in process */
};

struct operands_bench {
    const char *socket, *level; /* level: NULL, or what the worker's has to be */
    unsigned int rounds;
    uint64_t sample_ns; /* of each side in each round */
    struct gemmd *session;
    struct gemmd_info info;
    const struct gemm_kernel *kernel;
};

/* Connects and finds the worker's kernel.  0 or an exit status, after a message. */
int operands_open(struct operands_bench *bench);
/* One result for each kind.  0 or an exit status: results that differ are EX_SOFTWARE. */
int operands_measure(const struct operands_bench *bench, const struct bench_shape *shape,
                     struct operands_result *out);
void operands_close(struct operands_bench *bench);

/* argv[0] is "operands".  An exit status. */
int bench_operands(int argc, char **argv);

#endif
