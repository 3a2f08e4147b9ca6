/* Hot and cold sessions: the worker's side of edge D, and the sweep that proves it. */
#include "worker/hot_list.h"

#include <errno.h>
#include <stdlib.h>

#include "proto/ring.h"
#include "worker/clock.h"

int hot_list_init(struct hot_list *list, uint32_t sessions_max, uint64_t spin_ns,
                  struct gemmd_stats_page *stats)
{
    *list = (struct hot_list){.sessions_max = sessions_max,
                              .spin_ns = spin_ns,
                              .stats = stats,
                              .swept_ns = clock_now_ns()};
    list->sessions = calloc(sessions_max, sizeof(*list->sessions));
    list->hot = calloc(sessions_max, sizeof(*list->hot));
    if (list->sessions && list->hot)
        return 0;
    hot_list_fini(list);
    return -ENOMEM;
}

void hot_list_fini(struct hot_list *list)
{
    free(list->sessions);
    free(list->hot);
    *list = (struct hot_list){.sessions = NULL};
}

void hot_list_heat(struct hot_list *list, struct session *session)
{
    struct session_ring *ring = &session->ring;

    ring->suspect = false;
    ring->stalled = false;
    if (ring->hot)
        return;
    gemmd_doorbell_disarm(ring->doorbell);
    ring->hot = true;
    ring->used = ring->rung = true;
    list->hot[list->hot_count++] = session;
}

/* Takes the index-th hot session off the list; its place is filled by the last. */
static void drop(struct hot_list *list, uint32_t index)
{
    list->hot[index]->ring.hot = false;
    list->hot[index] = list->hot[--list->hot_count];
}

void hot_list_add(struct hot_list *list, struct session *session)
{
    list->sessions[session->slot] = session;
    session->ring.last_used_ns = clock_now_ns();
}

void hot_list_remove(struct hot_list *list, struct session *session)
{
    for (uint32_t i = 0; i < list->hot_count; i++)
        if (list->hot[i] == session) {
            drop(list, i);
            break;
        }
    list->sessions[session->slot] = NULL;
}

/* Arm, fence, look again.  False: there is a job after all. */
static bool cool(struct hot_list *list, uint32_t index)
{
    struct session_ring *ring = &list->hot[index]->ring;

    gemmd_doorbell_arm(ring->doorbell, &ring->doorbell_epoch);
    GEMMD_WORKER_FENCE(); /* pairs with the client's in gemmd_doorbell_wanted */
    if (!ring->stalled && gemmd_sq_ready(&ring->sq)) {
        gemmd_doorbell_disarm(ring->doorbell);
        ring->used = true;
        return false;
    }
    drop(list, index);
    ring->spin_budget_ns = 0;
    return true;
}

/* A pause ends: of a session that stayed hot, or whose doorbell rang. */
static void end_pause(struct hot_list *list, struct session_ring *ring, uint64_t now_ns, bool slept)
{
    if (ring->spin_budget_ns || slept)
        gemmd_spin_learn(&ring->spin, now_ns - ring->last_used_ns, slept, list->spin_ns);
    if (ring->spin_budget_ns && !slept)
        gemmd_counter_add(&list->stats->spins_hit, 1);
    ring->spin_budget_ns = 0;
    ring->last_used_ns = now_ns;
}

static void cool_idle(struct hot_list *list, uint64_t now_ns)
{
    for (uint32_t i = list->hot_count; i-- > 0;) {
        struct session_ring *ring = &list->hot[i]->ring;

        if (ring->used || session_ring_is_busy(ring)) {
            end_pause(list, ring, now_ns, ring->rung);
            ring->used = ring->rung = false;
            continue;
        }
        if (!ring->spin_budget_ns)
            ring->spin_budget_ns = 1 + gemmd_spin_budget(&ring->spin, list->spin_ns);
        if (now_ns - ring->last_used_ns < ring->spin_budget_ns && list->spin_ns)
            continue;
        if (cool(list, i) && list->spin_ns)
            gemmd_counter_add(&list->stats->spins_missed, 1);
    }
}

/* Looks at every cold ring.  A job that two sweeps in a row have seen, with no doorbell between,
 * was not announced: a lost wake-up, counted.  (One sweep may fall between a client's store and its
 * doorbell.) */
static void sweep(struct hot_list *list)
{
    for (uint32_t slot = 0; slot < list->sessions_max; slot++) {
        struct session *session = list->sessions[slot];
        struct session_ring *ring;

        if (!session || session->ring.hot || session->ring.violation)
            continue;
        ring = &session->ring;
        if (ring->stalled) {
            if (gemmd_cq_space(&ring->cq, &ring->cq_head_seen, ring->client_line) != 0)
                hot_list_heat(list, session); /* also a violation: serving finds it */
        } else if (!gemmd_sq_ready(&ring->sq)) {
            ring->suspect = false;
        } else if (!ring->suspect) {
            ring->suspect = true;
        } else {
            gemmd_counter_add(&list->stats->rescues, 1);
            hot_list_heat(list, session);
        }
    }
}

void hot_list_tick(struct hot_list *list, uint64_t now_ns)
{
    cool_idle(list, now_ns);
    if (now_ns - list->swept_ns < HOT_LIST_SWEEP_NS)
        return;
    list->swept_ns = now_ns;
    gemmd_counter_add(&list->stats->heartbeat, 1);
    sweep(list);
}
