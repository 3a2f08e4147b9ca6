/*
 * gemm_run and pausing_run whole: strided and gathered rows, column slices, every output type,
 * canaries round each C row, guard pages behind the operands.  The oracle is a dot product per
 * element from the unpacked operands, and the reference epilogue on that one number.
 */
#include "tests/kernel/check.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/pausing.h"

enum { CANARY = 0xc3, CANARY_BYTES = 64, A_PADDING = 3 };

gemm_epilogue_fn gemm_epilogue_ref;

struct job {
    uint32_t rows, n, k;
    enum gemm_type a_type, c_type;
    enum gemm_activation activation;
    enum fill fill;
    bool gathered;
    bool runs; /* gathered rows are runs, forwards and backwards in turn */
    bool all_columns; /* else a slice at random */
    bool zero_based;  /* C's zero point is 0 */
    bool adjoin;      /* C's rows follow each other */
    bool large;       /* scales that lead beyond 2^31 */
    int32_t a_zero_point;
};

struct data {
    struct guard a, panels, b;
    uint8_t *c; /* rows with canaries before, between and after */
    size_t c_stride;
    const uint8_t **a_rows;
    void **c_rows;
    int32_t *offset, *bias_s32, *sums;
    float *scale, *bias;
};

static uint32_t n_padded(uint32_t n)
{
    return (n + GEMM_NR_MAX - 1) / GEMM_NR_MAX * GEMM_NR_MAX;
}

static void data_open(struct data *d, const struct gemm_kernel *kernel, const struct job *job)
{
    size_t a_stride = job->k + A_PADDING;
    size_t a_bytes = (job->rows - 1) * a_stride + job->k; /* the last row ends at the guard page */
    size_t columns = n_padded(job->n) * sizeof(int32_t);

    guard_alloc(&d->a, a_bytes);
    guard_alloc(&d->b, (size_t)job->n * job->k);
    guard_alloc(&d->panels, gemm_packed_bytes(kernel, job->n, job->k));
    d->c_stride = job->n * gemm_type_bytes(job->c_type) + (job->adjoin ? 0 : CANARY_BYTES);
    d->c = check_alloc(job->rows * d->c_stride + CANARY_BYTES);
    memset(d->c, CANARY, job->rows * d->c_stride + CANARY_BYTES);
    d->a_rows = check_alloc(job->rows * sizeof(*d->a_rows));
    d->c_rows = check_alloc(job->rows * sizeof(*d->c_rows));
    d->offset = check_alloc(columns);
    d->bias_s32 = check_alloc(columns);
    d->sums = check_alloc(columns);
    d->scale = check_alloc(columns);
    d->bias = check_alloc(columns);
    fill_a(job->fill, d->a.data, a_bytes, job->a_type);
    fill_b(job->fill, (int8_t *)d->b.data, d->b.bytes);
    narrow_b(kernel, (int8_t *)d->b.data, job->n, job->k);
    for (uint32_t i = 0; i < job->rows; i++) {
        /* Gathered: any row, any order, repeats; as coalesced jobs and convolutions do. */
        uint32_t from = job->gathered ? random_below(job->rows) : i;

        if (job->gathered && job->runs)
            from = i / GEMM_RUN_ROWS % 2 ? job->rows - 1 - i : i;
        d->a_rows[i] = d->a.data + from * a_stride;
        d->c_rows[i] = d->c + CANARY_BYTES + i * d->c_stride;
    }
    for (uint32_t i = job->rows - 1; job->gathered && i > 0; i--) {
        uint32_t other = random_below(i + 1);
        void *row = d->c_rows[i];

        d->c_rows[i] = d->c_rows[other];
        d->c_rows[other] = row;
    }
    for (uint32_t j = 0; j < job->n; j++) {
        d->bias_s32[j] = (int32_t)random_below(100000) - 50000;
        d->scale[j] = (float)(1 + random_below(1000)) / (job->large ? 0x1p-20f : 0x1p16f);
        d->bias[j] = (float)random_below(64) - 32.0f;
    }
}

