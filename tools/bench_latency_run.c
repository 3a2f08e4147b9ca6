/*
 * The client spins on a CPU of its own, for jobs of the latency class, one at a time, with a pause
 * of random length before each: back to back, long ones would want more than the half of the
 * compute that is theirs beside the flood, and their waiting for credit would be measured.
 *
 * The flood is a process that shares the client's CPU at the lowest priority and sleeps nearly all
 * the time, since its jobs are as large as can be: the worker is measured, not the kernel's
 * scheduler.  What it gets is counted by the worker, in passes of rows over panels.
 */
#include "tools/bench_latency.h"

#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/stress_machine.h"

enum { SAMPLES_MAX = 200000, FLOOD_DEPTH = 16, JOB_MS_MAX = 20000, PANEL_COLUMNS_MAX = 64 };
/* Longer than any pause or job: the client spins. */
#define SPIN_NS    INT64_C(1000000000)
#define SETTLE_NS  UINT64_C(20000000)

struct latency_flood {
    bool wanted, running; /* atomic; the bench's and its own */
};

struct run {
    struct latency_bench *bench;
    struct bench_problem problem;
    struct bench_ours *ours;
    struct gemmd_layer *layer;
    struct gemmd_job job;
    uint64_t random;
    bool failed;
    double *ns; /* SAMPLES_MAX */
};

static struct gemmd *connect_to(const struct latency_bench *bench, int64_t spin_ns)
{
    struct gemmd *session = NULL;
    struct gemmd_options options;

    gemmd_options_init(&options);
    options.socket = bench->socket;
    options.autostart = 0;
    options.spin_ns = spin_ns;
    options.arena_bytes = UINT64_C(64) << 20;
    if (gemmd_connect(&options, &session) < 0) {
        fprintf(stderr, "gemmd-bench: %s\n", gemmd_error_text(session));
        gemmd_close(&session);
    }
    return session;
}

/* A layer of the problem's weights, u8 to u8.  False after a message. */
static bool open_job(struct gemmd *session, const struct bench_problem *problem,
                     struct gemmd_layer **layer, struct gemmd_job *job)
{
    struct gemmd_layer_desc desc;
    uint8_t *a = gemmd_buffer_alloc(session, problem->a_bytes);
    uint8_t *c = gemmd_buffer_alloc(session, problem->c_bytes);

    gemmd_layer_desc_init(&desc);
    desc.n = problem->shape.n;
    desc.k = problem->shape.k;
    desc.c_type = GEMMD_TYPE_U8;
    desc.weights = problem->b;
    desc.b_scales = problem->scale;
    desc.scale_count = desc.n;
    if (!a || !c || gemmd_layer_create(session, &desc, layer) < 0) {
        fprintf(stderr, "gemmd-bench: %s\n", gemmd_error_text(session));
        return false;
    }
    memcpy(a, problem->a, problem->a_bytes);
    gemmd_job_init(job, *layer, problem->shape.m, a, c);
    return true;
}

/* ---- the flood ------------------------------------------------------------------------------- */

