/* See layer_case.h.  Compiled with -ffp-contract=off like everything else: each float operation
 * below is rounded by itself. */
#include "tests/e2e/layer_case.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/activation.h"
#include "tests/harness.h"

uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void random_bytes(uint64_t *state, void *out, size_t bytes)
{
    uint8_t *byte = out;

    while (bytes--)
        *byte++ = (uint8_t)(random_next(state) >> 56);
}

/* In [0, 1). */
static float random_unit(uint64_t *state)
{
    return (float)(random_next(state) >> 40) / 16777216.0f;
}

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

static bool is_float(enum gemmd_type type)
{
    return type == GEMMD_TYPE_F32 || type == GEMMD_TYPE_BF16;
}

static uint16_t to_bf16(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    if (isnan(value))
        return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static int32_t random_zero_point(uint64_t *state, enum gemmd_type type)
{
    int32_t byte = (int32_t)(random_next(state) >> 56);

    if (type == GEMMD_TYPE_U8)
        return byte;
    return type == GEMMD_TYPE_S8 ? byte - 128 : 0;
}

static float random_float(uint64_t *state)
{
    static const float rare[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-40f, -3e38f, 1e5f};
    uint64_t draw = random_next(state);

    return draw % 256 == 0 ? rare[draw / 256 % 8] : 8.0f * random_unit(state) - 4.0f;
}

void layer_case_fill(const struct layer_case *layer, uint64_t *seed, void *a, size_t bytes)
{
    size_t element = type_bytes(layer->desc.a_type);
    char *to = a;

    if (!is_float(layer->desc.a_type)) {
        random_bytes(seed, a, bytes);
        return;
    }
    for (; bytes >= element; bytes -= element, to += element) {
        float value = random_float(seed);
        uint16_t half = to_bf16(value);

        memcpy(to, element == 2 ? (const void *)&half : &value, element);
    }
}

static void *fill_bias(uint64_t *state, uint32_t n, enum gemmd_type type)
{
    int32_t *s32 = malloc(n * sizeof(*s32));
    float *f32 = (float *)(void *)s32;

    REQUIRE(s32 != NULL);
    for (uint32_t j = 0; j < n; j++) {
        if (type == GEMMD_TYPE_S32)
            s32[j] = (int32_t)(random_next(state) >> 44) - (1 << 19);
        else
            f32[j] = 4.0f * random_unit(state) - 2.0f;
    }
    return s32;
}

static size_t weight_row_bytes(const struct gemmd_layer_desc *desc)
{
    return desc->b_type == GEMMD_TYPE_S4 ? (desc->k + (size_t)1) / 2 : desc->k;
}

static size_t group_count(const struct gemmd_layer_desc *desc)
{
    return (desc->k + (size_t)desc->group - 1) / desc->group;
}

static void fill_multipliers(struct layer_case *layer, uint64_t *state)
{
    size_t bytes = layer->desc.n * group_count(&layer->desc) * sizeof(*layer->multipliers);

    layer->multipliers = malloc(bytes);
    REQUIRE(layer->multipliers != NULL);
    random_bytes(state, layer->multipliers, bytes);
    layer->desc.multipliers = layer->multipliers;
}

static void fill_weights(struct layer_case *layer, uint64_t *state)
{
    struct gemmd_layer_desc *desc = &layer->desc;
    size_t bytes = desc->n * weight_row_bytes(desc);
    /* The sums of rows and weights are about 90 * 74 * sqrt(k); float rows are 2, not 90; s4
     * weights 4.6 with multipliers of 33000. */
    float size = 6660.0f * sqrtf((float)desc->k);

    if (is_float(desc->a_type))
        size = size / 40.0f;
    if (desc->b_type == GEMMD_TYPE_S4)
        size = size * 2000.0f;
    layer->weights = malloc(bytes);
    layer->scales = malloc(desc->n * sizeof(*layer->scales));
    REQUIRE(layer->weights != NULL && layer->scales != NULL);
    random_bytes(state, layer->weights, bytes);
    for (uint32_t j = 0; j < desc->n; j++)
        layer->scales[j] = (0.5f + random_unit(state)) / size;
    desc->weights = layer->weights;
    desc->b_scales = layer->scales;
}

void layer_case_init_kind(struct layer_case *layer, uint32_t n, uint32_t k,
                          const struct layer_kind *kind, bool per_channel, uint64_t seed)
{
    struct gemmd_layer_desc *desc = &layer->desc;
    uint64_t state = seed;

    memset(layer, 0, sizeof(*layer));
    gemmd_layer_desc_init(desc);
    desc->n = n;
    desc->k = k;
    desc->a_type = kind->a_type ? kind->a_type : GEMMD_TYPE_U8;
    desc->b_type = kind->b_type ? kind->b_type : GEMMD_TYPE_S8;
    desc->c_type = kind->c_type ? kind->c_type : GEMMD_TYPE_F32;
    desc->activation = kind->activation;
    desc->quantize_mode = kind->quantize_mode;
    desc->group = kind->group;
    desc->a_zero_point = random_zero_point(&state, desc->a_type);
    desc->c_zero_point = random_zero_point(&state, desc->c_type);
    desc->a_scale = 0.01f + random_unit(&state);
    desc->c_scale = 0.01f + 0.05f * random_unit(&state);
    if (is_float(desc->a_type))
        desc->a_scale = 1.0f;
    if (kind->activation == GEMMD_ACTIVATION_CLIP) {
        desc->clip_lo = -random_unit(&state);
        desc->clip_hi = random_unit(&state);
    }
    desc->scale_count = per_channel ? n : 1;
    fill_weights(layer, &state);
    desc->bias_type = kind->bias_type;
    if (kind->bias_type != GEMMD_TYPE_NONE)
        desc->bias = layer->bias = fill_bias(&state, n, kind->bias_type);
    if (desc->b_type == GEMMD_TYPE_S4)
        fill_multipliers(layer, &state);
    if (kind->b_zero_points) {
        desc->b_zero_points = layer->zero_points = malloc(n);
        REQUIRE(layer->zero_points != NULL);
        random_bytes(&state, layer->zero_points, n);
    }
}

void layer_case_init(struct layer_case *layer, uint32_t n, uint32_t k, enum gemmd_type a_type,
                     enum gemmd_type c_type, enum gemmd_type bias_type,
                     enum gemmd_activation activation, bool per_channel, uint64_t seed)
{
    const struct layer_kind kind = {.a_type = a_type,
                                    .c_type = c_type,
                                    .bias_type = bias_type,
                                    .activation = activation};

    layer_case_init_kind(layer, n, k, &kind, per_channel, seed);
}

void layer_case_plain(struct layer_case *layer, uint32_t n, uint32_t k, uint64_t seed)
{
    layer_case_init(layer, n, k, GEMMD_TYPE_U8, GEMMD_TYPE_F32, GEMMD_TYPE_F32,
                    GEMMD_ACTIVATION_RELU, true, seed);
}

void layer_case_fini(struct layer_case *layer)
{
    free(layer->weights);
    free(layer->scales);
    free(layer->bias);
    free(layer->multipliers);
    free(layer->zero_points);
    free(layer->source);
    memset(layer, 0, sizeof(*layer));
}

/* ---- the oracle ------------------------------------------------------------------------------ */

/* A row of A as integers less their zero point, and what their unit is. */
struct row {
    int32_t *values;
    float scale;
    int32_t zero_point; /* of float rows: has not been taken off */
};

static float element(const struct gemmd_layer_desc *desc, const void *row, uint32_t t)
{
    uint32_t bits = 0;
    float value;

    if (desc->a_type == GEMMD_TYPE_BF16)
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
        float x = element(desc, from, t);

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
        float x = element(desc, from, t) * inverse;

        x = isnan(x) ? 0.0f : x < low ? low : x > high ? high : x;
        row->values[t] = (int32_t)rintf(x);
    }
}

