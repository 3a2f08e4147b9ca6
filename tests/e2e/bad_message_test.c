/*
 * Hostile and clumsy control messages.  Each gets the status that names its fault; a fault in a
 * value leaves the session alive, a violation ends that session; and after every one a bystander's
 * job is still bit-exact in the same worker.
 */
#include "tests/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"

static struct harness_worker worker;
static struct layer_case layer;
static struct gemmd *bystander;
static struct gemmd_layer *bystander_layer;

static void check_bystander(void)
{
    static uint64_t seed;

    assert_true(harness_is_alive(&worker));
    assert_int_equal(layer_case_check(bystander, bystander_layer, &layer, 3, ++seed), 0);
}

/* Sends to a fresh connection; expects `status` in a reply, then the end of the connection. */
static void expect_violation(const void *message, size_t bytes, const int *fds, unsigned fd_count,
                             int status)
{
    union {
        struct gemmd_msg_header header;
        char bytes[GEMMD_MESSAGE_BYTES_MAX];
    } reply;
    struct raw raw = {.fd = raw_connect(worker.socket)};
    int got;

    assert_true(raw_send(raw.fd, message, bytes, fds, fd_count));
    got = raw_receive(raw.fd, &reply, sizeof(reply), NULL, NULL, 5000);
    assert_true(got >= (int)sizeof(reply.header));
    if (reply.header.status != status)
        fprintf(stderr, "got %s, expected %s\n", gemmd_status_name_of(reply.header.status),
                gemmd_status_name_of(status));
    assert_int_equal(reply.header.status, status);
    for (int i = (int)sizeof(reply.header); i < got; i++)
        assert_int_equal(reply.bytes[i], 0); /* nothing of the worker's memory */
    assert_true(raw_is_ended(&raw, 5000));
    raw_close(&raw);
    check_bystander();
}

static void test_wrong_lengths_and_types(void **state)
{
    char packet[8192] = {0};
    struct gemmd_msg_hello hello = raw_hello(0, 0);
    static const uint32_t bad_types[] = {0, GEMMD_MSG_TYPE_COUNT, GEMMD_REPLY | GEMMD_MSG_HELLO,
                                         UINT32_MAX};

    (void)state;
    for (size_t bytes = 1; bytes < sizeof(hello); bytes += 9) {
        expect_violation(&hello, bytes, NULL, 0, GEMMD_STATUS_MESSAGE_SHORT);
    }
    memcpy(packet, &hello, sizeof(hello));
    expect_violation(packet, sizeof(hello) + 1, NULL, 0, GEMMD_STATUS_MESSAGE_LONG);
    expect_violation(packet, GEMMD_MESSAGE_BYTES_MAX, NULL, 0, GEMMD_STATUS_MESSAGE_LONG);
    expect_violation(packet, sizeof(packet), NULL, 0, GEMMD_STATUS_MESSAGE_LONG);
    hello.header.bytes--; /* says less than it is */
    expect_violation(&hello, sizeof(hello), NULL, 0, GEMMD_STATUS_MESSAGE_SHORT);
    hello.header.bytes = UINT32_MAX;
    expect_violation(&hello, sizeof(hello), NULL, 0, GEMMD_STATUS_MESSAGE_LONG);
    hello = raw_hello(0, 0);
    for (size_t i = 0; i < sizeof(bad_types) / sizeof(bad_types[0]); i++) {
        hello.header.type = bad_types[i];
        expect_violation(&hello, sizeof(hello), NULL, 0, GEMMD_STATUS_MESSAGE_TYPE);
    }
}

static void test_wrong_magic_and_version(void **state)
{
    struct gemmd_msg_hello hello = raw_hello(0, 0);

    (void)state;
    hello.magic ^= 1;
    expect_violation(&hello, sizeof(hello), NULL, 0, GEMMD_STATUS_MAGIC);
    hello = raw_hello(0, 0);
    hello.version_min = GEMMD_VERSION_MAX + 1;
    hello.version_max = GEMMD_VERSION_MAX + 9;
    expect_violation(&hello, sizeof(hello), NULL, 0, GEMMD_STATUS_VERSION);
    hello.version_min = 0;
    hello.version_max = GEMMD_VERSION_MIN - 1;
    expect_violation(&hello, sizeof(hello), NULL, 0, GEMMD_STATUS_VERSION);
    hello.version_min = GEMMD_VERSION_MAX;
    hello.version_max = 0;
    expect_violation(&hello, sizeof(hello), NULL, 0, GEMMD_STATUS_VERSION);
}

