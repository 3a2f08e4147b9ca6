/* One look of gemmd-top as JSON. */
#include "tools/top.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>

static json_t *row_json(const struct top_view *view, const struct top_row *row)
{
    json_t *out = json_pack("{s:f, s:f, s:f, s:I, s:I, s:I, s:I}", "jobs_per_s", row->jobs_per_s,
                            "rows_per_s", row->rows_per_s, "cpu_share", row->exec_share,
                            "queue_p50_ns", (json_int_t)row->queue_p50_ns, "queue_p99_ns",
                            (json_int_t)row->queue_p99_ns, "exec_p99_ns",
                            (json_int_t)row->exec_p99_ns, "deadline_misses",
                            (json_int_t)row->missed);
    json_t *more =
        view->layers
            ? json_pack("{s:s, s:I, s:f}", "layer", row->name, "references",
                        (json_int_t)row->references, "rows_per_panel", row->rows_per_panel)
            : json_pack("{s:I, s:I, s:I, s:I}", "session_id", (json_int_t)row->id, "pid",
                        (json_int_t)row->pid, "in_flight", (json_int_t)row->in_flight,
                        "cancelled", (json_int_t)row->cancelled);

    if (out && more)
        json_object_update(out, more);
    json_decref(more);
    return out;
}

static json_t *core_json(const struct gemmd_core_time *core)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "cpu", (json_int_t)core->cpu, "busy_ns",
                     (json_int_t)core->busy_ns, "spin_ns", (json_int_t)core->spin_ns, "sleep_ns",
                     (json_int_t)core->sleep_ns);
}

static json_t *head_json(const struct top_look *before, const struct top_look *now)
{
    const struct gemmd_stats *a = &before->stats, *b = &now->stats;
    double seconds = (double)(now->at_ns - before->at_ns) / 1e9;
    double panels = top_rate(a->panels, b->panels, 1);

    return json_pack(
        "{s:f, s:s, s:I, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I}", "seconds", seconds,
        "level", now->info.level, "pid", (json_int_t)now->info.pid, "jobs_per_s",
        top_rate(a->jobs, b->jobs, seconds), "rows_per_s", top_rate(a->rows, b->rows, seconds),
        "rows_per_panel", panels > 0 ? top_rate(a->panel_rows, b->panel_rows, 1) / panels : 0.0,
        "slices", (json_int_t)(b->slices - a->slices), "shared_slices",
        (json_int_t)(b->shared_slices - a->shared_slices), "team_slices",
        (json_int_t)(b->team_slices - a->team_slices), "deadline_misses",
        (json_int_t)b->deadline_misses, "cancelled", (json_int_t)b->cancelled, "rescues",
        (json_int_t)b->rescues);
}

int top_json(const struct top_view *view, const struct top_look *before,
             const struct top_look *now)
{
    static struct top_row rows[TOP_LIST_MAX];
    uint32_t count = top_rows(view, before, now, rows);
    json_t *out = head_json(before, now), *list = json_array(), *cores = json_array();
    int error = -ENOMEM;

    for (uint32_t i = 0; i < count && list; i++)
        json_array_append_new(list, row_json(view, &rows[i]));
    for (uint32_t i = 0; i < now->stats.core_count && cores; i++) {
        const struct gemmd_core_time core = top_core(&before->stats.cores[i], &now->stats.cores[i],
                                                     now->at_ns - before->at_ns);

        json_array_append_new(cores, core_json(&core));
    }
    if (out && list && cores && json_object_set(out, "cores", cores) == 0 &&
        json_object_set(out, view->layers ? "layers" : "sessions", list) == 0)
        error = json_dumpf(out, stdout, JSON_INDENT(2)) < 0 || putchar('\n') == EOF ? -EIO : 0;
    json_decref(list);
    json_decref(cores);
    json_decref(out);
    return error;
}
