/*
 * Which work next.  Pure: no clock of its own, no I/O, no threads, no allocation after set-up, so
 * that tests/sim can run it against a simulated world.
 *
 *   job      waits in the queue of its session and class, and in the flow of its session and layer
 *   scan     one pass of a group of rows over the panels of a layer.  It is circular: rows that
 *            come while a scan of their layer is under way board it at the panel it has reached and
 *            leave when they have seen every panel.  That is coalescing without waiting for
 *            anybody: the weights stream once, and who comes late joins what is paid for.
 *   account  deficit round robin in ns of compute: each round an account with work gets its quantum
 *            of credit; work is charged to all sessions that have rows in a scan, by rows.
 *
 * Order: inside a round latency before normal before background, each class round robin over the
 * sessions that have credit.  A class buys order, never share: latency and normal work of a session
 * draw on one account, background work on another of 1/32 of the quantum.  So no class starves
 * another, and a client gains nothing by calling everything latency.
 *
 * Short jobs (all their rows through all panels within SCHEDULER_SLICE_NS) run whole, on their own
 * scan, between the slices of long scans or in the middle of one.  Of long scans at most one per
 * class is under way, and one that trails another, so state is small and each ends soon.
 */
#ifndef GEMMD_WORKER_SCHEDULER_H
#define GEMMD_WORKER_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "worker/list.h"

enum scheduler_class {
    SCHEDULER_LATENCY = 0,
    SCHEDULER_NORMAL,
    SCHEDULER_BACKGROUND,
    SCHEDULER_CLASS_COUNT,
};

/* The longest a long scan keeps the threads while others wait.  A latency job waits for less: it
 * ends the slice at the next chunk (executor.h). */
#define SCHEDULER_SLICE_NS UINT64_C(30000)
/* Credit of a round, weight 1. */
#define SCHEDULER_QUANTUM_NS INT64_C(100000)
#define SCHEDULER_BACKGROUND_SHARE 32
/* What a job costs beside its compute: it is taken, queued and completed.  230 to 270 ns on the
 * guest of README.md, a guess elsewhere. */
#define SCHEDULER_JOB_NS UINT64_C(200)
/* The most that one service of the dispatcher can cost: it may have lost its CPU in the middle. */
#define SCHEDULER_SERVICE_NS_MAX UINT64_C(20000)
#define SCHEDULER_WEIGHT_MAX 64
/* Rows share a scan as long as one panel of it takes no more than this on one thread. */
#define SCHEDULER_PANEL_NS UINT64_C(20000)
#define SCHEDULER_ROWS_MAX 1024
/* How far beyond its credit a session may take free seats (scan.c), and go first to meet others
 * (trail.c).  With 0 one of 20 rings in tests/sim/ring_test.c never joined, with twice the quantum
 * all did. */
#define SCHEDULER_AHEAD_NS (4 * SCHEDULER_QUANTUM_NS)
/* Jobs a session may always have admitted, whatever its user's others do. */
#define SCHEDULER_RESERVE 4
/* Rounds of a layer after which a scan takes nobody on board while other layers wait. */
#define SCHEDULER_BOARDING_ROUNDS 2
/* The longest window of a layer. */
#define SCHEDULER_WINDOW_NS_MAX UINT64_C(10000000)

/* ---- what an owner embeds; fields are the scheduler's ---------------------------------------- */

struct scheduler_account {
    int64_t credit_ns, quantum_ns;
    uint64_t round; /* up to which credit_ns counts */
};

struct scheduler_session;
struct scheduler_scan;

struct scheduler_queue {
    struct list jobs; /* waiting, oldest first */
    struct list link; /* ready or spent, while it has jobs or leads a scan */
    struct scheduler_account *account;
    struct scheduler_session *session;
    uint32_t leads; /* scans whose turn is this queue's turn */
    bool is_spent;  /* linked in spent */
    enum scheduler_class class;
};

struct scheduler_user {
    uint32_t uid, sessions, admitted;
    struct list held; /* sessions with jobs beyond the quotas, in turn */
};

struct scheduler_session {
    struct scheduler_account accounts[2]; /* latency and normal; background */
    struct scheduler_account service;     /* what is served beside others' work, each round */
    struct scheduler_queue queues[SCHEDULER_CLASS_COUNT];
    struct scheduler_flow *last; /* of its last job */
    struct scheduler_user *user;
    struct list held, held_link;                  /* jobs beyond the quotas, oldest first */
    uint32_t in_flight, admitted, quota, waiting; /* jobs: all; not held; at most; not on board */
    uint64_t charged_ns; /* compute so far */
};

/* Tiles of rows 1, 2, 3-4, 5-8, … 33 and more. */
#define SCHEDULER_COST_BUCKETS 7

