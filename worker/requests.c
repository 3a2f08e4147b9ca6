/*
 * What each control message does.  Every request here has the right length and type; each handler
 * checks its values, fills its reply, and returns the status.  A handler either succeeds whole or
 * leaves the session as it was.
 */
#include "worker/control.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/validate.h"
#include "worker/clock.h"
#include "worker/log.h"

#ifndef GEMMD_WORKER_VERSION
#error "the build defines GEMMD_WORKER_VERSION"
#endif

typedef enum gemmd_status handler_fn(struct control *control, struct session *session,
                                     const void *request, struct control_answer *answer);

/* ---- handshake ------------------------------------------------------------------------------- */

static enum gemmd_status handle_hello(struct control *control, struct session *session,
                                      const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_hello *hello = request;
    struct gemmd_msg_hello_reply *reply = &answer->reply.hello;
    uint32_t entries = hello->ring_entries ? hello->ring_entries : GEMMD_RING_ENTRIES_DEFAULT;
    uint64_t arena = hello->arena_bytes ? hello->arena_bytes : GEMMD_ARENA_BYTES_DEFAULT;
    enum gemmd_status status = gemmd_validate_hello(hello, &reply->version);

    if (status != GEMMD_STATUS_OK)
        return status;
    session->control_only = hello->flags & GEMMD_HELLO_CONTROL_ONLY;
    if (!session->control_only) {
        if (!control_has_arena_room(control, session, arena))
            return GEMMD_STATUS_ARENA_NO_MEMORY;
        status = session_create_segments(session, entries, arena, control->config.ring_start,
                                         control->config.node);
        if (status != GEMMD_STATUS_OK)
            return status;
        control->arena_bytes += session->arena.bytes;
        reply->ring_entries = entries;
        reply->ring_start = control->config.ring_start;
        reply->c2w_bytes = session->c2w.bytes;
        reply->w2c_bytes = session->w2c.bytes;
        reply->arena_bytes = session->arena.bytes;
        reply->arena_page_bytes = session->arena.page_bytes;
        answer->fds[0] = session->c2w.fd;
        answer->fds[1] = session->w2c.fd;
        answer->fds[2] = session->arena.fd;
        answer->fds[3] = session->kick_fd;
        answer->fd_count = GEMMD_HELLO_FD_COUNT;
    }
    reply->magic = GEMMD_MAGIC;
    reply->session_id = session->id;
    reply->features = hello->features & GEMMD_FEATURES;
    reply->worker_epoch = control->worker_epoch;
    reply->spin_ns_max = control->config.client_spin_ns;
    reply->dispatcher_cpu = control->config.dispatcher_cpu;
    session->state = session->control_only ? GEMMD_SESSION_LIVE : GEMMD_SESSION_MAPPING;
    if (session->control_only)
        gemmd_counter_add(&control->config.stats->sessions_opened, 1);
    return GEMMD_STATUS_OK;
}

static enum gemmd_status handle_mapped(struct control *control, struct session *session,
                                       const void *request, struct control_answer *answer)
{
    const struct mailbox_order attach = {.op = MAILBOX_ATTACH, .session = session};
    enum gemmd_status status = session_seal(session);

    (void)request;
    (void)answer;
    if (status != GEMMD_STATUS_OK)
        return status;
    mailbox_call(control->config.mailbox, &attach);
    session->attached = true;
    session->state = GEMMD_SESSION_LIVE;
    gemmd_counter_add(&control->config.stats->sessions_opened, 1);
    log_info(LOG_TOPIC_SESSION, "session %u of pid %d is live", session->id, (int)session->pid);
    return GEMMD_STATUS_OK;
}

/* ---- layers ---------------------------------------------------------------------------------- */

static void close_upload(struct control *control, struct session *session)
{
    struct session_upload *upload = &session->upload;

    if (!upload->data)
        return;
    control->staging_bytes -= upload->image.bytes;
    munmap(upload->data, upload->image.bytes);
    memset(upload, 0, sizeof(*upload));
}

static void set_entry(struct control *control, struct session *session, uint32_t layer_id,
                      struct layer *layer, uint32_t gen)
{
    const struct mailbox_order order = {.op = MAILBOX_LAYER,
                                        .session = session,
                                        .layer_id = layer_id,
                                        .layer_gen = gen,
                                        .layer = layer};

    if (session->attached)
        mailbox_call(control->config.mailbox, &order);
    else /* control only: no dispatcher reads it */
        session->ring.layers[layer_id] = (struct session_layer){.layer = layer, .gen = gen};
}

