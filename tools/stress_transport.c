/*
 * gemmd-stress --transport: what an empty job costs beyond moving a cache line to another core and
 * back.
 *
 * The bare round trip is measured between exactly the two cores that then carry the jobs, right
 * before and after them, by two threads of this program that bounce a number over two lines (one
 * per direction, as the rings do).  The worker sleeps meanwhile, or it would compete for its core;
 * it counts its turns, so that is checked and not assumed.
 *
 * Neither loop uses `pause`: it takes 40 cycles on older and 140 on newer x86 cores, more than the
 * transfer.  Two cores that are not hyper-threads of one another gain nothing from it.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/stress_transport_run.h"

#define BATCHES     501
#define BATCH_TRIPS 100
#define EACH_TRIPS  50000
/* Before each measured stretch: wakes the worker, warms caches and predictors. */
#define WARM_TRIPS 5000
/* A worker asleep makes no turn but its sweep's, each 100 ms. */
#define ASLEEP_LOOK_NS  UINT64_C(5000000)
#define ASLEEP_NS_MAX   UINT64_C(3000000000)

#define PING_END UINT32_MAX

#define LAYER_N 16
#define LAYER_K 64
#define LAYER_NAME "gemmd-stress/empty"

/* ---- timing of round trips ------------------------------------------------------------------- */

/* False: gave up. */
typedef bool (*trip_function)(struct transport *transport);

/* Inlined into each caller, so that `trip` is no indirect call. */
static inline __attribute__((always_inline)) bool
time_trips(struct transport *transport, trip_function trip, struct transport_trips *out)
{
    double means[BATCHES], ns_per_tick = stress_ns_per_tick();
    uint64_t last;

    for (int i = 0; i < WARM_TRIPS; i++)
        if (!trip(transport))
            return false;
    for (int batch = 0; batch < BATCHES; batch++) {
        uint64_t start = stress_ticks();

        for (int i = 0; i < BATCH_TRIPS; i++)
            if (!trip(transport))
                return false;
        means[batch] = (double)(stress_ticks() - start) * ns_per_tick / BATCH_TRIPS;
    }
    qsort(means, BATCHES, sizeof(means[0]), transport_compare_doubles);
    out->batch_ns = means[BATCHES / 2];

    /* One trip's end is the next one's start: the counter is read once per trip. */
    last = stress_ticks();
    for (int i = 0; i < EACH_TRIPS; i++) {
        uint64_t now;

        if (!trip(transport))
            return false;
        now = stress_ticks();
        stress_latency_add(&out->each, (uint64_t)((double)(now - last) * ns_per_tick));
        last = now;
    }
    return true;
}

/* ---- the bare line --------------------------------------------------------------------------- */

static void *answer_pings(void *argument)
{
    struct lines *lines = argument;
    uint32_t seen = 0;

    lines->error = stress_pin(lines->cpu);
    for (;;) {
        uint32_t ping = __atomic_load_n(&lines->ping, __ATOMIC_ACQUIRE);

        if (ping == PING_END)
            return NULL;
        if (ping == seen)
            continue;
        seen = ping;
        __atomic_store_n(&lines->pong, ping, __ATOMIC_RELEASE);
    }
}

static inline bool line_trip(struct transport *transport)
{
    struct lines *lines = &transport->lines;
    uint32_t sequence = ++transport->line_sequence;

    __atomic_store_n(&lines->ping, sequence, __ATOMIC_RELEASE);
    while (__atomic_load_n(&lines->pong, __ATOMIC_ACQUIRE) != sequence)
        ;
    return true;
}

