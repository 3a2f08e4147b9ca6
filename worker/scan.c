/*
 * Scans: who boards, how long a slice is, who has arrived; and what a layer's work costs.
 *
 * Boarding goes round the flows of the layer, one job or part of one at each visit, so that a
 * session with hundreds of jobs waiting takes no more seats than one with a single job.  A rider
 * whose session has credit may fill the scan up to rows_cap; one without, or of a lower class than
 * the leader, takes free seats: up to rows_free, where the kernel computes its rows for next to
 * nothing.
 *
 * All time is charged, and nobody pays for what another adds: rows are made at their session's
 * expense, the panels are paid by those with credit as if they were alone, and free seats pay what
 * is left.  That may be more than nothing, so they are for sessions whose debt is small.
 */
#include <assert.h>
#include <string.h>

#include "worker/scheduler.h"

/* Tests build schedulers with a fault each and show that the simulation finds it; never defined
 * otherwise. */
#ifndef SCHEDULER_MUTANT
#define SCHEDULER_MUTANT 0
#endif

/* A part of a long job at each visit: an eighth of the seats. */
#define PARTS 8
/* Flows passed over at a boarding before it is left at that. */
#define REFUSALS_MAX 64
/* Lessons between two reckonings of the row limits. */
#define LESSONS 32
/* The most that a slice can cost of what it was expected to. */
#define DEAR 2
/* rows_free: as many rows as cost up to 5/4 of one tile. */
#define FREE_NUMERATOR 5
#define FREE_DENOMINATOR 4

/* ---- cost ------------------------------------------------------------------------------------ */

static uint32_t tiles_of(const struct scheduler_layer *layer, uint32_t rows)
{
    return (rows + layer->tile_rows - 1) / layer->tile_rows;
}

/* 1, 2, 3-4, 5-8, … */
static uint32_t bucket_of(uint32_t tiles)
{
    uint32_t bucket = tiles <= 1 ? 0 : 32 - (uint32_t)__builtin_clz(tiles - 1);

    return bucket < SCHEDULER_COST_BUCKETS ? bucket : SCHEDULER_COST_BUCKETS - 1;
}

uint64_t scheduler_estimate_ns(const struct scheduler_layer *layer, uint32_t rows, uint32_t panels)
{
    uint32_t tiles = tiles_of(layer, rows);

    return layer->cost[bucket_of(tiles)] * tiles * panels / 16;
}

/* The most rows of whose tiles `panels` panels cost at most budget_ns; 0 when one tile is too dear.
 */
static uint32_t rows_for(const struct scheduler_layer *layer, uint32_t panels, uint64_t budget_ns)
{
    for (uint32_t bucket = SCHEDULER_COST_BUCKETS; bucket-- > 0;) {
        uint64_t tiles = budget_ns * 16 / (layer->cost[bucket] * panels);
        uint64_t least = bucket ? (UINT64_C(1) << (bucket - 1)) + 1 : 1;
        uint64_t most = UINT64_C(1) << bucket;

        if (tiles < least)
            continue;
        if (tiles > most && bucket < SCHEDULER_COST_BUCKETS - 1)
            tiles = most;
        tiles *= layer->tile_rows;
        return tiles > SCHEDULER_ROWS_MAX ? SCHEDULER_ROWS_MAX : (uint32_t)tiles;
    }
    return 0;
}

static void reckon_limits(struct scheduler_layer *layer)
{
    uint64_t tile_ns = layer->cost[0] * layer->panels / 16 + 1;

    layer->rows_free =
        rows_for(layer, layer->panels, tile_ns * FREE_NUMERATOR / FREE_DENOMINATOR + 1);
    if (layer->rows_free < layer->tile_rows)
        layer->rows_free = layer->tile_rows;
    layer->rows_cap = rows_for(layer, 1, SCHEDULER_PANEL_NS);
    if (layer->rows_cap < layer->rows_free)
        layer->rows_cap = layer->rows_free;
    layer->rows_short = rows_for(layer, layer->panels, SCHEDULER_SLICE_NS);
    if (layer->rows_free > layer->rows_max)
        layer->rows_free = layer->rows_max;
    if (layer->rows_cap > layer->rows_max)
        layer->rows_cap = layer->rows_max;
    if (layer->rows_short > layer->rows_short_max && SCHEDULER_MUTANT != 11) /* made for long */
        layer->rows_short = layer->rows_short_max;
}

