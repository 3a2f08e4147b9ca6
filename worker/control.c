/*
 * Connections of the control plane.  Level-triggered epoll over the listening socket, the signals,
 * the dispatcher's violation eventfd and each connection; one packet per readiness, so that no
 * client holds the thread.  Clients may send garbage, nothing, or descriptors: none of it costs
 * another.
 */
#include "worker/control.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/validate.h"
#include "worker/clock.h"
#include "worker/log.h"

/* epoll tokens: a session's slot, or one of these. */
enum { TOKEN_LISTEN = 1 << 20, TOKEN_SIGNAL, TOKEN_VIOLATION };

/* A connection has this long to say hello and to map its segments. */
#define HANDSHAKE_NS UINT64_C(10000000000)
/* How often half-open connections and the idle limit are looked at. */
#define HOUSEKEEPING_MS 1000
#define EVENTS_MAX 64

/* ---- packets --------------------------------------------------------------------------------- */

static bool send_packet(int fd, const void *bytes, size_t count, const int *fds, uint32_t fd_count)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * GEMMD_HELLO_FD_COUNT)];
    } ancillary = {0};
    struct iovec iov = {(void *)bytes, count};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd_count) {
        struct cmsghdr *cmsg = &ancillary.header;

        message.msg_control = ancillary.space;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * fd_count);
    }
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)count;
}

static bool send_error(int fd, uint32_t request_type, uint32_t serial, enum gemmd_status status)
{
    struct gemmd_msg_error_reply reply = {
        .header = {request_type | GEMMD_REPLY, sizeof(reply), serial, status}};

    return send_packet(fd, &reply, sizeof(reply), NULL, 0);
}

/* ---- sessions -------------------------------------------------------------------------------- */

static void end_session(struct control *control, struct session *session)
{
    const struct mailbox_order detach = {.op = MAILBOX_DETACH, .session = session};

    if (session->attached)
        mailbox_call(control->config.mailbox, &detach);
    if (session->state == GEMMD_SESSION_LIVE)
        gemmd_counter_add(&control->config.stats->sessions_closed, 1);
    log_info(LOG_TOPIC_SESSION, "session %u of pid %d ended", session->id, (int)session->pid);
    control_release_session(control, session);
    control->arena_bytes -= session->arena.bytes;
    control->sessions[session->slot] = NULL;
    control->session_count--;
    control->idle_since_ns = clock_now_ns();
    session_close(&session); /* closes the connection, which also takes it out of epoll */
}

static void end_violator(struct control *control, struct session *session, enum gemmd_status status)
{
    gemmd_counter_add(&control->config.stats->sessions_violated, 1);
    log_warn(LOG_TOPIC_SESSION, "session %u of pid %d (uid %u) ended by the worker: %s",
             session->id, (int)session->pid, (unsigned)session->uid, gemmd_status_text_of(status));
    end_session(control, session);
}

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
    send_error(fd, GEMMD_MSG_HELLO, 0, status);
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
    if (fd >= 0)
        refuse(fd, GEMMD_STATUS_SESSIONS_FULL);
    control->spare_fd = fcntl(control->lock_fd, F_DUPFD_CLOEXEC, 0);
}

static void accept_connection(struct control *control)
{
    struct session *session;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
    uint32_t slot = 0;
    pid_t pid = 0;
    uid_t uid = 0;
    int fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE)
            refuse_one(control);
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
        send_error(fd, GEMMD_MSG_HELLO, 0, GEMMD_STATUS_NO_MEMORY);
        if (session)
            session_close(&session);
        else
            close(fd);
        return;
    }
    if (++control->next_session_id == 0)
        control->next_session_id = 1; /* not covered: after 2^32 sessions */
    control->sessions[slot] = session;
    control->session_count++;
}

