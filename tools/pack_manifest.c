/* Layers of a safetensors file (tools/pack_manifest.h). */
#include "tools/pack_manifest.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "proto/limits.h"

/* What is being read: a layer, its object in the manifest (NULL: by names). */
struct reader {
    const struct safetensors *file;
    const json_t *fields;
    const char *layer;
    struct pack_error *error;
};

static const char *const field_names[] = {
    "weights", "scales", "bias", "a_type", "c_type", "activation", "a_scale", "a_zero_point",
    "c_scale", "c_zero_point", "b_type", "group", "quantize_mode", "clip_lo", "clip_hi",
    "residual_type", "a_row_scales", "residual_scale", "residual_zero_point",
    "quantize_method"};

__attribute__((format(printf, 2, 3))) static int refuse(const struct reader *reader,
                                                        const char *format, ...)
{
    char reason[320];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(reason, sizeof(reason), format, arguments);
    va_end(arguments);
    if (reader->layer)
        snprintf(reader->error->text, sizeof(reader->error->text), "layer '%.100s': %s",
                 reader->layer, reason);
    else
        snprintf(reader->error->text, sizeof(reader->error->text), "%s", reason);
    for (char *at = reader->error->text; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            *at = '?';
    return -EBADMSG;
}

/* ---- fields ---------------------------------------------------------------------------------- */

/* The field as text ("" when it is not there); false: it is of no kind that we read. */
static bool get_field(const struct reader *reader, const char *field, char out[300])
{
    const json_t *value = json_object_get(reader->fields, field);
    const char *text = json_string_value(value);
    char key[400];

    out[0] = '\0';
    if (!reader->fields) {
        snprintf(key, sizeof(key), "%s.%s", reader->layer, field);
        text = safetensors_metadata(reader->file, key);
    } else if (json_is_integer(value)) {
        snprintf(out, 300, "%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        snprintf(out, 300, "%.17g", json_real_value(value));
    } else if (value && !text) {
        return false;
    }
    if (text && strlen(text) >= 300)
        return false;
    if (text)
        memcpy(out, text, strlen(text) + 1);
    return true;
}

static int read_number(const struct reader *reader, const char *field, double initial, double *out)
{
    char text[300], *end;

    *out = initial;
    if (!get_field(reader, field, text))
        return refuse(reader, "%s: not a number", field);
    if (!*text)
        return 0;
    *out = strtod(text, &end);
    return *end == '\0' && isfinite(*out) ? 0 : refuse(reader, "%s: '%.40s' is not a number", field,
                                                      text);
}

static int read_integer(const struct reader *reader, const char *field, int32_t *out)
{
    double value;
    int error = read_number(reader, field, 0, &value);

    if (error == 0 && (value != floor(value) || fabs(value) > INT32_MAX))
        return refuse(reader, "%s: %g is not an integer", field, value);
    *out = error == 0 ? (int32_t)value : 0;
    return error;
}

struct word {
    const char *name;
    uint8_t value;
};

static int read_word(const struct reader *reader, const char *field, const struct word *words,
                     uint8_t initial, uint8_t *out)
{
    char text[300];

    *out = initial;
    if (!get_field(reader, field, text))
        return refuse(reader, "%s: not a string", field);
    if (!*text)
        return 0;
    for (; words->name; words++)
        if (strcmp(words->name, text) == 0) {
            *out = words->value;
            return 0;
        }
    return refuse(reader, "%s: '%.40s' is unknown", field, text);
}

/* The tensor a field names, or else one of the usual names; NULL when there is none of these. */
static int read_tensor(const struct reader *reader, const char *field, const char *const *usual,
                       const struct safetensors_tensor **out)
{
    char text[300], name[400];

    *out = NULL;
    if (!get_field(reader, field, text))
        return refuse(reader, "%s: not the name of a tensor", field);
    if (*text) {
        *out = safetensors_find(reader->file, text);
        return *out ? 0 : refuse(reader, "%s: tensor '%.100s' is missing", field, text);
    }
    for (; *usual && !*out; usual++) {
        snprintf(name, sizeof(name), "%s.%s", reader->layer, *usual);
        *out = safetensors_find(reader->file, name);
    }
    return 0;
}

/* ---- a layer --------------------------------------------------------------------------------- */

static int read_float(const struct reader *reader, const char *field, float initial, float *out)
{
    double value;
    int error = read_number(reader, field, initial, &value);

    *out = (float)value;
    return error;
}

static int read_types(const struct reader *reader, struct gemmd_layer_desc_abi *desc)
{
    static const struct word types[] = {
        {"u8", GEMMD_ABI_TYPE_U8},   {"s8", GEMMD_ABI_TYPE_S8},     {"s32", GEMMD_ABI_TYPE_S32},
        {"f32", GEMMD_ABI_TYPE_F32}, {"bf16", GEMMD_ABI_TYPE_BF16}, {"s4", GEMMD_ABI_TYPE_S4},
        {"none", GEMMD_ABI_TYPE_NONE}, {NULL, 0}};
    static const struct word activations[] = {{"none", GEMMD_ABI_ACTIVATION_NONE},
                                              {"relu", GEMMD_ABI_ACTIVATION_RELU},
                                              {"clip", GEMMD_ABI_ACTIVATION_CLIP},
                                              {"gelu_tanh", GEMMD_ABI_ACTIVATION_GELU_TANH},
                                              {"gelu_erf", GEMMD_ABI_ACTIVATION_GELU_ERF},
                                              {"silu", GEMMD_ABI_ACTIVATION_SILU},
                                              {NULL, 0}};
    static const struct word modes[] = {{"asymmetric", GEMMD_ABI_QUANTIZE_ASYMMETRIC},
                                        {"symmetric", GEMMD_ABI_QUANTIZE_SYMMETRIC},
                                        {NULL, 0}};
    int error = read_word(reader, "a_type", types, GEMMD_ABI_TYPE_U8, &desc->a_type);

    if (error == 0)
        error = read_word(reader, "b_type", types, GEMMD_ABI_TYPE_S8, &desc->b_type);
    if (error == 0)
        error = read_word(reader, "c_type", types, GEMMD_ABI_TYPE_F32, &desc->c_type);
    if (error == 0)
        error = read_word(reader, "activation", activations, GEMMD_ABI_ACTIVATION_NONE,
                          &desc->activation);
    if (error == 0)
        error = read_word(reader, "residual_type", types, GEMMD_ABI_TYPE_NONE,
                          &desc->residual_type);
    if (error == 0)
        error = read_word(reader, "quantize_mode", modes, GEMMD_ABI_QUANTIZE_ASYMMETRIC,
                          &desc->quantize_mode);
    return error;
}

static int read_numbers(const struct reader *reader, struct gemmd_layer_desc_abi *desc)
{
    int32_t group = 0, row_scales = 0;
    int error = read_float(reader, "a_scale", 1, &desc->a_scale);

    if (error == 0)
        error = read_float(reader, "c_scale", 1, &desc->c_scale);
    if (error == 0)
        error = read_float(reader, "clip_lo", 0, &desc->clip_lo);
    if (error == 0)
        error = read_float(reader, "clip_hi", 0, &desc->clip_hi);
    if (error == 0)
        error = read_float(reader, "residual_scale", 0, &desc->residual_scale);
    if (error == 0)
        error = read_integer(reader, "residual_zero_point", &desc->residual_zero_point);
    if (error == 0)
        error = read_integer(reader, "a_zero_point", &desc->a_zero_point);
    if (error == 0)
        error = read_integer(reader, "c_zero_point", &desc->c_zero_point);
    if (error == 0)
        error = read_integer(reader, "a_row_scales", &row_scales);
    desc->a_row_scales = row_scales == 0 || row_scales == 1 ? (uint8_t)row_scales : 255;
    if (error == 0)
        error = read_integer(reader, "group", &group);
    desc->group = group == 0 && desc->b_type == GEMMD_ABI_TYPE_S4 ? 64 : (uint32_t)group;
    return error;
}

static int check_shapes(const struct reader *reader, const struct pack_layer *layer)
{
    const struct safetensors_tensor *weights = layer->weights, *scales = layer->scales;
    const struct safetensors_tensor *bias = layer->bias;

    if (weights->rank != 2)
        return refuse(reader, "weights: tensor '%.100s' is not of rank 2", weights->name);
    if (weights->dtype != SAFETENSORS_I8 && weights->dtype != SAFETENSORS_F32 &&
        weights->dtype != SAFETENSORS_BF16)
        return refuse(reader, "weights: tensor '%.100s' is %s; I8, F32 and BF16 are read",
                      weights->name, safetensors_dtype_name(weights->dtype));
    if (weights->shape[0] == 0 || weights->shape[0] > GEMMD_N_MAX)
        return refuse(reader, "weights: n is %llu, the limit is %u",
                      (unsigned long long)weights->shape[0], GEMMD_N_MAX);
    if (weights->shape[1] == 0 || weights->shape[1] > GEMMD_K_MAX)
        return refuse(reader, "weights: k is %llu, the limit is %u",
                      (unsigned long long)weights->shape[1], GEMMD_K_MAX);
    if (scales && (scales->dtype != SAFETENSORS_F32 || scales->rank > 1 ||
                   (scales->bytes != 4 && scales->bytes != 4 * weights->shape[0])))
        return refuse(reader, "scales: tensor '%.100s' is not F32 of 1 or n values", scales->name);
    if (scales && weights->dtype != SAFETENSORS_I8)
        return refuse(reader, "scales: the weights are not quantised, and get scales of their own");
    if (bias && ((bias->dtype != SAFETENSORS_F32 && bias->dtype != SAFETENSORS_I32) ||
                 bias->rank != 1 || bias->shape[0] != weights->shape[0]))
        return refuse(reader, "bias: tensor '%.100s' is not F32 or I32 of n values", bias->name);
    return 0;
}

static int read_method(const struct reader *reader, struct pack_layer *layer)
{
    static const struct word methods[] = {
        {"min_max", QUANTIZE_MIN_MAX}, {"l2", QUANTIZE_L2}, {NULL, 0}};
    uint8_t method;
    int error = read_word(reader, "quantize_method", methods, QUANTIZE_MIN_MAX, &method);

    layer->method = (enum quantize_method)method;
    if (error == 0 && method && layer->weights->dtype == SAFETENSORS_I8)
        return refuse(reader, "quantize_method: the weights '%.100s' are quantised already",
                      layer->weights->name);
    return error;
}

static int read_layer(const struct reader *reader, struct pack_layer *layer)
{
    static const char *const weights[] = {"weight", NULL};
    static const char *const scales[] = {"b_scale", "weight_scale", NULL};
    static const char *const bias[] = {"bias", NULL};
    struct gemmd_layer_desc_abi *desc = &layer->desc;
    int error;

    memset(layer, 0, sizeof(*layer));
    if (strlen(reader->layer) >= sizeof(layer->name))
        return refuse(reader, "name: longer than %zu bytes", sizeof(layer->name) - 1);
    memcpy(layer->name, reader->layer, strlen(reader->layer));
    error = read_tensor(reader, "weights", weights, &layer->weights);
    if (error == 0 && !layer->weights)
        error = refuse(reader, "weights: no tensor '%.100s.weight'", reader->layer);
    if (error == 0)
        error = read_tensor(reader, "scales", scales, &layer->scales);
    if (error == 0)
        error = read_tensor(reader, "bias", bias, &layer->bias);
    if (error == 0)
        error = check_shapes(reader, layer);
    if (error == 0)
        error = read_types(reader, desc);
    if (error == 0)
        error = read_numbers(reader, desc);
    if (error == 0)
        error = read_method(reader, layer);
    if (error == 0 && desc->b_type == GEMMD_ABI_TYPE_S4 &&
        layer->weights->dtype == SAFETENSORS_I8)
        error = refuse(reader, "b_type: s4 is made of F32 and BF16 weights; '%.100s' is I8",
                       layer->weights->name);
    if (error < 0)
        return error;
    desc->n = (uint32_t)layer->weights->shape[0];
    desc->k = (uint32_t)layer->weights->shape[1];
    desc->scale_count = layer->weights->dtype != SAFETENSORS_I8 ||
                        (layer->scales && layer->scales->bytes > 4) ? desc->n : 1;
    if (layer->bias)
        desc->bias_type = layer->bias->dtype == SAFETENSORS_F32 ? GEMMD_ABI_TYPE_F32
                                                                : GEMMD_ABI_TYPE_S32;
    return 0;
}

/* ---- all of them ----------------------------------------------------------------------------- */

/* Unknown fields are mistakes, not wishes for a later version. */
static int check_fields(const struct reader *reader)
{
    const char *field;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)reader->fields, field, value)
    {
        bool known = false;

        for (size_t i = 0; i < sizeof(field_names) / sizeof(field_names[0]); i++)
            known |= strcmp(field, field_names[i]) == 0;
        if (!known)
            return refuse(reader, "'%.40s' is not a field of a manifest", field);
    }
    return 0;
}

