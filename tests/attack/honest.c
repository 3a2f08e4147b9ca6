/* One process per honest client: submits, waits, compares, counts. */
#include "tests/attack/honest.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "tests/e2e/machine.h"
#include "tests/harness.h"

#define START_MS 20000

struct start {
    const struct honest *honest;
    struct honest_count *count;
};

static volatile sig_atomic_t asked_to_end;

static void on_term(int number)
{
    (void)number;
    asked_to_end = 1;
}

static void add(uint64_t *word, uint64_t by)
{
    __atomic_fetch_add(word, by, __ATOMIC_RELAXED);
}

/* One job and its comparison. */
static void run_one(struct gemmd *session, const struct gemmd_job *job, const void *wanted,
                    size_t bytes, struct honest_count *count)
{
    uint64_t before_ns = machine_now_ns(), took_ns;
    int error;

    memset(job->c, 0xee, bytes);
    error = gemmd_run(session, job, 10000);
    if (error == -EINTR && asked_to_end)
        return;
    if (error) {
        fprintf(stderr, "honest client: %s\n", gemmd_error_text(session));
        add(&count->failed, 1);
        return;
    }
    took_ns = machine_now_ns() - before_ns;
    if (took_ns > count->slowest_ns)
        __atomic_store_n(&count->slowest_ns, took_ns, __ATOMIC_RELAXED);
    add(memcmp(job->c, wanted, bytes) == 0 ? &count->jobs : &count->wrong, 1);
}

static int serve_honestly(void *argument)
{
    const struct start *start = argument;
    const struct honest *honest = start->honest;
    const struct gemmd_layer_desc *desc = &honest->layer->desc;
    size_t bytes = (size_t)honest->rows * desc->n * type_bytes(desc->c_type);
    struct gemmd *session = session_with(honest->socket, 0, 4 << 20, -1);
    const struct timespec pause = {0, (long)honest->pause_ns};
    uint64_t seed = (uint64_t)getpid();
    struct gemmd_layer *handle;
    void *wanted = malloc(bytes);
    struct gemmd_job job;
    uint8_t *a;

    signal(SIGTERM, on_term);
    REQUIRE(session != NULL && wanted != NULL);
    REQUIRE(gemmd_layer_create(session, desc, &handle) >= 0);
    a = gemmd_buffer_alloc(session, (size_t)honest->rows * desc->k);
    gemmd_job_init(&job, handle, honest->rows, a, gemmd_buffer_alloc(session, bytes));
    REQUIRE(a && job.c);
    random_bytes(&seed, a, (size_t)honest->rows * desc->k);
    layer_case_expect(honest->layer, honest->rows, a, desc->k, wanted,
                      desc->n * type_bytes(desc->c_type));
    while (!asked_to_end && start->count->failed < 10) {
        run_one(session, &job, wanted, bytes, start->count);
        if (honest->pause_ns)
            nanosleep(&pause, NULL);
    }
    free(wanted);
    gemmd_close(&session);
    return 0;
}

void honest_start(struct honest *honest, const char *socket, const struct layer_case *layer,
                  uint32_t rows, uint64_t pause_ns, unsigned count)
{
    uint64_t deadline_ns = machine_now_ns() + (uint64_t)START_MS * 1000000;

    REQUIRE(count <= HONEST_MAX);
    *honest = (struct honest){.socket = socket, .layer = layer, .rows = rows,
                              .pause_ns = pause_ns, .count = count};
    honest->counts = mmap(NULL, HONEST_MAX * sizeof(*honest->counts), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(honest->counts != MAP_FAILED);
    for (unsigned i = 0; i < count; i++) {
        struct start start = {honest, &honest->counts[i]};

        honest->pids[i] = harness_fork(serve_honestly, &start);
    }
    for (unsigned i = 0; i < count; i++)
        while (__atomic_load_n(&honest->counts[i].jobs, __ATOMIC_RELAXED) == 0) {
            REQUIRE(machine_now_ns() < deadline_ns);
            usleep(1000);
        }
}

struct honest_count honest_read(const struct honest *honest)
{
    struct honest_count sum = {0, 0, 0, 0};

    for (unsigned i = 0; i < honest->count; i++) {
        const struct honest_count *count = &honest->counts[i];
        uint64_t slowest_ns = __atomic_load_n(&count->slowest_ns, __ATOMIC_RELAXED);

        sum.jobs += __atomic_load_n(&count->jobs, __ATOMIC_RELAXED);
        sum.failed += __atomic_load_n(&count->failed, __ATOMIC_RELAXED);
        sum.wrong += __atomic_load_n(&count->wrong, __ATOMIC_RELAXED);
        sum.slowest_ns = slowest_ns > sum.slowest_ns ? slowest_ns : sum.slowest_ns;
    }
    return sum;
}

void honest_stop(struct honest *honest)
{
    for (unsigned i = 0; i < honest->count; i++)
        kill(honest->pids[i], SIGTERM);
    for (unsigned i = 0; i < honest->count; i++)
        REQUIRE(harness_join(honest->pids[i], START_MS) == 0);
    munmap(honest->counts, HONEST_MAX * sizeof(*honest->counts));
    honest->count = 0;
}
