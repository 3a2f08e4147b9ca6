/*
 * The peer: oneDNN through its C API (version 2).  Inner product and matmul are both tried, with
 * the weights in the layout each asks for, and the faster one is kept.
 *
 * Its output scale comes before the bias is added in units of the accumulator:
 *     u8 = clamp(round(relu(scale[j] * (acc + bias[j] / scale[j]))))
 * which is ours but for the rounding of the bias: results may differ by 1.
 */
#include "tools/bench.h"

#include <stdlib.h>
#include <string.h>

#if BENCH_DNNL

#include <dnnl.h>

/* Of the OpenMP runtime that the library brings along. */
void omp_set_num_threads(int count);
/* A parallel region, as gcc's OpenMP would call it. */
void GOMP_parallel(void (*run)(void *), void *data, unsigned int threads, unsigned int flags);

enum { KINDS = 2, TRIALS = 5 };

struct side {
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t arguments[4];
    dnnl_memory_t memories[4];
    void *weights;
    size_t weights_bytes;
    char implementation[80];
};

struct bench_peer {
    struct side side;
    float *bias;
    size_t bias_bytes;
    unsigned int threads;
};

static dnnl_engine_t engine;
static dnnl_stream_t stream;

bool bench_peer_init(const char *level, const char **version_out)
{
    static const struct {
        const char *level;
        dnnl_cpu_isa_t isa;
    } limits[] = {
        {"ref", dnnl_cpu_isa_sse41},
        {"avx2", dnnl_cpu_isa_avx2},
        {"avxvnni", dnnl_cpu_isa_avx2_vnni},
        {"avx512", dnnl_cpu_isa_avx512_core},
        {"avx512vnni", dnnl_cpu_isa_avx512_core_vnni},
        {"amx", dnnl_cpu_isa_avx512_core_amx},
    };
    static char version[64];
    const dnnl_version_t *v = dnnl_version();

    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        if (!strcmp(limits[i].level, level))
            dnnl_set_max_cpu_isa(limits[i].isa);
    }
    snprintf(version, sizeof(version), "oneDNN %d.%d.%d limited to %s", v->major, v->minor,
             v->patch, level);
    *version_out = version;
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) != dnnl_success) {
        *version_out = "oneDNN cannot open a CPU engine";
        return false;
    }
    return true;
}

static void fill_descriptor(dnnl_memory_desc_t *md, int rank, dnnl_dim_t d0, dnnl_dim_t d1,
                            dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    const dnnl_dims_t dims = {d0, d1};

    dnnl_memory_desc_init_by_tag(md, rank, dims, type, tag);
}

static dnnl_primitive_attr_t create_attributes(const struct bench_problem *problem)
{
    dnnl_primitive_attr_t attributes;
    dnnl_post_ops_t post_ops;

    dnnl_primitive_attr_create(&attributes);
    dnnl_primitive_attr_set_output_scales(attributes, problem->shape.n, 1 << 1, problem->scale);
    dnnl_post_ops_create(&post_ops);
    dnnl_post_ops_append_eltwise(post_ops, 1.0f, dnnl_eltwise_relu, 0.0f, 0.0f);
    dnnl_primitive_attr_set_post_ops(attributes, post_ops);
    dnnl_post_ops_destroy(post_ops);
    return attributes;
}

