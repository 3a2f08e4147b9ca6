/*
 * gemmctl's text: aligned, in units a person reads.  The exact numbers are gemmctl_json.c's.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/gemmctl.h"

/* Holds "1023.9 GiB" and the like. */
struct unit_text {
    char text[24];
};

static struct unit_text bytes_text(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    struct unit_text out;
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1024 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024;
        unit++;
    }
    if (unit == 0)
        snprintf(out.text, sizeof(out.text), "%" PRIu64 " B", bytes);
    else
        snprintf(out.text, sizeof(out.text), "%.1f %s", value, units[unit]);
    return out;
}

static struct unit_text time_text(uint64_t ns)
{
    struct unit_text out;
    double value = (double)ns;

    if (ns < 1000)
        snprintf(out.text, sizeof(out.text), "%" PRIu64 " ns", ns);
    else if (value < 1e6)
        snprintf(out.text, sizeof(out.text), "%.2f µs", value / 1e3);
    else if (value < 1e9)
        snprintf(out.text, sizeof(out.text), "%.2f ms", value / 1e6);
    else if (value < 3600e9)
        snprintf(out.text, sizeof(out.text), "%.1f s", value / 1e9);
    else
        snprintf(out.text, sizeof(out.text), "%.1f h", value / 3600e9);
    return out;
}

/* Right-aligns by characters, not bytes: "µ" has two bytes and one column. */
static void print_right(const char *text, int columns)
{
    int width = 0;

    for (const char *at = text; *at; at++)
        width += ((unsigned char)*at & 0xc0) != 0x80;
    printf("%*s%s", columns > width ? columns - width : 0, "", text);
}

static double ratio(uint64_t of, uint64_t by)
{
    return by ? (double)of / (double)by : 0.0;
}

/* ---- info ------------------------------------------------------------------------------------ */

static void print_node(const struct gemmd_info *info)
{
    if (info->node < 0)
        printf("node         none (the machine has no NUMA)\n");
    else
        printf("node         %" PRId32 "\n", info->node);
    printf("CPUs         %" PRIu32 ", dispatcher on CPU %" PRIu32 "\n", info->cpu_count,
           info->dispatcher_cpu);
}

static void print_pool(const struct gemmd_info *info)
{
    printf("weight pool  %s used, %s mapped, limit %s\n", bytes_text(info->pool_bytes_used).text,
           bytes_text(info->pool_bytes).text, bytes_text(info->pool_bytes_limit).text);
    printf("  by page    1 GiB: %s, 2 MiB: %s, THP: %s, 4 KiB: %s\n",
           bytes_text(info->pool_bytes_1g).text, bytes_text(info->pool_bytes_2m).text,
           bytes_text(info->pool_bytes_thp).text, bytes_text(info->pool_bytes_4k).text);
    printf("  on node    %s verified\n", bytes_text(info->pool_bytes_on_node).text);
    printf("  kept       %s in files that can outlive the worker\n",
           bytes_text(info->pool_bytes_kept).text);
}

void gemmctl_text_info(const struct gemmd_info *info)
{
    printf("worker       gemmd %s, pid %" PRIu32 ", up %s\n", info->worker_version, info->pid,
           time_text(info->uptime_ns).text);
    printf("socket       %s\n", info->socket);
    print_node(info);
    printf("kernel       %s (level %s)\n", info->kernel, info->level);
    printf("events       %s\n", info->event_level);
    printf("sessions     %" PRIu32 ", arenas %s\n", info->session_count,
           bytes_text(info->arena_bytes).text);
    printf("layers       %" PRIu32 "\n", info->layer_count);
    printf("  bytes      %s, unused %s, pinned %s; %" PRIu64 " evicted\n",
           bytes_text(info->layer_bytes).text, bytes_text(info->layer_bytes_unused).text,
           bytes_text(info->layer_bytes_pinned).text, info->layer_evictions);
    printf("  scrubbed   %s, %" PRIu64 " times all, %" PRIu64 " found changed\n",
           bytes_text(info->scrub_bytes).text, info->scrub_passes, info->scrub_faults);
    print_pool(info);
    printf("lost         %s\n", *info->lost ? info->lost : "nothing");
}

