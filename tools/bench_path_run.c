/*
 * The three sides of one job.  In each of the rounds every side runs for a while, one after the
 * other: in process on the worker's CPU while the worker sleeps, then between that CPU and the
 * client's.  Each call is timed by itself, and the median counts, so that what else the CPUs have
 * to do is not in it.
 *
 * Before each call a byte of each cache line of A is written, after it a word of each line of C is
 * read, by the CPU that asks for the job: rows are made and results used there.  Untouched ones
 * stay in the worker's cache, and what is left is the path alone.
 */
#include "tools/bench_path.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/stress_machine.h"

enum { SAMPLES_MAX = 20000, SAMPLES_MIN = 15, LINE = 64 };
/* Longer than any job. */
#define SPIN_NS    INT64_C(1000000000)
#define JOB_MS_MAX 20000
/* The worker's spin is over after this. */
#define ASLEEP_NS UINT64_C(5000000)

/* Lines of their own, and of no neighbour that a prefetcher pairs with them. */
struct line {
    _Alignas(128) uint32_t sequence; /* atomic */
    char padding[124];
};

struct run {
    struct path_bench *bench;
    struct bench_problem problem;
    struct bench_ours *ours;
    struct gemmd_layer *layer;
    struct gemmd_job job;
    uint8_t *a, *c; /* of the session's arena */
    struct line asked, answered;
    pthread_t thread;
    bool failed;
    double call_ns[SAMPLES_MAX], read_ns[SAMPLES_MAX];
};

/* ---- the sides ------------------------------------------------------------------------------- */

static void call_own(struct run *run)
{
    if (run->problem.shape.m)
        bench_ours_run(run->ours);
}

static void *serve_handovers(void *argument)
{
    struct run *run = argument;

    stress_pin(run->bench->info.dispatcher_cpu);
    for (uint32_t turn = 1;; turn++) {
        while (__atomic_load_n(&run->asked.sequence, __ATOMIC_ACQUIRE) < turn)
            ; /* pairs with call_handover */
        if (run->asked.sequence == UINT32_MAX)
            return NULL;
        call_own(run);
        __atomic_store_n(&run->answered.sequence, turn, __ATOMIC_RELEASE);
    }
}

static void call_handover(struct run *run)
{
    uint32_t turn = run->asked.sequence + 1;

    __atomic_store_n(&run->asked.sequence, turn, __ATOMIC_RELEASE);
    while (__atomic_load_n(&run->answered.sequence, __ATOMIC_ACQUIRE) != turn)
        ; /* pairs with serve_handovers */
}

static void call_worker(struct run *run)
{
    run->failed |= gemmd_run(run->bench->session, &run->job, JOB_MS_MAX) != 0;
}

/* ---- one sample ------------------------------------------------------------------------------ */

static void write_rows(const struct run *run, uint8_t *a)
{
    size_t bytes = run->bench->untouched ? 0 : run->problem.a_bytes;

    for (size_t i = 0; i < bytes; i += LINE)
        *(volatile uint8_t *)(a + i) = run->problem.a[i];
}

static void read_result(const struct run *run, const uint8_t *c)
{
    size_t bytes = run->bench->untouched ? 0 : run->problem.c_bytes;

    for (size_t i = 0; i < bytes; i += LINE)
        (void)*(const volatile uint8_t *)(c + i);
}

/* The counter, once all before it is done: it may be read some 100 ns early otherwise. */
static inline uint64_t ticks_when_done(void)
{
#if defined(__x86_64__)
    __builtin_ia32_lfence();
#endif
    return stress_ticks();
}

