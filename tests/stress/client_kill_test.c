/*
 * Clients die: by SIGKILL, or stopped first and killed then, at each numbered step of the protocol
 * and at random moments under load.  After each round the worker's descriptors, mappings and
 * sessions are what they were, within a second; honest clients beside them lose nothing.
 *
 * usage: client_kill_test [--kills N] [--seed N]
 */
#include "tests/harness.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/attack/honest.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"

#define BATCH     8
#define HONEST    2
#define N         32
#define K         64
#define WINDOW    4096

static struct harness_worker worker;
static struct layer_case layer;
static unsigned kills_wanted = 2000;
static uint64_t seed = 20261125;

/* ---- the steps ------------------------------------------------------------------------------- */

enum step {
    CONNECTED,
    HELLO_SENT,
    SEGMENTS_RECEIVED,
    SEGMENTS_MAPPED,
    MAPPED_SENT,
    LIVE,
    UPLOAD_OPEN,
    UPLOAD_HALF,
    COMMIT_SENT,
    LAYER_OPEN,
    SLOT_HALF_WRITTEN, /* payload, but not seq */
    SUBMITTED,         /* seq written, doorbell not rung */
    RUNG,
    RING_FULL_OF_LARGE_JOBS,
    COMPLETION_UNREAD,
    CQ_FULL,           /* a lap of completions, cq_head never moved */
    WAKE_ARMED,
    ASLEEP,
    LAYER_CLOSE_SENT,
    STEP_COUNT
};

struct victim {
    enum step step;
    int fd; /* says that the step is reached */
};

/* The step is reached: says so, and waits for the end. */
static void stand_still(const struct victim *victim)
{
    REQUIRE(write(victim->fd, "!", 1) == 1);
    for (;;)
        pause();
}

static void stop_at(const struct victim *victim, enum step step)
{
    if (victim->step == step)
        stand_still(victim);
}

/* Connected, mapped, live. */
static void shake_hands(const struct victim *victim, struct raw *raw)
{
    struct gemmd_msg_hello hello = raw_hello(8, 1 << 16);
    struct gemmd_msg_mapped mapped;
    struct gemmd_msg_mapped_reply reply;

    memset(raw, 0, sizeof(*raw));
    if (victim->step <= HELLO_SENT) {
        raw->fd = raw_connect(worker.socket);
        stop_at(victim, CONNECTED);
        REQUIRE(raw_send(raw->fd, &hello, sizeof(hello), NULL, 0));
        stop_at(victim, HELLO_SENT);
    }
    if (victim->step == SEGMENTS_RECEIVED) {
        int fds[GEMMD_HELLO_FD_COUNT];
        unsigned count;

        raw->fd = raw_connect(worker.socket);
        REQUIRE(raw_send(raw->fd, &hello, sizeof(hello), NULL, 0));
        REQUIRE(raw_receive(raw->fd, &raw->hello, sizeof(raw->hello), fds, &count, 10000) > 0);
        stop_at(victim, SEGMENTS_RECEIVED);
    }
    raw_open_mapping(raw, worker.socket, 8, 1 << 16);
    stop_at(victim, SEGMENTS_MAPPED);
    mapped.header = raw_header(raw, GEMMD_MSG_MAPPED, sizeof(mapped));
    REQUIRE(raw_send(raw->fd, &mapped, sizeof(mapped), NULL, 0));
    stop_at(victim, MAPPED_SENT);
    REQUIRE(raw_receive(raw->fd, &reply, sizeof(reply), NULL, NULL, 10000) == sizeof(reply));
    REQUIRE(reply.header.status == GEMMD_STATUS_OK);
    stop_at(victim, LIVE);
}

/* An upload that nobody else makes; its hash is wrong, so that no layer comes of it. */
static void upload(const struct victim *victim, struct raw *raw)
{
    struct gemmd_msg_layer_create create = {
        .header = raw_header(raw, GEMMD_MSG_LAYER_CREATE, sizeof(create)),
        .desc = {.n = N, .k = K, .a_type = GEMMD_ABI_TYPE_U8, .c_type = GEMMD_ABI_TYPE_F32,
                 .scale_count = 1, .a_scale = 1.0f, .c_scale = 1.0f,
                 .b_type = GEMMD_ABI_TYPE_S8},
        .content_id = {(uint64_t)getpid(), 1},
    };
    struct gemmd_msg_layer_data data = {.arena_offset = 0, .bytes = 64};
    struct gemmd_msg_layer_commit commit;
    struct gemmd_msg_layer_data_reply data_reply;
    struct gemmd_msg_layer_reply reply;

    REQUIRE(raw_call(raw, &create, &reply, sizeof(reply)) == GEMMD_STATUS_OK);
    stop_at(victim, UPLOAD_OPEN);
    data.header = raw_header(raw, GEMMD_MSG_LAYER_DATA, sizeof(data));
    REQUIRE(raw_call(raw, &data, &data_reply, sizeof(data_reply)) == GEMMD_STATUS_OK);
    stop_at(victim, UPLOAD_HALF);
    commit.header = raw_header(raw, GEMMD_MSG_LAYER_COMMIT, sizeof(commit));
    REQUIRE(raw_send(raw->fd, &commit, sizeof(commit), NULL, 0));
    stop_at(victim, COMMIT_SENT);
    REQUIRE(raw_receive(raw->fd, &reply, sizeof(reply), NULL, NULL, 10000) > 0);
}

