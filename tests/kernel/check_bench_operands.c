/*
 * What the operands cost: epilogues per output, rows quantised per second beside the bandwidth of
 * this machine, the fused quantisation beside a separate pass, and int4 beside int8 weights.  One
 * thread; medians of interleaved rounds.  "cold" means evicted by clflushopt line by line, because
 * a guest may report a last-level cache larger than any buffer one would like to touch.
 */
#include "tests/kernel/check.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/int4.h"

enum { ROUNDS = 15, SIDES_MAX = 3, HUGE_PAGE = 2 * 1024 * 1024 };

static double now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *samples)
{
    qsort(samples, ROUNDS, sizeof(*samples), compare);
    return samples[ROUNDS / 2];
}

/* Huge pages where the kernel gives them: both sides of a comparison alike. */
static void *huge_alloc(size_t bytes)
{
    size_t rounded = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void *memory = aligned_alloc(HUGE_PAGE, rounded);

    if (!memory) {
        perror("aligned_alloc");
        exit(1);
    }
    madvise(memory, rounded, MADV_HUGEPAGE);
    memset(memory, 0, rounded);
    return memory;
}

/* Out of every cache. */
static void evict(const void *memory, size_t bytes)
{
#if defined(__x86_64__)
    for (size_t at = 0; at < bytes; at += 64)
        __asm__ volatile("clflushopt %0" : : "m"(*((const char *)memory + at)));
    __asm__ volatile("mfence" : : : "memory");
#else
    (void)memory, (void)bytes;
#endif
}

/* ---- epilogues ------------------------------------------------------------------------------- */

static const char *const type_names[] = {"?", "u8", "s8", "s32", "f32", "bf16"};
static const char *const activation_names[GEMM_ACTIVATION_COUNT] = {
    "none", "relu", "clip", "gelu_tanh", "gelu_erf", "silu"};

struct tile_arrays {
    _Alignas(GEMM_ALIGN) int32_t acc[GEMM_MR_MAX * GEMM_NR_MAX];
    _Alignas(GEMM_ALIGN) int32_t offset[GEMM_NR_MAX];
    _Alignas(GEMM_ALIGN) float scale[GEMM_NR_MAX];
    _Alignas(GEMM_ALIGN) float bias[GEMM_NR_MAX];
    float row_scales[GEMM_MR_MAX];
    int32_t row_zero_points[GEMM_MR_MAX];
    float residual[GEMM_MR_MAX][GEMM_NR_MAX];
    uint8_t c[GEMM_MR_MAX][GEMM_NR_MAX * 4];
    const void *residual_rows[GEMM_MR_MAX];
    void *c_rows[GEMM_MR_MAX];
};

static double epilogue_ns(const struct gemm_kernel *kernel, const struct gemm_epilogue *epilogue,
                          struct tile_arrays *x)
{
    enum { CALLS = 1000 };
    double samples[ROUNDS];

    for (size_t round = 0; round < ROUNDS; round++) {
        double begin = now_ns();

        for (size_t call = 0; call < CALLS; call++)
            kernel->epilogue(kernel->mr, kernel->nr, kernel->nr, x->acc, epilogue, 0, 0, x->c_rows);
        samples[round] = (now_ns() - begin) / CALLS / kernel->mr / kernel->nr;
    }
    return median(samples);
}

static void bench_epilogue(const struct gemm_kernel *kernel)
{
    static const enum gemm_type types[] = {GEMM_TYPE_U8, GEMM_TYPE_F32, GEMM_TYPE_BF16};
    struct tile_arrays *x = check_alloc(sizeof(*x));

    for (size_t i = 0; i < GEMM_MR_MAX * GEMM_NR_MAX; i++)
        x->acc[i] = (int32_t)random_below(20000) - 10000;
    for (size_t i = 0; i < GEMM_MR_MAX; i++) {
        x->row_scales[i] = 1.0f;
        x->residual_rows[i] = x->residual[i];
        x->c_rows[i] = x->c[i];
    }
    for (size_t j = 0; j < GEMM_NR_MAX; j++)
        x->scale[j] = 0.0005f;
    for (size_t type = 0; type < sizeof(types) / sizeof(types[0]); type++) {
        for (int activation = 0; activation < GEMM_ACTIVATION_COUNT; activation++) {
            struct gemm_epilogue epilogue = {
                .a_type = GEMM_TYPE_U8,
                .c_type = types[type],
                .activation = (enum gemm_activation)activation,
                .inverse_c_scale = 20.0f,
                .clip_hi = 6.0f,
                .offset = x->offset,
                .scale = x->scale,
                .bias = x->bias,
                .column_sums = x->offset,
            };
            double plain = epilogue_ns(kernel, &epilogue, x), rows, residual = 0;

            epilogue.row_scales = x->row_scales;
            epilogue.row_zero_points = x->row_zero_points;
            rows = epilogue_ns(kernel, &epilogue, x);
            if (types[type] != GEMM_TYPE_U8) {
                epilogue.residual = x->residual_rows;
                epilogue.residual_type = GEMM_TYPE_F32;
                residual = epilogue_ns(kernel, &epilogue, x);
            }
            printf("epilogue %-10s %-4s %-9s plain %.3f, row scale and zero point %.3f, f32 "
                   "residual too %.3f ns/output\n",
                   cpu_level_name(kernel->level), type_names[types[type]],
                   activation_names[activation], plain, rows, residual);
        }
    }
    free(x);
}

