/*
 * int4 weights: the packed layout byte by byte, each level against the sum of kernels/int4.h from
 * the weights as given, between guard pages; quantising against its bounds; the float rows' way in.
 */
#include "tests/kernel/check.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/int4.h"

enum { CANARY = 0xc3, CANARY_BYTES = 64, GROUPS_MAX = 64, ROWS_MAX = 70, A_PADDING = 3 };

gemm_epilogue_fn gemm_epilogue_ref;

struct job {
    uint32_t rows, n, k, group;
    enum fill fill;
    enum gemm_type c_type;
    bool row_zero_points;
    bool in_order; /* rows of A, at a constant distance */
};

struct data {
    struct guard a, b, panels;
    const uint8_t *a_rows[ROWS_MAX];
    void *c_rows[ROWS_MAX];
    uint8_t *c;
    size_t c_stride, b_stride, groups;
    uint16_t *multipliers;
    float *weighted_sums, *scale, *bias;
    int32_t row_zero_points[ROWS_MAX];
};

static int32_t weight(const struct data *d, size_t j, size_t t)
{
    uint8_t both = d->b.data[j * d->b_stride + t / 2];
    int32_t half = t % 2 ? both / 16 : both % 16;

    return half >= 8 ? half - 16 : half;
}

static void guard_either(struct guard *guard, size_t bytes)
{
    guard_alloc(guard, bytes);
    guard_place(guard, bytes, random_below(2) ? GUARD_AFTER : GUARD_BEFORE);
}

static void data_open(struct data *d, const struct int4_kernel *kernel, const struct job *job)
{
    size_t a_stride = job->k + A_PADDING, a_bytes = (job->rows - 1) * a_stride + job->k;
    size_t columns = (job->n + GEMM_NR_MAX - 1) / GEMM_NR_MAX * GEMM_NR_MAX * sizeof(float);

    d->b_stride = (job->k + 1) / 2;
    d->groups = (job->k + job->group - 1) / job->group;
    guard_either(&d->a, a_bytes);
    guard_either(&d->b, job->n * d->b_stride);
    guard_either(&d->panels, int4_packed_bytes(kernel, job->n, job->k, job->group));
    d->c_stride = job->n * gemm_type_bytes(job->c_type) + CANARY_BYTES;
    d->c = check_alloc(job->rows * d->c_stride + CANARY_BYTES);
    memset(d->c, CANARY, job->rows * d->c_stride + CANARY_BYTES);
    d->multipliers = check_alloc(job->n * d->groups * sizeof(*d->multipliers));
    d->weighted_sums = check_alloc(columns);
    d->scale = check_alloc(columns);
    d->bias = check_alloc(columns);
    fill_a(job->fill, d->a.data, a_bytes, GEMM_TYPE_U8);
    fill_b(job->fill, (int8_t *)d->b.data, d->b.bytes);
    if (job->fill == FILL_MINIMAL) /* -8 in both halves, against 255 */
        memset(d->b.data, 0x88, d->b.bytes);
    if (job->fill == FILL_MAXIMAL)
        memset(d->b.data, 0x77, d->b.bytes);
    for (size_t i = 0; i < job->n * d->groups; i++)
        d->multipliers[i] = random_below(8) ? (uint16_t)random_u64() : random_below(2) ? 65535 : 0;
    for (uint32_t i = 0; i < job->rows; i++) {
        d->a_rows[i] =
            d->a.data + (job->in_order || random_below(3) ? i : random_below(job->rows)) * a_stride;
        d->c_rows[i] = d->c + CANARY_BYTES + i * d->c_stride;
        d->row_zero_points[i] = (int32_t)random_below(256);
    }
    for (uint32_t j = 0; j < job->n; j++) {
        d->scale[j] = (float)(1 + random_below(1000)) * 1e-9f;
        d->bias[j] = (float)random_below(64) - 32.0f;
    }
}

static void data_close(struct data *d)
{
    guard_free(&d->a);
    guard_free(&d->b);
    guard_free(&d->panels);
    free(d->c);
    free(d->multipliers);
    free(d->weighted_sums);
    free(d->scale);
    free(d->bias);
}

