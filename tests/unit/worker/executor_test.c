/* The executor: from submission to completion, sessions that share a scan, interruptions. */
#include "tests/unit/worker/unit.h"

#include <sched.h>

#include "tests/unit/worker/executor_scene.h"
#include "worker/clock.h"

enum { N = 1000, K = 200, ROWS = 40, ARENA = 5 << 18, C_AT = 1 << 16 };

static struct executor_scene scene;
static uint8_t arenas[SCENE_CLIENTS][ARENA] __attribute__((aligned(64)));

static void open_scene(uint32_t clients)
{
    executor_scene_open(&scene, N, K, clients);
    for (uint32_t i = 0; i < clients; i++) {
        for (uint32_t j = 0; j < C_AT; j++)
            arenas[i][j] = (uint8_t)(j * 13 + i * 57 + j / 256);
        memset(arenas[i] + C_AT, 0xee, ARENA - C_AT);
        scene.clients[i].session.ring.arena = arenas[i];
        scene.clients[i].session.ring.arena_bytes = ARENA;
    }
}

static void submit(uint32_t client, uint32_t m, uint64_t user_data)
{
    executor_scene_submit(&scene.clients[client],
                          &(struct gemmd_sqe){.op = GEMMD_OP_GEMM, .m = m, .layer_gen = 1,
                                              .a_stride_bytes = K, .c_offset = C_AT,
                                              .c_stride_bytes = N * 4, .user_data = user_data});
}

static float residual_at(uint32_t i, uint32_t j)
{
    return (float)((i * 7 + j) % 100);
}

static void check_sums(uint32_t client, uint32_t m, bool added)
{
    const float *c = (const float *)(const void *)(arenas[client] + C_AT);

    for (uint32_t i = 0; i < m; i++)
        for (uint32_t j = 0; j < N; j++) {
            int32_t sum = 0;

            for (uint32_t k = 0; k < K; k++)
                sum += arenas[client][i * K + k] * scene.weights[j * K + k];
            assert_true(c[i * N + j] == (float)sum + (added ? residual_at(i, j) : 0.0f));
        }
    for (uint32_t i = C_AT + m * N * 4; i < ARENA; i++)
        assert_int_equal(arenas[client][i], 0xee);
}

static void check_result(uint32_t client, uint32_t m)
{
    check_sums(client, m, false);
}

static void expect(uint32_t client, uint64_t user_data, enum gemmd_status status)
{
    struct gemmd_cqe cqe;

    assert_true(executor_scene_complete(&scene.clients[client], &cqe));
    assert_int_equal(cqe.user_data, user_data);
    assert_int_equal(cqe.status, status);
}

static void run_all(void)
{
    while (executor_step(&scene.executor))
        ;
}

static void test_shared_scan(void **state)
{
    (void)state;
    open_scene(3);
    for (uint32_t i = 0; i < 3; i++) {
        submit(i, 1 + i * 7, i);
        assert_true(executor_take(&scene.executor, &scene.clients[i].session.ring));
    }
    run_all();
    for (uint32_t i = 0; i < 3; i++) {
        expect(i, i, GEMMD_STATUS_OK);
        check_result(i, 1 + i * 7);
        assert_true(scene.clients[i].wakes > 0);
    }
    assert_int_equal(scene.stats.jobs, 3 + 3); /* and the empty ones */
    assert_int_equal(scene.stats.rows, 1 + 8 + 15);
    assert_true(scene.stats.shared_slices > 0);
    executor_scene_close(&scene);
}

/* Two threads and many rows: each has its own half of them. */
static void test_cut_by_rows(void **state)
{
    const uint32_t rows = 2 * EXECUTOR_TEAM_ROWS;
    cpu_set_t cpus;
    int cpu = 0;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
    while (!CPU_ISSET(cpu, &cpus))
        cpu++;
    CPU_SET(cpu, &executor_scene_cpus);
    open_scene(1);
    CPU_ZERO(&executor_scene_cpus);
    for (int i = 0; i < SCHEDULER_COST_BUCKETS; i++)
        scene.layer.scheduled.cost[i] = 100 * 16;
    scene.layer.scheduled.rows_short = 0;
    scene.layer.scheduled.rows_cap = rows;
    submit(0, rows, 1);
    executor_take(&scene.executor, &scene.clients[0].session.ring);
    assert_true(executor_step(&scene.executor));
    assert_int_equal(scene.executor.slices[0].rows, rows);
    assert_int_equal(scene.executor.slices[0].row_blocks % 2, 0);
    run_all();
    expect(0, 1, GEMMD_STATUS_OK);
    check_result(0, rows);
    executor_scene_close(&scene);
}

