/* Admission, slices and completions of jobs. */
#include "worker/executor.h"

#include "proto/validate.h"
#include "worker/clock.h"


enum gemmd_status executor_admit(const struct session_ring *ring, const struct gemmd_sqe *sqe,
                                 struct job *job)
{
    enum gemmd_status status = gemmd_validate_job_form(sqe);
    const struct session_layer *open;

    job->sqe = *sqe;
    job->layer = NULL;
    job->rows_done = 0;
    job->start_ns = 0;
    if (status != GEMMD_STATUS_OK)
        return status;
    if (sqe->layer_id >= GEMMD_SESSION_LAYERS_MAX)
        return GEMMD_STATUS_LAYER;
    open = &ring->layers[sqe->layer_id];
    if (!open->layer || open->gen != sqe->layer_gen)
        return open->gen ? GEMMD_STATUS_LAYER_STALE : GEMMD_STATUS_LAYER; /* 0: never opened */
    status = gemmd_validate_job_operands(sqe, &open->layer->shape, ring->arena_bytes);
    if (status != GEMMD_STATUS_OK)
        return status;

    job->layer = open->layer;
    return GEMMD_STATUS_OK;
}

bool executor_run_slice(struct executor *executor, const struct session_ring *ring, struct job *job,
                        uint64_t *budget)
{
    const struct layer *layer = job->layer;
    const struct gemmd_sqe *sqe = &job->sqe;
    uint64_t row_macs = (uint64_t)layer->weights.n * layer->weights.k;
    const uint8_t *a = ring->arena + sqe->a_offset + (uint64_t)job->rows_done * sqe->a_stride_bytes;
    uint8_t *c = ring->arena + sqe->c_offset + (uint64_t)job->rows_done * sqe->c_stride_bytes;

    if (sqe->m && !job->start_ns)
        job->start_ns = clock_now_ns();
    while (job->rows_done < sqe->m && *budget) {
        uint64_t affordable = (*budget + row_macs - 1) / row_macs;
        uint32_t rows = sqe->m - job->rows_done;

        if (rows > GEMM_ROWS_MAX)
            rows = GEMM_ROWS_MAX;
        if (rows > affordable)
            rows = (uint32_t)affordable;
        for (uint32_t i = 0; i < rows; i++) {
            executor->a_rows[i] = a;
            executor->c_rows[i] = c;
            a += sqe->a_stride_bytes;
            c += sqe->c_stride_bytes;
        }
        gemm_run(&layer->weights, &layer->epilogue, rows, executor->a_rows, executor->c_rows, 0,
                 layer->weights.n);
        job->rows_done += rows;
        *budget -= row_macs * rows < *budget ? row_macs * rows : *budget;
    }
    return job->rows_done == sqe->m;
}

static uint32_t saturate_u32(uint64_t value)
{
    return value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

void executor_complete(struct executor *executor, struct session_ring *ring, const struct job *job,
                       enum gemmd_status status)
{
    struct gemmd_stats_page *stats = executor->stats;
    struct gemmd_cqe cqe = {.user_data = job->sqe.user_data, .status = status};

    if (job->start_ns) {
        uint64_t exec_ns = clock_now_ns() - job->start_ns;
        uint64_t queue_ns = job->start_ns - job->seen_ns;

        cqe.queue_ns = saturate_u32(queue_ns);
        cqe.exec_ns = saturate_u32(exec_ns);
        cqe.kernel_id = job->layer->weights.kernel->id;
        gemmd_cq_push(&ring->cq, &cqe); /* before the counting: the client waits for this */
        gemmd_counter_add(&stats->queue_ns.count[gemmd_histogram_bucket(queue_ns)], 1);
        gemmd_counter_add(&stats->exec_ns_histogram.count[gemmd_histogram_bucket(exec_ns)], 1);
        gemmd_counter_add(&stats->exec_ns, exec_ns);
        gemmd_counter_add(&ring->exec_ns, exec_ns);
        gemmd_counter_add(&stats->rows, job->rows_done);
        gemmd_counter_add(&ring->rows, job->rows_done);
        gemmd_counter_add(&stats->macs, (uint64_t)job->rows_done * job->layer->weights.n *
                                            job->layer->weights.k);
        gemmd_counter_add(&job->layer->rows, job->rows_done);
    } else {
        gemmd_cq_push(&ring->cq, &cqe);
    }
    if (job->layer)
        gemmd_counter_add(&job->layer->jobs, 1);
    gemmd_counter_add(&stats->jobs, 1);
    gemmd_counter_add(&ring->jobs, 1);
    if (status != GEMMD_STATUS_OK) {
        gemmd_counter_add(&stats->jobs_failed, 1);
        gemmd_counter_add(&ring->jobs_failed, 1);
    }
}