/* One packet of one client. */
static void receive(struct control *control, struct session *session)
{
    /* Aligned for any message; one byte more than a message may have, so that longer ones show. */
    uint64_t buffer[GEMMD_MESSAGE_BYTES_MAX / sizeof(uint64_t) + 1];
    struct iovec iov = {buffer, sizeof(buffer)};
    /* No room for ancillary data: the kernel drops whatever descriptors come along. */
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    const struct gemmd_msg_header *header = (const struct gemmd_msg_header *)buffer;
    struct control_answer answer;
    enum gemmd_status status;
    ssize_t bytes = recvmsg(session->fd, &message, MSG_DONTWAIT);

    if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (bytes <= 0) {
        end_session(control, session);
        return;
    }
    status = gemmd_validate_message(buffer, (size_t)bytes);
    if (message.msg_flags & MSG_CTRUNC)
        status = GEMMD_STATUS_MESSAGE_FDS;
    if (status != GEMMD_STATUS_OK) {
        bool whole = bytes >= (ssize_t)sizeof(*header);

        send_error(session->fd, whole ? header->type : 0, whole ? header->serial : 0, status);
        end_violator(control, session, status);
        return;
    }
    status = control_request(control, session, buffer, &answer);
    if (control->config.debug)
        fprintf(stderr, "gemmd: session %u: message %u serial %u: %s\n", session->id, header->type,
                header->serial, gemmd_status_name_of(status));
    if (!send_packet(session->fd, &answer.reply, answer.bytes, answer.fds, answer.fd_count)) {
        end_session(control, session); /* gone, or it does not read its replies */
        return;
    }
    if (gemmd_status_is_violation(status))
        end_violator(control, session, status);
}

/* The dispatcher found violations on rings. */
static void end_ring_violators(struct control *control)
{
    uint64_t count;

    if (read(control->config.violation_fd, &count, sizeof(count)) < 0)
        return; /* not covered: it was readable */
    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX; slot++) {
        struct session *session = control->sessions[slot];
        enum gemmd_status status;

        if (!session || !session->attached)
            continue;
        status = __atomic_load_n(&session->ring.violation, __ATOMIC_ACQUIRE);
        if (status != GEMMD_STATUS_OK)
            end_violator(control, session, status);
    }
}

static void end_half_open(struct control *control, uint64_t now_ns)
{
    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX; slot++) {
        struct session *session = control->sessions[slot];

        if (session && session->state != GEMMD_SESSION_LIVE &&
            now_ns - session->connected_ns > HANDSHAKE_NS)
            end_session(control, session);
    }
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* False: stop. */
static bool handle_event(struct control *control, const struct epoll_event *event)
{
    struct signalfd_siginfo info;
    struct session *session;

    switch (event->data.u64) {
    case TOKEN_LISTEN:
        accept_connection(control);
        return true;
    case TOKEN_VIOLATION:
        end_ring_violators(control);
        return true;
    case TOKEN_SIGNAL:
        if (read(control->signal_fd, &info, sizeof(info)) != sizeof(info))
            return true; /* not covered: it was readable */
        log_info(LOG_TOPIC_CONTROL, "signal %u: draining", info.ssi_signo);
        return false;
    default:
        /* An earlier event of this harvest may have ended it. */
        session = control->sessions[event->data.u64];
        if (!session)
            return true;
        /* EPOLLIN first: a client may say something and leave. */
        if (event->events & EPOLLIN)
            receive(control, session);
        else if (event->events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) /* not covered: EPOLLIN, too */
            end_session(control, session); /* not covered: as above */
        return true;
    }
}