/* The layout as int4.h words it, byte by byte. */
static void check_layout(const struct int4_kernel *kernel, const struct job *job,
                         const struct data *d)
{
    size_t nr = kernel->nr, group_bytes = nr * (2 + job->group / 2), bad = 0;

    for (size_t at = 0; at < d->panels.bytes; at++) {
        size_t panel = at / (group_bytes * d->groups), g = at / group_bytes % d->groups;
        size_t within = at % group_bytes, j = panel * nr, expected = 0;

        if (panel * group_bytes * d->groups + group_bytes * d->groups > d->panels.bytes) {
            bad += d->panels.data[at] != 0; /* up to the alignment */
            continue;
        }
        if (within < 2 * nr) {
            j += within / 2;
            if (j < job->n)
                expected = d->multipliers[j * d->groups + g] >> within % 2 * 8 & 255;
        } else {
            size_t t = g * job->group + (within - 2 * nr) / (4 * nr) * 8 + within % 4;

            j += (within - 2 * nr) % (4 * nr) / 4;
            if (j < job->n && t < job->k)
                expected = weight(d, j, t) & 15;
            if (j < job->n && t + 4 < job->k)
                expected |= (size_t)(weight(d, j, t + 4) & 15) << 4;
        }
        bad += d->panels.data[at] != expected;
    }
    check(bad == 0, "%zu bytes of the panels", bad);
}

static void check_weighted_sums(const struct job *job, const struct data *d)
{
    size_t bad = 0;

    for (uint32_t j = 0; j < job->n; j++) {
        int64_t sum = 0;

        for (uint32_t t = 0; t < job->k; t++)
            sum += (int64_t)d->multipliers[j * d->groups + t / job->group] * weight(d, j, t);
        bad += d->weighted_sums[j] != (float)sum;
    }
    check(bad == 0, "%zu weighted sums", bad);
}

/* f of the contract, from the operands as the user gave them. */
static float expected_sum(const struct job *job, const struct data *d, uint32_t i, uint32_t j)
{
    volatile float f = 0.0f; /* each operation rounded by itself, whatever the compiler thinks */

    for (uint32_t g = 0; g < d->groups; g++) {
        volatile float product;
        int32_t dot = 0;

        for (uint32_t t = g * job->group; t < job->k && t < (g + 1) * job->group; t++)
            dot += d->a_rows[i][t] * weight(d, j, t);
        product = (float)dot * (float)d->multipliers[j * d->groups + g];
        f = f + product;
    }
    return f;
}

static void compare(const struct job *job, const struct data *d,
                    const struct gemm_epilogue *epilogue, uint32_t n_begin)
{
    size_t c_bytes = job->rows * d->c_stride + CANARY_BYTES, bad = 0;
    uint8_t *expected = check_alloc(c_bytes);

    memset(expected, CANARY, c_bytes);
    for (uint32_t i = 0; i < job->rows; i++) {
        uint8_t *row = expected + ((uint8_t *)d->c_rows[i] - d->c);

        for (uint32_t j = n_begin; j < job->n; j++) {
            float f = expected_sum(job, d, i, j);
            int32_t acc;

            memcpy(&acc, &f, sizeof(acc));
            gemm_epilogue_ref(1, 1, 1, &acc, epilogue, i, j, (void *[]){row});
        }
    }
    for (size_t i = 0; i < c_bytes; i++)
        bad += expected[i] != d->c[i];
    check(bad == 0, "%zu bytes differ", bad);
    free(expected);
}