/* How many.  Inlined into each caller, so that `call` is no indirect one. */
static inline __attribute__((always_inline)) uint32_t
sample(struct run *run, void (*call)(struct run *), uint8_t *a, const uint8_t *c, double seconds)
{
    uint64_t end_ns = stress_now_ns() + (uint64_t)(seconds * 1e9);
    double ns_per_tick = stress_ns_per_tick();
    uint32_t count = 0;

    while (count < SAMPLES_MAX && (count < SAMPLES_MIN || stress_now_ns() < end_ns)) {
        uint64_t begin, complete, read;

        write_rows(run, a);
        begin = ticks_when_done();
        call(run);
        complete = ticks_when_done();
        read_result(run, c);
        read = ticks_when_done();
        run->call_ns[count] = (double)(complete - begin) * ns_per_tick;
        run->read_ns[count++] = (double)(read - complete) * ns_per_tick;
    }
    return count;
}

/* Warms, then measures one side. */
static bool measure_side(struct run *run, enum path_side side, double *ns, double *read_ns)
{
    double seconds = run->bench->seconds;
    uint8_t *a = run->problem.a, *c = run->problem.c;
    uint32_t count = 0;

    stress_pin(side == PATH_OWN ? run->bench->info.dispatcher_cpu : run->bench->client_cpu);
    switch (side) {
    case PATH_OWN:
        stress_sleep_ns(ASLEEP_NS);
        sample(run, call_own, a, c, seconds / 4);
        count = sample(run, call_own, a, c, seconds);
        break;
    case PATH_HANDOVER:
        run->asked.sequence = run->answered.sequence = 0;
        if (pthread_create(&run->thread, NULL, serve_handovers, run))
            return false;
        sample(run, call_handover, a, c, seconds / 4);
        count = sample(run, call_handover, a, c, seconds);
        __atomic_store_n(&run->asked.sequence, UINT32_MAX, __ATOMIC_RELEASE);
        pthread_join(run->thread, NULL);
        break;
    default:
        sample(run, call_worker, run->a, run->c, seconds / 4);
        count = sample(run, call_worker, run->a, run->c, seconds);
    }
    bench_sort(run->call_ns, count);
    bench_sort(run->read_ns, count);
    *ns = run->call_ns[count / 2];
    *read_ns = run->read_ns[count / 2];
    return !run->failed;
}

/* ---- one shape ------------------------------------------------------------------------------- */

/* 0 or an exit status. */
static int measure_rounds(struct run *run, struct path_result *out)
{
    double ns[PATH_SIDES][BENCH_ROUNDS_MAX], read_ns[PATH_SIDES][BENCH_ROUNDS_MAX];
    double own_ratio[BENCH_ROUNDS_MAX], own_more[BENCH_ROUNDS_MAX];
    double handover_ratio[BENCH_ROUNDS_MAX], handover_more[BENCH_ROUNDS_MAX];
    uint32_t rounds = run->bench->rounds;

    for (uint32_t i = 0; i < rounds; i++) {
        for (int side = 0; side < PATH_SIDES; side++)
            if (!measure_side(run, side, &ns[side][i], &read_ns[side][i])) {
                fprintf(stderr, "gemmd-bench: a job failed: %s\n",
                        gemmd_error_text(run->bench->session));
                return EX_SOFTWARE;
            }
        own_ratio[i] = ns[PATH_WORKER][i] / ns[PATH_OWN][i];
        own_more[i] = ns[PATH_WORKER][i] - ns[PATH_OWN][i];
        handover_ratio[i] = ns[PATH_WORKER][i] / ns[PATH_HANDOVER][i];
        handover_more[i] = ns[PATH_WORKER][i] - ns[PATH_HANDOVER][i];
    }
    for (int side = 0; side < PATH_SIDES; side++) {
        out->ns[side] = bench_median(ns[side], rounds);
        out->read_ns[side] = bench_median(read_ns[side], rounds);
    }
    out->own_ratio = bench_median(own_ratio, rounds);
    out->own_more_ns = bench_median(own_more, rounds);
    out->handover_ratio = bench_median(handover_ratio, rounds);
    out->handover_more_ns = bench_median(handover_more, rounds);
    return EX_OK;
}

