/* oneDNN in process, through its C API (version 2): one inner product for each layer, the weights
 * in the layout it asks for. */
#include "tools/bench_sharing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if BENCH_DNNL

#include <dnnl.h>

/* Of the OpenMP runtime that the library brings along. */
void omp_set_num_threads(int count);

struct peer_layer {
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t arguments[3];
};

struct peer {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    uint32_t layers;
    struct peer_layer layer[SHARING_LAYERS_MAX];
    uint64_t bytes;
    uint8_t *narrow, *wide;
};

static void describe(dnnl_memory_desc_t *md, dnnl_dim_t d0, dnnl_dim_t d1, dnnl_data_type_t type,
                     dnnl_format_tag_t tag)
{
    const dnnl_dims_t dims = {d0, d1};

    dnnl_memory_desc_init_by_tag(md, 2, dims, type, tag);
}

/* [n][k] into the layout of the primitive. */
static bool reorder(struct peer *peer, const dnnl_memory_desc_t *wanted, dnnl_memory_t to,
                    const int8_t *weights, dnnl_dim_t n, dnnl_dim_t k)
{
    dnnl_memory_desc_t plain;
    dnnl_memory_t from;
    dnnl_primitive_desc_t descriptor;
    dnnl_primitive_t primitive;
    bool ok;

    describe(&plain, n, k, dnnl_s8, dnnl_ab);
    if (dnnl_memory_create(&from, &plain, peer->engine, (void *)(uintptr_t)weights) !=
            dnnl_success ||
        dnnl_reorder_primitive_desc_create(&descriptor, &plain, peer->engine, wanted, peer->engine,
                                           NULL) != dnnl_success ||
        dnnl_primitive_create(&primitive, descriptor) != dnnl_success)
        return false;
    ok = dnnl_primitive_execute(primitive, peer->stream, 2,
                                (const dnnl_exec_arg_t[]){{DNNL_ARG_FROM, from},
                                                          {DNNL_ARG_TO, to}}) == dnnl_success &&
         dnnl_stream_wait(peer->stream) == dnnl_success;
    dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(descriptor);
    dnnl_memory_destroy(from);
    return ok;
}

static dnnl_primitive_desc_t describe_layer(struct peer *peer, const struct sharing_model *model,
                                            dnnl_dim_t n, dnnl_dim_t k)
{
    dnnl_memory_desc_t src, weights, dst;
    dnnl_inner_product_desc_t operation;
    dnnl_primitive_attr_t attributes;
    dnnl_post_ops_t post_ops;
    dnnl_primitive_desc_t descriptor = NULL;

    describe(&src, 1, k, dnnl_u8, dnnl_ab);
    describe(&weights, n, k, dnnl_s8, dnnl_format_tag_any);
    describe(&dst, 1, n, dnnl_u8, dnnl_ab);
    dnnl_primitive_attr_create(&attributes);
    dnnl_primitive_attr_set_output_scales(attributes, 1, 0, &model->scale);
    dnnl_post_ops_create(&post_ops);
    dnnl_post_ops_append_eltwise(post_ops, 1.0f, dnnl_eltwise_relu, 0.0f, 0.0f);
    dnnl_primitive_attr_set_post_ops(attributes, post_ops);
    dnnl_post_ops_destroy(post_ops);
    dnnl_inner_product_forward_desc_init(&operation, dnnl_forward_inference, &src, &weights, NULL,
                                         &dst);
    dnnl_primitive_desc_create(&descriptor, &operation, attributes, peer->engine, NULL);
    dnnl_primitive_attr_destroy(attributes);
    return descriptor;
}

