/* See layer_case.h. */
#include "tests/e2e/layer_oracle.h"

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

static void fill(enum gemmd_type type, uint64_t *seed, void *out, size_t bytes)
{
    size_t element = type_bytes(type);
    char *to = out;

    if (!layer_is_float(type)) {
        random_bytes(seed, out, bytes);
        return;
    }
    for (; bytes >= element; bytes -= element, to += element) {
        float value = random_float(seed);
        uint16_t half = layer_to_bf16(value);

        memcpy(to, element == 2 ? (const void *)&half : &value, element);
    }
}

size_t layer_case_a_row_bytes(const struct layer_case *layer)
{
    const struct gemmd_layer_desc *desc = &layer->desc;

    return desc->k * type_bytes(desc->a_type) + (desc->a_row_scales ? sizeof(float) : 0);
}

void layer_case_fill(const struct layer_case *layer, uint64_t *seed, void *a, size_t bytes)
{
    size_t row_bytes = layer_case_a_row_bytes(layer);

    fill(layer->desc.a_type, seed, a, bytes);
    for (size_t end = row_bytes; layer->desc.a_row_scales && end <= bytes; end += row_bytes) {
        float scale = random_next(seed) % 16 ? 0.5f + random_unit(seed) : random_float(seed);

        memcpy((char *)a + end - sizeof(scale), &scale, sizeof(scale));
    }
}

void layer_case_fill_residual(const struct layer_case *layer, uint64_t *seed, void *residual,
                              size_t bytes)
{
    fill(layer->desc.residual_type, seed, residual, bytes);
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

static void fill_multipliers(struct layer_case *layer, uint64_t *state)
{
    size_t bytes = layer->desc.n * layer_group_count(&layer->desc) * sizeof(*layer->multipliers);

    layer->multipliers = malloc(bytes);
    REQUIRE(layer->multipliers != NULL);
    random_bytes(state, layer->multipliers, bytes);
    layer->desc.multipliers = layer->multipliers;
}

static void fill_weights(struct layer_case *layer, uint64_t *state)
{
    struct gemmd_layer_desc *desc = &layer->desc;
    size_t bytes = desc->n * layer_weight_row_bytes(desc);
    /* The sums of rows and weights are about 90 * 74 * sqrt(k); float rows are 2, not 90; s4
     * weights 4.6 with multipliers of 33000. */
    float size = 6660.0f * sqrtf((float)desc->k);

    if (layer_is_float(desc->a_type))
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
    if (layer_is_float(desc->a_type))
        desc->a_scale = 1.0f;
    if (kind->activation == GEMMD_ACTIVATION_CLIP) {
        desc->clip_lo = -random_unit(&state);
        desc->clip_hi = random_unit(&state);
    }
    desc->a_row_scales = kind->a_row_scales;
    desc->residual_type = kind->residual_type;
    desc->residual_zero_point = random_zero_point(&state, kind->residual_type);
    if (type_bytes(kind->residual_type) == 1)
        desc->residual_scale = 0.001f + 0.02f * random_unit(&state);
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

static void report_difference(const struct layer_case *layer, const char *got, const char *wanted,
                              size_t bytes)
{
    size_t at = 0;

    while (at < bytes && got[at] == wanted[at])
        at++;
    fprintf(stderr,
            "n %u k %u a_type %d b_type %d c_type %d bias %d activation %d mode %d group %u zero "
            "points %d residual %d row scales %d: byte %zu of C differs\n",
            layer->desc.n, layer->desc.k, (int)layer->desc.a_type, (int)layer->desc.b_type,
            (int)layer->desc.c_type, (int)layer->desc.bias_type, (int)layer->desc.activation,
            (int)layer->desc.quantize_mode, layer->desc.group, layer->desc.b_zero_points != NULL,
            (int)layer->desc.residual_type, layer->desc.a_row_scales, at);
}

int layer_case_check(struct gemmd *session, struct gemmd_layer *handle,
                     const struct layer_case *layer, uint32_t m, uint64_t seed)
{
    const struct gemmd_layer_desc *desc = &layer->desc;
    size_t a_row = layer_case_a_row_bytes(layer), c_row = desc->n * type_bytes(desc->c_type);
    size_t a_bytes = m * a_row, c_bytes = m * c_row;
    size_t r_bytes = m * desc->n * type_bytes(desc->residual_type);
    uint8_t *a = gemmd_buffer_alloc(session, a_bytes + 1);
    uint8_t *c = gemmd_buffer_alloc(session, c_bytes + 1);
    uint8_t *r = gemmd_buffer_alloc(session, r_bytes + 1), *wanted = malloc(c_bytes + 1);
    struct gemmd_job job;
    int result = -ENOMEM;

    if (a && c && r && wanted) {
        layer_case_fill(layer, &seed, a, a_bytes);
        layer_case_fill_residual(layer, &seed, r, r_bytes);
        layer_case_expect_residual(layer, m, a, a_row, r, wanted, c_row);
        gemmd_job_init(&job, handle, m, a, c);
        if (r_bytes)
            job.residual = r;
        memset(c, 0xa5, c_bytes);
        if (r_bytes == c_bytes && m % 2) { /* added to what it will be replaced by */
            memcpy(c, r, r_bytes);
            job.residual = c;
        }
        result = gemmd_run(session, &job, 20000);
    }
    if (result == 0 && memcmp(c, wanted, c_bytes) != 0) {
        report_difference(layer, (char *)c, (char *)wanted, c_bytes);
        result = -EILSEQ;
    }
    free(wanted);
    gemmd_buffer_free(session, a);
    gemmd_buffer_free(session, c);
    gemmd_buffer_free(session, r);
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
