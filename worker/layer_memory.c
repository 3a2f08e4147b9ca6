/* A layer's memory.  XXH3 runs at about 10 GB/s here, packing at about a third of that. */
#include "worker/layer_memory.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "kernels/pack.h"

static_assert((int)GEMM_TYPE_U8 == GEMMD_ABI_TYPE_U8, "one numbering");
static_assert((int)GEMM_TYPE_S8 == GEMMD_ABI_TYPE_S8, "one numbering");
static_assert((int)GEMM_TYPE_S32 == GEMMD_ABI_TYPE_S32, "one numbering");
static_assert((int)GEMM_TYPE_F32 == GEMMD_ABI_TYPE_F32, "one numbering");
static_assert((int)GEMM_TYPE_BF16 == GEMMD_ABI_TYPE_BF16, "one numbering");
static_assert((int)GEMM_ACTIVATION_RELU == GEMMD_ABI_ACTIVATION_RELU, "one numbering");
static_assert((int)GEMM_ACTIVATION_CLIP == GEMMD_ABI_ACTIVATION_CLIP, "one numbering");
static_assert((int)GEMM_ACTIVATION_GELU_TANH == GEMMD_ABI_ACTIVATION_GELU_TANH, "one numbering");
static_assert((int)GEMM_ACTIVATION_GELU_ERF == GEMMD_ABI_ACTIVATION_GELU_ERF, "one numbering");
static_assert((int)GEMM_ACTIVATION_SILU == GEMMD_ABI_ACTIVATION_SILU, "one numbering");
static_assert((int)QUANTIZE_SYMMETRIC == GEMMD_ABI_QUANTIZE_SYMMETRIC, "one numbering");
static_assert(GEMM_K_MAX == GEMMD_K_MAX, "one limit");
static_assert(GEMM_K_MAX_B_ZERO_POINTS == GEMMD_K_MAX_B_ZERO_POINTS, "one limit");
static_assert(sizeof(struct layer_hash) == sizeof(XXH3_state_t), "room for the state");
static_assert(_Alignof(struct layer_hash) >= _Alignof(XXH3_state_t), "aligned for the state");

static uint64_t round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* Kernels for s4 weights and for float rows follow from the one for s8 weights, so that a packed
 * file's one kernel says how all its layers are packed: the best of its level or below, which its
 * own code needs as well (amx uses the epilogue of avx512). */
static uint32_t levels_of(const struct gemm_kernel *kernel)
{
    uint32_t levels = (UINT32_C(2) << kernel->level) - 1;

    /* 256-bit VNNI and AVX-512 without VNNI do not contain each other. */
    return kernel->level == CPU_LEVEL_AVX512 ? levels & ~(UINT32_C(1) << CPU_LEVEL_AVXVNNI)
                                             : levels;
}

static const struct int4_kernel *int4_kernel_of(const struct gemm_kernel *kernel)
{
    return int4_select(levels_of(kernel));
}

static bool is_s4(const struct gemmd_layer_desc_abi *desc)
{
    return desc->b_type == GEMMD_ABI_TYPE_S4;
}

struct packed_layout {
    /* Panels at 0; each array is padded for the kernels. */
    uint64_t offsets; /* s32; weighted sums (f32) of s4 weights */
    uint64_t scales, bias;
    uint64_t column_sums;   /* s32; of s8 weights under float rows */
    uint64_t b_zero_points; /* s32; where the layer has them */
    uint64_t bytes;
};

static struct packed_layout packed_layout(const struct gemm_kernel *kernel,
                                          const struct gemmd_layer_desc_abi *desc)
{
    uint64_t array = round_up(desc->n, GEMM_NR_MAX) * sizeof(float);
    struct packed_layout layout;

    layout.offsets =
        is_s4(desc) ? int4_packed_bytes(int4_kernel_of(kernel), desc->n, desc->k, desc->group)
                    : round_up(gemm_packed_bytes(kernel, desc->n, desc->k), GEMM_ALIGN);
    layout.scales = layout.offsets + array;
    layout.bias = layout.scales + array;
    layout.column_sums = layout.bias + array;
    layout.b_zero_points = layout.column_sums;
    if (!is_s4(desc) && gemmd_abi_is_float(desc->a_type))
        layout.b_zero_points += array;
    layout.bytes = layout.b_zero_points + (desc->b_zero_points ? array : 0);
    return layout;
}

