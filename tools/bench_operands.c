/*
 * gemmd-bench operands: one layer's shape with each kind of operand, by the kernels in process on
 * one thread and by a worker; each beside u8 rows and s8 weights of the same run, in turn.
 */
#include "tools/bench_operands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "client/gemmd.h"
#include "kernels/cpu.h"
#include "kernels/dynamic.h"
#include "tools/bench.h"
#include "worker/layer_memory.h"

enum { KINDS = 8, ROUNDS = 9, GROUP = 64, SHAPES = 4 };

#define SAMPLE_NS UINT64_C(20000000)

static const uint32_t shapes[SHAPES][3] = {
    {1, 4096, 1024}, {16, 1024, 1024}, {64, 768, 768}, {256, 1024, 1024}};

struct kind {
    const char *name;
    enum gemmd_type a_type, b_type, residual_type;
    bool row_scales, on_c; /* on_c: the residual is C */
};

static const struct kind kinds[KINDS] = {
    {"u8", GEMMD_TYPE_U8, GEMMD_TYPE_S8, 0, false, false},
    {"s8", GEMMD_TYPE_S8, GEMMD_TYPE_S8, 0, false, false},
    {"u8, scales of rows", GEMMD_TYPE_U8, GEMMD_TYPE_S8, 0, true, false},
    {"f32", GEMMD_TYPE_F32, GEMMD_TYPE_S8, 0, false, false},
    {"bf16", GEMMD_TYPE_BF16, GEMMD_TYPE_S8, 0, false, false},
    {"u8, s4 weights", GEMMD_TYPE_U8, GEMMD_TYPE_S4, 0, false, false},
    {"u8 + f32 residual", GEMMD_TYPE_U8, GEMMD_TYPE_S8, GEMMD_TYPE_F32, false, false},
    {"u8 + C", GEMMD_TYPE_U8, GEMMD_TYPE_S8, GEMMD_TYPE_F32, false, true},
};

/* A kind at a shape, on both sides.  C is f32. */
struct side {
    const struct kind *kind;
    uint32_t m;
    struct gemmd_layer *layer;
    struct gemmd_job job;
    struct gemmd_layer_desc_abi desc;
    struct layer_view view;
    struct gemm_dynamic dynamic;
    void *image, *memory;
    const uint8_t *a[GEMM_ROWS_MAX];
    void *c[GEMM_ROWS_MAX];
    const void *residual[GEMM_ROWS_MAX];
    float scales[GEMM_ROWS_MAX];
    double own_ns[ROUNDS], worker_ns[ROUNDS];
};

static void *zeroed(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);

    if (!memory) {
        fprintf(stderr, "gemmd-bench: no memory\n");
        exit(EX_OSERR);
    }
    memset(memory, 0, (bytes + 63) & ~(size_t)63);
    return memory;
}

static void die(const struct gemmd *session)
{
    fprintf(stderr, "gemmd-bench: %s\n", gemmd_error_text(session));
    exit(EX_UNAVAILABLE);
}

/* Random weights in an image, where both sides find them. */
static void make_image(struct side *side, const uint32_t *shape)
{
    const struct kind *kind = side->kind;
    struct gemmd_layer_image places;
    uint32_t state = 1;
    uint16_t *multipliers;

    side->desc = (struct gemmd_layer_desc_abi){.n = shape[1],
                                               .k = shape[2],
                                               .a_type = (uint8_t)kind->a_type,
                                               .c_type = GEMMD_ABI_TYPE_F32,
                                               .scale_count = shape[1],
                                               .a_scale = 1.0f,
                                               .c_scale = 1.0f,
                                               .b_type = (uint8_t)kind->b_type,
                                               .residual_type = (uint8_t)kind->residual_type,
                                               .a_row_scales = kind->row_scales};
    if (kind->b_type == GEMMD_TYPE_S4)
        side->desc.group = GROUP;
    if (gemmd_validate_layer_desc(&side->desc, &places) != GEMMD_STATUS_OK)
        exit(EX_SOFTWARE);
    side->image = zeroed(places.bytes);
    for (uint64_t i = 0; i < places.weights_bytes; i++)
        ((uint8_t *)side->image)[i] = (uint8_t)((state = state * 1664525 + 1013904223) >> 24);
    multipliers = (uint16_t *)(void *)((char *)side->image + places.multipliers_offset);
    for (uint64_t i = 0; i < places.multipliers_bytes / 2; i++)
        multipliers[i] = 1000;
    for (uint32_t j = 0; j < shape[1]; j++)
        ((float *)(void *)((char *)side->image + places.scales_offset))[j] = 1e-4f;
}

