/*
 * One client: its segments, its rings, its open layers.
 *
 * Two threads meet here, each with its own part.  The control thread owns the connection and the
 * segments; between MAILBOX_ATTACH and the answer to MAILBOX_DETACH the dispatcher owns `ring`,
 * and reads what it needs of the rest, which does not change in that time.
 */
#ifndef GEMMD_WORKER_SESSION_H
#define GEMMD_WORKER_SESSION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/control.h"
#include "proto/ring.h"
#include "proto/spin.h"
#include "proto/status.h"
#include "worker/histogram.h"
#include "worker/layers.h"
#include "worker/scheduler.h"
#include "worker/segment.h"

/* A layer opened by a session: what layer_id indexes.  The control thread opens an entry by itself:
 * `gen`, then `layer` with release, which the dispatcher loads with acquire when a job names it.
 * MAILBOX_CLOSE_LAYER alone ends one, since jobs may be on it. */
struct session_layer {
    struct layer *layer; /* NULL: closed */
    uint32_t gen;        /* counts the openings of this entry; never 0 for an open one */
    uint32_t flow_gen;   /* the dispatcher's: the opening that `flow` was set up for */
    struct scheduler_flow flow; /* the dispatcher's */
};

/* The control thread's: the entry is closed. */
static inline void session_layer_open(struct session_layer *entry, struct layer *layer,
                                      uint32_t gen)
{
    __atomic_store_n(&entry->gen, gen, __ATOMIC_RELAXED);
    __atomic_store_n(&entry->layer, layer, __ATOMIC_RELEASE);
}

/* A job in flight: the private, validated copy of its submission. */
struct job {
    struct scheduler_job scheduled;
    struct session_ring *ring;
    struct layer *layer; /* NULL: this entry of the table is free */
    const uint8_t *a;
    uint8_t *c;
    const uint8_t *residual; /* NULL: the layer has none; may be c */
    uint32_t a_stride_bytes, c_stride_bytes, residual_stride_bytes;
    uint64_t start_ns; /* 0: no row has run */
};

/* Submissions taken from a ring at each turn: long enough to spread the cost of a turn, short
 * enough that a session waits for at most this many empty jobs of each other one. */
#define SESSION_BATCH 16

/* The dispatcher's part. */
struct session_ring {
    struct gemmd_ring_end sq, cq;
    uint32_t cq_head_seen;
    uint32_t doorbell_epoch, last_woken;
    struct gemmd_doorbell_line *doorbell;
    struct gemmd_worker_line *worker_line;
    const struct gemmd_client_line *client_line;
    int wake_fd; /* atomic; eventfd of a client that waits with poll; -1: it waits on cq_futex */
    uint8_t *arena;
    uint64_t arena_bytes;
    struct scheduler_session scheduled;
    /* As many as the ring has entries. */
    struct job *jobs;
    uint64_t *user_data;     /* by job */
    uint32_t *jobs_free;     /* a stack */
    uint32_t jobs_free_count;
    bool hot;                     /* polled each turn; else its doorbell is armed */
    bool used;                    /* had a job since the clock was last read */
    bool rung;                    /* it was cold until then */
    bool stalled;                 /* its completion ring is full: waits for the client to reap */
    bool suspect;                 /* the last sweep found a job here, and no doorbell came since */
    bool touched;                 /* has completions that its client was not woken for */
    bool silent;                  /* is being detached: nothing is completed any more */
    uint64_t last_used_ns;
    struct gemmd_spin spin;       /* how long its pauses are */
    uint64_t spin_budget_ns;      /* of the pause it is in; 0: it is in none */
    enum gemmd_status violation;  /* set: to be ended by the control thread */
    uint32_t trace_id;
    /* counters: gemmd_counter_* */
    uint64_t jobs_done, jobs_failed, rows, exec_ns, doorbells, wakeups, deadline_misses, cancelled;
    struct histogram queue_histogram, exec_histogram;
    /* Opened by the control thread, closed by its orders: it may read them between these. */
    struct session_layer layers[GEMMD_SESSION_LAYERS_MAX];
};

/* True while submissions were taken from the ring and not all are completed. */
static inline bool session_ring_is_busy(const struct session_ring *ring)
{
    return ring->scheduled.in_flight != 0;
}

/* An upload of a layer's image. */
struct session_upload {
    struct gemmd_layer_desc_abi desc;
    struct gemmd_layer_image image;
    uint64_t content_id[2];
    char name[GEMMD_NAME_BYTES];
    uint8_t *data; /* image.bytes, private memory of the worker; NULL: no upload open */
    uint64_t received;
    uint64_t touched_ns; /* of its last piece */
};

struct session {
    uint32_t slot; /* index in the worker's table; the doorbell's event source */
    uint32_t id;   /* never 0, never reused */
    int fd;        /* control connection */
    int kick_fd;
    int wake_poll_fd; /* -1: not asked for; watches ring.wake_fd for the client */
    pid_t pid;     /* for display only: pids are reused */
    uid_t uid;
    uint32_t weight; /* in scheduling */
    enum gemmd_session_state state;
    bool control_only;
    bool attached; /* the dispatcher knows it */
    uint64_t connected_ns;
    uint32_t ring_entries;
    struct segment c2w, w2c, arena;
    struct session_upload upload;
    uint64_t commit_order;  /* its upload waits for the helper, the lowest first; 0: it does not */
    uint32_t commit_serial; /* of the request */
    uint32_t layer_count; /* open entries of ring.layers */
    struct session_ring ring;
};

/* Root and the worker's own user: may load, unload, pin and take over. */
bool session_is_operator(const struct session *session);

/* A session in state NEW on connection `fd` (owned from here on).  NULL: no memory. */
struct session *session_open(uint32_t slot, uint32_t id, int fd, pid_t pid, uid_t uid);

/* Creates, fills and populates the three segments and the doorbell.  OK, ARENA_NO_MEMORY or
 * NO_MEMORY; on failure nothing is left behind. */
enum gemmd_status session_create_segments(struct session *session, uint32_t ring_entries,
                                          uint64_t arena_bytes, uint32_t ring_start, int node);

/* The client has mapped its segments: seals them, verifies the seals, and fills holes made before
 * them.  OK, ARENA_NO_MEMORY (a hole that cannot be filled) or INTERNAL. */
enum gemmd_status session_seal(struct session *session);

/* The table of a ring's jobs in flight; part of session_create_segments.  False: no memory. */
bool session_make_jobs(struct session_ring *ring, uint32_t entries);
void session_free_jobs(struct session_ring *ring);

/* From here on the client is woken through a descriptor: session->wake_poll_fd, to be passed on
 * (GEMMD_MSG_WAKE_FD in proto/control.h).  No effect the second time.  0 or -errno. */
int session_open_wake(struct session *session);

/* Frees everything; the dispatcher must have let go.  Layers are the caller's to release first.
 * Accepts half-built sessions; *session becomes NULL. */
void session_close(struct session **session);

#endif
