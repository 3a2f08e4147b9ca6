/*
 * The weight pool: huge pages of one node, populated before use, read-only but while a layer is
 * being packed.  It grows by extents on demand and gives empty ones back.
 *
 * Ladder of an extent under POOL_POLICY_AUTO: 1 GiB hugetlb (requests of 1 GiB and more) → 2 MiB
 * hugetlb → transparent huge pages → 4 KiB.  Another policy starts lower (or, for 1g, makes every
 * extent whole GiB).  Nothing is downgraded in silence: pool_report says what was obtained.
 *
 * Not thread-safe: the control thread only, but pool_request_prepare.  Readers of the memory need
 * no lock, because an allocation does not move and write access goes only through
 * pool_write_begin.
 */
#ifndef GEMMD_WORKER_POOL_H
#define GEMMD_WORKER_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/ladder.h"

enum pool_policy {
    POOL_POLICY_AUTO = 0,
    POOL_POLICY_1G,
    POOL_POLICY_2M,
    POOL_POLICY_THP,
    POOL_POLICY_NONE,
};

/* Every allocation is whole units: the smallest page. */
#define POOL_UNIT_BYTES UINT64_C(4096)
/* An extent has at least this size if the limit and the rung's pages allow. */
#define POOL_EXTENT_BYTES (UINT64_C(32) << 20)

struct pool_config {
    uint64_t limit_bytes;    /* of all extents together */
    enum pool_policy policy;
    bool require_hugepages;  /* a rung below hugetlb is an error */
    int node;                /* -1: no NUMA */
    /* Told of each extent whose memory is in a file, when it comes (fd) and before it goes (-1). */
    void (*on_extent)(void *context, uint64_t id, int fd);
    void *context;
};

/* Lets the pool move what lies in the way of a request that finds no room: allocations with an
 * owner are immutable, so their bytes are copied while they are read. */
struct pool_mover {
    bool (*may_move)(void *context, void *owner);
    /* Its bytes are at `to` as well: from now on nobody reads them where they were. */
    void (*moved)(void *context, void *owner, void *to);
    void *context;
};

struct pool_report {
    uint64_t bytes;          /* mapped; the sum of the four kinds below */
    uint64_t bytes_used, bytes_limit;
    uint64_t bytes_1g, bytes_2m; /* hugetlb */
    uint64_t bytes_thp;      /* AnonHugePages and ShmemPmdMapped in /proc/self/smaps */
    uint64_t bytes_4k;
    uint64_t bytes_on_node;  /* asked of the kernel (sampled above 1024 pages an extent); = bytes
                                without NUMA; 0 when the kernel refuses to answer */
    uint64_t bytes_kept;     /* in files, which another worker can take over */
    const char *lost;        /* what could not be had, why, and the command that mends it; "" */
};

struct pool;

/* Maps nothing yet.  With require_hugepages it maps and gives back one extent, so that a machine
 * without huge pages is refused at start.  0; -EINVAL (limit 0, or require_hugepages with a policy
 * below hugetlb); -ENOMEM; *out is NULL then, and the reason was logged. */
int pool_open(struct pool **out, const struct pool_config *config);
/* Unmaps everything, in use or not.  Accepts NULL; *pool becomes NULL. */
void pool_close(struct pool **pool);

/* Zeroed, populated memory on a page boundary, open for writing until pool_write_end.  0; -EINVAL
 * (bytes 0); -ENOSPC: beyond the limit; -ENOMEM: the machine has no memory, or no huge pages while
 * they are required. */
int pool_alloc(struct pool *pool, uint64_t bytes, void **out);

/* pool_alloc in three parts.  The second, which maps, populates and clears (up to 0.8 s a GiB), may
 * run on any thread beside other calls: it touches only what the first set aside. */
struct pool_request {
    uint64_t bytes;
    void *memory;          /* in an extent that is there; NULL: in one to be mapped */
    bool clear;            /* it holds an older layer's bytes */
    struct extent *extent;
    struct ladder ladder;
    uint32_t failed;       /* of ladder_map */
    int error;
};
int pool_request_begin(struct pool *pool, uint64_t bytes, struct pool_request *out);
void pool_request_prepare(struct pool_request *request);
int pool_request_end(struct pool *pool, struct pool_request *request, void **out);

/* NULL: nothing is moved.  The mover stays the caller's. */
void pool_set_mover(struct pool *pool, const struct pool_mover *mover);
/* From now on the allocation may be moved; it is whole, and nobody writes it. */
void pool_set_owner(struct pool *pool, void *memory, void *owner);

/* Accepts NULL.  The last one of an extent unmaps it. */
void pool_free(struct pool *pool, void *memory);

/* Write access to the extent of an allocation, until as many ends as begins were called: the whole
 * extent, because a change of protection inside a huge page would split it.  0 or -errno. */
int pool_write_begin(struct pool *pool, void *memory);
int pool_write_end(struct pool *pool, void *memory);

/* ---- for handing the memory to another worker (worker/handover.h) */

struct pool_extent {
    uint64_t id, bytes;
    uint32_t rung; /* enum extent_rung */
    int fd;        /* the pool's; -1: private memory, which cannot be handed over */
};

/* The index-th extent; false past the last. */
bool pool_get_extent(const struct pool *pool, uint32_t index, struct pool_extent *out);
/* Where an allocation lies; false: nowhere. */
bool pool_locate(const struct pool *pool, const void *memory, uint64_t *extent_id,
                 uint64_t *offset);
/* Adds an extent another worker left; its fd is the pool's on success.  0; -EEXIST (id),
 * -ENOSPC (limit), -EBADMSG (not such a file), -errno. */
int pool_adopt(struct pool *pool, const struct pool_extent *extent);
/* Allocates what is at that place, with its bytes.  NULL: no such extent, or not free. */
void *pool_claim(struct pool *pool, uint64_t extent_id, uint64_t offset, uint64_t bytes);
/* The opposite; the extent stays until pool_trim. */
void pool_unclaim(struct pool *pool, void *memory);
/* Unmaps the extents nothing was claimed in. */
void pool_trim(struct pool *pool);

uint64_t pool_limit_bytes(const struct pool *pool);
/* The pages under an allocation: 1 GiB, 2 MiB (hugetlb, or THP for the whole extent), 4 KiB. */
uint64_t pool_page_bytes(const struct pool *pool, const void *memory);
void pool_report(const struct pool *pool, struct pool_report *out);

#endif