/* Sizes that were never run cost what the next smaller (else larger) one does.  More rows make a
 * tile cheaper, or a little dearer where they leave the cache: a size that was once measured on a
 * bad day must not look so dear that it is never run again. */
static void straighten(struct scheduler_layer *layer)
{
    uint64_t known = layer->cost[__builtin_ctz(layer->measured)];

    for (uint32_t i = 0; i < SCHEDULER_COST_BUCKETS; i++) {
        if (!(layer->measured & (1u << i)))
            layer->cost[i] = known;
        if (i && layer->cost[i] > known + known / 2)
            layer->cost[i] = known + known / 2;
        known = layer->cost[i];
    }
}

/* A moving average that falls faster than it rises: a cold cache, a page fault and a lost CPU only
 * ever make a sample too large, and then it counts for at most twice what was known. */
static void learn(struct scheduler_layer *layer, uint32_t rows, uint32_t panels, uint64_t ns)
{
    uint32_t tiles = tiles_of(layer, rows), bucket = bucket_of(tiles);
    uint64_t sample = ns * 16 / ((uint64_t)tiles * panels) + 1;
    uint64_t *cost = &layer->cost[bucket];

    if (!(layer->measured & (1u << bucket))) {
        layer->measured |= 1u << bucket;
        layer->lessons = 0;
        *cost = sample;
    } else if (sample < *cost) {
        *cost -= (*cost - sample + 3) / 4;
    } else {
        *cost += ((sample < *cost * 2 ? sample : *cost * 2) - *cost + 7) / 8;
    }
    if (layer->lessons++ % LESSONS == 0) {
        straighten(layer);
        reckon_limits(layer);
    }
}

void scheduler_init_layer(struct scheduler_layer *layer, uint32_t panels, uint32_t tile_rows,
                          uint64_t tile_ns)
{
    *layer = (struct scheduler_layer){
        .panels = panels,
        .tile_rows = tile_rows,
        .rows_max = SCHEDULER_ROWS_MAX,
        .rows_short_max = SCHEDULER_ROWS_MAX,
    };
    list_init(&layer->flows);
    list_init(&layer->gathered);
    for (uint32_t i = 0; i < SCHEDULER_COST_BUCKETS; i++)
        layer->cost[i] = tile_ns * 16 + 1;
    reckon_limits(layer);
}

void scheduler_limit_rows(struct scheduler_layer *layer, uint32_t rows, uint32_t rows_short)
{
    assert(rows >= layer->tile_rows && rows <= SCHEDULER_ROWS_MAX && rows_short <= rows);
    layer->rows_max = rows;
    layer->rows_short_max = rows_short;
    reckon_limits(layer);
}

/* ---- beginning and end ----------------------------------------------------------------------- */

static void set_leader(struct scheduler *scheduler, struct scheduler_scan *scan,
                       struct scheduler_queue *queue)
{
    struct scheduler_queue *old = scan->leader;

    if (old == queue)
        return;
    scan->leader = queue;
    if (queue) {
        queue->leads++;
        scheduler_link_queue(scheduler, queue);
    }
    if (old) {
        old->leads--;
        scheduler_unlink_idle_queue(scheduler, old);
    }
}

struct scheduler_scan *scan_start(struct scheduler *scheduler, struct scheduler_layer *layer,
                                  struct scheduler_queue *leader, bool is_short)
{
    struct scheduler_scan *scan = &scheduler->scans[SCHEDULER_LONG_SCANS];

