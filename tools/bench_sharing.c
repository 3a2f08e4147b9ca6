/*
 * What sharing brings: rows per second, times of a pass and memory of weights, by number of
 * processes.  All sides run in turn on the same CPUs, `repetitions` times; medians count.
 */
#include "tools/bench_sharing.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <sysexits.h>

#include "client/gemmd.h"
#include "tools/bench_command.h"

static const char usage_text[] =
    "usage: gemmd-bench sharing [option ...]\n"
    "P processes, each sending one row through 24 layers of 1024 x 4096 one after the other: by\n"
    "one private worker, by its kernel called in process, and by oneDNN in process with one\n"
    "thread and with its default threads, on the same CPUs.  rows/s counts a row through one\n"
    "layer.  Then what another process pays beyond hashing to create the same layers.\n"
    "\n"
    "  --processes LIST  like 1,2,4,8,16 (default)\n"
    "  --attach          the last measurement alone\n"
    "  --layers L        2 to 24, even (default 24)\n"
    "  --seconds T       of each measurement (default 1)\n"
    "  --repetitions R   medians of R, 1 to 15 (default 5)\n"
    "  --cpus LIST       CPUs of everything, like 0,1 (default: all allowed)\n"
    "  --worker PATH     the worker's program (default: $GEMMD_WORKER, else gemmd beside this\n"
    "                    one, else in PATH)\n"
    "  --worker-option X passed on to the worker; may be repeated\n"
    "  --quick           1,2 processes, 4 layers, 0.2 s, once\n"
    "  --json            the report as JSON\n"
    "  --plot FILE       also rows/s by P as PNG, drawn by gnuplot\n"
    "  --help\n"
    "exit status: 0 ok, 64 usage, 69 no worker, 70 internal, or results that differ\n";

struct sharing_options {
    uint32_t processes[SHARING_COUNTS_MAX], count_count;
    uint32_t layers, repetitions;
    double seconds;
    const char *plot;
    bool attach; /* alone */
    struct command command;
};

struct sharing_report {
    const struct sharing_options *options;
    struct gemmd_info worker;
    struct gemmd *session; /* keeps the layers open */
    const char *peer;
    struct sharing_outcome outcomes[SHARING_COUNTS_MAX][SHARING_SIDES];
    struct sharing_attach attach;
};

/* ---- measuring ------------------------------------------------------------------------------- */

static bool make_model(struct sharing_model *model, uint32_t layers)
{
    uint64_t random = 88172645463325252u;

    model->layers = layers;
    model->scale = 1.0f / 2048.0f;
    for (uint32_t i = 0; i < layers; i++) {
        size_t bytes = (size_t)SHARING_WIDE * SHARING_NARROW;

        model->weights[i] = malloc(bytes);
        if (!model->weights[i])
            return false;
        for (size_t j = 0; j < bytes; j++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            model->weights[i][j] = (int8_t)(random >> 32 & 63) - 28;
        }
    }
    return true;
}

static int by_rate(const void *left, const void *right)
{
    const struct sharing_outcome *a = left, *b = right;

    return (a->rows_per_s > b->rows_per_s) - (a->rows_per_s < b->rows_per_s);
}

/* The worker's side, and how many rows shared a panel meanwhile. */
static void run_worker(const struct sharing_report *report, const struct sharing_model *model,
                       uint32_t processes, struct sharing_outcome *out)
{
    struct gemmd_stats before, after;
    bool known = gemmd_get_stats(report->session, &before) == 0;

    sharing_run(model, SHARING_WORKER, processes, report->options->seconds,
                report->options->command.worker.socket, out);
    out->weight_bytes = report->worker.pool_bytes_used;
    if (known && gemmd_get_stats(report->session, &after) == 0 && after.panels > before.panels)
        out->rows_per_panel = (double)(after.panel_rows - before.panel_rows) /
                              (double)(after.panels - before.panels);
}

