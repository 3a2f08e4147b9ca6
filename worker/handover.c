/*
 * The table.  At most 4096 layers and names: 0.2 ms to write and hash when full, on the control
 * thread, after the requests that changed something.
 */
#include "worker/handover.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/layer_file.h"
#include "worker/log.h"
#include "worker/memory.h"

#define TABLE_MAGIC   UINT64_C(0x0054444d4d454700) /* bytes 00 "GEMMDT" 00 */
#define TABLE_VERSION 1
#define EXTENTS_MAX   4096

struct table_extent {
    uint64_t id, bytes;
    uint32_t rung, reserved;
};

struct table_layer {
    struct gemmd_layer_desc_abi desc;
    uint64_t content_id[2], checksum[2];
    uint64_t extent_id, offset, bytes;
    uint32_t owner_uid, charged_uid, pinned;
    uint32_t narrow_pairs; /* runs on gemm_narrow; as true as the checksum of what it was seen in */
};

struct table_name {
    char text[GEMMD_NAME_BYTES];
    uint32_t layer, reserved;
};

struct table {
    uint64_t magic;
    uint32_t version, memory_version;
    uint16_t kernel_id, nr, kr, level;
    uint64_t generation; /* grows; never 0 */
    uint32_t extents, layers, names, reserved;
    uint64_t hash[2]; /* of the whole struct, with zeros here */
    struct table_extent extent[EXTENTS_MAX];
    struct table_layer layer[GEMMD_WORKER_LAYERS_MAX];
    struct table_name name[GEMMD_WORKER_LAYERS_MAX];
};

static_assert(sizeof(struct table_layer) == 64 + 32 + 24 + 16, "no padding");
static_assert(sizeof(struct table_name) == 72, "no padding");

#define COPY_BYTES ((sizeof(struct table) + 4095) / 4096 * 4096)
#define FILE_BYTES (2 * COPY_BYTES)

struct handover {
    int fd;
    char *memory;
    struct table *draft;
    uint64_t generation;
    uint64_t layers_generation; /* of the registry when it was last written */
};

static void hash_table(struct table *table, uint64_t out[2])
{
    struct layer_hash hash;

    memset(table->hash, 0, sizeof(table->hash));
    layer_hash_begin(&hash);
    layer_hash_add(&hash, table, sizeof(*table));
    layer_hash_end(&hash, out);
}

/* ---- reading --------------------------------------------------------------------------------- */

static bool is_whole(struct table *table)
{
    uint64_t stored[2] = {table->hash[0], table->hash[1]}, hash[2];

    if (table->magic != TABLE_MAGIC || table->version != TABLE_VERSION || table->generation == 0 ||
        table->extents > EXTENTS_MAX || table->layers > GEMMD_WORKER_LAYERS_MAX ||
        table->names > GEMMD_WORKER_LAYERS_MAX)
        return false;
    hash_table(table, hash);
    return hash[0] == stored[0] && hash[1] == stored[1];
}

/* A private copy of the newest whole table; NULL: none. */
static struct table *read_newest(int fd)
{
    struct table *best = NULL;
    struct stat status;

    if (fstat(fd, &status) < 0 || (uint64_t)status.st_size != FILE_BYTES)
        return NULL;
    for (uint64_t copy = 0; copy < 2; copy++) {
        struct table *table = malloc(sizeof(*table));

        if (table && layer_file_read(fd, copy * COPY_BYTES, table, sizeof(*table)) == 0 &&
            is_whole(table) && (!best || table->generation > best->generation)) {
            free(best);
            best = table;
        } else {
            free(table);
        }
    }
    return best;
}

uint64_t handover_generation(int fd)
{
    struct table *table = read_newest(fd);
    uint64_t generation = table ? table->generation : 0;

    free(table);
    return generation;
}

static void adopt_extents(const struct table *table, struct pool *pool, handover_file_fn *file,
                          void *context)
{
    for (uint32_t i = 0; i < table->extents; i++) {
        struct pool_extent extent = {.id = table->extent[i].id,
                                     .bytes = table->extent[i].bytes,
                                     .rung = table->extent[i].rung};
        int error;

        extent.fd = file(context, extent.id);
        error = extent.fd < 0 ? -ENOENT : pool_adopt(pool, &extent);
        if (error == 0)
            continue;
        log_warn(LOG_TOPIC_POOL, "weights of an earlier worker, file %llu: %s",
                 (unsigned long long)extent.id, strerror(-error));
        if (extent.fd >= 0)
            close(extent.fd);
    }
}

