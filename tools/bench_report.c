/* Reports: a text table that grows as shapes are measured, JSON, and a roofline as PNG. */
#include "tools/bench.h"

#include <errno.h>
#include <string.h>

double bench_gops(const struct bench_shape *shape, double ns)
{
    return ns > 0 ? 2.0 * shape->m * shape->n * shape->k / ns : 0;
}

double bench_bound_gops(const struct bench_report *report, const struct bench_shape *shape)
{
    const struct bench_peak *peak = &report->peak;
    double bytes = (double)shape->n * shape->k;
    /* Beside A and C a repeated call finds about 3/4 of L2 and of L3 for its weights. */
    double gbps = bytes <= 0.75 * (double)report->machine.l2_bytes   ? peak->l2_gbps
                  : bytes <= 0.75 * (double)report->machine.l3_bytes ? peak->l3_gbps
                                                                     : peak->memory_gbps;
    double bound = 2.0 * shape->m * gbps;

    return bound < peak->gops ? bound : peak->gops;
}

/* ---- text ------------------------------------------------------------------------------------ */

void bench_text_head(const struct bench_report *report)
{
    const struct bench_machine *machine = &report->machine;
    const struct bench_peak *peak = &report->peak;

    printf("cpu      %s, L2 %zu KiB, L3 %zu MiB\n", machine->cpu, machine->l2_bytes >> 10,
           machine->l3_bytes >> 20);
    printf("kernel   %s\n", machine->kernel);
    printf("level    %s, %s; weights of %u bits\n", report->level_name, report->kernel_name,
           report->options->weight_bits);
    printf("peer     %s\n", report->peer_version);
    printf("pages    %s, both sides\n", bench_pages_name(machine->pages));
    printf("cpus     %u", report->options->cpus[0]);
    if (report->options->threads == BENCH_THREADS)
        printf(" and %u", report->options->cpus[1]);
    printf("; medians of %u rounds, sides in turn\n", report->options->rounds);
    printf("peak     %.1f GOPS (%s)", peak->gops, peak->instruction ? peak->instruction : "none");
    if (peak->vector_gops < peak->gops)
        printf(", %.1f GOPS (vpdpbusd zmm)", peak->vector_gops);
    printf("\nread     L2 %.1f, L3 %.1f, memory %.1f GB/s (%zu KiB, %zu MiB, %zu MiB)\n\n",
           peak->l2_gbps, peak->l3_gbps, peak->memory_gbps, peak->l2_bytes >> 10,
           peak->l3_bytes >> 20, peak->memory_bytes >> 20);
    printf("cold: one call after 128 MiB were touched (they leave an L3 larger than that alone)\n");
    printf("ratio: peer's time / ours; bound: hot GOPS / min(peak, 2 m x bandwidth); "
           "gather, runs, noise: time above that\n"
           "of strided rows (noise: of strided rows again), all from copies of A in turn, none of "
           "which is in L1\n\n");
    printf("%-11s %16s %8s %8s %5s %8s %8s %5s %5s %6s %6s %6s", "", "m,n,k", "hot GOPS", "peer",
           "ratio", "cold", "peer", "ratio", "bound", "gather", "runs", "noise");
    if (report->options->threads == BENCH_THREADS)
        printf(" %8s %8s %5s %8s %8s %5s %5s", "2t hot", "peer", "ratio", "2t cold", "peer",
               "ratio", "2t/1t");
    printf("\n");
    fflush(stdout);
}

/* Ours, the peer's and the ratio; "-" where there is none. */
static void print_side(const struct bench_shape *shape, double ns, double peer_ns, double ratio)
{
    printf(" %8.1f", bench_gops(shape, ns));
    if (peer_ns > 0)
        printf(" %8.1f %5.2f", bench_gops(shape, peer_ns), ratio);
    else
        printf(" %8s %5s", "-", "-");
}

void bench_text_row(const struct bench_report *report, const struct bench_result *result)
{
    const struct bench_shape *shape = &result->shape;
    double bound = bench_bound_gops(report, shape);
    char name[40];

    snprintf(name, sizeof(name), "%u,%u,%u", shape->m, shape->n, shape->k);
    printf("%-11s %16s", shape->group, name);
    print_side(shape, result->hot_ns, result->peer_hot_ns, result->hot_ratio);
    print_side(shape, result->cold_ns, result->peer_cold_ns, result->cold_ratio);
    if (bound > 0)
        printf(" %4.0f%%", 100 * bench_gops(shape, result->hot_ns) / bound);
    else
        printf(" %5s", "-");
    printf(" %5.1f%% %5.1f%% %5.1f%%", 100 * (result->gathered_ratio - 1),
           100 * (result->runs_ratio - 1), 100 * (result->again_ratio - 1));
    if (report->options->threads == BENCH_THREADS) {
        print_side(shape, result->two_hot_ns, result->peer_two_hot_ns, result->two_hot_ratio);
        print_side(shape, result->two_cold_ns, result->peer_two_cold_ns, result->two_cold_ratio);
        printf(" %5.2f", result->two_speedup);
    }
    if (result->peer_off > 0)
        printf("  peer wrong in %.2f%%", 100 * result->peer_off);
    printf("\n");
    fflush(stdout);
}

