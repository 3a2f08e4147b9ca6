/*
 * How layers come into the registry.  A draft owns pool memory that is open for writing; it enters
 * the table when it is complete, or vanishes.
 */
#include "worker/layers.h"

#include <stdlib.h>
#include <string.h>

#include "worker/freivalds.h"
#include "worker/layers_table.h"
#include "worker/log.h"

static void set_up(struct layers *layers, struct layer *layer)
{
    const struct gemmd_layer_desc_abi *desc = &layer->desc;

    layer->suspect = false;
    layer->page_bytes = pool_page_bytes(layers->config.pool, layer->memory);
    layer_memory_view(layer->kernel, desc, layer->memory, &layer->view);
    layer->freivalds =
        layers->config.verified && layer->view.s8.panels ? freivalds_weights(&layer->view) : NULL;
    layer->shape = (struct gemmd_job_shape){
        .a_row_bytes = gemmd_abi_a_row_bytes(desc),
        .c_row_bytes = desc->n * gemmd_abi_type_bytes(desc->c_type),
        .c_align = gemmd_abi_type_bytes(desc->c_type),
        .residual_element = gemmd_abi_type_bytes(desc->residual_type),
    };
}

/* Makes room under the user's quota at the expense of his own unused layers. */
static bool fits_quota(struct layers *layers, uint32_t uid, uint64_t bytes)
{
    uint64_t max = layers->config.uid_bytes_max;

    if (max == 0)
        return true;
    if (bytes > max)
        return false;
    while (layers_bytes_of(layers, uid) > max - bytes)
        if (!layers_evict_one(layers, true, uid))
            return false;
    return true;
}

/* A draft without memory; it has its place in the table. */
static enum gemmd_status draft_open(struct layers *layers, const struct gemmd_layer_desc_abi *desc,
                                    uint32_t uid, struct layer **out)
{
    uint64_t bytes = layer_memory_bytes(layers->config.kernel, desc);
    struct layer *draft;

    *out = NULL;
    if (!fits_quota(layers, uid, bytes))
        return GEMMD_STATUS_QUOTA;
    if (layers->count + layers->drafts >= GEMMD_WORKER_LAYERS_MAX &&
        !layers_evict_one(layers, false, 0))
        return GEMMD_STATUS_LAYERS_FULL;
    draft = calloc(1, sizeof(*draft));
    if (!draft)
        return GEMMD_STATUS_NO_MEMORY;
    draft->desc = *desc;
    draft->bytes = bytes;
    draft->kernel = layers->config.kernel;
    draft->charged_uid = uid;
    layers->drafts++;
    *out = draft;
    return GEMMD_STATUS_OK;
}

enum gemmd_status layers_draft(struct layers *layers, const struct gemmd_layer_desc_abi *desc,
                               uint32_t uid, struct layer **out)
{
    enum gemmd_status status = draft_open(layers, desc, uid, out);

    while (status == GEMMD_STATUS_OK &&
           pool_alloc(layers->config.pool, (*out)->bytes, &(*out)->memory) < 0)
        if (!layers_evict_one(layers, false, 0)) {
            layers_discard(layers, out);
            return GEMMD_STATUS_POOL_FULL;
        }
    return status;
}

static void end_writing(struct layers *layers, struct layer *draft)
{
    layers->drafts--;
    if (draft->memory && pool_write_end(layers->config.pool, draft->memory) < 0)
        log_error(LOG_TOPIC_LAYERS, "weights stay writable");
}

void layers_discard(struct layers *layers, struct layer **draft_p)
{
    struct layer *draft = *draft_p;

    if (!draft)
        return;
    end_writing(layers, draft);
    pool_free(layers->config.pool, draft->memory);
    free(draft);
    *draft_p = NULL;
}

static void insert(struct layers *layers, struct layer *layer)
{
    set_up(layers, layer);
    pool_set_owner(layers->config.pool, layer->memory, layer);
    layer->last_use = ++layers->clock;
    layers->table[layers->count++] = layer;
    layers->generation++;
}

