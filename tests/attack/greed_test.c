/*
 * Greed: floods of connections, of descriptors, of violations; sessions that never become one; more
 * sessions and memory than one user may have; no descriptor left.  Each is refused in words, costs
 * the worker nothing that stays, and leaves others what is theirs.
 */
#include "tests/harness.h"

#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/attack/attacks.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

#define MIB  UINT64_C(1048576)
#define IDLE 12

static struct harness_worker worker;
static struct layer_case layer;
static struct gemmd *bystander;
static struct gemmd_layer *bystander_layer;

static void check_bystander(void)
{
    static uint64_t seed;

    assert_true(harness_is_alive(&worker));
    assert_int_equal(layer_case_check(bystander, bystander_layer, &layer, 3, ++seed), 0);
}

static void start_with(const char *const *arguments)
{
    harness_start(&worker, arguments, NULL);
    bystander = session_with(worker.socket, 8, 1 << 16, -1);
    REQUIRE(bystander != NULL);
    layer.desc.name = NULL;
    REQUIRE(gemmd_layer_create(bystander, &layer.desc, &bystander_layer) == -ENOBUFS ||
            bystander_layer);
    if (bystander_layer)
        return;
    gemmd_close(&bystander);
    bystander = session_with(worker.socket, 8, 1 << 18, -1);
    REQUIRE(bystander && gemmd_layer_create(bystander, &layer.desc, &bystander_layer) == 0);
}

static void stop_worker(void)
{
    gemmd_close(&bystander);
    bystander_layer = NULL;
    harness_stop(&worker);
}

/* A hang's bound, not a speed's. */
#define FDS_MS_MAX 20000

static void await_fds(unsigned wanted)
{
    for (int i = 0; i < FDS_MS_MAX && machine_fds(worker.pid) != wanted; i++)
        usleep(1000);
    assert_int_equal(machine_fds(worker.pid), wanted);
}

static int try_connect(uint64_t arena_bytes, struct gemmd **out)
{
    struct gemmd_options options;

    gemmd_options_init(&options);
    options.socket = worker.socket;
    options.arena_bytes = arena_bytes;
    options.ring_entries = 8;
    return gemmd_connect(&options, out);
}

/* ---- floods ---------------------------------------------------------------------------------- */

static void test_connections(void **state)
{
    unsigned before;
    int fds[200];

    (void)state;
    start_with(NULL);
    before = machine_fds(worker.pid);
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 200; i++)
            fds[i] = raw_connect(worker.socket);
        for (int i = 0; i < 200; i++)
            close(fds[i]);
        if (round % 10 == 0)
            check_bystander();
    }
    await_fds(before);
    printf("10000 connections: %u descriptors before and after\n", before);
    check_bystander();
    stop_worker();
}

static void test_descriptors(void **state)
{
    struct gemmd_msg_hello hello = raw_hello(8, 1 << 16);
    unsigned before, refused = 0;

    (void)state;
    start_with(NULL);
    before = machine_fds(worker.pid);
    for (int i = 0; i < 3000; i++) {
        struct gemmd_msg_header reply = {0};
        struct raw raw = {.fd = raw_connect(worker.socket)};

        assert_true(attack_descriptors(raw.fd, &hello, sizeof(hello)));
        if (i % 8 == 0) { /* most do not wait for the answer */
            assert_true(raw_receive(raw.fd, &reply, sizeof(reply), NULL, NULL, 5000) > 0);
            assert_int_equal(reply.status, GEMMD_STATUS_MESSAGE_FDS);
            refused++;
        }
        close(raw.fd);
        if (i % 500 == 0)
            check_bystander();
    }
    await_fds(before);
    printf("3000 messages with 253 descriptors each: %u descriptors before and after\n", before);
    check_bystander();
    stop_worker();
}

