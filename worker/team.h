/*
 * Compute threads, one pinned to each CPU that the dispatcher leaves free.  The caller of team_run
 * works along; the others spin for a while after the last work, then park.
 *
 * Work is a number of chunks that threads claim one by one, nearly in order, so that a thread that
 * comes late, or loses its CPU to a client, holds nobody up by more than the chunk it has in hand.
 */
#ifndef GEMMD_WORKER_TEAM_H
#define GEMMD_WORKER_TEAM_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/stats.h"

struct team;

struct team_config {
    cpu_set_t cpus;    /* one thread on each; may be empty */
    uint64_t spin_ns;  /* longest spin before a thread parks */
    struct gemmd_core_stats *cores; /* one per thread, in the order of the CPUs */
};

typedef void team_work_fn(void *argument, uint32_t chunk);
typedef bool team_stop_fn(void *argument);

struct team_work {
    team_work_fn *run;
    team_work_fn *run_own; /* the caller's chunks; NULL: as the others' */
    team_stop_fn *stop; /* asked by the caller between its chunks: leave the rest? */
    void *argument;
    uint32_t chunk_count; /* up to TICKET_CHUNKS_MAX */
    bool share;        /* else the caller does it alone */
    bool wake;         /* worth a system call: parked threads are woken */
    uint64_t start_ns; /* now */
};

struct team_result {
    uint32_t chunks;     /* done: the first so many */
    uint64_t compute_ns; /* of all threads */
    uint64_t end_ns;
    bool shared;         /* others than the caller ran some */
};

/* Starts the threads, each pinned.  0 or -errno; *out is NULL then. */
int team_open(struct team **out, const struct team_config *config);
/* Accepts NULL; *team becomes NULL. */
void team_close(struct team **team);

/* Threads, the caller included. */
uint32_t team_size(const struct team *team);

/* Runs chunks 0, 1, … until all are done, or stop says so.  One caller at a time. */
void team_run(struct team *team, const struct team_work *work, struct team_result *out);

/* Wakes made so far (system calls of the caller). */
uint64_t team_wakes(const struct team *team);

/* One thread at a time: puts back the affinity that a cpuset change took away.  How many it mended;
 * -errno when one could not be (its CPU is offline or forbidden): it sleeps until it can. */
int team_repin(struct team *team);

#endif
