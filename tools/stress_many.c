/*
 * gemmd-stress --transport: what a thousand sessions cost the dispatcher, most of them idle, and
 * what a session feels of others that come and go.
 *
 * All sessions are this program's, with the smallest ring and arena.  The hot ones get a job each
 * often enough to stay hot; the dispatcher counts its turns, so the mean turn is time over turns.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/stress.h"
#include "tools/stress_machine.h"
#include "tools/stress_transport.h"

#define SESSIONS 999 /* and the one that --transport has */
#define HOT      64
#define GROUP    8
/* Shorter together with a round than the worker's default spin: the hot sessions stay hot. */
#define QUIET_NS    UINT64_C(10000)
#define WARM_ROUNDS 300
#define ROUNDS      2000
#define TRIPS    20000
/* Sessions that come and go beside the trips. */
#define CHURN_PAUSE_NS UINT64_C(500000)

struct many {
    const char *socket;
    struct gemmd *sessions[SESSIONS];
    struct gemmd_job jobs[HOT];
    uint32_t count;
    uint32_t stop;  /* of the churn: atomic */
    uint64_t churned; /* written by its thread, read after it has ended */
    int churn_error;
};

static int connect_small(const char *socket, struct gemmd **out)
{
    struct gemmd_options options;

    gemmd_options_init(&options);
    options.timeout_ms = STRESS_TIMEOUT_MS;
    options.socket = socket;
    options.autostart = 0;
    options.ring_entries = GROUP;
    options.arena_bytes = 1 << 16;
    return gemmd_connect(&options, out);
}

/* Of session NULL: of a connect in this thread.  Returns `error`. */
static int complain(const struct gemmd *session, const char *what, int error)
{
    fprintf(stderr, "gemmd-stress: one of many sessions: %s: %s: %s\n", what,
            gemmd_strerror(error), gemmd_error_text(session));
    return error;
}

/* -EAGAIN: the worker or this process can hold no more; the caller makes do with what there is. */
static int open_all(struct many *many, const char *layer_name, struct transport_many *out)
{
    uint64_t start_ns = stress_now_ns();
    int error = 0;

    while (many->count < SESSIONS) {
        struct gemmd **session = &many->sessions[many->count];
        struct gemmd_layer *layer;
        void *memory;

        error = connect_small(many->socket, session);
        if (error < 0)
            break;
        many->count++;
        if (many->count > HOT)
            continue;
        error = gemmd_layer_open(*session, layer_name, &layer);
        memory = gemmd_buffer_alloc(*session, 4096);
        if (error < 0 || !memory)
            return complain(*session, "its layer and memory", error < 0 ? error : -ENOBUFS);
        gemmd_job_init(&many->jobs[many->count - 1], layer, 0, memory, memory);
    }
    out->sessions = many->count + 1;
    out->hot = HOT;
    out->connect_us = (double)(stress_now_ns() - start_ns) / 1e3 / (double)(many->count + 1);
    return many->count > HOT ? 0 : complain(NULL, "connecting", error);
}

/* As all below: 0, or -errno after a message. */
static int submit_to(struct many *many, uint32_t index)
{
    int taken = gemmd_submit(many->sessions[index], &many->jobs[index], 1);

    if (taken != 1)
        return complain(many->sessions[index], "submit", taken < 0 ? taken : -ENOSPC);
    gemmd_flush(many->sessions[index]);
    return 0;
}

static int complete_of(struct many *many, uint32_t index)
{
    uint64_t start_ns = stress_now_ns();
    struct gemmd_completion done = {0};
    int got;

    while ((got = gemmd_poll(many->sessions[index], &done, 1)) == 0)
        if (stress_now_ns() - start_ns > TRANSPORT_COMPLETION_NS_MAX)
            break;
    if (got == 1 && done.status == 0)
        return 0;
    if (got == 1)
        return complain(many->sessions[index], gemmd_status_name(done.status), done.error);
    return complain(many->sessions[index], "completion", got < 0 ? got : -ETIMEDOUT);
}

/* One job to each session of a group, then all answers. */
static int serve_group(struct many *many, uint32_t first)
{
    int error = 0;

    for (uint32_t i = first; i < first + GROUP && !error; i++)
        error = submit_to(many, i);
    for (uint32_t i = first; i < first + GROUP && !error; i++)
        error = complete_of(many, i);
    return error;
}

static int serve_round(struct many *many)
{
    int error = 0;

    for (uint32_t first = 0; first < HOT && !error; first += GROUP)
        error = serve_group(many, first);
    return error;
}