int control_run(struct control *control)
{
    const struct mailbox_order drain = {.op = MAILBOX_DRAIN};
    struct epoll_event events[EVENTS_MAX];
    bool run = true;

    control->idle_since_ns = clock_now_ns();
    while (run) {
        int count = epoll_wait(control->epoll_fd, events, EVENTS_MAX, HOUSEKEEPING_MS);
        uint64_t now_ns;

        gemmd_counter_add(&control->rounds, 1);
        if (count < 0 && errno != EINTR)
            return -errno;
        for (int i = 0; i < count && run; i++)
            run = handle_event(control, &events[i]);
        now_ns = clock_now_ns(); /* after the events: no connection is younger than now */
        end_half_open(control, now_ns);
        if (control->config.idle_exit_ns && control->session_count == 0 &&
            now_ns > control->idle_since_ns &&
            now_ns - control->idle_since_ns > control->config.idle_exit_ns) {
            log_info(LOG_TOPIC_CONTROL, "idle: ending");
            run = false;
        }
    }
    /* New clients find no socket; what is submitted completes. */
    unlink(control->config.socket);
    mailbox_call(control->config.mailbox, &drain);
    return 0;
}

static int watch(struct control *control, int fd, uint64_t token)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = token};

    return epoll_ctl(control->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* The lock tells a dead worker's socket from a live one's without a race between two starters. */
static int lock_socket(struct control *control)
{
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path) + 8];

    snprintf(path, sizeof(path), "%s.lock", control->config.socket);
    control->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (control->lock_fd < 0)
        return -errno;
    if (flock(control->lock_fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? -EADDRINUSE : -errno;
    return 0;
}

static int open_socket(struct control *control)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    mode_t mask;
    int error;

    if (strlen(control->config.socket) >= sizeof(address.sun_path))
        return -ENAMETOOLONG; /* not covered: options.c has seen to it */
    error = lock_socket(control);
    if (error < 0)
        return error;
    strncpy(address.sun_path, control->config.socket, sizeof(address.sun_path) - 1);
    control->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (control->listen_fd < 0)
        return -errno;
    unlink(control->config.socket); /* a dead worker's: we hold the lock */
    mask = umask(0177);
    error = bind(control->listen_fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
    umask(mask);
    if (error < 0)
        return error;
    if (peers_open_socket(control->config.peers, control->config.socket) < 0)
        log_warn(LOG_TOPIC_CONTROL, "%s: cannot be given to the admitted group: only this user "
                 "and root may connect", control->config.socket);
    return listen(control->listen_fd, SOMAXCONN) < 0 ? -errno : 0;
}

static int open_descriptors(struct control *control)
{
    sigset_t signals;
    int error;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    control->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    control->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (control->signal_fd < 0 || control->epoll_fd < 0)
        return -errno;
    error = open_socket(control);
    if (error == 0) {
        control->spare_fd = fcntl(control->lock_fd, F_DUPFD_CLOEXEC, 0);
        error = control->spare_fd < 0 ? -errno : 0;
    }
    if (error == 0)
        error = watch(control, control->listen_fd, TOKEN_LISTEN);
    if (error == 0)
        error = watch(control, control->signal_fd, TOKEN_SIGNAL);
    if (error == 0)
        error = watch(control, control->config.violation_fd, TOKEN_VIOLATION);
    return error;
}

int control_open(struct control **out, const struct control_config *config)
{
    struct control *control = calloc(1, sizeof(*control));
    int error;

    *out = NULL;
    if (!control)
        return -ENOMEM;
    control->config = *config;
    control->listen_fd = control->signal_fd = control->epoll_fd = control->lock_fd = -1;
    control->spare_fd = -1;
    control->next_session_id = 1;
    control->started_ns = clock_now_ns();
    if (getrandom(&control->worker_epoch, sizeof(control->worker_epoch), 0) < 0)
        control->worker_epoch = control->started_ns;
    error = open_descriptors(control);
    if (error < 0) {
        control_close(&control);
        return error;
    }
    *out = control;
    return 0;
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

void control_close(struct control **control_p)
{
    struct control *control = *control_p;

    if (!control)
        return;
    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX; slot++)
        if (control->sessions[slot])
            end_session(control, control->sessions[slot]);
    if (control->listen_fd >= 0)
        unlink(control->config.socket);
    close_fd(control->listen_fd);
    close_fd(control->signal_fd);
    close_fd(control->epoll_fd);
    close_fd(control->spare_fd);
    close_fd(control->lock_fd);
    free(control);
    *control_p = NULL;
}
