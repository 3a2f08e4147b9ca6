/* The topology reader over made-up sysfs trees, CPU lists, and pinning. */
#include "unit.h"

#include <sys/mman.h>

#include "worker/topology.h"

static char root[64];

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/gemmd-topology-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command);
}

/* Writes root/devices/system/<name>. */
static void put(const char *name, const char *text)
{
    char path[256], *slash = path;
    FILE *file;

    snprintf(path, sizeof(path), "%s/devices/system/%s", root, name);
    for (slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0755);
        *slash = '/';
    }
    file = fopen(path, "we");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void expect_cpus(const struct topology *topology, int node, const char *list)
{
    char text[256];
    cpu_set_t cpus;

    assert_int_equal(topology_cpus_of_node(topology, node, &cpus), 0);
    assert_int_equal(cpulist_format(&cpus, text, sizeof(text)), 0);
    assert_string_equal(text, list);
}

static void one_node(void **state)
{
    struct topology *topology;

    (void)state;
    put("cpu/online", "0-3\n");
    put("node/online", "0\n");
    put("node/node0/cpulist", "0-3\n");
    assert_int_equal(topology_open(&topology, root), 0);
    assert_int_equal(topology_node_count(topology), 1);
    assert_int_equal(topology_node_of_cpu(topology, 3), 0);
    assert_int_equal(topology_node_of_cpu(topology, 4), -1);
    assert_int_equal(topology_node_of_cpu(topology, -1), -1);
    assert_int_equal(topology_node_of_cpu(topology, 1 << 20), -1);
    expect_cpus(topology, 0, "0-3");
    topology_close(&topology);
    assert_null(topology);
    topology_close(&topology);
}

/* Interleaved CPUs, one of them offline; nodes that are not numbered in a row. */
static void two_nodes(void **state)
{
    struct topology *topology;
    cpu_set_t cpus;

    (void)state;
    put("cpu/online", "0-4,6-7\n");
    put("node/online", "0,3\n");
    put("node/node0/cpulist", "0,2,4\n");
    put("node/node3/cpulist", "1,3,5,7\n"); /* 5 is offline, whatever this file says */
    assert_int_equal(topology_open(&topology, root), 0);
    assert_int_equal(topology_node_count(topology), 2);
    expect_cpus(topology, 0, "0,2,4");
    expect_cpus(topology, 3, "1,3,7");
    assert_int_equal(topology_node_of_cpu(topology, 7), 3);
    assert_int_equal(topology_node_of_cpu(topology, 5), -1);
    assert_int_equal(topology_node_of_cpu(topology, 6), -1);
    assert_int_equal(CPU_COUNT(topology_cpus_online(topology)), 7);
    assert_int_equal(topology_cpus_of_node(topology, 1, &cpus), -ENODEV);
    assert_int_equal(topology_cpus_of_node(topology, -1, &cpus), -ENODEV);
    assert_int_equal(topology_cpus_of_node(topology, 5000, &cpus), -ENODEV);
    topology_close(&topology);
}

static void node_of_memory_only(void **state)
{
    struct topology *topology;

    (void)state;
    put("cpu/online", "0-1\n");
    put("node/online", "0-1\n");
    put("node/node0/cpulist", "0-1\n");
    put("node/node1/cpulist", "\n");
    assert_int_equal(topology_open(&topology, root), 0);
    assert_int_equal(topology_node_count(topology), 2);
    expect_cpus(topology, 1, "");
    expect_cpus(topology, 0, "0-1");
    topology_close(&topology);
}

static void no_numa(void **state)
{
    struct topology *topology;
    cpu_set_t cpus;

    (void)state;
    put("cpu/online", "0,2\n");
    assert_int_equal(topology_open(&topology, root), 0);
    assert_int_equal(topology_node_count(topology), 0);
    assert_int_equal(topology_node_of_cpu(topology, 0), -1);
    expect_cpus(topology, -1, "0,2");
    assert_int_equal(topology_cpus_of_node(topology, 0, &cpus), -ENODEV);
    topology_close(&topology);
}

