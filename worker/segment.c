/*
 * Segments: created, bound, populated and sealed by the worker.  F_SEAL_FUTURE_WRITE (Linux 5.1;
 * on hugetlb honoured from 5.13) lets the mappings that exist go on writing, but refuses new
 * writable ones, mprotect to writable of read-only ones made later, writes through the fd, and hole
 * punching.  That last one is why the size seals alone are not enough: a hole in memory that the
 * worker reads is SIGBUS on hugetlb and silent zeros on shmem.
 */
#include "worker/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/memory.h"
#include "worker/topology.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif

#define SIZE_SEALS (F_SEAL_SHRINK | F_SEAL_GROW)
#define ALL_SEALS  (SIZE_SEALS | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)

static const struct segment none = {.fd = -1};

/* At a multiple of 2 MiB, so that its pages can become huge ones.  MAP_FAILED or the memory. */
static void *map_aligned(uint64_t bytes, int fd)
{
    char *memory = mmap(NULL, bytes + MEMORY_PAGE_2M, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint64_t before = -(uintptr_t)memory & (MEMORY_PAGE_2M - 1);
    void *placed;

    if (memory == MAP_FAILED)
        return memory;
    placed = mmap(memory + before, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    if (placed == MAP_FAILED) {
        munmap(memory, bytes + MEMORY_PAGE_2M);
        return placed;
    }
    if (before)
        munmap(memory, before);
    munmap(memory + before + bytes, MEMORY_PAGE_2M - before);
    return placed;
}

static int create_on(struct segment *out, const char *name, uint64_t bytes, uint64_t page_bytes,
                     int node)
{
    bool collapse = page_bytes == MEMORY_PAGE_BYTES && bytes >= MEMORY_PAGE_2M;
    struct segment segment = none;
    int error;

    segment.bytes = (bytes + page_bytes - 1) & ~(page_bytes - 1);
    segment.page_bytes = (uint32_t)page_bytes;
    segment.fd = memory_create_file(name, segment.bytes, page_bytes);
    if (segment.fd < 0)
        return segment.fd;
    segment.memory = collapse ? map_aligned(segment.bytes, segment.fd)
                              : mmap(NULL, segment.bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                                     segment.fd, 0);
    if (segment.memory == MAP_FAILED) {
        error = -errno;
        segment.memory = NULL;
        goto fail;
    }
    /* Not being bound costs speed, not correctness; the pool's report names the reason once. */
    topology_bind_memory(segment.memory, segment.bytes, node);
    madvise(segment.memory, segment.bytes, MADV_DONTDUMP);
    error = collapse ? memory_populate_collapsed(segment.memory, segment.bytes, segment.fd)
                     : memory_populate(segment.memory, segment.bytes, segment.fd,
                                       segment.page_bytes);
    if (error < 0)
        goto fail;
    error = fcntl(segment.fd, F_ADD_SEALS, SIZE_SEALS) < 0 ? -errno : 0;
    if (error < 0)
        goto fail;
    *out = segment;
    return 0;

fail:
    segment_destroy(&segment);
    return error;
}

int segment_create(struct segment *out, const char *name, uint64_t bytes, bool hugepages, int node)
{
    *out = none;
    if (bytes == 0 || bytes > UINT64_MAX / 2)
        return -EINVAL;
    if (hugepages && create_on(out, name, bytes, MEMORY_PAGE_2M, node) == 0)
        return 0;
    return create_on(out, name, bytes, MEMORY_PAGE_BYTES, node);
}

int segment_protect_readonly(struct segment *segment)
{
    if (mprotect(segment->memory, segment->bytes, PROT_READ) < 0)
        return -errno;
    segment->readonly = true;
    return 0;
}

int segment_seal(struct segment *segment)
{
    int seals = fcntl(segment->fd, F_GET_SEALS);

    if (seals < 0)
        return -errno;
    if ((seals & ALL_SEALS) == ALL_SEALS)
        return 0;
    if (fcntl(segment->fd, F_ADD_SEALS, ALL_SEALS) < 0)
        return -errno;
    seals = fcntl(segment->fd, F_GET_SEALS);
    if (seals < 0)
        return -errno;
    return (seals & ALL_SEALS) == ALL_SEALS ? 0 : -EPERM;
}

int segment_fill_holes(struct segment *segment)
{
    int advice = segment->readonly ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
    int result;

    do
        result = madvise(segment->memory, segment->bytes, advice);
    while (result < 0 && (errno == EINTR || errno == EAGAIN));
    /* Linux before 5.14 has no such advice: the handler of worker/fault.c is what is left. */
    if (result == 0 || errno == EINVAL)
        return 0;
    return errno == EFAULT ? -ENOMEM : -errno;
}

void segment_destroy(struct segment *segment)
{
    if (segment->memory)
        munmap(segment->memory, segment->bytes);
    if (segment->fd >= 0)
        close(segment->fd);
    *segment = none;
}
