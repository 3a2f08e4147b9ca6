/*
 * The checks of proto/validate.h.  Every product below is of values already inside limits.h, whose
 * static_asserts show that none can wrap 64 bits; sums with a peer's u64 go through
 * __builtin_add_overflow.
 */
#include "proto/validate.h"

#include <math.h>
#include <string.h>

/* Size of each request, by type. */
static const uint32_t message_bytes[GEMMD_MSG_TYPE_COUNT] = {
    [GEMMD_MSG_HELLO] = sizeof(struct gemmd_msg_hello),
    [GEMMD_MSG_MAPPED] = sizeof(struct gemmd_msg_mapped),
    [GEMMD_MSG_LAYER_CREATE] = sizeof(struct gemmd_msg_layer_create),
    [GEMMD_MSG_LAYER_DATA] = sizeof(struct gemmd_msg_layer_data),
    [GEMMD_MSG_LAYER_COMMIT] = sizeof(struct gemmd_msg_layer_commit),
    [GEMMD_MSG_LAYER_OPEN] = sizeof(struct gemmd_msg_layer_open),
    [GEMMD_MSG_LAYER_CLOSE] = sizeof(struct gemmd_msg_layer_close),
    [GEMMD_MSG_INFO] = sizeof(struct gemmd_msg_info),
    [GEMMD_MSG_LAYERS] = sizeof(struct gemmd_msg_list),
    [GEMMD_MSG_SESSIONS] = sizeof(struct gemmd_msg_list),
    [GEMMD_MSG_STATS] = sizeof(struct gemmd_msg_stats),
    [GEMMD_MSG_WAKE_FD] = sizeof(struct gemmd_msg_wake_fd),
    [GEMMD_MSG_LAYER_LOAD] = sizeof(struct gemmd_msg_layer_load),
    [GEMMD_MSG_LAYER_UNLOAD] = sizeof(struct gemmd_msg_layer_unload),
    [GEMMD_MSG_LAYER_PIN] = sizeof(struct gemmd_msg_layer_pin),
    [GEMMD_MSG_TAKEOVER] = sizeof(struct gemmd_msg_list),
    [GEMMD_MSG_TAKEOVER_COMMIT] = sizeof(struct gemmd_msg_takeover_commit),
};

enum gemmd_status gemmd_validate_message(const void *message, size_t bytes)
{
    struct gemmd_msg_header header;

    if (bytes < sizeof(header))
        return GEMMD_STATUS_MESSAGE_SHORT;
    memcpy(&header, message, sizeof(header));
    if (header.type == 0 || header.type >= GEMMD_MSG_TYPE_COUNT)
        return GEMMD_STATUS_MESSAGE_TYPE;
    if (bytes < message_bytes[header.type] || header.bytes < message_bytes[header.type])
        return GEMMD_STATUS_MESSAGE_SHORT;
    if (bytes > message_bytes[header.type] || header.bytes > message_bytes[header.type])
        return GEMMD_STATUS_MESSAGE_LONG;
    return GEMMD_STATUS_OK;
}

static bool is_power_of_two(uint32_t value)
{
    return value && (value & (value - 1)) == 0;
}

enum gemmd_status gemmd_validate_hello(const struct gemmd_msg_hello *hello, uint32_t *version)
{
    if (hello->magic != GEMMD_MAGIC)
        return GEMMD_STATUS_MAGIC;
    if (hello->version_min > hello->version_max || hello->version_min > GEMMD_VERSION_MAX ||
        hello->version_max < GEMMD_VERSION_MIN)
        return GEMMD_STATUS_VERSION;
    if (hello->flags & ~(uint32_t)GEMMD_HELLO_CONTROL_ONLY)
        return GEMMD_STATUS_FLAGS;
    if (hello->reserved)
        return GEMMD_STATUS_RESERVED;
    if (hello->ring_entries &&
        (!is_power_of_two(hello->ring_entries) || hello->ring_entries < GEMMD_RING_ENTRIES_MIN ||
         hello->ring_entries > GEMMD_RING_ENTRIES_MAX))
        return GEMMD_STATUS_RING_ENTRIES;
    if (hello->arena_bytes && (hello->arena_bytes < GEMMD_ARENA_BYTES_MIN ||
                               hello->arena_bytes > GEMMD_ARENA_BYTES_MAX))
        return GEMMD_STATUS_ARENA_BYTES;

    *version = hello->version_max < GEMMD_VERSION_MAX ? hello->version_max : GEMMD_VERSION_MAX;
    return GEMMD_STATUS_OK;
}

