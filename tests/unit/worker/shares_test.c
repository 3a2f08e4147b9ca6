/* What the scheduler owes in the long run, counted over thousands of slices: the share of each
 * class, turns at a user's places; and that places come back, and who is late does not ride. */
#include "tests/unit/worker/unit.h"

#include "worker/scheduler.h"

enum { SESSIONS = 3, DEPTH = 8, JOBS = SESSIONS * DEPTH, SLICES = 20000 };

/* Each session has a layer of its own, and so many jobs of one class that wait. */
static struct scheduler scheduler;
static struct scheduler_layer layers[SESSIONS];
static struct scheduler_session sessions[SESSIONS];
static struct scheduler_flow flows[SESSIONS];
static struct scheduler_job jobs[JOBS];

static void open_scene(uint32_t user_quota, bool same_layer)
{
    const struct scheduler_config config = {
        .sessions_max = SESSIONS, .threads = 1, .user_quota = user_quota};

    assert_int_equal(scheduler_init(&scheduler, &config), 0);
    for (uint32_t i = 0; i < SESSIONS; i++) {
        scheduler_init_layer(&layers[i], 10, 4, 3000);
        scheduler_add_session(&scheduler, &sessions[i], 0, 1, DEPTH);
        scheduler_init_flow(&flows[i], &sessions[i], &layers[same_layer ? 0 : i]);
    }
}

static void submit(struct scheduler_job *job, uint32_t session, enum scheduler_class class,
                   uint64_t deadline_ns)
{
    *job = (struct scheduler_job){
        .flow = &flows[session], .class = class, .rows = 4, .deadline_ns = deadline_ns};
    scheduler_submit(&scheduler, job);
}

static void run_slice(void)
{
    struct scheduler_scan *scan = scheduler_next(&scheduler, 1000);

    assert_non_null(scan);
    scheduler_ran(&scheduler, scan, scan->panels_now,
                  scheduler_estimate_ns(scan->layer, scan->rows, scan->panels_now));
}

/* The share of the first session of all compute, while each floods with jobs of its class. */
static double share_of_first(const enum scheduler_class classes[SESSIONS])
{
    struct scheduler_job *done;
    uint64_t all = 0;

    open_scene(JOBS, false);
    for (uint32_t i = 0; i < JOBS; i++)
        submit(&jobs[i], i % SESSIONS, classes[i % SESSIONS], 0);
    for (uint32_t i = 0; i < SLICES; i++) {
        run_slice();
        while ((done = scheduler_take_done(&scheduler))) {
            uint32_t session = (uint32_t)(done->flow - flows);

            submit(done, session, classes[session], 0);
        }
    }
    for (uint32_t i = 0; i < SESSIONS; i++)
        all += sessions[i].charged_ns;
    scheduler_fini(&scheduler);
    return (double)sessions[0].charged_ns / (double)all;
}

/* Background work gets 1 of 32 parts beside each other session: more is no background, less
 * starves.  The other two classes buy order, not share. */
static void classes(void **state)
{
    static const enum scheduler_class background[] = {SCHEDULER_BACKGROUND, SCHEDULER_LATENCY,
                                                      SCHEDULER_NORMAL};
    static const enum scheduler_class normal[] = {SCHEDULER_NORMAL, SCHEDULER_LATENCY,
                                                  SCHEDULER_LATENCY};
    static const enum scheduler_class equal[] = {SCHEDULER_BACKGROUND, SCHEDULER_BACKGROUND,
                                                 SCHEDULER_BACKGROUND};
    double share = share_of_first(background), due = 1.0 / (2 * SCHEDULER_BACKGROUND_SHARE + 1);

    (void)state;
    print_message("background beside two: %.4f, due %.4f\n", share, due);
    assert_true(share > 0.8 * due && share < 1.2 * due);
    share = share_of_first(normal);
    assert_true(share > 0.95 / 3 && share < 1.05 / 3);
    share = share_of_first(equal);
    assert_true(share > 0.95 / 3 && share < 1.05 / 3);
}

/* A late job is not taken along on the scan of others, either; one that is not yet is. */
static void late_riders(void **state)
{
    (void)state;
    open_scene(JOBS, true);
    submit(&jobs[0], 0, SCHEDULER_NORMAL, 0);
    submit(&jobs[1], 1, SCHEDULER_NORMAL, 1000);
    submit(&jobs[2], 2, SCHEDULER_NORMAL, 1001);
    run_slice();
    assert_ptr_equal(scheduler_take_done(&scheduler), &jobs[1]);
    assert_int_equal(jobs[1].status, GEMMD_STATUS_DEADLINE);
    assert_int_equal(jobs[1].rows_boarded, 0);
    assert_true(jobs[0].rows_boarded > 0 && jobs[2].rows_boarded > 0);
    scheduler_fini(&scheduler);
}

/* One that came first and fills its user's places does not keep them from the user's others. */
static void turns(void **state)
{
    uint64_t admitted[2] = {0, 0};
    struct scheduler_job *done;

    (void)state;
    open_scene(DEPTH + SCHEDULER_RESERVE, false);
    for (uint32_t i = 0; i < 2 * DEPTH; i++)
        submit(&jobs[i], i / DEPTH, SCHEDULER_NORMAL, 0);
    assert_int_equal(sessions[0].admitted, DEPTH);
    assert_int_equal(sessions[1].admitted, SCHEDULER_RESERVE);
    for (uint32_t i = 0; i < SLICES; i++) {
        run_slice();
        while ((done = scheduler_take_done(&scheduler)))
            submit(done, (uint32_t)(done->flow - flows), SCHEDULER_NORMAL, 0);
        admitted[0] += sessions[0].admitted;
        admitted[1] += sessions[1].admitted;
    }
    print_message("places on average: %.2f and %.2f\n", (double)admitted[0] / SLICES,
                  (double)admitted[1] / SLICES);
    assert_true(10 * admitted[0] < 12 * admitted[1] && 10 * admitted[1] < 12 * admitted[0]);
    scheduler_fini(&scheduler);
}

/* A user's places are all free again once its jobs have ended, however they ended. */
static void places(void **state)
{
    enum { QUOTA = SESSIONS * SCHEDULER_RESERVE };
    struct scheduler_job *done;

    (void)state;
    open_scene(QUOTA, false);
    for (uint32_t round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < JOBS; i++)
            submit(&jobs[i], i / DEPTH, SCHEDULER_NORMAL, i % 5 == 4 ? 1 : 0);
        scheduler_withdraw(&scheduler, &jobs[0], GEMMD_STATUS_CANCELLED); /* admitted */
        scheduler_withdraw(&scheduler, &jobs[DEPTH - 1], GEMMD_STATUS_CANCELLED); /* held */
        for (uint32_t ended = 0; ended < JOBS;) {
            while ((done = scheduler_take_done(&scheduler)))
                ended++;
            for (uint32_t i = 0; i < SESSIONS; i++)
                assert_true(sessions[i].admitted <= DEPTH);
            if (scheduler_has_work(&scheduler)) {
                struct scheduler_scan *scan = scheduler_next(&scheduler, 1000);

                if (scan)
                    scheduler_ran(&scheduler, scan, scan->panels_now, 1000);
            }
        }
        for (uint32_t i = 0; i < SESSIONS; i++)
            assert_int_equal(sessions[i].admitted + sessions[i].in_flight, 0);
        assert_int_equal(sessions[0].user->admitted, 0);
    }
    scheduler_fini(&scheduler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(classes),
        cmocka_unit_test(late_riders),
        cmocka_unit_test(turns),
        cmocka_unit_test(places),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