static int time_line(struct transport *transport, struct transport_trips *out)
{
    struct lines *lines = &transport->lines;
    pthread_t thread;
    int error;

    memset(lines, 0, sizeof(*lines));
    transport->line_sequence = 0;
    lines->cpu = transport->info.dispatcher_cpu;
    error = -pthread_create(&thread, NULL, answer_pings, lines);
    if (error)
        return error;
    time_trips(transport, line_trip, out);
    __atomic_store_n(&lines->ping, PING_END, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    return lines->error;
}

/* True once the worker makes no turns. */
static bool wait_until_asleep(struct transport *transport)
{
    uint64_t start_ns = stress_now_ns();
    struct gemmd_stats first, second;

    do {
        if (gemmd_get_stats(transport->session, &first) < 0)
            return false;
        stress_sleep_ns(ASLEEP_LOOK_NS);
        if (gemmd_get_stats(transport->session, &second) < 0)
            return false;
        if (first.turns == second.turns)
            return true;
    } while (stress_now_ns() - start_ns < ASLEEP_NS_MAX);
    return false;
}

/* ---- empty jobs ------------------------------------------------------------------------------ */

static inline bool job_trip(struct transport *transport)
{
    struct gemmd_job *job = &transport->jobs[0];
    struct gemmd_completion done;

    job->user_data = ++transport->sequence;
    if (gemmd_submit(transport->session, job, 1) != 1) {
        transport->faults++;
        return false;
    }
    gemmd_flush(transport->session);
    if (transport_poll_some(transport, &done, 1) != 1) {
        transport->faults++;
        return false;
    }
    transport->faults += done.status != 0 || done.user_data != job->user_data;
    return true;
}

/* ---- stages ---------------------------------------------------------------------------------- */

static void end_stage(struct transport_stage *stage, const struct gemmd_stats *before,
                      const struct gemmd_stats *after)
{
    stage->worker_syscalls = after->syscalls - before->syscalls;
    stage->client_syscalls = after->session_syscalls - before->session_syscalls;
    stage->worker_sleeps = after->sleeps - before->sleeps;
    stage->doorbells = after->session_doorbells - before->session_doorbells;
    stage->undisturbed = after->sessions_opened == before->sessions_opened &&
                         after->sessions_closed == before->sessions_closed &&
                         after->wakes == before->wakes;
}

static bool run_stage(struct transport *transport, uint32_t depth, struct transport_trips *trips,
                      struct transport_stage *stage)
{
    struct gemmd_stats before, after;
    uint64_t start_ns, faults = transport->faults;
    bool alive = true;

    for (int i = 0; i < WARM_TRIPS && alive; i++)
        alive = job_trip(transport); /* so that the counters below start with the worker awake */
    stage->depth = depth;
    alive = alive && gemmd_get_stats(transport->session, &before) == 0;
    start_ns = stress_now_ns();
    if (alive && depth == 1) {
        alive = time_trips(transport, job_trip, trips);
        stage->jobs = WARM_TRIPS + BATCHES * BATCH_TRIPS + EACH_TRIPS;
    } else if (alive) {
        alive = transport_run_rate(transport, stage);
    }
    stage->seconds = (double)(stress_now_ns() - start_ns) / 1e9;
    alive = alive && gemmd_get_stats(transport->session, &after) == 0;
    stage->faults = transport->faults - faults;
    if (alive)
        end_stage(stage, &before, &after);
    return alive;
}

/* 0 or an exit status. */
static int repeat(struct transport *transport, struct transport_repetition *out)
{
    static const uint32_t depths[TRANSPORT_STAGES] = {1, 32, 128};
    int error;

    out->worker_asleep = wait_until_asleep(transport);
    error = time_line(transport, &out->line_before);
    for (int i = 0; i < TRANSPORT_STAGES && !error; i++)
        if (!run_stage(transport, depths[i], &out->job, &out->stages[i])) {
            fprintf(stderr, "gemmd-stress: depth %u: the jobs did not complete: %s\n", depths[i],
                    gemmd_error_text(transport->session));
            return STRESS_EXIT_WRONG;
        }
    out->worker_asleep &= wait_until_asleep(transport);
    if (!error) {
        int failure = transport_measure_wake(transport->session, &transport->jobs[0],
                                             transport->info.dispatcher_cpu, &out->wake);

        if (failure)
            return stress_exit_status(failure);
    }
    if (!error)
        error = time_line(transport, &out->line_after);
    if (error) {
        fprintf(stderr, "gemmd-stress: cannot use the worker's CPU %u: %s\n",
                transport->info.dispatcher_cpu, strerror(-error));
        return EX_UNAVAILABLE;
    }
    out->line_ns = (out->line_before.batch_ns + out->line_after.batch_ns) / 2;
    out->ratio = out->job.batch_ns / out->line_ns;
    return 0;
}

/* What one look tells.  0 or an exit status. */
static int measure_once(struct transport *transport, struct transport_many *many,
                        double *idle_percent)
{
    int error;

    wait_until_asleep(transport);
    *idle_percent = transport_measure_idle(transport->info.pid);
    error = transport_measure_many(transport->info.socket, LAYER_NAME, many);
    return error ? stress_exit_status(error) : EX_OK;
}

/* System calls of either side in stages where neither slept and nobody else was about. */
static uint64_t awake_syscalls(const struct transport_summary *summary)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < summary->count; i++)
        for (int j = 0; j < TRANSPORT_STAGES; j++) {
            const struct transport_stage *stage = &summary->repetitions[i].stages[j];

            if (stage->undisturbed && stage->worker_sleeps == 0 && stage->doorbells == 0)
                sum += stage->worker_syscalls + stage->client_syscalls;
        }
    return sum;
}