static void open_layer(struct side *side, struct gemmd *session)
{
    struct gemmd_layer_image places;
    struct gemmd_layer_desc desc;

    gemmd_validate_layer_desc(&side->desc, &places);
    gemmd_layer_desc_init(&desc);
    desc.n = side->desc.n;
    desc.k = side->desc.k;
    desc.a_type = side->kind->a_type;
    desc.b_type = side->kind->b_type;
    desc.residual_type = side->kind->residual_type;
    desc.a_row_scales = side->kind->row_scales;
    desc.group = side->desc.group;
    desc.weights = side->image;
    desc.scale_count = side->desc.n;
    desc.b_scales = (const float *)(const void *)((const char *)side->image + places.scales_offset);
    if (side->desc.group)
        desc.multipliers =
            (const uint16_t *)(const void *)((const char *)side->image + places.multipliers_offset);
    if (gemmd_layer_create(session, &desc, &side->layer) < 0)
        die(session);
}

/* Small values of either sign, in the layer's type, with scales of 1. */
static void fill(const struct side *side, uint8_t *a)
{
    uint32_t row_bytes = gemmd_abi_a_row_bytes(&side->desc);

    for (uint32_t i = 0; i < side->m; i++)
        for (uint32_t t = 0; t < side->desc.k; t++) {
            float value = (float)((i * 31 + t * 7) % 200) - 100.0f, one = 1.0f;
            uint8_t *row = a + (size_t)i * row_bytes;

            if (side->desc.a_type == GEMMD_ABI_TYPE_F32)
                memcpy(row + 4 * (size_t)t, &value, 4);
            else if (side->desc.a_type == GEMMD_ABI_TYPE_BF16)
                memcpy(row + 2 * (size_t)t, (char *)&value + 2, 2);
            else
                row[t] = (uint8_t)(int8_t)value;
            if (side->desc.a_row_scales)
                memcpy(row + side->desc.k, &one, 4);
        }
}

static void open_side(struct side *side, const struct kind *kind, const uint32_t *shape,
                      struct gemmd *session, const struct gemm_kernel *kernel)
{
    size_t c_bytes = (size_t)shape[0] * shape[1] * 4, a_row;
    uint8_t *a, *c, *residual;

    *side = (struct side){.kind = kind, .m = shape[0]};
    make_image(side, shape);
    open_layer(side, session);
    a_row = gemmd_abi_a_row_bytes(&side->desc);
    a = gemmd_buffer_alloc(session, shape[0] * a_row);
    c = gemmd_buffer_alloc(session, c_bytes);
    residual = kind->on_c ? c : gemmd_buffer_alloc(session, c_bytes);
    if (!a || !c || !residual)
        die(session);
    fill(side, a);
    memset(c, 0, c_bytes);
    memset(residual, 0, c_bytes);
    gemmd_job_init(&side->job, side->layer, shape[0], a, c);
    side->job.residual = kind->residual_type ? residual : NULL;
    side->memory = zeroed(layer_memory_bytes(kernel, &side->desc));
    layer_memory_fill(kernel, &side->desc, side->image, side->memory);
    layer_memory_view(kernel, &side->desc, side->memory, &side->view);
    side->dynamic = (struct gemm_dynamic){
        side->view.quantize, side->view.a_type, side->view.quantize_mode,
        zeroed(gemm_dynamic_scratch_bytes(shape[2], side->view.mr, shape[0]))};
    for (uint32_t i = 0; i < shape[0]; i++) {
        side->a[i] = a + i * a_row;
        side->c[i] = c + (size_t)i * shape[1] * 4;
        side->residual[i] = residual + (size_t)i * shape[1] * 4;
        side->scales[i] = 1.0f;
    }
    side->view.epilogue.residual = kind->residual_type ? side->residual : NULL;
    side->view.epilogue.row_scales = kind->row_scales ? side->scales : NULL;
}

static void close_side(struct side *side, struct gemmd *session)
{
    gemmd_buffer_free(session, (void *)(uintptr_t)side->job.a);
    gemmd_buffer_free(session, side->job.c);
    if (!side->kind->on_c)
        gemmd_buffer_free(session, (void *)(uintptr_t)side->residual[0]);
    gemmd_layer_close(session, &side->layer);
    free(side->image);
    free(side->memory);
    free(side->dynamic.scratch);
}

