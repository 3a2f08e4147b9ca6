/*
 * sysfs:  devices/system/cpu/online            CPUs
 *         devices/system/node/online           nodes; the directory is missing without CONFIG_NUMA
 *         devices/system/node/node<N>/cpulist  CPUs of a node, offline ones already left out
 *         devices/system/cpu/cpu<C>/cache/index<I>/{level,type,size}
 * Everything but the caches is read once, at open.
 */
#include "worker/topology.h"

#include <assert.h>
#include <errno.h>
#include <linux/mempolicy.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel's own ceiling (CONFIG_NODES_SHIFT = 10). */
#define NODES_MAX      1024
#define FILE_BYTES     8192
#define CACHES_MAX     16
#define MOVE_BATCH     512
#define MASK_WORD_BITS (8 * sizeof(unsigned long))

struct topology {
    char root[256];
    cpu_set_t online, nodes; /* node numbers fit: NODES_MAX == CPU_SETSIZE */
    int node_count;
    int16_t node_of_cpu[CPU_SETSIZE];
};

static_assert(NODES_MAX <= CPU_SETSIZE, "a cpu_set_t holds the node list");

/* A small file's text without its last newline; false: missing, unreadable or too long. */
static bool read_text(const char *path, char *out, size_t out_bytes)
{
    FILE *file = fopen(path, "re");
    size_t length;

    if (!file)
        return false;
    length = fread(out, 1, out_bytes, file);
    fclose(file);
    if (length == out_bytes)
        return false;
    out[length] = '\0';
    out[strcspn(out, "\n")] = '\0';
    return true;
}

static int read_list(const char *root, const char *name, cpu_set_t *out)
{
    char path[512], text[FILE_BYTES];

    snprintf(path, sizeof(path), "%s/devices/system/%s", root, name);
    if (!read_text(path, text, sizeof(text)))
        return -ENOENT;
    return cpulist_parse(text, out);
}

static int read_nodes(struct topology *topology)
{
    int error = read_list(topology->root, "node/online", &topology->nodes);

    if (error == -ENOENT) {
        CPU_ZERO(&topology->nodes);
        return 0;
    }
    if (error < 0)
        return error;
    topology->node_count = CPU_COUNT(&topology->nodes);
    for (int node = 0; node < NODES_MAX; node++) {
        char name[64];
        cpu_set_t cpus;

        if (!CPU_ISSET(node, &topology->nodes))
            continue;
        snprintf(name, sizeof(name), "node/node%d/cpulist", node);
        error = read_list(topology->root, name, &cpus);
        if (error < 0)
            return error;
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, &cpus) && CPU_ISSET(cpu, &topology->online))
                topology->node_of_cpu[cpu] = (int16_t)node;
    }
    return 0;
}

int topology_open(struct topology **out, const char *sysfs_root)
{
    struct topology *topology = calloc(1, sizeof(*topology));
    int error = -ENAMETOOLONG;

    *out = NULL;
    if (!topology)
        return -ENOMEM;
    if (!sysfs_root)
        sysfs_root = "/sys";
    if (strlen(sysfs_root) >= sizeof(topology->root))
        goto fail;
    memcpy(topology->root, sysfs_root, strlen(sysfs_root) + 1);
    memset(topology->node_of_cpu, 0xff, sizeof(topology->node_of_cpu));
    error = read_list(topology->root, "cpu/online", &topology->online);
    if (error == 0 && CPU_COUNT(&topology->online) == 0)
        error = -EINVAL;
    if (error == 0)
        error = read_nodes(topology);
    if (error < 0)
        goto fail;
    *out = topology;
    return 0;

fail:
    free(topology);
    return error;
}

void topology_close(struct topology **topology)
{
    free(*topology);
    *topology = NULL;
}

const cpu_set_t *topology_cpus_online(const struct topology *topology)
{
    return &topology->online;
}

int topology_node_count(const struct topology *topology)
{
    return topology->node_count;
}

int topology_node_of_cpu(const struct topology *topology, int cpu)
{
    return cpu >= 0 && cpu < CPU_SETSIZE ? topology->node_of_cpu[cpu] : -1;
}

int topology_cpus_of_node(const struct topology *topology, int node, cpu_set_t *out)
{
    CPU_ZERO(out);
    if (topology->node_count == 0 && node == -1) {
        *out = topology->online;
        return 0;
    }
    if (node < 0 || node >= NODES_MAX || !CPU_ISSET(node, &topology->nodes))
        return -ENODEV;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (topology->node_of_cpu[cpu] == node)
            CPU_SET(cpu, out);
    return 0;
}

/* "1024K", "32M". */
static uint64_t parse_size(const char *text)
{
    char *end;
    uint64_t size = strtoull(text, &end, 10);

    if (end == text)
        return 0;
    if (*end == 'K')
        return size << 10;
    if (*end == 'M')
        return size << 20;
    return *end == 'G' ? size << 30 : size;
}

