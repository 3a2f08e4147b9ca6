/*
 * Control messages: one request, one reply, over a non-blocking socket with a deadline.  A reply
 * whose serial is not the request's belongs to a call that timed out, and is dropped.
 */
#include "client/internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Room for more descriptors than any reply has: those too many are seen, and closed. */
#define FDS_MAX 16

/* A packet as it came. */
struct packet {
    uint64_t bytes[GEMMD_MESSAGE_BYTES_MAX / sizeof(uint64_t)]; /* aligned for any message */
    size_t length;
    bool truncated;
    int fds[FDS_MAX];
    unsigned fd_count;
};

/* 0, -ETIMEDOUT or -errno. */
static int await(struct gemmd *session, short events, uint64_t deadline_ns)
{
    struct pollfd poll_fd = {.fd = session->fd, .events = events};

    for (;;) {
        uint64_t now_ns = gemmd_now_ns();
        uint64_t left_ms = now_ns < deadline_ns ? (deadline_ns - now_ns + 999999) / 1000000 : 0;
        int ready = poll(&poll_fd, 1, left_ms > 1000000 ? 1000000 : (int)left_ms);

        session->syscalls++;
        if (ready > 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return -errno;
        if (gemmd_now_ns() >= deadline_ns)
            return -ETIMEDOUT;
    }
}

/* `fd` >= 0 travels along. */
static int send_packet(struct gemmd *session, const void *request, size_t bytes, int fd,
                       uint64_t deadline_ns)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } ancillary = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
                              .cmsg_level = SOL_SOCKET,
                              .cmsg_type = SCM_RIGHTS}};
    struct iovec iov = {(void *)(uintptr_t)request, bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd >= 0) {
        memcpy(CMSG_DATA(&ancillary.header), &fd, sizeof(fd));
        message.msg_control = ancillary.space;
        message.msg_controllen = sizeof(ancillary.space);
    }
    for (;;) {
        int error;

        session->syscalls++;
        if (sendmsg(session->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return -errno;
        error = await(session, POLLOUT, deadline_ns);
        if (error < 0)
            return error;
    }
}

static void close_fds(struct packet *packet)
{
    while (packet->fd_count)
        close(packet->fds[--packet->fd_count]);
}

static void take_fds(struct msghdr *message, struct packet *packet)
{
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(message); cmsg; cmsg = CMSG_NXTHDR(message, cmsg)) {
        size_t count;

        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
            continue;
        count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        if (count > FDS_MAX - packet->fd_count)
            continue; /* cannot be: the kernel fills our room only */
        memcpy(packet->fds + packet->fd_count, CMSG_DATA(cmsg), count * sizeof(int));
        packet->fd_count += (unsigned)count;
    }
}

/* 0; -EAGAIN; -ECONNRESET when the connection is closed; -errno. */
static int receive_packet(struct gemmd *session, struct packet *packet)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * FDS_MAX)];
    } ancillary;
    struct iovec iov = {packet->bytes, sizeof(packet->bytes)};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = ancillary.space,
                             .msg_controllen = sizeof(ancillary.space)};
    ssize_t got = recvmsg(session->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    session->syscalls++;
    packet->fd_count = 0;
    if (got <= 0)
        return got == 0 ? -ECONNRESET : errno == EINTR ? -EAGAIN : -errno;
    packet->length = (size_t)got;
    packet->truncated = message.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
    take_fds(&message, packet);
    return 0;
}

/* A well-formed reply to `request`, or -EAGAIN (of an earlier one), or -EPROTO. */
static int check_reply(const struct gemmd_msg_header *request, const struct packet *packet,
                       size_t reply_bytes)
{
    const struct gemmd_msg_header *header = (const struct gemmd_msg_header *)packet->bytes;

    if (packet->truncated || packet->length < sizeof(*header) || header->bytes != packet->length ||
        !(header->type & GEMMD_REPLY))
        return -EPROTO;
    /* Who is refused at the door is told so before he has asked anything: serial 0. */
    if (header->serial != request->serial && !(header->serial == 0 && header->status != 0))
        return -EAGAIN;
    if (header->type != (request->type | GEMMD_REPLY) && header->status == 0)
        return -EPROTO;
    return header->status != 0 || packet->length == reply_bytes ? 0 : -EPROTO;
}

static int receive_reply(struct gemmd *session, const struct gemmd_msg_header *request,
                         struct packet *packet, size_t reply_bytes, uint64_t deadline_ns)
{
    bool reset = false;

    packet->fd_count = 0;
    for (;;) {
        int error = receive_packet(session, packet);

        if (error == -EAGAIN) { /* not there yet; replies to a batch mostly are */
            error = await(session, POLLIN, deadline_ns);
            if (error == 0)
                continue;
        }
        if (error == 0)
            error = check_reply(request, packet, reply_bytes);
        if (error == 0)
            return 0;
        close_fds(packet);
        /* A peer that closed with our request unread: the kernel reports that first, and then gives
         * the reply that was sent before. */
        if (error == -ECONNRESET && !reset)
            reset = true;
        else if (error != -EAGAIN)
            return error;
    }
}

