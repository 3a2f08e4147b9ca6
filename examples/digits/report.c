/*
 * Sums up a run of the digits example, checks it, prints it (see report.h).
 *
 * "The weights exist once" is three facts, each from another witness: the worker's list shows one
 * entry for the contents of each layer, referenced by all clients; at most one client's call
 * created it; and the memory that all the clients' calls added is that of one copy.
 */
#include "examples/digits/report.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

/* Compares the answers with labels and with the network in plain C. */
static int check_answers(const struct run *run, struct report *report)
{
    uint32_t classes = run->model->classes;
    size_t bytes = classes * sizeof(float);
    float *expected = malloc(bytes);
    uint32_t i;

    if (!expected)
        return -1;
    for (i = 0; i < run->images->count; i++) {
        const float *logits = run->logits + (size_t)i * classes;
        uint32_t prediction = model_argmax(logits, classes);

        model_run(run->model, run->images->images + (size_t)i * run->images->pixels, expected);
        report->unanswered += run->answers[i] == 0;
        report->repeated += run->answers[i] > 1;
        report->wrong_predictions += prediction != model_argmax(expected, classes);
        report->wrong_logits += memcmp(logits, expected, bytes) != 0;
        report->int8_correct += prediction == run->images->labels[i];
        report->float_correct += run->images->float_predictions[i] == run->images->labels[i];
    }
    free(expected);
    report->int8_percent = 100.0 * report->int8_correct / run->images->count;
    report->float_percent = 100.0 * report->float_correct / run->images->count;
    return 0;
}

static void sum_clients(const struct run *run, struct report *report)
{
    uint64_t start_ns = UINT64_MAX, end_ns = 0;
    uint32_t i;

    for (i = 0; i < run->clients; i++) {
        const struct client_report *client = &run->reports[i];

        report->rows += (uint64_t)client->passes * client->count;
        report->jobs += client->jobs;
        report->doorbells += client->doorbells;
        report->sleeps += client->sleeps;
        report->syscalls += client->syscalls;
        if (client->start_ns < start_ns)
            start_ns = client->start_ns;
        if (client->end_ns > end_ns)
            end_ns = client->end_ns;
    }
    report->seconds = end_ns > start_ns ? (double)(end_ns - start_ns) / 1e9 : 0;
}

static void sum_layers(const struct run *run, struct report *report)
{
    uint32_t i;

    report->once = true;
    report->references_min = UINT32_MAX;
    for (i = 0; i < run->model->layer_count; i++) {
        const struct run_layer *layer = &run->layers[i];

        report->weight_bytes += layer->weight_bytes;
        report->bytes_new += layer->bytes_new;
        report->created += layer->created;
        report->attached += run->clients - layer->created;
        if (layer->references < report->references_min)
            report->references_min = layer->references;
        /* an empty sum: another run's copy was there before */
        if (layer->entries != 1 || layer->references < run->clients || layer->created > 1 ||
            layer->weight_bytes == 0 || layer->bytes_new != layer->created * layer->weight_bytes)
            report->once = false;
    }
}

int report_fill(const struct run *run, struct report *report)
{
    memset(report, 0, sizeof(*report));
    report->run = run;
    if (check_answers(run, report))
        return -1;
    sum_clients(run, report);
    sum_layers(run, report);
    return 0;
}

