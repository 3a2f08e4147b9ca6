/*
 * Files that must be refused, with a reason that names layer and field: packed files cut and
 * changed at every byte, safetensors likewise, values that are no numbers.  The worker lives on.
 */
#include "tests/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/model_file.h"
#include "tests/e2e/raw.h"

static char directory[] = "/tmp/gemmd-model-XXXXXX";
static struct harness_worker worker;
static struct gemmd *session;
static struct layer_case layer;

static const char *path_of(const char *name)
{
    static char paths[4][128];
    static unsigned next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof(paths[0]), "%s/%s", directory, name);
    return path;
}

/* ---- packed files ---------------------------------------------------------------------------- */

static int load_bytes(const void *bytes, size_t count)
{
    int fd = memfd_create("model", MFD_CLOEXEC), result;

    REQUIRE(fd >= 0 && write(fd, bytes, count) == (ssize_t)count);
    result = gemmd_layers_load(session, fd, "m", NULL);
    close(fd);
    return result;
}

static void unload(void)
{
    uint64_t bytes;

    assert_int_equal(gemmd_layers_unload(session, "m", &bytes), 1);
    assert_true(bytes > 0);
}

static void check_result(void)
{
    struct gemmd_layer *handle;

    assert_int_equal(gemmd_layer_open(session, "m/l0", &handle), 0);
    assert_int_equal(layer_case_check(session, handle, &layer, 2, 3), 0);
    assert_int_equal(gemmd_layer_close(session, &handle), 0);
}

static uint64_t layer_bytes(void)
{
    struct gemmd_info info;

    assert_int_equal(gemmd_get_info(session, &info), 0);
    return info.layer_bytes;
}

/* In the middle of a gap of zeros between two parts: one byte in 16 is enough. */
static bool is_dull(const uint8_t *file, size_t bytes, size_t at)
{
    if (at % 16 == 0 || at < 64 || at + 64 > bytes)
        return false;
    return file[at - 64] == 0 && memcmp(file + at - 64, file + at - 63, 127) == 0;
}

static void test_cut_at_every_byte(void **state)
{
    size_t bytes;
    uint8_t *file = model_read(path_of("both.gpk"), &bytes);

    (void)state;
    for (size_t cut = 0; cut < bytes; cut++) {
        if (is_dull(file, bytes, cut))
            continue;
        assert_int_equal(load_bytes(file, cut), -EBADMSG);
        assert_true(strlen(gemmd_error_text(session)) > 10);
    }
    assert_int_equal(layer_bytes(), 0);
    assert_int_equal(load_bytes(file, bytes), 1);
    unload();
    file = realloc(file, bytes + 1); /* and one too many */
    file[bytes] = 0;
    assert_int_equal(load_bytes(file, bytes + 1), -EBADMSG);
    assert_non_null(strstr(gemmd_error_text(session), "file_bytes"));
    free(file);
    print_message("%zu cuts\n", bytes);
}

/* Found by a hash, or in a gap between the parts, where it changes nothing. */
static void change_every_byte(const char *name)
{
    size_t bytes, refused = 0, harmless = 0;
    uint8_t *file = model_read(path_of(name), &bytes);

    for (size_t at = 0; at < bytes; at++) {
        uint8_t bit = (uint8_t)(1u << (at % 8));
        int result;

        if (is_dull(file, bytes, at))
            continue;
        file[at] ^= bit;
        result = load_bytes(file, bytes);
        file[at] ^= bit;
        if (result == -EBADMSG) {
            refused++;
            continue;
        }
        assert_int_equal(result, 1);
        check_result();
        unload();
        harmless++;
    }
    print_message("%s: %zu changes refused, %zu in gaps\n", name, refused, harmless);
    free(file);
}

static void test_changed_at_every_byte(void **state)
{
    struct layer_case other;

    (void)state;
    /* Keeps an extent of the pool: each load would map one, and make its pages huge, for 40 ms. */
    layer_case_plain(&other, 16, 16, 2);
    model_write(path_of("other.safetensors"), &other, 1);
    layer_case_fini(&other);
    REQUIRE(model_pack(path_of("other.safetensors"), path_of("other.gpk"), NULL, NULL, NULL, 0) ==
            0);
    assert_int_equal(model_load(session, path_of("other.gpk"), "stays", NULL), 1);
    change_every_byte("packed.gpk");
    change_every_byte("raw.gpk");
    assert_int_equal(gemmd_layers_unload(session, "stays", NULL), 1);
    assert_int_equal(layer_bytes(), 0);
}

