/*
 * Submissions -> jobs -> slices on the team -> completions.  Runs on the dispatcher; knows nothing
 * of sockets or sleeping.  What runs next is the scheduler's to say; here it is run.
 */
#ifndef GEMMD_WORKER_EXECUTOR_H
#define GEMMD_WORKER_EXECUTOR_H

#include "kernels/gemm.h"
#include "proto/stats.h"
#include "worker/scan_rows.h"
#include "worker/scheduler.h"
#include "worker/session.h"
#include "worker/team.h"
#include "worker/trace.h"
#include "worker/verify.h"

/* How long a thread works without a look at what else has come.  Each chunk costs the kernels some
 * 0.2 us (tile configuration, a cold start of the streams), so it is long where nobody waits for
 * its end: one session alone, or several. */
#define EXECUTOR_CHUNK_ALONE_NS UINT64_C(48000)
#define EXECUTOR_CHUNK_NS       UINT64_C(8000)
#define EXECUTOR_CHUNK_MIN_NS   UINT64_C(2000)
/* So long after a latency job the dispatcher looks also in the middle of its chunks (pausing.h). */
#define EXECUTOR_LATENCY_NS UINT64_C(100000000)
/* A slice that is to end ends with the group of panels that it is in, of so much time of all. */
#define EXECUTOR_GROUP_ALONE_NS UINT64_C(80000)
#define EXECUTOR_GROUP_NS       UINT64_C(40000)
/* Rows of each thread for whom groups are made: each thread reads all of the weights then. */
#define EXECUTOR_GROUP_ROWS 64
/* A slice on the team: so many chunks for each thread, that none waits long for the last one. */
#define EXECUTOR_TEAM_CHUNKS 4
/* It is cut by rows where each thread gets so many, and the weights' bytes are so few. */
#define EXECUTOR_TEAM_ROWS    128
#define EXECUTOR_TEAM_WEIGHTS (UINT64_C(1) << 20)
/* A slice of less is not cut for the team: handing it over would cost a tenth of it. */
#define EXECUTOR_TEAM_NS UINT64_C(10000)
/* Less is not worth waking parked threads, who need 30 us to come: of one slice, or of a row of
 * slices that follow each other within EXECUTOR_ROW_NS. */
#define EXECUTOR_WAKE_NS UINT64_C(60000)
#define EXECUTOR_ROW_NS  UINT64_C(20000)

/* A slice in hand: a grid of chunks, columns of panels by blocks of rows, rows innermost so that
 * a panel serves all of them from the cache. */
struct executor_slice {
    struct executor *executor;
    const struct scheduler_scan *scan;
    struct scan_rows *on_board; /* its rows */
    struct layer *layer;
    uint32_t panels;      /* from scan->position on, without wrapping */
    uint32_t panel_step;  /* of a chunk */
    uint32_t row_step, row_blocks;
    uint32_t chunk_count;
    uint32_t chunks_before; /* what the team's work begins with: not 0 for the rest of a group */
    uint32_t waiting; /* jobs to end it for, when it began */
    bool ending;      /* at the next chunk: something waits for that */
    /* How it went, for the counters. */
    uint64_t between_ns; /* spent on others meanwhile */
    uint32_t panels_run, rows;
    uint64_t compute_ns, caller_ns;
    bool teamed, shared;
};

struct executor_config {
    uint32_t sessions_max;
    struct gemmd_stats_page *stats;
    struct team *team;
    struct trace *trace;       /* NULL: none */
    bool alone;                /* no coalescing */
    uint32_t verify_every;     /* one job in so many; 0: none */
    /* In the middle of a slice: calls executor_take for sessions that submitted.  True: something
     * else has come, for which the slice is to end. */
    bool (*look)(void *owner);
    /* Completions were written.  Returns the ns that waking the client took; 0: it is awake. */
    uint64_t (*wake)(void *owner, struct session_ring *ring);
    void (*violate)(void *owner, struct session_ring *ring, enum gemmd_status status);
    void *owner;
};

struct executor {
    struct executor_config config;
    struct scheduler scheduler;
    /* Of a short scan that runs between two chunks of a long one's slice: the second. */
    struct executor_slice slices[2];
    bool between; /* two chunks of a slice */
    bool taken;   /* a submission, since somebody cleared this */
    /* A cancel taken between two chunks may be meant for a job on board: it waits for their slice's
     * end, and all other submissions with it. */
    struct session_ring *cancelling; /* NULL: there is none */
    struct gemmd_sqe cancel;
    uint64_t seen_ns;    /* the clock as just read for a job that is to run now; 0: too long ago */
    bool has_company;    /* the owner's to say: more than one session is hot */
    uint64_t latency_ns; /* when the last latency job was seen */
    uint64_t row_ns;     /* of slices in a row that the others could have shared, and did not */
    uint64_t ended_ns;   /* the last slice */
    struct session_ring **touched; /* sessions to wake, touched_count of them */
    uint32_t touched_count;
    struct scan_rows rows[SCHEDULER_SCANS];
    struct verify verify;
};

/* 0 or -ENOMEM. */
int executor_init(struct executor *executor, const struct executor_config *config);
void executor_fini(struct executor *executor);

void executor_attach(struct executor *executor, struct session *session);
/* Nothing of the session is touched afterwards. */
void executor_detach(struct executor *executor, struct session *session);
/* Takes an open layer out of the session's table; its jobs end with LAYER_STALE. */
void executor_close_layer(struct executor *executor, struct session *session, uint32_t layer_id);

/* Takes up to SESSION_BATCH submissions: what needs no computing completes at once, the rest
 * waits.  False: there was none. */
bool executor_take(struct executor *executor, struct session_ring *ring);

/* Runs one slice.  False: nothing waits. */
bool executor_step(struct executor *executor);

/* Was a latency job seen not long ago? */
static inline bool executor_expects_latency(const struct executor *executor, uint64_t now_ns)
{
    return executor->latency_ns && now_ns - executor->latency_ns < EXECUTOR_LATENCY_NS;
}

/* Between two chunks of a slice: short scans that go before the rest of it.  Returns the ns that
 * took. */
uint64_t executor_run_between(struct executor *executor);

/* slice.c: runs what the scheduler chose.  Returns the time at its end. */
uint64_t slice_run(struct executor *executor, struct scheduler_scan *scan, uint64_t start_ns);
/* Counts it: after the completions, for which clients wait. */
void slice_count(struct executor *executor);

#endif
