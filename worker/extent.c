/*
 * Extents are shared mappings of a memfd, which can be handed to another worker.  hugetlb reserves
 * its pages at mmap, so that a lack of them is an error there and not a SIGBUS later.
 *
 * A THP extent's small pages are collapsed.  Where that gives no huge ones (an older kernel,
 * "deny"), it is private memory: 2 MiB pages are worth more, every day, than weights that survive a
 * restart.
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
#include <sys/stat.h>
#include <sys/vfs.h>
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

/* Puts the memory into the reservation: of a file, or private. */
static int place(struct extent *extent, bool file)
{
    bool hugetlb = extent->rung <= EXTENT_2M;
    int flags = MAP_FIXED | (file ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);

    if (file && extent->fd < 0) {
        extent->fd = memory_create_file("gemmd-pool", extent->bytes,
                                        hugetlb ? extent_rung_bytes(extent->rung)
                                                : MEMORY_PAGE_BYTES);
        if (extent->fd < 0)
            return extent->fd;
    }
    if (mmap(extent->memory, extent->bytes, PROT_READ | PROT_WRITE, flags, extent->fd, 0) ==
        MAP_FAILED)
        return -errno;
    if (!hugetlb && madvise(extent->memory, extent->bytes,
                            extent->rung == EXTENT_THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0 &&
        extent->rung == EXTENT_THP)
        return -errno; /* a kernel without them */
    return 0;
}

/* Address space, and one free range over all of it. */
static int prepare(struct extent **out, enum extent_rung rung, uint64_t bytes, int fd)
{
    struct extent *extent = calloc(1, sizeof(*extent));

    *out = extent;
    if (!extent)
        return -ENOMEM;
    extent->rung = rung;
    extent->bytes = bytes;
    extent->fd = fd;
    extent->writable = true;
    extent->blocks = calloc(1, sizeof(*extent->blocks));
    if (!extent->blocks)
        return -ENOMEM;
    extent->blocks->bytes = bytes;
    return reserve(extent);
}

/* Populates a fresh mapping, with huge pages where that was asked for: bytes_thp says what came of
 * it. */
static int populate(struct extent *extent)
{
    if (extent->rung != EXTENT_THP || extent->fd < 0)
        return memory_populate(extent->memory, extent->bytes, extent->fd,
                               extent->rung <= EXTENT_2M ? extent_rung_bytes(extent->rung)
                                                         : MEMORY_PAGE_BYTES);
    return memory_populate_collapsed(extent->memory, extent->bytes, extent->fd);
}

static int map(struct extent **out, enum extent_rung rung, uint64_t bytes, int node, bool file)
{
    int error = prepare(out, rung, bytes, -1);
    struct extent *extent = *out;

    if (error == 0)
        error = place(extent, file);
    if (error < 0)
        goto fail;
    extent->fresh = true;
    extent->bind_error = topology_bind_memory(extent->memory, bytes, node);
    madvise(extent->memory, bytes, MADV_DONTDUMP);
    error = populate(extent);
    if (error == 0)
        error = extent_set_writable(extent, false);
    if (error < 0)
        goto fail;
    extent->bytes_thp = extent_read_thp(extent);
    return 0;

fail:
    extent_unmap(out);
    return error;
}

int extent_map(struct extent **out, enum extent_rung rung, uint64_t bytes, int node)
{
    struct extent *private;
    int error = map(out, rung, bytes, node, true);

    if (error < 0 || rung != EXTENT_THP || (*out)->bytes_thp)
        return error;
    /* No huge page for the file.  Perhaps for private memory. */
    extent_unmap(out);
    error = map(&private, rung, bytes, node, false);
    if (error == 0 && private->bytes_thp == 0) {
        extent_unmap(&private);
        error = map(&private, rung, bytes, node, true);
    }
    *out = private;
    return error;
}

/* Are the file's pages the rung's?  A file of another size would be SIGBUS later. */
static int check_file(int fd, enum extent_rung rung, uint64_t bytes)
{
    bool hugetlb = rung <= EXTENT_2M;
    uint64_t page = hugetlb ? extent_rung_bytes(rung) : MEMORY_PAGE_BYTES;
    struct stat status;
    struct statfs files;

    if (fstat(fd, &status) < 0 || fstatfs(fd, &files) < 0)
        return -errno;
    if (bytes == 0 || bytes % extent_rung_bytes(rung) || (uint64_t)status.st_size != bytes ||
        (uint64_t)files.f_bsize != page)
        return -EBADMSG;
    return 0;
}

int extent_adopt(struct extent **out, enum extent_rung rung, uint64_t bytes, int fd)
{
    int error = check_file(fd, rung, bytes);
    struct extent *extent;

    *out = NULL;
    if (error < 0)
        return error;
    error = prepare(out, rung, bytes, fd);
    extent = *out;
    if (error == 0)
        error = place(extent, true);
    if (error < 0)
        goto fail;
    madvise(extent->memory, bytes, MADV_DONTDUMP);
    error = memory_populate_existing(extent->memory, bytes);
    if (error == 0)
        error = extent_set_writable(extent, false);
    if (error < 0)
        goto fail;
    extent->bytes_thp = extent_read_thp(extent);
    return 0;

fail:
    if (extent)
        extent->fd = -1; /* the caller's still */
    extent_unmap(out);
    return error;
}

void extent_unmap(struct extent **extent_p)
{
    struct extent *extent = *extent_p;

    if (!extent)
        return;
    while (extent->blocks) {
        struct extent_block *block = extent->blocks;

        extent->blocks = block->next;
        free(block);
    }
    if (extent->reservation)
        munmap(extent->reservation, extent->reservation_bytes);
    if (extent->fd >= 0)
        close(extent->fd);
    free(extent);
    *extent_p = NULL;
}

/* Cuts `block` in two at `bytes`. */
static bool split(struct extent_block *block, uint64_t bytes)
{
    struct extent_block *rest;

    if (block->bytes == bytes)
        return true;
    rest = calloc(1, sizeof(*rest));
    if (!rest)
        return false;
    *rest = (struct extent_block){.next = block->next,
                                  .offset = block->offset + bytes,
                                  .bytes = block->bytes - bytes};
    block->next = rest;
    block->bytes = bytes;
    return true;
}

static struct extent_block *best_fit(const struct extent *extent, uint64_t bytes)
{
    struct extent_block *best = NULL;

    for (struct extent_block *block = extent->blocks; block; block = block->next)
        if (!block->used && block->bytes >= bytes && (!best || block->bytes < best->bytes))
            best = block;
    return best;
}

uint64_t extent_best_fit(const struct extent *extent, uint64_t bytes)
{
    const struct extent_block *block = best_fit(extent, bytes);

    return block ? block->bytes : 0;
}

void *extent_take(struct extent *extent, uint64_t bytes)
{
    struct extent_block *block = best_fit(extent, bytes);

    if (!block || !split(block, bytes))
        return NULL;
    block->used = true;
    extent->bytes_used += bytes;
    return extent->memory + block->offset;
}

void *extent_claim(struct extent *extent, uint64_t offset, uint64_t bytes)
{
    struct extent_block *block = extent->blocks;

    while (block && block->offset + block->bytes <= offset)
        block = block->next;
    if (!block || block->used || bytes == 0 || bytes > block->bytes ||
        offset - block->offset > block->bytes - bytes)
        return NULL;
    if (offset > block->offset) {
        if (!split(block, offset - block->offset))
            return NULL;
        block = block->next;
    }
    if (!split(block, bytes))
        return NULL;
    block->used = true;
    extent->bytes_used += bytes;
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

void extent_join(struct extent *extent)
{
    extent->fresh = false;
    for (struct extent_block *block = extent->blocks; block; block = block->next)
        while (!block->used && block->next && !block->next->used)
            join_next(block);
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
    block->owner = NULL;
    extent->bytes_used -= block->bytes;
    extent->fresh = false;
    join_next(block);
    if (before)
        join_next(before);
    return true;
}

void extent_set_owner(const struct extent *extent, const void *memory, void *owner)
{
    struct extent_block *block = extent->blocks;

    while (block && (!block->used || extent->memory + block->offset != memory))
        block = block->next;
    if (block)
        block->owner = owner;
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
        else if (inside && (sscanf(line, "AnonHugePages: %llu kB", &kib) == 1 ||
                            sscanf(line, "ShmemPmdMapped: %llu kB", &kib) == 1))
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
