/*
 * What sharing brings: rows per second, times of a pass and memory of weights, by number of
 * processes.  All sides run in turn on the same CPUs, `repetitions` times; medians count.
 */
#include "tools/bench_sharing.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <sysexits.h>

#include "client/gemmd.h"
#include "tools/bench_worker.h"

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
    struct bench_worker worker;
    bool json;
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
                report->options->worker.socket, out);
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

/* Numbers of 1 to `max` separated by commas; how many, 0 when the text is wrong. */
static uint32_t parse_list(const char *text, uint32_t *out, uint32_t capacity, unsigned long max)
{
    uint32_t count = 0;
    char *end;

    for (;; text = end + 1) {
        unsigned long value = strtoul(text, &end, 10);

        if (end == text || value < 1 || value > max || count == capacity)
            return 0;
        out[count++] = (uint32_t)value;
        if (*end != ',')
            return *end ? 0 : count;
    }
}

static bool pin(const char *list)
{
    cpu_set_t cpus;
    char *end;

    CPU_ZERO(&cpus);
    for (;; list = end + 1) {
        unsigned long cpu = strtoul(list, &end, 10);

        if (end == list || cpu >= CPU_SETSIZE || (*end && *end != ','))
            return false;
        CPU_SET(cpu, &cpus);
        if (!*end)
            return sched_setaffinity(0, sizeof(cpus), &cpus) == 0;
    }
}

enum option_id { OPTION_PROCESSES = 256, OPTION_LAYERS, OPTION_SECONDS, OPTION_REPETITIONS,
                 OPTION_CPUS, OPTION_WORKER, OPTION_WORKER_OPTION, OPTION_QUICK, OPTION_JSON,
                 OPTION_PLOT, OPTION_ATTACH, OPTION_HELP };

static const struct option long_options[] = {
    {"processes", required_argument, NULL, OPTION_PROCESSES},
    {"layers", required_argument, NULL, OPTION_LAYERS},
    {"seconds", required_argument, NULL, OPTION_SECONDS},
    {"repetitions", required_argument, NULL, OPTION_REPETITIONS},
    {"cpus", required_argument, NULL, OPTION_CPUS},
    {"worker", required_argument, NULL, OPTION_WORKER},
    {"worker-option", required_argument, NULL, OPTION_WORKER_OPTION},
    {"quick", no_argument, NULL, OPTION_QUICK},
    {"json", no_argument, NULL, OPTION_JSON},
    {"plot", required_argument, NULL, OPTION_PLOT},
    {"attach", no_argument, NULL, OPTION_ATTACH},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static void set_quick(struct sharing_options *options)
{
    options->count_count = 2;
    options->layers = 4;
    options->repetitions = 1;
    options->seconds = 0.2;
}

/* False: wrong. */
static bool apply(struct sharing_options *options, int id)
{
    switch (id) {
    case OPTION_PROCESSES:
        options->count_count = parse_list(optarg, options->processes, SHARING_COUNTS_MAX,
                                          SHARING_PROCESSES_MAX);
        return options->count_count != 0;
    case OPTION_LAYERS:
        return parse_list(optarg, &options->layers, 1, SHARING_LAYERS_MAX) == 1 &&
               options->layers % 2 == 0;
    case OPTION_SECONDS:
        options->seconds = strtod(optarg, NULL);
        return options->seconds >= 0.05 && options->seconds <= 60;
    case OPTION_REPETITIONS:
        return parse_list(optarg, &options->repetitions, 1, SHARING_REPETITIONS_MAX) == 1;
    case OPTION_CPUS:
        return pin(optarg);
    case OPTION_WORKER:
        options->worker.program = optarg;
        return true;
    case OPTION_WORKER_OPTION:
        return bench_worker_argument(&options->worker, optarg);
    case OPTION_QUICK:
        set_quick(options);
        return true;
    case OPTION_JSON:
        options->json = true;
        return true;
    case OPTION_PLOT:
        options->plot = optarg;
        return true;
    case OPTION_ATTACH:
        options->count_count = 0;
        return true;
    default:
        return false;
    }
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

    report->session = sharing_upload(model, report->options->worker.socket);
    if (!report->session || gemmd_get_info(report->session, &report->worker) < 0)
        return EX_UNAVAILABLE;
    model->kernel = report->worker.kernel;
    if (!report->options->json)
        print_head(report);
    for (uint32_t i = 0; i < report->options->count_count; i++) {
        measure_count(report, model, i);
        if (!report->options->json)
            print_count(report, i);
        if (!agree(report, i)) {
            fprintf(stderr, "gemmd-bench: the worker and its kernel in process disagree\n");
            code = EX_SOFTWARE;
        }
    }
    sharing_attach(model, report->options->worker.socket, &report->attach);
    if (!report->options->json)
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
    struct sharing_options options = {.processes = {1, 2, 4, 8, 16},
                                      .count_count = 5,
                                      .layers = SHARING_LAYERS_MAX,
                                      .repetitions = 5,
                                      .seconds = 1,
                                      .worker = {.arguments = {"--pool-bytes", "512M"},
                                                 .argument_count = 2}};
    static struct sharing_report report;
    static struct sharing_model model;
    int id, code = EX_UNAVAILABLE;

    while ((id = getopt_long(argc, argv, "", long_options, NULL)) != -1)
        if (id == OPTION_HELP) {
            fputs(usage_text, stdout);
            return EX_OK;
        } else if (!apply(&options, id)) {
            fprintf(stderr, "gemmd-bench: wrong option or value; see gemmd-bench sharing --help\n");
            return EX_USAGE;
        }
    report.options = &options;
    sharing_peer_exists(&report.peer);
    if (!make_model(&model, options.layers))
        return EX_SOFTWARE;
    if (bench_worker_start(&options.worker))
        code = measure(&report, &model);
    bench_worker_stop(&options.worker);
    if (code == 0 && options.json)
        print_json(&report);
    if (code == 0 && options.plot && plot(&report) < 0) {
        fprintf(stderr, "gemmd-bench: no plot in %s\n", options.plot);
        code = EX_SOFTWARE;
    }
    for (uint32_t i = 0; i < model.layers; i++)
        free(model.weights[i]);
    return code;
}
