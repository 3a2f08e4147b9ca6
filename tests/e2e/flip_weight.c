/* For LD_PRELOAD: layers get one bit of their weights changed on the way to the worker, so that a
 * program that checks its results must find them wrong. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "client/gemmd.h"

typedef int create_fn(struct gemmd *session, const struct gemmd_layer_desc *desc,
                      struct gemmd_layer **out);

int gemmd_layer_create(struct gemmd *session, const struct gemmd_layer_desc *desc,
                       struct gemmd_layer **out)
{
    size_t count = (size_t)desc->n * desc->k;
    struct gemmd_layer_desc changed = *desc;
    int8_t *weights = malloc(count);
    void *symbol = dlsym(RTLD_NEXT, "gemmd_layer_create");
    create_fn *create;
    int result;

    if (!weights || !symbol)
        abort();
    memcpy(&create, &symbol, sizeof(create)); /* ISO C knows no such cast */
    memcpy(weights, desc->weights, count);
    weights[count / 2] ^= 1;
    changed.weights = weights;
    result = create(session, &changed, out);
    free(weights);
    return result;
}
