/*
 * How the loops of these files become what they are meant to be.
 */
#ifndef GEMMD_KERNELS_X86_INLINE_H
#define GEMMD_KERNELS_X86_INLINE_H

#define INLINE static inline __attribute__((always_inline))

/* Whole loops over a register array, of up to 24: an index that survives puts the array into
 * memory. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif

#endif