/* The draft's bytes are the twin's: nothing is new. */
static void become_twin(struct layers *layers, struct layer **draft_p, struct layer *twin,
                        uint32_t owner_uid)
{
    layers_discard(layers, draft_p);
    if (twin->owner_uid == LAYER_OWNER_NONE) {
        twin->owner_uid = owner_uid; /* his bytes packed to these: he may attach again */
        layers->generation++;
    }
    *draft_p = twin;
}

/* XXH3 resists accidents, not adversaries: a layer is shared only when the bytes really are the
 * same. */
static bool is_twin(const struct layer *twin, const struct layer *draft)
{
    return memcmp(&twin->desc, &draft->desc, sizeof(draft->desc)) == 0 &&
           memcmp(twin->memory, draft->memory, draft->bytes) == 0;
}

/* `compared`: the twin that is_twin has spoken of, and what it said; NULL: none. */
static uint64_t enter(struct layers *layers, struct layer **draft_p, const uint64_t content_id[2],
                      const uint64_t checksum[2], uint32_t owner_uid, const struct layer *compared,
                      bool same)
{
    struct layer *draft = *draft_p, *twin = layers_find_content(layers, content_id);

    if (twin && (twin == compared ? same : is_twin(twin, draft))) {
        become_twin(layers, draft_p, twin, owner_uid);
        return 0;
    }
    end_writing(layers, draft);
    memcpy(draft->content_id, content_id, sizeof(draft->content_id));
    memcpy(draft->checksum, checksum, sizeof(draft->checksum));
    draft->owner_uid = owner_uid;
    insert(layers, draft);
    return draft->bytes;
}

uint64_t layers_enter(struct layers *layers, struct layer **draft_p, const uint64_t content_id[2],
                      const uint64_t checksum[2], uint32_t owner_uid)
{
    return enter(layers, draft_p, content_id, checksum, owner_uid, NULL, false);
}

/* ---- from an image --------------------------------------------------------------------------- */

static void check(struct layer_build *build)
{
    struct gemmd_layer_image parts;
    uint64_t id[2];

    build->status = gemmd_validate_layer_desc(&build->desc, &parts);
    if (build->status == GEMMD_STATUS_OK)
        build->status = gemmd_validate_layer_values(&build->desc, &parts, build->image);
    if (build->status != GEMMD_STATUS_OK)
        return;
    layer_content_id(&build->desc, build->image, parts.bytes, id);
    if (id[0] != build->content_id[0] || id[1] != build->content_id[1])
        build->status = GEMMD_STATUS_CONTENT;
}

static void fill(struct layer_build *build)
{
    struct layer *draft = build->layer;
    struct layer_hash hash;

    layer_memory_fill(build->kernel, &build->desc, build->image, draft->memory);
    build->status = layer_memory_check(build->kernel, &build->desc, draft->memory);
    if (build->status != GEMMD_STATUS_OK)
        return;
    draft->kernel =
        layer_memory_kernel(build->kernel, &build->desc, draft->memory, 0, draft->bytes);
    layer_hash_begin(&hash);
    layer_hash_add(&hash, draft->memory, draft->bytes);
    layer_hash_end(&hash, build->checksum);
    build->same = build->twin && is_twin(build->twin, draft);
}

void layer_build_run(struct layer_build *build)
{
    switch (build->step) {
    case LAYER_BUILD_CHECK:
        check(build);
        break;
    case LAYER_BUILD_MAP:
        pool_request_prepare(&build->request);
        break;
    case LAYER_BUILD_FILL:
        fill(build);
        break;
    case LAYER_BUILD_DONE:
        break;
    }
}

/* Room of the pool's, at the expense of unused layers; on with the next step. */
static enum gemmd_status ask_for_memory(struct layers *layers, struct layer_build *build)
{
    while (pool_request_begin(layers->config.pool, build->layer->bytes, &build->request) < 0)
        if (!layers_evict_one(layers, false, 0))
            return GEMMD_STATUS_POOL_FULL;
    build->step = LAYER_BUILD_MAP;
    build->has_request = true;
    return GEMMD_STATUS_OK;
}

