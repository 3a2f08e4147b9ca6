/*
 * Jobs that must not run.  The submissions are written by hand into the ring, past every check of
 * the library.  Each completes once with the status of its field, writes nothing, and the next good
 * job of the same session works; an impossible cq_head ends the session, and only that one.
 */
#include "tests/harness.h"

#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"

static struct harness_worker worker;
static struct layer_case layer, layer_u8, layer_added;
static struct gemmd *owner;
static struct gemmd_layer *owner_layer, *owner_u8, *owner_added;

#define N     24
#define K     40
#define C_ROW (N * 4)
#define C_AT  8192
#define ARENA (1 << 16)

struct scene {
    struct raw raw;
    struct gemmd_msg_layer_reply handle; /* u8 -> f32 */
    float wanted[3 * N];
};

static struct gemmd_sqe good_sqe(const struct scene *scene)
{
    return (struct gemmd_sqe){.op = GEMMD_OP_GEMM,
                              .m = 3,
                              .layer_id = scene->handle.layer_id,
                              .layer_gen = scene->handle.layer_gen,
                              .c_offset = C_AT,
                              .a_stride_bytes = K,
                              .c_stride_bytes = C_ROW};
}

static void open_scene(struct scene *scene)
{
    uint64_t seed = 5;

    raw_open(&scene->raw, worker.socket, 8, ARENA);
    raw_open_layer(&scene->raw, "job", &scene->handle);
    random_bytes(&seed, scene->raw.arena, 3 * K);
    layer_case_expect(&layer, 3, scene->raw.arena, K, scene->wanted, C_ROW);
}

static void check_good(struct scene *scene)
{
    struct gemmd_sqe sqe = good_sqe(scene);
    struct gemmd_cqe cqe;

    memset(scene->raw.arena + C_AT, 0, 3 * C_ROW);
    sqe.user_data = 777;
    raw_submit(&scene->raw, &sqe);
    assert_true(raw_complete(&scene->raw, &cqe, true, 10000));
    assert_int_equal(cqe.user_data, 777);
    assert_int_equal(cqe.status, GEMMD_STATUS_OK);
    assert_int_not_equal(cqe.kernel_id, 0);
    assert_memory_equal(scene->raw.arena + C_AT, scene->wanted, 3 * C_ROW);
}

static void check_bad(struct scene *scene, struct gemmd_sqe sqe, int status, const char *what)
{
    uint64_t bytes = scene->raw.hello.arena_bytes;
    char *before = malloc(bytes);
    struct gemmd_cqe cqe;

    REQUIRE(before != NULL);
    memcpy(before, scene->raw.arena, bytes);
    sqe.user_data = 0xdeadbeefcafe;
    raw_submit(&scene->raw, &sqe);
    assert_true(raw_complete(&scene->raw, &cqe, true, 10000));
    if (cqe.status != status)
        fprintf(stderr, "%s: got %s\n", what, gemmd_status_name_of(cqe.status));
    assert_int_equal(cqe.status, status);
    assert_int_equal(cqe.user_data, 0xdeadbeefcafe);
    assert_int_equal(cqe.kernel_id, 0);
    assert_memory_equal(scene->raw.arena, before, bytes);
    free(before);
    check_good(scene);
}

