/*
 * Loading of a packed layer file by the operator, in slices short enough that the control thread
 * serves its clients in between.  All layers of the file come in, or none; their names change to
 * the new layers together, in the last slice.
 */
#ifndef GEMMD_WORKER_LOADING_H
#define GEMMD_WORKER_LOADING_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/layer_file.h"
#include "worker/layers.h"

struct loading;

struct loading_result {
    uint32_t layers;
    uint64_t bytes_new; /* of weights */
    struct layer_file_error error;
};

/* Takes fd whatever is returned.  `prefix`: the layers are named PREFIX/NAME; "": NAME.  OK: go on
 * with loading_step. */
enum gemmd_status loading_open(struct loading **out, struct layers *layers, int fd, uint32_t uid,
                               const char *prefix, struct loading_result *result);

/* About `bytes` of work more.  True: done, *status says how, and *result is complete. */
bool loading_step(struct loading *loading, uint64_t bytes, enum gemmd_status *status,
                  struct loading_result *result);

/* Leaves nothing of an unfinished one.  Accepts NULL; *loading becomes NULL. */
void loading_close(struct loading **loading);

#endif
