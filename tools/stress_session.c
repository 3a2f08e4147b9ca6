/*
 * One session of a run: a closed loop that keeps `depth` jobs in flight, or an open one, in which
 * jobs arrive at fixed times whether or not earlier ones are done (a full ring keeps them waiting).
 * The latency of an arrival counts from the time at which it was due, so that a stall is felt by
 * all that came during it and not only by the one that met it (coordinated omission, G. Tene).
 * Every job has a slot with its own C, spoiled before submission and fenced by canaries, and
 * user_data that names slot and sequence number; so a result that is wrong, missing, double or
 * written beside its place shows.
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/stress_machine.h"
#include "tools/stress_runner.h"

#define REAP_MAX 64
/* No completion for so long with jobs in flight: they are missing. */
#define STALL_NS UINT64_C(20000000000)
/* Empty polls between looks at the clock. */
#define STALL_POLLS 4096
#define WAIT_MS     200

/* ---- phases ---------------------------------------------------------------------------------- */

static enum stress_phase phase(const struct stress_runner *runner)
{
    return __atomic_load_n(&runner->shared->phase, __ATOMIC_ACQUIRE);
}

static void wait_for_phase(const struct stress_runner *runner, enum stress_phase wanted)
{
    uint32_t seen;

    /* A thousand sessions that looked every now and then would keep the worker from the CPU. */
    while ((seen = phase(runner)) < wanted)
        syscall(SYS_futex, &runner->shared->phase, FUTEX_WAIT, seen, NULL, NULL, 0);
}

