/* The worker's side: a client of gemmd; and its kernel called in process, on one thread. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/epilogue.h"
#include "kernels/gemm.h"
#include "kernels/pack.h"
#include "tools/bench_sharing.h"

/* ---- gemmd ----------------------------------------------------------------------------------- */

struct client {
    uint32_t layers;
    struct gemmd *session;
    struct gemmd_layer *handles[SHARING_LAYERS_MAX];
    struct gemmd_job jobs[SHARING_LAYERS_MAX];
    uint8_t *narrow, *wide;
};

struct gemmd *sharing_connect(const char *socket)
{
    struct gemmd_options options;
    struct gemmd *session;

    gemmd_options_init(&options);
    options.socket = socket;
    options.autostart = 0;
    if (gemmd_connect(&options, &session) == 0)
        return session;
    fprintf(stderr, "gemmd-bench: %s\n", gemmd_error_text(NULL));
    return NULL;
}

static void name_of(uint32_t layer, char *out, size_t bytes)
{
    snprintf(out, bytes, "sharing/%u", layer);
}

int sharing_create(const struct sharing_model *model, struct gemmd *session,
                   struct gemmd_layer *out[SHARING_LAYERS_MAX])
{
    struct gemmd_layer_desc descs[SHARING_LAYERS_MAX];
    char names[SHARING_LAYERS_MAX][32];

    for (uint32_t i = 0; i < model->layers; i++) {
        struct gemmd_layer_desc *desc = &descs[i];

        name_of(i, names[i], sizeof(names[i]));
        gemmd_layer_desc_init(desc);
        desc->n = sharing_n(i);
        desc->k = sharing_k(i);
        desc->c_type = GEMMD_TYPE_U8;
        desc->weights = model->weights[i];
        desc->a_scale = 1.0f;
        desc->b_scales = &model->scale;
        desc->activation = GEMMD_ACTIVATION_RELU;
        desc->name = names[i];
    }
    return gemmd_layers_create(session, descs, model->layers, out);
}

struct gemmd *sharing_upload(const struct sharing_model *model, const char *socket)
{
    struct gemmd *session = sharing_connect(socket);
    struct gemmd_layer *layers[SHARING_LAYERS_MAX];

    if (session && sharing_create(model, session, layers) < 0) {
        fprintf(stderr, "gemmd-bench: %s\n", gemmd_error_text(session));
        gemmd_close(&session);
    }
    return session;
}

static void *client_open(const struct sharing_model *model, const char *socket)
{
    struct client *client = calloc(1, sizeof(*client));

    if (!client)
        return NULL;
    client->layers = model->layers;
    client->session = sharing_connect(socket);
    if (!client->session)
        return NULL;
    client->narrow = gemmd_buffer_alloc(client->session, SHARING_NARROW);
    client->wide = gemmd_buffer_alloc(client->session, SHARING_WIDE);
    for (uint32_t i = 0; i < client->layers; i++) {
        char name[32];

        name_of(i, name, sizeof(name));
        if (gemmd_layer_open(client->session, name, &client->handles[i]) < 0) {
            fprintf(stderr, "gemmd-bench: %s\n", gemmd_error_text(client->session));
            return NULL;
        }
        gemmd_job_init(&client->jobs[i], client->handles[i], 1,
                       i % 2 ? client->wide : client->narrow,
                       i % 2 ? client->narrow : client->wide);
    }
    for (uint32_t i = 0; i < SHARING_NARROW; i++)
        client->narrow[i] = (uint8_t)(i * 7);
    return client;
}

static bool client_pass(void *state)
{
    struct client *client = state;

    for (uint32_t i = 0; i < SHARING_NARROW; i++)
        client->narrow[i] = (uint8_t)(i * 7);
    for (uint32_t i = 0; i < client->layers; i++)
        if (gemmd_run(client->session, &client->jobs[i], 10000) < 0) {
            fprintf(stderr, "gemmd-bench: %s\n", gemmd_error_text(client->session));
            return false;
        }
    return true;
}

static uint64_t client_bytes(void *state)
{
    (void)state;
    return 0;
}

static const uint8_t *client_result(void *state)
{
    const struct client *client = state;

    return client->layers % 2 ? client->wide : client->narrow;
}

