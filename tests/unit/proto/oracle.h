/*
 * A second opinion on what proto/validate.c accepts, written from proto/README.md in 128-bit
 * arithmetic and exact comparisons, with nothing taken from the code.  Each function returns the
 * set of all faults (bit n: status n), whatever order the code looks at them in; the code is right
 * when it returns a member of the set, and OK exactly when the set is empty.
 */
#ifndef GEMMD_TESTS_UNIT_PROTO_ORACLE_H
#define GEMMD_TESTS_UNIT_PROTO_ORACLE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "proto/validate.h"

__extension__ typedef __int128 oracle_int;
__extension__ typedef unsigned __int128 oracle_set;

#define FAULT(status) ((oracle_set)1 << GEMMD_STATUS_##status)

static inline bool oracle_agrees(enum gemmd_status status, oracle_set faults)
{
    if (status == GEMMD_STATUS_OK)
        return faults == 0;
    return (int)status > 0 && (int)status < 128 && (faults >> status & 1);
}

/* ---- jobs ------------------------------------------------------------------------------------ */

static inline oracle_set oracle_job_form(const struct gemmd_sqe *sqe)
{
    oracle_set faults = 0;

    if (sqe->op != 1 && sqe->op != 2)
        faults |= FAULT(OP);
    if (sqe->flags != 0)
        faults |= FAULT(FLAGS);
    if (sqe->reserved0 != 0)
        faults |= FAULT(RESERVED);
    /* Of a cancel only target and user_data say something. */
    if (sqe->op == 2 && (sqe->priority != 0 || sqe->m != 0 || sqe->layer_id != 0 ||
                         sqe->layer_gen != 0 || sqe->a_offset != 0 || sqe->c_offset != 0 ||
                         sqe->a_stride_bytes != 0 || sqe->c_stride_bytes != 0 ||
                         sqe->residual_offset != 0))
        faults |= FAULT(RESERVED);
    if (sqe->op != 2 && sqe->priority > 2)
        faults |= FAULT(PRIORITY);
    if (sqe->op != 2 && sqe->m > 1048576)
        faults |= FAULT(M);
    return faults;
}

/* In elements of C: a residual row has as many, and they are as many from row to row. */
static inline oracle_set oracle_job_residual(const struct gemmd_sqe *sqe,
                                             const struct gemmd_job_shape *shape, oracle_int c_end,
                                             uint64_t arena)
{
    const oracle_int r = sqe->residual_offset, c = sqe->c_offset, bytes = shape->residual_element;
    const oracle_int elements = ((oracle_int)sqe->m - 1) * (sqe->c_stride_bytes / shape->c_align) +
                                shape->c_row_bytes / shape->c_align;
    const oracle_int r_end = r + elements * bytes;
    const bool is_c = r == c && bytes == shape->c_align;
    oracle_set faults = 0;

    if (bytes == 0)
        return r != 0 ? FAULT(RESIDUAL_OFFSET) : 0;
    if (r_end > arena)
        faults |= FAULT(RESIDUAL_OFFSET);
    if (!is_c && (r > c ? r : c) < (r_end < c_end ? r_end : c_end))
        faults |= FAULT(RESIDUAL_OVERLAP);
    return faults;
}

static inline oracle_set oracle_job_operands(const struct gemmd_sqe *sqe,
                                           const struct gemmd_job_shape *shape, uint64_t arena)
{
    const oracle_int m = sqe->m, a = sqe->a_offset, c = sqe->c_offset;
    const oracle_int a_end = a + (m - 1) * sqe->a_stride_bytes + shape->a_row_bytes;
    const oracle_int c_end = c + (m - 1) * sqe->c_stride_bytes + shape->c_row_bytes;
    oracle_set faults = oracle_job_residual(sqe, shape, c_end, arena);

    if (m == 0)
        return 0;
    if (sqe->a_stride_bytes > 16777216 || (m >= 2 && sqe->a_stride_bytes < shape->a_row_bytes))
        faults |= FAULT(A_STRIDE);
    if (sqe->c_stride_bytes > 16777216 || (m >= 2 && sqe->c_stride_bytes < shape->c_row_bytes) ||
        sqe->c_stride_bytes / shape->c_align * shape->c_align != sqe->c_stride_bytes)
        faults |= FAULT(C_STRIDE);
    if (a_end > arena)
        faults |= FAULT(A_OFFSET);
    if (c_end > arena || sqe->c_offset / shape->c_align * shape->c_align != sqe->c_offset)
        faults |= FAULT(C_OFFSET);
    /* The larger start lies before the smaller end. */
    if ((a > c ? a : c) < (a_end < c_end ? a_end : c_end))
        faults |= FAULT(OVERLAP);
    return faults;
}