    if (!is_short) {
        scan = scheduler->scans;
        while (scan->layer)
            scan++;
        assert(scan->index < SCHEDULER_LONG_SCANS);
        layer->scan = scan;
    }
    assert(!scan->layer);
    scan->layer = layer;
    scan->leader = NULL;
    scan->position = scan->rows = scan->member_count = 0;
    scan->panels_run = 0;
    scan->changed = true;
    set_leader(scheduler, scan, leader);
    return scan;
}

/* After members have left: another leader, or the end. */
static void settle(struct scheduler *scheduler, struct scheduler_scan *scan)
{
    uint32_t i = 0;

    if (scan->member_count == 0) {
        if (scan->layer->scan == scan)
            scan->layer->scan = NULL;
        scan->layer = NULL;
        set_leader(scheduler, scan, NULL);
        return;
    }
    while (i < scan->member_count && scheduler_queue_of(scan->members[i].job) != scan->leader)
        i++;
    if (i == scan->member_count)
        set_leader(scheduler, scan, scheduler_queue_of(scan->members[0].job));
}

void scan_drop_job(struct scheduler *scheduler, struct scheduler_scan *scan,
                   const struct scheduler_job *job)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < scan->member_count; i++)
        if (scan->members[i].job == job)
            scan->rows -= scan->members[i].rows;
        else
            scan->members[kept++] = scan->members[i];
    if (kept == scan->member_count || SCHEDULER_MUTANT == 4) /* the withdrawn stay on board */
        return;
    scan->member_count = kept;
    scan->changed = true;
    settle(scheduler, scan);
}

/* ---- boarding -------------------------------------------------------------------------------- */

static bool is_short(const struct scheduler_scan *scan)
{
    return scan->index == SCHEDULER_LONG_SCANS;
}

/* Seats left: for a queue that may fill the scan, or for one that may take what is free. */
static uint32_t seats(const struct scheduler_scan *scan, bool may_fill)
{
    const struct scheduler_layer *layer = scan->layer;
    uint32_t limit = is_short(scan) ? layer->rows_short : layer->rows_cap;

    if (!may_fill && limit > layer->rows_free && SCHEDULER_MUTANT != 3) /* no credit, all seats */
        limit = layer->rows_free;
    return limit > scan->rows ? limit - scan->rows : 0;
}

static void board(struct scheduler *scheduler, struct scheduler_scan *scan,
                  struct scheduler_job *job, uint32_t rows, bool is_free)
{
    struct scheduler_member *last = scan->members + scan->member_count - 1;

    if (rows > job->rows - job->rows_boarded)
        rows = job->rows - job->rows_boarded;
    if (scan->member_count && last->job == job && last->is_free == is_free &&
        last->panels_left == scan->layer->panels)
        last->rows += rows;
    else
        scan->members[scan->member_count++] = (struct scheduler_member){
            .job = job,
            .first_row = job->rows_boarded,
            .rows = rows,
#if SCHEDULER_MUTANT == 2 /* gets off where the scan began, not where it got on */
            .panels_left = scan->layer->panels - scan->position,
#else
            .panels_left = scan->layer->panels,
#endif
            .is_free = is_free,
        };
    scan->rows += rows;
    scan->changed = true;
    job->rows_boarded += rows;
    if (job->rows_boarded == job->rows)
        scheduler_unlink_job(scheduler, job);
}

/* One visit: true when the flow's oldest job, or a part of it, boarded or expired. */
static bool visit(struct scheduler *scheduler, struct scheduler_scan *scan,
                  struct scheduler_flow *flow, uint64_t now_ns)
{
    struct scheduler_job *job =
        LIST_ENTRY(list_first(&flow->jobs), struct scheduler_job, in_flow);
    const struct scheduler_queue *queue = scheduler_queue_of(job);
    int64_t credit_ns = queue->account->credit_ns;
    bool may_fill = credit_ns > 0 && queue->class <= scan->leader->class;
    uint32_t part = scan->layer->rows_cap / PARTS, rows = seats(scan, may_fill);

