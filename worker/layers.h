/*
 * The registry of layers: content id -> packed layer, and names.  Weights exist once: a second
 * creator attaches to the first one's copy.  Layers nobody has open stay until their room is needed
 * (least recently used first), the budget for unused ones is spent, or the operator unloads them.
 *
 *   layers.c        the table, names, references, eviction, quotas
 *   layers_build.c  how a layer comes in: packed from a client's image, or read by the operator
 *
 * Control thread only, except the fields of struct layer marked so.  A layer is immutable while
 * anybody refers to it.
 */
#ifndef GEMMD_WORKER_LAYERS_H
#define GEMMD_WORKER_LAYERS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/gemm.h"
#include "proto/validate.h"
#include "worker/histogram.h"
#include "worker/layer_memory.h"
#include "worker/pool.h"
#include "worker/scheduler.h"
#include "worker/window_list.h"

/* Whose bytes nobody has shown yet (read from a packed file): every creator has to. */
#define LAYER_OWNER_NONE UINT32_MAX

struct layer {
    /* read by the dispatcher */
    struct layer_view view;
    struct gemmd_job_shape shape;
    struct scheduler_layer scheduled; /* the dispatcher's */
    /* written by the dispatcher, read by the control thread (gemmd_counter_*) */
    uint64_t jobs, rows, exec_ns, panels, panel_rows, deadline_misses;
    struct histogram queue_histogram, exec_histogram;
    /* control thread */
    struct gemmd_layer_desc_abi desc;
    uint64_t content_id[2];
    uint64_t checksum[2]; /* XXH3-128 of memory: what the scrub compares */
    uint32_t owner_uid;   /* the user whose upload made it; may attach by the bare hash */
    uint32_t charged_uid; /* the user whose quota it counts against */
    uint32_t references;  /* open handles of sessions */
    uint64_t hits;        /* openings that found it here */
    uint32_t compared;    /* builds that read it on another thread: it is not moved */
    bool unverified;      /* another worker left it, and its checksum was not compared yet */
    bool pinned;          /* never evicted */
    bool condemned;       /* goes with its last reference, and nobody attaches to it */
    uint64_t last_use;    /* registry clock, for the LRU */
    uint64_t bytes;       /* of the pool */
    uint64_t page_bytes;  /* of the pages that hold it */
    void *memory;         /* from the pool: kernels/, see worker/layer_memory.h */
    const struct gemm_kernel *kernel; /* the worker's, or its sibling that the weights allow */
    uint64_t *freivalds;  /* for verify.c; NULL: not asked for, s4 weights, or no memory */
    uint64_t window_ns;   /* atomic; set by the control thread: scheduler_layer's */
    bool suspect;         /* atomic; set by the dispatcher: a check found a result wrong */
};

struct layers_config {
    struct pool *pool;
    const struct gemm_kernel *kernel;
    uint64_t uid_bytes_max;    /* of the layers one user made; 0: no limit */
    uint64_t unused_bytes_max; /* of the layers nobody has open and nothing pins */
    const struct window_list *windows; /* NULL: none */
    bool verified;             /* layers get what verify.c needs */
};

struct layers_report {
    uint64_t bytes, bytes_unused, bytes_pinned;
    uint64_t evictions;
    uint64_t scrub_bytes, scrub_passes, scrub_faults;
};

struct layers;

int layers_open(struct layers **out, const struct layers_config *config);
/* The layers' memory stays the pool's, whose end comes next: it may be kept for the next worker. */
void layers_close(struct layers **layers);

/* A layer's bytes were copied to where `view` looks: `on_move` makes it the layer's view before
 * anybody can see that the old place is used again.  Until it is set, nobody runs layers. */
typedef void layers_moved_fn(void *context, struct layer *layer, const struct layer_view *view);
void layers_set_on_move(struct layers *layers, layers_moved_fn *on_move, void *context);

const struct gemm_kernel *layers_kernel(const struct layers *layers);
/* Changes whenever a layer, a name or a pin does. */
uint64_t layers_generation(const struct layers *layers);
uint32_t layers_count(const struct layers *layers);
/* The index-th layer, and one of its names ("" when it has none); NULL past the last. */
const struct layer *layers_get(const struct layers *layers, uint32_t index, const char **name);
void layers_report(const struct layers *layers, struct layers_report *out);

/* By content.  The bare hash admits only the user whose bytes made the layer: another user has to
 * show the bytes themselves.  NULL when there is none. */
struct layer *layers_find(const struct layers *layers, const uint64_t content_id[2], uint32_t uid);
struct layer *layers_find_name(const struct layers *layers, const char *name);
/* The index-th (name, layer) pair; false past the last. */
bool layers_get_name(const struct layers *layers, uint32_t index, const char **name,
                     struct layer **layer);

/* Gives `layer` the name, "" does nothing.  NAME_TAKEN when a layer with other contents that
 * somebody has open, or the operator's, carries it; the name moves when nobody has. */
