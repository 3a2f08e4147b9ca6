/*
 * tools/safetensors: good files are read exactly, and every kind of bad file is refused with a
 * reason that names the file, the tensor where there is one, and the field.  Run it under ASan and
 * UBSan too.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/safetensors/bad_files.h"
#include "tools/safetensors.h"

#ifdef NDEBUG
#error "tests need their assertions"
#endif

/* ---- faults put into the kernel's answers, and calloc's -------------------------------------- */

static bool stat_fails, map_fails;
static int calloc_fails_at = -1; /* index of the call; -1: none */

void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
int __wrap_fstat64(int fd, struct stat *out);
int __wrap_fstat(int fd, struct stat *out);
void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);

void *__wrap_calloc(size_t count, size_t bytes)
{
    bool fails = calloc_fails_at >= 0 && calloc_fails_at-- == 0;

    return fails ? NULL : __real_calloc(count, bytes);
}

int __wrap_fstat(int fd, struct stat *out)
{
    if (!stat_fails)
        return fstatat(fd, "", out, AT_EMPTY_PATH);
    errno = EIO;
    return -1;
}

/* What is called where off_t was asked to have 64 bits. */
int __wrap_fstat64(int fd, struct stat *out)
{
    return __wrap_fstat(fd, out);
}

void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    if (!map_fails)
        return (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
    errno = ENODEV;
    return MAP_FAILED;
}

void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return __wrap_mmap(address, bytes, protection, flags, fd, offset);
}

/* Paths of the committed files, from the command line. */
static const char *model_path, *images_path;

static char directory[] = "/tmp/gemmd-safetensors-XXXXXX";
static char path[sizeof(directory) + 16];
static char error[512];

#define GOOD                                                                                       \
    "{\"__metadata__\":{\"format\":\"gemmd\"},"                                                    \
    "\"w\":{\"dtype\":\"I8\",\"shape\":[2,3],\"data_offsets\":[8,14]},"                            \
    "\"s\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"
enum { GOOD_DATA_BYTES = 14 };

static void write_file(const void *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

/* A file of this header and data_bytes bytes 0, 1, 2 … .  Returns its image, to be freed. */
static uint8_t *make_image(const char *header, size_t header_bytes, uint64_t declared,
                           size_t data_bytes, size_t *out_bytes)
{
    uint8_t *image;
    size_t i;

    *out_bytes = 8 + header_bytes + data_bytes;
    image = malloc(*out_bytes);
    assert_non_null(image);
    for (i = 0; i < 8; i++)
        image[i] = (uint8_t)(declared >> (8 * i));
    memcpy(image + 8, header, header_bytes);
    for (i = 0; i < data_bytes; i++)
        image[8 + header_bytes + i] = (uint8_t)i;
    return image;
}

static void make_file(const char *header, uint64_t declared, size_t data_bytes)
{
    size_t bytes;
    uint8_t *image = make_image(header, strlen(header), declared, data_bytes, &bytes);

    write_file(image, bytes);
    free(image);
}

/* Opens the file, which must be refused for `reason`. */
static void expect_refused(const char *what, const char *reason)
{
    struct safetensors *file = (void *)-1;

    memset(error, 0, sizeof(error));
    if (safetensors_open(path, &file, error, sizeof(error)) != -EBADMSG)
        fail_msg("%s: accepted", what);
    assert_null(file);
    if (strncmp(error, path, strlen(path)) != 0)
        fail_msg("%s: \"%s\" does not start with the path", what, error);
    if (!strstr(error + strlen(path), reason))
        fail_msg("%s: \"%s\" does not say \"%s\"", what, error, reason);
}

static struct safetensors *expect_good(void)
{
    struct safetensors *file;
    int result = safetensors_open(path, &file, error, sizeof(error));

    if (result)
        fail_msg("refused: %s", error);
    return file;
}

static void good_file_is_read_exactly(void **state)
{
    const struct safetensors_tensor *tensor;
    struct safetensors *file;
    size_t i;

    (void)state;
    make_file(GOOD, strlen(GOOD), GOOD_DATA_BYTES);
    file = expect_good();
    assert_int_equal(safetensors_count(file), 2);
    assert_string_equal(safetensors_at(file, 0)->name, "s"); /* in order of place */
    assert_string_equal(safetensors_at(file, 1)->name, "w");
    assert_null(safetensors_at(file, 2));
    assert_null(safetensors_find(file, "x"));
    assert_null(safetensors_find(file, "__metadata__"));
    tensor = safetensors_find(file, "w");
    assert_int_equal(tensor->dtype, SAFETENSORS_I8);
    assert_int_equal(tensor->rank, 2);
    assert_int_equal(tensor->shape[0], 2);
    assert_int_equal(tensor->shape[1], 3);
    assert_int_equal(tensor->bytes, 6);
    for (i = 0; i < 6; i++)
        assert_int_equal(((const uint8_t *)tensor->data)[i], 8 + i);
    assert_int_equal(safetensors_find(file, "s")->bytes, 8);
    assert_string_equal(safetensors_metadata(file, "format"), "gemmd");
    assert_null(safetensors_metadata(file, "absent"));
    assert_string_equal(safetensors_dtype_name(SAFETENSORS_BF16), "BF16");
    safetensors_close(&file);
    assert_null(file);
    safetensors_close(&file);
    safetensors_close(NULL);
}

static void unusual_good_files_are_read(void **state)
{
    static const struct small_file files[] = {
        {"no tensors", "{}", 0, NULL},
        {"padding behind the object", "{}      ", 0, NULL},
        {"a single element", "{\"a\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]}}", 8,
         NULL},
        {"an empty tensor before another at the same byte",
         "{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
         4, NULL},
        {"an empty tensor at the end",
         "{\"b\":{\"dtype\":\"I16\",\"shape\":[2],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[3,0],\"data_offsets\":[4,4]}}",
         4, NULL},
        {"rank 8",
         "{\"a\":{\"dtype\":\"BOOL\",\"shape\":[1,1,1,1,1,1,1,2],\"data_offsets\":[0,2]}}", 2,
         NULL},
    };
    struct safetensors *file;
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        make_file(files[i].header, strlen(files[i].header), files[i].data_bytes);
        file = expect_good();
        safetensors_close(&file);
    }
}

