/* Model files for tests: safetensors of layer cases, and what gemmd-pack makes of them. */
#ifndef GEMMD_TESTS_E2E_MODEL_FILE_H
#define GEMMD_TESTS_E2E_MODEL_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "tests/e2e/layer_case.h"

/* A layer whose s8 or s4 weights are made of random floats (layer->source), as gemmd-pack and the
 * library have to make them; scales per channel. */
void model_quantised_case(struct layer_case *layer, uint32_t n, uint32_t k,
                          const struct layer_kind *kind, enum gemmd_quantize_method method,
                          uint64_t seed);

/* Layers "l0" … with everything in __metadata__. */
void model_write(const char *path, const struct layer_case *layers, unsigned count);

/* gemmd-pack INPUT --output OUTPUT and up to two more arguments (NULL: none); its exit status.
 * What it printed goes to `error` (error_bytes; NULL: nowhere). */
int model_pack(const char *input, const char *output, const char *option, const char *value,
               char *error, size_t error_bytes);

/* gemmd_layers_load of the file at `path`. */
int model_load(struct gemmd *session, const char *path, const char *prefix, uint64_t *bytes_new);

/* A whole file; *bytes its size.  To be freed. */
uint8_t *model_read(const char *path, size_t *bytes);
void model_write_bytes(const char *path, const void *bytes, size_t count);

#endif
