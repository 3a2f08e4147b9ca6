/*
 * The rows of A and C on board of a scan, as the kernels want them: pointers, and for some layers
 * rows that are made when they board and kept until they leave.
 *
 *   float rows         quantised into a slot of the scan's memory, with scale, zero point and sum;
 *                      once, whatever their journey is cut into, and whatever boards beside them
 *   zero points of B   the sum of the row less its own zero point
 *   scales of rows     copied from behind each row
 *
 * Each row is made from nothing but itself, so a job gets the same bits alone and in company.  The
 * memory is there from the start: nothing is allocated for a job.
 */
#ifndef GEMMD_WORKER_SCAN_ROWS_H
#define GEMMD_WORKER_SCAN_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/layers.h"
#include "worker/scheduler.h"

/* Float rows are read and quantised at 8 to 20 bytes a ns, from memory and from L2. */
#define SCAN_ROWS_BYTES_PER_NS 10

struct scan_rows {
    const uint8_t *a[GEMM_ROWS_MAX];
    void *c[GEMM_ROWS_MAX];
    const void *residual[GEMM_ROWS_MAX];
    float scales[GEMM_ROWS_MAX];
    int32_t zero_points[GEMM_ROWS_MAX], sums[GEMM_ROWS_MAX];
    const uint8_t *sources[GEMM_ROWS_MAX]; /* of the rows to be made */
    uint16_t slots[GEMM_ROWS_MAX];         /* in `quantised`, by row */
    uint8_t *quantised;
    struct layer *layer;
    uint32_t first, count, step; /* rows to be made: from the first on; of a chunk */
};

/* Memory for all SCHEDULER_SCANS of them.  False: there is none. */
bool scan_rows_open(struct scan_rows rows[SCHEDULER_SCANS]);
void scan_rows_close(struct scan_rows rows[SCHEDULER_SCANS]);

/* The rows a scan of such a layer may have on board. */
uint32_t scan_rows_limit(const struct layer_view *view);
/* Of these, a short one: as many as are made within a slice, in which nobody is looked for. */
uint32_t scan_rows_short(const struct layer_view *view, size_t row_bytes);

/* After the members have changed: the pointers, and the start of the jobs that are new.  Returns
 * the chunks for scan_rows_prepare, and in *bytes what of A they read. */
uint32_t scan_rows_gather(struct scan_rows *rows, struct scheduler_scan *scan, uint64_t now_ns,
                          uint64_t *bytes);

/* A team_work_fn: makes the rows of one chunk. */
void scan_rows_prepare(void *rows, uint32_t chunk);

/* The layer's epilogue for rows from `first_row` on; *own is memory for it. */
const struct gemm_epilogue *scan_rows_epilogue(const struct scan_rows *rows,
                                               const struct layer_view *view, uint32_t first_row,
                                               struct gemm_epilogue *own);

#endif