/* ---- the kernel in process ------------------------------------------------------------------- */

struct own {
    uint32_t layers;
    struct gemm_weights weights[SHARING_LAYERS_MAX];
    struct gemm_epilogue epilogues[SHARING_LAYERS_MAX];
    uint64_t bytes;
    uint8_t narrow[SHARING_NARROW], wide[SHARING_WIDE];
};

static void *aligned(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);

    if (memory)
        memset(memory, 0, (bytes + 63) & ~(size_t)63);
    return memory;
}

static bool own_layer(struct own *own, const struct sharing_model *model, uint32_t i,
                      const struct gemm_kernel *kernel)
{
    uint32_t n = sharing_n(i), k = sharing_k(i);
    size_t bytes = gemm_packed_bytes(kernel, n, k);
    int8_t *panels = aligned(bytes);
    int32_t *sums = aligned(n * sizeof(*sums));
    float *scale = aligned(n * sizeof(*scale));
    float *bias = aligned(n * sizeof(*bias));

    if (!panels || !sums || !scale || !bias)
        return false;
    gemm_pack(kernel, n, k, model->weights[i], k, panels, sums);
    gemm_offset(n, GEMM_TYPE_U8, 0, sums, NULL, sums);
    for (uint32_t j = 0; j < n; j++)
        scale[j] = model->scale;
    own->weights[i] = (struct gemm_weights){.kernel = kernel, .n = n, .k = k, .panels = panels};
    own->epilogues[i] = (struct gemm_epilogue){.a_type = GEMM_TYPE_U8,
                                               .c_type = GEMM_TYPE_U8,
                                               .activation = GEMM_ACTIVATION_RELU,
                                               .inverse_c_scale = 1.0f,
                                               .offset = sums,
                                               .scale = scale,
                                               .bias = bias};
    own->bytes += bytes;
    return true;
}

static void *own_open(const struct sharing_model *model, const char *socket)
{
    struct own *own = calloc(1, sizeof(*own));
    size_t count, chosen = 0;
    const struct gemm_kernel *kernels = gemm_kernels(&count);

    (void)socket;
    cpu_detect(); /* asks for AMX */
    while (chosen < count && strcmp(kernels[chosen].name, model->kernel))
        chosen++;
    if (!own || chosen == count)
        return NULL;
    own->layers = model->layers;
    for (uint32_t i = 0; i < own->layers; i++)
        if (!own_layer(own, model, i, &kernels[chosen]))
            return NULL;
    return own;
}

static bool own_pass(void *state)
{
    struct own *own = state;

    for (uint32_t i = 0; i < SHARING_NARROW; i++)
        own->narrow[i] = (uint8_t)(i * 7);
    for (uint32_t i = 0; i < own->layers; i++) {
        const uint8_t *a = i % 2 ? own->wide : own->narrow;
        void *c = i % 2 ? own->narrow : own->wide;

        gemm_run(&own->weights[i], &own->epilogues[i], 1, &a, &c, 0, own->weights[i].n);
    }
    return true;
}

static uint64_t own_bytes(void *state)
{
    return ((struct own *)state)->bytes;
}

static const uint8_t *own_result(void *state)
{
    const struct own *own = state;

    return own->layers % 2 ? own->wide : own->narrow;
}

/* ---- the table ------------------------------------------------------------------------------- */

static void *peer_open_one(const struct sharing_model *model, const char *socket)
{
    (void)socket;
    return sharing_peer_open(model, 1);
}

static void *peer_open_default(const struct sharing_model *model, const char *socket)
{
    (void)socket;
    return sharing_peer_open(model, 0);
}

const struct sharing_side sharing_sides[SHARING_SIDES] = {
    [SHARING_WORKER] = {"gemmd", client_open, client_pass, client_bytes, client_result},
    [SHARING_OWN] = {"gemmd's kernel in process", own_open, own_pass, own_bytes, own_result},
    [SHARING_PEER_ONE] = {"oneDNN, 1 thread", peer_open_one, sharing_peer_pass, sharing_peer_bytes,
                          sharing_peer_result},
    [SHARING_PEER_DEFAULT] = {"oneDNN, its threads", peer_open_default, sharing_peer_pass,
                              sharing_peer_bytes, sharing_peer_result},
};