static struct layer *adopt_layer(const struct table_layer *left, struct layers *layers,
                                 struct pool *pool)
{
    const struct gemm_kernel *kernel = layers_kernel(layers);
    struct layer facts = {.desc = left->desc,
                          .content_id = {left->content_id[0], left->content_id[1]},
                          .checksum = {left->checksum[0], left->checksum[1]},
                          .owner_uid = left->owner_uid,
                          .charged_uid = left->charged_uid,
                          .pinned = left->pinned != 0,
                          .bytes = left->bytes,
                          .kernel = left->narrow_pairs ? gemm_narrow(kernel) : kernel};
    struct gemmd_layer_image image;
    struct layer *layer = NULL;
    void *memory;

    if (!facts.kernel || gemmd_validate_layer_desc(&left->desc, &image) != GEMMD_STATUS_OK ||
        layer_memory_bytes(kernel, &left->desc) != left->bytes)
        return NULL;
    memory = pool_claim(pool, left->extent_id, left->offset, left->bytes);
    if (!memory)
        return NULL;
    /* Its checksum is compared before its first use: layer_verify. */
    if (layer_memory_check(kernel, &left->desc, memory) == GEMMD_STATUS_OK)
        layer = layers_adopt(layers, &facts, memory);
    if (!layer)
        pool_unclaim(pool, memory);
    return layer;
}

static void adopt_layers(const struct table *table, struct layers *layers, struct pool *pool,
                         struct layer **adopted, struct handover_result *result)
{
    for (uint32_t i = 0; i < table->layers; i++) {
        adopted[i] = adopt_layer(&table->layer[i], layers, pool);
        result->layers += adopted[i] != NULL;
        result->refused += adopted[i] == NULL;
        result->bytes += adopted[i] ? adopted[i]->bytes : 0;
    }
    for (uint32_t i = 0; i < table->names; i++) {
        const struct table_name *name = &table->name[i];

        if (name->layer < table->layers && adopted[name->layer] &&
            gemmd_validate_name(name->text, false) == GEMMD_STATUS_OK)
            layers_switch_name(layers, adopted[name->layer], name->text);
    }
}

int handover_restore(int fd, struct layers *layers, struct pool *pool, handover_file_fn *file,
                     void *context, struct handover_result *result)
{
    const struct gemm_kernel *kernel = layers_kernel(layers);
    struct table *table = read_newest(fd);
    struct layer **adopted = NULL;
    int error = 0;

    memset(result, 0, sizeof(*result));
    if (!table)
        return -EBADMSG;
    result->generation = table->generation;
    if (table->memory_version != LAYER_MEMORY_VERSION || table->kernel_id != kernel->id ||
        table->nr != kernel->nr || table->kr != kernel->kr ||
        table->level != (uint16_t)kernel->level)
        error = -EXDEV;
    if (error == 0) {
        adopted = calloc(table->layers + 1, sizeof(struct layer *));
        error = adopted ? 0 : -ENOMEM;
    }
    if (error == 0) {
        adopt_extents(table, pool, file, context);
        adopt_layers(table, layers, pool, adopted, result);
        pool_trim(pool);
    }
    free(adopted);
    free(table);
    return error;
}

/* ---- writing --------------------------------------------------------------------------------- */

int handover_open(struct handover **out, int fd)
{
    struct handover *handover = calloc(1, sizeof(*handover));
    int given = fd, error = -ENOMEM;
    struct stat status;

    *out = NULL;
    if (!handover)
        return -ENOMEM;
    handover->fd = -1;
    handover->draft = calloc(1, sizeof(*handover->draft));
    if (!handover->draft)
        goto fail;
    if (fd < 0)
        fd = memory_create_file("gemmd-table", FILE_BYTES, MEMORY_PAGE_BYTES);
    error = fd;
    if (fd < 0)
        goto fail;
    handover->fd = fd;
    error = -EBADMSG;
    if (fstat(fd, &status) < 0 || (uint64_t)status.st_size != FILE_BYTES)
        goto fail;
    handover->memory = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (handover->memory == MAP_FAILED) {
        error = -errno;
        handover->memory = NULL;
        goto fail;
    }
    error = memory_populate_existing(handover->memory, FILE_BYTES);
    if (error < 0)
        goto fail;
    handover->generation = handover_generation(fd);
    *out = handover;
    return 0;

fail:
    if (given >= 0)
        handover->fd = -1; /* the caller's still */
    handover_close(&handover);
    return error;
}

