/*
 * The registry of layers.  At most GEMMD_WORKER_LAYERS_MAX entries, looked up on the control plane
 * only, so a scan of the table is enough.
 */
#include "worker/layers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/layers_table.h"
#include "worker/log.h"

static bool may_move(void *context, void *owner)
{
    const struct layer *layer = owner;

    (void)context;
    return layer->compared == 0;
}

static void moved(void *context, void *owner, void *to)
{
    struct layers *layers = context;
    struct layer *layer = owner;
    struct layer_view view;

    layer->memory = to;
    layer->page_bytes = pool_page_bytes(layers->config.pool, to);
    layers->generation++;
    layer_memory_view(layer->kernel, &layer->desc, to, &view);
    if (layers->on_move)
        layers->on_move(layers->on_move_context, layer, &view);
    else
        layer->view = view;
}

void layers_set_on_move(struct layers *layers, layers_moved_fn *on_move, void *context)
{
    layers->on_move = on_move;
    layers->on_move_context = context;
}

int layers_open(struct layers **out, const struct layers_config *config)
{
    struct layers *layers = calloc(1, sizeof(*layers));

    *out = layers;
    if (!layers)
        return -ENOMEM;
    layers->config = *config;
    layers->mover = (struct pool_mover){may_move, moved, layers};
    pool_set_mover(config->pool, &layers->mover);
    return 0;
}

static void forget_names(struct layers *layers, const struct layer *layer)
{
    for (uint32_t i = 0; i < GEMMD_WORKER_LAYERS_MAX; i++)
        if (layers->names[i].layer == layer)
            layers->names[i] = (struct layer_name){.layer = NULL};
}

static void destroy(struct layers *layers, struct layer *layer)
{
    layers->generation++;
    forget_names(layers, layer);
    if (layers->scrubbing == layer)
        layers->scrubbing = NULL;
    pool_free(layers->config.pool, layer->memory);
    free(layer->freivalds);
    free(layer);
}

static void remove_at(struct layers *layers, uint32_t index)
{
    destroy(layers, layers->table[index]);
    layers->table[index] = layers->table[--layers->count];
}

static void remove_layer(struct layers *layers, const struct layer *layer)
{
    for (uint32_t i = 0; i < layers->count; i++)
        if (layers->table[i] == layer) {
            remove_at(layers, i);
            return;
        }
}

void layers_close(struct layers **layers_p)
{
    struct layers *layers = *layers_p;

    if (!layers)
        return;
    pool_set_mover(layers->config.pool, NULL);
    while (layers->count) {
        struct layer *layer = layers->table[--layers->count];

        free(layer->freivalds);
        free(layer);
    }
    free(layers);
    *layers_p = NULL;
}

/* ---- looking --------------------------------------------------------------------------------- */

const struct gemm_kernel *layers_kernel(const struct layers *layers)
{
    return layers->config.kernel;
}

uint64_t layers_generation(const struct layers *layers)
{
    return layers->generation;
}

uint32_t layers_count(const struct layers *layers)
{
    return layers->count;
}

const struct layer *layers_get(const struct layers *layers, uint32_t index, const char **name)
{
    if (index >= layers->count)
        return NULL;
    *name = "";
    for (uint32_t i = 0; i < GEMMD_WORKER_LAYERS_MAX; i++)
        if (layers->names[i].layer == layers->table[index]) {
            *name = layers->names[i].text;
            break;
        }
    return layers->table[index];
}

static bool is_unused(const struct layer *layer)
{
    return layer->references == 0 && !layer->pinned;
}

void layers_report(const struct layers *layers, struct layers_report *out)
{
    memset(out, 0, sizeof(*out));
    for (uint32_t i = 0; i < layers->count; i++) {
        const struct layer *layer = layers->table[i];

        out->bytes += layer->bytes;
        out->bytes_unused += is_unused(layer) ? layer->bytes : 0;
        out->bytes_pinned += layer->pinned ? layer->bytes : 0;
    }
    out->evictions = layers->evictions;
    out->scrub_bytes = layers->scrub_bytes;
    out->scrub_passes = layers->scrub_passes;
    out->scrub_faults = layers->scrub_faults;
}

uint64_t layers_bytes_of(const struct layers *layers, uint32_t uid)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < layers->count; i++)
        if (layers->table[i]->charged_uid == uid)
            bytes += layers->table[i]->bytes;
    return bytes;
}

struct layer *layers_find_content(const struct layers *layers, const uint64_t content_id[2])
{
    for (uint32_t i = 0; i < layers->count; i++)
        if (layers->table[i]->content_id[0] == content_id[0] &&
            layers->table[i]->content_id[1] == content_id[1] && !layers->table[i]->condemned)
            return layers->table[i];
    return NULL;
}

struct layer *layers_find(const struct layers *layers, const uint64_t content_id[2], uint32_t uid)
{
    struct layer *layer = layers_find_content(layers, content_id);