static void test_descriptors_are_refused(void **state)
{
    struct gemmd_msg_hello hello = raw_hello(0, 0);
    unsigned before = machine_fds_settled(worker.pid);
    int fds[16];

    (void)state;
    for (unsigned i = 0; i < 16; i++)
        fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
    expect_violation(&hello, sizeof(hello), fds, 1, GEMMD_STATUS_MESSAGE_FDS);
    expect_violation(&hello, sizeof(hello), fds, 16, GEMMD_STATUS_MESSAGE_FDS);
    for (unsigned i = 0; i < 16; i++)
        close(fds[i]);
    assert_int_equal(machine_fds(worker.pid), before);
}

/* A packet of no bytes is an end, as far as SOCK_SEQPACKET can tell. */
static void test_empty_packet(void **state)
{
    struct raw raw = {.fd = raw_connect(worker.socket)};

    (void)state;
    assert_true(raw_send(raw.fd, "", 0, NULL, 0));
    assert_true(raw_is_ended(&raw, 5000));
    raw_close(&raw);
    check_bystander();
}

/* ---- values: the session lives on ------------------------------------------------------------ */

/* The same connection then says a good hello. */
static void check_bad_hello(const struct gemmd_msg_hello *bad, int status)
{
    struct raw raw = {.fd = raw_connect(worker.socket)};
    struct gemmd_msg_hello good = raw_hello(0, 0);
    struct gemmd_msg_hello_reply reply;

    good.flags = GEMMD_HELLO_CONTROL_ONLY;
    assert_int_equal(raw_call(&raw, bad, &reply, sizeof(reply)), status);
    assert_int_equal(reply.session_id, 0);
    assert_int_equal(raw_call(&raw, &good, &reply, sizeof(reply)), GEMMD_STATUS_OK);
    raw_close(&raw);
}

static void test_hello_values(void **state)
{
    static const uint32_t entries[] = {1, 4, 7, 12, 8192, UINT32_MAX, UINT32_C(1) << 31};
    static const uint64_t arenas[] = {1, GEMMD_ARENA_BYTES_MIN - 1, GEMMD_ARENA_BYTES_MAX + 1,
                                      UINT64_MAX, UINT64_MAX - 4095};
    struct gemmd_msg_hello hello;

    (void)state;
    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
        hello = raw_hello(entries[i], 0);
        check_bad_hello(&hello, GEMMD_STATUS_RING_ENTRIES);
    }
    for (size_t i = 0; i < sizeof(arenas) / sizeof(arenas[0]); i++) {
        hello = raw_hello(0, arenas[i]);
        check_bad_hello(&hello, GEMMD_STATUS_ARENA_BYTES);
    }
    hello = raw_hello(0, 0);
    hello.flags = 2;
    check_bad_hello(&hello, GEMMD_STATUS_FLAGS);
    hello = raw_hello(0, 0);
    hello.reserved = UINT64_C(1) << 63;
    check_bad_hello(&hello, GEMMD_STATUS_RESERVED);
    check_bystander();
}

static void test_states(void **state)
{
    struct gemmd_msg_mapped mapped;
    struct gemmd_msg_info info;
    struct gemmd_msg_hello hello = raw_hello(8, 1 << 16);
    union {
        struct gemmd_msg_hello_reply hello;
        struct gemmd_msg_info_reply info;
    } reply;
    struct raw raw;

    (void)state;
    raw_open_mapping(&raw, worker.socket, 8, 1 << 16);
    info.header = raw_header(&raw, GEMMD_MSG_INFO, sizeof(info));
    assert_int_equal(raw_call(&raw, &info, &reply, sizeof(reply)), GEMMD_STATUS_STATE);
    assert_int_equal(raw_call(&raw, &hello, &reply, sizeof(reply)), GEMMD_STATUS_STATE);
    mapped.header = raw_header(&raw, GEMMD_MSG_MAPPED, sizeof(mapped));
    assert_int_equal(raw_call(&raw, &mapped, &reply, sizeof(reply)), GEMMD_STATUS_OK);
    assert_int_equal(raw_call(&raw, &mapped, &reply, sizeof(reply)), GEMMD_STATUS_STATE);
    assert_int_equal(raw_call(&raw, &hello, &reply, sizeof(reply)), GEMMD_STATUS_STATE);
    assert_int_equal(raw_call(&raw, &info, &reply, sizeof(reply)), GEMMD_STATUS_OK);
    assert_int_equal(reply.info.pid, worker.pid);
    raw_close(&raw);

    memset(&raw, 0, sizeof(raw)); /* state NEW */
    raw.fd = raw_connect(worker.socket);
    assert_int_equal(raw_call(&raw, &mapped, &reply, sizeof(reply)), GEMMD_STATUS_STATE);
    assert_int_equal(raw_call(&raw, &info, &reply, sizeof(reply)), GEMMD_STATUS_STATE);
    hello.flags = GEMMD_HELLO_CONTROL_ONLY;
    assert_int_equal(raw_call(&raw, &hello, &reply, sizeof(reply)), GEMMD_STATUS_OK);
    assert_int_equal(raw_call(&raw, &info, &reply, sizeof(reply)), GEMMD_STATUS_OK);
    raw_close(&raw);
    check_bystander();
}

