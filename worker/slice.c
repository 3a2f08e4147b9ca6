/*
 * One slice of a scan: a grid of chunks, columns of panels by blocks of rows, that the team's
 * threads claim one by one; before it the rows that have just come on board, if they are to be
 * made.  Between its chunks the dispatcher looks whether something has come; while latency jobs are
 * expected, also in the middle of each.  A short scan that goes first runs
 * there and then, whole, on the dispatcher alone, and the slice goes on.  For all else it ends, at
 * the latest a chunk later, with the panels that are whole.
 *
 * What runs in between touches nothing of the slice: it is short scans of other layers, never
 * orders of the control thread, cancels, or a new round of the scheduler, so each session has but
 * the rest of its credit to go before the slice.
 */
#include "worker/executor.h"

#include "worker/clock.h"
#include "kernels/pausing.h"

/* Between two looks of the dispatcher while latency jobs are expected, with weights of 4 bits: some
 * 2 us of AVX512-VNNI.  No less than a tile of rows over a panel, though. */
#define S4_MACS (512 * 1024)

/* Short ones run whole: there is one place for them, and they are it. */
static bool is_long(const struct scheduler_scan *scan)
{
    return scan->index < SCHEDULER_LONG_SCANS;
}

/* ---- chunks ---------------------------------------------------------------------------------- */

/* What has come?  True: submissions. */
static bool look(void *argument)
{
    struct executor_slice *slice = argument;
    struct executor *executor = slice->executor;

    executor->taken = false;
    executor->between = true;
    if (executor->config.look(executor->config.owner))
        slice->ending = true;
    executor->between = false;
    return executor->taken;
}

/* Jobs for whom the slice's end is of use.  Where a tile of rows finds no seats on board, those for
 * the same layer wait for members to leave, which is at the slice's end anyway. */
static uint32_t count_waiting(const struct executor_slice *slice)
{
    const struct scheduler_layer *layer = slice->scan->layer;
    uint32_t waiting = slice->executor->scheduler.waiting;

    return slice->scan->rows + layer->tile_rows > layer->rows_cap ? waiting - layer->waiting
                                                                  : waiting;
}

/* The short ones among them; others end the slice. */
static void serve(void *argument)
{
    struct executor_slice *slice = argument;
    struct executor *executor = slice->executor;

    executor->between = true;
    slice->between_ns += executor_run_between(executor);
    executor->between = false;
    if (executor->cancelling || count_waiting(slice) > slice->waiting)
        slice->ending = true;
}

struct chunk {
    uint32_t first_row, rows;
    size_t n_begin, n_end;
};

static struct chunk chunk_of(const struct executor_slice *slice, uint32_t number)
{
    const struct layer_view *view = &slice->layer->view;
    uint32_t index = slice->chunks_before + number;
    uint32_t first_panel = index / slice->row_blocks * slice->panel_step;
    uint32_t last_panel = first_panel + slice->panel_step;
    struct chunk chunk = {.first_row = index % slice->row_blocks * slice->row_step,
                          .rows = slice->row_step};

    if (last_panel > slice->panels)
        last_panel = slice->panels;
    if (chunk.rows > slice->scan->rows - chunk.first_row)
        chunk.rows = slice->scan->rows - chunk.first_row;
    chunk.n_begin = (size_t)(slice->scan->position + first_panel) * view->nr;
    chunk.n_end = (size_t)(slice->scan->position + last_panel) * view->nr;
    if (chunk.n_end > view->n)
        chunk.n_end = view->n;
    return chunk;
}

/* On any thread. */
static void run_chunk(void *argument, uint32_t number)
{
    const struct executor_slice *slice = argument;
    const struct layer_view *view = &slice->layer->view;
    const struct scan_rows *rows = slice->on_board;
    struct chunk chunk = chunk_of(slice, number);
    uint32_t row = chunk.first_row;
    struct gemm_epilogue own;
    const struct gemm_epilogue *epilogue = scan_rows_epilogue(rows, view, row, &own);

    if (view->s8.panels)
        gemm_run(&view->s8, epilogue, chunk.rows, rows->a + row, rows->c + row, chunk.n_begin,
                 chunk.n_end);
    else
        int4_run(&view->s4, epilogue, chunk.rows, rows->a + row, rows->c + row, chunk.n_begin,
                 chunk.n_end);
}

