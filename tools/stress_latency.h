/*
 * A distribution of times in ns, in the buckets of proto/stats.h (each 1/16 of a power of two
 * wide), with exact count and maximum.  Mergeable; plain memory, one writer.
 */
#ifndef GEMMD_STRESS_LATENCY_H
#define GEMMD_STRESS_LATENCY_H

#include <stdint.h>

#include "proto/stats.h"

struct stress_latency {
    uint64_t count, max_ns;
    struct gemmd_histogram histogram;
};

static inline void stress_latency_add(struct stress_latency *latency, uint64_t ns)
{
    latency->count++;
    if (ns > latency->max_ns)
        latency->max_ns = ns;
    latency->histogram.count[gemmd_histogram_bucket(ns)]++;
}

void stress_latency_merge(struct stress_latency *to, const struct stress_latency *from);

/* The smallest time that `fraction` (0..1] of the entries do not exceed, in ns; 0 without entries.
 * Linear within a bucket, never above the maximum. */
double stress_latency_percentile(const struct stress_latency *latency, double fraction);

#endif
