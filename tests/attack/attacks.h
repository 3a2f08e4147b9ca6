/*
 * What a hostile client can try, each as one call on an open session, so that the tests of one
 * attack and the test that makes them all in turn (blast_radius_test.c) try the same things.
 * Nothing here asserts: whether an attack may succeed is for the caller to say.
 */
#ifndef GEMMD_TESTS_ATTACK_ATTACKS_H
#define GEMMD_TESTS_ATTACK_ATTACKS_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/e2e/raw.h"

/* Attempts on the memory of a live session's three segments.  A bit is set for each that worked;
 * all of them must be denied. */
enum memory_attack {
    MEMORY_TRUNCATE,
    MEMORY_EXTEND,
    MEMORY_PUNCH_HOLE,
    MEMORY_ZERO_RANGE,
    MEMORY_REMOVE,         /* madvise through a mapping made before the seals */
    MEMORY_MAP_WRITABLE,
    MEMORY_REOPEN,         /* through /proc/self/fd, then truncate and map */
    MEMORY_REOPEN_TRUNC,   /* open with O_TRUNC */
    MEMORY_MPROTECT,       /* of a mapping made read-only after the seals */
    MEMORY_WRITE_BY_FD,
    MEMORY_UNSEAL,         /* any further seal, F_SEAL_WRITE above all */
    MEMORY_GROW_MAPPING,   /* mremap beyond the end */
    MEMORY_ATTACK_COUNT
};

const char *memory_attack_name(enum memory_attack attack);
/* Tries each on segment `index` (0 c2w, 1 w2c, 2 arena). */
uint32_t attack_memory(const struct raw *raw, unsigned index);

/* Punches holes in all three segments (for before the seals).  True when all could be punched. */
bool attack_punch_all(const struct raw *raw);

/* One submission of random bytes, or of a good one with one random field, with a right seq. */
void attack_submission(struct raw *raw, const struct gemmd_msg_layer_reply *layer, uint64_t *seed);

/* One control packet of noise with a plausible header; descriptors attached now and then. */
void attack_message(int fd, uint64_t *seed);

/* 253 descriptors, the most one message can carry, attached to `message`. */
bool attack_descriptors(int fd, const void *message, uint32_t bytes);

/* One time in four the eventfd of the doorbell is filled, drained, or made blocking for a while. */
void attack_doorbell(struct raw *raw, uint64_t *seed);

/* Writes a random word at a random place of c2w (ring included) or of the arena. */
void attack_scribble(struct raw *raw, uint64_t *seed);

/* An impossible cq_head: must end the session. */
void attack_cq_head(struct raw *raw, uint64_t *seed);

#endif
