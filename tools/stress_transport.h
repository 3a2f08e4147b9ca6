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
    double window_rate; /* jobs/s of the median window of about 1,000 jobs; not at depth 1 */
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

/* Wake-ups of something that sleeps on the worker's CPU, start to answer. */
struct transport_wake {
    struct stress_latency futex; /* a thread in a plain futex */
    struct stress_latency job;   /* the worker, by an empty job; count: doorbells rung */
};

/* A thousand sessions, and sessions that come and go. */
struct transport_many {
    uint32_t sessions, hot; /* the others are idle */
    double connect_us;      /* one session */
    double turn_ns;         /* without a job */
    uint64_t turns, jobs;   /* turns timed, jobs between them */
    uint64_t doorbells;     /* of these jobs: 0 when the hot sessions stayed hot */
    uint64_t rescues;
    struct stress_latency alone, churned; /* round trips of one session */
    uint64_t churn_sessions;
};

struct transport_repetition {
    bool worker_asleep; /* while the bare line was measured */
    struct transport_trips line_before, line_after, job;
    double line_ns; /* mean of the two */
    double ratio;   /* job.batch_ns / line_ns */
    struct transport_stage stages[TRANSPORT_STAGES];
    struct transport_wake wake;
};

struct transport_summary {
    struct gemmd_info info;
    uint32_t client_cpu;
    uint32_t count;
    const struct transport_repetition *repetitions;
    double idle_percent; /* of one CPU, all threads of the worker; < 0: could not be read */
    struct transport_many many;
    uint64_t awake_syscalls; /* made although both sides were awake: must be 0 */
    uint64_t faults;
    bool passed;
};

/* A job without an answer for so long gets none.  A machine may be busy with other things. */
#define TRANSPORT_COMPLETION_NS_MAX UINT64_C(20000000000)

/* stress_wake.c.  0, or -errno after a message. */
int transport_measure_wake(struct gemmd *session, const struct gemmd_job *job, uint32_t worker_cpu,
                           struct transport_wake *out);
double transport_measure_idle(uint32_t pid);
/* stress_many.c: with sessions of its own at `socket`, by a layer of that name.  0, or -errno after
 * a message. */
int transport_measure_many(const char *socket, const char *layer_name, struct transport_many *out);

void transport_report_text(const struct transport_summary *summary);
/* 0 or -ENOMEM. */
int transport_report_json(const struct transport_summary *summary);

#endif
