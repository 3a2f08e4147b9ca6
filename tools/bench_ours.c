/*
 * Our side: pack once, run many times; strided, gathered, and on two threads, each with half of the
 * columns, which start and end together at a spin barrier.
 */
#include "tools/bench.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/epilogue.h"
#include "kernels/pack.h"

struct bench_ours {
    struct gemm_weights weights;
    struct gemm_epilogue epilogue;
    int8_t *panels;
    int32_t *offset;
    uint8_t *scattered; /* the rows of A in buffers of their own */
    const uint8_t **a_rows, **gathered_rows;
    void **c_rows;
    size_t panels_bytes, column_bytes, scattered_bytes;
    uint32_t m, n_half;

    pthread_t thread;
    unsigned int cpu;
    /* The barrier: the caller counts `started` up, the thread answers in `ended`. */
    uint32_t started, ended;
    bool stop;
};

static const struct gemm_kernel *selected;

static uint64_t probe_ns(const struct gemm_kernel *kernel)
{
    uint64_t begin = bench_now_ns();

    gemm_probe_run(kernel);
    return bench_now_ns() - begin;
}

/* The kernel of exactly this level; NULL where it is not present. */
static const struct gemm_kernel *kernel_of_level(const char *level, uint32_t present)
{
    size_t count;
    const struct gemm_kernel *kernels = gemm_kernels(&count);

    for (size_t i = 0; i < count; i++) {
        if (!strcmp(cpu_level_name(kernels[i].level), level))
            return present & UINT32_C(1) << kernels[i].level ? &kernels[i] : NULL;
    }
    return NULL;
}

bool bench_ours_select(const char *level, bool narrow, const char **kernel_name,
                       const char **level_name)
{
    uint32_t present = cpu_detect(), mask;

    if (!cpu_mask_parse(getenv("GEMMD_CPU_MASK"), &mask))
        return false;
    present &= mask;
    selected = level ? kernel_of_level(level, present) : gemm_select_measured(present, probe_ns);
    if (!selected)
        return false;
    *kernel_name = (narrow && gemm_narrow(selected) ? gemm_narrow(selected) : selected)->name;
    *level_name = cpu_level_name(selected->level);
    return true;
}

bool bench_ours_select_kernel(const char *name)
{
    size_t count;
    const struct gemm_kernel *kernels = gemm_kernels(&count);
    uint32_t present = cpu_detect();

    selected = NULL;
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(kernels[i].name, name) && present & UINT32_C(1) << kernels[i].level)
            selected = &kernels[i];
    }
    return selected != NULL;
}

static void *checked(void *memory)
{
    if (!memory) {
        fprintf(stderr, "gemmd-bench: out of memory\n");
        exit(EXIT_FAILURE);
    }
    return memory;
}

/* Row i in slot (i * odd) mod 2^x, at a distance that is no multiple of the row length. */
static void scatter(struct bench_ours *ours, const struct bench_problem *problem,
                    struct bench_machine *machine)
{
    size_t slots = 1, slot_bytes = ((size_t)problem->shape.k + 63) / 64 * 64 + 192;

    while (slots < ours->m)
        slots *= 2;
    ours->scattered_bytes = slots * slot_bytes;
    ours->scattered = bench_alloc(machine, ours->scattered_bytes);
    for (uint32_t i = 0; i < ours->m; i++) {
        uint8_t *to = ours->scattered + (i * (size_t)40503 & (slots - 1)) * slot_bytes;

        memcpy(to, ours->a_rows[i], problem->shape.k);
        ours->gathered_rows[i] = to;
    }
}

struct bench_ours *bench_ours_open(const struct bench_problem *problem,
                                   struct bench_machine *machine)
{
    struct bench_ours *ours = checked(calloc(1, sizeof(*ours)));
    uint32_t n = problem->shape.n, k = problem->shape.k, nr = selected->nr;

