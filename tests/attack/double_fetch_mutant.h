/*
 * The mistake of XSA-155 and CVE-2020-14375, to be included before the worker's sources: a
 * submission is checked, and one field of it read from the ring a second time.
 */
#ifndef GEMMD_TESTS_ATTACK_DOUBLE_FETCH_MUTANT_H
#define GEMMD_TESTS_ATTACK_DOUBLE_FETCH_MUTANT_H

#include "proto/ring.h"

static inline bool mutant_sq_take(struct gemmd_ring_end *sq, struct gemmd_sqe *out)
{
    const uint64_t *slot = sq->slots + (sq->index & sq->mask) * GEMMD_SQE_WORDS;

    if (!gemmd_sq_take(sq, out))
        return false;
    out->a_offset = __atomic_load_n(&slot[2], __ATOMIC_RELAXED);
    return true;
}

#define gemmd_sq_take mutant_sq_take

#endif