    return layer && layer->owner_uid == uid && uid != LAYER_OWNER_NONE ? layer : NULL;
}

/* ---- names ----------------------------------------------------------------------------------- */

static struct layer_name *find_name(const struct layers *layers, const char *name)
{
    for (uint32_t i = 0; i < GEMMD_WORKER_LAYERS_MAX; i++)
        if (layers->names[i].layer && strcmp(layers->names[i].text, name) == 0)
            return (struct layer_name *)&layers->names[i];
    return NULL;
}

struct layer *layers_find_name(const struct layers *layers, const char *name)
{
    const struct layer_name *entry = find_name(layers, name);

    return entry ? entry->layer : NULL;
}

bool layers_get_name(const struct layers *layers, uint32_t index, const char **name,
                     struct layer **layer)
{
    for (uint32_t i = 0; i < GEMMD_WORKER_LAYERS_MAX; i++)
        if (layers->names[i].layer && index-- == 0) {
            *name = layers->names[i].text;
            *layer = layers->names[i].layer;
            return true;
        }
    return false;
}

static bool has_name(const struct layers *layers, const struct layer *layer)
{
    for (uint32_t i = 0; i < GEMMD_WORKER_LAYERS_MAX; i++)
        if (layers->names[i].layer == layer)
            return true;
    return false;
}

static bool name_is_below(const char *text, const char *name)
{
    size_t length = strlen(name);

    return strncmp(text, name, length) == 0 && (text[length] == '\0' || text[length] == '/');
}

/* The longest that the operator gave one of its names. */
static void reckon_window(const struct layers *layers, struct layer *layer)
{
    const struct window_list *list = layers->config.windows;
    uint64_t ns = 0;

    for (uint32_t i = 0; list && list->count && i < GEMMD_WORKER_LAYERS_MAX; i++)
        for (uint32_t j = 0; layers->names[i].layer == layer && j < list->count; j++)
            if (list->windows[j].ns > ns &&
                name_is_below(layers->names[i].text, list->windows[j].name))
                ns = list->windows[j].ns;
    __atomic_store_n(&layer->window_ns, ns, __ATOMIC_RELAXED);
}

enum gemmd_status layers_switch_name(struct layers *layers, struct layer *layer, const char *name)
{
    struct layer_name *entry = find_name(layers, name);
    struct layer *before = entry ? entry->layer : NULL;

    if (before == layer)
        return GEMMD_STATUS_OK;
    for (uint32_t i = 0; !entry && i < GEMMD_WORKER_LAYERS_MAX; i++)
        if (!layers->names[i].layer)
            entry = &layers->names[i];
    if (!entry)
        return GEMMD_STATUS_LAYERS_FULL;
    memset(entry->text, 0, sizeof(entry->text));
    memcpy(entry->text, name, strlen(name)); /* validated: shorter than GEMMD_NAME_BYTES */
    entry->layer = layer;
    layers->generation++;
    reckon_window(layers, layer);
    if (before)
        reckon_window(layers, before);
    if (before && !has_name(layers, before))
        before->pinned = false;
    return GEMMD_STATUS_OK;
}

enum gemmd_status layers_set_name(struct layers *layers, struct layer *layer, const char *name)
{
    const struct layer *holder;

    if (!*name)
        return GEMMD_STATUS_OK;
    holder = layers_find_name(layers, name);
    if (holder && holder != layer && (holder->references || holder->pinned))
        return GEMMD_STATUS_NAME_TAKEN;
    return layers_switch_name(layers, layer, name);
}

bool layers_has_room_for_names(const struct layers *layers, uint32_t count)
{
    uint32_t room = 0;

    for (uint32_t i = 0; i < GEMMD_WORKER_LAYERS_MAX; i++)
        room += !layers->names[i].layer;
    return room >= count;
}

uint32_t layers_unload(struct layers *layers, const char *name, uint64_t *bytes)
{
    uint32_t count = 0;

    *bytes = 0;
    for (uint32_t i = 0; i < GEMMD_WORKER_LAYERS_MAX; i++) {
        struct layer *layer = layers->names[i].layer;

        if (!layer || !name_is_below(layers->names[i].text, name))
            continue;
        count++;
        layers->generation++;
        layers->names[i] = (struct layer_name){.layer = NULL};
        reckon_window(layers, layer);
        if (has_name(layers, layer))
            continue;
        layer->pinned = false;
        layer->condemned = true;
        if (layer->references == 0) {
            *bytes += layer->bytes;
            remove_layer(layers, layer);
        }
    }
    return count;
}

uint32_t layers_pin(struct layers *layers, const char *name, bool pin)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < GEMMD_WORKER_LAYERS_MAX; i++)
        if (layers->names[i].layer && name_is_below(layers->names[i].text, name)) {
            layer_set_pinned(layers, layers->names[i].layer, pin);
            count++;
        }
    return count;
}

