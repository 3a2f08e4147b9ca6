/* The worker's side of the simulated world, and the shadow model. */
#include "tests/sim/world.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* splitmix64 (S. Vigna). */
uint64_t world_random(struct world *world, uint64_t below)
{
    uint64_t z = world->random += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (z ^ (z >> 31)) % below;
}

void world_fail(const struct world *world, const char *what)
{
    fprintf(stderr, "sim: seed %llu at %llu ns: %s\n", (unsigned long long)world->seed,
            (unsigned long long)world->now_ns, what);
    fprintf(stderr, "sim: replay with --seed %llu --count 1\n", (unsigned long long)world->seed);
    exit(1);
}

/* What the layer makes of a row: a mix of both, so that a cell of the wrong row, panel or layer
 * shows. */
static uint64_t value_of(const struct world_job *job, uint32_t row, uint32_t panel)
{
    uint64_t z = (uint64_t)job->tag << 40 ^ (uint64_t)job->session << 32 ^
                 (uint64_t)job->layer << 24 ^ row << 8 ^ panel;

    z = (z ^ (z >> 29)) * UINT64_C(0xbf58476d1ce4e5b9);
    return z ^ (z >> 32);
}

/* ---- the shadow: what a completion must look like -------------------------------------------- */

static void check_cells(struct world *world, const struct world_job *job)
{
    uint32_t panels = world->layer[job->layer].scheduled.panels;

    for (uint32_t row = 0; row < job->job.rows; row++)
        for (uint32_t panel = 0; panel < panels; panel++) {
            WORLD_REQUIRE(world, job->cells[row][panel] == 1);
            WORLD_REQUIRE(world, job->c[row][panel] == value_of(job, row, panel));
        }
}

static uint64_t scan_bound_ns(const struct world *world)
{
    uint64_t scan_ns = 0;

    for (uint32_t i = 0; i < world->layers; i++) {
        const struct world_layer *layer = &world->layer[i];
        uint64_t ns = (layer->tile_ns * 64 + layer->stream_ns) * layer->scheduled.panels * 4;

        scan_ns = ns > scan_ns ? ns : scan_ns;
    }
    return scan_ns;
}

/* A round gives every session its quantum and lets both of its accounts overdraw by one scan's
 * worth. */
static uint64_t round_bound_ns(const struct world *world)
{
    uint64_t scan_ns = scan_bound_ns(world), round_ns = 0;

    for (uint32_t i = 0; i < world->sessions; i++)
        round_ns += (uint64_t)SCHEDULER_QUANTUM_NS * world->session[i].weight + 2 * scan_ns;
    return round_ns * (world->noisy ? 4 : 1);
}

/* How long the job may have taken: a debt takes debt / quantum rounds. */
static uint64_t starvation_bound_ns(const struct world *world, const struct world_session *session,
                                    const struct world_job *job)
{
    uint64_t scan_ns = scan_bound_ns(world), rounds;

    rounds = 4 + WORLD_ENTRIES * (1 + scan_ns / ((uint64_t)SCHEDULER_QUANTUM_NS * session->weight));
    if (job->job.class == SCHEDULER_BACKGROUND)
        rounds *= SCHEDULER_BACKGROUND_SHARE;
    return rounds * round_bound_ns(world) + world->layer[job->layer].scheduled.window_ns;
}

static void complete(struct world *world, struct world_session *session, struct world_job *job)
{
    enum gemmd_status status = job->job.status;
    uint64_t wait_ns = world->now_ns - job->accepted_ns;

    WORLD_REQUIRE(world, job->accepted); /* exactly one */
    job->accepted = false;
    session->completed++;
    session->unreaped++;
    session->statuses[status]++;
    WORLD_REQUIRE(world, session->unreaped <= WORLD_ENTRIES);
    switch (status) {
    case GEMMD_STATUS_OK:
        WORLD_REQUIRE(world, !job->cancelled && !job->stale);
        if (world->checking)
            check_cells(world, job);
        break;
    case GEMMD_STATUS_DEADLINE:
        WORLD_REQUIRE(world, job->job.deadline_ns && world->now_ns >= job->job.deadline_ns);
        WORLD_REQUIRE(world, job->job.rows_boarded == 0);
        break;
    case GEMMD_STATUS_CANCELLED:
        WORLD_REQUIRE(world, job->cancelled);
        break;
    case GEMMD_STATUS_LAYER_STALE:
        WORLD_REQUIRE(world, job->stale);
        break;
    default:
        world_fail(world, "a status that nothing explains");
    }
    WORLD_REQUIRE(world, wait_ns <= starvation_bound_ns(world, session, job));
    if (wait_ns > session->longest_wait_ns)
        session->longest_wait_ns = wait_ns;
}

