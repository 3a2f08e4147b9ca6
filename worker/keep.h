/*
 * Weights that outlive the worker: its memory files stand in the service manager's store, and the
 * next worker finds them among the descriptors it is started with.
 *
 *   gemmd-table       the table of layers (worker/handover.h)
 *   gemmd-pool-ID     one file of the weight pool
 */
#ifndef GEMMD_WORKER_KEEP_H
#define GEMMD_WORKER_KEEP_H

#include "worker/handover.h"
#include "worker/notify.h"

/* For pool_config.on_extent; the context is the struct notify. */
void keep_extent(void *notify, uint64_t id, int fd);

/* Fills the empty pool and registry from what the manager passed, if anything, and gives up the
 * rest of it.  *handover is the table that goes on, new or old, and is in the store.  0 or
 * -errno. */
int keep_restore(struct notify *notify, struct layers *layers, struct pool *pool,
                 struct handover **handover, struct handover_result *result);

#endif
