/*
 * The reader of safetensors files: refuses or accepts, and what it accepts is true: the tensors lie
 * inside the file, in order, without hole or overlap, each as large as its shape says.
 */
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tools/safetensors.h"

static volatile uint8_t sink;

static const uint32_t element_bytes[] = {
#define X(name, bytes) [SAFETENSORS_##name] = (bytes),
    SAFETENSORS_DTYPE_TABLE(X)
#undef X
};

static void check_tensor(const struct safetensors *file, const struct safetensors_tensor *tensor)
{
    __extension__ unsigned __int128 bytes = element_bytes[tensor->dtype];

    FUZZ_ASSERT(strlen(tensor->name) > 0 && tensor->rank <= SAFETENSORS_RANK_MAX);
    FUZZ_ASSERT(safetensors_find(file, tensor->name) == tensor); /* names are unique */
    FUZZ_ASSERT(*safetensors_dtype_name(tensor->dtype));
    for (uint32_t i = 0; i < tensor->rank; i++)
        bytes *= tensor->shape[i]; /* at most 8 factors, checked below 2^64 by the reader */
    FUZZ_ASSERT(bytes == tensor->bytes);
    for (uint64_t i = 0; i < tensor->bytes; i++)
        sink ^= ((const uint8_t *)tensor->data)[i];
}

static void check_file(const struct safetensors *file, size_t file_bytes)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < safetensors_count(file); i++) {
        const struct safetensors_tensor *tensor = safetensors_at(file, i);

        FUZZ_ASSERT(tensor);
        check_tensor(file, tensor);
        if (i > 0) {
            const struct safetensors_tensor *before = safetensors_at(file, i - 1);

            FUZZ_ASSERT((const char *)before->data + before->bytes == (const char *)tensor->data);
        }
        sum += tensor->bytes;
    }
    FUZZ_ASSERT(sum <= file_bytes);
    FUZZ_ASSERT(!safetensors_at(file, safetensors_count(file)));
    FUZZ_ASSERT(!safetensors_find(file, ""));
    safetensors_metadata(file, "format");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static int fd = -1;
    struct safetensors *file;
    char path[64], error[256];
    int result;

    if (fd < 0)
        fd = memfd_create("safetensors-fuzz", MFD_CLOEXEC);
    FUZZ_ASSERT(fd >= 0 && ftruncate(fd, 0) == 0);
    FUZZ_ASSERT(pwrite(fd, data, bytes, 0) == (ssize_t)bytes);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    memset(error, 'x', sizeof(error));
    result = safetensors_open(path, &file, error, sizeof(error));
    if (result == 0) {
        check_file(file, bytes);
        safetensors_close(&file);
    } else {
        FUZZ_ASSERT(result == -EBADMSG && strnlen(error, sizeof(error)) < sizeof(error));
    }
    FUZZ_ASSERT(!file);
    return 0;
}