/* Ten lines a second and call site, however many violations. */
static void test_log(void **state)
{
    static const char rubbish[64] = "not a message";
    uint64_t before_ns;
    unsigned lines = 0;
    char line[1024];
    double seconds;
    FILE *file;

    (void)state;
    start_with(NULL);
    before_ns = machine_now_ns();
    for (int i = 0; i < 10000; i++) {
        int fd = raw_connect(worker.socket);

        raw_send(fd, rubbish, sizeof(rubbish), NULL, 0);
        close(fd);
    }
    check_bystander();
    seconds = (double)(machine_now_ns() - before_ns) / 1e9;
    file = fopen(worker.log, "re");
    REQUIRE(file != NULL);
    while (fgets(line, sizeof(line), file))
        lines++;
    fclose(file);
    printf("10000 violations in %.2f s: %u lines of log\n", seconds, lines);
    assert_true(lines <= 10 * (unsigned)(seconds + 2) + 10);
    assert_true(lines > 0);
    stop_worker();
}

/* Connections without a hello, and sessions without an acknowledgement, end by themselves. */
static void test_half_open(void **state)
{
    struct raw mapping[8];
    unsigned before;
    int fds[100];

    (void)state;
    start_with(NULL);
    before = machine_fds(worker.pid);
    for (int i = 0; i < 100; i++)
        fds[i] = raw_connect(worker.socket);
    for (int i = 0; i < 8; i++)
        raw_open_mapping(&mapping[i], worker.socket, 8, 1 << 16);
    check_bystander();
    assert_int_equal(machine_fds(worker.pid), before + 100 + 8 * 5);
    await_fds(before);
    assert_int_equal(machine_mappings(worker.pid, "gemmd-arena"), 1);
    for (int i = 0; i < 100; i++)
        close(fds[i]);
    for (int i = 0; i < 8; i++)
        raw_close(&mapping[i]);
    check_bystander();
    stop_worker();
}

/* ---- limits ---------------------------------------------------------------------------------- */

/* No descriptor left: newcomers are told so, nobody spins, and there is room again later. */
static void test_no_descriptors(void **state)
{
    struct gemmd *sessions[64], *more;
    struct rlimit limit;
    unsigned count = 0;
    uint64_t least_ns;
    int idle[IDLE];

    (void)state;
    start_with(NULL);
    limit.rlim_cur = limit.rlim_max = machine_fds(worker.pid) + 23;
    assert_int_equal(prlimit(worker.pid, RLIMIT_NOFILE, &limit, NULL), 0);
    while (count < 64 && try_connect(1 << 16, &sessions[count]) == 0)
        count++;
    printf("%u sessions, then: %s\n", count, gemmd_error_text(NULL));
    assert_in_range(count, 3, 6);
    assert_int_equal(try_connect(1 << 16, &more), -ENOMEM); /* room to ask, not to have */
    for (int i = 0; i < IDLE; i++) /* more than enough: descriptors above the limit are not free */
        idle[i] = raw_connect(worker.socket);
    for (int i = 0; i < 20; i++) { /* not even to ask */
        assert_int_equal(try_connect(1 << 16, &more), -EAGAIN);
        check_bystander();
    }
    least_ns = UINT64_MAX; /* a machine whose CPU is taken away spoils a look, not all of them */
    for (int i = 0; i < 10; i++) {
        uint64_t cpu_ns = machine_cpu_ns(worker.pid);

        usleep(50000);
        cpu_ns = machine_cpu_ns(worker.pid) - cpu_ns;
        least_ns = cpu_ns < least_ns ? cpu_ns : least_ns;
    }
    assert_in_range(least_ns, 0, 5000000);
    assert_true(harness_log_has(&worker, "LimitNOFILE"));
    for (int i = 0; i < IDLE; i++)
        close(idle[i]);
    gemmd_close(&sessions[0]);
    for (int i = 0; i < 1000 && try_connect(1 << 16, &sessions[0]) < 0; i++)
        usleep(1000);
    assert_non_null(sessions[0]);
    for (unsigned i = 0; i < count; i++)
        gemmd_close(&sessions[i]);
    check_bystander();
    stop_worker();
}

/* As another user: opens as many sessions as it gets, and holds them until told to go. */
struct other_user {
    uid_t uid;
    unsigned wanted;
    uint64_t arena_bytes;
    int said_fd, go_fd;
};

