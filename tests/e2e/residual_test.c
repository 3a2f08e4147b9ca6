/*
 * Where a residual may lie, by submissions written by hand into the ring: anywhere in the arena,
 * and on C only if it is C; and what happens when it changes while it is added.
 */
#include "tests/harness.h"

#include <string.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/raw.h"

static struct harness_worker worker;
static struct layer_case layer;
static struct gemmd *owner;
static struct gemmd_layer *owner_layer;

#define N     24
#define K     40
#define C_ROW (N * 4)
#define C_AT  8192
#define ARENA (1 << 16)

struct scene {
    struct raw raw;
    struct gemmd_msg_layer_reply handle; /* u8 -> f32, plus f32 */
    float sums[3 * N];                   /* what is added to */
};

/* Floats wherever one begins, but for the rows of A at the start. */
static void open_scene(struct scene *scene)
{
    struct layer_case plain = layer;
    uint64_t seed = 5;

    raw_open(&scene->raw, worker.socket, 8, ARENA);
    assert_int_equal(scene->raw.hello.arena_bytes, ARENA);
    raw_open_layer(&scene->raw, "added", &scene->handle);
    random_bytes(&seed, scene->raw.arena, 3 * K);
    for (uint32_t i = 3 * K; i < ARENA; i++)
        scene->raw.arena[i] = (char)(0x40 + i % 3);
    plain.desc.residual_type = GEMMD_TYPE_NONE;
    layer_case_expect(&plain, 3, scene->raw.arena, K, scene->sums, C_ROW);
}

static struct gemmd_sqe sqe_of(const struct scene *scene, uint32_t m, uint32_t residual_offset)
{
    return (struct gemmd_sqe){.op = GEMMD_OP_GEMM,
                              .m = m,
                              .layer_id = scene->handle.layer_id,
                              .layer_gen = scene->handle.layer_gen,
                              .c_offset = C_AT,
                              .a_stride_bytes = K,
                              .c_stride_bytes = C_ROW,
                              .residual_offset = residual_offset};
}

/* Three rows. */
static void check(struct scene *scene, uint32_t offset, int status)
{
    struct gemmd_sqe sqe = sqe_of(scene, 3, offset);
    char before[ARENA];
    struct gemmd_cqe cqe;

    memcpy(before, scene->raw.arena, ARENA);
    raw_submit(&scene->raw, &sqe);
    assert_true(raw_complete(&scene->raw, &cqe, true, 10000));
    if (cqe.status != status)
        fprintf(stderr, "residual at %u: %s\n", offset, gemmd_status_name_of(cqe.status));
    assert_int_equal(cqe.status, status);
    for (uint32_t i = 0; status == GEMMD_STATUS_OK && i < 3 * N; i++) {
        float c, r;

        memcpy(&c, scene->raw.arena + C_AT + i * 4, sizeof(c));
        memcpy(&r, before + offset + i * 4, sizeof(r));
        assert_true(c == scene->sums[i] + r);
    }
    if (status == GEMMD_STATUS_OK)
        memcpy(scene->raw.arena + C_AT, before + C_AT, 3 * C_ROW);
    assert_memory_equal(scene->raw.arena, before, ARENA);
}

static void test_places(void **state)
{
    const uint32_t span = 3 * C_ROW;
    struct scene scene;

    (void)state;
    open_scene(&scene);
    check(&scene, C_AT, GEMMD_STATUS_OK);
    check(&scene, C_AT + span, GEMMD_STATUS_OK);
    check(&scene, C_AT - span, GEMMD_STATUS_OK);
    check(&scene, ARENA - span, GEMMD_STATUS_OK);
    check(&scene, 2 * C_AT + 1, GEMMD_STATUS_OK); /* any alignment */
    check(&scene, 2 * K, GEMMD_STATUS_OK);        /* over the end of A, which is only read */
    check(&scene, C_AT + 4, GEMMD_STATUS_RESIDUAL_OVERLAP);
    check(&scene, C_AT - 4, GEMMD_STATUS_RESIDUAL_OVERLAP);
    check(&scene, C_AT + span - 1, GEMMD_STATUS_RESIDUAL_OVERLAP);
    check(&scene, C_AT - span + 1, GEMMD_STATUS_RESIDUAL_OVERLAP);
    check(&scene, ARENA - span + 1, GEMMD_STATUS_RESIDUAL_OFFSET);
    check(&scene, ARENA, GEMMD_STATUS_RESIDUAL_OFFSET);
    check(&scene, UINT32_MAX, GEMMD_STATUS_RESIDUAL_OFFSET);
    raw_close(&scene.raw);
}

/* While the worker adds them, the residual's rows change under it: its own client's C is anything
 * then, and nothing else happens. */
static void test_changes(void **state)
{
    struct scene scene;
    uint64_t seed = 71;

    (void)state;
    open_scene(&scene);
    for (int round = 0; round < 300; round++) {
        struct gemmd_sqe sqe = sqe_of(&scene, 70, round % 2 ? C_AT : 2 * C_AT);
        struct gemmd_cqe cqe;

        raw_submit(&scene.raw, &sqe);
        raw_ring(&scene.raw);
        random_bytes(&seed, scene.raw.arena + sqe.residual_offset, 70 * C_ROW);
        assert_true(raw_complete(&scene.raw, &cqe, true, 10000));
        assert_int_equal(cqe.status, GEMMD_STATUS_OK);
        if (round % 30 == 0)
            assert_int_equal(layer_case_check(owner, owner_layer, &layer, 7, 8), 0);
    }
    raw_close(&scene.raw);
    assert_true(harness_is_alive(&worker));
}

static int start(void **state)
{
    const struct layer_kind kind = {.bias_type = GEMMD_TYPE_F32, .residual_type = GEMMD_TYPE_F32};

    (void)state;
    layer_case_init_kind(&layer, N, K, &kind, true, 17);
    layer.desc.name = "added";
    harness_start(&worker, NULL, NULL);
    owner = session_to(worker.socket);
    REQUIRE(owner != NULL);
    REQUIRE(gemmd_layer_create(owner, &layer.desc, &owner_layer) == 0);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    gemmd_close(&owner);
    layer_case_fini(&layer);
    harness_stop(&worker);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_changes),
    };

    return HARNESS_RUN(tests, start, stop, 60);
}