static enum gemmd_status end_map(struct layers *layers, struct layer_build *build)
{
    build->has_request = false;
    if (pool_request_end(layers->config.pool, &build->request, &build->layer->memory) == 0) {
        build->step = LAYER_BUILD_FILL;
        return GEMMD_STATUS_OK;
    }
    return layers_evict_one(layers, false, 0) ? ask_for_memory(layers, build)
                                              : GEMMD_STATUS_POOL_FULL;
}

static enum gemmd_status end_step(struct layers *layers, struct layer_build *build)
{
    struct layer *draft;
    enum gemmd_status status;

    switch (build->step) {
    case LAYER_BUILD_CHECK:
        build->twin = layers_find_content(layers, build->content_id);
        if (build->twin) {
            build->twin->references++; /* it stays, and making room does not evict it */
            build->twin->compared++;
        }
        status = draft_open(layers, &build->desc, build->uid, &draft);
        build->layer = draft;
        return status == GEMMD_STATUS_OK ? ask_for_memory(layers, build) : status;
    case LAYER_BUILD_MAP:
        return end_map(layers, build);
    case LAYER_BUILD_FILL:
        if (!build->same && !fits_quota(layers, build->uid, build->layer->bytes))
            return GEMMD_STATUS_QUOTA; /* others of his came meanwhile */
        build->bytes_new = enter(layers, &build->layer, build->content_id, build->checksum,
                                 build->uid, build->twin, build->same);
        layer_reference(layers, build->layer);
        break;
    case LAYER_BUILD_DONE:
        break;
    }
    build->step = LAYER_BUILD_DONE;
    return GEMMD_STATUS_OK;
}

void layer_build_begin(struct layers *layers, struct layer_build *build)
{
    build->kernel = layers->config.kernel;
    build->step = LAYER_BUILD_CHECK;
}

static void end(struct layers *layers, struct layer_build *build)
{
    build->step = LAYER_BUILD_DONE;
    if (!build->twin)
        return;
    build->twin->compared--;
    layer_release(layers, build->twin);
    build->twin = NULL;
}

bool layer_build_next(struct layers *layers, struct layer_build *build)
{
    if (build->status == GEMMD_STATUS_OK)
        build->status = end_step(layers, build);
    if (build->status != GEMMD_STATUS_OK)
        layer_build_abort(layers, build);
    else if (build->step == LAYER_BUILD_DONE)
        end(layers, build);
    return build->step != LAYER_BUILD_DONE;
}

void layer_build_abort(struct layers *layers, struct layer_build *build)
{
    if (build->step == LAYER_BUILD_DONE)
        return;
    if (build->has_request)
        pool_request_end(layers->config.pool, &build->request, &build->layer->memory);
    layers_discard(layers, &build->layer);
    end(layers, build);
}

enum gemmd_status layers_create(struct layers *layers, const struct gemmd_layer_desc_abi *desc,
                                const void *image, const uint64_t content_id[2], uint32_t uid,
                                struct layer **out, uint64_t *bytes_new)
{
    struct layer_build build = {.desc = *desc,
                                .image = image,
                                .content_id = {content_id[0], content_id[1]},
                                .uid = uid};

    layer_build_begin(layers, &build);
    do
        layer_build_run(&build);
    while (layer_build_next(layers, &build));
    *out = build.layer;
    *bytes_new = build.bytes_new;
    if (build.status == GEMMD_STATUS_OK)
        build.layer->references--;
    return build.status;
}

struct layer *layers_adopt(struct layers *layers, const struct layer *facts, void *memory)
{
    struct layer *layer;

    if (layers->count + layers->drafts >= GEMMD_WORKER_LAYERS_MAX)
        return NULL;
    layer = malloc(sizeof(*layer));
    if (!layer)
        return NULL;
    *layer = *facts;
    layer->memory = memory;
    layer->references = 0;
    layer->unverified = true;
    insert(layers, layer);
    return layer;
}
