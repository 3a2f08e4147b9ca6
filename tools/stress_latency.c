/*
 * Merging and percentiles of a latency distribution.
 */
#include "tools/stress_latency.h"

void stress_latency_merge(struct stress_latency *to, const struct stress_latency *from)
{
    to->count += from->count;
    if (from->max_ns > to->max_ns)
        to->max_ns = from->max_ns;
    for (uint32_t i = 0; i < GEMMD_HISTOGRAM_BUCKETS; i++)
        to->histogram.count[i] += from->histogram.count[i];
}

double stress_latency_percentile(const struct stress_latency *latency, double fraction)
{
    double rank = fraction * (double)latency->count, before = 0, max = (double)latency->max_ns;

    for (uint32_t i = 0; i < GEMMD_HISTOGRAM_BUCKETS; i++) {
        double here = (double)latency->histogram.count[i], floor, value;

        if (here == 0 || before + here < rank) {
            before += here;
            continue;
        }
        if (i == GEMMD_HISTOGRAM_BUCKETS - 1)
            return max; /* has no upper end */
        floor = (double)gemmd_histogram_floor(i);
        value = floor + ((double)gemmd_histogram_floor(i + 1) - floor) * (rank - before) / here;
        return value < max ? value : max;
    }
    return max;
}
