/*
 * Weights B [n x k] -> panels of a kernel's layout, with column sums.
 *
 * Panel p holds columns [p*nr, (p+1)*nr), the last one as many as are left, rounded up to n_step;
 * within it, for each block of kr consecutive k, its columns follow each other with kr bytes each:
 *
 *     byte(panel p, k-block t, column j, byte r) = B[p*nr + j][t*kr + r]     (0 beyond n or k)
 *
 * so that one vector load yields kr bytes of many columns, the operand of vpdpbusd.
 */
#ifndef GEMMD_KERNELS_PACK_H
#define GEMMD_KERNELS_PACK_H

#include "kernels/gemm.h"

/* Bytes of the packed panels: ceil(n/n_step)*n_step * ceil(k/kr)*kr, rounded up to GEMM_ALIGN. */
size_t gemm_packed_bytes(const struct gemm_kernel *kernel, uint32_t n, uint32_t k);

/* Packs b (row j at b + j*stride_bytes, k bytes each) into `panels` (gemm_packed_bytes, 64-byte
 * aligned) and writes column_sums[j] = sum of row j of B, j < n.  Every byte of `panels` is
 * written. */
void gemm_pack(const struct gemm_kernel *kernel, uint32_t n, uint32_t k, const int8_t *b,
               size_t stride_bytes, int8_t *panels, int32_t *column_sums);

/* The inverse, for tests and repacking: b gets n*k bytes at the given stride. */
void gemm_unpack(const struct gemm_kernel *kernel, uint32_t n, uint32_t k, const int8_t *panels,
                 int8_t *b, size_t stride_bytes);

/* Whether each two weights of consecutive k that start at an even k, as they lie side by side in
 * panels with an even kr, sum up to -128 .. 128.  Then their positive parts and their negative ones
 * do (of two signs, the sum of each is a byte), and two products with u8 fit s16: a narrow pair.
 * Any part of the panels, with an even number of bytes before it and in it. */
bool gemm_pairs_are_narrow(const int8_t *panels, size_t bytes);

#endif
