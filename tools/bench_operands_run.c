/*
 * The sides of each kind of operand: a layer and a job of the worker's, and the same weights for
 * the kernels in process, on one thread.  A round measures all sides in turn.
 */
#include "tools/bench_operands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "kernels/cpu.h"
#include "kernels/dynamic.h"
#include "worker/layer_memory.h"

enum { GROUP = 64, ARENA_BYTES = 256 << 20, JOB_MS_MAX = 10000 };

struct kind {
    const char *name;
    enum gemmd_type a_type, b_type, residual_type;
    bool row_scales, on_c; /* on_c: the residual is C */
};

static const struct kind kinds[OPERANDS_KINDS] = {
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
    double own_ns[BENCH_ROUNDS_MAX], worker_ns[BENCH_ROUNDS_MAX];
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
static void make_image(struct side *side, const struct bench_shape *shape)
{
    const struct kind *kind = side->kind;
    struct gemmd_layer_image places;
    uint32_t state = 1;
    uint16_t *multipliers;

    side->desc = (struct gemmd_layer_desc_abi){.n = shape->n,
                                               .k = shape->k,
                                               .a_type = (uint8_t)kind->a_type,
                                               .c_type = GEMMD_ABI_TYPE_F32,
                                               .scale_count = shape->n,
                                               .a_scale = 1.0f,
                                               .c_scale = 1.0f,
                                               .b_type = (uint8_t)kind->b_type,
                                               .residual_type = (uint8_t)kind->residual_type,
                                               .a_row_scales = kind->row_scales};
    if (kind->b_type == GEMMD_TYPE_S4)
        side->desc.group = GROUP;
    if (gemmd_validate_layer_desc(&side->desc, &places) != GEMMD_STATUS_OK) {
        fprintf(stderr, "gemmd-bench: no layer of %s is %u x %u\n", kind->name, shape->n, shape->k);
        exit(EX_USAGE);
    }
    side->image = zeroed(places.bytes);
    for (uint64_t i = 0; i < places.weights_bytes; i++)
        ((uint8_t *)side->image)[i] = (uint8_t)((state = state * 1664525 + 1013904223) >> 24);
    multipliers = (uint16_t *)(void *)((char *)side->image + places.multipliers_offset);
    for (uint64_t i = 0; i < places.multipliers_bytes / 2; i++)
        multipliers[i] = 1000;
    for (uint32_t j = 0; j < shape->n; j++)
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

static void open_side(struct side *side, const struct kind *kind, const struct bench_shape *shape,
                      struct gemmd *session, const struct gemm_kernel *kernel)
{
    size_t c_bytes = (size_t)shape->m * shape->n * 4, a_row;
    uint8_t *a, *c, *residual;

    *side = (struct side){.kind = kind, .m = shape->m};
    make_image(side, shape);
    open_layer(side, session);
    a_row = gemmd_abi_a_row_bytes(&side->desc);
    a = gemmd_buffer_alloc(session, shape->m * a_row);
    c = gemmd_buffer_alloc(session, c_bytes);
    residual = kind->on_c ? c : gemmd_buffer_alloc(session, c_bytes);
    if (!a || !c || !residual)
        die(session);
    fill(side, a);
    memset(c, 0, c_bytes);
    memset(residual, 0, c_bytes);
    gemmd_job_init(&side->job, side->layer, shape->m, a, c);
    side->job.residual = kind->residual_type ? residual : NULL;
    side->memory = zeroed(layer_memory_bytes(kernel, &side->desc));
    layer_memory_fill(kernel, &side->desc, side->image, side->memory);
    layer_memory_view(kernel, &side->desc, side->memory, &side->view);
    side->dynamic = (struct gemm_dynamic){
        side->view.quantize, side->view.a_type, side->view.quantize_mode,
        zeroed(gemm_dynamic_scratch_bytes(shape->k, side->view.mr, shape->m))};
    for (uint32_t i = 0; i < shape->m; i++) {
        side->a[i] = a + i * a_row;
        side->c[i] = c + (size_t)i * shape->n * 4;
        side->residual[i] = residual + (size_t)i * shape->n * 4;
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
    if (gemmd_run(session, &side->job, JOB_MS_MAX) < 0)
        die(session);
}

static double measure(struct side *side, const struct operands_bench *bench,
                      void (*run)(struct side *, struct gemmd *))
{
    struct gemmd *session = bench->session;
    uint64_t begin, now, calls = 0;

    run(side, session);
    begin = now = bench_now_ns();
    for (; now - begin < bench->sample_ns; now = bench_now_ns(), calls++)
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

/* Medians over the rounds of the time, and of its ratio to u8's in the same round. */
static struct operands_result result_of(const struct side *side, const struct side *u8,
                                        unsigned int rounds)
{
    return (struct operands_result){
        .kind = side->kind->name,
        .own_ns = bench_median(side->own_ns, rounds),
        .worker_ns = bench_median(side->worker_ns, rounds),
        .own_ratio = bench_median_ratio(side->own_ns, u8->own_ns, rounds),
        .worker_ratio = bench_median_ratio(side->worker_ns, u8->worker_ns, rounds),
        .path_ratio = bench_median_ratio(side->worker_ns, side->own_ns, rounds),
    };
}

int operands_measure(const struct operands_bench *bench, const struct bench_shape *shape,
                     struct operands_result *out)
{
    static struct side sides[OPERANDS_KINDS];
    bool good = true;

    for (int i = 0; i < OPERANDS_KINDS; i++) {
        open_side(&sides[i], &kinds[i], shape, bench->session, bench->kernel);
        good &= agree(&sides[i], bench->session);
    }
    for (unsigned int r = 0; r < bench->rounds; r++)
        for (int i = 0; i < OPERANDS_KINDS; i++) {
            sides[i].own_ns[r] = measure(&sides[i], bench, run_own);
            sides[i].worker_ns[r] = measure(&sides[i], bench, run_worker);
        }
    for (int i = 0; i < OPERANDS_KINDS; i++)
        out[i] = result_of(&sides[i], &sides[0], bench->rounds);
    for (int i = 0; i < OPERANDS_KINDS; i++)
        close_side(&sides[i], bench->session);
    return good ? EX_OK : EX_SOFTWARE;
}

int operands_open(struct operands_bench *bench)
{
    struct gemmd_options options;
    size_t count;
    const struct gemm_kernel *kernels = gemm_kernels(&count);

    gemmd_options_init(&options);
    options.socket = bench->socket;
    options.arena_bytes = ARENA_BYTES;
    if (gemmd_connect(&options, &bench->session) < 0)
        die(NULL);
    if (gemmd_get_info(bench->session, &bench->info) < 0)
        die(bench->session);
    cpu_detect(); /* asks for AMX */
    for (size_t i = 0; i < count; i++)
        if (!strcmp(kernels[i].name, bench->info.kernel))
            bench->kernel = &kernels[i];
    if (bench->kernel && (!bench->level || !strcmp(bench->level, bench->info.level)))
        return EX_OK;
    fprintf(stderr, "gemmd-bench: the worker's level is %s\n", bench->info.level);
    return EX_UNAVAILABLE;
}

void operands_close(struct operands_bench *bench)
{
    gemmd_close(&bench->session);
}
