/*
 * checkgemm: checkasm for GEMM.  Every kernel of the dispatch table that this machine can run is
 * compared bit for bit with the contract; a level the machine lacks is reported as skipped.
 *
 *     checkgemm [--seed N] [--bench | --bench-operands] [NAME]
 *
 * NAME: only kernels whose name contains it.
 *
 * GEMMD_CPU_MASK removes levels.  Exit 0 passed, 1 failed, 77 only the reference could run.
 * The closing line "N passed, N failed, N skipped" counts kernels.
 */
#include "tests/kernel/check.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { FAILURES_PRINTED = 10, EXIT_SKIP = 77 };

struct check_context check_context;
static uint64_t seed;

void check_step(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(check_context.what, sizeof(check_context.what), format, arguments);
    va_end(arguments);
}

void check(bool ok, const char *detail, ...)
{
    va_list arguments;

    check_context.checks_done++;
    if (ok || ++check_context.failures > FAILURES_PRINTED)
        return;
    printf("FAIL %s: %s: ", check_context.kernel_name, check_context.what);
    va_start(arguments, detail);
    vprintf(detail, arguments);
    va_end(arguments);
    printf("\n");
}

/* A guard page, an instruction the CPU lacks, an assertion: name the culprit, then die as a
 * failure. printf is not async-signal-safe, but the fault is ours and in a kernel, which holds no
 * lock. */
static void on_fault(int number)
{
    printf("FAIL %s: %s: signal %d (%s), seed %llu\n", check_context.kernel_name,
           check_context.what, number, strsignal(number), (unsigned long long)seed);
    fflush(stdout);
    _exit(1);
}

static uint64_t seed_from_time(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return ((uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec << 20 ^ (uint64_t)getpid()) & 0xffffffff;
}

/* GEMMD_CPU_MASK and the order of the table: pure, so checked on every machine. */
void check_cpu(void)
{
    static const struct {
        const char *text;
        uint32_t mask; /* 0: must be refused */
    } cases[] = {
        {NULL, 0x3f},      {"", 0x3f},
        {"ref", 0x01},     {"avx2", 0x03},
        {"amx", 0x3f},     {"avx2,avx512vnni", 0x13},
        {"avxvnni", 0x07}, {"avx512vnni", 0x1f},
        {"avx", 0},        {"avx22", 0},
        {",", 0},          {"avx2,", 0},
        {"AVX2", 0},       {" avx2", 0},
    };
    size_t count;
    const struct gemm_kernel *rows = gemm_kernels(&count);

    check_context.kernel_name = "cpu";
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint32_t mask = 0;
        bool ok = cpu_mask_parse(cases[i].text, &mask);

        check_step("mask \"%s\"", cases[i].text ? cases[i].text : "(null)");
        check(ok == (cases[i].mask != 0) && mask == cases[i].mask, "%d, %#x", ok, mask);
    }
    for (size_t i = 0; i < count; i++) {
        check_step("table row %s", rows[i].name);
        check(rows[i].mr <= GEMM_MR_MAX && rows[i].nr <= GEMM_NR_MAX &&
                  GEMM_NR_MAX % rows[i].nr == 0 && rows[i].nr % rows[i].n_step == 0 &&
                  rows[i].nr * 4 % GEMM_ALIGN == 0,
              "tile %ux%u", rows[i].mr, rows[i].nr);
        check((gemm_select(1u << rows[i].level) == &rows[i]) == !rows[i].narrow_pairs,
              "is, or is not, what its level selects");
        for (size_t j = 0; j < i; j++)
            check(rows[i].id != rows[j].id, "the id of %s", rows[j].name);
    }
    check_step("table");
    check(gemm_select(0) == &rows[count - 1] && rows[count - 1].level == CPU_LEVEL_REF,
          "does not end at the reference");
    check(!strcmp(cpu_level_name(CPU_LEVEL_AMX), "amx") &&
              !strcmp(cpu_level_name(CPU_LEVEL_COUNT), "?"),
          "level names");
    check(cpu_detect() & 1, "the reference is always there");
}