/* Gives the session a handle of `layer`. */
static enum gemmd_status open_layer(struct control *control, struct session *session,
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
    session->layer_count++;
    reply->layer_id = id;
    reply->layer_gen = session->ring.layers[id].gen + 1;
    if (reply->layer_gen == 0)
        reply->layer_gen = 1;
    reply->desc = layer->desc;
    memcpy(reply->content_id, layer->content_id, sizeof(reply->content_id));
    reply->weight_bytes_new = bytes_new;
    set_entry(control, session, id, layer, reply->layer_gen);
    return GEMMD_STATUS_OK;
}

static void close_layer(struct control *control, struct session *session, uint32_t id)
{
    struct session_layer entry = session->ring.layers[id];

    set_entry(control, session, id, NULL, entry.gen);
    layer_release(control->config.layers, entry.layer);
    session->layer_count--;
}

/* Attaches when the content is there, else opens an upload. */
static enum gemmd_status handle_layer_create(struct control *control, struct session *session,
                                             const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_layer_create *create = request;
    struct session_upload *upload = &session->upload;
    struct gemmd_layer_image image;
    enum gemmd_status status = gemmd_validate_layer_desc(&create->desc, &image);
    struct layer *layer;
    uint64_t room;

    if (status == GEMMD_STATUS_OK)
        status = gemmd_validate_name(create->name, true);
    if (status != GEMMD_STATUS_OK)
        return status;
    if (session->control_only)
        return GEMMD_STATUS_STATE; /* it has no arena to upload through */
    close_upload(control, session);
    layer = layers_find(control->config.layers, create->content_id, session->uid);
    if (layer && memcmp(&layer->desc, &create->desc, sizeof(create->desc)) == 0) {
        status = layers_set_name(control->config.layers, layer, create->name);
        if (status == GEMMD_STATUS_OK)
            status = open_layer(control, session, layer, 0, answer);
        if (status == GEMMD_STATUS_OK)
            gemmd_counter_add(&control->config.stats->layers_attached, 1);
        return status;
    }

    /* All uploads together stay within what the pool could take. */
    room = pool_limit_bytes(control->config.pool);
    if (image.bytes > room || control->staging_bytes > room - image.bytes)
        return GEMMD_STATUS_POOL_FULL;
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
    control->staging_bytes += image.bytes;
    return GEMMD_STATUS_OK; /* layer_gen 0: send the image */
}

static enum gemmd_status handle_layer_data(struct control *control, struct session *session,
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
    answer->reply.layer_data.received = upload->received;
    return GEMMD_STATUS_OK;
}

static enum gemmd_status handle_layer_commit(struct control *control, struct session *session,
                                             const void *request, struct control_answer *answer)
{
    struct session_upload *upload = &session->upload;
    struct layer *layer;
    uint64_t bytes_new;
    enum gemmd_status status;

    (void)request;
    if (!upload->data || upload->received != upload->image.bytes)
        return GEMMD_STATUS_UPLOAD;
    status = layers_create(control->config.layers, &upload->desc, upload->data, upload->content_id,
                           session->uid, &layer, &bytes_new);
    if (status == GEMMD_STATUS_OK)
        status = layers_set_name(control->config.layers, layer, upload->name);
    if (status == GEMMD_STATUS_OK)
        status = open_layer(control, session, layer, bytes_new, answer);
    if (status == GEMMD_STATUS_OK)
        gemmd_counter_add(bytes_new ? &control->config.stats->layers_created
                                    : &control->config.stats->layers_attached,
                          1);
    close_upload(control, session);
    return status;
}

static enum gemmd_status handle_layer_open(struct control *control, struct session *session,
                                           const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_layer_open *open = request;
    enum gemmd_status status = gemmd_validate_name(open->name, false);
    struct layer *layer;

    if (status != GEMMD_STATUS_OK)
        return status;
    layer = layers_find_name(control->config.layers, open->name);
    return layer ? open_layer(control, session, layer, 0, answer) : GEMMD_STATUS_NAME_UNKNOWN;
}

