/*
 * The successor's side of an upgrade: asks the worker that serves a socket for its layers, and then
 * for the socket itself.  Between the two the old worker executes jobs; control messages wait.
 */
#ifndef GEMMD_WORKER_TAKEOVER_H
#define GEMMD_WORKER_TAKEOVER_H

#include "worker/handover.h"

struct takeover;

/* Connects and fills pool and registry, both empty.  0; -ECONNREFUSED: nobody serves there;
 * -EPERM: not the same user; -EXDEV: its layers are for another kernel (go on without them);
 * -errno. */
int takeover_open(struct takeover **out, const char *socket, struct layers *layers,
                  struct pool *pool, struct handover_result *result);
/* Takes the socket: the old worker drains and ends.  0; -EAGAIN: its layers have changed since;
 * -errno. */
int takeover_commit(struct takeover *takeover, uint64_t generation, int *listen_fd, int *lock_fd);
/* Accepts NULL; *takeover becomes NULL. */
void takeover_close(struct takeover **takeover);

#endif
