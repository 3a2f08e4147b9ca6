/*
 * Reader of packed layer files.  pread into private memory, never a mapping: whoever truncates the
 * file meanwhile causes a short read, not SIGBUS, and what was checked cannot change afterwards.
 */
#include "worker/layer_file.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/validate.h"
#include "worker/layer_memory.h"

enum gemmd_status layer_file_refuse(struct layer_file_error *error, const char *layer,
                                    const char *format, ...)
{
    char reason[112];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(reason, sizeof(reason), format, arguments);
    va_end(arguments);
    if (layer)
        snprintf(error->text, sizeof(error->text), "layer '%.*s': %s", GEMMD_NAME_BYTES - 1, layer,
                 reason);
    else
        snprintf(error->text, sizeof(error->text), "%s", reason);
    for (char *at = error->text; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 127)
            *at = '?';
    return GEMMD_STATUS_LAYER_FILE;
}

int layer_file_read(int fd, uint64_t offset, void *out, uint64_t bytes)
{
    char *to = out;

    while (bytes) {
        ssize_t count = pread(fd, to, bytes, (off_t)offset);

        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return count < 0 ? -errno : -ENODATA;
        to += count;
        offset += (uint64_t)count;
        bytes -= (uint64_t)count;
    }
    return 0;
}

static void hash_of(const void *bytes, uint64_t count, uint64_t out[2])
{
    struct layer_hash hash;

    layer_hash_begin(&hash);
    layer_hash_add(&hash, bytes, count);
    layer_hash_end(&hash, out);
}

static bool hash_is(const void *bytes, uint64_t count, const uint64_t expected[2])
{
    uint64_t hash[2];

    hash_of(bytes, count, hash);
    return hash[0] == expected[0] && hash[1] == expected[1];
}

void layer_file_seal(struct layer_file_header *header, const struct layer_file_entry *entries)
{
    hash_of(entries, header->layer_count * sizeof(*entries), header->table_hash);
    hash_of(header, offsetof(struct layer_file_header, header_hash), header->header_hash);
}

static uint64_t round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* ---- header ---------------------------------------------------------------------------------- */

static enum gemmd_status read_header(struct layer_file_header *header, int fd,
                                     struct layer_file_error *error)
{
    static const uint8_t zeros[sizeof(header->reserved)];
    struct stat status;
    int result;

    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return layer_file_refuse(error, NULL, "file: not a regular file");
    result = layer_file_read(fd, 0, header, sizeof(*header));
    if (result == -ENODATA)
        return layer_file_refuse(error, NULL, "header: the file is shorter than %zu bytes",
                                 sizeof(*header));
    if (result < 0)
        return layer_file_refuse(error, NULL, "header: %s", strerror(-result));
    if (header->magic != LAYER_FILE_MAGIC)
        return layer_file_refuse(error, NULL, "magic: not a packed layer file");
    if (header->version != LAYER_FILE_VERSION)
        return layer_file_refuse(error, NULL, "version: %u, this program reads %u; pack it again",
                                 header->version, LAYER_FILE_VERSION);
    if (!hash_is(header, offsetof(struct layer_file_header, header_hash), header->header_hash))
        return layer_file_refuse(error, NULL, "header_hash: the header has changed");
    if (header->layer_count == 0 || header->layer_count > GEMMD_WORKER_LAYERS_MAX)
        return layer_file_refuse(error, NULL, "layer_count: %u, the limit is %u",
                                 header->layer_count, GEMMD_WORKER_LAYERS_MAX);
    if (!memchr(header->kernel_name, 0, sizeof(header->kernel_name)))
        return layer_file_refuse(error, NULL, "kernel_name: not terminated");
    if (memcmp(header->reserved, zeros, sizeof(zeros)) != 0)
        return layer_file_refuse(error, NULL, "reserved: not zero");
    if ((uint64_t)status.st_size != header->file_bytes)
        return layer_file_refuse(error, NULL, "file_bytes: %llu, the file has %llu",
                                 (unsigned long long)header->file_bytes,
                                 (unsigned long long)status.st_size);
    return GEMMD_STATUS_OK;
}

/* ---- table ----------------------------------------------------------------------------------- */

/* A part is absent, or of `bytes` (0: any) where the one before ended; *end moves on. */
static bool part_is_placed(uint64_t offset, uint64_t bytes, uint64_t expected, uint64_t file_bytes,
                           uint64_t *end)
{
    if (bytes == 0)
        return offset == 0;
    if ((expected && bytes != expected) || offset != round_up(*end, LAYER_FILE_ALIGN) ||
        !gemmd_range_inside(offset, bytes, file_bytes))
        return false;
    *end = offset + bytes;
    return true;
}