/* ---- rows of floats -------------------------------------------------------------------------- */

static uint64_t sink;

/* A read of everything, as fast as this compiler makes it. */
static void read_all(const uint64_t *from, size_t bytes)
{
    uint64_t sum[8] = {0};

    for (size_t i = 0; i + 8 <= bytes / 8; i += 8) {
        for (size_t j = 0; j < 8; j++)
            sum[j] += from[i + j];
    }
    for (size_t j = 0; j < 8; j++)
        sink += sum[j];
}

static void fill_floats(enum gemm_type type, size_t count, void *to)
{
    for (size_t i = 0; i < count; i++) {
        float f = (float)random_below(2001) * 0.001f - 1.0f;
        uint32_t bits;

        memcpy(&bits, &f, sizeof(bits));
        if (type == GEMM_TYPE_F32)
            ((float *)to)[i] = f;
        else
            ((uint16_t *)to)[i] = (uint16_t)(bits >> 16);
    }
}

static void bench_rows(const struct quantize_kernel *kernel, enum gemm_type type, size_t k)
{
    size_t rows = ((size_t)64 << 20) / (k * gemm_type_bytes(type));
    size_t bytes = k * gemm_type_bytes(type);
    uint8_t *a = huge_alloc(rows * bytes), *q = check_alloc(k);
    double hot[ROUNDS], cold[ROUNDS], read[ROUNDS];

    fill_floats(type, rows * k, a);
    for (size_t round = 0; round < ROUNDS; round++) {
        double begin = now_ns();

        for (size_t i = 0; i < 1000; i++)
            quantize_row(kernel, type, QUANTIZE_ASYMMETRIC, k, a, q);
        hot[round] = 1000.0 * (double)bytes / (now_ns() - begin);
        evict(a, rows * bytes);
        begin = now_ns();
        for (size_t i = 0; i < rows; i++)
            quantize_row(kernel, type, QUANTIZE_ASYMMETRIC, k, a + i * bytes, q);
        cold[round] = (double)(rows * bytes) / (now_ns() - begin);
        evict(a, rows * bytes);
        begin = now_ns();
        read_all((const uint64_t *)(const void *)a, rows * bytes);
        read[round] = (double)(rows * bytes) / (now_ns() - begin);
    }
    printf("%-15s %-4s k=%-5zu in cache %6.1f GB/s, from memory %5.1f GB/s; reading alone %5.1f "
           "GB/s\n",
           kernel->name, type_names[type], k, median(hot), median(cold), median(read));
    free(a);
    free(q);
}

/* ---- whole calls ----------------------------------------------------------------------------- */

struct setup {
    uint32_t m, n, k;
    struct gemm_weights weights;
    struct int4_weights int4;
    struct gemm_epilogue epilogue, int4_epilogue;
    struct gemm_dynamic dynamic;
    const void *a_rows[GEMM_ROWS_MAX];
    const uint8_t *q_rows[GEMM_ROWS_MAX];
    void *c_rows[GEMM_ROWS_MAX];
    void *memory[12];
};

