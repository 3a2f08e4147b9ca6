/*
 * A strict reader of safetensors files: 8 bytes of little-endian header length, a JSON object that
 * gives each tensor's dtype, shape and place, then the data.  Files are untrusted: every number is
 * bounded before it is used, and a file is refused unless its tensors cover the data exactly.
 *
 * The file is mapped read-only and never copied.  Whoever truncates it while it is open makes later
 * reads of the data raise SIGBUS; the header is not read again after safetensors_open.
 */
#ifndef GEMMD_TOOLS_SAFETENSORS_H
#define GEMMD_TOOLS_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

enum {
    /* The format's own limit on the header. */
    SAFETENSORS_HEADER_BYTES_MAX = 100000000,
    SAFETENSORS_NAME_BYTES_MAX = 255,
    /* Large language models hold some thousands. */
    SAFETENSORS_TENSORS_MAX = 65536,
    SAFETENSORS_RANK_MAX = 8,
};

/* X(NAME, bytes of an element).  Element types below one byte are refused as unknown. */
#define SAFETENSORS_DTYPE_TABLE(X)                                                                 \
    X(BOOL, 1)                                                                                     \
    X(U8, 1)                                                                                       \
    X(I8, 1)                                                                                       \
    X(F8_E4M3, 1)                                                                                  \
    X(F8_E5M2, 1)                                                                                  \
    X(I16, 2)                                                                                      \
    X(U16, 2)                                                                                      \
    X(F16, 2)                                                                                      \
    X(BF16, 2)                                                                                     \
    X(I32, 4)                                                                                      \
    X(U32, 4)                                                                                      \
    X(F32, 4)                                                                                      \
    X(I64, 8)                                                                                      \
    X(U64, 8)                                                                                      \
    X(F64, 8)

enum safetensors_dtype {
#define X(name, bytes) SAFETENSORS_##name,
    SAFETENSORS_DTYPE_TABLE(X)
#undef X
};

struct safetensors_tensor {
    const char *name;
    enum safetensors_dtype dtype;
    uint32_t rank;                        /* 0: a single element */
    uint64_t shape[SAFETENSORS_RANK_MAX]; /* [rank]; an extent may be 0 */
    uint64_t bytes;
    const void *data; /* the format does not align it to the element: copy before use */
};

/* An open file.  Opaque; closed by safetensors_close. */
struct safetensors;

/* Maps and checks the file.  On success *out is the caller's; on failure *out is NULL and `error`
 * holds "PATH: tensor 'NAME': field: reason", cut to error_bytes.
 *   0, -EBADMSG (not a valid file), -ENOMEM, -errno of open, fstat or mmap */
int safetensors_open(const char *path, struct safetensors **out, char *error, size_t error_bytes);

/* The same with a file that is open already and stays the caller's; `path` is for messages. */
int safetensors_open_fd(int fd, const char *path, struct safetensors **out, char *error,
                        size_t error_bytes);

/* Accepts NULL and a pointer to NULL; *file_p becomes NULL.  Tensors and metadata are gone with it.
 */
void safetensors_close(struct safetensors **file_p);

/* Number of tensors, and the index-th in order of their place in the file (NULL past the last). */
size_t safetensors_count(const struct safetensors *file);
const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t index);

/* By name, looking at each in turn; NULL when there is none. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);

/* Value of a key of the file's metadata; NULL when there is none. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);

/* "F32".  Static storage. */
const char *safetensors_dtype_name(enum safetensors_dtype dtype);

#endif
