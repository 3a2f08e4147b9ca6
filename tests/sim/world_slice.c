/* One slice in the simulated world: what a worker's threads do, and what it costs. */
#include <string.h>

#include "tests/sim/world.h"

static void compute(struct world *world, const struct scheduler_scan *scan, uint32_t first,
                    uint32_t panels)
{
    for (uint32_t i = 0; i < scan->member_count; i++) {
        const struct scheduler_member *member = &scan->members[i];
        struct world_job *job = LIST_ENTRY(member->job, struct world_job, job);

        WORLD_REQUIRE(world, job->accepted);
        WORLD_REQUIRE(world, &world->layer[job->layer].scheduled == scan->layer);
        WORLD_REQUIRE(world, member->first_row + member->rows <= job->job.rows);
        for (uint32_t row = member->first_row; row < member->first_row + member->rows; row++)
            for (uint32_t p = first; p < first + panels; p++) {
                uint32_t panel = (scan->position + p) % scan->layer->panels;

                job->cells[row][panel]++;
                job->c[row][panel] = world_value(job, row, panel);
            }
    }
}

static uint64_t cost_ns(const struct scheduler_scan *scan, uint32_t rows, uint32_t panels)
{
    const struct world_layer *layer = LIST_ENTRY(scan->layer, struct world_layer, scheduled);
    uint64_t tiles = (rows + scan->layer->tile_rows - 1) / scan->layer->tile_rows;
    uint64_t compute_ns = layer->tile_ns * tiles;

    return (compute_ns > layer->stream_ns ? compute_ns : layer->stream_ns) * panels + 1;
}

/* What each would have cost alone: sharing a scan is a gain, not a loss of share. */
static void note_worth(struct world *world, const struct scheduler_scan *scan, uint32_t panels)
{
    for (uint32_t i = 0; i < scan->member_count; i++) {
        const struct scheduler_member *member = &scan->members[i];
        const struct world_job *job = LIST_ENTRY(member->job, struct world_job, job);

        world->session[job->session].worth_ns += cost_ns(scan, member->rows, panels);
    }
}

static uint64_t true_cost_ns(struct world *world, const struct scheduler_scan *scan,
                             uint32_t panels)
{
    uint64_t ns = cost_ns(scan, scan->rows, panels);

    if (world->noisy) {
        ns += world_random(world, ns / 4 + 1);
        if (world_random(world, 50) == 0)
            ns += ns * world_random(world, 8); /* the thread lost its CPU */
    }
    return ns;
}

static void check_scan(struct world *world, const struct scheduler_scan *scan)
{
    uint32_t rows = 0;

    WORLD_REQUIRE(world, scan->member_count > 0);
    WORLD_REQUIRE(world, scan->panels_now > 0);
    for (uint32_t i = 0; i < scan->member_count; i++) {
        const struct scheduler_member *member = &scan->members[i];

        rows += member->rows;
        WORLD_REQUIRE(world, member->panels_left >= scan->panels_now);
        WORLD_REQUIRE(world, !member->is_free || member->panels_left < scan->layer->panels ||
                                 rows <= scan->layer->rows_free);
    }
    WORLD_REQUIRE(world, rows == scan->rows && rows <= scan->layer->rows_max);
    WORLD_REQUIRE(world, scan->index < SCHEDULER_LONG_SCANS ||
                             rows <= scan->layer->rows_short_max);
}

/* Nobody gathers who cannot wait, or longer than the window, or while the layer has work. */
static void check_windows(struct world *world)
{
    for (uint32_t i = 0; i < world->sessions * WORLD_ENTRIES; i++) {
        const struct world_job *job =
            &world->session[i / WORLD_ENTRIES].jobs[i % WORLD_ENTRIES];
        const struct scheduler_layer *layer = &world->layer[job->layer].scheduled;
        uint64_t end_ns = job->accepted_ns + layer->window_ns;

        if (!job->accepted || !job->job.gathered)
            continue;
        WORLD_REQUIRE(world, world->now_ns < end_ns);
        WORLD_REQUIRE(world, job->job.class != SCHEDULER_LATENCY);
        WORLD_REQUIRE(world, job->job.deadline_ns == 0 || job->job.deadline_ns > layer->due_ns);
        WORLD_REQUIRE(world, layer->waiting == 0);
    }
}

/* Panels [first, first + panels) of the slice.  Returns their ns of compute. */
static uint64_t run_panels(struct world *world, const struct scheduler_scan *scan, uint32_t first,
                           uint32_t panels)
{
    uint64_t ns = true_cost_ns(world, scan, panels);

    if (world->checking)
        compute(world, scan, first, panels);
    note_worth(world, scan, panels);
    world->panels += panels;
    world->panel_rows += (uint64_t)panels * scan->rows;
    world->compute_ns += ns;
    world->now_ns += ns / world->scheduler.config.threads + 1;
    return ns;
}

