/*
 * What each control message does: the handshake, what can be looked at, and the table of them all.
 * Every request here has the right length and type; each handler checks its values, fills its
 * reply, and returns the status.  A handler either succeeds whole or leaves the session as it was.
 */
#include "worker/control.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proto/validate.h"
#include "worker/clock.h"
#include "worker/log.h"
#include "worker/requests.h"

#ifndef GEMMD_WORKER_VERSION
#error "the build defines GEMMD_WORKER_VERSION"
#endif

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

/* ---- looking --------------------------------------------------------------------------------- */

static enum gemmd_status handle_info(struct control *control, struct session *session,
                                     const void *request, struct control_answer *answer)
{
    const struct control_config *config = &control->config;
    struct gemmd_msg_info_reply *info = &answer->reply.info;
    struct pool_report pool;
    struct layers_report layers;

    (void)session;
    (void)request;
    pool_report(config->pool, &pool);
    layers_report(config->layers, &layers);
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
    info->layer_bytes = layers.bytes;
    info->layer_bytes_unused = layers.bytes_unused;
    info->layer_bytes_pinned = layers.bytes_pinned;
    info->layer_evictions = layers.evictions;
    info->scrub_bytes = layers.scrub_bytes;
    info->scrub_passes = layers.scrub_passes;
    info->scrub_faults = layers.scrub_faults;
    info->pool_bytes_kept = pool.bytes_kept;
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
    if (list->reserved)
        return GEMMD_STATUS_RESERVED;
    if (!layer)
        return GEMMD_STATUS_INDEX;
    reply->desc = layer->desc;
    memcpy(reply->content_id, layer->content_id, sizeof(reply->content_id));
    snprintf(reply->name, sizeof(reply->name), "%s", name);
    snprintf(reply->kernel, sizeof(reply->kernel), "%s", layer->view.kernel_name);
    reply->weight_bytes = layer->bytes;
    reply->page_bytes = layer->page_bytes;
    reply->node = control->config.node;
    reply->references = layer->references;
    reply->jobs = gemmd_counter_read(&layer->jobs);
    reply->rows = gemmd_counter_read(&layer->rows);
    reply->uid = layer->charged_uid;
    reply->flags = (layer->pinned ? GEMMD_LAYER_PINNED : 0) |
                   (layer->condemned ? GEMMD_LAYER_UNLOADED : 0);
    reply->exec_ns = gemmd_counter_read(&layer->exec_ns);
    reply->panels = gemmd_counter_read(&layer->panels);
    reply->panel_rows = gemmd_counter_read(&layer->panel_rows);
    reply->latency = latency_of(&layer->queue_histogram, &layer->exec_histogram);
    reply->hits = layer->hits;
    reply->deadline_misses = gemmd_counter_read(&layer->deadline_misses);
    return GEMMD_STATUS_OK;
}

/* Other users' sessions are shown to operators only. */
static bool may_see(const struct session *viewer, const struct session *session)
{
    return session_is_operator(viewer) || viewer->uid == session->uid;
}

static enum gemmd_status handle_sessions(struct control *control, struct session *viewer,
                                         const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_list *list = request;
    struct gemmd_msg_sessions_reply *reply = &answer->reply.sessions;
    const struct session *session = NULL;
    uint32_t index = 0;

    if (list->reserved)
        return GEMMD_STATUS_RESERVED;
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
    reply->weight = session->weight;
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
    [GEMMD_MSG_LAYER_LOAD] = {handle_layer_load, sizeof(struct gemmd_msg_layer_load_reply),
                              GEMMD_SESSION_LIVE},
    [GEMMD_MSG_LAYER_UNLOAD] = {handle_layer_unload, sizeof(struct gemmd_msg_layer_unload_reply),
                                GEMMD_SESSION_LIVE},
    [GEMMD_MSG_LAYER_PIN] = {handle_layer_pin, sizeof(struct gemmd_msg_layer_pin_reply),
                             GEMMD_SESSION_LIVE},
    [GEMMD_MSG_TAKEOVER] = {handle_takeover, sizeof(struct gemmd_msg_takeover_reply),
                            GEMMD_SESSION_LIVE},
    [GEMMD_MSG_TAKEOVER_COMMIT] = {handle_takeover_commit,
                                   sizeof(struct gemmd_msg_takeover_commit_reply),
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
    if (status != GEMMD_STATUS_OK && !answer->keep_reply) {
        memset(&answer->reply, 0, sizeof(answer->reply)); /* nothing half-filled leaves us */
        answer->fd_count = 0;
    }
    answer->reply.header = (struct gemmd_msg_header){header->type | GEMMD_REPLY, answer->bytes,
                                                     header->serial, status};
    return status;
}
