/*
 * Set-up of one session of a run: connection, layers, inputs, and a slot with its own C for each
 * job that may be in flight.
 */
#include "tools/stress_runner.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

void stress_complain(struct stress_runner *runner, uint32_t exit_status, const char *format, ...)
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

int stress_complain_call(struct stress_runner *runner, const char *what, int error)
{
    const char *text = gemmd_error_text(runner->session);

    stress_complain(runner, (uint32_t)stress_exit_status(error), "%s: %s", what,
                    *text ? text : gemmd_strerror(error));
    return error;
}

static size_t c_bytes_max(const struct stress_options *options)
{
    size_t max = 1;

    for (uint32_t i = 0; i < options->shape_count; i++) {
        size_t bytes = (size_t)options->shapes[i].m * options->shapes[i].n * sizeof(int32_t);

        max = bytes > max ? bytes : max;
    }
    return max;
}

static int connect_session(struct stress_runner *runner)
{
    const struct stress_options *options = runner->options;
    struct gemmd_options connect;
    uint64_t slot_bytes = c_bytes_max(options) + 2 * STRESS_FENCE_BYTES + 128;

    gemmd_options_init(&connect);
    connect.timeout_ms = STRESS_TIMEOUT_MS;
    connect.socket = runner->shared->socket;
    connect.autostart = 0;
    connect.ring_entries = 8;
    while (connect.ring_entries <= options->depth) /* one place is a cancel's */
        connect.ring_entries *= 2;
    /* At least a window for uploads of layers, and what the allocator keeps for itself. */
    connect.arena_bytes = (1 << 20) + options->depth * slot_bytes;
    for (uint32_t i = 0; i < options->shape_count; i++)
        connect.arena_bytes += stress_case_arena_bytes(&options->shapes[i]);
    connect.arena_bytes = (connect.arena_bytes + 0xffff) & ~UINT64_C(0xffff);
    return gemmd_connect(&connect, &runner->session);
}

static int open_slots(struct stress_runner *runner)
{
    uint32_t depth = runner->options->depth;
    size_t bytes = c_bytes_max(runner->options) + 2 * STRESS_FENCE_BYTES;

    runner->slots = calloc(depth, sizeof(*runner->slots));
    runner->free_slots = calloc(depth, sizeof(*runner->free_slots));
    runner->batch = calloc(depth, sizeof(*runner->batch));
    if (!runner->slots || !runner->free_slots || !runner->batch)
        return -ENOMEM;
    for (uint32_t i = 0; i < depth; i++) {
        runner->slots[i].memory = gemmd_buffer_alloc(runner->session, bytes);
        if (!runner->slots[i].memory)
            return -ENOBUFS;
        memset(runner->slots[i].memory, STRESS_FENCE_BYTE, bytes);
        runner->free_slots[runner->free_count++] = depth - 1 - i;
    }
    return 0;
}

int stress_runner_open(struct stress_runner *runner)
{
    const struct stress_options *options = runner->options;
    struct gemmd_stats stats;
    int error = connect_session(runner);

    if (error < 0)
        return stress_complain_call(runner, "connect", error);
    for (uint32_t i = 0; i < options->shape_count; i++) {
        error = stress_case_open(&runner->cases[i], runner->session, options, i);
        if (error < 0)
            return stress_complain_call(runner, "layer", error);
    }
    for (uint32_t i = 0; i < options->shape_count; i++) {
        error = stress_case_prepare(&runner->cases[i], runner->session, options, runner->index);
        if (error < 0)
            return stress_complain_call(runner, "inputs", error);
    }
    error = open_slots(runner);
    if (error < 0)
        return stress_complain_call(runner, "buffers", error);
    if (options->rate > 0 && !options->spin) {
        runner->fd = gemmd_get_fd(runner->session);
        if (runner->fd < 0)
            return stress_complain_call(runner, "descriptor", runner->fd);
        prctl(PR_SET_TIMERSLACK, 1); /* the default of 50 us would delay arrivals */
    }
    /* The first call of a session maps the counters page: not during the run. */
    error = gemmd_get_stats(runner->session, &stats);
    if (error < 0)
        return stress_complain_call(runner, "stats", error);
    return 0;
}

void stress_runner_close(struct stress_runner *runner)
{
    for (uint32_t i = 0; i < runner->options->shape_count; i++)
        stress_case_close(&runner->cases[i]);
    free(runner->slots);
    free(runner->free_slots);
    free(runner->batch);
    gemmd_close(&runner->session);
}