static void measure_count(struct sharing_report *report, const struct sharing_model *model,
                          uint32_t index)
{
    const struct sharing_options *options = report->options;
    struct sharing_outcome all[SHARING_SIDES][SHARING_REPETITIONS_MAX];
    const char *version;
    bool has_peer = sharing_peer_exists(&version);

    for (uint32_t r = 0; r < options->repetitions; r++)
        for (uint32_t side = 0; side < SHARING_SIDES; side++) {
            if (side >= SHARING_PEER_ONE && !has_peer) {
                memset(&all[side][r], 0, sizeof(all[side][r]));
            } else if (side == SHARING_WORKER) {
                run_worker(report, model, options->processes[index], &all[side][r]);
            } else {
                sharing_run(model, side, options->processes[index], options->seconds, NULL,
                            &all[side][r]);
            }
        }
    for (uint32_t side = 0; side < SHARING_SIDES; side++) {
        qsort(all[side], options->repetitions, sizeof(all[side][0]), by_rate);
        report->outcomes[index][side] = all[side][options->repetitions / 2];
    }
}

/* ---- reports --------------------------------------------------------------------------------- */

static double ratio(const struct sharing_report *report, uint32_t index, enum sharing_side_id side)
{
    double other = report->outcomes[index][side].rows_per_s;

    return other > 0 ? report->outcomes[index][SHARING_WORKER].rows_per_s / other : 0;
}

static void print_head(const struct sharing_report *report)
{
    struct utsname name;

    uname(&name);
    printf("%s %s, worker %s on %u CPUs, peer %s\n", name.sysname, name.release,
           report->worker.kernel, report->worker.cpu_count, report->peer);
    printf("one row of each process through %u layers of %d x %d, medians of %u runs of %.1f s\n\n",
           report->options->layers, SHARING_NARROW, SHARING_WIDE, report->options->repetitions,
           report->options->seconds);
    printf("%3s  %-26s %12s %12s %12s %12s %11s %8s\n", "P", "side", "rows/s", "pass p50 us",
           "pass p99 us", "weights MiB", "rows/panel", "gemmd x");
}

static void print_count(const struct sharing_report *report, uint32_t index)
{
    for (uint32_t side = 0; side < SHARING_SIDES; side++) {
        const struct sharing_outcome *outcome = &report->outcomes[index][side];

        if (!outcome->ran) {
            printf("%3u  %-26s %12s\n", report->options->processes[index],
                   sharing_sides[side].name, "-");
            continue;
        }
        printf("%3u  %-26s %12.0f %12.0f %12.0f %12.1f ", report->options->processes[index],
               sharing_sides[side].name, outcome->rows_per_s, outcome->pass_p50_us,
               outcome->pass_p99_us, (double)outcome->weight_bytes / (1 << 20));
        if (side == SHARING_WORKER)
            printf("%11.2f\n", outcome->rows_per_panel);
        else
            printf("%11s %8.2f\n", "", ratio(report, index, side));
    }
    fflush(stdout);
}

static void print_attach(const struct sharing_attach *attach)
{
    if (attach->ran)
        printf("\nanother process creates the same %.0f MiB: %.2f ms, hashing alone %.2f ms; "
               "beyond it %.1f ms per GiB (quartiles %.1f to %.1f, fastest %.1f); %lld bytes "
               "new\n",
               (double)attach->bytes / (1 << 20), attach->create_ms, attach->hash_ms,
               attach->ms_per_gib, attach->ms_per_gib_low, attach->ms_per_gib_high,
               attach->ms_per_gib_best, (long long)attach->bytes_new);
}

