/* The rings' promise: exactly one completion per job, in whatever lap, however full. */
#include "tests/harness.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"

static struct harness_worker worker; /* of most tests */
static struct layer_case layer;

#define N 24
#define K 40

static struct gemmd_layer *open_layer(struct gemmd *session)
{
    struct gemmd_layer *handle;

    REQUIRE(gemmd_layer_create(session, &layer.desc, &handle) >= 0);
    return handle;
}

/* ---- all the way full ------------------------------------------------------------------------ */

static void check_full(uint32_t entries)
{
    struct gemmd *session = session_with(worker.socket, entries, 1 << 20, -1);
    struct gemmd_layer *handle = open_layer(session);
    struct gemmd_job jobs[40];
    struct gemmd_completion done[40];
    void *a = gemmd_buffer_alloc(session, K), *c = gemmd_buffer_alloc(session, N * 4);
    uint32_t places = entries - 1; /* the last one is a cancel's */
    uint64_t next = 0;
    int taken;

    for (unsigned i = 0; i < 40; i++) {
        gemmd_job_init(&jobs[i], handle, 1, a, c);
        jobs[i].user_data = i;
    }
    while (next + 1 < places) {
        unsigned want = places - 1 - next < 40 ? (unsigned)(places - 1 - next) : 40;

        assert_int_equal(gemmd_submit(session, jobs, want), want);
        next += want;
    }
    /* Room for one of three; none is lost, none is taken twice. */
    taken = gemmd_submit(session, jobs, 3);
    assert_int_equal(taken, 1);
    assert_int_equal(gemmd_submit(session, jobs, 3), 0);
    assert_int_equal(gemmd_in_flight(session), places);
    for (uint32_t got = 0; got < places;) {
        int count = gemmd_wait(session, done, 40, 10000);

        assert_true(count > 0);
        for (int i = 0; i < count; i++)
            assert_int_equal(done[i].status, 0);
        got += (uint32_t)count;
        assert_int_equal(gemmd_in_flight(session), places - got);
    }
    assert_int_equal(gemmd_poll(session, done, 40), 0);
    assert_int_equal(gemmd_wait(session, done, 40, 10), 0); /* nothing in flight: at once */
    assert_int_equal(gemmd_submit(session, jobs, 3), 3);
    gemmd_close(&session);
}

static void test_full_ring(void **state)
{
    (void)state;
    check_full(8);
    check_full(256);
    check_full(4096);
}

/* ---- laps ------------------------------------------------------------------------------------ */

/* `total` jobs with random depths; each user_data comes back once.  A row of A carries the
 * number of its slot, so that a job that ran with another's operands shows in C. */
static void run_laps(struct gemmd *session, uint32_t entries, uint64_t total, uint64_t seed)
{
    struct gemmd_layer *handle = open_layer(session);
    uint8_t *a = gemmd_buffer_alloc(session, (size_t)entries * K);
    float *c = gemmd_buffer_alloc(session, (size_t)entries * N * sizeof(*c));
    float *wanted = malloc((size_t)entries * N * sizeof(*wanted));
    uint8_t *seen = calloc(total, 1);
    uint64_t submitted = 0, reaped = 0;

    REQUIRE(a && c && wanted && seen);
    random_bytes(&seed, a, (size_t)entries * K);
    layer_case_expect(&layer, entries, a, K, wanted, N * sizeof(*c));
    while (reaped < total) {
        struct gemmd_completion done[64];
        uint64_t burst = random_next(&seed) % (2 * entries) + 1;
        int count;

        for (; burst && submitted < total; burst--) {
            uint64_t slot = submitted % entries;
            struct gemmd_job job;

            if (submitted - reaped == entries - 1) /* the last place is a cancel's */
                break;
            gemmd_job_init(&job, handle, 1, a + slot * K, c + slot * N);
            job.user_data = submitted | UINT64_C(0xabcd000000000000);
            assert_int_equal(gemmd_submit(session, &job, 1), 1);
            submitted++;
        }
        count = gemmd_wait(session, done, 1 + (unsigned)(random_next(&seed) % 64), 10000);
        assert_true(count > 0);
        for (int i = 0; i < count; i++) {
            uint64_t index = done[i].user_data & UINT64_C(0xffffffffffff);

            assert_int_equal(done[i].user_data >> 48, 0xabcd);
            assert_int_equal(done[i].status, 0);
            assert_true(index < submitted);
            assert_int_equal(seen[index]++, 0);
            if (memcmp(c + index % entries * N, wanted + index % entries * N, N * sizeof(*c)) != 0)
                fail_msg("job %lu has another's result", (unsigned long)index);
            memset(c + index % entries * N, 0xff, N * sizeof(*c));
        }
        reaped += (uint64_t)count;
    }
    assert_int_equal(gemmd_in_flight(session), 0);
    free(seen);
    free(wanted);
    gemmd_buffer_free(session, a);
    gemmd_buffer_free(session, c);
}

/* Three before 2^32 and three before 2^16: where a counter of the wrong width would turn over. */
static void test_wraps(void **state)
{
    static const char *const starts[] = {"0", "4294967293", "4294967295", "65533", "2147483645"};

    (void)state;
    for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) {
        const char *const arguments[] = {"--ring-start", starts[i], NULL};
        struct harness_worker wrapping;

        harness_start(&wrapping, arguments, NULL);
        for (uint32_t entries = 8; entries <= 512; entries *= 8) {
            struct gemmd *session = session_with(wrapping.socket, entries, 1 << 20, -1);

            REQUIRE(session != NULL);
            run_laps(session, entries, 1500, 17 * entries + i);
            gemmd_close(&session);
        }
        harness_stop(&wrapping);
    }
}

