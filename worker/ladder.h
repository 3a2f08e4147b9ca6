/*
 * The ladder of page sizes: maps a new extent on the first rung that holds.  Pure of the pool, so
 * that the thread that populates it need not be the one that owns the pool.
 */
#ifndef GEMMD_WORKER_LADDER_H
#define GEMMD_WORKER_LADDER_H

#include "worker/extent.h"

struct ladder {
    enum extent_rung first, last;
    uint64_t bytes;       /* needed */
    uint64_t usual_bytes; /* asked for where there is room */
    uint64_t room;        /* at most */
    int node;
};

/* *failed: rungs of hugetlb that the machine could not give (bits), room or not.  0; -ENOSPC (room
 * alone is short); -ENOMEM.  *out is NULL then. */
int ladder_map(const struct ladder *ladder, struct extent **out, uint32_t *failed);

#endif
