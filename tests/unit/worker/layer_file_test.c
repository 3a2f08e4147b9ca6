/*
 * Packed layer files whose every field lies, one at a time, under hashes that are right: each is
 * refused with its reason, and nothing is left behind.  And files that end, change their kind or
 * cannot be read while they are being read.
 */
#include "unit.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include "proto/validate.h"
#include "worker/layer_file.h"
#include "worker/layer_memory.h"

#define LAYERS 3

/* ---- faults put into the kernel's answers, and malloc's -------------------------------------- */

static int read_error_at = -1; /* index of the read that fails; -1: none */
static int read_error;         /* 0: it is short by half instead */
static bool malloc_fails, calloc_fails;

ssize_t __wrap_pread64(int fd, void *out, size_t bytes, off_t offset);
void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);

ssize_t __wrap_pread64(int fd, void *out, size_t bytes, off_t offset)
{
    bool fails = read_error_at >= 0 && read_error_at-- == 0;

    if (fails && read_error) {
        errno = read_error;
        return -1;
    }
    return syscall(SYS_pread64, fd, out, fails ? bytes / 2 : bytes, offset);
}

void *__wrap_malloc(size_t bytes)
{
    return malloc_fails ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return calloc_fails ? NULL : __real_calloc(count, bytes);
}

/* ---- a good file ----------------------------------------------------------------------------- */

struct model {
    struct layer_file_header header;
    struct layer_file_entry entries[LAYERS];
};

static int fd;

/* Layer 0 has an image, layer 1 packed memory, layer 2 both. */
static struct model good_model(void)
{
    struct model model = {.header = {.magic = LAYER_FILE_MAGIC,
                                     .version = LAYER_FILE_VERSION,
                                     .layer_count = LAYERS,
                                     .memory_version = LAYER_MEMORY_VERSION,
                                     .kernel_id = 7,
                                     .nr = 16,
                                     .kr = 4,
                                     .level = CPU_LEVEL_AVX2,
                                     .kernel_name = "some kernel"}};
    uint64_t end = sizeof(model);

    for (uint32_t i = 0; i < LAYERS; i++) {
        struct layer_file_entry *entry = &model.entries[i];
        struct gemmd_layer_image image;

        entry->desc = (struct gemmd_layer_desc_abi){
            .n = 16, .k = 40, .a_type = GEMMD_ABI_TYPE_U8, .b_type = GEMMD_ABI_TYPE_S8,
            .c_type = GEMMD_ABI_TYPE_F32, .scale_count = 1, .a_scale = 1, .c_scale = 1};
        snprintf(entry->name, sizeof(entry->name), "layer%u", i);
        assert_int_equal(gemmd_validate_layer_desc(&entry->desc, &image), GEMMD_STATUS_OK);
        if (i != 1) {
            entry->image_offset = (end + 4095) / 4096 * 4096;
            entry->image_bytes = image.bytes;
            end = entry->image_offset + image.bytes;
        }
        if (i != 0) {
            entry->memory_offset = (end + 4095) / 4096 * 4096;
            entry->memory_bytes = 5000;
            end = entry->memory_offset + entry->memory_bytes;
        }
    }
    model.header.file_bytes = end;
    return model;
}

static void write_model(const struct model *model, uint64_t bytes)
{
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(pwrite(fd, model, sizeof(*model), 0), sizeof(*model));
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
}

static void expect(enum gemmd_status wanted, const char *reason)
{
    struct layer_file_error error;
    struct layer_file file;
    enum gemmd_status status = layer_file_open(&file, fd, &error);

    if (status != wanted || !strstr(error.text, reason))
        fail_msg("status %d, wanted %d: \"%s\" does not say \"%s\"", status, wanted, error.text,
                 reason);
    layer_file_close(&file);
    assert_null(file.entries);
}

static void test_good(void **state)
{
    struct gemm_kernel kernel = {.id = 7, .nr = 16, .kr = 4, .level = CPU_LEVEL_AVX2,
                                 .name = "some kernel"}, other;
    struct model model = good_model();
    struct layer_file_error error;
    struct layer_file file;

    (void)state;
    layer_file_seal(&model.header, model.entries);
    write_model(&model, model.header.file_bytes);
    assert_int_equal(layer_file_open(&file, fd, &error), GEMMD_STATUS_OK);
    assert_memory_equal(file.entries, model.entries, sizeof(model.entries));
    assert_true(layer_file_is_for(&file, &kernel));
    other = kernel, other.id++;
    assert_false(layer_file_is_for(&file, &other));
    other = kernel, other.nr++;
    assert_false(layer_file_is_for(&file, &other));
    other = kernel, other.kr++;
    assert_false(layer_file_is_for(&file, &other));
    other = kernel, other.level = CPU_LEVEL_AMX;
    assert_false(layer_file_is_for(&file, &other));
    other = kernel, other.name = "some kernels";
    assert_false(layer_file_is_for(&file, &other));
    file.header.memory_version++;
    assert_false(layer_file_is_for(&file, &kernel));
    layer_file_close(&file);
    layer_file_close(&file);
}

