/*
 * Strict reader of safetensors files (tools/safetensors.h).
 *
 * The header is parsed once by jansson, which refuses duplicate keys, invalid UTF-8, NUL in strings
 * and anything behind the object.  Each tensor is checked alone (dtype, shape, offsets, size); then
 * the tensors are sorted by their first byte and must follow one another from 0 to the end of the
 * data, which excludes holes, overlaps and trailing bytes in one pass.  Cost: linear in the header
 * plus the sort; the data is not touched.
 */
#include "tools/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

enum { LENGTH_BYTES = 8 };

struct safetensors {
    const uint8_t *map;
    uint64_t map_bytes;
    const uint8_t *data;
    uint64_t data_bytes;
    json_t *header; /* owns the names and the metadata */
    struct safetensors_tensor *tensors;
    size_t count;
};

/* Where an error goes, and what it is about. */
struct report {
    char *text;
    size_t bytes;
    const char *path;
    const char *tensor; /* NULL: the file as a whole */
};

static const struct {
    const char *name;
    uint32_t bytes;
} dtypes[] = {
#define X(name, bytes) {#name, bytes},
    SAFETENSORS_DTYPE_TABLE(X)
#undef X
};

__attribute__((format(printf, 3, 4))) static int refuse(const struct report *report, int error,
                                                        const char *format, ...)
{
    char reason[256];
    va_list arguments;
    char *at;

    va_start(arguments, format);
    vsnprintf(reason, sizeof(reason), format, arguments);
    va_end(arguments);
    if (report->bytes == 0)
        return error;
    if (report->tensor)
        snprintf(report->text, report->bytes, "%s: tensor '%s': %s", report->path, report->tensor,
                 reason);
    else
        snprintf(report->text, report->bytes, "%s: %s", report->path, reason);
    /* names come from the file: no escape sequence of theirs may reach a terminal */
    for (at = report->text; *at; at++) {
        if ((unsigned char)*at < ' ' || *at == 127)
            *at = '?';
    }
    return error;
}

static int map_file(struct safetensors *file, int fd, const struct report *report)
{
    struct stat status;
    void *map;
    int error;

    if (fstat(fd, &status) != 0) {
        error = -errno;
        return refuse(report, error, "fstat: %s", strerror(-error));
    }
    if (!S_ISREG(status.st_mode) || status.st_size < LENGTH_BYTES)
        return refuse(report, -EBADMSG, "not a regular file of at least %d bytes", LENGTH_BYTES);
    map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    error = -errno;
    if (map == MAP_FAILED)
        return refuse(report, error, "mmap: %s", strerror(-error));
    file->map = map;
    file->map_bytes = (uint64_t)status.st_size;
    return 0;
}

static int parse_header(struct safetensors *file, const struct report *report)
{
    uint64_t bytes = 0;
    json_error_t where;
    int i;

    for (i = LENGTH_BYTES - 1; i >= 0; i--)
        bytes = bytes << 8 | file->map[i];
    if (bytes > SAFETENSORS_HEADER_BYTES_MAX)
        return refuse(report, -EBADMSG, "header length: %" PRIu64 " is above the limit of %d",
                      bytes, SAFETENSORS_HEADER_BYTES_MAX);
    if (bytes > file->map_bytes - LENGTH_BYTES)
        return refuse(report, -EBADMSG,
                      "header length: %" PRIu64 " leaves the file of %" PRIu64 " bytes", bytes,
                      file->map_bytes);
    if (bytes == 0 || file->map[LENGTH_BYTES] != '{')
        return refuse(report, -EBADMSG, "header: does not start with '{'");
    file->header = json_loadb((const char *)file->map + LENGTH_BYTES, (size_t)bytes,
                              JSON_REJECT_DUPLICATES, &where);
    if (!file->header)
        return refuse(report, -EBADMSG, "header: byte %d: %s", where.position, where.text);
    file->data = file->map + LENGTH_BYTES + bytes;
    file->data_bytes = file->map_bytes - LENGTH_BYTES - bytes;
    return 0;
}

