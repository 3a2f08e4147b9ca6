/*
 * The latency distribution as HdrHistogram's percentile text (github.com/HdrHistogram, which any of
 * its plotters reads), and a PNG of it by gnuplot, together with the rate over time.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/stress.h"

/* As HdrHistogram: five lines for each halving of the distance to 100 %. */
#define TICKS_PER_HALF 5

/* The largest value that a bucket counts, in us; never above the largest seen. */
static double bucket_top_us(const struct stress_latency *latency, uint32_t bucket)
{
    uint64_t top = latency->max_ns;

    if (bucket + 1 < GEMMD_HISTOGRAM_BUCKETS && gemmd_histogram_floor(bucket + 1) - 1 < top)
        top = gemmd_histogram_floor(bucket + 1) - 1;
    return (double)top / 1000;
}

/* The next level to report after `percentile`. */
static double next_level(double percentile)
{
    double halvings = floor(log2(100 / (100 - percentile))) + 1;

    return percentile + 100 / (TICKS_PER_HALF * exp2(halvings));
}

/* "value percentile count 1/(1-percentile)" for each level; `inverted`: the columns a logarithmic
 * axis wants, 1/(1-percentile) and value. */
static void print_levels(FILE *file, const struct stress_latency *latency, bool inverted)
{
    double level = 0, total = (double)latency->count;
    uint64_t seen = 0;

    for (uint32_t i = 0; i < GEMMD_HISTOGRAM_BUCKETS; i++) {
        seen += latency->histogram.count[i];
        if (latency->histogram.count[i] == 0)
            continue;
        while (seen < latency->count && 100 * (double)seen / total >= level) {
            if (inverted)
                fprintf(file, "%.6f %.3f\n", 100 / (100 - level), bucket_top_us(latency, i));
            else
                fprintf(file, "%12.3f %2.12f %10" PRIu64 " %14.2f\n", bucket_top_us(latency, i),
                        level / 100, seen, 100 / (100 - level));
            level = next_level(level);
        }
        if (seen == latency->count) {
            if (inverted)
                fprintf(file, "%.6f %.3f\n", total, bucket_top_us(latency, i));
            else
                fprintf(file, "%12.3f %2.12f %10" PRIu64 "\n", bucket_top_us(latency, i), 1.0,
                        seen);
            return;
        }
    }
}

/* Of bucket middles: right to half a bucket, 3 %. */
static void moments_us(const struct stress_latency *latency, double *mean, double *deviation)
{
    double sum = 0, squares = 0, count = (double)latency->count;

    for (uint32_t i = 0; i < GEMMD_HISTOGRAM_BUCKETS; i++) {
        double here = (double)latency->histogram.count[i];
        double middle = ((double)gemmd_histogram_floor(i) / 1000 + bucket_top_us(latency, i)) / 2;

        sum += here * middle;
        squares += here * middle * middle;
    }
    *mean = count > 0 ? sum / count : 0;
    *deviation = count > 0 ? sqrt(fmax(0, squares / count - *mean * *mean)) : 0;
}

static int complain(const char *what, const char *path)
{
    fprintf(stderr, "gemmd-stress: %s %s: %s\n", what, path, strerror(errno));
    return EX_CANTCREAT;
}

int stress_write_hgrm(const struct stress_summary *summary)
{
    const struct stress_latency *latency = &summary->latency;
    FILE *file = fopen(summary->options->hgrm, "we");
    double mean, deviation;
    bool failed;

    if (!file)
        return complain("--hgrm", summary->options->hgrm);
    moments_us(latency, &mean, &deviation);
    fprintf(file, "%12s %14s %10s %14s\n\n", "Value", "Percentile", "TotalCount",
            "1/(1-Percentile)");
    print_levels(file, latency, false);
    fprintf(file, "#[Mean    = %12.3f, StdDeviation   = %12.3f]\n", mean, deviation);
    fprintf(file, "#[Max     = %12.3f, Total count    = %12" PRIu64 "]\n",
            (double)latency->max_ns / 1000, latency->count);
    fprintf(file, "#[Buckets = %12d, SubBuckets     = %12d]\n", GEMMD_HISTOGRAM_BUCKETS / 16, 16);
    failed = ferror(file) != 0;
    failed |= fclose(file) != 0;
    return failed ? complain("--hgrm", summary->options->hgrm) : EX_OK;
}

/* ---- gnuplot --------------------------------------------------------------------------------- */

/* Within gnuplot's single quotes, a quote is doubled. */
static void print_quoted(FILE *file, const char *text)
{
    fputc('\'', file);
    for (; *text; text++) {
        if (*text == '\'')
            fputc('\'', file);
        fputc(*text == '\n' ? ' ' : *text, file);
    }
    fputc('\'', file);
}

static void print_rates(FILE *file, const struct stress_series *series)
{
    for (uint32_t i = 1; i < series->count; i++) {
        double seconds = series->seconds[i] - series->seconds[i - 1];

        if (seconds > 0)
            fprintf(file, "%.4f %.1f\n", series->seconds[i],
                    (double)(series->jobs[i] - series->jobs[i - 1]) / seconds);
    }
}

static void print_script(FILE *file, const struct stress_summary *summary)
{
    const struct stress_options *options = summary->options;

    fputs("$latency << END\n", file);
    print_levels(file, &summary->latency, true);
    fputs("END\n$rate << END\n", file);
    print_rates(file, &summary->series);
    fputs("END\nset terminal pngcairo size 1000,900\nset output ", file);
    print_quoted(file, options->plot);
    fprintf(file,
            "\nset multiplot layout 2,1 title 'gemmd-stress: %" PRIu32 " sessions, depth %" PRIu32
            ", %s, seed %" PRIu64 "' noenhanced\n",
            options->sessions, options->depth,
            options->rate > 0 ? "open loop, latency from arrival" : "closed loop", options->seed);
    fputs("set grid\nset key off\nset logscale xy\nset xlabel 'percentile'\n"
          "set ylabel 'latency, us'\n"
          "set xtics ('0' 1, '50' 2, '90' 10, '99' 100, '99.9' 1000, '99.99' 10000,"
          " '99.999' 100000, '99.9999' 1000000)\n"
          "plot [1:*] $latency using 1:2 with lines linewidth 2\n"
          "unset logscale\nset xtics autofreq\nset xlabel 'time, s'\nset ylabel 'jobs/s'\n"
          "plot [0:*] [0:*] $rate using 1:2 with lines\nunset multiplot\n",
          file);
}

int stress_write_plot(const struct stress_summary *summary)
{
    FILE *file;
    int status;

    if (summary->series.count < 2 || summary->latency.count == 0) {
        fprintf(stderr, "gemmd-stress: --plot: the run was too short for a plot\n");
        return EX_CANTCREAT;
    }
    file = popen("exec gnuplot", "we");
    if (!file)
        return complain("--plot", "gnuplot");
    print_script(file, summary);
    status = pclose(file);
    if (status == 0)
        return EX_OK;
    fprintf(stderr, "gemmd-stress: --plot %s: gnuplot failed; is it installed?\n",
            summary->options->plot);
    return EX_CANTCREAT;
}
