/* Descriptors that come along with packets: one, of an operator's load; all others are refused and
 * leave nothing behind. */
#include "unit.h"

#include <assert.h>
#include <sys/socket.h>

#include "proto/control.h"
#include "worker/packet.h"

/* What recvmsg says came along, in place of what the kernel says. */
static const struct cmsghdr *pretend;

ssize_t __real_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags);

ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t bytes = __real_recvmsg(fd, message, flags);

    if (pretend) {
        memcpy(message->msg_control, pretend, sizeof(*pretend));
        message->msg_controllen = CMSG_LEN(sizeof(int));
    }
    return bytes;
}

static int ends[2];

/* Sends a message of a load's length with `count` descriptors, and receives it. */
static enum gemmd_status pass_with(uint32_t type, unsigned count, bool may_pass_fd, int *received)
{
    struct gemmd_msg_layer_load load = {.header = {type, sizeof(load), 1, 0}};
    uint64_t buffer[GEMMD_MESSAGE_BYTES_MAX / sizeof(uint64_t) + 1];
    enum gemmd_status status = GEMMD_STATUS_OK;
    int fds[GEMMD_HELLO_FD_COUNT] = {0};

    assert_true(packet_send(ends[0], &load, sizeof(load), fds, count));
    assert_int_equal(packet_receive(ends[1], buffer, sizeof(buffer), may_pass_fd, received,
                                    &status), sizeof(load));
    return status;
}

static enum gemmd_status pass(unsigned count, bool may_pass_fd, int *received)
{
    return pass_with(GEMMD_MSG_LAYER_LOAD, count, may_pass_fd, received);
}

static unsigned open_fds(void)
{
    unsigned count = 0;

    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void test_counts(void **state)
{
    unsigned before = open_fds();
    int received;

    (void)state;
    assert_int_equal(pass(0, true, &received), GEMMD_STATUS_OK);
    assert_int_equal(received, -1);
    assert_int_equal(pass(1, true, &received), GEMMD_STATUS_OK);
    assert_true(received >= 0);
    assert_int_equal(fcntl(received, F_GETFD), FD_CLOEXEC);
    close(received);
    assert_int_equal(pass(1, false, &received), GEMMD_STATUS_MESSAGE_FDS);
    assert_int_equal(received, -1);
    for (unsigned count = 2; count <= GEMMD_HELLO_FD_COUNT; count++) {
        assert_int_equal(pass(count, true, &received), GEMMD_STATUS_MESSAGE_FDS);
        if (received >= 0)
            close(received);
    }
    assert_int_equal(open_fds(), before);
}

/* Of another message, or of one that is not well-formed: the caller is told to close it. */
static void test_other_messages(void **state)
{
    static const uint32_t types[] = {GEMMD_MSG_LAYER_UNLOAD, GEMMD_MSG_HELLO, 4711};
    int received;

    (void)state;
    static_assert(sizeof(struct gemmd_msg_layer_unload) == sizeof(struct gemmd_msg_layer_load),
                  "the first one is well-formed");
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        assert_int_equal(pass_with(types[i], 1, true, &received), GEMMD_STATUS_MESSAGE_FDS);
        assert_true(received >= 0);
        close(received);
    }
}

/* Nothing but a descriptor is taken for one. */
static void test_other_ancillary_data(void **state)
{
    static const struct cmsghdr others[] = {
        {.cmsg_level = SOL_SOCKET + 1, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))},
        {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS + 1, .cmsg_len = CMSG_LEN(sizeof(int))},
        {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(0)}};
    int received;

    (void)state;
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        pretend = &others[i];
        assert_int_equal(pass(0, true, &received), GEMMD_STATUS_OK);
        assert_int_equal(received, -1);
    }
    pretend = NULL;
}

static int set_up(void **state)
{
    (void)state;
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_other_messages),
        cmocka_unit_test(test_other_ancillary_data),
    };

    return cmocka_run_group_tests(tests, set_up, NULL);
}