static int check_metadata(const struct safetensors *file, const struct report *report)
{
    json_t *metadata = json_object_get(file->header, "__metadata__");
    const char *key;
    json_t *value;

    if (!metadata)
        return 0;
    if (!json_is_object(metadata))
        return refuse(report, -EBADMSG, "__metadata__: not an object");
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value))
            return refuse(report, -EBADMSG, "__metadata__: '%.64s' is not a string", key);
    }
    return 0;
}

/* The value as a number >= 0; false otherwise.  jansson refuses integers beyond 63 bits itself. */
static bool get_number(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static int parse_dtype(const json_t *entry, struct safetensors_tensor *tensor,
                       const struct report *report)
{
    const char *name = json_string_value(json_object_get(entry, "dtype"));
    size_t i;

    if (!name)
        return refuse(report, -EBADMSG, "dtype: missing or not a string");
    for (i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            tensor->dtype = (enum safetensors_dtype)i;
            return 0;
        }
    }
    return refuse(report, -EBADMSG, "dtype: '%.32s' is unknown", name);
}

/* Fills rank and shape; *bytes is their product with the element's bytes. */
static int parse_shape(const json_t *entry, struct safetensors_tensor *tensor, uint64_t *bytes,
                       const struct report *report)
{
    const json_t *shape = json_object_get(entry, "shape");
    uint64_t product = dtypes[tensor->dtype].bytes;
    size_t i;

    if (!json_is_array(shape))
        return refuse(report, -EBADMSG, "shape: missing or not an array");
    if (json_array_size(shape) > SAFETENSORS_RANK_MAX)
        return refuse(report, -EBADMSG, "shape: more than %d extents", SAFETENSORS_RANK_MAX);
    tensor->rank = (uint32_t)json_array_size(shape);
    for (i = 0; i < tensor->rank; i++) {
        if (!get_number(json_array_get(shape, i), &tensor->shape[i]))
            return refuse(report, -EBADMSG, "shape: extent %zu is not a number >= 0", i);
        if (__builtin_mul_overflow(product, tensor->shape[i], &product))
            return refuse(report, -EBADMSG, "shape: the product of its extents overflows");
    }
    *bytes = product;
    return 0;
}

static int parse_offsets(const struct safetensors *file, const json_t *entry,
                         struct safetensors_tensor *tensor, uint64_t bytes,
                         const struct report *report)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint64_t begin, end;

    if (!json_is_array(offsets) || json_array_size(offsets) != 2)
        return refuse(report, -EBADMSG, "data_offsets: missing or not an array of two");
    if (!get_number(json_array_get(offsets, 0), &begin) ||
        !get_number(json_array_get(offsets, 1), &end))
        return refuse(report, -EBADMSG, "data_offsets: not two numbers >= 0");
    if (begin > end || end > file->data_bytes)
        return refuse(report, -EBADMSG,
                      "data_offsets: [%" PRIu64 ", %" PRIu64 ") is not inside the %" PRIu64
                      " bytes of data",
                      begin, end, file->data_bytes);
    if (end - begin != bytes)
        return refuse(report, -EBADMSG,
                      "data_offsets: %" PRIu64 " bytes where dtype and shape make %" PRIu64,
                      end - begin, bytes);
    tensor->data = file->data + begin;
    tensor->bytes = bytes;
    return 0;
}

static int parse_tensor(const struct safetensors *file, const char *name, const json_t *entry,
                        struct safetensors_tensor *tensor, struct report *report)
{
    uint64_t bytes = 0;
    int error;

    if (strlen(name) == 0 || strlen(name) > SAFETENSORS_NAME_BYTES_MAX)
        return refuse(report, -EBADMSG, "header: a tensor's name is empty or longer than %d bytes",
                      SAFETENSORS_NAME_BYTES_MAX);
    report->tensor = name;
    tensor->name = name;
    if (!json_is_object(entry))
        return refuse(report, -EBADMSG, "entry: not an object");
    error = parse_dtype(entry, tensor, report);
    if (error == 0)
        error = parse_shape(entry, tensor, &bytes, report);
    if (error == 0)
        error = parse_offsets(file, entry, tensor, bytes, report);
    if (error == 0 && json_object_size(entry) != 3)
        error = refuse(report, -EBADMSG, "entry: holds more than dtype, shape and data_offsets");
    report->tensor = NULL;
    return error;
}