uint32_t gemmd_abi_type_bytes(uint8_t type)
{
    switch (type) {
    case GEMMD_ABI_TYPE_U8:
    case GEMMD_ABI_TYPE_S8:
        return 1;
    case GEMMD_ABI_TYPE_S32:
    case GEMMD_ABI_TYPE_F32:
        return 4;
    case GEMMD_ABI_TYPE_BF16:
        return 2;
    default:
        return 0;
    }
}

/* Zero points live in the type's range; types that are not quantised have none. */
static bool zero_point_inside(uint8_t type, int32_t zero_point)
{
    switch (type) {
    case GEMMD_ABI_TYPE_U8:
        return zero_point >= 0 && zero_point <= 255;
    case GEMMD_ABI_TYPE_S8:
        return zero_point >= -128 && zero_point <= 127;
    default:
        return zero_point == 0;
    }
}

static bool is_scale(float scale)
{
    return isfinite(scale) && scale > 0.0f;
}

bool gemmd_abi_is_float(uint8_t type)
{
    return type == GEMMD_ABI_TYPE_F32 || type == GEMMD_ABI_TYPE_BF16;
}

static bool is_narrow(uint8_t type)
{
    return type == GEMMD_ABI_TYPE_U8 || type == GEMMD_ABI_TYPE_S8;
}

static enum gemmd_status validate_layer_types(const struct gemmd_layer_desc_abi *desc)
{
    bool float_rows = gemmd_abi_is_float(desc->a_type), s4 = desc->b_type == GEMMD_ABI_TYPE_S4;
    bool s32_output = desc->c_type == GEMMD_ABI_TYPE_S32;
    /* Then there is no fixed unit of the accumulator. */
    bool scales_vary = float_rows || s4 || desc->a_row_scales;

    if (!is_narrow(desc->a_type) && !float_rows)
        return GEMMD_STATUS_A_TYPE;
    if ((!s4 && desc->b_type != GEMMD_ABI_TYPE_S8) || (s4 && desc->a_type == GEMMD_ABI_TYPE_S8))
        return GEMMD_STATUS_B_TYPE;
    /* An s32 output is the accumulator: no float step, so no float bias and no activation. */
    if (gemmd_abi_type_bytes(desc->c_type) == 0 || (s32_output && scales_vary))
        return GEMMD_STATUS_C_TYPE;
    if (desc->bias_type != GEMMD_ABI_TYPE_NONE &&
        (desc->bias_type != GEMMD_ABI_TYPE_S32 || scales_vary) &&
        (desc->bias_type != GEMMD_ABI_TYPE_F32 || s32_output))
        return GEMMD_STATUS_BIAS_TYPE;
    if (desc->activation > GEMMD_ABI_ACTIVATION_SILU ||
        (desc->activation != GEMMD_ABI_ACTIVATION_NONE && s32_output))
        return GEMMD_STATUS_ACTIVATION;
    if (desc->residual_type != GEMMD_ABI_TYPE_NONE &&
        (s32_output ||
         (!is_narrow(desc->residual_type) && !gemmd_abi_is_float(desc->residual_type))))
        return GEMMD_STATUS_RESIDUAL_TYPE;
    return GEMMD_STATUS_OK;
}

/* Fields that only some types or activations have: 0 with all others, so that equal layers have
 * equal descriptions. */
static enum gemmd_status validate_layer_options(const struct gemmd_layer_desc_abi *desc)
{
    bool s4 = desc->b_type == GEMMD_ABI_TYPE_S4;

    if (desc->quantize_mode > (gemmd_abi_is_float(desc->a_type) ? GEMMD_ABI_QUANTIZE_SYMMETRIC : 0))
        return GEMMD_STATUS_QUANTIZE_MODE;
    if (desc->a_row_scales > (gemmd_abi_is_float(desc->a_type) ? 0 : 1))
        return GEMMD_STATUS_A_ROW_SCALES;
    if (desc->b_zero_points > (s4 ? 0 : 1))
        return GEMMD_STATUS_B_ZERO_POINTS;
    if (s4 ? desc->group != 32 && desc->group != 64 && desc->group != 128 : desc->group != 0)
        return GEMMD_STATUS_GROUP;
    if (desc->activation == GEMMD_ABI_ACTIVATION_CLIP
            ? !(isfinite(desc->clip_lo) && isfinite(desc->clip_hi) &&
                desc->clip_lo <= desc->clip_hi)
            : desc->clip_lo != 0.0f || desc->clip_hi != 0.0f)
        return GEMMD_STATUS_CLIP;
    for (size_t i = 0; i < sizeof(desc->reserved) / sizeof(desc->reserved[0]); i++)
        if (desc->reserved[i])
            return GEMMD_STATUS_RESERVED;
    return GEMMD_STATUS_OK;
}

