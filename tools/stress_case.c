/*
 * Random operands over the full range of their types, and the plain loops that say what the worker
 * must answer: C[i][j] = sum over p of (A[i][p] - zero point) * B[j][p], plus bias[j], exact.
 *
 * Freivalds' check (R. Freivalds, 1977) of a row c of C: for a vector r of signs,
 * c * r = (a - zero point) * (B^T r) + bias * r; the right side is computed once per input, so a
 * check costs m * n additions instead of m * n * k multiplications.  A single wrong element always
 * shows.
 */
#include "tools/stress_case.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BIAS_MAX 100000

static int32_t input_value(const struct stress_case *test, const uint8_t *row, uint32_t p)
{
    return (test->a_signed ? (int8_t)row[p] : row[p]) - test->a_zero_point;
}

uint64_t stress_case_arena_bytes(const struct stress_shape *shape)
{
    uint64_t bytes = (uint64_t)shape->m * shape->k;

    return STRESS_INPUTS * ((bytes + 63) / 64 * 64 + 64); /* 64 more: an empty one takes a line */
}

int stress_case_open(struct stress_case *out, struct gemmd *session,
                     const struct stress_options *options, uint32_t shape_index)
{
    const struct stress_shape *shape = &options->shapes[shape_index];
    uint64_t state = options->seed ^ ((uint64_t)shape_index << 32);
    struct gemmd_layer_desc desc;
    size_t count = (size_t)shape->n * shape->k;

    out->shape = *shape;
    out->a_signed = shape_index % 2;
    out->a_zero_point = out->a_signed ? -5 : 131;
    out->weights = malloc(count);
    out->bias = malloc(shape->n * sizeof(*out->bias));
    if (!out->weights || !out->bias)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        out->weights[i] = (int8_t)(stress_random(&state) >> 56);
    for (uint32_t j = 0; j < shape->n; j++)
        out->bias[j] = (int32_t)(stress_random(&state) % (2 * BIAS_MAX + 1)) - BIAS_MAX;

    gemmd_layer_desc_init(&desc);
    desc.n = shape->n;
    desc.k = shape->k;
    desc.a_type = out->a_signed ? GEMMD_TYPE_S8 : GEMMD_TYPE_U8;
    desc.a_zero_point = out->a_zero_point;
    desc.c_type = GEMMD_TYPE_S32;
    desc.weights = out->weights;
    desc.bias_type = GEMMD_TYPE_S32;
    desc.bias = out->bias;
    return gemmd_layer_create(session, &desc, &out->layer);
}

static void multiply(const struct stress_case *test, const uint8_t *a, int32_t *c)
{
    uint32_t n = test->shape.n, k = test->shape.k;

    for (uint32_t i = 0; i < test->shape.m; i++) {
        const uint8_t *row = a + (size_t)i * k;

        for (uint32_t j = 0; j < n; j++) {
            const int8_t *column = test->weights + (size_t)j * k;
            int32_t sum = test->bias[j];

            for (uint32_t p = 0; p < k; p++)
                sum += input_value(test, row, p) * column[p];
            c[(size_t)i * n + j] = sum;
        }
    }
}

/* The right sides of the check with the vector of signs `signs`: one per row and input. */
static int sum_rows(struct stress_case *test, uint32_t vector, const int8_t *signs)
{
    uint32_t m = test->shape.m, k = test->shape.k;
    int32_t *folded = calloc(k, sizeof(*folded)); /* B^T r: at most 128 * 2^20 */
    int64_t folded_bias = 0;

    if (!folded)
        return -ENOMEM;
    for (uint32_t j = 0; j < test->shape.n; j++) {
        folded_bias += (int64_t)signs[j] * test->bias[j];
        for (uint32_t p = 0; p < k; p++)
            folded[p] += signs[j] * test->weights[(size_t)j * k + p];
    }
    for (uint32_t input = 0; input < STRESS_INPUTS; input++) {
        int64_t *sums = test->sums + ((size_t)input * STRESS_SIGN_VECTORS + vector) * m;

        for (uint32_t i = 0; i < m; i++) {
            const uint8_t *row = test->inputs[input] + (size_t)i * k;

            sums[i] = folded_bias;
            for (uint32_t p = 0; p < k; p++)
                sums[i] += (int64_t)input_value(test, row, p) * folded[p];
        }
    }
    free(folded);
    return 0;
}

