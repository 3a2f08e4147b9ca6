/*
 * Layers of sessions: created from a client's bytes, opened by content or name, closed.
 */
#include "worker/requests.h"

#include <string.h>
#include <sys/mman.h>

#include "proto/validate.h"
#include "worker/clock.h"
#include "worker/log.h"
#include "worker/memory.h"

/* An upload may pause for so long while others want its room. */
#define UPLOAD_IDLE_NS UINT64_C(5000000000)

enum gemmd_status requests_open_layer(struct control *control, struct session *session,
                                      struct layer *layer, uint64_t bytes_new,
                                      struct control_answer *answer)
{
    struct gemmd_msg_layer_reply *reply = &answer->reply.layer;
    uint32_t id = 0;

    while (id < GEMMD_SESSION_LAYERS_MAX && session->ring.layers[id].layer)
        id++;
    if (id == GEMMD_SESSION_LAYERS_MAX)
        return GEMMD_STATUS_LAYERS_FULL;
    layer_reference(control->config.layers, layer);
    layer->hits += bytes_new == 0;
    session->layer_count++;
    reply->layer_id = id;
    reply->layer_gen = session->ring.layers[id].gen + 1;
    if (reply->layer_gen == 0)
        reply->layer_gen = 1;
    reply->desc = layer->desc;
    memcpy(reply->content_id, layer->content_id, sizeof(reply->content_id));
    reply->weight_bytes_new = bytes_new;
    session_layer_open(&session->ring.layers[id], layer, reply->layer_gen);
    return GEMMD_STATUS_OK;
}

static void close_layer(struct control *control, struct session *session, uint32_t id)
{
    const struct mailbox_order order = {
        .op = MAILBOX_CLOSE_LAYER, .session = session, .layer_id = id};
    struct layer *layer = session->ring.layers[id].layer;

    if (session->attached)
        mailbox_call(control->config.mailbox, &order);
    else /* control only: no dispatcher reads it */
        session->ring.layers[id].layer = NULL;
    layer_release(control->config.layers, layer);
    session->layer_count--;
}

/* All uploads together stay within what the pool could take.  One that makes no progress gives way
 * to others, or a client that opens the largest and waits would keep everybody out. */
static bool make_staging_room(struct control *control, uint64_t bytes)
{
    uint64_t room = pool_limit_bytes(control->config.pool), now_ns = clock_now_ns();

    if (bytes > room)
        return false;
    for (uint32_t slot = 0;
         slot < GEMMD_WORKER_SESSIONS_MAX && control->staging_bytes > room - bytes; slot++) {
        struct session *session = control->sessions[slot];

        if (session && session->upload.data && !session->commit_order &&
            now_ns - session->upload.touched_ns > UPLOAD_IDLE_NS) {
            log_warn(LOG_TOPIC_LAYERS, "the idle upload of session %u gives way", session->id);
            requests_close_upload(control, session);
        }
    }
    return control->staging_bytes <= room - bytes;
}

/* The layer if its bytes are right, else NULL: it is withdrawn then. */
static struct layer *verified(struct control *control, struct layer *layer)
{
    if (!layer || layer_verify(layer))
        return layer;
    requests_withdraw(control, layer);
    return NULL;
}

