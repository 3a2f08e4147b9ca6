/*
 * gemm_run_dynamic whole: float rows, gathered and strided, against the reference quantisation, a
 * dot product per element and the reference epilogue; with zero points of B, residuals, every
 * output type and activation; and against the product in double precision within the bound that
 * half a step per element gives.
 */
#include "tests/kernel/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bf16.h"
#include "kernels/dynamic.h"

enum { CANARY = 0xc3 };

gemm_epilogue_fn gemm_epilogue_ref;

struct job {
    uint32_t rows, n, k;
    enum gemm_type a_type, c_type;
    enum quantize_mode mode;
    enum gemm_activation activation;
    bool b_zero_points, residual;
    bool hostile; /* NaN, infinities and huge values in A */
};

struct data {
    struct guard a, panels, scratch, residual;
    int8_t *b;
    const void *a_rows[GEMM_ROWS_MAX], *residual_rows[GEMM_ROWS_MAX];
    void *c_rows[GEMM_ROWS_MAX];
    uint8_t *c;
    size_t c_stride;
    int32_t *sums, *offset, *zero_points;
    float *scale, *bias;
};

static float uniform(void)
{
    return (float)((double)random_u64() / 18446744073709551616.0 * 2 - 1);
}

static void fill_floats(enum gemm_type type, size_t count, bool hostile, uint8_t *to)
{
    static const float rare[] = {NAN, INFINITY, -INFINITY, 3e38f, -1e-40f};

    for (size_t i = 0; i < count; i++) {
        float f = uniform() * (random_below(50) ? 1.0f : 8.0f);
        uint16_t half;

        if (hostile && !random_below(40))
            f = rare[random_below(sizeof(rare) / sizeof(rare[0]))];
        half = bf16_from_f32(f);
        if (type == GEMM_TYPE_F32)
            memcpy(to + i * sizeof(f), &f, sizeof(f));
        else if (type == GEMM_TYPE_BF16)
            memcpy(to + i * sizeof(half), &half, sizeof(half));
        else
            to[i] = (uint8_t)random_u64();
    }
}

static void guard_either(struct guard *guard, size_t bytes)
{
    guard_alloc(guard, bytes);
    guard_place(guard, bytes, random_below(2) ? GUARD_AFTER : GUARD_BEFORE);
}

static void data_open(struct data *d, const struct gemm_kernel *kernel, const struct job *job)
{
    size_t columns = (job->n + GEMM_NR_MAX - 1) / GEMM_NR_MAX * GEMM_NR_MAX * sizeof(int32_t);
    size_t a_bytes = job->k * gemm_type_bytes(job->a_type);
    size_t r_bytes = job->n * gemm_type_bytes(job->c_type);

    guard_either(&d->a, job->rows * a_bytes);
    guard_either(&d->residual, job->rows * r_bytes);
    guard_either(&d->panels, gemm_packed_bytes(kernel, job->n, job->k));
    guard_either(&d->scratch, gemm_dynamic_scratch_bytes(job->k, kernel->mr, job->rows));
    d->b = check_alloc((size_t)job->n * job->k);
    d->c_stride = r_bytes + 64;
    d->c = check_alloc(job->rows * d->c_stride + 64);
    memset(d->c, CANARY, job->rows * d->c_stride + 64);
    d->sums = check_alloc(columns);
    d->offset = check_alloc(columns);
    d->zero_points = check_alloc(columns);
    d->scale = check_alloc(columns);
    d->bias = check_alloc(columns);
    fill_floats(job->a_type, (size_t)job->rows * job->k, job->hostile, d->a.data);
    fill_floats(job->c_type, (size_t)job->rows * job->n, job->hostile, d->residual.data);
    fill_b(FILL_UNIFORM, d->b, (size_t)job->n * job->k);
    narrow_b(kernel, d->b, job->n, job->k);
    for (uint32_t i = 0; i < job->rows; i++) {
        d->a_rows[i] = d->a.data + (random_below(4) ? i : random_below(job->rows)) * a_bytes;
        d->residual_rows[i] = d->residual.data + random_below(job->rows) * r_bytes;
        d->c_rows[i] = d->c + 64 + i * d->c_stride;
    }
    for (uint32_t j = 0; j < job->n; j++) {
        d->zero_points[j] = job->b_zero_points ? (int32_t)random_below(256) - 128 : 0;
        d->scale[j] = (float)(1 + random_below(1000)) / 65536.0f;
        d->bias[j] = uniform() * 3.0f;
    }
}

