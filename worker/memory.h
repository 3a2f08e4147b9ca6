/* What the pool and the segments share: memory files, and populating without a later SIGBUS. */
#ifndef GEMMD_WORKER_MEMORY_H
#define GEMMD_WORKER_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#define MEMORY_PAGE_BYTES UINT64_C(4096)
#define MEMORY_PAGE_2M    (UINT64_C(2) << 20)
#define MEMORY_PAGE_1G    (UINT64_C(1) << 30)

/* A sealable, close-on-exec memfd of `bytes` (whole pages) on pages of `page_bytes` (one of the
 * three above; > 4 KiB is hugetlb).  fd or -errno. */
int memory_create_file(const char *name, uint64_t bytes, uint64_t page_bytes);

/* False, and a line in the log, when so much more would come too near to a cgroup's limit. */
bool memory_is_allowed(uint64_t bytes);
/* Memory that was allowed and will be touched later; negative: it has been, or will not. */
void memory_promise(int64_t bytes);

/* Gives every page of a writable mapping its memory now; `fd` is its file, -1 for private memory.
 * 0 or -errno: -ENOMEM where a touch would have raised SIGBUS, or a cgroup's limit is near (that of
 * hugetlb pages, page_bytes above 4 KiB, is the kernel's to say). */
int memory_populate(void *memory, uint64_t bytes, int fd, uint64_t page_bytes);

/* As memory_populate, for a file on small pages that is mapped at a multiple of 2 MiB: as many as
 * the kernel allows become transparent huge ones, whatever shmem_enabled says ("never" by default).
 * A range that has one page is collapsed (MADV_COLLAPSE, Linux 6.1), and the rest of the huge page
 * cleared: 3 to 5 ms for 32 MiB on a guest of kernel 6.18, and 21 to 24 with all small pages there
 * before. */
int memory_populate_collapsed(void *memory, uint64_t bytes, int fd);

/* Maps the pages a shared file has; a hole is filled with zeros.  0 or -errno as above. */
int memory_populate_existing(void *memory, uint64_t bytes);

#endif
