/* A control-only session with the old worker. */
#include "worker/takeover.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/control.h"
#include "proto/status.h"
#include "worker/log.h"

#define FILES_MAX 4097 /* the table and its extents */
#define ANSWER_S  10
#define BUSY_US   2000
#define BUSY_TRIES 5000

struct takeover {
    int fd;
    uint32_t serial;
    struct {
        uint64_t id; /* 0: the table */
        int fd;
    } files[FILES_MAX];
    uint32_t count;
};

/* One request and its reply; up to two descriptors.  0 or -errno of the reply's status. */
static int call(struct takeover *takeover, void *request, uint32_t bytes, uint32_t type,
                void *reply, uint32_t reply_bytes, int fds[2])
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(2 * sizeof(int))];
    } ancillary = {0};
    struct gemmd_msg_header header = {type, bytes, ++takeover->serial, 0};
    struct iovec iov = {reply, reply_bytes};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = ancillary.space,
                             .msg_controllen = sizeof(ancillary.space)};
    const struct cmsghdr *cmsg;
    ssize_t count;

    memcpy(request, &header, sizeof(header));
    if (send(takeover->fd, request, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
        return -errno;
    count = recvmsg(takeover->fd, &message, MSG_CMSG_CLOEXEC);
    if (count < (ssize_t)sizeof(header))
        return count < 0 ? -errno : -ECONNRESET;
    fds[0] = fds[1] = -1;
    cmsg = CMSG_FIRSTHDR(&message);
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
        memcpy(fds, CMSG_DATA(cmsg), cmsg->cmsg_len - CMSG_LEN(0));
    memcpy(&header, reply, sizeof(header));
    if (header.status)
        return -gemmd_status_errno_of(header.status);
    return count == (ssize_t)reply_bytes && header.type == (type | GEMMD_REPLY) ? 0 : -EPROTO;
}

static int greet(struct takeover *takeover)
{
    struct gemmd_msg_hello hello = {.magic = GEMMD_MAGIC,
                                    .version_min = GEMMD_VERSION_MIN,
                                    .version_max = GEMMD_VERSION_MAX,
                                    .flags = GEMMD_HELLO_CONTROL_ONLY};
    struct gemmd_msg_hello_reply reply;
    int none[2];

    return call(takeover, &hello, sizeof(hello), GEMMD_MSG_HELLO, &reply, sizeof(reply), none);
}

static int connect_to(struct takeover *takeover, const char *path)
{
    const struct timeval limit = {.tv_sec = ANSWER_S};
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    takeover->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (takeover->fd < 0)
        return -errno;
    setsockopt(takeover->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (connect(takeover->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return errno == ENOENT ? -ECONNREFUSED : -errno;
    return greet(takeover);
}

/* All descriptors.  The old worker lets nobody change its layers meanwhile. */
static int fetch(struct takeover *takeover)
{
    uint64_t generation = 0;
    uint32_t count = 1;

    for (uint32_t index = 0; index < count; index++) {
        struct gemmd_msg_list list = {.index = index};
        struct gemmd_msg_takeover_reply reply;
        int fds[2], error = 0;

        /* Busy: it loads a file, or makes a large layer.  It begins no other. */
        for (int tries = 0; tries < BUSY_TRIES; tries++) {
            error = call(takeover, &list, sizeof(list), GEMMD_MSG_TAKEOVER, &reply, sizeof(reply),
                         fds);
            if (error != -EBUSY)
                break;
            usleep(BUSY_US);
        }

        if (error < 0)
            return error;
        if (fds[0] < 0 || reply.count > FILES_MAX)
            return -EPROTO;
        takeover->files[takeover->count].id = reply.file_id;
        takeover->files[takeover->count++].fd = fds[0];
        if (index > 0 && reply.generation != generation)
            return -EAGAIN;
        generation = reply.generation;
        count = reply.count;
    }
    return 0;
}

static int take_file(void *context, uint64_t id)
{
    struct takeover *takeover = context;

    for (uint32_t i = 1; i < takeover->count; i++) {
        int fd = takeover->files[i].fd;

        if (takeover->files[i].id == id && fd >= 0) {
            takeover->files[i].fd = -1;
            return fd;
        }
    }
    return -1;
}

int takeover_open(struct takeover **out, const char *socket, struct layers *layers,
                  struct pool *pool, struct handover_result *result)
{
    struct takeover *takeover = calloc(1, sizeof(*takeover));
    int error;

    *out = takeover;
    if (!takeover)
        return -ENOMEM;
    takeover->fd = -1;
    error = connect_to(takeover, socket);
    if (error == 0)
        error = fetch(takeover);
    if (error == 0)
        error = handover_restore(takeover->files[0].fd, layers, pool, take_file, takeover, result);
    if (error < 0 && error != -EXDEV)
        takeover_close(out);
    return error;
}

int takeover_commit(struct takeover *takeover, uint64_t generation, int *listen_fd, int *lock_fd)
{
    struct gemmd_msg_takeover_commit commit = {.generation = generation};
    struct gemmd_msg_takeover_commit_reply reply;
    int fds[2], error = call(takeover, &commit, sizeof(commit), GEMMD_MSG_TAKEOVER_COMMIT, &reply,
                             sizeof(reply), fds);

    if (error < 0)
        return error;
    if (fds[0] < 0 || fds[1] < 0)
        return -EPROTO;
    *listen_fd = fds[0];
    *lock_fd = fds[1];
    return 0;
}

void takeover_close(struct takeover **takeover_p)
{
    struct takeover *takeover = *takeover_p;

    if (!takeover)
        return;
    for (uint32_t i = 0; i < takeover->count; i++)
        if (takeover->files[i].fd >= 0)
            close(takeover->files[i].fd);
    if (takeover->fd >= 0)
        close(takeover->fd);
    free(takeover);
    *takeover_p = NULL;
}
