/* What pool.c and pool_kept.c share: the pool's inside. */
#ifndef GEMMD_WORKER_POOL_TABLE_H
#define GEMMD_WORKER_POOL_TABLE_H

#include "worker/pool.h"

#define POOL_LINE_BYTES 160

struct pool {
    struct pool_config config;
    const struct pool_mover *mover;
    struct extent *extents, **last_p; /* in order of age */
    uint64_t bytes;
    uint64_t bytes_promised; /* room of requests that are being prepared */
    uint64_t next_id;
    int sysfs_node; /* whose number of huge pages counts; -1: the machine's */
    /* The parts of pool_report.lost: what became of hugetlb, of transparent pages, of the node. */
    char no_hugetlb[POOL_LINE_BYTES], no_thp[POOL_LINE_BYTES], no_node[POOL_LINE_BYTES];
    char lost[3 * POOL_LINE_BYTES];
    bool warned; /* `lost` is in the log */
};

/* The extent of an allocation; NULL: none. */
struct extent *pool_find(const struct pool *pool, const void *memory);
/* The extent with the shortest free range that is long enough; NULL: none. */
struct extent *pool_best_extent(const struct pool *pool, uint64_t bytes);
/* pool_compact.c: moves what can be moved until there is a free range of `bytes`; false: there is
 * none. */
bool pool_compact(struct pool *pool, uint64_t bytes);
/* The newest from now on, and told to whoever keeps the files. */
void pool_append(struct pool *pool, struct extent *extent);
/* Unlinks and unmaps. */
void pool_drop(struct pool *pool, struct extent *extent);

#endif
