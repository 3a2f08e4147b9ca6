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
static_assert((int)GEMM_ACTIVATION_RELU == GEMMD_ABI_ACTIVATION_RELU, "one numbering");
static_assert(GEMM_K_MAX == GEMMD_K_MAX, "one limit");
static_assert(sizeof(struct layer_hash) == sizeof(XXH3_state_t), "room for the state");
static_assert(_Alignof(struct layer_hash) >= _Alignof(XXH3_state_t), "aligned for the state");

static uint64_t round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

struct packed_layout {
    uint64_t offsets, scales, bias, bytes; /* panels at 0; each array is padded for the kernels */
};

static struct packed_layout packed_layout(const struct gemm_kernel *kernel,
                                          const struct gemmd_layer_desc_abi *desc)
{
    uint64_t array = round_up(desc->n, GEMM_NR_MAX) * sizeof(float);
    struct packed_layout layout;

    layout.offsets = round_up(gemm_packed_bytes(kernel, desc->n, desc->k), GEMM_ALIGN);
    layout.scales = layout.offsets + array;
    layout.bias = layout.scales + array;
    layout.bytes = layout.bias + array;
    return layout;
}

uint64_t layer_memory_bytes(const struct gemm_kernel *kernel,
                            const struct gemmd_layer_desc_abi *desc)
{
    return packed_layout(kernel, desc).bytes;
}

void layer_memory_fill(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                       const void *image, void *memory)
{
    const struct packed_layout layout = packed_layout(kernel, desc);
    struct gemmd_layer_image parts = {0};
    const char *from = image;
    char *to = memory;
    int32_t *offset = (int32_t *)(void *)(to + layout.offsets);
    float *scale = (float *)(void *)(to + layout.scales);
    const float *b_scales;
    const void *bias;

    gemmd_validate_layer_desc(desc, &parts); /* for the places; it was valid before */
    b_scales = (const float *)(const void *)(from + parts.scales_offset);
    bias = from + parts.bias_offset;
    gemm_pack(kernel, desc->n, desc->k, image, desc->k, memory, offset);
    gemm_offset(desc->n, (enum gemm_type)desc->a_type, desc->a_zero_point, offset,
                desc->bias_type == GEMMD_ABI_TYPE_S32 ? bias : NULL, offset);
    for (uint32_t j = 0; j < desc->n; j++)
        scale[j] = desc->a_scale * b_scales[desc->scale_count == 1 ? 0 : j];
    if (desc->bias_type == GEMMD_ABI_TYPE_F32)
        memcpy(to + layout.bias, bias, (size_t)desc->n * sizeof(float));
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

    if (!all_finite(from + layout.scales, padded))
        return GEMMD_STATUS_B_SCALE;
    return all_finite(from + layout.bias, padded) ? GEMMD_STATUS_OK : GEMMD_STATUS_BIAS;
}

void layer_memory_view(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                       const void *memory, struct gemm_weights *weights,
                       struct gemm_epilogue *epilogue)
{
    const struct packed_layout layout = packed_layout(kernel, desc);
    const char *from = memory;

    *weights = (struct gemm_weights){kernel, desc->n, desc->k, memory};
    *epilogue = (struct gemm_epilogue){
        .a_type = (enum gemm_type)desc->a_type,
        .c_type = (enum gemm_type)desc->c_type,
        .activation = (enum gemm_activation)desc->activation,
        .c_zero_point = desc->c_zero_point,
        .inverse_c_scale = 1.0f / desc->c_scale,
        .offset = (const int32_t *)(const void *)(from + layout.offsets),
        .scale = (const float *)(const void *)(from + layout.scales),
        .bias = (const float *)(const void *)(from + layout.bias),
    };
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
