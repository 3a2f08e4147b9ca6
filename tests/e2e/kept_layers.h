/* The layers that the tests of restarts and upgrades keep: 24 of 4096 x 1024, 96 MiB in all. */
#ifndef GEMMD_TESTS_E2E_KEPT_LAYERS_H
#define GEMMD_TESTS_E2E_KEPT_LAYERS_H

#include "tests/e2e/layer_case.h"
#include "tests/harness.h"

#define LAYERS 24
#define N      4096
#define K      1024

/* Room for them. */
extern const char *const pool_arguments[];
extern struct layer_case layers[LAYERS];

/* The first `count`, named m/0 … */
void create_layers(const struct harness_worker *worker, unsigned count);
/* Opens each by name and compares a row with the oracle; the first result's time after start_ns. */
uint64_t check_layers(const struct harness_worker *worker, unsigned count, uint64_t start_ns);
struct gemmd_info info_of(const struct harness_worker *worker);

/* Group fixtures: the data. */
int kept_set_up(void **state);
int kept_tear_down(void **state);

#endif
