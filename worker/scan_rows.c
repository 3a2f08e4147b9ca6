/*
 * Members leave from anywhere, and new ones come behind all others, so the rows that stay move
 * towards the front in order; the slots of those that left are what no row refers to.
 */
#include "worker/scan_rows.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>

#include "worker/session.h"

/* Quantised rows of a scan: half of the smallest L2 beside AVX-512 (kernels/dynamic.h), which also
 * bounds how long their making keeps others waiting: 481 f32 rows of 1024 take one thread 93 us
 * from L2, 202 us from memory, and 1.9 ms at the scalar level (Granite Rapids).  At least one tile,
 * though. */
#define BLOCK_BYTES ((size_t)512 * 1024)
/* Rows lie an odd number of cache lines apart, so that they spread over all sets of L1. */
#define STRIDE_MAX (GEMMD_K_MAX + GEMM_ALIGN)
#define SCAN_BYTES ((size_t)GEMM_MR_MAX * STRIDE_MAX)
/* A of a chunk: some 6 us. */
#define CHUNK_BYTES (64 * 1024)

static_assert(SCHEDULER_ROWS_MAX <= GEMM_ROWS_MAX, "a scan's rows fit one gemm_run");
static_assert(SCAN_BYTES >= BLOCK_BYTES, "room for many short rows as for few long ones");
static_assert(SCAN_BYTES % GEMM_ALIGN == 0, "aligned one behind the other");