/* NULL when the shape is refused. */
static dnnl_primitive_desc_t describe(const struct bench_problem *problem, bool matmul)
{
    const dnnl_dim_t m = problem->shape.m, n = problem->shape.n, k = problem->shape.k;
    dnnl_memory_desc_t src, weights, bias, dst;
    dnnl_primitive_attr_t attributes = create_attributes(problem);
    dnnl_primitive_desc_t descriptor = NULL;
    dnnl_status_t status;

    fill_descriptor(&src, 2, m, k, dnnl_u8, dnnl_ab);
    fill_descriptor(&dst, 2, m, n, dnnl_u8, dnnl_ab);
    if (matmul) {
        dnnl_matmul_desc_t operation;

        fill_descriptor(&weights, 2, k, n, dnnl_s8, dnnl_format_tag_any);
        fill_descriptor(&bias, 2, 1, n, dnnl_f32, dnnl_ab);
        dnnl_matmul_desc_init(&operation, &src, &weights, &bias, &dst);
        status = dnnl_primitive_desc_create(&descriptor, &operation, attributes, engine, NULL);
    } else {
        dnnl_inner_product_desc_t operation;

        fill_descriptor(&weights, 2, n, k, dnnl_s8, dnnl_format_tag_any);
        fill_descriptor(&bias, 1, n, 0, dnnl_f32, dnnl_a);
        dnnl_inner_product_forward_desc_init(&operation, dnnl_forward_inference, &src, &weights,
                                             &bias, &dst);
        status = dnnl_primitive_desc_create(&descriptor, &operation, attributes, engine, NULL);
    }
    dnnl_primitive_attr_destroy(attributes);
    return status == dnnl_success ? descriptor : NULL;
}

/* B, as the user has it (row j: k bytes), into the layout the primitive asks for. */
static bool reorder_weights(struct side *side, const dnnl_memory_desc_t *wanted,
                            const struct bench_problem *problem, bool matmul,
                            struct bench_machine *machine)
{
    const dnnl_dim_t n = problem->shape.n, k = problem->shape.k;
    dnnl_memory_desc_t plain;
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t descriptor = NULL;
    dnnl_primitive_t primitive = NULL;
    bool done = false;

    if (matmul)
        fill_descriptor(&plain, 2, k, n, dnnl_s8, dnnl_ba);
    else
        fill_descriptor(&plain, 2, n, k, dnnl_s8, dnnl_ab);
    side->weights_bytes = dnnl_memory_desc_get_size(wanted);
    side->weights = bench_alloc(machine, side->weights_bytes);
    if (dnnl_memory_create(&side->memories[1], wanted, engine, side->weights) == dnnl_success &&
        dnnl_memory_create(&from, &plain, engine, problem->b) == dnnl_success &&
        dnnl_reorder_primitive_desc_create(&descriptor, &plain, engine, wanted, engine, NULL) ==
            dnnl_success &&
        dnnl_primitive_create(&primitive, descriptor) == dnnl_success) {
        const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, from},
                                             {DNNL_ARG_TO, side->memories[1]}};

        done = dnnl_primitive_execute(primitive, stream, 2, arguments) == dnnl_success &&
               dnnl_stream_wait(stream) == dnnl_success;
    }
    dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(descriptor);
    dnnl_memory_destroy(from);
    return done;
}

static void side_close(struct side *side)
{
    for (size_t i = 0; i < 4; i++) {
        if (side->memories[i])
            dnnl_memory_destroy(side->memories[i]);
    }
    if (side->primitive)
        dnnl_primitive_destroy(side->primitive);
    bench_free(side->weights, side->weights_bytes);
    memset(side, 0, sizeof(*side));
}

static bool side_open(struct side *side, const struct bench_problem *problem, float *bias,
                      bool matmul, struct bench_machine *machine)
{
    static const int names[4] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST};
    static const dnnl_query_t queries[4] = {dnnl_query_src_md, dnnl_query_weights_md,
                                            dnnl_query_weights_md, dnnl_query_dst_md};
    void *const data[4] = {problem->a, NULL, bias, problem->c};
    dnnl_primitive_desc_t descriptor = describe(problem, matmul);
    const char *implementation = "";
    bool ok = descriptor != NULL;

    memset(side, 0, sizeof(*side));
    for (int i = 0; i < 4 && ok; i++) {
        const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(descriptor, queries[i], i == 2);

        if (i == 1)
            ok = reorder_weights(side, md, problem, matmul, machine);
        else
            ok = dnnl_memory_create(&side->memories[i], md, engine, data[i]) == dnnl_success;
        side->arguments[i] = (dnnl_exec_arg_t){names[i], side->memories[i]};
    }
    ok = ok && dnnl_primitive_create(&side->primitive, descriptor) == dnnl_success;
    if (ok)
        dnnl_primitive_desc_query(descriptor, dnnl_query_impl_info_str, 0, &implementation);
    snprintf(side->implementation, sizeof(side->implementation), "%s %.50s",
             matmul ? "matmul" : "inner_product", implementation);
    if (descriptor)
        dnnl_primitive_desc_destroy(descriptor);
    if (!ok)
        side_close(side);
    return ok;
}