/* ---- lies ------------------------------------------------------------------------------------ */

#define IN_HEADER(field)       offsetof(struct model, header.field)
#define IN_ENTRY(index, field) (offsetof(struct model, entries[index]) + \
                                offsetof(struct layer_file_entry, field))

/* What is put where, before the hashes are made, or (unsealed) afterwards. */
struct lie {
    size_t place, bytes;
    uint64_t value;
    bool unsealed;
    const char *reason;
};

static void test_lies(void **state)
{
    static const struct lie lies[] = {
        {IN_HEADER(magic), 8, LAYER_FILE_MAGIC + 1, false, "magic: "},
        {IN_HEADER(version), 4, LAYER_FILE_VERSION + 1, false, "version: "},
        {IN_HEADER(memory_version), 4, 99, true, "header_hash: "},
        {IN_HEADER(header_hash[1]), 8, 1, true, "header_hash: "},
        {IN_HEADER(layer_count), 4, 0, true, "header_hash: "},
        {IN_HEADER(layer_count), 4, 0, false, "layer_count: 0"},
        {IN_HEADER(kernel_name[47]), 1, 'x', false, ""}, /* terminated before: good */
        {IN_HEADER(reserved[11]), 1, 1, false, "reserved: not zero"},
        {IN_HEADER(file_bytes), 8, 1 << 20, false, "file_bytes: "},
        {IN_HEADER(file_bytes), 8, UINT64_MAX, false, "file_bytes: "},
        {IN_ENTRY(0, content_id), 8, 1, true, "table_hash: "},
        {IN_ENTRY(2, reserved[63]), 1, 1, true, "table_hash: "},
        {IN_ENTRY(1, name), 1, 0, false, "table: "},
        {IN_ENTRY(1, name[5]), 1, '0', false, "name: twice in the file"},
        {IN_ENTRY(1, desc.n), 4, 0, false, "layer 'layer1': "},
        {IN_ENTRY(1, desc.b_type), 1, 200, false, "layer 'layer1': "},
        {IN_ENTRY(0, image_bytes), 8, 4096, false, "layer 'layer0': image: "},
        {IN_ENTRY(0, image_bytes), 8, 0, false, "layer 'layer0': image: "},
        {IN_ENTRY(0, image_offset), 8, 0, false, "layer 'layer0': image: "},
        {IN_ENTRY(0, image_offset), 8, 1 << 20, false, "layer 'layer0': image: "},
        {IN_ENTRY(0, image_offset), 8, UINT64_MAX - 4095, false, "layer 'layer0': image: "},
        {IN_ENTRY(2, image_offset), 8, 4096, false, "layer 'layer2': image: "}, /* overlaps */
        {IN_ENTRY(1, memory_offset), 8, 4096, false, "layer 'layer1': memory: "},
        {IN_ENTRY(1, memory_bytes), 8, 0, false, "layer 'layer1': memory: "},
        {IN_ENTRY(2, memory_bytes), 8, 1 << 20, false, "layer 'layer2': memory: "},
        {IN_ENTRY(2, memory_bytes), 8, UINT64_MAX, false, "layer 'layer2': memory: "},
        {IN_ENTRY(2, memory_bytes), 8, 4000, false, "file_bytes: 1000 bytes behind"},
        {IN_ENTRY(0, reserved[63]), 1, 1, false, "layer 'layer0': reserved: "},
        {IN_HEADER(kernel_id), 2, 0, false, "layer 'layer1': memory: for no kernel"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        const struct lie *lie = &lies[i];
        struct model model = good_model();
        uint64_t bytes = model.header.file_bytes;

        if (lie->unsealed)
            layer_file_seal(&model.header, model.entries);
        memcpy((char *)&model + lie->place, &lie->value, lie->bytes);
        if (!lie->unsealed)
            layer_file_seal(&model.header, model.entries);
        write_model(&model, bytes);
        expect(*lie->reason ? GEMMD_STATUS_LAYER_FILE : GEMMD_STATUS_OK, lie->reason);
    }
}

/* More than one word has to lie. */
static void test_larger_lies(void **state)
{
    struct model model = good_model();

    (void)state;
    memset(model.header.kernel_name, 'k', sizeof(model.header.kernel_name));
    layer_file_seal(&model.header, model.entries);
    write_model(&model, model.header.file_bytes);
    expect(GEMMD_STATUS_LAYER_FILE, "kernel_name: not terminated");

    model = good_model();
    memset(model.entries[1].name, 'n', sizeof(model.entries[1].name));
    layer_file_seal(&model.header, model.entries);
    write_model(&model, model.header.file_bytes);
    expect(GEMMD_STATUS_LAYER_FILE, "table: ");

    model = good_model(); /* a table that is longer than the file */
    layer_file_seal(&model.header, model.entries);
    model.header.file_bytes = sizeof(model.header) + 2 * sizeof(model.entries[0]);
    layer_file_seal(&model.header, model.entries);
    write_model(&model, model.header.file_bytes);
    expect(GEMMD_STATUS_LAYER_FILE, "table: longer than the file");

    model = good_model(); /* neither */
    model.entries[1].memory_bytes = model.entries[1].memory_offset = 0;
    layer_file_seal(&model.header, model.entries);
    write_model(&model, model.header.file_bytes);
    expect(GEMMD_STATUS_LAYER_FILE, "layer 'layer1': holds neither");

    /* More layers than a worker has: the count alone, the table is not read. */
    model = good_model();
    layer_file_seal(&model.header, model.entries);
    model.header.layer_count = GEMMD_WORKER_LAYERS_MAX + 1;
    {
        struct layer_hash hash;

        layer_hash_begin(&hash);
        layer_hash_add(&hash, &model.header, offsetof(struct layer_file_header, header_hash));
        layer_hash_end(&hash, model.header.header_hash);
    }
    write_model(&model, model.header.file_bytes);
    expect(GEMMD_STATUS_LAYER_FILE, "layer_count: 4097");
}

static void test_no_file(void **state)
{
    struct layer_file_error error;
    struct model model = good_model();
    int ends[2], before = fd;

    (void)state;
    layer_file_seal(&model.header, model.entries);
    write_model(&model, sizeof(model.header) - 1);
    expect(GEMMD_STATUS_LAYER_FILE, "header: the file is shorter");
    write_model(&model, model.header.file_bytes - 1);
    expect(GEMMD_STATUS_LAYER_FILE, "file_bytes: ");

    assert_int_equal(pipe(ends), 0);
    fd = ends[0];
    expect(GEMMD_STATUS_LAYER_FILE, "not a regular file");
    fd = -1; /* closed */
    expect(GEMMD_STATUS_LAYER_FILE, "not a regular file");
    fd = open("/", O_RDONLY | O_CLOEXEC);
    expect(GEMMD_STATUS_LAYER_FILE, "not a regular file");
    close(fd);
    fd = before;
    close(ends[0]);
    close(ends[1]);

    /* No escape sequence of a file reaches a terminal. */
    assert_int_equal(layer_file_refuse(&error, "a\x1b[2Jb\x7f", "c\n%s", "d"),
                     GEMMD_STATUS_LAYER_FILE);
    assert_string_equal(error.text, "layer 'a?[2Jb?': c?d");
}

static void test_failing_calls(void **state)
{
    struct model model = good_model();

    (void)state;
    layer_file_seal(&model.header, model.entries);
    write_model(&model, model.header.file_bytes);
    for (int at = 0; at < 2; at++) {
        static const char *const reasons[] = {"header: Input/output error",
                                              "table: cannot be read"};

        read_error_at = at;
        read_error = EIO;
        expect(GEMMD_STATUS_LAYER_FILE, reasons[at]);
        read_error_at = at;
        read_error = EINTR; /* asked again */
        expect(GEMMD_STATUS_OK, "");
        read_error_at = at;
        read_error = 0; /* the rest is asked for */
        expect(GEMMD_STATUS_OK, "");
    }
    read_error_at = -1;
    malloc_fails = true;
    expect(GEMMD_STATUS_NO_MEMORY, "");
    malloc_fails = false;
    calloc_fails = true;
    expect(GEMMD_STATUS_NO_MEMORY, "");
    calloc_fails = false;
    expect(GEMMD_STATUS_OK, "");
}

static int set_up(void **state)
{
    (void)state;
    fd = memfd_create("layer-file-test", MFD_CLOEXEC);
    return fd < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    return close(fd);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_lies),
        cmocka_unit_test(test_larger_lies),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_failing_calls),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
