/*
 * gemmctl's JSON: the public structs field by field, keys equal to the field names of
 * client/gemmd.h, so that the header documents both.  json_pack returns NULL only without memory.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

#include "tools/gemmctl.h"

/* JSON integers are signed 64-bit in jansson; no counter gets near 2^63. */
#define INT(value) ((json_int_t)(value))

/* Consumes `value`. */
static int print_json(json_t *value)
{
    int failed;

    if (!value)
        return -ENOMEM;
    failed = json_dumpf(value, stdout, JSON_INDENT(2));
    json_decref(value);
    putchar('\n');
    return failed && !ferror(stdout) ? -ENOMEM : 0;
}

int gemmctl_json_info(const struct gemmd_info *info)
{
    return print_json(json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:s, s:s, s:I, s:I, s:I,"
        " s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I,"
        " s:I}",
        "worker_version", info->worker_version, "socket", info->socket, "pid", INT(info->pid),
        "node", INT(info->node), "cpu_count", INT(info->cpu_count), "dispatcher_cpu",
        INT(info->dispatcher_cpu), "level", info->level, "kernel", info->kernel, "event_level",
        info->event_level, "uptime_ns", INT(info->uptime_ns), "session_count",
        INT(info->session_count), "layer_count", INT(info->layer_count), "pool_bytes",
        INT(info->pool_bytes), "pool_bytes_used", INT(info->pool_bytes_used), "pool_bytes_limit",
        INT(info->pool_bytes_limit), "pool_bytes_1g", INT(info->pool_bytes_1g), "pool_bytes_2m",
        INT(info->pool_bytes_2m), "pool_bytes_thp", INT(info->pool_bytes_thp), "pool_bytes_4k",
        INT(info->pool_bytes_4k), "pool_bytes_on_node", INT(info->pool_bytes_on_node),
        "arena_bytes", INT(info->arena_bytes), "lost", info->lost,
        "layer_bytes", INT(info->layer_bytes), "layer_bytes_unused", INT(info->layer_bytes_unused),
        "layer_bytes_pinned", INT(info->layer_bytes_pinned), "layer_evictions",
        INT(info->layer_evictions), "scrub_bytes", INT(info->scrub_bytes), "scrub_passes",
        INT(info->scrub_passes), "scrub_faults", INT(info->scrub_faults), "pool_bytes_kept",
        INT(info->pool_bytes_kept)));
}

int gemmctl_json_change(int count, uint64_t bytes)
{
    return print_json(json_pack("{s:i, s:I}", "layers", count, "bytes", INT(bytes)));
}

static json_t *layer_json(const struct gemmd_layer_info *layer)
{
    char content_id[33];

    snprintf(content_id, sizeof(content_id), "%016" PRIx64 "%016" PRIx64, layer->content_id[0],
             layer->content_id[1]);
    return json_pack(
        "{s:s, s:s, s:I, s:I, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:s,"
        " s:I, s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
        "name", layer->name, "content_id", content_id, "n", INT(layer->n), "k", INT(layer->k),
        "a_type", gemmctl_type_name(layer->a_type), "b_type", gemmctl_type_name(layer->b_type),
        "c_type", gemmctl_type_name(layer->c_type),
        "weight_bytes", INT(layer->weight_bytes), "page_bytes", INT(layer->page_bytes), "node",
        INT(layer->node), "references", INT(layer->references), "jobs", INT(layer->jobs), "rows",
        INT(layer->rows), "kernel", layer->kernel, "bias_type", gemmctl_type_name(layer->bias_type),
        "residual_type", gemmctl_type_name(layer->residual_type),
        "uid", INT(layer->uid), "pinned", layer->pinned, "unloaded", layer->unloaded, "exec_ns",
        INT(layer->exec_ns), "panels", INT(layer->panels), "panel_rows", INT(layer->panel_rows),
        "queue_p50_ns", INT(layer->queue_p50_ns), "queue_p99_ns", INT(layer->queue_p99_ns),
        "exec_p50_ns", INT(layer->exec_p50_ns), "exec_p99_ns", INT(layer->exec_p99_ns), "hits",
        INT(layer->hits), "deadline_misses", INT(layer->deadline_misses));
}