static enum gemmd_status validate_layer_numbers(const struct gemmd_layer_desc_abi *desc)
{
    if (desc->scale_count != 1 && desc->scale_count != desc->n)
        return GEMMD_STATUS_SCALE_COUNT;
    if (!zero_point_inside(desc->a_type, desc->a_zero_point))
        return GEMMD_STATUS_A_ZERO_POINT;
    if (!zero_point_inside(desc->c_type, desc->c_zero_point))
        return GEMMD_STATUS_C_ZERO_POINT;
    if (!is_scale(desc->a_scale) || (gemmd_abi_is_float(desc->a_type) && desc->a_scale != 1.0f))
        return GEMMD_STATUS_A_SCALE;
    if (!is_scale(desc->c_scale) || !isfinite(1.0f / desc->c_scale))
        return GEMMD_STATUS_C_SCALE;
    if (!zero_point_inside(desc->residual_type, desc->residual_zero_point))
        return GEMMD_STATUS_RESIDUAL_ZERO_POINT;
    if (is_narrow(desc->residual_type) ? !is_scale(desc->residual_scale)
                                       : desc->residual_scale != 0.0f)
        return GEMMD_STATUS_RESIDUAL_SCALE;
    return GEMMD_STATUS_OK;
}

/* Puts a part of `bytes` behind the image's last one; returns its place. */
static uint64_t place(struct gemmd_layer_image *image, uint64_t bytes)
{
    uint64_t offset = image->bytes;

    image->bytes = (offset + bytes + 63) & ~UINT64_C(63);
    return offset;
}

static void lay_out(const struct gemmd_layer_desc_abi *desc, struct gemmd_layer_image *image)
{
    uint64_t n = desc->n, k = desc->k;
    bool s4 = desc->b_type == GEMMD_ABI_TYPE_S4;

    image->weights_bytes = s4 ? n * ((k + 1) / 2) : n * k;
    image->bytes = 0;
    place(image, image->weights_bytes);
    image->multipliers_bytes = s4 ? n * ((k + desc->group - 1) / desc->group) * 2 : 0;
    image->multipliers_offset = place(image, image->multipliers_bytes);
    image->scales_offset = place(image, (uint64_t)desc->scale_count * 4);
    image->bias_offset = place(image, desc->bias_type != GEMMD_ABI_TYPE_NONE ? n * 4 : 0);
    image->zero_points_offset = place(image, desc->b_zero_points ? n : 0);
}

enum gemmd_status gemmd_validate_layer_desc(const struct gemmd_layer_desc_abi *desc,
                                            struct gemmd_layer_image *image)
{
    enum gemmd_status status;

    if (desc->n == 0 || desc->n > GEMMD_N_MAX)
        return GEMMD_STATUS_N;
    if (desc->k == 0 || desc->k > (desc->b_zero_points ? GEMMD_K_MAX_B_ZERO_POINTS : GEMMD_K_MAX))
        return GEMMD_STATUS_K;
    status = validate_layer_types(desc);
    if (status == GEMMD_STATUS_OK)
        status = validate_layer_options(desc);
    if (status == GEMMD_STATUS_OK)
        status = validate_layer_numbers(desc);
    if (status != GEMMD_STATUS_OK)
        return status;
    lay_out(desc, image);
    return image->bytes > GEMMD_LAYER_BYTES_MAX ? GEMMD_STATUS_LAYER_BYTES : GEMMD_STATUS_OK;
}

enum gemmd_status gemmd_validate_layer_values(const struct gemmd_layer_desc_abi *desc,
                                              const struct gemmd_layer_image *image,
                                              const void *image_data)
{
    const char *data = image_data;
    const float *scales = (const float *)(const void *)(data + image->scales_offset);
    const float *bias = (const float *)(const void *)(data + image->bias_offset);

    for (uint32_t i = 0; i < desc->scale_count; i++)
        if (!isfinite(scales[i]) || !isfinite(scales[i] * desc->a_scale))
            return GEMMD_STATUS_B_SCALE;
    if (desc->bias_type == GEMMD_ABI_TYPE_F32)
        for (uint32_t i = 0; i < desc->n; i++)
            if (!isfinite(bias[i]))
                return GEMMD_STATUS_BIAS;
    return GEMMD_STATUS_OK;
}

enum gemmd_status gemmd_validate_name(const char name[GEMMD_NAME_BYTES], bool may_be_empty)
{
    size_t length = strnlen(name, GEMMD_NAME_BYTES);

