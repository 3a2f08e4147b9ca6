/*
 * A service manager for one worker: hears what it notifies, keeps the descriptors it stores, and
 * starts it with them, like systemd's.
 */
#ifndef GEMMD_TESTS_E2E_MANAGER_H
#define GEMMD_TESTS_E2E_MANAGER_H

#include "tests/harness.h"

#define MANAGER_FILES_MAX 64

struct manager_file {
    char name[64];
    int fd;
};

struct manager {
    int fd; /* what NOTIFY_SOCKET names */
    char path[96];
    struct manager_file files[MANAGER_FILES_MAX];
    unsigned count;
    unsigned ready, stopping, watchdog, stored, removed; /* messages of each kind */
    char status[256];                                    /* the last STATUS= */
};

/* The notify socket lies in the worker's directory, which manager_open makes. */
void manager_open(struct manager *manager, struct harness_worker *worker);
void manager_close(struct manager *manager);

/* Starts the worker with the stored descriptors and waits for READY=1 (false: it ended before).
 * WATCHDOG_USEC is set unless watchdog_us is 0. */
bool manager_start(struct manager *manager, struct harness_worker *worker,
                   const char *const *arguments, const char *const *environment,
                   unsigned watchdog_us);

/* Takes in what has been sent, for timeout_ms at most or until `*counter` reaches `until` (counter
 * NULL: only what is there). */
void manager_listen(struct manager *manager, const unsigned *counter, unsigned until,
                    int timeout_ms);

/* The stored descriptor; -1: none. */
int manager_find(const struct manager *manager, const char *name);
/* Adds one of the test's own (taken). */
void manager_add(struct manager *manager, const char *name, int fd);

#endif
