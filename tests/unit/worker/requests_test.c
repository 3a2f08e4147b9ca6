/*
 * Clients' control messages, handed to the handlers one by one: requests that come in the wrong
 * state, limits, weights that have changed in memory, and commits that wait for one another.
 */
#include "requests_scene.h"

static void damage(struct layer *layer)
{
    assert_int_equal(pool_write_begin(control->config.pool, layer->memory), 0);
    ((char *)layer->memory)[7] ^= 4;
    assert_int_equal(pool_write_end(control->config.pool, layer->memory), 0);
}

/* ---- sessions without rings ------------------------------------------------------------------ */

static void test_control_only(void **state)
{
    struct session *session = join(0, STRANGER, true);
    struct gemmd_layer_image parts;
    char *image;
    struct gemmd_msg_layer_create create = description(16, 1, "", &parts, &image);
    struct gemmd_msg_wake_fd wake_fd;
    struct gemmd_msg_layer_close close_it;

    (void)state;
    free(image);
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CREATE, &create), GEMMD_STATUS_STATE);
    assert_int_equal(ask(session, GEMMD_MSG_WAKE_FD, &wake_fd), GEMMD_STATUS_STATE);
    make_layer(16, 1, "there");
    assert_int_equal(open_by_name(session, "there"), GEMMD_STATUS_OK);
    close_it.layer_id = answer.reply.layer.layer_id;
    close_it.layer_gen = answer.reply.layer.layer_gen;
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CLOSE, &close_it), GEMMD_STATUS_OK);
    assert_int_equal(session->layer_count, 0);
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CLOSE, &close_it), GEMMD_STATUS_LAYER);
}

/* ---- handles --------------------------------------------------------------------------------- */

static void test_handles(void **state)
{
    struct session *session = join(0, STRANGER, true);
    struct gemmd_msg_layer_close close_it = {.layer_id = 3};

    (void)state;
    make_layer(16, 1, "there");
    session->ring.layers[0].gen = UINT32_MAX; /* 0 stands for "none": it is left out */
    for (uint32_t i = 0; i < GEMMD_SESSION_LAYERS_MAX; i++) {
        assert_int_equal(open_by_name(session, "there"), GEMMD_STATUS_OK);
        assert_int_equal(answer.reply.layer.layer_id, i);
        assert_int_equal(answer.reply.layer.layer_gen, 1);
    }
    assert_int_equal(open_by_name(session, "there"), GEMMD_STATUS_LAYERS_FULL);
    close_it.layer_gen = 2;
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CLOSE, &close_it), GEMMD_STATUS_LAYER_STALE);
    close_it.layer_gen = 1;
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CLOSE, &close_it), GEMMD_STATUS_OK);
    assert_int_equal(open_by_name(session, "there"), GEMMD_STATUS_OK);
    assert_int_equal(answer.reply.layer.layer_id, 3);
    assert_int_equal(answer.reply.layer.layer_gen, 2);
}

/* ---- creation -------------------------------------------------------------------------------- */

static void test_attaching(void **state)
{
    struct session *session = join(0, 0, false);
    struct gemmd_layer_image parts;
    char *image;
    struct gemmd_msg_layer_create create = description(16, 1, "other", &parts, &image);
    struct layer *other;

    (void)state;
    free(image);
    make_layer(16, 1, "");
    other = make_layer(16, 2, "other");
    layer_reference(control->config.layers, other);
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CREATE, &create), GEMMD_STATUS_NAME_TAKEN);
    assert_int_equal(stats.layers_attached, 0);
    memset(create.name, 0, sizeof(create.name));
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CREATE, &create), GEMMD_STATUS_OK);
    assert_int_not_equal(answer.reply.layer.layer_gen, 0);
    assert_int_equal(stats.layers_attached, 1);
    /* The same hash and another description: an upload, whose hash will be looked at. */
    create.desc.c_scale = 2;
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CREATE, &create), GEMMD_STATUS_OK);
    assert_int_equal(answer.reply.layer.layer_gen, 0);
    assert_non_null(session->upload.data);
    for (uint32_t i = session->layer_count; i < GEMMD_SESSION_LAYERS_MAX; i++)
        assert_int_equal(open_by_name(session, "other"), GEMMD_STATUS_OK);
    create.desc.c_scale = 1;
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CREATE, &create), GEMMD_STATUS_LAYERS_FULL);
    assert_null(session->upload.data);
    assert_int_equal(control->staging_bytes, 0);
    layer_release(control->config.layers, other);
}