static void setup_open(struct setup *s, const struct gemm_kernel *kernel,
                       const struct int4_kernel *int4_kernel, uint32_t group)
{
    size_t columns = (s->n + (size_t)GEMM_NR_MAX) * 4, weights = (size_t)s->n * s->k;
    size_t groups = (s->k + group - 1) / group;
    float *a = huge_alloc((size_t)s->m * s->k * 4), *c = huge_alloc((size_t)s->m * s->n * 4);
    float *scale = check_alloc(columns), *bias = check_alloc(columns);
    float *weighted = check_alloc(columns);
    uint8_t *q = huge_alloc((size_t)s->m * s->k);
    uint8_t *int4_panels = huge_alloc(int4_packed_bytes(int4_kernel, s->n, s->k, group));
    int8_t *b = check_alloc(weights), *panels = huge_alloc(gemm_packed_bytes(kernel, s->n, s->k));
    int32_t *sums = check_alloc(columns), *offset = check_alloc(columns);
    uint16_t *multipliers = check_alloc(s->n * groups * 2);

    fill_floats(GEMM_TYPE_F32, (size_t)s->m * s->k, a);
    fill_b(FILL_UNIFORM, b, weights);
    for (size_t i = 0; i < s->n * groups; i++)
        multipliers[i] = (uint16_t)(30000 + random_below(30000));
    for (uint32_t j = 0; j < s->n; j++)
        scale[j] = 1e-8f;
    gemm_pack(kernel, s->n, s->k, b, s->k, panels, sums);
    int4_pack(int4_kernel, s->n, s->k, group, (const uint8_t *)b, s->k / 2, multipliers,
              int4_panels, weighted);
    for (uint32_t i = 0; i < s->m; i++) {
        s->a_rows[i] = a + (size_t)i * s->k;
        s->q_rows[i] = q + (size_t)i * s->k;
        s->c_rows[i] = c + (size_t)i * s->n;
    }
    s->weights = (struct gemm_weights){kernel, s->n, s->k, panels};
    s->int4 = (struct int4_weights){int4_kernel, s->n, s->k, group, int4_panels};
    s->epilogue = (struct gemm_epilogue){.a_type = GEMM_TYPE_U8,
                                         .c_type = GEMM_TYPE_F32,
                                         .offset = offset,
                                         .scale = scale,
                                         .bias = bias,
                                         .column_sums = sums};
    s->int4_epilogue = s->epilogue;
    s->int4_epilogue.weighted_sums = weighted;
    s->dynamic = (struct gemm_dynamic){
        quantize_select((2u << kernel->level) - 1), GEMM_TYPE_F32, QUANTIZE_ASYMMETRIC,
        check_alloc(gemm_dynamic_scratch_bytes(s->k, kernel->mr, s->m))};
    memcpy(s->memory,
           (void *[]){a, c, scale, bias, weighted, q, int4_panels, b, panels, sums, offset,
                      multipliers},
           sizeof(s->memory));
}

static void setup_close(struct setup *s)
{
    for (size_t i = 0; i < sizeof(s->memory) / sizeof(s->memory[0]); i++)
        free(s->memory[i]);
    free(s->dynamic.scratch);
}

/* Side 0: u8 rows given.  1: float rows, fused.  2: float rows, all quantised before. */
static void dynamic_side(struct setup *s, size_t side)
{
    static float scales[GEMM_ROWS_MAX];
    static int32_t zero_points[GEMM_ROWS_MAX];
    struct gemm_epilogue epilogue = s->epilogue;

    if (side == 1) {
        gemm_run_dynamic(&s->weights, &s->epilogue, &s->dynamic, s->m, s->a_rows, s->c_rows, 0,
                         s->n);
        return;
    }
    if (side == 2) {
        for (uint32_t i = 0; i < s->m; i++) {
            struct quantize_row row =
                quantize_row(s->dynamic.quantize, GEMM_TYPE_F32, QUANTIZE_ASYMMETRIC, s->k,
                             s->a_rows[i], (uint8_t *)s->memory[5] + (size_t)i * s->k);

            scales[i] = row.params.scale;
            zero_points[i] = row.params.zero_point;
        }
    }
    epilogue.row_scales = scales;
    epilogue.row_zero_points = zero_points;
    gemm_run(&s->weights, &epilogue, s->m, s->q_rows, s->c_rows, 0, s->n);
}

