/*
 * What one layer's pool memory holds: panels, then the arrays offset, scale and bias, each padded
 * for the kernels.  Filled from a layer's image by the worker, or beforehand by gemmd-pack, whose
 * file stores it as it is; both use these functions, so the two cannot differ.
 *
 * No pool, no log: gemmd-pack links it, too.
 */
#ifndef GEMMD_WORKER_LAYER_MEMORY_H
#define GEMMD_WORKER_LAYER_MEMORY_H

#include <stdint.h>

#include "kernels/epilogue.h"
#include "kernels/gemm.h"
#include "proto/validate.h"

/* Changes whenever the same image would be packed to other bytes for the same kernel. */
#define LAYER_MEMORY_VERSION 1

/* Of a layer that gemmd_validate_layer_desc accepts. */
uint64_t layer_memory_bytes(const struct gemm_kernel *kernel,
                            const struct gemmd_layer_desc_abi *desc);

/* Packs the image (private, gemmd_validate_layer_values) into `memory` (zeroed, 64-byte aligned).
 */
void layer_memory_fill(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                       const void *image, void *memory);

/* Memory that came from a file may hold anything: the values that kernels rely on.  OK, B_SCALE or
 * BIAS. */
enum gemmd_status layer_memory_check(const struct gemm_kernel *kernel,
                                     const struct gemmd_layer_desc_abi *desc, const void *memory);

/* The kernel's view of filled memory. */
void layer_memory_view(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                       const void *memory, struct gemm_weights *weights,
                       struct gemm_epilogue *epilogue);

/* XXH3-128 of desc and image: the layer's identity.  Low half first. */
void layer_content_id(const struct gemmd_layer_desc_abi *desc, const void *image, uint64_t bytes,
                      uint64_t out[2]);

/* XXH3-128 of bytes, in pieces.  The state is caller's memory: hashing cannot fail. */
struct layer_hash {
    _Alignas(64) char state[576];
};
void layer_hash_begin(struct layer_hash *hash);
void layer_hash_add(struct layer_hash *hash, const void *bytes, uint64_t count);
void layer_hash_end(const struct layer_hash *hash, uint64_t out[2]);

#endif
