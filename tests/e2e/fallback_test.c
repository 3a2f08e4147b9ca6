/*
 * What a machine may lack: huge pages of either kind, io_uring.  The worker works without, bit for
 * bit, and says in `lost` (gemmctl info, the log) what it had to do without; what is required and
 * cannot be had stops it with a reason.
 */
#include "tests/harness.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/hugepages.h"

static struct harness_worker worker;
static struct layer_case layer;

/* A layer of 4 MiB, so that any page size can show. */
static void check_works(struct gemmd_info *info)
{
    struct gemmd *session = session_to(worker.socket);
    struct gemmd_layer *handle;

    assert_non_null(session);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    assert_int_equal(layer_case_check(session, handle, &layer, 3, 5), 0);
    assert_int_equal(gemmd_get_info(session, info), 0);
    printf("1g %lu 2m %lu thp %lu 4k %lu of %lu, event level %s, lost: \"%s\"\n",
           (unsigned long)info->pool_bytes_1g, (unsigned long)info->pool_bytes_2m,
           (unsigned long)info->pool_bytes_thp, (unsigned long)info->pool_bytes_4k,
           (unsigned long)info->pool_bytes, info->event_level, info->lost);
    assert_true(info->pool_bytes >= UINT64_C(4) << 20);
    assert_int_equal(info->pool_bytes_1g + info->pool_bytes_2m + info->pool_bytes_thp +
                         info->pool_bytes_4k,
                     info->pool_bytes);
    assert_null(strchr(info->lost, '\n')); /* one line */
    gemmd_close(&session);
}

/* ---- pages ----------------------------------------------------------------------------------- */

static void test_no_hugepages_wanted(void **state)
{
    static const char *const arguments[] = {"--hugepages", "none", NULL};
    struct gemmd_info info;

    (void)state;
    harness_start(&worker, arguments, NULL);
    check_works(&info);
    assert_int_equal(info.pool_bytes_4k, info.pool_bytes);
    harness_stop(&worker);
}

static void test_transparent(void **state)
{
    static const char *const arguments[] = {"--hugepages", "thp", NULL};
    struct gemmd_info info;

    (void)state;
    harness_start(&worker, arguments, NULL);
    check_works(&info);
    assert_int_equal(info.pool_bytes_1g + info.pool_bytes_2m, 0);
    if (info.pool_bytes_4k == info.pool_bytes)
        assert_true(strlen(info.lost) > 0); /* not silently */
    harness_stop(&worker);
}

static void need_hugepages(long count)
{
    machine_skip_unless_root();
    if (!hugepages_set(count))
        harness_skip("nr_hugepages cannot be set to %ld here", count);
}

static int restore_hugepages(void **state)
{
    (void)state;
    hugepages_restore();
    return 0;
}

static void test_hugepages(void **state)
{
    static const char *const arguments[] = {"--hugepages", "2m", "--require-hugepages", NULL};
    struct gemmd_info info;

    (void)state;
    need_hugepages(64);
    harness_start(&worker, arguments, NULL);
    check_works(&info);
    assert_int_equal(info.pool_bytes_2m, info.pool_bytes);
    assert_string_equal(info.lost, "");
    harness_stop(&worker);
}

static void test_hugepages_missing(void **state)
{
    static const char *const arguments[] = {"--hugepages", "2m", NULL};
    static const char *const require[] = {"--require-hugepages", NULL};
    struct gemmd_info info;
    int code;

    (void)state;
    need_hugepages(0);
    harness_start(&worker, arguments, NULL);
    check_works(&info);
    assert_int_equal(info.pool_bytes_2m, 0);
    assert_non_null(strstr(info.lost, "2 MiB"));
    assert_true(harness_log_has(&worker, "2 MiB"));
    harness_stop(&worker);

    code = harness_try_start(&worker, require, NULL);
    assert_int_equal(worker.pid, 0);
    printf("--require-hugepages: exit code %d\n", code);
    assert_in_range(code, 69, 78);
    assert_true(harness_log_has(&worker, "huge"));
    assert_true(harness_log_has(&worker, "nr_hugepages")); /* the fix */
    harness_discard(&worker);
}