static json_t *session_json(const struct gemmd_session_info *session)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I,"
                     " s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
                     "session_id", INT(session->session_id), "pid", INT(session->pid), "uid",
                     INT(session->uid), "ring_entries", INT(session->ring_entries), "layers",
                     INT(session->layers), "state", session->state, "arena_bytes",
                     INT(session->arena_bytes), "jobs", INT(session->jobs), "jobs_failed",
                     INT(session->jobs_failed), "rows", INT(session->rows), "exec_ns",
                     INT(session->exec_ns), "doorbells", INT(session->doorbells), "wakeups",
                     INT(session->wakeups), "age_ns", INT(session->age_ns), "queue_p50_ns",
                     INT(session->queue_p50_ns), "queue_p99_ns", INT(session->queue_p99_ns),
                     "exec_p50_ns", INT(session->exec_p50_ns), "exec_p99_ns",
                     INT(session->exec_p99_ns), "deadline_misses", INT(session->deadline_misses),
                     "cancelled", INT(session->cancelled), "in_flight", INT(session->in_flight),
                     "weight", INT(session->weight));
}

int gemmctl_json_layers(const struct gemmd_layer_info *layers, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(list, layer_json(&layers[i])) < 0) {
            json_decref(list);
            return -ENOMEM;
        }
    return print_json(json_pack("{s:o}", "layers", list));
}

int gemmctl_json_sessions(const struct gemmd_session_info *sessions, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(list, session_json(&sessions[i])) < 0) {
            json_decref(list);
            return -ENOMEM;
        }
    return print_json(json_pack("{s:o}", "sessions", list));
}

static json_t *percentiles_json(const struct gemmd_percentiles *values)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "count", INT(values->count), "p50",
                     INT(values->p50), "p90", INT(values->p90), "p99", INT(values->p99), "p999",
                     INT(values->p999), "max", INT(values->max));
}

static json_t *cores_json(const struct gemmd_stats *stats)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < stats->core_count; i++)
        json_array_append_new(
            list, json_pack("{s:I, s:I, s:I, s:I}", "cpu", INT(stats->cores[i].cpu), "busy_ns",
                            INT(stats->cores[i].busy_ns), "spin_ns", INT(stats->cores[i].spin_ns),
                            "sleep_ns", INT(stats->cores[i].sleep_ns)));
    return list;
}

/* Slices, sharing, and what became of jobs that did not run. */
static json_t *scheduling_json(const struct gemmd_stats *stats)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:o}",
                     "verified", INT(stats->verified), "verify_faults",
                     INT(stats->verify_faults), "slices",
                     INT(stats->slices), "preempted", INT(stats->preempted), "shared_slices",
                     INT(stats->shared_slices), "team_slices", INT(stats->team_slices), "panels",
                     INT(stats->panels), "panel_rows", INT(stats->panel_rows), "deadline_misses",
                     INT(stats->deadline_misses), "cancelled", INT(stats->cancelled), "repinned",
                     INT(stats->repinned), "trace_lost", INT(stats->trace_lost), "rows_per_panel",
                     stats->panels ? (double)stats->panel_rows / (double)stats->panels : 0.0,
                     "cores", cores_json(stats));
}

int gemmctl_json_stats(const struct gemmd_stats *stats)
{
    double jobs = (double)stats->jobs, doorbells = (double)stats->doorbells;

    return print_json(json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I,"
        " s:I, s:I, s:o, s:o, s:f, s:f, s:o}",
        "jobs", INT(stats->jobs), "jobs_failed", INT(stats->jobs_failed), "rows",
        INT(stats->rows), "macs", INT(stats->macs), "exec_ns", INT(stats->exec_ns), "turns",
        INT(stats->turns), "sleeps", INT(stats->sleeps), "doorbells", INT(stats->doorbells),
        "wakes", INT(stats->wakes), "syscalls", INT(stats->syscalls), "spins_hit",
        INT(stats->spins_hit), "spins_missed", INT(stats->spins_missed), "rescues",
        INT(stats->rescues), "sessions_opened", INT(stats->sessions_opened), "sessions_closed",
        INT(stats->sessions_closed), "sessions_violated", INT(stats->sessions_violated),
        "layers_created", INT(stats->layers_created), "layers_attached",
        INT(stats->layers_attached), "queue", percentiles_json(&stats->queue), "exec",
        percentiles_json(&stats->exec), "syscalls_per_job",
        stats->jobs ? (double)stats->syscalls / jobs : 0.0, "jobs_per_doorbell",
        stats->doorbells ? jobs / doorbells : 0.0, "scheduling", scheduling_json(stats)));
}
