/*
 * The registry of layers.  At most GEMMD_WORKER_LAYERS_MAX entries, looked up on the control plane
 * only, so a scan of the table is enough.
 */
#include "worker/layers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "kernels/pack.h"
#include "worker/log.h"

static_assert((int)GEMM_TYPE_U8 == GEMMD_ABI_TYPE_U8, "one numbering");
static_assert((int)GEMM_TYPE_S8 == GEMMD_ABI_TYPE_S8, "one numbering");
static_assert((int)GEMM_TYPE_S32 == GEMMD_ABI_TYPE_S32, "one numbering");
static_assert((int)GEMM_TYPE_F32 == GEMMD_ABI_TYPE_F32, "one numbering");
static_assert((int)GEMM_ACTIVATION_RELU == GEMMD_ABI_ACTIVATION_RELU, "one numbering");
static_assert(GEMM_K_MAX == GEMMD_K_MAX, "one limit");

/* Several names may lead to one layer. */
struct layer_name {
    char text[GEMMD_NAME_BYTES];
    struct layer *layer; /* NULL: free */
};

struct layers {
    struct pool *pool;
    const struct gemm_kernel *kernel;
    uint64_t clock;
    uint32_t count;
    struct layer *table[GEMMD_WORKER_LAYERS_MAX]; /* the first `count` */
    struct layer_name names[GEMMD_WORKER_LAYERS_MAX];
};

int layers_open(struct layers **out, struct pool *pool, const struct gemm_kernel *kernel)
{
    struct layers *layers = calloc(1, sizeof(*layers));

    *out = layers;
    if (!layers)
        return -ENOMEM;
    layers->pool = pool;
    layers->kernel = kernel;
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
    forget_names(layers, layer);
    pool_free(layers->pool, layer->memory);
    free(layer);
}