/* How many shapes of a long k stay within what gathered rows may cost. */
static void print_gathered(const struct bench_report *report)
{
    enum { LONG_K = 256 };
    const double limit = 1.03;
    unsigned int gathered = 0, runs = 0, again = 0, compared = 0;

    for (size_t i = 0; i < report->count; i++) {
        const struct bench_result *result = &report->results[i];

        if (result->shape.k < LONG_K)
            continue;
        compared++;
        gathered += result->gathered_ratio <= limit;
        runs += result->runs_ratio <= limit;
        again += result->again_ratio <= limit;
    }
    if (compared)
        printf("k >= %d, at most 3 %% above strided rows: gathered %u, runs %u, strided again %u "
               "of %u\n",
               LONG_K, gathered, runs, again, compared);
}

void bench_text_tail(const struct bench_report *report)
{
    unsigned int hot = 0, cold = 0, compared = 0;

    for (size_t i = 0; i < report->count; i++) {
        const struct bench_result *result = &report->results[i];

        compared += result->hot_ratio > 0;
        hot += result->hot_ratio >= 1;
        cold += result->cold_ratio >= 1;
    }
    printf("\n%zu shapes", report->count);
    if (compared)
        printf("; not slower than the peer: hot %u, cold %u of %u", hot, cold, compared);
    printf("\n");
    print_gathered(report);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void json_string(FILE *to, const char *name, const char *value)
{
    fprintf(to, "\"%s\": \"", name);
    for (; *value; value++) {
        if (*value == '"' || *value == '\\')
            fputc('\\', to);
        if ((unsigned char)*value >= ' ')
            fputc(*value, to);
    }
    fputs("\", ", to);
}

/* null where nothing was measured. */
static void json_number(FILE *to, const char *name, double value, const char *after)
{
    if (value > 0)
        fprintf(to, "\"%s\": %.4g%s", name, value, after);
    else
        fprintf(to, "\"%s\": null%s", name, after);
}

static void json_result(const struct bench_report *report, const struct bench_result *result,
                        FILE *to)
{
    const struct bench_shape *shape = &result->shape;

    fputs("    {", to);
    json_string(to, "group", shape->group);
    fprintf(to, "\"m\": %u, \"n\": %u, \"k\": %u, ", shape->m, shape->n, shape->k);
    json_number(to, "hot_ns", result->hot_ns, ", ");
    json_number(to, "cold_ns", result->cold_ns, ", ");
    json_number(to, "strided_ns", result->strided_ns, ", ");
    json_number(to, "gathered_ns", result->gathered_ns, ", ");
    json_number(to, "runs_ns", result->runs_ns, ", ");
    json_number(to, "two_hot_ns", result->two_hot_ns, ", ");
    json_number(to, "two_cold_ns", result->two_cold_ns, ", ");
    json_number(to, "peer_hot_ns", result->peer_hot_ns, ", ");
    json_number(to, "peer_cold_ns", result->peer_cold_ns, ", ");
    json_number(to, "peer_two_hot_ns", result->peer_two_hot_ns, ", ");
    json_number(to, "peer_two_cold_ns", result->peer_two_cold_ns, ", ");
    json_number(to, "hot_ratio", result->hot_ratio, ", ");
    json_number(to, "cold_ratio", result->cold_ratio, ", ");
    json_number(to, "two_hot_ratio", result->two_hot_ratio, ", ");
    json_number(to, "two_cold_ratio", result->two_cold_ratio, ", ");
    json_number(to, "gathered_ratio", result->gathered_ratio, ", ");
    json_number(to, "runs_ratio", result->runs_ratio, ", ");
    json_number(to, "again_ratio", result->again_ratio, ", ");
    json_number(to, "two_speedup", result->two_speedup, ", ");
    json_number(to, "hot_gops", bench_gops(shape, result->hot_ns), ", ");
    json_number(to, "bound_gops", bench_bound_gops(report, shape), ", ");
    json_string(to, "peer_implementation", result->peer_implementation);
    fprintf(to, "\"peer_off\": %.6f}", result->peer_off);
}

void bench_json(const struct bench_report *report, FILE *to)
{
    const struct bench_machine *machine = &report->machine;
    const struct bench_peak *peak = &report->peak;

    fputs("{\n  \"machine\": {", to);
    json_string(to, "cpu", machine->cpu);
    json_string(to, "kernel", machine->kernel);
    json_string(to, "pages", bench_pages_name(machine->pages));
    fprintf(to, "\"l2_bytes\": %zu, \"l3_bytes\": %zu},\n  ", machine->l2_bytes, machine->l3_bytes);
    json_string(to, "level", report->level_name);
    json_string(to, "micro_kernel", report->kernel_name);
    fprintf(to, "\"weight_bits\": %u, ", report->options->weight_bits);
    json_string(to, "peer", report->peer_version);
    fprintf(to, "\"rounds\": %u, \"threads\": %u,\n  \"peak\": {", report->options->rounds,
            report->options->threads);
    json_string(to, "instruction", peak->instruction ? peak->instruction : "none");
    json_number(to, "gops", peak->gops, ", ");
    json_number(to, "vector_gops", peak->vector_gops, ", ");
    json_number(to, "l2_gbps", peak->l2_gbps, ", ");
    json_number(to, "l3_gbps", peak->l3_gbps, ", ");
    json_number(to, "memory_gbps", peak->memory_gbps, "},\n  \"shapes\": [\n");
    for (size_t i = 0; i < report->count; i++) {
        json_result(report, &report->results[i], to);
        fputs(i + 1 < report->count ? ",\n" : "\n", to);
    }
    fputs("  ]\n}\n", to);
}

/* ---- roofline -------------------------------------------------------------------------------- */

/* Inline data of one series: operations per byte of weights against GOPS. */
static void plot_points(const struct bench_report *report, FILE *to, size_t ns_offset)
{
    for (size_t i = 0; i < report->count; i++) {
        const struct bench_result *result = &report->results[i];
        double ns;

        memcpy(&ns, (const char *)result + ns_offset, sizeof(ns));
        if (ns > 0)
            fprintf(to, "%u %g\n", 2 * result->shape.m, bench_gops(&result->shape, ns));
    }
    fputs("e\n", to);
}

int bench_plot(const struct bench_report *report, const char *path)
{
    const struct bench_peak *peak = &report->peak;
    FILE *to = popen("gnuplot", "we");
    bool peer = false;

    if (!to)
        return -errno;
    for (size_t i = 0; i < report->count; i++)
        peer = peer || report->results[i].peer_hot_ns > 0;
    fprintf(to, "set terminal pngcairo size 1200,800 noenhanced\nset output '");
    for (const char *c = path; *c; c++)
        fputs(*c == '\'' ? "''" : (char[]){*c, 0}, to);
    fprintf(to, "'\nset logscale xy\nset key bottom right\nset grid\n");
    fprintf(to, "set title \"%s, %s, %s pages\"\n", report->machine.cpu, report->kernel_name,
            bench_pages_name(report->machine.pages));
    fprintf(to, "set xlabel 'operations per byte of weights (2 m)'\nset ylabel 'GOPS'\n");
    fprintf(to, "set xrange [1.5:*]\nset yrange [1:%g]\nmin(a,b) = a < b ? a : b\n",
            2 * peak->gops);
    fprintf(to,
            "plot min(%g, x*%g) lw 2 title 'L2 %.0f GB/s, %s %.0f GOPS', "
            "min(%g, x*%g) lw 2 title 'L3 %.0f GB/s', min(%g, x*%g) lw 2 title 'memory %.0f GB/s', "
            "'-' pt 7 title 'hot', '-' pt 6 title 'cold'",
            peak->gops, peak->l2_gbps, peak->l2_gbps,
            peak->instruction ? peak->instruction : "none", peak->gops, peak->gops, peak->l3_gbps,
            peak->l3_gbps, peak->gops, peak->memory_gbps, peak->memory_gbps);
    if (peer)
        fprintf(to, ", '-' pt 2 title 'peer hot', '-' pt 1 title 'peer cold'");
    fputc('\n', to);
    plot_points(report, to, offsetof(struct bench_result, hot_ns));
    plot_points(report, to, offsetof(struct bench_result, cold_ns));
    if (peer) {
        plot_points(report, to, offsetof(struct bench_result, peer_hot_ns));
        plot_points(report, to, offsetof(struct bench_result, peer_cold_ns));
    }
    return pclose(to) == 0 ? 0 : -EIO;
}
