/*
 * A second process creates the model that another has created: it hashes its weights, asks, and
 * attaches.  Each round hashes them alone, with the same function, before and after; what is left
 * is the cost of gemmd.
 */
#include "tools/bench.h"
#include "tools/bench_sharing.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { ROUNDS = 41 };

static double now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static size_t weight_bytes(uint32_t layer)
{
    return (size_t)sharing_n(layer) * sharing_k(layer);
}

/* As the library hashes an image: through a state. */
static double hash_ms(const struct sharing_model *model)
{
    static volatile uint64_t sink;
    double start_ms = now_ms();

    for (uint32_t i = 0; i < model->layers; i++) {
        XXH3_state_t state;

        XXH3_128bits_reset(&state);
        XXH3_128bits_update(&state, model->weights[i], weight_bytes(i));
        sink = XXH3_128bits_digest(&state).low64;
    }
    (void)sink;
    return now_ms() - start_ms;
}

static double quantile(double values[ROUNDS], uint32_t numerator, uint32_t denominator)
{
    bench_sort(values, ROUNDS);
    return values[(uint64_t)(ROUNDS - 1) * numerator / denominator];
}

static bool run_round(const struct sharing_model *model, struct gemmd *session, double *hash,
                      double *create)
{
    struct gemmd_layer *layers[SHARING_LAYERS_MAX];
    double before = hash_ms(model), start_ms = now_ms();
    int attached = sharing_create(model, session, layers);

    *create = now_ms() - start_ms;
    *hash = (before + hash_ms(model)) / 2;
    for (uint32_t i = 0; i < model->layers && attached >= 0; i++)
        gemmd_layer_close(session, &layers[i]);
    return attached == (int)model->layers;
}

static void run_child(const struct sharing_model *model, const char *socket,
                      struct sharing_attach *out)
{
    struct gemmd *session = sharing_connect(socket);
    double hash[ROUNDS], create[ROUNDS], beyond[ROUNDS], gib = (double)out->bytes / (1 << 30);
    struct gemmd_info before, after;

    if (!session || gemmd_get_info(session, &before) < 0)
        return;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        if (!run_round(model, session, &hash[i], &create[i]))
            return;
        beyond[i] = (create[i] - hash[i]) / gib;
    }
    if (gemmd_get_info(session, &after) < 0)
        return;
    out->hash_ms = quantile(hash, 1, 2);
    out->create_ms = quantile(create, 1, 2);
    out->ms_per_gib = quantile(beyond, 1, 2);
    out->ms_per_gib_low = quantile(beyond, 1, 4);
    out->ms_per_gib_high = quantile(beyond, 3, 4);
    out->ms_per_gib_best = (quantile(create, 0, 1) - quantile(hash, 0, 1)) / gib;
    out->bytes_new = (int64_t)(after.pool_bytes_used - before.pool_bytes_used);
    out->ran = true;
    gemmd_close(&session);
}

void sharing_attach(const struct sharing_model *model, const char *socket,
                    struct sharing_attach *out)
{
    struct sharing_attach *shared =
        mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid;

    memset(out, 0, sizeof(*out));
    if (shared == MAP_FAILED)
        return;
    for (uint32_t i = 0; i < model->layers; i++)
        shared->bytes += weight_bytes(i);
    pid = fork();
    if (pid == 0) {
        run_child(model, socket, shared);
        _exit(0);
    }
    if (pid > 0)
        waitpid(pid, NULL, 0);
    *out = *shared;
    munmap(shared, sizeof(*shared));
}
