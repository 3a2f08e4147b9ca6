/*
 * Clients of one model, each sending one row through its layers one after the other, in a simulated
 * world: they are to walk in one group.  Groups that take turns share half of what can be shared
 * (4.0 of 8 rows), and without coalescing nothing is.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/world.h"

/* As measured on a 2-CPU guest: a pass over 4 MiB of weights by both threads, and what a client
 * needs from its completion to its next submission. */
enum { CLIENTS = 8, LAYERS = 24, PASS_NS = 70000, CHUNK_NS = 8000, THREADS = 2 };
#define END_NS   UINT64_C(1000000000)
#define NEVER_NS UINT64_MAX

struct walker {
    struct scheduler_session scheduled;
    struct scheduler_flow flows[LAYERS];
    struct scheduler_job job;
    uint64_t next_ns; /* when it submits */
    uint32_t at, jobs;
};

struct ring {
    struct world world; /* for its random numbers, and its way to fail */
    struct scheduler_layer layers[LAYERS];
    struct walker walkers[CLIENTS];
    uint64_t now_ns, panels, panel_rows, react_ns;
};

static struct ring ring;

static void open_ring(uint64_t seed, uint64_t react_ns, bool alone)
{
    const struct scheduler_config config = {
        .sessions_max = CLIENTS, .threads = THREADS, .user_quota = 1000, .alone = alone};

    memset(&ring, 0, sizeof(ring));
    ring.world.seed = ring.world.random = seed;
    ring.react_ns = react_ns;
    WORLD_REQUIRE(&ring.world, scheduler_init(&ring.world.scheduler, &config) == 0);
    for (uint32_t i = 0; i < LAYERS; i++) {
        uint32_t panels = i % 2 ? 16 : 64;

        scheduler_init_layer(&ring.layers[i], panels, 16, THREADS * PASS_NS / panels);
    }
    for (uint32_t i = 0; i < CLIENTS; i++) {
        struct walker *walker = &ring.walkers[i];

        scheduler_add_session(&ring.world.scheduler, &walker->scheduled, 0, 1, 256);
        for (uint32_t j = 0; j < LAYERS; j++)
            scheduler_init_flow(&walker->flows[j], &walker->scheduled, &ring.layers[j]);
        walker->next_ns = world_random(&ring.world, 3000000);
    }
}

/* Submits what is due; when the next one will be. */
static uint64_t submit_due(void)
{
    uint64_t soon_ns = NEVER_NS;

    for (uint32_t i = 0; i < CLIENTS; i++) {
        struct walker *walker = &ring.walkers[i];

        if (walker->next_ns <= ring.now_ns) {
            walker->next_ns = NEVER_NS;
            walker->job = (struct scheduler_job){
                .flow = &walker->flows[walker->at], .class = SCHEDULER_NORMAL, .rows = 1};
            scheduler_submit(&ring.world.scheduler, &walker->job);
        } else if (walker->next_ns < soon_ns) {
            soon_ns = walker->next_ns;
        }
    }
    return soon_ns;
}

/* A slice, in chunks; the next submission ends it. */
static void run_slice(struct scheduler_scan *scan, uint64_t soon_ns)
{
    uint64_t start_ns = ring.now_ns, panel_ns = PASS_NS / scan->layer->panels;
    uint32_t step = CHUNK_NS > panel_ns ? (uint32_t)(CHUNK_NS / panel_ns) : 1, panels = 0;

    while (panels < scan->panels_now && (panels == 0 || ring.now_ns < soon_ns)) {
        uint32_t left = scan->panels_now - panels, chunk = step < left ? step : left;

        panels += chunk;
        ring.now_ns += chunk * panel_ns;
    }
    ring.panels += panels;
    ring.panel_rows += (uint64_t)panels * scan->rows;
    scheduler_ran(&ring.world.scheduler, scan, panels, THREADS * (ring.now_ns - start_ns));
}

static void take_done(void)
{
    struct scheduler_job *done;

    while ((done = scheduler_take_done(&ring.world.scheduler))) {
        struct walker *walker = LIST_ENTRY(done, struct walker, job);

        walker->jobs++;
        walker->at = (walker->at + 1) % LAYERS;
        walker->next_ns = ring.now_ns + ring.react_ns / 2 +
                          world_random(&ring.world, ring.react_ns);
    }
}

/* Rows that share a panel, on average. */
static double walk(uint64_t seed, uint64_t react_ns, bool alone)
{
    uint32_t least = UINT32_MAX, most = 0;

    open_ring(seed, react_ns, alone);
    while (ring.now_ns < END_NS) {
        uint64_t soon_ns = submit_due();
        struct scheduler_scan *scan = scheduler_next(&ring.world.scheduler, ring.now_ns);

        if (scan)
            run_slice(scan, soon_ns);
        else
            ring.now_ns = soon_ns;
        take_done();
    }
    for (uint32_t i = 0; i < CLIENTS; i++) {
        uint32_t jobs = ring.walkers[i].jobs;

        least = jobs < least ? jobs : least;
        most = jobs > most ? jobs : most;
    }
    /* Who goes first gains no share. */
    WORLD_REQUIRE(&ring.world, least >= most - most / 20);
    scheduler_fini(&ring.world.scheduler);
    return (double)ring.panel_rows / (double)ring.panels;
}

int main(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        double near = walk(seed, 5000, false), far = walk(seed, 20000, false);

        printf("ring: seed %llu: %.2f rows share a panel of %u clients that need 5 us, %.2f of "
               "20 us\n", (unsigned long long)seed, near, CLIENTS, far);
        WORLD_REQUIRE(&ring.world, near > 6.5 && far > 5);
        WORLD_REQUIRE(&ring.world, walk(seed, 5000, true) == 1);
    }
    return 0;
}
