/*
 * The window of a layer: its jobs may wait for company, for so long and no longer.  Off unless the
 * operator gave the layer one: coalescing is by what waits anyway, and a window only pays where
 * clients come in bursts that a scan of theirs is too short to catch.
 *
 * It opens with a job that would find nobody, and closes when its time is over, when the rows fill
 * a scan, and when somebody comes who cannot wait: a latency job, or one whose deadline is nearer.
 * All that has gathered goes on then, in the order it came.
 */
#include "worker/scheduler.h"

/* Tests build schedulers with a fault each and show that the simulation finds it; never defined
 * otherwise. */
#ifndef SCHEDULER_MUTANT
#define SCHEDULER_MUTANT 0
#endif

void window_close(struct scheduler *scheduler, struct scheduler_layer *layer)
{
    struct list *link;

    if (!list_is_linked(&layer->gathering))
        return;
    list_unlink(&layer->gathering); /* first: those who go on close it, too */
    layer->gathered_rows = 0;
    while ((link = list_first(&layer->gathered))) {
        struct scheduler_job *job = LIST_ENTRY(link, struct scheduler_job, in_queue);

        list_unlink(link);
        job->gathered = false;
        scheduler_enter(scheduler, job);
    }
}

void window_close_due(struct scheduler *scheduler, uint64_t now_ns)
{
    for (struct list *link = scheduler->gathering.next, *next; link != &scheduler->gathering;
         link = next) {
        struct scheduler_layer *layer = LIST_ENTRY(link, struct scheduler_layer, gathering);

        next = link->next;
        if (now_ns >= layer->due_ns)
            window_close(scheduler, layer);
    }
}

void window_leave(struct scheduler_job *job)
{
    struct scheduler_layer *layer = job->flow->layer;

    list_unlink(&job->in_queue);
    layer->gathered_rows -= job->rows;
    if (list_is_empty(&layer->gathered))
        list_unlink(&layer->gathering);
}

bool window_keep(struct scheduler *scheduler, struct scheduler_job *job)
{
    struct scheduler_layer *layer = job->flow->layer;
    bool is_open = list_is_linked(&layer->gathering);
    uint64_t due_ns = is_open ? layer->due_ns : job->seen_ns + layer->window_ns;

    if (layer->window_ns == 0 || scheduler->config.alone || layer->scan || layer->waiting ||
        (job->class == SCHEDULER_LATENCY && SCHEDULER_MUTANT != 10) || /* 10: the hasty wait */
        (job->deadline_ns && job->deadline_ns <= due_ns))
        return false;
    job->gathered = true;
    list_append(&layer->gathered, &job->in_queue);
    layer->gathered_rows += job->rows;
    if (!is_open) {
        layer->due_ns = due_ns;
        list_append(&scheduler->gathering, &layer->gathering);
    }
    if (layer->gathered_rows >= layer->rows_cap)
        window_close(scheduler, layer);
    return true;
}
