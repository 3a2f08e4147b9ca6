/*
 * Who runs which chunk of a team's work: the ticket is (region, group, places taken).  Chunks are
 * claimed group by group, as many in each as there are threads: a thread takes its own place in the
 * group, and when it has had that one, any that is left.  So a panel, its columns of C or a block
 * of rows are the same thread's from job to job, and in its cache, while nobody waits for a thread
 * that is late; and all chunks before the group are claimed.
 *
 * Pure: the ticket is a value here.
 */
#ifndef GEMMD_WORKER_TICKET_H
#define GEMMD_WORKER_TICKET_H

#include <stdbool.h>
#include <stdint.h>

/* Chunks of a group, at most: a bit for each.  In a larger team several threads share a place. */
#define TICKET_PLACES_MAX 8
#define TICKET_GROUP_MAX  UINT32_C(0xffffff)
/* A group has at least two. */
#define TICKET_CHUNKS_MAX TICKET_GROUP_MAX

static inline uint64_t ticket_open(uint32_t region)
{
    return (uint64_t)region << 32;
}

/* Nothing is to be claimed. */
static inline uint64_t ticket_closed(uint32_t region)
{
    return (uint64_t)region << 32 | (uint64_t)TICKET_GROUP_MAX << TICKET_PLACES_MAX;
}

/* The first chunk of the group. */
static inline uint32_t ticket_first(uint64_t ticket, uint32_t width)
{
    return ((uint32_t)ticket >> TICKET_PLACES_MAX) * width;
}

static inline uint32_t ticket_taken(uint64_t ticket)
{
    return (uint32_t)ticket & ((1u << TICKET_PLACES_MAX) - 1);
}

/* A bit for each place that has a chunk, of the group that begins with chunk `first`. */
static inline uint32_t ticket_places(uint32_t first, uint32_t width, uint32_t chunk_count)
{
    uint32_t left = chunk_count - first;

    return (1u << (left < width ? left : width)) - 1;
}

/* What a thread of that place takes, and the ticket after it; false when no chunk is left.  Of any
 * ticket and any count: a late thread may hold the ticket of one region and the count of the next,
 * and whatever it claims then is void, since the ticket is no longer the one it holds. */
static inline bool ticket_claim(uint64_t ticket, uint32_t width, uint32_t place,
                                uint32_t chunk_count, uint32_t *chunk, uint64_t *after)
{
    uint32_t first = ticket_first(ticket, width), left, places;

    if (first >= chunk_count)
        return false;
    places = ticket_places(first, width, chunk_count);
    left = places & ~ticket_taken(ticket);
    if (!left) /* of two regions: in one it were the next group's turn */
        return false;
    if (!(left >> place & 1))
        place = (uint32_t)__builtin_ctz(left);
    *chunk = first + place;
    left &= ~(1u << place);
    if (left)
        *after = ticket | UINT64_C(1) << place;
    else
        *after = (ticket | ((1u << TICKET_PLACES_MAX) - 1)) + 1; /* the next group */
    return true;
}

#endif
