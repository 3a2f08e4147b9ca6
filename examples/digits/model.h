/*
 * The digits network and its held-out images, read from the files that train.py wrote, and the
 * network in plain C: the oracle that every answer of the worker is compared with.
 */
#ifndef GEMMD_EXAMPLES_DIGITS_MODEL_H
#define GEMMD_EXAMPLES_DIGITS_MODEL_H

#include <stdint.h>

#include "client/gemmd.h"

enum {
    MODEL_LAYERS_MAX = 16,
    MODEL_WIDTH_MAX = 4096, /* inputs or outputs of a layer */
    MODEL_IMAGES_MAX = 1000000,
};

struct safetensors;

struct model_layer {
    uint32_t n, k;
    const int8_t *weights; /* in the mapped file */
    float *b_scales;       /* [n] */
    float *bias;           /* [n] */
    float a_scale, c_scale;
    enum gemmd_type c_type; /* U8 between layers, F32 of the last */
    enum gemmd_activation activation;
    char name[24]; /* "digits/0" */
};

struct model {
    struct safetensors *file;
    uint32_t layer_count;
    uint32_t inputs, classes;
    struct model_layer layers[MODEL_LAYERS_MAX];
};

struct held_out {
    struct safetensors *file;
    uint32_t count, pixels;
    const uint8_t *images; /* [count][pixels] */
    const uint8_t *labels, *float_predictions;
};

/* Reads a file; on failure says why on stderr and returns -1, leaving nothing to close. */
int model_open(const char *path, struct model *model);
int held_out_open(const char *path, struct held_out *images);

void model_close(struct model *model);
void held_out_close(struct held_out *images);

/* The layer in the worker's terms; *desc points into *layer. */
void model_layer_desc(const struct model_layer *layer, struct gemmd_layer_desc *desc);

/* The network applied to one image, by the definition in client/gemmd.h: logits[classes]. */
void model_run(const struct model *model, const uint8_t *image, float *logits);

/* Index of the largest value; the first of equals. */
uint32_t model_argmax(const float *logits, uint32_t classes);

#endif
