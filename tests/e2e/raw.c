/* See raw.h. */
#include "tests/e2e/raw.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/e2e/machine.h"
#include "tests/harness.h"

#define REPLY_MS 10000
/* More than SCM_MAX_FD would be refused by our own kernel. */
#define SEND_FDS_MAX 16

int raw_connect(const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    REQUIRE(fd >= 0 && strlen(socket_path) < sizeof(address.sun_path));
    memcpy(address.sun_path, socket_path, strlen(socket_path) + 1);
    REQUIRE(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    return fd;
}

bool raw_send(int fd, const void *bytes, size_t count, const int *fds, unsigned fd_count)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * SEND_FDS_MAX)];
    } ancillary;
    struct iovec iov = {(void *)(uintptr_t)bytes, count};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    memset(&ancillary, 0, sizeof(ancillary));
    if (fd_count) {
        REQUIRE(fd_count <= SEND_FDS_MAX);
        message.msg_control = ancillary.space;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        ancillary.header.cmsg_level = SOL_SOCKET;
        ancillary.header.cmsg_type = SCM_RIGHTS;
        ancillary.header.cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(&ancillary.header), fds, sizeof(int) * fd_count);
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)count;
}

int raw_receive(int fd, void *buffer, size_t bytes, int *fds, unsigned *fd_count, int timeout_ms)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * GEMMD_HELLO_FD_COUNT)];
    } ancillary;
    struct iovec iov = {buffer, bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    const struct cmsghdr *cmsg;
    ssize_t got;

    if (fds) {
        message.msg_control = ancillary.space;
        message.msg_controllen = sizeof(ancillary.space);
        *fd_count = 0;
    }
    if (poll(&poll_fd, 1, timeout_ms) != 1)
        return -1;
    got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    if (got < 0)
        return errno == ECONNRESET ? 0 : -1;
    cmsg = fds ? CMSG_FIRSTHDR(&message) : NULL;
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS) {
        *fd_count = (unsigned)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(cmsg), sizeof(int) * *fd_count);
    }
    return (int)got;
}

struct gemmd_msg_header raw_header(struct raw *raw, uint32_t type, size_t bytes)
{
    return (struct gemmd_msg_header){
        .type = type, .bytes = (uint32_t)bytes, .serial = raw ? ++raw->serial : 1};
}

struct gemmd_msg_hello raw_hello(uint32_t ring_entries, uint64_t arena_bytes)
{
    return (struct gemmd_msg_hello){
        .header = raw_header(NULL, GEMMD_MSG_HELLO, sizeof(struct gemmd_msg_hello)),
        .magic = GEMMD_MAGIC,
        .version_min = GEMMD_VERSION_MIN,
        .version_max = GEMMD_VERSION_MAX,
        .ring_entries = ring_entries,
        .arena_bytes = arena_bytes,
    };
}

static void *map(int fd, uint64_t bytes, int protection)
{
    void *memory = mmap(NULL, bytes, protection, MAP_SHARED, fd, 0);

    REQUIRE(memory != MAP_FAILED);
    return memory;
}

void raw_open_mapping(struct raw *raw, const char *socket_path, uint32_t ring_entries,
                      uint64_t arena_bytes)
{
    struct gemmd_msg_hello hello = raw_hello(ring_entries, arena_bytes);
    unsigned fd_count;

    memset(raw, 0, sizeof(*raw));
    raw->fd = raw_connect(socket_path);
    REQUIRE(raw_send(raw->fd, &hello, sizeof(hello), NULL, 0));
    REQUIRE(raw_receive(raw->fd, &raw->hello, sizeof(raw->hello), raw->fds, &fd_count, REPLY_MS) ==
            sizeof(raw->hello));
    REQUIRE(raw->hello.header.status == GEMMD_STATUS_OK && fd_count == GEMMD_HELLO_FD_COUNT);
    raw_map(raw);
}