static enum gemmd_status check_entry(const struct layer_file *file,
                                     const struct layer_file_entry *entry, uint64_t *end,
                                     struct layer_file_error *error)
{
    static const uint8_t zeros[sizeof(entry->reserved)];
    struct gemmd_layer_image image;
    enum gemmd_status status = gemmd_validate_name(entry->name, false);

    if (status != GEMMD_STATUS_OK)
        return layer_file_refuse(error, NULL, "table: %s", gemmd_status_text_of(status));
    status = gemmd_validate_layer_desc(&entry->desc, &image);
    if (status != GEMMD_STATUS_OK)
        return layer_file_refuse(error, entry->name, "%s", gemmd_status_text_of(status));
    if (!part_is_placed(entry->image_offset, entry->image_bytes, image.bytes,
                        file->header.file_bytes, end))
        return layer_file_refuse(error, entry->name, "image: wrong size or place");
    if (!part_is_placed(entry->memory_offset, entry->memory_bytes, 0, file->header.file_bytes, end))
        return layer_file_refuse(error, entry->name, "memory: wrong size or place");
    if (!entry->image_bytes && !entry->memory_bytes)
        return layer_file_refuse(error, entry->name, "holds neither image nor memory");
    if (entry->memory_bytes && file->header.kernel_id == 0)
        return layer_file_refuse(error, entry->name, "memory: for no kernel");
    if (memcmp(entry->reserved, zeros, sizeof(zeros)) != 0)
        return layer_file_refuse(error, entry->name, "reserved: not zero");
    return GEMMD_STATUS_OK;
}

static int compare_names(const void *a, const void *b)
{
    const char *const *left = a, *const *right = b;

    return strcmp(*left, *right);
}

/* Two layers of one name would be one, and which is a matter of order. */
static enum gemmd_status check_names(const struct layer_file *file, struct layer_file_error *error)
{
    uint32_t count = file->header.layer_count;
    const char **names = calloc(count, sizeof(*names));
    enum gemmd_status status = GEMMD_STATUS_OK;

    if (!names)
        return GEMMD_STATUS_NO_MEMORY;
    for (uint32_t i = 0; i < count; i++)
        names[i] = file->entries[i].name;
    qsort(names, count, sizeof(*names), compare_names);
    for (uint32_t i = 1; i < count && status == GEMMD_STATUS_OK; i++)
        if (strcmp(names[i], names[i - 1]) == 0)
            status = layer_file_refuse(error, names[i], "name: twice in the file");
    free(names);
    return status;
}

static enum gemmd_status read_table(struct layer_file *file, int fd, struct layer_file_error *error)
{
    uint64_t bytes = (uint64_t)file->header.layer_count * sizeof(*file->entries);
    uint64_t end = sizeof(file->header) + bytes;
    enum gemmd_status status;

    if (end > file->header.file_bytes)
        return layer_file_refuse(error, NULL, "table: longer than the file");
    file->entries = malloc(bytes);
    if (!file->entries)
        return GEMMD_STATUS_NO_MEMORY;
    if (layer_file_read(fd, sizeof(file->header), file->entries, bytes) < 0)
        return layer_file_refuse(error, NULL, "table: cannot be read");
    if (!hash_is(file->entries, bytes, file->header.table_hash))
        return layer_file_refuse(error, NULL, "table_hash: the table has changed");
    for (uint32_t i = 0; i < file->header.layer_count; i++) {
        status = check_entry(file, &file->entries[i], &end, error);
        if (status != GEMMD_STATUS_OK)
            return status;
    }
    if (end != file->header.file_bytes)
        return layer_file_refuse(error, NULL, "file_bytes: %llu bytes behind the last part",
                                 (unsigned long long)(file->header.file_bytes - end));
    return check_names(file, error);
}

enum gemmd_status layer_file_open(struct layer_file *file, int fd, struct layer_file_error *error)
{
    enum gemmd_status status;

    memset(file, 0, sizeof(*file));
    *error->text = '\0';
    status = read_header(&file->header, fd, error);
    return status == GEMMD_STATUS_OK ? read_table(file, fd, error) : status;
}

void layer_file_close(struct layer_file *file)
{
    free(file->entries);
    file->entries = NULL;
}

int layer_file_is_for(const struct layer_file *file, const struct gemm_kernel *kernel)
{
    const struct layer_file_header *header = &file->header;

    return header->memory_version == LAYER_MEMORY_VERSION && header->kernel_id == kernel->id &&
           header->nr == kernel->nr && header->kr == kernel->kr &&
           header->level == (uint16_t)kernel->level &&
           strcmp(header->kernel_name, kernel->name) == 0;
}
