/* gemmd-bench operands: command line and reports. */
#include "tools/bench_operands.h"

#include <stdio.h>
#include <stdlib.h>
#include <sysexits.h>

#include "tools/bench_command.h"

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

/* ---- all of it ------------------------------------------------------------------------------- */

static const struct option long_options[] = {
    COMMAND_ROW_LEVEL, COMMAND_ROW_SHAPE, COMMAND_ROW_ROUNDS, COMMAND_ROWS_LAST};

static struct command command = {.name = "operands",
                                 .usage = usage_text,
                                 .options = long_options,
                                 .shape_max = {GEMM_ROWS_MAX, 1 << 20, GEMM_K_MAX}};

static int measure(struct operands_bench *bench)
{
    struct operands_result results[OPERANDS_KINDS];
    int status = operands_open(bench);

    if (!status && command.json)
        printf("{\"worker_kernel\":\"%s\",\"level\":\"%s\",\"cpus\":%u,\"rounds\":%u,"
               "\"results\":[",
               bench->info.kernel, bench->info.level, bench->info.cpu_count, bench->rounds);
    else if (!status)
        print_head(bench);
    for (uint32_t i = 0; i < command.shape_count && !status; i++) {
        status = operands_measure(bench, &command.shapes[i], results);
        if (command.json)
            json_rows(&command.shapes[i], results, i == 0);
        else
            print_rows(&command.shapes[i], results);
    }
    if (!status && command.json)
        printf("\n]}\n");
    operands_close(bench);
    return status;
}

/* Also after a message that ends the program. */
static void stop_worker(void)
{
    bench_worker_stop(&command.worker);
}

int bench_operands(int argc, char **argv)
{
    struct operands_bench bench = {.socket = command.worker.socket};
    int status;

    if (!command_parse(&command, argc, argv, &status))
        return status;
    if (command.quick)
        command_default_shapes(&command, quick_shapes, sizeof(quick_shapes) / sizeof(*shapes));
    command_default_shapes(&command, shapes, sizeof(shapes) / sizeof(*shapes));
    bench.rounds = command.rounds ? command.rounds : command.quick ? 3 : 9;
    bench.sample_ns = command.quick ? SAMPLE_QUICK_NS : SAMPLE_NS;
    bench.level = command.level;
    atexit(stop_worker);
    return bench_worker_start(&command.worker) ? measure(&bench) : EX_UNAVAILABLE;
}
