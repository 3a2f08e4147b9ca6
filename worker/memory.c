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

/* Linux 6.3; an older kernel answers EINVAL.  Without it newer ones warn in their log. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
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

int memory_populate(void *memory, uint64_t bytes, int fd)
{
    int error = populate(memory, bytes, MADV_POPULATE_WRITE);

    if (error != -EINVAL)
        return error;
    if (fd >= 0 && fallocate(fd, 0, 0, (off_t)bytes) < 0)
        return errno == ENOSPC ? -ENOMEM : -errno;
    touch(memory, bytes);
    return 0;
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