static void test_reasons(void **state)
{
    size_t bytes;
    uint8_t *file = model_read(path_of("packed.gpk"), &bytes);

    (void)state;
    file[bytes - 300] ^= 1; /* in the layer's memory */
    assert_int_equal(load_bytes(file, bytes), -EBADMSG);
    assert_string_equal(gemmd_error_text(session),
                        "layer 'l0': memory_hash: the packed weights have changed");
    file[bytes - 300] ^= 1;
    file[0] ^= 1;
    assert_int_equal(load_bytes(file, bytes), -EBADMSG);
    assert_string_equal(gemmd_error_text(session), "magic: not a packed layer file");
    assert_int_equal(load_bytes("", 0), -EBADMSG);
    assert_int_equal(gemmd_layers_load(session, -1, "m", NULL), -EBADMSG);
    assert_int_equal(gemmd_layers_load(session, STDIN_FILENO, "a name", NULL), -EINVAL);
    free(file);
}

/* A pipe, a directory, a socket: nothing is waited for. */
static void test_not_a_file(void **state)
{
    int ends[2], directory_fd = open("/tmp", O_RDONLY | O_DIRECTORY), pair[2];

    (void)state;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(gemmd_layers_load(session, ends[0], "m", NULL), -EBADMSG);
    assert_int_equal(gemmd_layers_load(session, directory_fd, "m", NULL), -EBADMSG);
    assert_int_equal(gemmd_layers_load(session, pair[0], "m", NULL), -EBADMSG);
    assert_non_null(strstr(gemmd_error_text(session), "not a regular file"));
    close(ends[0]);
    close(ends[1]);
    close(pair[0]);
    close(pair[1]);
    close(directory_fd);
}

/* The operator disconnects in the middle; another asks meanwhile; descriptors do not leak. */
static void test_given_up_in_the_middle(void **state)
{
    unsigned before = machine_fds_settled(worker.pid);
    size_t bytes;
    uint8_t *file = model_read(path_of("both.gpk"), &bytes);

    (void)state;
    for (int i = 0; i < 50; i++) {
        struct gemmd_msg_layer_load message = {
            .header = {GEMMD_MSG_LAYER_LOAD, sizeof(message), 1, 0}, .prefix = "x"};
        int fd = memfd_create("model", MFD_CLOEXEC);
        struct raw raw;

        REQUIRE(fd >= 0 && write(fd, file, bytes) == (ssize_t)bytes);
        raw_open(&raw, worker.socket, 8, 65536);
        assert_true(raw_send(raw.fd, &message, sizeof(message), &fd, 1));
        if (i % 2)
            usleep(100);
        raw_close(&raw);
        close(fd);
    }
    free(file);
    assert_true(harness_is_alive(&worker));
    gemmd_layers_unload(session, "x", NULL); /* perhaps one was quick enough */
    assert_int_equal(layer_bytes(), 0);
    assert_int_equal(machine_fds_settled(worker.pid), before);
}

/* ---- safetensors ----------------------------------------------------------------------------- */

/* gemmd-pack refuses with exit 65 and says `reason`; the worker does not start with it. */
static void expect_refused(const char *name, const char *option, const char *value,
                           const char *reason)
{
    char text[1024];
    int code = model_pack(path_of(name), path_of("out.gpk"), option, value, text, sizeof(text));

    if (code != 65 || !strstr(text, reason) || !strstr(text, path_of(name)))
        fail_msg("%s: exit %d, '%s' instead of '%s'", name, code, text, reason);
    assert_int_equal(access(path_of("out.gpk"), F_OK), -1);
    assert_int_equal(access(path_of("out.gpk.part"), F_OK), -1);
}

static void test_safetensors_cut_at_every_byte(void **state)
{
    size_t bytes;
    uint8_t *file = model_read(path_of("small.safetensors"), &bytes);

    (void)state;
    for (size_t cut = 0; cut < bytes; cut++) {
        char text[512];

        model_write_bytes(path_of("cut"), file, cut);
        assert_int_equal(model_pack(path_of("cut"), path_of("out.gpk"), NULL, NULL, text,
                                    sizeof(text)), 65);
    }
    print_message("%zu cuts\n", bytes);
    free(file);
}

