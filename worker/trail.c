/*
 * Groups that walk through the same layers.  Clients of one model that come at any time fall into
 * two groups at different layers, one of which computes while the other sends its next jobs; taking
 * turns they never meet, and each runs every layer for itself.  So the group that trails goes
 * first, also in the middle of the other's scan, until they stand at the same layer; from there on
 * they share every scan.
 *
 * Nobody waits for a timer: something runs all the time.  Nobody loses share: what goes first is
 * charged like all else, and owes what it took beyond its credit, SCHEDULER_AHEAD_NS at most.
 */
#include "worker/scheduler.h"

/* Tests build schedulers with a fault each and show that the simulation finds it; never defined
 * otherwise. */
#ifndef SCHEDULER_MUTANT
#define SCHEDULER_MUTANT 0
#endif

/* Layers looked ahead: 64 take less than 1 us. */
#define HOPS_MAX 64

void trail_learn(struct scheduler_flow *flow)
{
    struct scheduler_session *session = flow->session;

    if (session->last && session->last != flow)
        session->last->next = flow;
    session->last = flow;
}

/* Who leads the layer's next slice, if that is long and of this class. */
struct scheduler_queue *trail_speaker(const struct scheduler_layer *layer,
                                      enum scheduler_class class)
{
    struct scheduler_queue *queue = NULL;
    struct list *link = list_first(&layer->flows);

    if (layer->scan) {
        queue = layer->scan->leader;
    } else if (link) {
        const struct scheduler_flow *flow = LIST_ENTRY(link, struct scheduler_flow, link);
        const struct scheduler_job *job =
            LIST_ENTRY(list_first(&flow->jobs), struct scheduler_job, in_flow);

        if (job->rows - job->rows_boarded > layer->rows_short)
            queue = scheduler_queue_of(job);
    }
    return queue && queue->class == class ? queue : NULL;
}

/* Along the way that the flow's session is used to go stand all groups that it can meet.  The one
 * with the fewest layers to the next is to run: that makes the distance smaller, so it stays the
 * choice until they have met. */
struct scheduler_layer *trail_find(const struct scheduler *scheduler,
                                   const struct scheduler_flow *flow, enum scheduler_class class)
{
    const struct scheduler_flow *at = flow;
    struct scheduler_layer *last = flow->layer, *best = NULL;
    uint32_t last_hop = 0, distance = UINT32_MAX;
    const struct scheduler_queue *queue;

    if (scheduler->config.alone || SCHEDULER_MUTANT == 8) /* nobody goes first */
        return NULL;
    for (uint32_t hop = 1; hop <= HOPS_MAX; hop++) {
        at = at->next;
        if (!at || !at->layer)
            break;
        if (at->layer != flow->layer && !trail_speaker(at->layer, class))
            continue;
        if (hop - last_hop < distance) {
            distance = hop - last_hop;
            best = SCHEDULER_MUTANT == 9 ? at->layer : last; /* the one that is ahead */
        }
        if (at->layer == flow->layer)
            break; /* once round */
        last = at->layer;
        last_hop = hop;
    }
    if (!best || best == flow->layer)
        return NULL;
    queue = trail_speaker(best, class);
    return queue->session != flow->session && queue->account->credit_ns > -SCHEDULER_AHEAD_NS
               ? best
               : NULL;
}