static void data_close(struct data *d)
{
    guard_free(&d->a);
    guard_free(&d->residual);
    guard_free(&d->panels);
    guard_free(&d->scratch);
    free(d->b);
    free(d->c);
    free(d->sums);
    free(d->offset);
    free(d->zero_points);
    free(d->scale);
    free(d->bias);
}

static double a_element(const struct job *job, const void *row, size_t t)
{
    uint16_t half;
    float f;

    if (job->a_type == GEMM_TYPE_F32) {
        memcpy(&f, (const uint8_t *)row + t * sizeof(f), sizeof(f));
        return (double)f;
    }
    memcpy(&half, (const uint8_t *)row + t * sizeof(half), sizeof(half));
    return (double)bf16_to_f32(half);
}

/* |y - exact| against half a step of A for each weight, and a little for the float steps. */
static bool near_exact(const struct job *job, const struct data *d, uint32_t i, uint32_t j, float y,
                       float row_scale)
{
    double exact = 0, weights = 0;

    for (uint32_t t = 0; t < job->k; t++) {
        double b = d->b[(size_t)j * job->k + t] - d->zero_points[j];

        exact += a_element(job, d->a_rows[i], t) * b;
        weights += fabs(b);
    }
    exact = exact * (double)d->scale[j] + (double)d->bias[j];
    return fabs((double)y - exact) <=
           (double)row_scale * 0.5001 * weights * (double)d->scale[j] + 1e-5 * (fabs(exact) + 1);
}

static void compare_row(const struct job *job, const struct data *d, uint32_t i, uint32_t n_begin,
                        uint32_t n_end, const struct gemm_epilogue *epilogue, uint8_t *expected)
{
    uint8_t *q = check_alloc(job->k);
    struct quantize_row row =
        quantize_row(quantize_select(0), job->a_type, job->mode, job->k, d->a_rows[i], q);
    bool plain =
        job->c_type == GEMM_TYPE_F32 && !job->residual && !job->activation && !job->hostile;
    size_t far = 0;

    for (uint32_t j = n_begin; j < n_end; j++) {
        int32_t acc = oracle_dot(job->k, q, GEMM_TYPE_U8, d->b + (size_t)j * job->k);
        struct gemm_epilogue one = *epilogue;
        uint32_t k_sum = 0;
        float y;

        for (uint32_t t = 0; t < job->k; t++)
            k_sum += (uint32_t)d->b[(size_t)j * job->k + t];
        acc = (int32_t)((uint32_t)acc - (uint32_t)row.params.zero_point * k_sum -
                        (uint32_t)row.sum * (uint32_t)d->zero_points[j]);
        one.row_scales = &row.params.scale;
        one.residual = job->residual ? &d->residual_rows[i] : NULL;
        one.row_zero_points = NULL;
        one.row_sums = NULL;
        gemm_epilogue_ref(1, 1, 1, &acc, &one, 0, j, (void *[]){expected});
        memcpy(&y, expected + j * gemm_type_bytes(job->c_type), plain ? sizeof(y) : 0);
        far += plain && !near_exact(job, d, i, j, y, row.params.scale);
    }
    check(far == 0, "%zu elements far from the exact product", far);
    free(q);
}

static void compare(const struct job *job, const struct data *d,
                    const struct gemm_epilogue *epilogue, uint32_t n_begin, uint32_t n_end)
{
    size_t bytes = job->rows * d->c_stride + 64, bad = 0;
    uint8_t *expected = check_alloc(bytes);

    memset(expected, CANARY, bytes);
    for (uint32_t i = 0; i < job->rows; i++)
        compare_row(job, d, i, n_begin, n_end, epilogue, expected + 64 + i * d->c_stride);
    for (size_t i = 0; i < bytes; i++)
        bad += expected[i] != d->c[i];
    check(bad == 0, "%zu bytes differ", bad);
    free(expected);
}