static void check_job(const struct int4_kernel *kernel, const struct job *job)
{
    uint32_t panels = (job->n + kernel->nr - 1u) / kernel->nr;
    uint32_t n_begin = random_below(2) ? 0 : random_below(panels) * kernel->nr;
    struct int4_weights weights = {kernel, job->n, job->k, job->group, NULL};
    struct data *d = check_alloc(sizeof(*d));
    struct gemm_epilogue epilogue;

    check_step("int4 m=%u n=%u k=%u group=%u fill=%s c=%d zero points=%d in order=%d from column "
               "%u",
               job->rows, job->n, job->k, job->group, fill_name(job->fill), job->c_type,
               job->row_zero_points, job->in_order, n_begin);
    data_open(d, kernel, job);
    memset(d->panels.data, CANARY, d->panels.bytes);
    int4_pack(kernel, job->n, job->k, job->group, d->b.data, d->b_stride, d->multipliers,
              d->panels.data, d->weighted_sums);
    check_layout(kernel, job, d);
    check_weighted_sums(job, d);
    weights.panels = d->panels.data;
    epilogue = (struct gemm_epilogue){
        .a_type = GEMM_TYPE_U8,
        .c_type = job->c_type,
        .activation = (enum gemm_activation)random_below(GEMM_ACTIVATION_COUNT),
        .inverse_c_scale = 2.0f,
        .scale = d->scale,
        .bias = d->bias,
        .weighted_sums = d->weighted_sums,
        .row_zero_points = job->row_zero_points ? d->row_zero_points : NULL,
    };
    check(gemm_epilogue_check(&epilogue, job->n) == 0, "refused");
    int4_run(&weights, &epilogue, job->rows, d->a_rows, d->c_rows, n_begin, job->n);
    compare(job, d, &epilogue, n_begin);
    data_close(d);
    free(d);
}

static struct job job_random(uint32_t rows, uint32_t n, uint32_t k)
{
    static const enum gemm_type c_types[] = {GEMM_TYPE_F32, GEMM_TYPE_F32, GEMM_TYPE_BF16,
                                             GEMM_TYPE_U8, GEMM_TYPE_S8};

    return (struct job){rows,
                        n,
                        k,
                        32u << random_below(3),
                        (enum fill)random_below(FILL_COUNT),
                        c_types[random_below(5)],
                        random_below(2),
                        random_below(2)};
}

/* Each m from one row to more than two tiles, on both sides of where many rows begin; k around
 * groups and parts of k. */
static void check_rows(const struct int4_kernel *kernel)
{
    static const uint32_t k_values[] = {31, 32, 64, 65, 127, 128, 129, 200, 256, 257, 300, 520};
    const uint32_t nr = kernel->nr;

    for (uint32_t m = 1; m <= 2u * kernel->mr + 1; m++) {
        for (uint32_t group = 32; group <= INT4_GROUP_MAX; group *= 2) {
            struct job job = job_random(m, random_below(2) ? nr : nr + 1 + random_below(nr),
                                        k_values[random_below(12)]);

            job.group = group;
            check_job(kernel, &job);
        }
    }
}

static void check_kernel(const struct int4_kernel *kernel)
{
    const uint32_t mr = kernel->mr, nr = kernel->nr;
    const uint32_t m_values[] = {1, mr, mr + 1, 2, 3, 11},
                   n_values[] = {1, nr - 1, nr, nr + 1, 131};
    static const uint32_t k_values[] = {1, 2, 7, 8, 9, 31, 32, 33, 64, 100, 127, 128, 129, 300};
    const struct job extremes[] = {
        {mr, nr, 1024, 128, FILL_MINIMAL, GEMM_TYPE_F32, false, true},
        {mr, nr, 1024, 128, FILL_MAXIMAL, GEMM_TYPE_F32, true, false},
        {1, nr, 1024, 32, FILL_MINIMAL, GEMM_TYPE_F32, true, true},
        /* More than one block of A. */
        {ROWS_MAX, 5, 9000, 64, FILL_UNIFORM, GEMM_TYPE_F32, true, true},
        {ROWS_MAX, 5, 9000, 128, FILL_UNIFORM, GEMM_TYPE_F32, true, false},
    };

    for (size_t k = 0; k < sizeof(k_values) / sizeof(k_values[0]); k++) {
        for (size_t n = 0; n < sizeof(n_values) / sizeof(n_values[0]); n++) {
            for (size_t m = 0; m < sizeof(m_values) / sizeof(m_values[0]); m++) {
                struct job job = job_random(m_values[m], n_values[n], k_values[k]);

                check_job(kernel, &job);
            }
        }
    }
    for (size_t i = 0; i < sizeof(extremes) / sizeof(extremes[0]); i++)
        check_job(kernel, &extremes[i]);
}

/* ---- quantising ------------------------------------------------------------------------------ */