static void data_close(struct data *d)
{
    guard_free(&d->a);
    guard_free(&d->b);
    guard_free(&d->panels);
    free(d->c);
    free(d->a_rows);
    free(d->c_rows);
    free(d->offset);
    free(d->bias_s32);
    free(d->sums);
    free(d->scale);
    free(d->bias);
}

/* The s32 of the contract for one element, from A and B as the user gave them. */
static int32_t expected_s32(const struct job *job, const struct data *d, uint32_t i, uint32_t j)
{
    const int8_t *b = (const int8_t *)d->b.data + (size_t)j * job->k;
    int32_t sum = oracle_dot(job->k, d->a_rows[i], job->a_type, b);
    uint32_t b_sum = 0;

    for (uint32_t t = 0; t < job->k; t++)
        b_sum += (uint32_t)(int32_t)b[t];
    return (int32_t)((uint32_t)sum - (uint32_t)job->a_zero_point * b_sum +
                     (uint32_t)d->bias_s32[j]);
}

/* Each element inside [n_begin, n_end), and CANARY everywhere else. */
static void compare(const struct job *job, const struct data *d,
                    const struct gemm_epilogue *epilogue, uint32_t n_begin, uint32_t n_end)
{
    size_t bytes = gemm_type_bytes(job->c_type), bad = 0, dirty = 0;
    size_t c_bytes = job->rows * d->c_stride + CANARY_BYTES;
    uint8_t *expected = check_alloc(c_bytes);

    memset(expected, CANARY, c_bytes);
    for (uint32_t i = 0; i < job->rows; i++) {
        uint8_t *row = expected + ((uint8_t *)d->c_rows[i] - d->c);

        for (uint32_t j = n_begin; j < n_end; j++) {
            int32_t s = expected_s32(job, d, i, j), zero = 0;
            struct gemm_epilogue one = *epilogue;

            one.offset = &zero;
            one.scale += j;
            one.bias += j;
            gemm_epilogue_ref(1, 1, 1, &s, &one, 0, 0, (void *[]){row + j * bytes});
            bad += memcmp(row + j * bytes, (uint8_t *)d->c_rows[i] + j * bytes, bytes) != 0;
        }
    }
    for (size_t i = 0; i < c_bytes; i++)
        dirty += expected[i] != d->c[i];
    check(bad == 0, "%zu elements differ", bad);
    check(bad || dirty == 0, "%zu bytes outside the slice were written", dirty);
    free(expected);
}

static bool look(void *owner)
{
    (void)owner;
    return random_below(2);
}

/* The kernel has left its registers by now. */
static void serve(void *owner)
{
    (void)owner;
}

static void run_pausing(const struct gemm_weights *weights, const struct gemm_epilogue *epilogue,
                        size_t rows, const uint8_t *const *a, void *const *c, size_t n_begin,
                        size_t n_end)
{
    const struct pausing pausing = {look, serve, NULL};

    pausing_run(&pausing, weights, epilogue, rows, a, c, n_begin, n_end);
}

