/* The simulated world: the worker's side of its rings, its time, and the shadow model. */
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
uint64_t world_value(const struct world_job *job, uint32_t row, uint32_t panel)
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
            WORLD_REQUIRE(world, job->c[row][panel] == world_value(job, row, panel));
        }
}

static uint64_t scan_bound_ns(const struct world *world)
{
    uint64_t scan_ns = 0;

    for (uint32_t i = 0; i < world->layers; i++) {
        const struct world_layer *layer = &world->layer[i];
        uint64_t ns = (layer->tile_ns * 64 + layer->stream_ns) * layer->scheduled.panels +
                      layer->row_ns * layer->scheduled.rows_max;

        scan_ns = 4 * ns > scan_ns ? 4 * ns : scan_ns;
    }
    return scan_ns;
}

/* A round gives every session its quantum, of compute and of services, and lets both of its
 * accounts overdraw by one scan's worth. */
uint64_t world_round_bound_ns(const struct world *world)
{
    uint64_t scan_ns = scan_bound_ns(world), round_ns = 0;

    for (uint32_t i = 0; i < world->sessions; i++)
        round_ns += 2 * ((uint64_t)SCHEDULER_QUANTUM_NS * world->session[i].weight + scan_ns +
                         SCHEDULER_SERVICE_NS_MAX);
    return round_ns * (world->noisy ? 4 : 1);
}

/* How long the job may have taken: a debt takes debt / quantum rounds, and services since then make
 * it larger.  SCHEDULER_AHEAD_NS is 4. */
static uint64_t starvation_bound_ns(const struct world *world, const struct world_session *session,
                                    const struct world_job *job)
{
    uint64_t quantum_ns = (uint64_t)SCHEDULER_QUANTUM_NS * session->weight;
    uint64_t scan_ns = scan_bound_ns(world), rounds;

    rounds = 8 + WORLD_ENTRIES * (1 + scan_ns / quantum_ns);
    if (job->job.class == SCHEDULER_BACKGROUND)
        rounds *= SCHEDULER_BACKGROUND_SHARE;
    rounds += (session->serviced_ns - job->serviced_ns) / quantum_ns;
    return rounds * world_round_bound_ns(world) + world->layer[job->layer].scheduled.window_ns;
}

static void complete(struct world *world, struct world_session *session, struct world_job *job)
{
    enum gemmd_status status = job->job.status;
    uint64_t wait_ns = world->now_ns - job->accepted_ns;

    WORLD_REQUIRE(world, job->accepted); /* exactly one */
    job->accepted = false;
    session->completed++;
    session->unreaped++;
    session->touched = true;
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

/* Time that is spent on a session, beside compute. */
static void serve(struct world *world, struct world_session *session, uint64_t ns)
{
    session->worth_ns += ns;
    session->serviced_ns += ns;
    world->compute_ns += ns;
    world->now_ns += ns;
    world->served_ns += ns;
}

void world_complete(struct world *world)
{
    world_take_done(world);
    for (uint32_t i = 0; i < world->sessions; i++) {
        struct world_session *session = &world->session[i];

        if (!session->touched)
            continue;
        session->touched = false;
        if (!session->open || !session->wake_ns)
            continue;
        serve(world, session, session->wake_ns);
        if (scheduler_has_others(&world->scheduler, &session->scheduled))
            scheduler_charge_service(&world->scheduler, &session->scheduled, session->wake_ns,
                                     world->scheduler.served_ns);
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
    job->serviced_ns = session->serviced_ns;
    job->session = (uint32_t)(session - world->session);
    job->layer = sqe->layer;
    job->tag = sqe->tag;
    serve(world, session, SCHEDULER_JOB_NS);
    scheduler_submit(&world->scheduler, &job->job);
}

/* A round gives more than what a batch and the wakes of a ring overdraw. */
static bool may_take(struct world *world, struct world_session *session)
{
    uint64_t round = world->scheduler.round;

    if (scheduler_may_take(&world->scheduler, &session->scheduled)) {
        session->shut_round = 0;
        return true;
    }
    WORLD_REQUIRE(world, scheduler_has_others(&world->scheduler, &session->scheduled));
    if (!session->shut_round)
        session->shut_round = round + 1;
    WORLD_REQUIRE(world, round + 1 - session->shut_round <= 2);
    return false;
}

static void take_batch(struct world *world, struct world_session *session)
{
    while (session->ring_head != session->ring_tail &&
           session->unreaped + session->scheduled.in_flight < WORLD_ENTRIES) {
        const struct world_sqe *sqe = &session->ring[session->ring_head % WORLD_ENTRIES];

        if (sqe->is_cancel && world->in_slice)
            return;
        session->ring_head++;
        if (sqe->is_cancel) {
            serve(world, session, session->serve_ns);
            cancel(world, session, sqe->tag);
        } else if (!sqe->rows || !session->flows[sqe->layer].layer) {
            serve(world, session, session->serve_ns);
            session->completed++; /* LAYER_STALE at admission */
            session->unreaped++;
        } else {
            accept(world, session, sqe);
        }
    }
}

void world_take_submissions(struct world *world, struct world_session *session)
{
    uint64_t served_ns = world->scheduler.served_ns, start_ns = world->now_ns;
    bool others;

    if (session->ring_head == session->ring_tail || !may_take(world, session))
        return;
    others = scheduler_has_others(&world->scheduler, &session->scheduled);
    take_batch(world, session);
    if (others)
        scheduler_charge_service(&world->scheduler, &session->scheduled, world->now_ns - start_ns,
                                 served_ns);
}

/* ---- time ------------------------------------------------------------------------------------ */

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
        world_take_submissions(world, session);
    }
    check_quotas(world);
    if (!world_run_slice(world) && !world->scheduler.linked) { /* what ends may admit another */
        uint64_t next_ns = next_act_ns(world);

        world->now_ns = next_ns > world->now_ns ? next_ns : world->now_ns + 1;
    }
}

void world_drain(struct world *world)
{
    bool busy = true;

    world->draining = true;
    while (busy) {
        /* What ends may admit another. */
        busy = world_run_slice(world) || scheduler_has_work(&world->scheduler);
        world->now_ns += !world->scheduler.linked; /* a window closes */
        for (uint32_t i = 0; i < world->sessions; i++) {
            struct world_session *session = &world->session[i];

            session->unreaped = 0;
            if (!session->open)
                continue;
            busy |= session->ring_head != session->ring_tail;
            world_take_submissions(world, session);
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