void layers_close(struct layers **layers_p)
{
    struct layers *layers = *layers_p;

    if (!layers)
        return;
    for (uint32_t i = 0; i < layers->count; i++)
        destroy(layers, layers->table[i]);
    free(layers);
    *layers_p = NULL;
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

static struct layer *find_content(const struct layers *layers, const uint64_t content_id[2])
{
    for (uint32_t i = 0; i < layers->count; i++)
        if (layers->table[i]->content_id[0] == content_id[0] &&
            layers->table[i]->content_id[1] == content_id[1])
            return layers->table[i];
    return NULL;
}

struct layer *layers_find(const struct layers *layers, const uint64_t content_id[2], uint32_t uid)
{
    struct layer *layer = find_content(layers, content_id);

    return layer && layer->owner_uid == uid ? layer : NULL;
}

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

enum gemmd_status layers_set_name(struct layers *layers, struct layer *layer, const char *name)
{
    struct layer_name *entry;

    if (!*name)
        return GEMMD_STATUS_OK;
    entry = find_name(layers, name);
    if (entry && entry->layer != layer && entry->layer->references)
        return GEMMD_STATUS_NAME_TAKEN;
    for (uint32_t i = 0; !entry && i < GEMMD_WORKER_LAYERS_MAX; i++)
        if (!layers->names[i].layer)
            entry = &layers->names[i];
    if (!entry)
        return GEMMD_STATUS_LAYERS_FULL;
    memset(entry->text, 0, sizeof(entry->text));
    memcpy(entry->text, name, strlen(name)); /* validated: shorter than GEMMD_NAME_BYTES */
    entry->layer = layer;
    return GEMMD_STATUS_OK;
}

/* ---- creation -------------------------------------------------------------------------------- */

static uint64_t round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* Where the parts of a packed layer lie in its memory. */
struct packed_layout {
    uint64_t offsets, scales, bias, bytes; /* panels at 0; each array is padded for the kernels */
};

static struct packed_layout packed_layout(const struct gemm_kernel *kernel,
                                          const struct gemmd_layer_desc_abi *desc)
{
    uint64_t array = round_up(desc->n, GEMM_NR_MAX) * sizeof(float);
    struct packed_layout layout;

    layout.offsets = round_up(gemm_packed_bytes(kernel, desc->n, desc->k), GEMM_ALIGN);
    layout.scales = layout.offsets + array;
    layout.bias = layout.scales + array;
    layout.bytes = layout.bias + array;
    return layout;
}

/* Writes panels and per-channel arrays to `memory` (zeroed, layout.bytes). */
static void fill_memory(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                        const struct gemmd_layer_image *parts, const char *image,
                        const struct packed_layout *layout, char *memory)
{
    const float *b_scales = (const float *)(const void *)(image + parts->scales_offset);
    const void *bias_in = image + parts->bias_offset;
    int32_t *offset = (int32_t *)(void *)(memory + layout->offsets);
    float *scale = (float *)(void *)(memory + layout->scales);
    float *bias = (float *)(void *)(memory + layout->bias);

    gemm_pack(kernel, desc->n, desc->k, (const int8_t *)image, desc->k, (int8_t *)memory, offset);
    gemm_offset(desc->n, (enum gemm_type)desc->a_type, desc->a_zero_point, offset,
                desc->bias_type == GEMMD_ABI_TYPE_S32 ? bias_in : NULL, offset);
    for (uint32_t j = 0; j < desc->n; j++)
        scale[j] = desc->a_scale * b_scales[desc->scale_count == 1 ? 0 : j];
    if (desc->bias_type == GEMMD_ABI_TYPE_F32)
        memcpy(bias, bias_in, (size_t)desc->n * sizeof(float));
}

static void set_up(struct layer *layer, const struct gemm_kernel *kernel,
                   const struct packed_layout *layout)
{
    const struct gemmd_layer_desc_abi *desc = &layer->desc;
    const char *memory = layer->memory;

    layer->weights = (struct gemm_weights){kernel, desc->n, desc->k, (const int8_t *)memory};
    layer->epilogue = (struct gemm_epilogue){
        .a_type = (enum gemm_type)desc->a_type,
        .c_type = (enum gemm_type)desc->c_type,
        .activation = (enum gemm_activation)desc->activation,
        .c_zero_point = desc->c_zero_point,
        .inverse_c_scale = 1.0f / desc->c_scale,
        .offset = (const int32_t *)(const void *)(memory + layout->offsets),
        .scale = (const float *)(const void *)(memory + layout->scales),
        .bias = (const float *)(const void *)(memory + layout->bias),
    };
    layer->shape = (struct gemmd_job_shape){
        .a_row_bytes = desc->k * gemmd_abi_type_bytes(desc->a_type),
        .c_row_bytes = desc->n * gemmd_abi_type_bytes(desc->c_type),
        .c_align = gemmd_abi_type_bytes(desc->c_type),
    };
}

/* Frees the layer nobody has open that was used longest ago; false when there is none. */
static bool evict_one(struct layers *layers)
{
    uint32_t victim = layers->count;

    for (uint32_t i = 0; i < layers->count; i++)
        if (layers->table[i]->references == 0 &&
            (victim == layers->count ||
             layers->table[i]->last_use < layers->table[victim]->last_use))
            victim = i;
    if (victim == layers->count)
        return false;
    log_info(LOG_TOPIC_LAYERS, "layer evicted: %llu bytes",
             (unsigned long long)layers->table[victim]->bytes);
    destroy(layers, layers->table[victim]);
    layers->table[victim] = layers->table[--layers->count];
    return true;
}

/* Pool memory for a layer, making room at the expense of unused ones. */
static int allocate(struct layers *layers, uint64_t bytes, void **out)
{
    int error;

    while ((error = pool_alloc(layers->pool, bytes, out)) < 0)
        if (!evict_one(layers))
            return error;
    return 0;
}

static void content_hash(const struct gemmd_layer_desc_abi *desc, const void *image, uint64_t bytes,
                         uint64_t out[2])
{
    XXH3_state_t *state = XXH3_createState();
    XXH128_hash_t hash = {0, 0};

    if (state) {
        XXH3_128bits_reset(state);
        XXH3_128bits_update(state, desc, sizeof(*desc));
        XXH3_128bits_update(state, image, bytes);
        hash = XXH3_128bits_digest(state);
        XXH3_freeState(state);
    }
    out[0] = hash.low64;
    out[1] = hash.high64;
}

/* Packs into fresh pool memory.  *out belongs to nobody yet. */
static enum gemmd_status pack(struct layers *layers, const struct gemmd_layer_desc_abi *desc,
                              const struct gemmd_layer_image *parts, const void *image,
                              struct layer **out)
{
    struct packed_layout layout = packed_layout(layers->kernel, desc);
    struct layer *layer = calloc(1, sizeof(*layer));
    int error;

    if (!layer)
        return GEMMD_STATUS_NO_MEMORY;
    error = allocate(layers, layout.bytes, &layer->memory);
    if (error < 0) {
        free(layer);
        return GEMMD_STATUS_POOL_FULL;
    }
    if (pool_write_begin(layers->pool, layer->memory) < 0) {
        pool_free(layers->pool, layer->memory);
        free(layer);
        return GEMMD_STATUS_INTERNAL;
    }
    fill_memory(layers->kernel, desc, parts, image, &layout, layer->memory);
    error = pool_write_end(layers->pool, layer->memory);
    if (error < 0)
        log_error(LOG_TOPIC_LAYERS, "weights stay writable: %s", strerror(-error));
    layer->desc = *desc;
    layer->bytes = layout.bytes;
    layer->page_bytes = pool_page_bytes(layers->pool, layer->memory);
    set_up(layer, layers->kernel, &layout);
    *out = layer;
    return GEMMD_STATUS_OK;
}

enum gemmd_status layers_create(struct layers *layers, const struct gemmd_layer_desc_abi *desc,
                                const void *image, const uint64_t content_id[2], uint32_t uid,
                                struct layer **out, uint64_t *bytes_new)
{
    struct gemmd_layer_image parts;
    struct layer *layer, *present;
    uint64_t hash[2];
    enum gemmd_status status = gemmd_validate_layer_desc(desc, &parts);

    if (status == GEMMD_STATUS_OK)
        status = gemmd_validate_layer_values(desc, &parts, image);
    if (status != GEMMD_STATUS_OK)
        return status;
    content_hash(desc, image, parts.bytes, hash);
    if (hash[0] != content_id[0] || hash[1] != content_id[1])
        return GEMMD_STATUS_CONTENT;
    if (layers->count == GEMMD_WORKER_LAYERS_MAX && !evict_one(layers))
        return GEMMD_STATUS_LAYERS_FULL;

    /* XXH3 resists accidents, not adversaries: another user's layer is shared only when the bytes
     * really are the same. */
    present = find_content(layers, content_id);
    if (present)
        present->references++; /* so that making room below does not evict it */
    status = pack(layers, desc, &parts, image, &layer);
    if (present)
        present->references--;
    if (status != GEMMD_STATUS_OK)
        return status;
    if (present && memcmp(&present->desc, desc, sizeof(*desc)) == 0 &&
        memcmp(present->memory, layer->memory, layer->bytes) == 0) {
        destroy(layers, layer);
        *out = present;
        *bytes_new = 0;
        return GEMMD_STATUS_OK;
    }
    layer->content_id[0] = content_id[0];
    layer->content_id[1] = content_id[1];
    layer->owner_uid = uid;
    layer->last_use = ++layers->clock;
    layers->table[layers->count++] = layer;
    *out = layer;
    *bytes_new = layer->bytes;
    return GEMMD_STATUS_OK;
}

void layer_reference(struct layers *layers, struct layer *layer)
{
    layer->references++;
    layer->last_use = ++layers->clock;
}

void layer_release(struct layers *layers, struct layer *layer)
{
    layer->references--;
    layer->last_use = ++layers->clock;
}
