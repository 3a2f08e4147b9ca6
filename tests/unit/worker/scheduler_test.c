/* The scheduler's rules, one by one; tests/sim has them all at once. */
#include "tests/unit/worker/unit.h"

#include "worker/scheduler.h"

enum { SESSIONS = 4, JOBS = 64 };

struct scene {
    struct scheduler scheduler;
    struct scheduler_layer layers[2]; /* 0: long, 10 panels; 1: short, 2 panels */
    struct scheduler_session sessions[SESSIONS];
    struct scheduler_flow flows[SESSIONS][2];
    struct scheduler_job jobs[JOBS];
    uint32_t job_count;
};

static struct scene scene;

static void open_scene(uint32_t user_quota)
{
    const struct scheduler_config config = {
        .sessions_max = SESSIONS, .threads = 1, .user_quota = user_quota};

    memset(&scene, 0, sizeof(scene));
    assert_int_equal(scheduler_init(&scene.scheduler, &config), 0);
    scheduler_init_layer(&scene.layers[0], 10, 4, 15000); /* 150 us a tile */
    scheduler_init_layer(&scene.layers[1], 2, 4, 500);    /* 1 us a tile */
    for (uint32_t i = 0; i < SESSIONS; i++) {
        scheduler_add_session(&scene.scheduler, &scene.sessions[i], i / 2, 1, JOBS);
        for (int j = 0; j < 2; j++)
            scheduler_init_flow(&scene.flows[i][j], &scene.sessions[i], &scene.layers[j]);
    }
}

static struct scheduler_job *submit(uint32_t session, int layer, uint32_t rows,
                                    enum scheduler_class class)
{
    struct scheduler_job *job = &scene.jobs[scene.job_count++];

    *job = (struct scheduler_job){
        .flow = &scene.flows[session][layer], .class = class, .rows = rows};
    scheduler_submit(&scene.scheduler, job);
    return job;
}

/* As the layers' costs foretell. */
static void ran(struct scheduler_scan *scan, uint32_t panels)
{
    scheduler_ran(&scene.scheduler, scan, panels,
                  scheduler_estimate_ns(scan->layer, scan->rows, panels));
}

static struct scheduler_scan *next(void)
{
    return scheduler_next(&scene.scheduler, 1000);
}

static void expect_done(struct scheduler_job *job, enum gemmd_status status)
{
    assert_ptr_equal(scheduler_take_done(&scene.scheduler), job);
    assert_int_equal(job->status, status);
}

static void test_waiting_jobs_share(void **state)
{
    struct scheduler_job *jobs[3];
    struct scheduler_scan *scan;

    (void)state;
    open_scene(JOBS);
    for (uint32_t i = 0; i < 3; i++)
        jobs[i] = submit(i, 0, 1, SCHEDULER_NORMAL);
    scan = next();
    assert_int_equal(scan->rows, 3);
    assert_int_equal(scan->member_count, 3);
    ran(scan, scan->panels_now);
    while (scan->layer) {
        assert_ptr_equal(next(), scan);
        ran(scan, scan->panels_now);
    }
    for (int i = 0; i < 3; i++)
        expect_done(jobs[i], GEMMD_STATUS_OK);
    assert_null(next());
    /* Each paid a third. */
    assert_int_equal(scene.sessions[0].charged_ns, scene.sessions[2].charged_ns);
    assert_in_range(scene.sessions[0].charged_ns, 49000, 51000);
    scheduler_fini(&scene.scheduler);
}

/* Boards at panel 4, leaves at panel 4 of the next round. */
static void test_late_boarding(void **state)
{
    struct scheduler_job *first, *late;
    struct scheduler_scan *scan;

    (void)state;
    open_scene(JOBS);
    first = submit(0, 0, 2, SCHEDULER_NORMAL);
    scan = next();
    assert_int_equal(scan->panels_now, 10); /* nobody else waits */
    ran(scan, 4);
    late = submit(1, 0, 1, SCHEDULER_NORMAL);
    assert_ptr_equal(next(), scan);
    assert_int_equal(scan->rows, 3);
    assert_int_equal(scan->position, 4);
    assert_true(scan->panels_now <= 6);
    while (!first->rows_done)
        ran(next(), scan->panels_now);
    expect_done(first, GEMMD_STATUS_OK);
    assert_int_equal(scan->position, 0);
    assert_ptr_equal(next(), scan);
    assert_int_equal(scan->rows, 1);
    assert_int_equal(scan->members[0].panels_left, 4);
    assert_int_equal(scan->panels_now, 4);
    ran(scan, 4);
    expect_done(late, GEMMD_STATUS_OK);
    assert_null(scan->layer);
    scheduler_fini(&scene.scheduler);
}

