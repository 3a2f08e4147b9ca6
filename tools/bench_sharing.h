/*
 * gemmd-bench sharing: P processes, each sending one row through a stack of layers, by a worker
 * that they share and by libraries that each calls in process.  Parts: bench_sharing.c the command
 * line and the reports, bench_sharing_run.c processes and clocks, bench_sharing_sides.c the worker
 * and its own kernel in process, bench_sharing_peer.c oneDNN, bench_sharing_attach.c what it costs
 * a process to find its model there.
 */
#ifndef GEMMD_TOOLS_BENCH_SHARING_H
#define GEMMD_TOOLS_BENCH_SHARING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/gemmd.h"

enum {
    SHARING_LAYERS_MAX = 24,
    SHARING_NARROW = 1024,
    SHARING_WIDE = 4096,
    SHARING_PROCESSES_MAX = 64,
    SHARING_COUNTS_MAX = 8,
    SHARING_REPETITIONS_MAX = 15,
    SHARING_SAMPLES = 1 << 16, /* passes of a process whose time is kept */
};

/* Layer i is WIDE x NARROW for even i, NARROW x WIDE for odd ones: outputs are the next inputs. */
struct sharing_model {
    uint32_t layers;
    int8_t *weights[SHARING_LAYERS_MAX]; /* [n][k] */
    float scale;                         /* of every channel: outputs stay inside u8 */
    const char *kernel;                  /* the worker's choice, for SHARING_OWN */
};

static inline uint32_t sharing_n(uint32_t layer)
{
    return layer % 2 ? SHARING_NARROW : SHARING_WIDE;
}

static inline uint32_t sharing_k(uint32_t layer)
{
    return layer % 2 ? SHARING_WIDE : SHARING_NARROW;
}

enum sharing_side_id {
    SHARING_WORKER,       /* gemmd */
    SHARING_OWN,          /* gemmd's kernel in process, one thread */
    SHARING_PEER_ONE,     /* oneDNN, one thread */
    SHARING_PEER_DEFAULT, /* oneDNN, as many threads as it likes */
    SHARING_SIDES,
};

/* In a child: makes ready, runs a row through all layers, again and again. */
struct sharing_side {
    const char *name;
    void *(*open)(const struct sharing_model *model, const char *socket); /* NULL: it cannot */
    bool (*pass)(void *state);
    uint64_t (*weight_bytes)(void *state); /* of this process alone */
    const uint8_t *(*result)(void *state);
};

extern const struct sharing_side sharing_sides[SHARING_SIDES];

/* bench_sharing_peer.c.  "oneDNN 2.6.3", or why there is none. */
bool sharing_peer_exists(const char **version);
void *sharing_peer_open(const struct sharing_model *model, int threads);
bool sharing_peer_pass(void *state);
uint64_t sharing_peer_bytes(void *state);
const uint8_t *sharing_peer_result(void *state);

struct sharing_outcome {
    bool ran;
    double rows_per_s; /* rows through one layer, of all processes */
    double pass_p50_us, pass_p99_us;
    double rows_per_panel; /* the worker's: how many share a pass over weights; else 0 */
    uint64_t weight_bytes; /* of all processes and the worker */
    uint8_t result[16];    /* the first of the last layer's output */
};

/* Forks, measures for `seconds`, joins.  The worker's bytes are the caller's to add. */
void sharing_run(const struct sharing_model *model, enum sharing_side_id side, uint32_t processes,
                 double seconds, const char *socket, struct sharing_outcome *out);

/* bench_sharing_sides.c: creates the layers under their names, for the children to find; the
 * session stays open.  NULL after a message. */
struct gemmd *sharing_upload(const struct sharing_model *model, const char *socket);

/* The same creation, in a session that is open: a result of gemmd_layers_create. */
int sharing_create(const struct sharing_model *model, struct gemmd *session,
                   struct gemmd_layer *out[SHARING_LAYERS_MAX]);
struct gemmd *sharing_connect(const char *socket);

/* What it costs another process to create layers that exist. */
struct sharing_attach {
    bool ran;
    double hash_ms, create_ms;  /* of all layers; hashing alone, and all of it */
    double ms_per_gib;          /* create less hash, median of the rounds */
    double ms_per_gib_low, ms_per_gib_high; /* their quartiles */
    double ms_per_gib_best;     /* fastest creation less fastest hash: without others' noise */
    uint64_t bytes;             /* of weights */
    int64_t bytes_new;          /* of worker memory */
};

/* bench_sharing_attach.c: in a process of its own. */
void sharing_attach(const struct sharing_model *model, const char *socket,
                    struct sharing_attach *out);

/* argv[0] is "sharing".  An exit status. */
int bench_sharing(int argc, char **argv);

#endif
