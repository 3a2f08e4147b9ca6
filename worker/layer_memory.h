/*
 * What one layer's pool memory holds: panels, then the arrays of its epilogue, each padded for the
 * kernels.  Filled from a layer's image by the worker, or beforehand by gemmd-pack, whose
 * file stores it as it is; both use these functions, so the two cannot differ.
 *
 * No pool, no log: gemmd-pack links it, too.
 */
#ifndef GEMMD_WORKER_LAYER_MEMORY_H
#define GEMMD_WORKER_LAYER_MEMORY_H

#include <stdint.h>

#include "kernels/epilogue.h"
#include "kernels/gemm.h"
#include "kernels/int4.h"
#include "kernels/quantize.h"
#include "proto/validate.h"

/* Changes whenever the same image would be packed to other bytes for the same kernel; also with a
 * new kernel for s4 weights, which follows from the one for s8 weights. */
#define LAYER_MEMORY_VERSION 3

/* Of a layer that gemmd_validate_layer_desc accepts. */
uint64_t layer_memory_bytes(const struct gemm_kernel *kernel,
                            const struct gemmd_layer_desc_abi *desc);

/* Packs the image (private, gemmd_validate_layer_values) into `memory` (zeroed, 64-byte aligned).
 */
void layer_memory_fill(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                       const void *image, void *memory);

/* The values that kernels rely on: memory that came from a file may hold anything, and the bias of
 * s4 weights, which takes in the zero point of A, may have left the range of a float.  OK, B_SCALE
 * or BIAS. */
enum gemmd_status layer_memory_check(const struct gemm_kernel *kernel,
                                     const struct gemmd_layer_desc_abi *desc, const void *memory);

/* The kernel to view filled memory with: gemm_narrow(kernel) where the weights in [begin, end) of
 * it allow that, else `kernel`.  It follows from the bytes alone, so that nobody can claim it.
 * Memory may be asked about piece by piece, from even places on; one piece can refuse for all. */
const struct gemm_kernel *layer_memory_kernel(const struct gemm_kernel *kernel,
                                              const struct gemmd_layer_desc_abi *desc,
                                              const void *memory, uint64_t begin, uint64_t end);

/* All that running a layer takes. */
struct layer_view {
    struct gemm_weights s8; /* panels NULL: the weights are s4 */
    struct int4_weights s4;
    struct gemm_epilogue epilogue; /* its per-row arrays are the caller's to add; residual_type 0:
                                      there is no residual among them */
    uint32_t n, k;
    uint16_t nr, mr, kernel_id;
    const char *kernel_name;
    enum gemm_type a_type;
    int32_t a_zero_point;
    bool a_row_scales;                      /* each row of A ends with its scale */
    const struct quantize_kernel *quantize; /* of float rows, which become u8; else NULL */
    enum quantize_mode quantize_mode;
};

/* Of filled memory; `kernel` as layer_memory_kernel says, or any layer's. */
void layer_memory_view(const struct gemm_kernel *kernel, const struct gemmd_layer_desc_abi *desc,
                       const void *memory, struct layer_view *view);

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
