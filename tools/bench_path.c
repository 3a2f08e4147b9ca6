/* gemmd-bench path: command line and reports. */
#include "tools/bench_path.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/bench_worker.h"

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

struct path_options {
    struct bench_shape shapes[PATH_SHAPES_MAX];
    uint32_t shape_count;
    struct path_bench bench;
    struct bench_worker worker;
    char worker_cpu[16];
    bool json;
};

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

/* ---- command line ---------------------------------------------------------------------------- */

enum option_id { OPTION_SHAPE = 256, OPTION_ROUNDS, OPTION_SECONDS, OPTION_CPUS, OPTION_WORKER,
                 OPTION_WORKER_OPTION, OPTION_UNTOUCHED, OPTION_QUICK, OPTION_JSON, OPTION_HELP };

static const struct option long_options[] = {
    {"shape", required_argument, NULL, OPTION_SHAPE},
    {"rounds", required_argument, NULL, OPTION_ROUNDS},
    {"seconds", required_argument, NULL, OPTION_SECONDS},
    {"cpus", required_argument, NULL, OPTION_CPUS},
    {"worker", required_argument, NULL, OPTION_WORKER},
    {"worker-option", required_argument, NULL, OPTION_WORKER_OPTION},
    {"untouched", no_argument, NULL, OPTION_UNTOUCHED},
    {"quick", no_argument, NULL, OPTION_QUICK},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static bool add_shape(struct path_options *options, const char *text)
{
    static const uint32_t max[3] = {1 << 20, 1 << 20, 65536};
    struct bench_shape *shape = &options->shapes[options->shape_count];
    uint32_t mnk[3];

    if (options->shape_count == PATH_SHAPES_MAX || !bench_parse_numbers(text, max, mnk, 3, true) ||
        !mnk[1] || !mnk[2])
        return false;
    *shape = (struct bench_shape){mnk[0], mnk[1], mnk[2], "shape"};
    options->shape_count++;
    return true;
}

static bool choose_cpus(struct path_options *options, const char *text)
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

static void take_shapes(struct path_options *options, const struct bench_shape *from, size_t count)
{
    memcpy(options->shapes, from, count * sizeof(*from));
    options->shape_count = (uint32_t)count;
}

/* False: wrong. */
static bool apply(struct path_options *options, int id)
{
    static const uint32_t rounds_max = BENCH_ROUNDS_MAX;

    switch (id) {
    case OPTION_SHAPE:
        return add_shape(options, optarg);
    case OPTION_ROUNDS:
        return bench_parse_numbers(optarg, &rounds_max, &options->bench.rounds, 1, false);
    case OPTION_SECONDS:
        options->bench.seconds = strtod(optarg, NULL);
        return options->bench.seconds >= 0.001 && options->bench.seconds <= 10;
    case OPTION_CPUS:
        return choose_cpus(options, optarg);
    case OPTION_WORKER:
        options->worker.program = optarg;
        return true;
    case OPTION_WORKER_OPTION:
        return bench_worker_argument(&options->worker, optarg);
    case OPTION_UNTOUCHED:
        options->bench.untouched = true;
        return true;
    case OPTION_QUICK:
        take_shapes(options, quick_shapes, sizeof(quick_shapes) / sizeof(*quick_shapes));
        options->bench.rounds = 3;
        options->bench.seconds = 0.01;
        return true;
    case OPTION_JSON:
        options->json = true;
        return true;
    default:
        return false;
    }
}

/* ---- all of it ------------------------------------------------------------------------------- */

static int measure(struct path_options *options)
{
    struct path_result results[PATH_SHAPES_MAX];
    struct path_bench *bench = &options->bench;
    int status;

    bench->socket = options->worker.socket;
    status = path_open(bench);
    if (!status && !options->json)
        print_head(bench);
    for (uint32_t i = 0; i < options->shape_count && !status; i++) {
        status = path_measure(bench, &options->shapes[i], &results[i]);
        if (!status && !options->json)
            print_row(&results[i]);
    }
    if (!status && options->json)
        print_json(bench, results, options->shape_count);
    path_close(bench);
    return status;
}

/* The worker never sleeps while this program prepares a call, and its CPU is known beforehand. */
static void set_worker(struct path_options *options)
{
    unsigned int cpus[1024], count = bench_cpus(cpus, 1024);

    if (!*options->worker_cpu && count)
        snprintf(options->worker_cpu, sizeof(options->worker_cpu), "%u", cpus[count - 1]);
    bench_worker_argument(&options->worker, "--cpus");
    bench_worker_argument(&options->worker, options->worker_cpu);
    bench_worker_argument(&options->worker, "--spin-us");
    bench_worker_argument(&options->worker, "2000");
}

int bench_path(int argc, char **argv)
{
    struct path_options options = {
        .bench = {.client_cpu = UINT_MAX, .rounds = 7, .seconds = 0.05}};
    int id, status = EX_UNAVAILABLE;

    while ((id = getopt_long(argc, argv, "", long_options, NULL)) != -1)
        if (id == OPTION_HELP) {
            fputs(usage_text, stdout);
            return EX_OK;
        } else if (!apply(&options, id)) {
            fprintf(stderr, "gemmd-bench: wrong option or value; see gemmd-bench path --help\n");
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
