/*
 * Files of the digits example, and its network in plain C (see model.h).
 *
 * The scalar network follows client/gemmd.h with the order of single-precision operations of the
 * worker's numeric contract (kernels/epilogue.h): (float)sum * (a_scale * b_scale) + bias, ReLU,
 * times 1 / c_scale, clamp, round half to even.  So logits can be compared bit by bit.
 */
#include "examples/digits/model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/safetensors.h"

/* Prints the reason and returns -1. */
__attribute__((format(printf, 2, 3))) static int refuse(const char *path, const char *format, ...)
{
    va_list arguments;

    fprintf(stderr, "digits: %s: ", path);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return -1;
}

/* The tensor if it has this dtype and shape; extents of 0 match any and are returned. */
static const void *get_tensor(const struct safetensors *file, const char *path, const char *name,
                              enum safetensors_dtype dtype, uint32_t rank, uint64_t shape[2])
{
    const struct safetensors_tensor *tensor = safetensors_find(file, name);
    uint32_t i;

    if (!tensor) {
        refuse(path, "tensor '%s' is missing", name);
        return NULL;
    }
    if (tensor->dtype != dtype || tensor->rank != rank) {
        refuse(path, "tensor '%s': not %s of rank %u", name, safetensors_dtype_name(dtype), rank);
        return NULL;
    }
    for (i = 0; i < rank; i++) {
        if (tensor->shape[i] == 0 || (shape[i] != 0 && tensor->shape[i] != shape[i])) {
            refuse(path, "tensor '%s': extent %u does not fit", name, i);
            return NULL;
        }
        shape[i] = tensor->shape[i];
    }
    return tensor->data;
}

/* A copy of an F32 tensor of `count` finite values: the file does not align it. */
static float *get_floats(const struct safetensors *file, const char *path, const char *name,
                         uint64_t count)
{
    const void *data = get_tensor(file, path, name, SAFETENSORS_F32, 1, (uint64_t[2]){count});
    float *copy;
    uint64_t i;

    if (!data)
        return NULL;
    copy = malloc(count * sizeof(*copy));
    if (!copy) {
        refuse(path, "tensor '%s': no memory", name);
        return NULL;
    }
    memcpy(copy, data, count * sizeof(*copy));
    for (i = 0; i < count; i++) {
        if (!isfinite(copy[i])) {
            refuse(path, "tensor '%s': a value is not finite", name);
            free(copy);
            return NULL;
        }
    }
    return copy;
}

static int get_scale(const struct safetensors *file, const char *path, uint32_t index,
                     const char *field, float *out)
{
    char key[32], *end;
    const char *text;

    snprintf(key, sizeof(key), "layer%u.%s", index, field);
    text = safetensors_metadata(file, key);
    if (!text)
        return refuse(path, "metadata '%s' is missing", key);
    *out = strtof(text, &end);
    if (end == text || *end || !isfinite(*out) || *out <= 0)
        return refuse(path, "metadata '%s': not a finite number above 0", key);
    return 0;
}

/* The metadata's word, which must be one of the two; returns 0 or 1, or -1. */
static int get_choice(const struct safetensors *file, const char *path, uint32_t index,
                      const char *field, const char *first, const char *second)
{
    char key[32];
    const char *text;

    snprintf(key, sizeof(key), "layer%u.%s", index, field);
    text = safetensors_metadata(file, key);
    if (text && strcmp(text, first) == 0)
        return 0;
    if (text && strcmp(text, second) == 0)
        return 1;
    return refuse(path, "metadata '%s': neither '%s' nor '%s'", key, first, second);
}

static int open_layer(struct model *model, const char *path, uint32_t index)
{
    struct model_layer *layer = &model->layers[index];
    uint64_t shape[2] = {0, index ? model->layers[index - 1].n : 0};
    int last = index + 1 == model->layer_count;
    int activation, c_type;
    char name[32];

    snprintf(name, sizeof(name), "layer%u.weight", index);
    layer->weights = get_tensor(model->file, path, name, SAFETENSORS_I8, 2, shape);
    if (!layer->weights)
        return -1;
    if (shape[0] > MODEL_WIDTH_MAX || shape[1] > MODEL_WIDTH_MAX)
        return refuse(path, "tensor '%s': wider than %d", name, MODEL_WIDTH_MAX);
    layer->n = (uint32_t)shape[0];
    layer->k = (uint32_t)shape[1];
    snprintf(name, sizeof(name), "layer%u.b_scale", index);
    layer->b_scales = get_floats(model->file, path, name, layer->n);
    snprintf(name, sizeof(name), "layer%u.bias", index);
    layer->bias = get_floats(model->file, path, name, layer->n);
    if (!layer->b_scales || !layer->bias ||
        get_scale(model->file, path, index, "a_scale", &layer->a_scale) ||
        get_scale(model->file, path, index, "c_scale", &layer->c_scale))
        return -1;
    c_type = get_choice(model->file, path, index, "c_type", "u8", "f32");
    activation = get_choice(model->file, path, index, "activation", "none", "relu");
    if (c_type < 0 || activation < 0 ||
        get_choice(model->file, path, index, "a_type", "u8", "u8") < 0)
        return -1;
    if (c_type != last)
        return refuse(path, "layer %u: u8 between layers and f32 of the last are wanted", index);
    layer->c_type = last ? GEMMD_TYPE_F32 : GEMMD_TYPE_U8;
    layer->activation = activation ? GEMMD_ACTIVATION_RELU : GEMMD_ACTIVATION_NONE;
    snprintf(layer->name, sizeof(layer->name), "digits/%u", index);
    return 0;
}

