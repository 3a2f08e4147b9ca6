/*
 * A simulated world around worker/scheduler.c: a clock, layers with true costs, clients of several
 * kinds, and a shadow of every job that knows what must happen to it.  All of it follows from one
 * seed.  A broken rule prints the seed and ends the program.
 */
#ifndef GEMMD_TESTS_SIM_WORLD_H
#define GEMMD_TESTS_SIM_WORLD_H

#ifdef NDEBUG
#error "tests need their assertions"
#endif

#include "worker/scheduler.h"

enum {
    WORLD_SESSIONS = 10,
    WORLD_USERS = 3,
    WORLD_LAYERS = 5,
    WORLD_ENTRIES = 16, /* of a ring */
    WORLD_ROWS = 40,    /* of a job */
    WORLD_PANELS = 12,
};

enum client_kind {
    CLIENT_STEADY = 0,  /* always has work */
    CLIENT_SINGLE,      /* one job at a time, of the latency class */
    CLIENT_MIXED,       /* any class, some deadlines */
    CLIENT_GREEDY,      /* hostile: the dearest legal job for ever */
    CLIENT_HOARDER,     /* hostile: never reaps */
    CLIENT_CANCELLER,   /* hostile: cancels everything */
    CLIENT_LATE,        /* hostile: every deadline is past */
    CLIENT_UNLOADED,    /* its layers are closed and opened under it */
    CLIENT_CHATTY,      /* hostile: the dearest jobs, and empty ones without end */
    CLIENT_KINDS,
};

struct world_job {
    struct scheduler_job job;
    bool accepted;   /* in flight in the scheduler */
    bool cancelled, stale;
    uint32_t session, layer, tag;
    uint64_t accepted_ns, serviced_ns; /* its session's, then */
    uint8_t cells[WORLD_ROWS][WORLD_PANELS]; /* how often each was computed */
    uint64_t c[WORLD_ROWS][WORLD_PANELS];
};

/* A submission: in the ring, not yet seen by the worker. */
struct world_sqe {
    bool is_cancel;
    uint32_t tag, layer, rows; /* is_cancel: tag is the target; no rows: it completes at once */
    enum scheduler_class class;
    uint64_t deadline_ns;
};

struct world_session {
    bool open;
    enum client_kind kind;
    uint32_t user, weight, quota;
    uint32_t depth, rows_max, home; /* jobs in flight; of a job; its layer (WORLD_LAYERS: any) */
    struct scheduler_session scheduled;
    struct scheduler_flow flows[WORLD_LAYERS];
    struct world_job jobs[WORLD_ENTRIES];
    struct world_sqe ring[WORLD_ENTRIES];
    uint32_t ring_head, ring_tail, unreaped, submitted, completed;
    uint64_t next_ns; /* when the client acts again */
    /* What it costs to take what is no job that waits, and to wake the client; 0: it is awake. */
    uint64_t serve_ns, wake_ns;
    uint64_t serviced_ns; /* so much of it in all */
    bool touched;        /* it has completions that it was not woken for */
    uint64_t shut_round; /* since when nothing is taken from it; 0: it may be */
    uint32_t next_tag;
    uint64_t longest_wait_ns;
    uint64_t worth_ns; /* of what it got: the cost of its rows, had they run alone */
    uint64_t statuses[32];
};

struct world_layer {
    struct scheduler_layer scheduled;
    uint64_t tile_ns, stream_ns; /* of a panel: computing one tile; fetching it from memory */
    uint64_t row_ns;             /* making a row when it boards; 0: it is there as it is */
};

struct world {
    uint64_t seed, random, now_ns;
    struct scheduler scheduler;
    uint32_t sessions, layers;
    bool noisy;    /* slices end early and take odd times */
    bool in_slice; /* between two of its chunks: no orders, no cancels */
    bool draining; /* no client acts any more */
    bool checking; /* computes and checks every cell */
    struct world_layer layer[WORLD_LAYERS];
    struct world_session session[WORLD_SESSIONS];
    uint64_t slices, panels, panel_rows;
    uint64_t compute_ns; /* of all threads */
    uint64_t between_ns; /* of that, between two chunks of a slice */
    uint64_t served_ns;  /* of that, services in the slice under way */
};

uint64_t world_random(struct world *world, uint64_t below);
void world_fail(const struct world *world, const char *what) __attribute__((noreturn));
#define WORLD_REQUIRE(world, condition)                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            world_fail(world, #condition);                                                         \
    } while (0)

void world_open(struct world *world, uint64_t seed);
void world_add_session(struct world *world, uint32_t index, enum client_kind kind, uint32_t user,
                       uint32_t weight, uint32_t quota);
void world_end_session(struct world *world, uint32_t index);
/* Clients act, the worker takes submissions, one slice runs; or time passes. */
void world_step(struct world *world);
/* Nobody submits any more: everything accepted completes. */
void world_drain(struct world *world);
void world_close(struct world *world);
/* Completes, as far as it has ended. */
void world_take_done(struct world *world);
/* And wakes whose jobs did. */
void world_complete(struct world *world);
/* What the dispatcher does with a ring. */
void world_take_submissions(struct world *world, struct world_session *session);
/* The compute of a round of the scheduler: no more than this. */
uint64_t world_round_bound_ns(const struct world *world);
/* What the job's layer makes of its row there. */
uint64_t world_value(const struct world_job *job, uint32_t row, uint32_t panel);

/* world_slice.c.  False: there was nothing to run. */
bool world_run_slice(struct world *world);

/* clients.c: what a client does when its time has come. */
void client_act(struct world *world, struct world_session *session);

#endif
