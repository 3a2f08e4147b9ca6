/*
 * What only root and the worker's own user may ask for: loading, unloading and pinning layers, and
 * handing everything to a successor.
 */
#include "worker/requests.h"

#include <string.h>
#include <unistd.h>

#include "proto/validate.h"
#include "worker/clock.h"
#include "worker/log.h"

/* ---- loading --------------------------------------------------------------------------------- */

static void fill_reply(struct gemmd_msg_layer_load_reply *reply,
                       const struct loading_result *result, enum gemmd_status status)
{
    if (status == GEMMD_STATUS_OK) {
        reply->layers = result->layers;
        reply->weight_bytes_new = result->bytes_new;
        return;
    }
    memcpy(reply->reason, result->error.text, sizeof(reply->reason));
    if (!*reply->reason)
        strncpy(reply->reason, gemmd_status_text_of(status), sizeof(reply->reason) - 1);
}

enum gemmd_status handle_layer_load(struct control *control, struct session *session,
                                    const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_layer_load *load = request;
    enum gemmd_status status = gemmd_validate_name(load->prefix, true);
    int fd = control->received_fd;

    control->received_fd = -1;
    if (!session_is_operator(session))
        status = GEMMD_STATUS_ADMIN;
    else if (control->loading)
        status = GEMMD_STATUS_BUSY;
    else if (fd < 0)
        status = GEMMD_STATUS_LAYER_FILE;
    if (status != GEMMD_STATUS_OK) {
        if (fd >= 0)
            close(fd);
        return status;
    }
    status = loading_open(&control->loading, control->config.layers, fd, session->uid,
                          load->prefix, &control->loading_result);
    if (status != GEMMD_STATUS_OK) {
        fill_reply(&answer->reply.layer_load, &control->loading_result, status);
        answer->keep_reply = true;
        return status;
    }
    control->loading_session = session;
    control->loading_serial = load->header.serial;
    answer->later = true;
    return GEMMD_STATUS_OK;
}

struct session *requests_load_on(struct control *control, struct control_answer *answer)
{
    struct session *session = control->loading_session;
    struct gemmd_msg_layer_load_reply *reply = &answer->reply.layer_load;
    enum gemmd_status status;

    if (!loading_step(control->loading, CONTROL_LOAD_SLICE_BYTES, &status,
                      &control->loading_result))
        return NULL;
    memset(answer, 0, sizeof(*answer));
    answer->bytes = sizeof(*reply);
    reply->header = (struct gemmd_msg_header){GEMMD_MSG_LAYER_LOAD | GEMMD_REPLY, answer->bytes,
                                              control->loading_serial, status};
    fill_reply(reply, &control->loading_result, status);
    if (status == GEMMD_STATUS_OK)
        log_info(LOG_TOPIC_LAYERS, "%u layers loaded, %llu bytes new",
                 control->loading_result.layers,
                 (unsigned long long)control->loading_result.bytes_new);
    else
        log_warn(LOG_TOPIC_LAYERS, "a file was not loaded: %s", reply->reason);
    requests_end_load(control, session);
    return session;
}

void requests_end_load(struct control *control, const struct session *session)
{
    if (control->loading_session != session)
        return;
    loading_close(&control->loading);
    control->loading_session = NULL;
}

/* ---- unloading, pinning ---------------------------------------------------------------------- */

enum gemmd_status handle_layer_unload(struct control *control, struct session *session,
                                      const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_layer_unload *unload = request;
    struct gemmd_msg_layer_unload_reply *reply = &answer->reply.layer_unload;
    enum gemmd_status status = gemmd_validate_name(unload->name, false);

    if (!session_is_operator(session))
        return GEMMD_STATUS_ADMIN;
    if (status != GEMMD_STATUS_OK)
        return status;
    reply->layers = layers_unload(control->config.layers, unload->name, &reply->bytes_freed);
    return reply->layers ? GEMMD_STATUS_OK : GEMMD_STATUS_NAME_UNKNOWN;
}

enum gemmd_status handle_layer_pin(struct control *control, struct session *session,
                                   const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_layer_pin *pin = request;
    struct gemmd_msg_layer_pin_reply *reply = &answer->reply.layer_pin;
    enum gemmd_status status = gemmd_validate_name(pin->name, false);

    if (!session_is_operator(session))
        return GEMMD_STATUS_ADMIN;
    if (status != GEMMD_STATUS_OK)
        return status;
    if (pin->pin > 1 || pin->reserved)
        return GEMMD_STATUS_RESERVED;
    reply->layers = layers_pin(control->config.layers, pin->name, pin->pin != 0);
    return reply->layers ? GEMMD_STATUS_OK : GEMMD_STATUS_NAME_UNKNOWN;
}

/* ---- taking over ----------------------------------------------------------------------------- */

enum gemmd_status handle_takeover(struct control *control, struct session *session,
                                  const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_list *list = request;
    struct gemmd_msg_takeover_reply *reply = &answer->reply.takeover;
    struct handover *handover = control->config.handover;
    struct pool_extent extent;
    uint32_t kept = 0;

    if (!session_is_operator(session))
        return GEMMD_STATUS_ADMIN;
    if (list->reserved)
        return GEMMD_STATUS_RESERVED;
    if (control->loading || (control->successor && control->successor != session))
        return GEMMD_STATUS_BUSY;
    if (!control->successor || control->commit.task != COMMIT_NONE)
        control->successor_since_ns = clock_now_ns();
    control->successor = session; /* from here on no other commit begins */
    if (control->commit.task != COMMIT_NONE)
        return GEMMD_STATUS_BUSY;
    handover_write(handover, control->config.layers, control->config.pool);
    answer->fds[0] = handover_fd(handover);
    for (uint32_t i = 0; pool_get_extent(control->config.pool, i, &extent); i++)
        if (extent.fd >= 0 && ++kept == list->index) {
            answer->fds[0] = extent.fd;
            reply->file_id = extent.id;
        }
    if (list->index > kept)
        return GEMMD_STATUS_INDEX;
    answer->fd_count = 1;
    reply->generation = handover_generation(handover_fd(handover));
    reply->count = kept + 1;
    return GEMMD_STATUS_OK;
}

enum gemmd_status handle_takeover_commit(struct control *control, struct session *session,
                                         const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_takeover_commit *commit = request;

    if (!session_is_operator(session))
        return GEMMD_STATUS_ADMIN;
    if (control->successor != session)
        return GEMMD_STATUS_STATE;
    handover_write(control->config.handover, control->config.layers, control->config.pool);
    if (commit->generation != handover_generation(handover_fd(control->config.handover)))
        return GEMMD_STATUS_CHANGED;
    answer->fds[0] = control->listen_fd;
    answer->fds[1] = control->lock_fd;
    answer->fd_count = 2;
    control->handed_over = true;
    log_info(LOG_TOPIC_CONTROL, "handed over to pid %d: draining", (int)session->pid);
    return GEMMD_STATUS_OK;
}
