/* gemmd-top's screen: 80 columns, 24 lines, nothing wider, nothing longer. */
#include "tools/top.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CORE_LINES_MAX = 4, BAR = 30 };

/* ---- rows ------------------------------------------------------------------------------------ */

static enum top_sort sort_key;

static double key_of(const struct top_row *row)
{
    switch (sort_key) {
    case TOP_SORT_JOBS:
        return row->jobs_per_s;
    case TOP_SORT_ROWS:
        return row->rows_per_s;
    case TOP_SORT_EXEC:
        return row->exec_share;
    case TOP_SORT_WAIT:
        return (double)row->queue_p99_ns;
    case TOP_SORT_ID:
        break;
    }
    return 0;
}

/* Largest first; by id where that is equal. */
static int compare(const void *left, const void *right)
{
    const struct top_row *a = left, *b = right;
    double difference = key_of(b) - key_of(a);

    if (difference != 0)
        return difference > 0 ? 1 : -1;
    return (a->id > b->id) - (a->id < b->id);
}

static const struct gemmd_session_info *find_session(const struct top_look *look, uint32_t id)
{
    static const struct gemmd_session_info none;

    for (uint32_t i = 0; i < look->session_count; i++)
        if (look->sessions[i].session_id == id)
            return &look->sessions[i];
    return &none;
}

static const struct gemmd_layer_info *find_layer(const struct top_look *look,
                                                 const uint64_t content_id[2])
{
    static const struct gemmd_layer_info none;

    for (uint32_t i = 0; i < look->layer_count; i++)
        if (memcmp(look->layers[i].content_id, content_id, sizeof(look->layers[i].content_id)) == 0)
            return &look->layers[i];
    return &none;
}

static void fill_session(struct top_row *row, const struct gemmd_session_info *before,
                         const struct gemmd_session_info *now, double seconds)
{
    *row = (struct top_row){
        .id = now->session_id,
        .pid = now->pid,
        .jobs_per_s = top_rate(before->jobs, now->jobs, seconds),
        .rows_per_s = top_rate(before->rows, now->rows, seconds),
        .exec_share = top_rate(before->exec_ns, now->exec_ns, seconds) / 1e9,
        .queue_p50_ns = now->queue_p50_ns,
        .queue_p99_ns = now->queue_p99_ns,
        .exec_p99_ns = now->exec_p99_ns,
        .missed = now->deadline_misses,
        .cancelled = now->cancelled,
        .in_flight = now->in_flight,
    };
}

static void fill_layer(struct top_row *row, const struct gemmd_layer_info *before,
                       const struct gemmd_layer_info *now, double seconds)
{
    double panels = top_rate(before->panels, now->panels, seconds);

    *row = (struct top_row){
        .id = now->content_id[0],
        .jobs_per_s = top_rate(before->jobs, now->jobs, seconds),
        .rows_per_s = top_rate(before->rows, now->rows, seconds),
        .exec_share = top_rate(before->exec_ns, now->exec_ns, seconds) / 1e9,
        .queue_p50_ns = now->queue_p50_ns,
        .queue_p99_ns = now->queue_p99_ns,
        .exec_p99_ns = now->exec_p99_ns,
        .missed = now->deadline_misses,
        .references = now->references,
        .rows_per_panel =
            panels > 0 ? top_rate(before->panel_rows, now->panel_rows, seconds) / panels : 0,
    };
    snprintf(row->name, sizeof(row->name), "%.17s %ux%u", *now->name ? now->name : "-", now->n,
             now->k);
}

uint32_t top_rows(const struct top_view *view, const struct top_look *before,
                  const struct top_look *now, struct top_row *out)
{
    double seconds = (double)(now->at_ns - before->at_ns) / 1e9;
    uint32_t count = view->layers ? now->layer_count : now->session_count;

    for (uint32_t i = 0; i < count; i++)
        if (view->layers)
            fill_layer(&out[i], find_layer(before, now->layers[i].content_id), &now->layers[i],
                       seconds);
        else
            fill_session(&out[i], find_session(before, now->sessions[i].session_id),
                         &now->sessions[i], seconds);
    sort_key = view->sort;
    qsort(out, count, sizeof(*out), compare);
    return count;
}

