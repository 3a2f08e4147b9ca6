/*
 * The report of a run, as text and as JSON.  Both carry the machine and the worker, without which
 * no figure means anything.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

#include "tools/stress.h"
#include "tools/stress_machine.h"
#include "tools/stress_report.h"

static const struct {
    const char *key, *title;
    double fraction;
} percentiles[] = {
    {"p50", "p50", 0.5},       {"p90", "p90", 0.9},        {"p99", "p99", 0.99},
    {"p999", "p99.9", 0.999}, {"p9999", "p99.99", 0.9999},
};

#define PERCENTILES (sizeof(percentiles) / sizeof(percentiles[0]))

static double per(double value, uint64_t count)
{
    return count ? value / (double)count : 0.0;
}

static double rate(uint64_t jobs, uint64_t start_ns, uint64_t end_ns)
{
    return end_ns > start_ns ? (double)jobs * 1e9 / (double)(end_ns - start_ns) : 0.0;
}

/* ---- text ------------------------------------------------------------------------------------ */

void stress_print_machine(const struct gemmd_info *info)
{
    struct stress_machine machine;

    stress_machine_read(&machine);
    printf("machine       %s, %" PRIu32 " CPUs%s, Linux %s, load %.2f\n", machine.cpu_model,
           machine.cpus_online, machine.hypervisor ? " (guest)" : "", machine.kernel,
           machine.load_average);
    printf("worker        gemmd %s, pid %" PRIu32 ", node %" PRId32 ", dispatcher on CPU %" PRIu32
           ", %s, events %s\n",
           info->worker_version, info->pid, info->node, info->dispatcher_cpu, info->kernel,
           info->event_level);
    printf("socket        %s\n", info->socket);
}

void stress_print_latency(const char *title, const struct stress_latency *latency)
{
    printf("%-13s", title);
    for (size_t i = 0; i < PERCENTILES; i++)
        printf(" %s %.0f ", percentiles[i].title,
               stress_latency_percentile(latency, percentiles[i].fraction));
    printf(" max %" PRIu64 " ns\n", latency->max_ns);
}

static void print_mix(const struct stress_options *options)
{
    printf("load          %" PRIu32 " %s, depth %" PRIu32 ", wait %s, verify %s, seed %" PRIu64,
           options->sessions, options->threads ? "threads" : "processes", options->depth,
           options->spin ? "spin" : "sleep", stress_verify_name(options->verify), options->seed);
    if (options->rate > 0)
        printf(", open loop at %.0f jobs/s", options->rate);
    printf(", m,n,k");
    for (uint32_t i = 0; i < options->shape_count; i++)
        printf(" %" PRIu32 ",%" PRIu32 ",%" PRIu32, options->shapes[i].m, options->shapes[i].n,
               options->shapes[i].k);
    printf("\n");
}

static void print_sessions(const struct stress_summary *summary)
{
    uint32_t sessions = summary->options->sessions;
    double low = 0, high = 0;

    for (uint32_t i = 0; i < sessions; i++) {
        const struct stress_result *result = &summary->results[i];
        double value = rate(result->jobs, result->start_ns, result->end_ns);

        low = i == 0 || value < low ? value : low;
        high = value > high ? value : high;
        if (sessions <= 16)
            printf("  session %-3" PRIu32 " %14" PRIu64 " jobs %14.0f jobs/s  p99 %.0f ns\n", i,
                   result->jobs, value, stress_latency_percentile(&result->latency, 0.99));
    }
    printf("per session   %.0f to %.0f jobs/s\n", low, high);
}

void stress_report_text(const struct stress_summary *summary)
{
    const struct gemmd_stats *before = &summary->before, *after = &summary->after;
    uint64_t jobs = summary->jobs;
    double seconds = summary->seconds > 0 ? summary->seconds : 1;

    stress_print_machine(&summary->info);
    print_mix(summary->options);
    printf("rate          %.0f jobs/s, %.2f GOPS, %" PRIu64 " jobs in %.3f s\n",
           (double)jobs / seconds, summary->operations / seconds / 1e9, jobs, summary->seconds);
    print_sessions(summary);
    stress_print_latency("latency", &summary->latency);
    printf("system calls  %.6f per job: worker %" PRIu64 ", clients %" PRIu64 "\n",
           per((double)(after->syscalls - before->syscalls + summary->syscalls), jobs),
           after->syscalls - before->syscalls, summary->syscalls);
    printf("doorbells     %.6f per job: rung %" PRIu64 ", heard %" PRIu64 "\n",
           per((double)summary->doorbells, jobs), summary->doorbells,
           after->doorbells - before->doorbells);
    printf("sleeps        worker %" PRIu64 ", clients %" PRIu64 ", clients woken %" PRIu64
           ", rescues %" PRIu64 "\n",
           after->sleeps - before->sleeps, summary->sleeps, after->wakes - before->wakes,
           summary->rescues);
    printf("results       %" PRIu64 " wrong, %" PRIu64 " failed, %" PRIu64 " missing, %" PRIu64
           " unexpected: %s\n",
           summary->wrong, summary->failed, summary->missing, summary->unexpected,
           summary->passed ? "ok" : "FAILED");
}

/* ---- JSON ------------------------------------------------------------------------------------ */

