/* Life of a job between its two rings. */
#include "worker/executor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/ring.h"
#include "proto/validate.h"
#include "worker/clock.h"

/* As many lines as a core can wait for at a time; more would only keep others from their turn. */
#define PREFETCH_BYTES (16 * 64)
/* What a service costs beside the time from its beginning to its end: the line that says that there
 * is something to do comes from the client's core. */
#define LOOK_NS 200
/* A cancel searches the table of jobs: what others had in the caches makes room for that. */
#define SEARCH_NS_PER_ENTRY 1
/* A cancel in the middle of a slice: that ends, and the next one begins with cold streams. */
#define CUT_NS 3000

/* ---- completions ----------------------------------------------------------------------------- */

/* Set here, and by a SIGBUS on any thread (worker/fault.h). */
static bool is_violated(const struct session_ring *ring)
{
    return __atomic_load_n(&ring->violation, __ATOMIC_RELAXED) != GEMMD_STATUS_OK;
}

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

/* Returns the ns that took.  It is the sessions' to pay while others have work. */
static uint64_t wake_touched(struct executor *executor)
{
    struct scheduler *scheduler = &executor->scheduler;
    uint64_t ns, all_ns = 0;

    for (uint32_t i = 0; i < executor->touched_count; i++) {
        struct session_ring *ring = executor->touched[i];

        ring->touched = false;
        ns = executor->config.wake(executor->config.owner, ring);
        all_ns += ns;
        if (ns && scheduler_has_others(scheduler, &ring->scheduled))
            scheduler_charge_service(scheduler, &ring->scheduled, ns, scheduler->served_ns);
    }
    executor->touched_count = 0;
    return all_ns;
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
    gemmd_counter_add(&stats->macs, rows * layer->view.n * layer->view.k);
    gemmd_counter_add(&ring->rows, rows);
    gemmd_counter_add(&layer->rows, rows);
    histogram_add(&ring->queue_histogram, queue_ns);
    histogram_add(&ring->exec_histogram, exec_ns);
    histogram_add(&layer->queue_histogram, queue_ns);
    histogram_add(&layer->exec_histogram, exec_ns);
    /* The session's share of the compute, not the time its jobs were on board. */
    __atomic_store_n(&ring->exec_ns, ring->scheduled.charged_ns, __ATOMIC_RELAXED);
}

/* False: the job was checked, and its result is wrong. */
static bool passes_check(struct executor *executor, const struct job *job)
{
    struct gemmd_stats_page *stats = executor->config.stats;
    enum verify_verdict verdict = verify_end(&executor->verify, job);

    gemmd_counter_add(&stats->verified, verdict != VERIFY_NONE);
    if (verdict != VERIFY_WRONG)
        return true;
    gemmd_counter_add(&stats->verify_faults, 1);
    __atomic_store_n(&job->layer->suspect, true, __ATOMIC_RELAXED); /* the control thread looks */
    return false;
}

