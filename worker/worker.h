/* The root object: owns every part of the worker, opens them in order and closes them in reverse.
 */
#ifndef GEMMD_WORKER_WORKER_H
#define GEMMD_WORKER_WORKER_H

#include "worker/options.h"

struct worker;

/* Topology, kernel, pool, registry, dispatcher, socket; then says READY.  0 or an exit code of
 * <sysexits.h>, after logging the reason; *out is NULL then. */
int worker_open(struct worker **out, const struct options *options);

/* Serves until told to stop; drains.  0 or an exit code. */
int worker_run(struct worker *worker);

/* Accepts NULL and half-built objects; *worker becomes NULL. */
void worker_close(struct worker **worker);

#endif