uint64_t layer_memory_bytes(const struct gemm_kernel *kernel,
                            const struct gemmd_layer_desc_abi *desc)
{
    return packed_layout(kernel, desc).bytes;
}

/* Panels, and what depends on the sums of the weights. */
static void fill_s8(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                    const struct gemmd_layer_image *parts, const char *image,
                    const struct packed_layout *layout, char *to)
{
    const int8_t *zero_points = (const int8_t *)image + parts->zero_points_offset;
    int32_t *offset = (int32_t *)(void *)(to + layout->offsets);
    int32_t *padded = (int32_t *)(void *)(to + layout->b_zero_points);
    const void *bias = image + parts->bias_offset;

    gemm_pack(kernel, desc->n, desc->k, (const int8_t *)image, desc->k, (int8_t *)to, offset);
    for (uint32_t j = 0; desc->b_zero_points && j < desc->n; j++)
        padded[j] = zero_points[j];
    if (gemmd_abi_is_float(desc->a_type)) {
        /* Each row has a zero point of its own: no part of the sums is the same for all. */
        memcpy(to + layout->column_sums, offset, (size_t)desc->n * sizeof(*offset));
        memset(offset, 0, (size_t)desc->n * sizeof(*offset));
        return;
    }
    gemm_offset(desc->n, (enum gemm_type)desc->a_type, desc->a_zero_point, offset,
                desc->bias_type == GEMMD_ABI_TYPE_S32 ? bias : NULL, offset);
}

void layer_memory_fill(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                       const void *image, void *memory)
{
    const struct packed_layout layout = packed_layout(kernel, desc);
    struct gemmd_layer_image parts = {0};
    const char *from = image;
    char *to = memory;
    float *scale = (float *)(void *)(to + layout.scales);
    float *bias = (float *)(void *)(to + layout.bias);
    float *weighted = (float *)(void *)(to + layout.offsets);
    const float *b_scales;

    gemmd_validate_layer_desc(desc, &parts); /* for the places; it was valid before */
    b_scales = (const float *)(const void *)(from + parts.scales_offset);
    for (uint32_t j = 0; j < desc->n; j++)
        scale[j] = desc->a_scale * b_scales[desc->scale_count == 1 ? 0 : j];
    if (desc->bias_type == GEMMD_ABI_TYPE_F32)
        memcpy(bias, from + parts.bias_offset, (size_t)desc->n * sizeof(float));
    if (!is_s4(desc)) {
        fill_s8(kernel, desc, &parts, from, &layout, to);
        return;
    }
    int4_pack(int4_kernel_of(kernel), desc->n, desc->k, desc->group, image,
              (desc->k + (size_t)1) / 2,
              (const uint16_t *)(const void *)(from + parts.multipliers_offset), memory, weighted);
    /* Not with 0, which would make a -0 bias +0; nor where rows have scales, which the bias has
     * not: their zero point is taken off row by row. */
    if (desc->a_zero_point && !desc->a_row_scales)
        int4_bias(desc->n, desc->a_zero_point, weighted, scale, bias);
}

static bool all_finite(const void *values, uint32_t count)
{
    const float *at = values;

    for (uint32_t i = 0; i < count; i++)
        if (!isfinite(at[i]))
            return false;
    return true;
}

enum gemmd_status layer_memory_check(const struct gemm_kernel *kernel,
                                     const struct gemmd_layer_desc_abi *desc, const void *memory)
{
    const struct packed_layout layout = packed_layout(kernel, desc);
    const char *from = memory;
    uint32_t padded = (uint32_t)round_up(desc->n, GEMM_NR_MAX);

    if (!all_finite(from + layout.scales, padded) ||
        (is_s4(desc) && !all_finite(from + layout.offsets, padded)))
        return GEMMD_STATUS_B_SCALE;
    return all_finite(from + layout.bias, padded) ? GEMMD_STATUS_OK : GEMMD_STATUS_BIAS;
}

const struct gemm_kernel *layer_memory_kernel(const struct gemm_kernel *kernel,
                                              const struct gemmd_layer_desc_abi *desc,
                                              const void *memory, uint64_t begin, uint64_t end)
{
    const struct gemm_kernel *narrow = is_s4(desc) ? NULL : gemm_narrow(kernel);
    uint64_t panels = narrow ? gemm_packed_bytes(kernel, desc->n, desc->k) : 0;

    if (end > panels)
        end = panels;
    if (!narrow || (begin < end && !gemm_pairs_are_narrow((const int8_t *)memory + begin,
                                                          end - begin)))
        return kernel;
    return narrow;
}