static int read_stats(struct many *many, struct gemmd_stats *out)
{
    int error = gemmd_get_stats(many->sessions[0], out);

    return error < 0 ? complain(many->sessions[0], "counters", error) : 0;
}

/* Rounds of jobs, each followed by a moment in which the hot sessions are polled in vain: what the
 * dispatcher counts in that moment are turns without a job. */
static int measure_polling(struct many *many, struct transport_many *out)
{
    struct gemmd_stats start, before, after;
    uint64_t turns = 0, quiet_ns = 0;
    int error = 0;

    for (int i = 0; i < WARM_ROUNDS && !error; i++)
        error = serve_round(many);
    if (!error)
        error = read_stats(many, &start);
    for (int i = 0; i < ROUNDS && !error; i++) {
        uint64_t start_ns, end_ns;

        error = serve_round(many);
        start_ns = stress_now_ns();
        if (!error)
            error = read_stats(many, &before);
        while ((end_ns = stress_now_ns()) - start_ns < QUIET_NS)
            ;
        if (!error)
            error = read_stats(many, &after);
        if (error || before.sleeps != after.sleeps || end_ns - start_ns > 2 * QUIET_NS)
            continue; /* one of us two was not running */
        turns += after.turns - before.turns;
        quiet_ns += end_ns - start_ns;
    }
    if (error)
        return error;
    out->turn_ns = turns ? (double)quiet_ns / (double)turns : 0;
    out->turns = turns;
    out->jobs = after.jobs - start.jobs;
    out->doorbells = after.doorbells - start.doorbells;
    out->rescues = after.rescues;
    return 0;
}

/* ---- coming and going ------------------------------------------------------------------------ */

static void *churn(void *argument)
{
    struct many *many = argument;

    while (!__atomic_load_n(&many->stop, __ATOMIC_RELAXED) && !many->churn_error) {
        struct gemmd *session;

        many->churn_error = connect_small(many->socket, &session);
        if (many->churn_error < 0)
            complain(NULL, "connecting beside others", many->churn_error);
        else
            many->churned++;
        gemmd_close(&session);
        stress_sleep_ns(CHURN_PAUSE_NS);
    }
    return NULL;
}

static int time_trips(struct many *many, struct stress_latency *out)
{
    for (int i = 0; i < TRIPS; i++) {
        uint64_t start = stress_ticks();
        int error = submit_to(many, 0);

        if (!error)
            error = complete_of(many, 0);
        if (error)
            return error;
        stress_latency_add(out, (uint64_t)((double)(stress_ticks() - start) *
                                           stress_ns_per_tick()));
    }
    return 0;
}

/* Makes room for sessions that come, and waits until the worker has it: a thousand ends take a busy
 * machine longer than a client waits for its connection. */
static int close_idle(struct many *many)
{
    uint64_t start_ns = stress_now_ns(), wanted;
    struct gemmd_stats stats;
    int error = read_stats(many, &stats);

    wanted = stats.sessions_closed + (many->count > 2 * HOT ? many->count - 2 * HOT : 0);
    while (many->count > 2 * HOT)
        gemmd_close(&many->sessions[--many->count]);
    while (!error && stats.sessions_closed < wanted) {
        if (stress_now_ns() - start_ns > TRANSPORT_COMPLETION_NS_MAX)
            return complain(many->sessions[0], "ends of others", -ETIMEDOUT);
        stress_sleep_ns(1000000);
        error = read_stats(many, &stats);
    }
    return error;
}

static int measure_churn(struct many *many, struct transport_many *out)
{
    pthread_t thread;
    int error = time_trips(many, &out->alone);

    if (!error)
        error = -pthread_create(&thread, NULL, churn, many);
    if (error)
        return error;
    do
        error = time_trips(many, &out->churned);
    while (!error && out->churned.count < 20 * TRIPS);
    __atomic_store_n(&many->stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    out->churn_sessions = many->churned;
    return error ? error : many->churn_error;
}

int transport_measure_many(const char *socket, const char *layer_name, struct transport_many *out)
{
    struct many *many = calloc(1, sizeof(*many));
    int error;

    memset(out, 0, sizeof(*out));
    if (!many)
        return -ENOMEM;
    many->socket = socket;
    stress_raise_files_limit();
    error = open_all(many, layer_name, out);
    if (!error)
        error = measure_polling(many, out);
    if (!error)
        error = close_idle(many);
    if (!error)
        error = measure_churn(many, out);
    while (many->count)
        gemmd_close(&many->sessions[--many->count]);
    free(many);
    return error;
}
