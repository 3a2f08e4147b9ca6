/* The worker's only clock: CLOCK_MONOTONIC, so that setting the time disturbs nothing. */
#ifndef GEMMD_WORKER_CLOCK_H
#define GEMMD_WORKER_CLOCK_H

#include <stdint.h>
#include <time.h>

/* vDSO: no system call, about 20 ns. */
static inline uint64_t clock_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#endif