/* Each slice ends after its first chunk; a second session comes in the middle of the scan. */
static void test_interrupted(void **state)
{
    (void)state;
    open_scene(2);
    /* As if the layer took long: 16 panels of 20 us. */
    for (int i = 0; i < SCHEDULER_COST_BUCKETS; i++)
        scene.layer.scheduled.cost[i] = 20000 * 16;
    scene.layer.scheduled.rows_short = 0;
    scene.stop = true;
    submit(0, ROWS, 10);
    executor_take(&scene.executor, &scene.clients[0].session.ring);
    assert_true(executor_step(&scene.executor));
    assert_int_equal(scene.clients[0].session.ring.scheduled.in_flight, 1);
    submit(1, ROWS, 11);
    executor_take(&scene.executor, &scene.clients[1].session.ring);
    run_all();
    expect(0, 10, GEMMD_STATUS_OK);
    expect(1, 11, GEMMD_STATUS_OK);
    check_result(0, ROWS);
    check_result(1, ROWS);
    assert_true(scene.stats.preempted > 0);
    executor_scene_close(&scene);
}

/* A kernel that wants four panels at once gets them, by halves of the rows; a slice that ends after
 * its first chunk ends with all of these. */
static void test_whole_groups(void **state)
{
    const uint32_t rows = 128;
    struct gemm_kernel kernel;

    (void)state;
    open_scene(1);
    kernel = *scene.layer.view.s8.kernel;
    kernel.b_group_bytes = 4u * kernel.nr * K;
    scene.layer.view.s8.kernel = &kernel;
    for (int i = 0; i < SCHEDULER_COST_BUCKETS; i++) /* 16 us a panel */
        scene.layer.scheduled.cost[i] = 16000 * 16 * (uint64_t)kernel.mr / rows;
    scene.layer.scheduled.rows_short = 0;
    scene.layer.scheduled.rows_cap = rows;
    scene.stop = true;
    submit(0, rows, 1);
    executor_take(&scene.executor, &scene.clients[0].session.ring);
    assert_true(executor_step(&scene.executor));
    assert_int_equal(scene.executor.slices[0].row_blocks, 2);
    assert_int_equal(scene.executor.slices[0].panel_step, 4);
    assert_int_equal(scene.executor.slices[0].panels_run, 4);
    run_all();
    expect(0, 1, GEMMD_STATUS_OK);
    check_result(0, rows);
    executor_scene_close(&scene);
}

/* C is its own residual, and slices end after their first chunk: each element is added to once. */
static void test_added_to_once(void **state)
{
    (void)state;
    open_scene(2);
    scene.layer.view.epilogue.residual_type = GEMM_TYPE_F32;
    scene.layer.shape.residual_element = 4;
    for (int i = 0; i < SCHEDULER_COST_BUCKETS; i++)
        scene.layer.scheduled.cost[i] = 20000 * 16;
    scene.layer.scheduled.rows_short = 0;
    scene.stop = true;
    for (uint32_t client = 0; client < 2; client++) {
        float *c = (float *)(void *)(arenas[client] + C_AT);

        for (uint32_t i = 0; i < ROWS * N; i++)
            c[i] = residual_at(i / N, i % N);
        executor_scene_submit(&scene.clients[client],
                              &(struct gemmd_sqe){.op = GEMMD_OP_GEMM, .m = ROWS, .layer_gen = 1,
                                                  .a_stride_bytes = K, .c_offset = C_AT,
                                                  .c_stride_bytes = N * 4,
                                                  .residual_offset = C_AT});
        executor_take(&scene.executor, &scene.clients[client].session.ring);
        assert_true(executor_step(&scene.executor)); /* the second one boards in the middle */
    }
    run_all();
    for (uint32_t client = 0; client < 2; client++) {
        expect(client, 0, GEMMD_STATUS_OK);
        check_sums(client, ROWS, true);
    }
    assert_true(scene.stats.preempted > 1);
    executor_scene_close(&scene);
}

