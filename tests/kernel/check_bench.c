/* GOPS of each kernel, operands hot: the figures of kernels/README.md. */
#include "tests/kernel/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { KERNELS_MAX = 16, ROUNDS = 9, ROUND_NS = 12 * 1000 * 1000 };

struct shape {
    uint32_t m, n, k;
};

static const struct shape shapes[] = {
    {1, 4096, 1024}, {1, 1024, 1024}, {6, 4096, 1024}, {64, 768, 768}, {256, 1024, 1024},
};

struct setup {
    struct gemm_weights weights;
    struct gemm_epilogue epilogue;
    const uint8_t *a_rows[256];
    void *c_rows[256];
    void *memory[7];
    double samples[ROUNDS];
};

static double now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void setup_open(struct setup *s, const struct gemm_kernel *kernel, const struct shape *shape,
                       enum gemm_type a_type)
{
    size_t columns = (shape->n + (size_t)GEMM_NR_MAX) * 4;
    int8_t *b = check_alloc((size_t)shape->n * shape->k);
    uint8_t *a = check_alloc((size_t)shape->m * shape->k);
    uint8_t *c = check_alloc((size_t)shape->m * shape->n);
    int8_t *panels = check_alloc(gemm_packed_bytes(kernel, shape->n, shape->k));
    int32_t *offset = check_alloc(columns);
    float *scale = check_alloc(columns), *bias = check_alloc(columns);

    fill_a(FILL_UNIFORM, a, (size_t)shape->m * shape->k, a_type);
    fill_b(FILL_UNIFORM, b, (size_t)shape->n * shape->k);
    narrow_b(kernel, b, shape->n, shape->k);
    gemm_pack(kernel, shape->n, shape->k, b, shape->k, panels, offset);
    gemm_offset(shape->n, a_type, 0, offset, NULL, offset);
    for (uint32_t j = 0; j < shape->n; j++)
        scale[j] = 1e-4f;
    for (uint32_t i = 0; i < shape->m; i++) {
        s->a_rows[i] = a + (size_t)i * shape->k;
        s->c_rows[i] = c + (size_t)i * shape->n;
    }
    s->weights = (struct gemm_weights){kernel, shape->n, shape->k, panels};
    s->epilogue = (struct gemm_epilogue){
        .a_type = a_type,
        .c_type = GEMM_TYPE_U8,
        .c_zero_point = 128,
        .inverse_c_scale = 1.0f,
        .offset = offset,
        .scale = scale,
        .bias = bias,
    };
    memcpy(s->memory, (void *[]){b, a, c, panels, offset, scale, bias}, sizeof(s->memory));
}

/* GOPS (two operations per multiply-add) over calls that fill about ROUND_NS. */
static double measure(struct setup *s, const struct shape *shape)
{
    double begin = now_ns(), end;
    uint64_t calls = 0;

    do {
        gemm_run(&s->weights, &s->epilogue, shape->m, s->a_rows, s->c_rows, 0, shape->n);
        calls++;
        end = now_ns();
    } while (end - begin < ROUND_NS);
    return 2.0 * shape->m * shape->n * shape->k * (double)calls / (end - begin);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Rounds go through the kernels in turn, so that a noisy moment does not fall on one of them. */
static void bench_shape(const struct gemm_kernel *const *kernels, size_t count,
                        const struct shape *shape, enum gemm_type a_type)
{
    struct setup *setups = check_alloc(count * sizeof(*setups));

    for (size_t i = 0; i < count; i++) {
        setup_open(&setups[i], kernels[i], shape, a_type);
        measure(&setups[i], shape);
    }
    for (size_t round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < count; i++)
            setups[i].samples[round] = measure(&setups[i], shape);
    }
    for (size_t i = 0; i < count; i++) {
        double *samples = setups[i].samples;

        qsort(samples, ROUNDS, sizeof(*samples), compare);
        printf("%-36s a=%s (%u,%u,%u) %8.1f GOPS (%.1f..%.1f)\n", kernels[i]->name,
               a_type == GEMM_TYPE_S8 ? "s8" : "u8", shape->m, shape->n, shape->k,
               samples[ROUNDS / 2], samples[0], samples[ROUNDS - 1]);
        for (size_t j = 0; j < sizeof(setups[i].memory) / sizeof(setups[i].memory[0]); j++)
            free(setups[i].memory[j]);
    }
    free(setups);
}

void bench(uint32_t levels, const char *filter)
{
    const struct gemm_kernel *chosen[KERNELS_MAX];
    size_t row_count, count = 0;
    const struct gemm_kernel *rows = gemm_kernels(&row_count);

    for (size_t i = 0; i < row_count && count < KERNELS_MAX; i++) {
        if (levels & 1u << rows[i].level && (!filter || strstr(rows[i].name, filter)) &&
            (rows[i].level != CPU_LEVEL_REF || filter)) /* the reference takes seconds a call */
            chosen[count++] = &rows[i];
    }
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        bench_shape(chosen, count, &shapes[i], GEMM_TYPE_U8);
        bench_shape(chosen, count, &shapes[i], GEMM_TYPE_S8);
    }
}
