/*
 * Each layer goes from the file to pool memory and is hashed there, piece by piece; or, when the
 * file is for another kernel, its image goes to private memory, is checked as a client's would be,
 * and packed.  Packing one layer is a single slice: 4 MiB take about a millisecond.
 */
#include "worker/loading.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/log.h"

/* Read, copied and hashed between two looks at the clock's other users. */
#define PIECE_BYTES (UINT64_C(1) << 20)

struct loading {
    struct layers *layers;
    int fd;
    uint32_t uid;
    char prefix[GEMMD_NAME_BYTES];
    struct layer_file file;
    const struct gemm_kernel *kernel;
    bool use_memory;          /* the file is packed for our kernel */
    uint32_t next;            /* entry that is being loaded */
    struct layer *draft;      /* its layer, or */
    char *image;              /* its image */
    uint64_t done;            /* bytes of it */
    struct layer_hash hash;
    struct layer **loaded;    /* the entries before `next`; each holds a reference */
};

static void full_name(const struct loading *loading, uint32_t index, char out[GEMMD_NAME_BYTES])
{
    const char *name = loading->file.entries[index].name;
    int length = *loading->prefix
                     ? snprintf(out, GEMMD_NAME_BYTES, "%s/%s", loading->prefix, name)
                     : snprintf(out, GEMMD_NAME_BYTES, "%s", name);

    if (length >= GEMMD_NAME_BYTES) /* excluded by check_prefix */
        out[0] = '\0';
}

static enum gemmd_status check_prefix(const struct loading *loading,
                                      struct layer_file_error *error)
{
    for (uint32_t i = 0; i < loading->file.header.layer_count; i++) {
        const char *name = loading->file.entries[i].name;

        if (strlen(loading->prefix) + 1 + strlen(name) >= GEMMD_NAME_BYTES)
            return layer_file_refuse(error, name, "name: longer than %d bytes with the prefix",
                                     GEMMD_NAME_BYTES - 1);
    }
    return GEMMD_STATUS_OK;
}

/* A file for another kernel needs every image. */
static enum gemmd_status check_kernel(struct loading *loading, struct layer_file_error *error)
{
    const struct layer_file *file = &loading->file;

    loading->kernel = layers_kernel(loading->layers);
    loading->use_memory = layer_file_is_for(file, loading->kernel);
    for (uint32_t i = 0; i < file->header.layer_count; i++) {
        const struct layer_file_entry *entry = &file->entries[i];

        uint64_t needed = layer_memory_bytes(loading->kernel, &entry->desc);

        if (loading->use_memory && entry->memory_bytes && entry->memory_bytes != needed)
            return layer_file_refuse(error, entry->name, "memory: %llu bytes instead of %llu",
                                     (unsigned long long)entry->memory_bytes,
                                     (unsigned long long)needed);
        if (!(loading->use_memory && entry->memory_bytes) && !entry->image_bytes)
            return layer_file_refuse(error, entry->name,
                                     "packed for %s only, without raw weights; this worker runs %s",
                                     file->header.kernel_name, loading->kernel->name);
    }
    return GEMMD_STATUS_OK;
}

enum gemmd_status loading_open(struct loading **out, struct layers *layers, int fd, uint32_t uid,
                               const char *prefix, struct loading_result *result)
{
    struct loading *loading = calloc(1, sizeof(*loading));
    enum gemmd_status status;

    memset(result, 0, sizeof(*result));
    *out = loading;
    if (!loading) {
        close(fd);
        return GEMMD_STATUS_NO_MEMORY;
    }
    loading->layers = layers;
    loading->fd = fd;
    loading->uid = uid;
    memcpy(loading->prefix, prefix, strnlen(prefix, GEMMD_NAME_BYTES - 1));
    status = layer_file_open(&loading->file, fd, &result->error);
    if (status == GEMMD_STATUS_OK)
        status = check_prefix(loading, &result->error);
    if (status == GEMMD_STATUS_OK)
        status = check_kernel(loading, &result->error);
    if (status == GEMMD_STATUS_OK) {
        loading->loaded = calloc(loading->file.header.layer_count, sizeof(*loading->loaded));
        status = loading->loaded ? GEMMD_STATUS_OK : GEMMD_STATUS_NO_MEMORY;
    }
    if (status != GEMMD_STATUS_OK)
        loading_close(out);
    return status;
}

static void drop_image(struct loading *loading, const struct layer_file_entry *entry)
{
    if (loading->image)
        munmap(loading->image, entry->image_bytes);
    loading->image = NULL;
}

void loading_close(struct loading **loading_p)
{
    struct loading *loading = *loading_p;

    if (!loading)
        return;
    if (loading->draft)
        layers_discard(loading->layers, &loading->draft);
    if (loading->image)
        drop_image(loading, &loading->file.entries[loading->next]);
    for (uint32_t i = 0; i < loading->next && loading->loaded; i++)
        layer_release_or_drop(loading->layers, loading->loaded[i]);
    free(loading->loaded);
    layer_file_close(&loading->file);
    close(loading->fd);
    free(loading);
    *loading_p = NULL;
}

/* ---- one layer ------------------------------------------------------------------------------- */

static enum gemmd_status fault(const struct layer_file_entry *entry, enum gemmd_status status,
                               struct layer_file_error *error)
{
    if (status != GEMMD_STATUS_OK)
        layer_file_refuse(error, entry->name, "%s", gemmd_status_text_of(status));
    return status;
}

