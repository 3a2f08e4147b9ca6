/* A running worker hands its weights and its socket to a successor; clients reconnect to that. */
#include "tests/harness.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/kept_layers.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

/* gemmctl upgrade; the successor becomes this program's child by PR_SET_CHILD_SUBREAPER. */
static void upgrade(struct harness_worker *worker)
{
    const char *gemmctl = getenv("GEMMD_TEST_GEMMCTL");
    struct gemmd_info info;
    pid_t old = worker->pid, pid;

    REQUIRE(gemmctl != NULL);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        execl(gemmctl, gemmctl, "--socket", worker->socket, "upgrade", (char *)NULL);
        _exit(97);
    }
    assert_int_equal(harness_join(pid, 30000), 0);
    assert_int_equal(harness_join(old, 30000), 0); /* the old one drained and left */
    info = info_of(worker);
    assert_int_not_equal(info.pid, old);
    worker->pid = (pid_t)info.pid;
}

static void test_upgrade(void **state)
{
    struct harness_worker worker;
    uint64_t start_ns;
    struct gemmd_info before, after;

    (void)state;
    machine_adopt_orphans();
    harness_start(&worker, pool_arguments, NULL);
    create_layers(&worker, LAYERS);
    for (int round = 0; round < 3; round++) {
        before = info_of(&worker);
        start_ns = machine_now_ns();
        upgrade(&worker);
        print_message("upgrade to first result: %.1f ms\n",
                      (double)check_layers(&worker, LAYERS, start_ns) / 1e6);
        after = info_of(&worker);
        assert_int_equal(after.layer_count, LAYERS);
        assert_int_equal(after.pool_bytes_used, before.pool_bytes_used);
    }
    harness_stop(&worker);
}

/* Shared with the clients: all upgrades are over.  However slow these are, each client that works
 * until then sees more than one worker. */
static bool *is_over;

static bool is_told(void)
{
    return __atomic_load_n(is_over, __ATOMIC_RELAXED);
}

/* Works and reconnects until told to stop: every result is right, every connection is accepted. */
static int client(void *argument)
{
    const char *socket = ((const struct harness_worker *)argument)->socket;
    uint64_t sessions = 0, jobs = 0;

    while (sessions < 2 || !is_told()) {
        struct gemmd *session = session_with(socket, 64, 1 << 20, -1);
        struct gemmd_layer *handle;
        int error;

        if (!session)
            return 1;
        error = gemmd_layer_open(session, "m/0", &handle);
        for (; error == 0 && (sessions == 0 || !is_told()); jobs++)
            error = layer_case_check(session, handle, &layers[0], 1, jobs);
        if (error && error != -ECONNRESET && error != -ECONNABORTED && error != -ESHUTDOWN) {
            fprintf(stderr, "client: %s: %s\n", strerror(-error), gemmd_error_text(session));
            return 2;
        }
        sessions++;
        gemmd_close(&session);
    }
    printf("%llu jobs in %llu sessions\n", (unsigned long long)jobs, (unsigned long long)sessions);
    return jobs > sessions ? 0 : 3;
}

/* Creates and forgets layers all the time. */
static int creator(void *argument)
{
    const char *socket = ((const struct harness_worker *)argument)->socket;
    uint64_t count = 0;

    while (!is_told()) {
        struct gemmd *session = session_with(socket, 8, 1 << 20, -1);
        int error = 0;

        if (!session)
            return 1;
        for (; error >= 0 && !is_told(); count++) {
            struct layer_case layer;
            struct gemmd_layer *handle = NULL;

            layer_case_plain(&layer, 64, 64, count + 1000);
            error = gemmd_layer_create(session, &layer.desc, &handle);
            layer_case_fini(&layer);
            usleep(2000);
            if (error >= 0)
                error = gemmd_layer_close(session, &handle);
        }
        gemmd_close(&session);
    }
    return count > 5 ? 0 : 2;
}

static void test_upgrade_under_load(void **state)
{
    struct harness_worker worker;
    pid_t children[3];

    (void)state;
    is_over = mmap(NULL, sizeof(*is_over), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                   0);
    REQUIRE(is_over != MAP_FAILED);
    machine_adopt_orphans();
    harness_start(&worker, pool_arguments, NULL);
    create_layers(&worker, 2);
    children[0] = harness_fork(client, &worker);
    children[1] = harness_fork(client, &worker);
    children[2] = harness_fork(creator, &worker);
    for (int round = 0; round < 4; round++) {
        usleep(500000);
        upgrade(&worker);
    }
    __atomic_store_n(is_over, true, __ATOMIC_RELAXED);
    for (int i = 0; i < 3; i++)
        assert_int_equal(harness_join(children[i], 30000), 0);
    check_layers(&worker, 2, 0);
    harness_stop(&worker);
}

/* Nobody to take over from; a successor that dies before the socket is its own. */
static void test_take_over_fails(void **state)
{
    static const char *const take_over[] = {"--take-over", NULL};
    struct harness_worker worker, other;

    (void)state;
    assert_int_equal(harness_try_start(&other, take_over, NULL), 69);
    assert_true(harness_log_has(&other, "--take-over"));
    harness_discard(&other);
    harness_start(&worker, pool_arguments, NULL);
    create_layers(&worker, 1);
    for (int i = 0; i < 20; i++) {
        pid_t pid;

        fflush(NULL);
        pid = fork();
        if (pid == 0) {
            freopen("/dev/null", "w", stderr);
            execl(getenv("GEMMD_TEST_WORKER"), "gemmd", "--take-over", "--pool-bytes", "512M",
                  "--socket", worker.socket, (char *)NULL);
            _exit(97);
        }
        usleep((unsigned)i * 150);
        harness_reap_killed(pid);
        if (waitpid(worker.pid, NULL, WNOHANG) != 0)
            break; /* it had it already, and died with it: rounds of the later kind end here */
        check_layers(&worker, 1, 0);
    }
    harness_kill(&worker);
    harness_discard(&worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_upgrade),
        cmocka_unit_test(test_upgrade_under_load),
        cmocka_unit_test(test_take_over_fails),
    };

    return HARNESS_RUN(tests, kept_set_up, kept_tear_down, 110);
}
