/*
 * One slice of a scan: a grid of chunks, columns of panels by blocks of rows, that the team's
 * threads claim one by one.  Between its chunks the dispatcher looks whether something has come;
 * then the slice ends, at the latest a chunk later, with the panels that are whole.
 */
#include "worker/executor.h"

#include "worker/clock.h"

/* Float rows are read and quantised at 8 to 20 bytes a ns, from memory and from L2. */
#define PREPARE_BYTES_PER_NS 10

/* One chunk; on any thread. */
static void run_chunk(void *argument, uint32_t chunk)
{
    const struct executor *executor = argument;
    const struct executor_slice *slice = &executor->slice;
    const struct layer_view *view = &slice->layer->view;
    const struct scan_rows *rows = &executor->rows[slice->scan->index];
    uint32_t first_panel = chunk / slice->row_blocks * slice->panel_step;
    uint32_t first_row = chunk % slice->row_blocks * slice->row_step;
    uint32_t last_panel = first_panel + slice->panel_step, last_row = first_row + slice->row_step;
    struct gemm_epilogue own;
    const struct gemm_epilogue *epilogue = scan_rows_epilogue(rows, view, first_row, &own);
    size_t n_begin, n_end;

    if (last_panel > slice->panels)
        last_panel = slice->panels;
    if (last_row > slice->scan->rows)
        last_row = slice->scan->rows;
    n_begin = (size_t)(slice->scan->position + first_panel) * view->nr;
    n_end = (size_t)(slice->scan->position + last_panel) * view->nr;
    if (n_end > view->n)
        n_end = view->n;
    if (view->s8.panels)
        gemm_run(&view->s8, epilogue, last_row - first_row, rows->a + first_row,
                 rows->c + first_row, n_begin, n_end);
    else
        int4_run(&view->s4, epilogue, last_row - first_row, rows->a + first_row,
                 rows->c + first_row, n_begin, n_end);
}

static uint32_t divide_up(uint64_t value, uint64_t by)
{
    return (uint32_t)((value + by - 1) / by);
}

/* How long a chunk should take. */
static uint64_t chunk_ns(const struct executor *executor, uint64_t estimate_ns, uint64_t now_ns)
{
    uint64_t ns = executor->has_company ? EXECUTOR_CHUNK_NS : EXECUTOR_CHUNK_ALONE_NS;
    uint64_t threads = team_size(executor->config.team);

    if (executor_expects_latency(executor, now_ns))
        ns = EXECUTOR_CHUNK_LATENCY_NS;
    if (threads > 1 && estimate_ns >= EXECUTOR_TEAM_NS &&
        ns > estimate_ns / (threads * EXECUTOR_TEAM_CHUNKS))
        ns = estimate_ns / (threads * EXECUTOR_TEAM_CHUNKS);
    return ns > EXECUTOR_CHUNK_MIN_NS ? ns : EXECUTOR_CHUNK_MIN_NS;
}

/* Several panels a chunk while rows are few, else blocks of rows of one panel. */
static void cut(struct executor *executor, const struct scheduler_scan *scan, uint64_t now_ns,
                uint64_t *estimate_ns)
{
    struct executor_slice *slice = &executor->slice;
    uint32_t tile = scan->layer->tile_rows, tiles = divide_up(scan->rows, tile), blocks = 1;
    uint32_t to_the_end = scan->layer->panels - scan->position;
    uint64_t panel_ns = scheduler_estimate_ns(scan->layer, scan->rows, 1) + 1, wanted_ns;

    slice->scan = scan;
    slice->layer = LIST_ENTRY(scan->layer, struct layer, scheduled);
    slice->panels = scan->panels_now < to_the_end ? scan->panels_now : to_the_end;
    *estimate_ns = panel_ns * slice->panels;
    wanted_ns = chunk_ns(executor, *estimate_ns, now_ns);
    slice->panel_step = panel_ns < wanted_ns ? (uint32_t)(wanted_ns / panel_ns) : 1;
    if (panel_ns > 2 * wanted_ns)
        blocks = divide_up(panel_ns, wanted_ns);
    if (blocks > tiles)
        blocks = tiles;
    slice->row_step = divide_up(tiles, blocks) * tile;
    slice->row_blocks = divide_up(scan->rows, slice->row_step);
    slice->chunk_count = divide_up(slice->panels, slice->panel_step) * slice->row_blocks;
}

static bool never_stop(void *argument)
{
    (void)argument;
    return false;
}

static bool stop_slice(void *argument)
{
    const struct executor *executor = argument;

    return executor->config.stop(executor->config.owner);
}

/* A stop in the middle of a panel: its other rows follow, and are paid for, too.  Returns the
 * panels that are whole. */
static uint32_t finish_panel(struct executor *executor, struct team_result *result)
{
    const struct executor_slice *slice = &executor->slice;
    uint32_t chunks = result->chunks, panels;

    while (chunks % slice->row_blocks)
        run_chunk(executor, chunks++);
    if (chunks != result->chunks) {
        uint64_t end_ns = clock_now_ns();

        result->compute_ns += end_ns - result->end_ns;
        result->end_ns = end_ns;
    }
    panels = chunks / slice->row_blocks * slice->panel_step;
    return panels < slice->panels ? panels : slice->panels;
}