static void submit(const struct victim *victim, struct raw *raw, const struct gemmd_sqe *sqe)
{
    struct gemmd_cqe cqe;

    if (victim->step == SLOT_HALF_WRITTEN) {
        memcpy(raw->sq.slots, sqe, 56);
        stand_still(victim);
    }
    gemmd_sq_push(&raw->sq, sqe);
    stop_at(victim, SUBMITTED);
    raw_ring(raw);
    stop_at(victim, RUNG);
    if (victim->step == RING_FULL_OF_LARGE_JOBS || victim->step == CQ_FULL) {
        for (int i = 1; i < 8; i++)
            raw_submit(raw, sqe);
        stop_at(victim, RING_FULL_OF_LARGE_JOBS);
        for (int i = 0; i < 8; i++)
            REQUIRE(raw_complete(raw, &cqe, false, 20000));
        gemmd_sq_push(&raw->sq, sqe); /* beyond what may be in flight */
        stop_at(victim, CQ_FULL);
    }
}

static void sleep_on_it(const struct victim *victim, struct raw *raw)
{
    uint32_t epoch = 0, seen;
    struct gemmd_cqe cqe;

    seen = gemmd_wake_arm(raw->client, &epoch, raw->worker, raw->cq.index + 2);
    (void)seen;
    stop_at(victim, WAKE_ARMED);
    if (victim->step == ASLEEP)
        stand_still(victim);
    gemmd_wake_disarm(raw->client);
    REQUIRE(raw_complete(raw, &cqe, true, 20000));
}

static int live_and_die(void *argument)
{
    const struct victim *victim = argument;
    struct gemmd_msg_layer_close close_message;
    struct gemmd_msg_layer_reply handle;
    struct gemmd_sqe sqe;
    struct raw raw;

    shake_hands(victim, &raw);
    if (victim->step <= COMMIT_SENT)
        upload(victim, &raw);
    raw_open_layer(&raw, "victim", &handle);
    stop_at(victim, LAYER_OPEN);
    sqe = (struct gemmd_sqe){.op = GEMMD_OP_GEMM,
                             .m = victim->step == RING_FULL_OF_LARGE_JOBS ? 250 : 1,
                             .layer_id = handle.layer_id,
                             .layer_gen = handle.layer_gen,
                             .c_offset = 1 << 15,
                             .a_stride_bytes = K,
                             .c_stride_bytes = N * 4};
    submit(victim, &raw, &sqe);
    stop_at(victim, COMPLETION_UNREAD);
    sleep_on_it(victim, &raw);
    close_message.header = raw_header(&raw, GEMMD_MSG_LAYER_CLOSE, sizeof(close_message));
    close_message.layer_id = handle.layer_id;
    close_message.layer_gen = handle.layer_gen;
    REQUIRE(raw_send(raw.fd, &close_message, sizeof(close_message), NULL, 0));
    stop_at(victim, LAYER_CLOSE_SENT);
    return 1;
}

/* A library client that keeps its ring full; killed at no step in particular. */
static int flood(void *argument)
{
    const struct victim *victim = argument;
    struct gemmd *session = session_with(worker.socket, 16, 1 << 20, -1);
    struct gemmd_completion done[16];
    struct gemmd_layer *handle;
    struct gemmd_job job;

    REQUIRE(session != NULL && gemmd_layer_create(session, &layer.desc, &handle) >= 0);
    gemmd_job_init(&job, handle, 8, gemmd_buffer_alloc(session, 8 * K),
                   gemmd_buffer_alloc(session, 8 * N * 4));
    REQUIRE(write(victim->fd, "!", 1) == 1);
    for (;;) {
        while (gemmd_submit(session, &job, 1) == 1)
            ;
        REQUIRE(gemmd_wait(session, done, 16, 10000) > 0);
    }
    return 1;
}

/* ---- rounds ---------------------------------------------------------------------------------- */

struct baseline {
    unsigned fds, segments;
};

static struct baseline measure(void)
{
    return (struct baseline){machine_fds(worker.pid), machine_mappings(worker.pid, "gemmd-")};
}

