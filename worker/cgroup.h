/*
 * What the memory cgroups of this process still allow.  Beyond it the kernel ends a process without
 * a word, so memory is asked for only where there is room.
 */
#ifndef GEMMD_WORKER_CGROUP_H
#define GEMMD_WORKER_CGROUP_H

#include <stdint.h>

/* Finds the limits of this process's memory cgroup and of those above it (v1 or v2) below `root`
 * (NULL: the machine's "/"), and keeps their files open; without limits, nothing. */
void cgroup_open(const char *root);
void cgroup_close(void);

/* Bytes until the nearest limit, page cache that can be dropped counted as free; UINT64_MAX: there
 * is no limit, or it cannot be read.  Any thread. */
uint64_t cgroup_room(void);

#endif
