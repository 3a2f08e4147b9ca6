/*
 * What a client has the worker do beside compute is paid for: sessions that compute as much as they
 * may, and now and then beside that submit without end what is empty, refused or cancelled, or have
 * themselves woken, leave an honest one what they leave it while they only compute.
 *
 * The hostile one writes its rings by hand.  The worker has one CPU, the clients the others if
 * there are any.
 */
#include "tests/harness.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"

/* Of its due, per mille. */
#define RATE_MIN 950

enum {
    N = 1024,
    ROWS = 128,
    DEPTH = 256, /* of the honest one: more than it misses while others have its CPU */
    JOBS = 16,   /* of each hostile session */
    BESIDE = 32, /* in flight: few enough that they are soon done with */
    SESSIONS_MAX = 16,
    ARENA = 1 << 20,
    C_AT = 1 << 18,
    ROUNDS = 10,
    ROUND_MS = 60,
    SETTLE_MS = 5,
};

enum hostile { COMPUTE, EMPTY, REFUSED, CANCELS, MISSES, WAKES };

/* What the processes tell each other. */
struct board {
    uint64_t rows;    /* that the honest one has */
    uint32_t kind;    /* what the hostile one is to do */
    uint32_t at_work; /* its sessions */
};

static struct harness_worker worker;
static struct layer_case layer, honest_layer;
static struct gemmd *owner; /* of the hostile ones' layer */
static struct gemmd_layer *owner_layer;
static struct board *board;

/* ---- the honest one -------------------------------------------------------------------------- */

static __attribute__((noreturn)) int run_honest(void *argument)
{
    struct gemmd *session = session_with(worker.socket, DEPTH, UINT64_C(4) << 20, 0);
    struct gemmd_completion done[DEPTH];
    struct gemmd_layer *handle;
    struct gemmd_job job;
    void *a, *c;

    (void)argument;
    REQUIRE(session && gemmd_layer_create(session, &honest_layer.desc, &handle) >= 0);
    a = gemmd_buffer_alloc(session, ROWS * N);
    c = gemmd_buffer_alloc(session, ROWS * N * sizeof(float));
    REQUIRE(a && c);
    gemmd_job_init(&job, handle, ROWS, a, c);
    for (;;) { /* until it is killed */
        int count;

        while (gemmd_submit(session, &job, 1) == 1)
            ;
        count = gemmd_wait(session, done, DEPTH, 10000);
        REQUIRE(count > 0);
        __atomic_fetch_add(&board->rows, (uint64_t)count * ROWS, __ATOMIC_RELAXED);
    }
}

/* ---- the hostile one ------------------------------------------------------------------------- */

struct greedy {
    uint32_t sessions, ring_entries;
};

struct source {
    struct raw raw;
    struct gemmd_msg_layer_reply handle;
    uint32_t in_flight, jobs, epoch;
    uint64_t sequence;
};

/* user_data: of the jobs that are to run. */
#define IS_JOB (UINT64_C(1) << 63)

static void reap(struct source *source)
{
    struct gemmd_cqe cqe;
    bool any = false;

    while (gemmd_cq_take(&source->raw.cq, &cqe)) {
        any = true;
        source->in_flight--;
        source->jobs -= cqe.user_data >> 63;
    }
    if (any)
        gemmd_cq_release(&source->raw.cq, source->raw.client);
}

static void submit(struct source *source, struct gemmd_sqe sqe)
{
    gemmd_sq_push(&source->raw.sq, &sqe);
    source->in_flight++;
}

static struct gemmd_sqe job_of(const struct source *source, uint32_t m, uint64_t user_data)
{
    return (struct gemmd_sqe){.op = GEMMD_OP_GEMM,
                              .m = m,
                              .layer_id = source->handle.layer_id,
                              .layer_gen = source->handle.layer_gen,
                              .a_stride_bytes = N,
                              .c_offset = C_AT,
                              .c_stride_bytes = N * sizeof(float),
                              .user_data = user_data};
}

/* One of what is not to be for nothing. */
static void molest(struct source *source, enum hostile kind)
{
    struct gemmd_sqe sqe = job_of(source, 0, ++source->sequence);

    switch (kind) {
    case COMPUTE:
    case EMPTY:
        break;
    case REFUSED:
        sqe.flags = 1;
        break;
    case CANCELS:
        sqe.m = ROWS;
        submit(source, sqe);
        sqe = (struct gemmd_sqe){.op = GEMMD_OP_CANCEL, .target = sqe.user_data};
        break;
    case MISSES: /* the whole table of jobs is searched */
        sqe = (struct gemmd_sqe){.op = GEMMD_OP_CANCEL, .target = sqe.user_data};
        break;
    case WAKES: /* it says that it sleeps */
        gemmd_wake_arm(source->raw.client, &source->epoch, source->raw.worker,
                       source->raw.cq.index + 1);
        break;
    }
    submit(source, sqe);
}