static enum gemmd_status handle_layer_close(struct control *control, struct session *session,
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

/* ---- looking --------------------------------------------------------------------------------- */

static enum gemmd_status handle_info(struct control *control, struct session *session,
                                     const void *request, struct control_answer *answer)
{
    const struct control_config *config = &control->config;
    struct gemmd_msg_info_reply *info = &answer->reply.info;
    struct pool_report pool;

    (void)session;
    (void)request;
    pool_report(config->pool, &pool);
    snprintf(info->worker_version, sizeof(info->worker_version), "%s", GEMMD_WORKER_VERSION);
    snprintf(info->level, sizeof(info->level), "%s", cpu_level_name(config->kernel->level));
    snprintf(info->kernel, sizeof(info->kernel), "%s", config->kernel->name);
    snprintf(info->event_level, sizeof(info->event_level), "%s",
             dispatcher_event_level(config->dispatcher));
    snprintf(info->lost, sizeof(info->lost), "%s%s%s", config->lost,
             *config->lost && *pool.lost ? "; " : "", pool.lost);
    info->pid = (uint32_t)getpid();
    info->node = config->node;
    info->cpu_count = config->cpu_count;
    info->dispatcher_cpu = config->dispatcher_cpu;
    info->uptime_ns = clock_now_ns() - control->started_ns;
    info->session_count = control->session_count;
    info->layer_count = layers_count(config->layers);
    info->pool_bytes = pool.bytes;
    info->pool_bytes_used = pool.bytes_used;
    info->pool_bytes_limit = pool.bytes_limit;
    info->pool_bytes_1g = pool.bytes_1g;
    info->pool_bytes_2m = pool.bytes_2m;
    info->pool_bytes_thp = pool.bytes_thp;
    info->pool_bytes_4k = pool.bytes_4k;
    info->pool_bytes_on_node = pool.bytes_on_node;
    info->arena_bytes = control->arena_bytes;
    info->worker_epoch = control->worker_epoch;
    return GEMMD_STATUS_OK;
}

static struct gemmd_abi_latency latency_of(const struct histogram *queue,
                                           const struct histogram *exec)
{
    return (struct gemmd_abi_latency){
        .queue_p50_ns = histogram_percentile(queue, 500),
        .queue_p99_ns = histogram_percentile(queue, 990),
        .exec_p50_ns = histogram_percentile(exec, 500),
        .exec_p99_ns = histogram_percentile(exec, 990),
    };
}

static enum gemmd_status handle_layers(struct control *control, struct session *session,
                                       const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_list *list = request;
    struct gemmd_msg_layers_reply *reply = &answer->reply.layers;
    const char *name;
    const struct layer *layer = layers_get(control->config.layers, list->index, &name);

    (void)session;
    if (!layer)
        return GEMMD_STATUS_INDEX;
    reply->desc = layer->desc;
    memcpy(reply->content_id, layer->content_id, sizeof(reply->content_id));
    snprintf(reply->name, sizeof(reply->name), "%s", name);
    snprintf(reply->kernel, sizeof(reply->kernel), "%s", layer->weights.kernel->name);
    reply->weight_bytes = layer->bytes;
    reply->page_bytes = layer->page_bytes;
    reply->node = control->config.node;
    reply->references = layer->references;
    reply->jobs = gemmd_counter_read(&layer->jobs);
    reply->rows = gemmd_counter_read(&layer->rows);
    reply->exec_ns = gemmd_counter_read(&layer->exec_ns);
    reply->panels = gemmd_counter_read(&layer->panels);
    reply->panel_rows = gemmd_counter_read(&layer->panel_rows);
    reply->latency = latency_of(&layer->queue_histogram, &layer->exec_histogram);
    return GEMMD_STATUS_OK;
}

/* Other users' sessions are shown to root and to the worker's own user only. */
static bool may_see(const struct session *viewer, const struct session *session)
{
    return viewer->uid == 0 || viewer->uid == geteuid() || viewer->uid == session->uid;
}

static enum gemmd_status handle_sessions(struct control *control, struct session *viewer,
                                         const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_list *list = request;
    struct gemmd_msg_sessions_reply *reply = &answer->reply.sessions;
    const struct session *session = NULL;
    uint32_t index = 0;

    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX && !session; slot++)
        if (control->sessions[slot] && may_see(viewer, control->sessions[slot]) &&
            index++ == list->index)
            session = control->sessions[slot];
    if (!session)
        return GEMMD_STATUS_INDEX;
    reply->session_id = session->id;
    reply->pid = (uint32_t)session->pid;
    reply->uid = (uint32_t)session->uid;
    reply->ring_entries = session->ring_entries;
    reply->arena_bytes = session->arena.bytes;
    reply->jobs = gemmd_counter_read(&session->ring.jobs_done);
    reply->jobs_failed = gemmd_counter_read(&session->ring.jobs_failed);
    reply->rows = gemmd_counter_read(&session->ring.rows);
    reply->exec_ns = gemmd_counter_read(&session->ring.exec_ns);
    reply->doorbells = gemmd_counter_read(&session->ring.doorbells);
    reply->wakeups = gemmd_counter_read(&session->ring.wakeups);
    reply->layers = session->layer_count;
    reply->state = session->state;
    reply->age_ns = clock_now_ns() - session->connected_ns;
    reply->latency = latency_of(&session->ring.queue_histogram, &session->ring.exec_histogram);
    reply->deadline_misses = gemmd_counter_read(&session->ring.deadline_misses);
    reply->cancelled = gemmd_counter_read(&session->ring.cancelled);
    reply->in_flight = __atomic_load_n(&session->ring.scheduled.in_flight, __ATOMIC_RELAXED);
    return GEMMD_STATUS_OK;
}

