/*
 * Layers: descriptor to image to content id; attached to, or uploaded piece by piece through free
 * arena memory.  The weights are read in place; the rest is copied, to check and to pad it.
 */
#include "client/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "proto/validate.h"

/* Pieces of an upload: large enough to hide the message around each, small beside the default
 * arena. */
#define WINDOW_BYTES_MAX (UINT64_C(4) << 20)
#define WINDOW_BYTES_MIN (UINT64_C(64) << 10)

/* A layer's image (proto/control.h) without its copy: weights, zeros, then all other parts. */
struct image {
    struct gemmd_layer_image layout;
    const void *weights;
    uint8_t *tail; /* from layout.multipliers_offset to the end */
};

static const uint8_t zeros[64];

/* ---- descriptor ------------------------------------------------------------------------------ */

void gemmd_layer_desc_init(struct gemmd_layer_desc *desc)
{
    *desc = (struct gemmd_layer_desc){.size = sizeof(*desc),
                                      .a_type = GEMMD_TYPE_U8,
                                      .b_type = GEMMD_TYPE_S8,
                                      .c_type = GEMMD_TYPE_F32,
                                      .scale_count = 1,
                                      .a_scale = 1.0f,
                                      .c_scale = 1.0f};
}

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

static int convert_name(struct gemmd *session, const char *name, bool may_be_empty,
                        char out[GEMMD_NAME_BYTES])
{
    size_t length = name ? strnlen(name, GEMMD_NAME_BYTES) : 0;

    memset(out, 0, GEMMD_NAME_BYTES);
    if (length)
        memcpy(out, name, length); /* unterminated when too long, which the check refuses */
    if (gemmd_validate_name(out, may_be_empty) != GEMMD_STATUS_OK)
        return gemmd_fail(session, -EINVAL, "name: 1 to %d of [A-Za-z0-9._/-] are possible",
                          GEMMD_NAME_BYTES - 1);
    return 0;
}

/* ---- image ----------------------------------------------------------------------------------- */

/* Copies all but the weights to where it lies in the image, and checks the values. */
static int build_tail(struct gemmd *session, const struct gemmd_layer_desc *desc,
                      const struct gemmd_layer_desc_abi *abi, struct image *image)
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

