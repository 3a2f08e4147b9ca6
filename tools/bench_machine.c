/* Clock, pinning, facts of the machine, and memory on huge pages. */
#include "tools/bench.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define HUGE_PAGE_BYTES ((size_t)2 * 1024 * 1024)

uint64_t bench_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int bench_pin(const unsigned int *cpus, unsigned int count)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    for (unsigned int i = 0; i < count; i++) {
        if (cpus[i] >= CPU_SETSIZE)
            return -EINVAL;
        CPU_SET(cpus[i], &set);
    }
    return sched_setaffinity(0, sizeof(set), &set) < 0 ? -errno : 0;
}

unsigned int bench_cpus(unsigned int *cpus, unsigned int count)
{
    unsigned int found = 0;
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 0;
    for (unsigned int cpu = 0; cpu < CPU_SETSIZE && found < count; cpu++) {
        if (CPU_ISSET(cpu, &set))
            cpus[found++] = cpu;
    }
    return found;
}

/* The value of the first "model name" line. */
static void read_cpu_model(char *out, size_t bytes)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "re");

    snprintf(out, bytes, "unknown CPU");
    while (file && fgets(line, sizeof(line), file)) {
        char *colon = strchr(line, ':');

        if (strncmp(line, "model name", 10) || !colon)
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(out, bytes, "%s", colon + 2);
        break;
    }
    if (file)
        fclose(file);
}

static size_t cache_bytes(int name, size_t fallback)
{
    long bytes = sysconf(name);

    return bytes > 0 ? (size_t)bytes : fallback;
}

void bench_machine_open(struct bench_machine *machine)
{
    struct utsname name;

    memset(machine, 0, sizeof(*machine));
    read_cpu_model(machine->cpu, sizeof(machine->cpu));
    if (uname(&name) == 0)
        snprintf(machine->kernel, sizeof(machine->kernel), "%s %s", name.sysname, name.release);
    machine->l2_bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE, (size_t)1024 * 1024);
    machine->l3_bytes = cache_bytes(_SC_LEVEL3_CACHE_SIZE, (size_t)32 * 1024 * 1024);
    machine->pages = BENCH_PAGES_HUGETLB;
}

const char *bench_pages_name(enum bench_pages pages)
{
    static const char *const names[] = {"2 MiB (hugetlb)", "2 MiB (THP)", "4 KiB"};

    return names[pages];
}

static size_t round_up(size_t bytes)
{
    return (bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
}

static void *map(size_t bytes, int flags)
{
    void *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

/* THP serves aligned ranges only: map more, give back what is outside. */
static uint8_t *map_aligned(size_t bytes)
{
    uint8_t *memory = map(bytes + HUGE_PAGE_BYTES, 0), *aligned;
    size_t before;

    if (!memory)
        return NULL;
    before = round_up((uintptr_t)memory) - (uintptr_t)memory;
    aligned = memory + before;
    if (before)
        munmap(memory, before);
    munmap(aligned + bytes, HUGE_PAGE_BYTES - before);
    return aligned;
}

/* Whether the kernel made huge pages of the range: AnonHugePages of its mapping. */
static bool is_huge(const void *memory)
{
    char line[256];
    FILE *file = fopen("/proc/self/smaps", "re");
    unsigned long begin, end, kib = 0;
    bool inside = false;

    while (file && fgets(line, sizeof(line), file)) {
        if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
            inside = begin <= (uintptr_t)memory && (uintptr_t)memory < end;
        else if (inside && sscanf(line, "AnonHugePages: %lu", &kib) == 1)
            break;
    }
    if (file)
        fclose(file);
    return kib > 0;
}

void *bench_alloc(struct bench_machine *machine, size_t bytes)
{
    size_t mapped = round_up(bytes ? bytes : 1);
    void *memory = map(mapped, MAP_HUGETLB | MAP_POPULATE);
    enum bench_pages pages = BENCH_PAGES_HUGETLB;

    if (!memory) {
        memory = map_aligned(mapped);
        if (!memory) {
            fprintf(stderr, "gemmd-bench: no %zu bytes of memory\n", mapped);
            exit(EXIT_FAILURE);
        }
        madvise(memory, mapped, MADV_HUGEPAGE);
        memset(memory, 0, mapped);
        pages = is_huge(memory) ? BENCH_PAGES_THP : BENCH_PAGES_SMALL;
    }
    if (pages > machine->pages)
        machine->pages = pages;
    return memory;
}

void bench_free(void *memory, size_t bytes)
{
    if (memory)
        munmap(memory, round_up(bytes ? bytes : 1));
}
