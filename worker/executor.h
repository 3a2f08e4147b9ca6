/*
 * Validated jobs -> kernel calls -> completions.  A job is run in slices of rows so that the
 * dispatcher can look at other sessions and at its mailbox between them.  Runs on the dispatcher;
 * knows nothing of sockets or sleeping.
 */
#ifndef GEMMD_WORKER_EXECUTOR_H
#define GEMMD_WORKER_EXECUTOR_H

#include "kernels/gemm.h"
#include "proto/stats.h"
#include "worker/session.h"

struct executor {
    struct gemmd_stats_page *stats;
    /* Row pointers of the slice in hand. */
    const uint8_t *a_rows[GEMM_ROWS_MAX];
    void *c_rows[GEMM_ROWS_MAX];
};

/* Checks a private copy of a submission against the session: on OK *job is ready to run, and
 * job->layer is set (also for m = 0). */
enum gemmd_status executor_admit(const struct session_ring *ring, const struct gemmd_sqe *sqe,
                                 struct job *job);

/* Multiply-accumulates of one slice: 0.2 ms at 1 TOPS (20 ms on the scalar reference).  It bounds
 * how long one session keeps the dispatcher from the others. */
#define EXECUTOR_SLICE_MACS (UINT64_C(1) << 27)

/* Runs a job until it is finished (true) or *budget multiply-accumulates are spent (false).
 * *budget is reduced by what was used, at least one row. */
bool executor_run_slice(struct executor *executor, const struct session_ring *ring, struct job *job,
                        uint64_t *budget);

/* Writes the completion and counts it.  The caller has made sure that there is room. */
void executor_complete(struct executor *executor, struct session_ring *ring, const struct job *job,
                       enum gemmd_status status);

#endif