/* Waits for the baseline; how long that took. */
static uint64_t await_baseline(const struct baseline *before)
{
    uint64_t since_ns = machine_now_ns(), took_ns;
    struct baseline now;

    do {
        now = measure();
        took_ns = machine_now_ns() - since_ns;
        if (memcmp(&now, before, sizeof(now)) == 0)
            return took_ns;
        usleep(500);
    } while (took_ns < UINT64_C(1000000000));
    fprintf(stderr, "after 1 s: %u descriptors (before: %u), %u segments (%u)\n", now.fds,
            before->fds, now.segments, before->segments);
    assert_memory_equal(&now, before, sizeof(now));
    return took_ns;
}

/* One batch of victims, all at `step` (STEP_COUNT: flooding, at random moments). */
static void kill_batch(enum step step, bool stop_first)
{
    struct victim victim = {.step = step};
    pid_t pids[BATCH];
    int channel[2];
    char byte;

    REQUIRE(pipe(channel) == 0);
    victim.fd = channel[1];
    for (unsigned i = 0; i < BATCH; i++)
        pids[i] = harness_fork(step == STEP_COUNT ? flood : live_and_die, &victim);
    for (unsigned i = 0; i < BATCH; i++)
        REQUIRE(read(channel[0], &byte, 1) == 1);
    if (step == STEP_COUNT)
        usleep((useconds_t)(random_next(&seed) % 3000));
    for (unsigned i = 0; i < BATCH; i++) {
        if (stop_first) {
            kill(pids[i], SIGSTOP);
            REQUIRE(waitpid(pids[i], NULL, WUNTRACED) == pids[i]);
        }
        kill(pids[i], SIGKILL);
    }
    for (unsigned i = 0; i < BATCH; i++)
        assert_int_equal(harness_join(pids[i], 10000), 1000 + SIGKILL);
    close(channel[0]);
    close(channel[1]);
}

static uint64_t rss_bytes(void)
{
    char path[64];
    unsigned long pages = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/statm", (int)worker.pid);
    file = fopen(path, "re");
    REQUIRE(file != NULL && fscanf(file, "%*u %lu", &pages) == 1);
    fclose(file);
    return pages * 4096;
}

static void test_kills(void **state)
{
    unsigned killed = 0, round = 0;
    uint64_t slowest_ns = 0, rss_before = 0;
    struct honest_count count;
    struct baseline before;
    struct honest honest;
    struct gemmd *watcher;
    struct gemmd_layer *handle;
    struct gemmd_info info;
    struct gemmd_stats stats;

    (void)state;
    watcher = session_to(worker.socket);
    assert_non_null(watcher);
    assert_int_equal(gemmd_layer_create(watcher, &layer.desc, &handle), 0);
    honest_start(&honest, worker.socket, &layer, 4, 100000, HONEST);
    assert_int_equal(gemmd_get_stats(watcher, &stats), 0);
    before = measure();
    for (; killed < kills_wanted; round++) {
        uint64_t took_ns;

        kill_batch((enum step)(round % (STEP_COUNT + 1)), random_next(&seed) & 1);
        killed += BATCH;
        took_ns = await_baseline(&before);
        slowest_ns = took_ns > slowest_ns ? took_ns : slowest_ns;
        assert_true(harness_is_alive(&worker));
        if (round == STEP_COUNT) /* each step has been seen once: tables have grown */
            rss_before = rss_bytes();
    }
    count = honest_read(&honest);
    assert_int_equal(gemmd_get_info(watcher, &info), 0);
    assert_int_equal(info.session_count, 1 + HONEST);
    assert_int_equal(gemmd_get_stats(watcher, &stats), 0);
    printf("%u kills in %u rounds over %d steps; back to baseline after %.1f ms at most; resident "
           "memory %+.2f MiB; honest: %lu jobs, %lu failed, %lu wrong; rescues %lu\n", killed,
           round, STEP_COUNT + 1, (double)slowest_ns / 1e6,
           ((double)rss_bytes() - (double)rss_before) / (1 << 20), (unsigned long)count.jobs,
           (unsigned long)count.failed, (unsigned long)count.wrong, (unsigned long)stats.rescues);
    assert_int_equal(count.failed, 0);
    assert_int_equal(count.wrong, 0);
    if (rss_before && !machine_is_sanitized())
        assert_true(rss_bytes() < rss_before + (UINT64_C(2) << 20));
    honest_stop(&honest);
    gemmd_close(&watcher);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, N, K, 71);
    layer.desc.name = "victim";
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

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kills),
    };

    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--kills") == 0)
            kills_wanted = (unsigned)strtoul(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--seed") == 0)
            seed = strtoul(argv[i + 1], NULL, 10);
    }
    printf("seed %lu\n", (unsigned long)seed);
    return HARNESS_RUN(tests, start, stop, 120 + kills_wanted / 20);
}
