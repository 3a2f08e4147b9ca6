/* The registry of layers: names, references, quotas, eviction, drafts, scrub. */
#include "unit.h"

#include <sys/mman.h>

#include "worker/layers.h"

#define MIB UINT64_C(1048576)
#define K   1024

static struct pool *pool;
static struct layers *layers;
static struct window_list windows;
static uint32_t levels = 1; /* whose kernel packs: nothing here runs */

static void open_registry(uint64_t pool_bytes, uint64_t uid_bytes, uint64_t unused_bytes)
{
    struct pool_config config = {
        .limit_bytes = pool_bytes, .policy = POOL_POLICY_NONE, .node = -1};
    struct layers_config registry = {.kernel = gemm_select(levels),
                                     .windows = &windows,
                                     .uid_bytes_max = uid_bytes,
                                     .unused_bytes_max = unused_bytes};

    assert_int_equal(pool_open(&pool, &config), 0);
    registry.pool = pool;
    assert_int_equal(layers_open(&layers, &registry), 0);
}

static void close_registry(void)
{
    layers_close(&layers);
    pool_close(&pool);
}

static struct layers_report report(void)
{
    struct layers_report now;
    struct pool_report memory;

    layers_report(layers, &now);
    pool_report(pool, &memory);
    assert_true(memory.bytes_used >= now.bytes); /* and nothing is lost: whole pages */
    assert_true(memory.bytes_used <= now.bytes + layers_count(layers) * 4096);
    return now;
}

