/*
 * The control thread's helper: a thread for what takes long and touches nothing that others use.
 * One task at a time; its end is told through a descriptor.
 */
#ifndef GEMMD_WORKER_HELPER_H
#define GEMMD_WORKER_HELPER_H

#include <sched.h>
#include <stdbool.h>

struct helper;

/* 0 or -errno. */
int helper_open(struct helper **out);
/* Waits for the task in hand.  Accepts NULL; *helper becomes NULL. */
void helper_close(struct helper **helper);

/* Readable once a task is done and not taken yet. */
int helper_fd(const struct helper *helper);

/* topology_repin_to of its thread. */
int helper_repin(const struct helper *helper, const cpu_set_t *cpus);

/* There is no task in hand. */
void helper_start(struct helper *helper, void (*run)(void *task), void *task);
/* True when the task is done: its writes are the caller's to see, and another may start. */
bool helper_take(struct helper *helper);
/* Blocks until helper_take would say so; there is a task in hand. */
void helper_wait(struct helper *helper);

#endif
