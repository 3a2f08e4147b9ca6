/*
 * The ABI's bytes: golden images of the structs a peer parses, and proto/README.md's offset tables
 * against offsetof.  An image may change only together with the protocol's version.
 */
#include "unit.h"

#include "fields.h"

#include "proto/abi.h"
#include "proto/control.h"
#include "proto/stats.h"

/* ---- golden images --------------------------------------------------------------------------- */

static void assert_bytes(const char *what, const void *object, size_t bytes, const char *hex)
{
    const unsigned char *at = object;
    size_t digits = 0;

    for (; *hex; hex++) {
        unsigned nibble;

        if (*hex == ' ')
            continue;
        nibble = *hex <= '9' ? (unsigned)(*hex - '0') : (unsigned)(*hex - 'a' + 10);
        if (digits / 2 >= bytes ||
            ((digits % 2 ? at[digits / 2] : at[digits / 2] >> 4) & 15) != nibble)
            fail_msg("%s: byte %zu is not as documented", what, digits / 2);
        digits++;
    }
    assert_int_equal(digits, 2 * bytes);
}
#define ASSERT_BYTES(object, hex) assert_bytes(#object, &(object), sizeof(object), hex)

static void test_submission(void **state)
{
    const struct gemmd_sqe sqe = {
        .op = GEMMD_OP_GEMM,
        .priority = GEMMD_ABI_PRIORITY_BACKGROUND,
        .m = 0x00012345,
        .layer_id = 0x11223344,
        .layer_gen = 0x55667788,
        .a_offset = UINT64_C(0x0102030405060708),
        .c_offset = UINT64_C(0x1112131415161718),
        .a_stride_bytes = 0x00aabbcc,
        .c_stride_bytes = 0x00ddeeff,
        .deadline_ns = UINT64_C(0x2122232425262728),
        .user_data = UINT64_C(0xf0f1f2f3f4f5f6f7),
        .seq = 0xfffffffe,
    };

    const struct gemmd_sqe cancel = {
        .op = GEMMD_OP_CANCEL, .target = UINT64_C(0x0123456789abcdef), .user_data = 5, .seq = 7};

    (void)state;
    ASSERT_BYTES(sqe, "01000200 45230100 44332211 88776655 0807060504030201 1817161514131211"
                      "ccbbaa00 ffeedd00 2827262524232221 f7f6f5f4f3f2f1f0 00000000 feffffff");
    ASSERT_BYTES(cancel, "02000000 00000000 00000000 00000000 0000000000000000 0000000000000000"
                         "00000000 00000000 efcdab8967452301 0500000000000000 00000000 07000000");
}

static void test_completion(void **state)
{
    const struct gemmd_cqe cqe = {
        .user_data = UINT64_C(0xf0f1f2f3f4f5f6f7),
        .status = GEMMD_ABI_TYPE_F32, /* any number: 4 */
        .queue_ns = 0x01020304,
        .exec_ns = 0x11121314,
        .kernel_id = 0x2122,
        .seq = 0x80000001,
    };

    (void)state;
    ASSERT_BYTES(cqe, "f7f6f5f4f3f2f1f0 04000000 04030201 14131211 2221 0000 00000000 01000080");
}

static void test_lines(void **state)
{
    const struct gemmd_segment_header header = {
        .magic = GEMMD_MAGIC,
        .version = GEMMD_VERSION_MAX,
        .kind = GEMMD_SEGMENT_W2C,
        .bytes = 12288,
        .ring_entries = 256,
        .ring_start = 0xfffffffd,
        .session_id = 7,
    };
    const struct gemmd_client_line client = {1, 2, 3, {0}};
    const struct gemmd_doorbell_line doorbell = {5, {0}};
    const struct gemmd_worker_line worker = {6, GEMMD_WORKER_ENDED, {0}};

    (void)state;
    ASSERT_BYTES(header, "0047454d4d443100 01000000 02000000 0030000000000000 00010000 fdffffff"
                         "07000000 00000000000000000000000000000000000000000000000000000000");
    ASSERT_BYTES(client, "01000000 02000000 03000000 00000000"
                         "00000000000000000000000000000000 00000000000000000000000000000000"
                         "00000000000000000000000000000000");
    ASSERT_BYTES(doorbell, "05000000 000000000000000000000000"
                           "00000000000000000000000000000000 00000000000000000000000000000000"
                           "00000000000000000000000000000000");
    ASSERT_BYTES(worker, "06000000 02000000 0000000000000000"
                         "00000000000000000000000000000000 00000000000000000000000000000000"
                         "00000000000000000000000000000000");
}