static void test_memory_limits(void **state)
{
    struct session *session = join(0, 0, false);
    struct gemmd_layer_image parts;
    char *image;
    struct gemmd_msg_layer_create create = description(16, 1, "", &parts, &image);

    (void)state;
    free(image);
    memory_is_short = true;
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CREATE, &create), GEMMD_STATUS_NO_MEMORY);
    memory_is_short = false;
    assert_null(session->upload.data);
    create.desc.n = 1 << 17; /* beyond the pool */
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CREATE, &create), GEMMD_STATUS_POOL_FULL);
    assert_int_equal(control->staging_bytes, 0);
}

/* ---- weights that change in memory ----------------------------------------------------------- */

/* Another worker left it, and not as it was: nobody gets it, whoever has it loses it. */
static void test_changed_weights(void **state)
{
    struct session *session = join(0, 0, false);
    struct gemmd_layer_image parts;
    char *image;
    struct gemmd_msg_layer_create create = description(16, 1, "", &parts, &image);
    struct layer *layer = make_layer(16, 1, "there");

    (void)state;
    free(image);
    assert_int_equal(open_by_name(session, "there"), GEMMD_STATUS_OK);
    layer->unverified = true;
    damage(layer);
    assert_int_equal(open_by_name(session, "there"), GEMMD_STATUS_NAME_UNKNOWN);
    assert_int_equal(session->layer_count, 0);
    assert_int_equal(layers_count(control->config.layers), 0);

    layer = make_layer(16, 1, "there");
    layer->unverified = true;
    damage(layer);
    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CREATE, &create), GEMMD_STATUS_OK);
    assert_int_equal(answer.reply.layer.layer_gen, 0); /* its bytes are asked for */
    assert_int_equal(layers_count(control->config.layers), 0);
}

/* A checked result was wrong: the layer goes if it is the weights' fault. */
static void test_suspects(void **state)
{
    struct layer *good = make_layer(16, 1, "good"), *bad = make_layer(16, 2, "bad");

    (void)state;
    good->suspect = bad->suspect = true;
    damage(bad);
    requests_guard_layers(control, false); /* no fault was counted: nobody is looked at */
    assert_true(good->suspect && bad->suspect);
    stats.verify_faults = 2;
    requests_guard_layers(control, false);
    assert_false(good->suspect);
    assert_ptr_equal(layers_find_name(control->config.layers, "good"), good);
    assert_null(layers_find_name(control->config.layers, "bad"));
    damage(good);
    requests_guard_layers(control, false); /* not idle, nothing unverified */
    assert_ptr_equal(layers_find_name(control->config.layers, "good"), good);
    requests_guard_layers(control, true);
    assert_null(layers_find_name(control->config.layers, "good"));
}

/* ---- commits --------------------------------------------------------------------------------- */

/* An upload of 5 MiB, all there, in the state before its commit. */
static void upload(struct session *session, uint8_t value)
{
    struct gemmd_layer_image parts;
    char *image;
    struct gemmd_msg_layer_create create = description(5120, value, "", &parts, &image);

    assert_int_equal(ask(session, GEMMD_MSG_LAYER_CREATE, &create), GEMMD_STATUS_OK);
    assert_non_null(session->upload.data);
    memcpy(session->upload.data, image, parts.bytes);
    session->upload.received = parts.bytes;
    free(image);
}

static struct session *next_answer(void)
{
    struct session *session;

    do {
        helper_wait(control->helper);
        session = requests_commit_on(control, &answer);
    } while (!session);
    return session;
}

/* First come, first served, whatever the places in the table. */
static void test_waiting_commits(void **state)
{
    struct session *sessions[4];
    struct gemmd_msg_layer_commit commit;

    (void)state;
    for (uint32_t i = 0; i < 4; i++) {
        sessions[i] = join(i, 0, false);
        upload(sessions[i], (uint8_t)(i + 1));
    }
    for (int i = 3; i >= 0; i--) {
        assert_int_equal(ask(sessions[i], GEMMD_MSG_LAYER_COMMIT, &commit), GEMMD_STATUS_OK);
        assert_true(answer.later);
    }
    leave(sessions[2]); /* while it waits */
    assert_ptr_equal(next_answer(), sessions[3]);
    assert_int_equal(answer.reply.header.status, GEMMD_STATUS_OK);
    assert_ptr_equal(next_answer(), sessions[1]);
    assert_int_equal(answer.reply.header.status, GEMMD_STATUS_OK);
    assert_ptr_equal(next_answer(), sessions[0]);
    assert_int_equal(answer.reply.header.status, GEMMD_STATUS_OK);
    assert_int_equal(layers_count(control->config.layers), 3);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        TEST(test_control_only),    TEST(test_handles),  TEST(test_attaching),
        TEST(test_memory_limits),   TEST(test_changed_weights),
        TEST(test_suspects),        TEST(test_waiting_commits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
