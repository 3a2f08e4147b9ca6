/* sendmsg and recvmsg on a control connection. */
#include "worker/packet.h"

#include <string.h>
#include <sys/socket.h>

#include "proto/control.h"
#include "proto/validate.h"

bool packet_send(int fd, const void *bytes, size_t count, const int *fds, uint32_t fd_count)
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

ssize_t packet_receive(int fd, void *buffer, size_t bytes_max, bool may_pass_fd, int *received,
                       enum gemmd_status *status)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } ancillary = {0};
    struct iovec iov = {buffer, bytes_max};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    const struct gemmd_msg_header *header = buffer;
    ssize_t bytes;

    *received = -1;
    if (may_pass_fd) {
        message.msg_control = ancillary.space;
        /* Not CMSG_SPACE, whose padding has room for a second one.  What does not fit the kernel
         * drops, and says so. */
        message.msg_controllen = CMSG_LEN(sizeof(int));
    }
    bytes = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (bytes <= 0)
        return bytes;
    if (CMSG_FIRSTHDR(&message) && ancillary.header.cmsg_level == SOL_SOCKET &&
        ancillary.header.cmsg_type == SCM_RIGHTS &&
        ancillary.header.cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(received, CMSG_DATA(&ancillary.header), sizeof(*received));
    *status = gemmd_validate_message(buffer, (size_t)bytes);
    if ((message.msg_flags & MSG_CTRUNC) ||
        (*received >= 0 &&
         (*status != GEMMD_STATUS_OK || header->type != GEMMD_MSG_LAYER_LOAD)))
        *status = GEMMD_STATUS_MESSAGE_FDS;
    return bytes;
}
