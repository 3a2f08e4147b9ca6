/* What operators may ask and strangers may not: loading, unloading, pinning, taking over, seeing
 * others' sessions; and what operators must not say. */
#include "requests_scene.h"

static int any_fd(void)
{
    int fd = memfd_create("requests-test", MFD_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static void test_strangers(void **state)
{
    struct session *stranger = join(0, STRANGER, true);
    struct gemmd_msg_layer_load load = {.prefix = "p"};
    struct gemmd_msg_layer_unload unload = {.name = "mine"};
    struct gemmd_msg_layer_pin pin = {.name = "mine", .pin = 1};
    struct gemmd_msg_list list = {.index = 0};
    struct gemmd_msg_takeover_commit commit = {.generation = 1};
    struct layer *layer = make_layer(16, 1, "mine");
    int fd = any_fd();

    (void)state;
    if (geteuid() == STRANGER)
        skip();
    control->received_fd = fd;
    assert_int_equal(ask(stranger, GEMMD_MSG_LAYER_LOAD, &load), GEMMD_STATUS_ADMIN);
    assert_int_equal(control->received_fd, -1);
    assert_int_equal(fcntl(fd, F_GETFD), -1); /* closed */
    assert_int_equal(ask(stranger, GEMMD_MSG_LAYER_UNLOAD, &unload), GEMMD_STATUS_ADMIN);
    assert_int_equal(ask(stranger, GEMMD_MSG_LAYER_PIN, &pin), GEMMD_STATUS_ADMIN);
    assert_int_equal(ask(stranger, GEMMD_MSG_TAKEOVER, &list), GEMMD_STATUS_ADMIN);
    assert_int_equal(ask(stranger, GEMMD_MSG_TAKEOVER_COMMIT, &commit), GEMMD_STATUS_ADMIN);
    assert_ptr_equal(layers_find_name(control->config.layers, "mine"), layer);
    assert_false(layer->pinned);
    assert_null(control->successor);
    assert_false(control->handed_over);
}

/* Of others' sessions a stranger sees nothing, not even how many there are. */
static void test_who_sees_whom(void **state)
{
    struct session *root = join(0, 0, true), *stranger = join(1, STRANGER, true);
    struct gemmd_msg_list list = {.index = 0};

    (void)state;
    join(2, STRANGER + 1, true);
    if (geteuid() == STRANGER)
        skip();
    assert_int_equal(ask(stranger, GEMMD_MSG_SESSIONS, &list), GEMMD_STATUS_OK);
    assert_int_equal(answer.reply.sessions.uid, STRANGER);
    list.index = 1;
    assert_int_equal(ask(stranger, GEMMD_MSG_SESSIONS, &list), GEMMD_STATUS_INDEX);
    list.index = 2;
    assert_int_equal(ask(root, GEMMD_MSG_SESSIONS, &list), GEMMD_STATUS_OK);
    assert_int_equal(answer.reply.sessions.uid, STRANGER + 1);
    list.reserved = 1;
    assert_int_equal(ask(root, GEMMD_MSG_SESSIONS, &list), GEMMD_STATUS_RESERVED);
    assert_int_equal(ask(root, GEMMD_MSG_LAYERS, &list), GEMMD_STATUS_RESERVED);
    list.reserved = list.index = 0;
    assert_int_equal(ask(root, GEMMD_MSG_LAYERS, &list), GEMMD_STATUS_INDEX);
}

static void test_loads(void **state)
{
    struct session *operator = join(0, geteuid(), true);
    struct gemmd_msg_layer_load load = {.prefix = ""};
    struct loading *other = (struct loading *)&stats; /* somebody's load is going on */

    (void)state;
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_LOAD, &load), GEMMD_STATUS_LAYER_FILE);
    memset(load.prefix, 'x', sizeof(load.prefix)); /* not terminated */
    control->received_fd = any_fd();
    assert_int_not_equal(ask(operator, GEMMD_MSG_LAYER_LOAD, &load), GEMMD_STATUS_OK);
    memset(load.prefix, 0, sizeof(load.prefix));
    control->loading = other;
    control->received_fd = any_fd();
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_LOAD, &load), GEMMD_STATUS_BUSY);
    assert_ptr_equal(control->loading, other);
    control->loading = NULL;
    control->received_fd = any_fd(); /* an empty file */
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_LOAD, &load), GEMMD_STATUS_LAYER_FILE);
    assert_non_null(strstr(answer.reply.layer_load.reason, "header: "));
    control->received_fd = any_fd();
    calloc_fails = true;
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_LOAD, &load), GEMMD_STATUS_NO_MEMORY);
    calloc_fails = false;
    assert_string_equal(answer.reply.layer_load.reason,
                        gemmd_status_text_of(GEMMD_STATUS_NO_MEMORY));
    assert_null(control->loading);
    assert_int_equal(control->received_fd, -1);
}

