/*
 * The scribbler: a thread rewrites every word its client may write, at full speed, while the worker
 * serves that client and honest ones.  In the sanitized builds the worker's own memory accesses are
 * watched; here the honest clients' bits are.
 */
#include "tests/harness.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "tests/attack/attacks.h"
#include "tests/attack/honest.h"
#include "tests/e2e/machine.h"

#define SECONDS  3
/* A rewritten seq stops the own ring for good: time for a new session. */
#define STUCK_NS UINT64_C(20000000)

static struct harness_worker worker;
static struct layer_case layer;

struct scribbler {
    struct raw raw;
    bool stop;
    bool gently; /* spares what would stop its own session: cq_head, and the slots' seq */
    uint64_t words, seed;
};

/* All of the arena and the ring in turn, and a word of the client line each time. */
static void *scribble(void *argument)
{
    struct scribbler *scribbler = argument;
    struct raw *raw = &scribbler->raw;
    uint64_t *ring = (uint64_t *)(void *)(raw->c2w + GEMMD_RING_OFFSET);
    uint64_t *arena = (uint64_t *)(void *)raw->arena;
    uint64_t ring_words = (raw->hello.c2w_bytes - GEMMD_RING_OFFSET) / 8, at = 0;
    uint32_t *line = (uint32_t *)raw->client;

    while (!__atomic_load_n(&scribbler->stop, __ATOMIC_RELAXED)) {
        uint64_t word = random_next(&scribbler->seed);

        /* Half of the values are small: a job that is valid but for one field. */
        if (!scribbler->gently || at % GEMMD_SQE_WORDS != GEMMD_SQE_WORDS - 1)
            __atomic_store_n(&ring[at % ring_words], word & 1 ? word : word >> 52,
                             __ATOMIC_RELAXED);
        __atomic_store_n(&arena[at % 8192], word, __ATOMIC_RELAXED);
        __atomic_store_n(&line[1 + word % 15], (uint32_t)(word >> 32), __ATOMIC_RELAXED);
        if (!scribbler->gently && word % 65536 == 0)
            __atomic_store_n(&line[0], (uint32_t)(word >> 32), __ATOMIC_RELAXED);
        at++;
        __atomic_store_n(&scribbler->words, at * 3, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* Submits real jobs into the ring that is being rewritten, until its session ends, stops
 * completing, or time is over. */
static void submit_and_reap(struct raw *raw, const struct gemmd_msg_layer_reply *handle,
                            uint64_t deadline_ns, uint64_t *completions)
{
    struct gemmd_sqe sqe = {.op = GEMMD_OP_GEMM,
                            .m = 4,
                            .layer_id = handle->layer_id,
                            .layer_gen = handle->layer_gen,
                            .c_offset = raw->hello.arena_bytes / 2,
                            .a_stride_bytes = handle->desc.k,
                            .c_stride_bytes = handle->desc.n * 4};
    uint64_t now_ns = machine_now_ns(), completed_ns = now_ns;
    struct gemmd_cqe cqe;

    while (now_ns < deadline_ns && now_ns - completed_ns < STUCK_NS && !raw_is_ended(raw, 0)) {
        for (int i = 0; i < 64; i++) {
            if (raw->sq.index - raw->cq.index < raw->hello.ring_entries)
                raw_submit(raw, &sqe);
            while (gemmd_cq_take(&raw->cq, &cqe)) {
                ++*completions;
                completed_ns = now_ns;
            }
            gemmd_cq_release(&raw->cq, raw->client);
        }
        now_ns = machine_now_ns();
    }
}

static void check_scribbling(bool gently)
{
    uint64_t deadline_ns, words = 0, completions = 0, sessions = 0;
    struct honest_count before, after;
    struct honest honest;

    honest_start(&honest, worker.socket, &layer, 4, 0, 2);
    before = honest_read(&honest);
    deadline_ns = machine_now_ns() + SECONDS * UINT64_C(1000000000);
    while (machine_now_ns() < deadline_ns) {
        struct scribbler scribbler = {.gently = gently, .seed = ++sessions};
        struct gemmd_msg_layer_reply handle;
        pthread_t thread;

        raw_open(&scribbler.raw, worker.socket, 64, UINT64_C(1) << 20);
        raw_open_layer(&scribbler.raw, "scribbled", &handle);
        REQUIRE(pthread_create(&thread, NULL, scribble, &scribbler) == 0);
        submit_and_reap(&scribbler.raw, &handle, deadline_ns, &completions);
        __atomic_store_n(&scribbler.stop, true, __ATOMIC_RELAXED);
        pthread_join(thread, NULL);
        words += scribbler.words;
        raw_close(&scribbler.raw);
    }
    after = honest_read(&honest);
    honest_stop(&honest);
    printf("%lu words rewritten in %lu sessions, %lu completions of theirs; honest: %lu jobs, "
           "%lu failed, %lu wrong, the slowest %.1f ms\n", (unsigned long)words,
           (unsigned long)sessions, (unsigned long)completions,
           (unsigned long)(after.jobs - before.jobs), (unsigned long)after.failed,
           (unsigned long)after.wrong, (double)after.slowest_ns / 1e6);
    assert_true(harness_is_alive(&worker));
    assert_int_equal(after.failed, 0);
    assert_int_equal(after.wrong, 0);
    assert_true(after.jobs > before.jobs);
    assert_true(completions > 0);
}

static void test_gently(void **state)
{
    (void)state;
    check_scribbling(true);
}

static void test_everything(void **state)
{
    (void)state;
    check_scribbling(false);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, 32, 64, 41);
    layer.desc.name = "scribbled";
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
        cmocka_unit_test(test_gently),
        cmocka_unit_test(test_everything),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
