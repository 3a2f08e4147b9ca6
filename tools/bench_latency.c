/* gemmd-bench latency: command line and reports. */
#include "tools/bench_latency.h"

#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/bench_worker.h"

static const char usage_text[] =
    "usage: gemmd-bench latency [option ...]\n"
    "Jobs of the latency class, one at a time, by a private worker on one CPU for a client that\n"
    "spins on another: alone, and beside a client that always has 16 jobs of 4096 x 2048 x 4096\n"
    "in flight.\n"
    "\n"
    "  --shape M,N,K     only this shape; may be repeated\n"
    "  --gap-us T        pause before each job, random with this mean (default 20)\n"
    "  --rounds R        rounds whose median counts, 1 to 31 (default 5)\n"
    "  --seconds T       of each side in each round (default 0.5)\n"
    "  --cpus W[,C]      the worker's CPU and the client's (default: the last one allowed, and\n"
    "                    one that shares its L3)\n"
    "  --worker PATH     the worker's program (default: $GEMMD_WORKER, else gemmd beside this\n"
    "                    one, else in PATH)\n"
    "  --worker-option X passed on to the worker; may be repeated\n"
    "  --quick           one shape, short samples\n"
    "  --json            the report as JSON\n"
    "  --help\n"
    "exit status: 0 ok, 64 usage, 69 no worker or no second CPU, 70 internal\n";

static const struct bench_shape shapes[] = {
    {1, 64, 64, "latency"}, {1, 512, 512, "latency"}, {1, 1024, 1024, "latency"}};
static const struct bench_shape quick_shapes[] = {{1, 512, 512, "latency"}};

struct latency_options {
    struct bench_shape shapes[LATENCY_SHAPES_MAX];
    uint32_t shape_count;
    struct latency_bench bench;
    struct bench_worker worker;
    char worker_cpu[16];
    bool json;
};

/* ---- reports --------------------------------------------------------------------------------- */

static void print_head(const struct latency_bench *bench)
{
    printf("cpu      %s, L2 %zu KiB, L3 %zu MiB\n", bench->machine.cpu,
           bench->machine.l2_bytes >> 10, bench->machine.l3_bytes >> 20);
    printf("kernel   %s\n", bench->machine.kernel);
    printf("level    %s, %s\n", bench->info.level, bench->info.kernel);
    printf("cpus     %u the worker's, %u the client's; medians of %u rounds of %g s, in turn\n",
           bench->info.dispatcher_cpu, bench->client_cpu, bench->rounds, bench->seconds);
    printf("gap      %g us before each job, on average\n", bench->gap_us);
    printf("flood    jobs of %d x %d x %d; its GOPS beside the jobs, and without them\n\n", FLOOD_M,
           FLOOD_N, FLOOD_K);
    printf("%14s %19s %21s %15s %21s\n", "", "alone, us", "beside the flood, us", "beside / alone",
           "flood, GOPS");
    printf("%14s %9s %9s %11s %9s %7s %7s %10s %10s\n", "m,n,k", "p50", "p99", "p50", "p99", "p50",
           "p99", "beside", "without");
}

static void print_row(const struct latency_result *result)
{
    char name[40];

    snprintf(name, sizeof(name), "%u,%u,%u", result->shape.m, result->shape.n, result->shape.k);
    printf("%14s %9.2f %9.2f %11.2f %9.2f %6.1fx %6.1fx %10.0f %10.0f\n", name,
           result->alone_p50_ns / 1e3, result->alone_p99_ns / 1e3, result->beside_p50_ns / 1e3,
           result->beside_p99_ns / 1e3, result->p50_ratio, result->p99_ratio, result->flood_gops,
           result->flood_alone_gops);
    fflush(stdout);
}

static void print_json(const struct latency_bench *bench, const struct latency_result *results,
                       uint32_t count)
{
    printf("{\"cpu\":\"%s\",\"l2_bytes\":%zu,\"l3_bytes\":%zu,\"kernel\":\"%s\",\"level\":\"%s\","
           "\"worker_kernel\":\"%s\",\"worker_cpu\":%u,\"client_cpu\":%u,\"rounds\":%u,"
           "\"seconds\":%g,\"gap_us\":%g,\"results\":[",
           bench->machine.cpu, bench->machine.l2_bytes, bench->machine.l3_bytes,
           bench->machine.kernel, bench->info.level, bench->info.kernel,
           bench->info.dispatcher_cpu, bench->client_cpu, bench->rounds, bench->seconds,
           bench->gap_us);
    for (uint32_t i = 0; i < count; i++) {
        const struct latency_result *result = &results[i];

        printf("%s\n{\"m\":%u,\"n\":%u,\"k\":%u,\"alone_p50_ns\":%.1f,\"alone_p99_ns\":%.1f,"
               "\"beside_p50_ns\":%.1f,\"beside_p99_ns\":%.1f,\"p50_ratio\":%.4f,"
               "\"p99_ratio\":%.4f,\"flood_gops\":%.2f,\"flood_alone_gops\":%.2f}",
               i ? "," : "", result->shape.m, result->shape.n, result->shape.k,
               result->alone_p50_ns, result->alone_p99_ns, result->beside_p50_ns,
               result->beside_p99_ns, result->p50_ratio, result->p99_ratio, result->flood_gops,
               result->flood_alone_gops);
    }
    printf("\n]}\n");
}

/* ---- command line ---------------------------------------------------------------------------- */