static bool is_shared(const struct scheduler_scan *scan)
{
    const struct scheduler_session *first = scan->members[0].job->flow->session;

    for (uint32_t i = 1; i < scan->member_count; i++)
        if (scan->members[i].job->flow->session != first)
            return true;
    return false;
}

/* The rows that have just come on board, if their layer needs more of them than their address, cut
 * into chunks for the team.  Nothing stops it: the limit of rows on board bounds it. */
static uint64_t prepare(struct executor *executor, struct scheduler_scan *scan, uint64_t start_ns)
{
    struct scan_rows *rows = &executor->rows[scan->index];
    struct team_work work = {.run = scan_rows_prepare,
                             .stop = never_stop,
                             .argument = rows,
                             .start_ns = start_ns};
    uint64_t bytes, compute_ns;
    struct team_result result;

    work.chunk_count = scan_rows_gather(rows, scan, start_ns, &bytes);
    if (work.chunk_count == 0)
        return start_ns;
    work.share = bytes / PREPARE_BYTES_PER_NS >= EXECUTOR_TEAM_NS;
    work.wake = bytes / PREPARE_BYTES_PER_NS >= EXECUTOR_WAKE_NS;
    team_run(executor->config.team, &work, &result);
    /* A thread that lost its CPU meanwhile is nobody's debt, as in scheduler_ran. */
    compute_ns = result.compute_ns < bytes ? result.compute_ns : bytes;
    scheduler_prepared(&executor->scheduler, scan, compute_ns);
    gemmd_counter_add(&executor->config.stats->exec_ns, result.compute_ns);
    gemmd_counter_add(&executor->config.stats->cores[0].busy_ns, result.end_ns - start_ns);
    gemmd_counter_add(&rows->layer->exec_ns, result.compute_ns);
    return result.end_ns;
}

uint64_t slice_run(struct executor *executor, struct scheduler_scan *scan, uint64_t start_ns)
{
    struct team_work work = {.run = run_chunk, .argument = executor};
    struct team_result result;
    uint64_t estimate_ns;
    uint32_t panels;

    if (scan->changed) {
        start_ns = prepare(executor, scan, start_ns);
        if (executor->verify.every)
            verify_board(&executor->verify, &executor->rows[scan->index], scan);
    }
    work.start_ns = start_ns;
    cut(executor, scan, start_ns, &estimate_ns);
    work.chunk_count = executor->slice.chunk_count;
    work.stop = scan->index == SCHEDULER_LONG_SCANS ? never_stop : stop_slice;
    work.share = estimate_ns >= EXECUTOR_TEAM_NS;
    if (start_ns - executor->ended_ns > EXECUTOR_ROW_NS || !work.share)
        executor->row_ns = 0;
    executor->row_ns += estimate_ns;
    work.wake = work.share && executor->row_ns >= EXECUTOR_WAKE_NS;
    team_run(executor->config.team, &work, &result);
    if (result.shared || work.wake)
        executor->row_ns = 0;
    panels = finish_panel(executor, &result);
    executor->slice.panels_run = panels;
    executor->slice.rows = scan->rows;
    executor->slice.compute_ns = result.compute_ns;
    executor->slice.caller_ns = result.end_ns - start_ns;
    executor->slice.teamed = result.shared;
    executor->slice.shared = scan->member_count > 1 && is_shared(scan);
    if (executor->config.trace)
        trace_slice(executor->config.trace, executor->slice.layer, start_ns, result.end_ns,
                    scan->rows, panels, scan->member_count, result.shared);
    if (executor->verify.job) {
        verify_slice(&executor->verify, &executor->rows[scan->index], scan, panels);
        result.end_ns = clock_now_ns();
    }
    executor->ended_ns = result.end_ns;
    scheduler_ran(&executor->scheduler, scan, panels, result.compute_ns);
    return result.end_ns;
}

void slice_count(struct executor *executor)
{
    const struct executor_slice *slice = &executor->slice;
    struct gemmd_stats_page *stats = executor->config.stats;
    uint64_t panel_rows = (uint64_t)slice->panels_run * slice->rows;

    gemmd_counter_add(&stats->slices, 1);
    gemmd_counter_add(&stats->preempted, slice->panels_run < slice->panels);
    gemmd_counter_add(&stats->team_slices, slice->teamed);
    gemmd_counter_add(&stats->shared_slices, slice->shared);
    gemmd_counter_add(&stats->panels, slice->panels_run);
    gemmd_counter_add(&stats->panel_rows, panel_rows);
    gemmd_counter_add(&stats->exec_ns, slice->compute_ns);
    gemmd_counter_add(&stats->cores[0].busy_ns, slice->caller_ns);
    gemmd_counter_add(&slice->layer->exec_ns, slice->compute_ns);
    gemmd_counter_add(&slice->layer->panels, slice->panels_run);
    gemmd_counter_add(&slice->layer->panel_rows, panel_rows);
}
