/*
 * The dispatcher: one pinned thread that polls the rings of hot sessions, executes their jobs, and
 * sleeps in exactly one place.
 * Hot and cold sessions: worker/hot_list.h.  When none is hot, the thread sleeps in
 * event_loop_wait.
 */
#ifndef GEMMD_WORKER_DISPATCHER_H
#define GEMMD_WORKER_DISPATCHER_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/stats.h"
#include "worker/mailbox.h"

struct dispatcher;

struct dispatcher_config {
    int cpu;                 /* pinned here */
    cpu_set_t team_cpus;     /* one compute thread on each; without `cpu` */
    int64_t spin_ns;         /* 0: never spin */
    bool alone;              /* no coalescing */
    uint32_t verify_every;   /* check one job in so many; 0: none */
    struct trace *trace;     /* NULL: none */
    int event_level_forced;  /* -1: the best that works */
    uint32_t sessions_max;
    struct mailbox *mailbox;
    struct gemmd_stats_page *stats;
    int violation_fd;        /* eventfd, written when a session's ring.violation was set */
};

/* Starts the thread and waits until its event loop stands.  0 or -errno; *out is NULL then. */
int dispatcher_open(struct dispatcher **out, const struct dispatcher_config *config);

/* Stops the thread (MAILBOX_STOP) and frees.  Accepts NULL; *dispatcher becomes NULL. */
void dispatcher_close(struct dispatcher **dispatcher);

/* Control thread, each second: threads whose pinning a cpuset change undid are pinned again.  How
 * many; -errno when one cannot be. */
int dispatcher_repin(struct dispatcher *dispatcher);

/* "F0" … "F3", and what start-up had to do without ("" = nothing).  Static while it is open. */
const char *dispatcher_event_level(const struct dispatcher *dispatcher);
const char *dispatcher_lost(const struct dispatcher *dispatcher);

#endif