static enum gemmd_status keep(struct loading *loading, struct layer *layer)
{
    layer_reference(loading->layers, layer);
    loading->loaded[loading->next++] = layer;
    return GEMMD_STATUS_OK;
}

static enum gemmd_status begin_layer(struct loading *loading, const struct layer_file_entry *entry,
                                     struct layer_file_error *error)
{
    struct layer *present;
    char name[GEMMD_NAME_BYTES];
    void *image;

    /* Restarted with the same model, or loaded twice: nothing to read. */
    full_name(loading, loading->next, name);
    present = layers_find_name(loading->layers, name);
    if (present && !layer_verify(present)) {
        layer_condemn(loading->layers, present); /* nobody has opened it yet */
        present = NULL;
    }
    if (present &&
        memcmp(present->content_id, entry->content_id, sizeof(entry->content_id)) == 0 &&
        memcmp(&present->desc, &entry->desc, sizeof(entry->desc)) == 0)
        return keep(loading, present);
    loading->done = 0;
    layer_hash_begin(&loading->hash);
    if (loading->use_memory && entry->memory_bytes)
        return fault(entry, layers_draft(loading->layers, &entry->desc, loading->uid,
                                         &loading->draft), error);
    image = mmap(NULL, entry->image_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                 0);
    if (image == MAP_FAILED)
        return fault(entry, GEMMD_STATUS_NO_MEMORY, error);
    loading->image = image;
    return GEMMD_STATUS_OK;
}

static enum gemmd_status end_draft(struct loading *loading, const struct layer_file_entry *entry,
                                   struct loading_result *result)
{
    struct layer *layer = loading->draft;
    uint64_t hash[2];
    enum gemmd_status status;

    layer_hash_end(&loading->hash, hash);
    if (hash[0] != entry->memory_hash[0] || hash[1] != entry->memory_hash[1])
        return layer_file_refuse(&result->error, entry->name,
                                 "memory_hash: the packed weights have changed");
    status = layer_memory_check(loading->kernel, &entry->desc, layer->memory);
    if (status != GEMMD_STATUS_OK)
        return fault(entry, status, &result->error);
    loading->draft = NULL;
    result->bytes_new += layers_enter(loading->layers, &layer, entry->content_id, hash,
                                      LAYER_OWNER_NONE);
    return keep(loading, layer);
}

static enum gemmd_status end_image(struct loading *loading, const struct layer_file_entry *entry,
                                   struct loading_result *result)
{
    struct layer *layer;
    uint64_t bytes_new = 0;
    enum gemmd_status status = layers_create(loading->layers, &entry->desc, loading->image,
                                             entry->content_id, loading->uid, &layer, &bytes_new);

    drop_image(loading, entry);
    if (status != GEMMD_STATUS_OK)
        return fault(entry, status, &result->error);
    result->bytes_new += bytes_new;
    return keep(loading, layer);
}

/* A piece of the current layer. */
static enum gemmd_status step_layer(struct loading *loading, struct loading_result *result)
{
    const struct layer_file_entry *entry = &loading->file.entries[loading->next];
    bool memory = loading->draft != NULL;
    char *to = memory ? loading->draft->memory : loading->image;
    uint64_t bytes = memory ? entry->memory_bytes : entry->image_bytes;
    uint64_t offset = memory ? entry->memory_offset : entry->image_offset;
    uint64_t piece = bytes - loading->done < PIECE_BYTES ? bytes - loading->done : PIECE_BYTES;
    int error = layer_file_read(loading->fd, offset + loading->done, to + loading->done, piece);

    if (error < 0)
        return layer_file_refuse(&result->error, entry->name, "%s: %s",
                                 memory ? "memory" : "image",
                                 error == -ENODATA ? "the file was cut" : strerror(-error));
    if (memory) {
        layer_hash_add(&loading->hash, to + loading->done, piece);
        if (loading->done == 0 || loading->draft->kernel != loading->kernel)
            loading->draft->kernel = layer_memory_kernel(loading->kernel, &entry->desc, to,
                                                         loading->done, loading->done + piece);
    }
    loading->done += piece;
    if (loading->done < bytes)
        return GEMMD_STATUS_OK;
    return memory ? end_draft(loading, entry, result) : end_image(loading, entry, result);
}

/* All layers are there: from here on the names mean the new ones. */
static enum gemmd_status publish(struct loading *loading, struct loading_result *result)
{
    uint32_t count = loading->file.header.layer_count;

    if (!layers_has_room_for_names(loading->layers, count))
        return GEMMD_STATUS_LAYERS_FULL;
    for (uint32_t i = 0; i < count; i++) {
        char name[GEMMD_NAME_BYTES];

        full_name(loading, i, name);
        layers_switch_name(loading->layers, loading->loaded[i], name);
        layer_set_pinned(loading->layers, loading->loaded[i], true);
    }
    result->layers = count;
    return GEMMD_STATUS_OK;
}

bool loading_step(struct loading *loading, uint64_t bytes, enum gemmd_status *status,
                  struct loading_result *result)
{
    *status = GEMMD_STATUS_OK;
    for (uint64_t done = 0; done < bytes; done += PIECE_BYTES) {
        if (loading->next == loading->file.header.layer_count) {
            *status = publish(loading, result);
            return true;
        }
        if (!loading->draft && !loading->image)
            *status = begin_layer(loading, &loading->file.entries[loading->next], &result->error);
        if (*status == GEMMD_STATUS_OK && (loading->draft || loading->image))
            *status = step_layer(loading, result);
        if (*status != GEMMD_STATUS_OK)
            return true;
    }
    return false;
}
