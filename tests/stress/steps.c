/* See steps.h. */
#include "tests/stress/steps.h"

#include <string.h>
#include <unistd.h>

#include "tests/e2e/raw.h"
#include "tests/harness.h"

/* Of a layer that is uploaded, but never made. */
#define N 32
#define K 64

/* The step is reached: says so, and waits for the end. */
static void stand_still(const struct victim *victim)
{
    REQUIRE(write(victim->fd, "!", 1) == 1);
    for (;;)
        pause();
}

static void stop_at(const struct victim *victim, enum step step)
{
    if (victim->step == step)
        stand_still(victim);
}

/* Connected, mapped, live. */
static void shake_hands(const struct victim *victim, struct raw *raw)
{
    struct gemmd_msg_hello hello = raw_hello(8, 1 << 16);
    struct gemmd_msg_mapped mapped;
    struct gemmd_msg_mapped_reply reply;

    memset(raw, 0, sizeof(*raw));
    if (victim->step <= HELLO_SENT) {
        raw->fd = raw_connect(victim->socket);
        stop_at(victim, CONNECTED);
        REQUIRE(raw_send(raw->fd, &hello, sizeof(hello), NULL, 0));
        stop_at(victim, HELLO_SENT);
    }
    if (victim->step == SEGMENTS_RECEIVED) {
        int fds[GEMMD_HELLO_FD_COUNT];
        unsigned count;

        raw->fd = raw_connect(victim->socket);
        REQUIRE(raw_send(raw->fd, &hello, sizeof(hello), NULL, 0));
        REQUIRE(raw_receive(raw->fd, &raw->hello, sizeof(raw->hello), fds, &count, 10000) > 0);
        stop_at(victim, SEGMENTS_RECEIVED);
    }
    raw_open_mapping(raw, victim->socket, 8, 1 << 16);
    stop_at(victim, SEGMENTS_MAPPED);
    mapped.header = raw_header(raw, GEMMD_MSG_MAPPED, sizeof(mapped));
    REQUIRE(raw_send(raw->fd, &mapped, sizeof(mapped), NULL, 0));
    stop_at(victim, MAPPED_SENT);
    REQUIRE(raw_receive(raw->fd, &reply, sizeof(reply), NULL, NULL, 10000) == sizeof(reply));
    REQUIRE(reply.header.status == GEMMD_STATUS_OK);
    stop_at(victim, LIVE);
}

/* An upload that nobody else makes; its hash is wrong, so that no layer comes of it. */
static void upload(const struct victim *victim, struct raw *raw)
{
    struct gemmd_msg_layer_create create = {
        .header = raw_header(raw, GEMMD_MSG_LAYER_CREATE, sizeof(create)),
        .desc = {.n = N, .k = K, .a_type = GEMMD_ABI_TYPE_U8, .c_type = GEMMD_ABI_TYPE_F32,
                 .scale_count = 1, .a_scale = 1.0f, .c_scale = 1.0f,
                 .b_type = GEMMD_ABI_TYPE_S8},
        .content_id = {(uint64_t)getpid(), 1},
    };
    struct gemmd_msg_layer_data data = {.arena_offset = 0, .bytes = 64};
    struct gemmd_msg_layer_commit commit;
    struct gemmd_msg_layer_data_reply data_reply;
    struct gemmd_msg_layer_reply reply;

    REQUIRE(raw_call(raw, &create, &reply, sizeof(reply)) == GEMMD_STATUS_OK);
    stop_at(victim, UPLOAD_OPEN);
    data.header = raw_header(raw, GEMMD_MSG_LAYER_DATA, sizeof(data));
    REQUIRE(raw_call(raw, &data, &data_reply, sizeof(data_reply)) == GEMMD_STATUS_OK);
    stop_at(victim, UPLOAD_HALF);
    commit.header = raw_header(raw, GEMMD_MSG_LAYER_COMMIT, sizeof(commit));
    REQUIRE(raw_send(raw->fd, &commit, sizeof(commit), NULL, 0));
    stop_at(victim, COMMIT_SENT);
    REQUIRE(raw_receive(raw->fd, &reply, sizeof(reply), NULL, NULL, 10000) > 0);
}

static void submit(const struct victim *victim, struct raw *raw, const struct gemmd_sqe *sqe)
{
    struct gemmd_cqe cqe;

    if (victim->step == SLOT_HALF_WRITTEN) {
        memcpy(raw->sq.slots, sqe, 56);
        stand_still(victim);
    }
    gemmd_sq_push(&raw->sq, sqe);
    stop_at(victim, SUBMITTED);
    raw_ring(raw);
    stop_at(victim, RUNG);
    if (victim->step == RING_FULL_OF_LARGE_JOBS || victim->step == CQ_FULL) {
        for (int i = 1; i < 8; i++)
            raw_submit(raw, sqe);
        stop_at(victim, RING_FULL_OF_LARGE_JOBS);
        for (int i = 0; i < 8; i++)
            REQUIRE(raw_complete(raw, &cqe, false, 20000));
        gemmd_sq_push(&raw->sq, sqe); /* beyond what may be in flight */
        stop_at(victim, CQ_FULL);
    }
}

static void sleep_on_it(const struct victim *victim, struct raw *raw)
{
    uint32_t epoch = 0, seen;
    struct gemmd_cqe cqe;

    seen = gemmd_wake_arm(raw->client, &epoch, raw->worker, raw->cq.index + 2);
    (void)seen;
    stop_at(victim, WAKE_ARMED);
    if (victim->step == ASLEEP)
        stand_still(victim);
    gemmd_wake_disarm(raw->client);
    REQUIRE(raw_complete(raw, &cqe, true, 20000));
}

int steps_run(void *argument)
{
    const struct victim *victim = argument;
    struct gemmd_msg_layer_close close_message;
    struct gemmd_msg_layer_reply handle;
    struct gemmd_sqe sqe;
    struct raw raw;

    shake_hands(victim, &raw);
    if (victim->step <= COMMIT_SENT)
        upload(victim, &raw);
    raw_open_layer(&raw, "victim", &handle);
    stop_at(victim, LAYER_OPEN);
    sqe = (struct gemmd_sqe){.op = GEMMD_OP_GEMM,
                             .m = victim->step == RING_FULL_OF_LARGE_JOBS ? 250 : 1,
                             .layer_id = handle.layer_id,
                             .layer_gen = handle.layer_gen,
                             .c_offset = 1 << 15,
                             .a_stride_bytes = handle.desc.k,
                             .c_stride_bytes = handle.desc.n * 4};
    submit(victim, &raw, &sqe);
    stop_at(victim, COMPLETION_UNREAD);
    sleep_on_it(victim, &raw);
    close_message.header = raw_header(&raw, GEMMD_MSG_LAYER_CLOSE, sizeof(close_message));
    close_message.layer_id = handle.layer_id;
    close_message.layer_gen = handle.layer_gen;
    REQUIRE(raw_send(raw.fd, &close_message, sizeof(close_message), NULL, 0));
    stop_at(victim, LAYER_CLOSE_SENT);
    return 1;
}
