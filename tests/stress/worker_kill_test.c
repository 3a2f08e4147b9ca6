/*
 * The worker dies, over and over, under load.  Clients that recover see nothing of it: each job
 * completes once, with the right bits.  Clients that do not are told, once for each job, and
 * connect again by themselves.  Nobody waits for longer than it takes to start a worker.  Every
 * other time some further clients stand at one of the numbered steps of the protocol.
 *
 * usage: worker_kill_test [--kills N] [--seed N]
 */
#include "tests/harness.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/stress/steps.h"

#define CLIENTS 4
#define VICTIMS 3
#define DEPTH   16
#define ROWS    6
#define N       48
#define K       96

static struct harness_worker worker;
static struct layer_case layer;
static unsigned kills_wanted = 100;
static uint64_t seed = 20261125;

struct tally {
    uint64_t right, wrong, lost, twice, failed, recoveries;
    uint64_t longest_ns; /* between two completions */
};

static struct tally *tallies; /* [CLIENTS], shared */
static int *finish;           /* shared */

struct client {
    unsigned index;
    bool recover;
};

/* One slot of operands, and what its job must give. */
struct place {
    uint8_t *a;
    float *c;
    float wanted[ROWS * N];
    bool busy;
};

struct run {
    struct tally *tally;
    struct gemmd *session;
    struct gemmd_layer *layer;
    struct place places[DEPTH];
    uint64_t seed;
};

static bool open_session(struct run *run, bool recover)
{
    struct gemmd_options options;
    uint64_t deadline_ns = machine_now_ns() + UINT64_C(20000000000);

    gemmd_options_init(&options);
    options.socket = worker.socket;
    options.arena_bytes = 1 << 20;
    options.ring_entries = 2 * DEPTH;
    options.recover_ms = recover ? 20000 : 0;
    options.keep_weights = recover;
    while (gemmd_connect(&options, &run->session) < 0 ||
           gemmd_layer_create(run->session, &layer.desc, &run->layer) < 0) {
        gemmd_close(&run->session);
        if (machine_now_ns() > deadline_ns)
            return false;
        usleep(2000);
    }
    for (unsigned i = 0; i < DEPTH; i++) {
        run->places[i].a = gemmd_buffer_alloc(run->session, ROWS * K);
        run->places[i].c = gemmd_buffer_alloc(run->session, ROWS * N * sizeof(float));
        run->places[i].busy = false;
        REQUIRE(run->places[i].a && run->places[i].c);
    }
    return true;
}

/* Fills free places and submits them. */
static int submit_all(struct run *run)
{
    for (unsigned i = 0; i < DEPTH; i++) {
        struct place *place = &run->places[i];
        struct gemmd_job job;
        int taken;

        if (place->busy)
            continue;
        random_bytes(&run->seed, place->a, ROWS * K);
        layer_case_expect(&layer, ROWS, place->a, K, place->wanted, N * sizeof(float));
        memset(place->c, 0xee, ROWS * N * sizeof(float));
        gemmd_job_init(&job, run->layer, ROWS, place->a, place->c);
        job.user_data = i;
        taken = gemmd_submit(run->session, &job, 1);
        if (taken <= 0)
            return taken;
        place->busy = true;
    }
    return 0;
}

static void account(struct run *run, const struct gemmd_completion *done)
{
    struct place *place = &run->places[done->user_data % DEPTH];

    if (!place->busy)
        run->tally->twice++;
    place->busy = false;
    if (done->error == -ECONNRESET)
        run->tally->lost++;
    else if (done->error)
        run->tally->failed++;
    else if (memcmp(place->c, place->wanted, sizeof(place->wanted)) == 0)
        run->tally->right++;
    else
        run->tally->wrong++;
}

/* Until the session is lost or the test is over. */
static void use_session(struct run *run)
{
    struct gemmd_completion done[DEPTH];
    uint64_t last_ns = machine_now_ns(), now_ns;
    int error = 0;

    while (error >= 0 && !__atomic_load_n(finish, __ATOMIC_RELAXED)) {
        int got;

        error = submit_all(run);
        do {
            got = gemmd_wait(run->session, done, DEPTH, 20000);
            for (int i = 0; i < got; i++)
                account(run, &done[i]);
            now_ns = machine_now_ns();
            if (now_ns - last_ns > run->tally->longest_ns)
                run->tally->longest_ns = now_ns - last_ns;
            last_ns = now_ns;
        } while (error < 0 && got > 0); /* what is in flight must still end */
        if (got < 0) {
            fprintf(stderr, "wait: %d %s\n", got, gemmd_error_text(run->session));
            run->tally->failed++;
            return;
        }
    }
}

