/*
 * The figures of gemmd-stress --transport: measured in stress_transport.c, printed by
 * stress_transport_report.c.
 */
#ifndef GEMMD_STRESS_TRANSPORT_H
#define GEMMD_STRESS_TRANSPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "client/gemmd.h"
#include "tools/stress_latency.h"

/* Round trips, timed two ways: the clock read once per batch, and once per trip. */
struct transport_trips {
    double batch_ns; /* median over batches of the mean trip */
    struct stress_latency each;
};

/* Jobs between two readings of both sides' counters. */
struct transport_stage {
    uint32_t depth;
    uint64_t jobs;
    double seconds;
    uint64_t worker_syscalls, client_syscalls, worker_sleeps, doorbells;
    uint64_t faults;   /* failed jobs, wrong or missing completions */
    bool undisturbed;  /* nobody else connected or disconnected */
};

enum transport_stage_index {
    TRANSPORT_DEPTH_1,
    TRANSPORT_DEPTH_32,
    TRANSPORT_DEPTH_128,
    TRANSPORT_STAGES,
};

struct transport_repetition {
    bool worker_asleep; /* while the bare line was measured */
    struct transport_trips line_before, line_after, job;
    double line_ns; /* mean of the two */
    double ratio;   /* job.batch_ns / line_ns */
    struct transport_stage stages[TRANSPORT_STAGES];
};

struct transport_summary {
    struct gemmd_info info;
    uint32_t client_cpu;
    uint32_t count;
    const struct transport_repetition *repetitions;
    uint64_t awake_syscalls; /* made although both sides were awake: must be 0 */
    uint64_t faults;
    bool passed;
};

/* Jobs per second of a stage. */
double transport_rate(const struct transport_stage *stage);

void transport_report_text(const struct transport_summary *summary);
/* 0 or -ENOMEM. */
int transport_report_json(const struct transport_summary *summary);

#endif