/* JSON integers are signed 64-bit in jansson; no counter gets near 2^63. */
#define INT(value) ((json_int_t)(value))

int stress_print_json(json_t *value)
{
    int failed;

    if (!value)
        return -ENOMEM;
    failed = json_dumpf(value, stdout, JSON_INDENT(2));
    json_decref(value);
    putchar('\n');
    return failed ? -ENOMEM : 0;
}

json_t *stress_machine_json(void)
{
    struct stress_machine machine;

    stress_machine_read(&machine);
    return json_pack("{s:s, s:s, s:I, s:I, s:b, s:f}", "cpu_model", machine.cpu_model, "kernel",
                     machine.kernel, "cpus_online", INT(machine.cpus_online), "l3_bytes",
                     INT(machine.l3_bytes), "hypervisor", machine.hypervisor, "load_average",
                     machine.load_average);
}

json_t *stress_worker_json(const struct gemmd_info *info)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s}",
                     "worker_version", info->worker_version, "socket", info->socket, "pid",
                     INT(info->pid), "node", INT(info->node), "cpu_count", INT(info->cpu_count),
                     "dispatcher_cpu", INT(info->dispatcher_cpu), "level", info->level, "kernel",
                     info->kernel, "event_level", info->event_level, "pool_bytes_1g",
                     INT(info->pool_bytes_1g), "pool_bytes_2m", INT(info->pool_bytes_2m),
                     "pool_bytes_thp", INT(info->pool_bytes_thp), "pool_bytes_4k",
                     INT(info->pool_bytes_4k), "lost", info->lost);
}

json_t *stress_latency_json(const struct stress_latency *latency)
{
    json_t *out = json_pack("{s:I, s:I}", "count", INT(latency->count), "max",
                            INT(latency->max_ns));

    for (size_t i = 0; i < PERCENTILES; i++)
        json_object_set_new(out, percentiles[i].key,
                            json_real(stress_latency_percentile(latency, percentiles[i].fraction)));
    return out;
}

static json_t *load_json(const struct stress_options *options)
{
    json_t *shapes = json_array();

    for (uint32_t i = 0; i < options->shape_count; i++)
        json_array_append_new(shapes, json_pack("[I, I, I]", INT(options->shapes[i].m),
                                                INT(options->shapes[i].n),
                                                INT(options->shapes[i].k)));
    return json_pack("{s:I, s:b, s:I, s:f, s:s, s:s, s:I, s:o}", "sessions", INT(options->sessions),
                     "threads", options->threads, "depth", INT(options->depth), "rate",
                     options->rate, "wait",
                     options->spin ? "spin" : "sleep", "verify",
                     stress_verify_name(options->verify), "seed", INT(options->seed), "shapes",
                     shapes);
}

static json_t *sessions_json(const struct stress_summary *summary)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < summary->options->sessions; i++) {
        const struct stress_result *result = &summary->results[i];

        json_array_append_new(
            list, json_pack("{s:I, s:f, s:I, s:I, s:I, s:I, s:s, s:o}", "jobs", INT(result->jobs),
                            "jobs_per_s", rate(result->jobs, result->start_ns, result->end_ns),
                            "wrong", INT(result->wrong), "failed", INT(result->failed), "missing",
                            INT(result->missing), "unexpected", INT(result->unexpected), "error",
                            result->error, "latency_ns", stress_latency_json(&result->latency)));
    }
    return list;
}

static json_t *counters_json(const struct stress_summary *summary)
{
    const struct gemmd_stats *before = &summary->before, *after = &summary->after;
    uint64_t worker_syscalls = after->syscalls - before->syscalls;

    return json_pack(
        "{s:I, s:I, s:f, s:I, s:I, s:f, s:I, s:I, s:I, s:I}", "worker_syscalls",
        INT(worker_syscalls), "client_syscalls", INT(summary->syscalls), "syscalls_per_job",
        per((double)(worker_syscalls + summary->syscalls), summary->jobs), "doorbells_rung",
        INT(summary->doorbells), "doorbells_heard", INT(after->doorbells - before->doorbells),
        "doorbells_per_job", per((double)summary->doorbells, summary->jobs), "worker_sleeps",
        INT(after->sleeps - before->sleeps), "client_sleeps", INT(summary->sleeps), "wakes",
        INT(after->wakes - before->wakes), "rescues", INT(summary->rescues));
}

int stress_report_json(const struct stress_summary *summary)
{
    double seconds = summary->seconds > 0 ? summary->seconds : 1;

    return stress_print_json(json_pack(
        "{s:o, s:o, s:o, s:I, s:f, s:f, s:f, s:o, s:o, s:I, s:I, s:I, s:I, s:o, s:b}", "machine",
        stress_machine_json(), "worker", stress_worker_json(&summary->info), "load",
        load_json(summary->options), "jobs", INT(summary->jobs), "seconds", summary->seconds,
        "jobs_per_s", (double)summary->jobs / seconds, "gops",
        summary->operations / seconds / 1e9, "latency_ns", stress_latency_json(&summary->latency),
        "counters", counters_json(summary), "wrong", INT(summary->wrong), "failed",
        INT(summary->failed), "missing", INT(summary->missing), "unexpected",
        INT(summary->unexpected), "sessions", sessions_json(summary), "passed", summary->passed));
}
