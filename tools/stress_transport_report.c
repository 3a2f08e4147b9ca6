/*
 * The report of --transport: each repetition, and medians over them.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/stress_report.h"
#include "tools/stress_transport.h"

/* A figure of one repetition. */
typedef double (*figure_function)(const struct transport_repetition *repetition);

static double line_ns(const struct transport_repetition *repetition)
{
    return repetition->line_ns;
}

static double line_p50(const struct transport_repetition *repetition)
{
    return stress_latency_percentile(&repetition->line_before.each, 0.5);
}

static double line_p99(const struct transport_repetition *repetition)
{
    return stress_latency_percentile(&repetition->line_before.each, 0.99);
}

static double job_ns(const struct transport_repetition *repetition)
{
    return repetition->job.batch_ns;
}

static double job_p50(const struct transport_repetition *repetition)
{
    return stress_latency_percentile(&repetition->job.each, 0.5);
}

static double job_p99(const struct transport_repetition *repetition)
{
    return stress_latency_percentile(&repetition->job.each, 0.99);
}

static double ratio(const struct transport_repetition *repetition)
{
    return repetition->ratio;
}

static double wake_futex_ns(const struct transport_repetition *repetition)
{
    return stress_latency_percentile(&repetition->wake.futex, 0.5);
}

static double wake_job_ns(const struct transport_repetition *repetition)
{
    return stress_latency_percentile(&repetition->wake.job, 0.5);
}

static double wake_ratio(const struct transport_repetition *repetition)
{
    double futex = wake_futex_ns(repetition);

    return futex > 0 ? wake_job_ns(repetition) / futex : 0;
}

static double rate_32(const struct transport_repetition *repetition)
{
    return repetition->stages[TRANSPORT_DEPTH_32].window_rate;
}

static double rate_128(const struct transport_repetition *repetition)
{
    return repetition->stages[TRANSPORT_DEPTH_128].window_rate;
}

static const struct {
    const char *key;
    figure_function figure;
} figures[] = {
    {"line_ns", line_ns},       {"line_p50_ns", line_p50},
    {"line_p99_ns", line_p99},  {"round_trip_ns", job_ns},
    {"round_trip_p50_ns", job_p50}, {"round_trip_p99_ns", job_p99},
    {"ratio", ratio},           {"jobs_per_s_depth_32", rate_32},
    {"jobs_per_s_depth_128", rate_128}, {"wake_futex_p50_ns", wake_futex_ns},
    {"wake_worker_p50_ns", wake_job_ns}, {"wake_ratio", wake_ratio},
};

#define FIGURES (sizeof(figures) / sizeof(figures[0]))

