/*
 * Where a new worker's layers come from: the worker it takes over from, or the service manager's
 * store; then the models of its command line.
 */
#ifndef GEMMD_WORKER_RESTORE_H
#define GEMMD_WORKER_RESTORE_H

#include "worker/handover.h"
#include "worker/notify.h"
#include "worker/options.h"

struct takeover;

/* Zeroed before use. */
struct restore {
    struct takeover *takeover; /* until the socket is ours */
    struct handover *handover; /* the table of this worker's layers */
    struct handover_result result;
};

/* Fills the empty pool and registry.  0, or an exit code after logging the reason. */
int restore_open(struct restore *restore, const struct options *options, struct notify *notify,
                 struct layers *layers, struct pool *pool);
/* The sockets of the worker we take over from, which ends.  0, or an exit code. */
int restore_take_socket(struct restore *restore, int *listen_fd, int *lock_fd);
void restore_close(struct restore *restore);

#endif
