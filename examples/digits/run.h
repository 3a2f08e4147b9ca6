/*
 * A whole run of the digits example: the client processes, what they delivered, and what the worker
 * said of itself while their sessions were open.
 */
#ifndef GEMMD_EXAMPLES_DIGITS_RUN_H
#define GEMMD_EXAMPLES_DIGITS_RUN_H

#include <stdbool.h>

#include "examples/digits/client.h"

enum { RUN_CLIENTS_MAX = 64 };

/* One layer of the model in the worker's list. */
struct run_layer {
    uint32_t entries; /* layers of the worker with the same contents */
    uint32_t references;
    uint64_t weight_bytes, page_bytes;
    int32_t node;
    uint32_t created;   /* clients whose call created it */
    uint64_t bytes_new; /* summed over the clients */
};

struct run {
    /* set by the caller */
    const struct model *model;
    const struct held_out *images;
    const char *socket; /* NULL: the library's default */
    uint32_t clients, repeat;

    /* filled by run_clients; `reports`, `logits` and `answers` are freed by run_free */
    struct client_report reports[RUN_CLIENTS_MAX];
    float *logits;    /* [count][classes] */
    uint8_t *answers; /* [count] how many clients answered an image: 1 when all is well */
    struct gemmd_stats before, after; /* the worker's, around the passes */
    struct gemmd_info info;
    struct run_layer layers[MODEL_LAYERS_MAX];
};

/* Forks the clients, drives them, and collects everything.  0, or -1 with the reason on stderr.  No
 * client process is left behind. */
int run_clients(struct run *run);

void run_free(struct run *run);

#endif