static int read_manifest(struct reader *reader, FILE *file, struct pack_layer **out,
                         size_t *count)
{
    json_error_t where;
    json_t *manifest = json_loadf(file, JSON_REJECT_DUPLICATES, &where), *fields;
    const char *name;
    int error = 0;

    if (!manifest)
        return refuse(reader, "manifest: line %d: %.100s", where.line, where.text);
    if (!json_is_object(manifest)) {
        error = refuse(reader, "manifest: not an object");
        goto done;
    }
    *out = calloc(json_object_size(manifest) + 1, sizeof(**out));
    error = *out ? 0 : -ENOMEM;
    json_object_foreach(manifest, name, fields)
    {
        reader->layer = name;
        reader->fields = fields;
        if (error == 0 && !json_is_object(fields))
            error = refuse(reader, "not an object");
        if (error == 0)
            error = check_fields(reader);
        if (error == 0)
            error = read_layer(reader, &(*out)[(*count)++]);
    }
    reader->layer = NULL;
done:
    json_decref(manifest);
    return error;
}

static int read_by_names(struct reader *reader, struct pack_layer **out, size_t *count)
{
    static const char suffix[] = ".weight";
    const struct safetensors_tensor *tensor;

    *out = calloc(safetensors_count(reader->file) + 1, sizeof(**out));
    if (!*out)
        return -ENOMEM;
    for (size_t i = 0; (tensor = safetensors_at(reader->file, i)) != NULL; i++) {
        size_t length = strlen(tensor->name);
        char name[SAFETENSORS_NAME_BYTES_MAX + 1];
        int error;

        if (tensor->rank != 2 || length < sizeof(suffix) ||
            strcmp(tensor->name + length - strlen(suffix), suffix) != 0)
            continue;
        memcpy(name, tensor->name, length);
        name[length - strlen(suffix)] = '\0';
        reader->layer = name;
        error = read_layer(reader, &(*out)[(*count)++]);
        reader->layer = NULL;
        if (error < 0)
            return error;
    }
    return 0;
}

int pack_manifest_read(const struct safetensors *file, FILE *manifest,
                       struct pack_layer **out, size_t *count, struct pack_error *error)
{
    struct reader reader = {.file = file, .error = error};
    int result;

    *out = NULL;
    *count = 0;
    error->text[0] = '\0';
    result = manifest ? read_manifest(&reader, manifest, out, count)
                      : read_by_names(&reader, out, count);
    if (result == 0 && (*count == 0 || *count > GEMMD_WORKER_LAYERS_MAX))
        result = refuse(&reader, "%zu layers; 1 to %u are possible", *count,
                        GEMMD_WORKER_LAYERS_MAX);
    if (result < 0) {
        free(*out);
        *out = NULL;
    }
    return result;
}
