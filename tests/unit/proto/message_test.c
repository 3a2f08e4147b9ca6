/* Packets: every type cut at every byte, overlong, with false lengths; hello's versions and sizes.
 */
#include "unit.h"

#include "oracle.h"

/* The packet in memory of exactly its length, so that ASan sees a look beyond its end. */
static enum gemmd_status check(uint32_t type, uint32_t declared, size_t bytes)
{
    const struct gemmd_msg_header header = {type, declared, 1, 0};
    unsigned char *packet = malloc(bytes ? bytes : 1);
    enum gemmd_status status;

    assert_non_null(packet);
    memset(packet, 0xa5, bytes ? bytes : 1);
    memcpy(packet, &header, bytes < sizeof(header) ? bytes : sizeof(header));
    status = gemmd_validate_message(packet, bytes);
    free(packet);
    return status;
}

static void test_every_length(void **state)
{
    (void)state;
    for (uint32_t type = 1; type < GEMMD_MSG_TYPE_COUNT; type++)
        for (size_t bytes = 0; bytes <= GEMMD_MESSAGE_BYTES_MAX + 8; bytes++) {
            const size_t right = oracle_request_bytes(type);
            enum gemmd_status wanted = GEMMD_STATUS_OK;

            if (bytes != right)
                wanted = bytes < right ? GEMMD_STATUS_MESSAGE_SHORT : GEMMD_STATUS_MESSAGE_LONG;
            assert_int_equal(check(type, (uint32_t)bytes, bytes), wanted);
        }
}

static void test_false_lengths(void **state)
{
    static const uint32_t far[] = {0, UINT32_MAX, UINT32_C(1) << 31, UINT32_C(1) << 16};

    (void)state;
    for (uint32_t type = 1; type < GEMMD_MSG_TYPE_COUNT; type++) {
        const uint32_t bytes = (uint32_t)oracle_request_bytes(type);

        for (uint32_t declared = bytes - 16; declared <= bytes + 16; declared++) {
            enum gemmd_status status = check(type, declared, bytes);

            assert_int_equal(status, declared < bytes   ? GEMMD_STATUS_MESSAGE_SHORT
                                     : declared > bytes ? GEMMD_STATUS_MESSAGE_LONG
                                                        : GEMMD_STATUS_OK);
        }
        for (size_t i = 0; i < COUNT(far); i++)
            assert_true(gemmd_status_is_violation(check(type, far[i], bytes)));
        /* A packet that claims the right length and has another. */
        assert_int_equal(check(type, bytes, bytes - 1), GEMMD_STATUS_MESSAGE_SHORT);
        assert_int_equal(check(type, bytes, bytes + 1), GEMMD_STATUS_MESSAGE_LONG);
    }
}

static void test_unknown_types(void **state)
{
    static const uint32_t far[] = {GEMMD_REPLY, GEMMD_REPLY | GEMMD_MSG_HELLO, 0x10001, 0x80000001,
                                   UINT32_MAX};

    (void)state;
    assert_int_equal(check(0, 16, 16), GEMMD_STATUS_MESSAGE_TYPE);
    for (uint32_t type = GEMMD_MSG_TYPE_COUNT; type < 70000; type++)
        assert_int_equal(check(type, 16, 16), GEMMD_STATUS_MESSAGE_TYPE);
    for (size_t i = 0; i < COUNT(far); i++)
        assert_int_equal(check(far[i], 64, 64), GEMMD_STATUS_MESSAGE_TYPE);
}

/* ---- hello ----------------------------------------------------------------------------------- */

static struct gemmd_msg_hello good_hello(void)
{
    return (struct gemmd_msg_hello){
        .header = {GEMMD_MSG_HELLO, sizeof(struct gemmd_msg_hello), 1, 0},
        .magic = GEMMD_MAGIC,
        .version_min = GEMMD_VERSION_MIN,
        .version_max = GEMMD_VERSION_MAX,
    };
}

static enum gemmd_status check_hello(const struct gemmd_msg_hello *hello)
{
    uint32_t version = 0;
    enum gemmd_status status = gemmd_validate_hello(hello, &version);

    if (status == GEMMD_STATUS_OK)
        assert_true(version >= hello->version_min && version <= hello->version_max &&
                    version >= GEMMD_VERSION_MIN && version <= GEMMD_VERSION_MAX);
    return status;
}

static void test_hello_versions(void **state)
{
    static const uint32_t versions[] = {0, 1, 2, 3, INT32_MAX, UINT32_MAX};

    (void)state;
    for (size_t i = 0; i < COUNT(versions); i++)
        for (size_t j = 0; j < COUNT(versions); j++) {
            struct gemmd_msg_hello hello = good_hello();
            /* A common version exists when the ranges meet; ours is the single version 1. */
            bool good = versions[i] <= 1 && versions[j] >= 1;

            hello.version_min = versions[i];
            hello.version_max = versions[j];
            assert_int_equal(check_hello(&hello), good ? GEMMD_STATUS_OK : GEMMD_STATUS_VERSION);
        }
}