static void check_job(const struct gemm_kernel *kernel, const struct job *job)
{
    struct data *d = check_alloc(sizeof(*d));
    uint32_t panels = (job->n + kernel->nr - 1u) / kernel->nr;
    uint32_t n_begin = random_below(2) ? 0 : random_below(panels) * kernel->nr, n_end = job->n;
    struct gemm_weights weights = {.kernel = kernel, .n = job->n, .k = job->k};
    struct gemm_epilogue epilogue = {
        .a_type = GEMM_TYPE_U8,
        .c_type = job->c_type,
        .activation = job->activation,
        .inverse_c_scale = 20.0f,
        .clip_lo = -0.5f,
        .clip_hi = 2.0f,
        .residual_type = job->c_type,
        .residual_scale = 0.01f,
    };
    struct gemm_dynamic dynamic = {
        .quantize = quantize_select((2u << kernel->level) - 1),
        .a_type = job->a_type,
        .mode = job->mode,
    };

    check_step("dynamic m=%u n=%u k=%u a=%d c=%d mode=%d activation=%d b_zero=%d residual=%d "
               "hostile=%d from "
               "column %u",
               job->rows, job->n, job->k, job->a_type, job->c_type, job->mode, job->activation,
               job->b_zero_points, job->residual, job->hostile, n_begin);
    data_open(d, kernel, job);
    weights.panels = (const int8_t *)d->panels.data;
    dynamic.scratch = d->scratch.data;
    gemm_pack(kernel, job->n, job->k, d->b, job->k, (int8_t *)d->panels.data, d->sums);
    gemm_offset(job->n, GEMM_TYPE_U8, 0, d->sums, NULL, d->offset);
    epilogue.offset = d->offset;
    epilogue.scale = d->scale;
    epilogue.bias = d->bias;
    epilogue.column_sums = d->sums;
    epilogue.b_zero_points = job->b_zero_points ? d->zero_points : NULL;
    epilogue.residual = job->residual ? d->residual_rows : NULL;
    gemm_run_dynamic(&weights, &epilogue, &dynamic, job->rows, d->a_rows, d->c_rows, n_begin,
                     n_end);
    compare(job, d, &epilogue, n_begin, n_end);
    data_close(d);
    free(d);
}

/* Zero points on both sides, A in u8 or s8, through gemm_run: the s32 against the plain sum. */
static void check_zero_points(const struct gemm_kernel *kernel, enum gemm_type a_type)
{
    enum { ROWS = 9, N = 70, K = 77 };
    int32_t lo = a_type == GEMM_TYPE_S8 ? -128 : 0, a_zero = lo + (int32_t)random_below(256);
    static _Alignas(GEMM_ALIGN) int32_t sums[2 * GEMM_NR_MAX], b_zero[2 * GEMM_NR_MAX];
    int8_t b[N * K], *panels = check_alloc(gemm_packed_bytes(kernel, N, K));
    uint8_t a[ROWS][K];
    const uint8_t *a_rows[ROWS];
    int32_t c[ROWS][N], row_sums[ROWS];
    void *c_rows[ROWS];
    struct gemm_weights weights = {kernel, N, K, panels};
    struct gemm_epilogue epilogue = {
        .a_type = a_type,
        .c_type = GEMM_TYPE_S32,
        .offset = sums,
        .b_zero_points = b_zero,
        .row_sums = row_sums,
    };
    size_t bad = 0;

    check_step("zero points of A (%d, type %d) and B", a_zero, a_type);
    fill_a(FILL_EXTREMES, a[0], sizeof(a), a_type);
    fill_b(FILL_EXTREMES, b, sizeof(b));
    narrow_b(kernel, b, N, K);
    for (size_t j = 0; j < N; j++)
        b_zero[j] = (int32_t)random_below(256) - 128;
    for (size_t i = 0; i < ROWS; i++) {
        a_rows[i] = a[i];
        c_rows[i] = c[i];
        row_sums[i] = gemm_row_sum(a_type, a_zero, K, a[i]);
    }
    gemm_pack(kernel, N, K, b, K, panels, sums);
    gemm_offset(N, a_type, a_zero, sums, NULL, sums);
    gemm_run(&weights, &epilogue, ROWS, a_rows, c_rows, 0, N);
    for (size_t i = 0; i < ROWS; i++) {
        for (size_t j = 0; j < N; j++) {
            int64_t sum = 0;

            for (size_t t = 0; t < K; t++)
                sum += (int64_t)((lo ? (int8_t)a[i][t] : a[i][t]) - a_zero) *
                       (b[j * K + t] - b_zero[j]);
            bad += sum != c[i][j];
        }
    }
    check(bad == 0, "%zu sums", bad);
    free(panels);
}

/* Each row of gemm_run meets its own scale and residual, once; the residual of every second one is
 * its row of C. */
