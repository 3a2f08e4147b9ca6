/*
 * Row quantisation: each level against the reference on hostile rows between guard pages, the
 * reference against answers worked out by hand and its error bound; weight scales against brute
 * force.
 */
#include "tests/kernel/check.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bf16.h"
#include "kernels/quantize.h"

enum { K_LONG = 4099, CANARY = 0xc3, PAGE = 4096 };

enum row_kind {
    ROW_UNIFORM,   /* about 0 */
    ROW_POSITIVE,  /* after a ReLU */
    ROW_OUTLIER,   /* one value far out */
    ROW_TIES,      /* multiples of half a step */
    ROW_ANY,       /* any bit pattern: NaN, infinities, huge and subnormal values */
    ROW_SUBNORMAL, /* nothing but subnormals: the smallest scale */
    ROW_HUGE,      /* both ends at FLT_MAX: hi - lo would overflow */
    ROW_ZERO,
    ROW_NAN, /* not one finite value */
    ROW_KINDS
};

static float uniform(void)
{
    return (float)((double)random_u64() / 18446744073709551616.0 * 2 - 1);
}

static float row_value(enum row_kind kind, size_t t)
{
    uint32_t bits = (uint32_t)random_u64();
    float any;

    memcpy(&any, &bits, sizeof(any));
    switch (kind) {
    case ROW_POSITIVE:
        return fmaxf(0.0f, uniform() * 6.0f);
    case ROW_OUTLIER:
        return t % 97 == 5 ? 3000.0f : uniform();
    case ROW_TIES: /* the ends -16 and 15.875 make the step an eighth */
        return t == 0 ? -16.0f : t == 1 ? 15.875f : (float)random_below(512) * 0.0625f - 16.0f;
    case ROW_ANY:
        return any;
    case ROW_SUBNORMAL:
        return copysignf(FLT_MIN * 0.001f, uniform());
    case ROW_HUGE:
        return random_below(2) ? copysignf(FLT_MAX, uniform()) : uniform() * FLT_MAX;
    case ROW_ZERO:
        return random_below(2) ? 0.0f : -0.0f;
    case ROW_NAN:
        return random_below(2) ? NAN : copysignf(INFINITY, uniform());
    default:
        return uniform();
    }
}

static void row_fill(enum row_kind kind, enum gemm_type type, size_t k, uint8_t *to)
{
    for (size_t t = 0; t < k; t++) {
        float f = row_value(kind, t);
        uint16_t half = bf16_from_f32(f);

        if (type == GEMM_TYPE_F32)
            memcpy(to + t * sizeof(f), &f, sizeof(f));
        else
            memcpy(to + t * sizeof(half), &half, sizeof(half));
    }
}

static float row_element(enum gemm_type type, const uint8_t *x, size_t t)
{
    uint16_t half;
    float f;

    if (type == GEMM_TYPE_BF16) {
        memcpy(&half, x + t * sizeof(half), sizeof(half));
        return bf16_to_f32(half);
    }
    memcpy(&f, x + t * sizeof(f), sizeof(f));
    return f;
}

/* What quantize.h promises about the numbers, whatever the level. */
static void check_promises(enum gemm_type type, size_t k, const uint8_t *x, const uint8_t *q,
                           const struct quantize_row *row)
{
    double lo = 0, hi = 0, scale = (double)row->params.scale;
    int32_t sum = 0, zero_point = row->params.zero_point;
    size_t far = 0, special = 0;

    for (size_t t = 0; t < k; t++) {
        double f = (double)row_element(type, x, t);

        if (isfinite(f)) {
            lo = fmin(lo, f);
            hi = fmax(hi, f);
        }
    }
    for (size_t t = 0; t < k; t++) {
        double f = (double)row_element(type, x, t);

        sum += q[t] - zero_point;
        if (isnan(f))
            special += q[t] != zero_point;
        else if (isinf(f)) /* as the end of the finite range: half a step from it at most */
            special += fabs((f < 0 ? lo : hi) - scale * (q[t] - zero_point)) > scale * 0.5001 &&
                       q[t] != 255 && q[t] != 0 && q[t] != 1;
        else
            far += fabs(f - scale * (q[t] - zero_point)) > scale * 0.5001;
    }
    check(isnormal(row->params.scale) && scale > 0, "scale %a", scale);
    check(zero_point >= 0 && zero_point <= 255, "zero point %d", zero_point);
    check(sum == row->sum, "sum %d, expected %d", row->sum, sum);
    check(far == 0, "%zu values off by more than half a step", far);
    check(special == 0, "%zu NaN or infinities", special);
}