static bool open_layer(struct peer *peer, const struct sharing_model *model, uint32_t i)
{
    dnnl_dim_t n = sharing_n(i), k = sharing_k(i);
    dnnl_primitive_desc_t descriptor = describe_layer(peer, model, n, k);
    const dnnl_memory_desc_t *weights_md, *src_md, *dst_md;
    dnnl_memory_t src, weights, dst;
    void *packed;
    size_t bytes;

    if (!descriptor)
        return false;
    src_md = dnnl_primitive_desc_query_md(descriptor, dnnl_query_src_md, 0);
    weights_md = dnnl_primitive_desc_query_md(descriptor, dnnl_query_weights_md, 0);
    dst_md = dnnl_primitive_desc_query_md(descriptor, dnnl_query_dst_md, 0);
    bytes = dnnl_memory_desc_get_size(weights_md);
    packed = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);
    if (!packed ||
        dnnl_memory_create(&src, src_md, peer->engine, i % 2 ? peer->wide : peer->narrow) ||
        dnnl_memory_create(&dst, dst_md, peer->engine, i % 2 ? peer->narrow : peer->wide) ||
        dnnl_memory_create(&weights, weights_md, peer->engine, packed) ||
        !reorder(peer, weights_md, weights, model->weights[i], n, k) ||
        dnnl_primitive_create(&peer->layer[i].primitive, descriptor))
        return false;
    peer->bytes += bytes;
    peer->layer[i].arguments[0] = (dnnl_exec_arg_t){DNNL_ARG_SRC, src};
    peer->layer[i].arguments[1] = (dnnl_exec_arg_t){DNNL_ARG_WEIGHTS, weights};
    peer->layer[i].arguments[2] = (dnnl_exec_arg_t){DNNL_ARG_DST, dst};
    dnnl_primitive_desc_destroy(descriptor);
    return true;
}

void *sharing_peer_open(const struct sharing_model *model, int threads)
{
    struct peer *peer = calloc(1, sizeof(*peer));

    if (!peer)
        return NULL;
    if (threads)
        omp_set_num_threads(threads);
    peer->layers = model->layers;
    peer->narrow = aligned_alloc(64, SHARING_NARROW);
    peer->wide = aligned_alloc(64, SHARING_WIDE);
    if (!peer->narrow || !peer->wide || dnnl_engine_create(&peer->engine, dnnl_cpu, 0) ||
        dnnl_stream_create(&peer->stream, peer->engine, dnnl_stream_default_flags))
        return NULL;
    for (uint32_t i = 0; i < peer->layers; i++)
        if (!open_layer(peer, model, i))
            return NULL;
    return peer;
}

bool sharing_peer_pass(void *state)
{
    struct peer *peer = state;

    for (uint32_t i = 0; i < SHARING_NARROW; i++)
        peer->narrow[i] = (uint8_t)(i * 7);
    for (uint32_t i = 0; i < peer->layers; i++)
        if (dnnl_primitive_execute(peer->layer[i].primitive, peer->stream, 3,
                                   peer->layer[i].arguments) != dnnl_success ||
            dnnl_stream_wait(peer->stream) != dnnl_success)
            return false;
    return true;
}

uint64_t sharing_peer_bytes(void *state)
{
    return ((struct peer *)state)->bytes;
}

const uint8_t *sharing_peer_result(void *state)
{
    const struct peer *peer = state;

    return peer->layers % 2 ? peer->wide : peer->narrow;
}

bool sharing_peer_exists(const char **version)
{
    static char text[32];
    const dnnl_version_t *v = dnnl_version();

    snprintf(text, sizeof(text), "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
    *version = text;
    return true;
}

#else /* built without the library */

bool sharing_peer_exists(const char **version)
{
    *version = "none: built without oneDNN (libdnnl-dev)";
    return false;
}

void *sharing_peer_open(const struct sharing_model *model, int threads)
{
    (void)model, (void)threads;
    return NULL;
}

bool sharing_peer_pass(void *state)
{
    (void)state;
    return false;
}

uint64_t sharing_peer_bytes(void *state)
{
    (void)state;
    return 0;
}

const uint8_t *sharing_peer_result(void *state)
{
    (void)state;
    return NULL;
}

#endif
