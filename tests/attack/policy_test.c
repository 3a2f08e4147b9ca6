/*
 * Who may connect; what a worker may still call, compared with what it calls; and that a wedged
 * worker ends.
 */
#include "tests/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/attack/attacks.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "worker/sandbox_rules.h"

static struct harness_worker worker;
static struct layer_case layer;

/* ---- users ----------------------------------------------------------------------------------- */

struct person {
    uid_t uid;
    gid_t gid, extra;
};

/* 0: connected and served; else the positive errno of gemmd_connect. */
static int use_as(void *argument)
{
    const struct person *person = argument;
    struct gemmd_options options;
    struct gemmd_layer *handle;
    struct gemmd *session;
    int error;

    if (setgroups(person->extra ? 1 : 0, &person->extra) < 0 ||
        setresgid(person->gid, person->gid, person->gid) < 0 ||
        setresuid(person->uid, person->uid, person->uid) < 0)
        return 250;
    gemmd_options_init(&options);
    options.socket = worker.socket;
    error = gemmd_connect(&options, &session);
    if (error < 0)
        return -error;
    REQUIRE(gemmd_layer_create(session, &layer.desc, &handle) >= 0);
    REQUIRE(layer_case_check(session, handle, &layer, 3, 7) == 0);
    gemmd_close(&session);
    return 0;
}

static void check_person(uid_t uid, gid_t gid, gid_t extra, int expected)
{
    struct person person = {uid, gid, extra};

    assert_int_equal(harness_join(harness_fork(use_as, &person), 10000), expected);
}

static void start_policy(const char *option, const char *list, mode_t mode)
{
    const char *const arguments[] = {option, list, NULL};
    struct stat status;
    char command[160];

    harness_start(&worker, arguments, NULL);
    snprintf(command, sizeof(command), "chmod 0755 '%s'", worker.directory);
    REQUIRE(system(command) == 0);
    assert_int_equal(stat(worker.socket, &status), 0);
    assert_int_equal(status.st_mode & 07777, mode);
}

static void test_users(void **state)
{
    (void)state;
    machine_skip_unless_root();
    start_policy("--allow-gid", "", 0600);
    check_person(0, 0, 0, 0);
    check_person(1001, 1001, 0, EACCES);
    harness_stop(&worker);

    start_policy("--allow-uid", "1001,1003", 0666);
    check_person(1001, 1001, 0, 0);
    check_person(1002, 1001, 0, EACCES);
    check_person(1003, 5, 0, 0);
    assert_true(harness_log_has(&worker, "uid 1002 is not admitted"));
    harness_stop(&worker);

    start_policy("--allow-gid", "2001", 0660);
    check_person(1001, 2001, 0, 0);
    check_person(1001, 5, 2001, 0);
    check_person(1001, 5, 2002, EACCES);
    harness_stop(&worker);

    start_policy("--allow-gid", "2001,2002", 0666);
    check_person(1001, 5, 2002, 0);
    check_person(1001, 5, 5, EACCES);
    harness_stop(&worker);
}

/* What only an operator may, asked for by a user who is admitted; and the content of another's
 * layer, which he does not get by its hash alone.  The worker's layers stay as they are. */