static int compare_doubles(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

static double median(const struct transport_summary *summary, figure_function figure)
{
    double *values = calloc(summary->count, sizeof(*values)), result;
    uint32_t half = summary->count / 2;

    if (!values)
        return 0;
    for (uint32_t i = 0; i < summary->count; i++)
        values[i] = figure(&summary->repetitions[i]);
    qsort(values, summary->count, sizeof(*values), compare_doubles);
    result = summary->count % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
    free(values);
    return result;
}

/* ---- text ------------------------------------------------------------------------------------ */

static void print_repetition(uint32_t index, const struct transport_repetition *repetition)
{
    printf("%4" PRIu32 " %9.1f %9.1f %11.1f %6.2f %8.1f %8.1f %14.0f %14.0f%s\n", index + 1,
           repetition->line_before.batch_ns, repetition->line_after.batch_ns, job_ns(repetition),
           ratio(repetition), job_p50(repetition), job_p99(repetition), rate_32(repetition),
           rate_128(repetition),
           repetition->worker_asleep ? "" : "  line disturbed: the worker was awake");
}

/* The counters of one stage over all repetitions. */
static void print_stage(const struct transport_summary *summary, int index)
{
    struct transport_stage sum = {0};

    for (uint32_t i = 0; i < summary->count; i++) {
        const struct transport_stage *stage = &summary->repetitions[i].stages[index];

        sum.depth = stage->depth;
        sum.jobs += stage->jobs;
        sum.worker_syscalls += stage->worker_syscalls;
        sum.client_syscalls += stage->client_syscalls;
        sum.worker_sleeps += stage->worker_sleeps;
        sum.doorbells += stage->doorbells;
    }
    printf("  depth %-4" PRIu32 "  worker %" PRIu64 ", client %" PRIu64 " in %" PRIu64
           " jobs = %.9f per job (worker slept %" PRIu64 " times, doorbells %" PRIu64 ")\n",
           sum.depth, sum.worker_syscalls, sum.client_syscalls, sum.jobs,
           (double)(sum.worker_syscalls + sum.client_syscalls) / (double)(sum.jobs ? sum.jobs : 1),
           sum.worker_sleeps, sum.doorbells);
}

static void print_many(const struct transport_many *many)
{
    printf("sessions      %" PRIu32 " open, %.1f us to connect one; %" PRIu32
           " hot: %.0f ns a turn (%" PRIu64 " turns; %" PRIu64 " doorbells in %" PRIu64
           " jobs, %" PRIu64 " rescues)\n",
           many->sessions, many->connect_us, many->hot, many->turn_ns, many->turns,
           many->doorbells, many->jobs, many->rescues);
    stress_print_latency("  alone", &many->alone);
    stress_print_latency("  beside", &many->churned);
    printf("              %" PRIu64 " sessions that came and went\n", many->churn_sessions);
}

void transport_report_text(const struct transport_summary *summary)
{
    stress_print_machine(&summary->info);
    printf("pair          client on CPU %" PRIu32 ", worker's dispatcher on CPU %" PRIu32 "\n\n",
           summary->client_cpu, summary->info.dispatcher_cpu);
    printf("%4s %9s %9s %11s %6s %8s %8s %14s %14s\n", "", "line", "line", "empty job", "", "", "",
           "jobs/s", "jobs/s");
    printf("%4s %9s %9s %11s %6s %8s %8s %14s %14s\n", "rep", "before ns", "after ns",
           "round trip", "ratio", "p50 ns", "p99 ns", "depth 32", "depth 128");
    for (uint32_t i = 0; i < summary->count; i++)
        print_repetition(i, &summary->repetitions[i]);
    printf("\nmedians of %" PRIu32 " repetitions\n", summary->count);
    printf("bare line     %.1f ns (each: p50 %.1f, p99 %.1f)\n", median(summary, line_ns),
           median(summary, line_p50), median(summary, line_p99));
    printf("round trip    %.1f ns (each: p50 %.1f, p99 %.1f)\n", median(summary, job_ns),
           median(summary, job_p50), median(summary, job_p99));
    printf("ratio         %.2f\n", median(summary, ratio));
    printf("rate          %.0f jobs/s at depth 32, %.0f at depth 128\n", median(summary, rate_32),
           median(summary, rate_128));
    printf("wake-up       p50 %.0f ns, plain futex %.0f ns, ratio %.2f\n",
           median(summary, wake_job_ns), median(summary, wake_futex_ns),
           median(summary, wake_ratio));
    if (summary->idle_percent >= 0)
        printf("idle worker   %.4f %% of a CPU\n", summary->idle_percent);
    else
        printf("idle worker   CPU time cannot be read\n");
    print_many(&summary->many);
    printf("system calls\n");
    for (int i = 0; i < TRANSPORT_STAGES; i++)
        print_stage(summary, i);
    printf("while both sides were awake: %" PRIu64 " system calls; %" PRIu64 " faults: %s\n",
           summary->awake_syscalls, summary->faults, summary->passed ? "ok" : "FAILED");
}

/* ---- JSON ------------------------------------------------------------------------------------ */

#define INT(value) ((json_int_t)(value))

static json_t *figures_json(const struct transport_repetition *repetition)
{
    json_t *out = json_object();

    for (size_t i = 0; i < FIGURES; i++)
        json_object_set_new(out, figures[i].key, json_real(figures[i].figure(repetition)));
    return out;
}

static json_t *stages_json(const struct transport_repetition *repetition)
{
    json_t *list = json_array();

    for (int i = 0; i < TRANSPORT_STAGES; i++) {
        const struct transport_stage *stage = &repetition->stages[i];

        json_array_append_new(
            list, json_pack("{s:I, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:b}", "depth",
                            INT(stage->depth), "jobs", INT(stage->jobs), "seconds",
                            stage->seconds, "window_jobs_per_s", stage->window_rate,
                            "worker_syscalls", INT(stage->worker_syscalls), "client_syscalls",
                            INT(stage->client_syscalls), "worker_sleeps",
                            INT(stage->worker_sleeps), "doorbells", INT(stage->doorbells),
                            "faults", INT(stage->faults), "undisturbed", stage->undisturbed));
    }
    return list;
}

static json_t *repetition_json(const struct transport_repetition *repetition)
{
    json_t *out = figures_json(repetition);

    json_object_set_new(out, "line_before_ns", json_real(repetition->line_before.batch_ns));
    json_object_set_new(out, "line_after_ns", json_real(repetition->line_after.batch_ns));
    json_object_set_new(out, "worker_asleep", json_boolean(repetition->worker_asleep));
    json_object_set_new(out, "line_latency_ns", stress_latency_json(&repetition->line_before.each));
    json_object_set_new(out, "round_trip_latency_ns", stress_latency_json(&repetition->job.each));
    json_object_set_new(out, "stages", stages_json(repetition));
    return out;
}

static json_t *many_json(const struct transport_many *many)
{
    return json_pack("{s:I, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:o, s:o, s:I}", "sessions",
                     INT(many->sessions), "hot", INT(many->hot), "connect_us", many->connect_us,
                     "turn_ns", many->turn_ns, "turns", INT(many->turns), "jobs",
                     INT(many->jobs), "doorbells",
                     INT(many->doorbells), "rescues", INT(many->rescues), "alone_ns",
                     stress_latency_json(&many->alone), "beside_churn_ns",
                     stress_latency_json(&many->churned), "churn_sessions",
                     INT(many->churn_sessions));
}

int transport_report_json(const struct transport_summary *summary)
{
    json_t *medians = json_object(), *list = json_array();

    for (size_t i = 0; i < FIGURES; i++)
        json_object_set_new(medians, figures[i].key,
                            json_real(median(summary, figures[i].figure)));
    for (uint32_t i = 0; i < summary->count; i++)
        json_array_append_new(list, repetition_json(&summary->repetitions[i]));
    return stress_print_json(json_pack(
        "{s:o, s:o, s:I, s:I, s:o, s:o, s:f, s:o, s:I, s:I, s:b}", "machine", stress_machine_json(),
        "worker", stress_worker_json(&summary->info), "client_cpu", INT(summary->client_cpu),
        "dispatcher_cpu", INT(summary->info.dispatcher_cpu), "medians", medians, "repetitions",
        list, "idle_percent", summary->idle_percent, "many", many_json(&summary->many),
        "awake_syscalls", INT(summary->awake_syscalls), "faults", INT(summary->faults),
        "passed", summary->passed));
}
