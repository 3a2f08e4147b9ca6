/* gemmd-bench latency: command line and reports. */
#include "tools/bench_latency.h"

#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/bench_command.h"

static const char usage_text[] =
    "usage: gemmd-bench latency [option ...]\n"
    "Jobs of the latency class, one at a time, by a private worker on one CPU for a client that\n"
    "spins on another: alone, and beside a client that always has 16 jobs of 4096 x 2048 x 4096\n"
    "in flight.  Beside them the limit: the kernel called through one cache line by a thread on\n"
    "the worker's CPU, alone and between parts of as much work.\n"
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
    printf("%14s %19s %21s %15s %21s %24s\n", "", "alone, us", "beside the flood, us",
           "beside / alone", "flood, GOPS", "p99 without a worker, us");
    printf("%14s %9s %9s %11s %9s %7s %7s %10s %10s %8s %8s %6s\n", "m,n,k", "p50", "p99", "p50",
           "p99", "p50", "p99", "beside", "without", "alone", "beside", "ratio");
}

static void print_row(const struct latency_result *result)
{
    char name[40];

    snprintf(name, sizeof(name), "%u,%u,%u", result->shape.m, result->shape.n, result->shape.k);
    printf("%14s %9.2f %9.2f %11.2f %9.2f %6.1fx %6.1fx %10.0f %10.0f %8.2f %8.2f %5.1fx\n", name,
           result->alone_p50_ns / 1e3, result->alone_p99_ns / 1e3, result->beside_p50_ns / 1e3,
           result->beside_p99_ns / 1e3, result->p50_ratio, result->p99_ratio, result->flood_gops,
           result->flood_alone_gops, result->limit_alone_ns / 1e3, result->limit_beside_ns / 1e3,
           result->limit_ratio);
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
               "\"p99_ratio\":%.4f,\"flood_gops\":%.2f,\"flood_alone_gops\":%.2f,"
               "\"limit_alone_p99_ns\":%.1f,\"limit_beside_p99_ns\":%.1f,\"limit_ratio\":%.4f}",
               i ? "," : "", result->shape.m, result->shape.n, result->shape.k,
               result->alone_p50_ns, result->alone_p99_ns, result->beside_p50_ns,
               result->beside_p99_ns, result->p50_ratio, result->p99_ratio, result->flood_gops,
               result->flood_alone_gops, result->limit_alone_ns, result->limit_beside_ns,
               result->limit_ratio);
    }
    printf("\n]}\n");
}

/* ---- all of it ------------------------------------------------------------------------------- */

enum { OPTION_GAP = COMMAND_OWN };

static const struct option long_options[] = {
    COMMAND_ROW_SHAPE, COMMAND_ROW_ROUNDS, COMMAND_ROW_SECONDS, COMMAND_ROW_CPUS,
    {"gap-us", required_argument, NULL, OPTION_GAP},
    COMMAND_ROWS_LAST,
};

static bool apply(void *owner, int id, const char *value)
{
    struct latency_bench *bench = owner;

    (void)id;
    return command_parse_real(value, 0, 1000, &bench->gap_us);
}

static int measure(const struct command *command, struct latency_bench *bench)
{
    struct latency_result results[COMMAND_SHAPES_MAX];
    int status = latency_open(bench);

    if (!status && !command->json)
        print_head(bench);
    for (uint32_t i = 0; i < command->shape_count && !status; i++) {
        status = latency_measure(bench, &command->shapes[i], &results[i]);
        if (!status && !command->json)
            print_row(&results[i]);
    }
    if (!status && command->json)
        print_json(bench, results, command->shape_count);
    latency_close(bench);
    return status;
}

int bench_latency(int argc, char **argv)
{
    struct latency_bench bench = {.gap_us = 20};
    struct command command = {.name = "latency",
                              .usage = usage_text,
                              .options = long_options,
                              .shape_max = {1024, 1 << 16, 65536},
                              .seconds_min = 0.01,
                              .apply = apply,
                              .owner = &bench};
    int status = EX_UNAVAILABLE;

    if (!command_parse(&command, argc, argv, &status))
        return status;
    if (command.quick)
        command_default_shapes(&command, quick_shapes, sizeof(quick_shapes) / sizeof(*shapes));
    command_default_shapes(&command, shapes, sizeof(shapes) / sizeof(*shapes));
    bench.rounds = command.rounds ? command.rounds : command.quick ? 1 : 5;
    bench.seconds = command.seconds > 0 ? command.seconds : command.quick ? 0.05 : 0.5;
    bench.client_cpu = command.client_cpu;
    bench.socket = command.worker.socket;
    command_pin_worker(&command, "10000"); /* it never sleeps in a pause between two jobs */
    if (bench_worker_start(&command.worker))
        status = measure(&command, &bench);
    bench_worker_stop(&command.worker);
    return status;
}
