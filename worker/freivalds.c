/* One panel at a time is unpacked; some 5 ms for 4096 x 1024 weights, when a layer is entered. */
#include "worker/freivalds.h"

#include <stdlib.h>

#include "kernels/pack.h"

uint64_t *freivalds_weights(const struct layer_view *view)
{
    const struct gemm_kernel *kernel = view->s8.kernel;
    size_t k = view->k, panel_bytes = kernel->nr * ((k + kernel->kr - 1) / kernel->kr) * kernel->kr;
    uint64_t *w = calloc(k, sizeof(*w));
    int8_t *columns = malloc(kernel->nr * k);

    for (uint32_t first = 0; w && columns && first < view->n; first += kernel->nr) {
        uint32_t n = view->n - first < kernel->nr ? view->n - first : kernel->nr;

        gemm_unpack(kernel, n, view->k, view->s8.panels + first / kernel->nr * panel_bytes, columns,
                    k);
        for (uint32_t j = 0; j < n; j++) {
            uint64_t factor = freivalds_factor(first + j);

            for (size_t t = 0; t < k; t++)
                w[t] += factor * (uint64_t)(int64_t)columns[j * k + t];
        }
    }
    if (!columns) {
        free(w);
        w = NULL;
    }
    free(columns);
    return w;
}
