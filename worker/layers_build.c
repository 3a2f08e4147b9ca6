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
    layer_memory_view(layers->config.kernel, desc, layer->memory, &layer->view);
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

/* Pool memory for a layer, making room at the expense of unused ones. */
static bool allocate(struct layers *layers, uint64_t bytes, void **out)
{
    while (pool_alloc(layers->config.pool, bytes, out) < 0)
        if (!layers_evict_one(layers, false, 0))
            return false;
    return true;
}

enum gemmd_status layers_draft(struct layers *layers, const struct gemmd_layer_desc_abi *desc,
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
    draft->charged_uid = uid;
    if (!allocate(layers, bytes, &draft->memory)) {
        free(draft);
        return GEMMD_STATUS_POOL_FULL;
    }
    if (pool_write_begin(layers->config.pool, draft->memory) < 0) {
        pool_free(layers->config.pool, draft->memory);
        free(draft);
        return GEMMD_STATUS_INTERNAL;
    }
    layers->drafts++;
    *out = draft;
    return GEMMD_STATUS_OK;
}

static void end_writing(struct layers *layers, struct layer *draft)
{
    layers->drafts--;
    if (pool_write_end(layers->config.pool, draft->memory) < 0)
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
    layer->last_use = ++layers->clock;
    layers->table[layers->count++] = layer;
    layers->generation++;
}

uint64_t layers_enter(struct layers *layers, struct layer **draft_p, const uint64_t content_id[2],
                      const uint64_t checksum[2], uint32_t owner_uid)
{
    struct layer *draft = *draft_p, *twin = layers_find_content(layers, content_id);

    /* XXH3 resists accidents, not adversaries: a layer is shared only when the bytes really are
     * the same. */
    if (twin && memcmp(&twin->desc, &draft->desc, sizeof(draft->desc)) == 0 &&
        memcmp(twin->memory, draft->memory, draft->bytes) == 0) {
        layers_discard(layers, draft_p);
        if (twin->owner_uid == LAYER_OWNER_NONE) {
            twin->owner_uid = owner_uid; /* his bytes packed to these: he may attach again */
            layers->generation++;
        }
        *draft_p = twin;
        return 0;
    }
    end_writing(layers, draft);
    memcpy(draft->content_id, content_id, sizeof(draft->content_id));
    memcpy(draft->checksum, checksum, sizeof(draft->checksum));
    draft->owner_uid = owner_uid;
    insert(layers, draft);
    return draft->bytes;
}

enum gemmd_status layers_create(struct layers *layers, const struct gemmd_layer_desc_abi *desc,
                                const void *image, const uint64_t content_id[2], uint32_t uid,
                                struct layer **out, uint64_t *bytes_new)
{
    struct gemmd_layer_image parts;
    struct layer *present;
    uint64_t id[2], checksum[2];
    struct layer_hash hash;
    enum gemmd_status status = gemmd_validate_layer_desc(desc, &parts);

    if (status == GEMMD_STATUS_OK)
        status = gemmd_validate_layer_values(desc, &parts, image);
    if (status != GEMMD_STATUS_OK)
        return status;
    layer_content_id(desc, image, parts.bytes, id);
    if (id[0] != content_id[0] || id[1] != content_id[1])
        return GEMMD_STATUS_CONTENT;
    present = layers_find_content(layers, id);
    if (present)
        present->references++; /* so that making room below does not evict it */
    status = layers_draft(layers, desc, uid, out);
    if (present)
        present->references--;
    if (status != GEMMD_STATUS_OK)
        return status;
    layer_memory_fill(layers->config.kernel, desc, image, (*out)->memory);
    status = layer_memory_check(layers->config.kernel, desc, (*out)->memory);
    if (status != GEMMD_STATUS_OK) {
        layers_discard(layers, out);
        return status;
    }
    layer_hash_begin(&hash);
    layer_hash_add(&hash, (*out)->memory, (*out)->bytes);
    layer_hash_end(&hash, checksum);
    *bytes_new = layers_enter(layers, out, id, checksum, uid);
    return GEMMD_STATUS_OK;
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
    insert(layers, layer);
    return layer;
}
