/* Simulated clients, honest and hostile. */
#include "tests/sim/world.h"

static uint32_t in_ring(const struct world_session *session)
{
    return session->ring_tail - session->ring_head;
}

static uint32_t in_flight(const struct world_session *session)
{
    return session->submitted - session->completed;
}

static bool has_slot(const struct world_session *session)
{
    return in_ring(session) < WORLD_ENTRIES &&
           in_flight(session) + session->unreaped < WORLD_ENTRIES;
}

static void push(struct world_session *session, struct world_sqe sqe)
{
    if (!has_slot(session))
        return;
    if (!sqe.is_cancel)
        sqe.tag = ++session->next_tag;
    session->ring[session->ring_tail++ % WORLD_ENTRIES] = sqe;
    session->submitted++;
}

static struct world_sqe any_job(struct world *world)
{
    return (struct world_sqe){.layer = (uint32_t)world_random(world, world->layers),
                              .rows = 1 + (uint32_t)world_random(world, 4),
                              .class = SCHEDULER_NORMAL};
}

static void act_steady(struct world *world, struct world_session *session)
{
    session->unreaped = 0;
    session->next_ns = world->now_ns;
    while (in_flight(session) < session->depth) {
        struct world_sqe sqe = any_job(world);

        if (session->home < WORLD_LAYERS)
            sqe.layer = session->home;
        sqe.rows = 1 + (uint32_t)world_random(world, session->rows_max);
        push(session, sqe);
    }
}

static void act_mixed(struct world *world, struct world_session *session)
{
    uint64_t jobs = world_random(world, 6);

    while (jobs--) {
        struct world_sqe sqe = any_job(world);

        sqe.rows = 1 + (uint32_t)world_random(world, WORLD_ROWS);
        sqe.class = (enum scheduler_class)world_random(world, SCHEDULER_CLASS_COUNT);
        if (world_random(world, 4) == 0)
            sqe.deadline_ns = world->now_ns + world_random(world, 300000);
        push(session, sqe);
    }
    if (session->next_tag && world_random(world, 5) == 0)
        push(session, (struct world_sqe){
                          .is_cancel = true,
                          .tag = session->next_tag - (uint32_t)world_random(world, 8)});
    session->next_ns = world->now_ns + world_random(world, 200000);
}

/* The layer whose panels cost most, with as many rows as may be; or what is said to be worse. */
static struct world_sqe dearest(struct world *world, const struct world_session *session)
{
    struct world_sqe sqe = {.rows = session->rows_max, .class = SCHEDULER_LATENCY};
    uint64_t most = 0;

    if (session->home < WORLD_LAYERS) {
        sqe.layer = session->home;
        return sqe;
    }
    for (uint32_t i = 0; i < world->layers; i++) {
        const struct world_layer *layer = &world->layer[i];
        uint64_t ns = (layer->tile_ns * WORLD_ROWS / layer->scheduled.tile_rows +
                       layer->stream_ns) * layer->scheduled.panels;

        if (ns > most)
            sqe.layer = i;
        most = ns > most ? ns : most;
    }
    return sqe;
}

static void act_chatty(struct world *world, struct world_session *session)
{
    for (uint32_t i = 0; has_slot(session); i++) {
        struct world_sqe sqe = dearest(world, session);

        if (i >= 2)
            sqe.rows = 0;
        push(session, sqe);
    }
}

static void act_canceller(struct world *world, struct world_session *session)
{
    for (int i = 0; i < 3; i++) {
        struct world_sqe sqe = dearest(world, session);

        sqe.class = (enum scheduler_class)world_random(world, SCHEDULER_CLASS_COUNT);
        push(session, sqe);
        push(session, (struct world_sqe){.is_cancel = true, .tag = session->next_tag});
    }
    session->next_ns = world->now_ns + world_random(world, 20000);
}

/* Closes a layer with the jobs that run on it, or opens it again. */
static void unload(struct world *world, struct world_session *session)
{
    uint32_t layer = (uint32_t)world_random(world, world->layers);
    struct scheduler_flow *flow = &session->flows[layer];

    if (!flow->layer) {
        scheduler_init_flow(flow, &session->scheduled, &world->layer[layer].scheduled);
        return;
    }
    for (uint32_t i = 0; i < WORLD_ENTRIES; i++) {
        struct world_job *job = &session->jobs[i];
        struct scheduler_job *done;

        if (!job->accepted || job->layer != layer)
            continue;
        job->stale = true;
        scheduler_withdraw(&world->scheduler, &job->job, GEMMD_STATUS_LAYER_STALE);
        done = scheduler_take_done(&world->scheduler);
        WORLD_REQUIRE(world, done == &job->job && done->status == GEMMD_STATUS_LAYER_STALE);
        job->accepted = false;
        session->completed++;
        session->unreaped++;
        session->statuses[done->status]++;
    }
    flow->layer = NULL;
}

static void fill(struct world *world, struct world_session *session, struct world_sqe sqe,
                 uint32_t depth)
{
    (void)world;
    while (in_flight(session) < depth && has_slot(session))
        push(session, sqe);
}

void client_act(struct world *world, struct world_session *session)
{
    struct world_sqe late = any_job(world);

    if (session->kind != CLIENT_HOARDER && world_random(world, 4))
        session->unreaped = 0;
    session->next_ns = world->now_ns + world_random(world, 2000);
    switch (session->kind) {
    case CLIENT_STEADY: /* never without work */
        act_steady(world, session);
        break;
    case CLIENT_SINGLE:
        late.class = SCHEDULER_LATENCY;
        late.rows = 1;
        fill(world, session, late, 1);
        break;
    case CLIENT_MIXED:
        act_mixed(world, session);
        break;
    case CLIENT_GREEDY:
    case CLIENT_HOARDER:
        fill(world, session, dearest(world, session), WORLD_ENTRIES);
        break;
    case CLIENT_CANCELLER:
        act_canceller(world, session);
        break;
    case CLIENT_LATE:
        late.deadline_ns = 1;
        late.class = SCHEDULER_LATENCY;
        fill(world, session, late, WORLD_ENTRIES);
        break;
    case CLIENT_UNLOADED:
        if (!world->in_slice && world_random(world, 3) == 0)
            unload(world, session);
        act_mixed(world, session);
        break;
    case CLIENT_CHATTY:
        act_chatty(world, session);
        break;
    case CLIENT_KINDS:
        world_fail(world, "no such client");
    }
}
