/* An executor with one layer and some sessions whose rings are plain memory.  No threads beside but
 * those of executor_scene_cpus. */
#ifndef GEMMD_TESTS_UNIT_WORKER_EXECUTOR_SCENE_H
#define GEMMD_TESTS_UNIT_WORKER_EXECUTOR_SCENE_H

#include "tests/unit/worker/unit.h"

#include "kernels/pack.h"
#include "worker/executor.h"

enum { SCENE_CLIENTS = 3, SCENE_ENTRIES = 8, SCENE_N_MAX = 1024, SCENE_K_MAX = 256 };

struct executor_client {
    struct session session;
    struct gemmd_sqe sq[SCENE_ENTRIES] __attribute__((aligned(64)));
    struct gemmd_cqe cq[SCENE_ENTRIES] __attribute__((aligned(64)));
    struct gemmd_client_line client_line;
    struct gemmd_ring_end submissions, completions; /* the client's ends */
    uint32_t wakes;
};

struct executor_scene {
    struct executor executor;
    struct gemmd_stats_page stats;
    struct team *team;
    struct layer layer;
    struct executor_client clients[SCENE_CLIENTS];
    uint32_t client_count;
    bool stop; /* what executor_config.look says */
    int8_t weights[SCENE_N_MAX * SCENE_K_MAX];
    int8_t packed[SCENE_N_MAX * SCENE_K_MAX + 4096] __attribute__((aligned(GEMM_ALIGN)));
    int32_t offset[SCENE_N_MAX] __attribute__((aligned(GEMM_ALIGN)));
    float scale[SCENE_N_MAX] __attribute__((aligned(GEMM_ALIGN)));
    float bias[SCENE_N_MAX] __attribute__((aligned(GEMM_ALIGN)));
};

static cpu_set_t executor_scene_cpus;
static uint64_t executor_scene_wake_ns; /* what executor_config.wake says */

static bool scene_stop(void *owner)
{
    return ((struct executor_scene *)owner)->stop;
}

static uint64_t scene_wake(void *owner, struct session_ring *ring)
{
    (void)owner;
    LIST_ENTRY(ring, struct executor_client, session.ring)->wakes++;
    return executor_scene_wake_ns;
}

static void scene_violate(void *owner, struct session_ring *ring, enum gemmd_status status)
{
    (void)owner;
    ring->violation = status;
}

static void scene_open_layer(struct executor_scene *scene, uint32_t n, uint32_t k)
{
    const struct gemm_kernel *kernel = gemm_select(cpu_detect());

    assert_true(gemm_packed_bytes(kernel, n, k) <= sizeof(scene->packed));
    for (uint32_t i = 0; i < n * k; i++)
        scene->weights[i] = (int8_t)(i * 29 + i / 7);
    scene->layer = (struct layer){.view = {.s8 = {kernel, n, k, scene->packed},
                                           .n = n,
                                           .k = k,
                                           .a_type = GEMM_TYPE_U8,
                                           .nr = kernel->nr,
                                           .mr = kernel->mr,
                                           .kernel_id = kernel->id}};
    scene->layer.shape = (struct gemmd_job_shape){k, n * 4, 4, 0};
    gemm_pack(kernel, n, k, scene->weights, k, scene->packed, scene->offset);
    memset(scene->offset, 0, sizeof(scene->offset)); /* no zero points */
    for (int i = 0; i < SCENE_N_MAX; i++)
        scene->scale[i] = 1.0f;
    scene->layer.view.epilogue = (struct gemm_epilogue){.a_type = GEMM_TYPE_U8,
                                                        .c_type = GEMM_TYPE_F32,
                                                        .inverse_c_scale = 1.0f,
                                                        .offset = scene->offset,
                                                        .scale = scene->scale,
                                                        .bias = scene->bias};
}

static void executor_scene_submit(struct executor_client *client, const struct gemmd_sqe *sqe)
{
    gemmd_sq_push(&client->submissions, sqe);
}

static bool executor_scene_complete(struct executor_client *client, struct gemmd_cqe *out)
{
    if (!gemmd_cq_take(&client->completions, out))
        return false;
    gemmd_cq_release(&client->completions, &client->client_line);
    return true;
}

static void scene_open_client(struct executor_scene *scene, struct executor_client *client)
{
    const struct gemmd_sqe empty = {.op = GEMMD_OP_GEMM, .layer_gen = 1};
    struct session_ring *ring = &client->session.ring;
    struct gemmd_cqe cqe;

    client->session.ring_entries = SCENE_ENTRIES;
    client->session.weight = 1;
    ring->sq = (struct gemmd_ring_end){(uint64_t *)(void *)client->sq, SCENE_ENTRIES - 1, 0};
    ring->cq = (struct gemmd_ring_end){(uint64_t *)(void *)client->cq, SCENE_ENTRIES - 1, 0};
    client->submissions = ring->sq;
    client->completions = ring->cq;
    ring->client_line = &client->client_line;
    assert_true(session_make_jobs(ring, SCENE_ENTRIES));
    executor_attach(&scene->executor, &client->session);
    session_layer_open(&ring->layers[0], &scene->layer, 1);
    /* The first job of a layer sets up its costs, which tests then change. */
    executor_scene_submit(client, &empty);
    assert_true(executor_take(&scene->executor, ring));
    assert_true(executor_scene_complete(client, &cqe));
    assert_int_equal(cqe.status, GEMMD_STATUS_OK);
    ring->cq_head_seen = client->client_line.cq_head;
    client->wakes = 0;
}

/* A layer n x k, u8 to f32, open in each session as number 0, generation 1. */
static void executor_scene_open(struct executor_scene *scene, uint32_t n, uint32_t k,
                                uint32_t clients)
{
    struct executor_config config = {.sessions_max = SCENE_CLIENTS,
                                     .stats = &scene->stats,
                                     .look = scene_stop,
                                     .wake = scene_wake,
                                     .violate = scene_violate,
                                     .owner = scene};
    struct team_config team = {.cpus = executor_scene_cpus, .cores = scene->stats.cores + 1};

    memset(scene, 0, sizeof(*scene));
    assert_int_equal(team_open(&scene->team, &team), 0);
    config.team = scene->team;
    assert_int_equal(executor_init(&scene->executor, &config), 0);
    scene_open_layer(scene, n, k);
    scene->client_count = clients;
    for (uint32_t i = 0; i < clients; i++)
        scene_open_client(scene, &scene->clients[i]);
}

static void executor_scene_close(struct executor_scene *scene)
{
    for (uint32_t i = 0; i < scene->client_count; i++) {
        executor_detach(&scene->executor, &scene->clients[i].session);
        session_free_jobs(&scene->clients[i].session.ring);
    }
    executor_fini(&scene->executor);
    team_close(&scene->team);
}

#endif