/* ---- layers and sessions --------------------------------------------------------------------- */

void gemmctl_text_layers(const struct gemmd_layer_info *layers, size_t count)
{
    if (count == 0) {
        printf("no layers\n");
        return;
    }
    printf("%-16s %-16s %7s %6s %-15s %10s %9s %4s %6s %4s %6s %-6s %12s %12s %6s  %s\n", "ID",
           "NAME", "N", "K", "TYPES", "WEIGHTS", "PAGE", "NODE", "UID", "REFS", "HITS", "STATE",
           "JOBS", "ROWS", "LATE", "KERNEL");
    for (size_t i = 0; i < count; i++) {
        const struct gemmd_layer_info *layer = &layers[i];
        bool adds = layer->residual_type != GEMMD_TYPE_NONE;
        char types[24];

        snprintf(types, sizeof(types), "%s%s-%s%s%s", gemmctl_type_name(layer->a_type),
                 layer->b_type == GEMMD_TYPE_S4 ? "s4" : "", gemmctl_type_name(layer->c_type),
                 adds ? "+" : "", adds ? gemmctl_type_name(layer->residual_type) : "");
        printf("%016" PRIx64 " %-16s %7" PRIu32 " %6" PRIu32 " %-15s %10s %9s %4" PRId32
               " %6" PRIu32 " %4" PRIu32 " %6" PRIu64 " %-6s %12" PRIu64 " %12" PRIu64 " %6" PRIu64
               "  %s\n",
               layer->content_id[0], *layer->name ? layer->name : "-", layer->n, layer->k, types,
               bytes_text(layer->weight_bytes).text, bytes_text(layer->page_bytes).text,
               layer->node, layer->uid, layer->references, layer->hits,
               layer->unloaded ? "going" : layer->pinned ? "pinned" : "-", layer->jobs, layer->rows,
               layer->deadline_misses, layer->kernel);
    }
}

void gemmctl_text_sessions(const struct gemmd_session_info *sessions, size_t count)
{
    if (count == 0) {
        printf("no sessions\n");
        return;
    }
    printf("%6s %8s %8s %6s %-8s %10s %6s %10s %6s %12s %8s %12s %10s %9s %9s\n", "ID", "PID",
           "UID", "WEIGHT", "STATE", "AGE", "RING", "ARENA", "LAYERS", "JOBS", "FAILED", "ROWS",
           "EXEC", "DOORBELLS", "WAKEUPS");
    for (size_t i = 0; i < count; i++) {
        const struct gemmd_session_info *session = &sessions[i];

        printf("%6" PRIu32 " %8" PRIu32 " %8" PRIu32 " %6" PRIu32 " %-8s ", session->session_id,
               session->pid, session->uid, session->weight, session->state);
        print_right(time_text(session->age_ns).text, 10);
        printf(" %6" PRIu32 " %10s %6" PRIu32 " %12" PRIu64 " %8" PRIu64 " %12" PRIu64 " ",
               session->ring_entries, bytes_text(session->arena_bytes).text, session->layers,
               session->jobs, session->jobs_failed, session->rows);
        print_right(time_text(session->exec_ns).text, 10);
        printf(" %9" PRIu64 " %9" PRIu64 "\n", session->doorbells, session->wakeups);
    }
}

/* ---- stats ----------------------------------------------------------------------------------- */

static void print_counter(const char *name, uint64_t value)
{
    printf("%-18s %16" PRIu64 "\n", name, value);
}

static void print_percentiles(const char *name, const struct gemmd_percentiles *values)
{
    printf("%-8s %14" PRIu64, name, values->count);
    print_right(time_text(values->p50).text, 12);
    print_right(time_text(values->p90).text, 12);
    print_right(time_text(values->p99).text, 12);
    print_right(time_text(values->p999).text, 12);
    print_right(time_text(values->max).text, 12);
    printf("\n");
}