/* ---- layers ---------------------------------------------------------------------------------- */

/* IEEE 754 bits of a float: no comparison of floats in here. */
static inline uint32_t oracle_bits(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline bool oracle_finite(float value)
{
    return (oracle_bits(value) >> 23 & 255) != 255;
}

static inline bool oracle_scale(float value)
{
    uint32_t bits = oracle_bits(value);

    return bits > 0 && bits < UINT32_C(0x7f800000); /* sign 0, not zero, not Inf or NaN */
}

/* 1 / c rounds to a finite float unless it is at least 2^128 - 2^103, that is for c below
 * 2^-128 (1 + 2^-25 + …); the next float above 2^-128 is 2^-128 (1 + 2^-21). */
static inline bool oracle_inverse_finite(float value)
{
    return oracle_bits(value) > UINT32_C(0x00200000); /* 2^-128, a denormal */
}

static inline oracle_set oracle_layer_types(const struct gemmd_layer_desc_abi *desc)
{
    const bool real_a = desc->a_type == 4 || desc->a_type == 5;
    const bool s32 = desc->c_type == 3, s4 = desc->b_type == 6, scaled = desc->a_row_scales != 0;
    oracle_set faults = 0;

    if (desc->a_type != 1 && desc->a_type != 2 && !real_a)
        faults |= FAULT(A_TYPE);
    if (desc->b_type != 2 && desc->b_type != 6)
        faults |= FAULT(B_TYPE);
    if (s4 && desc->a_type == 2)
        faults |= FAULT(B_TYPE);
    if (desc->c_type < 1 || desc->c_type > 5 || (s32 && (real_a || s4 || scaled)))
        faults |= FAULT(C_TYPE);
    if (desc->bias_type != 0 && desc->bias_type != 3 && desc->bias_type != 4)
        faults |= FAULT(BIAS_TYPE);
    if ((desc->bias_type == 4 && s32) || (desc->bias_type == 3 && (real_a || s4 || scaled)))
        faults |= FAULT(BIAS_TYPE);
    if (desc->activation > 5 || (desc->activation != 0 && s32))
        faults |= FAULT(ACTIVATION);
    if (desc->residual_type > 5 || desc->residual_type == 3 || (desc->residual_type != 0 && s32))
        faults |= FAULT(RESIDUAL_TYPE);
    return faults;
}

/* lo <= hi of finite floats, by their bits as sign and magnitude. */
static inline bool oracle_ordered(float lo, float hi)
{
    const uint32_t a = oracle_bits(lo), b = oracle_bits(hi);
    const int64_t x = a >> 31 ? -(int64_t)(a & 0x7fffffff) : a;
    const int64_t y = b >> 31 ? -(int64_t)(b & 0x7fffffff) : b;

    return oracle_finite(lo) && oracle_finite(hi) && x <= y;
}

/* Fields that have to be 0 unless a type or an activation asks for them. */
static inline oracle_set oracle_layer_options(const struct gemmd_layer_desc_abi *desc)
{
    const bool real_a = desc->a_type == 4 || desc->a_type == 5, s4 = desc->b_type == 6;
    const bool zero_clip = ((oracle_bits(desc->clip_lo) | oracle_bits(desc->clip_hi)) << 1) == 0;
    oracle_set faults = 0;

    if (desc->quantize_mode != 0 && !(desc->quantize_mode == 1 && real_a))
        faults |= FAULT(QUANTIZE_MODE);
    if (desc->a_row_scales != 0 && !(desc->a_row_scales == 1 && !real_a))
        faults |= FAULT(A_ROW_SCALES);
    if (desc->b_zero_points != 0 && !(desc->b_zero_points == 1 && !s4))
        faults |= FAULT(B_ZERO_POINTS);
    if (s4 != (desc->group == 32 || desc->group == 64 || desc->group == 128) ||
        (!s4 && desc->group != 0))
        faults |= FAULT(GROUP);
    if (!(desc->activation == 2 ? oracle_ordered(desc->clip_lo, desc->clip_hi) : zero_clip))
        faults |= FAULT(CLIP);
    return faults;
}

static inline bool oracle_zero_point(uint8_t type, int32_t value)
{
    const int32_t low = type == 2 ? -128 : 0;
    const int32_t high = type == 1 ? 255 : type == 2 ? 127 : 0;

    return value >= low && value <= high;
}

static inline oracle_int oracle_weights_bytes(const struct gemmd_layer_desc_abi *desc)
{
    return (oracle_int)desc->n * (desc->b_type == 6 ? desc->k / 2 + desc->k % 2 : desc->k);
}

static inline oracle_int oracle_image_bytes(const struct gemmd_layer_desc_abi *desc)
{
    oracle_int bytes = (oracle_weights_bytes(desc) + 63) / 64 * 64;

    if (desc->b_type == 6 && desc->group)
        bytes += (oracle_int)desc->n * 2 * (desc->k / desc->group + (desc->k % desc->group != 0));
    bytes = (bytes + 63) / 64 * 64 + (oracle_int)desc->scale_count * 4;
    bytes = (bytes + 63) / 64 * 64;
    if (desc->bias_type)
        bytes += (oracle_int)desc->n * 4;
    bytes = (bytes + 63) / 64 * 64;
    if (desc->b_zero_points)
        bytes += desc->n;
    return (bytes + 63) / 64 * 64;
}

static inline oracle_set oracle_layer_desc(const struct gemmd_layer_desc_abi *desc)
{
    static const uint8_t zeros[7];
    const bool narrow = desc->residual_type == 1 || desc->residual_type == 2;
    oracle_set faults = oracle_layer_types(desc) | oracle_layer_options(desc);

    if (desc->n < 1 || desc->n > 1048576)
        faults |= FAULT(N);
    if (desc->k < 1 || desc->k > 65536 || (desc->b_zero_points && desc->k > 33025))
        faults |= FAULT(K);
    if (desc->scale_count != 1 && desc->scale_count != desc->n)
        faults |= FAULT(SCALE_COUNT);
    if (!oracle_zero_point(desc->a_type, desc->a_zero_point))
        faults |= FAULT(A_ZERO_POINT);
    if (!oracle_zero_point(desc->c_type, desc->c_zero_point))
        faults |= FAULT(C_ZERO_POINT);
    if (!oracle_scale(desc->a_scale) ||
        (desc->a_type > 3 && oracle_bits(desc->a_scale) != UINT32_C(0x3f800000)))
        faults |= FAULT(A_SCALE);
    if (!oracle_scale(desc->c_scale) || !oracle_inverse_finite(desc->c_scale))
        faults |= FAULT(C_SCALE);
    if (!oracle_zero_point(desc->residual_type, desc->residual_zero_point))
        faults |= FAULT(RESIDUAL_ZERO_POINT);
    if (narrow ? !oracle_scale(desc->residual_scale) : oracle_bits(desc->residual_scale) << 1 != 0)
        faults |= FAULT(RESIDUAL_SCALE);
    if (memcmp(desc->reserved, zeros, sizeof(desc->reserved)) != 0)
        faults |= FAULT(RESERVED);
    if (oracle_image_bytes(desc) > UINT64_C(4294967296))
        faults |= FAULT(LAYER_BYTES);
    return faults;
}

/* ---- messages -------------------------------------------------------------------------------- */

/* Bytes of a request by its type; 0: no such type. */
static inline size_t oracle_request_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {0, 64, 16, 160, 40, 16, 80, 24, 16, 24, 24, 16, 16,
                                    80, 80, 88, 24, 24};

    return type < sizeof(bytes) ? bytes[type] : 0;
}

/* Accepted or not. */
static inline bool oracle_hello(const struct gemmd_msg_hello *hello)
{
    static const unsigned char magic[8] = {0, 'G', 'E', 'M', 'M', 'D', '1', 0};
    bool entries = hello->ring_entries == 0;

    for (uint32_t n = 8; n <= 4096; n *= 2)
        entries |= hello->ring_entries == n;
    return memcmp(&hello->magic, magic, sizeof(magic)) == 0 && hello->version_min <= 1 &&
           hello->version_max >= 1 && hello->flags <= 1 && hello->reserved == 0 && entries &&
           (hello->arena_bytes == 0 ||
            (hello->arena_bytes >= 65536 && hello->arena_bytes <= UINT64_C(4294967296)));
}

/* Names: accepted or not. */
static inline bool oracle_name(const char *name, bool may_be_empty)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-";
    size_t length = 0;

    while (length < 64 && name[length] && strchr(allowed, name[length]))
        length++;
    return length < 64 && name[length] == '\0' && (length > 0 || may_be_empty);
}

#endif
