/* Honest clients in processes of their own, whose every result is compared bit for bit. */
#ifndef GEMMD_TESTS_ATTACK_HONEST_H
#define GEMMD_TESTS_ATTACK_HONEST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/e2e/layer_case.h"

/* Shared with the processes: each writes its own entry. */
struct honest_count {
    uint64_t jobs;   /* completed and right */
    uint64_t failed; /* completed with an error, or a call failed */
    uint64_t wrong;  /* completed with OK and other bits */
    uint64_t slowest_ns;
};

#define HONEST_MAX 16

struct honest {
    const char *socket;
    const struct layer_case *layer;
    uint32_t rows;
    uint64_t pause_ns; /* after each job */
    unsigned count;
    pid_t pids[HONEST_MAX];
    struct honest_count *counts; /* [HONEST_MAX], shared memory */
};

/* Starts `count` clients and returns once each has had its first result. */
void honest_start(struct honest *honest, const char *socket, const struct layer_case *layer,
                  uint32_t rows, uint64_t pause_ns, unsigned count);
/* What all have done so far. */
struct honest_count honest_read(const struct honest *honest);
/* Ends them and checks that none died or complained. */
void honest_stop(struct honest *honest);

#endif