/* ---- who does not reap ----------------------------------------------------------------------- */

static struct gemmd_sqe plain_sqe(const struct gemmd_msg_layer_reply *handle)
{
    return (struct gemmd_sqe){.op = GEMMD_OP_GEMM,
                              .m = 1,
                              .layer_id = handle->layer_id,
                              .layer_gen = handle->layer_gen,
                              .c_offset = 4096,
                              .a_stride_bytes = K,
                              .c_stride_bytes = N * 4};
}

/* A raw client keeps submitting although its completion ring is full.  The worker stops taking
 * its jobs; another session does not notice; when the client reaps, the rest completes, each
 * once. */
static void test_no_reaping_stalls_only_itself(void **state)
{
    struct gemmd *owner = session_to(worker.socket);
    struct gemmd_layer *named;
    struct gemmd_msg_layer_reply handle;
    struct gemmd_cqe cqe;
    struct gemmd_sqe sqe;
    struct raw raw;

    (void)state;
    layer.desc.name = "ring";
    REQUIRE(gemmd_layer_create(owner, &layer.desc, &named) >= 0);
    layer.desc.name = NULL;
    raw_open(&raw, worker.socket, 8, 1 << 16);
    raw_open_layer(&raw, "ring", &handle);
    sqe = plain_sqe(&handle);
    for (uint64_t i = 0; i < 8; i++) {
        sqe.user_data = i;
        raw_submit(&raw, &sqe);
    }
    for (uint64_t i = 0; i < 8; i++) {
        assert_true(raw_complete(&raw, &cqe, false, 5000)); /* read, but not released */
        assert_int_equal(cqe.user_data, i);
        assert_int_equal(cqe.status, GEMMD_STATUS_OK);
    }
    for (uint64_t i = 8; i < 16; i++) {
        sqe.user_data = i;
        raw_submit(&raw, &sqe);
    }
    run_laps(owner, 64, 2000, 3);
    assert_false(raw_complete(&raw, &cqe, false, 50)); /* no slot was overwritten */
    gemmd_cq_release(&raw.cq, raw.client);
    raw_ring(&raw);
    for (uint64_t i = 8; i < 16; i++) {
        assert_true(raw_complete(&raw, &cqe, true, 5000));
        assert_int_equal(cqe.user_data, i);
        assert_int_equal(cqe.status, GEMMD_STATUS_OK);
    }
    assert_false(raw_complete(&raw, &cqe, true, 20));
    raw_close(&raw);
    gemmd_close(&owner);
}

/* The same, and the client dies meanwhile. */
static void test_stalled_client_may_die(void **state)
{
    struct gemmd *owner = session_to(worker.socket);
    struct gemmd_layer *named;
    struct gemmd_msg_layer_reply handle;
    struct gemmd_sqe sqe;
    struct gemmd_cqe cqe;
    struct raw raw;

    (void)state;
    layer.desc.name = "ring2";
    REQUIRE(gemmd_layer_create(owner, &layer.desc, &named) >= 0);
    layer.desc.name = NULL;
    raw_open(&raw, worker.socket, 8, 1 << 16);
    raw_open_layer(&raw, "ring2", &handle);
    sqe = plain_sqe(&handle);
    for (int i = 0; i < 8; i++)
        raw_submit(&raw, &sqe);
    for (int i = 0; i < 8; i++)
        assert_true(raw_complete(&raw, &cqe, false, 10000));
    for (int i = 0; i < 8; i++)
        raw_submit(&raw, &sqe);
    raw_close(&raw);
    run_laps(owner, 8, 500, 4);
    for (int i = 0; i < 1000 && machine_mappings(worker.pid, "gemmd-arena") > 1; i++)
        usleep(1000);
    assert_int_equal(machine_mappings(worker.pid, "gemmd-arena"), 1);
    gemmd_close(&owner);
}

static void test_empty_jobs(void **state)
{
    struct gemmd *session = session_to(worker.socket);
    struct gemmd_layer *handle = open_layer(session);
    uint8_t *c = gemmd_buffer_alloc(session, N * 4);
    struct gemmd_completion done[32];
    struct gemmd_job job;
    uint64_t sum = 0;

    (void)state;
    memset(c, 0x77, N * 4);
    gemmd_job_init(&job, handle, 0, c, c);
    for (uint64_t i = 0; i < 32; i++) {
        job.user_data = UINT64_C(1) << i;
        assert_int_equal(gemmd_submit(session, &job, 1), 1);
    }
    for (unsigned got = 0; got < 32;) {
        int count = gemmd_wait(session, done, 32, 10000);

        assert_true(count > 0);
        for (int i = 0; i < count; i++) {
            assert_int_equal(done[i].status, 0);
            sum ^= done[i].user_data;
        }
        got += (unsigned)count;
    }
    assert_int_equal(sum, UINT32_MAX);
    for (unsigned i = 0; i < N * 4; i++)
        assert_int_equal(c[i], 0x77);
    gemmd_close(&session);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, N, K, 11);
    harness_start(&worker, NULL, NULL);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    layer_case_fini(&layer);
    harness_stop(&worker);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_ring),
        cmocka_unit_test(test_wraps),
        cmocka_unit_test(test_no_reaping_stalls_only_itself),
        cmocka_unit_test(test_stalled_client_may_die),
        cmocka_unit_test(test_empty_jobs),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