struct scheduler_layer {
    struct list flows; /* with waiting jobs, in boarding order */
    uint64_t window_ns; /* the caller's, to change at any time (window.c); 0: none */
    uint64_t due_ns;    /* when those that gather go on */
    struct list gathered, gathering; /* jobs, oldest first; the scheduler's link */
    uint32_t gathered_rows;
    struct scheduler_scan *scan;
    uint32_t panels, tile_rows, waiting;
    uint32_t rows_free;  /* so many rows cost hardly more than one */
    uint32_t rows_cap;   /* of a long scan */
    uint32_t rows_short; /* pass all panels within a slice */
    uint32_t rows_max;   /* none of these is larger */
    uint32_t rows_short_max;
    uint32_t lessons, measured; /* mask of buckets */
    uint64_t cost[SCHEDULER_COST_BUCKETS]; /* of a tile and a panel, 1/16 ns */
};

struct scheduler_flow {
    struct scheduler_session *session;
    struct scheduler_layer *layer; /* NULL: closed */
    struct scheduler_flow *next;   /* where the session goes from here, as far as is known */
    struct list jobs, link;
};

struct scheduler_job {
    /* set by the caller of scheduler_submit */
    struct scheduler_flow *flow;
    enum scheduler_class class;
    uint32_t rows;        /* >= 1 */
    uint64_t deadline_ns; /* 0: none.  Counts until the first row has boarded */
    uint64_t seen_ns;     /* when it came */
    /* the scheduler's */
    struct list in_queue, in_flow;
    uint32_t rows_boarded, rows_done;
    bool held; /* for want of room in the quotas; in_queue: its session's held */
    bool gathered; /* for company; in_queue: its layer's gathered */
    enum gemmd_status status;
};

/* ---- scans ----------------------------------------------------------------------------------- */

struct scheduler_member {
    struct scheduler_job *job;
    uint32_t first_row, rows, panels_left;
    uint32_t place; /* the caller's; goes where the member goes */
    bool is_free;   /* a seat that costs next to nothing, taken without credit */
};

struct scheduler_scan {
    struct scheduler_layer *layer; /* NULL: unused */
    struct scheduler_queue *leader;
    uint32_t index;            /* 0 … SCHEDULER_SCANS - 1 */
    uint32_t position;         /* next panel */
    uint32_t panels_now;       /* scheduler_next: how many to run, from position on, circularly */
    uint64_t panels_run;       /* since it started */
    uint32_t rows, member_count;
    bool changed;              /* members differ from what the caller knows; the caller clears it */
    /* By the time of boarding: panels_left ascends. */
    struct scheduler_member members[SCHEDULER_ROWS_MAX];
};

/* Long scans: of each class, and one that trails another (trail.c); and one of short jobs. */
#define SCHEDULER_LONG_SCANS 4
#define SCHEDULER_SCANS (SCHEDULER_LONG_SCANS + 1)

struct scheduler_config {
    uint32_t sessions_max;
    uint32_t threads;    /* that run a scan */
    uint32_t user_quota; /* jobs admitted of one user; see SCHEDULER_RESERVE */
    bool alone;          /* no coalescing: one job per scan (to measure what it brings) */
};

struct scheduler {
    struct scheduler_config config;
    struct list ready[SCHEDULER_CLASS_COUNT]; /* queues with credit */
    struct list spent[SCHEDULER_CLASS_COUNT];
    struct list gathering; /* layers whose window is open */
    struct list done;
    uint64_t round;
    uint64_t served_ns; /* services since scheduler_next */
    uint32_t waiting; /* jobs */
    uint32_t linked;  /* queues */
    struct scheduler_scan scans[SCHEDULER_SCANS];
    struct scheduler_user *users; /* sessions_max */
};

/* 0 or -ENOMEM. */
int scheduler_init(struct scheduler *scheduler, const struct scheduler_config *config);
void scheduler_fini(struct scheduler *scheduler);

/* weight 1 … SCHEDULER_WEIGHT_MAX; quota: jobs admitted. */
void scheduler_add_session(struct scheduler *scheduler, struct scheduler_session *session,
                           uint32_t uid, uint32_t weight, uint32_t quota);
/* Its jobs have been withdrawn. */
void scheduler_remove_session(struct scheduler *scheduler, struct scheduler_session *session);

/* tile_ns: a guess for one tile of rows over one panel; the truth is learned. */
void scheduler_init_layer(struct scheduler_layer *layer, uint32_t panels, uint32_t tile_rows,
                          uint64_t tile_ns);
/* A scan of the layer takes no more than so many rows on board, at least a tile; and a short one no
 * more than rows_short, since these are to be made first. */
void scheduler_limit_rows(struct scheduler_layer *layer, uint32_t rows, uint32_t rows_short);
void scheduler_init_flow(struct scheduler_flow *flow, struct scheduler_session *session,
                         struct scheduler_layer *layer);

/* Does any other session have jobs that wait or run?  While it is so, what the dispatcher does for
 * this one (takes, refuses, cancels, wakes) is its to pay, and no more is taken from it in a round
 * than its quantum pays for: work that is charged afterwards would have been done. */
bool scheduler_has_others(const struct scheduler *scheduler,
                          const struct scheduler_session *session);