static float uniform(void)
{
    return (float)((double)random_u64() / 18446744073709551616.0 * 2 - 1);
}

/* Sum of squared errors; *far counts errors beyond half a step of the group, clamped ends apart. */
static double quantised_error(uint32_t k, uint32_t group, const float *w, const uint8_t *b,
                              const uint16_t *multipliers, float column, size_t *far)
{
    double sum = 0;

    for (uint32_t t = 0; t < k; t++) {
        int32_t half = t % 2 ? b[t / 2] / 16 : b[t / 2] % 16, q = half >= 8 ? half - 16 : half;
        double step = (double)column * multipliers[t / group];
        double error = (double)w[t] - step * q;

        sum += error * error;
        *far += fabs(error) > step * 0.501;
    }
    return sum;
}

static void check_quantising(void)
{
    for (uint32_t round = 0; round < 60; round++) {
        uint32_t group = 32u << round % 3, k = 1 + random_below(400);
        float w[400], min_max, l2;
        uint8_t b[200], b_l2[200];
        uint16_t multipliers[16], multipliers_l2[16];
        size_t far = 0, unused = 0;
        struct quantize_error report;
        double error, square = 0;

        check_step("quantize_s4 k=%u group=%u", k, group);
        for (uint32_t t = 0; t < k; t++)
            w[t] = uniform() * (t / group % 2 ? 0.01f : 1.0f) * (random_below(50) ? 0.3f : 1.0f);
        if (round % 5 == 0)
            memset(w, 0, sizeof(float) * (k < 32 ? k : 32)); /* the first group, or half of it */
        min_max = quantize_s4(QUANTIZE_MIN_MAX, k, group, w, b, multipliers);
        l2 = quantize_s4(QUANTIZE_L2, k, group, w, b_l2, multipliers_l2);
        check(isnormal(min_max) && isnormal(l2), "scales %a %a", (double)min_max, (double)l2);
        error = quantised_error(k, group, w, b, multipliers, min_max, &far);
        check(far == 0, "%zu weights off by more than half a step", far);
        report = quantize_s4_error(k, group, w, min_max, b, multipliers);
        for (uint32_t t = 0; t < k; t++)
            square += (double)w[t] * (double)w[t];
        check(error == 0 ? isinf(report.sqnr_db) || isnan(report.sqnr_db)
                         : fabs(report.sqnr_db - 10 * log10(square / error)) < 1e-9 &&
                               report.max_abs * report.max_abs >= error / k &&
                               report.max_abs >= report.mean_abs,
              "report: %g dB, max %g, mean %g", report.sqnr_db, report.max_abs, report.mean_abs);
        /* 1e-3: the multipliers' rounding. */
        check(quantised_error(k, group, w, b_l2, multipliers_l2, l2, &unused) <=
                  error * 1.001 + 1e-12,
              "L2 is worse than min-max");
        for (uint32_t g = 0; g * group < k; g++)
            check(multipliers[g] >= 1 && multipliers_l2[g] >= 1, "multiplier");
    }
}

static void check_checks(void)
{
    const float sums[1] = {3.0f}, scale[1] = {0.5f};
    float bias[1] = {1.0f};

    check_step("int4_check");
    check(int4_check(1, 32) == 0 && int4_check(65536, 64) == 0 && int4_check(7, 128) == 0, "valid");
    check(int4_check(8, 0) == -EINVAL && int4_check(8, 16) == -EINVAL &&
              int4_check(8, 256) == -EINVAL && int4_check(8, 33) == -EINVAL,
          "groups");
    check(int4_check(0, 32) == -ERANGE && int4_check(65537, 32) == -ERANGE, "k");
    int4_bias(1, 128, sums, scale, bias);
    check(bias[0] == 1.0f - 128.0f * 3.0f * 0.5f, "bias %g", (double)bias[0]);
}

