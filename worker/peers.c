/* Lists of users and groups, and the question who is at the other end of a connection. */
#include "worker/peers.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59 /* Linux 4.13 */
#endif

/* Groups of one process that are looked at; one in more is judged by its primary group alone. */
#define GROUPS_MAX 1024

static const char default_group[] = "gemmd";

/* Digits only; ids are u32, and the largest means "none" in the kernel's interfaces. */
static bool parse_id(const char *text, uint32_t *out)
{
    unsigned long value;
    char *end;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    value = strtoul(text, &end, 10);
    *out = (uint32_t)value;
    return !*end && !errno && value < UINT32_MAX;
}

static bool find_user(const char *name, uint32_t *out)
{
    const struct passwd *entry;

    if (parse_id(name, out))
        return true;
    entry = getpwnam(name);
    if (entry)
        *out = entry->pw_uid;
    return entry != NULL;
}

static bool find_group(const char *name, uint32_t *out)
{
    const struct group *entry;

    if (parse_id(name, out))
        return true;
    entry = getgrnam(name);
    if (entry)
        *out = entry->gr_gid;
    return entry != NULL;
}

static bool add_list(const char *list, bool (*find)(const char *, uint32_t *), uint32_t *ids,
                     uint32_t *count)
{
    char name[64];

    while (*list) {
        size_t length = strcspn(list, ",");

        if (length == 0 || length >= sizeof(name) || *count == PEERS_MAX)
            return false;
        memcpy(name, list, length);
        name[length] = '\0';
        if (!find(name, &ids[*count]))
            return false;
        ++*count;
        list += length;
        if (*list == ',' && !*++list)
            return false;
    }
    return true;
}

bool peers_add_users(struct peers *peers, const char *list)
{
    return add_list(list, find_user, peers->uids, &peers->uid_count);
}

bool peers_add_groups(struct peers *peers, const char *list)
{
    return add_list(list, find_group, peers->gids, &peers->gid_count);
}

static bool refuse(struct peers_fault *why, const char *what, const char *item)
{
    snprintf(why->text, sizeof(why->text), "%s: %s", item, what);
    return false;
}

/* "name:4", which it cuts. */
static bool add_weight(struct peers *peers, char *item, uint32_t max, struct peers_fault *why)
{
    uint32_t i = peers->weight_count, weight;
    char *colon = strchr(item, ':');

    if (!colon)
        return refuse(why, "no weight", item);
    if (!parse_id(colon + 1, &weight) || weight == 0 || weight > max)
        return refuse(why, "not a weight", item);
    *colon = '\0';
    if (!find_user(item, &peers->weight_uids[i]))
        return refuse(why, "no such user", item);
    peers->weights[i] = weight;
    peers->weight_count++;
    return true;
}

bool peers_add_weights(struct peers *peers, const char *list, uint32_t max, struct peers_fault *why)
{
    char item[72];

    while (*list) {
        size_t length = strcspn(list, ",");

        if (peers->weight_count == PEERS_MAX)
            return refuse(why, "too many users", list);
        snprintf(item, sizeof(item), "%.*s", length < sizeof(item) ? (int)length : 71, list);
        if (length >= sizeof(item))
            return refuse(why, "too long", item);
        if (!add_weight(peers, item, max, why))
            return false;
        list += length;
        if (*list == ',' && !*++list)
            return refuse(why, "no user behind the comma", item);
    }
    return true;
}

uint32_t peers_weight(const struct peers *peers, uid_t uid)
{
    for (uint32_t i = peers->weight_count; i-- > 0;)
        if (peers->weight_uids[i] == uid)
            return peers->weights[i];
    return 1;
}

void peers_add_default_group(struct peers *peers)
{
    const struct group *entry = getgrnam(default_group);

    if (entry && peers->gid_count < PEERS_MAX)
        peers->gids[peers->gid_count++] = entry->gr_gid;
}

static bool has_group(const struct peers *peers, gid_t gid)
{
    for (uint32_t i = 0; i < peers->gid_count; i++)
        if (peers->gids[i] == gid)
            return true;
    return false;
}

bool peers_admit(const struct peers *peers, int fd, pid_t *pid, uid_t *uid)
{
    gid_t groups[GROUPS_MAX];
    socklen_t bytes = sizeof(struct ucred);
    struct ucred peer;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0)
        return false;
    *pid = peer.pid;
    *uid = peer.uid;
    if (peer.uid == geteuid() || peer.uid == 0)
        return true;
    for (uint32_t i = 0; i < peers->uid_count; i++)
        if (peers->uids[i] == peer.uid)
            return true;
    if (peers->gid_count == 0)
        return false;
    if (has_group(peers, peer.gid))
        return true;
    bytes = sizeof(groups);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &bytes) < 0)
        return false;
    for (size_t i = 0; i < bytes / sizeof(groups[0]); i++)
        if (has_group(peers, groups[i]))
            return true;
    return false;
}

int peers_open_socket(const struct peers *peers, const char *path)
{
    mode_t mode = 0600;

    if (peers->uid_count || peers->gid_count > 1) {
        mode = 0666;
    } else if (peers->gid_count == 1) {
        if (chown(path, (uid_t)-1, peers->gids[0]) < 0)
            return -errno;
        mode = 0660;
    }
    return chmod(path, mode) < 0 ? -errno : 0;
}