/* ---- life ------------------------------------------------------------------------------------ */

bool layers_evict_one(struct layers *layers, bool charged_only, uint32_t uid)
{
    uint32_t victim = layers->count;

    for (uint32_t i = 0; i < layers->count; i++) {
        const struct layer *layer = layers->table[i];

        if (is_unused(layer) && (!charged_only || layer->charged_uid == uid) &&
            (victim == layers->count || layer->last_use < layers->table[victim]->last_use))
            victim = i;
    }
    if (victim == layers->count)
        return false;
    log_info(LOG_TOPIC_LAYERS, "layer evicted: %llu bytes",
             (unsigned long long)layers->table[victim]->bytes);
    remove_at(layers, victim);
    layers->evictions++;
    return true;
}

void layer_set_pinned(struct layers *layers, struct layer *layer, bool pinned)
{
    layer->pinned = pinned;
    layers->generation++;
}

void layer_reference(struct layers *layers, struct layer *layer)
{
    layer->references++;
    layer->last_use = ++layers->clock;
}

void layer_release(struct layers *layers, struct layer *layer)
{
    struct layers_report report;

    layer->last_use = ++layers->clock;
    if (--layer->references)
        return;
    if (layer->condemned) {
        remove_layer(layers, layer);
        return;
    }
    for (layers_report(layers, &report); report.bytes_unused > layers->config.unused_bytes_max;
         layers_report(layers, &report))
        if (!layers_evict_one(layers, false, 0))
            return;
}

void layer_release_or_drop(struct layers *layers, struct layer *layer)
{
    if (!has_name(layers, layer))
        layer->condemned = layer->references == 1;
    layer_release(layers, layer);
}

void layer_condemn(struct layers *layers, struct layer *layer)
{
    forget_names(layers, layer);
    layers->generation++;
    layer->pinned = false;
    layer->condemned = true;
    if (layer->references == 0)
        remove_layer(layers, layer);
}

/* ---- checksums ------------------------------------------------------------------------------- */

bool layer_verify(struct layer *layer)
{
    struct layer_hash hash;
    uint64_t found[2];

    if (!layer->unverified)
        return true;
    layer_hash_begin(&hash);
    layer_hash_add(&hash, layer->memory, layer->bytes);
    layer_hash_end(&hash, found);
    layer->unverified = found[0] != layer->checksum[0] || found[1] != layer->checksum[1];
    return !layer->unverified;
}

bool layers_are_unverified(const struct layers *layers)
{
    for (uint32_t i = 0; i < layers->count; i++)
        if (layers->table[i]->unverified)
            return true;
    return false;
}

/* The next layer; false: there is none. */
static bool scrub_on(struct layers *layers)
{
    if (layers->count == 0)
        return false;
    if (layers->scrub_next >= layers->count) {
        layers->scrub_next = 0;
        layers->scrub_passes++;
    }
    layers->scrubbing = layers->table[layers->scrub_next++];
    layers->scrubbed = 0;
    layer_hash_begin(&layers->scrub_hash);
    return true;
}

struct layer *layers_scrub(struct layers *layers, uint64_t bytes)
{
    while (bytes) {
        struct layer *layer = layers->scrubbing;
        uint64_t piece, checksum[2];

        if (!layer) {
            if (!scrub_on(layers))
                return NULL;
            layer = layers->scrubbing;
        }
        piece = layer->bytes - layers->scrubbed;
        piece = piece < bytes ? piece : bytes;
        layer_hash_add(&layers->scrub_hash, (const char *)layer->memory + layers->scrubbed, piece);
        layers->scrubbed += piece;
        layers->scrub_bytes += piece;
        bytes -= piece;
        if (layers->scrubbed < layer->bytes)
            return NULL;
        layers->scrubbing = NULL;
        layer_hash_end(&layers->scrub_hash, checksum);
        if (checksum[0] != layer->checksum[0] || checksum[1] != layer->checksum[1]) {
            layers->scrub_faults++;
            return layer;
        }
        layer->unverified = false;
        if (layers->scrub_next >= layers->count) /* one pass at most in a call */
            return NULL;
    }
    return NULL;
}

struct layer *layers_take_suspect(struct layers *layers, bool *changed)
{
    for (uint32_t i = 0; i < layers->count; i++) {
        struct layer *layer = layers->table[i];
        struct layer_hash hash;
        uint64_t checksum[2];

        if (!__atomic_load_n(&layer->suspect, __ATOMIC_RELAXED))
            continue;
        __atomic_store_n(&layer->suspect, false, __ATOMIC_RELAXED);
        layer_hash_begin(&hash);
        layer_hash_add(&hash, layer->memory, layer->bytes);
        layer_hash_end(&hash, checksum);
        *changed = memcmp(checksum, layer->checksum, sizeof(checksum)) != 0;
        layers->scrub_faults += *changed;
        return layer;
    }
    return NULL;
}