static void test_hello(void **state)
{
    const struct gemmd_msg_hello hello = {
        .header = {GEMMD_MSG_HELLO, sizeof(hello), 0x01020304, 0},
        .magic = GEMMD_MAGIC,
        .version_min = 1,
        .version_max = 2,
        .features = UINT64_C(0x8000000000000001),
        .flags = GEMMD_HELLO_CONTROL_ONLY,
        .ring_entries = 4096,
        .arena_bytes = UINT64_C(1) << 32,
    };
    const struct gemmd_msg_hello_reply reply = {
        .header = {GEMMD_MSG_HELLO | GEMMD_REPLY, sizeof(reply), 0x01020304, -1},
        .magic = GEMMD_MAGIC,
        .version = 1,
        .session_id = 9,
        .ring_entries = 8,
        .ring_start = 0xffff0000,
        .c2w_bytes = 8192,
        .w2c_bytes = 8192,
        .arena_bytes = 65536,
        .arena_page_bytes = 4096,
        .worker_epoch = UINT64_C(0x1122334455667788),
        .spin_ns_max = 50000,
    };

    (void)state;
    ASSERT_BYTES(hello, "01000000 40000000 04030201 00000000 0047454d4d443100 01000000 02000000"
                        "0100000000000080 01000000 00100000 0000000001000000 0000000000000000");
    ASSERT_BYTES(reply, "01800000 60000000 04030201 ffffffff 0047454d4d443100 01000000 09000000"
                        "0000000000000000 08000000 0000ffff 0020000000000000 0020000000000000"
                        "0000010000000000 0010000000000000 8877665544332211 50c30000 00000000");
}

static void test_layer_messages(void **state)
{
    const struct gemmd_layer_desc_abi desc = {
        .n = 0x100000,
        .k = 0x10000,
        .a_type = GEMMD_ABI_TYPE_S8,
        .c_type = GEMMD_ABI_TYPE_U8,
        .bias_type = GEMMD_ABI_TYPE_S32,
        .activation = GEMMD_ABI_ACTIVATION_RELU,
        .scale_count = 1,
        .a_zero_point = -128,
        .c_zero_point = 255,
        .a_scale = 1.0f,
        .c_scale = 0.5f,
        .b_type = GEMMD_ABI_TYPE_S4,
        .quantize_mode = 0x11,
        .b_zero_points = 0x22,
        .group = 128,
        .clip_lo = -1.0f,
        .clip_hi = 2.0f,
    };
    const struct gemmd_msg_layer_data data = {
        {GEMMD_MSG_LAYER_DATA, sizeof(data), 5, 0}, 0x40, 0x80, UINT64_C(0x100000000)};
    const struct gemmd_msg_layer_close close = {
        {GEMMD_MSG_LAYER_CLOSE, sizeof(close), 6, 0}, 1023, 0xffffffff};
    const struct gemmd_msg_list list = {{GEMMD_MSG_SESSIONS, sizeof(list), 7, 0}, 3, 0};

    (void)state;
    ASSERT_BYTES(desc, "00001000 00000100 02 01 03 01 01000000 80ffffff ff000000 0000803f 0000003f"
                       "06 11 22 00 80000000 000080bf 00000040 00000000000000000000000000000000");
    ASSERT_BYTES(data, "04000000 28000000 05000000 00000000 4000000000000000 8000000000000000"
                       "0000000001000000");
    ASSERT_BYTES(close, "07000000 18000000 06000000 00000000 ff030000 ffffffff");
    ASSERT_BYTES(list, "0a000000 18000000 07000000 00000000 03000000 00000000");
}

static void test_segment_bytes(void **state)
{
    (void)state;
    assert_int_equal(gemmd_segment_bytes(GEMMD_SEGMENT_C2W, 8), 8192);
    assert_int_equal(gemmd_segment_bytes(GEMMD_SEGMENT_W2C, 8), 8192);
    assert_int_equal(gemmd_segment_bytes(GEMMD_SEGMENT_C2W, 64), 8192);
    assert_int_equal(gemmd_segment_bytes(GEMMD_SEGMENT_C2W, 128), 12288);
    assert_int_equal(gemmd_segment_bytes(GEMMD_SEGMENT_W2C, 128), 8192);
    assert_int_equal(gemmd_segment_bytes(GEMMD_SEGMENT_C2W, 4096), 4096 + 4096 * 64);
    assert_int_equal(gemmd_segment_bytes(GEMMD_SEGMENT_W2C, 4096), 4096 + 4096 * 32);
}

/* ---- the tables of proto/README.md ----------------------------------------------------------- */

