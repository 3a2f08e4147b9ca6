/*
 * What the machine allows: the kernel called on the worker's CPU by a thread that is told so by one
 * cache line, while it spins, and from between the parts of a flood of its own.
 */
#include "tools/bench_latency.h"

#include <pthread.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/pack.h"
#include "kernels/pausing.h"
#include "tools/stress_machine.h"

enum { ROWS = 32 }; /* of the flood at a time */
#define HUGE_BYTES ((size_t)2 << 20)

struct latency_limit {
    alignas(64) uint64_t asked;
    alignas(64) uint64_t answered;
    alignas(64) bool stop;
    bool flooding;
    pthread_t thread;
    unsigned int cpu;
    struct bench_ours *job;
    struct gemm_weights weights;
    struct gemm_epilogue epilogue;
    int8_t *panels;
    uint8_t *a, *c;
    alignas(64) float scale[FLOOD_N];
    alignas(64) float bias[FLOOD_N];
    alignas(64) int32_t offset[FLOOD_N];
};

static bool is_asked(void *owner)
{
    const struct latency_limit *limit = owner;

    return __atomic_load_n(&limit->asked, __ATOMIC_ACQUIRE) != limit->answered;
}

static void answer(void *owner)
{
    struct latency_limit *limit = owner;

    bench_ours_run(limit->job);
    __atomic_store_n(&limit->answered, limit->asked, __ATOMIC_RELEASE);
}

/* The next rows over all panels. */
static void run_flood(struct latency_limit *limit, uint32_t first_row)
{
    const struct pausing pausing = {.look = is_asked, .serve = answer, .owner = limit};
    const uint8_t *a[ROWS];
    void *c[ROWS];

    for (uint32_t i = 0; i < ROWS; i++) {
        a[i] = limit->a + (size_t)(first_row + i) * FLOOD_K;
        c[i] = limit->c + (size_t)(first_row + i) * FLOOD_N;
    }
    pausing_run(&pausing, &limit->weights, &limit->epilogue, ROWS, a, c, 0, FLOOD_N);
}

static void *serve(void *argument)
{
    struct latency_limit *limit = argument;

    stress_pin(limit->cpu);
    for (uint32_t row = 0; !__atomic_load_n(&limit->stop, __ATOMIC_RELAXED);) {
        if (is_asked(limit))
            answer(limit);
        if (limit->flooding) {
            run_flood(limit, row);
            row = (row + ROWS) % FLOOD_M;
        }
    }
    return NULL;
}

void latency_limit_call(struct latency_limit *limit)
{
    uint64_t asked = limit->asked + 1;

    __atomic_store_n(&limit->asked, asked, __ATOMIC_RELEASE);
    while (__atomic_load_n(&limit->answered, __ATOMIC_ACQUIRE) != asked)
        ;
}

bool latency_limit_start(struct latency_limit *limit, struct bench_ours *job, bool flooding)
{
    limit->job = job;
    limit->flooding = flooding;
    limit->stop = false;
    return pthread_create(&limit->thread, NULL, serve, limit) == 0;
}

void latency_limit_stop(struct latency_limit *limit)
{
    __atomic_store_n(&limit->stop, true, __ATOMIC_RELAXED);
    pthread_join(limit->thread, NULL);
}

/* On huge pages, as the worker's. */
static void *allocate(size_t bytes, int value)
{
    void *memory = aligned_alloc(HUGE_BYTES, (bytes + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));

    if (memory) {
        madvise(memory, bytes, MADV_HUGEPAGE);
        memset(memory, value, bytes);
    }
    return memory;
}

static const struct gemm_kernel *find_kernel(const char *name)
{
    size_t count;
    const struct gemm_kernel *kernels = gemm_kernels(&count);

    while (count && strcmp(kernels[count - 1].name, name))
        count--;
    return count ? &kernels[count - 1] : NULL;
}

struct latency_limit *latency_limit_open(const struct latency_bench *bench)
{
    const struct gemm_kernel *kernel = find_kernel(bench->info.kernel);
    struct latency_limit *limit = allocate(sizeof(*limit), 0);

    if (!limit || !kernel || !bench_ours_select_kernel(bench->info.kernel)) {
        free(limit);
        return NULL;
    }
    limit->cpu = bench->info.dispatcher_cpu;
    limit->panels = allocate(gemm_packed_bytes(kernel, FLOOD_N, FLOOD_K), 1);
    limit->a = allocate((size_t)FLOOD_M * FLOOD_K, 1);
    limit->c = allocate((size_t)FLOOD_M * FLOOD_N, 0);
    limit->weights = (struct gemm_weights){kernel, FLOOD_N, FLOOD_K, limit->panels};
    limit->epilogue = (struct gemm_epilogue){.a_type = GEMM_TYPE_U8,
                                             .c_type = GEMM_TYPE_U8,
                                             .inverse_c_scale = 1,
                                             .scale = limit->scale,
                                             .bias = limit->bias,
                                             .offset = limit->offset};
    if (limit->panels && limit->a && limit->c)
        return limit;
    latency_limit_close(limit);
    return NULL;
}

void latency_limit_close(struct latency_limit *limit)
{
    if (!limit)
        return;
    free(limit->panels);
    free(limit->a);
    free(limit->c);
    free(limit);
}
