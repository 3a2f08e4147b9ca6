/*
 * Commits of large images are made into layers beside the control thread: other clients are served
 * meanwhile, and the committing client, the worker or its successor may come and go.
 */
#include "tests/harness.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"

/* 64 MiB of weights (8 under a sanitizer), all zeros but the first, so that nothing is made. */
enum { K = 16384, PIECE = 4 << 20 };
static uint32_t N;
#define TRIES 20

static const char *const arguments[] = {"--pool-bytes", "512M", NULL};

static struct gemmd_layer_desc_abi desc(void)
{
    return (struct gemmd_layer_desc_abi){.n = N,
                                         .k = K,
                                         .a_type = GEMMD_ABI_TYPE_U8,
                                         .c_type = GEMMD_ABI_TYPE_F32,
                                         .scale_count = 1,
                                         .a_scale = 1.0f,
                                         .c_scale = 1.0f,
                                         .b_type = GEMMD_ABI_TYPE_S8};
}

static uint64_t image_bytes(void)
{
    return (uint64_t)N * K + 64; /* weights, one scale */
}

/* As large as the image. */
static void fill_image(uint8_t *image, uint8_t first)
{
    const float scale = 0.5f;

    image[0] = first;
    memcpy(image + (uint64_t)N * K, &scale, sizeof(scale));
}

/* Everything but the commit. */
static void upload(struct raw *raw, uint8_t first, const char *name)
{
    struct gemmd_msg_layer_create create = {
        .header = raw_header(raw, GEMMD_MSG_LAYER_CREATE, sizeof(create)), .desc = desc()};
    struct gemmd_msg_layer_reply reply;
    uint64_t bytes = image_bytes();
    uint8_t *image = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    XXH3_state_t state;
    XXH128_hash_t hash;

    REQUIRE(image != MAP_FAILED);
    fill_image(image, first);
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset(&state);
    XXH3_128bits_update(&state, &create.desc, sizeof(create.desc));
    XXH3_128bits_update(&state, image, bytes);
    hash = XXH3_128bits_digest(&state);
    create.content_id[0] = hash.low64;
    create.content_id[1] = hash.high64;
    memcpy(create.name, name, strlen(name));
    REQUIRE(raw_call(raw, &create, &reply, sizeof(reply)) == GEMMD_STATUS_OK);
    REQUIRE(reply.layer_gen == 0);
    for (uint64_t offset = 0; offset < bytes; offset += PIECE) {
        uint64_t piece = bytes - offset < PIECE ? bytes - offset : PIECE;
        struct gemmd_msg_layer_data data = {
            .header = raw_header(raw, GEMMD_MSG_LAYER_DATA, sizeof(data)),
            .image_offset = offset,
            .bytes = piece};
        struct gemmd_msg_layer_data_reply got;

        memcpy(raw->arena, image + offset, piece);
        REQUIRE(raw_call(raw, &data, &got, sizeof(got)) == GEMMD_STATUS_OK);
    }
    munmap(image, bytes);
}

static void send_commit(struct raw *raw)
{
    struct gemmd_msg_layer_commit commit = {
        .header = raw_header(raw, GEMMD_MSG_LAYER_COMMIT, sizeof(commit))};

    REQUIRE(raw_send(raw->fd, &commit, sizeof(commit), NULL, 0));
}

static void take_commit(struct raw *raw, struct gemmd_msg_layer_reply *out)
{
    REQUIRE(raw_receive(raw->fd, out, sizeof(*out), NULL, NULL, 60000) == sizeof(*out));
    assert_int_equal(out->header.status, GEMMD_STATUS_OK);
    assert_int_equal(out->header.type, GEMMD_MSG_LAYER_COMMIT | GEMMD_REPLY);
    assert_int_not_equal(out->layer_gen, 0);
}

static bool is_answered(const struct raw *raw)
{
    struct pollfd poll_fd = {.fd = raw->fd, .events = POLLIN};

    return poll(&poll_fd, 1, 0) == 1;
}

/* Connects, creates a small layer, and runs a job on it. */
static void be_served(const char *socket, uint64_t seed)
{
    struct gemmd *session = session_with(socket, 64, 1 << 20, -1);
    struct gemmd_layer *handle;
    struct layer_case layer;

    assert_non_null(session);
    layer_case_plain(&layer, 64, 64, seed);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    assert_int_equal(layer_case_check(session, handle, &layer, 2, seed), 0);
    gemmd_close(&session);
    layer_case_fini(&layer);
}

static struct gemmd_info info_of(const char *socket)
{
    struct gemmd *session = session_to(socket);
    struct gemmd_info info;

    assert_non_null(session);
    assert_int_equal(gemmd_get_info(session, &info), 0);
    gemmd_close(&session);
    return info;
}

static void unload(const char *socket)
{
    struct gemmd *session = session_to(socket);

    gemmd_layers_unload(session, "big", NULL);
    gemmd_close(&session);
}

/* A whole life of another client lies between a commit and its answer.  On a machine that keeps the
 * other client from running it may come too late; a worker that packs on its control thread cannot
 * pass once. */
static void test_others_are_served(void **state)
{
    struct harness_worker worker;
    unsigned served = 0, tries = 0;

    (void)state;
    harness_start(&worker, arguments, NULL);
    for (; tries < TRIES && !served; tries++) {
        struct gemmd_msg_layer_reply reply;
        struct raw raw;

        raw_open(&raw, worker.socket, 8, PIECE);
        upload(&raw, (uint8_t)(1 + tries), "big");
        send_commit(&raw);
        be_served(worker.socket, 100 + tries);
        served += !is_answered(&raw);
        take_commit(&raw, &reply);
        assert_true(reply.weight_bytes_new >= (uint64_t)N * K);
        raw_close(&raw);
        unload(worker.socket);
    }
    print_message("another client was served before a commit's answer, at try %u\n", tries);
    assert_int_equal(served, 1);
    harness_stop(&worker);
}

