/*
 * Model files at the start: packed layer files are read, safetensors go through gemmd-pack first.
 * That program parses an untrusted file, so it runs apart and gives up its privileges first; all it
 * can do is fill a memfd, which is sealed and then read like any other packed file.
 */
#ifndef GEMMD_WORKER_MODELS_H
#define GEMMD_WORKER_MODELS_H

#include "worker/layers.h"

/* Loads "FILE" or "FILE:PREFIX" (worker/loading.h says what the prefix does; a file whose name has
 * a ':' needs one at the end).  `packer` is gemmd-pack's path, NULL: beside this program.  0, or an
 * exit code after logging the reason. */
int models_load(struct layers *layers, const char *model, const char *packer);

#endif