    ours->m = problem->shape.m;
    ours->n_half = (n + 2 * nr - 1) / (2 * nr) * nr;
    ours->panels_bytes = gemm_packed_bytes(selected, n, k);
    ours->column_bytes = ((size_t)n + GEMM_NR_MAX) * sizeof(int32_t);
    ours->panels = bench_alloc(machine, ours->panels_bytes);
    ours->offset = bench_alloc(machine, ours->column_bytes);
    ours->a_rows = checked(calloc(ours->m, sizeof(*ours->a_rows)));
    ours->gathered_rows = checked(calloc(ours->m, sizeof(*ours->gathered_rows)));
    ours->c_rows = checked(calloc(ours->m, sizeof(*ours->c_rows)));
    for (uint32_t i = 0; i < ours->m; i++) {
        ours->a_rows[i] = problem->a + (size_t)i * k;
        ours->c_rows[i] = problem->c + (size_t)i * n;
    }
    scatter(ours, problem, machine);
    gemm_pack(selected, n, k, problem->b, k, ours->panels, ours->offset);
    gemm_offset(n, GEMM_TYPE_U8, 0, ours->offset, NULL, ours->offset);
    ours->weights = (struct gemm_weights){gemm_select_for_weights(selected, n, k, ours->panels), n,
                                          k, ours->panels};
    ours->epilogue = (struct gemm_epilogue){
        .a_type = GEMM_TYPE_U8,
        .c_type = GEMM_TYPE_U8,
        .activation = GEMM_ACTIVATION_RELU,
        .inverse_c_scale = 1.0f,
        .offset = ours->offset,
        .scale = problem->scale,
        .bias = problem->bias,
    };
    return ours;
}

void bench_ours_close(struct bench_ours *ours)
{
    bench_free(ours->panels, ours->panels_bytes);
    bench_free(ours->offset, ours->column_bytes);
    bench_free(ours->scattered, ours->scattered_bytes);
    free(ours->a_rows);
    free(ours->gathered_rows);
    free(ours->c_rows);
    free(ours);
}

static void run(struct bench_ours *ours, const uint8_t *const *rows, uint32_t n_begin,
                uint32_t n_end)
{
    for (uint32_t i = 0; i < ours->m && n_begin < n_end; i += GEMM_ROWS_MAX) {
        uint32_t count = ours->m - i < GEMM_ROWS_MAX ? ours->m - i : GEMM_ROWS_MAX;

        gemm_run(&ours->weights, &ours->epilogue, count, rows + i, ours->c_rows + i, n_begin,
                 n_end);
    }
}

void bench_ours_run(struct bench_ours *ours)
{
    run(ours, ours->a_rows, 0, ours->weights.n);
}

void bench_ours_run_gathered(struct bench_ours *ours)
{
    run(ours, ours->gathered_rows, 0, ours->weights.n);
}

/* ---- two threads ----------------------------------------------------------------------------- */

static void *second_half(void *argument)
{
    struct bench_ours *ours = argument;

    bench_pin(&ours->cpu, 1);
    __atomic_store_n(&ours->ended, 1, __ATOMIC_RELEASE); /* turn 1: being there */
    for (uint32_t turn = 2;; turn++) {
        while (__atomic_load_n(&ours->started, __ATOMIC_ACQUIRE) != turn)
            ; /* pairs with the release in bench_ours_run_two and _stop */
        if (ours->stop)
            return NULL;
        run(ours, ours->a_rows, ours->n_half, ours->weights.n);
        __atomic_store_n(&ours->ended, turn, __ATOMIC_RELEASE);
    }
}

void bench_ours_start(struct bench_ours *ours, unsigned int cpu)
{
    ours->started = 1;
    ours->ended = 0;
    ours->stop = false;
    ours->cpu = cpu;
    if (pthread_create(&ours->thread, NULL, second_half, ours)) {
        fprintf(stderr, "gemmd-bench: no second thread\n");
        exit(EXIT_FAILURE);
    }
    while (__atomic_load_n(&ours->ended, __ATOMIC_ACQUIRE) != 1)
        ; /* pairs with the release in second_half */
}

void bench_ours_run_two(struct bench_ours *ours)
{
    uint32_t turn = ours->started + 1;

    __atomic_store_n(&ours->started, turn, __ATOMIC_RELEASE);
    run(ours, ours->a_rows, 0, ours->n_half < ours->weights.n ? ours->n_half : ours->weights.n);
    while (__atomic_load_n(&ours->ended, __ATOMIC_ACQUIRE) != turn)
        ; /* pairs with the release in second_half */
}

void bench_ours_stop(struct bench_ours *ours)
{
    ours->stop = true;
    __atomic_store_n(&ours->started, ours->started + 1, __ATOMIC_RELEASE);
    pthread_join(ours->thread, NULL);
}