static void check_row(const struct quantize_kernel *kernel, enum gemm_type type, enum row_kind kind,
                      enum quantize_mode mode, size_t k, struct guard *x, struct guard *q)
{
    size_t n = 0, inner = q->mapping_bytes - 2 * PAGE;
    const struct quantize_kernel *table = quantize_kernels(&n), *ref = &table[n - 1];
    struct quantize_row row, expected;
    uint8_t *wanted = check_alloc(k);
    size_t dirty = 0;

    check_step("quantise k=%zu type=%d rows of kind %d mode=%d", k, type, kind, mode);
    guard_place(x, k * gemm_type_bytes(type), random_below(2) ? GUARD_AFTER : GUARD_BEFORE);
    guard_place(q, k, random_below(2) ? GUARD_AFTER : GUARD_BEFORE);
    memset(q->mapping + PAGE, CANARY, inner);
    row_fill(kind, type, k, x->data);
    row = quantize_row(kernel, type, mode, k, x->data, q->data);
    expected = quantize_row(ref, type, mode, k, x->data, wanted);
    check(!memcmp(&row, &expected, sizeof(row)), "scale %a zero %d sum %d, expected %a %d %d",
          (double)row.params.scale, row.params.zero_point, row.sum, (double)expected.params.scale,
          expected.params.zero_point, expected.sum);
    check(!memcmp(q->data, wanted, k), "integers differ");
    for (uint8_t *p = q->mapping + PAGE; p < q->mapping + PAGE + inner; p++)
        dirty += (p < q->data || p >= q->data + k) && *p != CANARY;
    check(dirty == 0, "%zu bytes outside the row were written", dirty);
    if (kernel == ref)
        check_promises(type, k, x->data, q->data, &row);
    free(wanted);
}

static void check_kernel(const struct quantize_kernel *kernel)
{
    static const size_t k_long[] = {255, 256, 257, 1000, 1024, K_LONG};
    struct guard x, q;

    guard_alloc(&x, K_LONG * sizeof(float));
    guard_alloc(&q, K_LONG);
    for (size_t k = 1; k <= 140 + sizeof(k_long) / sizeof(k_long[0]); k++) {
        size_t length = k <= 140 ? k : k_long[k - 141];

        for (int kind = 0; kind < ROW_KINDS; kind++) {
            for (int bits = 0; bits < 4; bits++)
                check_row(kernel, bits & 1 ? GEMM_TYPE_BF16 : GEMM_TYPE_F32, (enum row_kind)kind,
                          (enum quantize_mode)(bits >> 1), length, &x, &q);
        }
    }
    guard_free(&x);
    guard_free(&q);
}

/* ---- the reference against paper ------------------------------------------------------------- */

struct paper_row {
    const char *what;
    enum quantize_mode mode;
    float x[4];
    float scale;
    int32_t zero_point;
    uint8_t q[4];
};

static const struct paper_row paper_rows[] = {
    {"asymmetric", QUANTIZE_ASYMMETRIC, {-64, 0, 191, 2}, 1, 64, {0, 64, 255, 66}},
    {"positive: the zero point is 0", QUANTIZE_ASYMMETRIC, {255, 0, 10, 1}, 1, 0, {255, 0, 10, 1}},
    {"negative: it is 255", QUANTIZE_ASYMMETRIC, {-255, -1, 0, -9}, 1, 255, {0, 254, 255, 246}},
    {"ties to even", QUANTIZE_ASYMMETRIC, {255, 0.5f, 1.5f, 2.5f}, 1, 0, {255, 0, 2, 2}},
    {"symmetric", QUANTIZE_SYMMETRIC, {-127, 0, 63.5f, 1}, 1, 128, {1, 128, 192, 129}},
    {"NaN", QUANTIZE_ASYMMETRIC, {-64, NAN, 191, 2}, 1, 64, {0, 64, 255, 66}},
    {"infinities", QUANTIZE_ASYMMETRIC, {-INFINITY, -64, 191, INFINITY}, 1, 64, {0, 0, 255, 255}},
    {"symmetric infinities",
     QUANTIZE_SYMMETRIC,
     {-INFINITY, 127, 0, INFINITY},
     1,
     128,
     {1, 255, 128, 255}},
    {"nothing finite",
     QUANTIZE_ASYMMETRIC,
     {NAN, INFINITY, -INFINITY, 0},
     FLT_MIN,
     0,
     {0, 255, 0, 0}},
    {"zeros", QUANTIZE_ASYMMETRIC, {0, -0.0f, 0, 0}, FLT_MIN, 0, {0, 0, 0, 0}},
    {"zeros, symmetric", QUANTIZE_SYMMETRIC, {0, -0.0f, 0, 0}, FLT_MIN, 128, {128, 128, 128, 128}},
};