static void complete(struct executor *executor, struct job *job, uint64_t now_ns)
{
    struct session_ring *ring = job->ring;
    uint32_t index = (uint32_t)(job - ring->jobs);
    struct gemmd_cqe cqe = {.user_data = ring->user_data[index], .status = job->scheduled.status};
    uint64_t queue_ns = 0, exec_ns = 0;

    /* A page of its segments went away meanwhile: zeros are no result. */
    if (cqe.status == GEMMD_STATUS_OK && is_violated(ring))
        cqe.status = GEMMD_STATUS_SESSION_ENDED;
    if (executor->verify.job == job && !passes_check(executor, job) &&
        cqe.status == GEMMD_STATUS_OK)
        cqe.status = GEMMD_STATUS_RESULT;
    if (job->start_ns) {
        queue_ns = job->start_ns - job->scheduled.seen_ns;
        exec_ns = now_ns - job->start_ns;
        cqe.queue_ns = saturate_u32(queue_ns);
        cqe.exec_ns = saturate_u32(exec_ns);
        cqe.kernel_id = job->layer->view.kernel_id;
    }
    if (!ring->silent)
        push(executor, ring, &cqe);
    if (job->start_ns)
        count_run(executor, job, queue_ns, exec_ns);
    gemmd_counter_add(&job->layer->jobs, 1);
    gemmd_counter_add(&job->layer->deadline_misses, cqe.status == GEMMD_STATUS_DEADLINE);
    if (executor->config.trace)
        trace_job(executor->config.trace, ring->trace_id, cqe.user_data, job->scheduled.seen_ns,
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

/* The first job of an opening, or of the layer. */
static void set_up_flow(struct session_ring *ring, struct session_layer *open, struct layer *layer,
                        uint32_t gen)
{
    const struct layer_view *view = &layer->view;

    if (layer->scheduled.panels == 0) {
        /* 100 MAC/ns and 20 bytes/ns: between the slowest and the fastest level. */
        scheduler_init_layer(&layer->scheduled, (view->n + view->nr - 1) / view->nr, view->mr,
                             (uint64_t)view->nr * view->k * (view->mr + 5) / 100);
        scheduler_limit_rows(&layer->scheduled, scan_rows_limit(view),
                             scan_rows_short(view, layer->shape.a_row_bytes));
    }
    scheduler_init_flow(&open->flow, &ring->scheduled, &layer->scheduled);
    open->flow_gen = gen;
}

/* The layer of a job that may run. */
static enum gemmd_status check_job(struct session_ring *ring, const struct gemmd_sqe *sqe,
                                   struct session_layer **out)
{
    struct session_layer *open;
    struct layer *layer;
    uint32_t gen;

    if (sqe->layer_id >= GEMMD_SESSION_LAYERS_MAX)
        return GEMMD_STATUS_LAYER;
    open = &ring->layers[sqe->layer_id];
    layer = __atomic_load_n(&open->layer, __ATOMIC_ACQUIRE); /* pairs with session_layer_open */
    gen = __atomic_load_n(&open->gen, __ATOMIC_RELAXED);
    if (!layer || gen != sqe->layer_gen)
        return gen ? GEMMD_STATUS_LAYER_STALE : GEMMD_STATUS_LAYER; /* 0: never opened */
    if (open->flow_gen != gen)
        set_up_flow(ring, open, layer, gen);
    *out = open;
    return gemmd_validate_job_operands(sqe, &layer->shape, ring->arena_bytes);
}

static bool has_job(const struct session_ring *ring, uint64_t target)
{
    for (uint32_t i = 0; i <= ring->sq.mask; i++)
        if (ring->user_data[i] == target && ring->jobs[i].layer)
            return true;
    return false;
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

/* Rows were written by another core: the first ones set out while their job waits for its turn. */
static void prefetch_rows(const struct job *job, size_t row_bytes)
{
    size_t bytes = (size_t)(job->scheduled.rows - 1) * job->a_stride_bytes + row_bytes;

    for (size_t i = 0; i < bytes && i < PREFETCH_BYTES; i += 64)
        __builtin_prefetch(job->a + i);
}

static void submit(struct executor *executor, struct session_ring *ring,
                   struct session_layer *open, const struct gemmd_sqe *sqe, uint64_t now_ns)
{
    const struct gemmd_job_shape *shape = &open->layer->shape;
    uint32_t index = ring->jobs_free[--ring->jobs_free_count];
    struct job *job = &ring->jobs[index];

    *job = (struct job){
        .scheduled = {.flow = &open->flow,
                      .class = classes[sqe->priority],
                      .rows = sqe->m,
                      .deadline_ns = sqe->deadline_ns,
                      .seen_ns = now_ns},
        .ring = ring,
        .layer = open->layer,
        .a = ring->arena + sqe->a_offset,
        .c = ring->arena + sqe->c_offset,
        .residual = shape->residual_element ? ring->arena + sqe->residual_offset : NULL,
        .a_stride_bytes = sqe->a_stride_bytes,
        .c_stride_bytes = sqe->c_stride_bytes,
        .residual_stride_bytes = (uint32_t)gemmd_residual_stride(sqe, shape), /* <= 2^26 */
    };
    open->layer->scheduled.window_ns =
        __atomic_load_n(&open->layer->window_ns, __ATOMIC_RELAXED);
    prefetch_rows(job, open->layer->shape.a_row_bytes);
    ring->user_data[index] = sqe->user_data;
    if (job->scheduled.class == SCHEDULER_LATENCY)
        executor->latency_ns = now_ns;
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

/* The time of a service that is to be paid, since others wait for its end; else 0. */
static uint64_t begin_service(const struct executor *executor, const struct session_ring *ring)
{
    return scheduler_has_others(&executor->scheduler, &ring->scheduled) ? clock_now_ns() : 0;
}

/* beside_ns: what the clock does not see of it; served_ns: the scheduler's when it began. */
static void end_service(struct executor *executor, struct session_ring *ring, uint64_t start_ns,
                        uint64_t beside_ns, uint64_t served_ns)
{
    if (start_ns)
        scheduler_charge_service(&executor->scheduler, &ring->scheduled,
                                 clock_now_ns() - start_ns + beside_ns, served_ns);
}

/* As many as there is room for, and a batch at most. */
static uint32_t take_batch(struct executor *executor, struct session_ring *ring, int64_t space,
                           uint64_t *now_ns, uint64_t *beside_ns)
{
    struct gemmd_sqe sqe;
    uint32_t taken = 0;

    while (taken < SESSION_BATCH && taken < space && gemmd_sq_take(&ring->sq, &sqe)) {
        taken++;
        /* One that has missed its job, or never had one, ends no slice. */
        if (sqe.op == GEMMD_OP_CANCEL && executor->between && has_job(ring, sqe.target)) {
            executor->cancelling = ring;
            executor->cancel = sqe;
            break;
        }
        admit(executor, ring, &sqe, now_ns);
        if (sqe.op == GEMMD_OP_CANCEL) { /* it costs a search: one in a turn */
            *beside_ns += SEARCH_NS_PER_ENTRY * (uint64_t)(ring->sq.mask + 1);
            break;
        }
    }
    return taken;
}

bool executor_take(struct executor *executor, struct session_ring *ring)
{
    uint64_t served_ns = executor->scheduler.served_ns, start_ns, now_ns, beside_ns = LOOK_NS;
    int64_t space;
    uint32_t taken;

    if (executor->cancelling || is_violated(ring))
        return false;
    if (!scheduler_may_take(&executor->scheduler, &ring->scheduled)) {
        ring->used = true; /* its turn comes; not even a look before that */
        return false;
    }
    if (!gemmd_sq_ready(&ring->sq))
        return false;
    start_ns = now_ns = begin_service(executor, ring);
    space = room(ring);
    if (space < 0) {
        executor->config.violate(executor->config.owner, ring, GEMMD_STATUS_CQ_HEAD);
        return false;
    }
    ring->stalled = space == 0 && !session_ring_is_busy(ring);
    taken = take_batch(executor, ring, space, &now_ns, &beside_ns);
    if (taken) {
        ring->used = executor->taken = true;
        executor->seen_ns = taken == 1 ? now_ns : 0;
        wake_touched(executor);
    }
    end_service(executor, ring, start_ns, beside_ns, served_ns);
    return taken;
}

/* ---- turns ----------------------------------------------------------------------------------- */

static uint64_t now_or_seen(struct executor *executor)
{
    uint64_t now_ns = executor->seen_ns ? executor->seen_ns : clock_now_ns();

    executor->seen_ns = 0;
    return now_ns;
}

/* Returns the time at the slice's end, and that of waking clients after it. */
static uint64_t run_and_complete(struct executor *executor, struct scheduler_scan *scan,
                                 uint64_t now_ns)
{
    if (scan)
        now_ns = slice_run(executor, scan, now_ns);
    complete_done(executor, now_ns);
    now_ns += wake_touched(executor);
    if (scan)
        slice_count(executor);
    return now_ns;
}

uint64_t executor_run_between(struct executor *executor)
{
    uint64_t start_ns = now_or_seen(executor), now_ns = start_ns;
    uint64_t served_ns = executor->scheduler.served_ns;
    struct scheduler_scan *scan;

    do {
        scan = scheduler_next_short(&executor->scheduler, now_ns);
        now_ns = run_and_complete(executor, scan, now_ns);
    } while (scan);
    /* Wakes that were paid for are the slice's to take off (scheduler_ran). */
    return now_ns - start_ns - (executor->scheduler.served_ns - served_ns);
}

bool executor_step(struct executor *executor)
{
    struct session_ring *cancelling;
    uint64_t now_ns, start_ns, served_ns;

    if (!scheduler_has_work(&executor->scheduler))
        return false;
    now_ns = now_or_seen(executor);
    run_and_complete(executor, scheduler_next(&executor->scheduler, now_ns), now_ns);
    cancelling = executor->cancelling;
    if (cancelling) {
        executor->cancelling = NULL;
        served_ns = executor->scheduler.served_ns;
        start_ns = now_ns = begin_service(executor, cancelling);
        admit(executor, cancelling, &executor->cancel, &now_ns);
        wake_touched(executor);
        end_service(executor, cancelling, start_ns, CUT_NS, served_ns);
    }
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
    scheduler_add_session(&executor->scheduler, &ring->scheduled, session->uid,
                          session->weight, session->ring_entries);
}

void executor_detach(struct executor *executor, struct session *session)
{
    session->ring.silent = true;
    withdraw(executor, &session->ring, NULL, GEMMD_STATUS_CANCELLED);
    scheduler_remove_session(&executor->scheduler, &session->ring.scheduled);
}

void executor_close_layer(struct executor *executor, struct session *session, uint32_t layer_id)
{
    struct session_layer *entry = &session->ring.layers[layer_id];

    if (entry->flow_gen == entry->gen)
        withdraw(executor, &session->ring, &entry->flow, GEMMD_STATUS_LAYER_STALE);
    entry->layer = NULL;
}

int executor_init(struct executor *executor, const struct executor_config *config)
{
    const struct scheduler_config scheduler = {.sessions_max = config->sessions_max,
                                               .threads = team_size(config->team),
                                               .user_quota = GEMMD_USER_JOBS_MAX,
                                               .alone = config->alone};

    executor->config = *config;
    executor->touched = calloc(config->sessions_max, sizeof(*executor->touched));
    if (!executor->touched || !scan_rows_open(executor->rows) ||
        !verify_open(&executor->verify, config->verify_every))
        return -ENOMEM;
    return scheduler_init(&executor->scheduler, &scheduler);
}

void executor_fini(struct executor *executor)
{
    scheduler_fini(&executor->scheduler);
    verify_close(&executor->verify);
    scan_rows_close(executor->rows);
    free(executor->touched);
}