/* About `n` KiB of weights that differ by `seed`. */
static enum gemmd_status create(uint32_t n, int seed, uint32_t uid, struct layer **out,
                                uint64_t *bytes_new)
{
    struct gemmd_layer_desc_abi desc = {.n = n, .k = K, .a_type = GEMMD_ABI_TYPE_U8,
                                        .c_type = GEMMD_ABI_TYPE_F32, .scale_count = 1,
                                        .a_scale = 1, .c_scale = 1,
                                        .b_type = GEMMD_ABI_TYPE_S8};
    struct gemmd_layer_image parts;
    enum gemmd_status status;
    uint64_t id[2];
    char *image;
    float *scale;

    assert_int_equal(gemmd_validate_layer_desc(&desc, &parts), GEMMD_STATUS_OK);
    image = mmap(NULL, parts.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(image, MAP_FAILED);
    memset(image, seed, parts.weights_bytes);
    scale = (float *)(void *)(image + parts.scales_offset);
    *scale = 1;
    layer_content_id(&desc, image, parts.bytes, id);
    status = layers_create(layers, &desc, image, id, uid, out, bytes_new);
    munmap(image, parts.bytes);
    return status;
}

static struct layer *need(uint32_t n, int seed, uint32_t uid)
{
    struct layer *layer;
    uint64_t bytes;

    assert_int_equal(create(n, seed, uid, &layer, &bytes), GEMMD_STATUS_OK);
    assert_int_equal(bytes, layer->bytes);
    return layer;
}

/* The least recently used goes first; what is open or pinned never does. */
static void test_eviction(void **state)
{
    struct layer *open_one, *layer;
    uint64_t bytes;

    (void)state;
    open_registry(8 * MIB, 0, 8 * MIB);
    open_one = need(1024, 1, 10);
    layer_reference(layers, open_one);
    layers_switch_name(layers, need(1024, 2, 10), "pinned");
    assert_int_equal(layers_pin(layers, "pinned", true), 1);
    for (int seed = 3; seed < 7; seed++)
        need(1024, seed, 10);
    layer = layers_find_name(layers, "pinned");
    assert_int_equal(report().evictions, 0);
    need(1024, 7, 10); /* 7 MiB and their arrays fill the pool */
    for (int seed = 8; seed < 30; seed++) {
        uint64_t evictions = report().evictions;

        need(1024, seed, 10);
        assert_true(report().evictions >= evictions);
    }
    assert_true(report().evictions > 15);
    assert_ptr_equal(layers_find_name(layers, "pinned"), layer);
    assert_int_equal(((const char *)open_one->memory)[0], 1);
    assert_int_equal(create(1024, 29, 10, &layer, &bytes), GEMMD_STATUS_OK);
    assert_int_equal(bytes, 0); /* the youngest is still there */
    assert_int_equal(create(7000, 1, 10, &layer, &bytes), GEMMD_STATUS_POOL_FULL);
    assert_null(layer);
    assert_int_equal(layers_count(layers), 2); /* it had made all the room there was */
    close_registry();
}

static void test_budget_of_unused(void **state)
{
    struct layer *handles[4];

    (void)state;
    open_registry(16 * MIB, 0, 2 * MIB + 65536);
    for (int i = 0; i < 4; i++) {
        handles[i] = need(1024, i, 10);
        layer_reference(layers, handles[i]);
    }
    assert_int_equal(report().bytes_unused, 0);
    for (int i = 0; i < 4; i++)
        layer_release(layers, handles[i]);
    assert_int_equal(layers_count(layers), 2);
    assert_true(report().bytes_unused <= 2 * MIB + 65536);
    close_registry();
}

/* One user's layers push out his own, never another's. */
static void test_quota(void **state)
{
    struct layer *mine[3], *other, *layer;
    uint64_t bytes, evictions;

    (void)state;
    open_registry(32 * MIB, 3 * MIB + 65536, 32 * MIB);
    other = need(1024, 50, 20);
    for (int i = 0; i < 3; i++) {
        mine[i] = need(1024, i, 10);
        layer_reference(layers, mine[i]);
    }
    assert_int_equal(create(1024, 9, 10, &layer, &bytes), GEMMD_STATUS_QUOTA);
    assert_int_equal(create(5000, 9, 30, &layer, &bytes), GEMMD_STATUS_QUOTA); /* never fits */
    evictions = report().evictions;
    layer_release(layers, mine[1]);
    need(1024, 9, 10);
    assert_int_equal(report().evictions, evictions + 1);
    assert_int_equal(((const char *)other->memory)[0], 50);
    /* Another of his fits beside the first. */
    assert_int_equal(create(512, 50, 20, &layer, &bytes), GEMMD_STATUS_OK);
    close_registry();
}

static void test_names(void **state)
{
    struct layer *first, *second;
    uint64_t bytes, generation;

    (void)state;
    open_registry(16 * MIB, 0, 16 * MIB);
    first = need(64, 1, 10);
    second = need(64, 2, 10);
    assert_int_equal(layers_set_name(layers, first, "m/a"), GEMMD_STATUS_OK);
    assert_int_equal(layers_set_name(layers, first, "m/a"), GEMMD_STATUS_OK);
    layer_reference(layers, first);
    assert_int_equal(layers_set_name(layers, second, "m/a"), GEMMD_STATUS_NAME_TAKEN);
    generation = layers_generation(layers);
    assert_int_equal(layers_switch_name(layers, second, "m/a"), GEMMD_STATUS_OK);
    assert_true(layers_generation(layers) > generation);
    assert_ptr_equal(layers_find_name(layers, "m/a"), second);
    assert_int_equal(layers_switch_name(layers, first, "m/b"), GEMMD_STATUS_OK);
    assert_int_equal(layers_switch_name(layers, second, "mm"), GEMMD_STATUS_OK);
    assert_int_equal(layers_pin(layers, "m", true), 2); /* m/a and m/b, not mm */
    assert_int_equal(layers_pin(layers, "m/c", true), 0);
    assert_int_equal(layers_unload(layers, "m", &bytes), 2);
    assert_int_equal(bytes, 0); /* first is open, second has another name */
    assert_ptr_equal(layers_find_name(layers, "mm"), second);
    assert_int_equal(layers_count(layers), 2);
    layer_release(layers, first); /* the last handle of an unloaded layer */
    assert_int_equal(layers_count(layers), 1);
    assert_int_equal(layers_unload(layers, "mm", &bytes), 1);
    assert_true(bytes >= 64 * K);
    assert_int_equal(layers_count(layers), 0);
    close_registry();
}

/* The bare hash is for the user whose bytes made it. */
/* A layer has the longest window of its names, as they come and go. */
static void test_windows(void **state)
{
    struct layer *first, *second;
    uint64_t bytes;

    (void)state;
    assert_true(window_list_add(&windows, "m:5,m/a:7,n:3", 100));
    open_registry(8 * MIB, 0, 8 * MIB);
    first = need(64, 1, 10);
    second = need(64, 2, 10);
    assert_int_equal(first->window_ns, 0);
    layers_switch_name(layers, first, "mm");
    assert_int_equal(first->window_ns, 0);
    layers_switch_name(layers, first, "m/b");
    assert_int_equal(first->window_ns, 5000);
    layers_switch_name(layers, first, "m/a");
    assert_int_equal(first->window_ns, 7000);
    layers_switch_name(layers, second, "n");
    assert_int_equal(second->window_ns, 3000);
    layers_switch_name(layers, second, "m/a"); /* from the first one */
    assert_int_equal(first->window_ns, 5000);
    assert_int_equal(second->window_ns, 7000);
    assert_int_equal(layers_unload(layers, "m", &bytes), 2);
    assert_int_equal(first->window_ns, 0);
    assert_int_equal(second->window_ns, 3000);
    close_registry();
    windows.count = 0;
}

static void test_attaching(void **state)
{
    struct layer *layer, *again;
    uint64_t bytes;

    (void)state;
    open_registry(16 * MIB, 0, 16 * MIB);
    layer = need(64, 1, 10);
    assert_ptr_equal(layers_find(layers, layer->content_id, 10), layer);
    assert_null(layers_find(layers, layer->content_id, 11));
    assert_int_equal(create(64, 1, 11, &again, &bytes), GEMMD_STATUS_OK); /* with the bytes */
    assert_ptr_equal(again, layer);
    assert_int_equal(bytes, 0);
    layer->owner_uid = LAYER_OWNER_NONE; /* as if read from a packed file */
    assert_null(layers_find(layers, layer->content_id, 10));
    assert_null(layers_find(layers, layer->content_id, LAYER_OWNER_NONE));
    assert_int_equal(create(64, 1, 11, &again, &bytes), GEMMD_STATUS_OK);
    assert_ptr_equal(layers_find(layers, layer->content_id, 11), layer);
    close_registry();
}

/* Which of a level's kernels a layer gets follows from its bytes; whoever has them finds it. */
static void test_narrow_pairs(void **state)
{
    const struct gemm_kernel *any, *narrow;
    struct layer *layer, *again, *draft;
    const uint64_t id[2] = {1, 2};
    uint64_t bytes;

    (void)state;
    levels = UINT32_C(1) << CPU_LEVEL_AVX2;
    any = gemm_select(levels);
    narrow = gemm_narrow(any);
    open_registry(16 * MIB, 0, 16 * MIB);
    layer = need(64, 64, 10); /* 64 + 64 */
    assert_int_equal(layer->view.kernel_id, (narrow ? narrow : any)->id);
    assert_ptr_equal(layer->view.s8.kernel, narrow ? narrow : any);
    assert_int_equal(create(64, 64, 11, &again, &bytes), GEMMD_STATUS_OK);
    assert_ptr_equal(again, layer);
    assert_int_equal(need(64, 65, 10)->view.kernel_id, any->id);
    assert_int_equal(need(64, -64, 10)->view.kernel_id, layer->view.kernel_id);
    assert_int_equal(need(64, -65, 10)->view.kernel_id, any->id);
    assert_int_equal(layers_draft(layers, &layer->desc, 12, &draft), GEMMD_STATUS_OK);
    layers_enter(layers, &draft, id, id, 12); /* by someone who has not looked */
    assert_int_equal(draft->view.kernel_id, any->id);
    close_registry();
    levels = 1;
}

/* Same content id, other bytes: a file that lies about its weights is not shared. */
static void test_a_false_twin_is_kept_apart(void **state)
{
    static const uint64_t checksum[2] = {1, 2};
    struct layer *layer, *draft;

    (void)state;
    open_registry(16 * MIB, 0, 16 * MIB);
    layer = need(64, 1, 10);
    assert_int_equal(layers_draft(layers, &layer->desc, 12, &draft), GEMMD_STATUS_OK);
    assert_true(layers_enter(layers, &draft, layer->content_id, checksum, 12) > 0);
    assert_ptr_not_equal(draft, layer);
    assert_int_equal(layers_count(layers), 2);
    assert_int_equal(layers_draft(layers, &layer->desc, 12, &draft), GEMMD_STATUS_OK);
    layers_discard(layers, &draft);
    assert_null(draft);
    assert_int_equal(layers_count(layers), 2);
    report();
    close_registry();
}

static void test_a_full_table(void **state)
{
    struct layer *layer, *draft;
    uint64_t bytes;

    (void)state;
    open_registry(1024 * MIB, 0, 1024 * MIB);
    for (int i = 0; i < (int)GEMMD_WORKER_LAYERS_MAX; i++) {
        layer = need(1 + (uint32_t)i % 64, i / 64, 10);
        layer_reference(layers, layer);
    }
    assert_int_equal(create(65, 1, 10, &layer, &bytes), GEMMD_STATUS_LAYERS_FULL);
    layer_release(layers, (struct layer *)(uintptr_t)layers_get(layers, 7, &(const char *){NULL}));
    /* A draft holds a place as well. */
    assert_int_equal(layers_draft(layers, &layers_get(layers, 8, &(const char *){NULL})->desc, 10,
                                  &draft), GEMMD_STATUS_OK);
    assert_int_equal(create(65, 1, 10, &layer, &bytes), GEMMD_STATUS_LAYERS_FULL);
    layers_discard(layers, &draft);
    assert_int_equal(create(65, 1, 10, &layer, &bytes), GEMMD_STATUS_OK);
    assert_int_equal(layers_count(layers), GEMMD_WORKER_LAYERS_MAX);
    close_registry();
}

/* Every bit of a small layer, in the order the scrub gets to them: 100 % within one pass. */
static void test_scrub(void **state)
{
    struct layer *layer;
    uint8_t *memory;

    (void)state;
    open_registry(16 * MIB, 0, 16 * MIB);
    assert_null(layers_scrub(layers, MIB)); /* nothing to do */
    need(300, 3, 10);
    layer = need(64, 4, 10);
    need(300, 5, 10);
    memory = layer->memory;
    for (uint64_t at = 0; at < layer->bytes; at += 61) {
        struct layer *found = NULL;
        uint64_t passes = report().scrub_passes;

        assert_int_equal(pool_write_begin(pool, memory), 0);
        memory[at] ^= (uint8_t)(1u << (at % 8));
        while (!found && report().scrub_passes < passes + 2)
            found = layers_scrub(layers, 100000);
        assert_ptr_equal(found, layer);
        memory[at] ^= (uint8_t)(1u << (at % 8));
        assert_int_equal(pool_write_end(pool, memory), 0);
    }
    /* Layers that go while they are looked at. */
    for (int i = 0; i < 50; i++) {
        uint64_t bytes;

        layers_scrub(layers, 1000);
        layers_switch_name(layers, need(64, 60 + i, 10), "x");
        layers_scrub(layers, 70000);
        assert_int_equal(layers_unload(layers, "x", &bytes), 1);
    }
    assert_null(layers_scrub(layers, 10 * MIB));
    layer_condemn(layers, layer);
    assert_int_equal(layers_count(layers), 2);
    close_registry();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eviction),
        cmocka_unit_test(test_budget_of_unused),
        cmocka_unit_test(test_quota),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_attaching),
        cmocka_unit_test(test_narrow_pairs),
        cmocka_unit_test(test_a_false_twin_is_kept_apart),
        cmocka_unit_test(test_a_full_table),
        cmocka_unit_test(test_scrub),
    };

    return cmocka_run_group_tests(tests, NULL, NULL) > 0;
}
