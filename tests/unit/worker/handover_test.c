/*
 * The table beside the weights, as another worker may have left it: written by a broken program, or
 * by one of another version, its hashes right.  What is wrong is refused, what is right beside it
 * is taken, and no descriptor or mapping is left behind.
 */
#include "unit.h"

#include <math.h>

#include "worker/handover.c" /* its layout is nobody else's */

static bool malloc_fails, calloc_fails;

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    return malloc_fails ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return calloc_fails ? NULL : __real_calloc(count, bytes);
}

/* ---- the worker of before, and the next one -------------------------------------------------- */

struct side {
    struct pool *pool;
    struct layers *layers;
};

static struct side before, after;
static struct handover *handover;
static struct table *table; /* a private copy of what was written */
static uint32_t levels = 1; /* whose kernel packs: nothing here runs */

static void open_side(struct side *side)
{
    const struct pool_config config = {
        .limit_bytes = UINT64_C(64) << 20, .policy = POOL_POLICY_NONE, .node = -1};
    struct layers_config registry = {.kernel = gemm_select(levels)};

    assert_int_equal(pool_open(&side->pool, &config), 0);
    registry.pool = side->pool;
    assert_int_equal(layers_open(&side->layers, &registry), 0);
}

static void close_side(struct side *side)
{
    layers_close(&side->layers);
    pool_close(&side->pool);
}

static void make_layer(uint8_t value, const char *name)
{
    const struct gemmd_layer_desc_abi desc = {
        .n = 16, .k = 64, .a_type = GEMMD_ABI_TYPE_U8, .b_type = GEMMD_ABI_TYPE_S8,
        .c_type = GEMMD_ABI_TYPE_F32, .scale_count = 1, .a_scale = 1, .c_scale = 1};
    _Alignas(64) char image[4096] = {0};
    const float one = 1;
    struct gemmd_layer_image parts;
    struct layer *layer;
    uint64_t id[2], bytes_new;

    assert_int_equal(gemmd_validate_layer_desc(&desc, &parts), GEMMD_STATUS_OK);
    assert_true(parts.bytes <= sizeof(image));
    memset(image, value, parts.weights_bytes);
    memcpy(image + parts.scales_offset, &one, sizeof(one));
    layer_content_id(&desc, image, parts.bytes, id);
    assert_int_equal(layers_create(before.layers, &desc, image, id, 0, &layer, &bytes_new),
                     GEMMD_STATUS_OK);
    assert_int_equal(layers_set_name(before.layers, layer, name), GEMMD_STATUS_OK);
}

/* Two layers, "a" and "b", and their table. */
static int open_both(void **state)
{
    (void)state;
    open_side(&before);
    open_side(&after);
    make_layer(1, "a");
    make_layer(2, "b");
    assert_int_equal(handover_open(&handover, -1), 0);
    handover_write(handover, before.layers, before.pool);
    table = read_newest(handover->fd);
    assert_non_null(table);
    assert_int_equal(table->layers, 2);
    assert_int_equal(table->names, 2);
    assert_int_equal(table->extents, 1);
    return 0;
}

static int close_both(void **state)
{
    (void)state;
    free(table);
    handover_close(&handover);
    close_side(&after);
    close_side(&before);
    return 0;
}

static int give_file(void *context, uint64_t id)
{
    struct pool_extent extent;

    (void)context;
    for (uint32_t i = 0; pool_get_extent(before.pool, i, &extent); i++)
        if (extent.id == id)
            return dup(extent.fd);
    return -1;
}

