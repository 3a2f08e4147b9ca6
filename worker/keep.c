/* Weights in the service manager's store (worker/keep.h). */
#include "worker/keep.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "worker/log.h"

static const char table_name[] = "gemmd-table";
static const char pool_prefix[] = "gemmd-pool-";

#define NAME_BYTES 40

static void pool_name(uint64_t id, char out[NAME_BYTES])
{
    snprintf(out, NAME_BYTES, "%s%llu", pool_prefix, (unsigned long long)id);
}

void keep_extent(void *context, uint64_t id, int fd)
{
    const struct notify *notify = context;
    char name[NAME_BYTES];

    pool_name(id, name);
    if (fd >= 0)
        notify_store(notify, name, fd);
    else
        notify_unstore(notify, name);
}

static int take_file(void *context, uint64_t id)
{
    char name[NAME_BYTES];

    pool_name(id, name);
    return notify_take(context, name);
}

/* What is still there is of no use: out of the store with it. */
static void give_up_rest(struct notify *notify)
{
    const char *name;
    uint32_t index = 0;

    while ((name = notify_name(notify, index)) != NULL) {
        char copy[NAME_BYTES];
        int fd;

        if (strncmp(name, pool_prefix, strlen(pool_prefix)) != 0 && strcmp(name, table_name) != 0) {
            index++; /* a socket, perhaps */
            continue;
        }
        snprintf(copy, sizeof(copy), "%.39s", name);
        fd = notify_take(notify, copy);
        notify_unstore(notify, copy);
        close(fd);
    }
}

int keep_restore(struct notify *notify, struct layers *layers, struct pool *pool,
                 struct handover **handover, struct handover_result *result)
{
    int fd = notify_take(notify, table_name);
    int error = fd < 0 ? -ENOENT
                       : handover_restore(fd, layers, pool, take_file, notify, result);

    if (fd >= 0 && error == 0)
        log_info(LOG_TOPIC_LAYERS, "%u layers kept over the restart, %u not usable",
                 result->layers, result->refused);
    else if (fd >= 0)
        log_warn(LOG_TOPIC_LAYERS, "an earlier worker's layers are not usable: %s",
                 error == -EXDEV ? "packed for another kernel" : strerror(-error));
    give_up_rest(notify);
    if (error == 0)
        error = handover_open(handover, fd);
    if (error == 0)
        return 0;
    if (fd >= 0) {
        notify_unstore(notify, table_name);
        close(fd);
    }
    error = handover_open(handover, -1);
    if (error == 0)
        notify_store(notify, table_name, handover_fd(*handover));
    return error;
}