static int hold_sessions(void *argument)
{
    const struct other_user *other = argument;
    struct gemmd *sessions[16];
    unsigned count = 0;
    char byte;

    if (setgroups(0, NULL) < 0 || setresgid(other->uid, other->uid, other->uid) < 0 ||
        setresuid(other->uid, other->uid, other->uid) < 0)
        return 98;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* another user's process has lost the harness's tie */
    while (count < other->wanted && try_connect(other->arena_bytes, &sessions[count]) == 0)
        count++;
    REQUIRE(write(other->said_fd, &count, sizeof(count)) == sizeof(count));
    REQUIRE(read(other->go_fd, &byte, 1) == 1);
    return 0;
}

/* How many sessions such a user gets; it holds them until finish_other. */
static unsigned start_other(struct other_user *other, pid_t *pid, int *go_fd)
{
    int said[2], go[2];
    unsigned count;

    REQUIRE(pipe(said) == 0 && pipe(go) == 0);
    other->said_fd = said[1];
    other->go_fd = go[0];
    *pid = harness_fork(hold_sessions, other);
    REQUIRE(read(said[0], &count, sizeof(count)) == sizeof(count));
    close(said[0]);
    close(said[1]);
    close(go[0]);
    *go_fd = go[1];
    return count;
}

static void finish_other(pid_t pid, int go_fd)
{
    REQUIRE(write(go_fd, "!", 1) == 1);
    close(go_fd);
    assert_int_equal(harness_join(pid, 10000), 0);
}

static void open_directory_to_all(void)
{
    char command[160];

    snprintf(command, sizeof(command), "chmod 0755 '%s'", worker.directory);
    REQUIRE(system(command) == 0);
}

/* One user's sessions are limited, and another's are its own. */
static void test_sessions_of_a_user(void **state)
{
    static const char *const arguments[] = {"--allow-uid", "1001,1002", "--uid-sessions", "4",
                                            NULL};
    struct other_user greedy = {.uid = 1001, .wanted = 10, .arena_bytes = 1 << 16};
    struct other_user modest = {.uid = 1002, .wanted = 2, .arena_bytes = 1 << 16};
    pid_t greedy_pid, modest_pid;
    unsigned before;
    int greedy_go, modest_go;

    (void)state;
    machine_skip_unless_root();
    start_with(arguments);
    open_directory_to_all();
    before = machine_fds(worker.pid);
    assert_int_equal(start_other(&greedy, &greedy_pid, &greedy_go), 4);
    assert_int_equal(start_other(&modest, &modest_pid, &modest_go), 2);
    check_bystander();
    finish_other(greedy_pid, greedy_go);
    await_fds(before + 2 * 5);
    assert_int_equal(start_other(&greedy, &greedy_pid, &greedy_go), 4);
    finish_other(greedy_pid, greedy_go);
    finish_other(modest_pid, modest_go);
    stop_worker();
}

static void test_arenas_of_a_user(void **state)
{
    static const char *const arguments[] = {"--allow-uid", "1001,1002", "--arena-bytes", "22M",
                                            "--uid-arena-bytes", "8M", NULL};
    struct other_user greedy = {.uid = 1001, .wanted = 10, .arena_bytes = 4 * MIB};
    struct other_user second = {.uid = 1002, .wanted = 10, .arena_bytes = 1 * MIB};
    struct gemmd *sessions[3];
    pid_t greedy_pid, second_pid;
    int greedy_go, second_go;

    (void)state;
    machine_skip_unless_root();
    start_with(arguments);
    open_directory_to_all();
    assert_int_equal(try_connect(9 * MIB, &sessions[0]), -ENOMEM); /* more than one may have */
    assert_int_equal(start_other(&greedy, &greedy_pid, &greedy_go), 2);
    assert_int_equal(start_other(&second, &second_pid, &second_go), 8);
    /* 16 MiB and the bystander's are taken: between 5 and 6 are left of all.  (Arenas of 2 MiB and
     * more are whole huge pages where there are some.) */
    assert_int_equal(try_connect(4 * MIB, &sessions[0]), 0);
    assert_int_equal(try_connect(4 * MIB, &sessions[1]), -ENOMEM);
    assert_non_null(strstr(gemmd_error_text(NULL), "arena"));
    assert_int_equal(try_connect(1 * MIB, &sessions[1]), 0);
    gemmd_close(&sessions[0]);
    gemmd_close(&sessions[1]);
    finish_other(second_pid, second_go);
    assert_int_equal(try_connect(8 * MIB, &sessions[0]), -ENOMEM); /* beside the bystander's */
    for (int i = 0; i < 2000 && try_connect(6 * MIB, &sessions[0]) < 0; i++)
        usleep(1000); /* until the others' ends are heard of */
    assert_non_null(sessions[0]);
    gemmd_close(&sessions[0]);
    finish_other(greedy_pid, greedy_go);
    check_bystander();
    stop_worker();
}