/* ---- set-up ---------------------------------------------------------------------------------- */

static int open_session(struct transport *transport)
{
    static const int8_t weights[LAYER_N * LAYER_K];
    struct gemmd_options options;
    struct gemmd_layer_desc desc;
    int error;

    gemmd_options_init(&options);
    options.timeout_ms = STRESS_TIMEOUT_MS;
    options.socket = transport->options->socket;
    error = gemmd_connect(&options, &transport->session);
    if (error < 0)
        return stress_fail(NULL, error);
    gemmd_layer_desc_init(&desc);
    desc.n = LAYER_N;
    desc.k = LAYER_K;
    desc.c_type = GEMMD_TYPE_S32;
    desc.weights = weights;
    desc.name = LAYER_NAME;
    error = gemmd_layer_create(transport->session, &desc, &transport->layer);
    if (error >= 0)
        error = gemmd_get_info(transport->session, &transport->info);
    if (error < 0)
        return stress_fail(transport->session, error);
    transport->memory = gemmd_buffer_alloc(transport->session, LAYER_K + LAYER_N * 4);
    if (!transport->memory)
        return stress_fail(transport->session, -ENOBUFS);
    for (int i = 0; i < TRANSPORT_DEPTH_MAX; i++)
        gemmd_job_init(&transport->jobs[i], transport->layer, 0, transport->memory,
                       (char *)transport->memory + LAYER_K);
    return 0;
}

/* After connecting: a worker started by that must not inherit our pinning. */
static int choose_cpu(struct transport *transport)
{
    uint32_t worker_cpu = transport->info.dispatcher_cpu;
    int cpu = transport->options->cpu_count ? (int)transport->options->cpus[0]
                                            : stress_partner_cpu(worker_cpu);
    int error;

    if (cpu < 0) {
        fprintf(stderr, "gemmd-stress: --transport needs a second CPU beside the worker's CPU %u\n",
                worker_cpu);
        return EX_UNAVAILABLE;
    }
    if ((uint32_t)cpu == worker_cpu) {
        fprintf(stderr, "gemmd-stress: --cpu %d is the worker's own: give another\n", cpu);
        return EX_USAGE;
    }
    error = stress_pin((uint32_t)cpu);
    if (error < 0) {
        fprintf(stderr, "gemmd-stress: cannot run on CPU %d: %s\n", cpu, strerror(-error));
        return EX_USAGE;
    }
    transport->client_cpu = (uint32_t)cpu;
    return 0;
}

static int report(struct transport_summary *summary, bool json)
{
    summary->awake_syscalls = awake_syscalls(summary);
    summary->passed = summary->awake_syscalls == 0 && summary->faults == 0;
    if (!json)
        transport_report_text(summary);
    else if (transport_report_json(summary) < 0)
        return EX_SOFTWARE;
    return summary->passed ? EX_OK : STRESS_EXIT_WRONG;
}

int stress_transport(const struct stress_options *options)
{
    struct transport *transport = aligned_alloc(128, sizeof(*transport));
    struct transport_repetition *repetitions = calloc(options->repetitions, sizeof(*repetitions));
    static struct transport_many many; /* 9 KB */
    double idle_percent = -1;
    int status = EX_SOFTWARE;

    if (!transport || !repetitions) {
        fprintf(stderr, "gemmd-stress: out of memory\n");
        goto done;
    }
    memset(transport, 0, sizeof(*transport));
    transport->options = options;
    stress_ns_per_tick();
    status = open_session(transport);
    if (!status)
        status = choose_cpu(transport);
    for (uint32_t i = 0; i < options->repetitions && !status; i++)
        status = repeat(transport, &repetitions[i]);
    if (!status)
        status = measure_once(transport, &many, &idle_percent);
    if (!status) {
        struct transport_summary summary = {
            .info = transport->info, .client_cpu = transport->client_cpu,
            .count = options->repetitions, .repetitions = repetitions,
            .faults = transport->faults, .many = many, .idle_percent = idle_percent,
        };

        status = report(&summary, options->json);
    }
    gemmd_close(&transport->session);
done:
    free(repetitions);
    free(transport);
    return status;
}
