/* The simulated world's beginning and end, and its sessions'. */
#include "tests/sim/world.h"

#include <string.h>

void world_open(struct world *world, uint64_t seed)
{
    struct scheduler_config config = {.sessions_max = WORLD_SESSIONS};

    memset(world, 0, sizeof(*world));
    world->seed = world->random = seed;
    world->now_ns = 1 + world_random(world, 1000000);
    config.threads = 1 + (uint32_t)world_random(world, 4);
    config.user_quota = 1 + (uint32_t)world_random(world, 60);
    WORLD_REQUIRE(world, scheduler_init(&world->scheduler, &config) == 0);
    world->layers = 1 + (uint32_t)world_random(world, WORLD_LAYERS);
    for (uint32_t i = 0; i < world->layers; i++) {
        struct world_layer *layer = &world->layer[i];

        layer->tile_ns = UINT64_C(1) << world_random(world, 12);
        layer->stream_ns = UINT64_C(1) << world_random(world, 14);
        scheduler_init_layer(&layer->scheduled, 1 + (uint32_t)world_random(world, WORLD_PANELS),
                             1 + (uint32_t)world_random(world, 16), 1 + world_random(world, 5000));
        if (world_random(world, 2)) { /* its rows are made */
            uint32_t rows = layer->scheduled.tile_rows + (uint32_t)world_random(world, 64);

            /* Narrow ones cost less than their rows. */
            layer->row_ns = 1 + world_random(world, layer->tile_ns * layer->scheduled.panels);
            if (layer->row_ns > 4096)
                layer->row_ns = 4096;
            scheduler_limit_rows(&layer->scheduled, rows, (uint32_t)world_random(world, rows));
        }
    }
}

void world_add_session(struct world *world, uint32_t index, enum client_kind kind, uint32_t user,
                       uint32_t weight, uint32_t quota)
{
    struct world_session *session = &world->session[index];

    memset(session, 0, sizeof(*session));
    session->open = true;
    session->kind = kind;
    session->user = user;
    session->weight = weight;
    session->quota = quota;
    session->home = WORLD_LAYERS;
    session->depth = WORLD_ENTRIES;
    session->rows_max = kind == CLIENT_STEADY ? 4 : WORLD_ROWS;
    session->next_ns = world->now_ns;
    session->serve_ns = 20 + world_random(world, 1000);
    session->wake_ns = world_random(world, 2) ? 200 + world_random(world, 4000) : 0;
    scheduler_add_session(&world->scheduler, &session->scheduled, user, weight, quota);
    for (uint32_t i = 0; i < world->layers; i++)
        scheduler_init_flow(&session->flows[i], &session->scheduled, &world->layer[i].scheduled);
    if (world->sessions <= index)
        world->sessions = index + 1;
}

void world_end_session(struct world *world, uint32_t index)
{
    struct world_session *session = &world->session[index];

    for (uint32_t i = 0; i < WORLD_ENTRIES; i++)
        if (session->jobs[i].accepted) {
            session->jobs[i].cancelled = true;
            session->unreaped = 0;
            scheduler_withdraw(&world->scheduler, &session->jobs[i].job, GEMMD_STATUS_CANCELLED);
            world_take_done(world);
        }
    scheduler_remove_session(&world->scheduler, &session->scheduled);
    session->open = false;
}

void world_close(struct world *world)
{
    for (uint32_t i = 0; i < world->sessions; i++)
        if (world->session[i].open)
            world_end_session(world, i);
    scheduler_fini(&world->scheduler);
}
