/* What a worker does for root and its own user only. */
#include "client/internal.h"

#include <errno.h>
#include <string.h>

#include "proto/validate.h"

static int copy_name(struct gemmd *session, const char *name, bool may_be_empty,
                     char out[GEMMD_NAME_BYTES])
{
    memset(out, 0, GEMMD_NAME_BYTES);
    if (name && strlen(name) < GEMMD_NAME_BYTES) {
        memcpy(out, name, strlen(name));
        if (gemmd_validate_name(out, may_be_empty) == GEMMD_STATUS_OK)
            return 0;
    } else if (!name && may_be_empty) {
        return 0;
    }
    return gemmd_fail(session, -EINVAL, "%s", gemmd_status_text_of(GEMMD_STATUS_NAME));
}

int gemmd_layers_load(struct gemmd *session, int fd, const char *prefix, uint64_t *bytes_new)
{
    struct gemmd_msg_layer_load message = {.header.type = GEMMD_MSG_LAYER_LOAD};
    struct gemmd_msg_layer_load_reply reply = {.layers = 0};
    enum gemmd_status status;
    int error = copy_name(session, prefix, true, message.prefix);

    if (bytes_new)
        *bytes_new = 0;
    if (error == 0)
        error = gemmd_ask_with_fd(session, &message, sizeof(message), fd, &reply, sizeof(reply),
                                  &status);
    if (error < 0 && memchr(reply.reason, 0, sizeof(reply.reason)) && *reply.reason)
        return gemmd_fail(session, error, "%s", reply.reason);
    if (error < 0)
        return error;
    if (bytes_new)
        *bytes_new = reply.weight_bytes_new;
    return (int)reply.layers;
}

int gemmd_layers_unload(struct gemmd *session, const char *name, uint64_t *bytes_freed)
{
    struct gemmd_msg_layer_unload message = {.header.type = GEMMD_MSG_LAYER_UNLOAD};
    struct gemmd_msg_layer_unload_reply reply;
    int error = copy_name(session, name, false, message.name);

    if (bytes_freed)
        *bytes_freed = 0;
    if (error == 0)
        error = gemmd_ask(session, &message, sizeof(message), &reply, sizeof(reply), NULL);
    if (error < 0)
        return error;
    if (bytes_freed)
        *bytes_freed = reply.bytes_freed;
    return (int)reply.layers;
}

int gemmd_layers_pin(struct gemmd *session, const char *name, int pin)
{
    struct gemmd_msg_layer_pin message = {.header.type = GEMMD_MSG_LAYER_PIN, .pin = pin != 0};
    struct gemmd_msg_layer_pin_reply reply;
    int error = copy_name(session, name, false, message.name);

    if (error == 0)
        error = gemmd_ask(session, &message, sizeof(message), &reply, sizeof(reply), NULL);
    return error < 0 ? error : (int)reply.layers;
}
