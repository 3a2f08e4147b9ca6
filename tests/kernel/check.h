/*
 * What the parts of checkgemm share: seeded random numbers, guarded memory, the shapes, and the one
 * way to report a difference.  checkgemm.c owns the run; each check_*.c is one family of checks.
 */
#ifndef GEMMD_TESTS_KERNEL_CHECK_H
#define GEMMD_TESTS_KERNEL_CHECK_H

#ifdef NDEBUG
#error "tests need their assertions"
#endif

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/epilogue.h"
#include "kernels/gemm.h"
#include "kernels/pack.h"

/* ---- the run (checkgemm.c) ------------------------------------------------------------------- */

/* The kernel under test and what is being done with it: printed when something differs or a signal
 * arrives. */
struct check_context {
    const char *kernel_name;
    char what[160];
    uint64_t checks_done;
    uint64_t failures;
};

extern struct check_context check_context;

/* Describes the step about to run; a fault inside it is reported with this text. */
__attribute__((format(printf, 1, 2))) void check_step(const char *format, ...);

/* Counts one check; when `ok` is false, prints the current step and `detail` (the first few). */
__attribute__((format(printf, 2, 3))) void check(bool ok, const char *detail, ...);

/* ---- random numbers and distributions (random.c) --------------------------------------------- */

void random_seed(uint64_t seed);
uint64_t random_u64(void);
/* In [0, bound). */
uint32_t random_below(uint32_t bound);

/* Distributions picked to meet the places where int8 kernels break; every one is valid for u8 and
 * s8 alike (bytes). */
enum fill {
    FILL_UNIFORM,
    FILL_MAXIMAL,     /* A 255 (u8) or 127 (s8), B 127: the largest positive sums */
    FILL_MINIMAL,     /* B -128 against A 255 or -128: the largest negative (or flipped) sums */
    FILL_ALTERNATING, /* extremes changing sign in pairs: saturates vpmaddubsw both ways */
    FILL_EXTREMES,    /* each byte one of 0, 1, 127, 128, 254, 255 */
    FILL_SPARSE,      /* one byte in 16 */
    FILL_COUNT
};

const char *fill_name(enum fill fill);
void fill_a(enum fill fill, uint8_t *to, size_t bytes, enum gemm_type a_type);
void fill_b(enum fill fill, int8_t *to, size_t bytes);
/* For a kernel that needs narrow pairs: those of n rows of k that are not become 128 + 0, 64 + 64,
 * -128 + 0 and the like. */
void narrow_b(const struct gemm_kernel *kernel, int8_t *b, size_t n, size_t k);

/* ---- guarded memory (guard.c) ---------------------------------------------------------------- */

/* Readable bytes between two inaccessible pages. */
struct guard {
    uint8_t *data; /* `bytes` bytes: at the end of its pages, or at their beginning */
    size_t bytes;
    uint8_t *mapping;
    size_t mapping_bytes;
};

enum guard_side {
    GUARD_AFTER,  /* data[bytes] faults */
    GUARD_BEFORE, /* data[-1] faults */
};

/* Room for up to `bytes`; never fails (exits).  guard_place moves `data` in the same mapping. */
void guard_alloc(struct guard *guard, size_t bytes);
void guard_place(struct guard *guard, size_t bytes, enum guard_side side);
void guard_free(struct guard *guard);

/* 64-byte aligned memory, zeroed; exits when there is none.  Release with free(). */
void *check_alloc(size_t bytes);

/* ---- the families ---------------------------------------------------------------------------- */

void check_pack(const struct gemm_kernel *kernel);
void check_ukernel(const struct gemm_kernel *kernel);
/* Of a kernel for narrow pairs: all of them, and that its bound is sharp. */
void check_narrow_pairs(const struct gemm_kernel *kernel);
void check_epilogue(const struct gemm_kernel *kernel);
void check_activation(const struct gemm_kernel *kernel);
void check_run(const struct gemm_kernel *kernel);
void check_dynamic(const struct gemm_kernel *kernel);

/* Once per run: fixed cases with answers worked out by hand, against the reference. */
void check_reference(void);
void check_activation_reference(void);
void check_quantize_reference(void);
void check_cpu(void);
void check_select(void);
void check_narrow_choice(void);

/* The AMX kernels on a model of the tiles (amx_model*.c; x86-64 only), and whether they left them
 * released. */
const struct gemm_kernel *amx_model(void);
bool amx_model_released(void);
struct int4_kernel;
const struct int4_kernel *amx_model_int4(void);
bool amx_model_int4_released(void);
/* The AVX-VNNI kernels on a model of vpdpbusd (avxvnni_model*.c; need AVX2). */
const struct gemm_kernel *avxvnni_model(void);
const struct int4_kernel *avxvnni_model_int4(void);

/* Prints what gemm_select_measured chooses here. */
void report_select(uint32_t levels);

/* Tables of their own, each row printed as PASS, FAIL or SKIP. */
void check_quantize(uint32_t levels);
void check_int4(uint32_t levels);

/* GOPS of every kernel of `levels` whose name contains `filter` (NULL: all). */
void bench(uint32_t levels, const char *filter);

/* The cost of epilogues, float rows and int4 weights, on the best of `levels`. */
void bench_operands(uint32_t levels);

/* The oracle of all: sum over t of a[t] * b[t], with a as u8 or s8. */
int32_t oracle_dot(size_t k, const uint8_t *a, enum gemm_type a_type, const int8_t *b);

#endif
