/*
 * One session of a run: a closed loop that keeps `depth` jobs in flight.  Every job has a slot with
 * its own C, spoiled before submission and fenced by canaries, and user_data that names slot and
 * sequence number; so a result that is wrong, missing, double or written beside its place shows.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/stress.h"
#include "tools/stress_case.h"
#include "tools/stress_machine.h"

/* user_data: sequence number above, slot below. */
#define SLOT_BITS 12
static_assert((1 << SLOT_BITS) >= STRESS_DEPTH_MAX, "a slot does not fit");

/* Bytes before and after each C. */
#define FENCE_BYTES 64
#define FENCE_BYTE  0xc5
#define SPOIL_BYTE  0x5a

#define REAP_MAX 64
/* No completion for so long with jobs in flight: they are missing. */
#define STALL_NS UINT64_C(20000000000)
/* Empty polls between looks at the clock. */
#define STALL_POLLS 4096
#define WAIT_MS     200

struct slot {
    uint64_t user_data; /* of the job in flight */
    uint64_t submitted_ticks;
    uint32_t test, input;
    bool busy;
    uint8_t *memory; /* fence, C, fence */
    size_t c_bytes;
};

struct runner {
    const struct stress_options *options;
    struct stress_shared *shared;
    struct stress_result *result;
    uint32_t index;
    struct gemmd *session;
    struct stress_case cases[STRESS_SHAPES_MAX];
    struct slot *slots;     /* [depth] */
    uint32_t *free_slots;   /* stack of the idle ones */
    uint32_t free_count;
    struct gemmd_job *batch; /* [depth] */
    uint64_t random, sequence, quota;
    uint64_t progress_ns; /* last completion, or first look at the clock since */
    uint32_t idle_polls;
    double ns_per_tick;
};

/* ---- phases ---------------------------------------------------------------------------------- */

static enum stress_phase phase(const struct runner *runner)
{
    return __atomic_load_n(&runner->shared->phase, __ATOMIC_ACQUIRE);
}

static void wait_for_phase(const struct runner *runner, enum stress_phase wanted)
{
    while (phase(runner) < wanted)
        stress_sleep_ns(500000);
}

static void publish(struct runner *runner, enum stress_state state)
{
    __atomic_store_n(&runner->result->state, state, __ATOMIC_RELEASE);
}

