/* Memory whose neighbours fault: an over-read of one byte is a signal, not luck. */
#include "tests/kernel/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

void guard_alloc(struct guard *guard, size_t bytes)
{
    size_t inner = (bytes + PAGE - 1) / PAGE * PAGE;

    guard->mapping_bytes = inner + 2 * PAGE;
    guard->mapping = mmap(NULL, guard->mapping_bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guard->mapping == MAP_FAILED)
        fail("mmap");
    if (mprotect(guard->mapping, PAGE, PROT_NONE) ||
        mprotect(guard->mapping + PAGE + inner, PAGE, PROT_NONE))
        fail("mprotect");
    guard_place(guard, bytes, GUARD_AFTER);
}

void guard_place(struct guard *guard, size_t bytes, enum guard_side side)
{
    size_t inner = guard->mapping_bytes - 2 * PAGE;

    assert(bytes <= inner);
    guard->bytes = bytes;
    guard->data = guard->mapping + PAGE + (side == GUARD_AFTER ? inner - bytes : 0);
}

void guard_free(struct guard *guard)
{
    munmap(guard->mapping, guard->mapping_bytes);
}

void *check_alloc(size_t bytes)
{
    void *memory = aligned_alloc(GEMM_ALIGN, (bytes + GEMM_ALIGN - 1) / GEMM_ALIGN * GEMM_ALIGN);

    if (!memory)
        fail("aligned_alloc");
    memset(memory, 0, bytes);
    return memory;
}