    if (credit_ns <= -SCHEDULER_AHEAD_NS && SCHEDULER_MUTANT != 12) /* any debt */
        return false;
    if (scheduler_has_expired(job, now_ns)) {
        scheduler_finish(scheduler, job, GEMMD_STATUS_DEADLINE);
        return true;
    }
    if (rows == 0)
        return false;
    if (part < scan->layer->tile_rows)
        part = scan->layer->tile_rows;
    board(scheduler, scan, job, rows < part ? rows : part, !may_fill);
    return true;
}

/* Round the flows until none boards. */
static void board_riders(struct scheduler *scheduler, struct scheduler_scan *scan, uint64_t now_ns)
{
    struct scheduler_layer *layer = scan->layer;
    const struct scheduler_flow *refused = NULL; /* the first since the last success */
    uint32_t refusals = 0;

    while (!list_is_empty(&layer->flows) && refusals < REFUSALS_MAX) {
        struct scheduler_flow *flow =
            LIST_ENTRY(list_first(&layer->flows), struct scheduler_flow, link);

        if (flow == refused)
            break;
        list_unlink(&flow->link);
        list_append(&layer->flows, &flow->link);
        if (visit(scheduler, scan, flow, now_ns)) {
            refused = NULL;
            refusals = 0;
        } else {
            if (!refused)
                refused = flow;
            refusals++;
        }
    }
}

/* While other layers wait, a scan takes nobody on board after some rounds, and so ends. */
static bool is_boarding(const struct scheduler *scheduler, const struct scheduler_scan *scan)
{
    return scheduler->waiting == scan->layer->waiting ||
           scan->panels_run < (uint64_t)SCHEDULER_BOARDING_ROUNDS * scan->layer->panels;
}

/* The oldest job of the queue whose turn it is goes first, and lends the scan its class. */
static void board_turn(struct scheduler *scheduler, struct scheduler_scan *scan,
                       struct scheduler_queue *queue, uint64_t now_ns)
{
    struct list *link = list_first(&queue->jobs);
    struct scheduler_job *job;
    uint32_t rows;

    if (!link)
        return;
    job = LIST_ENTRY(link, struct scheduler_job, in_queue);
    rows = seats(scan, true);
    if (job->flow->layer != scan->layer || rows == 0 || scheduler_has_expired(job, now_ns))
        return;
    if (queue->class < scan->leader->class)
        set_leader(scheduler, scan, queue);
    if (!is_short(scan) && !scheduler->config.alone && rows >= 2)
        rows /= 2; /* the riders' turn comes, too */
    board(scheduler, scan, job, rows, false);
}

bool scan_prepare(struct scheduler *scheduler, struct scheduler_scan *scan,
                  struct scheduler_queue *queue, uint64_t now_ns)
{
    uint32_t slice;

    if (scheduler->config.alone ? scan->member_count == 0 : is_boarding(scheduler, scan)) {
        board_turn(scheduler, scan, queue, now_ns);
        if (!scheduler->config.alone && scan->layer->waiting)
            board_riders(scheduler, scan, now_ns);
    }
    if (scan->member_count == 0) {
        settle(scheduler, scan);
        return false;
    }
    slice = scan->members[0].panels_left;
    if (!is_short(scan) && scheduler->linked > 1) {
        uint64_t panel_ns = scheduler_estimate_ns(scan->layer, scan->rows, 1) + 1;
        uint64_t affordable = SCHEDULER_SLICE_NS * scheduler->config.threads / panel_ns + 1;

        if (slice > affordable)
            slice = (uint32_t)affordable;
    }
    scan->panels_now = slice;
    return true;
}

/* ---- progress -------------------------------------------------------------------------------- */

/* Of `ns` that `rows` share. */
static void charge(struct scheduler *scheduler, const struct scheduler_member *member, uint64_t ns,
                   uint32_t rows)
{
    scheduler_charge(scheduler, scheduler_queue_of(member->job),
                     (ns * member->rows + rows - 1) / rows); /* nothing is for nothing */
}