/* On the dispatcher. */
static void run_chunk_pausing(void *argument, uint32_t number)
{
    struct executor_slice *slice = argument;
    const struct pausing pausing = {.look = look, .serve = serve, .owner = slice};
    const struct layer_view *view = &slice->layer->view;
    const struct scan_rows *rows = slice->on_board;
    struct chunk chunk = chunk_of(slice, number);
    uint32_t row = chunk.first_row;
    struct gemm_epilogue own;

    pausing_run(&pausing, &view->s8, scan_rows_epilogue(rows, view, row, &own), chunk.rows,
                rows->a + row, rows->c + row, chunk.n_begin, chunk.n_end);
}

static void look_and_serve(struct executor_slice *slice)
{
    if (look(slice))
        serve(slice);
}

/* The same for weights of 4 bits, whose kernel runs a tile of rows over all of k. */
static void run_chunk_s4_pausing(void *argument, uint32_t number)
{
    struct executor_slice *slice = argument;
    const struct layer_view *view = &slice->layer->view;
    const struct scan_rows *rows = slice->on_board;
    struct chunk chunk = chunk_of(slice, number);
    uint32_t tiles = S4_MACS / (view->k * view->nr * view->mr);
    uint32_t step = tiles ? tiles * view->mr : view->mr, end = chunk.first_row + chunk.rows;

    for (size_t column = chunk.n_begin; column < chunk.n_end; column += view->nr)
        for (uint32_t row = chunk.first_row; row < end; row += step) {
            size_t last = column + view->nr < chunk.n_end ? column + view->nr : chunk.n_end;
            struct gemm_epilogue own;

            int4_run(&view->s4, scan_rows_epilogue(rows, view, row, &own),
                     end - row < step ? end - row : step, rows->a + row, rows->c + row, column,
                     last);
            look_and_serve(slice);
        }
}

static bool stop_slice(void *argument)
{
    struct executor_slice *slice = argument;

    look_and_serve(slice);
    return slice->ending;
}

/* Where all is to be done, whoever has come. */
static bool look_and_go_on(void *argument)
{
    look_and_serve(argument);
    return false;
}

static bool never_stop(void *argument)
{
    (void)argument;
    return false;
}

/* ---- rows that are made ---------------------------------------------------------------------- */

static void make_rows(void *argument, uint32_t number)
{
    scan_rows_prepare(((struct executor_slice *)argument)->on_board, number);
}

/* The rows that have just come on board, if their layer needs more of them than their address, cut
 * into chunks for the team.  All are made; the limit of rows on board bounds how long for. */
static uint64_t prepare(struct executor_slice *slice, struct scheduler_scan *scan,
                        uint64_t start_ns)
{
    struct executor *executor = slice->executor;
    struct team_work work = {.run = make_rows,
                             .stop = is_long(scan) ? look_and_go_on : never_stop,
                             .argument = slice,
                             .start_ns = start_ns};
    struct team_result result;
    uint64_t bytes;

    work.chunk_count = scan_rows_gather(slice->on_board, scan, start_ns, &bytes);
    if (work.chunk_count == 0)
        return start_ns;
    work.share = !executor->between && bytes / SCAN_ROWS_BYTES_PER_NS >= EXECUTOR_TEAM_NS;
    work.wake = bytes / SCAN_ROWS_BYTES_PER_NS >= EXECUTOR_WAKE_NS;
    team_run(executor->config.team, &work, &result);
    result.compute_ns -= slice->between_ns;
    /* A thread that lost its CPU meanwhile is nobody's debt, as in scheduler_ran. */
    scheduler_prepared(&executor->scheduler, scan,
                       result.compute_ns < bytes ? result.compute_ns : bytes);
    gemmd_counter_add(&executor->config.stats->exec_ns, result.compute_ns);
    gemmd_counter_add(&executor->config.stats->cores[0].busy_ns,
                      result.end_ns - start_ns - slice->between_ns);
    gemmd_counter_add(&slice->layer->exec_ns, result.compute_ns);
    slice->between_ns = 0;
    return result.end_ns;
}

/* ---- cutting --------------------------------------------------------------------------------- */

