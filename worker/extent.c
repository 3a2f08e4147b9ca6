/*
 * Extents.  hugetlb rungs are shared mappings of a memfd, whose pages are reserved at mmap, so that
 * a lack of them is an error there and not a SIGBUS later; the others are private memory.
 *
 * Each one lies in a larger inaccessible reservation, which aligns it to its page size, stops an
 * overrun at the first byte, and keeps the kernel from merging two extents into one line of smaps.
 */
#include "worker/extent.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/memory.h"
#include "worker/topology.h"

#define SAMPLES_MAX 1024

uint64_t extent_rung_bytes(enum extent_rung rung)
{
    if (rung == EXTENT_1G)
        return MEMORY_PAGE_1G;
    return rung == EXTENT_4K ? MEMORY_PAGE_BYTES : MEMORY_PAGE_2M;
}

/* Address space only: `bytes` on an aligned address with a page to spare on either side. */
static int reserve(struct extent *extent)
{
    uint64_t align = extent_rung_bytes(extent->rung);
    void *memory;

    extent->reservation_bytes = extent->bytes + align + 2 * MEMORY_PAGE_BYTES;
    memory = mmap(NULL, extent->reservation_bytes, PROT_NONE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    extent->reservation = memory;
    extent->memory = (char *)memory + MEMORY_PAGE_BYTES;
    extent->memory += -(uintptr_t)extent->memory & (align - 1);
    return 0;
}

/* Puts the memory into the reservation.  *fd_p is the file to populate by, or -1. */
static int place(struct extent *extent, int *fd_p)
{
    bool hugetlb = extent->rung <= EXTENT_2M;
    int flags = MAP_FIXED | (hugetlb ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);

    *fd_p = -1;
    if (hugetlb) {
        *fd_p = memory_create_file("gemmd-pool", extent->bytes, extent_rung_bytes(extent->rung));
        if (*fd_p < 0)
            return *fd_p;
    }
    if (mmap(extent->memory, extent->bytes, PROT_READ | PROT_WRITE, flags, *fd_p, 0) == MAP_FAILED)
        return -errno;
    if (!hugetlb && madvise(extent->memory, extent->bytes,
                            extent->rung == EXTENT_THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0 &&
        extent->rung == EXTENT_THP)
        return -errno; /* a kernel without them */
    return 0;
}

int extent_map(struct extent **out, enum extent_rung rung, uint64_t bytes, int node)
{
    struct extent *extent = calloc(1, sizeof(*extent));
    int error = -ENOMEM, fd = -1;

    *out = NULL;
    if (!extent)
        return -ENOMEM;
    extent->rung = rung;
    extent->bytes = bytes;
    extent->fresh = extent->writable = true;
    extent->blocks = calloc(1, sizeof(*extent->blocks));
    if (!extent->blocks)
        goto fail;
    extent->blocks->bytes = bytes;
    error = reserve(extent);
    if (error == 0)
        error = place(extent, &fd);
    if (error < 0)
        goto fail;
    extent->bind_error = topology_bind_memory(extent->memory, bytes, node);
    madvise(extent->memory, bytes, MADV_DONTDUMP);
    error = memory_populate(extent->memory, bytes, fd);
    if (error == 0)
        error = extent_set_writable(extent, false);
    if (error < 0)
        goto fail;
    extent->bytes_thp = extent_read_thp(extent);
    if (fd >= 0)
        close(fd); /* the mapping keeps the memory */
    *out = extent;
    return 0;

fail:
    if (fd >= 0)
        close(fd);
    extent_unmap(&extent);
    return error;
}

void extent_unmap(struct extent **extent_p)
{
    struct extent *extent = *extent_p;

    while (extent->blocks) {
        struct extent_block *block = extent->blocks;

        extent->blocks = block->next;
        free(block);
    }
    if (extent->reservation)
        munmap(extent->reservation, extent->reservation_bytes);
    free(extent);
    *extent_p = NULL;
}

/* A recycled range holds an older layer's bytes. */
static int clear(struct extent *extent, const struct extent_block *block)
{
    bool was_writable = extent->writable;
    int error;

    if (extent->fresh)
        return 0;
    error = extent_set_writable(extent, true);
    if (error < 0)
        return error;
    memset(extent->memory + block->offset, 0, block->bytes);
    return extent_set_writable(extent, was_writable);
}

void *extent_alloc(struct extent *extent, uint64_t bytes, int *error_p)
{
    struct extent_block *block = extent->blocks, *rest;

    *error_p = 0;
    while (block && (block->used || block->bytes < bytes))
        block = block->next;
    if (!block)
        return NULL;
    if (block->bytes > bytes) {
        rest = calloc(1, sizeof(*rest));
        if (!rest) {
            *error_p = -ENOMEM;
            return NULL;
        }
        *rest = (struct extent_block){block->next, block->offset + bytes, block->bytes - bytes,
                                      false};
        block->next = rest;
        block->bytes = bytes;
    }
    block->used = true;
    extent->bytes_used += bytes;
    *error_p = clear(extent, block);
    if (*error_p < 0) {
        extent_free(extent, extent->memory + block->offset);
        return NULL;
    }
    return extent->memory + block->offset;
}

static void join_next(struct extent_block *block)
{
    struct extent_block *next = block->next;

    if (block->used || !next || next->used)
        return;
    block->bytes += next->bytes;
    block->next = next->next;
    free(next);
}

bool extent_free(struct extent *extent, const void *memory)
{
    struct extent_block *block = extent->blocks, *before = NULL;

    while (block && (!block->used || extent->memory + block->offset != memory)) {
        before = block;
        block = block->next;
    }
    if (!block)
        return false;
    block->used = false;
    extent->bytes_used -= block->bytes;
    extent->fresh = false;
    join_next(block);
    if (before)
        join_next(before);
    return true;
}

bool extent_owns(const struct extent *extent, const void *memory)
{
    return (uintptr_t)memory - (uintptr_t)extent->memory < extent->bytes;
}

int extent_set_writable(struct extent *extent, bool writable)
{
    if (extent->writable == writable)
        return 0;
    /* Always the whole mapping: a border inside a huge page would split it. */
    if (mprotect(extent->memory, extent->bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ) < 0)
        return -errno;
    extent->writable = writable;
    return 0;
}

uint64_t extent_read_thp(const struct extent *extent)
{
    unsigned long long start, end, kib, total = 0;
    bool inside = false;
    char line[512];
    FILE *smaps;

    if (extent->rung != EXTENT_THP)
        return 0;
    smaps = fopen("/proc/self/smaps", "re");
    if (!smaps)
        return 0;
    while (fgets(line, sizeof(line), smaps)) {
        if (sscanf(line, "%llx-%llx ", &start, &end) == 2)
            inside = start >= (uintptr_t)extent->memory &&
                     end <= (uintptr_t)extent->memory + extent->bytes;
        else if (inside && sscanf(line, "AnonHugePages: %llu kB", &kib) == 1)
            total += kib * 1024;
    }
    fclose(smaps);
    return total;
}

int64_t extent_read_on_node(const struct extent *extent, int node)
{
    uint64_t page = extent->rung <= EXTENT_2M ? extent_rung_bytes(extent->rung)
                                              : MEMORY_PAGE_BYTES;
    uint64_t pages = extent->bytes / page;
    uint64_t stride = (pages + SAMPLES_MAX - 1) / SAMPLES_MAX;
    uint64_t samples = (pages + stride - 1) / stride;
    int found = topology_count_on_node(extent->memory, stride * page, (int)samples, node);

    if (found < 0)
        return found;
    /* In proportion; exact when every page was asked for, and when all or none are there. */
    return (int64_t)(extent->bytes / samples * (uint64_t)found +
                     extent->bytes % samples * (uint64_t)found / samples);
}
