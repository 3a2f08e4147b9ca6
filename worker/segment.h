/*
 * Shared memory of a session: a memfd, the worker's mapping of it, and its seals.
 *
 * Order, for what the client only reads (w2c):    create, fill, seal, pass the fd
 *        for what the client writes (c2w, arena):  create, fill, pass the fd, client maps, seal
 * After F_SEAL_FUTURE_WRITE an old writable mapping still writes, but no new one can be made and
 * no hole punched; SHRINK and GROW alone would leave both open.
 */
#ifndef GEMMD_WORKER_SEGMENT_H
#define GEMMD_WORKER_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

struct segment {
    void *memory;        /* NULL: none */
    uint64_t bytes;      /* mapped: the request rounded up to whole pages */
    uint32_t page_bytes; /* 4096 or 2 MiB */
    int fd;              /* -1: none */
    bool readonly;       /* the worker's mapping */
};

/* `out` is overwritten.  Zeroed, populated, bound to the node (-1: any), mapped read-write, close-
 * on-exec, size sealed.  `hugepages` asks for 2 MiB hugetlb pages and falls back to 4 KiB, of which
 * each whole 2 MiB become a transparent huge page if there is one.
 * 0 or -errno (-ENOMEM: not enough memory; never a later SIGBUS). */
int segment_create(struct segment *out, const char *name, uint64_t bytes, bool hugepages, int node);

/* The worker's own mapping becomes read-only: what the client writes, the worker cannot. */
int segment_protect_readonly(struct segment *segment);

/* Adds FUTURE_WRITE and SEAL, and verifies all four seals.  0 or -errno; -EPERM: a peer sealed
 * first.  Idempotent. */
int segment_seal(struct segment *segment);

/* After the seals of a segment that a client held before them: fills holes that it punched in that
 * time, so that the worker's touch of one is no fault.  0; -ENOMEM: a page cannot be had. */
int segment_fill_holes(struct segment *segment);

/* Accepts what segment_create made or failed to make, and {.fd = -1}; idempotent. */
void segment_destroy(struct segment *segment);

#endif