enum option_id { OPTION_SHAPE = 256, OPTION_GAP, OPTION_ROUNDS, OPTION_SECONDS, OPTION_CPUS,
                 OPTION_WORKER, OPTION_WORKER_OPTION, OPTION_QUICK, OPTION_JSON, OPTION_HELP };

static const struct option long_options[] = {
    {"shape", required_argument, NULL, OPTION_SHAPE},
    {"gap-us", required_argument, NULL, OPTION_GAP},
    {"rounds", required_argument, NULL, OPTION_ROUNDS},
    {"seconds", required_argument, NULL, OPTION_SECONDS},
    {"cpus", required_argument, NULL, OPTION_CPUS},
    {"worker", required_argument, NULL, OPTION_WORKER},
    {"worker-option", required_argument, NULL, OPTION_WORKER_OPTION},
    {"quick", no_argument, NULL, OPTION_QUICK},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static bool add_shape(struct latency_options *options, const char *text)
{
    static const uint32_t max[3] = {1024, 1 << 16, 65536};
    uint32_t mnk[3];

    if (options->shape_count == LATENCY_SHAPES_MAX ||
        !bench_parse_numbers(text, max, mnk, 3, false))
        return false;
    options->shapes[options->shape_count++] =
        (struct bench_shape){mnk[0], mnk[1], mnk[2], "shape"};
    return true;
}

static bool choose_cpus(struct latency_options *options, const char *text)
{
    static const uint32_t max[2] = {1023, 1023};
    bool two = strchr(text, ',') != NULL;
    uint32_t cpus[2];

    if (!bench_parse_numbers(text, max, cpus, two ? 2 : 1, true))
        return false;
    snprintf(options->worker_cpu, sizeof(options->worker_cpu), "%u", cpus[0]);
    options->bench.client_cpu = two ? cpus[1] : UINT_MAX;
    return true;
}

static void take_shapes(struct latency_options *options, const struct bench_shape *from,
                        size_t count)
{
    memcpy(options->shapes, from, count * sizeof(*from));
    options->shape_count = (uint32_t)count;
}

/* False: wrong. */
static bool apply(struct latency_options *options, int id)
{
    static const uint32_t rounds_max = BENCH_ROUNDS_MAX;

    switch (id) {
    case OPTION_SHAPE:
        return add_shape(options, optarg);
    case OPTION_GAP:
        options->bench.gap_us = strtod(optarg, NULL);
        return options->bench.gap_us >= 0 && options->bench.gap_us <= 1000;
    case OPTION_ROUNDS:
        return bench_parse_numbers(optarg, &rounds_max, &options->bench.rounds, 1, false);
    case OPTION_SECONDS:
        options->bench.seconds = strtod(optarg, NULL);
        return options->bench.seconds >= 0.01 && options->bench.seconds <= 10;
    case OPTION_CPUS:
        return choose_cpus(options, optarg);
    case OPTION_WORKER:
        options->worker.program = optarg;
        return true;
    case OPTION_WORKER_OPTION:
        return bench_worker_argument(&options->worker, optarg);
    case OPTION_QUICK:
        take_shapes(options, quick_shapes, sizeof(quick_shapes) / sizeof(*quick_shapes));
        options->bench.rounds = 1;
        options->bench.seconds = 0.05;
        return true;
    case OPTION_JSON:
        options->json = true;
        return true;
    default:
        return false;
    }
}

/* ---- all of it ------------------------------------------------------------------------------- */

static int measure(struct latency_options *options)
{
    struct latency_result results[LATENCY_SHAPES_MAX];
    struct latency_bench *bench = &options->bench;
    int status;

    bench->socket = options->worker.socket;
    status = latency_open(bench);
    if (!status && !options->json)
        print_head(bench);
    for (uint32_t i = 0; i < options->shape_count && !status; i++) {
        status = latency_measure(bench, &options->shapes[i], &results[i]);
        if (!status && !options->json)
            print_row(&results[i]);
    }
    if (!status && options->json)
        print_json(bench, results, options->shape_count);
    latency_close(bench);
    return status;
}

/* The worker never sleeps in a pause between two jobs, and its CPU is known beforehand. */
static void set_worker(struct latency_options *options)
{
    unsigned int cpus[1024], count = bench_cpus(cpus, 1024);

    if (!*options->worker_cpu && count)
        snprintf(options->worker_cpu, sizeof(options->worker_cpu), "%u", cpus[count - 1]);
    bench_worker_argument(&options->worker, "--cpus");
    bench_worker_argument(&options->worker, options->worker_cpu);
    bench_worker_argument(&options->worker, "--spin-us");
    bench_worker_argument(&options->worker, "10000");
}

int bench_latency(int argc, char **argv)
{
    struct latency_options options = {
        .bench = {.client_cpu = UINT_MAX, .rounds = 5, .seconds = 0.5, .gap_us = 20}};
    int id, status = EX_UNAVAILABLE;

    while ((id = getopt_long(argc, argv, "", long_options, NULL)) != -1)
        if (id == OPTION_HELP) {
            fputs(usage_text, stdout);
            return EX_OK;
        } else if (!apply(&options, id)) {
            fprintf(stderr, "gemmd-bench: wrong option or value; see gemmd-bench latency --help\n");
            return EX_USAGE;
        }
    if (!options.shape_count)
        take_shapes(&options, shapes, sizeof(shapes) / sizeof(*shapes));
    set_worker(&options);
    if (bench_worker_start(&options.worker))
        status = measure(&options);
    bench_worker_stop(&options.worker);
    return status;
}