static void check_paper_rows(void)
{
    for (size_t i = 0; i < sizeof(paper_rows) / sizeof(paper_rows[0]); i++) {
        const struct paper_row *p = &paper_rows[i];
        uint8_t q[4];
        struct quantize_row row =
            quantize_row(quantize_select(0), GEMM_TYPE_F32, p->mode, 4, p->x, q);

        check_step("row on paper: %s", p->what);
        check(memcmp(&row.params.scale, &p->scale, sizeof(float)) == 0 &&
                  row.params.zero_point == p->zero_point,
              "scale %a, zero point %d", (double)row.params.scale, row.params.zero_point);
        check(!memcmp(q, p->q, sizeof(q)), "%d %d %d %d", q[0], q[1], q[2], q[3]);
    }
}

static void check_params(void)
{
    struct quantize_params p;

    check_step("parameters of a range");
    p = quantize_params_of(GEMM_TYPE_S8, QUANTIZE_ASYMMETRIC, -64.0f, 191.0f);
    check(p.scale == 1.0f && p.zero_point == -64, "s8: %g %d", (double)p.scale, p.zero_point);
    p = quantize_params_of(GEMM_TYPE_S8, QUANTIZE_SYMMETRIC, -254.0f, 3.0f);
    check(p.scale == 2.0f && p.zero_point == 0, "s8: %g %d", (double)p.scale, p.zero_point);
    p = quantize_params_of(GEMM_TYPE_U8, QUANTIZE_ASYMMETRIC, 10.0f, 510.0f);
    check(p.scale == 2.0f && p.zero_point == 0, "0 joins: %g %d", (double)p.scale, p.zero_point);
    p = quantize_params_of(GEMM_TYPE_U8, QUANTIZE_SYMMETRIC, -1.0f, 127.0f);
    check(p.scale == 1.0f && p.zero_point == 128, "u8: %g %d", (double)p.scale, p.zero_point);
    p = quantize_params_of(GEMM_TYPE_U8, QUANTIZE_ASYMMETRIC, -FLT_MAX, FLT_MAX);
    check(isfinite(p.scale) && p.zero_point == 128, "all: %g %d", (double)p.scale, p.zero_point);
}

/* ---- weights against brute force ------------------------------------------------------------- */

static double squares(unsigned int bits, size_t k, const float *w, double scale)
{
    double hi = (double)((1 << (bits - 1)) - 1), sum = 0;

    for (size_t t = 0; t < k; t++) {
        double q = fmin(fmax(nearbyint((double)w[t] / scale), -hi - 1), hi);
        double error = (double)w[t] - q * scale;

        sum += error * error;
    }
    return sum;
}

/* A bell with rare large values, as weights have. */
static float weight(void)
{
    double sum = 0;

    for (int i = 0; i < 6; i++)
        sum += (double)uniform();
    return (float)(random_below(100) ? sum * 0.02 : sum * 0.2);
}

static void check_search(unsigned int bits, size_t k)
{
    enum { TRIED = 20000 };
    float *w = check_alloc(k * sizeof(*w));
    double most = 0, best = INFINITY, found, hi = (double)((1 << (bits - 1)) - 1);
    float min_max, l2;

    for (size_t t = 0; t < k; t++) {
        w[t] = weight();
        most = fmax(most, fabs((double)w[t]));
    }
    check_step("weight scale bits=%u k=%zu", bits, k);
    min_max = quantize_scale(QUANTIZE_MIN_MAX, bits, k, w);
    l2 = quantize_scale(QUANTIZE_L2, bits, k, w);
    for (int i = 1; i <= TRIED; i++)
        best = fmin(best, squares(bits, k, w, most / hi * 1.1 * i / TRIED));
    found = squares(bits, k, w, (double)l2);
    check(min_max == (float)(most / hi), "min-max %a", (double)min_max);
    /* Of few values and many levels a lucky scale hits nearly all: brute force has more luck. */
    check(k < 64 && bits == 8 ? found <= best + (double)k * pow(most / hi * 0.05, 2)
                              : found <= best * 1.01,
          "L2 error %g, brute force %g", found, best);
    /* Both scales are rounded to float. */
    check(found <=
              squares(bits, k, w, (double)min_max) * (1 + 1e-6) + (double)k * pow(most * 1e-7, 2),
          "worse than min-max");
    free(w);
}

