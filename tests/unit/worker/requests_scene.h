/* A control thread's world without its loop and without a dispatcher: sessions whose messages are
 * handed to the handlers one by one.  Everything is static: each test is one program. */
#ifndef GEMMD_TESTS_UNIT_WORKER_REQUESTS_SCENE_H
#define GEMMD_TESTS_UNIT_WORKER_REQUESTS_SCENE_H

#include "unit.h"

#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "worker/requests.h"

#define STRANGER 1001

static struct control *control;
static struct gemmd_stats_page stats;
static struct control_answer answer;

/* ---- faults ---------------------------------------------------------------------------------- */

static bool memory_is_short, calloc_fails;

bool __wrap_memory_is_allowed(uint64_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);

bool __wrap_memory_is_allowed(uint64_t bytes)
{
    (void)bytes;
    return !memory_is_short;
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return calloc_fails ? NULL : __real_calloc(count, bytes);
}

/* ---- the world ------------------------------------------------------------------------------- */

static int open_world(void **state)
{
    const struct pool_config config = {
        .limit_bytes = UINT64_C(64) << 20, .policy = POOL_POLICY_NONE, .node = -1};
    struct layers_config registry = {.kernel = gemm_select(1)};

    (void)state;
    control = calloc(1, sizeof(*control));
    assert_non_null(control);
    memset(&stats, 0, sizeof(stats));
    assert_int_equal(pool_open(&control->config.pool, &config), 0);
    registry.pool = control->config.pool;
    assert_int_equal(layers_open(&control->config.layers, &registry), 0);
    assert_int_equal(handover_open(&control->config.handover, -1), 0);
    assert_int_equal(helper_open(&control->helper), 0);
    control->config.stats = &stats;
    control->received_fd = -1;
    control->listen_fd = control->lock_fd = -1;
    control->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    assert_true(control->epoll_fd >= 0);
    return 0;
}

/* A live session, with rings that no dispatcher looks at unless `control_only`. */
static struct session *join(uint32_t slot, uid_t uid, bool control_only)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = slot};
    struct session *session;
    int ends[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    close(ends[1]);
    session = session_open(slot, slot + 1, ends[0], getpid(), uid);
    assert_non_null(session);
    assert_int_equal(epoll_ctl(control->epoll_fd, EPOLL_CTL_ADD, ends[0], &event), 0);
    session->control_only = control_only;
    session->state = GEMMD_SESSION_LIVE;
    control->sessions[slot] = session;
    return session;
}

static void leave(struct session *session)
{
    control->sessions[session->slot] = NULL;
    control_release_session(control, session);
    session_close(&session);
}

static int close_world(void **state)
{
    (void)state;
    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX; slot++)
        if (control->sessions[slot])
            leave(control->sessions[slot]);
    requests_drop_commit(control);
    helper_close(&control->helper);
    handover_close(&control->config.handover);
    layers_close(&control->config.layers);
    pool_close(&control->config.pool);
    close(control->epoll_fd);
    free(control);
    return 0;
}

static enum gemmd_status ask(struct session *session, uint32_t type, void *request)
{
    struct gemmd_msg_header *header = request;
    enum gemmd_status status;

    *header = (struct gemmd_msg_header){.type = type, .serial = 5};
    status = control_request(control, session, request, &answer);
    if (!answer.later) {
        assert_int_equal(answer.reply.header.status, status);
        assert_int_equal(answer.reply.header.serial, 5);
    }
    if (status != GEMMD_STATUS_OK)
        assert_int_equal(answer.fd_count, 0);
    return status;
}

/* ---- layers ---------------------------------------------------------------------------------- */

/* n x 1024 weights of one value. */
static struct gemmd_msg_layer_create description(uint32_t n, uint8_t value, const char *name,
                                                 struct gemmd_layer_image *parts, char **image)
{
    struct gemmd_msg_layer_create create = {
        .desc = {.n = n, .k = 1024, .a_type = GEMMD_ABI_TYPE_U8, .b_type = GEMMD_ABI_TYPE_S8,
                 .c_type = GEMMD_ABI_TYPE_F32, .scale_count = 1, .a_scale = 1, .c_scale = 1}};
    const float one = 1;

    snprintf(create.name, sizeof(create.name), "%s", name);
    assert_int_equal(gemmd_validate_layer_desc(&create.desc, parts), GEMMD_STATUS_OK);
    *image = aligned_alloc(64, parts->bytes);
    assert_non_null(*image);
    memset(*image, 0, parts->bytes);
    memset(*image, value, parts->weights_bytes);
    memcpy(*image + parts->scales_offset, &one, sizeof(one));
    layer_content_id(&create.desc, *image, parts->bytes, create.content_id);
    return create;
}

/* In the registry, with a name unless "". */
static struct layer *make_layer(uint32_t n, uint8_t value, const char *name)
{
    struct gemmd_layer_image parts;
    struct layer *layer;
    uint64_t bytes_new;
    char *image;
    struct gemmd_msg_layer_create create = description(n, value, name, &parts, &image);

    assert_int_equal(layers_create(control->config.layers, &create.desc, image, create.content_id,
                                   0, &layer, &bytes_new), GEMMD_STATUS_OK);
    free(image);
    assert_int_equal(layers_set_name(control->config.layers, layer, name), GEMMD_STATUS_OK);
    return layer;
}

static enum gemmd_status open_by_name(struct session *session, const char *name)
{
    struct gemmd_msg_layer_open open = {.name = ""};

    snprintf(open.name, sizeof(open.name), "%s", name);
    return ask(session, GEMMD_MSG_LAYER_OPEN, &open);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_world, close_world)

#endif