static void committed_files_are_read(void **state)
{
    const struct safetensors_tensor *tensor;
    struct safetensors *file;

    (void)state;
    assert_int_equal(safetensors_open(model_path, &file, error, sizeof(error)), 0);
    assert_string_equal(safetensors_metadata(file, "layer_count"), "3");
    tensor = safetensors_find(file, "layer0.weight");
    assert_non_null(tensor);
    assert_int_equal(tensor->dtype, SAFETENSORS_I8);
    assert_int_equal(tensor->shape[1], 64);
    safetensors_close(&file);

    assert_int_equal(safetensors_open(images_path, &file, error, sizeof(error)), 0);
    tensor = safetensors_find(file, "images");
    assert_non_null(tensor);
    assert_int_equal(tensor->rank, 2);
    assert_int_equal(tensor->bytes, tensor->shape[0] * 64);
    safetensors_close(&file);
}

static void every_truncation_is_refused(void **state)
{
    size_t bytes, cut;
    uint8_t *image = make_image(GOOD, strlen(GOOD), strlen(GOOD), GOOD_DATA_BYTES, &bytes);

    (void)state;
    for (cut = 0; cut < bytes; cut++) {
        write_file(image, cut);
        expect_refused("truncated", cut < 8                         ? "at least 8 bytes"
                                    : cut < bytes - GOOD_DATA_BYTES ? "header length"
                                                                    : "data_offsets");
    }
    free(image);
}

/* One byte changed at a time: whatever happens, no crash, and a refusal has a reason. */
static void every_changed_byte_is_survived(void **state)
{
    static const uint8_t values[] = {0x00, 0x01, 0x7f, 0x80, 0xff, '"', '}', '-', '9', ' '};
    size_t bytes, i, j;
    uint8_t *image = make_image(GOOD, strlen(GOOD), strlen(GOOD), GOOD_DATA_BYTES, &bytes);
    unsigned refused = 0;

    (void)state;
    for (i = 0; i < bytes - GOOD_DATA_BYTES; i++) {
        uint8_t old = image[i];

        for (j = 0; j < sizeof(values); j++) {
            struct safetensors *file;
            int result;

            image[i] = values[j];
            write_file(image, bytes);
            error[0] = 0;
            result = safetensors_open(path, &file, error, sizeof(error));
            assert_int_equal(result == 0, file != NULL);
            assert_int_equal(result == 0, error[0] == 0);
            refused += result != 0;
            safetensors_close(&file);
        }
        image[i] = old;
    }
    assert_true(refused > (bytes - GOOD_DATA_BYTES) * sizeof(values) / 2);
    free(image);
}

static void bad_headers_are_refused(void **state)
{
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(bad_files) / sizeof(bad_files[0]); i++) {
        make_file(bad_files[i].header, strlen(bad_files[i].header), bad_files[i].data_bytes);
        expect_refused(bad_files[i].what, bad_files[i].reason);
    }
}

static void bad_header_lengths_are_refused(void **state)
{
    static const struct {
        uint64_t declared;
        const char *reason;
    } lengths[] = {
        {0, "does not start"},
        {3, "data: "},
        {11, "leaves the file"},
        {SAFETENSORS_HEADER_BYTES_MAX, "leaves the file"},
        {SAFETENSORS_HEADER_BYTES_MAX + 1, "above the limit"},
        {UINT64_C(1) << 63, "above the limit"},
        {UINT64_MAX - 7, "above the limit"}, /* wraps when 8 is added */
        {UINT64_MAX, "above the limit"},
    };
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        make_file("{} xxxxxxx", lengths[i].declared, 0);
        expect_refused("header length", lengths[i].reason);
    }
}