static void test_unload_and_pin(void **state)
{
    struct session *operator = join(0, geteuid(), true);
    struct gemmd_msg_layer_unload unload = {.name = ""};
    struct gemmd_msg_layer_pin pin = {.name = ""};

    (void)state;
    make_layer(16, 1, "there");
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_UNLOAD, &unload), GEMMD_STATUS_NAME);
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_PIN, &pin), GEMMD_STATUS_NAME);
    snprintf(unload.name, sizeof(unload.name), "elsewhere");
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_UNLOAD, &unload), GEMMD_STATUS_NAME_UNKNOWN);
    snprintf(pin.name, sizeof(pin.name), "elsewhere");
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_PIN, &pin), GEMMD_STATUS_NAME_UNKNOWN);
    snprintf(pin.name, sizeof(pin.name), "there");
    pin.pin = 2;
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_PIN, &pin), GEMMD_STATUS_RESERVED);
    pin.pin = 1;
    pin.reserved = 1;
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_PIN, &pin), GEMMD_STATUS_RESERVED);
    pin.reserved = 0;
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_PIN, &pin), GEMMD_STATUS_OK);
    assert_true(layers_find_name(control->config.layers, "there")->pinned);
}

/* A layer that is unloaded while it is open shows as such until it is closed. */
static void test_unloaded_while_open(void **state)
{
    struct session *operator = join(0, geteuid(), true);
    struct gemmd_msg_layer_unload unload = {.name = "there"};
    struct gemmd_msg_list list = {.index = 0};

    (void)state;
    make_layer(16, 1, "there");
    assert_int_equal(open_by_name(operator, "there"), GEMMD_STATUS_OK);
    assert_int_equal(ask(operator, GEMMD_MSG_LAYER_UNLOAD, &unload), GEMMD_STATUS_OK);
    assert_int_equal(ask(operator, GEMMD_MSG_LAYERS, &list), GEMMD_STATUS_OK);
    assert_int_equal(answer.reply.layers.flags, GEMMD_LAYER_UNLOADED);
    assert_int_equal(open_by_name(operator, "there"), GEMMD_STATUS_NAME_UNKNOWN);
}

static void test_takeover(void **state)
{
    struct session *operator = join(0, geteuid(), true), *rival = join(1, geteuid(), true);
    struct gemmd_msg_list list = {.index = 0, .reserved = 1};
    struct gemmd_msg_takeover_commit commit = {.generation = 0};
    uint32_t count;

    (void)state;
    make_layer(16, 1, "there");
    assert_int_equal(ask(operator, GEMMD_MSG_TAKEOVER, &list), GEMMD_STATUS_RESERVED);
    list.reserved = 0;
    control->loading = (struct loading *)&stats;
    assert_int_equal(ask(operator, GEMMD_MSG_TAKEOVER, &list), GEMMD_STATUS_BUSY);
    control->loading = NULL;
    assert_null(control->successor);
    assert_int_equal(ask(operator, GEMMD_MSG_TAKEOVER_COMMIT, &commit), GEMMD_STATUS_STATE);
    assert_int_equal(ask(operator, GEMMD_MSG_TAKEOVER, &list), GEMMD_STATUS_OK);
    assert_int_equal(answer.fds[0], handover_fd(control->config.handover));
    assert_int_equal(answer.reply.takeover.file_id, 0);
    count = answer.reply.takeover.count;
    assert_int_equal(count, 2); /* the table and one extent */
    assert_int_equal(ask(rival, GEMMD_MSG_TAKEOVER, &list), GEMMD_STATUS_BUSY);
    assert_int_equal(ask(rival, GEMMD_MSG_TAKEOVER_COMMIT, &commit), GEMMD_STATUS_STATE);
    list.index = 1;
    assert_int_equal(ask(operator, GEMMD_MSG_TAKEOVER, &list), GEMMD_STATUS_OK);
    assert_int_not_equal(answer.reply.takeover.file_id, 0);
    list.index = count;
    assert_int_equal(ask(operator, GEMMD_MSG_TAKEOVER, &list), GEMMD_STATUS_INDEX);
    assert_int_equal(ask(operator, GEMMD_MSG_TAKEOVER_COMMIT, &commit), GEMMD_STATUS_CHANGED);
    assert_false(control->handed_over);
    commit.generation = handover_generation(handover_fd(control->config.handover));
    assert_int_equal(ask(operator, GEMMD_MSG_TAKEOVER_COMMIT, &commit), GEMMD_STATUS_OK);
    assert_true(control->handed_over);
    control->successor = NULL;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        TEST(test_strangers),      TEST(test_who_sees_whom), TEST(test_loads),
        TEST(test_unload_and_pin), TEST(test_takeover),      TEST(test_unloaded_while_open),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
