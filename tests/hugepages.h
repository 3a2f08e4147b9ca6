/*
 * The machine's huge pages of 2 MiB: root's to set.  Programs that set the number take turns, and
 * put back what they found.
 */
#ifndef GEMMD_TESTS_HUGEPAGES_H
#define GEMMD_TESTS_HUGEPAGES_H

#include <stdbool.h>

/* From now until hugepages_restore there are exactly `count` pages, all free.  False: cannot be
 * done here (not root, no memory, in use). */
bool hugepages_set(long count);
void hugepages_restore(void);

/* How many are free now; -1: the kernel has none. */
long hugepages_free(void);

#endif
