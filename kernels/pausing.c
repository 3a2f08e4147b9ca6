/*
 * The loops of gemm_run, panels outside and tiles of rows inside, with k cut into parts where the
 * kernel does not ask by itself; what lies between begin and end of a kernel is left while somebody
 * is served.
 */
#include "kernels/pausing.h"

#include <assert.h>
#include <stdalign.h>

static_assert(PAUSING_K % GEMM_ALIGN == 0, "each part of a panel is aligned");

struct tile {
    size_t height, m, n; /* rows of all tiles between begin and end; of this one; columns */
    const uint8_t *const *a;
    const int8_t *panel;
    uint8_t a_flip;
    int32_t *acc;
};

/* Modulo 2^32, as the kernels. */
static inline __attribute__((always_inline)) void add(int32_t *acc, const int32_t *part,
                                                      size_t count)
{
    typedef uint32_t vector __attribute__((vector_size(GEMM_ALIGN), may_alias));
    vector *sums = (vector *)acc;
    const vector *more = (const vector *)part;

    for (size_t i = 0; i < count * sizeof(*acc) / sizeof(vector); i++)
        sums[i] += more[i];
}

#if defined(__x86_64__)
/* Half of the 8 KiB of a tile's sums are saved a register of 16 bytes at a time otherwise. */
static __attribute__((target("avx512f"))) void add_avx512(int32_t *acc, const int32_t *part,
                                                          size_t count)
{
    add(acc, part, count);
}
#endif

static void add_part(const struct gemm_kernel *kernel, int32_t *acc, const int32_t *part,
                     size_t count)
{
#if defined(__x86_64__)
    if (kernel->level == CPU_LEVEL_AMX || kernel->level == CPU_LEVEL_AVX512VNNI) {
        add_avx512(acc, part, count);
        return;
    }
#endif
    (void)kernel;
    add(acc, part, count);
}

static void ask(const struct pausing *pausing, const struct gemm_kernel *kernel, size_t height)
{
    if (!pausing->look(pausing->owner))
        return;
    if (kernel->end)
        kernel->end(height);
    pausing->serve(pausing->owner);
    if (kernel->begin)
        kernel->begin(height);
}

/* acc = the tile's sums over all of k. */
static void multiply(const struct pausing *pausing, const struct gemm_weights *weights,
                     const struct tile *tile)
{
    alignas(GEMM_ALIGN) int32_t part[GEMM_MR_MAX * GEMM_NR_MAX];
    const struct gemm_kernel *kernel = weights->kernel;
    const uint8_t *a[GEMM_MR_MAX];

    if (kernel->pausing && kernel->pausing(tile->m, tile->n, weights->k, tile->a, tile->a_flip,
                                           tile->panel, tile->acc, pausing)) {
        ask(pausing, kernel, tile->height);
        return;
    }
    for (size_t t = 0; t < weights->k; t += PAUSING_K) {
        size_t k = weights->k - t < PAUSING_K ? weights->k - t : PAUSING_K;

        for (size_t i = 0; i < tile->m; i++)
            a[i] = tile->a[i] + t;
        kernel->ukernel(tile->m, tile->n, k, a, tile->a_flip, tile->panel + t * tile->n,
                        t ? part : tile->acc);
        if (t)
            add_part(kernel, tile->acc, part, tile->m * kernel->nr);
        ask(pausing, kernel, tile->height);
    }
}

void pausing_run(const struct pausing *pausing, const struct gemm_weights *weights,
                 const struct gemm_epilogue *epilogue, size_t rows, const uint8_t *const *a,
                 void *const *c, size_t n_begin, size_t n_end)
{
    alignas(GEMM_ALIGN) int32_t acc[GEMM_MR_MAX * GEMM_NR_MAX];
    const struct gemm_kernel *kernel = weights->kernel;
    size_t k_padded = (weights->k + kernel->kr - 1) / kernel->kr * kernel->kr;
    size_t tiles = (rows + kernel->mr - 1) / kernel->mr;
    /* Between begin and end all tiles have one height; the last may overlap the one before. */
    size_t height = kernel->begin ? (rows + tiles - 1) / tiles : kernel->mr;

    if (kernel->begin)
        kernel->begin(height);
    for (size_t column = n_begin; column < n_end; column += kernel->nr) {
        size_t n = n_end - column < kernel->nr ? n_end - column : kernel->nr;
        struct tile tile = {.height = height,
                            .n = (n + kernel->n_step - 1) / kernel->n_step * kernel->n_step,
                            .panel = weights->panels + column * k_padded,
                            .a_flip = epilogue->a_type == GEMM_TYPE_S8 ? 0x80 : 0,
                            .acc = acc};

        for (size_t i = 0; i < rows; i += height) {
            size_t m = rows - i < height ? rows - i : height;
            size_t again = kernel->begin ? height - m : 0; /* not written twice */

            tile.m = m + again;
            tile.a = a + i - again;
            multiply(pausing, weights, &tile);
            kernel->epilogue(m, n, kernel->nr, acc + again * kernel->nr, epilogue, i, column,
                             c + i);
        }
    }
    if (kernel->end)
        kernel->end(height);
}
