/* gemmd-bench path: command line and reports. */
#include "tools/bench_path.h"

#include <string.h>
#include <sysexits.h>

#include "tools/bench_command.h"

static const char usage_text[] =
    "usage: gemmd-bench path [option ...]\n"
    "One job at a time, by a private worker on one CPU for a client that spins on another; beside\n"
    "it the same kernel called on the worker's CPU, and called there by a thread that is told so\n"
    "through one cache line (what any worker on another core costs).  Weights are hot; rows are\n"
    "written and results read by whoever asks.\n"
    "\n"
    "  --shape M,N,K     only this shape; may be repeated; M 0: an empty job\n"
    "  --rounds R        rounds whose median counts, 1 to 31 (default 7)\n"
    "  --seconds T       of each side in each round (default 0.05)\n"
    "  --cpus W[,C]      the worker's CPU and the client's (default: the last one allowed, and\n"
    "                    one that shares its L3)\n"
    "  --worker PATH     the worker's program (default: $GEMMD_WORKER, else gemmd beside this\n"
    "                    one, else in PATH)\n"
    "  --worker-option X passed on to the worker; may be repeated\n"
    "  --untouched       nobody writes rows or reads results: their lines stay with the worker\n"
    "  --quick           three shapes, short samples\n"
    "  --json            the report as JSON\n"
    "  --help\n"
    "exit status: 0 ok, 64 usage, 69 no worker or no second CPU, 70 internal, or results that\n"
    "differ\n";

/* From nothing to about a millisecond. */
static const struct bench_shape shapes[] = {
    {0, 64, 64, "empty"},     {1, 64, 64, "path"},      {1, 256, 256, "path"},
    {1, 512, 512, "path"},    {1, 1024, 1024, "path"},  {16, 1024, 1024, "path"},
    {1, 4096, 1024, "path"},  {64, 1024, 1024, "path"}, {256, 1024, 1024, "path"},
    {1024, 1024, 1024, "path"},
};
static const struct bench_shape quick_shapes[] = {
    {0, 64, 64, "empty"}, {1, 256, 256, "path"}, {16, 1024, 1024, "path"}};

/* ---- reports --------------------------------------------------------------------------------- */

/* targets.md: 3 % for jobs of 10 us and more, else 200 ns. */
static bool is_long(const struct path_result *result)
{
    return result->ns[PATH_OWN] >= 10000;
}

static void print_head(const struct path_bench *bench)
{
    printf("cpu      %s, L2 %zu KiB, L3 %zu MiB\n", bench->machine.cpu,
           bench->machine.l2_bytes >> 10, bench->machine.l3_bytes >> 20);
    printf("kernel   %s\n", bench->machine.kernel);
    printf("level    %s, %s, all sides\n", bench->info.level, bench->info.kernel);
    printf("cpus     %u the worker's, %u the client's; medians of %u rounds of %g s, in turn\n",
           bench->info.dispatcher_cpu, bench->client_cpu, bench->rounds, bench->seconds);
    printf("\nns from rows %s to result complete; handover: one line there and back\n\n",
           bench->untouched ? "as they are" : "written");
    printf("%16s %10s %10s %10s %15s %15s  %s\n", "m,n,k", "in process", "handover", "worker",
           "over in process", "over handover", "reading C: own, worker");
}

static void print_row(const struct path_result *result)
{
    char name[40];

    snprintf(name, sizeof(name), "%u,%u,%u", result->shape.m, result->shape.n, result->shape.k);
    printf("%16s %10.0f %10.0f %10.0f ", name, result->ns[PATH_OWN], result->ns[PATH_HANDOVER],
           result->ns[PATH_WORKER]);
    if (is_long(result))
        printf("%13.3f x  %13.3f x", result->own_ratio, result->handover_ratio);
    else
        printf(" %+11.0f ns  %+11.0f ns", result->own_more_ns, result->handover_more_ns);
    printf("  %9.0f %7.0f\n", result->read_ns[PATH_OWN], result->read_ns[PATH_WORKER]);
    fflush(stdout);
}

