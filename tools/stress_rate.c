/*
 * gemmd-stress --transport: the rate of empty jobs with many in flight.
 */
#include <stdlib.h>

#include "tools/stress_transport_run.h"

#define RATE_NS     UINT64_C(100000000)
#define WINDOW_JOBS 1024

int transport_compare_doubles(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

/* Fills the ring up to `depth`; true when the session still works. */
static bool refill(struct transport *transport, uint32_t depth, uint32_t *in_flight)
{
    uint32_t count = depth - *in_flight;
    int taken;

    if (count == 0)
        return true;
    for (uint32_t i = 0; i < count; i++)
        transport->jobs[i].user_data = transport->sequence + i + 1;
    taken = gemmd_submit(transport->session, transport->jobs, count);
    if (taken < 0)
        return false;
    transport->sequence += (uint32_t)taken;
    *in_flight += (uint32_t)taken;
    gemmd_flush(transport->session);
    return true;
}

/* Ends a window of jobs when it has WINDOW_JOBS; the rate is the median of windows, so that a
 * moment in which either side did not run counts for one window. */
static void note_window(struct windows *windows, uint32_t jobs)
{
    uint64_t now;

    windows->jobs += jobs;
    if (windows->jobs < WINDOW_JOBS)
        return;
    now = stress_ticks();
    if (windows->count < TRANSPORT_WINDOWS_MAX)
        windows->ns_per_job[windows->count++] =
            (double)(now - windows->start) * stress_ns_per_tick() / windows->jobs;
    windows->start = now;
    windows->jobs = 0;
}

/* `depth` empty jobs in flight for RATE_NS.  Completions of a session's empty jobs come in order.
 */
bool transport_run_rate(struct transport *transport, struct transport_stage *stage)
{
    struct windows *windows = &transport->windows;
    struct gemmd_completion done[TRANSPORT_DEPTH_MAX];
    uint64_t expected = transport->sequence, start = stress_ticks();
    uint64_t ticks = (uint64_t)((double)RATE_NS / stress_ns_per_tick());
    uint32_t in_flight = 0;
    bool running = true;

    *windows = (struct windows){.start = start};

    while (running || in_flight) {
        int got;

        if (running && !refill(transport, stage->depth, &in_flight))
            break;
        got = transport_poll_some(transport, done, TRANSPORT_DEPTH_MAX);
        if (got <= 0 || (uint32_t)got > in_flight)
            break;
        for (int i = 0; i < got; i++)
            transport->faults += done[i].status != 0 || done[i].user_data != ++expected;
        in_flight -= (uint32_t)got;
        stage->jobs += (uint32_t)got;
        note_window(windows, (uint32_t)got);
        running = stress_ticks() - start < ticks;
    }
    transport->faults += in_flight;
    qsort(windows->ns_per_job, windows->count, sizeof(double), transport_compare_doubles);
    if (windows->count)
        stage->window_rate = 1e9 / windows->ns_per_job[windows->count / 2];
    return in_flight == 0;
}