static void test_values_that_are_no_numbers(void **state)
{
    static const struct {
        size_t index;
        bool bias;
        uint32_t bits;
        const char *reason;
    } cases[] = {
        {3, false, 0x7fc00000, "layer 'l0': tensor 'l0.b_scale': b_scale: a value is not finite"},
        {0, false, 0xff800000, "layer 'l0': tensor 'l0.b_scale': b_scale: a value is not finite"},
        {15, true, 0x7f800001, "layer 'l0': tensor 'l0.bias': bias: a value is not finite"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        float *values = cases[i].bias ? layer.bias : layer.scales;
        float before = values[cases[i].index];

        memcpy(&values[cases[i].index], &cases[i].bits, 4);
        model_write(path_of("nan.safetensors"), &layer, 1);
        values[cases[i].index] = before;
        expect_refused("nan.safetensors", NULL, NULL, cases[i].reason);
    }
}

/* Header text and data → what is wrong with it. */
static void test_bad_tensors(void **state)
{
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *reason;
    } cases[] = {
#define T(name, dtype, shape, begin, end)                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],"                                 \
    "\"data_offsets\":[" #begin "," #end "]}"
        {"{" T("a.weight", "I8", "1048577,1", 0, 1048577) "}", 1048577, "n is 1048577, the limit"},
        {"{" T("a.weight", "I8", "1,65537", 0, 65537) "}", 65537, "k is 65537, the limit"},
        {"{" T("a.weight", "I8", "0,4", 0, 0) "}", 0, "n is 0, the limit"},
        {"{" T("a.weight", "I32", "1,1", 0, 4) "}", 4, "is I32; I8, F32 and BF16 are read"},
        {"{" T("a.weight", "I8", "4", 0, 4) "}", 4, "0 layers; 1 to"},
        {"{" T("a.weight", "I8", "2,2", 0, 4) "," T("a.bias", "F32", "3", 4, 16) "}", 16,
         "tensor 'a.bias' is not F32 or I32 of n values"},
        {"{" T("a.weight", "I8", "2,2", 0, 4) "," T("a.b_scale", "F32", "3", 4, 16) "}", 16,
         "tensor 'a.b_scale' is not F32 of 1 or n values"},
        {"{" T("a.weight", "F32", "1,1", 0, 4) "," T("a.b_scale", "F32", "1", 4, 8) "}", 8,
         "the weights are not quantised"},
        {"{\"__metadata__\":{\"a.quantize_method\":\"l3\"}," T("a.weight", "F32", "1,1", 0, 4) "}",
         4, "layer 'a': quantize_method: 'l3' is unknown"},
        {"{\"__metadata__\":{\"a.quantize_method\":\"l2\"}," T("a.weight", "I8", "1,1", 0, 1) "}",
         1, "quantize_method: the weights 'a.weight' are quantised already"},
        {"{\"__metadata__\":{\"a.residual_type\":\"s8\"}," T("a.weight", "I8", "1,1", 0, 1) "}", 1,
         "layer 'a': residual_scale:"},
        {"{\"__metadata__\":{\"a.a_row_scales\":\"2\"}," T("a.weight", "I8", "1,1", 0, 1) "}", 1,
         "layer 'a': a_row_scales:"},
        {"{\"__metadata__\":{\"a.a_type\":\"u9\"}," T("a.weight", "I8", "1,1", 0, 1) "}", 1,
         "layer 'a': a_type: 'u9' is unknown"},
        {"{\"__metadata__\":{\"a.a_scale\":\"0\"}," T("a.weight", "I8", "1,1", 0, 1) "}", 1,
         "layer 'a': a_scale: not finite and positive"},
        {"{\"__metadata__\":{\"a.a_scale\":\"nan\"}," T("a.weight", "I8", "1,1", 0, 1) "}", 1,
         "a_scale: 'nan' is not a number"},
        {"{\"__metadata__\":{\"a.a_zero_point\":\"256\"}," T("a.weight", "I8", "1,1", 0, 1) "}", 1,
         "a_zero_point: outside the range"},
        {"{\"__metadata__\":{\"a.c_zero_point\":\"1.5\"}," T("a.weight", "I8", "1,1", 0, 1) "}", 1,
         "c_zero_point: 1.5 is not an integer"},
        {"{\"__metadata__\":{\"a.weights\":\"b\"}," T("a.weight", "I8", "1,1", 0, 1) "}", 1,
         "weights: tensor 'b' is missing"},
        {"{" T("a b.weight", "I8", "1,1", 0, 1) "}", 1, "layer 'a b': name"},
        {"{" T("a.weight", "I8", "9,1", 0, 1) "}", 1, "data_offsets"},
        {"{}", 0, "0 layers"},
#undef T
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        FILE *file = fopen(path_of("bad.safetensors"), "we");
        uint64_t length = strlen(cases[i].header);

        REQUIRE(file != NULL && fwrite(&length, 8, 1, file) == 1);
        fputs(cases[i].header, file);
        for (size_t at = 0; at < cases[i].data_bytes; at++)
            fputc(0, file);
        fclose(file);
        expect_refused("bad.safetensors", NULL, NULL, cases[i].reason);
    }
}