__attribute__((format(printf, 3, 4))) static void expect(unsigned *faults, bool good,
                                                         const char *format, ...)
{
    va_list arguments;

    if (good)
        return;
    fputs("digits: WRONG: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    (*faults)++;
}

unsigned report_verdict(const struct report *report)
{
    const struct run *run = report->run;
    uint64_t rows = (uint64_t)run->images->count * run->repeat;
    unsigned faults = 0;

    expect(&faults, report->unanswered == 0, "%u images without a result", report->unanswered);
    expect(&faults, report->repeated == 0, "%u images with two results", report->repeated);
    expect(&faults, report->wrong_predictions == 0,
           "%u predictions differ from the recomputation in plain C", report->wrong_predictions);
    expect(&faults, report->wrong_logits == 0,
           "%u rows of logits differ from the recomputation in plain C", report->wrong_logits);
    expect(&faults, fabs(report->int8_percent - report->float_percent) <= REPORT_POINTS_MAX,
           "int8 is %.2f points from the float model, allowed are %.2f",
           fabs(report->int8_percent - report->float_percent), REPORT_POINTS_MAX);
    expect(&faults, report->rows == rows, "%" PRIu64 " rows computed, not %" PRIu64, report->rows,
           rows);
    expect(&faults, report->jobs > 0 && run->after.jobs - run->before.jobs >= report->jobs,
           "the clients count %" PRIu64 " jobs, the worker %" PRIu64, report->jobs,
           run->after.jobs - run->before.jobs);
    expect(&faults, run->after.jobs_failed == run->before.jobs_failed, "the worker failed jobs");
    expect(&faults, run->after.rescues == run->before.rescues, "a wake-up was lost");
    expect(&faults, report->once,
           "the weights are not there exactly once: %u created, %" PRIu64
           " bytes added where one copy takes %" PRIu64,
           report->created, report->bytes_new, report->weight_bytes);
    return faults;
}

static double per_job(uint64_t count, const struct report *report)
{
    return report->jobs ? (double)count / (double)report->jobs : 0;
}

/* "4 KiB", "2 MiB". */
static void format_page(uint64_t bytes, char text[32])
{
    if (bytes >= 1 << 30 && bytes % (1 << 30) == 0)
        snprintf(text, 32, "%" PRIu64 " GiB", bytes >> 30);
    else if (bytes >= 1 << 20 && bytes % (1 << 20) == 0)
        snprintf(text, 32, "%" PRIu64 " MiB", bytes >> 20);
    else
        snprintf(text, 32, "%" PRIu64 " KiB", bytes >> 10);
}

/* Page sizes of the layers; usually one for all. */
static void print_pages(const struct run *run)
{
    char page[32];
    uint32_t i;

    for (i = 0; i < run->model->layer_count; i++) {
        if (i > 0 && run->layers[i].page_bytes == run->layers[i - 1].page_bytes)
            continue;
        format_page(run->layers[i].page_bytes, page);
        printf("%s%s", i ? ", " : "", page);
    }
}

static void print_weights(const struct report *report)
{
    const struct run *run = report->run;
    int32_t node = run->layers[0].node;

    printf("  weights     %" PRIu64 " bytes in %u layers, pages of ", report->weight_bytes,
           run->model->layer_count);
    print_pages(run);
    if (node >= 0)
        printf(", node %d\n", node);
    else
        printf(", machine without NUMA\n");
    printf("              there %s: %u created, %u attached; %" PRIu64
           " bytes added by all clients; %u references each\n",
           report->once ? "once" : "NOT ONCE", report->created, report->attached, report->bytes_new,
           report->references_min);
    if (run->info.lost[0])
        printf("  without     %s\n", run->info.lost);
}

void report_print_text(const struct report *report)
{
    const struct run *run = report->run;
    uint64_t doorbells = run->after.doorbells - run->before.doorbells;
    uint64_t syscalls = run->after.syscalls - run->before.syscalls;

    printf("digits: %u held-out images, %u client processes, %u passes\n", run->images->count,
           run->clients, run->repeat);
    printf("  accuracy    int8 %.2f %%, float %.2f %% (difference %+.2f points, allowed %.2f)\n",
           report->int8_percent, report->float_percent,
           report->int8_percent - report->float_percent, REPORT_POINTS_MAX);
    printf(
        "  checked     %u of %u rows bit-equal to a recomputation in plain C; all passes alike\n",
        run->images->count - report->wrong_logits, run->images->count);
    printf("  rate        %.0f rows/s in total (%" PRIu64 " rows in %.3f s, %" PRIu64 " jobs)\n",
           report->seconds > 0 ? (double)report->rows / report->seconds : 0, report->rows,
           report->seconds, report->jobs);
    printf("  clients     %.4f doorbells and %.4f system calls per job\n",
           per_job(report->doorbells, report), per_job(report->syscalls, report));
    printf("  worker      %.4f doorbells and %.4f system calls per job\n",
           per_job(doorbells, report), per_job(syscalls, report));
    printf("  kernel      level %s, %s; event loop %s\n", run->info.level, run->info.kernel,
           run->info.event_level);
    print_weights(report);
}

static json_t *layers_json(const struct run *run)
{
    json_t *list = json_array();
    uint32_t i;

    for (i = 0; i < run->model->layer_count; i++) {
        const struct run_layer *layer = &run->layers[i];

        json_array_append_new(
            list,
            json_pack("{s:s, s:I, s:I, s:i, s:i, s:i, s:i, s:I}", "name",
                      run->model->layers[i].name, "weight_bytes", (json_int_t)layer->weight_bytes,
                      "page_bytes", (json_int_t)layer->page_bytes, "node", (int)layer->node,
                      "references", (int)layer->references, "entries", (int)layer->entries,
                      "created", (int)layer->created, "bytes_new", (json_int_t)layer->bytes_new));
    }
    return list;
}

static json_t *calls_json(uint64_t doorbells, uint64_t sleeps, uint64_t syscalls,
                          const struct report *report)
{
    return json_pack("{s:I, s:I, s:I, s:f, s:f}", "doorbells", (json_int_t)doorbells, "sleeps",
                     (json_int_t)sleeps, "syscalls", (json_int_t)syscalls, "doorbells_per_job",
                     per_job(doorbells, report), "syscalls_per_job", per_job(syscalls, report));
}

int report_print_json(const struct report *report)
{
    const struct run *run = report->run;
    json_t *json = json_pack(
        "{s:i, s:i, s:i, s:f, s:f, s:i, s:i, s:I, s:f, s:f, s:I, s:b}", "images",
        (int)run->images->count, "clients", (int)run->clients, "repeat", (int)run->repeat,
        "int8_percent", report->int8_percent, "float_percent", report->float_percent,
        "wrong_predictions", (int)report->wrong_predictions, "wrong_logits",
        (int)report->wrong_logits, "rows", (json_int_t)report->rows, "seconds", report->seconds,
        "rows_per_second", report->seconds > 0 ? (double)report->rows / report->seconds : 0.0,
        "jobs", (json_int_t)report->jobs, "weights_once", (int)report->once);
    int result;

    json_object_set_new(json, "client_calls",
                        calls_json(report->doorbells, report->sleeps, report->syscalls, report));
    json_object_set_new(json, "worker_calls",
                        calls_json(run->after.doorbells - run->before.doorbells,
                                   run->after.sleeps - run->before.sleeps,
                                   run->after.syscalls - run->before.syscalls, report));
    json_object_set_new(json, "level", json_string(run->info.level));
    json_object_set_new(json, "kernel", json_string(run->info.kernel));
    json_object_set_new(json, "event_level", json_string(run->info.event_level));
    json_object_set_new(json, "lost", json_string(run->info.lost));
    json_object_set_new(json, "weight_bytes", json_integer((json_int_t)report->weight_bytes));
    json_object_set_new(json, "bytes_new", json_integer((json_int_t)report->bytes_new));
    json_object_set_new(json, "layers", layers_json(run));
    result = json ? json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : -1;
    putchar('\n');
    json_decref(json);
    return result;
}
