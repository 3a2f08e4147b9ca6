/*
 * What a run of the digits example amounts to: figures, and everything that is wrong with it.
 */
#ifndef GEMMD_EXAMPLES_DIGITS_REPORT_H
#define GEMMD_EXAMPLES_DIGITS_REPORT_H

#include "examples/digits/run.h"

/* int8 may be this far from the float model. */
#define REPORT_POINTS_MAX 0.5

struct report {
    const struct run *run;
    uint32_t int8_correct, float_correct;
    double int8_percent, float_percent;
    uint32_t unanswered, repeated;            /* images */
    uint32_t wrong_predictions, wrong_logits; /* images that differ from the scalar recomputation */
    uint64_t rows;                            /* over all passes */
    double seconds;                           /* first client's start to last one's end */
    uint64_t jobs, doorbells, sleeps, syscalls; /* the clients' */
    uint64_t weight_bytes, bytes_new;
    uint32_t created, attached, references_min;
    bool once; /* the weights are in the worker's memory once */
};

/* Recomputes every image in plain C and sums up.  0, or -1 without memory. */
int report_fill(const struct run *run, struct report *report);

/* Says on stderr what is wrong; the number of things. */
unsigned report_verdict(const struct report *report);

void report_print_text(const struct report *report);
/* 0, or -1 when it cannot be written. */
int report_print_json(const struct report *report);

#endif