static void check_row_arrays(const struct gemm_kernel *kernel, size_t rows, uint32_t k)
{
    enum { N = 3 };
    static _Alignas(GEMM_ALIGN) int32_t sums[GEMM_NR_MAX];
    static _Alignas(GEMM_ALIGN) float scale[GEMM_NR_MAX] = {0.5f, 0.25f, 2.0f}, bias[GEMM_NR_MAX];
    int8_t *b = check_alloc(N * k), *panels = check_alloc(gemm_packed_bytes(kernel, N, k));
    uint8_t *a = check_alloc(k);
    float c[8 * GEMM_MR_MAX + 1][N], residual[8 * GEMM_MR_MAX + 1][N];
    float row_scales[8 * GEMM_MR_MAX + 1];
    const uint8_t *a_rows[8 * GEMM_MR_MAX + 1];
    const void *residual_rows[8 * GEMM_MR_MAX + 1];
    void *c_rows[8 * GEMM_MR_MAX + 1];
    struct gemm_weights weights = {kernel, N, k, panels};
    struct gemm_epilogue epilogue = {
        .a_type = GEMM_TYPE_U8,
        .c_type = GEMM_TYPE_F32,
        .offset = sums,
        .scale = scale,
        .bias = bias,
        .row_scales = row_scales,
        .residual = residual_rows,
        .residual_type = GEMM_TYPE_F32,
    };
    size_t bad = 0;

    check_step("row scales and residuals of %zu rows, k=%u", rows, k);
    fill_a(FILL_UNIFORM, a, k, GEMM_TYPE_U8);
    fill_b(FILL_SPARSE, b, N * k);
    narrow_b(kernel, b, N, k);
    for (size_t i = 0; i < rows; i++) {
        row_scales[i] = (float)(i + 1);
        a_rows[i] = a;
        residual_rows[i] = i % 2 ? residual[i] : c[i];
        c_rows[i] = c[i];
        for (size_t j = 0; j < N; j++)
            c[i][j] = residual[i][j] = (float)(i * 1000 + j);
    }
    gemm_pack(kernel, N, k, b, k, panels, sums);
    gemm_offset(N, GEMM_TYPE_U8, 0, sums, NULL, sums);
    gemm_run(&weights, &epilogue, rows, a_rows, c_rows, 0, N);
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < N; j++) {
            float f = (float)oracle_dot(k, a, GEMM_TYPE_U8, b + j * k) * scale[j];

            bad += c[i][j] != f * row_scales[i] + residual[i][j];
        }
    }
    check(bad == 0, "%zu elements", bad);
    free(a);
    free(b);
    free(panels);
}

void check_dynamic(const struct gemm_kernel *kernel)
{
    static const enum gemm_type c_types[] = {GEMM_TYPE_F32, GEMM_TYPE_BF16, GEMM_TYPE_U8,
                                             GEMM_TYPE_S8};
    const uint32_t nr = kernel->nr, mr = kernel->mr;
    const uint32_t m_values[] = {1, mr, mr + 1, 33}, n_values[] = {1, nr, nr + 1, 2 * nr + 5};
    const uint32_t k_values[] = {1, 5, 64, 131};
    /* More rows than one block of the scratch holds. */
    struct job long_job = {
        8 * mr + 1,           3,     21845, GEMM_TYPE_F32, GEMM_TYPE_F32, QUANTIZE_ASYMMETRIC,
        GEMM_ACTIVATION_NONE, false, true,  false};

    for (uint32_t at = 0; at < 4 * 4 * 4; at++) {
        for (uint32_t bits = 0; bits < 4; bits++) {
            struct job job = {.rows = m_values[at & 3],
                              .n = n_values[at >> 2 & 3],
                              .k = k_values[at >> 4],
                              .a_type = bits & 1 ? GEMM_TYPE_BF16 : GEMM_TYPE_F32,
                              .mode = (enum quantize_mode)(bits >> 1)};

            job.c_type = c_types[random_below(4)];
            job.activation = (enum gemm_activation)random_below(GEMM_ACTIVATION_COUNT);
            job.b_zero_points = random_below(2);
            job.residual = random_below(2);
            job.hostile = random_below(3) == 0;
            check_job(kernel, &job);
            if (random_below(2)) { /* often enough the one that is compared in double too */
                job.c_type = GEMM_TYPE_F32;
                job.activation = GEMM_ACTIVATION_NONE;
                job.residual = false;
                job.hostile = false;
                check_job(kernel, &job);
            }
        }
    }
    check_job(kernel, &long_job);
    check_row_arrays(kernel, 8u * mr + 1, 21845); /* several blocks */
    check_row_arrays(kernel, mr + 1u, 9);         /* no whole number of tiles */
    for (int round = 0; round < 4; round++)
        check_zero_points(kernel, round % 2 ? GEMM_TYPE_S8 : GEMM_TYPE_U8);
}