static void test_class_order(void **state)
{
    struct scheduler_job *background, *normal, *latency;

    (void)state;
    open_scene(JOBS);
    background = submit(0, 1, 5, SCHEDULER_BACKGROUND);
    normal = submit(1, 1, 5, SCHEDULER_NORMAL);
    latency = submit(2, 1, 5, SCHEDULER_LATENCY);
    scene.scheduler.config.alone = true; /* else they would share */
    ran(next(), 2);
    expect_done(latency, GEMMD_STATUS_OK);
    ran(next(), 2);
    expect_done(normal, GEMMD_STATUS_OK);
    ran(next(), 2);
    expect_done(background, GEMMD_STATUS_OK);
    scheduler_fini(&scene.scheduler);
}

/* A short job goes between the slices of a long scan, and a latency job before it goes on. */
static void test_short_between_slices(void **state)
{
    struct scheduler_job *long_job, *short_job;
    struct scheduler_scan *scan, *short_scan;

    (void)state;
    open_scene(JOBS);
    long_job = submit(0, 0, 8, SCHEDULER_NORMAL);
    scan = next();
    ran(scan, 1);
    short_job = submit(1, 1, 1, SCHEDULER_LATENCY);
    short_scan = next();
    assert_ptr_not_equal(short_scan, scan);
    assert_int_equal(short_scan->panels_now, 2);
    ran(short_scan, 2);
    expect_done(short_job, GEMMD_STATUS_OK);
    while (long_job->rows_done < 8) { /* more rows than a scan of this layer has seats */
        scan = next();
        assert_ptr_equal(scan->layer, &scene.layers[0]);
        ran(scan, scan->panels_now);
    }
    expect_done(long_job, GEMMD_STATUS_OK);
    scheduler_fini(&scene.scheduler);
}

static void test_deadline(void **state)
{
    struct scheduler_job *late, *good;

    (void)state;
    open_scene(JOBS);
    late = submit(0, 0, 1, SCHEDULER_NORMAL);
    late->deadline_ns = 1000;
    good = submit(0, 0, 1, SCHEDULER_NORMAL);
    good->deadline_ns = 1001;
    assert_int_equal(next()->rows, 1);
    expect_done(late, GEMMD_STATUS_DEADLINE);
    assert_int_equal(late->rows_boarded, 0);
    assert_int_equal(good->rows_boarded, 1);
    scheduler_fini(&scene.scheduler);
}

static void test_withdraw(void **state)
{
    struct scheduler_job *running, *other, *waiting;
    struct scheduler_scan *scan;

    (void)state;
    open_scene(JOBS);
    running = submit(0, 0, 2, SCHEDULER_NORMAL);
    other = submit(1, 0, 1, SCHEDULER_NORMAL);
    scan = next();
    ran(scan, 1);
    waiting = submit(2, 1, 1, SCHEDULER_NORMAL);
    scheduler_withdraw(&scene.scheduler, waiting, GEMMD_STATUS_CANCELLED);
    expect_done(waiting, GEMMD_STATUS_CANCELLED);
    scheduler_withdraw(&scene.scheduler, running, GEMMD_STATUS_LAYER_STALE);
    expect_done(running, GEMMD_STATUS_LAYER_STALE);
    assert_ptr_equal(next(), scan);
    assert_int_equal(scan->rows, 1);
    assert_ptr_equal(scan->leader, &scene.sessions[1].queues[SCHEDULER_NORMAL]);
    scheduler_withdraw(&scene.scheduler, other, GEMMD_STATUS_CANCELLED);
    assert_null(scan->layer);
    expect_done(other, GEMMD_STATUS_CANCELLED);
    assert_null(next());
    scheduler_fini(&scene.scheduler);
}

