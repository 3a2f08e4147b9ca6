/*
 * The weight pool: a list of extents, the ladder that maps a new one, and an account of both.
 * Allocation is best fit over all extents; layers are few and large, so neither list grows long.
 */
#include "worker/pool_table.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/extent.h"
#include "worker/hugepages.h"
#include "worker/ladder.h"
#include "worker/log.h"
#include "worker/memory.h"

static void set_line(struct pool *pool, char *line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void set_line(struct pool *pool, char *line, const char *format, ...)
{
    const char *const parts[] = {pool->no_hugetlb, pool->no_thp, pool->no_node};
    size_t used = 0;
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line, POOL_LINE_BYTES, format, arguments);
    va_end(arguments);
    pool->lost[0] = '\0';
    for (int i = 0; i < 3; i++)
        if (*parts[i])
            used += (size_t)snprintf(pool->lost + used, sizeof(pool->lost) - used, "%s%s",
                                     used ? "; " : "", parts[i]);
}

/* ---- what the machine has -------------------------------------------------------------------- */

/* Says why `bytes` on hugetlb pages of that size were not had, and what mends it. */
static void explain_hugetlb(struct pool *pool, enum extent_rung rung, uint64_t bytes)
{
    uint64_t page_bytes = extent_rung_bytes(rung);
    const char *page_name = rung == EXTENT_1G ? "1 GiB" : "2 MiB";
    long long total = hugepages_read(pool->sysfs_node, page_bytes, "nr_hugepages");
    long long available = hugepages_read(pool->sysfs_node, page_bytes, "free_hugepages");
    long long pages = (long long)((bytes + page_bytes - 1) / page_bytes);
    long long needed = total - available + pages;

    if (total < 0)
        set_line(pool, pool->no_hugetlb, "no %s huge pages (unknown to this kernel or CPU)",
                 page_name);
    else if (available >= pages) /* more of them would not help */
        set_line(pool, pool->no_hugetlb, "no %s huge pages, though %lld of %lld are free: promised "
                 "to others, or beyond this cgroup's hugetlb limit", page_name, available, total);
    else if (rung == EXTENT_1G)
        set_line(pool, pool->no_hugetlb, "no 1 GiB huge pages (%lld free of %lld): boot with "
                 "hugepagesz=1G hugepages=%lld", available, total, needed);
    else if (pool->sysfs_node >= 0) {
        char path[HUGEPAGES_PATH_BYTES];

        hugepages_path(pool->sysfs_node, page_bytes, "nr_hugepages", path);
        set_line(pool, pool->no_hugetlb, "no 2 MiB huge pages (%lld free of %lld): "
                 "echo %lld > %s", available, total, needed, path);
    } else {
        set_line(pool, pool->no_hugetlb, "no 2 MiB huge pages (%lld free of %lld): "
                 "sysctl vm.nr_hugepages=%lld", available, total, needed);
    }
}

static enum extent_rung first_rung(const struct pool *pool, uint64_t bytes)
{
    switch (pool->config.policy) {
    case POOL_POLICY_1G:
        return EXTENT_1G;
    case POOL_POLICY_THP:
        return EXTENT_THP;
    case POOL_POLICY_NONE:
        return EXTENT_4K;
    case POOL_POLICY_AUTO:
    case POOL_POLICY_2M:
        break;
    }
    return pool->config.policy == POOL_POLICY_AUTO && bytes >= MEMORY_PAGE_1G ? EXTENT_1G
                                                                              : EXTENT_2M;
}

/* At start, before anything was tried: the advice is enough pages for the whole pool. */
static void assess(struct pool *pool)
{
    enum extent_rung rung = first_rung(pool, POOL_UNIT_BYTES);
    uint64_t page_bytes = extent_rung_bytes(rung);

    if (rung <= EXTENT_2M &&
        hugepages_read(pool->sysfs_node, page_bytes, "free_hugepages") <= 0 &&
        hugepages_read(-1, page_bytes, "nr_overcommit_hugepages") <= 0)
        explain_hugetlb(pool, rung, pool->config.limit_bytes);
}

