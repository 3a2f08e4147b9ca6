/* gemmd-bench operands: command line and reports. */
#include "tools/bench_operands.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/bench_worker.h"

static const char usage_text[] =
    "usage: gemmd-bench operands [option ...]\n"
    "Each kind of operand (rows of u8, s8, f32, bf16, rows with scales, s4 weights, a residual, C\n"
    "as its own residual) beside u8 rows and s8 weights: by the kernels in process on one thread,\n"
    "and by a private worker.  C is f32; both sides must agree to the bit.\n"
    "\n"
    "  --level NAME      ref, avx2, avxvnni, avx512, avx512vnni or amx, for both sides (default:\n"
    "                    what the worker chooses)\n"
    "  --shape M,N,K     only this shape; may be repeated\n"
    "  --rounds R        rounds whose median counts, 1 to 31 (default 9)\n"
    "  --worker PATH     the worker's program (default: $GEMMD_WORKER, else gemmd beside this\n"
    "                    one, else in PATH)\n"
    "  --worker-option X passed on to the worker; may be repeated\n"
    "  --quick           two small shapes, short samples\n"
    "  --json            the report as JSON\n"
    "  --help\n"
    "exit status: 0 ok, 64 usage, 69 no worker, or not of that level, 70 internal, or results\n"
    "that differ\n";

static const struct bench_shape shapes[] = {{1, 4096, 1024, "operands"},
                                            {16, 1024, 1024, "operands"},
                                            {64, 768, 768, "operands"},
                                            {256, 1024, 1024, "operands"}};
static const struct bench_shape quick_shapes[] = {{1, 256, 128, "operands"},
                                                  {33, 100, 192, "operands"}};

enum { SAMPLE_NS = 20000000, SAMPLE_QUICK_NS = 1000000 };

static struct {
    struct bench_shape shapes[OPERANDS_SHAPES_MAX];
    uint32_t shape_count;
    struct operands_bench bench;
    struct bench_worker worker;
    bool quick, json;
} options;

/* ---- reports --------------------------------------------------------------------------------- */

static void print_head(const struct operands_bench *bench)
{
    printf("%s; the worker has %u CPUs; C is f32; us a job, and times u8's, medians of %u rounds\n"
           "%15s  %-18s %10s %6s %10s %6s %11s\n",
           bench->info.kernel, bench->info.cpu_count, bench->rounds, "m,n,k", "A", "in process",
           "x u8", "worker", "x u8", "worker/own");
}

static void print_rows(const struct bench_shape *shape, const struct operands_result *results)
{
    char name[40];

    snprintf(name, sizeof(name), "%u,%u,%u", shape->m, shape->n, shape->k);
    for (int i = 0; i < OPERANDS_KINDS; i++) {
        const struct operands_result *result = &results[i];

        printf("%15s  %-18s %10.2f %6.2f %10.2f %6.2f %11.2f\n", name, result->kind,
               result->own_ns / 1e3, result->own_ratio, result->worker_ns / 1e3,
               result->worker_ratio, result->path_ratio);
    }
    fflush(stdout);
}

static void json_rows(const struct bench_shape *shape, const struct operands_result *results,
                      bool first)
{
    for (int i = 0; i < OPERANDS_KINDS; i++) {
        const struct operands_result *result = &results[i];

        printf("%s\n{\"m\":%u,\"n\":%u,\"k\":%u,\"kind\":\"%s\",\"own_ns\":%.1f,"
               "\"worker_ns\":%.1f,\"own_ratio\":%.4f,\"worker_ratio\":%.4f,"
               "\"path_ratio\":%.4f}",
               first && i == 0 ? "" : ",", shape->m, shape->n, shape->k, result->kind,
               result->own_ns, result->worker_ns, result->own_ratio, result->worker_ratio,
               result->path_ratio);
    }
}

/* ---- command line ---------------------------------------------------------------------------- */

enum option_id { OPTION_LEVEL = 256, OPTION_SHAPE, OPTION_ROUNDS, OPTION_WORKER,
                 OPTION_WORKER_OPTION, OPTION_QUICK, OPTION_JSON, OPTION_HELP };

