/*
 * Our side: pack once, run many times; hot, strided and gathered, and on two threads, each with
 * half of the columns, which start and end together at a spin barrier.
 *
 * Strided and gathered rows take turns through copies of A that no L1 holds together (one copy,
 * where A alone exceeds that), so that both sides find a call's rows where a worker finds a job's:
 * not in L1, where a panel of the call before would have left the strided ones.
 */
#include "tools/bench.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/epilogue.h"
#include "kernels/pack.h"

enum {
    COPIES_BYTES = 128 * 1024, /* more than twice any L1, and little of an L2 */
    RUN_ROWS = 16,             /* of a job among others */
};

/* Copies of A, one after the other. */
struct copies {
    uint8_t *memory;
    size_t bytes;
    const uint8_t **rows; /* m of each copy */
    uint32_t count, turn;
};

struct bench_ours {
    struct gemm_weights weights;
    struct gemm_epilogue epilogue;
    int8_t *panels;
    int32_t *offset;
    const uint8_t **a_rows;
    struct copies strided, scattered, runs;
    void **c_rows;
    size_t panels_bytes, column_bytes;
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

/* Rows in runs of `run`, run i at place (i * factor) mod places; factor is odd and places a power
 * of two, or factor is 1. */
static void copies_open(struct copies *copies, const struct bench_problem *problem,
                        struct bench_machine *machine, size_t run, size_t row_bytes,
                        size_t factor)
{
    const uint32_t m = problem->shape.m, k = problem->shape.k;
    const size_t bytes = problem->a_bytes; /* 0: gemmd-bench path has an empty job */
    size_t places = 1;

    while (places * run < m)
        places = factor == 1 ? places + 1 : 2 * places;

    copies->count = bytes ? (uint32_t)((COPIES_BYTES + bytes - 1) / bytes) : 1;
    copies->bytes = copies->count * places * run * row_bytes;
    copies->memory = bench_alloc(machine, copies->bytes);
    copies->rows = checked(calloc((size_t)copies->count * m, sizeof(*copies->rows)));
    for (size_t copy = 0; copy < copies->count; copy++) {
        for (size_t i = 0; i < m; i++) {
            size_t place = copy * places + i / run * factor % places;
            uint8_t *to = copies->memory + (place * run + i % run) * row_bytes;

            memcpy(to, problem->a + i * k, k);
            copies->rows[copy * m + i] = to;
        }
    }
}

static void copies_close(struct copies *copies)
{
    bench_free(copies->memory, copies->bytes);
    free(copies->rows);
}

/* As A itself is; each row in a buffer of its own, in no order; and runs of rows. */
static void open_copies(struct bench_ours *ours, const struct bench_problem *problem,
                        struct bench_machine *machine)
{
    size_t k = problem->shape.k, apart = (k + 63) / 64 * 64 + 192;

    copies_open(&ours->strided, problem, machine, 1, k, 1);
    copies_open(&ours->scattered, problem, machine, 1, apart, 40503);
    copies_open(&ours->runs, problem, machine, RUN_ROWS, apart, 40503);
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
    ours->c_rows = checked(calloc(ours->m, sizeof(*ours->c_rows)));
    for (uint32_t i = 0; i < ours->m; i++) {
        ours->a_rows[i] = problem->a + (size_t)i * k;
        ours->c_rows[i] = problem->c + (size_t)i * n;
    }
    open_copies(ours, problem, machine);
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
    copies_close(&ours->strided);
    copies_close(&ours->scattered);
    copies_close(&ours->runs);
    free(ours->a_rows);
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

static void run_copy(struct bench_ours *ours, struct copies *copies)
{
    copies->turn = copies->turn + 1 < copies->count ? copies->turn + 1 : 0;
    run(ours, copies->rows + (size_t)copies->turn * ours->m, 0, ours->weights.n);
}

void bench_ours_run_strided(struct bench_ours *ours)
{
    run_copy(ours, &ours->strided);
}

void bench_ours_run_gathered(struct bench_ours *ours)
{
    run_copy(ours, &ours->scattered);
}

void bench_ours_run_runs(struct bench_ours *ours)
{
    run_copy(ours, &ours->runs);
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
