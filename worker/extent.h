/* One mapping of the weight pool: a rung of the ladder, a free list, a protection.  For pool.c. */
#ifndef GEMMD_WORKER_EXTENT_H
#define GEMMD_WORKER_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

enum extent_rung {
    EXTENT_1G,
    EXTENT_2M,
    EXTENT_THP, /* MADV_HUGEPAGE: a memfd if it gets such pages, else private memory */
    EXTENT_4K,  /* a memfd with MADV_NOHUGEPAGE */
    EXTENT_RUNG_COUNT
};

/* A range inside an extent.  The list is in order of address and without gaps; two free neighbours
 * are never left apart. */
struct extent_block {
    struct extent_block *next;
    uint64_t offset, bytes;
    bool used;
    void *owner; /* of what is used and may be moved (pool_set_owner) */
};

struct extent {
    struct extent *next;
    uint64_t id;        /* never reused in a pool */
    int fd;             /* the memory's file, which can outlive the worker; -1: private memory */
    char *memory;
    uint64_t bytes, bytes_used;
    void *reservation; /* the mapping around it: inaccessible pages on both sides */
    uint64_t reservation_bytes;
    enum extent_rung rung;
    uint64_t bytes_thp; /* what smaps said after populating */
    uint32_t writers;
    bool fresh;         /* nothing was ever freed in it: all free ranges are still zero */
    bool writable;
    int bind_error;     /* of mbind; 0 when it was done, or there is no node to bind to */
    struct extent_block *blocks;
};

/* 4 KiB, 2 MiB or 1 GiB: what an extent's bytes are a multiple of (THP: 2 MiB). */
uint64_t extent_rung_bytes(enum extent_rung rung);

/* Maps, binds and populates.  0 or -errno; *out is NULL then. */
int extent_map(struct extent **out, enum extent_rung rung, uint64_t bytes, int node);
void extent_unmap(struct extent **extent);
/* Maps a file that another worker left (taken on success), populated and read-only.  0; -EBADMSG:
 * its size or its pages are not these; -errno. */
int extent_adopt(struct extent **out, enum extent_rung rung, uint64_t bytes, int fd);

/* Bytes of the shortest free range of at least `bytes`; 0: there is none. */
uint64_t extent_best_fit(const struct extent *extent, uint64_t bytes);
/* Best fit; NULL: no range is long enough, or no memory for the list. */
void *extent_take(struct extent *extent, uint64_t bytes);
/* Takes a free range where it is; NULL: not free, not inside, no memory.  Keeps its bytes. */
void *extent_claim(struct extent *extent, uint64_t offset, uint64_t bytes);
/* Joins free neighbours, after blocks were freed one by one. */
void extent_join(struct extent *extent);
/* False: no such allocation here. */
bool extent_free(struct extent *extent, const void *memory);
void extent_set_owner(const struct extent *extent, const void *memory, void *owner);
bool extent_owns(const struct extent *extent, const void *memory);
/* 0 or -errno. */
int extent_set_writable(struct extent *extent, bool writable);

/* Bytes on transparent huge pages now, from /proc/self/smaps. */
uint64_t extent_read_thp(const struct extent *extent);
/* Bytes on `node`, asked of the kernel for at most 1024 pages; -errno when it does not answer. */
int64_t extent_read_on_node(const struct extent *extent, int node);

#endif
