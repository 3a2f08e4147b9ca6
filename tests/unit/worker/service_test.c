/* What the dispatcher does for a session while others have work: paid, and no more of it than a
 * round has room for. */
#include "tests/unit/worker/unit.h"

#include "tests/unit/worker/executor_scene.h"

enum { N = 64, K = 64, ARENA = 1 << 14, C_AT = 1 << 12 };

static struct executor_scene scene;
static uint8_t arenas[2][ARENA] __attribute__((aligned(64)));

static void submit(uint32_t client, uint32_t m)
{
    executor_scene_submit(&scene.clients[client],
                          &(struct gemmd_sqe){.op = GEMMD_OP_GEMM, .m = m, .layer_gen = 1,
                                              .a_stride_bytes = K, .c_offset = C_AT,
                                              .c_stride_bytes = N * 4});
}

static bool take(uint32_t client)
{
    return executor_take(&scene.executor, &scene.clients[client].session.ring);
}

static uint32_t reap(uint32_t client)
{
    struct gemmd_cqe cqe;
    uint32_t count = 0;

    while (executor_scene_complete(&scene.clients[client], &cqe))
        count++;
    return count;
}

static struct scheduler_session *session(uint32_t client)
{
    return &scene.clients[client].session.ring.scheduled;
}

/* Client 1 has a job that waits, if others_wait. */
static void open_scene(bool others_wait)
{
    executor_scene_open(&scene, N, K, 2);
    for (uint32_t i = 0; i < 2; i++) {
        scene.clients[i].session.ring.arena = arenas[i];
        scene.clients[i].session.ring.arena_bytes = ARENA;
    }
    if (!others_wait)
        return;
    submit(1, 1);
    assert_true(take(1));
}

static void cancel_nothing(void)
{
    executor_scene_submit(&scene.clients[0], &(struct gemmd_sqe){.op = GEMMD_OP_CANCEL,
                                                                 .target = 77});
}

/* What completes at once costs, but only while somebody else waits for that. */
static void test_paid(void **state)
{
    uint64_t before_ns;

    (void)state;
    for (int waits = 0; waits < 2; waits++) {
        open_scene(waits);
        assert_int_equal(session(0)->charged_ns, 0);
        submit(0, 0);
        assert_true(take(0));
        assert_int_equal(session(0)->charged_ns > 0, waits);
        before_ns = session(0)->charged_ns;
        executor_scene_submit(&scene.clients[0], &(struct gemmd_sqe){.op = 99});
        assert_true(take(0));
        assert_int_equal(session(0)->charged_ns > before_ns, waits);
        before_ns = session(0)->charged_ns;
        cancel_nothing();
        assert_true(take(0));
        assert_int_equal(session(0)->charged_ns > before_ns, waits);
        assert_int_equal(scene.executor.scheduler.served_ns,
                         waits ? session(0)->charged_ns + session(1)->charged_ns : 0);
        assert_int_equal(reap(0), 3);
        executor_scene_close(&scene);
    }
}

/* By its client, and never for longer than the dispatcher can have been at it. */
static void test_wake(void **state)
{
    (void)state;
    for (int waits = 0; waits < 2; waits++) {
        open_scene(waits);
        executor_scene_wake_ns = 5000;
        submit(0, 0);
        assert_true(take(0));
        assert_int_equal(session(0)->charged_ns >= 5000, waits);
        executor_scene_wake_ns = 1000 * SCHEDULER_SERVICE_NS_MAX;
        submit(0, 0);
        assert_true(take(0));
        assert_int_equal(session(0)->charged_ns >= 5000 + SCHEDULER_SERVICE_NS_MAX, waits);
        assert_true(session(0)->charged_ns <= 3 * SCHEDULER_SERVICE_NS_MAX);
        executor_scene_wake_ns = 0;
        executor_scene_close(&scene);
    }
}

/* A job pays once for its taking, and what the slice in the middle of which that was has lost is
 * what it took. */
static void test_paid_once(void **state)
{
    struct scheduler *scheduler = &scene.executor.scheduler;

    (void)state;
    open_scene(true);
    scheduler->served_ns = 1000;
    submit(0, 1);
    assert_true(take(0));
    assert_in_range(session(0)->charged_ns, SCHEDULER_JOB_NS, SCHEDULER_SERVICE_NS_MAX);
    scheduler->served_ns = 1000 + SCHEDULER_JOB_NS;
    scheduler_charge_service(scheduler, session(0), 50, 1000);
    assert_int_equal(scheduler->served_ns, 1050);
    executor_scene_close(&scene);
}

/* It is not taken from until the next round, or until nobody else has work. */
static void test_shut(void **state)
{
    struct session_ring *ring = &scene.clients[0].session.ring;

    (void)state;
    open_scene(true);
    submit(0, 1);
    assert_true(take(0));
    submit(0, 0);
    session(0)->service.credit_ns = 0;
    ring->used = false;
    assert_false(take(0));
    assert_true(ring->used); /* stays hot */
    assert_int_equal(reap(0), 0);
    scene.executor.scheduler.round++;
    assert_true(take(0));
    assert_int_equal(reap(0), 1);
    session(0)->service.credit_ns = -2 * SCHEDULER_QUANTUM_NS;
    submit(0, 0);
    scene.executor.scheduler.round++;
    assert_false(take(0)); /* a debt */
    while (executor_step(&scene.executor))
        ;
    assert_int_equal(reap(0), 1);
    assert_true(take(0)); /* alone */
    submit(0, 1);
    assert_true(take(0));
    submit(0, 0);
    assert_true(take(0)); /* with work of its own */
    assert_int_equal(reap(0), 2);
    executor_scene_close(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paid),
        cmocka_unit_test(test_wake),
        cmocka_unit_test(test_paid_once),
        cmocka_unit_test(test_shut),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