static int note_failure(struct gemmd *session, int error)
{
    switch (error) {
    case -ETIMEDOUT:
        return gemmd_fail(session, error, "the worker at %s did not answer in time; is it stopped?",
                          session->socket);
    case -EPROTO:
        return gemmd_fail(session, error, "whoever answers at %s does not speak gemmd's protocol",
                          session->socket);
    case -EPIPE:
    case -ECONNRESET:
        return gemmd_lose(session, "it closed the connection");
    default:
        return gemmd_lose(session, strerror(-error));
    }
}

static void print_message(const struct gemmd_msg_header *request,
                          const struct gemmd_msg_header *reply, int error)
{
    fprintf(stderr, "libgemmd: message %u serial %u: %s\n", request->type, request->serial,
            error < 0 ? strerror(-error) : gemmd_status_name_of(reply->status));
}

/* EPIPE, which is no failure yet: the peer may have said why before it left. */
static int send_request(struct gemmd *session, void *request, size_t request_bytes, int fd,
                        uint64_t deadline_ns)
{
    struct gemmd_msg_header *header = request;
    int error;

    header->bytes = (uint32_t)request_bytes;
    header->serial = ++session->serial ? session->serial : ++session->serial;
    error = send_packet(session, request, request_bytes, fd, deadline_ns);
    return error == -EPIPE || error == -ECONNRESET ? 0 : error;
}

/* The reply to what send_request sent; on failure `reply` is the body that came, if it has the
 * reply's length. */
static int take_reply(struct gemmd *session, const struct gemmd_msg_header *header, void *reply,
                      size_t reply_bytes, int *fds, unsigned fd_count, uint64_t deadline_ns,
                      enum gemmd_status *status)
{
    struct packet packet;
    const struct gemmd_msg_header *got = (const struct gemmd_msg_header *)packet.bytes;
    int error = receive_reply(session, header, &packet, reply_bytes, deadline_ns);

    if (session->debug)
        print_message(header, got, error);
    if (error < 0)
        return note_failure(session, error);
    for (unsigned i = 0; i < fd_count && got->status == 0 && packet.fd_count == fd_count; i++)
        fds[i] = packet.fds[i];
    if (got->status != 0 || packet.fd_count != fd_count)
        close_fds(&packet);
    if (packet.length == reply_bytes)
        memcpy(reply, packet.bytes, reply_bytes);
    if (got->status != 0) {
        if (status)
            *status = (enum gemmd_status)got->status;
        return gemmd_fail(session, -gemmd_status_errno_of(got->status), "%s",
                          gemmd_status_text_of(got->status));
    }
    return 0;
}

/* gemmd_call with a descriptor for the worker (-1: none). */
static int call(struct gemmd *session, void *request, size_t request_bytes, int fd, void *reply,
                size_t reply_bytes, int *fds, unsigned fd_count, uint64_t deadline_ns,
                enum gemmd_status *status)
{
    int error;

    if (status)
        *status = GEMMD_STATUS_OK;
    for (unsigned i = 0; i < fd_count; i++)
        fds[i] = -1;
    error = send_request(session, request, request_bytes, fd, deadline_ns);
    if (error < 0)
        return note_failure(session, error);
    return take_reply(session, request, reply, reply_bytes, fds, fd_count, deadline_ns, status);
}

int gemmd_call(struct gemmd *session, void *request, size_t request_bytes, void *reply,
               size_t reply_bytes, int *fds, unsigned fd_count, uint64_t deadline_ns,
               enum gemmd_status *status)
{
    return call(session, request, request_bytes, -1, reply, reply_bytes, fds, fd_count,
                deadline_ns, status);
}

int gemmd_ask(struct gemmd *session, void *request, size_t request_bytes, void *reply,
              size_t reply_bytes, enum gemmd_status *status)
{
    return gemmd_ask_with_fd(session, request, request_bytes, -1, reply, reply_bytes, status);
}

static uint64_t deadline(const struct gemmd *session)
{
    return gemmd_now_ns() + (uint64_t)session->timeout_ms * 1000000;
}

int gemmd_ask_with_fd(struct gemmd *session, void *request, size_t request_bytes, int fd,
                      void *reply, size_t reply_bytes, enum gemmd_status *status)
{
    int error = gemmd_check(session);

    if (status)
        *status = GEMMD_STATUS_OK;
    if (error < 0)
        return error;
    return call(session, request, request_bytes, fd, reply, reply_bytes, NULL, 0,
                deadline(session), status);
}

int gemmd_send(struct gemmd *session, void *request, size_t request_bytes)
{
    int error = send_request(session, request, request_bytes, -1, deadline(session));

    return error < 0 ? note_failure(session, error) : 0;
}

int gemmd_receive(struct gemmd *session, const struct gemmd_msg_header *request, void *reply,
                  size_t reply_bytes)
{
    return take_reply(session, request, reply, reply_bytes, NULL, 0, deadline(session), NULL);
}

bool gemmd_is_connected(struct gemmd *session)
{
    char byte;
    ssize_t got = recv(session->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    session->syscalls++;
    /* A packet that nobody waits for is a late reply: the worker lives. */
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}