static const struct field {
    const char *structure, *name; /* name NULL: the struct itself */
    size_t offset, bytes;
} fields[] = {
#define S(structure) {#structure, NULL, 0, sizeof(struct structure)},
#define F(structure, name)                                                                         \
    {#structure, #name, offsetof(struct structure, name), sizeof(((struct structure *)0)->name)},
    PROTO_FIELDS(S, F)
#undef S
#undef F
};

static const char *readme_path;
static char readme_text[1 << 17];

static void load_readme(void)
{
    FILE *file = fopen(readme_path, "re");
    size_t bytes;

    assert_non_null(file);
    bytes = fread(readme_text, 1, sizeof(readme_text) - 1, file);
    fclose(file);
    assert_true(bytes > 0 && bytes < sizeof(readme_text) - 1);
    readme_text[bytes] = '\0';
}

static void test_field_list_is_whole(void **state)
{
    size_t sum = 0, bytes = 0;

    (void)state;
    for (size_t i = 0; i < COUNT(fields); i++) {
        if (!fields[i].name) {
            assert_int_equal(sum, bytes); /* the struct before: every byte named */
            bytes = fields[i].bytes;
            sum = 0;
        } else {
            assert_int_equal(fields[i].offset, sum); /* in order, no padding */
            sum += fields[i].bytes;
        }
    }
    assert_int_equal(sum, bytes);
}

/* A row "| offset | bytes | `name` |" must be the next field of the list; returns the one after. */
static size_t check_row(const char *row, size_t at)
{
    unsigned long offset, bytes;
    char name[64];

    if (sscanf(row, "| %lu | %lu | `%63[a-z0-9_]` |", &offset, &bytes, name) != 3)
        return at;
    if (at == 0)
        fail_msg("proto/README.md: a row outside a struct's table: %.40s", row);
    if (at >= COUNT(fields) || !fields[at].name || strcmp(fields[at].name, name) != 0)
        fail_msg("proto/README.md: %s: no field %s here", fields[at - 1].structure, name);
    if (fields[at].offset != offset || fields[at].bytes != bytes)
        fail_msg("proto/README.md: %s.%s is at %zu with %zu bytes, not %lu with %lu",
                 fields[at].structure, name, fields[at].offset, fields[at].bytes, offset, bytes);
    return at + 1;
}

/* "### `struct NAME`, BYTES bytes" opens the table of that struct. */
static size_t check_heading(const char *line, bool *seen)
{
    unsigned long bytes;
    char name[64];

    if (sscanf(line, "### `struct %63[a-z0-9_]`, %lu bytes", name, &bytes) != 2)
        return 0;
    for (size_t i = 0; i < COUNT(fields); i++)
        if (!fields[i].name && strcmp(fields[i].structure, name) == 0) {
            assert_int_equal(fields[i].bytes, bytes);
            assert_false(seen[i]);
            seen[i] = true;
            return i + 1;
        }
    fail_msg("proto/README.md: no struct %s", name);
    return 0;
}

static void test_readme_tables(void **state)
{
    static bool seen[COUNT(fields)];
    size_t at = 0, rows = 0;

    (void)state;
    load_readme();
    for (char *line = readme_text, *end; *line; line = end) {
        size_t before = at;

        end = strchr(line, '\n');
        assert_non_null(end);
        *end++ = '\0';
        if (*line == '#') {
            if (at && at < COUNT(fields) && fields[at].name)
                fail_msg("proto/README.md: the table of %s lacks %s", fields[at].structure,
                         fields[at].name);
            at = check_heading(line, seen);
        } else if (*line == '|') {
            at = check_row(line, at);
            rows += at != before;
        }
    }
    for (size_t i = 0; i < COUNT(fields); i++)
        if (!fields[i].name && !seen[i])
            fail_msg("proto/README.md has no table of struct %s", fields[i].structure);
        else if (fields[i].name)
            rows--;
    assert_int_equal(rows, 0);
}

/* The table of messages: "| type | NAME | state | `request` | `reply` |". */
static void test_readme_messages(void **state)
{
    static const char *const names[GEMMD_MSG_TYPE_COUNT] = {
        [GEMMD_MSG_HELLO] = "HELLO",
        [GEMMD_MSG_MAPPED] = "MAPPED",
        [GEMMD_MSG_LAYER_CREATE] = "LAYER_CREATE",
        [GEMMD_MSG_LAYER_DATA] = "LAYER_DATA",
        [GEMMD_MSG_LAYER_COMMIT] = "LAYER_COMMIT",
        [GEMMD_MSG_LAYER_OPEN] = "LAYER_OPEN",
        [GEMMD_MSG_LAYER_CLOSE] = "LAYER_CLOSE",
        [GEMMD_MSG_INFO] = "INFO",
        [GEMMD_MSG_LAYERS] = "LAYERS",
        [GEMMD_MSG_SESSIONS] = "SESSIONS",
        [GEMMD_MSG_STATS] = "STATS",
        [GEMMD_MSG_WAKE_FD] = "WAKE_FD",
        [GEMMD_MSG_LAYER_LOAD] = "LAYER_LOAD",
        [GEMMD_MSG_LAYER_UNLOAD] = "LAYER_UNLOAD",
        [GEMMD_MSG_LAYER_PIN] = "LAYER_PIN",
        [GEMMD_MSG_TAKEOVER] = "TAKEOVER",
        [GEMMD_MSG_TAKEOVER_COMMIT] = "TAKEOVER_COMMIT",
    };

    (void)state;
    load_readme();
    for (int type = 1; type < GEMMD_MSG_TYPE_COUNT; type++) {
        char row[64];

        snprintf(row, sizeof(row), "\n| %d | %s | ", type, names[type]);
        if (!strstr(readme_text, row))
            fail_msg("proto/README.md: no row%s", row);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_submission),
        cmocka_unit_test(test_completion),
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_hello),
        cmocka_unit_test(test_layer_messages),
        cmocka_unit_test(test_segment_bytes),
        cmocka_unit_test(test_field_list_is_whole),
        cmocka_unit_test(test_readme_tables),
        cmocka_unit_test(test_readme_messages),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s proto/README.md\n", argv[0]);
        return 64;
    }
    readme_path = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