/* Sessions 0 and 1 are one user's; each keeps its reserve. */
static void test_quotas(void **state)
{
    (void)state;
    open_scene(6);
    for (int i = 0; i < 6; i++) {
        assert_true(scheduler_has_room(&scene.scheduler, &scene.sessions[0]));
        submit(0, 0, 1, SCHEDULER_NORMAL);
    }
    assert_false(scheduler_has_room(&scene.scheduler, &scene.sessions[0]));
    for (int i = 0; i < SCHEDULER_RESERVE; i++) {
        assert_true(scheduler_has_room(&scene.scheduler, &scene.sessions[1]));
        submit(1, 0, 1, SCHEDULER_NORMAL);
    }
    assert_false(scheduler_has_room(&scene.scheduler, &scene.sessions[1]));
    assert_true(scheduler_has_room(&scene.scheduler, &scene.sessions[2])); /* another user */
    scene.sessions[2].quota = 1;
    submit(2, 0, 1, SCHEDULER_NORMAL);
    assert_false(scheduler_has_room(&scene.scheduler, &scene.sessions[2]));
    scheduler_fini(&scene.scheduler);
}

/* What is beyond the quota of the user waits outside the queues, its sessions in turn; it can be
 * cancelled there, and a place that becomes free is filled at once. */
static void test_held(void **state)
{
    struct scheduler_job *first, *a, *b, *c, *other;

    (void)state;
    open_scene(1);
    first = submit(0, 0, 1, SCHEDULER_NORMAL);
    for (int i = 1; i < SCHEDULER_RESERVE; i++)
        submit(0, 0, 1, SCHEDULER_NORMAL);
    for (int i = 0; i < SCHEDULER_RESERVE; i++)
        submit(1, 0, 1, SCHEDULER_NORMAL);
    a = submit(0, 0, 1, SCHEDULER_NORMAL);
    b = submit(0, 0, 1, SCHEDULER_NORMAL);
    c = submit(0, 0, 1, SCHEDULER_NORMAL);
    other = submit(1, 0, 1, SCHEDULER_NORMAL);
    assert_true(a->held && b->held && c->held && other->held);
    assert_int_equal(scene.sessions[0].in_flight, SCHEDULER_RESERVE + 3);
    scheduler_withdraw(&scene.scheduler, b, GEMMD_STATUS_CANCELLED);
    expect_done(b, GEMMD_STATUS_CANCELLED); /* frees no place */
    assert_true(a->held && c->held && other->held);
    scheduler_withdraw(&scene.scheduler, first, GEMMD_STATUS_CANCELLED);
    expect_done(first, GEMMD_STATUS_CANCELLED); /* of session 0's reserve */
    assert_true(!a->held && c->held && other->held);
    assert_int_equal(scene.sessions[0].admitted, SCHEDULER_RESERVE);
    scheduler_withdraw(&scene.scheduler, a, GEMMD_STATUS_CANCELLED);
    expect_done(a, GEMMD_STATUS_CANCELLED);
    assert_true(!c->held && other->held);
    assert_true(list_is_empty(&scene.sessions[0].held));
    scheduler_fini(&scene.scheduler);
}