static uint32_t divide_up(uint64_t value, uint64_t by)
{
    return (uint32_t)((value + by - 1) / by);
}

/* How long a chunk should take. */
static uint64_t chunk_ns(const struct executor *executor, uint64_t estimate_ns)
{
    uint64_t ns = executor->has_company ? EXECUTOR_CHUNK_NS : EXECUTOR_CHUNK_ALONE_NS;
    uint64_t threads = team_size(executor->config.team);

    if (threads > 1 && estimate_ns >= EXECUTOR_TEAM_NS &&
        ns > estimate_ns / (threads * EXECUTOR_TEAM_CHUNKS))
        ns = estimate_ns / (threads * EXECUTOR_TEAM_CHUNKS);
    return ns > EXECUTOR_CHUNK_MIN_NS ? ns : EXECUTOR_CHUNK_MIN_NS;
}

/* Each thread of the team has its own rows, and all of the weights, where these stay in its L2 from
 * job to job: rows are new each time, and come from another core.  Not a few rows, though: each
 * block of them takes the panels from L2 again. */
static bool is_cut_by_rows(const struct executor_slice *slice, uint32_t threads,
                           uint64_t estimate_ns)
{
    const struct layer_view *view = &slice->layer->view;

    return threads > 1 && estimate_ns >= EXECUTOR_TEAM_NS &&
           slice->scan->rows >= threads * EXECUTOR_TEAM_ROWS &&
           (uint64_t)view->n * view->k <= EXECUTOR_TEAM_WEIGHTS;
}

/* Panels that a chunk of many rows is to have: as many as the kernel wants in L2, where it wants
 * some (rows are copied for all of them at once, and a tile is finished beside the next), and as
 * few as keep a slice that ends early from being held up. */
static uint32_t group_panels(const struct executor_slice *slice, uint32_t threads,
                             uint64_t panel_ns)
{
    const struct gemm_weights *weights = &slice->layer->view.s8;
    uint64_t ns = slice->executor->has_company ? EXECUTOR_GROUP_NS : EXECUTOR_GROUP_ALONE_NS;
    uint64_t panels;

    if (!weights->panels || slice->scan->rows < threads * EXECUTOR_GROUP_ROWS)
        return 1;
    panels = weights->kernel->b_group_bytes / ((uint64_t)weights->kernel->nr * weights->k);
    if (panels > ns * threads / panel_ns)
        panels = ns * threads / panel_ns;
    if (panels > slice->panels)
        panels = slice->panels;
    return panels > 1 ? divide_up(slice->panels, divide_up(slice->panels, panels)) : 1;
}

/* Several panels a chunk while rows are few, else blocks of rows of one panel, or of a group. */
static void cut(struct executor_slice *slice, uint64_t *estimate_ns)
{
    const struct executor *executor = slice->executor;
    const struct scheduler_scan *scan = slice->scan;
    uint32_t tile = scan->layer->tile_rows, tiles = divide_up(scan->rows, tile), blocks = 1;
    uint32_t threads = team_size(executor->config.team);
    uint32_t to_the_end = scan->layer->panels - scan->position;
    uint64_t panel_ns = scheduler_estimate_ns(scan->layer, scan->rows, 1) + 1;
    uint64_t wanted_ns, block_ns;
    uint32_t group;

    slice->panels = scan->panels_now < to_the_end ? scan->panels_now : to_the_end;
    *estimate_ns = panel_ns * slice->panels;
    wanted_ns = chunk_ns(executor, *estimate_ns);
    group = group_panels(slice, threads, panel_ns);
    if (group * panel_ns > (group > 1 ? wanted_ns : 2 * wanted_ns))
        blocks = divide_up(group * panel_ns, wanted_ns);
    if ((group > 1 && blocks > 1) || is_cut_by_rows(slice, threads, *estimate_ns))
        blocks = divide_up(blocks, threads) * threads;
    if (blocks > tiles)
        blocks = tiles;
    slice->row_step = divide_up(tiles, blocks) * tile;
    slice->row_blocks = divide_up(scan->rows, slice->row_step);
    block_ns = panel_ns / slice->row_blocks + 1;
    slice->panel_step = block_ns < wanted_ns ? (uint32_t)(wanted_ns / block_ns) : 1;
    if (slice->row_blocks > 1 && group > 1 && slice->panel_step > group)
        slice->panel_step = group;
    slice->chunk_count = divide_up(slice->panels, slice->panel_step) * slice->row_blocks;
}

