/* See verify.h. */
#include "worker/verify.h"

#include <string.h>
#include <sys/mman.h>

#include "worker/freivalds.h"

#define ROW_BYTES ((size_t)GEMMD_N_MAX * sizeof(float))
#define BYTES     (GEMMD_K_MAX + 2 * ROW_BYTES)

bool verify_open(struct verify *verify, uint32_t every)
{
    size_t count;
    const struct gemm_kernel *kernels = gemm_kernels(&count);
    uint8_t *memory;

    *verify = (struct verify){.every = every, .epilogue = kernels[count - 1].epilogue};
    if (!every)
        return true;
    memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
                  -1, 0);
    if (memory == MAP_FAILED)
        return false;
    verify->a = memory;
    verify->c = memory + GEMMD_K_MAX;
    verify->again = verify->c + ROW_BYTES;
    return true;
}

void verify_close(struct verify *verify)
{
    if (verify->a)
        munmap(verify->a, BYTES);
    verify->a = NULL;
}

/* ---- choosing -------------------------------------------------------------------------------- */

static void choose(struct verify *verify, struct scan_rows *rows,
                   const struct scheduler_member *member)
{
    const struct job *job = LIST_ENTRY(member->job, struct job, scheduled);
    const struct layer_view *view = &job->layer->view;
    uint32_t row =
        member->place + (uint32_t)(freivalds_factor(verify->count++) >> 32) % member->rows;

    verify->passed = 0;
    verify->job = job;
    verify->rows = rows;
    verify->sum = 0;
    verify->panels = 0;
    verify->whole = verify->differs = false;
    verify->client_c = rows->c[row];
    rows->c[row] = verify->c;
    if (view->quantize)
        return; /* its row of A is private already */
    memcpy(verify->a, rows->a[row], view->k);
    rows->a[row] = verify->a;
}

void verify_board(struct verify *verify, struct scan_rows *rows, const struct scheduler_scan *scan)
{
    for (uint32_t i = 0; i < scan->member_count; i++) {
        const struct scheduler_member *member = &scan->members[i];

        if (member->panels_left != scan->layer->panels || member->first_row)
            continue; /* on board already, or not the beginning of its job */
        if (++verify->passed >= verify->every && !verify->job)
            choose(verify, rows, member);
    }
}

/* ---- checking -------------------------------------------------------------------------------- */

/* Accumulators of one row and the n columns of one panel. */
static void compute(const struct gemm_weights *s8, const uint8_t *a, uint8_t a_flip, size_t panel,
                    size_t n, int32_t *acc)
{
    const struct gemm_kernel *kernel = s8->kernel;
    size_t panel_bytes = kernel->nr * ((s8->k + kernel->kr - 1) / kernel->kr) * kernel->kr;
    size_t n_padded = (n + kernel->n_step - 1) / kernel->n_step * kernel->n_step;

    if (kernel->begin)
        kernel->begin(1);
    kernel->ukernel(1, n_padded, s8->k, &a, a_flip, s8->panels + panel * panel_bytes, acc);
    if (kernel->end)
        kernel->end(1);
}

static uint64_t product_with_weights(const uint64_t *w, const uint8_t *a, uint8_t a_flip, size_t k)
{
    uint64_t sum = 0;

    for (size_t t = 0; t < k; t++)
        sum += (uint64_t)(a[t] ^ a_flip) * w[t];
    return sum;
}

/* The row's columns [begin, end), whose panels are whole, once more. */
static void compute_again(struct verify *verify, const struct scan_rows *rows, uint32_t row,
                          size_t begin, size_t end)
{
    _Alignas(GEMM_ALIGN) int32_t acc[GEMM_MR_MAX * GEMM_NR_MAX];
    const struct layer_view *view = &rows->layer->view;
    struct gemm_epilogue own;
    const struct gemm_epilogue *epilogue = scan_rows_epilogue(rows, view, row, &own);
    uint8_t a_flip = epilogue->a_type == GEMM_TYPE_S8 ? 0x80 : 0;
    void *again = verify->again;

    if (!view->s8.panels)
        int4_run(&view->s4, epilogue, 1, rows->a + row, &again, begin, end);
    for (size_t column = begin; view->s8.panels && column < end; column += view->nr) {
        size_t n = end - column < view->nr ? end - column : view->nr;

        compute(&view->s8, rows->a[row], a_flip, column / view->nr, n, acc);
        for (size_t j = 0; j < n; j++)
            verify->sum += freivalds_factor(column + j) * (uint64_t)(int64_t)acc[j];
        verify->epilogue(1, n, view->nr, acc, epilogue, 0, column, &again);
    }
}

void verify_slice(struct verify *verify, const struct scan_rows *rows,
                  const struct scheduler_scan *scan, uint32_t panels)
{
    const struct layer *layer = rows->layer;
    const struct layer_view *view = &layer->view;
    size_t element = gemm_type_bytes(view->epilogue.c_type);
    size_t begin = (size_t)scan->position * view->nr, end = begin + (size_t)panels * view->nr;
    uint8_t a_flip = view->epilogue.a_type == GEMM_TYPE_S8 ? 0x80 : 0;
    uint32_t row = 0;

    if (rows != verify->rows)
        return;
    while (row < scan->rows && rows->c[row] != verify->c)
        row++;
    if (row == scan->rows)
        return; /* it has been through */
    if (end > view->n)
        end = view->n;
    compute_again(verify, rows, row, begin, end);
    verify->differs |= memcmp(verify->c + begin * element, verify->again + begin * element,
                              (end - begin) * element) != 0;
    memcpy(verify->client_c + begin * element, verify->c + begin * element,
           (end - begin) * element);
    verify->panels += panels;
    if (verify->panels < scan->layer->panels)
        return;
    verify->whole = true;
    if (layer->freivalds && verify->sum != product_with_weights(layer->freivalds, rows->a[row],
                                                                a_flip, view->k))
        verify->differs = true;
}

enum verify_verdict verify_end(struct verify *verify, const struct job *job)
{
    if (verify->job != job)
        return VERIFY_NONE;
    verify->job = NULL;
    verify->rows = NULL;
    if (verify->differs)
        return VERIFY_WRONG;
    return verify->whole ? VERIFY_RIGHT : VERIFY_NONE;
}