void world_take_done(struct world *world)
{
    struct scheduler_job *done;

    while ((done = scheduler_take_done(&world->scheduler))) {
        struct world_job *job = LIST_ENTRY(done, struct world_job, job);

        complete(world, &world->session[job->session], job);
    }
}

static void check_quotas(struct world *world)
{
    uint32_t admitted[WORLD_USERS] = {0}, sessions[WORLD_USERS] = {0};

    for (uint32_t i = 0; i < world->sessions; i++) {
        struct world_session *session = &world->session[i];
        uint32_t count = 0, held = 0, gathered = 0;

        if (!session->open)
            continue;
        for (uint32_t j = 0; j < WORLD_ENTRIES; j++) {
            struct world_job *job = &session->jobs[j];

            count += job->accepted;
            gathered += job->accepted && job->job.gathered;
            if (!job->accepted || !job->job.held)
                continue;
            held++;
            job->accepted_ns = world->now_ns; /* the bound holds from its admission on */
        }
        WORLD_REQUIRE(world, count - held - gathered <= session->quota);
        WORLD_REQUIRE(world, count == session->scheduled.in_flight);
        WORLD_REQUIRE(world, !held || !scheduler_has_room(&world->scheduler, &session->scheduled));
        admitted[session->user] += count - held - gathered;
        sessions[session->user]++;
    }
    for (uint32_t user = 0; user < WORLD_USERS; user++)
        WORLD_REQUIRE(world, admitted[user] <= world->scheduler.config.user_quota +
                                                    SCHEDULER_RESERVE * sessions[user]);
}

/* ---- intake: what the dispatcher does with a ring -------------------------------------------- */

static void cancel(struct world *world, struct world_session *session, uint32_t tag)
{
    for (uint32_t i = 0; i < WORLD_ENTRIES; i++) {
        struct world_job *job = &session->jobs[i];

        if (!job->accepted || job->tag != tag)
            continue;
        job->cancelled = true;
        scheduler_withdraw(&world->scheduler, &job->job, GEMMD_STATUS_CANCELLED);
        world_take_done(world);
    }
    session->completed++; /* the cancel's own */
    session->unreaped++;
}

static void accept(struct world *world, struct world_session *session, const struct world_sqe *sqe)
{
    struct world_job *job = session->jobs;

    while (job->accepted)
        job++;
    WORLD_REQUIRE(world, job < session->jobs + WORLD_ENTRIES);
    /* The cells are most of it. */
    memset(job, 0, world->checking ? sizeof(*job) : offsetof(struct world_job, cells));
    job->job.flow = &session->flows[sqe->layer];
    job->job.class = sqe->class;
    job->job.rows = sqe->rows;
    job->job.deadline_ns = sqe->deadline_ns;
    job->job.seen_ns = job->accepted_ns = world->now_ns;
    job->accepted = true;
    job->session = (uint32_t)(session - world->session);
    job->layer = sqe->layer;
    job->tag = sqe->tag;
    scheduler_submit(&world->scheduler, &job->job);
}

static void take_submissions(struct world *world, struct world_session *session)
{
    while (session->ring_head != session->ring_tail &&
           session->unreaped + session->scheduled.in_flight < WORLD_ENTRIES) {
        const struct world_sqe *sqe = &session->ring[session->ring_head % WORLD_ENTRIES];

        if (sqe->is_cancel && world->in_slice)
            return;
        session->ring_head++;
        if (sqe->is_cancel) {
            cancel(world, session, sqe->tag);
        } else if (!session->flows[sqe->layer].layer) {
            session->completed++; /* LAYER_STALE at admission */
            session->unreaped++;
        } else {
            accept(world, session, sqe);
        }
    }
}

/* ---- one slice ------------------------------------------------------------------------------- */

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
                job->c[row][panel] = value_of(job, row, panel);
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
        rows += scan->members[i].rows;
        WORLD_REQUIRE(world, scan->members[i].panels_left >= scan->panels_now);
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