static void test_bad_manifests(void **state)
{
    static const struct {
        const char *text, *reason;
    } cases[] = {
        {"", "manifest: line 1"},
        {"[]", "manifest: not an object"},
        {"{\"a\": 1}", "layer 'a': not an object"},
        {"{\"a\": {}, \"a\": {}}", "duplicate"},
        {"{\"a\": {}}", "no tensor 'a.weight'"},
        {"{\"a\": {\"weights\": \"l0.weight\", \"scale\": 1}}", "'scale' is not a field"},
        {"{\"a\": {\"weights\": [\"l0.weight\"]}}", "weights: not the name of a tensor"},
        {"{\"a\": {\"weights\": \"l0.bias\"}}", "tensor 'l0.bias' is not of rank 2"},
        {"{\"a\": {\"weights\": \"l0.weight\", \"a_scale\": \"x\"}}", "a_scale: 'x'"},
        {"{\"a\": {\"weights\": \"l0.weight\", \"activation\": \"sigmoid\"}}",
         "activation: 'sigmoid' is unknown"},
        {"{\"a\": {\"weights\": \"l0.weight\", \"c_type\": \"s32\", \"activation\": \"relu\"}}",
         "activation: unknown, or not possible"},
        {"{}", "0 layers"},
    };
    static const char good[] =
        "{\"n\": {\"weights\": \"l0.weight\", \"scales\": \"l0.b_scale\"}}";

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        model_write_bytes(path_of("manifest"), cases[i].text, strlen(cases[i].text));
        expect_refused("small.safetensors", "--manifest", path_of("manifest"), cases[i].reason);
    }
    model_write_bytes(path_of("manifest"), good, sizeof(good) - 1);
    assert_int_equal(model_pack(path_of("small.safetensors"), path_of("out.gpk"), "--manifest",
                                path_of("manifest"), NULL, 0), 0);
    unlink(path_of("out.gpk"));
}

/* The worker does not start, and says why. */
static void test_worker_refuses_to_start(void **state)
{
    static const struct {
        const char *file;
        int code;
        const char *reason;
    } cases[] = {
        {"missing.gpk", 66, "No such file"},
        {"nan.safetensors", 65, "not packed"},
        {"cut.gpk", 65, "file_bytes"},
    };
    size_t bytes;
    uint8_t *file = model_read(path_of("both.gpk"), &bytes);

    (void)state;
    model_write_bytes(path_of("cut.gpk"), file, bytes - 1);
    free(file);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *const arguments[] = {"--model", path_of(cases[i].file), "--pack-program",
                                         getenv("GEMMD_TEST_PACK"), NULL};
        struct harness_worker other;

        assert_int_equal(harness_try_start(&other, arguments, NULL), cases[i].code);
        assert_true(harness_log_has(&other, cases[i].reason));
        assert_true(harness_log_has(&other, cases[i].file));
        harness_discard(&other);
    }
}

static int set_up(void **state)
{
    (void)state;
    REQUIRE(mkdtemp(directory) != NULL);
    layer_case_plain(&layer, 16, 16, 1);
    model_write(path_of("small.safetensors"), &layer, 1);
    REQUIRE(model_pack(path_of("small.safetensors"), path_of("both.gpk"), NULL, NULL, NULL, 0) ==
            0);
    REQUIRE(model_pack(path_of("small.safetensors"), path_of("raw.gpk"), "--kernel", "none", NULL,
                       0) == 0);
    REQUIRE(model_pack(path_of("small.safetensors"), path_of("packed.gpk"), "--no-raw", NULL, NULL,
                       0) == 0);
    harness_start(&worker, NULL, NULL);
    session = session_with(worker.socket, 64, 1 << 20, -1);
    return session ? 0 : -1;
}

static int tear_down(void **state)
{
    static const char *const names[] = {"small.safetensors", "both.gpk", "raw.gpk", "packed.gpk",
                                        "cut", "nan.safetensors", "bad.safetensors", "manifest",
                                        "cut.gpk", "other.safetensors", "other.gpk"};

    (void)state;
    gemmd_close(&session);
    harness_stop(&worker);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        unlink(path_of(names[i]));
    REQUIRE(rmdir(directory) == 0);
    layer_case_fini(&layer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut_at_every_byte),
        cmocka_unit_test(test_changed_at_every_byte),
        cmocka_unit_test(test_reasons),
        cmocka_unit_test(test_not_a_file),
        cmocka_unit_test(test_given_up_in_the_middle),
        cmocka_unit_test(test_safetensors_cut_at_every_byte),
        cmocka_unit_test(test_values_that_are_no_numbers),
        cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_bad_manifests),
        cmocka_unit_test(test_worker_refuses_to_start),
    };

    return HARNESS_RUN(tests, set_up, tear_down, 110);
}
