/*
 * Layers: attached to by their content, or uploaded piece by piece through free arena memory;
 * opened by name, closed.
 */
#include "client/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/validate.h"

/* Pieces of an upload: large enough to hide the message around each, small beside the default
 * arena. */
#define WINDOW_BYTES_MAX (UINT64_C(4) << 20)
#define WINDOW_BYTES_MIN (UINT64_C(64) << 10)

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

static int send_image(struct gemmd *session, const struct gemmd_image *image, uint8_t *window,
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

        gemmd_image_copy(image, window, offset, data.bytes);
        error = gemmd_ask(session, &data, sizeof(data), &reply, sizeof(reply), NULL);
        if (error < 0)
            return error;
        if (image->progress)
            image->progress(image->progress_context, offset + data.bytes, bytes);
    }
    return 0;
}

static int upload(struct gemmd *session, const struct gemmd_image *image,
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
static void keep_image(const struct gemmd *session, const struct gemmd_image *image,
                       struct gemmd_layer *layer)
{
    if (!session->copies || !session->options.keep_weights)
        return;
    layer->image = malloc(image->layout.bytes);
    if (layer->image)
        gemmd_image_copy(image, layer->image, 0, image->layout.bytes);
}

/* ---- creation -------------------------------------------------------------------------------- */

/* Requests sent before the first reply is waited for: few enough that neither side's socket fills.
 * All hashing comes first: a request sent after each hash would wake the worker each time. */
#define BATCH_MAX 32

struct creation {
    struct gemmd_msg_layer_create message;
    struct gemmd_image image;
    bool sent, missing; /* missing: the worker asks for the image */
};

static int prepare(struct gemmd *session, const struct gemmd_layer_desc *desc,
                   struct creation *creation)
{
    struct gemmd_msg_layer_create *message = &creation->message;
    int error = gemmd_image_open(session, desc, &message->desc, &creation->image);

    message->header.type = GEMMD_MSG_LAYER_CREATE;
    if (error == 0)
        error = convert_name(session, desc->name, true, message->name);
    if (error == 0)
        gemmd_image_hash(&message->desc, &creation->image, message->content_id);
    return error;
}

/* The worker has the layer.  1 when it had it before, else 0; or -errno. */
static int finish(struct gemmd *session, const struct creation *creation,
                  const struct gemmd_msg_layer_reply *reply, struct gemmd_layer **out)
{
    int error;

    if (memcmp(&reply->desc, &creation->message.desc, sizeof(reply->desc)) != 0)
        return gemmd_fail(session, -EPROTO, "the worker at %s answered with another layer",
                          session->socket);
    error = add_layer(session, reply, creation->message.name, out);
    if (error < 0)
        return error;
    keep_image(session, &creation->image, *out);
    /* Also when another session committed the same contents while we sent ours. */
    return reply->weight_bytes_new == 0;
}

/* The reply to a request of a batch: finish's results; 0 with creation->missing. */
static int take_answer(struct gemmd *session, struct creation *creation, struct gemmd_layer **out)
{
    struct gemmd_msg_layer_reply reply;
    int error = gemmd_receive(session, &creation->message.header, &reply, sizeof(reply));

    creation->sent = false;
    if (error < 0)
        return error;
    creation->missing = reply.layer_gen == 0;
    return creation->missing ? 0 : finish(session, creation, &reply, out);
}

/* Asks for a batch in one go, so that the worker wakes up once, and takes what is there.  How many,
 * or -errno when all replies have come. */
static int attach_batch(struct gemmd *session, uint32_t count, struct creation *creations,
                        struct gemmd_layer **out)
{
    char text[GEMMD_TEXT_BYTES];
    int attached = 0, error = 0;

    for (uint32_t i = 0; i < count && error == 0; i++) {
        error = gemmd_send(session, &creations[i].message, sizeof(creations[i].message));
        creations[i].sent = error == 0;
    }
    for (uint32_t i = 0; i < count && error != -ETIMEDOUT && !session->lost; i++) {
        int result;

        if (!creations[i].sent)
            break;
        memcpy(text, session->text, sizeof(text));
        result = take_answer(session, &creations[i], &out[i]);
        attached += result == 1;
        if (error < 0)
            memcpy(session->text, text, sizeof(text)); /* the first failure is the one to tell */
        else if (result < 0)
            error = result;
    }
    return error < 0 ? error : attached;
}

/* How many are attached, or -errno. */
static int attach_all(struct gemmd *session, const struct gemmd_layer_desc *descs, uint32_t count,
                      struct creation *creations, struct gemmd_layer **out)
{
    int attached = 0, result = 0;

    for (uint32_t first = 0; first < count && result >= 0; first += BATCH_MAX) {
        uint32_t batch = count - first < BATCH_MAX ? count - first : BATCH_MAX;

        for (uint32_t i = first; i < first + batch && result >= 0; i++)
            result = prepare(session, &descs[i], &creations[i]);
        if (result >= 0)
            result = attach_batch(session, batch, &creations[first], &out[first]);
        attached += result;
    }
    return result < 0 ? result : attached;
}

/* Uploads one that is missing.  Its request, unless it was the last, opened an upload that the next
 * one abandoned. */
static int supply(struct gemmd *session, struct creation *creation, bool is_open,
                  struct gemmd_layer **out)
{
    struct gemmd_msg_layer_create *message = &creation->message;
    struct gemmd_msg_layer_reply reply = {.layer_gen = 0};
    int error = 0;

    if (!is_open)
        error = gemmd_ask(session, message, sizeof(*message), &reply, sizeof(reply), NULL);
    if (error == 0 && reply.layer_gen == 0)
        error = upload(session, &creation->image, &reply);
    return error < 0 ? error : finish(session, creation, &reply, out);
}

static int create_all(struct gemmd *session, const struct gemmd_layer_desc *descs, uint32_t count,
                      struct creation *creations, struct gemmd_layer **out)
{
    int attached = attach_all(session, descs, count, creations, out);
    bool is_open = count && creations[count - 1].missing;

    /* The one whose upload is open first. */
    for (uint32_t i = count; i > 0 && attached >= 0; i--) {
        int result;

        if (!creations[i - 1].missing)
            continue;
        result = supply(session, &creations[i - 1], is_open && i == count, &out[i - 1]);
        attached = result < 0 ? result : attached + result;
    }
    return attached;
}

int gemmd_layers_create(struct gemmd *session, const struct gemmd_layer_desc *descs,
                        uint32_t count, struct gemmd_layer **out)
{
    struct creation *creations;
    int result = gemmd_check(session);

    for (uint32_t i = 0; i < count; i++)
        out[i] = NULL;
    if (result < 0)
        return result;
    if (session->control_only)
        return gemmd_fail(session, -EINVAL, "layer: a control-only session has no arena");
    creations = calloc(count, sizeof(*creations));
    if (!creations && count)
        return gemmd_fail(session, -ENOMEM, "no memory for %u layers", count);
    result = create_all(session, descs, count, creations, out);
    for (uint32_t i = 0; i < count; i++) {
        gemmd_image_close(&creations[i].image);
        if (result < 0)
            gemmd_layer_close(session, &out[i]);
    }
    free(creations);
    return result;
}

int gemmd_layer_create(struct gemmd *session, const struct gemmd_layer_desc *desc,
                       struct gemmd_layer **out)
{
    return gemmd_layers_create(session, desc, 1, out);
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
    struct gemmd_image image = {.weights = layer->image};
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