static int ask_as_stranger(void *argument)
{
    const struct gemmd_layer_info *info = argument;
    struct gemmd_msg_layer_create create = {.name = ""};
    struct gemmd_msg_list list = {.index = 0};
    struct gemmd_msg_takeover_commit take = {.generation = 1};
    struct gemmd_msg_layer_reply reply;
    union {
        struct gemmd_msg_takeover_reply takeover;
        struct gemmd_msg_takeover_commit_reply commit;
    } answer;
    struct gemmd_layer *handle;
    struct gemmd *session;
    struct raw raw;
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

    if (setgroups(0, NULL) < 0 || setresgid(1001, 1001, 1001) < 0 ||
        setresuid(1001, 1001, 1001) < 0)
        return 250;
    session = session_with(worker.socket, 8, 1 << 20, -1);
    REQUIRE(session != NULL && file >= 0);
    REQUIRE(gemmd_layers_unload(session, "operators", NULL) == -EPERM);
    REQUIRE(gemmd_layers_pin(session, "operators", 1) == -EPERM);
    REQUIRE(gemmd_layers_pin(session, "operators", 0) == -EPERM);
    /* A descriptor from him is not even received. */
    REQUIRE(gemmd_layers_load(session, file, "x", NULL) < 0);
    gemmd_close(&session);
    raw_open(&raw, worker.socket, 8, 1 << 16);
    list.header = raw_header(&raw, GEMMD_MSG_TAKEOVER, sizeof(list));
    REQUIRE(raw_call(&raw, &list, &answer, sizeof(answer.takeover)) == GEMMD_STATUS_ADMIN);
    take.header = raw_header(&raw, GEMMD_MSG_TAKEOVER_COMMIT, sizeof(take));
    REQUIRE(raw_call(&raw, &take, &answer, sizeof(answer.commit)) == GEMMD_STATUS_ADMIN);
    create.header = raw_header(&raw, GEMMD_MSG_LAYER_CREATE, sizeof(create));
    create.desc = (struct gemmd_layer_desc_abi){.n = info->n,
                                                .k = info->k,
                                                .a_type = (uint8_t)info->a_type,
                                                .b_type = (uint8_t)info->b_type,
                                                .c_type = (uint8_t)info->c_type,
                                                .bias_type = (uint8_t)info->bias_type,
                                                .activation = (uint8_t)layer.desc.activation,
                                                .scale_count = layer.desc.scale_count,
                                                .a_zero_point = layer.desc.a_zero_point,
                                                .c_zero_point = layer.desc.c_zero_point,
                                                .a_scale = layer.desc.a_scale,
                                                .c_scale = layer.desc.c_scale};
    memcpy(create.content_id, info->content_id, sizeof(create.content_id));
    REQUIRE(raw_call(&raw, &create, &reply, sizeof(reply)) == GEMMD_STATUS_OK);
    REQUIRE(reply.layer_gen == 0); /* "send the image" */
    raw_close(&raw);
    /* With the bytes in hand he shares it. */
    session = session_with(worker.socket, 8, 1 << 20, -1);
    REQUIRE(session != NULL && gemmd_layer_create(session, &layer.desc, &handle) == 1);
    REQUIRE(gemmd_layer_bytes_new(handle) == 0);
    gemmd_close(&session);
    return 0;
}

static void test_strangers_are_no_operators(void **state)
{
    struct gemmd_layer_info before, after;
    struct gemmd_layer *handle;
    struct gemmd *session;

    (void)state;
    machine_skip_unless_root();
    start_policy("--allow-uid", "1001", 0666);
    session = session_with(worker.socket, 8, 1 << 20, -1);
    assert_non_null(session);
    layer.desc.name = "operators";
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    layer.desc.name = NULL;
    assert_int_equal(gemmd_layers_pin(session, "operators", 1), 1);
    assert_int_equal(gemmd_get_layer_info(session, 0, &before), 0);
    assert_int_equal(harness_join(harness_fork(ask_as_stranger, &before), 20000), 0);
    assert_int_equal(gemmd_get_layer_info(session, 0, &after), 0);
    assert_string_equal(after.name, "operators");
    assert_int_equal(after.pinned, 1);
    assert_int_equal(gemmd_get_layer_info(session, 1, &after), -ENOENT);
    gemmd_close(&session);
    harness_stop(&worker);
}

