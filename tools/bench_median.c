/* Medians of what the rounds of a benchmark measured. */
#include "tools/bench.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

void bench_sort(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), compare);
}

double bench_median(const double *values, unsigned int count)
{
    double sorted[BENCH_ROUNDS_MAX];

    memcpy(sorted, values, count * sizeof(*values));
    bench_sort(sorted, count);
    return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

double bench_median_ratio(const double *above, const double *below, unsigned int count)
{
    double ratios[BENCH_ROUNDS_MAX];

    for (unsigned int i = 0; i < count; i++)
        ratios[i] = above[i] / below[i];
    return bench_median(ratios, count);
}