static void print_json(const struct sharing_report *report)
{
    const struct sharing_attach *attach = &report->attach;
    struct utsname name;

    uname(&name);
    printf("{\"kernel\":\"%s %s\",\"worker\":\"%s\",\"cpus\":%u,\"peer\":\"%s\",\"layers\":%u,"
           "\"seconds\":%g,\"repetitions\":%u,\"results\":[", name.sysname, name.release,
           report->worker.kernel, report->worker.cpu_count, report->peer, report->options->layers,
           report->options->seconds, report->options->repetitions);
    for (uint32_t i = 0; i < report->options->count_count; i++)
        for (uint32_t side = 0; side < SHARING_SIDES; side++) {
            const struct sharing_outcome *outcome = &report->outcomes[i][side];

            printf("%s\n{\"processes\":%u,\"side\":\"%s\",\"ran\":%s,\"rows_per_s\":%.1f,"
                   "\"pass_p50_us\":%.1f,\"pass_p99_us\":%.1f,\"weight_bytes\":%llu,"
                   "\"rows_per_panel\":%.2f,\"gemmd_ratio\":%.3f}",
                   i || side ? "," : "", report->options->processes[i], sharing_sides[side].name,
                   outcome->ran ? "true" : "false", outcome->rows_per_s, outcome->pass_p50_us,
                   outcome->pass_p99_us, (unsigned long long)outcome->weight_bytes,
                   outcome->rows_per_panel, ratio(report, i, side));
        }
    printf("\n],\"attach\":{\"ran\":%s,\"bytes\":%llu,\"hash_ms\":%.3f,\"create_ms\":%.3f,"
           "\"ms_per_gib\":%.3f,\"ms_per_gib_low\":%.3f,\"ms_per_gib_high\":%.3f,"
           "\"ms_per_gib_best\":%.3f,\"bytes_new\":%lld}}\n", attach->ran ? "true" : "false",
           (unsigned long long)attach->bytes, attach->hash_ms, attach->create_ms,
           attach->ms_per_gib, attach->ms_per_gib_low, attach->ms_per_gib_high,
           attach->ms_per_gib_best, (long long)attach->bytes_new);
}

static int plot(const struct sharing_report *report)
{
    FILE *pipe = popen("gnuplot", "we");

    if (!pipe)
        return -errno;
    fprintf(pipe, "set terminal png size 800,500\nset output '%s'\nset logscale x 2\n"
                  "set logscale y\nset key outside below\nset xlabel 'processes'\n"
                  "set ylabel 'rows/s'\nplot ", report->options->plot);
    for (uint32_t side = 0; side < SHARING_SIDES; side++)
        fprintf(pipe, "%s'-' with linespoints title \"%s\"", side ? ", " : "",
                sharing_sides[side].name);
    fputc('\n', pipe);
    for (uint32_t side = 0; side < SHARING_SIDES; side++) {
        for (uint32_t i = 0; i < report->options->count_count; i++)
            if (report->outcomes[i][side].ran)
                fprintf(pipe, "%u %f\n", report->options->processes[i],
                        report->outcomes[i][side].rows_per_s);
        fputs("e\n", pipe);
    }
    return pclose(pipe) == 0 ? 0 : -EIO;
}

/* ---- command line ---------------------------------------------------------------------------- */

static bool pin(const char *list)
{
    uint32_t numbers[256], count = bench_parse_list(list, 0, CPU_SETSIZE - 1, numbers, 256);
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    for (uint32_t i = 0; i < count; i++)
        CPU_SET(numbers[i], &cpus);
    return count && sched_setaffinity(0, sizeof(cpus), &cpus) == 0;
}

enum option_id { OPTION_PROCESSES = COMMAND_OWN, OPTION_LAYERS, OPTION_REPETITIONS, OPTION_CPUS,
                 OPTION_PLOT, OPTION_ATTACH };

static const struct option long_options[] = {
    {"processes", required_argument, NULL, OPTION_PROCESSES},
    {"layers", required_argument, NULL, OPTION_LAYERS},
    {"repetitions", required_argument, NULL, OPTION_REPETITIONS},
    {"cpus", required_argument, NULL, OPTION_CPUS},
    {"plot", required_argument, NULL, OPTION_PLOT},
    {"attach", no_argument, NULL, OPTION_ATTACH},
    COMMAND_ROW_SECONDS,
    COMMAND_ROWS_LAST,
};

