/*
 * gemmd-bench latency: a latency job at a time beside a client that floods the worker.
 * Parts: bench_latency.c the command line and the reports, bench_latency_run.c client and flood,
 * bench_latency_limit.c what the machine allows.
 */
#ifndef GEMMD_TOOLS_BENCH_LATENCY_H
#define GEMMD_TOOLS_BENCH_LATENCY_H

#include <sys/types.h>

#include "client/gemmd.h"
#include "tools/bench.h"

enum { FLOOD_M = 4096, FLOOD_N = 2048, FLOOD_K = 4096 };

/* Medians of the rounds. */
struct latency_result {
    struct bench_shape shape;
    double alone_p50_ns, alone_p99_ns, beside_p50_ns, beside_p99_ns;
    double p50_ratio, p99_ratio;       /* beside / alone, of neighbouring measurements */
    double flood_gops, flood_alone_gops; /* beside the jobs, and without them */
    /* p99 without a worker (bench_latency_limit.c). */
    double limit_alone_ns, limit_beside_ns, limit_ratio;
};

struct latency_flood; /* shared with its process */
struct latency_limit;

struct latency_bench {
    const char *socket;
    unsigned int rounds, client_cpu; /* client_cpu: UINT_MAX: chosen */
    double seconds, gap_us;          /* of each side in each round; mean pause before a job */
    struct bench_machine machine;
    struct gemmd *session;
    struct gemmd_info info;
    struct latency_flood *flood;
    pid_t flood_pid;
    struct latency_limit *limit;
};

/* Connects, pins, and starts the flood's process, which waits.  0 or an exit status, after a
 * message. */
int latency_open(struct latency_bench *bench);
/* 0 or an exit status, after a message. */
int latency_measure(struct latency_bench *bench, const struct bench_shape *shape,
                    struct latency_result *out);
void latency_close(struct latency_bench *bench);

/* NULL: no memory, or the worker's kernel is not this program's. */
struct latency_limit *latency_limit_open(const struct latency_bench *bench);
/* Accepts NULL. */
void latency_limit_close(struct latency_limit *limit);
/* A thread on the worker's CPU; false: there is none. */
bool latency_limit_start(struct latency_limit *limit, struct bench_ours *job, bool flooding);
void latency_limit_stop(struct latency_limit *limit);
/* The job, there. */
void latency_limit_call(struct latency_limit *limit);

/* argv[0] is "latency".  An exit status. */
int bench_latency(int argc, char **argv);

#endif