struct gemmd_core_time top_core(const struct gemmd_core_time *before,
                                const struct gemmd_core_time *now, uint64_t span_ns)
{
    uint64_t busy_ns = now->busy_ns - before->busy_ns, spin_ns = now->spin_ns - before->spin_ns;

    busy_ns = busy_ns < span_ns ? busy_ns : span_ns;
    spin_ns = spin_ns < span_ns - busy_ns ? spin_ns : span_ns - busy_ns;
    return (struct gemmd_core_time){.cpu = now->cpu, .busy_ns = busy_ns, .spin_ns = spin_ns,
                                    .sleep_ns = span_ns - busy_ns - spin_ns};
}

/* ---- lines ----------------------------------------------------------------------------------- */

static unsigned line_count; /* of the picture so far */

/* One line of the screen: cut at its width, cleared to its end; none below the terminal's. */
static void line(const struct top_view *view, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void line(const struct top_view *view, const char *format, ...)
{
    char text[TOP_COLUMNS + 1];
    va_list arguments;

    if (!view->once && line_count >= view->lines)
        return;
    va_start(arguments, format);
    vsnprintf(text, view->columns + 1, format, arguments);
    va_end(arguments);
    if (view->once)
        printf("%s\n", text);
    else
        printf("%s%s\033[K", line_count++ ? "\n" : "\033[H", text);
}

/* Empty lines up to the last one, which has the keys. */
static void end_picture(const struct top_view *view)
{
    while (line_count + 1 < view->lines)
        line(view, "%s", "");
    line(view, "j jobs  r rows  e compute  w waiting  i id   l layers  s sessions   q quit");
    line_count = 0;
    fflush(stdout);
}

static const char *time_text(uint64_t ns, char out[16])
{
    if (ns < 10000)
        snprintf(out, 16, "%" PRIu64 "ns", ns);
    else if (ns < 10000000)
        snprintf(out, 16, "%" PRIu64 "us", ns / 1000);
    else if (ns < UINT64_C(10000000000))
        snprintf(out, 16, "%" PRIu64 "ms", ns / 1000000);
    else
        snprintf(out, 16, "%" PRIu64 "s", ns / 1000000000);
    return out;
}

/* Busy '#', spinning '.', asleep ' '. */
static void core_line(const struct top_view *view, const struct gemmd_core_time *core,
                      bool dispatcher)
{
    double busy = (double)core->busy_ns, spin = (double)core->spin_ns;
    double all = busy + spin + (double)core->sleep_ns;
    char bar[BAR + 1];

    if (all <= 0)
        all = 1;
    for (int i = 0; i < BAR; i++) {
        double at = (i + 0.5) / BAR * all;

        bar[i] = at < busy ? '#' : at < busy + spin ? '.' : ' ';
    }
    bar[BAR] = '\0';
    line(view, "CPU %-3u [%s] busy %5.1f %%  spin %5.1f %%  %s", core->cpu, bar, 100 * busy / all,
         100 * spin / all, dispatcher ? "dispatcher" : "team");
}

static void draw_head(const struct top_view *view, const struct top_look *before,
                      const struct top_look *now)
{
    const struct gemmd_stats *a = &before->stats, *b = &now->stats;
    double seconds = (double)(now->at_ns - before->at_ns) / 1e9;
    double panels = top_rate(a->panels, b->panels, 1), slices = top_rate(a->slices, b->slices, 1);
    double exec_ns = top_rate(a->exec_ns, b->exec_ns, 1);
    char text[4][16];

    line(view, "gemmd %s pid %u node %d, %s, %u sessions, %u layers, up %" PRIu64 " s",
         now->info.worker_version, now->info.pid, now->info.node, now->info.level,
         now->info.session_count, now->info.layer_count, now->info.uptime_ns / 1000000000);
    line(view, "%.0f jobs/s  %.0f rows/s  %.1f GOPS while busy  weights %.1f MiB",
         top_rate(a->jobs, b->jobs, seconds), top_rate(a->rows, b->rows, seconds),
         exec_ns > 0 ? 2 * top_rate(a->macs, b->macs, 1) / exec_ns : 0,
         (double)now->info.pool_bytes_used / (1 << 20));
    line(view, "%.2f rows per panel  %.0f %% of slices shared  %.0f %% on the team",
         panels > 0 ? top_rate(a->panel_rows, b->panel_rows, 1) / panels : 0,
         slices > 0 ? 100 * top_rate(a->shared_slices, b->shared_slices, 1) / slices : 0,
         slices > 0 ? 100 * top_rate(a->team_slices, b->team_slices, 1) / slices : 0);
    line(view, "waits %s, p99 %s; runs %s, p99 %s; %" PRIu64 " late %" PRIu64
         " cancelled %" PRIu64 " rescues",
         time_text(b->queue.p50, text[0]), time_text(b->queue.p99, text[1]),
         time_text(b->exec.p50, text[2]), time_text(b->exec.p99, text[3]), b->deadline_misses,
         b->cancelled, b->rescues);
}

static void draw_row(const struct top_view *view, const struct top_row *row)
{
    char text[3][16];

    if (view->layers)
        line(view, "%-25s %4u %9.0f %10.0f %6.1f %5.2f %7s %7s", row->name, row->references,
             row->jobs_per_s, row->rows_per_s, 100 * row->exec_share, row->rows_per_panel,
             time_text(row->queue_p99_ns, text[0]), time_text(row->exec_p99_ns, text[1]));
    else
        line(view, "%6" PRIu64 " %8" PRIu64 " %9.0f %10.0f %6.1f %5u %7s %7s %7s %6" PRIu64,
             row->id, row->pid, row->jobs_per_s, row->rows_per_s, 100 * row->exec_share,
             row->in_flight, time_text(row->queue_p50_ns, text[0]),
             time_text(row->queue_p99_ns, text[1]), time_text(row->exec_p99_ns, text[2]),
             row->missed);
}

void top_draw_message(const struct top_view *view, const char *text)
{
    line(view, "gemmd-top: %s", text);
    end_picture(view);
}

void top_draw(const struct top_view *view, const struct top_look *before,
              const struct top_look *now)
{
    static struct top_row rows[TOP_LIST_MAX];
    uint32_t count = top_rows(view, before, now, rows), cores = now->stats.core_count;

    draw_head(view, before, now);
    if (cores > CORE_LINES_MAX)
        cores = CORE_LINES_MAX;
    for (uint32_t i = 0; i < cores; i++) {
        const struct gemmd_core_time core = top_core(&before->stats.cores[i], &now->stats.cores[i],
                                                     now->at_ns - before->at_ns);

        core_line(view, &core, i == 0);
    }
    line(view, "%s", "");
    if (view->layers)
        line(view, "%-25s %4s %9s %10s %6s %5s %7s %7s", "LAYER", "REFS", "JOBS/S", "ROWS/S",
             "%CPU", "R/P", "WAIT99", "RUN99");
    else
        line(view, "%6s %8s %9s %10s %6s %5s %7s %7s %7s %6s", "ID", "PID", "JOBS/S",
             "ROWS/S", "%CPU", "JOBS", "WAIT50", "WAIT99", "RUN99", "LATE");
    for (uint32_t i = 0; i < count && (view->once || line_count + 1 < view->lines); i++)
        draw_row(view, &rows[i]);
    if (!view->once)
        end_picture(view);
}