static void view_s8(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                    const char *from, const struct packed_layout *layout, struct layer_view *view)
{
    view->s8 = (struct gemm_weights){kernel, desc->n, desc->k, (const int8_t *)from};
    view->nr = kernel->nr;
    view->mr = kernel->mr;
    view->kernel_id = kernel->id;
    view->kernel_name = kernel->name;
    view->epilogue.offset = (const int32_t *)(const void *)(from + layout->offsets);
    if (gemmd_abi_is_float(desc->a_type))
        view->epilogue.column_sums = (const int32_t *)(const void *)(from + layout->column_sums);
    if (desc->b_zero_points)
        view->epilogue.b_zero_points =
            (const int32_t *)(const void *)(from + layout->b_zero_points);
}

static void view_s4(const struct gemm_kernel *s8_kernel, const struct gemmd_layer_desc_abi *desc,
                    const char *from, const struct packed_layout *layout, struct layer_view *view)
{
    const struct int4_kernel *kernel = int4_kernel_of(s8_kernel);

    view->s4 = (struct int4_weights){kernel, desc->n, desc->k, desc->group, (const uint8_t *)from};
    view->nr = kernel->nr;
    view->mr = kernel->mr;
    view->kernel_id = (uint16_t)(GEMMD_KERNEL_ID_S4 + kernel->id);
    view->kernel_name = kernel->name;
    view->epilogue.weighted_sums = (const float *)(const void *)(from + layout->offsets);
}

void layer_memory_view(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                       const void *memory, struct layer_view *view)
{
    const struct packed_layout layout = packed_layout(kernel, desc);
    bool float_rows = gemmd_abi_is_float(desc->a_type);
    const char *from = memory;

    *view = (struct layer_view){
        .n = desc->n,
        .k = desc->k,
        .a_type = (enum gemm_type)desc->a_type,
        .a_zero_point = desc->a_zero_point,
        .a_row_scales = desc->a_row_scales,
        .quantize = float_rows ? quantize_select(levels_of(kernel)) : NULL,
        .quantize_mode = (enum quantize_mode)desc->quantize_mode,
        .epilogue = {
            .a_type = float_rows ? GEMM_TYPE_U8 : (enum gemm_type)desc->a_type,
            .c_type = (enum gemm_type)desc->c_type,
            .activation = (enum gemm_activation)desc->activation,
            .c_zero_point = desc->c_zero_point,
            .inverse_c_scale = 1.0f / desc->c_scale,
            .clip_lo = desc->clip_lo,
            .clip_hi = desc->clip_hi,
            .residual_type = (enum gemm_type)desc->residual_type,
            .residual_zero_point = desc->residual_zero_point,
            .residual_scale = desc->residual_scale,
            .scale = (const float *)(const void *)(from + layout.scales),
            .bias = (const float *)(const void *)(from + layout.bias),
        },
    };
    if (is_s4(desc))
        view_s4(kernel, desc, from, &layout, view);
    else
        view_s8(kernel, desc, from, &layout, view);
}

void layer_content_id(const struct gemmd_layer_desc_abi *desc, const void *image, uint64_t bytes,
                      uint64_t out[2])
{
    struct layer_hash hash;

    layer_hash_begin(&hash);
    layer_hash_add(&hash, desc, sizeof(*desc));
    layer_hash_add(&hash, image, bytes);
    layer_hash_end(&hash, out);
}

void layer_hash_begin(struct layer_hash *hash)
{
    XXH3_INITSTATE((XXH3_state_t *)hash);
    XXH3_128bits_reset((XXH3_state_t *)hash);
}

void layer_hash_add(struct layer_hash *hash, const void *bytes, uint64_t count)
{
    XXH3_128bits_update((XXH3_state_t *)hash, bytes, count);
}

void layer_hash_end(const struct layer_hash *hash, uint64_t out[2])
{
    XXH128_hash_t value = XXH3_128bits_digest((const XXH3_state_t *)hash);

    out[0] = value.low64;
    out[1] = value.high64;
}
