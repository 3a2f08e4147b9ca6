/*
 * Weights of f32 and bf16 to s8 and s4, before anything is hashed or sent: in the process that
 * wants it, because the search for the best scales takes its time, and the worker's is everybody's.
 */
#include "client/internal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/quantize.h"

static_assert((int)QUANTIZE_L2 == GEMMD_QUANTIZE_L2, "one numbering");

static const char *find_fault(const struct gemmd_layer_desc *desc)
{
    if (desc->weights_type == GEMMD_TYPE_NONE)
        return desc->quantize_method ? "quantize_method: set, but weights_type is not" : NULL;
    if (desc->weights_type != GEMMD_TYPE_F32 && desc->weights_type != GEMMD_TYPE_BF16)
        return "weights_type: not none, f32 or bf16";
    if ((unsigned)desc->quantize_method > GEMMD_QUANTIZE_L2)
        return "quantize_method: unknown";
    if (!desc->weights)
        return "weights: NULL";
    if (desc->b_scales || desc->multipliers || desc->b_zero_points)
        return "weights_type: b_scales, multipliers and b_zero_points are made, not given";
    if (desc->b_type == GEMMD_TYPE_S4 && desc->scale_count != desc->n)
        return "scale_count: n where s4 weights are made";
    return NULL;
}

/* What is made of the weights, one behind the other. */
struct made {
    float *scales;         /* [n], one value n times for a tensor's */
    float *widened;        /* bf16 weights */
    uint16_t *multipliers; /* s4 */
    uint8_t *weights;
};

/* scales NULL: no memory. */
static struct made allocate(const struct gemmd_layer_desc *desc)
{
    size_t n = desc->n, k = desc->k, s4 = desc->b_type == GEMMD_TYPE_S4;
    size_t multipliers = s4 ? n * ((k + desc->group - 1) / desc->group) : 0;
    size_t widened = desc->weights_type == GEMMD_TYPE_BF16 ? n * k : 0;
    struct made made = {0};

    made.scales = malloc((n + widened) * sizeof(float) + multipliers * sizeof(uint16_t) +
                         n * (s4 ? (k + 1) / 2 : k));
    if (!made.scales)
        return made;
    made.widened = made.scales + n;
    made.multipliers = (uint16_t *)(void *)(made.widened + widened);
    made.weights = (uint8_t *)(made.multipliers + multipliers);
    return made;
}

static const float *widen(const struct gemmd_layer_desc *desc, float *to)
{
    const uint16_t *from = desc->weights;

    if (desc->weights_type == GEMMD_TYPE_F32)
        return desc->weights;
    for (size_t i = 0; i < (size_t)desc->n * desc->k; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;

        memcpy(&to[i], &bits, sizeof(bits));
    }
    return to;
}

static bool all_finite(const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return false;
    return true;
}

static void quantise(const struct gemmd_layer_desc *desc, const float *w, const struct made *made)
{
    const enum quantize_method method = (enum quantize_method)desc->quantize_method;
    size_t n = desc->n, k = desc->k;
    uint16_t *multipliers = made->multipliers;

    if (desc->b_type == GEMMD_TYPE_S8) {
        quantize_weight_scales(method, 8, desc->scale_count == 1, n, k, w, k, made->scales);
        quantize_weights(8, n, k, w, k, made->scales, NULL, (int8_t *)made->weights);
        return;
    }
    for (size_t j = 0; j < n; j++, multipliers += (k + desc->group - 1) / desc->group)
        made->scales[j] = quantize_s4(method, desc->k, desc->group, w + j * k,
                                      made->weights + j * ((k + 1) / 2), multipliers);
}

int gemmd_quantize(struct gemmd *session, struct gemmd_layer_desc *desc, void **memory)
{
    const char *fault = find_fault(desc);
    struct made made;
    const float *w;

    if (fault)
        return gemmd_fail(session, -EINVAL, "%s", fault);
    if (desc->weights_type == GEMMD_TYPE_NONE)
        return 0;
    made = allocate(desc);
    if (!made.scales)
        return gemmd_fail(session, -ENOMEM, "no memory to quantise the weights");
    *memory = made.scales;
    w = widen(desc, made.widened);
    if (!all_finite(w, (size_t)desc->n * desc->k))
        return gemmd_fail(session, -EINVAL, "weights: a value is not finite");
    quantise(desc, w, &made);
    desc->weights = made.weights;
    desc->b_scales = made.scales;
    desc->multipliers = desc->b_type == GEMMD_TYPE_S4 ? made.multipliers : NULL;
    return 0;
}
