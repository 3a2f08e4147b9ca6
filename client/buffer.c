/*
 * The arena's allocator: first fit.  All of its knowledge is in private memory, so that nothing
 * the worker writes into the arena can mislead it.  Free blocks are a list by address whose
 * neighbours are joined; blocks given out are in a hash table by offset.  Cost: the length of the
 * free list, which is one when buffers are given back, and no system call (blocks come in chunks
 * of 64).
 */
#include "client/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static struct gemmd_block *take_spare(struct gemmd_arena *arena)
{
    struct gemmd_block *block = arena->spare;

    if (!block) {
        struct gemmd_block_chunk *chunk = calloc(1, sizeof(*chunk));

        if (!chunk)
            return NULL;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
        for (size_t i = 0; i < GEMMD_BLOCK_CHUNK; i++) {
            chunk->blocks[i].next = arena->spare;
            arena->spare = &chunk->blocks[i];
        }
        block = arena->spare;
    }
    arena->spare = block->next;
    return block;
}

static void put_spare(struct gemmd_arena *arena, struct gemmd_block *block)
{
    block->next = arena->spare;
    arena->spare = block;
}

/* Large buffers share their low bits, hence the multiplication (Knuth's, by the golden ratio). */
static struct gemmd_block **bucket_of(struct gemmd_arena *arena, uint64_t offset)
{
    uint64_t hash = offset / GEMMD_ARENA_ALIGN * UINT64_C(0x9e3779b97f4a7c15);

    return &arena->given[hash >> 56];
}

static_assert(GEMMD_BLOCK_BUCKETS == 1 << (64 - 56), "the hash's top byte");

int gemmd_arena_init(struct gemmd_arena *arena)
{
    arena->free = take_spare(arena);
    if (!arena->free)
        return -ENOMEM;
    *arena->free = (struct gemmd_block){.bytes = arena->bytes};
    arena->bytes_free = arena->bytes;
    return 0;
}

void gemmd_arena_fini(struct gemmd_arena *arena)
{
    while (arena->chunks) {
        struct gemmd_block_chunk *chunk = arena->chunks;

        arena->chunks = chunk->next;
        free(chunk);
    }
    *arena = (struct gemmd_arena){0};
}

/* The first free block with room, as the link that leads to it. */
static struct gemmd_block **find_room(struct gemmd_arena *arena, uint64_t bytes)
{
    struct gemmd_block **link = &arena->free;

    while (*link && (*link)->bytes < bytes)
        link = &(*link)->next;
    return *link ? link : NULL;
}

/* NULL: no memory for the bookkeeping. */
static struct gemmd_block *cut(struct gemmd_arena *arena, struct gemmd_block **link, uint64_t bytes)
{
    struct gemmd_block *block = *link, *given;

    if (block->bytes == bytes) {
        *link = block->next;
        return block;
    }
    given = take_spare(arena);
    if (!given)
        return NULL;
    given->offset = block->offset;
    given->bytes = bytes;
    block->offset += bytes;
    block->bytes -= bytes;
    return given;
}

void *gemmd_buffer_alloc(struct gemmd *session, size_t bytes)
{
    struct gemmd_arena *arena = &session->arena;
    struct gemmd_block **link, **bucket, *block;
    uint64_t rounded;

    if (!gemmd_is_ours(session)) {
        gemmd_check(session);
        return NULL;
    }
    if (bytes == 0 || !arena->memory) {
        gemmd_fail(session, -EINVAL, bytes ? "buffer: a control-only session has no arena"
                                           : "buffer: 0 bytes were asked for");
        return NULL;
    }
    rounded = ((uint64_t)bytes + GEMMD_ARENA_ALIGN - 1) & ~(GEMMD_ARENA_ALIGN - 1);
    link = bytes <= arena->bytes ? find_room(arena, rounded) : NULL;
    block = link ? cut(arena, link, rounded) : NULL;
    if (!block) {
        gemmd_fail(session, -ENOBUFS,
                   "buffer: no %zu bytes in one piece, %llu of the arena's %llu are free; "
                   "raise gemmd_options.arena_bytes or free buffers",
                   bytes, (unsigned long long)arena->bytes_free, (unsigned long long)arena->bytes);
        return NULL;
    }
    arena->bytes_free -= rounded;
    bucket = bucket_of(arena, block->offset);
    block->next = *bucket;
    *bucket = block;
    return arena->memory + block->offset;
}

static void insert_free(struct gemmd_arena *arena, struct gemmd_block *block)
{
    struct gemmd_block *before = NULL, *after = arena->free;

    while (after && after->offset < block->offset) {
        before = after;
        after = after->next;
    }
    if (after && block->offset + block->bytes == after->offset) {
        block->bytes += after->bytes;
        block->next = after->next;
        put_spare(arena, after);
    } else {
        block->next = after;
    }
    if (before && before->offset + before->bytes == block->offset) {
        before->bytes += block->bytes;
        before->next = block->next;
        put_spare(arena, block);
    } else if (before) {
        before->next = block;
    } else {
        arena->free = block;
    }
}

void gemmd_buffer_free(struct gemmd *session, void *buffer)
{
    struct gemmd_arena *arena = &session->arena;
    struct gemmd_block **link, *block;
    uint64_t offset;

    if (!buffer || !gemmd_is_ours(session))
        return;
    offset = (uint64_t)((uintptr_t)buffer - (uintptr_t)arena->memory);
    link = bucket_of(arena, offset);
    while (*link && (*link)->offset != offset)
        link = &(*link)->next;
    block = *link;
    if (!block) {
        fprintf(stderr, "gemmd_buffer_free: %p is not a buffer of this session\n", buffer);
        abort();
    }
    *link = block->next;
    arena->bytes_free += block->bytes;
    insert_free(arena, block);
}

size_t gemmd_arena_bytes(const struct gemmd *session)
{
    return session->arena.bytes;
}

size_t gemmd_arena_bytes_free(const struct gemmd *session)
{
    return session->arena.bytes_free;
}
