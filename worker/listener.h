/* The socket clients connect to, and the lock that says whose it is. */
#ifndef GEMMD_WORKER_LISTENER_H
#define GEMMD_WORKER_LISTENER_H

#include "worker/peers.h"

/* Opens those of the two that are -1; what a service manager or an earlier worker gave is taken as
 * it is.  0; -EADDRINUSE: a live worker holds the lock; -errno.  Either may be open after failure.
 */
int listener_open(const char *path, const struct peers *peers, int *listen_fd, int *lock_fd);

#endif