/* The default of --uid-sessions. */
#define UID_SESSIONS (GEMMD_WORKER_SESSIONS_MAX - 50)

static void test_all_sessions(void **state)
{
    static struct raw sessions[GEMMD_WORKER_SESSIONS_MAX];
    unsigned before, count = 0;
    struct gemmd *more;

    (void)state;
    start_with(NULL);
    before = machine_fds(worker.pid);
    for (; count < UID_SESSIONS - 1; count++) { /* and the bystander's */
        sessions[count].fd = raw_connect(worker.socket);
        if (count % 200 == 0)
            check_bystander();
    }
    assert_int_equal(try_connect(1 << 16, &more), -EAGAIN);
    check_bystander();
    for (unsigned i = 0; i < count; i++)
        close(sessions[i].fd);
    await_fds(before);
    assert_int_equal(try_connect(1 << 16, &more), 0);
    gemmd_close(&more);
    stop_worker();
}

/* An upload that nobody continues gives way to those that others want to make. */
static void test_upload_hog(void **state)
{
    struct gemmd_msg_layer_create create = {
        .desc = {.n = 50000, .k = 4000, .a_type = GEMMD_ABI_TYPE_U8, .c_type = GEMMD_ABI_TYPE_F32,
                 .scale_count = 1, .a_scale = 1.0f, .c_scale = 1.0f,
                 .b_type = GEMMD_ABI_TYPE_S8},
        .content_id = {1, 2}};
    struct gemmd_msg_layer_data data = {.bytes = 64};
    struct gemmd_msg_layer_data_reply data_reply;
    struct gemmd_msg_layer_reply reply;
    struct gemmd_layer *handle;
    struct gemmd *session;
    struct layer_case large;
    struct raw hog;
    int error = 0;

    (void)state;
    /* 80 of the 256 MB; the hog has 200.  Before it begins: its patience is 5 s. */
    layer_case_plain(&large, 10000, 8000, 5);
    start_with(NULL);
    raw_open(&hog, worker.socket, 8, 1 << 16);
    create.header = raw_header(&hog, GEMMD_MSG_LAYER_CREATE, sizeof(create));
    assert_int_equal(raw_call(&hog, &create, &reply, sizeof(reply)), GEMMD_STATUS_OK);
    session = session_to(worker.socket);
    assert_int_equal(gemmd_layer_create(session, &large.desc, &handle), -ENOSPC);
    for (int i = 0; i < 80 && (error = gemmd_layer_create(session, &large.desc, &handle)) < 0; i++)
        usleep(100000);
    assert_int_equal(error, 0);
    data.header = raw_header(&hog, GEMMD_MSG_LAYER_DATA, sizeof(data));
    assert_int_equal(raw_call(&hog, &data, &data_reply, sizeof(data_reply)), GEMMD_STATUS_UPLOAD);
    raw_close(&hog);
    gemmd_close(&session);
    layer_case_fini(&large);
    check_bystander();
    stop_worker();
}

static int start(void **state)
{
    struct rlimit limit;

    (void)state;
    layer_case_plain(&layer, 24, 40, 31);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    return 0;
}

static int stop(void **state)
{
    (void)state;
    layer_case_fini(&layer);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_connections),        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_log),                cmocka_unit_test(test_half_open),
        cmocka_unit_test(test_no_descriptors),     cmocka_unit_test(test_sessions_of_a_user),
        cmocka_unit_test(test_arenas_of_a_user),   cmocka_unit_test(test_all_sessions),
        cmocka_unit_test(test_upload_hog),
    };

    return HARNESS_RUN(tests, start, stop, 170);
}
