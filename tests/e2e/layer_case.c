/* See layer_case.h.  Compiled with -ffp-contract=off like everything else: each float operation
 * below is rounded by itself. */
#include "tests/e2e/layer_case.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    default:
        return 0;
    }
}

static int32_t random_zero_point(uint64_t *state, enum gemmd_type type)
{
    int32_t byte = (int32_t)(random_next(state) >> 56);

    if (type == GEMMD_TYPE_U8)
        return byte;
    return type == GEMMD_TYPE_S8 ? byte - 128 : 0;
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

void layer_case_init(struct layer_case *layer, uint32_t n, uint32_t k, enum gemmd_type a_type,
                     enum gemmd_type c_type, enum gemmd_type bias_type,
                     enum gemmd_activation activation, bool per_channel, uint64_t seed)
{
    struct gemmd_layer_desc *desc = &layer->desc;
    uint64_t state = seed;

    memset(layer, 0, sizeof(*layer));
    gemmd_layer_desc_init(desc);
    desc->n = n;
    desc->k = k;
    desc->a_type = a_type;
    desc->c_type = c_type;
    desc->activation = activation;
    desc->a_zero_point = random_zero_point(&state, a_type);
    desc->c_zero_point = random_zero_point(&state, c_type);
    desc->a_scale = 0.01f + random_unit(&state);
    desc->c_scale = 0.01f + 0.05f * random_unit(&state);
    desc->scale_count = per_channel ? n : 1;
    layer->weights = malloc((size_t)n * k);
    layer->scales = malloc(n * sizeof(*layer->scales));
    REQUIRE(layer->weights != NULL && layer->scales != NULL);
    random_bytes(&state, layer->weights, (size_t)n * k);
    for (uint32_t j = 0; j < n; j++) /* |sum| is about 90 * 74 * sqrt(k) */
        layer->scales[j] = (0.5f + random_unit(&state)) / (6660.0f * sqrtf((float)k));
    desc->weights = layer->weights;
    desc->b_scales = layer->scales;
    desc->bias_type = bias_type;
    if (bias_type != GEMMD_TYPE_NONE)
        desc->bias = layer->bias = fill_bias(&state, n, bias_type);
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
    memset(layer, 0, sizeof(*layer));
}

/* ---- the oracle ------------------------------------------------------------------------------ */

/* The exact sum of (a - a_zero_point) * b, in 64 bits, then modulo 2^32 as gemmd.h's s32. */
static int32_t accumulate(const struct gemmd_layer_desc *desc, const void *row, uint32_t j)
{
    const uint8_t *u8 = row;
    const int8_t *s8 = row;
    const int8_t *b = desc->weights + (size_t)j * desc->k;
    int64_t sum = 0;

    for (uint32_t t = 0; t < desc->k; t++)
        sum += (int64_t)((desc->a_type == GEMMD_TYPE_U8 ? u8[t] : s8[t]) - desc->a_zero_point) *
               b[t];
    if (desc->bias_type == GEMMD_TYPE_S32)
        sum += ((const int32_t *)desc->bias)[j];
    return (int32_t)(uint32_t)(uint64_t)sum;
}

static int32_t quantise(const struct gemmd_layer_desc *desc, float f)
{
    float low = desc->c_type == GEMMD_TYPE_U8 ? 0.0f : -128.0f;
    float high = desc->c_type == GEMMD_TYPE_U8 ? 255.0f : 127.0f;
    float q = f * (1.0f / desc->c_scale);

    low -= (float)desc->c_zero_point;
    high -= (float)desc->c_zero_point;
    if (q < low)
        q = low;
    if (q > high)
        q = high;
    return (int32_t)rintf(q) + desc->c_zero_point; /* the default mode: ties to even */
}

static void expect_one(const struct gemmd_layer_desc *desc, const void *row, uint32_t j, char *out)
{
    int32_t sum = accumulate(desc, row, j), q;
    float f;

    if (desc->c_type == GEMMD_TYPE_S32) {
        memcpy(out + 4 * (size_t)j, &sum, 4);
        return;
    }
    f = (float)sum * (desc->a_scale * desc->b_scales[desc->scale_count == 1 ? 0 : j]);
    f = f + (desc->bias_type == GEMMD_TYPE_F32 ? ((const float *)desc->bias)[j] : 0.0f);
    if (desc->activation == GEMMD_ACTIVATION_RELU)
        f = f > 0.0f ? f : 0.0f;
    if (desc->c_type == GEMMD_TYPE_F32) {
        memcpy(out + 4 * (size_t)j, &f, 4);
        return;
    }
    q = quantise(desc, f);
    out[j] = (char)(uint8_t)q;
}

void layer_case_expect(const struct layer_case *layer, uint32_t m, const void *a,
                       size_t a_stride_bytes, void *c, size_t c_stride_bytes)
{
    for (uint32_t i = 0; i < m; i++)
        for (uint32_t j = 0; j < layer->desc.n; j++)
            expect_one(&layer->desc, (const char *)a + i * a_stride_bytes, j,
                       (char *)c + i * c_stride_bytes);
}

static void report_difference(const struct layer_case *layer, const char *got, const char *wanted,
                              size_t bytes)
{
    size_t at = 0;

    while (at < bytes && got[at] == wanted[at])
        at++;
    fprintf(stderr, "n %u k %u a_type %d c_type %d bias %d activation %d: byte %zu of C differs\n",
            layer->desc.n, layer->desc.k, (int)layer->desc.a_type, (int)layer->desc.c_type,
            (int)layer->desc.bias_type, (int)layer->desc.activation, at);
}

int layer_case_check(struct gemmd *session, struct gemmd_layer *handle,
                     const struct layer_case *layer, uint32_t m, uint64_t seed)
{
    size_t c_row = layer->desc.n * type_bytes(layer->desc.c_type);
    size_t a_bytes = (size_t)m * layer->desc.k, c_bytes = m * c_row;
    uint8_t *a = gemmd_buffer_alloc(session, a_bytes ? a_bytes : 1);
    uint8_t *c = gemmd_buffer_alloc(session, c_bytes ? c_bytes : 1);
    uint8_t *wanted = malloc(c_bytes + 1);
    struct gemmd_job job;
    int result = -ENOMEM;

    if (a && c && wanted) {
        random_bytes(&seed, a, a_bytes);
        memset(c, 0xa5, c_bytes);
        gemmd_job_init(&job, handle, m, a, c);
        result = gemmd_run(session, &job, 20000);
    }
    if (result == 0 && c_bytes) {
        layer_case_expect(layer, m, a, layer->desc.k, wanted, c_row);
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