static void print_json(const struct path_bench *bench, const struct path_result *results,
                       uint32_t count)
{
    printf("{\"cpu\":\"%s\",\"l2_bytes\":%zu,\"l3_bytes\":%zu,\"kernel\":\"%s\",\"level\":\"%s\","
           "\"worker_kernel\":\"%s\",\"worker_cpu\":%u,\"client_cpu\":%u,\"rounds\":%u,"
           "\"seconds\":%g,\"untouched\":%s,\"results\":[",
           bench->machine.cpu, bench->machine.l2_bytes, bench->machine.l3_bytes,
           bench->machine.kernel, bench->info.level, bench->info.kernel,
           bench->info.dispatcher_cpu, bench->client_cpu, bench->rounds, bench->seconds,
           bench->untouched ? "true" : "false");
    for (uint32_t i = 0; i < count; i++) {
        const struct path_result *result = &results[i];

        printf("%s\n{\"m\":%u,\"n\":%u,\"k\":%u,\"own_ns\":%.1f,\"handover_ns\":%.1f,"
               "\"worker_ns\":%.1f,\"own_ratio\":%.4f,\"own_more_ns\":%.1f,"
               "\"handover_ratio\":%.4f,\"handover_more_ns\":%.1f,\"own_read_ns\":%.1f,"
               "\"handover_read_ns\":%.1f,\"worker_read_ns\":%.1f}",
               i ? "," : "", result->shape.m, result->shape.n, result->shape.k,
               result->ns[PATH_OWN], result->ns[PATH_HANDOVER], result->ns[PATH_WORKER],
               result->own_ratio, result->own_more_ns, result->handover_ratio,
               result->handover_more_ns, result->read_ns[PATH_OWN],
               result->read_ns[PATH_HANDOVER], result->read_ns[PATH_WORKER]);
    }
    printf("\n]}\n");
}

/* ---- all of it ------------------------------------------------------------------------------- */

enum { OPTION_UNTOUCHED = COMMAND_OWN };

static const struct option long_options[] = {
    COMMAND_ROW_SHAPE, COMMAND_ROW_ROUNDS, COMMAND_ROW_SECONDS, COMMAND_ROW_CPUS,
    {"untouched", no_argument, NULL, OPTION_UNTOUCHED},
    COMMAND_ROWS_LAST,
};

static bool apply(void *owner, int id, const char *value)
{
    struct path_bench *bench = owner;

    (void)value;
    bench->untouched |= id == OPTION_UNTOUCHED;
    return true;
}

static int measure(const struct command *command, struct path_bench *bench)
{
    struct path_result results[COMMAND_SHAPES_MAX];
    int status = path_open(bench);

    if (!status && !command->json)
        print_head(bench);
    for (uint32_t i = 0; i < command->shape_count && !status; i++) {
        status = path_measure(bench, &command->shapes[i], &results[i]);
        if (!status && !command->json)
            print_row(&results[i]);
    }
    if (!status && command->json)
        print_json(bench, results, command->shape_count);
    path_close(bench);
    return status;
}

int bench_path(int argc, char **argv)
{
    struct path_bench bench = {.socket = NULL};
    struct command command = {.name = "path",
                              .usage = usage_text,
                              .options = long_options,
                              .shape_max = {1 << 20, 1 << 20, 65536},
                              .empty_jobs = true,
                              .seconds_min = 0.001,
                              .apply = apply,
                              .owner = &bench};
    int status = EX_UNAVAILABLE;

    if (!command_parse(&command, argc, argv, &status))
        return status;
    if (command.quick)
        command_default_shapes(&command, quick_shapes, sizeof(quick_shapes) / sizeof(*shapes));
    command_default_shapes(&command, shapes, sizeof(shapes) / sizeof(*shapes));
    bench.rounds = command.rounds ? command.rounds : command.quick ? 3 : 7;
    bench.seconds = command.seconds > 0 ? command.seconds : command.quick ? 0.01 : 0.05;
    bench.client_cpu = command.client_cpu;
    bench.socket = command.worker.socket;
    command_pin_worker(&command, "2000"); /* it never sleeps while a call is prepared */
    if (bench_worker_start(&command.worker))
        status = measure(&command, &bench);
    bench_worker_stop(&command.worker);
    return status;
}