/* Returns true when every check of the kernel passed. */
static bool run_kernel(const struct gemm_kernel *kernel)
{
    uint64_t failures = check_context.failures;
    uint64_t checks = check_context.checks_done;

    check_context.kernel_name = kernel->name;
    random_seed(seed); /* so that a filter does not change what a kernel sees */
    check_pack(kernel);
    check_ukernel(kernel);
    if (!kernel->narrow_pairs) { /* the same epilogue with the same nr */
        check_epilogue(kernel);
        check_activation(kernel);
    }
    check_run(kernel);
    check_dynamic(kernel);
    failures = check_context.failures - failures;
    printf("%s %s (%s): %llu checks\n", failures ? "FAIL" : "PASS", kernel->name,
           cpu_level_name(kernel->level), (unsigned long long)(check_context.checks_done - checks));
    fflush(stdout);
    return failures == 0;
}

static int run_all(uint32_t present, uint32_t mask, const char *filter)
{
    unsigned int passed = 0, failed = 0, skipped = 0, vector = 0;
    size_t count;
    const struct gemm_kernel *rows = gemm_kernels(&count);

    check_cpu();
    check_select();
    check_narrow_choice();
    check_reference();
    check_activation_reference();
    check_quantize_reference();
    check_quantize(present & mask);
    check_int4(present & mask);
    if (check_context.failures)
        failed++;
    else
        passed++;
    printf("%s cpu, table and epilogue_ref: %llu checks\n", failed ? "FAIL" : "PASS",
           (unsigned long long)check_context.checks_done);
    for (size_t i = count; i-- > 0;) { /* the reference first: the others lean on it */
        uint32_t bit = 1u << rows[i].level;

        if (filter && !strstr(rows[i].name, filter))
            continue;
        if (!(present & bit) || !(mask & bit)) {
            printf("SKIP %s: %s\n", rows[i].name,
                   present & bit ? "masked by GEMMD_CPU_MASK" : "this CPU lacks the level");
            skipped++;
        } else if (run_kernel(&rows[i])) {
            passed++;
            vector += rows[i].level != CPU_LEVEL_REF;
        } else {
            failed++;
        }
    }
#if CHECK_MODELS
    if (!filter || strstr(avxvnni_model()->name, filter)) {
        if (!(present & (1u << CPU_LEVEL_AVX2))) {
            printf("SKIP %s: this CPU lacks AVX2\n", avxvnni_model()->name);
            skipped++;
        } else if (run_kernel(avxvnni_model())) {
            passed++;
        } else {
            failed++;
        }
    }
    if (!filter || strstr(amx_model()->name, filter)) {
        if (run_kernel(amx_model()) && amx_model_released())
            passed++;
        else
            failed++;
    }
#endif
    report_select(present & mask);
    printf("%u passed, %u failed, %u skipped\n", passed, failed, skipped);
    if (failed)
        return 1;
    if (vector || filter)
        return 0;
    printf("SKIP: no vector level is present and allowed, only the reference ran\n");
    return EXIT_SKIP;
}

int main(int argc, char **argv)
{
    const char *filter = NULL;
    bool want_bench = false, want_bench_operands = false;
    uint32_t present = cpu_detect(), mask;

    seed = seed_from_time();
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--bench")) {
            want_bench = true;
        } else if (!strcmp(argv[i], "--bench-operands")) {
            want_bench_operands = true;
        } else if (!strcmp(argv[i], "--seed") && i + 1 < argc) {
            seed = strtoull(argv[++i], NULL, 0);
        } else if (argv[i][0] != '-') {
            filter = argv[i];
        } else {
            fprintf(stderr, "usage: checkgemm [--seed N] [--bench | --bench-operands] [NAME]\n");
            return 1;
        }
    }
    if (!cpu_mask_parse(getenv("GEMMD_CPU_MASK"), &mask)) {
        fprintf(stderr, "checkgemm: GEMMD_CPU_MASK names an unknown level\n");
        return 1;
    }
    printf("checkgemm --seed %llu\n", (unsigned long long)seed);
    random_seed(seed);
    if (want_bench) {
        bench(present & mask, filter);
        return 0;
    }
    if (want_bench_operands) {
        bench_operands(present & mask);
        return 0;
    }
    for (size_t i = 0; i < 4; i++)
        signal((const int[]){SIGSEGV, SIGBUS, SIGILL, SIGABRT}[i], on_fault);
    return run_all(present, mask, filter);
}