static void print_cores(const struct gemmd_stats *stats)
{
    printf("\n%-8s %14s%12s%12s\n", "CPU", "busy", "spinning", "asleep");
    for (uint32_t i = 0; i < stats->core_count; i++) {
        printf("%-8" PRIu32 " ", stats->cores[i].cpu);
        print_right(time_text(stats->cores[i].busy_ns).text, 14);
        print_right(time_text(stats->cores[i].spin_ns).text, 12);
        print_right(time_text(stats->cores[i].sleep_ns).text, 12);
        printf("\n");
    }
}

void gemmctl_text_stats(const struct gemmd_stats *stats)
{
    print_counter("jobs", stats->jobs);
    print_counter("jobs failed", stats->jobs_failed);
    print_counter("rows", stats->rows);
    print_counter("macs", stats->macs);
    printf("%-18s ", "exec time");
    print_right(time_text(stats->exec_ns).text, 16);
    printf("\n");
    print_counter("turns", stats->turns);
    print_counter("sleeps", stats->sleeps);
    print_counter("doorbells", stats->doorbells);
    print_counter("wakes", stats->wakes);
    print_counter("syscalls", stats->syscalls);
    print_counter("spins hit", stats->spins_hit);
    print_counter("spins missed", stats->spins_missed);
    print_counter("rescues", stats->rescues);
    print_counter("sessions opened", stats->sessions_opened);
    print_counter("sessions closed", stats->sessions_closed);
    print_counter("sessions violated", stats->sessions_violated);
    print_counter("layers created", stats->layers_created);
    print_counter("layers attached", stats->layers_attached);
    print_counter("slices", stats->slices);
    print_counter("preempted", stats->preempted);
    print_counter("slices shared", stats->shared_slices);
    print_counter("slices on the team", stats->team_slices);
    print_counter("deadline misses", stats->deadline_misses);
    print_counter("cancelled", stats->cancelled);
    print_counter("threads repinned", stats->repinned);
    print_counter("trace events lost", stats->trace_lost);
    print_counter("jobs checked", stats->verified);
    print_counter("checks failed", stats->verify_faults);
    printf("%-18s %16.2f\n", "rows per panel", ratio(stats->panel_rows, stats->panels));
    printf("%-18s %16.4f\n", "syscalls per job", ratio(stats->syscalls, stats->jobs));
    printf("%-18s %16.1f\n", "jobs per doorbell", ratio(stats->jobs, stats->doorbells));
    printf("%-18s %16.2f\n", "GOPS while busy", 2 * ratio(stats->macs, stats->exec_ns));
    printf("\n%-8s %14s%12s%12s%12s%12s%12s\n", "time", "jobs", "p50", "p90", "p99", "p99.9",
           "max");
    print_percentiles("queued", &stats->queue);
    print_percentiles("executed", &stats->exec);
    print_cores(stats);
}

/* Of the time that has passed, per cent; what a thread sleeps is on the page only once it wakes. */
static void print_core_shares(const struct gemmd_core_time *before,
                              const struct gemmd_core_time *now, double seconds)
{
    printf("  CPU%" PRIu32 " %3.0f/%.0f", now->cpu,
           (double)(now->busy_ns - before->busy_ns) / seconds / 1e7,
           (double)(now->spin_ns - before->spin_ns) / seconds / 1e7);
}

void gemmctl_text_watch(const struct gemmd_stats *before, const struct gemmd_stats *now,
                        double seconds)
{
    uint64_t exec_ns = now->exec_ns - before->exec_ns;

    printf("%10.0f jobs/s %10.0f rows/s %7.1f GOPS while busy, %5.2f rows per panel, %" PRIu64
           " late, p99 so far: ",
           (double)(now->jobs - before->jobs) / seconds,
           (double)(now->rows - before->rows) / seconds,
           2 * ratio(now->macs - before->macs, exec_ns),
           ratio(now->panel_rows - before->panel_rows, now->panels - before->panels),
           now->deadline_misses - before->deadline_misses);
    printf("waits %s, runs %s, busy/spin %%:", time_text(now->queue.p99).text,
           time_text(now->exec.p99).text);
    for (uint32_t i = 0; i < now->core_count; i++)
        print_core_shares(&before->cores[i], &now->cores[i], seconds);
    printf("\n");
}
