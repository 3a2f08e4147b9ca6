/*
 * Read once at the start: /proc/self/cgroup says where we are, the hierarchy's directories hold the
 * limits.  A limit that is set later on a group that had none is not noticed.
 */
#include "worker/cgroup.h"

#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEVELS_MAX 16
/* v1 says "unlimited" by the largest number of whole pages. */
#define UNLIMITED (UINT64_C(1) << 60)

/* The files of a group with a limit. */
struct level {
    int limit_fd, usage_fd, stat_fd;
};

static struct level levels[LEVELS_MAX];
static int level_count;

static const struct names {
    const char *mount, *limit, *usage;
} versions[] = {
    {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"},
    {"/sys/fs/cgroup", "memory.max", "memory.current"},
};

/* UINT64_MAX: "max", or not readable. */
static uint64_t read_number(int fd)
{
    char text[32];
    ssize_t length = pread(fd, text, sizeof(text) - 1, 0);

    if (length <= 0 || text[0] < '0' || text[0] > '9')
        return UINT64_MAX;
    text[length] = '\0';
    return strtoull(text, NULL, 10);
}

/* Of memory.stat; v1 has sums of a group and those below as "total_…". */
static uint64_t read_droppable(int fd)
{
    static const char *const keys[] = {"\ntotal_inactive_file ", "\ntotal_active_file ",
                                       "\ninactive_file ", "\nactive_file "};
    char text[8192] = "\n";
    ssize_t length = pread(fd, text + 1, sizeof(text) - 2, 0);
    uint64_t bytes = 0;

    text[length > 0 ? length + 1 : 0] = '\0';
    for (int i = 0; i < 4 && (i != 2 || bytes == 0); i++) {
        const char *at = strstr(text, keys[i]);

        bytes += at ? strtoull(at + strlen(keys[i]), NULL, 10) : 0;
    }
    return bytes;
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

static void close_level(const struct level *level)
{
    close_fd(level->limit_fd);
    close_fd(level->usage_fd);
    close_fd(level->stat_fd);
}

static void add_level(const char *directory, const struct names *names)
{
    struct level *level = &levels[level_count];
    int at = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (at < 0)
        return;
    level->limit_fd = openat(at, names->limit, O_RDONLY | O_CLOEXEC);
    level->usage_fd = openat(at, names->usage, O_RDONLY | O_CLOEXEC);
    level->stat_fd = openat(at, "memory.stat", O_RDONLY | O_CLOEXEC);
    close(at);
    level_count++;
    if (level->limit_fd < 0 || level->usage_fd < 0 || read_number(level->limit_fd) >= UNLIMITED) {
        level_count--;
        close_level(level);
    }
}

/* The group and all above it. */
static void add_levels(const char *root, const struct names *names, const char *group)
{
    char path[PATH_MAX];
    size_t mount_length;

    mount_length = (size_t)snprintf(path, sizeof(path), "%s%s", root, names->mount);
    if (snprintf(path + mount_length, sizeof(path) - mount_length, "%s", group) >=
        (int)(sizeof(path) - mount_length))
        return;
    while (level_count < LEVELS_MAX) {
        char *slash = strrchr(path + mount_length, '/');

        add_level(path, names);
        if (!slash)
            return;
        *slash = '\0';
    }
}

void cgroup_open(const char *root)
{
    char path[PATH_MAX], line[PATH_MAX];
    FILE *file;

    root = root ? root : "";
    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    file = fopen(path, "re");
    while (file && fgets(line, sizeof(line), file)) {
        char *controllers = strchr(line, ':'), *group;

        group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        group[strcspn(group, "\n")] = '\0';
        if (strcmp(controllers + 1, "memory") == 0)
            add_levels(root, &versions[0], group);
        else if (controllers[1] == '\0')
            add_levels(root, &versions[1], group);
    }
    if (file)
        fclose(file);
}

void cgroup_close(void)
{
    while (level_count)
        close_level(&levels[--level_count]);
}

uint64_t cgroup_room(void)
{
    uint64_t room = UINT64_MAX;

    for (int i = 0; i < level_count; i++) {
        uint64_t limit = read_number(levels[i].limit_fd), used = read_number(levels[i].usage_fd);
        uint64_t droppable = levels[i].stat_fd < 0 ? 0 : read_droppable(levels[i].stat_fd);

        if (limit >= UNLIMITED || used == UINT64_MAX)
            continue;
        used -= droppable < used ? droppable : used;
        limit = limit > used ? limit - used : 0;
        room = limit < room ? limit : room;
    }
    return room;
}