static bool is_set(const bool *flag)
{
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

static void set(bool *flag, bool value)
{
    __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}

/* While it is wanted there are FLOOD_DEPTH jobs in flight. */
static void serve_flood(struct latency_flood *flood, struct gemmd *session, struct gemmd_job *job)
{
    struct gemmd_completion done[FLOOD_DEPTH];

    for (;;) {
        while (is_set(&flood->wanted) && gemmd_in_flight(session) < FLOOD_DEPTH)
            if (gemmd_submit(session, job, 1) != 1)
                return;
        if (gemmd_in_flight(session) == 0) {
            set(&flood->running, false);
            stress_sleep_ns(1000000);
        } else if (gemmd_wait(session, done, FLOOD_DEPTH, JOB_MS_MAX) < 0) {
            return;
        } else {
            set(&flood->running, true);
        }
    }
}

static void run_flood(const struct latency_bench *bench)
{
    const struct bench_shape shape = {FLOOD_M, FLOOD_N, FLOOD_K, "flood"};
    struct bench_machine machine = bench->machine;
    struct gemmd *session = connect_to(bench, 0);
    struct bench_problem problem;
    struct gemmd_layer *layer;
    struct gemmd_job job;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpriority(PRIO_PROCESS, 0, 19);
    bench_problem_open(&problem, &machine, &shape);
    if (session && open_job(session, &problem, &layer, &job))
        serve_flood(bench->flood, session, &job);
    fprintf(stderr, "gemmd-bench: the flood ends: %s\n", gemmd_error_text(session));
    _exit(EX_SOFTWARE);
}

/* False: its process has ended. */
static bool switch_flood(struct latency_bench *bench, bool on)
{
    set(&bench->flood->wanted, on);
    while (is_set(&bench->flood->running) != on) {
        if (waitpid(bench->flood_pid, NULL, WNOHANG) != 0)
            return false;
        stress_sleep_ns(1000000);
    }
    stress_sleep_ns(SETTLE_NS);
    return true;
}

/* 1e9 operations so far, of all passes over its panels. */
static double flood_work(struct gemmd *session)
{
    struct gemmd_layer_info info;
    double panels = 0;

    for (uint32_t i = 0; gemmd_get_layer_info(session, i, &info) == 0; i++)
        if (info.n == FLOOD_N && info.k == FLOOD_K && info.panels)
            panels = (double)info.panel_rows;
    return panels * 2 * PANEL_COLUMNS_MAX * FLOOD_K / 1e9;
}

/* ---- the client ------------------------------------------------------------------------------ */

/* xorshift (G. Marsaglia). */
static double random_below(struct run *run, double most)
{
    run->random ^= run->random << 13;
    run->random ^= run->random >> 7;
    run->random ^= run->random << 17;
    return most * (double)(run->random >> 11) / (double)(UINT64_C(1) << 53);
}

static bool call_worker(struct run *run)
{
    return gemmd_run(run->bench->session, &run->job, JOB_MS_MAX) == 0;
}

static bool call_limit(struct run *run)
{
    latency_limit_call(run->bench->limit);
    return true;
}

static uint32_t sample(struct run *run, bool (*call)(struct run *), double seconds)
{
    uint64_t end_ns = stress_now_ns() + (uint64_t)(seconds * 1e9);
    double ns_per_tick = stress_ns_per_tick();
    uint32_t count = 0;

    while (count < SAMPLES_MAX && stress_now_ns() < end_ns) {
        uint64_t go_ns = stress_now_ns() +
                         (uint64_t)random_below(run, 2000 * run->bench->gap_us);
        uint64_t begin;

        while (stress_now_ns() < go_ns)
            ;
        begin = stress_ticks();
        run->failed |= !call(run);
        run->ns[count++] = (double)(stress_ticks() - begin) * ns_per_tick;
    }
    return count;
}

static bool measure_side(struct run *run, bool (*call)(struct run *), double *p50_ns,
                         double *p99_ns)
{
    uint32_t count;

    sample(run, call, run->bench->seconds / 4);
    count = sample(run, call, run->bench->seconds);
    bench_sort(run->ns, count);
    *p50_ns = run->ns[count / 2];
    *p99_ns = run->ns[(uint64_t)count * 99 / 100];
    return !run->failed;
}

static double flood_rate(struct run *run)
{
    uint64_t begin_ns = stress_now_ns();
    double before = flood_work(run->bench->session);

    stress_sleep_ns((uint64_t)(run->bench->seconds * 1e9));
    return (flood_work(run->bench->session) - before) /
           ((double)(stress_now_ns() - begin_ns) / 1e9);
}

/* The worker sleeps.  False: there is no thread. */
static bool measure_limit(struct run *run, bool flooding, double *p99_ns)
{
    double p50_ns;

    if (!latency_limit_start(run->bench->limit, run->ours, flooding))
        return false;
    measure_side(run, call_limit, &p50_ns, p99_ns);
    latency_limit_stop(run->bench->limit);
    return true;
}

/* ---- one shape ------------------------------------------------------------------------------- */

enum { ALONE_P50, ALONE_P99, BESIDE_P50, BESIDE_P99, GOPS, ALONE_GOPS, LIMIT_ALONE, LIMIT_BESIDE,
       COLUMNS };

/* One of each column.  False: a job failed, or the flood's process. */
static bool measure_round(struct run *run, double out[COLUMNS])
{
    struct gemmd *session = run->bench->session;
    uint64_t begin_ns;
    double before;

    if (!switch_flood(run->bench, false) ||
        !measure_side(run, call_worker, &out[ALONE_P50], &out[ALONE_P99]))
        return false;
    stress_sleep_ns(2 * SETTLE_NS); /* the worker sleeps */
    if (!measure_limit(run, false, &out[LIMIT_ALONE]) ||
        !measure_limit(run, true, &out[LIMIT_BESIDE]) || !switch_flood(run->bench, true))
        return false;
    /* Longer than the worker remembers a latency job. */
    stress_sleep_ns(10 * SETTLE_NS);
    out[ALONE_GOPS] = flood_rate(run);
    before = flood_work(session);
    begin_ns = stress_now_ns();
    if (!measure_side(run, call_worker, &out[BESIDE_P50], &out[BESIDE_P99]))
        return false;
    out[GOPS] = (flood_work(session) - before) / ((double)(stress_now_ns() - begin_ns) / 1e9);
    return true;
}

static bool measure_rounds(struct run *run, struct latency_result *out)
{
    double columns[COLUMNS][BENCH_ROUNDS_MAX], one[COLUMNS];
    uint32_t rounds = run->bench->rounds;

    for (uint32_t i = 0; i < rounds; i++) {
        if (!measure_round(run, one))
            return false;
        for (int j = 0; j < COLUMNS; j++)
            columns[j][i] = one[j];
    }
    out->p50_ratio = bench_median_ratio(columns[BESIDE_P50], columns[ALONE_P50], rounds);
    out->p99_ratio = bench_median_ratio(columns[BESIDE_P99], columns[ALONE_P99], rounds);
    out->limit_ratio = bench_median_ratio(columns[LIMIT_BESIDE], columns[LIMIT_ALONE], rounds);
    out->alone_p50_ns = bench_median(columns[ALONE_P50], rounds);
    out->alone_p99_ns = bench_median(columns[ALONE_P99], rounds);
    out->beside_p50_ns = bench_median(columns[BESIDE_P50], rounds);
    out->beside_p99_ns = bench_median(columns[BESIDE_P99], rounds);
    out->flood_gops = bench_median(columns[GOPS], rounds);
    out->flood_alone_gops = bench_median(columns[ALONE_GOPS], rounds);
    out->limit_alone_ns = bench_median(columns[LIMIT_ALONE], rounds);
    out->limit_beside_ns = bench_median(columns[LIMIT_BESIDE], rounds);
    return true;
}

int latency_measure(struct latency_bench *bench, const struct bench_shape *shape,
                    struct latency_result *out)
{
    struct run run = {.bench = bench, .random = 88172645463325252u};
    int status = EX_SOFTWARE;

    out->shape = *shape;
    run.ns = calloc(SAMPLES_MAX, sizeof(*run.ns));
    if (!run.ns)
        return status;
    bench_problem_open(&run.problem, &bench->machine, shape);
    run.ours = bench_ours_open(&run.problem, &bench->machine);
    if (open_job(bench->session, &run.problem, &run.layer, &run.job)) {
        run.job.priority = GEMMD_PRIORITY_LATENCY;
        status = measure_rounds(&run, out) ? EX_OK : EX_SOFTWARE;
        if (status)
            fprintf(stderr, "gemmd-bench: a job failed, or the flood's process: %s\n",
                    gemmd_error_text(bench->session));
    }
    gemmd_buffer_free(bench->session, (void *)(uintptr_t)run.job.a);
    gemmd_buffer_free(bench->session, run.job.c);
    gemmd_layer_close(bench->session, &run.layer);
    bench_ours_close(run.ours);
    bench_problem_close(&run.problem);
    free(run.ns);
    return status;
}

/* ---- all shapes ------------------------------------------------------------------------------ */

int latency_open(struct latency_bench *bench)
{
    int cpu;

    bench->flood = mmap(NULL, sizeof(*bench->flood), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    bench->session = connect_to(bench, SPIN_NS);
    if (bench->flood == MAP_FAILED || !bench->session ||
        gemmd_get_info(bench->session, &bench->info) < 0)
        return EX_UNAVAILABLE;
    stress_ns_per_tick();
    cpu = bench->client_cpu != UINT_MAX ? (int)bench->client_cpu
                                        : stress_partner_cpu(bench->info.dispatcher_cpu);
    if (cpu < 0 || (uint32_t)cpu == bench->info.dispatcher_cpu || stress_pin((uint32_t)cpu) < 0) {
        fprintf(stderr, "gemmd-bench: latency needs a CPU beside the worker's CPU %u\n",
                bench->info.dispatcher_cpu);
        return EX_UNAVAILABLE;
    }
    bench->client_cpu = (unsigned int)cpu;
    bench_machine_open(&bench->machine);
    bench->limit = latency_limit_open(bench);
    if (!bench->limit) {
        fprintf(stderr, "gemmd-bench: no memory, or not the worker's kernel %s\n",
                bench->info.kernel);
        return EX_UNAVAILABLE;
    }
    bench->flood_pid = fork();
    if (bench->flood_pid == 0)
        run_flood(bench);
    return bench->flood_pid > 0 ? EX_OK : EX_UNAVAILABLE;
}

void latency_close(struct latency_bench *bench)
{
    if (bench->flood_pid > 0) {
        kill(bench->flood_pid, SIGKILL);
        waitpid(bench->flood_pid, NULL, 0);
    }
    latency_limit_close(bench->limit);
    gemmd_close(&bench->session);
}
