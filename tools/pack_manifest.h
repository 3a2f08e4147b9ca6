/*
 * Which tensors of a safetensors file make which layers.  Said by a manifest, or else by names:
 * every rank-2 tensor "P.weight" is a layer P.
 *
 *   manifest            {"P": {"field": value, …}, …}          a JSON file
 *   without one         "P.field": "value"                     in the file's __metadata__
 *
 *   weights      tensor of I8 [n][k], or F32/BF16, which is quantised per channel, to s4 per group
 *                (P.weight)
 *   scales       tensor of F32 [1] or [n] (P.b_scale or P.weight_scale, else 1)
 *   bias         tensor of F32 [n], or I32 in accumulator units (P.bias, else none)
 *   quantize_method                   of F32 and BF16 weights: "min_max", "l2" (min_max)
 *   a_type c_type                     "u8", "s8", "s32", "f32", "bf16" (u8, f32)
 *   b_type group                      "s8", "s4"; of s4: 32, 64, 128 (s8; 64)
 *   quantize_mode                     of f32 and bf16 rows: "asymmetric", "symmetric" (asymmetric)
 *   activation                        "none", "relu", "clip", "gelu_tanh", "gelu_erf", "silu"
 *                                     (none)
 *   clip_lo clip_hi                   numbers, of clip (0, 0)
 *   residual_type                     "u8", "s8", "f32", "bf16"; of u8 and s8 with
 *   residual_scale residual_zero_point          numbers, the scale > 0 (none, 0, 0)
 *   a_row_scales                      1: rows of u8 and s8 end with their scales (0)
 *   a_scale c_scale a_zero_point c_zero_point    numbers (1, 1, 0, 0)
 */
#ifndef GEMMD_TOOLS_PACK_MANIFEST_H
#define GEMMD_TOOLS_PACK_MANIFEST_H

#include <stddef.h>
#include <stdio.h>

#include "kernels/quantize.h"
#include "proto/control.h"
#include "tools/safetensors.h"

struct pack_layer {
    char name[GEMMD_NAME_BYTES];
    struct gemmd_layer_desc_abi desc;
    const struct safetensors_tensor *weights, *scales, *bias; /* scales, bias: may be NULL */
    enum quantize_method method; /* of weights that are floats */
};

/* Where an error goes: "layer 'P': field: reason". */
struct pack_error {
    char text[512];
};

/* `manifest` NULL: by names.  *out is an array of *count, to be freed.  0; -EBADMSG: the
 * reason is in *error; -ENOMEM. */
int pack_manifest_read(const struct safetensors *file, FILE *manifest,
                       struct pack_layer **out, size_t *count, struct pack_error *error);

#endif