static void read_row(const struct gemmd_layer_desc *desc, const void *from, struct row *row)
{
    const uint8_t *u8 = from;
    const int8_t *s8 = from;

    if (is_float(desc->a_type)) {
        quantise_row(desc, from, row);
        return;
    }
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
    const uint8_t *b = (const uint8_t *)desc->weights + j * weight_row_bytes(desc);
    const uint16_t *multipliers = desc->multipliers + j * group_count(desc);
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
    } else if (is_float(desc->a_type)) {
        f = accumulate_s4(desc, row, j, row->zero_point, &weighted);
        f = f - (float)row->zero_point * weighted;
    } else {
        f = accumulate_s4(desc, row, j, desc->a_zero_point, &weighted);
        bias = bias - (float)desc->a_zero_point * weighted * scale;
    }
    f = f * scale;
    if (is_float(desc->a_type))
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

static void expect_one(const struct gemmd_layer_desc *desc, const struct row *row, uint32_t j,
                       char *out)
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
    f = activate(desc, real_sum(desc, row, j));
    half = to_bf16(f);
    if (desc->c_type == GEMMD_TYPE_F32)
        memcpy(out + 4 * (size_t)j, isnan(f) ? (const void *)&quiet_nan : &f, 4);
    else if (desc->c_type == GEMMD_TYPE_BF16)
        memcpy(out + 2 * (size_t)j, &half, 2);
    else
        out[j] = (char)(uint8_t)quantise(desc, f);
}

