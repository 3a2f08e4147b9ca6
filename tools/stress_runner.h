/*
 * One session of a run, from inside: set-up in stress_runner.c, the loop in stress_session.c.
 */
#ifndef GEMMD_STRESS_RUNNER_H
#define GEMMD_STRESS_RUNNER_H

#include <assert.h>

#include "tools/stress.h"
#include "tools/stress_case.h"

/* user_data: sequence number above, slot below. */
#define STRESS_SLOT_BITS 12
static_assert((1 << STRESS_SLOT_BITS) >= STRESS_DEPTH_MAX, "a slot does not fit");

/* Bytes before and after each C. */
#define STRESS_FENCE_BYTES 64
#define STRESS_FENCE_BYTE  0xc5
#define STRESS_SPOIL_BYTE  0x5a

struct stress_slot {
    uint64_t user_data; /* of the job in flight */
    uint64_t submitted_ticks;
    uint32_t test, input;
    bool busy;
    uint8_t *memory; /* fence, C, fence */
    size_t c_bytes;
};

struct stress_runner {
    const struct stress_options *options;
    struct stress_shared *shared;
    struct stress_result *result;
    uint32_t index;
    struct gemmd *session;
    struct stress_case cases[STRESS_SHAPES_MAX];
    struct stress_slot *slots;     /* [depth] */
    uint32_t *free_slots;   /* stack of the idle ones */
    uint32_t free_count;
    struct gemmd_job *batch; /* [depth] */
    uint64_t random, sequence, quota;
    double interval_ticks; /* from arrival to arrival; 0: closed loop */
    double due_ticks;      /* the next arrival */
    int fd;                /* of gemmd_get_fd; -1: not used */
    uint64_t progress_ns; /* last completion, or first look at the clock since */
    uint32_t idle_polls;
    double ns_per_tick;
};

/* Keeps the first complaint; later ones are its consequences. */
void stress_complain(struct stress_runner *runner, uint32_t exit_status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Of a failed call of the library; `error` again. */
int stress_complain_call(struct stress_runner *runner, const char *what, int error);

/* Connects, creates layers, inputs and slots.  0 or -errno, complained of. */
int stress_runner_open(struct stress_runner *runner);
void stress_runner_close(struct stress_runner *runner);

#endif