/* Keeps the first complaint; later ones are its consequences. */
static void complain(struct runner *runner, uint32_t exit_status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void complain(struct runner *runner, uint32_t exit_status, const char *format, ...)
{
    struct stress_result *result = runner->result;
    va_list arguments;

    if (*result->error)
        return;
    result->exit_status = exit_status;
    va_start(arguments, format);
    vsnprintf(result->error, sizeof(result->error), format, arguments);
    va_end(arguments);
}

static int complain_call(struct runner *runner, const char *what, int error)
{
    const char *text = gemmd_error_text(runner->session);

    complain(runner, (uint32_t)stress_exit_status(error), "%s: %s", what,
             *text ? text : gemmd_strerror(error));
    return error;
}

/* ---- set-up ---------------------------------------------------------------------------------- */

static size_t c_bytes_max(const struct stress_options *options)
{
    size_t max = 1;

    for (uint32_t i = 0; i < options->shape_count; i++) {
        size_t bytes = (size_t)options->shapes[i].m * options->shapes[i].n * sizeof(int32_t);

        max = bytes > max ? bytes : max;
    }
    return max;
}

static int connect_session(struct runner *runner)
{
    const struct stress_options *options = runner->options;
    struct gemmd_options connect;
    uint64_t slot_bytes = c_bytes_max(options) + 2 * FENCE_BYTES + 128;

    gemmd_options_init(&connect);
    connect.socket = runner->shared->socket;
    connect.autostart = 0;
    connect.ring_entries = 8;
    while (connect.ring_entries < options->depth)
        connect.ring_entries *= 2;
    /* At least a window for uploads of layers, and what the allocator keeps for itself. */
    connect.arena_bytes = (1 << 20) + options->depth * slot_bytes;
    for (uint32_t i = 0; i < options->shape_count; i++)
        connect.arena_bytes += stress_case_arena_bytes(&options->shapes[i]);
    connect.arena_bytes = (connect.arena_bytes + 0xffff) & ~UINT64_C(0xffff);
    return gemmd_connect(&connect, &runner->session);
}

static int open_slots(struct runner *runner)
{
    uint32_t depth = runner->options->depth;
    size_t bytes = c_bytes_max(runner->options) + 2 * FENCE_BYTES;

    runner->slots = calloc(depth, sizeof(*runner->slots));
    runner->free_slots = calloc(depth, sizeof(*runner->free_slots));
    runner->batch = calloc(depth, sizeof(*runner->batch));
    if (!runner->slots || !runner->free_slots || !runner->batch)
        return -ENOMEM;
    for (uint32_t i = 0; i < depth; i++) {
        runner->slots[i].memory = gemmd_buffer_alloc(runner->session, bytes);
        if (!runner->slots[i].memory)
            return -ENOBUFS;
        memset(runner->slots[i].memory, FENCE_BYTE, bytes);
        runner->free_slots[runner->free_count++] = depth - 1 - i;
    }
    return 0;
}

static int open_runner(struct runner *runner)
{
    const struct stress_options *options = runner->options;
    struct gemmd_stats stats;
    int error = connect_session(runner);

    if (error < 0)
        return complain_call(runner, "connect", error);
    for (uint32_t i = 0; i < options->shape_count; i++) {
        error = stress_case_open(&runner->cases[i], runner->session, options, i);
        if (error < 0)
            return complain_call(runner, "layer", error);
    }
    for (uint32_t i = 0; i < options->shape_count; i++) {
        error = stress_case_prepare(&runner->cases[i], runner->session, options, runner->index);
        if (error < 0)
            return complain_call(runner, "inputs", error);
    }
    error = open_slots(runner);
    if (error < 0)
        return complain_call(runner, "buffers", error);
    /* The first call of a session maps the counters page: not during the run. */
    error = gemmd_get_stats(runner->session, &stats);
    if (error < 0)
        return complain_call(runner, "stats", error);
    return 0;
}

static void close_runner(struct runner *runner)
{
    for (uint32_t i = 0; i < runner->options->shape_count; i++)
        stress_case_close(&runner->cases[i]);
    free(runner->slots);
    free(runner->free_slots);
    free(runner->batch);
    gemmd_close(&runner->session);
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Makes the next job in a free slot, its C spoiled if results are checked. */
static void make_job(struct runner *runner, uint32_t index, struct gemmd_job *job)
{
    const struct stress_options *options = runner->options;
    struct slot *slot = &runner->slots[index];
    uint64_t random = stress_random(&runner->random);
    struct stress_case *test;

    slot->test = (uint32_t)(random >> 32) % options->shape_count;
    slot->input = (uint32_t)(runner->sequence % STRESS_INPUTS);
    test = &runner->cases[slot->test];
    slot->user_data = runner->sequence++ << SLOT_BITS | index;
    slot->busy = true;
    slot->c_bytes = (size_t)test->shape.m * test->shape.n * sizeof(int32_t);
    if (options->verify != STRESS_VERIFY_NONE) {
        uint8_t *c = slot->memory + FENCE_BYTES;

        memset(c, SPOIL_BYTE, slot->c_bytes);
        memset(c + slot->c_bytes, FENCE_BYTE, FENCE_BYTES);
    }
    gemmd_job_init(job, test->layer, test->shape.m, test->inputs[slot->input],
                   slot->memory + FENCE_BYTES);
    job->user_data = slot->user_data;
}

static void release(struct runner *runner, uint32_t index)
{
    runner->slots[index].busy = false;
    runner->free_slots[runner->free_count++] = index;
}

/* Fills all free slots.  0 or -errno. */
static int submit(struct runner *runner)
{
    uint32_t count = runner->free_count;
    uint64_t now_ticks;
    int taken;

    if (count > runner->quota)
        count = (uint32_t)runner->quota;
    if (count == 0)
        return 0;
    for (uint32_t i = 0; i < count; i++)
        make_job(runner, runner->free_slots[--runner->free_count], &runner->batch[i]);
    now_ticks = stress_ticks();
    for (uint32_t i = 0; i < count; i++)
        runner->slots[runner->batch[i].user_data % (1 << SLOT_BITS)].submitted_ticks = now_ticks;
    taken = gemmd_submit(runner->session, runner->batch, count);
    /* The ring holds `depth` jobs, so all are taken; if not, the rest of the slots is free again.
     */
    for (uint32_t i = count; i-- > (taken > 0 ? (uint32_t)taken : 0);)
        release(runner, (uint32_t)(runner->batch[i].user_data % (1 << SLOT_BITS)));
    if (taken < 0)
        return complain_call(runner, "submit", taken);
    runner->quota -= (uint32_t)taken;
    gemmd_flush(runner->session);
    return 0;
}

static bool fences_hold(const struct slot *slot)
{
    const uint8_t *after = slot->memory + FENCE_BYTES + slot->c_bytes;

    for (size_t i = 0; i < FENCE_BYTES; i++)
        if (slot->memory[i] != FENCE_BYTE || after[i] != FENCE_BYTE)
            return false;
    return true;
}

static void check_result(struct runner *runner, const struct slot *slot)
{
    const struct stress_case *test = &runner->cases[slot->test];
    const struct stress_shape *shape = &test->shape;
    enum stress_verify verify = runner->options->verify;
    bool inside;

    if (verify == STRESS_VERIFY_NONE)
        return;
    inside = fences_hold(slot);
    if (inside && stress_case_check(test, verify, slot->input, slot->user_data >> SLOT_BITS,
                                    (const int32_t *)(slot->memory + FENCE_BYTES)))
        return;
    runner->result->wrong++;
    complain(runner, STRESS_EXIT_WRONG, "job %llu (%u,%u,%u, input %u): %s",
             (unsigned long long)(slot->user_data >> SLOT_BITS), shape->m, shape->n, shape->k,
             slot->input, inside ? "wrong result" : "bytes beside C were changed");
}

static void take(struct runner *runner, const struct gemmd_completion *done, uint64_t now_ticks)
{
    struct stress_result *result = runner->result;
    uint32_t index = (uint32_t)(done->user_data % (1 << SLOT_BITS));
    struct slot *slot = index < runner->options->depth ? &runner->slots[index] : NULL;
    double ticks;

    if (!slot || !slot->busy || slot->user_data != done->user_data) {
        result->unexpected++;
        complain(runner, STRESS_EXIT_WRONG, "a completion of no job in flight: user_data %llx",
                 (unsigned long long)done->user_data);
        return;
    }
    ticks = (double)(now_ticks - slot->submitted_ticks);
    stress_latency_add(&result->latency, (uint64_t)(ticks * runner->ns_per_tick));
    result->jobs++;
    if (done->status) {
        result->failed++;
        complain(runner, STRESS_EXIT_WRONG, "job failed: %s (%s)", gemmd_status_name(done->status),
                 gemmd_status_text(done->status));
    } else {
        const struct stress_shape *shape = &runner->cases[slot->test].shape;

        result->operations += 2.0 * shape->m * shape->n * shape->k;
        check_result(runner, slot);
    }
    release(runner, index);
}

/* False when nothing has completed for STALL_NS. */
static bool still_waiting(struct runner *runner, int got)
{
    uint64_t now_ns;

    if (got > 0) {
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

/* 0 or -errno; -ETIME when jobs are missing. */
static int reap(struct runner *runner)
{
    struct gemmd_completion done[REAP_MAX];
    uint64_t now_ticks;
    int got;

    if (runner->options->spin)
        got = gemmd_poll(runner->session, done, REAP_MAX);
    else
        got = gemmd_wait(runner->session, done, REAP_MAX, WAIT_MS);
    now_ticks = stress_ticks();
    if (got < 0 && got != -ETIMEDOUT && got != -EINTR)
        return complain_call(runner, "poll", got);
    for (int i = 0; i < got; i++)
        take(runner, &done[i], now_ticks);
    if (got > 0)
        __atomic_store_n(&runner->result->jobs_so_far, runner->result->jobs, __ATOMIC_RELAXED);
    if (still_waiting(runner, got))
        return 0;
    complain(runner, STRESS_EXIT_WRONG, "no completion for %llu s",
             (unsigned long long)(STALL_NS / 1000000000));
    return -ETIME;
}

static void loop(struct runner *runner)
{
    uint32_t depth = runner->options->depth;
    int error = 0;

    runner->result->start_ns = stress_now_ns();
    while (!error && runner->quota && phase(runner) < STRESS_PHASE_STOP) {
        error = submit(runner);
        if (!error)
            error = reap(runner);
    }
    while (!error && runner->free_count < depth)
        error = reap(runner);
    runner->result->end_ns = stress_now_ns();
    runner->result->missing = depth - runner->free_count;
    if (runner->result->missing)
        return;
    /* Nothing is in flight now, so anything that still comes was completed twice. */
    error = reap(runner);
    if (!error && gemmd_in_flight(runner->session) != 0) {
        runner->result->unexpected++;
        complain(runner, STRESS_EXIT_WRONG, "the library counts jobs in flight when none is");
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
    struct runner runner = {
        .options = options, .shared = shared, .index = index,
        .result = &shared->results[index], .quota = quota_of(options, index),
        .random = options->seed + index, .ns_per_tick = stress_ns_per_tick(),
    };
    struct gemmd_stats before, after;
    int error = 0;

    if (options->cpu_count) {
        uint32_t cpu = options->cpus[index % options->cpu_count];

        error = stress_pin(cpu);
        if (error < 0)
            complain(&runner, EX_USAGE, "cannot run on CPU %u: %s", cpu, strerror(-error));
    }
    wait_for_phase(&runner, STRESS_PHASE_CONNECT);
    if (!error)
        error = open_runner(&runner);
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
    close_runner(&runner);
}