static void check_report(void)
{
    static const float w[2][3] = {{1.0f, -2.0f, 0.25f}, {3.0f, 0.0f, -3.0f}};
    const float scales[2] = {1.0f, 3.0f};
    const int32_t zero_points[2] = {0, -5};
    struct quantize_error errors[2], total;
    int8_t b[6];

    check_step("error report");
    quantize_weights(8, 2, 3, w[0], 3, scales, zero_points, b);
    check(b[0] == 1 && b[1] == -2 && b[2] == 0 && b[3] == -4 && b[4] == -5 && b[5] == -6,
          "integers");
    quantize_error_report(2, 3, w[0], 3, scales, zero_points, b, errors, &total);
    check(errors[0].max_abs == 0.25 && errors[0].mean_abs == 0.25 / 3, "max %g, mean %g",
          errors[0].max_abs, errors[0].mean_abs);
    check(fabs(errors[0].sqnr_db - 10 * log10(5.0625 / 0.0625)) < 1e-12, "SQNR %g",
          errors[0].sqnr_db);
    check(errors[1].max_abs == 0 && isinf(errors[1].sqnr_db), "without error");
    check(total.max_abs == 0.25 && total.mean_abs == 0.25 / 6 &&
              fabs(total.sqnr_db - 10 * log10(23.0625 / 0.0625)) < 1e-12,
          "total %g %g %g", total.max_abs, total.mean_abs, total.sqnr_db);
    quantize_weights(4, 1, 3, (const float[]){9.0f, -9.0f, 2.5f}, 3, scales, NULL, b);
    check(b[0] == 7 && b[1] == -8 && b[2] == 2, "clamped to s4: %d %d %d", b[0], b[1], b[2]);
}

/* Per tensor is the scale of all values; a channel of zeros has 1; strides are honoured. */
static void check_scales(void)
{
    enum { N = 3, K = 40, STRIDE = 45 };
    float w[N * STRIDE], packed[N * K], per_channel[N], per_tensor[N];

    check_step("scales of channels and tensor");
    for (size_t i = 0; i < N * STRIDE; i++)
        w[i] = i % STRIDE < K ? weight() : 1e30f;
    memset(w + STRIDE, 0, K * sizeof(float));
    for (size_t j = 0; j < N; j++)
        memcpy(packed + j * K, w + j * STRIDE, K * sizeof(float));
    for (int method = 0; method < 2; method++) {
        enum quantize_method m = (enum quantize_method)method;

        quantize_weight_scales(m, 8, false, N, K, w, STRIDE, per_channel);
        quantize_weight_scales(m, 8, true, N, K, w, STRIDE, per_tensor);
        for (size_t j = 0; j < N; j++) {
            check(per_channel[j] == quantize_scale(m, 8, K, packed + j * K), "channel %zu", j);
            check(per_tensor[j] == quantize_scale(m, 8, N * K, packed), "tensor");
        }
        check(per_channel[1] == 1.0f, "zeros");
    }
}

void check_quantize_reference(void)
{
    static const unsigned int bits[] = {8, 4, 2};
    static const size_t ks[] = {1, 2, 3, 8, 32, 64, 300};

    check_context.kernel_name = "quantise";
    check_paper_rows();
    check_params();
    check_report();
    check_scales();
    for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
        for (size_t j = 0; j < sizeof(ks) / sizeof(ks[0]); j++)
            check_search(bits[i], ks[j]);
    }
}

void check_quantize(uint32_t levels)
{
    size_t count;
    const struct quantize_kernel *rows = quantize_kernels(&count);

    for (size_t i = count; i-- > 0;) {
        uint64_t failures = check_context.failures, checks = check_context.checks_done;

        if (!(levels & 1u << rows[i].level)) {
            printf("SKIP %s: the level is missing or masked\n", rows[i].name);
            continue;
        }
        check_context.kernel_name = rows[i].name;
        check_kernel(&rows[i]);
        printf("%s %s: %llu checks\n", check_context.failures > failures ? "FAIL" : "PASS",
               rows[i].name, (unsigned long long)(check_context.checks_done - checks));
    }
}