/* A window of 10 us on the long layer. */
static void test_window(void **state)
{
    struct scheduler_job *first, *second, *hasty;
    struct scheduler_layer *layer = &scene.layers[0];
    struct scheduler_scan *scan;

    (void)state;
    open_scene(JOBS);
    layer->window_ns = 10000;
    first = submit(0, 0, 1, SCHEDULER_NORMAL); /* at 0 ns */
    second = submit(1, 0, 1, SCHEDULER_BACKGROUND);
    assert_true(scheduler_has_work(&scene.scheduler));
    assert_null(scheduler_next(&scene.scheduler, 9999));
    assert_int_equal(scene.sessions[0].in_flight, 1);
    assert_int_equal(scene.sessions[0].admitted, 0);
    scan = scheduler_next(&scene.scheduler, 10000);
    assert_int_equal(scan->rows, 2);
    /* While a scan is under way there is company. */
    submit(2, 0, 1, SCHEDULER_NORMAL);
    assert_ptr_equal(next(), scan);
    assert_int_equal(scan->rows, 3);
    while (scan->layer)
        ran(next(), scan->panels_now);
    for (int i = 0; i < 3; i++)
        assert_int_equal(scheduler_take_done(&scene.scheduler)->status, GEMMD_STATUS_OK);
    assert_int_equal(first->rows_done + second->rows_done, 2);

    /* Who cannot wait takes the others along. */
    first = submit(0, 0, 1, SCHEDULER_NORMAL);
    assert_null(next());
    hasty = submit(1, 0, 1, SCHEDULER_LATENCY);
    assert_false(first->gathered || hasty->gathered);
    assert_int_equal(next()->rows, 2);
    scheduler_withdraw(&scene.scheduler, first, GEMMD_STATUS_CANCELLED);
    scheduler_withdraw(&scene.scheduler, hasty, GEMMD_STATUS_CANCELLED);
    expect_done(first, GEMMD_STATUS_CANCELLED);
    expect_done(hasty, GEMMD_STATUS_CANCELLED);

    /* As many as fill a scan do not wait. */
    layer->rows_cap = 6;
    first = submit(0, 0, 4, SCHEDULER_NORMAL);
    assert_null(next());
    second = submit(1, 0, 2, SCHEDULER_NORMAL);
    assert_non_null(next());
    scheduler_withdraw(&scene.scheduler, first, GEMMD_STATUS_CANCELLED);
    scheduler_withdraw(&scene.scheduler, second, GEMMD_STATUS_CANCELLED);
    expect_done(first, GEMMD_STATUS_CANCELLED);
    expect_done(second, GEMMD_STATUS_CANCELLED);

    /* Withdrawn while it gathers; the window goes with it. */
    first = submit(0, 0, 1, SCHEDULER_NORMAL);
    scheduler_withdraw(&scene.scheduler, first, GEMMD_STATUS_CANCELLED);
    expect_done(first, GEMMD_STATUS_CANCELLED);
    assert_int_equal(scene.sessions[0].in_flight, 0);
    assert_false(scheduler_has_work(&scene.scheduler));
    scheduler_fini(&scene.scheduler);
}

/* One session floods; another's every second job is due. */
static void test_flood(void **state)
{
    struct scheduler_job *patient;
    uint32_t before = 0;

    (void)state;
    open_scene(JOBS);
    for (int i = 0; i < 40; i++)
        submit(0, 1, 4, SCHEDULER_LATENCY);
    patient = submit(1, 0, 4, SCHEDULER_NORMAL);
    scene.scheduler.config.alone = true;
    while (!patient->rows_boarded) {
        struct scheduler_scan *scan = next();

        before += scan->layer == &scene.layers[1];
        ran(scan, scan->panels_now);
    }
    /* The flood's whole credit of a round, no more: it was there first, and of a higher class. */
    assert_true(before <= SCHEDULER_QUANTUM_NS / 1000 + 1);
    scheduler_fini(&scene.scheduler);
}

static void test_learning(void **state)
{
    struct scheduler_job *job;

    (void)state;
    open_scene(JOBS);
    for (int i = 0; i < 60; i++) {
        struct scheduler_scan *scan;

        scene.job_count = 0;
        job = submit(0, 0, 1, SCHEDULER_NORMAL);
        scan = next();
        scheduler_ran(&scene.scheduler, scan, scan->panels_now, scan->panels_now * 2000u);
        expect_done(job, GEMMD_STATUS_OK);
    }
    assert_in_range(scheduler_estimate_ns(&scene.layers[0], 1, 10), 19000, 21000);
    /* 20 us: no longer long. */
    assert_true(scene.layers[0].rows_short >= 4);
    scheduler_fini(&scene.scheduler);
}

static void set_credit(uint32_t session, int64_t ns)
{
    scene.sessions[session].accounts[0].credit_ns = ns;
}

/* For compute: each session here submits one job. */
static uint64_t charged_ns(uint32_t session)
{
    return scene.sessions[session].charged_ns - SCHEDULER_JOB_NS;
}

