/*
 * The worker's counters, in a page of their own that clients and tools map read-only: reading costs
 * the worker nothing.  One writer per word (the dispatcher, or the control thread for the words
 * marked so); plain relaxed stores of free-running u64, so a reader takes differences.
 *
 * Histograms are log-linear over nanoseconds: 16 linear steps per power of two, so a value is known
 * to 1/16 (6.25 %).  Bucket of v: v < 16: v; else 16 * (e - 3) + ((v >> (e - 4)) & 15), where e is
 * the position of v's highest bit (the scheme of HdrHistogram, G. Tene).
 */
#ifndef GEMMD_PROTO_STATS_H
#define GEMMD_PROTO_STATS_H

#include <assert.h>
#include <stdint.h>

#define GEMMD_STATS_MAGIC UINT64_C(0x0053444d4d454700) /* bytes 00 "GEMMDS" 00 */
#define GEMMD_STATS_VERSION 3

/* 2^36 ns = 69 s; longer ones count in the last bucket. */
#define GEMMD_HISTOGRAM_BUCKETS (16 * (36 - 3))

struct gemmd_histogram {
    uint64_t count[GEMMD_HISTOGRAM_BUCKETS];
};

/* X(name, meaning): all u64, in this order on the page. */
#define GEMMD_STATS_TABLE(X)                                                                       \
    X(jobs, "jobs completed, with any status")                                                     \
    X(jobs_failed, "of these, with a status other than OK")                                        \
    X(rows, "rows of A computed")                                                                  \
    X(macs, "multiply-accumulates")                                                                \
    X(exec_ns, "time in kernels, ns, of all threads")                                              \
    X(slices, "stretches of work between two looks at the rings")                                  \
    X(preempted, "of these, ended early because a submission had come")                            \
    X(panels, "passes over a panel of weights")                                                    \
    X(panel_rows, "rows in these passes; panel_rows / panels is the coalescing factor")            \
    X(shared_slices, "slices with jobs of more than one session")                                  \
    X(team_slices, "slices of which other threads than the dispatcher ran a part")                 \
    X(deadline_misses, "jobs not run because their deadline had passed")                           \
    X(cancelled, "jobs ended by a cancel")                                                         \
    X(turns, "turns of the dispatcher's loop")                                                     \
    X(sleeps, "times the dispatcher slept")                                                        \
    X(doorbells, "doorbells heard")                                                                \
    X(wakes, "clients woken (futex calls)")                                                        \
    X(syscalls, "system calls of the dispatcher thread, sleeping and waking included")             \
    X(spins_hit, "pauses of a session that its next job ended while it was polled")               \
    X(spins_missed, "pauses in which polling was given up")                                       \
    X(rescues, "jobs found by the rescue sweep: a lost wake-up, must stay 0")                      \
    X(sessions_opened, "control: sessions that became live")                                       \
    X(sessions_closed, "control: sessions that ended")                                             \
    X(sessions_violated, "control: of these, ended by a protocol violation")                       \
    X(layers_created, "control: layers packed")                                                    \
    X(layers_attached, "control: creations that found the layer present")                          \
    X(repinned, "control: threads put back on their CPU after a cpuset change")                    \
    X(trace_lost, "events that found the trace's ring or file full")                               \
    X(heartbeat, "grows while the dispatcher runs, at least every 100 ms")                         \
    X(verified, "jobs of which a row was checked (--verify-sample)")                               \
    X(verify_faults, "of these, found wrong and failed")

/* Compute threads: the dispatcher is core 0. */
#define GEMMD_STATS_CORES_MAX 256

/* What one of them did with its time, ns: all of it but the stretch it is in, which is added at its
 * end (a thread of the team may sleep for hours; the dispatcher wakes every 100 ms). */
struct gemmd_core_stats {
    uint64_t cpu;
    uint64_t busy_ns;  /* in kernels */
    uint64_t spin_ns;  /* looking for work */
    uint64_t sleep_ns; /* its CPU was free for others; added when it wakes */
};

struct gemmd_stats_page {
    uint64_t magic;   /* 0 */
    uint32_t version; /* 8 */
    uint32_t bytes;   /* 12 */
#define X(name, meaning) uint64_t name;
    GEMMD_STATS_TABLE(X)
#undef X
    struct gemmd_histogram queue_ns; /* sight of a job to its start */
    struct gemmd_histogram exec_ns_histogram;
    uint64_t core_count;
    struct gemmd_core_stats cores[GEMMD_STATS_CORES_MAX];
};

static_assert(sizeof(struct gemmd_stats_page) ==
                  16 + 31 * 8 + 2 * 8 * GEMMD_HISTOGRAM_BUCKETS + 8 + 32 * GEMMD_STATS_CORES_MAX,
              "no padding");

/* The single writer of `word`. */
static inline void gemmd_counter_add(uint64_t *word, uint64_t by)
{
    __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + by, __ATOMIC_RELAXED);
}

/* Anyone. */
static inline uint64_t gemmd_counter_read(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline uint32_t gemmd_histogram_bucket(uint64_t ns)
{
    uint32_t e;

    if (ns < 16)
        return (uint32_t)ns;
    e = 63 - (uint32_t)__builtin_clzll(ns);
    if (e >= 36)
        return GEMMD_HISTOGRAM_BUCKETS - 1;
    return 16 * (e - 3) + (uint32_t)((ns >> (e - 4)) & 15);
}

/* The smallest value of a bucket. */
static inline uint64_t gemmd_histogram_floor(uint32_t bucket)
{
    return bucket < 16 ? bucket : (uint64_t)(16 + bucket % 16) << (bucket / 16 - 1);
}

#endif
