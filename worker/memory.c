/*
 * Memory files and populating.
 *
 * A page that cannot be had is SIGBUS at its first touch (hugetlb: empty pool, or a reservation on
 * another node; shmem: full).  MADV_POPULATE_WRITE (Linux 5.14) reports that as an error instead.
 * Before it, fallocate does the same for files, and private memory cannot raise it.
 */
#include "worker/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/cgroup.h"
#include "worker/log.h"

/* What is smaller is not looked at: it comes out of what is spared. */
#define ALLOWED_BYTES (UINT64_C(1) << 20)
/* For rings, tables, stacks, page tables, and what others of the group take meanwhile. */
#define SPARE_BYTES (UINT64_C(16) << 20)

/* Linux 6.3; an older kernel answers EINVAL.  Without it newer ones warn in their log. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

int memory_create_file(const char *name, uint64_t bytes, uint64_t page_bytes)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd, error;

    if (page_bytes == MEMORY_PAGE_2M)
        flags |= MFD_HUGETLB | MFD_HUGE_2MB;
    else if (page_bytes == MEMORY_PAGE_1G)
        flags |= MFD_HUGETLB | MFD_HUGE_1GB;
    fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create(name, flags);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)bytes) < 0) {
        error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

static void touch(char *memory, uint64_t bytes)
{
    for (uint64_t offset = 0; offset < bytes; offset += MEMORY_PAGE_BYTES)
        *(volatile char *)(memory + offset) = 0;
}

static int populate(void *memory, uint64_t bytes, int advice)
{
    int result;

    do
        result = madvise(memory, bytes, advice);
    while (result < 0 && (errno == EINTR || errno == EAGAIN));
    if (result == 0)
        return 0;
    return errno == EFAULT ? -ENOMEM : -errno;
}

static uint64_t promised;

void memory_promise(int64_t bytes)
{
    __atomic_fetch_add(&promised, (uint64_t)bytes, __ATOMIC_RELAXED);
}

bool memory_is_allowed(uint64_t bytes)
{
    uint64_t room = bytes >= ALLOWED_BYTES ? cgroup_room() : UINT64_MAX;
    uint64_t others = __atomic_load_n(&promised, __ATOMIC_RELAXED);

    if (room != UINT64_MAX)
        room -= others < room ? others : room;
    if (room == UINT64_MAX || (bytes <= room && room - bytes >= SPARE_BYTES))
        return true;
    log_warn(LOG_TOPIC_POOL, "%llu KiB more are beyond the memory cgroup's limit, %llu KiB below "
             "which %llu are kept free", (unsigned long long)(bytes >> 10),
             (unsigned long long)(room >> 10), (unsigned long long)(SPARE_BYTES >> 10));
    return false;
}

static int fill(void *memory, uint64_t bytes, int fd)
{
    int error = populate(memory, bytes, MADV_POPULATE_WRITE);

    if (error != -EINVAL)
        return error;
    if (fd >= 0 && fallocate(fd, 0, 0, (off_t)bytes) < 0)
        return errno == ENOSPC ? -ENOMEM : -errno;
    touch(memory, bytes);
    return 0;
}

int memory_populate(void *memory, uint64_t bytes, int fd, uint64_t page_bytes)
{
    if (page_bytes == MEMORY_PAGE_BYTES && !memory_is_allowed(bytes))
        return -ENOMEM;
    return fill(memory, bytes, fd);
}

int memory_populate_collapsed(void *memory, uint64_t bytes, int fd)
{
    int error = memory_is_allowed(bytes) ? 0 : -ENOMEM;

    for (uint64_t at = 0; error == 0 && at < bytes; at += MEMORY_PAGE_2M)
        error = populate((char *)memory + at, MEMORY_PAGE_BYTES, MADV_POPULATE_WRITE);
    if (error == 0)
        madvise(memory, bytes & ~(MEMORY_PAGE_2M - 1), MADV_COLLAPSE);
    else if (error != -EINVAL)
        return error;
    return fill(memory, bytes, fd);
}

int memory_populate_existing(void *memory, uint64_t bytes)
{
    int error = populate(memory, bytes, MADV_POPULATE_READ);

    if (error != -EINVAL)
        return error;
    for (uint64_t offset = 0; offset < bytes; offset += MEMORY_PAGE_BYTES)
        (void)*(const volatile char *)((const char *)memory + offset);
    return 0;
}