int model_open(const char *path, struct model *model)
{
    char error[512], *end;
    const char *text;
    long count;
    uint32_t i;

    memset(model, 0, sizeof(*model));
    if (safetensors_open(path, &model->file, error, sizeof(error))) {
        fprintf(stderr, "digits: %s\n", error);
        return -1;
    }
    text = safetensors_metadata(model->file, "layer_count");
    count = text ? strtol(text, &end, 10) : 0;
    if (count < 1 || count > MODEL_LAYERS_MAX || *end) {
        refuse(path, "metadata 'layer_count': not 1..%d", MODEL_LAYERS_MAX);
        model_close(model);
        return -1;
    }
    model->layer_count = (uint32_t)count;
    for (i = 0; i < model->layer_count; i++) {
        if (open_layer(model, path, i)) {
            model_close(model);
            return -1;
        }
    }
    model->inputs = model->layers[0].k;
    model->classes = model->layers[model->layer_count - 1].n;
    return 0;
}

void model_close(struct model *model)
{
    uint32_t i;

    for (i = 0; i < MODEL_LAYERS_MAX; i++) {
        free(model->layers[i].b_scales);
        free(model->layers[i].bias);
    }
    safetensors_close(&model->file);
    memset(model, 0, sizeof(*model));
}

int held_out_open(const char *path, struct held_out *images)
{
    uint64_t shape[2] = {0, 0};
    char error[512];

    memset(images, 0, sizeof(*images));
    if (safetensors_open(path, &images->file, error, sizeof(error))) {
        fprintf(stderr, "digits: %s\n", error);
        return -1;
    }
    images->images = get_tensor(images->file, path, "images", SAFETENSORS_U8, 2, shape);
    if (images->images)
        images->labels = get_tensor(images->file, path, "labels", SAFETENSORS_U8, 1, shape);
    if (images->labels)
        images->float_predictions =
            get_tensor(images->file, path, "float_predictions", SAFETENSORS_U8, 1, shape);
    if (!images->float_predictions || shape[0] > MODEL_IMAGES_MAX || shape[1] > MODEL_WIDTH_MAX) {
        if (images->float_predictions)
            refuse(path, "tensor 'images': too large");
        held_out_close(images);
        return -1;
    }
    images->count = (uint32_t)shape[0];
    images->pixels = (uint32_t)shape[1];
    return 0;
}

void held_out_close(struct held_out *images)
{
    safetensors_close(&images->file);
    memset(images, 0, sizeof(*images));
}

void model_layer_desc(const struct model_layer *layer, struct gemmd_layer_desc *desc)
{
    gemmd_layer_desc_init(desc);
    desc->n = layer->n;
    desc->k = layer->k;
    desc->a_type = GEMMD_TYPE_U8;
    desc->c_type = layer->c_type;
    desc->weights = layer->weights;
    desc->b_scales = layer->b_scales;
    desc->scale_count = layer->n;
    desc->a_scale = layer->a_scale;
    desc->c_scale = layer->c_scale;
    desc->bias_type = GEMMD_TYPE_F32;
    desc->bias = layer->bias;
    desc->activation = layer->activation;
    desc->name = layer->name;
}

/* One output in real units. */
static float run_channel(const struct model_layer *layer, const uint8_t *row, uint32_t channel)
{
    const int8_t *weights = layer->weights + (size_t)channel * layer->k;
    int32_t sum = 0;
    float real;
    uint32_t t;

    for (t = 0; t < layer->k; t++)
        sum += (int32_t)row[t] * weights[t];
    real = (float)sum * (layer->a_scale * layer->b_scales[channel]);
    real = real + layer->bias[channel];
    if (layer->activation == GEMMD_ACTIVATION_RELU)
        real = real > 0 ? real : 0;
    return real;
}

static uint8_t quantise(float real, float inverse_c_scale)
{
    float steps = real * inverse_c_scale;

    return (uint8_t)nearbyintf(fminf(fmaxf(steps, 0), 255));
}

void model_run(const struct model *model, const uint8_t *image, float *logits)
{
    uint8_t rows[2][MODEL_WIDTH_MAX];
    const uint8_t *in = image;
    uint32_t i, j;

    for (i = 0; i < model->layer_count; i++) {
        const struct model_layer *layer = &model->layers[i];
        float inverse_c_scale = 1 / layer->c_scale;

        for (j = 0; j < layer->n; j++) {
            float real = run_channel(layer, in, j);

            if (layer->c_type == GEMMD_TYPE_F32)
                logits[j] = real;
            else
                rows[i % 2][j] = quantise(real, inverse_c_scale);
        }
        in = rows[i % 2];
    }
}

uint32_t model_argmax(const float *logits, uint32_t classes)
{
    uint32_t best = 0, i;

    for (i = 1; i < classes; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    return best;
}
