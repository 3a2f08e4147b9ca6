/*
 * gemmd-stress: what its parts share.  One run: sessions (a process each, or a thread each) keep
 * `depth` jobs in flight, check every result, and leave their figures in memory shared with the
 * parent, which compares them with the worker's own counters.
 */
#ifndef GEMMD_STRESS_H
#define GEMMD_STRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "client/gemmd.h"
#include "tools/stress_latency.h"

#define STRESS_SHAPES_MAX      16
#define STRESS_SESSIONS_MAX    1024
/* Of each call to the worker: a thousand sessions connect at once, perhaps on a busy machine. */
#define STRESS_TIMEOUT_MS      60000
#define STRESS_DEPTH_MAX       4095
#define STRESS_CPUS_MAX        1024
#define STRESS_REPETITIONS_MAX 1000

/* Exit statuses beside those of sysexits.h. */
#define STRESS_EXIT_WRONG 1

enum stress_verify {
    STRESS_VERIFY_NONE,
    STRESS_VERIFY_FULL,      /* each element against the scalar reference */
    STRESS_VERIFY_FREIVALDS, /* each row against a random vector of signs */
};

struct stress_shape {
    uint32_t m, n, k;
};

struct stress_options {
    const char *socket; /* NULL: as gemmd_connect, which may start a worker */
    uint32_t sessions, depth;
    struct stress_shape shapes[STRESS_SHAPES_MAX];
    uint32_t shape_count;
    double rate;    /* arrivals per second, of all sessions together; 0: closed loop */
    double seconds; /* 0: until `jobs` */
    uint64_t jobs;  /* of all sessions together; 0: until `seconds` */
    uint32_t cpus[STRESS_CPUS_MAX];
    uint32_t cpu_count;
    enum stress_verify verify;
    uint64_t seed;
    uint32_t repetitions; /* of --transport */
    const char *hgrm, *plot; /* files to write; NULL: none */
    bool json, spin, threads, rtt, transport;
};

/* 0 with *out filled; -1 when help or version was printed; else an exit status, the reason printed.
 */
int stress_options_parse(struct stress_options *out, int argc, char **argv);

/* "full" and so on. */
const char *stress_verify_name(enum stress_verify verify);

enum stress_state {
    STRESS_STATE_STARTING,
    STRESS_STATE_READY,
    STRESS_STATE_DONE,   /* figures complete, session still open */
    STRESS_STATE_FAILED, /* `error` says why */
};

enum stress_phase {
    STRESS_PHASE_WAIT,    /* for the worker's socket to be known */
    STRESS_PHASE_CONNECT, /* sessions connect and create their layers */
    STRESS_PHASE_RUN,
    STRESS_PHASE_STOP,  /* no new jobs */
    STRESS_PHASE_CLOSE, /* counters are read: sessions may end */
};

/* One session's figures.  Written by it alone; complete once `state` is DONE. */
struct stress_result {
    uint32_t state; /* enum stress_state, stored with release */
    uint32_t exit_status;
    char error[256]; /* "" or the first failure */
    uint64_t jobs_so_far; /* for the progress line */
    uint64_t jobs, failed, wrong, missing, unexpected;
    double operations; /* 2 m n k, summed */
    uint64_t start_ns, end_ns;
    uint64_t doorbells, sleeps, syscalls; /* the client side's own counters */
    struct stress_latency latency;
} __attribute__((aligned(128))); /* two lines: the prefetcher pairs them */

struct stress_shared {
    uint32_t phase; /* enum stress_phase, stored with release */
    char socket[108];
    struct stress_result results[]; /* [sessions] */
};

/* Runs one session to its end; the result is complete when it returns. */
void stress_session_run(const struct stress_options *options, uint32_t index,
                        struct stress_shared *shared);

/* Jobs done at moments of a run, for the plot. */
#define STRESS_SERIES_MAX 512

struct stress_series {
    uint32_t count;
    uint64_t period_ns; /* doubles whenever the table is full */
    double seconds[STRESS_SERIES_MAX];
    uint64_t jobs[STRESS_SERIES_MAX];
};

/* What a run came to; the report's input. */
struct stress_summary {
    const struct stress_options *options;
    const struct stress_result *results; /* [options->sessions] */
    struct gemmd_info info;
    struct gemmd_stats before, after; /* the worker's, around the run */
    uint64_t jobs, failed, wrong, missing, unexpected;
    uint64_t doorbells, sleeps, syscalls;
    uint64_t rescues;
    double seconds, operations;
    struct stress_latency latency;
    struct stress_series series;
    bool passed;
};

/* The modes.  Each prints its report and returns the exit status. */
int stress_run(const struct stress_options *options);
int stress_transport(const struct stress_options *options);

void stress_report_text(const struct stress_summary *summary);
/* 0 or -ENOMEM. */
int stress_report_json(const struct stress_summary *summary);

/* stress_plot.c: both print their failure and return an exit status. */
int stress_write_hgrm(const struct stress_summary *summary);
int stress_write_plot(const struct stress_summary *summary);

/* "gemmd-stress: " and the failure of `session` (NULL: of gemmd_connect) on stderr; the exit
 * status. */
int stress_fail(const struct gemmd *session, int error);
/* The exit status an -errno of the library maps to. */
int stress_exit_status(int error);

#endif