static bool open_layer(struct run *run)
{
    const struct bench_shape *shape = &run->problem.shape;
    struct gemmd *session = run->bench->session;
    size_t a_bytes = run->problem.a_bytes, c_bytes = run->problem.c_bytes;
    struct gemmd_layer_desc desc;

    gemmd_layer_desc_init(&desc);
    desc.n = shape->n;
    desc.k = shape->k;
    desc.c_type = GEMMD_TYPE_U8;
    desc.weights = run->problem.b;
    desc.b_scales = run->problem.scale;
    desc.scale_count = shape->n;
    desc.bias_type = GEMMD_TYPE_F32;
    desc.bias = run->problem.bias;
    desc.activation = GEMMD_ACTIVATION_RELU;
    run->a = gemmd_buffer_alloc(session, a_bytes ? a_bytes : 1);
    run->c = gemmd_buffer_alloc(session, c_bytes ? c_bytes : 1);
    if (!run->a || !run->c || gemmd_layer_create(session, &desc, &run->layer) < 0)
        return false;
    memcpy(run->a, run->problem.a, a_bytes);
    gemmd_job_init(&run->job, run->layer, shape->m, run->a, run->c);
    return true;
}

int path_measure(struct path_bench *bench, const struct bench_shape *shape,
                 struct path_result *out)
{
    struct run *run = aligned_alloc(128, (sizeof(*run) + 127) & ~(size_t)127);
    int status = EX_SOFTWARE;

    if (!run)
        return status;
    memset(run, 0, sizeof(*run));
    run->bench = bench;
    bench_problem_open(&run->problem, &bench->machine, shape);
    run->ours = bench_ours_open(&run->problem, &bench->machine);
    out->shape = *shape;
    if (open_layer(run))
        status = measure_rounds(run, out);
    else
        fprintf(stderr, "gemmd-bench: %s\n", gemmd_error_text(bench->session));
    if (!status && memcmp(run->c, run->problem.c, run->problem.c_bytes)) {
        fprintf(stderr, "gemmd-bench: the worker and its kernel in process disagree\n");
        status = EX_SOFTWARE;
    }
    gemmd_buffer_free(bench->session, run->a);
    gemmd_buffer_free(bench->session, run->c);
    gemmd_layer_close(bench->session, &run->layer);
    bench_ours_close(run->ours);
    bench_problem_close(&run->problem);
    free(run);
    return status;
}

/* ---- all shapes ------------------------------------------------------------------------------ */

int path_open(struct path_bench *bench)
{
    struct gemmd_options options;
    int cpu;

    gemmd_options_init(&options);
    options.socket = bench->socket;
    options.autostart = 0;
    options.spin_ns = SPIN_NS; /* both spin */
    if (gemmd_connect(&options, &bench->session) < 0 ||
        gemmd_get_info(bench->session, &bench->info) < 0) {
        fprintf(stderr, "gemmd-bench: %s\n", gemmd_error_text(bench->session));
        return EX_UNAVAILABLE;
    }
    if (!bench_ours_select_kernel(bench->info.kernel)) {
        fprintf(stderr, "gemmd-bench: the worker's kernel %s is not in this program\n",
                bench->info.kernel);
        return EX_UNAVAILABLE;
    }
    stress_ns_per_tick();
    cpu = bench->client_cpu != UINT_MAX ? (int)bench->client_cpu
                                        : stress_partner_cpu(bench->info.dispatcher_cpu);
    if (cpu < 0 || (uint32_t)cpu == bench->info.dispatcher_cpu || stress_pin((uint32_t)cpu) < 0) {
        fprintf(stderr, "gemmd-bench: path needs a CPU beside the worker's CPU %u\n",
                bench->info.dispatcher_cpu);
        return EX_UNAVAILABLE;
    }
    bench->client_cpu = (unsigned int)cpu;
    bench_machine_open(&bench->machine);
    return EX_OK;
}

void path_close(struct path_bench *bench)
{
    gemmd_close(&bench->session);
}