void handover_close(struct handover **handover_p)
{
    struct handover *handover = *handover_p;

    if (!handover)
        return;
    if (handover->memory)
        munmap(handover->memory, FILE_BYTES);
    if (handover->fd >= 0)
        close(handover->fd);
    free(handover->draft);
    free(handover);
    *handover_p = NULL;
}

int handover_fd(const struct handover *handover)
{
    return handover->fd;
}

static void fill_extents(struct table *table, const struct pool *pool)
{
    struct pool_extent extent;

    for (uint32_t i = 0; table->extents < EXTENTS_MAX && pool_get_extent(pool, i, &extent); i++)
        if (extent.fd >= 0)
            table->extent[table->extents++] =
                (struct table_extent){extent.id, extent.bytes, extent.rung, 0};
}

static bool has_extent(const struct table *table, uint64_t id)
{
    for (uint32_t i = 0; i < table->extents; i++)
        if (table->extent[i].id == id)
            return true;
    return false;
}

static uint32_t index_of(const struct layers *layers, const struct layer *layer)
{
    const struct layer *other;
    const char *name;

    for (uint32_t i = 0; (other = layers_get(layers, i, &name)) != NULL; i++)
        if (other == layer)
            return i;
    return UINT32_MAX; /* not covered: a name's layer is in the registry */
}

static void fill_layers(struct table *table, const struct layers *layers, const struct pool *pool)
{
    uint32_t *place = calloc(GEMMD_WORKER_LAYERS_MAX, sizeof(*place));
    const struct layer *layer;
    struct layer *named;
    const char *name;

    if (!place)
        return;
    for (uint32_t i = 0; (layer = layers_get(layers, i, &name)) != NULL; i++) {
        struct table_layer entry = {.desc = layer->desc,
                                    .content_id = {layer->content_id[0], layer->content_id[1]},
                                    .checksum = {layer->checksum[0], layer->checksum[1]},
                                    .bytes = layer->bytes,
                                    .owner_uid = layer->owner_uid,
                                    .charged_uid = layer->charged_uid,
                                    .pinned = layer->pinned,
                                    .narrow_pairs = layer->kernel->narrow_pairs};

        place[i] = UINT32_MAX;
        if (layer->condemned ||
            !pool_locate(pool, layer->memory, &entry.extent_id, &entry.offset) ||
            !has_extent(table, entry.extent_id))
            continue;
        place[i] = table->layers;
        table->layer[table->layers++] = entry;
    }
    for (uint32_t i = 0; layers_get_name(layers, i, &name, &named); i++) {
        uint32_t index = index_of(layers, named);
        struct table_name *entry = &table->name[table->names];

        if (index == UINT32_MAX || place[index] == UINT32_MAX)
            continue;
        memcpy(entry->text, name, strlen(name)); /* zeroed before */
        entry->layer = place[index];
        table->names++;
    }
    free(place);
}

void handover_write(struct handover *handover, const struct layers *layers,
                    const struct pool *pool)
{
    const struct gemm_kernel *kernel = layers_kernel(layers);
    struct table *table = handover->draft;
    uint64_t hash[2];

    if (handover->layers_generation == layers_generation(layers) && handover->generation)
        return;
    handover->layers_generation = layers_generation(layers);
    memset(table, 0, sizeof(*table));
    table->magic = TABLE_MAGIC;
    table->version = TABLE_VERSION;
    table->memory_version = LAYER_MEMORY_VERSION;
    table->kernel_id = kernel->id;
    table->nr = kernel->nr;
    table->kr = kernel->kr;
    table->level = (uint16_t)kernel->level;
    table->generation = ++handover->generation;
    fill_extents(table, pool);
    fill_layers(table, layers, pool);
    hash_table(table, hash);
    memcpy(table->hash, hash, sizeof(hash));
    /* A reader, or a crash, in the middle finds a wrong hash here and the other copy whole. */
    memcpy(handover->memory + table->generation % 2 * COPY_BYTES, table, sizeof(*table));
}