/* Before the panels: the rows that have just come on board are made, if their layer's are.  Returns
 * the ns of compute. */
static uint64_t make_rows(struct world *world, struct scheduler_scan *scan)
{
    const struct world_layer *layer = LIST_ENTRY(scan->layer, struct world_layer, scheduled);
    uint64_t ns = 0;

    for (uint32_t i = 0; i < scan->member_count && layer->row_ns; i++) {
        const struct scheduler_member *member = &scan->members[i];
        const struct world_job *job = LIST_ENTRY(member->job, struct world_job, job);

        if (member->panels_left < scan->layer->panels)
            continue;
        world->session[job->session].worth_ns += member->rows * layer->row_ns;
        ns += member->rows * layer->row_ns;
    }
    if (ns == 0)
        return 0;
    if (world->noisy)
        ns += world_random(world, ns);
    scheduler_prepared(&world->scheduler, scan, ns);
    world->compute_ns += ns;
    world->now_ns += ns / world->scheduler.config.threads + 1;
    return ns;
}

/* Whole, between two chunks of a slice. */
static uint64_t run_short(struct world *world, struct scheduler_scan *scan)
{
    uint32_t panels = scan->panels_now;
    uint64_t made_ns, ns;

    check_scan(world, scan);
    made_ns = make_rows(world, scan);
    ns = run_panels(world, scan, 0, panels);
    scan->changed = false;
    scheduler_ran(&world->scheduler, scan, panels, ns);
    return made_ns + ns;
}

/* Between two chunks of a slice: clients act, and what is short and goes first runs.  Nothing of
 * the slice may have changed then.  True: others have come, for whom it ends. */
static bool run_between(struct world *world, const struct scheduler_scan *scan,
                        uint64_t *between_ns)
{
    static struct scheduler_member members[SCHEDULER_ROWS_MAX];
    const struct scheduler_layer *layer = scan->layer;
    const struct scheduler_queue *leader = scan->leader;
    uint32_t position = scan->position, rows = scan->rows, member_count = scan->member_count;
    uint64_t round = world->scheduler.round;
    uint32_t waiting = world->scheduler.waiting;
    struct scheduler_scan *next;

    memcpy(members, scan->members, member_count * sizeof(*members));
    world->in_slice = true;
    for (uint32_t i = 0; i < world->sessions; i++) {
        struct world_session *session = &world->session[i];

        if (!session->open)
            continue;
        if (session->next_ns <= world->now_ns && !world->draining)
            client_act(world, session);
        world_take_submissions(world, session);
    }
    while ((next = scheduler_next_short(&world->scheduler, world->now_ns))) {
        WORLD_REQUIRE(world, next != scan && next->layer != scan->layer);
        *between_ns += run_short(world, next);
        world_complete(world);
    }
    world_complete(world); /* past their deadlines */
    world->in_slice = false;
    WORLD_REQUIRE(world, scan->layer == layer && scan->leader == leader);
    WORLD_REQUIRE(world, scan->position == position && scan->rows == rows);
    WORLD_REQUIRE(world, scan->member_count == member_count);
    WORLD_REQUIRE(world, !memcmp(scan->members, members, member_count * sizeof(*members)));
    /* Nobody gets new credit, so the slice goes on. */
    WORLD_REQUIRE(world, world->scheduler.round == round);
    WORLD_REQUIRE(world, *between_ns <= world_round_bound_ns(world));
    return world->scheduler.waiting > waiting;
}

bool world_run_slice(struct world *world)
{
    struct scheduler_scan *scan = scheduler_next(&world->scheduler, world->now_ns);
    uint64_t made_ns, ns = 0, between_ns = 0;
    uint32_t panels, done = 0;
    bool is_ending = false;

    check_windows(world);
    world->served_ns = 0;
    world_take_done(world); /* past their deadlines */
    if (!scan)
        return false;
    check_scan(world, scan);
    panels = scan->panels_now;
    if (world->noisy && world_random(world, 3) == 0)
        panels = 1 + (uint32_t)world_random(world, panels);
    made_ns = make_rows(world, scan);
    if (made_ns && scan->index < SCHEDULER_LONG_SCANS)
        is_ending = run_between(world, scan, &between_ns);
    while (done < panels) {
        uint32_t chunk = panels - done;

        if (scan->index < SCHEDULER_LONG_SCANS)
            chunk = 1 + (uint32_t)world_random(world, chunk);
        ns += run_panels(world, scan, done, chunk);
        done += chunk;
        if (done < panels && (run_between(world, scan, &between_ns) || is_ending))
            break;
    }
    world->slices++;
    world->between_ns += between_ns;
    scan->changed = false;
    scheduler_ran(&world->scheduler, scan, done, ns + world->served_ns);
    world_complete(world);
    return true;
}
