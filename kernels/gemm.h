/*
 * The contract between the macro-kernel, the micro-kernels and whoever calls them.
 *
 *     C [m x n] = epilogue( A [m x k] * B [n x k]^T )
 *
 * A: u8 or s8 rows, given as an array of row pointers, so that a plain job (constant stride), a
 *    coalesced job (rows of several sessions) and a convolution (taps) are the same call
 *    (the indirect GEMM of XNNPACK; M. Dukhan, "The Indirect Convolution Algorithm", 2019).
 * B: s8 weights, packed once into panels (kernels/pack.h).
 * C: rows given as pointers; element type chosen by the epilogue (kernels/epilogue.h).
 *
 * Numeric contract: every level yields the same bits as kernels/ref.  The accumulator is s32,
 * exact modulo 2^32; k is limited (GEMM_K_MAX) so that it cannot wrap.
 *
 * No function here allocates, locks, logs, or makes a system call.  Preconditions are asserted.
 */
#ifndef GEMMD_KERNELS_GEMM_H
#define GEMMD_KERNELS_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu.h"

/* Values are the wire's (proto/abi.h); the worker static_asserts that they agree. */
enum gemm_type {
    GEMM_TYPE_U8 = 1,
    GEMM_TYPE_S8 = 2,
    GEMM_TYPE_S32 = 3,
    GEMM_TYPE_F32 = 4,
    GEMM_TYPE_BF16 = 5,
};

/* What each computes, and how exactly: kernels/activation.h. */
enum gemm_activation {
    GEMM_ACTIVATION_NONE = 0,
    GEMM_ACTIVATION_RELU = 1,
    GEMM_ACTIVATION_CLIP = 2,
    GEMM_ACTIVATION_GELU_TANH = 3,
    GEMM_ACTIVATION_GELU_ERF = 4,
    GEMM_ACTIVATION_SILU = 5,
    GEMM_ACTIVATION_COUNT
};

enum {
    /* 255 * 128 * 65536 = 2,139,095,040 < 2^31: no sum of k products of u8 * s8 can wrap. */
    GEMM_K_MAX = 65536,
    /* With zero points of B both factors span 0..255: 255 * 255 * 33025 = 2,147,450,625 < 2^31. */
    GEMM_K_MAX_B_ZERO_POINTS = 33025,
    /* Rows per gemm_run call: bounds the caller's row-pointer tables (16 KiB for A and C). */
    GEMM_ROWS_MAX = 1024,
    /* Upper bounds over all kernels of the table, for buffers on the stack. */
    GEMM_MR_MAX = 32,
    GEMM_NR_MAX = 64,
    /* Rows that a kernel with `gather` takes at one distance. */
    GEMM_RUN_ROWS = 16,
    /* Panels and per-column arrays start and end on this alignment (a cache line). */
    GEMM_ALIGN = 64,
};

/*
 * Micro-kernel: acc[i * nr + j] = sum over t < k of a[i][t] * panel(j, t), for i < m (1 <= m <= mr)
 * and j < n, the panel's columns: nr, or in the last panel a multiple of n_step.  `a` holds m row
 * pointers; row i is read only inside a[i][0 .. k), whatever k is (guard pages test that).
 * `a_flip` is 0 for u8 rows; for s8 rows it is 0x80, and the kernel uses (a ^ 0x80) as u8, that is
 * a + 128; the caller corrects by 128 * column sum in the epilogue's offset.  `panel` is one packed
 * panel of n columns, padded to kr with zeros, 64-byte aligned.  `acc` is 64-byte aligned.  Its
 * rows beyond m and columns beyond n are unspecified afterwards.
 */
typedef void gemm_ukernel_fn(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                             const int8_t *panel, int32_t *acc);

/* The same, and leaves the rows at copy + i * copy_stride for the next panels: as u8, and with
 * bytes that may be read up to a multiple of GEMM_ALIGN, as `copy` and copy_stride are. */
typedef void gemm_gather_fn(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                            const int8_t *panel, uint8_t *copy, size_t copy_stride, int32_t *acc);

/* The same for a thread that may be called away (kernels/pausing.h): asks every so often, with the
 * sums where they are, in registers.  False: not for that m or k, and nothing was done. */
struct pausing;
typedef bool gemm_pausing_fn(size_t m, size_t n, size_t k, const uint8_t *const *a, uint8_t a_flip,
                             const int8_t *panel, int32_t *acc, const struct pausing *pausing);

/* Where a kernel has begin and end, its ukernel runs only between them, on the same thread, with
 * the m that begin got. */
typedef void gemm_begin_fn(size_t m);

/* Whether the rows have a constant distance: all of them looked at without an exit on the way,
 * because vectors take less of a short call than a loop. */
static inline bool gemm_is_run(size_t m, const uint8_t *const *a)
{
    ptrdiff_t differences = 0;

    for (size_t i = 2; i < m; i++)
        differences |= (a[i] - a[i - 1]) ^ (a[1] - a[0]);
    return differences == 0;
}

/* Whether the first GEMM_RUN_ROWS of up to twice as many rows are a run, and the others another:
 * rows of one job, or of two that begin where a tile does. */
static inline bool gemm_are_runs(size_t m, const uint8_t *const *a)
{
    if (m <= GEMM_RUN_ROWS)
        return gemm_is_run(m, a);
    return gemm_is_run(GEMM_RUN_ROWS, a) && gemm_is_run(m - GEMM_RUN_ROWS, a + GEMM_RUN_ROWS);
}