/* The pages run out while layers come: later ones are refused, never a SIGBUS. */
static void test_hugepages_run_out(void **state)
{
    static const char *const arguments[] = {"--hugepages", "2m", "--require-hugepages", NULL};
    struct gemmd_layer *handle;
    struct gemmd *session;
    struct layer_case large, small;
    int result;

    (void)state;
    need_hugepages(4); /* 8 MiB */
    harness_start(&worker, arguments, NULL);
    session = session_to(worker.socket);
    layer_case_plain(&small, 64, 1000, 8);
    layer_case_plain(&large, 4096, 8000, 9); /* 32 MB */
    assert_int_equal(gemmd_layer_create(session, &small.desc, &handle), 0);
    result = gemmd_layer_create(session, &large.desc, &(struct gemmd_layer *){NULL});
    printf("a layer beyond the huge pages: %d %s\n", result, gemmd_error_text(session));
    assert_true(result == -ENOMEM || result == -ENOSPC);
    assert_int_equal(layer_case_check(session, handle, &small, 3, 1), 0);
    assert_true(harness_is_alive(&worker));
    gemmd_close(&session);
    layer_case_fini(&small);
    layer_case_fini(&large);
    harness_stop(&worker);
}

/* ---- io_uring -------------------------------------------------------------------------------- */

static void check_denied(const char *denial)
{
    const char *real = getenv("GEMMD_TEST_WORKER");
    const char *launcher = getenv("GEMMD_TEST_DENY_IO_URING");
    char target[512], deny[64];
    const char *const environment[] = {target, deny, NULL};
    const char *const forced[] = {target, deny, "GEMMD_EVENT_LEVEL=F2", NULL};
    char *saved = strdup(real);
    struct gemmd_info info;
    int code;

    REQUIRE(launcher && saved);
    snprintf(target, sizeof(target), "GEMMD_TEST_TARGET=%s", saved);
    snprintf(deny, sizeof(deny), "GEMMD_TEST_DENY=%s", denial);
    setenv("GEMMD_TEST_WORKER", launcher, 1);
    harness_start(&worker, NULL, environment);
    check_works(&info);
    assert_string_equal(info.event_level, "F3");
    assert_non_null(strstr(info.lost, "io_uring"));
    assert_true(harness_log_has(&worker, "io_uring"));
    harness_stop(&worker);
    code = harness_try_start(&worker, NULL, forced);
    assert_int_equal(worker.pid, 0);
    assert_in_range(code, 69, 78);
    assert_true(harness_log_has(&worker, "F2"));
    harness_discard(&worker);
    setenv("GEMMD_TEST_WORKER", saved, 1);
    free(saved);
}

static void test_io_uring_denied(void **state)
{
    (void)state;
    check_denied("EPERM");
    check_denied("ENOSYS");
}

/* ---- the command line ------------------------------------------------------------------------ */

static void check_usage(const char *option, const char *value, int expected)
{
    const char *const arguments[] = {option, value, NULL};
    int code = harness_try_start(&worker, arguments, NULL);

    if (code != expected)
        fprintf(stderr, "%s %s: exit code %d\n", option, value ? value : "", code);
    assert_int_equal(code, expected);
    assert_int_equal(worker.pid, 0);
    assert_true(harness_log_has(&worker, option)); /* it says which one */
    harness_discard(&worker);
}

static void test_usage(void **state)
{
    static const char *const environment[] = {"GEMMD_CPU_MASK=avx1024", NULL};

    (void)state;
    check_usage("--hugepages", "3m", 64);
    check_usage("--pool-bytes", "12Q", 64);
    check_usage("--pool-bytes", "-1", 64);
    check_usage("--spin-us", "1e9", 64);
    check_usage("--cpus", "3-1", 64);
    check_usage("--node", "x", 64);
    check_usage("--ring-start", "4294967296", 64);
    check_usage("--idle-exit", "", 64);
    check_usage("--nonsense", NULL, 64);
    assert_int_equal(harness_try_start(&worker, NULL, environment), 78);
    assert_true(harness_log_has(&worker, "GEMMD_CPU_MASK"));
    harness_discard(&worker);
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, 1024, 4100, 18);
    return 0;
}

static int stop(void **state)
{
    layer_case_fini(&layer);
    return restore_hugepages(state);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_hugepages_wanted),
        cmocka_unit_test(test_transparent),
        cmocka_unit_test_teardown(test_hugepages, restore_hugepages),
        cmocka_unit_test_teardown(test_hugepages_missing, restore_hugepages),
        cmocka_unit_test_teardown(test_hugepages_run_out, restore_hugepages),
        cmocka_unit_test(test_io_uring_denied),
        cmocka_unit_test(test_usage),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
