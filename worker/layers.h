/*
 * The registry of layers: content id -> packed layer, and names.  Weights exist once: a second
 * creator attaches to the first one's copy.  Layers nobody has open stay until the pool needs their
 * room (least recently used first).
 *
 * Control thread only, except the fields of struct layer marked so.  A layer is immutable while
 * anybody refers to it.
 */
#ifndef GEMMD_WORKER_LAYERS_H
#define GEMMD_WORKER_LAYERS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/epilogue.h"
#include "kernels/gemm.h"
#include "proto/validate.h"
#include "worker/histogram.h"
#include "worker/pool.h"
#include "worker/scheduler.h"

struct layer {
    /* read by the dispatcher */
    struct gemm_weights weights;
    struct gemm_epilogue epilogue;
    struct gemmd_job_shape shape;
    struct scheduler_layer scheduled; /* the dispatcher's */
    /* written by the dispatcher, read by the control thread (gemmd_counter_*) */
    uint64_t jobs, rows, exec_ns, panels, panel_rows;
    struct histogram queue_histogram, exec_histogram;
    /* control thread */
    struct gemmd_layer_desc_abi desc;
    uint64_t content_id[2];
    uint32_t owner_uid;   /* the user whose upload made it */
    uint32_t references;  /* open handles of sessions */
    uint64_t last_use;    /* registry clock, for the LRU */
    uint64_t bytes;       /* of the pool */
    uint64_t page_bytes;  /* of the pages that hold it */
    void *memory;         /* from the pool: panels, offsets, scales, bias */
};

struct layers;

int layers_open(struct layers **out, struct pool *pool, const struct gemm_kernel *kernel);
void layers_close(struct layers **layers);

uint32_t layers_count(const struct layers *layers);
/* The index-th layer, and one of its names ("" when it has none); NULL past the last. */
const struct layer *layers_get(const struct layers *layers, uint32_t index, const char **name);

/* By content.  The bare hash admits only the user whose bytes made the layer (any_uid false):
 * another user has to show the bytes themselves.  NULL when there is none. */
struct layer *layers_find(const struct layers *layers, const uint64_t content_id[2], uint32_t uid);
struct layer *layers_find_name(const struct layers *layers, const char *name);

/* Gives `layer` the name, "" does nothing.  NAME_TAKEN when a layer with other contents that
 * somebody has open carries it; the name moves when nobody has. */
enum gemmd_status layers_set_name(struct layers *layers, struct layer *layer, const char *name);

/* Packs an image (private to the caller, already of the right size) into a layer of `uid`.
 * Checks values and hash.  If the registry has the content already, the packed bytes are compared
 * and the existing layer is returned (*bytes_new = 0).  *out has no reference taken. OK, B_SCALE,
 * BIAS, CONTENT, POOL_FULL, LAYERS_FULL, NO_MEMORY, INTERNAL. */
enum gemmd_status layers_create(struct layers *layers, const struct gemmd_layer_desc_abi *desc,
                                const void *image, const uint64_t content_id[2], uint32_t uid,
                                struct layer **out, uint64_t *bytes_new);

void layer_reference(struct layers *layers, struct layer *layer);
void layer_release(struct layers *layers, struct layer *layer);

#endif