/* Who has credit pays as if it were alone, free seats what they add; and none for a large debt. */
static void test_free_seats(void **state)
{
    struct scheduler_job *payer, *late;
    struct scheduler_scan *scan;
    uint64_t before_ns;

    (void)state;
    open_scene(JOBS);
    set_credit(1, 0);
    set_credit(3, -SCHEDULER_AHEAD_NS);
    payer = submit(0, 0, 1, SCHEDULER_NORMAL);
    submit(3, 0, 1, SCHEDULER_NORMAL);
    submit(1, 0, 3, SCHEDULER_NORMAL);
    scan = next();
    assert_int_equal(scan->rows, 4);
    assert_int_equal(scan->member_count, 2); /* not the one in debt */
    ran(scan, 1);
    assert_in_range(charged_ns(0), 15000, 15010);
    assert_int_equal(charged_ns(1), 0);

    /* 7 rows are two tiles, the 4 that are paid for one: the 3 free seats are the other. */
    scene.layers[0].rows_cap = 8;
    late = submit(2, 0, 3, SCHEDULER_NORMAL);
    scan = next();
    assert_int_equal(scan->rows, 7);
    before_ns = charged_ns(0);
    ran(scan, 1);
    assert_in_range(charged_ns(0) - before_ns + charged_ns(2), 15000, 15010);
    assert_in_range(charged_ns(1), 15000, 15010);
    assert_int_equal(charged_ns(3), 0);

    /* With nobody beside them, all of it. */
    scheduler_withdraw(&scene.scheduler, payer, GEMMD_STATUS_CANCELLED);
    scheduler_withdraw(&scene.scheduler, late, GEMMD_STATUS_CANCELLED);
    assert_int_equal(scan->rows, 3);
    ran(scan, 1);
    assert_in_range(charged_ns(1), 30000, 30020);
    scheduler_fini(&scene.scheduler);
}

/* Rows are made at the expense of their session. */
static void test_making(void **state)
{
    struct scheduler_scan *scan;

    (void)state;
    open_scene(JOBS);
    submit(0, 0, 1, SCHEDULER_NORMAL);
    scan = next();
    scheduler_prepared(&scene.scheduler, scan, 1000);
    assert_int_equal(charged_ns(0), 1000);
    ran(scan, 1);
    submit(1, 0, 2, SCHEDULER_NORMAL);
    submit(2, 0, 1, SCHEDULER_NORMAL);
    scan = next();
    assert_int_equal(scan->rows, 4);
    scheduler_prepared(&scene.scheduler, scan, 3000);
    assert_in_range(charged_ns(0), 1000 + 15000, 1000 + 15010);
    assert_int_equal(charged_ns(1), 2000);
    assert_int_equal(charged_ns(2), 1000);
    scheduler_fini(&scene.scheduler);
}

/* Jobs pay for being taken; who is kept by that does not. */
static void test_taking(void **state)
{
    struct scheduler_scan *scan;

    (void)state;
    open_scene(JOBS);
    submit(0, 0, 1, SCHEDULER_NORMAL);
    scan = next();
    for (int i = 0; i < 3; i++)
        submit(1, 1, 1, SCHEDULER_NORMAL);
    assert_int_equal(scene.sessions[1].charged_ns, 3 * SCHEDULER_JOB_NS);
    scheduler_ran(&scene.scheduler, scan, 1, 10000);
    assert_int_equal(charged_ns(0), 10000 - 3 * SCHEDULER_JOB_NS);
    ran(next(), 2); /* the short ones */
    scan = next();
    scheduler_ran(&scene.scheduler, scan, 1, 10000);
    assert_int_equal(charged_ns(0), 20000 - 3 * SCHEDULER_JOB_NS);
    scheduler_fini(&scene.scheduler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_waiting_jobs_share),
        cmocka_unit_test(test_late_boarding),
        cmocka_unit_test(test_class_order),
        cmocka_unit_test(test_short_between_slices),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_withdraw),
        cmocka_unit_test(test_quotas),
        cmocka_unit_test(test_held),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_flood),
        cmocka_unit_test(test_learning),
        cmocka_unit_test(test_free_seats),
        cmocka_unit_test(test_making),
        cmocka_unit_test(test_taking),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
