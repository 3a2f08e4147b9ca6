/* What sysfs says of huge pages. */
#ifndef GEMMD_WORKER_HUGEPAGES_H
#define GEMMD_WORKER_HUGEPAGES_H

#include <stdbool.h>
#include <stdint.h>

#define HUGEPAGES_PATH_BYTES 128

/* The machine has several nodes, each with a number of its own. */
bool hugepages_are_by_node(void);
/* "nr_hugepages", "free_hugepages", … of a size: of a node, or (-1) of the machine. */
void hugepages_path(int node, uint64_t page_bytes, const char *name,
                    char out[HUGEPAGES_PATH_BYTES]);
/* Its value; -1: this kernel or CPU has no such pages. */
long long hugepages_read(int node, uint64_t page_bytes, const char *name);
bool hugepages_thp_disabled(void);

#endif
