/*
 * Pure checks of a private copy of anything a peer wrote: no system call, no allocation, no shared
 * memory.  The only constructors of what the worker acts on, and the fuzz targets.
 */
#ifndef GEMMD_PROTO_VALIDATE_H
#define GEMMD_PROTO_VALIDATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/abi.h"
#include "proto/control.h"
#include "proto/status.h"

/* Length, type and declared bytes of a packet that holds a request.  `bytes` is what was received.
 * OK, or a violation: MESSAGE_SHORT, MESSAGE_LONG, MESSAGE_TYPE. */
enum gemmd_status gemmd_validate_message(const void *message, size_t bytes);

/* MAGIC and VERSION are violations; RING_ENTRIES, ARENA_BYTES, FLAGS, RESERVED are not.  On OK
 * *version is the highest common one. */
enum gemmd_status gemmd_validate_hello(const struct gemmd_msg_hello *hello, uint32_t *version);

/* Where the parts of a layer's image lie.  All offsets are multiples of 64. */
struct gemmd_layer_image {
    uint64_t weights_bytes; /* at offset 0 */
    uint64_t multipliers_offset, multipliers_bytes; /* 0 bytes of s8 weights */
    uint64_t scales_offset;
    uint64_t bias_offset;        /* where it is or would be */
    uint64_t zero_points_offset; /* likewise */
    uint64_t bytes;
};

/* Ranges of every field, and the image's layout on OK. */
enum gemmd_status gemmd_validate_layer_desc(const struct gemmd_layer_desc_abi *desc,
                                            struct gemmd_layer_image *image);

/* The values inside an image: scales and bias.  `image_data` is 64-byte aligned, image->bytes long
 * and private to the caller. */
enum gemmd_status gemmd_validate_layer_values(const struct gemmd_layer_desc_abi *desc,
                                              const struct gemmd_layer_image *image,
                                              const void *image_data);

/* A terminated name of [A-Za-z0-9._/-]; empty is allowed when `may_be_empty`. */
enum gemmd_status gemmd_validate_name(const char name[GEMMD_NAME_BYTES], bool may_be_empty);

/* [offset, offset + bytes) lies inside `limit`; true for bytes = 0 only when offset <= limit. */
bool gemmd_range_inside(uint64_t offset, uint64_t bytes, uint64_t limit);

/* Bytes of one element; 0 for NONE, S4 or an unknown type. */
uint32_t gemmd_abi_type_bytes(uint8_t type);
/* F32 or BF16: as rows of A they are quantised by the worker. */
bool gemmd_abi_is_float(uint8_t type);

/* Bytes of a row of A, its scale included, of a layer that gemmd_validate_layer_desc accepts. */
static inline uint32_t gemmd_abi_a_row_bytes(const struct gemmd_layer_desc_abi *desc)
{
    return desc->k * gemmd_abi_type_bytes(desc->a_type) + (desc->a_row_scales ? 4u : 0u);
}

/* What the dispatcher knows of a layer when it checks a job. */
struct gemmd_job_shape {
    uint32_t a_row_bytes; /* gemmd_abi_a_row_bytes */
    uint32_t c_row_bytes; /* n * sizeof c_type */
    uint32_t c_align;     /* sizeof c_type: C's offset and stride are multiples */
    uint32_t residual_element; /* sizeof residual_type; 0: the layer has no residual */
};

/* From row to row of the residual, which lies as C does, element by element. */
static inline uint64_t gemmd_residual_stride(const struct gemmd_sqe *sqe,
                                             const struct gemmd_job_shape *shape)
{
    return (uint64_t)sqe->c_stride_bytes / shape->c_align * shape->residual_element;
}

/* Everything of a submission that does not depend on a layer: op, flags, reserved fields, priority,
 * m.  A cancel is complete with this. */
enum gemmd_status gemmd_validate_job_form(const struct gemmd_sqe *sqe);

/* Operands of a job of the given shape inside an arena of `arena_bytes`: strides, ranges,
 * alignment, and that C overlaps neither A nor, unless it is the same memory, the residual (the
 * span of rows, gaps included).  m = 0 touches nothing and is OK. */
enum gemmd_status gemmd_validate_job_operands(const struct gemmd_sqe *sqe,
                                              const struct gemmd_job_shape *shape,
                                              uint64_t arena_bytes);

#endif