/* ---- connections that do nothing ------------------------------------------------------------- */

static void test_half_open(void **state)
{
    unsigned before = machine_fds_settled(worker.pid);
    struct raw mapping[10];
    int fds[40];

    (void)state;
    for (unsigned i = 0; i < 40; i++)
        fds[i] = raw_connect(worker.socket);
    for (unsigned i = 0; i < 10; i++)
        raw_open_mapping(&mapping[i], worker.socket, 8, 1 << 16);
    check_bystander();
    for (unsigned i = 0; i < 40; i++)
        close(fds[i]);
    for (unsigned i = 0; i < 10; i++)
        raw_close(&mapping[i]);
    for (int i = 0; i < 1000 && machine_fds(worker.pid) > before; i++)
        usleep(1000);
    assert_int_equal(machine_fds(worker.pid), before);
    assert_int_equal(machine_mappings(worker.pid, "gemmd-arena"), 1); /* the bystander's */
    check_bystander();
}

/* Asks without reading the answers: the worker must not wait for it. */
static void test_deaf_client(void **state)
{
    struct gemmd_msg_hello hello = raw_hello(0, 0);
    struct gemmd_msg_info info = {{GEMMD_MSG_INFO, sizeof(info), 1, 0}};
    int fd = raw_connect(worker.socket);

    (void)state;
    hello.flags = GEMMD_HELLO_CONTROL_ONLY;
    assert_true(raw_send(fd, &hello, sizeof(hello), NULL, 0));
    for (int i = 0; i < 5000; i++)
        if (send(fd, &info, sizeof(info), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN)
            break;
    check_bystander();
    close(fd);
}

/* 2,000 packets of noise, half of them with a valid header, on many connections. */
static void test_noise(void **state)
{
    uint64_t seed = 20261124;

    (void)state;
    for (int i = 0; i < 2000; i++) {
        struct gemmd_msg_hello hello = raw_hello(0, 0);
        uint64_t packet[64];
        struct gemmd_msg_header *header = (struct gemmd_msg_header *)packet;
        size_t bytes = 1 + random_next(&seed) % sizeof(packet);
        int fd = raw_connect(worker.socket);

        hello.flags = GEMMD_HELLO_CONTROL_ONLY;
        random_bytes(&seed, packet, sizeof(packet));
        if (i % 4 == 0)
            raw_send(fd, &hello, sizeof(hello), NULL, 0);
        if (i % 2 == 0) {
            header->type = (uint32_t)(random_next(&seed) % GEMMD_MSG_TYPE_COUNT);
            header->bytes = (uint32_t)bytes;
        }
        raw_send(fd, packet, bytes, NULL, 0);
        close(fd);
        if (i % 200 == 0)
            check_bystander();
    }
    check_bystander();
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, 20, 30, 12);
    harness_start(&worker, NULL, NULL);
    bystander = session_to(worker.socket);
    REQUIRE(bystander != NULL);
    REQUIRE(gemmd_layer_create(bystander, &layer.desc, &bystander_layer) == 0);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    gemmd_close(&bystander);
    layer_case_fini(&layer);
    harness_stop(&worker);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrong_lengths_and_types),
        cmocka_unit_test(test_wrong_magic_and_version),
        cmocka_unit_test(test_descriptors_are_refused),
        cmocka_unit_test(test_empty_packet),
        cmocka_unit_test(test_hello_values),
        cmocka_unit_test(test_states),
        cmocka_unit_test(test_half_open),
        cmocka_unit_test(test_deaf_client),
        cmocka_unit_test(test_noise),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