static enum gemmd_status handle_stats(struct control *control, struct session *session,
                                      const void *request, struct control_answer *answer)
{
    (void)session;
    (void)request;
    answer->reply.stats.bytes = sizeof(struct gemmd_stats_page);
    answer->fds[0] = control->config.stats_fd;
    answer->fd_count = 1;
    return GEMMD_STATUS_OK;
}

static enum gemmd_status handle_wake_fd(struct control *control, struct session *session,
                                        const void *request, struct control_answer *answer)
{
    (void)control;
    (void)request;
    if (session->control_only)
        return GEMMD_STATUS_STATE;
    if (session_open_wake(session) < 0)
        return GEMMD_STATUS_NO_MEMORY;
    answer->fds[0] = session->wake_poll_fd;
    answer->fd_count = 1;
    return GEMMD_STATUS_OK;
}

/* ---- dispatch -------------------------------------------------------------------------------- */

static const struct {
    handler_fn *handle;
    uint32_t reply_bytes;
    enum gemmd_session_state state; /* the one state that allows it */
} handlers[GEMMD_MSG_TYPE_COUNT] = {
    [GEMMD_MSG_HELLO] = {handle_hello, sizeof(struct gemmd_msg_hello_reply), GEMMD_SESSION_NEW},
    [GEMMD_MSG_MAPPED] = {handle_mapped, sizeof(struct gemmd_msg_mapped_reply),
                          GEMMD_SESSION_MAPPING},
    [GEMMD_MSG_LAYER_CREATE] = {handle_layer_create, sizeof(struct gemmd_msg_layer_reply),
                                GEMMD_SESSION_LIVE},
    [GEMMD_MSG_LAYER_DATA] = {handle_layer_data, sizeof(struct gemmd_msg_layer_data_reply),
                              GEMMD_SESSION_LIVE},
    [GEMMD_MSG_LAYER_COMMIT] = {handle_layer_commit, sizeof(struct gemmd_msg_layer_reply),
                                GEMMD_SESSION_LIVE},
    [GEMMD_MSG_LAYER_OPEN] = {handle_layer_open, sizeof(struct gemmd_msg_layer_reply),
                              GEMMD_SESSION_LIVE},
    [GEMMD_MSG_LAYER_CLOSE] = {handle_layer_close, sizeof(struct gemmd_msg_layer_close_reply),
                               GEMMD_SESSION_LIVE},
    [GEMMD_MSG_INFO] = {handle_info, sizeof(struct gemmd_msg_info_reply), GEMMD_SESSION_LIVE},
    [GEMMD_MSG_LAYERS] = {handle_layers, sizeof(struct gemmd_msg_layers_reply), GEMMD_SESSION_LIVE},
    [GEMMD_MSG_SESSIONS] = {handle_sessions, sizeof(struct gemmd_msg_sessions_reply),
                            GEMMD_SESSION_LIVE},
    [GEMMD_MSG_STATS] = {handle_stats, sizeof(struct gemmd_msg_stats_reply), GEMMD_SESSION_LIVE},
    [GEMMD_MSG_WAKE_FD] = {handle_wake_fd, sizeof(struct gemmd_msg_wake_fd_reply),
                           GEMMD_SESSION_LIVE},
};

enum gemmd_status control_request(struct control *control, struct session *session,
                                  const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_header *header = request;
    enum gemmd_status status = GEMMD_STATUS_STATE;

    memset(answer, 0, sizeof(*answer));
    answer->bytes = handlers[header->type].reply_bytes;
    if (session->state == handlers[header->type].state)
        status = handlers[header->type].handle(control, session, request, answer);
    if (status != GEMMD_STATUS_OK) {
        memset(&answer->reply, 0, sizeof(answer->reply)); /* nothing half-filled leaves us */
        answer->fd_count = 0;
    }
    answer->reply.header = (struct gemmd_msg_header){header->type | GEMMD_REPLY, answer->bytes,
                                                     header->serial, status};
    return status;
}

void control_release_session(struct control *control, struct session *session)
{
    close_upload(control, session);
    for (uint32_t id = 0; id < GEMMD_SESSION_LAYERS_MAX; id++)
        if (session->ring.layers[id].layer)
            layer_release(control->config.layers, session->ring.layers[id].layer);
}
