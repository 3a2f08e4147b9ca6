/*
 * Ends a worker whose dispatcher or control thread makes no progress any more, so that whoever
 * supervises it starts a new one; clients then reconnect.  A thread of its own: one that is stuck
 * cannot notice.
 */
#ifndef GEMMD_WORKER_WATCHDOG_H
#define GEMMD_WORKER_WATCHDOG_H

#include <stdint.h>

#include "proto/stats.h"

struct watchdog;

struct watchdog_config {
    const struct gemmd_stats_page *stats;
    const uint64_t *control_rounds;
    uint32_t limit_s; /* without progress; 0: no watchdog.  The control thread, which packs
                         layers of gigabytes in one go, gets four times as long. */
};

/* 0 or -errno.  With limit_s 0 *out is NULL. */
int watchdog_open(struct watchdog **out, const struct watchdog_config *config);
/* Accepts NULL; *watchdog becomes NULL. */
void watchdog_close(struct watchdog **watchdog);

#endif