static void test_hello_bits(void **state)
{
    (void)state;
    for (uint32_t bit = 0; bit < 64; bit++) {
        struct gemmd_msg_hello hello = good_hello();

        hello.magic ^= UINT64_C(1) << bit;
        assert_int_equal(check_hello(&hello), GEMMD_STATUS_MAGIC);
        hello = good_hello();
        hello.reserved = UINT64_C(1) << bit;
        assert_int_equal(check_hello(&hello), GEMMD_STATUS_RESERVED);
        hello = good_hello();
        hello.features = UINT64_C(1) << bit; /* unknown features are no error */
        assert_int_equal(check_hello(&hello), GEMMD_STATUS_OK);
    }
    for (uint32_t bit = 0; bit < 32; bit++) {
        struct gemmd_msg_hello hello = good_hello();

        hello.flags = UINT32_C(1) << bit;
        assert_int_equal(check_hello(&hello), bit == 0 ? GEMMD_STATUS_OK : GEMMD_STATUS_FLAGS);
    }
}

static void test_hello_sizes(void **state)
{
    static const uint64_t bad_arenas[] = {
        1,         4096, GEMMD_ARENA_BYTES_MIN - 1, GEMMD_ARENA_BYTES_MAX + 1, UINT64_C(1) << 63,
        UINT64_MAX};
    static const uint64_t good_arenas[] = {0, GEMMD_ARENA_BYTES_MIN, GEMMD_ARENA_BYTES_MIN + 1,
                                           GEMMD_ARENA_BYTES_MAX - 1, GEMMD_ARENA_BYTES_MAX};
    struct gemmd_msg_hello hello = good_hello();

    (void)state;
    for (uint32_t entries = 0; entries < 70000; entries++) {
        bool good = entries == 0 || entries == 8 || entries == 16 || entries == 32 ||
                    entries == 64 || entries == 128 || entries == 256 || entries == 512 ||
                    entries == 1024 || entries == 2048 || entries == 4096;

        hello.ring_entries = entries;
        assert_int_equal(check_hello(&hello), good ? GEMMD_STATUS_OK : GEMMD_STATUS_RING_ENTRIES);
    }
    for (uint32_t bit = 13; bit < 32; bit++) {
        hello.ring_entries = UINT32_C(1) << bit;
        assert_int_equal(check_hello(&hello), GEMMD_STATUS_RING_ENTRIES);
    }
    hello = good_hello();
    for (size_t i = 0; i < COUNT(bad_arenas); i++) {
        hello.arena_bytes = bad_arenas[i];
        assert_int_equal(check_hello(&hello), GEMMD_STATUS_ARENA_BYTES);
    }
    for (size_t i = 0; i < COUNT(good_arenas); i++) {
        hello.arena_bytes = good_arenas[i];
        assert_int_equal(check_hello(&hello), GEMMD_STATUS_OK);
    }
}

/* ---- limits ---------------------------------------------------------------------------------- */

/* The values of proto/README.md, section 10. */
static void test_limits(void **state)
{
    (void)state;
    assert_int_equal(GEMMD_M_MAX, 1 << 20);
    assert_int_equal(GEMMD_N_MAX, 1 << 20);
    assert_int_equal(GEMMD_K_MAX, 1 << 16);
    assert_int_equal(GEMMD_STRIDE_MAX, 1 << 24);
    assert_int_equal(GEMMD_RING_ENTRIES_MIN, 8);
    assert_int_equal(GEMMD_RING_ENTRIES_DEFAULT, 256);
    assert_int_equal(GEMMD_RING_ENTRIES_MAX, 4096);
    assert_true(GEMMD_ARENA_BYTES_MIN == 65536);
    assert_true(GEMMD_ARENA_BYTES_DEFAULT == 16 << 20);
    assert_true(GEMMD_ARENA_BYTES_MAX == UINT64_C(1) << 32);
    assert_true(GEMMD_LAYER_BYTES_MAX == UINT64_C(1) << 32);
    assert_int_equal(GEMMD_SESSION_LAYERS_MAX, 1024);
    assert_int_equal(GEMMD_WORKER_LAYERS_MAX, 4096);
    assert_int_equal(GEMMD_WORKER_SESSIONS_MAX, 1100);
    assert_int_equal(GEMMD_NAME_BYTES, 64);
    assert_int_equal(GEMMD_MESSAGE_BYTES_MAX, 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_length),  cmocka_unit_test(test_false_lengths),
        cmocka_unit_test(test_unknown_types), cmocka_unit_test(test_hello_versions),
        cmocka_unit_test(test_hello_bits),    cmocka_unit_test(test_hello_sizes),
        cmocka_unit_test(test_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
