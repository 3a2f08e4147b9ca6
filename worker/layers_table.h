/* What layers.c and layers_build.c share: the registry's inside. */
#ifndef GEMMD_WORKER_LAYERS_TABLE_H
#define GEMMD_WORKER_LAYERS_TABLE_H

#include "worker/layers.h"

/* Several names may lead to one layer. */
struct layer_name {
    char text[GEMMD_NAME_BYTES];
    struct layer *layer; /* NULL: free */
};

struct layers {
    struct layers_config config;
    struct pool_mover mover;
    layers_moved_fn *on_move;
    void *on_move_context;
    uint64_t clock, generation;
    uint32_t count;
    uint32_t drafts; /* each has a place in the table to come */
    struct layer *table[GEMMD_WORKER_LAYERS_MAX]; /* the first `count` */
    struct layer_name names[GEMMD_WORKER_LAYERS_MAX];
    uint64_t evictions;
    /* the scrub's place: `scrubbed` bytes of `scrubbing` are in the hash */
    struct layer *scrubbing;
    uint64_t scrubbed;
    struct layer_hash scrub_hash;
    uint32_t scrub_next; /* index of the layer after that */
    uint64_t scrub_bytes, scrub_passes, scrub_faults;
};

struct layer *layers_find_content(const struct layers *layers, const uint64_t content_id[2]);

/* Frees the unused layer that was used longest ago, of `uid` alone when charged_only; false when
 * there is none. */
bool layers_evict_one(struct layers *layers, bool charged_only, uint32_t uid);

/* Bytes that count against a user. */
uint64_t layers_bytes_of(const struct layers *layers, uint32_t uid);

#endif