static void check_job(const struct gemm_kernel *kernel, const struct job *job)
{
    bool narrow = job->c_type == GEMM_TYPE_U8 || job->c_type == GEMM_TYPE_S8;
    struct data d;
    struct gemm_weights weights = {.kernel = kernel, .n = job->n, .k = job->k};
    struct gemm_epilogue epilogue = {
        .a_type = job->a_type,
        .c_type = job->c_type,
        .activation = job->activation,
        .c_zero_point = narrow && !job->zero_based ? (job->c_type == GEMM_TYPE_U8 ? 120 : -7) : 0,
        .inverse_c_scale = 0.037f,
    };
    uint32_t panels = (job->n + kernel->nr - 1u) / kernel->nr;
    bool pauses = random_below(4) == 0;
    uint32_t n_begin = random_below(2) ? 0 : random_below(panels) * kernel->nr;
    uint32_t n_end = n_begin + (1 + random_below(panels)) * kernel->nr;

    if (n_end > job->n || random_below(2))
        n_end = job->n;
    if (job->all_columns) {
        n_begin = 0;
        n_end = job->n;
    }
    check_step("%s m=%u n=%u k=%u a=%d c=%d relu=%d zero=%d fill=%s %s columns [%u,%u)",
               pauses ? "pausing_run" : "gemm_run", job->rows, job->n, job->k, job->a_type,
               job->c_type, job->activation, job->a_zero_point, fill_name(job->fill),
               !job->gathered ? "strided" : job->runs ? "in runs" : "gathered", n_begin, n_end);
    data_open(&d, kernel, job);
    gemm_pack(kernel, job->n, job->k, (const int8_t *)d.b.data, job->k, (int8_t *)d.panels.data,
              d.sums);
    gemm_offset(job->n, job->a_type, job->a_zero_point, d.sums, d.bias_s32, d.offset);
    weights.panels = (const int8_t *)d.panels.data;
    epilogue.offset = d.offset;
    epilogue.scale = d.scale;
    epilogue.bias = d.bias;
    (pauses ? run_pausing : gemm_run)(&weights, &epilogue, job->rows, d.a_rows, d.c_rows, n_begin,
                                      n_end);
    compare(job, &d, &epilogue, n_begin, n_end);
    data_close(&d);
}

static struct job job_random(uint32_t rows, uint32_t n, uint32_t k)
{
    static const enum gemm_type c_types[] = {GEMM_TYPE_U8, GEMM_TYPE_S8, GEMM_TYPE_S32,
                                             GEMM_TYPE_F32};
    struct job job = {.rows = rows, .n = n, .k = k};

    job.a_type = random_below(2) ? GEMM_TYPE_S8 : GEMM_TYPE_U8;
    job.c_type = c_types[random_below(4)];
    job.activation = (enum gemm_activation)random_below(2);
    job.fill = (enum fill)random_below(FILL_COUNT);
    job.gathered = random_below(2);
    job.runs = random_below(2);
    job.a_zero_point = (int32_t)random_below(256) - (job.a_type == GEMM_TYPE_S8 ? 128 : 0);
    return job;
}

/* Every output type, activation, input type and way of addressing rows, on one awkward shape. */
static void check_types(const struct gemm_kernel *kernel)
{
    for (unsigned int bits = 0; bits < 32; bits++) {
        struct job job = job_random(kernel->mr + 1u, 2u * kernel->nr + 3, 67);

        job.c_type = (const enum gemm_type[]){GEMM_TYPE_U8, GEMM_TYPE_S8, GEMM_TYPE_S32,
                                              GEMM_TYPE_F32}[bits & 3];
        job.activation = bits & 4 ? GEMM_ACTIVATION_RELU : GEMM_ACTIVATION_NONE;
        job.a_type = bits & 8 ? GEMM_TYPE_S8 : GEMM_TYPE_U8;
        job.gathered = bits & 16;
        job.a_zero_point = bits & 1 ? 255 : 0; /* both ends of the range */
        if (job.a_type == GEMM_TYPE_S8)
            job.a_zero_point -= 128;
        check_job(kernel, &job);
    }
}

/* Tiles that are multiplied and finished together: rows of one and several tiles, an odd number of
 * them, tiles that overlap by an odd number; fewer, as many and more blocks of k than rows want. */
static void check_fused(const struct gemm_kernel *kernel)
{
    static const uint32_t m_values[] = {17, 31, 32, 33, 71};
    static const uint32_t n_values[] = {128, 333};
    static const uint32_t k_values[] = {63, 64, 320, 1088};

    for (size_t m = 0; m < sizeof(m_values) / sizeof(m_values[0]); m++) {
        for (size_t n = 0; n < sizeof(n_values) / sizeof(n_values[0]); n++) {
            for (size_t k = 0; k < sizeof(k_values) / sizeof(k_values[0]); k++) {
                struct job job = job_random(m_values[m], n_values[n], k_values[k]);

                job.c_type = GEMM_TYPE_U8;
                job.activation = GEMM_ACTIVATION_RELU;
                job.zero_based = true;
                job.all_columns = random_below(2);
                check_job(kernel, &job);
            }
        }
    }
}

