/* The weights of a layer, as the file has them or quantised, into its image. */
#ifndef GEMMD_TOOLS_PACK_WEIGHTS_H
#define GEMMD_TOOLS_PACK_WEIGHTS_H

#include <stdbool.h>

#include "proto/validate.h"
#include "tools/pack_manifest.h"

/* Fills `image` (zeroed) as a client would upload it.  report: what quantising costs goes to
 * stdout.  False: a weight is not finite, or there is no memory for a channel. */
bool pack_weights(const struct pack_layer *layer, const struct gemmd_layer_image *places,
                  char *image, bool report);

#endif