uint64_t topology_cache_bytes(const struct topology *topology, int cpu, int level)
{
    for (int index = 0; index < CACHES_MAX; index++) {
        char directory[400], path[512], text[64];
        int length = snprintf(directory, sizeof(directory),
                              "%s/devices/system/cpu/cpu%d/cache/index%d", topology->root, cpu,
                              index);

        if (length < 0 || (size_t)length >= sizeof(directory))
            return 0;
        snprintf(path, sizeof(path), "%s/level", directory);
        if (!read_text(path, text, sizeof(text)))
            return 0;
        if (strtol(text, NULL, 10) != level) /* sysfs: digits and a newline */
            continue;
        snprintf(path, sizeof(path), "%s/type", directory);
        if (!read_text(path, text, sizeof(text)) || strcmp(text, "Instruction") == 0)
            continue;
        snprintf(path, sizeof(path), "%s/size", directory);
        return read_text(path, text, sizeof(text)) ? parse_size(text) : 0;
    }
    return 0;
}

/* A decimal number at *text_p, which moves behind it; -EINVAL or -ERANGE. */
static int parse_cpu(const char **text_p)
{
    const char *text = *text_p;
    int value = 0;

    if (*text < '0' || *text > '9')
        return -EINVAL;
    for (; *text >= '0' && *text <= '9'; text++) {
        value = value * 10 + (*text - '0');
        if (value >= CPU_SETSIZE)
            return -ERANGE;
    }
    *text_p = text;
    return value;
}

int cpulist_parse(const char *text, cpu_set_t *out)
{
    CPU_ZERO(out);
    if (!*text)
        return 0;
    for (;;) {
        int first = parse_cpu(&text), last = first;

        if (first < 0)
            return first;
        if (*text == '-') {
            text++;
            last = parse_cpu(&text);
        }
        if (last < 0)
            return last;
        if (last < first)
            return -EINVAL;
        for (int cpu = first; cpu <= last; cpu++)
            CPU_SET(cpu, out);
        if (!*text)
            return 0;
        if (*text++ != ',')
            return -EINVAL;
    }
}

int cpulist_format(const cpu_set_t *cpus, char *out, size_t out_bytes)
{
    size_t used = 0;

    if (out_bytes == 0)
        return -ENOSPC;
    *out = '\0';
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        int last = cpu, length;

        if (!CPU_ISSET(cpu, cpus))
            continue;
        while (last + 1 < CPU_SETSIZE && CPU_ISSET(last + 1, cpus))
            last++;
        length = snprintf(out + used, out_bytes - used, last > cpu ? "%s%d-%d" : "%s%d",
                          used ? "," : "", cpu, last);
        if (length < 0 || (size_t)length >= out_bytes - used)
            return -ENOSPC;
        used += (size_t)length;
        cpu = last;
    }
    return 0;
}

int topology_cpus_allowed(cpu_set_t *out)
{
    return sched_getaffinity(0, sizeof(*out), out) < 0 ? -errno : 0;
}

int topology_cpu_current(void)
{
    return sched_getcpu();
}

int topology_pin_thread(const cpu_set_t *cpus)
{
    cpu_set_t granted;

    if (sched_setaffinity(0, sizeof(*cpus), cpus) < 0)
        return -errno;
    /* A cpuset cuts the mask silently: sched_setaffinity succeeds when one CPU is left. */
    if (sched_getaffinity(0, sizeof(granted), &granted) < 0)
        return -errno;
    return CPU_EQUAL(cpus, &granted) ? 0 : -EINVAL;
}

int topology_repin_to(pid_t tid, const cpu_set_t *cpus)
{
    cpu_set_t before, granted;

    if (sched_getaffinity(tid, sizeof(before), &before) < 0)
        return -errno;
    if (CPU_EQUAL(cpus, &before))
        return 0;
    if (sched_setaffinity(tid, sizeof(*cpus), cpus) < 0 ||
        sched_getaffinity(tid, sizeof(granted), &granted) < 0)
        return -errno;
    return !CPU_EQUAL(&before, &granted);
}

int topology_repin(pid_t tid, int cpu)
{
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    return topology_repin_to(tid, &cpus);
}

int topology_bind_memory(void *memory, uint64_t bytes, int node)
{
    unsigned long mask[NODES_MAX / MASK_WORD_BITS] = {0};

    if (node < 0)
        return 0;
    if (node >= NODES_MAX)
        return -EINVAL;
    mask[(size_t)node / MASK_WORD_BITS] = 1ul << ((size_t)node % MASK_WORD_BITS);
    /* maxnode counts one more than the bits of the mask. */
    if (syscall(SYS_mbind, memory, bytes, MPOL_BIND, mask, (unsigned long)NODES_MAX + 1, 0) < 0)
        return -errno;
    return 0;
}

int topology_count_on_node(const void *start, uint64_t step_bytes, int count, int node)
{
    void *pages[MOVE_BATCH];
    int status[MOVE_BATCH], found = 0;

    for (int done = 0; done < count; done += MOVE_BATCH) {
        int batch = count - done < MOVE_BATCH ? count - done : MOVE_BATCH;

        for (int i = 0; i < batch; i++)
            pages[i] = (void *)((uintptr_t)start + (uint64_t)(done + i) * step_bytes);
        /* Without target nodes it moves nothing and only answers. */
        if (syscall(SYS_move_pages, 0, (unsigned long)batch, pages, NULL, status, 0) < 0)
            return -errno;
        for (int i = 0; i < batch; i++)
            found += status[i] == node;
    }
    return found;
}