static void broken_trees(void **state)
{
    char long_root[400];
    struct topology *topology;

    (void)state;
    assert_int_equal(topology_open(&topology, root), -ENOENT);
    assert_null(topology);
    put("cpu/online", "zero\n");
    assert_int_equal(topology_open(&topology, root), -EINVAL);
    put("cpu/online", "\n");
    assert_int_equal(topology_open(&topology, root), -EINVAL);
    put("cpu/online", "0-1\n");
    put("node/online", "0\n"); /* and no node0 */
    assert_int_equal(topology_open(&topology, root), -ENOENT);
    memset(long_root, 'x', sizeof(long_root) - 1);
    long_root[sizeof(long_root) - 1] = '\0';
    assert_int_equal(topology_open(&topology, long_root), -ENAMETOOLONG);
}

static void put_cache(int index, const char *level, const char *type, const char *size)
{
    char name[64];

    snprintf(name, sizeof(name), "cpu/cpu0/cache/index%d/level", index);
    put(name, level);
    snprintf(name, sizeof(name), "cpu/cpu0/cache/index%d/type", index);
    put(name, type);
    snprintf(name, sizeof(name), "cpu/cpu0/cache/index%d/size", index);
    put(name, size);
}

static void caches(void **state)
{
    struct topology *topology;

    (void)state;
    put("cpu/online", "0\n");
    put_cache(0, "1\n", "Instruction\n", "64K\n");
    put_cache(1, "1\n", "Data\n", "48K\n");
    put_cache(2, "2\n", "Unified\n", "1024K\n");
    put_cache(3, "3\n", "Unified\n", "32M\n");
    assert_int_equal(topology_open(&topology, root), 0);
    assert_int_equal(topology_cache_bytes(topology, 0, 1), 48 << 10);
    assert_int_equal(topology_cache_bytes(topology, 0, 2), 1 << 20);
    assert_int_equal(topology_cache_bytes(topology, 0, 3), 32 << 20);
    assert_int_equal(topology_cache_bytes(topology, 0, 4), 0);
    assert_int_equal(topology_cache_bytes(topology, 1, 2), 0);
    topology_close(&topology);
}

static void this_machine(void **state)
{
    struct topology *topology;
    cpu_set_t allowed, cpus;

    (void)state;
    assert_int_equal(topology_open(&topology, NULL), 0);
    assert_int_equal(topology_cpus_allowed(&allowed), 0);
    CPU_AND(&cpus, &allowed, topology_cpus_online(topology));
    assert_true(CPU_EQUAL(&cpus, &allowed));
    assert_true(CPU_ISSET(topology_cpu_current(), &allowed));
    assert_int_equal(topology_node_of_cpu(topology, topology_cpu_current()) >= 0,
                     topology_node_count(topology) > 0);
    topology_close(&topology);
}

static void lists(void **state)
{
    static const struct {
        const char *text, *formatted;
    } good[] = {
        {"0", "0"},        {"0-3,8", "0-3,8"}, {"3,2,1", "1-3"}, {"0-0", "0"},
        {"1-4,2-6", "1-6"}, {"1023", "1023"},   {"", ""},         {"0,1,3,4-4", "0-1,3-4"},
    };
    static const char *const bad[] = {"a",  "-1",  "1-",  "3-1", ",", "1,",
                                      "1,,2", " 1", "1 ", "0x1", "1-2-3", "1;2"};
    char text[256];
    cpu_set_t cpus;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_int_equal(cpulist_parse(good[i].text, &cpus), 0);
        assert_int_equal(cpulist_format(&cpus, text, sizeof(text)), 0);
        assert_string_equal(text, good[i].formatted);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(cpulist_parse(bad[i], &cpus), -EINVAL);
    assert_int_equal(cpulist_parse("1024", &cpus), -ERANGE);
    assert_int_equal(cpulist_parse("0-99999999999999999999", &cpus), -ERANGE);

    assert_int_equal(cpulist_parse("10-11,20", &cpus), 0);
    assert_int_equal(cpulist_format(&cpus, text, 9), 0);
    assert_string_equal(text, "10-11,20");
    assert_int_equal(cpulist_format(&cpus, text, 8), -ENOSPC);
    assert_int_equal(cpulist_format(&cpus, text, 0), -ENOSPC);
}