bool scan_rows_open(struct scan_rows rows[SCHEDULER_SCANS])
{
    /* Populated: a page fault is an allocation. */
    uint8_t *memory = mmap(NULL, SCHEDULER_SCANS * SCAN_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (memory == MAP_FAILED)
        return false;
    for (int i = 0; i < SCHEDULER_SCANS; i++)
        rows[i].quantised = memory + (size_t)i * SCAN_BYTES;
    return true;
}

void scan_rows_close(struct scan_rows rows[SCHEDULER_SCANS])
{
    if (rows[0].quantised)
        munmap(rows[0].quantised, SCHEDULER_SCANS * SCAN_BYTES);
    rows[0].quantised = NULL;
}

uint32_t scan_rows_limit(const struct layer_view *view)
{
    size_t rows = BLOCK_BYTES / gemm_copy_stride(view->k);

    if (!view->quantize || rows > SCHEDULER_ROWS_MAX)
        return SCHEDULER_ROWS_MAX;
    return rows > GEMM_MR_MAX ? (uint32_t)rows : GEMM_MR_MAX;
}

static bool is_made(const struct layer_view *view)
{
    return view->quantize || view->epilogue.b_zero_points;
}

uint32_t scan_rows_short(const struct layer_view *view, size_t row_bytes)
{
    uint64_t rows = SCHEDULER_SLICE_NS * SCAN_ROWS_BYTES_PER_NS / row_bytes;
    uint32_t limit = scan_rows_limit(view);

    return is_made(view) && rows < limit ? (uint32_t)rows : limit;
}

/* ---- who is where ---------------------------------------------------------------------------- */

static void move(struct scan_rows *rows, uint32_t to, uint32_t from, uint32_t count)
{
    if (to == from)
        return;
    memmove(rows->a + to, rows->a + from, count * sizeof(*rows->a));
    memmove(rows->c + to, rows->c + from, count * sizeof(*rows->c));
    memmove(rows->residual + to, rows->residual + from, count * sizeof(*rows->residual));
    memmove(rows->scales + to, rows->scales + from, count * sizeof(*rows->scales));
    memmove(rows->zero_points + to, rows->zero_points + from, count * sizeof(*rows->zero_points));
    memmove(rows->sums + to, rows->sums + from, count * sizeof(*rows->sums));
    memmove(rows->slots + to, rows->slots + from, count * sizeof(*rows->slots));
}

/* Slots for the rows [first, last), among those that the rows before do not have. */
static void assign_slots(struct scan_rows *rows, uint32_t first, uint32_t last)
{
    uint64_t used[GEMM_ROWS_MAX / 64] = {0};
    size_t stride = gemm_copy_stride(rows->layer->view.k);
    uint32_t slot = 0;

    for (uint32_t row = 0; row < first; row++)
        used[rows->slots[row] / 64] |= UINT64_C(1) << rows->slots[row] % 64;
    for (uint32_t row = first; row < last; row++, slot++) {
        while (used[slot / 64] >> slot % 64 & 1)
            slot++;
        rows->slots[row] = (uint16_t)slot;
        rows->a[row] = rows->quantised + slot * stride;
    }
    assert(slot * stride <= SCAN_BYTES);
}

/* The scale behind a row of A: any float, loaded once. */
static void add_scale(struct scan_rows *rows, uint32_t row, const uint8_t *a)
{
    const struct layer_view *view = &rows->layer->view;

    memcpy(&rows->scales[row], a + view->k, sizeof(rows->scales[row]));
    rows->zero_points[row] = view->a_zero_point;
}

static void add(struct scan_rows *rows, const struct scheduler_member *member, uint32_t row,
                uint64_t now_ns)
{
    struct job *job = LIST_ENTRY(member->job, struct job, scheduled);
    const uint8_t *a = job->a + (uint64_t)member->first_row * job->a_stride_bytes;
    uint8_t *c = job->c + (uint64_t)member->first_row * job->c_stride_bytes;
    uint64_t residual_at = (uint64_t)member->first_row * job->residual_stride_bytes;

    if (!job->start_ns)
        job->start_ns = now_ns;
    for (uint32_t i = 0; i < member->rows; i++) {
        rows->a[row + i] = rows->sources[row + i] = a;
        rows->c[row + i] = c;
        if (rows->layer->view.a_row_scales)
            add_scale(rows, row + i, a);
        a += job->a_stride_bytes;
        c += job->c_stride_bytes;
    }
    for (uint32_t i = 0; job->residual && i < member->rows; i++) {
        rows->residual[row + i] = job->residual + residual_at;
        residual_at += job->residual_stride_bytes;
    }
}

uint32_t scan_rows_gather(struct scan_rows *rows, struct scheduler_scan *scan, uint64_t now_ns,
                          uint64_t *bytes)
{
    struct layer *layer = LIST_ENTRY(scan->layer, struct layer, scheduled);
    uint32_t row = 0, made = 0;

    rows->layer = layer;
    for (uint32_t i = 0; i < scan->member_count; i++) {
        struct scheduler_member *member = &scan->members[i];

        if (member->panels_left == scan->layer->panels) { /* it has just come, behind all others */
            add(rows, member, row, now_ns);
        } else {
            move(rows, row, member->place, member->rows);
            made = row + member->rows;
        }
        member->place = row;
        row += member->rows;
    }
    scan->changed = false;
    *bytes = (uint64_t)(row - made) * layer->shape.a_row_bytes;
    if (!is_made(&layer->view) || made == row)
        return 0;
    if (layer->view.quantize)
        assign_slots(rows, made, row);
    rows->first = made;
    rows->count = row - made;
    rows->step = CHUNK_BYTES / layer->shape.a_row_bytes;
    rows->step += rows->step == 0;
    return (rows->count + rows->step - 1) / rows->step;
}

/* ---- making ---------------------------------------------------------------------------------- */

void scan_rows_prepare(void *argument, uint32_t chunk)
{
    struct scan_rows *rows = argument;
    const struct layer_view *view = &rows->layer->view;
    uint32_t begin = rows->first + chunk * rows->step, end = begin + rows->step;

    if (end > rows->first + rows->count)
        end = rows->first + rows->count;
    for (uint32_t row = begin; row < end; row++) {
        struct quantize_row made;

        if (!view->quantize) {
            rows->sums[row] =
                gemm_row_sum(view->a_type, view->a_zero_point, view->k, rows->sources[row]);
            continue;
        }
        made = quantize_row(view->quantize, view->a_type, view->quantize_mode, view->k,
                            rows->sources[row],
                            rows->quantised + rows->slots[row] * gemm_copy_stride(view->k));
        rows->scales[row] = made.params.scale;
        rows->zero_points[row] = made.params.zero_point;
        rows->sums[row] = made.sum;
    }
}

const struct gemm_epilogue *scan_rows_epilogue(const struct scan_rows *rows,
                                               const struct layer_view *view, uint32_t first_row,
                                               struct gemm_epilogue *own)
{
    if (!is_made(view) && !view->a_row_scales && !view->epilogue.residual_type)
        return &view->epilogue;
    *own = view->epilogue;
    if (own->residual_type)
        own->residual = rows->residual + first_row;
    if (view->quantize || view->a_row_scales)
        own->row_scales = rows->scales + first_row;
    if (view->quantize || (view->a_row_scales && view->s4.panels))
        own->row_zero_points = rows->zero_points + first_row;
    if (view->epilogue.b_zero_points)
        own->row_sums = rows->sums + first_row;
    return own;
}