/* Attaches when the content is there, else opens an upload. */
enum gemmd_status handle_layer_create(struct control *control, struct session *session,
                                      const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_layer_create *create = request;
    struct session_upload *upload = &session->upload;
    struct gemmd_layer_image image;
    enum gemmd_status status = gemmd_validate_layer_desc(&create->desc, &image);
    struct layer *layer;

    if (status == GEMMD_STATUS_OK)
        status = gemmd_validate_name(create->name, true);
    if (status != GEMMD_STATUS_OK)
        return status;
    if (session->control_only)
        return GEMMD_STATUS_STATE; /* it has no arena to upload through */
    requests_close_upload(control, session);
    layer = verified(control,
                     layers_find(control->config.layers, create->content_id, session->uid));
    if (layer && memcmp(&layer->desc, &create->desc, sizeof(create->desc)) == 0) {
        status = layers_set_name(control->config.layers, layer, create->name);
        if (status == GEMMD_STATUS_OK)
            status = requests_open_layer(control, session, layer, 0, answer);
        if (status == GEMMD_STATUS_OK)
            gemmd_counter_add(&control->config.stats->layers_attached, 1);
        return status;
    }

    if (!make_staging_room(control, image.bytes))
        return GEMMD_STATUS_POOL_FULL;
    if (!memory_is_allowed(image.bytes))
        return GEMMD_STATUS_NO_MEMORY;
    upload->data =
        mmap(NULL, image.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (upload->data == MAP_FAILED) {
        upload->data = NULL;
        return GEMMD_STATUS_NO_MEMORY;
    }
    upload->desc = create->desc;
    upload->image = image;
    memcpy(upload->content_id, create->content_id, sizeof(upload->content_id));
    memcpy(upload->name, create->name, sizeof(upload->name));
    upload->received = 0;
    upload->touched_ns = clock_now_ns();
    control->staging_bytes += image.bytes;
    memory_promise((int64_t)image.bytes);
    return GEMMD_STATUS_OK; /* layer_gen 0: send the image */
}

enum gemmd_status handle_layer_data(struct control *control, struct session *session,
                                    const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_layer_data *data = request;
    struct session_upload *upload = &session->upload;

    (void)control;
    if (!upload->data || data->image_offset != upload->received)
        return GEMMD_STATUS_UPLOAD;
    if (data->bytes == 0 ||
        !gemmd_range_inside(data->image_offset, data->bytes, upload->image.bytes) ||
        !gemmd_range_inside(data->arena_offset, data->bytes, session->arena.bytes))
        return GEMMD_STATUS_UPLOAD_RANGE;
    /* The one copy; the client may scribble on the arena from here on. */
    memcpy(upload->data + upload->received,
           (const char *)session->arena.memory + data->arena_offset, data->bytes);
    upload->received += data->bytes;
    memory_promise(-(int64_t)data->bytes);
    upload->touched_ns = clock_now_ns();
    answer->reply.layer_data.received = upload->received;
    return GEMMD_STATUS_OK;
}

enum gemmd_status handle_layer_open(struct control *control, struct session *session,
                                    const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_layer_open *open = request;
    enum gemmd_status status = gemmd_validate_name(open->name, false);
    struct layer *layer;

    if (status != GEMMD_STATUS_OK)
        return status;
    layer = verified(control, layers_find_name(control->config.layers, open->name));
    return layer ? requests_open_layer(control, session, layer, 0, answer)
                 : GEMMD_STATUS_NAME_UNKNOWN;
}

enum gemmd_status handle_layer_close(struct control *control, struct session *session,
                                     const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_layer_close *close = request;
    const struct session_layer *entry = &session->ring.layers[close->layer_id %
                                                              GEMMD_SESSION_LAYERS_MAX];

    (void)answer;
    if (close->layer_id >= GEMMD_SESSION_LAYERS_MAX || !entry->layer)
        return GEMMD_STATUS_LAYER;
    if (entry->gen != close->layer_gen)
        return GEMMD_STATUS_LAYER_STALE;
    close_layer(control, session, close->layer_id);
    return GEMMD_STATUS_OK;
}

void control_release_session(struct control *control, struct session *session)
{
    requests_end_load(control, session);
    requests_forget_commit(control, session);
    requests_close_upload(control, session);
    for (uint32_t id = 0; id < GEMMD_SESSION_LAYERS_MAX; id++)
        if (session->ring.layers[id].layer)
            layer_release(control->config.layers, session->ring.layers[id].layer);
}

void requests_withdraw(struct control *control, struct layer *layer)
{
    log_error(LOG_TOPIC_LAYERS, "weights of a layer [%u x %u] have changed in memory: it is "
              "withdrawn, its jobs fail; load it again and test the memory",
              layer->desc.n, layer->desc.k);
    layer_reference(control->config.layers, layer); /* until the last handle is closed */
    layer_condemn(control->config.layers, layer);
    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX; slot++) {
        struct session *session = control->sessions[slot];

        for (uint32_t id = 0; session && id < GEMMD_SESSION_LAYERS_MAX; id++)
            if (session->ring.layers[id].layer == layer)
                close_layer(control, session, id);
    }
    layer_release(control->config.layers, layer);
}

/* Layers of which a checked result was wrong: is it the weights? */
static void look_at_suspects(struct control *control)
{
    uint64_t faults = gemmd_counter_read(&control->config.stats->verify_faults);
    struct layer *layer;
    bool changed;

    if (faults == control->verify_faults_seen)
        return;
    control->verify_faults_seen = faults;
    while ((layer = layers_take_suspect(control->config.layers, &changed))) {
        log_error(LOG_TOPIC_LAYERS, "a checked result of a layer [%u x %u] was wrong (%llu such "
                  "jobs failed so far); its weights are %s", layer->desc.n, layer->desc.k,
                  (unsigned long long)faults,
                  changed ? "at fault" : "as they were: test the CPU and the memory");
        if (changed)
            requests_withdraw(control, layer);
    }
}

void requests_guard_layers(struct control *control, bool idle)
{
    struct layer *changed;

    look_at_suspects(control);
    if (!idle && !layers_are_unverified(control->config.layers))
        return;
    changed = layers_scrub(control->config.layers, CONTROL_SCRUB_SLICE_BYTES);
    if (changed)
        requests_withdraw(control, changed);
}