void layer_case_expect(const struct layer_case *layer, uint32_t m, const void *a,
                       size_t a_stride_bytes, void *c, size_t c_stride_bytes)
{
    struct row row = {.values = malloc(layer->desc.k * sizeof(*row.values))};

    REQUIRE(row.values != NULL);
    for (uint32_t i = 0; i < m; i++) {
        read_row(&layer->desc, (const char *)a + i * a_stride_bytes, &row);
        for (uint32_t j = 0; j < layer->desc.n; j++)
            expect_one(&layer->desc, &row, j, (char *)c + i * c_stride_bytes);
    }
    free(row.values);
}

static void report_difference(const struct layer_case *layer, const char *got, const char *wanted,
                              size_t bytes)
{
    size_t at = 0;

    while (at < bytes && got[at] == wanted[at])
        at++;
    fprintf(stderr,
            "n %u k %u a_type %d b_type %d c_type %d bias %d activation %d mode %d group %u zero "
            "points %d: byte %zu of C differs\n",
            layer->desc.n, layer->desc.k, (int)layer->desc.a_type, (int)layer->desc.b_type,
            (int)layer->desc.c_type, (int)layer->desc.bias_type, (int)layer->desc.activation,
            (int)layer->desc.quantize_mode, layer->desc.group, layer->desc.b_zero_points != NULL,
            at);
}

int layer_case_check(struct gemmd *session, struct gemmd_layer *handle,
                     const struct layer_case *layer, uint32_t m, uint64_t seed)
{
    size_t c_row = layer->desc.n * type_bytes(layer->desc.c_type);
    size_t a_row = layer->desc.k * type_bytes(layer->desc.a_type);
    size_t a_bytes = m * a_row, c_bytes = m * c_row;
    uint8_t *a = gemmd_buffer_alloc(session, a_bytes ? a_bytes : 1);
    uint8_t *c = gemmd_buffer_alloc(session, c_bytes ? c_bytes : 1);
    uint8_t *wanted = malloc(c_bytes + 1);
    struct gemmd_job job;
    int result = -ENOMEM;

    if (a && c && wanted) {
        layer_case_fill(layer, &seed, a, a_bytes);
        memset(c, 0xa5, c_bytes);
        gemmd_job_init(&job, handle, m, a, c);
        result = gemmd_run(session, &job, 20000);
    }
    if (result == 0 && c_bytes) {
        layer_case_expect(layer, m, a, a_row, wanted, c_row);
        if (memcmp(c, wanted, c_bytes) != 0) {
            report_difference(layer, (char *)c, (char *)wanted, c_bytes);
            result = -EILSEQ;
        }
    }
    free(wanted);
    gemmd_buffer_free(session, a);
    gemmd_buffer_free(session, c);
    return result;
}

struct gemmd *session_with(const char *socket, uint32_t ring_entries, uint64_t arena_bytes,
                           int64_t spin_ns)
{
    struct gemmd_options options;
    struct gemmd *session;

    gemmd_options_init(&options);
    options.socket = socket;
    options.autostart = 0;
    options.ring_entries = ring_entries;
    options.arena_bytes = arena_bytes;
    options.spin_ns = spin_ns;
    options.timeout_ms = 20000;
    if (gemmd_connect(&options, &session) < 0) {
        fprintf(stderr, "gemmd_connect: %s\n", gemmd_error_text(NULL));
        return NULL;
    }
    return session;
}

struct gemmd *session_to(const char *socket)
{
    return session_with(socket, 0, 0, -1);
}
