/*
 * Packed layer files: what gemmd-pack writes and the worker reads.
 *
 *   header  128 bytes          magic, versions, for which kernel, sizes, hash of the table
 *   table   256 bytes a layer  desc, name, content id, places and hashes of the two parts
 *   parts   each on a multiple of 4096, in the table's order, gaps zero and shorter than a page:
 *           image   the raw layer as a client would upload it (proto/control.h); may be absent
 *           memory  the same, packed for the header's kernel (worker/layer_memory.h); may be absent
 *
 * A file packed for another kernel, or by another version of the packing, is used through its
 * images.  Little-endian, no padding.  The reader trusts nothing: sizes are checked against each
 * other and the file before use, the table against its hash before it is looked at, each part
 * against its own hash in the memory it was read to.
 */
#ifndef GEMMD_WORKER_LAYER_FILE_H
#define GEMMD_WORKER_LAYER_FILE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/gemm.h"
#include "proto/control.h"
#include "proto/status.h"

#define LAYER_FILE_MAGIC   UINT64_C(0x004c444d4d454700) /* bytes 00 "GEMMDL" 00 */
#define LAYER_FILE_VERSION 1
#define LAYER_FILE_ALIGN   UINT64_C(4096)

struct layer_file_header {
    uint64_t magic;             /*  0 */
    uint32_t version;           /*  8: of this format */
    uint32_t layer_count;       /* 12: 1 .. GEMMD_WORKER_LAYERS_MAX */
    uint64_t file_bytes;        /* 16 */
    uint64_t table_hash[2];     /* 24: XXH3-128 of the table */
    uint32_t memory_version;    /* 40: LAYER_MEMORY_VERSION of the packer */
    uint16_t kernel_id, nr, kr; /* 44: what the memory parts are packed for; 0: there are none */
    uint16_t level;             /* 50: enum cpu_level */
    char kernel_name[48];       /* 52: terminated */
    uint8_t reserved[12];       /* 100: 0 */
    uint64_t header_hash[2];    /* 112: XXH3-128 of the 112 bytes before */
};

struct layer_file_entry {
    struct gemmd_layer_desc_abi desc;  /*  0 */
    uint64_t content_id[2];            /* 64: XXH3-128 of desc and image */
    char name[GEMMD_NAME_BYTES];       /* 80 */
    uint64_t image_offset;             /* 144: 0 and no bytes: absent */
    uint64_t image_bytes;              /* 152 */
    uint64_t memory_offset;            /* 160 */
    uint64_t memory_bytes;             /* 168 */
    uint64_t memory_hash[2];           /* 176: XXH3-128 of the memory part */
    uint8_t reserved[64];              /* 192: 0 */
};

static_assert(sizeof(struct layer_file_header) == 128, "file size");
static_assert(offsetof(struct layer_file_header, header_hash) == 112, "file place");
static_assert(sizeof(struct layer_file_entry) == 256, "file size");
static_assert(offsetof(struct layer_file_entry, memory_hash) == 176, "file place");

/* What went wrong, for the operator: "layer 'NAME': field: reason". */
#define LAYER_FILE_ERROR_BYTES 192
struct layer_file_error {
    char text[LAYER_FILE_ERROR_BYTES];
};

struct layer_file {
    struct layer_file_header header;
    struct layer_file_entry *entries; /* header.layer_count */
};

/* Reads and checks header and table of the open file (a regular file or a memfd, read with pread).
 * OK; LAYER_FILE (the reason in *error), NO_MEMORY.  layer_file_close whatever came. */
enum gemmd_status layer_file_open(struct layer_file *file, int fd, struct layer_file_error *error);
void layer_file_close(struct layer_file *file);

/* True when the file's memory parts are this kernel's. */
int layer_file_is_for(const struct layer_file *file, const struct gemm_kernel *kernel);

/* Reads exactly `bytes` at `offset`; 0 or -errno, -ENODATA when the file ends before that. */
int layer_file_read(int fd, uint64_t offset, void *out, uint64_t bytes);

/* "layer 'NAME': …" into *error; returns LAYER_FILE.  Unprintable bytes become '?'. */
enum gemmd_status layer_file_refuse(struct layer_file_error *error, const char *layer,
                                    const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The hashes of a header and its table, for writing. */
void layer_file_seal(struct layer_file_header *header, const struct layer_file_entry *entries);

#endif
