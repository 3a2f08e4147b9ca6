/*
 * A small latency histogram, one for each session and layer: 4 linear steps per power of two, so a
 * value is known to a quarter.  The worker's own (proto/stats.h) has 16.  One writer; any thread
 * may read.
 */
#ifndef GEMMD_WORKER_HISTOGRAM_H
#define GEMMD_WORKER_HISTOGRAM_H

#include <stdint.h>

/* 2^36 ns = 69 s; longer ones count in the last bucket. */
#define HISTOGRAM_BUCKETS (4 * (36 - 1))

struct histogram {
    uint32_t count[HISTOGRAM_BUCKETS];
};

static inline uint32_t histogram_bucket(uint64_t ns)
{
    uint32_t e;

    if (ns < 4)
        return (uint32_t)ns;
    e = 63 - (uint32_t)__builtin_clzll(ns);
    if (e >= 36)
        return HISTOGRAM_BUCKETS - 1;
    return 4 * (e - 1) + (uint32_t)((ns >> (e - 2)) & 3);
}

/* The largest value of a bucket. */
static inline uint64_t histogram_top(uint32_t bucket)
{
    uint32_t next = bucket + 1;

    return (next < 4 ? next : (uint64_t)(4 + next % 4) << (next / 4 - 1)) - 1;
}

static inline void histogram_add(struct histogram *histogram, uint64_t ns)
{
    uint32_t *count = &histogram->count[histogram_bucket(ns)];

    __atomic_store_n(count, __atomic_load_n(count, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
}

/* The value that per_mille of those counted do not exceed; 0 when there are none. */
static inline uint64_t histogram_percentile(const struct histogram *histogram, uint32_t per_mille)
{
    uint64_t total = 0, seen = 0;
    uint32_t bucket = 0;

    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++)
        total += __atomic_load_n(&histogram->count[i], __ATOMIC_RELAXED);
    if (total == 0)
        return 0;
    while (bucket < HISTOGRAM_BUCKETS - 1) {
        seen += __atomic_load_n(&histogram->count[bucket], __ATOMIC_RELAXED);
        if (seen * 1000 >= total * per_mille)
            break;
        bucket++;
    }
    return histogram_top(bucket);
}

#endif