static bool apply(void *owner, int id, const char *value)
{
    struct sharing_options *options = owner;

    switch (id) {
    case OPTION_PROCESSES:
        options->count_count = bench_parse_list(value, 1, SHARING_PROCESSES_MAX,
                                                options->processes, SHARING_COUNTS_MAX);
        return options->count_count != 0;
    case OPTION_LAYERS:
        return bench_parse_list(value, 2, SHARING_LAYERS_MAX, &options->layers, 1) == 1 &&
               options->layers % 2 == 0;
    case OPTION_REPETITIONS:
        return bench_parse_list(value, 1, SHARING_REPETITIONS_MAX, &options->repetitions, 1) == 1;
    case OPTION_CPUS:
        return pin(value);
    case OPTION_PLOT:
        options->plot = value;
        return true;
    default:
        options->attach = true;
        return true;
    }
}

/* What was not given. */
static void complete(struct sharing_options *options)
{
    static const uint32_t processes[] = {1, 2, 4, 8, 16};
    const struct command *command = &options->command;

    if (!options->count_count) {
        options->count_count = command->quick ? 2 : 5;
        memcpy(options->processes, processes, sizeof(processes));
    }
    if (options->attach)
        options->count_count = 0;
    if (!options->layers)
        options->layers = command->quick ? 4 : SHARING_LAYERS_MAX;
    if (!options->repetitions)
        options->repetitions = command->quick ? 1 : 5;
    options->seconds = command->seconds > 0 ? command->seconds : command->quick ? 0.2 : 1;
}

/* ---- all of it ------------------------------------------------------------------------------- */

/* Sides of ours must agree to the bit; oneDNN rounds like us here, but that is not promised. */
static bool agree(const struct sharing_report *report, uint32_t index)
{
    const struct sharing_outcome *worker = &report->outcomes[index][SHARING_WORKER];
    const struct sharing_outcome *own = &report->outcomes[index][SHARING_OWN];

    return worker->ran && own->ran && !memcmp(worker->result, own->result, sizeof(own->result));
}

static int measure(struct sharing_report *report, struct sharing_model *model)
{
    int code = 0;

    report->session = sharing_upload(model, report->options->command.worker.socket);
    if (!report->session || gemmd_get_info(report->session, &report->worker) < 0)
        return EX_UNAVAILABLE;
    model->kernel = report->worker.kernel;
    if (!report->options->command.json)
        print_head(report);
    for (uint32_t i = 0; i < report->options->count_count; i++) {
        measure_count(report, model, i);
        if (!report->options->command.json)
            print_count(report, i);
        if (!agree(report, i)) {
            fprintf(stderr, "gemmd-bench: the worker and its kernel in process disagree\n");
            code = EX_SOFTWARE;
        }
    }
    sharing_attach(model, report->options->command.worker.socket, &report->attach);
    if (!report->options->command.json)
        print_attach(&report->attach);
    if (!report->attach.ran || report->attach.bytes_new) {
        fprintf(stderr, "gemmd-bench: the model was not shared with another process\n");
        code = EX_SOFTWARE;
    }
    gemmd_close(&report->session);
    return code;
}

int bench_sharing(int argc, char **argv)
{
    struct sharing_options options = {
        .command = {.name = "sharing",
                    .usage = usage_text,
                    .options = long_options,
                    .seconds_min = 0.05,
                    .seconds_max = 60,
                    .apply = apply,
                    .owner = &options,
                    .worker = {.arguments = {"--pool-bytes", "512M"}, .argument_count = 2}}};
    struct bench_worker *worker = &options.command.worker;
    static struct sharing_report report;
    static struct sharing_model model;
    int code;

    if (!command_parse(&options.command, argc, argv, &code))
        return code;
    complete(&options);
    code = EX_UNAVAILABLE;
    report.options = &options;
    sharing_peer_exists(&report.peer);
    if (!make_model(&model, options.layers))
        return EX_SOFTWARE;
    if (bench_worker_start(worker))
        code = measure(&report, &model);
    bench_worker_stop(worker);
    if (code == 0 && options.command.json)
        print_json(&report);
    if (code == 0 && options.plot && plot(&report) < 0) {
        fprintf(stderr, "gemmd-bench: no plot in %s\n", options.plot);
        code = EX_SOFTWARE;
    }
    for (uint32_t i = 0; i < model.layers; i++)
        free(model.weights[i]);
    return code;
}
