/*
 * A fixed table of watched ranges.  The control thread fills and clears entries; the handler, on
 * any thread, reads them: `begin` is stored last and cleared first, so an entry with a begin is
 * whole.  An entry is cleared only after the dispatcher has let go of the session, so no handler
 * can be at work on it.
 */
#include "worker/fault.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/limits.h"

/* c2w, w2c and arena of each session. */
#define RANGES_MAX (3 * GEMMD_WORKER_SESSIONS_MAX)

struct range {
    uintptr_t begin; /* 0: free */
    uintptr_t end;
    uintptr_t page_bytes;
    enum gemmd_status *violation;
};

static struct range ranges[RANGES_MAX];
static int notify_fd = -1;

/* Only what signal-safety(7) allows, and mmap: on Linux a bare system call. */
static void end_process(void)
{
    /* not covered here: the process ends, and its counters with it (worker fault tests it) */
    static const char text[] = "gemmd: SIGBUS outside the sessions' segments (weights or own "
                               "memory): hardware error, or no memory where some was promised\n";
    ssize_t ignored = write(STDERR_FILENO, text, sizeof(text) - 1);

    (void)ignored;
    signal(SIGBUS, SIG_DFL);
    raise(SIGBUS); /* delivered when the handler returns */
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    const uint64_t one = 1;
    uintptr_t address = (uintptr_t)info->si_addr;
    int saved_errno = errno;

    (void)number;
    (void)context;
    for (size_t i = 0; i < RANGES_MAX; i++) {
        const struct range *range = &ranges[i];
        uintptr_t begin = __atomic_load_n(&range->begin, __ATOMIC_ACQUIRE);
        enum gemmd_status none = GEMMD_STATUS_OK;
        ssize_t ignored;

        if (!begin || address < begin || address >= range->end)
            continue;
        /* MAP_FIXED on a whole page of the segment's size: a huge page cannot be replaced in part.
         */
        if (mmap((void *)(address & ~(range->page_bytes - 1)), range->page_bytes,
                 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                 0) == MAP_FAILED)
            break; /* not covered: no memory for one page */
        __atomic_compare_exchange_n(range->violation, &none, GEMMD_STATUS_SEGMENT_FAULT, false,
                                    __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
        ignored = write(notify_fd, &one, sizeof(one));
        (void)ignored; /* EAGAIN: the counter is full, so the reader is told anyway */
        errno = saved_errno;
        return;
    }
    end_process(); /* not covered: see there */
}

int fault_open(int fd)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};

    notify_fd = fd;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) < 0 ? -errno : 0;
}

int fault_watch(void *memory, uint64_t bytes, uint32_t page_bytes, enum gemmd_status *violation)
{
    for (size_t i = 0; i < RANGES_MAX; i++) {
        struct range *range = &ranges[i];

        if (range->begin)
            continue;
        range->end = (uintptr_t)memory + bytes;
        range->page_bytes = page_bytes;
        range->violation = violation;
        __atomic_store_n(&range->begin, (uintptr_t)memory, __ATOMIC_RELEASE);
        return 0;
    }
    return -ENOSPC;
}

void fault_unwatch(const void *memory)
{
    for (size_t i = 0; memory && i < RANGES_MAX; i++)
        if (ranges[i].begin == (uintptr_t)memory)
            __atomic_store_n(&ranges[i].begin, 0, __ATOMIC_RELEASE);
}