static void hash_image(const struct gemmd_layer_desc_abi *abi, const struct image *image,
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

static void copy_image(const struct image *image, uint8_t *out, uint64_t offset, uint64_t bytes)
{
    const struct gemmd_layer_image *layout = &image->layout;

    copy_part(out, offset, bytes, image->weights, 0, layout->weights_bytes);
    copy_part(out, offset, bytes, zeros, layout->weights_bytes,
              layout->multipliers_offset - layout->weights_bytes);
    copy_part(out, offset, bytes, image->tail, layout->multipliers_offset,
              layout->bytes - layout->multipliers_offset);
}

/* ---- upload ---------------------------------------------------------------------------------- */

/* The largest of 4 MiB, 2 MiB … 64 KiB that is free, or the image's own size if that is less. */
static uint8_t *alloc_window(struct gemmd *session, uint64_t image_bytes, uint64_t *window_bytes)
{
    uint64_t bytes = WINDOW_BYTES_MAX;
    uint8_t *window = NULL;

    for (; bytes >= WINDOW_BYTES_MIN && !window; bytes /= 2) {
        *window_bytes = bytes < image_bytes ? bytes : image_bytes;
        window = gemmd_buffer_alloc(session, *window_bytes);
    }
    if (!window)
        gemmd_fail(session, -ENOBUFS, "layer: the upload needs 64 KiB of the arena in one piece, "
                   "%zu bytes are free; create layers before buffers",
                   gemmd_arena_bytes_free(session));
    return window;
}

static int send_image(struct gemmd *session, const struct image *image, uint8_t *window,
                      uint64_t window_bytes)
{
    uint64_t bytes = image->layout.bytes;

    for (uint64_t offset = 0; offset < bytes; offset += window_bytes) {
        struct gemmd_msg_layer_data_reply reply;
        struct gemmd_msg_layer_data data = {
            .header.type = GEMMD_MSG_LAYER_DATA,
            .image_offset = offset,
            .arena_offset = (uint64_t)(window - session->arena.memory),
            .bytes = bytes - offset < window_bytes ? bytes - offset : window_bytes,
        };
        int error;

        copy_image(image, window, offset, data.bytes);
        error = gemmd_ask(session, &data, sizeof(data), &reply, sizeof(reply), NULL);
        if (error < 0)
            return error;
    }
    return 0;
}

static int upload(struct gemmd *session, const struct image *image,
                  struct gemmd_msg_layer_reply *reply)
{
    struct gemmd_msg_layer_commit commit = {.header.type = GEMMD_MSG_LAYER_COMMIT};
    uint64_t window_bytes;
    uint8_t *window = alloc_window(session, image->layout.bytes, &window_bytes);
    int error;

    if (!window)
        return -ENOBUFS;
    error = send_image(session, image, window, window_bytes);
    gemmd_buffer_free(session, window);
    if (error < 0)
        return error;
    return gemmd_ask(session, &commit, sizeof(commit), reply, sizeof(*reply), NULL);
}

/* ---- handles --------------------------------------------------------------------------------- */

static int add_layer(struct gemmd *session, const struct gemmd_msg_layer_reply *reply,
                     const char name[GEMMD_NAME_BYTES], struct gemmd_layer **out)
{
    struct gemmd_layer_image layout;
    struct gemmd_layer *layer;

    if (reply->layer_gen == 0 ||
        gemmd_validate_layer_desc(&reply->desc, &layout) != GEMMD_STATUS_OK)
        return gemmd_fail(session, -EPROTO, "the worker at %s described a layer that cannot be",
                          session->socket);
    layer = calloc(1, sizeof(*layer));
    if (!layer)
        return gemmd_fail(session, -ENOMEM, "no memory for a layer's handle");
    *layer = (struct gemmd_layer){.next = session->layers,
                                  .session = session,
                                  .id = reply->layer_id,
                                  .gen = reply->layer_gen,
                                  .desc = reply->desc,
                                  .bytes_new = reply->weight_bytes_new};
    memcpy(layer->content_id, reply->content_id, sizeof(layer->content_id));
    memcpy(layer->name, name, sizeof(layer->name));
    session->layers = layer;
    *out = layer;
    return 0;
}

/* Without memory for it the layer is merely not kept. */
static void keep_image(const struct gemmd *session, const struct image *image,
                       struct gemmd_layer *layer)
{
    if (!session->copies || !session->options.keep_weights)
        return;
    layer->image = malloc(image->layout.bytes);
    if (layer->image)
        copy_image(image, layer->image, 0, image->layout.bytes);
}

/* The image is complete. */
static int create(struct gemmd *session, struct gemmd_msg_layer_create *message,
                  const struct image *image, struct gemmd_layer **out)
{
    struct gemmd_msg_layer_reply reply;
    bool attached;
    int error;

    hash_image(&message->desc, image, message->content_id);
    error = gemmd_ask(session, message, sizeof(*message), &reply, sizeof(reply), NULL);
    if (error == 0 && reply.layer_gen == 0)
        error = upload(session, image, &reply);
    if (error < 0)
        return error;
    /* Also when another session committed the same contents while we sent ours. */
    attached = reply.weight_bytes_new == 0;
    if (memcmp(&reply.desc, &message->desc, sizeof(reply.desc)) != 0)
        return gemmd_fail(session, -EPROTO, "the worker at %s answered with another layer",
                          session->socket);
    error = add_layer(session, &reply, message->name, out);
    if (error == 0)
        keep_image(session, image, *out);
    return error < 0 ? error : attached;
}

int gemmd_layer_create(struct gemmd *session, const struct gemmd_layer_desc *desc,
                       struct gemmd_layer **out)
{
    struct gemmd_msg_layer_create message = {.header.type = GEMMD_MSG_LAYER_CREATE};
    struct gemmd_layer_desc quantised;
    struct image image = {0};
    void *memory = NULL;
    int error = gemmd_check(session);

    *out = NULL;
    if (error < 0)
        return error;
    if (session->control_only)
        return gemmd_fail(session, -EINVAL, "layer: a control-only session has no arena");
    error = convert_desc(session, desc, &message.desc, &image.layout);
    if (error == 0)
        error = convert_name(session, desc->name, true, message.name);
    if (error < 0)
        return error;
    quantised = *desc;
    error = gemmd_quantize(session, &quantised, &memory);
    if (error == 0)
        error = check_arrays(session, &quantised);
    if (error == 0)
        error = build_tail(session, &quantised, &message.desc, &image);
    image.weights = quantised.weights;
    if (error == 0)
        error = create(session, &message, &image, out);
    free(image.tail);
    free(memory);
    return error;
}

int gemmd_layer_open(struct gemmd *session, const char *name, struct gemmd_layer **out)
{
    struct gemmd_msg_layer_open message = {.header.type = GEMMD_MSG_LAYER_OPEN};
    struct gemmd_msg_layer_reply reply;
    int error = gemmd_check(session);

    *out = NULL;
    if (error == 0)
        error = convert_name(session, name, false, message.name);
    if (error == 0)
        error = gemmd_ask(session, &message, sizeof(message), &reply, sizeof(reply), NULL);
    return error < 0 ? error : add_layer(session, &reply, message.name, out);
}

int gemmd_layer_close(struct gemmd *session, struct gemmd_layer **layer_p)
{
    struct gemmd_layer *layer = layer_p ? *layer_p : NULL;
    struct gemmd_msg_layer_close message = {.header.type = GEMMD_MSG_LAYER_CLOSE};
    struct gemmd_msg_layer_close_reply reply;
    struct gemmd_layer **link = &session->layers;

    if (!layer)
        return 0;
    gemmd_check(session); /* now: a recovery would give the layer another id */
    *layer_p = NULL;
    while (*link && *link != layer)
        link = &(*link)->next;
    if (!*link)
        return gemmd_fail(session, -EINVAL, "layer: not of this session");
    *link = layer->next;
    message.layer_id = layer->id;
    message.layer_gen = layer->gen;
    gemmd_forget_layer(session, layer);
    free(layer->image);
    free(layer);
    return gemmd_ask(session, &message, sizeof(message), &reply, sizeof(reply), NULL);
}

/* By its name, if the layer there is the same. */
static int reopen_by_name(struct gemmd *session, const struct gemmd_layer *layer,
                          struct gemmd_msg_layer_reply *reply)
{
    struct gemmd_msg_layer_open message = {.header.type = GEMMD_MSG_LAYER_OPEN};
    struct gemmd_msg_layer_close close = {.header.type = GEMMD_MSG_LAYER_CLOSE};
    struct gemmd_msg_layer_close_reply closed;
    int error;

    if (!*layer->name)
        return -ENOENT;
    memcpy(message.name, layer->name, sizeof(message.name));
    error = gemmd_ask(session, &message, sizeof(message), reply, sizeof(*reply), NULL);
    if (error < 0 || memcmp(reply->content_id, layer->content_id, sizeof(layer->content_id)) == 0)
        return error;
    close.layer_id = reply->layer_id;
    close.layer_gen = reply->layer_gen;
    error = gemmd_ask(session, &close, sizeof(close), &closed, sizeof(closed), NULL);
    return error < 0 ? error : -ENOENT;
}

int gemmd_layer_reopen(struct gemmd *session, struct gemmd_layer *layer)
{
    struct gemmd_msg_layer_create message = {.header.type = GEMMD_MSG_LAYER_CREATE,
                                             .desc = layer->desc};
    struct image image = {.weights = layer->image};
    struct gemmd_msg_layer_reply reply;
    int error = reopen_by_name(session, layer, &reply);

    if (error < 0 && !session->lost) {
        memcpy(message.content_id, layer->content_id, sizeof(message.content_id));
        memcpy(message.name, layer->name, sizeof(message.name));
        error = gemmd_ask(session, &message, sizeof(message), &reply, sizeof(reply), NULL);
        if (error == 0 && reply.layer_gen == 0 && !layer->image)
            error = -ENOENT;
        if (error == 0 && reply.layer_gen == 0) {
            gemmd_validate_layer_desc(&layer->desc, &image.layout); /* as it was made from */
            image.tail = layer->image + image.layout.multipliers_offset;
            error = upload(session, &image, &reply);
        }
    }
    if (error == 0 && (reply.layer_gen == 0 ||
                       memcmp(&reply.desc, &layer->desc, sizeof(reply.desc)) != 0))
        error = -EPROTO;
    if (error < 0)
        return error;
    layer->id = reply.layer_id;
    layer->gen = reply.layer_gen;
    layer->bytes_new = reply.weight_bytes_new;
    return 0;
}

uint32_t gemmd_layer_n(const struct gemmd_layer *layer)
{
    return layer->desc.n;
}

uint32_t gemmd_layer_k(const struct gemmd_layer *layer)
{
    return layer->desc.k;
}

uint32_t gemmd_layer_a_row_bytes(const struct gemmd_layer *layer)
{
    return gemmd_abi_a_row_bytes(&layer->desc);
}

enum gemmd_type gemmd_layer_a_type(const struct gemmd_layer *layer)
{
    return (enum gemmd_type)layer->desc.a_type;
}

enum gemmd_type gemmd_layer_b_type(const struct gemmd_layer *layer)
{
    return (enum gemmd_type)layer->desc.b_type;
}

enum gemmd_type gemmd_layer_c_type(const struct gemmd_layer *layer)
{
    return (enum gemmd_type)layer->desc.c_type;
}

enum gemmd_type gemmd_layer_residual_type(const struct gemmd_layer *layer)
{
    return (enum gemmd_type)layer->desc.residual_type;
}

uint64_t gemmd_layer_bytes_new(const struct gemmd_layer *layer)
{
    return layer->bytes_new;
}