enum gemmd_status layers_set_name(struct layers *layers, struct layer *layer, const char *name);
/* The operator's form: the name moves whoever has it.  Open handles stay with the old layer, which
 * loses its pin with its last name.  OK or LAYERS_FULL. */
enum gemmd_status layers_switch_name(struct layers *layers, struct layer *layer, const char *name);
/* True when layers_switch_name of `count` new names would find room. */
bool layers_has_room_for_names(const struct layers *layers, uint32_t count);

/* Names equal to `name` or below it ("name/…").  unload: the names go, and the layers that are left
 * without one go with their last reference; *bytes counts those freed at once.  pin: sets or clears
 * it.  Both return how many names matched. */
uint32_t layers_unload(struct layers *layers, const char *name, uint64_t *bytes);
uint32_t layers_pin(struct layers *layers, const char *name, bool pin);

void layer_set_pinned(struct layers *layers, struct layer *layer, bool pinned);
void layer_reference(struct layers *layers, struct layer *layer);
/* May free it. */
void layer_release(struct layers *layers, struct layer *layer);
/* The same, but without a name it does not stay as an unused layer. */
void layer_release_or_drop(struct layers *layers, struct layer *layer);
/* Corrupted: no name, no attaching; freed now, or with its last reference. */
void layer_condemn(struct layers *layers, struct layer *layer);

/* Before a layer is used: false when its bytes are not those of its checksum; the caller withdraws
 * it.  Costs nothing but the first time, for a layer that another worker left. */
bool layer_verify(struct layer *layer);
/* Are there layers that nobody has verified yet? */
bool layers_are_unverified(const struct layers *layers);

/* Compares up to `bytes` of weights with their checksums, on from where the last call ended.  A
 * layer that changed is returned, NULL otherwise. */
struct layer *layers_scrub(struct layers *layers, uint64_t bytes);

/* A layer marked suspect, which it is no more then; NULL: none is.  *changed: its memory no longer
 * has its checksum, all of which is read (100 ms/GiB). */
struct layer *layers_take_suspect(struct layers *layers, bool *changed);

/* ---- layers_build.c -------------------------------------------------------------------------- */

enum layer_build_step { LAYER_BUILD_CHECK, LAYER_BUILD_MAP, LAYER_BUILD_FILL, LAYER_BUILD_DONE };

/* Packs an image into a layer, in steps whose slow parts may run on another thread: some 2 s for
 * 4 GiB in all.  Checks values and hash.  If the registry has the content already, the packed bytes
 * are compared and the existing layer is the result. */
struct layer_build {
    /* the caller's, from begin to DONE */
    struct gemmd_layer_desc_abi desc;
    const void *image; /* private, of the right size */
    uint64_t content_id[2];
    uint32_t uid;
    /* the result */
    enum gemmd_status status; /* OK, B_SCALE, BIAS, CONTENT, POOL_FULL, QUOTA, LAYERS_FULL,
                                 NO_MEMORY, INTERNAL */
    struct layer *layer;      /* with a reference of the caller's to release; NULL unless OK */
    uint64_t bytes_new;       /* 0: it was there */
    /* inside */
    enum layer_build_step step;
    const struct gemm_kernel *kernel;
    struct layer *twin; /* has the content; a reference is taken */
    bool same;          /* and the bytes */
    bool has_request;
    struct pool_request request;
    uint64_t checksum[2];
};

/* begin, then run and next in turn until next says false.  run: any thread; it touches nothing of
 * the registry that others could change meanwhile.  abort: instead of next, at any time that run is
 * not under way; the status is the caller's to choose. */
void layer_build_begin(struct layers *layers, struct layer_build *build);
void layer_build_run(struct layer_build *build);
bool layer_build_next(struct layers *layers, struct layer_build *build);
void layer_build_abort(struct layers *layers, struct layer_build *build);

/* All of it at once.  *out has no reference taken. */
enum gemmd_status layers_create(struct layers *layers, const struct gemmd_layer_desc_abi *desc,
                                const void *image, const uint64_t content_id[2], uint32_t uid,
                                struct layer **out, uint64_t *bytes_new);

/* A layer that is being filled: pool memory open for writing, in no table.  OK, QUOTA, POOL_FULL,
 * LAYERS_FULL, NO_MEMORY, INTERNAL. */
enum gemmd_status layers_draft(struct layers *layers, const struct gemmd_layer_desc_abi *desc,
                               uint32_t uid, struct layer **out);
void layers_discard(struct layers *layers, struct layer **draft);
/* Closes the memory and enters the draft, unless its twin (same desc, content and bytes) is there:
 * then the draft is freed and *draft is the twin.  The caller vouches for checksum and values.
 * Returns the bytes that are new. */
uint64_t layers_enter(struct layers *layers, struct layer **draft, const uint64_t content_id[2],
                      const uint64_t checksum[2], uint32_t owner_uid);

/* A layer whose memory another worker left (worker/handover.h): owned by the pool already, filled,
 * to be verified.  NULL: no memory. */
struct layer *layers_adopt(struct layers *layers, const struct layer *facts, void *memory);

#endif