/* A evicted before each call, and its u8 copy too; the weights as the call before left them. */
static void bench_dynamic(const struct gemm_kernel *kernel, const struct int4_kernel *int4_kernel,
                          uint32_t m, uint32_t n, uint32_t k)
{
    struct setup *s = check_alloc(sizeof(*s));
    double samples[SIDES_MAX][ROUNDS], us[SIDES_MAX];

    *s = (struct setup){.m = m, .n = n, .k = k};
    setup_open(s, kernel, int4_kernel, 128);
    for (size_t round = 0; round < ROUNDS; round++) {
        for (size_t side = 0; side < SIDES_MAX; side++) {
            double begin;

            evict(s->memory[0], (size_t)m * k * 4);
            evict(s->memory[5], (size_t)m * k);
            begin = now_ns();
            dynamic_side(s, side);
            samples[side][round] = (now_ns() - begin) / 1e3;
        }
    }
    for (size_t side = 0; side < SIDES_MAX; side++)
        us[side] = median(samples[side]);
    printf("dynamic (%u,%u,%u) A cold: u8 given %.1f us, f32 fused %.1f us (%+.1f %%), in two "
           "passes %.1f us (%+.1f %%)\n",
           m, n, k, us[0], us[1], (us[1] / us[0] - 1) * 100, us[2], (us[2] / us[0] - 1) * 100);
    setup_close(s);
    free(s);
}

static void bench_int4(const struct gemm_kernel *kernel, const struct int4_kernel *int4_kernel,
                       uint32_t m, uint32_t n, uint32_t k, uint32_t group, bool cold)
{
    struct setup *s = check_alloc(sizeof(*s));
    double samples[2][ROUNDS], us[2];
    size_t bytes[2];

    *s = (struct setup){.m = m, .n = n, .k = k};
    setup_open(s, kernel, int4_kernel, group);
    bytes[0] = gemm_packed_bytes(kernel, n, k);
    bytes[1] = int4_packed_bytes(int4_kernel, n, k, group);
    for (size_t round = 0; round < ROUNDS; round++) {
        for (size_t side = 0; side < 2; side++) {
            size_t calls = cold ? 1 : 1 + (16 << 20) / bytes[0];
            double begin;

            if (cold)
                evict(side ? s->memory[6] : s->memory[8], bytes[side]);
            begin = now_ns();
            for (size_t call = 0; call < calls; call++) {
                if (side)
                    int4_run(&s->int4, &s->int4_epilogue, m, s->q_rows, s->c_rows, 0, n);
                else
                    gemm_run(&s->weights, &s->epilogue, m, s->q_rows, s->c_rows, 0, n);
            }
            samples[side][round] = (now_ns() - begin) / 1e3 / (double)calls;
        }
    }
    us[0] = median(samples[0]);
    us[1] = median(samples[1]);
    printf(
        "int4 (%u,%u,%u) group %-3u %s: s8 %.1f us (%.1f GB/s), s4 %.1f us (%.1f GB/s), %.2f x\n",
        m, n, k, group, cold ? "cold" : "hot ", us[0], (double)bytes[0] / us[0] / 1e3, us[1],
        (double)bytes[1] / us[1] / 1e3, us[0] / us[1]);
    setup_close(s);
    free(s);
}

void bench_operands(uint32_t levels)
{
    const struct gemm_kernel *kernel = gemm_select(levels);
    const struct int4_kernel *int4_kernel = int4_select(levels);
    const struct quantize_kernel *quantize = quantize_select(levels);

    /* Freed blocks return to the system: one taken from the heap again could not become huge. */
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    bench_epilogue(kernel);
    bench_rows(quantize, GEMM_TYPE_F32, 1024);
    bench_rows(quantize, GEMM_TYPE_F32, 4096);
    bench_rows(quantize, GEMM_TYPE_BF16, 4096);
    bench_dynamic(kernel, int4_kernel, 1, 4096, 1024);
    bench_dynamic(kernel, int4_kernel, 64, 1024, 1024);
    bench_dynamic(kernel, int4_kernel, 512, 1024, 1024);
    bench_dynamic(kernel, int4_kernel, 1024, 64, 4096);
    for (uint32_t group = 32; group <= 128; group *= 2)
        bench_int4(kernel, int4_kernel, 1, 4096, 4096, group, true);
    bench_int4(kernel, int4_kernel, 1, 1024, 1024, 128, true);
    bench_int4(kernel, int4_kernel, 4, 4096, 4096, 128, true);
    bench_int4(kernel, int4_kernel, 1, 4096, 4096, 32, false);
    bench_int4(kernel, int4_kernel, 1, 4096, 4096, 128, false);
    bench_int4(kernel, int4_kernel, 1, 1024, 1024, 128, false);
    bench_int4(kernel, int4_kernel, 16, 4096, 4096, 128, false);
    for (uint32_t group = 32; group <= 128; group *= 2) {
        static const uint32_t m[] = {1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64, 256};

        for (size_t i = 0; i < sizeof(m) / sizeof(m[0]); i++)
            bench_int4(kernel, int4_kernel, m[i], 1024, 1024, group, false);
    }
}