static void side_run(struct side *side)
{
    dnnl_primitive_execute(side->primitive, stream, 4, side->arguments);
    dnnl_stream_wait(stream);
}

/* The least of some calls. */
static uint64_t side_ns(struct side *side)
{
    uint64_t least = UINT64_MAX;

    for (int i = 0; i < TRIALS; i++) {
        uint64_t begin = bench_now_ns(), ns;

        side_run(side);
        ns = bench_now_ns() - begin;
        least = ns < least ? ns : least;
    }
    return least;
}

struct bench_peer *bench_peer_open(const struct bench_problem *problem,
                                   struct bench_machine *machine, unsigned int threads)
{
    struct bench_peer *peer = calloc(1, sizeof(*peer));
    struct side sides[KINDS];
    bool open[KINDS];
    int best;

    if (!peer)
        return NULL;
    omp_set_num_threads((int)threads); /* a primitive is made for the number it finds */
    peer->threads = threads;
    peer->bias_bytes = problem->column_bytes;
    peer->bias = bench_alloc(machine, peer->bias_bytes);
    for (uint32_t j = 0; j < problem->shape.n; j++)
        peer->bias[j] = problem->bias[j] / problem->scale[j];
    for (int i = 0; i < KINDS; i++)
        open[i] = side_open(&sides[i], problem, peer->bias, i == 1, machine);
    best = open[0] && (!open[1] || side_ns(&sides[0]) <= side_ns(&sides[1])) ? 0 : 1;
    if (open[1 - best])
        side_close(&sides[1 - best]);
    if (!open[best]) {
        bench_free(peer->bias, peer->bias_bytes);
        free(peer);
        return NULL;
    }
    peer->side = sides[best];
    return peer;
}

void bench_peer_run(struct bench_peer *peer)
{
    omp_set_num_threads((int)peer->threads);
    side_run(&peer->side);
}

static void nothing(void *data)
{
    (void)data;
}

void bench_peer_wake(const struct bench_peer *peer)
{
    GOMP_parallel(nothing, NULL, peer->threads, 0);
}

const char *bench_peer_implementation(const struct bench_peer *peer)
{
    return peer->side.implementation;
}

void bench_peer_close(struct bench_peer *peer)
{
    side_close(&peer->side);
    bench_free(peer->bias, peer->bias_bytes);
    free(peer);
}

#else /* built without the library: the peer's columns stay empty, and the report says why */

bool bench_peer_init(const char *level, const char **version_out)
{
    (void)level;
    *version_out = "none: built without oneDNN (libdnnl-dev)";
    return false;
}

struct bench_peer *bench_peer_open(const struct bench_problem *problem,
                                   struct bench_machine *machine, unsigned int threads)
{
    (void)problem, (void)machine, (void)threads;
    return NULL;
}

void bench_peer_run(struct bench_peer *peer)
{
    (void)peer;
}

void bench_peer_wake(const struct bench_peer *peer)
{
    (void)peer;
}

const char *bench_peer_implementation(const struct bench_peer *peer)
{
    (void)peer;
    return "";
}

void bench_peer_close(struct bench_peer *peer)
{
    (void)peer;
}

#endif