static int prepare_freivalds(struct stress_case *test, uint64_t *state)
{
    size_t n = test->shape.n, rows = test->shape.m ? test->shape.m : 1;

    test->signs = malloc(STRESS_SIGN_VECTORS * n);
    test->sums = calloc(STRESS_INPUTS * STRESS_SIGN_VECTORS * rows, sizeof(*test->sums));
    if (!test->signs || !test->sums)
        return -ENOMEM;
    for (uint32_t vector = 0; vector < STRESS_SIGN_VECTORS; vector++) {
        int8_t *signs = test->signs + vector * n;
        int error;

        for (size_t j = 0; j < n; j++)
            signs[j] = stress_random(state) >> 63 ? 1 : -1;
        error = sum_rows(test, vector, signs);
        if (error < 0)
            return error;
    }
    return 0;
}

static int prepare_full(struct stress_case *test)
{
    size_t count = (size_t)test->shape.m * test->shape.n;

    for (uint32_t input = 0; input < STRESS_INPUTS; input++) {
        test->expected[input] = malloc((count ? count : 1) * sizeof(int32_t));
        if (!test->expected[input])
            return -ENOMEM;
        multiply(test, test->inputs[input], test->expected[input]);
    }
    return 0;
}

int stress_case_prepare(struct stress_case *test, struct gemmd *session,
                        const struct stress_options *options, uint32_t session_index)
{
    size_t bytes = (size_t)test->shape.m * test->shape.k;
    uint64_t state = options->seed ^ ((uint64_t)(session_index + 1) << 40) ^ test->shape.k;

    for (uint32_t input = 0; input < STRESS_INPUTS; input++) {
        test->inputs[input] = gemmd_buffer_alloc(session, bytes ? bytes : 1);
        if (!test->inputs[input])
            return -ENOBUFS;
        for (size_t i = 0; i < bytes; i++)
            test->inputs[input][i] = (uint8_t)(stress_random(&state) >> 56);
    }
    switch (options->verify) {
    case STRESS_VERIFY_NONE:
        return 0;
    case STRESS_VERIFY_FULL:
        return prepare_full(test);
    case STRESS_VERIFY_FREIVALDS:
        return prepare_freivalds(test, &state);
    }
    return -EINVAL;
}

static bool check_freivalds(const struct stress_case *test, uint32_t input, uint32_t vector,
                            const int32_t *c)
{
    uint32_t m = test->shape.m, n = test->shape.n;
    const int8_t *signs = test->signs + (size_t)vector * n;
    const int64_t *sums = test->sums + ((size_t)input * STRESS_SIGN_VECTORS + vector) * m;

    for (uint32_t i = 0; i < m; i++) {
        int64_t sum = 0;

        for (uint32_t j = 0; j < n; j++)
            sum += (int64_t)signs[j] * c[(size_t)i * n + j];
        if (sum != sums[i])
            return false;
    }
    return true;
}

bool stress_case_check(const struct stress_case *test, enum stress_verify verify, uint32_t input,
                       uint64_t turn, const int32_t *c)
{
    size_t bytes = (size_t)test->shape.m * test->shape.n * sizeof(*c);

    switch (verify) {
    case STRESS_VERIFY_NONE:
        return true;
    case STRESS_VERIFY_FULL:
        return memcmp(c, test->expected[input], bytes) == 0;
    case STRESS_VERIFY_FREIVALDS:
        return check_freivalds(test, input, turn % STRESS_SIGN_VECTORS, c);
    }
    return false;
}

void stress_case_close(struct stress_case *test)
{
    free(test->weights);
    free(test->bias);
    for (uint32_t input = 0; input < STRESS_INPUTS; input++)
        free(test->expected[input]);
    free(test->signs);
    free(test->sums);
    memset(test, 0, sizeof(*test));
}