static int parse_tensors(struct safetensors *file, struct report *report)
{
    size_t capacity = json_object_size(file->header);
    const char *name;
    json_t *entry;
    int error;

    if (capacity > SAFETENSORS_TENSORS_MAX)
        return refuse(report, -EBADMSG, "header: %zu entries are above the limit of %d", capacity,
                      SAFETENSORS_TENSORS_MAX);
    file->tensors = calloc(capacity ? capacity : 1, sizeof(*file->tensors));
    if (!file->tensors)
        return refuse(report, -ENOMEM, "header: no memory for %zu tensors", capacity);
    json_object_foreach(file->header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        error = parse_tensor(file, name, entry, &file->tensors[file->count], report);
        if (error)
            return error;
        file->count++;
    }
    return 0;
}

/* By first byte; an empty tensor before the one that starts at the same byte. */
static int compare_places(const void *left, const void *right)
{
    const struct safetensors_tensor *a = left, *b = right;
    const uint8_t *a_data = a->data, *b_data = b->data;

    if (a_data != b_data)
        return a_data < b_data ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

static int check_cover(struct safetensors *file, struct report *report)
{
    uint64_t covered = 0;
    size_t i;

    qsort(file->tensors, file->count, sizeof(*file->tensors), compare_places);
    for (i = 0; i < file->count; i++) {
        const struct safetensors_tensor *tensor = &file->tensors[i];
        uint64_t begin = (uint64_t)((const uint8_t *)tensor->data - file->data);

        report->tensor = tensor->name;
        if (begin < covered)
            return refuse(report, -EBADMSG, "data_offsets: overlaps the tensor before it");
        if (begin > covered)
            return refuse(report, -EBADMSG,
                          "data_offsets: leaves a hole of %" PRIu64 " bytes before it",
                          begin - covered);
        covered += tensor->bytes;
    }
    report->tensor = NULL;
    if (covered != file->data_bytes)
        return refuse(report, -EBADMSG, "data: %" PRIu64 " bytes behind the last tensor",
                      file->data_bytes - covered);
    return 0;
}

int safetensors_open(const char *path, struct safetensors **out, char *error, size_t error_bytes)
{
    const struct report report = {.text = error, .bytes = error_bytes, .path = path};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int result = -errno;

    *out = NULL;
    if (fd < 0)
        return refuse(&report, result, "open: %s", strerror(-result));
    result = safetensors_open_fd(fd, path, out, error, error_bytes);
    close(fd); /* the mapping keeps the file */
    return result;
}

int safetensors_open_fd(int fd, const char *path, struct safetensors **out, char *error,
                        size_t error_bytes)
{
    struct report report = {.text = error, .bytes = error_bytes, .path = path};
    struct safetensors *file = calloc(1, sizeof(*file));
    int result;

    *out = NULL;
    if (!file)
        return refuse(&report, -ENOMEM, "no memory");
    result = map_file(file, fd, &report);
    if (result == 0)
        result = parse_header(file, &report);
    if (result == 0)
        result = check_metadata(file, &report);
    if (result == 0)
        result = parse_tensors(file, &report);
    if (result == 0)
        result = check_cover(file, &report);
    if (result)
        safetensors_close(&file);
    *out = file;
    return result;
}

void safetensors_close(struct safetensors **file_p)
{
    struct safetensors *file = file_p ? *file_p : NULL;

    if (!file)
        return;
    json_decref(file->header);
    free(file->tensors);
    if (file->map)
        munmap((void *)(uintptr_t)file->map, (size_t)file->map_bytes);
    free(file);
    *file_p = NULL;
}

size_t safetensors_count(const struct safetensors *file)
{
    return file->count;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t index)
{
    return index < file->count ? &file->tensors[index] : NULL;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    size_t i;

    for (i = 0; i < file->count; i++) {
        if (strcmp(file->tensors[i].name, name) == 0)
            return &file->tensors[i];
    }
    return NULL;
}

const char *safetensors_metadata(const struct safetensors *file, const char *key)
{
    return json_string_value(json_object_get(json_object_get(file->header, "__metadata__"), key));
}

const char *safetensors_dtype_name(enum safetensors_dtype dtype)
{
    return dtypes[dtype].name;
}