/* Between two slices of it, a job is cancelled, its layer closed, its session gone. */
static void test_taken_away(void **state)
{
    (void)state;
    open_scene(3);
    for (int i = 0; i < SCHEDULER_COST_BUCKETS; i++)
        scene.layer.scheduled.cost[i] = 20000 * 16;
    scene.layer.scheduled.rows_short = 0;
    scene.stop = true;
    for (uint32_t i = 0; i < 3; i++) {
        submit(i, ROWS, 20 + i);
        executor_take(&scene.executor, &scene.clients[i].session.ring);
    }
    assert_true(executor_step(&scene.executor));
    executor_scene_submit(&scene.clients[0], &(struct gemmd_sqe){.op = GEMMD_OP_CANCEL,
                                                                 .target = 20, .user_data = 30});
    executor_scene_submit(&scene.clients[0], &(struct gemmd_sqe){.op = GEMMD_OP_CANCEL,
                                                                 .target = 20, .user_data = 31});
    assert_true(executor_take(&scene.executor, &scene.clients[0].session.ring));
    assert_true(executor_take(&scene.executor, &scene.clients[0].session.ring));
    expect(0, 20, GEMMD_STATUS_CANCELLED);
    expect(0, 30, GEMMD_STATUS_OK);
    expect(0, 31, GEMMD_STATUS_CANCEL_MISSED);
    executor_close_layer(&scene.executor, &scene.clients[1].session, 0);
    expect(1, 21, GEMMD_STATUS_LAYER_STALE);
    submit(1, 1, 22);
    executor_take(&scene.executor, &scene.clients[1].session.ring);
    expect(1, 22, GEMMD_STATUS_LAYER_STALE);
    run_all();
    expect(2, 22, GEMMD_STATUS_OK);
    check_result(2, ROWS);
    executor_scene_close(&scene);
}

/* At the second look: rows for the layer of the slice. */
static bool submit_more(void *owner)
{
    uint32_t *look_count = owner;

    if (++*look_count == 2)
        submit(1, ROWS, 11);
    executor_take(&scene.executor, &scene.clients[1].session.ring);
    return false;
}

/* They end the slice where there are seats for them, and else wait for its end. */
static void test_seats(void **state)
{
    (void)state;
    for (uint32_t full = 0; full < 2; full++) {
        uint32_t look_count = 0;

        open_scene(2);
        for (int i = 0; i < SCHEDULER_COST_BUCKETS; i++)
            scene.layer.scheduled.cost[i] = 1000 * 16;
        scene.layer.scheduled.rows_short = 0;
        scene.layer.scheduled.rows_cap = full ? ROWS : 4 * ROWS;
        scene.executor.config.look = submit_more;
        scene.executor.config.owner = &look_count;
        scene.executor.has_company = true;
        submit(0, ROWS, 10);
        executor_take(&scene.executor, &scene.clients[0].session.ring);
        assert_true(executor_step(&scene.executor));
        assert_int_equal(scene.stats.preempted, !full);
        run_all();
        expect(0, 10, GEMMD_STATUS_OK);
        expect(1, 11, GEMMD_STATUS_OK);
        check_result(0, ROWS);
        check_result(1, ROWS);
        executor_scene_close(&scene);
    }
}

/* ---- in the middle of a slice ---------------------------------------------------------------- */

static struct layer other; /* layer 1: the same weights, short */
static uint32_t looks;
static uint64_t cancelled; /* by client 0 meanwhile; 0: none */
static uint32_t looks_alone; /* before the one that found it */

/* At the second look of a slice of client 0: a short job of client 1 has come; then perhaps a
 * cancel, and behind that of the job on board one more. */