/* ---- the ladder ------------------------------------------------------------------------------ */

static uint64_t round_up(uint64_t bytes, uint64_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* What this extent's rung says about the machine. */
static void note_obtained(struct pool *pool, const struct extent *extent, enum extent_rung first)
{
    const char *advice = hugepages_thp_disabled()
                             ? "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
                             : "sysctl vm.compact_memory=1, then restart";

    if (extent->rung == first)
        set_line(pool, pool->no_hugetlb, "%s", "");
    if (extent->rung == EXTENT_THP && extent->bytes_thp == extent->bytes)
        set_line(pool, pool->no_thp, "%s", "");
    else if (extent->rung >= EXTENT_THP && first != EXTENT_4K)
        set_line(pool, pool->no_thp, "transparent huge pages for %llu of %llu MiB: %s",
                 (unsigned long long)(extent->bytes_thp >> 20),
                 (unsigned long long)(extent->bytes >> 20), advice);
    if (extent->bind_error)
        set_line(pool, pool->no_node, "weights not bound to node %d (mbind: %s)",
                 pool->config.node, strerror(-extent->bind_error));
}

static void tell(const struct pool *pool, const struct extent *extent, int fd)
{
    if (pool->config.on_extent && extent->fd >= 0)
        pool->config.on_extent(pool->config.context, extent->id, fd);
}

void pool_append(struct pool *pool, struct extent *extent)
{
    pool->bytes += extent->bytes;
    *pool->last_p = extent;
    pool->last_p = &extent->next;
    tell(pool, extent, extent->fd);
}

static struct ladder ladder_for(const struct pool *pool, uint64_t bytes)
{
    return (struct ladder){
        .first = first_rung(pool, bytes),
        .last = pool->config.require_hugepages ? EXTENT_2M : EXTENT_4K,
        .bytes = bytes,
        .usual_bytes = POOL_EXTENT_BYTES,
        .room = pool->config.limit_bytes - pool->bytes - pool->bytes_promised,
        .node = pool->config.node,
    };
}

/* Takes in what the ladder gave, and says what it could not. */
static int take_in(struct pool *pool, const struct ladder *ladder, struct extent *extent,
                   uint32_t failed, int error)
{
    for (int rung = EXTENT_1G; rung <= EXTENT_2M; rung++)
        if (failed & (UINT32_C(1) << rung))
            explain_hugetlb(pool, (enum extent_rung)rung, ladder->bytes);
    if (error < 0)
        return error;
    note_obtained(pool, extent, ladder->first);
    if (*pool->lost && !pool->warned) { /* once: pool_report has the state of the day */
        log_warn(LOG_TOPIC_POOL, "weights on lesser pages: %s", pool->lost);
        pool->warned = true;
    }
    extent->id = ++pool->next_id;
    pool_append(pool, extent);
    return 0;
}

/* A new extent with room for `bytes`. */
static int grow(struct pool *pool, uint64_t bytes)
{
    struct ladder ladder = ladder_for(pool, bytes);
    struct extent *extent;
    uint32_t failed;
    int error = ladder_map(&ladder, &extent, &failed);

    return take_in(pool, &ladder, extent, failed, error);
}

void pool_drop(struct pool *pool, struct extent *extent)
{
    struct extent **link = &pool->extents;

    while (*link != extent)
        link = &(*link)->next;
    *link = extent->next;
    if (!extent->next)
        pool->last_p = link;
    pool->bytes -= extent->bytes;
    tell(pool, extent, -1);
    extent_unmap(&extent);
}

struct extent *pool_find(const struct pool *pool, const void *memory)
{
    struct extent *extent = pool->extents;

    while (extent && !extent_owns(extent, memory))
        extent = extent->next;
    return extent;
}

/* Maps an extent and gives it back, so that a machine without huge pages is refused at start. */
static int check_required(struct pool *pool)
{
    int error = grow(pool, POOL_UNIT_BYTES);

    if (error == 0) {
        pool_drop(pool, pool->extents);
        return 0;
    }
    if (error != -ENOSPC)
        explain_hugetlb(pool, EXTENT_2M, pool->config.limit_bytes);
    log_error(LOG_TOPIC_POOL, "huge pages are required: %s",
              error == -ENOSPC ? "the pool's limit is below one of them" : pool->no_hugetlb);
    return -ENOMEM;
}

/* ---- public ---------------------------------------------------------------------------------- */

int pool_open(struct pool **out, const struct pool_config *config)
{
    struct pool *pool;
    int error;

    *out = NULL;
    if (config->limit_bytes < POOL_UNIT_BYTES ||
        (config->require_hugepages &&
         (config->policy == POOL_POLICY_THP || config->policy == POOL_POLICY_NONE))) {
        log_error(LOG_TOPIC_POOL, "a limit below one page, or huge pages both required and off");
        return -EINVAL;
    }
    pool = calloc(1, sizeof(*pool));
    if (!pool)
        return -ENOMEM;
    pool->config = *config;
    pool->last_p = &pool->extents;
    pool->sysfs_node = hugepages_are_by_node() ? config->node : -1;
    assess(pool);
    error = config->require_hugepages ? check_required(pool) : 0;
    if (error < 0)
        pool_close(&pool);
    *out = pool;
    return error;
}

void pool_close(struct pool **pool_p)
{
    struct pool *pool = *pool_p;

    if (!pool)
        return;
    pool->config.on_extent = NULL; /* whoever keeps the files goes on keeping them */
    while (pool->extents)
        pool_drop(pool, pool->extents);
    free(pool);
    *pool_p = NULL;
}

/* The one with the shortest free range that is long enough.  Best fit strands half as much as first
 * fit did (tests/unit/worker/pool_model_test.c). */
struct extent *pool_best_extent(const struct pool *pool, uint64_t bytes)
{
    struct extent *best = NULL;
    uint64_t best_bytes = UINT64_MAX;

    for (struct extent *extent = pool->extents; extent; extent = extent->next) {
        uint64_t found = extent_best_fit(extent, bytes);

        if (found && found < best_bytes) {
            best_bytes = found;
            best = extent;
        }
    }
    return best;
}

int pool_request_begin(struct pool *pool, uint64_t bytes, struct pool_request *out)
{
    struct ladder ladder;
    uint64_t wanted;
    int error = 0;

    *out = (struct pool_request){.bytes = round_up(bytes, POOL_UNIT_BYTES)};
    if (bytes == 0)
        return -EINVAL;
    if (bytes > pool->config.limit_bytes)
        return -ENOSPC;
    out->extent = pool_best_extent(pool, out->bytes);
    ladder = ladder_for(pool, out->bytes);
    if (!out->extent && ladder.room < out->bytes && pool_compact(pool, out->bytes))
        out->extent = pool_best_extent(pool, out->bytes);
    if (out->extent) {
        out->memory = extent_take(out->extent, out->bytes);
        error = out->memory ? pool_write_begin(pool, out->memory) : -ENOMEM;
        if (error < 0 && out->memory)
            extent_free(out->extent, out->memory);
        out->clear = !out->extent->fresh;
        return error;
    }
    wanted = round_up(out->bytes, extent_rung_bytes(ladder.first));
    wanted = wanted > POOL_EXTENT_BYTES ? wanted : POOL_EXTENT_BYTES;
    ladder.room = ladder.room < wanted ? ladder.room : wanted;
    out->ladder = ladder;
    pool->bytes_promised += ladder.room;
    return 0;
}

void pool_request_prepare(struct pool_request *request)
{
    if (request->clear)
        memset(request->memory, 0, request->bytes);
    else if (!request->memory)
        request->error = ladder_map(&request->ladder, &request->extent, &request->failed);
}

int pool_request_end(struct pool *pool, struct pool_request *request, void **out)
{
    int error;

    *out = request->memory;
    if (request->memory)
        return 0;
    pool->bytes_promised -= request->ladder.room;
    error = take_in(pool, &request->ladder, request->extent, request->failed, request->error);
    if (error == -ENOMEM)
        log_warn(LOG_TOPIC_POOL, "no memory for %llu KiB of weights%s%s",
                 (unsigned long long)(request->bytes >> 10), *pool->lost ? ": " : "", pool->lost);
    if (error < 0)
        return error;
    *out = extent_take(request->extent, request->bytes);
    error = *out ? pool_write_begin(pool, *out) : -ENOMEM;
    if (error < 0)
        pool_drop(pool, request->extent);
    return error;
}

int pool_alloc(struct pool *pool, uint64_t bytes, void **out)
{
    struct pool_request request;
    int error = pool_request_begin(pool, bytes, &request);

    *out = NULL;
    if (error < 0)
        return error;
    pool_request_prepare(&request);
    return pool_request_end(pool, &request, out);
}

void pool_set_mover(struct pool *pool, const struct pool_mover *mover)
{
    pool->mover = mover;
}

void pool_set_owner(struct pool *pool, void *memory, void *owner)
{
    const struct extent *extent = pool_find(pool, memory);

    if (extent)
        extent_set_owner(extent, memory, owner);
}

void pool_free(struct pool *pool, void *memory)
{
    struct extent *extent = memory ? pool_find(pool, memory) : NULL;

    if (!extent || !extent_free(extent, memory))
        return;
    if (extent->bytes_used == 0)
        pool_drop(pool, extent);
}

int pool_write_begin(struct pool *pool, void *memory)
{
    struct extent *extent = pool_find(pool, memory);
    int error;

    if (!extent)
        return -EINVAL;
    error = extent_set_writable(extent, true);
    if (error == 0)
        extent->writers++;
    return error;
}

int pool_write_end(struct pool *pool, void *memory)
{
    struct extent *extent = pool_find(pool, memory);

    if (!extent || extent->writers == 0)
        return -EINVAL;
    return --extent->writers > 0 ? 0 : extent_set_writable(extent, false);
}

uint64_t pool_limit_bytes(const struct pool *pool)
{
    return pool->config.limit_bytes;
}

uint64_t pool_page_bytes(const struct pool *pool, const void *memory)
{
    const struct extent *extent = pool_find(pool, memory);

    if (!extent)
        return 0;
    if (extent->rung == EXTENT_THP && extent->bytes_thp < extent->bytes)
        return POOL_UNIT_BYTES;
    return extent_rung_bytes(extent->rung);
}

/* Bytes of an extent that are verified to be where they belong. */
static uint64_t on_node(const struct pool *pool, const struct extent *extent)
{
    int64_t bytes;

    if (pool->config.node < 0)
        return extent->bytes;
    bytes = extent_read_on_node(extent, pool->config.node);
    if (bytes == -ENOSYS)
        return extent->bytes;
    return bytes < 0 ? 0 : (uint64_t)bytes;
}

void pool_report(const struct pool *pool, struct pool_report *out)
{
    memset(out, 0, sizeof(*out));
    out->bytes = pool->bytes;
    out->bytes_limit = pool->config.limit_bytes;
    out->lost = pool->lost;
    for (const struct extent *extent = pool->extents; extent; extent = extent->next) {
        uint64_t thp = extent_read_thp(extent);

        out->bytes_used += extent->bytes_used;
        out->bytes_kept += extent->fd >= 0 ? extent->bytes : 0;
        out->bytes_on_node += on_node(pool, extent);
        if (extent->rung == EXTENT_1G)
            out->bytes_1g += extent->bytes;
        else if (extent->rung == EXTENT_2M)
            out->bytes_2m += extent->bytes;
        out->bytes_thp += thp;
        out->bytes_4k += extent->rung >= EXTENT_THP ? extent->bytes - thp : 0;
    }
}
