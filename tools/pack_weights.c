/* See pack_weights.h.  One channel at a time: the file may be larger than the memory. */
#include "tools/pack_weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/quantize.h"

/* Widened; false: a value is not finite.  The file aligns nothing. */
static bool read_channel(const struct safetensors_tensor *tensor, uint64_t j, size_t k, float *out)
{
    bool wide = tensor->dtype == SAFETENSORS_F32, finite = true;
    const char *from = (const char *)tensor->data + j * k * (wide ? 4 : 2);

    for (size_t t = 0; t < k; t++) {
        uint32_t bits = 0;

        if (wide)
            memcpy(&bits, from + 4 * t, 4);
        else
            memcpy((char *)&bits + 2, from + 2 * t, 2);
        memcpy(&out[t], &bits, sizeof(bits));
        finite &= (bool)isfinite(out[t]);
    }
    return finite;
}

/* Symmetric, with a scale of its own, or one for each group. */
static struct quantize_error quantise_channel(const struct pack_layer *layer,
                                              const struct gemmd_layer_image *places, uint32_t j,
                                              const float *row, char *image)
{
    const struct gemmd_layer_desc_abi *desc = &layer->desc;
    float *scale = (float *)(void *)(image + places->scales_offset) + j;
    size_t k = desc->k, groups;
    struct quantize_error error;
    uint16_t *multipliers;
    uint8_t *s4;
    int8_t *s8;

    if (desc->b_type != GEMMD_ABI_TYPE_S4) {
        s8 = (int8_t *)image + j * k;
        *scale = quantize_scale(layer->method, 8, k, row);
        quantize_weights(8, 1, k, row, k, scale, NULL, s8);
        quantize_error_report(1, k, row, k, scale, NULL, s8, &error, NULL);
        return error;
    }
    groups = (k + desc->group - 1) / desc->group;
    s4 = (uint8_t *)image + j * ((k + 1) / 2);
    multipliers = (uint16_t *)(void *)(image + places->multipliers_offset) + j * groups;
    *scale = quantize_s4(layer->method, desc->k, desc->group, row, s4, multipliers);
    return quantize_s4_error(desc->k, desc->group, row, *scale, s4, multipliers);
}

static bool quantise(const struct pack_layer *layer, const struct gemmd_layer_image *places,
                     char *image, bool report)
{
    struct quantize_error worst = {.sqnr_db = (double)INFINITY};
    float *row = malloc(layer->desc.k * sizeof(*row));
    double max_abs = 0, sum_db = 0;
    uint32_t worst_channel = 0, inexact = 0;
    bool good = row != NULL;

    for (uint32_t j = 0; j < layer->desc.n && good; j++) {
        struct quantize_error error;

        good = read_channel(layer->weights, j, layer->desc.k, row);
        if (!good)
            break;
        error = quantise_channel(layer, places, j, row, image);
        if (error.sqnr_db < worst.sqnr_db) {
            worst = error;
            worst_channel = j;
        }
        max_abs = fmax(max_abs, error.max_abs);
        inexact += (bool)isfinite(error.sqnr_db);
        sum_db += isfinite(error.sqnr_db) ? error.sqnr_db : 0;
    }
    free(row);
    if (good && report)
        printf("%s: %s by %s: SQNR %.2f dB in the mean of %u inexact channels, least %.2f dB "
               "(channel %u: largest error %.3g, mean %.3g); largest error %.3g\n",
               layer->name, layer->desc.b_type == GEMMD_ABI_TYPE_S4 ? "s4" : "s8",
               layer->method == QUANTIZE_L2 ? "l2" : "min_max", inexact ? sum_db / inexact : 0.0,
               inexact, inexact ? worst.sqnr_db : 0.0, worst_channel, worst.max_abs,
               worst.mean_abs, max_abs);
    fflush(stdout); /* the process ends by _exit */
    return good;
}

bool pack_weights(const struct pack_layer *layer, const struct gemmd_layer_image *places,
                  char *image, bool report)
{
    const struct gemmd_layer_desc_abi *desc = &layer->desc;
    float *scales = (float *)(void *)(image + places->scales_offset);

    if (layer->bias)
        memcpy(image + places->bias_offset, layer->bias->data, (size_t)desc->n * 4);
    if (layer->weights->dtype != SAFETENSORS_I8)
        return quantise(layer, places, image, report);
    memcpy(image, layer->weights->data, (size_t)desc->n * desc->k);
    if (layer->scales)
        memcpy(scales, layer->scales->data, (size_t)desc->scale_count * 4);
    else
        scales[0] = 1;
    return true;
}