static unsigned open_fds(void)
{
    unsigned count = 0;

    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Writes the changed table as the newest one, with hashes that are right unless `broken`, and
 * restores from it.  -errno, or the number of layers that were taken over. */
static int restore(bool broken)
{
    unsigned fds = open_fds();
    struct handover_result result;
    uint64_t hash[2];
    int error, count;

    table->generation += table->generation != 0;
    hash_table(table, hash);
    hash[1] ^= broken;
    memcpy(table->hash, hash, sizeof(hash));
    memset(handover->memory, 0, FILE_BYTES);
    memcpy(handover->memory, table, sizeof(*table));
    error = handover_restore(handover->fd, after.layers, after.pool, give_file, NULL, &result);
    count = (int)result.layers;
    assert_int_equal(layers_count(after.layers), count);
    if (error == 0)
        assert_int_equal(count + (int)result.refused, table->layers);
    close_side(&after); /* an empty one for the next try */
    assert_int_equal(open_fds(), fds);
    open_side(&after);
    return error < 0 ? error : count;
}

/* ---- tables ---------------------------------------------------------------------------------- */

static void test_whole(void **state)
{
    struct handover_result result;

    (void)state;
    assert_int_equal(restore(false), 2);
    /* The older copy when the newer one was cut short. */
    memcpy(handover->memory + COPY_BYTES, table, sizeof(*table));
    handover->memory[COPY_BYTES + sizeof(*table) - 1] ^= 1;
    assert_int_equal(handover_generation(handover->fd), table->generation);
    assert_int_equal(handover_restore(handover->fd, after.layers, after.pool, give_file, NULL,
                                      &result), 0);
    assert_int_equal(result.layers, 2);
    assert_non_null(layers_find_name(after.layers, "a"));
    assert_non_null(layers_find_name(after.layers, "b"));
}

struct lie {
    size_t place, bytes;
    uint64_t value;
    int outcome;
};
#define IN(field)          offsetof(struct table, field)
#define IN_LAYER(at, field)                                                                        \
    (offsetof(struct table, layer[at]) + offsetof(struct table_layer, field))

static void test_lies(void **state)
{
    static const struct lie lies[] = {
        {IN(magic), 8, 1, -EBADMSG},
        {IN(version), 4, TABLE_VERSION + 1, -EBADMSG},
        {IN(generation), 8, 0, -EBADMSG},
        {IN(extents), 4, EXTENTS_MAX + 1, -EBADMSG},
        {IN(layers), 4, GEMMD_WORKER_LAYERS_MAX + 1, -EBADMSG},
        {IN(names), 4, GEMMD_WORKER_LAYERS_MAX + 1, -EBADMSG},
        {IN(names), 4, UINT32_MAX, -EBADMSG},
        {IN(memory_version), 4, LAYER_MEMORY_VERSION + 1, -EXDEV},
        {IN(kernel_id), 2, 999, -EXDEV},
        {IN(nr), 2, 999, -EXDEV},
        {IN(kr), 2, 999, -EXDEV},
        {IN(level), 2, 999, -EXDEV},
        {IN(extent[0].id), 8, 999, 0},     /* no such file */
        {IN(extent[0].bytes), 8, 4096, 0}, /* not the file's size */
        {IN(extent[0].bytes), 8, UINT64_MAX, 0},
        {IN(extent[0].rung), 4, EXTENT_2M, 0}, /* not the file's pages */
        {IN(extents), 4, 0, 0},
        {IN(extents), 4, 2, 2}, /* the second one is zeros */
        {IN_LAYER(0, desc.n), 4, 0, 1},
        {IN_LAYER(0, desc.k), 4, 4096, 1}, /* larger than its memory */
        {IN_LAYER(0, desc.b_type), 1, 77, 1},
        {IN_LAYER(0, narrow_pairs), 4, 1, 1}, /* this level has no kernel for them */
        {IN_LAYER(0, bytes), 8, 4096, 1},
        {IN_LAYER(0, bytes), 8, 0, 1},
        {IN_LAYER(0, bytes), 8, UINT64_MAX, 1},
        {IN_LAYER(0, extent_id), 8, 999, 1},
        {IN_LAYER(0, offset), 8, UINT64_C(1) << 40, 1},
        {IN_LAYER(0, offset), 8, UINT64_MAX - 4095, 1},
        {IN(name[0].layer), 4, 2, 2},      /* beyond the last */
        {IN(name[0].layer), 4, UINT32_MAX, 2},
        {IN(name[0].text), 1, 0, 2},
        {IN(name[0].text), 1, '\n', 2},
        {IN(layers), 4, 0, 0}, /* and names of none */
        {IN(layers), 4, 3, 2}, /* the third is zeros */
    };
    struct table *good = malloc(sizeof(*good));

    (void)state;
    assert_non_null(good);
    memcpy(good, table, sizeof(*good));
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        int outcome;

        memcpy(table, good, sizeof(*table));
        memcpy((char *)table + lies[i].place, &lies[i].value, lies[i].bytes);
        outcome = restore(false);
        if (outcome != lies[i].outcome)
            fail_msg("lie %zu: %d instead of %d", i, outcome, lies[i].outcome);
    }
    memcpy(table, good, sizeof(*table));
    assert_int_equal(restore(true), -EBADMSG);
    table->hash[0]++;
    memset(handover->memory, 0, FILE_BYTES);
    memcpy(handover->memory, table, sizeof(*table));
    assert_int_equal(handover_generation(handover->fd), 0);
    free(good);
}