static bool submit_meanwhile(void *owner)
{
    struct gemmd_sqe sqe = {.op = GEMMD_OP_GEMM, .m = 2, .layer_id = 1, .layer_gen = 1,
                            .priority = GEMMD_ABI_PRIORITY_LATENCY, .a_stride_bytes = K,
                            .c_offset = C_AT, .c_stride_bytes = N * 4, .user_data = 50};

    (void)owner;
    if (other.jobs == 0)
        looks_alone = looks;
    if (++looks == 2)
        executor_scene_submit(&scene.clients[1], &sqe);
    if (looks == 2 && cancelled)
        executor_scene_submit(&scene.clients[0], &(struct gemmd_sqe){
                                                     .op = GEMMD_OP_CANCEL, .target = cancelled,
                                                     .user_data = 41});
    if (looks == 2 && cancelled == 40)
        submit(0, 0, 42);
    for (uint32_t i = 2; i-- > 0;)
        executor_take(&scene.executor, &scene.clients[i].session.ring);
    return false;
}

enum meanwhile { PLAIN, PAUSING, MADE, S4_PAUSING };

/* Weights of 4 bits in the place of the others. */
static void make_s4(void)
{
    static uint8_t panels[SCENE_N_MAX * SCENE_K_MAX] __attribute__((aligned(GEMM_ALIGN)));
    static uint8_t halves[N * K / 2];
    static uint16_t multipliers[N * K / 32 + N];
    static float weighted_sums[SCENE_N_MAX] __attribute__((aligned(GEMM_ALIGN)));
    const struct int4_kernel *kernel = int4_select(cpu_detect());
    struct layer_view *view = &scene.layer.view;

    for (uint32_t i = 0; i < N * K; i++) {
        scene.weights[i] = (int8_t)(i * 29 % 16) - 8;
        halves[i / 2] = (uint8_t)((i % 2 ? halves[i / 2] : 0) |
                                  (scene.weights[i] & 15) << (i % 2 ? 4 : 0));
    }
    for (uint32_t i = 0; i < sizeof(multipliers) / sizeof(*multipliers); i++)
        multipliers[i] = 1;
    assert_true(int4_packed_bytes(kernel, N, K, 32) <= sizeof(panels));
    int4_pack(kernel, N, K, 32, halves, K / 2, multipliers, panels, weighted_sums);
    view->s8.panels = NULL;
    view->s4 = (struct int4_weights){kernel, N, K, 32, panels};
    view->nr = kernel->nr;
    view->mr = kernel->mr;
    view->epilogue.weighted_sums = weighted_sums;
    scheduler_init_layer(&scene.layer.scheduled, (N + view->nr - 1) / view->nr, view->mr, 1000);
}

static void run_meanwhile(enum meanwhile kind)
{
    static const int32_t zeros[SCENE_N_MAX] __attribute__((aligned(GEMM_ALIGN)));
    struct gemmd_cqe cqe;

    open_scene(2);
    if (kind == S4_PAUSING)
        make_s4();
    other = scene.layer;
    other.jobs = 0;
    scheduler_init_layer(&other.scheduled, scene.layer.scheduled.panels, other.view.mr, 100);
    session_layer_open(&scene.clients[1].session.ring.layers[1], &other, 1);
    for (int i = 0; i < SCHEDULER_COST_BUCKETS; i++)
        scene.layer.scheduled.cost[i] = 1000 * 16;
    scene.layer.scheduled.rows_short = 0;
    scene.executor.config.look = submit_meanwhile;
    scene.executor.has_company = true;
    if (kind == PAUSING || kind == S4_PAUSING)
        scene.executor.latency_ns = clock_now_ns();
    if (kind == MADE)
        scene.layer.view.epilogue.b_zero_points = zeros; /* sums of rows */
    looks = 0;
    submit(0, ROWS, 40);
    executor_take(&scene.executor, &scene.clients[0].session.ring);
    if (kind == MADE)
        scene.layer.shape.a_row_bytes = 16 << 10; /* as if they were long */
    assert_true(executor_step(&scene.executor));
    expect(1, 50, GEMMD_STATUS_OK);
    check_result(1, 2);
    assert_int_equal(scene.stats.preempted, cancelled == 40);
    assert_false(executor_scene_complete(&scene.clients[1], &cqe));
}