    if (length == GEMMD_NAME_BYTES || (length == 0 && !may_be_empty))
        return GEMMD_STATUS_NAME;
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool letter = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        bool digit = c >= '0' && c <= '9';

        if (!letter && !digit && c != '.' && c != '_' && c != '/' && c != '-')
            return GEMMD_STATUS_NAME;
    }
    return GEMMD_STATUS_OK;
}

bool gemmd_range_inside(uint64_t offset, uint64_t bytes, uint64_t limit)
{
    uint64_t end;

    return !__builtin_add_overflow(offset, bytes, &end) && end <= limit;
}

enum gemmd_status gemmd_validate_job_form(const struct gemmd_sqe *sqe)
{
    if (sqe->op != GEMMD_OP_GEMM && sqe->op != GEMMD_OP_CANCEL)
        return GEMMD_STATUS_OP;
    if (sqe->flags)
        return GEMMD_STATUS_FLAGS;
    if (sqe->reserved0)
        return GEMMD_STATUS_RESERVED;
    if (sqe->op == GEMMD_OP_CANCEL)
        return sqe->priority || sqe->m || sqe->layer_id || sqe->layer_gen || sqe->a_offset ||
                       sqe->c_offset || sqe->a_stride_bytes || sqe->c_stride_bytes ||
                       sqe->residual_offset
                   ? GEMMD_STATUS_RESERVED
                   : GEMMD_STATUS_OK;
    if (sqe->priority > GEMMD_ABI_PRIORITY_BACKGROUND)
        return GEMMD_STATUS_PRIORITY;
    if (sqe->m > GEMMD_M_MAX)
        return GEMMD_STATUS_M;
    return GEMMD_STATUS_OK;
}

static bool ranges_overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

/* C is inside the arena and its stride is right. */
static enum gemmd_status validate_residual(const struct gemmd_sqe *sqe,
                                           const struct gemmd_job_shape *shape, uint64_t c_span,
                                           uint64_t arena_bytes)
{
    uint64_t row_bytes = (uint64_t)shape->c_row_bytes / shape->c_align * shape->residual_element;
    uint64_t span = (sqe->m - 1) * gemmd_residual_stride(sqe, shape) + row_bytes;

    if (shape->residual_element == 0)
        return sqe->residual_offset ? GEMMD_STATUS_RESIDUAL_OFFSET : GEMMD_STATUS_OK;
    if (!gemmd_range_inside(sqe->residual_offset, span, arena_bytes))
        return GEMMD_STATUS_RESIDUAL_OFFSET;
    /* C itself is all right: an element is read before the same one is written. */
    if (ranges_overlap(sqe->residual_offset, span, sqe->c_offset, c_span) &&
        (sqe->residual_offset != sqe->c_offset || shape->residual_element != shape->c_align))
        return GEMMD_STATUS_RESIDUAL_OVERLAP;
    return GEMMD_STATUS_OK;
}

enum gemmd_status gemmd_validate_job_operands(const struct gemmd_sqe *sqe,
                                              const struct gemmd_job_shape *shape,
                                              uint64_t arena_bytes)
{
    uint64_t a_span, c_span;

    if (sqe->m == 0)
        return GEMMD_STATUS_OK;
    if (sqe->a_stride_bytes > GEMMD_STRIDE_MAX ||
        (sqe->m > 1 && sqe->a_stride_bytes < shape->a_row_bytes))
        return GEMMD_STATUS_A_STRIDE;
    if (sqe->c_stride_bytes > GEMMD_STRIDE_MAX || sqe->c_stride_bytes % shape->c_align ||
        (sqe->m > 1 && sqe->c_stride_bytes < shape->c_row_bytes))
        return GEMMD_STATUS_C_STRIDE;
    a_span = (uint64_t)(sqe->m - 1) * sqe->a_stride_bytes + shape->a_row_bytes;
    c_span = (uint64_t)(sqe->m - 1) * sqe->c_stride_bytes + shape->c_row_bytes;
    if (!gemmd_range_inside(sqe->a_offset, a_span, arena_bytes))
        return GEMMD_STATUS_A_OFFSET;
    if (sqe->c_offset % shape->c_align || !gemmd_range_inside(sqe->c_offset, c_span, arena_bytes))
        return GEMMD_STATUS_C_OFFSET;
    if (ranges_overlap(sqe->a_offset, a_span, sqe->c_offset, c_span))
        return GEMMD_STATUS_OVERLAP;
    return validate_residual(sqe, shape, c_span, arena_bytes);
}