static int be_client(void *argument)
{
    const struct client *client = argument;
    struct run run = {.tally = &tallies[client->index], .seed = seed + client->index};
    struct gemmd_stats stats;

    while (!__atomic_load_n(finish, __ATOMIC_RELAXED)) {
        if (!open_session(&run, client->recover))
            return 3;
        use_session(&run);
        if (client->recover && gemmd_get_stats(run.session, &stats) == 0)
            run.tally->recoveries += stats.session_recoveries;
        if (client->recover && !__atomic_load_n(finish, __ATOMIC_RELAXED))
            return 4; /* it gave up */
        gemmd_close(&run.session);
    }
    return 0;
}

static uint64_t right_of(unsigned index)
{
    return __atomic_load_n(&tallies[index].right, __ATOMIC_RELAXED);
}

/* Every client has had `more` further results. */
static void await_progress(uint64_t more)
{
    uint64_t deadline_ns = machine_now_ns() + UINT64_C(20000000000);
    uint64_t before[CLIENTS];

    for (unsigned i = 0; i < CLIENTS; i++)
        before[i] = right_of(i);
    for (unsigned i = 0; i < CLIENTS; i++)
        while (right_of(i) < before[i] + more) {
            REQUIRE(machine_now_ns() < deadline_ns);
            usleep(500);
        }
}

static void kill_worker(unsigned kill_index)
{
    struct victim victim = {.step = (enum step)(kill_index / 2 % STEP_COUNT),
                            .socket = worker.socket};
    unsigned count = kill_index % 2 ? VICTIMS : 0;
    pid_t pids[VICTIMS];
    int channel[2];
    char byte;

    REQUIRE(pipe(channel) == 0);
    victim.fd = channel[1];
    for (unsigned i = 0; i < count; i++)
        pids[i] = harness_fork(steps_run, &victim);
    for (unsigned i = 0; i < count; i++)
        REQUIRE(read(channel[0], &byte, 1) == 1);
    if (!count)
        usleep((useconds_t)(random_next(&seed) % 8000));
    harness_kill(&worker);
    for (unsigned i = 0; i < count; i++)
        harness_reap_killed(pids[i]);
    close(channel[0]);
    close(channel[1]);
}

static void test_kills(void **state)
{
    struct tally sum = {0};
    struct client clients[CLIENTS];
    pid_t pids[CLIENTS];
    uint64_t start_longest_ns = 0, longest_ns = 0;

    (void)state;
    for (unsigned i = 0; i < CLIENTS; i++) {
        clients[i] = (struct client){i, i % 2 == 0};
        pids[i] = harness_fork(be_client, &clients[i]);
    }
    await_progress(1);
    for (unsigned kill_index = 0; kill_index < kills_wanted; kill_index++) {
        uint64_t since_ns, took_ns;

        kill_worker(kill_index);
        since_ns = machine_now_ns();
        harness_restart(&worker, NULL);
        took_ns = machine_now_ns() - since_ns;
        start_longest_ns = took_ns > start_longest_ns ? took_ns : start_longest_ns;
        await_progress(20);
        took_ns = machine_now_ns() - since_ns;
        longest_ns = took_ns > longest_ns ? took_ns : longest_ns;
    }
    __atomic_store_n(finish, 1, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < CLIENTS; i++)
        assert_int_equal(harness_join(pids[i], 30000), 0);
    for (unsigned i = 0; i < CLIENTS; i++) {
        const struct tally *tally = &tallies[i];

        printf("client %u (%s): %lu right, %lu lost, %lu recoveries, longest gap %.0f ms\n", i,
               clients[i].recover ? "recovers" : "is told", (unsigned long)tally->right,
               (unsigned long)tally->lost, (unsigned long)tally->recoveries,
               (double)tally->longest_ns / 1e6);
        sum.wrong += tally->wrong;
        sum.twice += tally->twice;
        sum.failed += tally->failed;
        if (clients[i].recover) {
            assert_int_equal(tally->lost, 0);
            assert_int_equal(tally->recoveries, kills_wanted);
        }
    }
    /* Of the time a sleeping client needs up to 100 ms to look (client/complete.c), and the first
     * layer of an empty worker 30 ms to get its 32 MiB of pages. */
    printf("%u kills of the worker: %lu wrong, %lu twice, %lu failed; the next one was ready after "
           "%.0f ms at most, and all clients had results again after %.0f\n", kills_wanted,
           (unsigned long)sum.wrong, (unsigned long)sum.twice, (unsigned long)sum.failed,
           (double)start_longest_ns / 1e6, (double)longest_ns / 1e6);
    assert_int_equal(sum.wrong + sum.twice + sum.failed, 0);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, N, K, 81);
    layer.desc.name = "victim";
    tallies = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(tallies != MAP_FAILED);
    finish = (int *)(void *)((char *)tallies + 2048);
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
    return HARNESS_RUN(tests, start, stop, 120 + kills_wanted);
}
