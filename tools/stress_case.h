/*
 * One shape of a session's job mix: its layer, a few inputs, and what must come out of each.  The
 * layer depends on (seed, shape) only, so that all sessions share it; the inputs depend on the
 * session too, so that a result delivered to the wrong session is a wrong result.
 */
#ifndef GEMMD_STRESS_CASE_H
#define GEMMD_STRESS_CASE_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/stress.h"

/* Inputs in rotation: a slot's next result differs from its last, so stale memory cannot pass. */
#define STRESS_INPUTS 4
/* A wrong row passes one vector of signs with probability 1/2 at most; jobs rotate through these.
 */
#define STRESS_SIGN_VECTORS 8

struct stress_case {
    struct stress_shape shape;
    bool a_signed;
    int32_t a_zero_point;
    int8_t *weights;
    int32_t *bias;
    struct gemmd_layer *layer;
    uint8_t *inputs[STRESS_INPUTS];   /* buffers of the session */
    int32_t *expected[STRESS_INPUTS]; /* FULL: [m][n] */
    int8_t *signs;                    /* FREIVALDS: [vectors][n] */
    int64_t *sums;                    /* FREIVALDS: [inputs][vectors][m] */
};

/* splitmix64 (S. Vigna, public domain algorithm): every state is a good one, so seeds can be mixed.
 */
static inline uint64_t stress_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Bytes of the arena that the inputs of `shape` take. */
uint64_t stress_case_arena_bytes(const struct stress_shape *shape);

/* Creates the layer.  Uploads through free arena memory: all layers come before all inputs.
 * 0 or -errno; stress_case_close in either case. */
int stress_case_open(struct stress_case *out, struct gemmd *session,
                     const struct stress_options *options, uint32_t shape_index);

/* Fills the inputs and computes what must come out.  0 or -errno. */
int stress_case_prepare(struct stress_case *test, struct gemmd *session,
                        const struct stress_options *options, uint32_t session_index);

/* True when c [m][n] is the product of `input`.  `turn` selects the vector of signs. */
bool stress_case_check(const struct stress_case *test, enum stress_verify verify, uint32_t input,
                       uint64_t turn, const int32_t *c);

/* Frees what is private; layer and buffers go with the session.  Accepts a zeroed case. */
void stress_case_close(struct stress_case *test);

#endif