static void act(struct source *source, enum hostile kind)
{
    reap(source);
    while (source->jobs < JOBS && source->in_flight < JOBS + BESIDE) {
        submit(source, job_of(source, ROWS, IS_JOB));
        source->jobs++;
    }
    while (kind != COMPUTE && source->in_flight < source->jobs + (kind == WAKES ? 1 : BESIDE))
        molest(source, kind);
    raw_ring(&source->raw);
}

static __attribute__((noreturn)) int run_hostile(void *argument)
{
    static struct source sources[SESSIONS_MAX];
    const struct greedy *greedy = argument;

    for (uint32_t i = 0; i < greedy->sessions; i++) {
        raw_open(&sources[i].raw, worker.socket, greedy->ring_entries, ARENA);
        raw_open_layer(&sources[i].raw, "toll", &sources[i].handle);
    }
    __atomic_store_n(&board->at_work, greedy->sessions, __ATOMIC_RELEASE);
    setpriority(PRIO_PROCESS, 0, 19); /* out of the honest one's way, on the CPU that they share */
    for (;;)
        for (uint32_t i = 0; i < greedy->sessions; i++)
            act(&sources[i], __atomic_load_n(&board->kind, __ATOMIC_RELAXED));
}

/* ---- rates ----------------------------------------------------------------------------------- */

static double measure_rate(enum hostile kind)
{
    uint64_t start_ns, rows;

    __atomic_store_n(&board->kind, kind, __ATOMIC_RELAXED);
    usleep(SETTLE_MS * 1000);
    start_ns = machine_now_ns();
    rows = __atomic_load_n(&board->rows, __ATOMIC_RELAXED);
    usleep(ROUND_MS * 1000);
    rows = __atomic_load_n(&board->rows, __ATOMIC_RELAXED) - rows;
    return (double)rows / (double)(machine_now_ns() - start_ns);
}

/* The honest one's rate, of that beside the same sessions while they only compute. */
static double measure(enum hostile kind, const struct greedy *greedy)
{
    double due = 0, got = 0;
    pid_t honest, hostile;

    memset(board, 0, sizeof(*board));
    honest = harness_fork(run_honest, NULL);
    hostile = harness_fork(run_hostile, (void *)(uintptr_t)greedy);
    while (!__atomic_load_n(&board->at_work, __ATOMIC_ACQUIRE) ||
           !__atomic_load_n(&board->rows, __ATOMIC_RELAXED))
        usleep(1000);
    for (int round = 0; round < ROUNDS; round++)
        if ((round + 1) / 2 % 2)
            got += measure_rate(kind);
        else
            due += measure_rate(COMPUTE);
    assert_true(harness_is_alive(&worker));
    harness_reap_killed(hostile);
    harness_reap_killed(honest);
    assert_true(due > 0);
    return got / due;
}

/* The best of five: on a machine busy with other things the honest one is at times not run. */
static void check(const char *name, enum hostile kind)
{
    if (machine_is_sanitized())
        harness_skip("a sanitized worker's time is spent on other things than jobs");
    for (uint32_t sessions = 1; sessions <= SESSIONS_MAX; sessions *= SESSIONS_MAX) {
        const struct greedy greedy = {sessions, kind == MISSES ? 4096 : 256};
        double rate = 0;

        for (int attempt = 0; attempt < 5 && rate * 1000 < RATE_MIN; attempt++) {
            rate = measure(kind, &greedy);
            print_message("%s of %u sessions: the honest one had %.1f %% of its due\n", name,
                          sessions, rate * 100);
        }
        assert_true(rate * 1000 >= RATE_MIN);
    }
}

static void test_empty(void **state)
{
    (void)state;
    check("empty jobs", EMPTY);
}

static void test_refused(void **state)
{
    (void)state;
    check("refused jobs", REFUSED);
}

static void test_cancels(void **state)
{
    (void)state;
    check("cancelled jobs", CANCELS);
}

static void test_misses(void **state)
{
    (void)state;
    check("cancels of nothing", MISSES);
}

static void test_wakes(void **state)
{
    (void)state;
    check("wakes", WAKES);
}

static int start(void **state)
{
    static const char *const none[] = {NULL};

    (void)state;
    machine_start_apart(&worker, none);
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(board != MAP_FAILED);
    layer_case_plain(&honest_layer, N, N, 3);
    layer_case_plain(&layer, N, N, 7);
    layer.desc.name = "toll";
    owner = session_to(worker.socket);
    REQUIRE(owner && gemmd_layer_create(owner, &layer.desc, &owner_layer) == 0);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    gemmd_close(&owner);
    layer_case_fini(&layer);
    layer_case_fini(&honest_layer);
    harness_stop(&worker);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty),  cmocka_unit_test(test_refused),
        cmocka_unit_test(test_cancels), cmocka_unit_test(test_misses),
        cmocka_unit_test(test_wakes),
    };

    return HARNESS_RUN(tests, start, stop, 100);
}