/* It runs whole, and the slice goes on to its end. */
static void test_between_chunks(void **state)
{
    (void)state;
    cancelled = 0;
    for (enum meanwhile kind = PLAIN; kind <= S4_PAUSING; kind++) {
        run_meanwhile(kind);
        expect(0, 40, GEMMD_STATUS_OK);
        check_result(0, ROWS);
        assert_int_equal(scene.stats.slices, 2);
        assert_int_equal(looks_alone, 1);
        if (kind == MADE) /* ten chunks of rows before those of the slice */
            assert_true(looks >= 10 + 2);
        if (kind == S4_PAUSING) /* each panel, of which a chunk has several */
            assert_true(looks > N / scene.layer.view.nr);
        executor_scene_close(&scene);
    }
}

/* A cancel meant for the rows on board waits for their slice, which ends, and what was submitted
 * behind it waits, too. */
static void test_cancel_between_chunks(void **state)
{
    (void)state;
    cancelled = 40;
    for (enum meanwhile kind = PLAIN; kind <= S4_PAUSING; kind++) {
        run_meanwhile(kind);
        expect(0, 40, GEMMD_STATUS_CANCELLED);
        expect(0, 41, GEMMD_STATUS_OK);
        executor_take(&scene.executor, &scene.clients[0].session.ring);
        expect(0, 42, GEMMD_STATUS_OK);
        executor_scene_close(&scene);
    }
}

/* One that finds no job is answered there and then, and cuts nothing. */
static void test_miss_between_chunks(void **state)
{
    (void)state;
    cancelled = 99;
    for (enum meanwhile kind = PLAIN; kind <= S4_PAUSING; kind++) {
        run_meanwhile(kind);
        expect(0, 41, GEMMD_STATUS_CANCEL_MISSED);
        expect(0, 40, GEMMD_STATUS_OK);
        check_result(0, ROWS);
        assert_int_equal(scene.stats.slices, 2);
        executor_scene_close(&scene);
    }
}

/* What needs no computing completes at once, and never more than the client has room for. */
static void test_room(void **state)
{
    struct session_ring *ring = &scene.clients[0].session.ring;

    (void)state;
    open_scene(1);
    for (uint64_t i = 0; i < SCENE_ENTRIES; i++)
        submit(0, 0, i);
    assert_true(executor_take(&scene.executor, ring));
    assert_false(executor_step(&scene.executor));
    submit(0, 0, 99); /* its completion has no room */
    assert_false(executor_take(&scene.executor, ring));
    assert_true(ring->stalled);
    for (uint64_t i = 0; i < SCENE_ENTRIES; i++)
        expect(0, i, GEMMD_STATUS_OK);
    assert_true(executor_take(&scene.executor, ring));
    expect(0, 99, GEMMD_STATUS_OK);
    scene.clients[0].client_line.cq_head += 100;
    submit(0, 0, 1);
    ring->cq_head_seen = ring->cq.index - SCENE_ENTRIES; /* so that it looks */
    assert_false(executor_take(&scene.executor, ring));
    assert_int_equal(ring->violation, GEMMD_STATUS_CQ_HEAD);
    executor_scene_close(&scene);
}

/* However many jobs of a client complete together, it is woken once. */
static void test_wakes(void **state)
{
    (void)state;
    open_scene(2);
    for (uint64_t i = 0; i < 6; i++)
        submit(0, 0, i);
    assert_true(executor_take(&scene.executor, &scene.clients[0].session.ring));
    assert_int_equal(scene.clients[0].wakes, 1);
    for (uint64_t i = 0; i < 6; i++)
        expect(0, i, GEMMD_STATUS_OK);
    for (uint32_t client = 0; client < 2; client++) {
        for (uint64_t i = 0; i < 4; i++)
            submit(client, 1, i);
        assert_true(executor_take(&scene.executor, &scene.clients[client].session.ring));
    }
    run_all();
    assert_int_equal(scene.stats.slices, 1);
    assert_int_equal(scene.clients[0].wakes, 2);
    assert_int_equal(scene.clients[1].wakes, 1);
    executor_scene_close(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shared_scan),
        cmocka_unit_test(test_cut_by_rows),
        cmocka_unit_test(test_whole_groups),
        cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_added_to_once),
        cmocka_unit_test(test_seats),
        cmocka_unit_test(test_taken_away),
        cmocka_unit_test(test_between_chunks),
        cmocka_unit_test(test_cancel_between_chunks),
        cmocka_unit_test(test_miss_between_chunks),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_wakes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
