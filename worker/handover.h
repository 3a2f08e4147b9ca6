/*
 * The table of the worker's layers that stands beside the weights' memory files, so that another
 * worker can use both: the next one after a crash or an upgrade.  It lives in a memfd of its own,
 * in two copies written in turn, each with a hash over all of it; a reader takes the newest that is
 * whole.  So it is right at any instant, whenever the writer dies.
 *
 * Nothing in it is believed: extents are checked against their files, layers against the extents,
 * weights against their checksums before the first use of each.
 */
#ifndef GEMMD_WORKER_HANDOVER_H
#define GEMMD_WORKER_HANDOVER_H

#include <stdint.h>

#include "worker/layers.h"
#include "worker/pool.h"

struct handover;

/* A new table, or one that another worker left (`fd` ≥ 0, taken on success).  0; -EBADMSG: that
 * file is none; -errno. */
int handover_open(struct handover **out, int fd);
/* Accepts NULL; *handover becomes NULL. */
void handover_close(struct handover **handover);
int handover_fd(const struct handover *handover);

/* Writes down what registry and pool hold, unless nothing changed since the last time. */
void handover_write(struct handover *handover, const struct layers *layers,
                    const struct pool *pool);

/* The files that came with the table, found by extent id: an fd that becomes the pool's, or -1. */
typedef int handover_file_fn(void *context, uint64_t extent_id);

struct handover_result {
    uint64_t generation;
    uint32_t layers, refused; /* taken over; there, but not usable */
    uint64_t bytes;           /* of the layers taken over */
};

/* Fills an empty pool and an empty registry from the table in `fd` (stays the caller's).  0, and
 * *result; -EBADMSG: no whole table of this version; -EXDEV: of another kernel's layers; -errno. */
int handover_restore(int fd, struct layers *layers, struct pool *pool, handover_file_fn *file,
                     void *context, struct handover_result *result);
/* The generation of the table in `fd` now; 0: none is whole. */
uint64_t handover_generation(int fd);

#endif
