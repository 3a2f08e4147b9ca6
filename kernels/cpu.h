/*
 * Which instruction-set level this CPU can run.
 *
 * A level is a deployment bundle, not a single cpuid bit: a kernel of level L may use every
 * instruction of the bundle.  Detection is cpuid AND xgetbv (the operating system must save the
 * registers; Intel SDM vol. 1, 13.2) AND, for AMX, the kernel's permission
 * (arch_prctl ARCH_REQ_XCOMP_PERM, Linux Documentation/arch/x86/xstate.rst).
 */
#ifndef GEMMD_KERNELS_CPU_H
#define GEMMD_KERNELS_CPU_H

#include <stdbool.h>
#include <stdint.h>

enum cpu_level {
    CPU_LEVEL_REF = 0,    /* the scalar reference: every CPU */
    CPU_LEVEL_AVX2,       /* AVX2 */
    CPU_LEVEL_AVXVNNI,    /* AVX2 + AVX-VNNI (256-bit vpdpbusd, VEX) */
    CPU_LEVEL_AVX512,     /* AVX-512 F, BW, DQ, VL without VNNI */
    CPU_LEVEL_AVX512VNNI, /* AVX-512 F, BW, DQ, VL, VNNI */
    CPU_LEVEL_AMX,        /* AVX512VNNI + AMX-TILE + AMX-INT8 */
    CPU_LEVEL_COUNT
};

/* The levels this machine has, bit `1u << level`; CPU_LEVEL_REF is always set.  Asks the kernel for
 * AMX permission when cpuid shows AMX.  Does not apply any mask.  Thread-safe, no side effect
 * beyond that permission. */
uint32_t cpu_detect(void);

/* The levels named by `text`, as a mask for cpu_detect()'s result.
 *   NULL or ""          every level
 *   "avx2"              that level and every lower one in the enumeration's order
 *   "avx2,avx512vnni"   exactly these levels (and ref)
 * Returns true and writes *out; returns false when a name is unknown (*out untouched).  A mask can
 * only remove levels: the caller ANDs it with cpu_detect(). */
bool cpu_mask_parse(const char *text, uint32_t *out);

/* "ref", "avx2", …; never NULL; "?" for a value outside the enumeration. */
const char *cpu_level_name(enum cpu_level level);

#endif