void raw_map(struct raw *raw)
{
    raw->c2w = map(raw->fds[0], raw->hello.c2w_bytes, PROT_READ | PROT_WRITE);
    raw->w2c = map(raw->fds[1], raw->hello.w2c_bytes, PROT_READ);
    raw->arena = map(raw->fds[2], raw->hello.arena_bytes, PROT_READ | PROT_WRITE);
    raw->client = (struct gemmd_client_line *)(void *)(raw->c2w + GEMMD_CLIENT_LINE_OFFSET);
    raw->doorbell = (struct gemmd_doorbell_line *)(void *)(raw->w2c + GEMMD_DOORBELL_LINE_OFFSET);
    raw->worker = (struct gemmd_worker_line *)(void *)(raw->w2c + GEMMD_WORKER_LINE_OFFSET);
    raw->sq.slots = (uint64_t *)(void *)(raw->c2w + GEMMD_RING_OFFSET);
    raw->cq.slots = (uint64_t *)(void *)(raw->w2c + GEMMD_RING_OFFSET);
    raw->sq.mask = raw->cq.mask = raw->hello.ring_entries - 1;
    raw->sq.index = raw->cq.index = raw->hello.ring_start;
}

void raw_open(struct raw *raw, const char *socket_path, uint32_t ring_entries, uint64_t arena_bytes)
{
    struct gemmd_msg_mapped mapped;
    struct gemmd_msg_mapped_reply reply;

    raw_open_mapping(raw, socket_path, ring_entries, arena_bytes);
    mapped.header = raw_header(raw, GEMMD_MSG_MAPPED, sizeof(mapped));
    REQUIRE(raw_call(raw, &mapped, &reply, sizeof(reply)) == GEMMD_STATUS_OK);
}

void raw_close(struct raw *raw)
{
    if (raw->c2w) {
        munmap(raw->c2w, raw->hello.c2w_bytes);
        munmap(raw->w2c, raw->hello.w2c_bytes);
        munmap(raw->arena, raw->hello.arena_bytes);
        for (unsigned i = 0; i < GEMMD_HELLO_FD_COUNT; i++)
            close(raw->fds[i]);
    }
    close(raw->fd);
    memset(raw, 0, sizeof(*raw));
    raw->fd = -1;
}

int raw_call(struct raw *raw, const void *request, void *reply, size_t reply_bytes)
{
    struct gemmd_msg_header header, answer;
    int got;

    memcpy(&header, request, sizeof(header));
    if (!raw_send(raw->fd, request, header.bytes, NULL, 0))
        return -1;
    got = raw_receive(raw->fd, reply, reply_bytes, NULL, NULL, REPLY_MS);
    if (got == 0)
        return -1;
    REQUIRE(got >= (int)sizeof(answer));
    memcpy(&answer, reply, sizeof(answer));
    REQUIRE(answer.type == (header.type | GEMMD_REPLY) && answer.serial == header.serial);
    REQUIRE(answer.bytes == (uint32_t)got);
    return answer.status;
}

void raw_open_layer(struct raw *raw, const char *name, struct gemmd_msg_layer_reply *out)
{
    struct gemmd_msg_layer_open open = {
        .header = raw_header(raw, GEMMD_MSG_LAYER_OPEN, sizeof(open))};

    snprintf(open.name, sizeof(open.name), "%s", name);
    REQUIRE(raw_call(raw, &open, out, sizeof(*out)) == GEMMD_STATUS_OK);
}

void raw_ring(struct raw *raw)
{
    const uint64_t one = 1;

    if (gemmd_doorbell_wanted(raw->doorbell, &raw->last_rung))
        REQUIRE(write(raw->fds[3], &one, sizeof(one)) == sizeof(one));
}

void raw_submit(struct raw *raw, const struct gemmd_sqe *sqe)
{
    gemmd_sq_push(&raw->sq, sqe);
    raw_ring(raw);
}

bool raw_complete(struct raw *raw, struct gemmd_cqe *out, bool release, int timeout_ms)
{
    uint64_t deadline_ns = machine_now_ns() + (uint64_t)timeout_ms * 1000000;

    while (!gemmd_cq_take(&raw->cq, out)) {
        if (machine_now_ns() > deadline_ns)
            return false;
        usleep(50);
    }
    if (release)
        gemmd_cq_release(&raw->cq, raw->client);
    return true;
}

bool raw_is_ended(struct raw *raw, int timeout_ms)
{
    char byte;
    struct pollfd poll_fd = {.fd = raw->fd, .events = POLLIN | POLLRDHUP};

    if (poll(&poll_fd, 1, timeout_ms) != 1)
        return false;
    return recv(raw->fd, &byte, 1, MSG_DONTWAIT) <= 0;
}
