/*
 * Inside gemmd-stress --transport: what stress_transport.c (round trips, stages, set-up) and
 * stress_rate.c (many jobs in flight) share.
 */
#ifndef GEMMD_STRESS_TRANSPORT_RUN_H
#define GEMMD_STRESS_TRANSPORT_RUN_H

#include "tools/stress.h"
#include "tools/stress_machine.h"
#include "tools/stress_transport.h"

#define TRANSPORT_DEPTH_MAX 128
#define TRANSPORT_WINDOWS_MAX 4096
#define TRANSPORT_LOOKS_PER_CLOCK 1000000

/* One writer per line; 128 bytes apart because the prefetcher fetches lines in pairs. */
struct lines {
    uint32_t ping __attribute__((aligned(128)));
    uint32_t pong __attribute__((aligned(128)));
    uint32_t cpu __attribute__((aligned(128))); /* of the answering thread */
    int error;                                  /* of pinning it */
};

struct windows {
    uint64_t start; /* ticks */
    uint32_t jobs, count;
    double ns_per_job[TRANSPORT_WINDOWS_MAX];
};

/* A run. */
struct transport {
    const struct stress_options *options;
    struct gemmd *session;
    struct gemmd_layer *layer;
    void *memory;
    struct gemmd_job jobs[TRANSPORT_DEPTH_MAX];
    struct gemmd_info info;
    uint32_t client_cpu;
    uint64_t sequence;
    uint64_t faults;
    struct lines lines;
    uint32_t line_sequence;
    struct windows windows;
};

/* Polls until something completes; 0 when nothing does for long, or -errno. */
static inline int transport_poll_some(struct transport *transport, struct gemmd_completion *done,
                                      unsigned capacity)
{
    uint64_t start_ns = 0;

    for (;;) {
        for (int look = 0; look < TRANSPORT_LOOKS_PER_CLOCK; look++) {
            int got = gemmd_poll(transport->session, done, capacity);

            if (got)
                return got;
        }
        if (!start_ns)
            start_ns = stress_now_ns();
        else if (stress_now_ns() - start_ns > TRANSPORT_COMPLETION_NS_MAX)
            return 0;
    }
}

/* For qsort. */
int transport_compare_doubles(const void *left, const void *right);

/* Jobs with stage->depth in flight: jobs and window_rate of *stage.  True when the session still
 * works. */
bool transport_run_rate(struct transport *transport, struct transport_stage *stage);

#endif