/* Two commits at once: one after the other.  What the client says after its commit is heard after
 * the answer, and the second one's bytes are the first one's. */
static void test_order(void **state)
{
    struct gemmd_msg_layer_reply replies[2];
    struct harness_worker worker;
    struct raw raw[2];

    (void)state;
    harness_start(&worker, arguments, NULL);
    for (int i = 0; i < 2; i++) {
        raw_open(&raw[i], worker.socket, 8, PIECE);
        upload(&raw[i], 7, "big");
    }
    for (int i = 0; i < 2; i++) {
        struct gemmd_msg_info info = {.header = raw_header(&raw[i], GEMMD_MSG_INFO, sizeof(info))};

        send_commit(&raw[i]);
        REQUIRE(raw_send(raw[i].fd, &info, sizeof(info), NULL, 0));
    }
    for (int i = 0; i < 2; i++) {
        struct gemmd_msg_info_reply info;

        take_commit(&raw[i], &replies[i]);
        assert_int_equal(raw_receive(raw[i].fd, &info, sizeof(info), NULL, NULL, 60000),
                         sizeof(info));
        assert_int_equal(info.header.type, GEMMD_MSG_INFO | GEMMD_REPLY);
        raw_close(&raw[i]);
    }
    assert_true(replies[0].weight_bytes_new + replies[1].weight_bytes_new >= (uint64_t)N * K);
    assert_true(replies[0].weight_bytes_new == 0 || replies[1].weight_bytes_new == 0);
    assert_memory_equal(replies[0].content_id, replies[1].content_id, 16);
    harness_stop(&worker);
}

/* The client ends at some moment of its commit: nothing is left. */
static void test_death_of_the_client(void **state)
{
    struct harness_worker worker;
    struct gemmd_info before, after;
    int tries = 0;

    (void)state;
    harness_start(&worker, arguments, NULL);
    before = info_of(worker.socket);
    for (unsigned i = 0; i < 5; i++) {
        char name[16];
        struct raw raw;

        /* Of its own: who loses a name to another stays, unused, where no unload finds it. */
        snprintf(name, sizeof(name), "big/%u", i);
        raw_open(&raw, worker.socket, 8, PIECE);
        upload(&raw, (uint8_t)(50 + i), name);
        send_commit(&raw);
        usleep(i * 20000);
        raw_close(&raw);
        be_served(worker.socket, 200 + i);
    }
    do { /* committed ones may be there, unused, until they are unloaded; the last may be at work */
        unload(worker.socket);
        usleep(10000);
        after = info_of(worker.socket);
    } while (after.pool_bytes_used > before.pool_bytes_used + (UINT64_C(1) << 20) &&
             ++tries < 2000);
    assert_true(after.pool_bytes_used <= before.pool_bytes_used + (UINT64_C(1) << 20));
    assert_true(after.layer_bytes <= before.layer_bytes + (UINT64_C(1) << 20));
    assert_int_equal(after.session_count, before.session_count);
    assert_true(harness_is_alive(&worker));
    harness_stop(&worker);
}

/* An orderly end, and a kill, in the middle of a commit. */
static void test_end_of_the_worker(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        struct harness_worker worker;
        struct raw raw[2];

        harness_start(&worker, arguments, NULL);
        for (unsigned j = 0; j < 2; j++) {
            raw_open(&raw[j], worker.socket, 8, PIECE);
            upload(&raw[j], (uint8_t)(1 + j), "");
            send_commit(&raw[j]);
        }
        usleep(i * 20000);
        if (i < 3) {
            harness_stop(&worker);
        } else {
            harness_kill(&worker);
            harness_discard(&worker);
        }
        for (unsigned j = 0; j < 2; j++)
            raw_close(&raw[j]);
    }
}

/* A successor waits for the commit in hand, whose layer it then has; the one that waits in the
 * queue ends with its session. */
static void test_take_over(void **state)
{
    struct gemmd_msg_layer_reply reply;
    struct harness_worker worker;
    struct gemmd *session;
    struct gemmd_layer *handle;
    struct raw raw;
    pid_t pid;

    (void)state;
    machine_adopt_orphans();
    harness_start(&worker, arguments, NULL);
    raw_open(&raw, worker.socket, 8, PIECE);
    upload(&raw, 9, "big");
    send_commit(&raw);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        execl(getenv("GEMMD_TEST_WORKER"), "gemmd", "--take-over", "--pool-bytes", "512M",
              "--socket", worker.socket, (char *)NULL);
        _exit(97);
    }
    take_commit(&raw, &reply);
    assert_int_equal(harness_join(worker.pid, 30000), 0); /* the old one has drained */
    worker.pid = pid;
    session = session_with(worker.socket, 8, 1 << 20, -1);
    assert_non_null(session);
    assert_int_equal(gemmd_layer_open(session, "big", &handle), 0);
    assert_int_equal(gemmd_layer_n(handle), N);
    gemmd_close(&session);
    raw_close(&raw);
    harness_stop(&worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_others_are_served),  cmocka_unit_test(test_order),
        cmocka_unit_test(test_death_of_the_client), cmocka_unit_test(test_end_of_the_worker),
        cmocka_unit_test(test_take_over),
    };

    N = machine_is_sanitized() ? 512 : 4096;
    return HARNESS_RUN(tests, NULL, NULL, 170);
}
