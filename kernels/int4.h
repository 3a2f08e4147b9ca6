/*
 * GEMM with weights of 4 bits: A u8, B s4 with a multiplier per group of 32, 64 or 128 along k.
 * Half the bytes of s8 and little else: for few rows, where the weights' bytes are the time.
 *
 *     dot[g]  = sum over t in group g of a[t] * b[t]         exact in s32: |dot| < 2^18
 *     f       = +0;  for g = 0, 1, ..: f = f + (float)dot[g] * (float)multiplier[g]
 *     c       = epilogue(f), with f as its float accumulator (kernels/epilogue.h)
 *
 * Every float operation is IEEE single precision, nearest even, not contracted, in this order on
 * every level; the last group may be short.  The multipliers are u16: the scale of group g of
 * column j is epilogue.scale[j] * multiplier, so that a group up to 32 times finer than its
 * column's coarsest still has 11 bits of scale, the precision of f16, at 2 bytes a group (4.5 bits
 * a weight in all with groups of 32, 4.125 with 128).
 *
 * Zero points of A: Σ (a - z) b = f - z * weighted_sum, where weighted_sum[j] = sum over g of
 * multiplier[g] * (sum of b in g), made by int4_pack: a per-row zero point goes through the
 * epilogue's row_zero_points; a fixed one goes into the bias (int4_bias).
 *
 * Panel of nr columns, for each group in turn:
 *
 *     nr multipliers, u16
 *     for each block t of 8 consecutive k, for each column j: 4 bytes, byte r holding
 *         b[j][8 t + r] in its low half and b[j][8 t + 4 + r] in its high half
 *
 * so that a vector load yields 4 k of many columns in either half, the operand of vpdpbusd.  Groups
 * and columns are padded with zeros.
 */
#ifndef GEMMD_KERNELS_INT4_H
#define GEMMD_KERNELS_INT4_H

#include "kernels/dynamic.h"
#include "kernels/epilogue.h"

enum {
    INT4_GROUP_MAX = 128,
    INT4_MR_MAX = 4,
    INT4_UNPACKED = 16, /* times the weight is its byte in an s8 panel */
};

/* Few rows.  acc[i * nr + j] = f of row i, column j, for i < m (1 <= m <= INT4_MR_MAX) and all
 * j < nr.  Reads a[i][0 .. k) and nothing beyond.  `acc` is 64-byte aligned. */
typedef void int4_ukernel_fn(size_t m, size_t k, size_t group, const uint8_t *const *a,
                             const uint8_t *panel, float *acc);

/* Whole groups of rows and of an unpacked panel. */
struct int4_part {
    size_t groups, group;
    const uint8_t *const *a; /* rows, at the first group */
    const int8_t *unpacked;
    const uint8_t *multipliers; /* of the first group; of the next group_bytes further */
    size_t group_bytes;
};

/* Of a part, groups and multipliers say what (the blocks follow their multipliers).  `to` is an
 * s8 panel, kr 4, of INT4_UNPACKED times the weights, because that is where a high half is. */
typedef void int4_unpack_fn(const struct int4_part *part, int8_t *to);

/* Many rows.  sums[i * nr + j] += (float)dot * (float)multiplier for one group after the other,
 * i < m (1 <= m <= mr) and j < nr; rows of sums from m to mr are there, too, and unspecified
 * afterwards.  Each s32 sum is INT4_UNPACKED times a dot: exact (below 2^22), as is its product
 * with multiplier / INT4_UNPACKED but for the rounding of the contract. */
typedef void int4_part_fn(size_t m, const struct int4_part *part, float *sums);

/* Where a kernel has them, part runs only between them, on the same thread, with the m and the
 * group that begin got. */
typedef void int4_begin_fn(size_t m, size_t group);
typedef void int4_end_fn(void);

/* The way of a level for many rows: on weights unpacked once for all of them. */
struct int4_many {
    uint16_t rows_min; /* from which it is the faster way */
    bool in_place;     /* part wants rows at one distance */
    int4_unpack_fn *unpack;
    int4_part_fn *part;
    int4_begin_fn *begin;
    int4_end_fn *end;
};

struct int4_kernel {
    const char *name; /* "gemm_u8s4f32_4x64c8_avx512vnni" */
    enum cpu_level level;
    uint16_t id;     /* stable number, apart from those of gemm_kernel */
    uint16_t mr, nr; /* mr: of many's tiles where it is given */
    int4_ukernel_fn *ukernel;
    const struct int4_many *many; /* NULL: few rows after few rows */
    gemm_epilogue_fn *epilogue;
};

/* The best whose level is in `levels`; never NULL.  The table, best first. */
const struct int4_kernel *int4_select(uint32_t levels);
const struct int4_kernel *int4_kernels(size_t *count);

struct int4_weights {
    const struct int4_kernel *kernel;
    uint32_t n, k;
    uint32_t group;        /* 32, 64 or 128 */
    const uint8_t *panels; /* int4_packed_bytes(), 64-byte aligned */
};

/* Multipliers and blocks of one group of a panel. */
static inline size_t int4_group_bytes(const struct int4_kernel *kernel, uint32_t group)
{
    return kernel->nr * (sizeof(uint16_t) + group / 2);
}

static inline size_t int4_panel_bytes(const struct int4_kernel *kernel, uint32_t k, uint32_t group)
{
    return (k + (size_t)group - 1) / group * int4_group_bytes(kernel, group);
}

/* 0, or -EINVAL for a group that is none of the three, -ERANGE for k outside 1..GEMM_K_MAX. */
int int4_check(uint32_t k, uint32_t group);

/* A multiple of 64. */
size_t int4_packed_bytes(const struct int4_kernel *kernel, uint32_t n, uint32_t k, uint32_t group);

/*
 * Packs b: row j at b + j * stride_bytes, two weights a byte, the lower k in the low half, each a
 * two's complement s4; ceil(k / 2) bytes a row (of an odd k the last high half is ignored).
 * multipliers: n rows of ceil(k / group) (quantize_s4 makes both).  Every byte of `panels` is
 * written.  weighted_sums: n floats, the exact sum rounded once.
 */
void int4_pack(const struct int4_kernel *kernel, uint32_t n, uint32_t k, uint32_t group,
               const uint8_t *b, size_t stride_bytes, const uint16_t *multipliers, uint8_t *panels,
               float *weighted_sums);

/* bias[j] = bias[j] - (float)a_zero_point * weighted_sums[j] * scale[j], left to right. */
void int4_bias(uint32_t n, int32_t a_zero_point, const float *weighted_sums, const float *scale,
               float *bias);

/* C rows = epilogue(A rows * B^T) for columns [n_begin, n_end); as gemm_run, with nr of this
 * kernel.  epilogue->weighted_sums is given; a_type U8; c_type not S32. */
void int4_run(const struct int4_weights *weights, const struct gemm_epilogue *epilogue, size_t rows,
              const uint8_t *const *a, void *const *c, size_t n_begin, size_t n_end);

/* As gemm_run_dynamic. */
void int4_run_dynamic(const struct int4_weights *weights, const struct gemm_epilogue *epilogue,
                      const struct gemm_dynamic *dynamic, size_t rows, const void *const *a,
                      void *const *c, size_t n_begin, size_t n_end);

#endif
