/*
 * The numbered steps of the protocol, and a client that goes as far as one of them and stands still
 * there: for tests that end it, or the worker, at that moment.
 */
#ifndef GEMMD_TESTS_STRESS_STEPS_H
#define GEMMD_TESTS_STRESS_STEPS_H

enum step {
    CONNECTED,
    HELLO_SENT,
    SEGMENTS_RECEIVED,
    SEGMENTS_MAPPED,
    MAPPED_SENT,
    LIVE,
    UPLOAD_OPEN,
    UPLOAD_HALF,
    COMMIT_SENT,
    LAYER_OPEN,
    SLOT_HALF_WRITTEN, /* payload, but not seq */
    SUBMITTED,         /* seq written, doorbell not rung */
    RUNG,
    RING_FULL_OF_LARGE_JOBS,
    COMPLETION_UNREAD,
    CQ_FULL,           /* a lap of completions, cq_head never moved */
    WAKE_ARMED,
    ASLEEP,
    LAYER_CLOSE_SENT,
    STEP_COUNT
};

struct victim {
    enum step step;
    int fd; /* says that the step is reached */
    const char *socket;
};

/* For harness_fork: lives up to its step, writes "!" to the descriptor, and waits for its end.  A
 * layer named "victim" must exist. */
int steps_run(void *victim);

#endif
