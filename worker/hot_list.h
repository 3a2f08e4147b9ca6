/*
 * Which sessions the dispatcher polls.
 *
 *   hot session    its next submission slot is read each turn
 *   cold session   its doorbell is armed; costs nothing until its client rings
 *
 * A session without a job for as long as proto/spin.h says (spin_ns at most) is cooled: arm the
 * doorbell, fence, look once more (proto/ring.h, edge D).  Dispatcher thread only; knows nothing of
 * how the thread sleeps.
 */
#ifndef GEMMD_WORKER_HOT_LIST_H
#define GEMMD_WORKER_HOT_LIST_H

#include <stdint.h>

#include "proto/stats.h"
#include "worker/session.h"

/* Longest sleep, and the period of the sweep over cold rings that must never find a job. */
#define HOT_LIST_SWEEP_NS UINT64_C(100000000)

struct hot_list {
    struct session **sessions; /* by slot; NULL: free */
    struct session **hot;      /* the first hot_count */
    uint32_t sessions_max, hot_count;
    uint64_t spin_ns; /* 0: cool at the first turn without a job */
    uint64_t swept_ns;
    struct gemmd_stats_page *stats;
};

/* 0 or -ENOMEM. */
int hot_list_init(struct hot_list *list, uint32_t sessions_max, uint64_t spin_ns,
                  struct gemmd_stats_page *stats);
void hot_list_fini(struct hot_list *list);

/* A new session, cold: its ring came into being with the doorbell armed. */
void hot_list_add(struct hot_list *list, struct session *session);
/* Forgets it; nothing of it is touched afterwards. */
void hot_list_remove(struct hot_list *list, struct session *session);
/* Polled from now on; no effect on a hot one. */
void hot_list_heat(struct hot_list *list, struct session *session);

/* The look at the clock of every few turns: cools what was idle for spin_ns, and sweeps the cold
 * rings each HOT_LIST_SWEEP_NS. */
void hot_list_tick(struct hot_list *list, uint64_t now_ns);

#endif
