/*
 * Pieces of a report that both modes of gemmd-stress print.
 */
#ifndef GEMMD_STRESS_REPORT_H
#define GEMMD_STRESS_REPORT_H

#include <jansson.h>

#include "client/gemmd.h"
#include "tools/stress_latency.h"

/* Three lines: machine, worker, socket. */
void stress_print_machine(const struct gemmd_info *info);
/* One line of percentiles in ns. */
void stress_print_latency(const char *title, const struct stress_latency *latency);

/* New references, NULL without memory. */
json_t *stress_machine_json(void);
json_t *stress_worker_json(const struct gemmd_info *info);
json_t *stress_latency_json(const struct stress_latency *latency);

/* Prints `value` to stdout and drops it.  0 or -ENOMEM, also when value is NULL. */
int stress_print_json(json_t *value);

#endif
