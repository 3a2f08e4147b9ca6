/* Descriptor to image to content id. */
#include "client/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static const uint8_t zeros[64];

/* An enumeration's value as the wire's byte; what does not fit stays wrong. */
static uint8_t to_byte(unsigned value)
{
    return value < 255 ? (uint8_t)value : 255;
}

static int fail_status(struct gemmd *session, enum gemmd_status status)
{
    return gemmd_fail(session, -gemmd_status_errno_of((int)status), "%s",
                      gemmd_status_text_of((int)status));
}

static int convert_desc(struct gemmd *session, const struct gemmd_layer_desc *desc,
                        struct gemmd_layer_desc_abi *out, struct gemmd_layer_image *layout)
{
    enum gemmd_status status;

    if (desc->size != sizeof(*desc))
        return gemmd_fail(session, -EINVAL, "size: %zu is not of this library's gemmd_layer_desc; "
                          "call gemmd_layer_desc_init", desc->size);
    for (size_t i = 0; i < sizeof(desc->reserved) / sizeof(desc->reserved[0]); i++)
        if (desc->reserved[i])
            return gemmd_fail(session, -EINVAL, "reserved: must be 0; call gemmd_layer_desc_init");
    *out = (struct gemmd_layer_desc_abi){
        .n = desc->n,
        .k = desc->k,
        .a_type = to_byte(desc->a_type),
        .c_type = to_byte(desc->c_type),
        .bias_type = to_byte(desc->bias_type),
        .activation = to_byte(desc->activation),
        .scale_count = desc->scale_count,
        .a_zero_point = desc->a_zero_point,
        .a_row_scales = to_byte((unsigned)desc->a_row_scales),
        .c_zero_point = desc->c_zero_point,
        .a_scale = desc->a_scale,
        .c_scale = desc->c_scale,
        .b_type = to_byte(desc->b_type),
        .quantize_mode = to_byte(desc->quantize_mode),
        .b_zero_points = desc->b_zero_points != NULL,
        .group = desc->group,
        .clip_lo = desc->clip_lo,
        .clip_hi = desc->clip_hi,
        .residual_type = to_byte(desc->residual_type),
        .residual_zero_point = desc->residual_zero_point,
        .residual_scale = desc->residual_scale,
    };
    status = gemmd_validate_layer_desc(out, layout);
    return status == GEMMD_STATUS_OK ? 0 : fail_status(session, status);
}

static int check_arrays(struct gemmd *session, const struct gemmd_layer_desc *desc)
{
    if (!desc->weights)
        return gemmd_fail(session, -EINVAL, "weights: NULL");
    if ((desc->b_type == GEMMD_TYPE_S4) != (desc->multipliers != NULL))
        return gemmd_fail(session, -EINVAL, "multipliers: %s",
                          desc->multipliers ? "only s4 weights have them" : "NULL");
    if (desc->bias_type != GEMMD_TYPE_NONE && !desc->bias)
        return gemmd_fail(session, -EINVAL, "bias: NULL, but bias_type is not NONE");
    return 0;
}

/* Copies all but the weights to where it lies in the image, and checks the values. */
static int build_tail(struct gemmd *session, const struct gemmd_layer_desc *desc,
                      const struct gemmd_layer_desc_abi *abi, struct gemmd_image *image)
{
    uint64_t start = image->layout.multipliers_offset;
    /* The same layout without the weights. */
    struct gemmd_layer_image tail = {
        .multipliers_bytes = image->layout.multipliers_bytes,
        .scales_offset = image->layout.scales_offset - start,
        .bias_offset = image->layout.bias_offset - start,
        .zero_points_offset = image->layout.zero_points_offset - start,
        .bytes = image->layout.bytes - start,
    };
    enum gemmd_status status;
    float *scales;

    image->tail = aligned_alloc(64, tail.bytes);
    if (!image->tail)
        return gemmd_fail(session, -ENOMEM, "no memory for the scales");
    memset(image->tail, 0, tail.bytes);
    if (tail.multipliers_bytes)
        memcpy(image->tail, desc->multipliers, tail.multipliers_bytes);
    scales = (float *)(void *)(image->tail + tail.scales_offset);
    for (uint32_t i = 0; i < abi->scale_count; i++)
        scales[i] = desc->b_scales ? desc->b_scales[i] : 1.0f;
    if (abi->bias_type != GEMMD_ABI_TYPE_NONE)
        memcpy(image->tail + tail.bias_offset, desc->bias, (size_t)abi->n * 4);
    if (abi->b_zero_points)
        memcpy(image->tail + tail.zero_points_offset, desc->b_zero_points, abi->n);
    status = gemmd_validate_layer_values(abi, &tail, image->tail);
    return status == GEMMD_STATUS_OK ? 0 : fail_status(session, status);
}

void gemmd_image_hash(const struct gemmd_layer_desc_abi *abi, const struct gemmd_image *image,
                       uint64_t content_id[2])
{
    const struct gemmd_layer_image *layout = &image->layout;
    XXH3_state_t state;
    XXH128_hash_t hash;

    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, abi, sizeof(*abi));
    XXH3_128bits_update(&state, image->weights, layout->weights_bytes);
    XXH3_128bits_update(&state, zeros, layout->multipliers_offset - layout->weights_bytes);
    XXH3_128bits_update(&state, image->tail, layout->bytes - layout->multipliers_offset);
    hash = XXH3_128bits_digest(&state);
    content_id[0] = hash.low64;
    content_id[1] = hash.high64;
}

/* Copies what [offset, offset + bytes) of the image has of the part at [start, start + length). */
static void copy_part(uint8_t *out, uint64_t offset, uint64_t bytes, const void *part,
                      uint64_t start, uint64_t length)
{
    uint64_t from = offset > start ? offset : start;
    uint64_t to = offset + bytes < start + length ? offset + bytes : start + length;

    if (from < to)
        memcpy(out + (from - offset), (const uint8_t *)part + (from - start), to - from);
}

void gemmd_image_copy(const struct gemmd_image *image, uint8_t *out, uint64_t offset,
                      uint64_t bytes)
{
    const struct gemmd_layer_image *layout = &image->layout;

    copy_part(out, offset, bytes, image->weights, 0, layout->weights_bytes);
    copy_part(out, offset, bytes, zeros, layout->weights_bytes,
              layout->multipliers_offset - layout->weights_bytes);
    copy_part(out, offset, bytes, image->tail, layout->multipliers_offset,
              layout->bytes - layout->multipliers_offset);
}

int gemmd_image_open(struct gemmd *session, const struct gemmd_layer_desc *desc,
                     struct gemmd_layer_desc_abi *abi, struct gemmd_image *image)
{
    struct gemmd_layer_desc quantised;
    int error;

    memset(image, 0, sizeof(*image));
    error = convert_desc(session, desc, abi, &image->layout);
    if (error < 0)
        return error;
    image->progress = desc->progress;
    image->progress_context = desc->progress_context;
    quantised = *desc;
    error = gemmd_quantize(session, &quantised, &image->quantised);
    if (error == 0)
        error = check_arrays(session, &quantised);
    image->weights = quantised.weights;
    return error < 0 ? error : build_tail(session, &quantised, abi, image);
}

void gemmd_image_close(struct gemmd_image *image)
{
    free(image->tail);
    free(image->quantised);
}
