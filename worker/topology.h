/*
 * The machine: CPUs, NUMA nodes, caches, as sysfs shows them; and the calls that pin threads and
 * memory to them.  CPUs from CPU_SETSIZE (1024) on are ignored.
 */
#ifndef GEMMD_WORKER_TOPOLOGY_H
#define GEMMD_WORKER_TOPOLOGY_H

#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct topology;

/* Reads `sysfs_root` (NULL = "/sys").  0 or -errno; *out is NULL then. */
int topology_open(struct topology **out, const char *sysfs_root);
/* Accepts NULL; *topology becomes NULL. */
void topology_close(struct topology **topology);

const cpu_set_t *topology_cpus_online(const struct topology *topology);
/* Online nodes; 0: the kernel has no NUMA, and node numbers are -1 everywhere. */
int topology_node_count(const struct topology *topology);
/* -1: no NUMA, or no such online CPU. */
int topology_node_of_cpu(const struct topology *topology, int cpu);
/* Online CPUs of a node (none for a memory-only node); node -1 without NUMA: all.  0 or -ENODEV. */
int topology_cpus_of_node(const struct topology *topology, int node, cpu_set_t *out);
/* Data or unified cache of that level as seen from a CPU; 0: unknown. */
uint64_t topology_cache_bytes(const struct topology *topology, int cpu, int level);

/* "0-3,8" <-> set.  parse: 0; -EINVAL; -ERANGE for a CPU from CPU_SETSIZE on.  An empty list is
 * valid (a memory-only node).  format: 0 or -ENOSPC. */
int cpulist_parse(const char *text, cpu_set_t *out);
int cpulist_format(const cpu_set_t *cpus, char *out, size_t out_bytes);

/* The CPUs this process may run on.  0 or -errno. */
int topology_cpus_allowed(cpu_set_t *out);
int topology_cpu_current(void);
/* Pins the calling thread, and reads the mask back: -EINVAL when the kernel granted less. */
int topology_pin_thread(const cpu_set_t *cpus);
/* Pins a thread of this process (0: the calling one) again if it is not: the kernel widens a mask
 * when a cpuset changes or a CPU goes offline.  0 it was, or those are all that can be had of these
 * CPUs; 1 mended; -errno (-EINVAL: all offline or forbidden). */
int topology_repin_to(pid_t tid, const cpu_set_t *cpus);
int topology_repin(pid_t tid, int cpu);

/* Binds whole pages to a node before their first touch (MPOL_BIND).  Node -1: 0, nothing done.
 * -errno: -ENOSYS without NUMA, -EPERM where a container's seccomp filter denies mbind. */
int topology_bind_memory(void *memory, uint64_t bytes, int node);
/* Asks the kernel where pages are: of `count` addresses start, start + step, …, how many are on
 * `node`.  Number or -errno as above. */
int topology_count_on_node(const void *start, uint64_t step_bytes, int count, int node);

#endif