/* Of `count` empty tensors with names of `name_bytes` bytes. */
static char *make_many(unsigned count, unsigned name_bytes)
{
    size_t capacity = (size_t)count * (name_bytes + 64) + 3;
    char *header = malloc(capacity);
    size_t at = 1;
    unsigned i;

    assert_non_null(header);
    header[0] = '{';
    for (i = 0; i < count; i++)
        at += (size_t)snprintf(header + at, capacity - at,
                               "%s\"%0*u\":{\"dtype\":\"U8\",\"shape\":[0],"
                               "\"data_offsets\":[0,0]}",
                               i ? "," : "", (int)name_bytes, i);
    memcpy(header + at, "}", 2);
    return header;
}

static void limits_are_kept(void **state)
{
    static const struct {
        unsigned count, name_bytes;
        const char *reason; /* NULL: good */
    } cases[] = {
        {1, SAFETENSORS_NAME_BYTES_MAX, NULL},
        {1, SAFETENSORS_NAME_BYTES_MAX + 1, "longer than 255"},
        {SAFETENSORS_TENSORS_MAX, 6, NULL},
        {SAFETENSORS_TENSORS_MAX + 1, 6, "65537 entries are above"},
    };
    struct safetensors *file;
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *header = make_many(cases[i].count, cases[i].name_bytes);

        make_file(header, strlen(header), 0);
        free(header);
        if (cases[i].reason) {
            expect_refused("limit", cases[i].reason);
            continue;
        }
        file = expect_good();
        assert_int_equal(safetensors_count(file), cases[i].count);
        safetensors_close(&file);
    }
}

static void deep_nesting_is_refused(void **state)
{
    enum { DEPTH = 1000000 };
    char *header = malloc(DEPTH + 6);

    (void)state;
    assert_non_null(header);
    memcpy(header, "{\"a\":", 5);
    memset(header + 5, '[', DEPTH);
    header[DEPTH + 5] = 0;
    make_file(header, DEPTH + 5, 0);
    free(header);
    expect_refused("nesting", "header: byte");
}

static void unopenable_paths_have_a_reason(void **state)
{
    struct safetensors *file;

    (void)state;
    assert_int_equal(safetensors_open("/nonexistent/x", &file, error, sizeof(error)), -ENOENT);
    assert_string_equal(error, "/nonexistent/x: open: No such file or directory");
    assert_null(file);
    assert_int_equal(safetensors_open(directory, &file, error, sizeof(error)), -EBADMSG);
    assert_non_null(strstr(error, "not a regular file"));
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0); /* must not block */
    expect_refused("fifo", "not a regular file");
    unlink(path);
    assert_int_equal(safetensors_open("/nonexistent/x", &file, NULL, 0), -ENOENT);
    memset(error, 'x', sizeof(error));
    assert_int_equal(safetensors_open("/nonexistent/x", &file, error, 5), -ENOENT);
    assert_string_equal(error, "/non");
    assert_int_equal(error[5], 'x');
}

static void failing_calls_have_a_reason(void **state)
{
    static const char *const reasons[] = {"no memory", "header: no memory for 3 tensors"};
    struct safetensors *file;

    (void)state;
    make_file(GOOD, strlen(GOOD), GOOD_DATA_BYTES);
    stat_fails = true;
    assert_int_equal(safetensors_open(path, &file, error, sizeof(error)), -EIO);
    assert_non_null(strstr(error, "fstat: "));
    stat_fails = false;
    map_fails = true;
    assert_int_equal(safetensors_open(path, &file, error, sizeof(error)), -ENODEV);
    assert_non_null(strstr(error, "mmap: "));
    map_fails = false;
    for (int at = 0; at < 2; at++) {
        calloc_fails_at = at;
        assert_int_equal(safetensors_open(path, &file, error, sizeof(error)), -ENOMEM);
        assert_non_null(strstr(error, reasons[at]));
        assert_null(file);
    }
    calloc_fails_at = -1;
    file = expect_good();
    safetensors_close(&file);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_file_is_read_exactly),
        cmocka_unit_test(unusual_good_files_are_read),
        cmocka_unit_test(committed_files_are_read),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(every_changed_byte_is_survived),
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(bad_header_lengths_are_refused),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(unopenable_paths_have_a_reason),
        cmocka_unit_test(failing_calls_have_a_reason),
    };
    int failed;

    if (argc != 3 || !mkdtemp(directory)) {
        fprintf(stderr, "usage: safetensors_test MODEL TEST\n");
        return 2;
    }
    model_path = argv[1];
    images_path = argv[2];
    snprintf(path, sizeof(path), "%s/file", directory);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    rmdir(directory);
    return failed ? 1 : 0;
}