/* For panels.  Free seats pay what they add to the rest; all of it where there is no rest. */
static void charge_members(struct scheduler *scheduler, struct scheduler_scan *scan, uint64_t ns)
{
    const struct scheduler_layer *layer = scan->layer;
    uint64_t alone_ns, all_ns, paid_ns = ns;
    uint32_t free_rows = 0;

    for (uint32_t i = 0; i < scan->member_count; i++)
        free_rows += scan->members[i].is_free ? scan->members[i].rows : 0;
    if (free_rows == scan->rows)
        free_rows = 0;
    if (free_rows) {
        alone_ns = scheduler_estimate_ns(layer, scan->rows - free_rows, layer->panels);
        all_ns = scheduler_estimate_ns(layer, scan->rows, layer->panels);
        paid_ns = alone_ns < all_ns ? ns * alone_ns / all_ns : ns;
    }
    for (uint32_t i = 0; i < scan->member_count; i++) {
        const struct scheduler_member *member = &scan->members[i];

        if (free_rows && member->is_free)
            charge(scheduler, member, ns - paid_ns, free_rows);
        else
            charge(scheduler, member, paid_ns, scan->rows - free_rows);
    }
}

/* Those who have seen every panel: the first ones. */
static uint32_t arrive(struct scheduler *scheduler, struct scheduler_scan *scan, uint32_t panels)
{
    uint32_t arrived = 0;

    for (uint32_t i = 0; i < scan->member_count; i++) {
        struct scheduler_member *member = &scan->members[i];

        member->panels_left -= panels;
        if (member->panels_left)
            continue;
        arrived++;
        scan->rows -= member->rows;
        member->job->rows_done += member->rows;
        if (member->job->rows_done == member->job->rows)
            scheduler_finish(scheduler, member->job, GEMMD_STATUS_OK);
    }
    return arrived;
}

/* Whom the dispatcher served in the middle of a long scan's slice has paid for that. */
static uint64_t less_served(struct scheduler *scheduler, const struct scheduler_scan *scan,
                           uint64_t ns)
{
    uint64_t served_ns = scheduler->served_ns;

    if (is_short(scan))
        return ns;
    scheduler->served_ns = 0;
    return served_ns < ns ? ns - served_ns : 0;
}

void scheduler_prepared(struct scheduler *scheduler, struct scheduler_scan *scan, uint64_t ns)
{
    uint32_t panels = scan->layer->panels, made = 0;

    ns = less_served(scheduler, scan, ns);
    for (uint32_t i = 0; i < scan->member_count; i++)
        if (scan->members[i].panels_left == panels)
            made += scan->members[i].rows;
    for (uint32_t i = 0; i < scan->member_count; i++)
        if (scan->members[i].panels_left == panels)
            charge(scheduler, &scan->members[i], ns, made);
}

void scheduler_ran(struct scheduler *scheduler, struct scheduler_scan *scan, uint32_t panels,
                   uint64_t ns)
{
    struct scheduler_layer *layer = scan->layer;
    uint64_t dear_ns = DEAR * scheduler_estimate_ns(layer, scan->rows, panels) + 1, own_ns;
    uint32_t arrived;

    assert(panels && panels <= scan->panels_now);
    own_ns = less_served(scheduler, scan, ns);
    /* A thread that lost its CPU in the middle is nobody's debt: 3 ms for a job of 2 us would keep
     * its session waiting for that long. */
    charge_members(scheduler, scan, layer->measured && own_ns > dear_ns ? dear_ns : own_ns);
    learn(layer, scan->rows, panels, own_ns);
    scan->position += panels;
    if (scan->position >= layer->panels)
        scan->position -= layer->panels;
    scan->panels_run += panels;
    arrived = arrive(scheduler, scan, panels);
    if (!arrived)
        return;
    scan->member_count -= arrived;
    memmove(scan->members, scan->members + arrived, scan->member_count * sizeof(*scan->members));
    scan->changed = true;
    settle(scheduler, scan);
}
