/* What making a layer_case and its oracle share. */
#ifndef GEMMD_TESTS_E2E_LAYER_ORACLE_H
#define GEMMD_TESTS_E2E_LAYER_ORACLE_H

#include "tests/e2e/layer_case.h"

/* F32 or BF16. */
bool layer_is_float(enum gemmd_type type);
uint16_t layer_to_bf16(float value);
/* Bytes of a row of weights, and their groups of a row. */
size_t layer_weight_row_bytes(const struct gemmd_layer_desc *desc);
size_t layer_group_count(const struct gemmd_layer_desc *desc);

#endif