/* Distance of copied rows of k bytes: whole cache lines, an odd number of them, so that rows spread
 * over all sets of L1. */
static inline size_t gemm_copy_stride(size_t k)
{
    return ((k + GEMM_ALIGN - 1) / GEMM_ALIGN | 1) * GEMM_ALIGN;
}

struct gemm_epilogue;

/* Epilogue of a tile: for i < m, j < n (n <= nr):
 *     c[i][column + j] = f(acc[i * nr + j], row + i, column + j)
 * where `row` and `column` index the epilogue's arrays.  See kernels/epilogue.h for f.  Writes
 * nothing outside those m * n elements. */
typedef void gemm_epilogue_fn(size_t m, size_t n, size_t nr, const int32_t *acc,
                              const struct gemm_epilogue *epilogue, size_t row, size_t column,
                              void *const *c);

/* A tile and several panels, or any rows and one panel. */
struct gemm_span {
    size_t m, k;
    const uint8_t *const *a; /* m rows */
    uint8_t a_flip;
    uint8_t *copy; /* not NULL: the rows are left there, as gemm_gather_fn leaves them */
    size_t copy_stride;
    const int8_t *panels; /* the first one */
    size_t column, columns;
    void *const *c; /* m rows, of which the first `again` are written already */
    size_t again;
};

/* Multiplies and finishes a span.  The number of columns done, from span->column on: 0 where tile
 * or epilogue are not the function's. */
typedef size_t gemm_fused_fn(const struct gemm_span *span, const struct gemm_epilogue *epilogue);

/* One row of the dispatch table: kernel, tile and packed layout are chosen together, so that a
 * layout can never disagree with its kernel. */
struct gemm_kernel {
    const char *name; /* "gemm_u8s8s32_12x64c4_avx512vnni" */
    enum cpu_level level;
    uint16_t id;            /* stable number, reported in completions and stored in packed files */
    uint16_t mr, nr, kr;    /* kr: consecutive k bytes of one column that lie together in a panel */
    uint16_t n_step;        /* columns of the last panel: the next multiple of this */
    bool narrow_pairs;      /* right for weights with narrow pairs alone: kernels/pack.h */
    uint32_t b_group_bytes; /* panels that pass by one tile of rows, from L2; 0: one panel */
    gemm_ukernel_fn *ukernel;
    gemm_gather_fn *gather; /* given where ukernel reads in place only what gemm_are_runs allows */
    gemm_pausing_fn *pausing;   /* or NULL: its k is cut into parts */
    gemm_begin_fn *begin, *end; /* both or neither */
    gemm_epilogue_fn *epilogue;
    gemm_fused_fn *fused;       /* a tile and several panels, or NULL */
    gemm_fused_fn *fused_panel; /* any rows and one panel, or NULL */
    uint32_t fused_panel_k;     /* the longest k for which it is the faster one */
};

/* The best kernel whose level is in `levels` (a mask of 1u << level).  Never NULL: the reference is
 * in every mask. */
const struct gemm_kernel *gemm_select(uint32_t levels);

/* The kernel that is faster than `kernel`, which takes any weights, for those with narrow pairs: of
 * its level and with its layout.  NULL: there is none.  A table row, but never what is selected or
 * named for packing. */
const struct gemm_kernel *gemm_narrow(const struct gemm_kernel *kernel);

/* `kernel`, or gemm_narrow of it, for packed weights, all of which are looked at where it matters:
 * some 10 GB/s, up to the first pair that is not narrow. */
const struct gemm_kernel *gemm_select_for_weights(const struct gemm_kernel *kernel, uint32_t n,
                                                  uint32_t k, const int8_t *panels);

/* A fixed small problem on `kernel`, whose level must be present: what a measurement times. */
void gemm_probe_run(const struct gemm_kernel *kernel);

/* Nanoseconds gemm_probe_run(kernel) takes.  The caller's, because no clock is read here. */
typedef uint64_t gemm_measure_fn(const struct gemm_kernel *kernel);

/* gemm_select, except that an AMX kernel has to be faster than the best kernel without AMX, by the
 * least of some measurements in turn (kernels/select.c). */
const struct gemm_kernel *gemm_select_measured(uint32_t levels, gemm_measure_fn *measure);

/* The table, best first; *count rows.  For tests, benchmarks and `gemmctl info`. */
const struct gemm_kernel *gemm_kernels(size_t *count);

/* Packed weights ready to run: what one layer owns.  Read-only once built. */
struct gemm_weights {
    const struct gemm_kernel *kernel;
    uint32_t n, k;
    const int8_t *panels; /* gemm_packed_bytes(kernel, n, k), 64-byte aligned */
};

/* C rows = epilogue(A rows * B^T) for columns [n_begin, n_end).
 *   rows            1 <= rows <= GEMM_ROWS_MAX
 *   n_begin, n_end  n_begin a multiple of kernel->nr; n_end likewise or == weights->n
 *   a, c            `rows` pointers each; c[i] points at column 0 of its row
 * Blocks over rows and panels only; k is never split, so that an accumulator stays in registers.
 * Reads a row only inside its k bytes, writes a C row only inside [n_begin, n_end). */
void gemm_run(const struct gemm_weights *weights, const struct gemm_epilogue *epilogue, size_t rows,
              const uint8_t *const *a, void *const *c, size_t n_begin, size_t n_end);

#endif
