/* Limits of memory cgroups, read from a tree of files. */
#include "unit.h"

#include <sys/stat.h>

#include "worker/cgroup.h"

static char root[] = "/tmp/gemmd-cgroup-XXXXXX";

/* Writes root/path, and makes the directories on the way. */
static void put(const char *path, const char *text)
{
    char name[256];
    FILE *file;

    snprintf(name, sizeof(name), "%s/%s", root, path);
    for (char *slash = strchr(name + strlen(root) + 1, '/'); slash;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(name, 0700);
        *slash = '/';
    }
    file = fopen(name, "we");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static uint64_t room(void)
{
    uint64_t bytes;

    cgroup_open(root);
    bytes = cgroup_room();
    cgroup_close();
    assert_true(cgroup_room() == UINT64_MAX); /* closed: no limits */
    return bytes;
}

static void no_limits(void **state)
{
    (void)state;
    assert_true(room() == UINT64_MAX); /* not even a /proc */
    put("proc/self/cgroup", "0::/a/b\n");
    assert_true(room() == UINT64_MAX);
    put("sys/fs/cgroup/a/b/memory.max", "max\n");
    put("sys/fs/cgroup/a/b/memory.current", "500\n");
    assert_true(room() == UINT64_MAX);
}

static void version_2(void **state)
{
    (void)state;
    put("sys/fs/cgroup/a/memory.max", "10000\n"); /* of the group above */
    put("sys/fs/cgroup/a/memory.current", "6000\n");
    assert_true(room() == 4000);
    put("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 700\nactive_file 300\nfile 9999\n");
    assert_true(room() == 5000);
    put("sys/fs/cgroup/a/b/memory.max", "3000\n"); /* the nearest counts */
    assert_true(room() == 2500);
    put("sys/fs/cgroup/a/b/memory.current", "3500\n"); /* lowered below what is in use */
    assert_true(room() == 0);
    /* In a container the path is the host's, and its own group is at the mount. */
    put("proc/self/cgroup", "0::/docker/123\n");
    put("sys/fs/cgroup/memory.max", "900\n");
    put("sys/fs/cgroup/memory.current", "100\n");
    assert_true(room() == 800);
}

static void version_1(void **state)
{
    (void)state;
    put("proc/self/cgroup", "7:cpu,cpuacct:/x\n4:memory:/c/d\n0::/\n");
    put("sys/fs/cgroup/memory.max", "max\n");
    put("sys/fs/cgroup/memory/c/d/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/memory/c/d/memory.usage_in_bytes", "4096\n");
    assert_true(room() == UINT64_MAX);
    put("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "8192\n");
    put("sys/fs/cgroup/memory/c/memory.usage_in_bytes", "4096\n");
    put("sys/fs/cgroup/memory/c/memory.stat",
        "inactive_file 1\nactive_file 1\ntotal_inactive_file 96\ntotal_active_file 4\n");
    assert_true(room() == 8192 - 4096 + 100);
}

static int make_root(void **state)
{
    (void)state;
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    char command[64];

    (void)state;
    snprintf(command, sizeof(command), "rm -r %s", root);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_limits),
        cmocka_unit_test(version_2),
        cmocka_unit_test(version_1),
    };

    return cmocka_run_group_tests(tests, make_root, remove_root);
}
