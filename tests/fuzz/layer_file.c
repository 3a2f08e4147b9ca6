/*
 * The reader of packed layer files: refuses with a reason, or accepts, and then every part lies in
 * the file, in order, without overlap, and every description is one that the worker would take from
 * a client.  Each input runs twice: as it is, and with the hashes set right, which lets the fuzzer
 * past them.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/validate.h"
#include "worker/layer_file.h"

static void check_part(uint64_t offset, uint64_t bytes, uint64_t file_bytes, uint64_t *end)
{
    __extension__ unsigned __int128 part_end = (unsigned __int128)offset + bytes;

    if (bytes == 0) {
        FUZZ_ASSERT(offset == 0);
        return;
    }
    FUZZ_ASSERT(offset >= *end && offset % LAYER_FILE_ALIGN == 0 && part_end <= file_bytes);
    *end = offset + bytes;
}

static void check_file(const struct layer_file *file, uint64_t file_bytes)
{
    uint64_t end = sizeof(file->header) + file->header.layer_count * sizeof(file->entries[0]);

    FUZZ_ASSERT(file->header.layer_count > 0 &&
                file->header.layer_count <= GEMMD_WORKER_LAYERS_MAX);
    FUZZ_ASSERT(file->header.file_bytes == file_bytes && end <= file_bytes);
    for (uint32_t i = 0; i < file->header.layer_count; i++) {
        const struct layer_file_entry *entry = &file->entries[i];
        struct gemmd_layer_image image;

        FUZZ_ASSERT(gemmd_validate_name(entry->name, false) == GEMMD_STATUS_OK);
        FUZZ_ASSERT(gemmd_validate_layer_desc(&entry->desc, &image) == GEMMD_STATUS_OK);
        FUZZ_ASSERT(entry->image_bytes == 0 || entry->image_bytes == image.bytes);
        FUZZ_ASSERT(entry->image_bytes || entry->memory_bytes);
        check_part(entry->image_offset, entry->image_bytes, file_bytes, &end);
        check_part(entry->memory_offset, entry->memory_bytes, file_bytes, &end);
        for (uint32_t other = 0; other < i; other++)
            FUZZ_ASSERT(strcmp(entry->name, file->entries[other].name) != 0);
    }
    FUZZ_ASSERT(end == file_bytes);
}

static void run(int fd, uint64_t bytes)
{
    struct layer_file file;
    struct layer_file_error error;
    enum gemmd_status status = layer_file_open(&file, fd, &error);

    if (status == GEMMD_STATUS_OK)
        check_file(&file, bytes);
    else
        FUZZ_ASSERT(status == GEMMD_STATUS_LAYER_FILE && *error.text &&
                    strnlen(error.text, sizeof(error.text)) < sizeof(error.text));
    layer_file_close(&file);
}

/* The size and the hashes as a writer would set them, where the table is all there. */
static void seal(int fd, const uint8_t *data, size_t bytes)
{
    static struct layer_file_entry entries[64];
    struct layer_file_header header;

    if (bytes < sizeof(header))
        return;
    memcpy(&header, data, sizeof(header));
    if (header.layer_count > 64 ||
        bytes < sizeof(header) + header.layer_count * sizeof(entries[0]))
        return;
    memcpy(entries, data + sizeof(header), header.layer_count * sizeof(entries[0]));
    header.file_bytes = bytes;
    layer_file_seal(&header, entries);
    FUZZ_ASSERT(pwrite(fd, &header, sizeof(header), 0) == sizeof(header));
    run(fd, bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static int fd = -1;

    if (fd < 0)
        fd = memfd_create("layer-file-fuzz", MFD_CLOEXEC);
    FUZZ_ASSERT(fd >= 0 && ftruncate(fd, 0) == 0);
    FUZZ_ASSERT(pwrite(fd, data, bytes, 0) == (ssize_t)bytes);
    run(fd, bytes);
    seal(fd, data, bytes);
    return 0;
}
