/* The pool's memory as another worker finds it, and what an earlier one has left. */
#include "worker/pool_table.h"

#include <errno.h>
#include <stddef.h>

bool pool_get_extent(const struct pool *pool, uint32_t index, struct pool_extent *out)
{
    const struct extent *extent = pool->extents;

    while (extent && index--)
        extent = extent->next;
    if (!extent)
        return false;
    *out = (struct pool_extent){extent->id, extent->bytes, extent->rung, extent->fd};
    return true;
}

bool pool_locate(const struct pool *pool, const void *memory, uint64_t *extent_id,
                 uint64_t *offset)
{
    const struct extent *extent = pool_find(pool, memory);

    if (!extent)
        return false;
    *extent_id = extent->id;
    *offset = (uint64_t)((const char *)memory - extent->memory);
    return true;
}

static struct extent *find_id(const struct pool *pool, uint64_t id)
{
    struct extent *extent = pool->extents;

    while (extent && extent->id != id)
        extent = extent->next;
    return extent;
}

int pool_adopt(struct pool *pool, const struct pool_extent *left)
{
    struct extent *extent;
    int error;

    if (left->rung >= EXTENT_RUNG_COUNT)
        return -EBADMSG;
    if (left->id == 0 || find_id(pool, left->id))
        return -EEXIST;
    if (left->bytes > pool->config.limit_bytes - pool->bytes)
        return -ENOSPC;
    error = extent_adopt(&extent, (enum extent_rung)left->rung, left->bytes, left->fd);
    if (error < 0)
        return error;
    extent->id = left->id;
    if (extent->id > pool->next_id)
        pool->next_id = extent->id;
    pool_append(pool, extent);
    return 0;
}

void *pool_claim(struct pool *pool, uint64_t extent_id, uint64_t offset, uint64_t bytes)
{
    struct extent *extent = find_id(pool, extent_id);

    if (!extent || bytes == 0 || bytes > extent->bytes || offset % POOL_UNIT_BYTES)
        return NULL;
    bytes = (bytes + POOL_UNIT_BYTES - 1) / POOL_UNIT_BYTES * POOL_UNIT_BYTES;
    return extent_claim(extent, offset, bytes);
}

void pool_unclaim(struct pool *pool, void *memory)
{
    struct extent *extent = pool_find(pool, memory);

    if (extent)
        extent_free(extent, memory);
}

void pool_trim(struct pool *pool)
{
    struct extent *extent = pool->extents;

    while (extent) {
        struct extent *next = extent->next;

        if (extent->bytes_used == 0)
            pool_drop(pool, extent);
        extent = next;
    }
}