static const struct option long_options[] = {
    {"level", required_argument, NULL, OPTION_LEVEL},
    {"shape", required_argument, NULL, OPTION_SHAPE},
    {"rounds", required_argument, NULL, OPTION_ROUNDS},
    {"worker", required_argument, NULL, OPTION_WORKER},
    {"worker-option", required_argument, NULL, OPTION_WORKER_OPTION},
    {"quick", no_argument, NULL, OPTION_QUICK},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static bool add_shape(const char *text)
{
    static const uint32_t max[3] = {GEMM_ROWS_MAX, 1 << 20, GEMM_K_MAX};
    uint32_t mnk[3];

    if (options.shape_count == OPERANDS_SHAPES_MAX ||
        !bench_parse_numbers(text, max, mnk, 3, false))
        return false;
    options.shapes[options.shape_count++] =
        (struct bench_shape){mnk[0], mnk[1], mnk[2], "shape"};
    return true;
}

/* False: wrong. */
static bool apply(int id)
{
    static const uint32_t rounds_max = BENCH_ROUNDS_MAX;

    switch (id) {
    case OPTION_LEVEL:
        options.bench.level = optarg;
        return true;
    case OPTION_SHAPE:
        return add_shape(optarg);
    case OPTION_ROUNDS:
        return bench_parse_numbers(optarg, &rounds_max, &options.bench.rounds, 1, false);
    case OPTION_WORKER:
        options.worker.program = optarg;
        return true;
    case OPTION_WORKER_OPTION:
        return bench_worker_argument(&options.worker, optarg);
    case OPTION_QUICK:
        options.quick = true;
        return true;
    case OPTION_JSON:
        options.json = true;
        return true;
    default:
        return false;
    }
}

/* What the command line left open. */
static void complete(void)
{
    const struct bench_shape *built_in = options.quick ? quick_shapes : shapes;
    size_t count = options.quick ? sizeof(quick_shapes) / sizeof(*quick_shapes)
                                  : sizeof(shapes) / sizeof(*shapes);
    char mask[64];

    if (!options.shape_count) {
        memcpy(options.shapes, built_in, count * sizeof(*built_in));
        options.shape_count = (uint32_t)count;
    }
    if (!options.bench.rounds)
        options.bench.rounds = options.quick ? 3 : 9;
    options.bench.sample_ns = options.quick ? SAMPLE_QUICK_NS : SAMPLE_NS;
    if (options.bench.level) { /* a list is exactly these levels; one name is those below, too */
        snprintf(mask, sizeof(mask), "ref,%s", options.bench.level);
        setenv("GEMMD_CPU_MASK", mask, 1);
    }
}

static int measure(void)
{
    struct operands_bench *bench = &options.bench;
    struct operands_result results[OPERANDS_KINDS];
    int status;

    bench->socket = options.worker.socket;
    status = operands_open(bench);
    if (!status && options.json)
        printf("{\"worker_kernel\":\"%s\",\"level\":\"%s\",\"cpus\":%u,\"rounds\":%u,"
               "\"results\":[",
               bench->info.kernel, bench->info.level, bench->info.cpu_count, bench->rounds);
    else if (!status)
        print_head(bench);
    for (uint32_t i = 0; i < options.shape_count && !status; i++) {
        status = operands_measure(bench, &options.shapes[i], results);
        if (options.json)
            json_rows(&options.shapes[i], results, i == 0);
        else
            print_rows(&options.shapes[i], results);
    }
    if (!status && options.json)
        printf("\n]}\n");
    operands_close(bench);
    return status;
}

/* Also after a message that ends the program. */
static void stop_worker(void)
{
    bench_worker_stop(&options.worker);
}

int bench_operands(int argc, char **argv)
{
    int id;

    while ((id = getopt_long(argc, argv, "", long_options, NULL)) != -1)
        if (id == OPTION_HELP) {
            fputs(usage_text, stdout);
            return EX_OK;
        } else if (!apply(id)) {
            fprintf(stderr,
                    "gemmd-bench: wrong option or value; see gemmd-bench operands --help\n");
            return EX_USAGE;
        }
    complete();
    atexit(stop_worker);
    return bench_worker_start(&options.worker) ? measure() : EX_UNAVAILABLE;
}
