/*
 * A worker inside a cgroup with a limit: what does not fit is refused with a reason, or lies on
 * lesser pages and says so; the worker is neither ended by the kernel nor hit by SIGBUS.
 */
#include "tests/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/hugepages.h"

#define MEMORY_MIB 96

static char group[128]; /* "": none */

static bool write_file(const char *directory, const char *name, const char *text)
{
    char path[700];
    ssize_t written;
    int fd;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    written = write(fd, text, strlen(text));
    close(fd);
    return written == (ssize_t)strlen(text);
}

/* A group below `mount` with one limit; false: not on this machine. */
static bool make_group(const char *mount, const char *enable, const char *name, const char *limit)
{
    snprintf(group, sizeof(group), "%s/gemmd-test-%d", mount, (int)getpid());
    if (*enable)
        write_file(mount, "cgroup.subtree_control", enable);
    if (mkdir(group, 0755) < 0) {
        group[0] = '\0';
        return false;
    }
    if (write_file(group, name, limit))
        return true;
    rmdir(group);
    group[0] = '\0';
    return false;
}

/* The kernel keeps a group busy for a moment after its last member's end. */
static int remove_group(void **state)
{
    (void)state;
    hugepages_restore();
    for (int i = 0; i < 1000 && *group && rmdir(group) < 0 && errno == EBUSY; i++)
        usleep(1000);
    group[0] = '\0';
    return 0;
}

static void enter(const char *directory)
{
    char text[16];

    snprintf(text, sizeof(text), "%d", (int)getpid());
    REQUIRE(write_file(directory, "cgroup.procs", text));
}

/* The worker is a member; this program is one only while it starts the worker. */
static void start_inside(struct harness_worker *worker, const char *home,
                         const char *const *arguments)
{
    enter(group);
    harness_start(worker, arguments, NULL);
    enter(home);
}

/* Where this program is, of the hierarchy whose line of /proc/self/cgroup holds `key`. */
static void find_home(const char *mount, const char *key, char *out, size_t bytes)
{
    char line[512] = "";
    FILE *file = fopen("/proc/self/cgroup", "re");

    REQUIRE(file != NULL);
    while (fgets(line, sizeof(line), file) && !strstr(line, key))
        ;
    fclose(file);
    line[strcspn(line, "\n")] = '\0';
    snprintf(out, bytes, "%s%s", mount, strstr(line, key) + strlen(key));
    if (access(out, F_OK) < 0)
        snprintf(out, bytes, "%s", mount);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Layers of 8 MiB, kept open, until the worker says no. */
static void fill_up(struct gemmd *session)
{
    struct gemmd_layer *handles[MEMORY_MIB / 8];
    struct layer_case layer;
    int result = 0, count = 0;

    for (; count < MEMORY_MIB / 8 && result >= 0; count++) {
        layer_case_plain(&layer, 1024, 8192, (uint64_t)count);
        result = gemmd_layer_create(session, &layer.desc, &handles[count]);
        layer_case_fini(&layer);
    }
    print_message("layer %d of 8 MiB: %s\n", count, gemmd_error_text(session));
    assert_true(result == -ENOSPC || result == -ENOMEM);
    assert_true(count >= 2);
    layer_case_plain(&layer, 1024, 8192, 0);
    assert_int_equal(layer_case_check(session, handles[0], &layer, 1, 1), 0);
    layer_case_fini(&layer);
}

static void test_memory(void **state)
{
    static const char *const arguments[] = {"--pool-bytes", "1G", "--hugepages", "none", NULL};
    static const char v1[] = "/sys/fs/cgroup/memory", v2[] = "/sys/fs/cgroup";
    struct harness_worker worker;
    struct gemmd *session, *other;
    struct gemmd_options options;
    char home[600], limit[32];

    (void)state;
    machine_skip_unless_root();
    if (machine_is_sanitized())
        harness_skip("a sanitizer's own memory does not fit");
    snprintf(limit, sizeof(limit), "%d", MEMORY_MIB << 20);
    if (make_group(v1, "", "memory.limit_in_bytes", limit))
        find_home(v1, ":memory:", home, sizeof(home));
    else if (make_group(v2, "+memory", "memory.max", limit))
        find_home(v2, "0::", home, sizeof(home));
    else
        harness_skip("no writable memory cgroup");
    start_inside(&worker, home, arguments);
    session = session_with(worker.socket, 64, 4 << 20, -1);
    fill_up(session);
    /* An arena beyond the limit, too. */
    gemmd_options_init(&options);
    options.socket = worker.socket;
    options.autostart = 0;
    options.arena_bytes = UINT64_C(256) << 20;
    assert_true(gemmd_connect(&options, &other) < 0);
    assert_true(harness_log_has(&worker, "memory cgroup's limit"));
    assert_true(harness_is_alive(&worker));
    gemmd_close(&session);
    harness_stop(&worker);
}

/* ---- hugetlb --------------------------------------------------------------------------------- */

/* The machine has the pages, the group may use four of them: the rest lies on others. */
static void test_hugetlb(void **state)
{
    static const char *const arguments[] = {"--pool-bytes", "256M", NULL};
    static const char *const mounts[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
    static const char v1[] = "/sys/fs/cgroup/hugetlb";
    struct harness_worker worker;
    struct layer_case layer;
    struct gemmd_layer *handle;
    struct gemmd *session;
    struct gemmd_info info;
    char home[600] = "";

    (void)state;
    machine_skip_unless_root();
    for (int i = 0; i < 2 && !*home; i++)
        if (make_group(mounts[i], "+hugetlb", "hugetlb.2MB.max", "8388608"))
            find_home(mounts[i], "0::", home, sizeof(home));
    if (!*home && make_group(v1, "", "hugetlb.2MB.limit_in_bytes", "8388608"))
        find_home(v1, ":hugetlb:", home, sizeof(home));
    if (!*home)
        harness_skip("no writable hugetlb cgroup");
    if (!hugepages_set(20))
        harness_skip("20 huge pages cannot be reserved");
    start_inside(&worker, home, arguments);
    session = session_with(worker.socket, 64, 4 << 20, -1);
    assert_non_null(session);
    layer_case_plain(&layer, 2048, 8192, 1);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    assert_int_equal(layer_case_check(session, handle, &layer, 1, 1), 0);
    assert_int_equal(gemmd_get_info(session, &info), 0);
    print_message("%llu KiB on 2 MiB pages, %llu KiB THP, %llu KiB small; lost: %s\n",
                  (unsigned long long)(info.pool_bytes_2m >> 10),
                  (unsigned long long)(info.pool_bytes_thp >> 10),
                  (unsigned long long)(info.pool_bytes_4k >> 10), info.lost);
    assert_int_equal(info.pool_bytes_2m, 0);
    assert_non_null(strstr(info.lost, "2 MiB huge pages"));
    assert_non_null(strstr(info.lost, "this cgroup's hugetlb limit"));
    assert_true(harness_is_alive(&worker));
    gemmd_close(&session);
    harness_stop(&worker);
    layer_case_fini(&layer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_memory, remove_group),
        cmocka_unit_test_teardown(test_hugetlb, remove_group),
    };

    return HARNESS_RUN(tests, NULL, NULL, 110);
}