static void run_own(struct side *side, struct gemmd *session)
{
    const struct layer_view *view = &side->view;

    (void)session;
    if (view->quantize)
        gemm_run_dynamic(&view->s8, &view->epilogue, &side->dynamic, side->m,
                         (const void *const *)side->a, side->c, 0, view->n);
    else if (view->s8.panels)
        gemm_run(&view->s8, &view->epilogue, side->m, side->a, side->c, 0, view->n);
    else
        int4_run(&view->s4, &view->epilogue, side->m, side->a, side->c, 0, view->n);
}

static void run_worker(struct side *side, struct gemmd *session)
{
    if (gemmd_run(session, &side->job, 10000) < 0)
        die(session);
}

static double measure(struct side *side, struct gemmd *session,
                      void (*run)(struct side *, struct gemmd *))
{
    uint64_t begin, now, calls = 0;

    run(side, session);
    begin = now = bench_now_ns();
    for (; now - begin < SAMPLE_NS; now = bench_now_ns(), calls++)
        run(side, session);
    return (double)(now - begin) / (double)calls;
}

/* Both sides give the same bits; the residual is zeros, and so C's own does, too. */
static bool agree(struct side *side, struct gemmd *session)
{
    size_t bytes = (size_t)side->m * side->desc.n * 4;
    void *own = zeroed(bytes);
    bool same;

    memset(side->job.c, 0, bytes);
    run_own(side, session);
    memcpy(own, side->job.c, bytes);
    memset(side->job.c, 0, bytes);
    run_worker(side, session);
    same = memcmp(own, side->job.c, bytes) == 0;
    free(own);
    if (!same)
        fprintf(stderr, "gemmd-bench: %s: the worker and its kernel in process disagree\n",
                side->kind->name);
    return same;
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

static double median(const double *values)
{
    double sorted[ROUNDS];

    memcpy(sorted, values, sizeof(sorted));
    qsort(sorted, ROUNDS, sizeof(*sorted), compare);
    return sorted[ROUNDS / 2];
}

/* Medians over the rounds of the time, and of its ratio to u8's in the same round. */
static void print_side(const struct side *side, const struct side *u8)
{
    double own[ROUNDS], worker[ROUNDS], both[ROUNDS];

    for (int r = 0; r < ROUNDS; r++) {
        own[r] = side->own_ns[r] / u8->own_ns[r];
        worker[r] = side->worker_ns[r] / u8->worker_ns[r];
        both[r] = side->worker_ns[r] / side->own_ns[r];
    }
    printf("%5u,%u,%u  %-18s %10.2f %6.2f %12.2f %6.2f %10.2f\n", side->m, side->desc.n,
           side->desc.k, side->kind->name, median(side->own_ns) / 1e3, median(own),
           median(side->worker_ns) / 1e3, median(worker), median(both));
}

static bool measure_shape(const uint32_t *shape, struct gemmd *session,
                          const struct gemm_kernel *kernel)
{
    static struct side sides[KINDS];
    bool good = true;

    for (int i = 0; i < KINDS; i++) {
        open_side(&sides[i], &kinds[i], shape, session, kernel);
        good &= agree(&sides[i], session);
    }
    for (int r = 0; r < ROUNDS; r++)
        for (int i = 0; i < KINDS; i++) {
            sides[i].own_ns[r] = measure(&sides[i], session, run_own);
            sides[i].worker_ns[r] = measure(&sides[i], session, run_worker);
        }
    for (int i = 0; i < KINDS; i++)
        print_side(&sides[i], &sides[0]);
    for (int i = 0; i < KINDS; i++)
        close_side(&sides[i], session);
    return good;
}

int bench_operands(void)
{
    struct gemmd_options options;
    struct gemmd_info info;
    struct gemmd *session;
    size_t count, chosen = 0;
    const struct gemm_kernel *kernels = gemm_kernels(&count);
    bool good = true;

    gemmd_options_init(&options);
    options.arena_bytes = UINT64_C(64) << 20;
    if (gemmd_connect(&options, &session) < 0)
        die(NULL);
    if (gemmd_get_info(session, &info) < 0)
        die(session);
    cpu_detect(); /* asks for AMX */
    while (chosen < count && strcmp(kernels[chosen].name, info.kernel))
        chosen++;
    if (chosen == count)
        return EX_UNAVAILABLE;
    printf("%s; the worker has %u CPUs; C is f32; us a job, and times u8's\n"
           "%-15s %-18s %10s %6s %12s %6s %10s\n", info.kernel, info.cpu_count, "    m,n,k", "A",
           "in process", "x u8", "worker", "x u8", "worker/own");
    for (int i = 0; i < SHAPES; i++)
        good &= measure_shape(shapes[i], session, &kernels[chosen]);
    gemmd_close(&session);
    return good ? EX_OK : EX_SOFTWARE;
}