static void test_bad_lists(void **state)
{
    static const char *const bad[][2] = {
        {"--allow-uid", "nobody-of-that-name"}, {"--allow-gid", "1,,2"}, {"--uid-sessions", "0"},
        {"--uid-sessions", "5000"},             {"--arena-bytes", "x"},  {"--watchdog", "-1"},
        {"--uid-arena-bytes", "1"},             {"--sandbox", "on"}, {"--uid-weight", "1001"},
        {"--uid-weight", "1001:0"},             {"--uid-weight", "1001:65"},
        {"--uid-weight", "1001:2,,1002:2"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const char *const arguments[] = {bad[i][0], bad[i][1], NULL};

        assert_int_equal(harness_try_start(&worker, arguments, NULL), 64);
        assert_true(harness_log_has(&worker, bad[i][0]));
        harness_discard(&worker);
    }
}

static void test_nowhere_to_listen(void **state)
{
    static const char *const arguments[] = {"--socket", "/nonexistent/gemmd/socket", NULL};
    static const char *const environment[] = {"GEMMD_DEBUG=1", "GEMMD_LOG=error", NULL};
    struct gemmd *session;

    (void)state;
    assert_int_equal(harness_try_start(&worker, arguments, NULL), 71);
    assert_true(harness_log_has(&worker, "/nonexistent/gemmd/socket"));
    harness_discard(&worker);
    harness_start(&worker, NULL, environment);
    session = session_to(worker.socket);
    assert_non_null(session);
    gemmd_close(&session);
    assert_true(harness_log_has(&worker, "message 1 serial 1: OK"));
    harness_stop(&worker);
}

/* ---- system calls ---------------------------------------------------------------------------- */

static const struct rule {
    const char *name;
    unsigned threads;
    bool rare;
} rules[] = {
#define X(name, threads, why) {#name, threads, sizeof(why) > 1},
    SANDBOX_RULES(X)
#undef X
};
#define RULE_COUNT (sizeof(rules) / sizeof(rules[0]))

static unsigned seen[RULE_COUNT]; /* by which threads */
static unsigned unknown;

/* Lines of strace -f: "PID name(…". */
static void read_trace(const char *path, pid_t control, pid_t watchdog, pid_t helper)
{
    char line[4096], name[64];
    FILE *file = fopen(path, "re");
    int pid;

    REQUIRE(file != NULL);
    while (fgets(line, sizeof(line), file)) {
        bool allowed = false;
        unsigned thread;

        if (sscanf(line, "%d %63[a-z0-9_](", &pid, name) != 2 || strstr(line, "resumed>"))
            continue;
        /* The others: the dispatcher and the compute threads. */
        thread = pid == control    ? SANDBOX_C
                 : pid == watchdog ? SANDBOX_W
                 : pid == helper   ? SANDBOX_H
                                   : SANDBOX_D;
        for (size_t i = 0; i < RULE_COUNT; i++)
            if (strcmp(rules[i].name, name) == 0) {
                seen[i] |= thread & rules[i].threads;
                allowed |= (thread & rules[i].threads) != 0;
            }
        if (!allowed && unknown++ < 5)
            fprintf(stderr, "without a rule for thread set %u: %s", thread, line);
    }
    fclose(file);
}

/* Something of everything. */
static void use_worker(void)
{
    struct gemmd *session, *tool;
    struct gemmd_options options;
    struct gemmd_layer *handle, *second;
    struct gemmd_info info;
    struct gemmd_stats stats;
    struct layer_case large;
    struct raw raw;
    int file;

    layer_case_plain(&large, 8192, 5120, 4); /* an extent of its own */
    session = session_with(worker.socket, 0, 16 << 20, 0);
    REQUIRE(session != NULL);
    assert_true(gemmd_layer_create(session, &layer.desc, &handle) >= 0);
    assert_true(gemmd_layer_create(session, &large.desc, &second) >= 0);
    for (uint64_t i = 0; i < 20; i++) {
        usleep(2000);
        assert_int_equal(layer_case_check(session, handle, &layer, 3, i), 0);
    }
    assert_int_equal(gemmd_get_info(session, &info), 0);
    assert_int_equal(gemmd_get_stats(session, &stats), 0);
    assert_true(gemmd_get_fd(session) >= 0);
    assert_int_equal(gemmd_layer_close(session, &second), 0);
    file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    assert_int_equal(gemmd_layers_load(session, file, "x", NULL), -EBADMSG);
    close(file);
    gemmd_options_init(&options);
    options.socket = worker.socket;
    options.control_only = 1;
    assert_int_equal(gemmd_connect(&options, &tool), 0);
    gemmd_close(&tool);
    raw_open(&raw, worker.socket, 8, 1 << 16);
    gemmd_store_release(&raw.client->cq_head, raw.cq.index + 99);
    for (int i = 0; i < 9; i++) { /* the ninth needs a look at cq_head */
        raw_submit(&raw, &(struct gemmd_sqe){0});
        usleep(1000);
    }
    assert_true(raw_is_ended(&raw, 5000));
    raw_close(&raw);
    gemmd_close(&session);
    layer_case_fini(&large);
}

/* Runs the worker under strace from after its start until its end. */
static void trace_level(const char *level)
{
    char setting[32], path[128], target[16];
    const char *const environment[] = {setting, "GEMMD_LOG=info", NULL};
    const char *const arguments[] = {"--spin-us", "0", NULL};
    pid_t control, watchdog, helper, tracer;

    snprintf(setting, sizeof(setting), "GEMMD_EVENT_LEVEL=%s", level);
    harness_start(&worker, arguments, environment);
    control = worker.pid;
    watchdog = machine_thread(worker.pid, "gemmd-watchdog");
    helper = machine_thread(worker.pid, "gemmd-helper");
    snprintf(path, sizeof(path), "/tmp/gemmd-trace-%d", (int)getpid());
    snprintf(target, sizeof(target), "%d", (int)worker.pid);
    fflush(NULL);
    tracer = fork();
    REQUIRE(tracer >= 0);
    if (tracer == 0) {
        execlp("strace", "strace", "-f", "-qq", "-o", path, "-p", target, (char *)NULL);
        _exit(97);
    }
    usleep(500000);
    use_worker();
    usleep(1200000); /* a turn of the watchdog */
    kill(worker.pid, SIGTERM);
    assert_int_equal(harness_join(worker.pid, 15000), 0);
    worker.pid = 0;
    assert_true(harness_join(tracer, 10000) >= 0);
    read_trace(path, control, watchdog, helper);
    unlink(path);
    harness_discard(&worker);
}

static void test_no_unused_rule(void **state)
{
    unsigned unused = 0;

    (void)state;
    if (system("strace -qq -o /dev/null true 2>/dev/null") != 0)
        harness_skip("strace is missing or ptrace is not permitted");
    if (machine_is_sanitized())
        harness_skip("a sanitized build has no filter");
    trace_level("F0");
    trace_level("F3");
    for (size_t i = 0; i < RULE_COUNT; i++) {
        unsigned missing = rules[i].threads & ~seen[i];

        if (!rules[i].rare && missing) {
            fprintf(stderr, "%s: allowed but not used by thread set %u\n", rules[i].name, missing);
            unused++;
        }
    }
    printf("%zu rules, %u unused, %u calls outside the table\n", RULE_COUNT, unused, unknown);
    assert_int_equal(unused, 0);
    assert_int_equal(unknown, 0);
}

/* ---- wedged ---------------------------------------------------------------------------------- */

static void skip_where_it_shows_nothing_new(void)
{
    if (machine_is_sanitized())
        harness_skip("20 s of waiting, in which a sanitizer sees nothing new");
}

/* Holds one thread of the worker still, as a deadlock would. */
static void check_wedge(const char *thread, int limit_s)
{
    const char *const arguments[] = {"--watchdog", "2", NULL};
    uint64_t before_ns;
    pid_t victim;

    skip_where_it_shows_nothing_new();
    harness_start(&worker, arguments, NULL);
    victim = thread ? machine_thread(worker.pid, thread) : worker.pid;
    REQUIRE(victim > 0);
    before_ns = machine_now_ns();
    if (ptrace(PTRACE_SEIZE, victim, NULL, NULL) < 0)
        harness_skip("ptrace is not permitted");
    assert_int_equal(ptrace(PTRACE_INTERRUPT, victim, NULL, NULL), 0);
    assert_int_equal(waitpid(victim, NULL, __WALL), victim);
    for (int i = 0; i < (limit_s + 3) * 100 && !harness_log_has(&worker, "no progress"); i++)
        usleep(10000);
    printf("%s held: ended after %.1f s\n", thread ? thread : "control",
           (double)(machine_now_ns() - before_ns) / 1e9);
    assert_true(harness_log_has(&worker, "no progress"));
    kill(worker.pid, SIGKILL); /* the held thread's exit is the tracer's to hear of, first */
    while (waitpid(-1, NULL, __WALL) != worker.pid)
        ;
    worker.pid = 0;
    harness_discard(&worker);
}

static void test_wedged_dispatcher(void **state)
{
    (void)state;
    check_wedge("gemmd-dispatch", 2);
}

static void test_wedged_control(void **state)
{
    (void)state;
    check_wedge(NULL, 8);
}

/* A worker that is stopped as a whole, or has nothing to do, is not taken for a wedged one. */
static void test_stopped_is_not_wedged(void **state)
{
    static const char *const arguments[] = {"--watchdog", "2", NULL};
    struct gemmd *session;

    (void)state;
    skip_where_it_shows_nothing_new();
    harness_start(&worker, arguments, NULL);
    usleep(4000000);
    kill(worker.pid, SIGSTOP);
    usleep(4000000);
    kill(worker.pid, SIGCONT);
    usleep(1500000);
    session = session_to(worker.socket);
    assert_non_null(session);
    gemmd_close(&session);
    harness_stop(&worker);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, 24, 40, 31);
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
        cmocka_unit_test(test_users),
        cmocka_unit_test(test_strangers_are_no_operators),
        cmocka_unit_test(test_bad_lists),
        cmocka_unit_test(test_nowhere_to_listen),
        cmocka_unit_test(test_no_unused_rule),
        cmocka_unit_test(test_wedged_dispatcher),
        cmocka_unit_test(test_wedged_control),
        cmocka_unit_test(test_stopped_is_not_wedged),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