/* A stop in the middle of a panel, or a group of them: its other rows follow, by the whole team,
 * and are paid for, too.  Returns the panels that are whole. */
static uint32_t finish_panels(const struct team_work *work, struct team_result *result)
{
    struct executor_slice *slice = work->argument;
    uint32_t chunks = result->chunks, panels;

    if (chunks % slice->row_blocks) {
        struct team_work rest = *work;
        struct team_result more;

        rest.stop = look_and_go_on;
        rest.start_ns = result->end_ns;
        rest.chunk_count = slice->row_blocks - chunks % slice->row_blocks;
        slice->chunks_before = chunks;
        team_run(slice->executor->config.team, &rest, &more);
        chunks += more.chunks;
        result->compute_ns += more.compute_ns;
        result->end_ns = more.end_ns;
        result->shared |= more.shared;
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

/* Worth the team, and worth waking it. */
static void share(struct executor *executor, struct team_work *work, uint64_t estimate_ns)
{
    if (executor->between)
        return; /* the team is at the slice */
    work->share = estimate_ns >= EXECUTOR_TEAM_NS;
    if (work->start_ns - executor->ended_ns > EXECUTOR_ROW_NS || !work->share)
        executor->row_ns = 0;
    executor->row_ns += estimate_ns;
    work->wake = work->share && executor->row_ns >= EXECUTOR_WAKE_NS;
}

static void finish(struct executor_slice *slice, uint32_t panels, uint64_t start_ns,
                   const struct team_result *result)
{
    const struct scheduler_scan *scan = slice->scan;
    struct executor *executor = slice->executor;

    slice->panels_run = panels;
    slice->rows = scan->rows;
    slice->compute_ns = result->compute_ns - slice->between_ns;
    slice->caller_ns = result->end_ns - start_ns - slice->between_ns;
    slice->teamed = result->shared;
    slice->shared = scan->member_count > 1 && is_shared(scan);
    if (executor->config.trace)
        trace_slice(executor->config.trace, slice->layer, start_ns, result->end_ns, scan->rows,
                    panels, scan->member_count, result->shared);
}

uint64_t slice_run(struct executor *executor, struct scheduler_scan *scan, uint64_t start_ns)
{
    struct executor_slice *slice = &executor->slices[executor->between];
    struct team_work work = {.run = run_chunk, .argument = slice};
    struct team_result result;
    uint64_t estimate_ns;
    uint32_t panels;

    *slice = (struct executor_slice){.executor = executor,
                                     .scan = scan,
                                     .on_board = &executor->rows[scan->index]};
    slice->waiting = count_waiting(slice);
    slice->layer = LIST_ENTRY(scan->layer, struct layer, scheduled);
    if (scan->changed) {
        start_ns = prepare(slice, scan, start_ns);
        if (executor->verify.every)
            verify_board(&executor->verify, slice->on_board, scan);
    }
    work.start_ns = start_ns;
    cut(slice, &estimate_ns);
    work.chunk_count = slice->chunk_count;
    work.stop = is_long(scan) ? stop_slice : never_stop;
    if (is_long(scan) && executor_expects_latency(executor, start_ns)) {
        work.run_own = slice->layer->view.s8.panels ? run_chunk_pausing : run_chunk_s4_pausing;
        look_and_serve(slice); /* new rows make the first part the longest */
    }
    share(executor, &work, estimate_ns);
    team_run(executor->config.team, &work, &result);
    if (result.shared || work.wake)
        executor->row_ns = 0;
    panels = finish_panels(&work, &result);
    finish(slice, panels, start_ns, &result);
    if (executor->verify.job) {
        verify_slice(&executor->verify, slice->on_board, scan, panels);
        result.end_ns = clock_now_ns();
    }
    if (!executor->between)
        executor->ended_ns = result.end_ns;
    scheduler_ran(&executor->scheduler, scan, panels, slice->compute_ns);
    return result.end_ns;
}

void slice_count(struct executor *executor)
{
    const struct executor_slice *slice = &executor->slices[executor->between];
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
