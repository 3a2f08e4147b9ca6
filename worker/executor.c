/* Life of a job between its two rings. */
#include "worker/executor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/ring.h"
#include "proto/validate.h"
#include "worker/clock.h"

static_assert(SCHEDULER_ROWS_MAX <= GEMM_ROWS_MAX, "a scan's rows fit one gemm_run");

/* ---- completions ----------------------------------------------------------------------------- */

static uint32_t saturate_u32(uint64_t value)
{
    return value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

static void push(struct executor *executor, struct session_ring *ring, const struct gemmd_cqe *cqe)
{
    struct gemmd_stats_page *stats = executor->config.stats;

    gemmd_cq_push(&ring->cq, cqe); /* before the counting: the client waits for this */
    if (!ring->touched) {
        ring->touched = true;
        executor->touched[executor->touched_count++] = ring;
    }
    gemmd_counter_add(&stats->jobs, 1);
    gemmd_counter_add(&ring->jobs_done, 1);
    if (cqe->status == GEMMD_STATUS_OK)
        return;
    gemmd_counter_add(&stats->jobs_failed, 1);
    gemmd_counter_add(&ring->jobs_failed, 1);
    if (cqe->status == GEMMD_STATUS_DEADLINE) {
        gemmd_counter_add(&stats->deadline_misses, 1);
        gemmd_counter_add(&ring->deadline_misses, 1);
    } else if (cqe->status == GEMMD_STATUS_CANCELLED) {
        gemmd_counter_add(&stats->cancelled, 1);
        gemmd_counter_add(&ring->cancelled, 1);
    }
}

static void wake_touched(struct executor *executor)
{
    for (uint32_t i = 0; i < executor->touched_count; i++) {
        executor->touched[i]->touched = false;
        executor->config.wake(executor->config.owner, executor->touched[i]);
    }
    executor->touched_count = 0;
}

/* Of a job that ran, or began to. */
static void count_run(struct executor *executor, const struct job *job, uint64_t queue_ns,
                      uint64_t exec_ns)
{
    struct gemmd_stats_page *stats = executor->config.stats;
    struct session_ring *ring = job->ring;
    struct layer *layer = job->layer;
    uint64_t rows = job->scheduled.rows_done;

    gemmd_counter_add(&stats->queue_ns.count[gemmd_histogram_bucket(queue_ns)], 1);
    gemmd_counter_add(&stats->exec_ns_histogram.count[gemmd_histogram_bucket(exec_ns)], 1);
    gemmd_counter_add(&stats->rows, rows);
    gemmd_counter_add(&stats->macs, rows * layer->weights.n * layer->weights.k);
    gemmd_counter_add(&ring->rows, rows);
    gemmd_counter_add(&layer->rows, rows);
    histogram_add(&ring->queue_histogram, queue_ns);
    histogram_add(&ring->exec_histogram, exec_ns);
    histogram_add(&layer->queue_histogram, queue_ns);
    histogram_add(&layer->exec_histogram, exec_ns);
    /* The session's share of the compute, not the time its jobs were on board. */
    __atomic_store_n(&ring->exec_ns, ring->scheduled.charged_ns, __ATOMIC_RELAXED);
}

static void complete(struct executor *executor, struct job *job, uint64_t now_ns)
{
    struct session_ring *ring = job->ring;
    uint32_t index = (uint32_t)(job - ring->jobs);
    struct gemmd_cqe cqe = {.user_data = ring->user_data[index], .status = job->scheduled.status};
    uint64_t queue_ns = 0, exec_ns = 0;

    if (job->start_ns) {
        queue_ns = job->start_ns - job->seen_ns;
        exec_ns = now_ns - job->start_ns;
        cqe.queue_ns = saturate_u32(queue_ns);
        cqe.exec_ns = saturate_u32(exec_ns);
        cqe.kernel_id = job->layer->weights.kernel->id;
    }
    if (!ring->silent)
        push(executor, ring, &cqe);
    if (job->start_ns)
        count_run(executor, job, queue_ns, exec_ns);
    gemmd_counter_add(&job->layer->jobs, 1);
    if (executor->config.trace)
        trace_job(executor->config.trace, ring->trace_id, cqe.user_data, job->seen_ns,
                  job->start_ns ? job->start_ns : now_ns, now_ns, job->scheduled.rows, cqe.status);
    job->layer = NULL;
    ring->jobs_free[ring->jobs_free_count++] = index;
}

static void complete_done(struct executor *executor, uint64_t now_ns)
{
    struct scheduler_job *done;

    while ((done = scheduler_take_done(&executor->scheduler)))
        complete(executor, LIST_ENTRY(done, struct job, scheduled), now_ns);
}

/* ---- submissions ----------------------------------------------------------------------------- */

static const enum scheduler_class classes[] = {
    [GEMMD_ABI_PRIORITY_NORMAL] = SCHEDULER_NORMAL,
    [GEMMD_ABI_PRIORITY_LATENCY] = SCHEDULER_LATENCY,
    [GEMMD_ABI_PRIORITY_BACKGROUND] = SCHEDULER_BACKGROUND,
};

/* The layer of a job that may run. */
static enum gemmd_status check_job(struct session_ring *ring, const struct gemmd_sqe *sqe,
                                   struct session_layer **out)
{
    struct session_layer *open;

    if (sqe->layer_id >= GEMMD_SESSION_LAYERS_MAX)
        return GEMMD_STATUS_LAYER;
    open = &ring->layers[sqe->layer_id];
    if (!open->layer || open->gen != sqe->layer_gen)
        return open->gen ? GEMMD_STATUS_LAYER_STALE : GEMMD_STATUS_LAYER; /* 0: never opened */
    *out = open;
    return gemmd_validate_job_operands(sqe, &open->layer->shape, ring->arena_bytes);
}

/* Ends unfinished jobs of that user_data. */
static enum gemmd_status cancel(struct executor *executor, struct session_ring *ring,
                                uint64_t target)
{
    enum gemmd_status status = GEMMD_STATUS_CANCEL_MISSED;
    uint64_t now_ns = clock_now_ns();

    for (uint32_t i = 0; i <= ring->sq.mask; i++) {
        if (ring->user_data[i] != target || !ring->jobs[i].layer)
            continue;
        scheduler_withdraw(&executor->scheduler, &ring->jobs[i].scheduled, GEMMD_STATUS_CANCELLED);
        status = GEMMD_STATUS_OK;
    }
    complete_done(executor, now_ns);
    return status;
}

static void submit(struct executor *executor, struct session_ring *ring,
                   struct session_layer *open, const struct gemmd_sqe *sqe, uint64_t now_ns)
{
    uint32_t index = ring->jobs_free[--ring->jobs_free_count];
    struct job *job = &ring->jobs[index];

    *job = (struct job){
        .scheduled = {.flow = &open->flow,
                      .class = classes[sqe->priority],
                      .rows = sqe->m,
                      .deadline_ns = sqe->deadline_ns},
        .ring = ring,
        .layer = open->layer,
        .a = ring->arena + sqe->a_offset,
        .c = ring->arena + sqe->c_offset,
        .a_stride_bytes = sqe->a_stride_bytes,
        .c_stride_bytes = sqe->c_stride_bytes,
        .seen_ns = now_ns,
    };
    ring->user_data[index] = sqe->user_data;
    scheduler_submit(&executor->scheduler, &job->scheduled);
}

/* One submission, copied: it waits for its turn, or completes here. */
static void admit(struct executor *executor, struct session_ring *ring, const struct gemmd_sqe *sqe,
                  uint64_t *now_ns)
{
    enum gemmd_status status = gemmd_validate_job_form(sqe);
    struct gemmd_cqe cqe = {.user_data = sqe->user_data};
    struct session_layer *open = NULL;

    if (status == GEMMD_STATUS_OK && sqe->op == GEMMD_OP_CANCEL)
        status = cancel(executor, ring, sqe->target);
    else if (status == GEMMD_STATUS_OK)
        status = check_job(ring, sqe, &open);
    if (status == GEMMD_STATUS_OK && sqe->m) {
        if (!*now_ns)
            *now_ns = clock_now_ns();
        submit(executor, ring, open, sqe, *now_ns);
        return;
    }
    cqe.status = status;
    push(executor, ring, &cqe);
    if (open)
        gemmd_counter_add(&open->layer->jobs, 1);
}

/* Completions that may be promised: what the client has room for less what is in flight.  -1: its
 * cq_head is impossible. */
static int64_t room(struct session_ring *ring)
{
    int64_t space = gemmd_cq_space(&ring->cq, &ring->cq_head_seen, ring->client_line);

    if (space >= 0 && space <= ring->scheduled.in_flight) {
        ring->cq_head_seen = gemmd_load_acquire(&ring->client_line->cq_head); /* edge H */
        space = gemmd_cq_space(&ring->cq, &ring->cq_head_seen, ring->client_line);
    }
    if (space < 0)
        return -1;
    return space > ring->scheduled.in_flight ? space - ring->scheduled.in_flight : 0;
}

bool executor_can_take(const struct executor *executor, const struct session_ring *ring)
{
    return gemmd_sq_ready(&ring->sq) && !ring->violation &&
           ring->cq.index - ring->cq_head_seen + ring->scheduled.in_flight <= ring->cq.mask &&
           scheduler_has_room(&executor->scheduler, &ring->scheduled);
}

bool executor_take(struct executor *executor, struct session_ring *ring)
{
    struct gemmd_sqe sqe;
    uint64_t now_ns = 0;
    int64_t space;
    uint32_t taken = 0;

    if (ring->violation || !gemmd_sq_ready(&ring->sq))
        return false;
    space = room(ring);
    if (space < 0) {
        executor->config.violate(executor->config.owner, ring, GEMMD_STATUS_CQ_HEAD);
        return false;
    }
    ring->stalled = space == 0 && !session_ring_is_busy(ring);
    while (taken < SESSION_BATCH && taken < space &&
           scheduler_has_room(&executor->scheduler, &ring->scheduled) &&
           gemmd_sq_take(&ring->sq, &sqe)) {
        taken++;
        admit(executor, ring, &sqe, &now_ns);
        if (sqe.op == GEMMD_OP_CANCEL)
            break; /* it costs a search: one in a turn */
    }
    if (!taken)
        return false;
    ring->used = true;
    wake_touched(executor);
    return true;
}

/* ---- slices ---------------------------------------------------------------------------------- */

/* Row pointers of all members, and the start of those that are new. */
static void gather(struct executor *executor, struct scheduler_scan *scan, uint64_t now_ns)
{
    const uint8_t **a_rows = executor->a_rows[scan->index];
    void **c_rows = executor->c_rows[scan->index];
    uint32_t row = 0;

    for (uint32_t i = 0; i < scan->member_count; i++) {
        const struct scheduler_member *member = &scan->members[i];
        struct job *job = LIST_ENTRY(member->job, struct job, scheduled);
        const uint8_t *a = job->a + (uint64_t)member->first_row * job->a_stride_bytes;
        uint8_t *c = job->c + (uint64_t)member->first_row * job->c_stride_bytes;

        if (!job->start_ns)
            job->start_ns = now_ns;
        for (uint32_t j = 0; j < member->rows; j++) {
            a_rows[row] = a;
            c_rows[row++] = c;
            a += job->a_stride_bytes;
            c += job->c_stride_bytes;
        }
    }
    scan->changed = false;
}

/* One chunk; on any thread. */
static void run_chunk(void *argument, uint32_t chunk)
{
    const struct executor *executor = argument;
    const struct executor_slice *slice = &executor->slice;
    const struct gemm_weights *weights = &slice->layer->weights;
    uint32_t first_panel = chunk / slice->row_blocks * slice->panel_step;
    uint32_t first_row = chunk % slice->row_blocks * slice->row_step;
    uint32_t last_panel = first_panel + slice->panel_step, last_row = first_row + slice->row_step;
    size_t n_begin, n_end;

    if (last_panel > slice->panels)
        last_panel = slice->panels;
    if (last_row > slice->scan->rows)
        last_row = slice->scan->rows;
    n_begin = (size_t)(slice->scan->position + first_panel) * weights->kernel->nr;
    n_end = (size_t)(slice->scan->position + last_panel) * weights->kernel->nr;
    if (n_end > weights->n)
        n_end = weights->n;
    gemm_run(weights, &slice->layer->epilogue, last_row - first_row,
             executor->a_rows[slice->scan->index] + first_row,
             executor->c_rows[slice->scan->index] + first_row, n_begin, n_end);
}

static uint32_t divide_up(uint64_t value, uint64_t by)
{
    return (uint32_t)((value + by - 1) / by);
}

/* Chunks of about EXECUTOR_CHUNK_NS: several panels while rows are few, else blocks of rows of one
 * panel; more row blocks where the panels alone would not give each thread two chunks. */
static void cut(struct executor *executor, const struct scheduler_scan *scan, uint64_t *estimate_ns)
{
    struct executor_slice *slice = &executor->slice;
    uint32_t tile = scan->layer->tile_rows, tiles = divide_up(scan->rows, tile);
    uint32_t threads = team_size(executor->config.team);
    uint64_t panel_ns = scheduler_estimate_ns(scan->layer, scan->rows, 1) + 1;
    uint32_t to_the_end = scan->layer->panels - scan->position, blocks = 1;

    slice->scan = scan;
    slice->layer = LIST_ENTRY(scan->layer, struct layer, scheduled);
    slice->panels = scan->panels_now < to_the_end ? scan->panels_now : to_the_end;
    *estimate_ns = panel_ns * slice->panels;
    slice->panel_step = panel_ns < EXECUTOR_CHUNK_NS ? (uint32_t)(EXECUTOR_CHUNK_NS / panel_ns) : 1;
    if (panel_ns > EXECUTOR_CHUNK_NS)
        blocks = divide_up(panel_ns, EXECUTOR_CHUNK_NS);
    if (threads > 1 && *estimate_ns >= EXECUTOR_TEAM_NS) {
        if (slice->panel_step > divide_up(slice->panels, 2 * threads))
            slice->panel_step = divide_up(slice->panels, 2 * threads);
        if (slice->panels * blocks < 2 * threads)
            blocks = divide_up(2 * threads, slice->panels);
    }
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

/* A stop in the middle of a panel: its other rows follow.  Returns the panels that are whole. */
static uint32_t finish_panel(struct executor *executor, uint32_t chunks)
{
    const struct executor_slice *slice = &executor->slice;
    uint32_t panels;

    while (chunks % slice->row_blocks)
        run_chunk(executor, chunks++);
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

static void count_slice(struct executor *executor, struct scheduler_scan *scan, uint32_t panels,
                        uint64_t compute_ns, uint64_t caller_ns, bool teamed)
{
    struct gemmd_stats_page *stats = executor->config.stats;
    struct layer *layer = LIST_ENTRY(scan->layer, struct layer, scheduled);

    gemmd_counter_add(&stats->slices, 1);
    gemmd_counter_add(&stats->preempted, panels < executor->slice.panels);
    gemmd_counter_add(&stats->team_slices, teamed);
    gemmd_counter_add(&stats->shared_slices, scan->member_count > 1 && is_shared(scan));
    gemmd_counter_add(&stats->panels, panels);
    gemmd_counter_add(&stats->panel_rows, (uint64_t)panels * scan->rows);
    gemmd_counter_add(&stats->exec_ns, compute_ns);
    gemmd_counter_add(&stats->cores[0].busy_ns, caller_ns);
    gemmd_counter_add(&layer->exec_ns, compute_ns);
    gemmd_counter_add(&layer->panels, panels);
    gemmd_counter_add(&layer->panel_rows, (uint64_t)panels * scan->rows);
}

/* Runs what the scheduler chose.  Returns the time at its end. */
static uint64_t run_scan(struct executor *executor, struct scheduler_scan *scan, uint64_t start_ns)
{
    struct team_work work = {.run = run_chunk, .argument = executor, .start_ns = start_ns};
    struct team_result result;
    uint64_t estimate_ns;
    uint32_t panels;

    if (scan->changed)
        gather(executor, scan, start_ns);
    cut(executor, scan, &estimate_ns);
    work.chunk_count = executor->slice.chunk_count;
    work.stop = scan->index == SCHEDULER_LONG_SCANS ? never_stop : stop_slice;
    work.share = estimate_ns >= EXECUTOR_TEAM_NS;
    work.wake = estimate_ns >= EXECUTOR_WAKE_NS;
    team_run(executor->config.team, &work, &result);
    panels = finish_panel(executor, result.chunks);
    count_slice(executor, scan, panels, result.compute_ns, result.end_ns - start_ns, result.shared);
    if (executor->config.trace)
        trace_slice(executor->config.trace, executor->slice.layer, start_ns, result.end_ns,
                    scan->rows, panels, scan->member_count, result.shared);
    scheduler_ran(&executor->scheduler, scan, panels, result.compute_ns);
    return result.end_ns;
}

bool executor_step(struct executor *executor)
{
    struct scheduler_scan *scan;
    uint64_t now_ns;

    if (!executor->scheduler.linked)
        return false;
    now_ns = clock_now_ns();
    scan = scheduler_next(&executor->scheduler, now_ns);
    if (scan)
        now_ns = run_scan(executor, scan, now_ns);
    complete_done(executor, now_ns);
    wake_touched(executor);
    return true;
}

/* ---- sessions and their layers --------------------------------------------------------------- */

/* Ends the jobs of one opened layer; NULL: of all. */
static void withdraw(struct executor *executor, struct session_ring *ring,
                     const struct scheduler_flow *flow, enum gemmd_status status)
{
    for (uint32_t i = 0; i <= ring->sq.mask; i++) {
        struct job *job = &ring->jobs[i];

        if (job->layer && (!flow || job->scheduled.flow == flow))
            scheduler_withdraw(&executor->scheduler, &job->scheduled, status);
    }
    complete_done(executor, clock_now_ns());
    wake_touched(executor);
}

void executor_attach(struct executor *executor, struct session *session)
{
    struct session_ring *ring = &session->ring;

    ring->trace_id = session->id;
    scheduler_add_session(&executor->scheduler, &ring->scheduled, session->uid, 1,
                          session->ring_entries);
}

void executor_detach(struct executor *executor, struct session *session)
{
    session->ring.silent = true;
    withdraw(executor, &session->ring, NULL, GEMMD_STATUS_CANCELLED);
    scheduler_remove_session(&executor->scheduler, &session->ring.scheduled);
}

void executor_set_layer(struct executor *executor, struct session *session, uint32_t layer_id,
                        struct layer *layer, uint32_t layer_gen)
{
    struct session_ring *ring = &session->ring;
    struct session_layer *entry = &ring->layers[layer_id];

    if (entry->layer)
        withdraw(executor, ring, &entry->flow, GEMMD_STATUS_LAYER_STALE);
    if (layer && layer->scheduled.panels == 0) {
        const struct gemm_weights *weights = &layer->weights;
        uint32_t nr = weights->kernel->nr, mr = weights->kernel->mr;

        /* 100 MAC/ns and 20 bytes/ns: between the slowest and the fastest level. */
        scheduler_init_layer(&layer->scheduled, divide_up(weights->n, nr), mr,
                             (uint64_t)nr * weights->k * (mr + 5) / 100);
    }
    scheduler_init_flow(&entry->flow, &ring->scheduled, layer ? &layer->scheduled : NULL);
    entry->layer = layer;
    entry->gen = layer_gen;
}

int executor_init(struct executor *executor, const struct executor_config *config)
{
    const struct scheduler_config scheduler = {.sessions_max = config->sessions_max,
                                               .threads = team_size(config->team),
                                               .user_quota = GEMMD_USER_JOBS_MAX,
                                               .alone = config->alone};

    executor->config = *config;
    executor->touched = calloc(config->sessions_max, sizeof(*executor->touched));
    return executor->touched ? scheduler_init(&executor->scheduler, &scheduler) : -ENOMEM;
}

void executor_fini(struct executor *executor)
{
    scheduler_fini(&executor->scheduler);
    free(executor->touched);
}
