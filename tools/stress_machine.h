/*
 * The machine as gemmd-stress sees it: clocks, pinning, and the facts a figure is worthless
 * without.
 */
#ifndef GEMMD_STRESS_MACHINE_H
#define GEMMD_STRESS_MACHINE_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* A point in time in ticks: the time stamp counter where there is one (about 8 ns a read), else ns.
 */
static inline uint64_t stress_ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#endif
}

uint64_t stress_now_ns(void);
void stress_sleep_ns(uint64_t ns);

/* Measured against CLOCK_MONOTONIC over 20 ms in the first call, which must come before threads. */
double stress_ns_per_tick(void);

/* Pins the calling thread.  0 or -errno. */
int stress_pin(uint32_t cpu);

/* As many open files as this process may have: a session of a thread has some. */
void stress_raise_files_limit(void);

/* An allowed CPU to pair with `cpu` for a transfer between two cores: of the same L3 and not its
 * hyper-thread if possible, at any rate another one.  -1: there is none. */
int stress_partner_cpu(uint32_t cpu);

struct stress_machine {
    char cpu_model[128];
    char kernel[128];
    uint32_t cpus_online;
    uint64_t l3_bytes;      /* of CPU 0 */
    bool hypervisor;        /* a guest: neighbours and exits are in the figures */
    double load_average;    /* of the last minute: what else ran */
};

/* Unknown facts are "unknown" or 0. */
void stress_machine_read(struct stress_machine *out);

#endif
