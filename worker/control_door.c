/* Who comes in: credentials, limits of users and of descriptors. */
#include "worker/control.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker/log.h"

/* A connection that cannot be taken stays in the queue and keeps the listening socket readable: a
 * pause, in which others wait, too, is less than turning until there is memory. */
#define RETRY_US 5000

/* What a user's sessions have: limits must hold for each, or one user locks out the others. */
struct usage {
    uint32_t sessions;
    uint64_t arena_bytes;
};

static struct usage usage_of(const struct control *control, uid_t uid)
{
    struct usage usage = {0, 0};

    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX; slot++) {
        const struct session *session = control->sessions[slot];

        if (!session || session->uid != uid)
            continue;
        usage.sessions++;
        usage.arena_bytes += session->arena.bytes;
    }
    return usage;
}

bool control_has_arena_room(const struct control *control, const struct session *session,
                            uint64_t arena_bytes)
{
    const struct control_config *config = &control->config;
    uint64_t of_user = usage_of(control, session->uid).arena_bytes;

    return arena_bytes <= config->arena_bytes_max &&
           control->arena_bytes <= config->arena_bytes_max - arena_bytes &&
           arena_bytes <= config->uid_arena_bytes_max &&
           of_user <= config->uid_arena_bytes_max - arena_bytes;
}

static void refuse(int fd, enum gemmd_status status)
{
    control_send_error(fd, GEMMD_MSG_HELLO, 0, status);
    close(fd);
}

/* No descriptor is left: a connection that stayed in the queue would keep the listening socket
 * readable and this thread turning.  The spare one makes room to say no. */
static void refuse_one(struct control *control)
{
    int fd;

    log_error(LOG_TOPIC_CONTROL, "accept: %s; raise LimitNOFILE", strerror(errno));
    close(control->spare_fd);
    fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) /* not covered: else others of the machine were faster, or the client has left */
        refuse(fd, GEMMD_STATUS_SESSIONS_FULL);
    else
        usleep(RETRY_US); /* not covered: as above */
    control->spare_fd = fcntl(control->lock_fd, F_DUPFD_CLOEXEC, 0);
}

void control_accept(struct control *control)
{
    struct session *session;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
    uint32_t slot = 0;
    pid_t pid = 0;
    uid_t uid = 0;
    int fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE) {
            refuse_one(control);
        } else if (errno == ENOMEM || errno == ENOBUFS) {
            log_error(LOG_TOPIC_CONTROL, "accept: %s", strerror(errno));
            usleep(RETRY_US);
        }
        return;
    }
    if (!peers_admit(control->config.peers, fd, &pid, &uid)) {
        log_warn(LOG_TOPIC_CONTROL, "uid %u is not admitted; see --allow-uid and --allow-gid",
                 (unsigned)uid);
        refuse(fd, GEMMD_STATUS_DENIED);
        return;
    }
    while (slot < GEMMD_WORKER_SESSIONS_MAX && control->sessions[slot])
        slot++;
    if (slot == GEMMD_WORKER_SESSIONS_MAX ||
        usage_of(control, uid).sessions >= control->config.uid_sessions_max) {
        refuse(fd, GEMMD_STATUS_SESSIONS_FULL);
        return;
    }
    session = session_open(slot, control->next_session_id, fd, pid, uid);
    event.data.u64 = slot;
    if (!session || epoll_ctl(control->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        control_send_error(fd, GEMMD_MSG_HELLO, 0, GEMMD_STATUS_NO_MEMORY);
        if (session)
            session_close(&session);
        else
            close(fd);
        return;
    }
    /* not covered: after 2^32 sessions */
    if (++control->next_session_id == 0)
        control->next_session_id = 1; /* not covered: as above */
    session->weight = peers_weight(control->config.peers, uid);
    control->sessions[slot] = session;
    control->session_count++;
}