static void publish(struct stress_runner *runner, enum stress_state state)
{
    __atomic_store_n(&runner->result->state, state, __ATOMIC_RELEASE);
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Makes the next job in a free slot, its C spoiled if results are checked. */
static void make_job(struct stress_runner *runner, uint32_t index, struct gemmd_job *job)
{
    const struct stress_options *options = runner->options;
    struct stress_slot *slot = &runner->slots[index];
    uint64_t random = stress_random(&runner->random);
    struct stress_case *test;

    slot->test = (uint32_t)(random >> 32) % options->shape_count;
    slot->input = (uint32_t)(runner->sequence % STRESS_INPUTS);
    test = &runner->cases[slot->test];
    slot->user_data = runner->sequence++ << STRESS_SLOT_BITS | index;
    slot->busy = true;
    slot->c_bytes = (size_t)test->shape.m * test->shape.n * sizeof(int32_t);
    if (options->verify != STRESS_VERIFY_NONE) {
        uint8_t *c = slot->memory + STRESS_FENCE_BYTES;

        memset(c, STRESS_SPOIL_BYTE, slot->c_bytes);
        memset(c + slot->c_bytes, STRESS_FENCE_BYTE, STRESS_FENCE_BYTES);
    }
    gemmd_job_init(job, test->layer, test->shape.m, test->inputs[slot->input],
                   slot->memory + STRESS_FENCE_BYTES);
    job->user_data = slot->user_data;
}

static void release(struct stress_runner *runner, uint32_t index)
{
    runner->slots[index].busy = false;
    runner->free_slots[runner->free_count++] = index;
}

/* Jobs to submit now: as many as there are free slots, in an open loop as have arrived. */
static uint32_t count_due(const struct stress_runner *runner)
{
    uint32_t count = runner->free_count;
    double late;

    if (count > runner->quota)
        count = (uint32_t)runner->quota;
    if (runner->interval_ticks == 0)
        return count;
    late = (double)stress_ticks() - runner->due_ticks;
    if (late < 0)
        return 0;
    late = late / runner->interval_ticks + 1;
    return late < count ? (uint32_t)late : count;
}

/* Notes when a job's latency begins. */
static void note_start(struct stress_runner *runner, struct stress_slot *slot, uint64_t now_ticks)
{
    slot->submitted_ticks = now_ticks;
    if (runner->interval_ticks == 0)
        return;
    slot->submitted_ticks = (uint64_t)runner->due_ticks;
    runner->due_ticks += runner->interval_ticks;
}

/* Fills the slots that are due.  0 or -errno. */
static int submit(struct stress_runner *runner)
{
    uint32_t count = count_due(runner);
    uint64_t now_ticks;
    int taken;

    if (count == 0)
        return 0;
    for (uint32_t i = 0; i < count; i++)
        make_job(runner, runner->free_slots[--runner->free_count], &runner->batch[i]);
    now_ticks = stress_ticks();
    for (uint32_t i = 0; i < count; i++)
        note_start(runner, &runner->slots[runner->batch[i].user_data % (1 << STRESS_SLOT_BITS)],
                   now_ticks);
    taken = gemmd_submit(runner->session, runner->batch, count);
    /* The ring holds `depth` jobs, so all are taken; if not, the rest of the slots is free again.
     */
    for (uint32_t i = count; i-- > (taken > 0 ? (uint32_t)taken : 0);)
        release(runner, (uint32_t)(runner->batch[i].user_data % (1 << STRESS_SLOT_BITS)));
    if (taken < 0)
        return stress_complain_call(runner, "submit", taken);
    runner->quota -= (uint32_t)taken;
    gemmd_flush(runner->session);
    return 0;
}

static bool fences_hold(const struct stress_slot *slot)
{
    const uint8_t *after = slot->memory + STRESS_FENCE_BYTES + slot->c_bytes;

    for (size_t i = 0; i < STRESS_FENCE_BYTES; i++)
        if (slot->memory[i] != STRESS_FENCE_BYTE || after[i] != STRESS_FENCE_BYTE)
            return false;
    return true;
}

static void check_result(struct stress_runner *runner, const struct stress_slot *slot)
{
    const struct stress_case *test = &runner->cases[slot->test];
    const struct stress_shape *shape = &test->shape;
    enum stress_verify verify = runner->options->verify;
    bool inside;

    if (verify == STRESS_VERIFY_NONE)
        return;
    inside = fences_hold(slot);
    if (inside && stress_case_check(test, verify, slot->input, slot->user_data >> STRESS_SLOT_BITS,
                                    (const int32_t *)(slot->memory + STRESS_FENCE_BYTES)))
        return;
    runner->result->wrong++;
    stress_complain(runner, STRESS_EXIT_WRONG, "job %llu (%u,%u,%u, input %u): %s",
                    (unsigned long long)(slot->user_data >> STRESS_SLOT_BITS), shape->m, shape->n,
                    shape->k, slot->input, inside ? "wrong result" : "bytes beside C were changed");
}

static void take(struct stress_runner *runner, const struct gemmd_completion *done,
                 uint64_t now_ticks)
{
    struct stress_result *result = runner->result;
    uint32_t index = (uint32_t)(done->user_data % (1 << STRESS_SLOT_BITS));
    struct stress_slot *slot = index < runner->options->depth ? &runner->slots[index] : NULL;
    double ticks;

    if (!slot || !slot->busy || slot->user_data != done->user_data) {
        result->unexpected++;
        stress_complain(runner, STRESS_EXIT_WRONG,
                        "a completion of no job in flight: user_data %llx",
                        (unsigned long long)done->user_data);
        return;
    }
    ticks = (double)(now_ticks - slot->submitted_ticks);
    stress_latency_add(&result->latency, (uint64_t)(ticks * runner->ns_per_tick));
    result->jobs++;
    if (done->status) {
        result->failed++;
        stress_complain(runner, STRESS_EXIT_WRONG, "job failed: %s (%s)",
                        gemmd_status_name(done->status), gemmd_status_text(done->status));
    } else {
        const struct stress_shape *shape = &runner->cases[slot->test].shape;

        result->operations += 2.0 * shape->m * shape->n * shape->k;
        check_result(runner, slot);
    }
    release(runner, index);
}

/* False when nothing has completed for STALL_NS. */
static bool still_waiting(struct stress_runner *runner, int got)
{
    uint64_t now_ns;

    if (got > 0 || runner->free_count == runner->options->depth) {
        runner->idle_polls = 0;
        runner->progress_ns = 0;
        return true;
    }
    if (runner->options->spin && ++runner->idle_polls % STALL_POLLS != 0)
        return true;
    now_ns = stress_now_ns();
    if (runner->progress_ns == 0)
        runner->progress_ns = now_ns;
    return now_ns - runner->progress_ns < STALL_NS;
}

/* Open loop: sleeps until a completion or the next arrival, as an event loop does. */
static void await_event(const struct stress_runner *runner, bool arrivals)
{
    struct pollfd fd = {.fd = runner->fd, .events = POLLIN};
    double left_ns = WAIT_MS * 1e6;
    struct timespec timeout;

    if (arrivals && runner->free_count) {
        double due_ns = (runner->due_ticks - (double)stress_ticks()) * runner->ns_per_tick;

        left_ns = due_ns < left_ns ? due_ns : left_ns;
    }
    if (left_ns <= 0)
        return;
    timeout = (struct timespec){.tv_nsec = (long)left_ns};
    ppoll(&fd, 1, &timeout, NULL);
}

/* 0 or -errno; -ETIME when jobs are missing. */
static int reap(struct stress_runner *runner, bool arrivals)
{
    struct gemmd_completion done[REAP_MAX];
    uint64_t now_ticks;
    int got;

    if (runner->fd >= 0)
        await_event(runner, arrivals);
    if (runner->options->spin || runner->fd >= 0)
        got = gemmd_poll(runner->session, done, REAP_MAX);
    else
        got = gemmd_wait(runner->session, done, REAP_MAX, WAIT_MS);
    now_ticks = stress_ticks();
    if (got < 0 && got != -ETIMEDOUT && got != -EINTR)
        return stress_complain_call(runner, "poll", got);
    for (int i = 0; i < got; i++)
        take(runner, &done[i], now_ticks);
    if (got > 0)
        __atomic_store_n(&runner->result->jobs_so_far, runner->result->jobs, __ATOMIC_RELAXED);
    if (still_waiting(runner, got))
        return 0;
    stress_complain(runner, STRESS_EXIT_WRONG, "no completion for %llu s",
                    (unsigned long long)(STALL_NS / 1000000000));
    return -ETIME;
}

/* Without waiting: nothing is in flight. */
static int reap_once_more(struct stress_runner *runner)
{
    struct gemmd_completion done[REAP_MAX];
    int got = gemmd_poll(runner->session, done, REAP_MAX);

    if (got < 0)
        return stress_complain_call(runner, "poll", got);
    for (int i = 0; i < got; i++)
        take(runner, &done[i], stress_ticks());
    return 0;
}

/* Arrivals of all sessions together are evenly spaced. */
static void start_arrivals(struct stress_runner *runner)
{
    const struct stress_options *options = runner->options;

    if (options->rate == 0)
        return;
    runner->interval_ticks = 1e9 * options->sessions / options->rate / runner->ns_per_tick;
    runner->due_ticks = (double)stress_ticks() +
                        runner->interval_ticks * runner->index / options->sessions;
}

static void loop(struct stress_runner *runner)
{
    uint32_t depth = runner->options->depth;
    int error = 0;

    start_arrivals(runner);
    runner->result->start_ns = stress_now_ns();
    while (!error && runner->quota && phase(runner) < STRESS_PHASE_STOP) {
        error = submit(runner);
        if (!error)
            error = reap(runner, true);
    }
    while (!error && runner->free_count < depth)
        error = reap(runner, false);
    runner->result->end_ns = stress_now_ns();
    runner->result->missing = depth - runner->free_count;
    if (runner->result->missing)
        return;
    /* Nothing is in flight now, so anything that still comes was completed twice. */
    error = reap_once_more(runner);
    if (!error && gemmd_in_flight(runner->session) != 0) {
        runner->result->unexpected++;
        stress_complain(runner, STRESS_EXIT_WRONG,
                        "the library counts jobs in flight when none is");
    }
}

static uint64_t quota_of(const struct stress_options *options, uint32_t index)
{
    if (options->jobs == 0)
        return UINT64_MAX;
    return options->jobs / options->sessions + (index < options->jobs % options->sessions);
}

void stress_session_run(const struct stress_options *options, uint32_t index,
                        struct stress_shared *shared)
{
    struct stress_runner runner = {
        .options = options, .shared = shared, .index = index,
        .result = &shared->results[index], .quota = quota_of(options, index),
        .random = options->seed + index, .ns_per_tick = stress_ns_per_tick(),
        .fd = -1,
    };
    struct gemmd_stats before, after;
    int error = 0;

    if (options->cpu_count) {
        uint32_t cpu = options->cpus[index % options->cpu_count];

        error = stress_pin(cpu);
        if (error < 0)
            stress_complain(&runner, EX_USAGE, "cannot run on CPU %u: %s", cpu, strerror(-error));
    }
    wait_for_phase(&runner, STRESS_PHASE_CONNECT);
    if (!error)
        error = stress_runner_open(&runner);
    if (error < 0 || gemmd_get_stats(runner.session, &before) < 0) {
        publish(&runner, STRESS_STATE_FAILED);
    } else {
        publish(&runner, STRESS_STATE_READY);
        wait_for_phase(&runner, STRESS_PHASE_RUN);
        loop(&runner);
        if (gemmd_get_stats(runner.session, &after) == 0) {
            runner.result->doorbells = after.session_doorbells - before.session_doorbells;
            runner.result->sleeps = after.session_sleeps - before.session_sleeps;
            runner.result->syscalls = after.session_syscalls - before.session_syscalls;
        }
        publish(&runner, STRESS_STATE_DONE);
        wait_for_phase(&runner, STRESS_PHASE_CLOSE);
    }
    stress_runner_close(&runner);
}