/* All rows and one panel multiplied and finished together: every number of columns that a vector
 * has, with rows of C that share a vector or do not, every number of rows that tiles leave over. */
static void check_fused_panel(const struct gemm_kernel *kernel)
{
    static const uint32_t n_values[] = {1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 57, 64, 129};
    static const uint32_t k_values[] = {4, 36, 37, 64, 130};

    for (size_t n = 0; n < sizeof(n_values) / sizeof(n_values[0]); n++) {
        for (size_t k = 0; k < sizeof(k_values) / sizeof(k_values[0]); k++) {
            for (uint32_t bits = 0; bits < 4 && k_values[k] <= kernel->fused_panel_k; bits++) {
                uint32_t rows = kernel->mr + random_below(24);
                struct job job = job_random(rows, n_values[n], k_values[k]);

                if (random_below(4)) {
                    job.a_type = GEMM_TYPE_U8;
                    job.a_zero_point &= 255;
                }
                job.c_type = GEMM_TYPE_U8;
                job.activation = GEMM_ACTIVATION_RELU;
                job.zero_based = true;
                job.gathered = bits & 1;
                job.adjoin = bits & 2;
                job.large = random_below(8) == 0;
                check_job(kernel, &job);
            }
        }
    }
}

void check_run(const struct gemm_kernel *kernel)
{
    const uint32_t mr = kernel->mr, nr = kernel->nr;
    const uint32_t m_values[] = {1, 2, mr - 1, mr, mr + 1, 3 * mr, 37};
    const uint32_t n_values[] = {1, nr - 1, nr, nr + 1, 2 * nr, 131};
    const uint32_t k_values[] = {1, 3, 4, 17, 64, 131};
    /* More rows than one block holds (4 tiles of mr at this k); the most rows there can be. */
    struct job long_job = job_random(8 * mr + 1, nr + 1, 21845);
    const struct job tall_job = job_random(GEMM_ROWS_MAX, 7, 9);
    /* Rows that gemm_run copies, in more than one block: s8, and u8 at no constant distance. */
    struct job copied_job = job_random(5 * mr + 1, 2 * nr + 1, 1500);

    for (size_t m = 0; m < sizeof(m_values) / sizeof(m_values[0]); m++) {
        for (size_t n = 0; n < sizeof(n_values) / sizeof(n_values[0]); n++) {
            for (size_t k = 0; k < sizeof(k_values) / sizeof(k_values[0]); k++) {
                struct job job = job_random(m_values[m], n_values[n], k_values[k]);

                check_job(kernel, &job);
            }
        }
    }
    check_types(kernel);
    if (kernel->fused)
        check_fused(kernel);
    if (kernel->fused_panel)
        check_fused_panel(kernel);
    check_job(kernel, &tall_job);
    copied_job.c_type = GEMM_TYPE_S32;
    copied_job.fill = FILL_UNIFORM; /* as below */
    copied_job.all_columns = true;  /* the first panel copies, the others find the copies */
    for (unsigned int bits = 0; bits < 8; bits++) {
        copied_job.a_type = bits & 1 ? GEMM_TYPE_S8 : GEMM_TYPE_U8;
        copied_job.gathered = bits & 2;
        copied_job.runs = bits & 4;
        copied_job.a_zero_point = 3;
        check_job(kernel, &copied_job);
    }
    long_job.fill = FILL_UNIFORM; /* rows that differ, shown in full: a mixed-up block is seen */
    long_job.c_type = GEMM_TYPE_S32;
    long_job.gathered = false;
    if (kernel->level != CPU_LEVEL_REF) /* some seconds in the reference, and nothing new */
        check_job(kernel, &long_job);
}
