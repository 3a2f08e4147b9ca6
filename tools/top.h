/* The parts of gemmd-top: gemmd-top.c looks and waits, top_draw.c draws, top_json.c prints JSON. */
#ifndef GEMMD_TOOLS_TOP_H
#define GEMMD_TOOLS_TOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/gemmd.h"

/* As many layers as a worker may have, which are more than sessions. */
enum { TOP_LIST_MAX = 4096, TOP_COLUMNS = 80, TOP_LINES = 24 };

/* The keys j r e w i, in this order. */
enum top_sort { TOP_SORT_JOBS, TOP_SORT_ROWS, TOP_SORT_EXEC, TOP_SORT_WAIT, TOP_SORT_ID };

struct top_view {
    enum top_sort sort;
    bool layers, once, json;
    unsigned columns, lines; /* of the terminal, TOP_COLUMNS and TOP_LINES at most */
};

struct top_look {
    uint64_t at_ns;
    struct gemmd_info info;
    struct gemmd_stats stats;
    struct gemmd_session_info sessions[TOP_LIST_MAX];
    struct gemmd_layer_info layers[TOP_LIST_MAX];
    uint32_t session_count, layer_count;
};

/* A session or a layer over the interval. */
struct top_row {
    uint64_t id, pid;
    char name[32];
    double jobs_per_s, rows_per_s, exec_share; /* of one CPU */
    double rows_per_panel;                     /* layers */
    uint64_t queue_p50_ns, queue_p99_ns, exec_p99_ns, missed, cancelled;
    uint32_t in_flight, references;
};

/* What changed between the two looks, in the order of the view; out has TOP_LIST_MAX places. */
uint32_t top_rows(const struct top_view *view, const struct top_look *before,
                  const struct top_look *now, struct top_row *out);

void top_draw(const struct top_view *view, const struct top_look *before,
              const struct top_look *now);
/* In place of a picture. */
void top_draw_message(const struct top_view *view, const char *text);
/* What the thread did in so many ns: all that it was neither busy nor spinning it slept (the page
 * says so only once it wakes, and then of all the sleep). */
struct gemmd_core_time top_core(const struct gemmd_core_time *before,
                                const struct gemmd_core_time *now, uint64_t span_ns);

/* 0 or -ENOMEM. */
int top_json(const struct top_view *view, const struct top_look *before,
             const struct top_look *now);

static inline double top_rate(uint64_t before, uint64_t now, double seconds)
{
    return now > before && seconds > 0 ? (double)(now - before) / seconds : 0;
}

#endif
