/* The choice by measurement, with times of our own; and the real measurement, where it can run. */
#include "tests/kernel/check.h"

#include <stdio.h>
#include <time.h>

enum { AMX = 1u << CPU_LEVEL_AMX, VNNI = 1u << CPU_LEVEL_AVX512VNNI, AVX2 = 1u << CPU_LEVEL_AVX2 };

/* What the next measurements answer, per side, in turn. */
static const uint64_t *amx_ns, *other_ns;
static size_t amx_calls, other_calls;

static uint64_t scripted(const struct gemm_kernel *kernel)
{
    return kernel->level == CPU_LEVEL_AMX ? amx_ns[amx_calls++ % 3] : other_ns[other_calls++ % 3];
}

static void check_choice(uint32_t levels, const uint64_t *amx, const uint64_t *other,
                         enum cpu_level expected, bool measured)
{
    const struct gemm_kernel *chosen;

    check_step("measured choice, levels %#x, amx %llu %llu %llu, other %llu %llu %llu", levels,
               (unsigned long long)amx[0], (unsigned long long)amx[1], (unsigned long long)amx[2],
               (unsigned long long)other[0], (unsigned long long)other[1],
               (unsigned long long)other[2]);
    amx_ns = amx;
    other_ns = other;
    amx_calls = other_calls = 0;
    chosen = gemm_select_measured(levels, scripted);
    check(chosen->level == expected, "chose %s", chosen->name);
    check((amx_calls > 0) == measured && amx_calls == other_calls, "%zu and %zu measurements",
          amx_calls, other_calls);
}

void check_select(void)
{
    static const uint64_t fast[] = {10, 10, 10}, slow[] = {20, 20, 20};
    static const uint64_t disturbed[] = {5000, 10, 9000}, near[] = {11, 12, 5000};

    check_context.kernel_name = "select";
    if (gemm_select(AMX)->level != CPU_LEVEL_AMX)
        return; /* not built for x86-64: nothing to choose between */
    check_choice(AMX | VNNI | AVX2, fast, slow, CPU_LEVEL_AMX, true);
    check_choice(AMX | VNNI | AVX2, slow, fast, CPU_LEVEL_AVX512VNNI, true);
    check_choice(AMX | AVX2, slow, fast, CPU_LEVEL_AVX2, true);
    check_choice(AMX | VNNI, fast, fast, CPU_LEVEL_AVX512VNNI, true); /* a tie: the simpler one */
    check_choice(AMX | VNNI, disturbed, near, CPU_LEVEL_AMX, true);   /* the least counts */
    check_choice(AMX | VNNI, near, disturbed, CPU_LEVEL_AVX512VNNI, true);
    check_choice(VNNI | AVX2, slow, fast, CPU_LEVEL_AVX512VNNI, false); /* masked: not measured */
    check_choice(0, slow, fast, CPU_LEVEL_REF, false);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t measured(const struct gemm_kernel *kernel)
{
    uint64_t begin = now_ns();

    gemm_probe_run(kernel);
    return now_ns() - begin;
}

void report_select(uint32_t levels)
{
    uint64_t begin = now_ns();
    const struct gemm_kernel *chosen = gemm_select_measured(levels, measured);
    uint64_t end = now_ns();

    if (gemm_select(levels)->level == CPU_LEVEL_AMX)
        printf("measured choice: %s, after %llu us\n", chosen->name,
               (unsigned long long)(end - begin) / 1000);
    else
        printf("SKIP measured choice: no AMX in these levels\n");
}
