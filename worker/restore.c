/* Layers at the start (worker/restore.h). */
#include "worker/restore.h"

#include <errno.h>
#include <string.h>
#include <sysexits.h>

#include "worker/keep.h"
#include "worker/log.h"
#include "worker/models.h"
#include "worker/takeover.h"

/* The layers of the worker that serves our socket; it goes on serving. */
static int open_takeover(struct restore *restore, const char *socket, struct layers *layers,
                         struct pool *pool)
{
    int error = takeover_open(&restore->takeover, socket, layers, pool, &restore->result);

    if (error == -EXDEV)
        log_warn(LOG_TOPIC_WORKER, "--take-over: the layers there are packed for another kernel");
    else if (error < 0)
        log_error(LOG_TOPIC_WORKER, "--take-over: %s: %s", socket, strerror(-error));
    return error < 0 && error != -EXDEV ? EX_UNAVAILABLE : 0;
}

int restore_open(struct restore *restore, const struct options *options, struct notify *notify,
                 struct layers *layers, struct pool *pool)
{
    int code = 0, error;

    if (options->take_over)
        code = open_takeover(restore, options->socket, layers, pool);
    if (code)
        return code;
    if (options->take_over)
        error = handover_open(&restore->handover, -1);
    else
        error = keep_restore(notify, layers, pool, &restore->handover, &restore->result);
    if (error < 0) {
        log_error(LOG_TOPIC_WORKER, "the table of layers: %s", strerror(-error));
        return EX_OSERR;
    }
    for (uint32_t i = 0; i < options->model_count && code == 0; i++)
        code = models_load(layers, options->models[i], options->pack_program);
    if (code == 0)
        handover_write(restore->handover, layers, pool);
    return code;
}

int restore_take_socket(struct restore *restore, int *listen_fd, int *lock_fd)
{
    int error = takeover_commit(restore->takeover, restore->result.generation, listen_fd, lock_fd);

    takeover_close(&restore->takeover);
    if (error < 0)
        log_error(LOG_TOPIC_WORKER, "--take-over: the socket was not given: %s", strerror(-error));
    return error < 0 ? EX_UNAVAILABLE : 0;
}

void restore_close(struct restore *restore)
{
    takeover_close(&restore->takeover);
    handover_close(&restore->handover);
}