bool scheduler_has_renewed(const struct scheduler *scheduler, struct scheduler_session *session);
static inline bool scheduler_may_take(const struct scheduler *scheduler,
                                      struct scheduler_session *session)
{
    return session->service.credit_ns > 0 || scheduler_has_renewed(scheduler, session);
}
/* So much of it.  served_ns: the scheduler's before that; jobs taken and wakes since then have paid
 * for themselves. */
void scheduler_charge_service(struct scheduler *scheduler, struct scheduler_session *session,
                              uint64_t ns, uint64_t served_ns);

/* Would the session's next job be admitted, or held until others have ended?  Held ones are not
 * left in the ring, where they would keep cancels from being seen. */
bool scheduler_has_room(const struct scheduler *scheduler, const struct scheduler_session *session);
void scheduler_submit(struct scheduler *scheduler, struct scheduler_job *job);

/* The scan to run now, or NULL.  Jobs past their deadline go to the done list. */
struct scheduler_scan *scheduler_next(struct scheduler *scheduler, uint64_t now_ns);
/* In the middle of a slice of a long scan: the short one that would go first if the slice ended, or
 * NULL.  It runs whole (scheduler_ran), and nothing of long scans is touched.  No round begins, so
 * what goes before the slice is at most the credit of all, and a scan of each. */
struct scheduler_scan *scheduler_next_short(struct scheduler *scheduler, uint64_t now_ns);
/* `ns` of compute went into rows that have just come on board, before any panel was run: charged to
 * them, not learned from. */
void scheduler_prepared(struct scheduler *scheduler, struct scheduler_scan *scan, uint64_t ns);
/* `panels` of scan->panels_now were run in `ns` of compute (all threads together). */
void scheduler_ran(struct scheduler *scheduler, struct scheduler_scan *scan, uint32_t panels,
                   uint64_t ns);

/* Is any job waiting, gathering or on its way? */
static inline bool scheduler_has_work(const struct scheduler *scheduler)
{
    return scheduler->linked || !list_is_empty(&scheduler->gathering);
}

/* Next finished job (its status is set; it is in flight no more), or NULL. */
struct scheduler_job *scheduler_take_done(struct scheduler *scheduler);

/* Between slices: ends an unfinished job with `status`, whether it waits or runs; it goes to the
 * done list. */
void scheduler_withdraw(struct scheduler *scheduler, struct scheduler_job *job,
                        enum gemmd_status status);

/* The learned cost of `rows` over `panels`. */
uint64_t scheduler_estimate_ns(const struct scheduler_layer *layer, uint32_t rows, uint32_t panels);

/* ---- between scheduler.c and scan.c ---------------------------------------------------------- */

void scheduler_finish(struct scheduler *scheduler, struct scheduler_job *job,
                      enum gemmd_status status);
void scheduler_link_queue(struct scheduler *scheduler, struct scheduler_queue *queue);
void scheduler_unlink_idle_queue(struct scheduler *scheduler, struct scheduler_queue *queue);
void scheduler_charge(struct scheduler *scheduler, struct scheduler_queue *queue, uint64_t ns);
/* Out of queue and flow: no row is left to board. */
void scheduler_unlink_job(struct scheduler *scheduler, struct scheduler_job *job);
static inline bool scheduler_has_expired(const struct scheduler_job *job, uint64_t now_ns)
{
    return job->deadline_ns && now_ns >= job->deadline_ns && job->rows_boarded == 0;
}

static inline struct scheduler_queue *scheduler_queue_of(const struct scheduler_job *job)
{
    return &job->flow->session->queues[job->class];
}

/* Admits the job, or holds it for want of room. */
void scheduler_enter(struct scheduler *scheduler, struct scheduler_job *job);

/* window.c: true when the job stays to gather, or has gone on with all that did. */
bool window_keep(struct scheduler *scheduler, struct scheduler_job *job);
/* The layer's jobs that gather go on. */
void window_close(struct scheduler *scheduler, struct scheduler_layer *layer);
void window_close_due(struct scheduler *scheduler, uint64_t now_ns);
/* A job that ends while it gathers. */
void window_leave(struct scheduler_job *job);

/* trail.c: its session goes from its last layer to this one. */
void trail_learn(struct scheduler_flow *flow);
/* The layer to run before that of the flow; NULL: none.  Its speaker is to lead the scan. */
struct scheduler_layer *trail_find(const struct scheduler *scheduler,
                                   const struct scheduler_flow *flow, enum scheduler_class class);
struct scheduler_queue *trail_speaker(const struct scheduler_layer *layer,
                                      enum scheduler_class class);

struct scheduler_scan *scan_start(struct scheduler *scheduler, struct scheduler_layer *layer,
                                  struct scheduler_queue *leader, bool is_short);
/* Takes on board: first the oldest job of `queue` if it is for this layer, then whoever waits.
 * Sets panels_now.  False: nobody is on board, and the scan has ended. */
bool scan_prepare(struct scheduler *scheduler, struct scheduler_scan *scan,
                  struct scheduler_queue *queue, uint64_t now_ns);
void scan_drop_job(struct scheduler *scheduler, struct scheduler_scan *scan,
                   const struct scheduler_job *job);

#endif
