/* The oracle of layer_case.h.  Compiled with -ffp-contract=off like everything else: each float
 * operation below is rounded by itself. */
#include "tests/e2e/layer_oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/activation.h"
#include "tests/harness.h"

size_t type_bytes(enum gemmd_type type)
{
    switch (type) {
    case GEMMD_TYPE_U8:
    case GEMMD_TYPE_S8:
        return 1;
    case GEMMD_TYPE_S32:
    case GEMMD_TYPE_F32:
        return 4;
    case GEMMD_TYPE_BF16:
        return 2;
    default:
        return 0;
    }
}

bool layer_is_float(enum gemmd_type type)
{
    return type == GEMMD_TYPE_F32 || type == GEMMD_TYPE_BF16;
}

uint16_t layer_to_bf16(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    if (isnan(value))
        return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

size_t layer_weight_row_bytes(const struct gemmd_layer_desc *desc)
{
    return desc->b_type == GEMMD_TYPE_S4 ? (desc->k + (size_t)1) / 2 : desc->k;
}

size_t layer_group_count(const struct gemmd_layer_desc *desc)
{
    return (desc->k + (size_t)desc->group - 1) / desc->group;
}

/* A row of A as integers less their zero point, and what their unit is. */
struct row {
    int32_t *values;
    float scale;
    int32_t zero_point; /* of float rows: has not been taken off */
};

static float element(enum gemmd_type type, const void *row, uint32_t t)
{
    uint32_t bits = 0;
    float value;

    if (type == GEMMD_TYPE_BF16)
        memcpy((char *)&bits + 2, (const char *)row + 2 * (size_t)t, 2);
    else
        memcpy(&bits, (const char *)row + 4 * (size_t)t, 4);
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* kernels/quantize.h, in its words. */
static void quantise_row(const struct gemmd_layer_desc *desc, const void *from, struct row *row)
{
    bool symmetric = desc->quantize_mode == GEMMD_QUANTIZE_SYMMETRIC;
    float lo = 0, hi = 0, inverse, low, high;

    for (uint32_t t = 0; t < desc->k; t++) {
        float x = element(desc->a_type, from, t);

        if (isfinite(x)) {
            lo = x < lo ? x : lo;
            hi = x > hi ? x : hi;
        }
    }
    row->scale = symmetric ? (hi > -lo ? hi : -lo) / 127.0f : hi / 255.0f - lo / 255.0f;
    if (row->scale < 0x1p-126f)
        row->scale = 0x1p-126f;
    inverse = 1.0f / row->scale;
    row->zero_point = 128;
    if (!symmetric) {
        float z = rintf(-lo * inverse);

        row->zero_point = (int32_t)(z > 255.0f ? 255.0f : z);
    }
    low = (float)((symmetric ? 1 : 0) - row->zero_point);
    high = (float)(255 - row->zero_point);
    for (uint32_t t = 0; t < desc->k; t++) {
        float x = element(desc->a_type, from, t) * inverse;

        x = isnan(x) ? 0.0f : x < low ? low : x > high ? high : x;
        row->values[t] = (int32_t)rintf(x);
    }
}

static void read_row(const struct gemmd_layer_desc *desc, const void *from, struct row *row)
{
    const uint8_t *u8 = from;
    const int8_t *s8 = from;

    if (layer_is_float(desc->a_type)) {
        quantise_row(desc, from, row);
        return;
    }
    if (desc->a_row_scales)
        memcpy(&row->scale, u8 + desc->k, sizeof(row->scale));
    for (uint32_t t = 0; t < desc->k; t++)
        row->values[t] = (desc->a_type == GEMMD_TYPE_U8 ? u8[t] : s8[t]) - desc->a_zero_point;
}

/* The exact sum of (a - a_zero_point) * (b - b_zero_point), in 64 bits, then modulo 2^32 as
 * gemmd.h's s32. */
static int32_t accumulate(const struct gemmd_layer_desc *desc, const struct row *row, uint32_t j)
{
    const int8_t *b = (const int8_t *)desc->weights + (size_t)j * desc->k;
    int32_t b_zero_point = desc->b_zero_points ? desc->b_zero_points[j] : 0;
    int64_t sum = 0;

    for (uint32_t t = 0; t < desc->k; t++)
        sum += (int64_t)row->values[t] * (b[t] - b_zero_point);
    if (desc->bias_type == GEMMD_TYPE_S32)
        sum += ((const int32_t *)desc->bias)[j];
    return (int32_t)(uint32_t)(uint64_t)sum;
}

/* s4 weights, as kernels/int4.h says: the groups' sums of u8 as they come, their floats added up in
 * order; *weighted is what one unit of A's zero point adds. */
static float accumulate_s4(const struct gemmd_layer_desc *desc, const struct row *row, uint32_t j,
                           int32_t a_zero_point, float *weighted)
{
    const uint8_t *b = (const uint8_t *)desc->weights + j * layer_weight_row_bytes(desc);
    const uint16_t *multipliers = desc->multipliers + j * layer_group_count(desc);
    int64_t all = 0;
    float f = 0.0f;

    for (uint32_t begin = 0; begin < desc->k; begin += desc->group) {
        uint32_t multiplier = multipliers[begin / desc->group];
        int64_t dot = 0;

        for (uint32_t t = begin; t < desc->k && t < begin + desc->group; t++) {
            int32_t half = b[t / 2] >> (t % 2 ? 4 : 0) & 15;
            int32_t weight = half < 8 ? half : half - 16;

            dot += (row->values[t] + a_zero_point) * weight;
            all += (int64_t)weight * multiplier;
        }
        f = f + (float)dot * (float)multiplier;
    }
    *weighted = (float)all;
    return f;
}

static int32_t quantise(const struct gemmd_layer_desc *desc, float f)
{
    float low = desc->c_type == GEMMD_TYPE_U8 ? 0.0f : -128.0f;
    float high = desc->c_type == GEMMD_TYPE_U8 ? 255.0f : 127.0f;
    float q = f * (1.0f / desc->c_scale);

    low -= (float)desc->c_zero_point;
    high -= (float)desc->c_zero_point;
    q = q > low ? q : low; /* NaN becomes the lowest */
    q = q < high ? q : high;
    return (int32_t)rintf(q) + desc->c_zero_point; /* the default mode: ties to even */
}

/* Before the activation. */
static float real_sum(const struct gemmd_layer_desc *desc, const struct row *row, uint32_t j)
{
    float scale = desc->a_scale * desc->b_scales[desc->scale_count == 1 ? 0 : j];
    float bias = desc->bias_type == GEMMD_TYPE_F32 ? ((const float *)desc->bias)[j] : 0.0f;
    float weighted, f;

    if (desc->b_type != GEMMD_TYPE_S4) {
        f = (float)accumulate(desc, row, j);
    } else if (layer_is_float(desc->a_type)) {
        f = accumulate_s4(desc, row, j, row->zero_point, &weighted);
        f = f - (float)row->zero_point * weighted;
    } else if (desc->a_row_scales) {
        f = accumulate_s4(desc, row, j, desc->a_zero_point, &weighted);
        f = f - (float)desc->a_zero_point * weighted;
    } else {
        f = accumulate_s4(desc, row, j, desc->a_zero_point, &weighted);
        bias = bias - (float)desc->a_zero_point * weighted * scale;
    }
    f = f * scale;
    if (layer_is_float(desc->a_type) || desc->a_row_scales)
        f = f * row->scale;
    return f + bias;
}

static float activate(const struct gemmd_layer_desc *desc, float f)
{
    switch (desc->activation) {
    case GEMMD_ACTIVATION_NONE:
        return f;
    case GEMMD_ACTIVATION_RELU:
        return f > 0.0f ? f : 0.0f;
    case GEMMD_ACTIVATION_CLIP:
        f = f > desc->clip_lo ? f : desc->clip_lo;
        return f < desc->clip_hi ? f : desc->clip_hi;
    default:
        return activation_ref((enum gemm_activation)desc->activation, 0, 0, f);
    }
}

static float real_residual(const struct gemmd_layer_desc *desc, const void *row, uint32_t j)
{
    int32_t byte;

    if (layer_is_float(desc->residual_type))
        return element(desc->residual_type, row, j);
    byte = desc->residual_type == GEMMD_TYPE_U8 ? ((const uint8_t *)row)[j]
                                                : ((const int8_t *)row)[j];
    return (float)(byte - desc->residual_zero_point) * desc->residual_scale;
}

static void expect_one(const struct gemmd_layer_desc *desc, const struct row *row, uint32_t j,
                       const void *residual, char *out)
{
    static const uint32_t quiet_nan = 0x7fc00000;
    int32_t sum;
    uint16_t half;
    float f;

    if (desc->c_type == GEMMD_TYPE_S32) {
        sum = accumulate(desc, row, j);
        memcpy(out + 4 * (size_t)j, &sum, 4);
        return;
    }
    f = real_sum(desc, row, j);
    if (residual)
        f = f + real_residual(desc, residual, j);
    f = activate(desc, f);
    half = layer_to_bf16(f);
    if (desc->c_type == GEMMD_TYPE_F32)
        memcpy(out + 4 * (size_t)j, isnan(f) ? (const void *)&quiet_nan : &f, 4);
    else if (desc->c_type == GEMMD_TYPE_BF16)
        memcpy(out + 2 * (size_t)j, &half, 2);
    else
        out[j] = (char)(uint8_t)quantise(desc, f);
}

void layer_case_expect_residual(const struct layer_case *layer, uint32_t m, const void *a,
                                size_t a_stride_bytes, const void *residual, void *c,
                                size_t c_stride_bytes)
{
    const struct gemmd_layer_desc *desc = &layer->desc;
    struct row row = {.values = malloc(desc->k * sizeof(*row.values))};
    size_t r_stride_bytes =
        c_stride_bytes / type_bytes(desc->c_type) * type_bytes(desc->residual_type);
    bool adds = desc->residual_type != GEMMD_TYPE_NONE;

    REQUIRE(row.values != NULL);
    for (uint32_t i = 0; i < m; i++) {
        const char *r = adds ? (const char *)residual + i * r_stride_bytes : NULL;

        read_row(desc, (const char *)a + i * a_stride_bytes, &row);
        for (uint32_t j = 0; j < desc->n; j++)
            expect_one(desc, &row, j, r, (char *)c + i * c_stride_bytes);
    }
    free(row.values);
}

void layer_case_expect(const struct layer_case *layer, uint32_t m, const void *a,
                       size_t a_stride_bytes, void *c, size_t c_stride_bytes)
{
    REQUIRE(layer->desc.residual_type == GEMMD_TYPE_NONE);
    layer_case_expect_residual(layer, m, a, a_stride_bytes, NULL, c, c_stride_bytes);
}
