/*
 * A sample of jobs is checked as they run (--verify-sample N: one in N): one row of the job, over
 * all columns, before the job completes.
 *
 *   - The row of A that the kernels read is a private copy, and they write its row of C into
 *     private memory, from where it is copied to the client: whatever a client does to its arena
 *     meanwhile, both sides of each comparison are what the worker itself computed.
 *   - After each slice the row's accumulators are computed again from the panels that have just
 *     passed, and made into C by the reference epilogue (s4 weights: by their own): other bits mean
 *     that the one or the other went wrong.
 *   - After the last slice the sum of these accumulators is held against Freivalds' (s8 weights;
 *     worker/freivalds.h), whose side of the weights dates from the layer's creation: a wrong
 *     kernel and a changed weight show.
 *
 * Rejected: keeping the accumulators of the job itself; no micro-kernel stores them.  Not checked:
 * how float rows were quantised, and s4 weights, whose float sums have no Freivalds (the scrub
 * looks after those).
 *
 * A sampled slice costs up to twice as much, and the rows beside the sampled one take the kernels'
 * way for scattered rows.  The dispatcher's alone, between slices.
 */
#ifndef GEMMD_WORKER_VERIFY_H
#define GEMMD_WORKER_VERIFY_H

#include "worker/scan_rows.h"
#include "worker/session.h"

struct verify {
    uint32_t every; /* one job in so many; 0: none, and nothing below is used */
    uint32_t passed; /* jobs since the last one */
    uint64_t count;  /* of samples: chooses the row */
    gemm_epilogue_fn *epilogue; /* the reference */
    uint8_t *a, *c, *again;     /* the row, what came of it, and what should have */
    /* the sample in hand */
    const struct job *job;        /* NULL: none */
    const struct scan_rows *rows; /* where it is on board */
    uint8_t *client_c;
    uint64_t sum; /* of factors times accumulators */
    uint32_t panels;
    bool whole, differs;
};

/* False: no memory. */
bool verify_open(struct verify *verify, uint32_t every);
void verify_close(struct verify *verify);

/* After members have boarded: one row of them may become the sample. */
void verify_board(struct verify *verify, struct scan_rows *rows, const struct scheduler_scan *scan);

/* After a slice of `panels` panels from scan->position on. */
void verify_slice(struct verify *verify, const struct scan_rows *rows,
                  const struct scheduler_scan *scan, uint32_t panels);

enum verify_verdict { VERIFY_NONE, VERIFY_RIGHT, VERIFY_WRONG };

/* The job completes; NONE: it was no sample, or ended before it was through. */
enum verify_verdict verify_end(struct verify *verify, const struct job *job);

#endif