/* Float rows against the product in double precision, within half a step of A for each weight. */
static void check_float_rows(const struct int4_kernel *kernel)
{
    enum { ROWS = 5, N = 70, K = 203, GROUP = 64, GROUPS = 4 };
    static float a[ROWS][K], w[N][K], y[ROWS][N];
    static uint8_t b[N][(K + 1) / 2];
    static uint16_t multipliers[N][GROUPS];
    static _Alignas(GEMM_ALIGN) float sums[2 * GEMM_NR_MAX], scale[2 * GEMM_NR_MAX],
        bias[2 * GEMM_NR_MAX];
    struct int4_weights weights = {kernel, N, K, GROUP, NULL};
    uint8_t *panels = check_alloc(int4_packed_bytes(kernel, N, K, GROUP));
    struct gemm_dynamic dynamic = {quantize_select((2u << kernel->level) - 1), GEMM_TYPE_F32,
                                   QUANTIZE_ASYMMETRIC,
                                   check_alloc(gemm_dynamic_scratch_bytes(K, kernel->mr, ROWS))};
    struct gemm_epilogue epilogue = {
        .a_type = GEMM_TYPE_U8,
        .c_type = GEMM_TYPE_F32,
        .scale = scale,
        .bias = bias,
        .weighted_sums = sums,
    };
    const void *a_rows[ROWS];
    void *c_rows[ROWS];
    size_t far = 0;

    check_step("int4_run_dynamic");
    for (size_t j = 0; j < N; j++) {
        for (size_t t = 0; t < K; t++)
            w[j][t] = uniform();
        scale[j] = quantize_s4(QUANTIZE_MIN_MAX, K, GROUP, w[j], b[j], multipliers[j]);
        bias[j] = uniform();
    }
    for (size_t i = 0; i < ROWS; i++) {
        for (size_t t = 0; t < K; t++)
            a[i][t] = uniform() + 0.3f;
        a_rows[i] = a[i];
        c_rows[i] = y[i];
    }
    int4_pack(kernel, N, K, GROUP, b[0], sizeof(b[0]), multipliers[0], panels, sums);
    weights.panels = panels;
    int4_run_dynamic(&weights, &epilogue, &dynamic, ROWS, a_rows, c_rows, 0, N);
    for (size_t i = 0; i < ROWS; i++) {
        for (size_t j = 0; j < N; j++) {
            double exact = (double)bias[j], bound = 1e-3;

            for (size_t t = 0; t < K; t++) {
                int32_t half = t % 2 ? b[j][t / 2] / 16 : b[j][t / 2] % 16;
                double value =
                    (double)scale[j] * multipliers[j][t / GROUP] * (half >= 8 ? half - 16 : half);

                exact += (double)a[i][t] * value;
                bound += fabs(value) * 0.5 * 2.0 / 255; /* the row spans less than 2 */
            }
            far += fabs(exact - (double)y[i][j]) > bound;
        }
    }
    check(far == 0, "%zu elements far from the exact product", far);
    free(panels);
    free(dynamic.scratch);
}

#if CHECK_MODELS
static void check_model(const struct int4_kernel *kernel)
{
    uint64_t failures = check_context.failures;

    check_context.kernel_name = kernel->name;
    check_rows(kernel);
    check_step("after the last call");
    check(amx_model_int4_released(), "tiles in use");
    printf("%s %s\n", check_context.failures > failures ? "FAIL" : "PASS", kernel->name);
}
#endif

void check_int4(uint32_t levels)
{
    size_t count;
    const struct int4_kernel *rows = int4_kernels(&count);

    check_context.kernel_name = "int4";
    check_checks();
    check_quantising();
    for (size_t i = count; i-- > 0;) {
        uint64_t failures = check_context.failures, checks = check_context.checks_done;

        if (!(levels & 1u << rows[i].level)) {
            printf("SKIP %s: the level is missing or masked\n", rows[i].name);
            continue;
        }
        check_context.kernel_name = rows[i].name;
        check_kernel(&rows[i]);
        check_rows(&rows[i]);
        check_float_rows(&rows[i]);
        printf("%s %s: %llu checks\n", check_context.failures > failures ? "FAIL" : "PASS",
               rows[i].name, (unsigned long long)(check_context.checks_done - checks));
    }
#if CHECK_MODELS
    check_model(amx_model_int4());
    if (levels & 1u << CPU_LEVEL_AVX2)
        check_model(avxvnni_model_int4());
#endif
}