/* Two layers in one place: the second is refused. */
static void test_overlap(void **state)
{
    (void)state;
    table->layer[1] = table->layer[0];
    assert_int_equal(restore(false), 1);
}

/* Values in the memory that kernels could not stand. */
static void test_bad_values(void **state)
{
    const char *name;
    const struct layer *layer = layers_get(before.layers, 0, &name);
    char *memory = layer->memory;
    struct layer_view view;
    const float *scales;
    const float bad = NAN;

    (void)state;
    layer_memory_view(layers_kernel(before.layers), &layer->desc, layer->memory, &view);
    scales = view.epilogue.scale;
    assert_int_equal(pool_write_begin(before.pool, layer->memory), 0);
    memcpy(memory + ((const char *)scales - memory), &bad, sizeof(bad)); /* scales is const */
    assert_int_equal(pool_write_end(before.pool, layer->memory), 0);
    assert_int_equal(restore(false), 1);
}

/* A layer goes on with the kernel that it had. */
static void test_narrow_pairs(void **state)
{
    const struct gemm_kernel *any, *narrow;
    struct handover_result result;

    close_both(state);
    levels = UINT32_C(1) << CPU_LEVEL_AVX2;
    any = gemm_select(levels);
    narrow = gemm_narrow(any);
    open_both(state);
    make_layer(100, "c"); /* 100 + 100 */
    handover_write(handover, before.layers, before.pool);
    assert_int_equal(handover_restore(handover->fd, after.layers, after.pool, give_file, NULL,
                                      &result), 0);
    assert_int_equal(result.layers, 3);
    assert_int_equal(layers_find_name(after.layers, "a")->view.kernel_id,
                     (narrow ? narrow : any)->id);
    assert_int_equal(layers_find_name(after.layers, "c")->view.kernel_id, any->id);
    levels = 1;
}

static void test_no_memory(void **state)
{
    struct handover_result result;
    struct handover *other;

    (void)state;
    malloc_fails = true;
    assert_int_equal(handover_generation(handover->fd), 0);
    malloc_fails = false;
    calloc_fails = true;
    assert_int_equal(handover_restore(handover->fd, after.layers, after.pool, give_file, NULL,
                                      &result), -ENOMEM);
    assert_int_equal(handover_open(&other, -1), -ENOMEM);
    assert_null(other);
    /* Extents without layers: the next worker starts empty, and not with half a table. */
    handover->generation++;
    handover->layers_generation = 0;
    handover_write(handover, before.layers, before.pool);
    calloc_fails = false;
    free(table);
    table = read_newest(handover->fd);
    assert_non_null(table);
    assert_int_equal(table->layers, 0);
    assert_int_equal(table->names, 0);
}

/* ---- files ----------------------------------------------------------------------------------- */

/* Nothing that is not a table's file becomes one, and it stays the caller's. */
static void test_files(void **state)
{
    struct handover *other = (void *)-1;
    struct handover_result result;
    int fd = memfd_create("handover-test", MFD_CLOEXEC), ends[2];

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(handover_open(&other, fd), -EBADMSG);
    assert_null(other);
    assert_int_equal(handover_open(&other, ends[0]), -EBADMSG);
    assert_int_equal(handover_restore(ends[0], after.layers, after.pool, give_file, NULL, &result),
                     -EBADMSG);
    assert_int_equal(handover_restore(-1, after.layers, after.pool, give_file, NULL, &result),
                     -EBADMSG);
    assert_int_equal(ftruncate(fd, FILE_BYTES), 0); /* zeros: whole, and empty */
    assert_int_equal(handover_open(&other, fd), 0);
    assert_int_equal(handover_generation(fd), 0);
    assert_int_equal(handover_fd(other), fd);
    handover_close(&other);
    assert_int_equal(fcntl(fd, F_GETFD), -1); /* it was taken */
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, open_both, close_both)
    static const struct CMUnitTest tests[] = {
        TEST(test_whole),     TEST(test_lies),      TEST(test_overlap),
        TEST(test_bad_values), TEST(test_narrow_pairs), TEST(test_no_memory),
        TEST(test_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
