/*
 * The simulation: `--count` seeds from `--seed` on (default: a fresh one, printed).
 *   chaos  any clients, sessions that come and go, noise: every promise to every job holds
 *   fair   honest clients beside one hostile one: each honest one gets its share
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/sim/world.h"

/* Of its share, per mille, that an honest session gets beside any hostile one. */
#define SHARE_MIN 950

static struct world world;

static void add_any_session(uint32_t index)
{
    world_add_session(&world, index, (enum client_kind)world_random(&world, CLIENT_KINDS),
                      (uint32_t)world_random(&world, WORLD_USERS),
                      1 + (uint32_t)world_random(&world, 4),
                      1 + (uint32_t)world_random(&world, WORLD_ENTRIES));
}

static uint64_t run_chaos(uint64_t seed)
{
    uint32_t sessions, steps = 0;

    world_open(&world, seed);
    world.noisy = world_random(&world, 2);
    world.checking = true;
    world.scheduler.config.alone = world_random(&world, 8) == 0;
    for (uint32_t i = 0; i < world.layers; i++)
        if (world_random(&world, 3) == 0)
            world.layer[i].scheduled.window_ns = 1 + world_random(&world, 50000);
    sessions = 1 + (uint32_t)world_random(&world, WORLD_SESSIONS);
    for (uint32_t i = 0; i < sessions; i++)
        add_any_session(i);
    for (; steps < 400; steps++) {
        world_step(&world);
        if (world_random(&world, 60) == 0) {
            uint32_t index = (uint32_t)world_random(&world, sessions);

            if (world.session[index].open)
                world_end_session(&world, index);
            else
                add_any_session(index);
        }
    }
    world_drain(&world);
    world_close(&world);
    return world.slices;
}

/* Runs until `compute_ns` more were spent.  A session's share is due while it has jobs that wait
 * (those on board are being served). */
static void run_for(uint64_t compute_ns, uint64_t total_weight, uint32_t honest, double *due_ns)
{
    uint64_t end_ns = world.compute_ns + compute_ns;

    while (world.compute_ns < end_ns) {
        uint64_t before_ns = world.compute_ns;
        bool waits[WORLD_SESSIONS];

        for (uint32_t i = 0; i < honest; i++)
            waits[i] = world.session[i].scheduled.waiting > 0;
        world_step(&world);
        for (uint32_t i = 0; i < honest; i++)
            if (waits[i])
                due_ns[i] += (double)(world.compute_ns - before_ns) * world.session[i].weight /
                             (double)total_weight;
    }
}

/* A kernel's call costs something, whatever it does. */
static void make_dearer(void)
{
    for (uint32_t i = 0; i < world.layers; i++)
        world.layer[i].tile_ns += 50;
}

/* Each has a layer of its own choice; the first one has few jobs at a time, and the greedy one may
 * be with it, on whose scans it would like to go for nothing. */
static void settle(uint32_t honest)
{
    for (uint32_t i = 0; i <= honest; i++) {
        struct world_session *session = &world.session[i];

        session->home = (uint32_t)world_random(&world, world.layers);
        session->rows_max = 1 + (uint32_t)world_random(&world, session->rows_max);
    }
    world.session[0].depth = 1 + (uint32_t)world_random(&world, 4);
    world.session[honest].kind = CLIENT_GREEDY;
    if (world_random(&world, 2))
        world.session[honest].home = world.session[0].home;
}

static uint64_t run_fair(uint64_t seed)
{
    double due_ns[WORLD_SESSIONS] = {0};
    uint64_t total_weight = 0;
    uint32_t honest;

    world_open(&world, seed);
    make_dearer();
    world.scheduler.config.user_quota = 1000;
    honest = 1 + (uint32_t)world_random(&world, 4);
    for (uint32_t i = 0; i < honest; i++)
        world_add_session(&world, i, CLIENT_STEADY, 0, 1 + (uint32_t)world_random(&world, 3),
                          WORLD_ENTRIES);
    world_add_session(&world, honest,
                      CLIENT_GREEDY + (uint32_t)world_random(&world, CLIENT_KINDS - CLIENT_GREEDY),
                      1, 1, WORLD_ENTRIES);
    if (world_random(&world, 2))
        settle(honest);
    for (uint32_t i = 0; i <= honest; i++)
        total_weight += world.session[i].weight;
    for (uint32_t i = 0; i < 200; i++) /* costs are learned */
        world_step(&world);
    for (uint32_t i = 0; i <= honest; i++)
        world.session[i].worth_ns = 0;
    /* Long enough that a scan or SCHEDULER_AHEAD_NS more or less is no matter. */
    run_for(150 * SCHEDULER_QUANTUM_NS * total_weight, total_weight, honest, due_ns);
    for (uint32_t i = 0; i < honest; i++) {
        double got_ns = (double)world.session[i].worth_ns;

        if (world.session[i].depth < WORLD_ENTRIES)
            continue; /* now and then without a job that waits, for which nobody waits */
        if (got_ns * 1000 < due_ns[i] * SHARE_MIN) {
            fprintf(stderr, "sim: session %u of %u beside kind %u got %.1f %% of its share\n", i,
                    honest, world.session[honest].kind, 100.0 * got_ns / due_ns[i]);
            world_fail(&world, "an honest session is robbed");
        }
    }
    world_drain(&world);
    world_close(&world);
    return world.slices;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"seed", required_argument, NULL, 's'},
                                            {"count", required_argument, NULL, 'c'},
                                            {NULL, 0, NULL, 0}};
    uint64_t seed = 0, count = 10000, slices = 0, between_ns = 0;
    struct timespec now;
    int option;

    clock_gettime(CLOCK_MONOTONIC, &now); /* other seeds on each run */
    seed = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (option) {
        case 's':
            seed = strtoull(optarg, NULL, 0);
            break;
        case 'c':
            count = strtoull(optarg, NULL, 0);
            break;
        default:
            return 64;
        }
    printf("sim: seeds %llu … %llu\n", (unsigned long long)seed,
           (unsigned long long)(seed + count - 1));
    fflush(stdout);
    for (uint64_t i = 0; i < count; i++) {
        slices += run_chaos(seed + i);
        between_ns += world.between_ns;
        if (i % 10 == 0)
            slices += run_fair(seed + i);
    }
    printf("sim: %llu seeds, %llu slices, %llu us between their chunks, no rule broken\n",
           (unsigned long long)count, (unsigned long long)slices,
           (unsigned long long)between_ns / 1000);
    return 0;
}