/* Whole, between two chunks of a slice. */
static uint64_t run_short(struct world *world, struct scheduler_scan *scan)
{
    uint32_t panels = scan->panels_now;
    uint64_t ns;

    check_scan(world, scan);
    ns = run_panels(world, scan, 0, panels);
    scan->changed = false;
    scheduler_ran(&world->scheduler, scan, panels, ns);
    return ns;
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
        take_submissions(world, session);
    }
    while ((next = scheduler_next_short(&world->scheduler, world->now_ns))) {
        WORLD_REQUIRE(world, next != scan && next->layer != scan->layer);
        *between_ns += run_short(world, next);
        world_take_done(world);
    }
    world_take_done(world); /* past their deadlines */
    world->in_slice = false;
    WORLD_REQUIRE(world, scan->layer == layer && scan->leader == leader);
    WORLD_REQUIRE(world, scan->position == position && scan->rows == rows);
    WORLD_REQUIRE(world, scan->member_count == member_count);
    WORLD_REQUIRE(world, !memcmp(scan->members, members, member_count * sizeof(*members)));
    /* Nobody gets new credit, so the slice goes on. */
    WORLD_REQUIRE(world, world->scheduler.round == round);
    WORLD_REQUIRE(world, *between_ns <= round_bound_ns(world));
    return world->scheduler.waiting > waiting;
}

/* Before the panels: rows that have just come on board are made, and others looked for meanwhile.
 * In noisy worlds only: what a share of the making is worth nobody reckons.  True: some have come
 * for whom the slice ends, as soon as it can. */
static bool make_rows(struct world *world, struct scheduler_scan *scan, uint64_t *between_ns)
{
    uint64_t ns = 1 + world_random(world, SCHEDULER_SLICE_NS);
    bool is_ending = run_between(world, scan, between_ns);

    world->now_ns += ns;
    scheduler_prepared(&world->scheduler, scan, ns);
    world->compute_ns += ns;
    return is_ending;
}

/* False: there was nothing to run. */
static bool run_slice(struct world *world)
{
    struct scheduler_scan *scan = scheduler_next(&world->scheduler, world->now_ns);
    uint64_t ns = 0, between_ns = 0;
    uint32_t panels, done = 0;
    bool is_ending = false;

    check_windows(world);
    world_take_done(world); /* past their deadlines */
    if (!scan)
        return false;
    check_scan(world, scan);
    panels = scan->panels_now;
    if (world->noisy && world_random(world, 3) == 0)
        panels = 1 + (uint32_t)world_random(world, panels);
    if (world->noisy && scan->changed && scan->index < SCHEDULER_LONG_SCANS &&
        world_random(world, 4) == 0)
        is_ending = make_rows(world, scan, &between_ns);
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
    scheduler_ran(&world->scheduler, scan, done, ns);
    world_take_done(world);
    return true;
}

/* When a client acts, or a window closes. */
static uint64_t next_act_ns(const struct world *world)
{
    uint64_t next_ns = UINT64_MAX;

    for (const struct list *link = world->scheduler.gathering.next;
         link != &world->scheduler.gathering; link = link->next) {
        uint64_t due_ns = LIST_ENTRY(link, struct scheduler_layer, gathering)->due_ns;

        next_ns = due_ns < next_ns ? due_ns : next_ns;
    }

    for (uint32_t i = 0; i < world->sessions; i++)
        if (world->session[i].open && world->session[i].next_ns < next_ns)
            next_ns = world->session[i].next_ns;
    return next_ns < UINT64_MAX ? next_ns : 0; /* no session is open */
}

void world_step(struct world *world)
{
    for (uint32_t i = 0; i < world->sessions; i++) {
        struct world_session *session = &world->session[i];

        if (!session->open)
            continue;
        if (session->next_ns <= world->now_ns)
            client_act(world, session);
        take_submissions(world, session);
    }
    check_quotas(world);
    if (!run_slice(world) && !world->scheduler.linked) { /* what ends may admit another */
        uint64_t next_ns = next_act_ns(world);

        world->now_ns = next_ns > world->now_ns ? next_ns : world->now_ns + 1;
    }
}

void world_drain(struct world *world)
{
    bool busy = true;

    world->draining = true;
    while (busy) {
        busy = run_slice(world) || scheduler_has_work(&world->scheduler); /* ends admit others */
        world->now_ns += !world->scheduler.linked; /* a window closes */
        for (uint32_t i = 0; i < world->sessions; i++) {
            struct world_session *session = &world->session[i];

            session->unreaped = 0;
            if (!session->open)
                continue;
            busy |= session->ring_head != session->ring_tail;
            take_submissions(world, session);
        }
        check_quotas(world);
    }
    for (uint32_t i = 0; i < world->sessions; i++) {
        struct world_session *session = &world->session[i];

        WORLD_REQUIRE(world, !session->open || session->completed == session->submitted);
        WORLD_REQUIRE(world, !session->open || session->scheduled.in_flight == 0);
    }
    WORLD_REQUIRE(world, world->scheduler.waiting == 0);
    WORLD_REQUIRE(world, !scheduler_has_work(&world->scheduler));
    for (uint32_t i = 0; i < SCHEDULER_SCANS; i++)
        WORLD_REQUIRE(world, !world->scheduler.scans[i].layer);
}