static void pinning(void **state)
{
    cpu_set_t before, one, now;

    (void)state;
    assert_int_equal(topology_cpus_allowed(&before), 0);
    CPU_ZERO(&one);
    CPU_SET(topology_cpu_current(), &one);
    assert_int_equal(topology_pin_thread(&one), 0);
    assert_int_equal(topology_cpus_allowed(&now), 0);
    assert_true(CPU_EQUAL(&one, &now));
    /* With a CPU that is not there, the kernel cuts the mask and reports success. */
    CPU_SET(CPU_SETSIZE - 1, &one);
    assert_int_equal(topology_pin_thread(&one), -EINVAL);
    CPU_ZERO(&one);
    assert_int_equal(topology_pin_thread(&one), -EINVAL);
    assert_int_equal(topology_repin_to(0, &one), -EINVAL);
    assert_int_equal(topology_pin_thread(&before), 0);
    one = before;
    assert_int_equal(topology_repin_to(0, &one), 0);
    CPU_SET(CPU_SETSIZE - 1, &one); /* what can be had of them it has */
    assert_int_equal(topology_repin_to(0, &one), 0);
    CPU_ZERO(&one);
    CPU_SET(topology_cpu_current(), &one);
    assert_int_equal(topology_repin_to(0, &one), CPU_COUNT(&before) > 1);
    assert_int_equal(topology_repin_to(0, &one), 0);
    assert_int_equal(topology_pin_thread(&before), 0);
}

static void memory_on_a_node(void **state)
{
    char *memory = mmap(NULL, 1024 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                        0);
    int error;

    (void)state;
    assert_ptr_not_equal(memory, MAP_FAILED);
    assert_int_equal(topology_bind_memory(memory, 1024 * 4096, -1), 0);
    assert_int_equal(topology_bind_memory(memory, 1024 * 4096, 5000), -EINVAL);
    error = topology_bind_memory(memory, 1024 * 4096, 0);
    if (error == -ENOSYS || error == -EPERM) {
        print_message("skipped: mbind: %s\n", strerror(-error));
        munmap(memory, 1024 * 4096);
        skip();
    }
    assert_int_equal(error, 0);
    assert_true(topology_bind_memory(memory, 1024 * 4096, 900) < 0);
    /* Only touched pages are anywhere; more than one batch is asked for. */
    assert_int_equal(topology_count_on_node(memory, 4096, 1024, 0), 0);
    memset(memory, 1, 700 * 4096);
    assert_int_equal(topology_count_on_node(memory, 4096, 1024, 0), 700);
    assert_int_equal(topology_count_on_node(memory, 2 * 4096, 512, 0), 350);
    assert_int_equal(topology_count_on_node(memory, 4096, 1024, 1), 0);
    munmap(memory, 1024 * 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_node, make_root, remove_root),
        cmocka_unit_test_setup_teardown(two_nodes, make_root, remove_root),
        cmocka_unit_test_setup_teardown(node_of_memory_only, make_root, remove_root),
        cmocka_unit_test_setup_teardown(no_numa, make_root, remove_root),
        cmocka_unit_test_setup_teardown(broken_trees, make_root, remove_root),
        cmocka_unit_test_setup_teardown(caches, make_root, remove_root),
        cmocka_unit_test(this_machine),
        cmocka_unit_test(lists),
        cmocka_unit_test(pinning),
        cmocka_unit_test(memory_on_a_node),
    };

    return cmocka_run_group_tests(tests, NULL, NULL) > 0;
}