#define BAD(field, value, expected)                                                                \
    do {                                                                                           \
        struct gemmd_sqe bad = good_sqe(&scene);                                                   \
        bad.field = (value);                                                                       \
        check_bad(&scene, bad, GEMMD_STATUS_##expected, #field " = " #value);                      \
    } while (0)

static void test_fields(void **state)
{
    struct scene scene;

    (void)state;
    open_scene(&scene);
    check_good(&scene);
    BAD(op, 0, OP);
    BAD(op, 3, OP);
    BAD(op, 255, OP);
    BAD(flags, 1, FLAGS);
    BAD(flags, 0x80, FLAGS);
    BAD(reserved0, 1, RESERVED);
    BAD(reserved0, 0x80, RESERVED);
    BAD(residual_offset, 1, RESIDUAL_OFFSET); /* the layer has none */
    BAD(residual_offset, C_AT, RESIDUAL_OFFSET);
    BAD(priority, 3, PRIORITY);
    BAD(priority, 255, PRIORITY);
    BAD(deadline_ns, 1, DEADLINE);
    BAD(m, GEMMD_M_MAX + 1, M);
    BAD(m, UINT32_MAX, M);
    BAD(layer_id, scene.handle.layer_id + 1, LAYER);
    BAD(layer_id, GEMMD_SESSION_LAYERS_MAX, LAYER);
    BAD(layer_id, UINT32_MAX, LAYER);
    BAD(layer_gen, scene.handle.layer_gen + 1, LAYER_STALE);
    BAD(layer_gen, 0, LAYER_STALE);
    BAD(a_stride_bytes, K - 1, A_STRIDE);
    BAD(a_stride_bytes, 0, A_STRIDE);
    BAD(a_stride_bytes, GEMMD_STRIDE_MAX + 1, A_STRIDE);
    BAD(a_stride_bytes, UINT32_MAX, A_STRIDE);
    BAD(c_stride_bytes, C_ROW - 4, C_STRIDE);
    BAD(c_stride_bytes, C_ROW + 1, C_STRIDE);
    BAD(c_stride_bytes, C_ROW + 2, C_STRIDE);
    BAD(c_stride_bytes, UINT32_MAX - 3, C_STRIDE);
    raw_close(&scene.raw);
}

static void test_offsets(void **state)
{
    const uint64_t a_span = 3 * K, c_span = 3 * C_ROW;
    struct gemmd_sqe sqe;
    struct gemmd_cqe cqe;
    struct scene scene;
    uint64_t arena;

    (void)state;
    open_scene(&scene);
    arena = scene.raw.hello.arena_bytes;
    BAD(a_offset, arena, A_OFFSET);
    BAD(a_offset, arena - a_span + 1, A_OFFSET);
    BAD(a_offset, UINT64_MAX, A_OFFSET);
    BAD(a_offset, UINT64_MAX - a_span + 1, A_OFFSET); /* the sum wraps to 0 */
    BAD(a_offset, UINT64_C(1) << 63, A_OFFSET);
    BAD(a_stride_bytes, GEMMD_STRIDE_MAX, A_OFFSET);
    BAD(c_offset, arena, C_OFFSET);
    BAD(c_offset, arena - c_span + 4, C_OFFSET);
    BAD(c_offset, UINT64_MAX - 3, C_OFFSET);
    BAD(c_offset, UINT64_MAX - c_span + 1, C_OFFSET);
    BAD(c_offset, C_AT + 1, C_OFFSET); /* misaligned for f32 */
    BAD(c_offset, C_AT + 2, C_OFFSET);
    BAD(c_stride_bytes, GEMMD_STRIDE_MAX, C_OFFSET);
    BAD(m, GEMMD_M_MAX, A_OFFSET);
    BAD(c_offset, 0, OVERLAP);
    BAD(c_offset, 116, OVERLAP); /* the last bytes of A */
    BAD(a_offset, C_AT + c_span - 1, OVERLAP);
    BAD(a_offset, C_AT - a_span + 1, OVERLAP);
    /* The very edges are allowed. */
    sqe = good_sqe(&scene);
    sqe.c_offset = 120;
    memcpy(scene.raw.arena + arena - a_span, scene.raw.arena, a_span);
    sqe.a_offset = arena - a_span;
    raw_submit(&scene.raw, &sqe);
    assert_true(raw_complete(&scene.raw, &cqe, true, 10000));
    assert_int_equal(cqe.status, GEMMD_STATUS_OK);
    assert_memory_equal(scene.raw.arena + 120, scene.wanted, c_span);
    raw_close(&scene.raw);
}

/* Many bad and good ones in one ring: each completes once, with its own status, in any order. */
static void test_mixture(void **state)
{
    struct scene scene;
    uint64_t seed = 31;

    (void)state;
    open_scene(&scene);
    for (int round = 0; round < 500; round++) {
        int wanted[8];
        unsigned seen = 0;

        for (uint64_t i = 0; i < 8; i++) {
            struct gemmd_sqe sqe = good_sqe(&scene);

            sqe.user_data = i;
            wanted[i] = GEMMD_STATUS_OK;
            switch (random_next(&seed) % 4) {
            case 0:
                sqe.op = (uint8_t)(3 + random_next(&seed) % 253);
                wanted[i] = GEMMD_STATUS_OP;
                break;
            case 1:
                sqe.a_offset = random_next(&seed) | ARENA;
                wanted[i] = GEMMD_STATUS_A_OFFSET;
                break;
            default:
                break;
            }
            raw_submit(&scene.raw, &sqe);
        }
        for (uint64_t i = 0; i < 8; i++) {
            struct gemmd_cqe cqe;

            assert_true(raw_complete(&scene.raw, &cqe, true, 10000));
            assert_true(cqe.user_data < 8 && !(seen & 1u << cqe.user_data));
            seen |= 1u << cqe.user_data;
            assert_int_equal(cqe.status, wanted[cqe.user_data]);
        }
    }
    check_good(&scene);
    raw_close(&scene.raw);
}

/* Noise in every field; whatever the verdict, one completion, and nothing else breaks. */
static void test_noise(void **state)
{
    struct scene scene;
    uint64_t seed = 32;

    (void)state;
    open_scene(&scene);
    for (int i = 0; i < 3000; i++) {
        struct gemmd_sqe sqe;
        struct gemmd_cqe cqe;

        random_bytes(&seed, &sqe, sizeof(sqe));
        if (i % 2) {
            sqe.op = GEMMD_OP_GEMM;
            sqe.flags = 0;
            sqe.reserved0 = 0;
            sqe.residual_offset = 0;
            sqe.priority %= 3;
            sqe.deadline_ns = 0;
            sqe.m %= 8;
            sqe.layer_id = scene.handle.layer_id;
            sqe.layer_gen = scene.handle.layer_gen;
            sqe.a_stride_bytes %= 4 * K;
            sqe.c_stride_bytes %= 4 * C_ROW;
        }
        raw_submit(&scene.raw, &sqe);
        assert_true(raw_complete(&scene.raw, &cqe, true, 10000));
        assert_int_equal(cqe.user_data, sqe.user_data);
        if (i % 2 == 0)
            assert_int_not_equal(cqe.status, GEMMD_STATUS_OK);
    }
    raw_close(&scene.raw);
    assert_true(harness_is_alive(&worker));
    assert_int_equal(layer_case_check(owner, owner_layer, &layer, 7, 8), 0);
}

/* ---- violations on the ring ------------------------------------------------------------------ */

/* A client that sleeps is woken at the end of its session, though it has armed nothing. */
static void sleep_until_ended(const struct gemmd_worker_line *line, uint32_t seen)
{
    struct timespec limit = {.tv_sec = 20};

    while (gemmd_load_acquire(&line->cq_futex) == seen)
        if (syscall(SYS_futex, &line->cq_futex, FUTEX_WAIT, seen, &limit, NULL, 0) < 0)
            assert_int_not_equal(errno, ETIMEDOUT);
    assert_int_equal(gemmd_load_acquire(&line->state), GEMMD_WORKER_ENDED);
}

static void check_cq_head(uint32_t distance)
{
    struct scene victim, violator;
    uint32_t seen;
    struct gemmd_stats before, after;
    struct gemmd_sqe sqe;
    struct gemmd_cqe cqe;

    open_scene(&violator);
    open_scene(&victim);
    assert_int_equal(gemmd_get_stats(owner, &before), 0);
    gemmd_store_release(&violator.raw.client->cq_head, violator.raw.cq.index + distance);
    sqe = good_sqe(&violator);
    /* The worker looks at cq_head once per lap: at the ninth job of a ring of eight. */
    for (int i = 0; i < 8; i++)
        raw_submit(&violator.raw, &sqe);
    for (int i = 0; i < 8; i++)
        assert_true(raw_complete(&violator.raw, &cqe, false, 10000));
    seen = gemmd_load_acquire(&violator.raw.worker->cq_futex);
    raw_submit(&violator.raw, &sqe);
    sleep_until_ended(violator.raw.worker, seen);
    assert_true(raw_is_ended(&violator.raw, 5000));
    raw_close(&violator.raw);
    check_good(&victim);
    raw_close(&victim.raw);
    assert_int_equal(gemmd_get_stats(owner, &after), 0);
    assert_int_equal(after.sessions_violated, before.sessions_violated + 1);
    assert_int_equal(layer_case_check(owner, owner_layer, &layer, 5, distance), 0);
    assert_true(harness_is_alive(&worker));
}

static void test_impossible_cq_head(void **state)
{
    (void)state;
    check_cq_head(1000);
    check_cq_head(UINT32_C(1) << 31);
    check_cq_head(UINT32_MAX - 100); /* behind, by more than the ring holds */
}

/* ---- the library's own checks ---------------------------------------------------------------- */

static void test_library_refuses(void **state)
{
    struct gemmd *other = session_to(worker.socket);
    struct gemmd_layer *other_layer;
    uint8_t *a = gemmd_buffer_alloc(owner, 2 * K), *c = gemmd_buffer_alloc(owner, 2 * C_ROW);
    struct gemmd_job jobs[2], bad;
    struct gemmd_completion done[2];
    uint8_t stack[64];

    (void)state;
    assert_int_equal(gemmd_layer_create(other, &layer.desc, &other_layer), 1);
    gemmd_job_init(&jobs[0], owner_layer, 2, a, c);
    jobs[1] = jobs[0];
    bad = jobs[0];
    bad.a = stack;
    assert_int_equal(gemmd_submit(owner, &bad, 1), -EINVAL);
    assert_non_null(strstr(gemmd_error_text(owner), "a"));
    bad = jobs[0];
    bad.c = stack;
    assert_int_equal(gemmd_submit(owner, &bad, 1), -EINVAL);
    bad = jobs[0];
    bad.layer = other_layer;
    assert_int_equal(gemmd_submit(owner, &bad, 1), -EINVAL);
    bad = jobs[0];
    bad.layer = NULL;
    assert_int_equal(gemmd_submit(owner, &bad, 1), -EINVAL);
    assert_int_equal(gemmd_in_flight(owner), 0);
    jobs[1].a = stack; /* a good one, then a bad one: 1 */
    assert_int_equal(gemmd_submit(owner, jobs, 2), 1);
    assert_int_equal(gemmd_wait(owner, done, 2, 10000), 1);
    assert_int_equal(done[0].status, 0);
    /* What the library leaves to the worker comes back as the job's error. */
    bad = jobs[0];
    bad.a_stride_bytes = K - 1;
    assert_int_equal(gemmd_run(owner, &bad, 10000), -EINVAL);
    bad = jobs[0];
    bad.c_stride_bytes = C_ROW + 2;
    assert_int_equal(gemmd_run(owner, &bad, 10000), -EINVAL);
    bad = jobs[0];
    bad.m = GEMMD_M_MAX + 1;
    assert_int_equal(gemmd_run(owner, &bad, 10000), -EINVAL);
    bad = jobs[0];
    bad.c = (void *)(uintptr_t)bad.a;
    assert_int_equal(gemmd_run(owner, &bad, 10000), -EINVAL);
    bad = jobs[0];
    bad.reserved = 1;
    assert_int_equal(gemmd_run(owner, &bad, 10000), -EINVAL);
    bad = jobs[0];
    bad.residual = c;
    assert_int_equal(gemmd_run(owner, &bad, 10000), -EINVAL); /* the layer has none */
    assert_non_null(strstr(gemmd_error_text(owner), "residual"));
    bad.layer = owner_added;
    bad.residual = NULL;
    assert_int_equal(gemmd_run(owner, &bad, 10000), -EINVAL);
    assert_non_null(strstr(gemmd_error_text(owner), "residual"));
    bad.residual = stack;
    assert_int_equal(gemmd_run(owner, &bad, 10000), -EINVAL);
    bad.residual = c + 4;
    assert_int_equal(gemmd_run(owner, &bad, 10000), -EINVAL);
    bad.residual = c;
    assert_int_equal(gemmd_run(owner, &bad, 10000), 0);
    assert_int_equal(gemmd_run(owner, &jobs[0], 10000), 0);
    gemmd_buffer_free(owner, a);
    gemmd_buffer_free(owner, c);
    gemmd_close(&other);
}

static void test_buffers(void **state)
{
    size_t before = gemmd_arena_bytes_free(owner), arena = gemmd_arena_bytes(owner);
    void *buffers[16];

    (void)state;
    assert_null(gemmd_buffer_alloc(owner, 0));
    assert_true(strlen(gemmd_error_text(owner)) > 0);
    assert_null(gemmd_buffer_alloc(owner, arena + 1));
    assert_true(strlen(gemmd_error_text(owner)) > 0);
    assert_null(gemmd_buffer_alloc(owner, SIZE_MAX));
    for (int i = 0; i < 16; i++) {
        buffers[i] = gemmd_buffer_alloc(owner, 1000);
        assert_non_null(buffers[i]);
        assert_int_equal((uintptr_t)buffers[i] % 64, 0);
        memset(buffers[i], i, 1000);
    }
    for (int i = 0; i < 16; i++) /* nobody has written into another's */
        for (int j = 0; j < 1000; j++)
            assert_int_equal(((uint8_t *)buffers[i])[j], i);
    assert_true(gemmd_arena_bytes_free(owner) <= before - 16000);
    for (int i = 0; i < 16; i++)
        gemmd_buffer_free(owner, buffers[(i * 5) % 16]);
    assert_int_equal(gemmd_arena_bytes_free(owner), before);
    buffers[0] = gemmd_buffer_alloc(owner, before); /* whole again */
    assert_non_null(buffers[0]);
    gemmd_buffer_free(owner, buffers[0]);
    gemmd_buffer_free(owner, NULL);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, N, K, 13);
    layer.desc.name = "job";
    layer_case_init(&layer_u8, N, K, GEMMD_TYPE_U8, GEMMD_TYPE_U8, GEMMD_TYPE_NONE,
                    GEMMD_ACTIVATION_NONE, false, 14);
    layer_added = layer;
    layer_added.desc.name = NULL;
    layer_added.desc.residual_type = GEMMD_TYPE_F32;
    harness_start(&worker, NULL, NULL);
    owner = session_to(worker.socket);
    REQUIRE(owner != NULL);
    REQUIRE(gemmd_layer_create(owner, &layer.desc, &owner_layer) == 0);
    REQUIRE(gemmd_layer_create(owner, &layer_u8.desc, &owner_u8) == 0);
    REQUIRE(gemmd_layer_create(owner, &layer_added.desc, &owner_added) == 0);
    REQUIRE(gemmd_layer_residual_type(owner_added) == GEMMD_TYPE_F32);
    REQUIRE(gemmd_layer_residual_type(owner_layer) == GEMMD_TYPE_NONE);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    gemmd_close(&owner);
    layer_case_fini(&layer);
    layer_case_fini(&layer_u8);
    harness_stop(&worker);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_offsets),
        cmocka_unit_test(test_mixture),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_impossible_cq_head),
        cmocka_unit_test(test_library_refuses),
        cmocka_unit_test(test_buffers),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
