/* The weight pool: its ladder, its account, its promise of zeroed, read-only, separate ranges. */
#include "unit.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "worker/pool.h"

#define KIB UINT64_C(1024)
#define MIB (KIB << 10)
#define GIB (MIB << 10)
#define HUGE_BYTES (2 * MIB)

#define THP_ENABLED "/sys/kernel/mm/transparent_hugepage/enabled"

/* ---- faults put into the kernel's answers ---------------------------------------------------- */

static bool no_populate, no_thp, ineffective_thp;
static int steal_pages; /* taken at the next hugetlb mapping */
static void *stolen = MAP_FAILED;

int __real_madvise(void *memory, size_t bytes, int advice);
int __wrap_madvise(void *memory, size_t bytes, int advice);
void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);

int __wrap_madvise(void *memory, size_t bytes, int advice)
{
    if ((no_populate && advice == MADV_POPULATE_WRITE) || (no_thp && advice == MADV_HUGEPAGE)) {
        errno = EINVAL;
        return -1;
    }
    if (ineffective_thp && advice == MADV_HUGEPAGE)
        advice = MADV_NOHUGEPAGE;
    return __real_madvise(memory, bytes, advice);
}

static void *real_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
}

void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    void *memory;

    if (!steal_pages || fd < 0)
        return real_mmap(address, bytes, protection, flags, fd, offset);
    /* Without a reservation, as if another cpuset's node had the reserved pages. */
    memory = real_mmap(address, bytes, protection, flags | MAP_NORESERVE, fd, offset);
    if (memory != MAP_FAILED && stolen == MAP_FAILED)
        stolen = real_mmap(NULL, (size_t)steal_pages * HUGE_BYTES, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
    return memory;
}

/* What mmap is called where off_t was asked to have 64 bits. */
void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return __wrap_mmap(address, bytes, protection, flags, fd, offset);
}

/* ---- helpers --------------------------------------------------------------------------------- */

static struct pool *open_pool(uint64_t limit, enum pool_policy policy, bool require)
{
    struct pool_config config = {
        .limit_bytes = limit, .policy = policy, .require_hugepages = require, .node = -1};
    struct pool *pool;

    assert_int_equal(pool_open(&pool, &config), 0);
    return pool;
}

static void *alloc(struct pool *pool, uint64_t bytes)
{
    void *memory;

    assert_int_equal(pool_alloc(pool, bytes, &memory), 0);
    assert_non_null(memory);
    assert_int_equal((uintptr_t)memory % 4096, 0);
    assert_int_equal(pool_write_end(pool, memory), 0);
    return memory;
}

static struct pool_report report_of(const struct pool *pool)
{
    struct pool_report report;

    pool_report(pool, &report);
    assert_int_equal(report.bytes_1g + report.bytes_2m + report.bytes_thp + report.bytes_4k,
                     report.bytes);
    assert_true(report.bytes_thp <= report.bytes && report.bytes_4k <= report.bytes);
    assert_true(report.bytes_used <= report.bytes);
    assert_true(report.bytes <= report.bytes_limit);
    assert_true(report.bytes_on_node <= report.bytes);
    assert_null(strchr(report.lost, '\n'));
    return report;
}

/* The smaps field of the mapping that holds `memory`, or its flags line. */
static bool smaps_line(const void *memory, const char *field, char *out, size_t out_bytes)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    bool inside = false, found = false;
    unsigned long start, end;
    char line[512];

    assert_non_null(smaps);
    while (!found && fgets(line, sizeof(line), smaps)) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            inside = (uintptr_t)memory >= start && (uintptr_t)memory < end;
        else if (inside && strncmp(line, field, strlen(field)) == 0)
            found = snprintf(out, out_bytes, "%s", line + strlen(field)) > 0;
    }
    fclose(smaps);
    return found;
}

static void fill(struct pool *pool, void *memory, uint64_t bytes, int value)
{
    assert_int_equal(pool_write_begin(pool, memory), 0);
    memset(memory, value, bytes);
    assert_int_equal(pool_write_end(pool, memory), 0);
}

static bool is_filled(const void *memory, uint64_t bytes, int value)
{
    const uint8_t *at = memory;

    return bytes == 0 || (at[0] == (uint8_t)value && memcmp(at, at + 1, bytes - 1) == 0);
}

/* ---- the ladder ------------------------------------------------------------------------------ */

static void no_huge_pages(void **state)
{
    struct pool_report report;
    struct pool *pool;
    void *memory;

    (void)state;
    NEED_HUGEPAGES(0);
    pool = open_pool(GIB, POOL_POLICY_AUTO, false);
    /* Said before the first layer is there, with pages for the whole pool. */
    report = report_of(pool);
    assert_non_null(strstr(report.lost, "no 2 MiB huge pages (0 free of 0)"));
    assert_non_null(strstr(report.lost, "sysctl vm.nr_hugepages=512"));
    memory = alloc(pool, 40 * MIB);
    report = report_of(pool);
    assert_int_equal(report.bytes, 40 * MIB);
    assert_int_equal(report.bytes_used, 40 * MIB);
    assert_int_equal(report.bytes_2m + report.bytes_1g, 0);
    assert_non_null(strstr(report.lost, "sysctl vm.nr_hugepages=20"));
    assert_int_equal(pool_page_bytes(pool, memory),
                     report.bytes_thp == report.bytes ? HUGE_BYTES : 4 * KIB);
    pool_close(&pool);
    assert_null(pool);
}

static void forty_huge_pages(void **state)
{
    struct pool *pool;
    struct pool_report report;
    void *memory[4];

    (void)state;
    NEED_HUGEPAGES(40);
    pool = open_pool(GIB, POOL_POLICY_AUTO, false);
    assert_string_equal(report_of(pool).lost, "");
    memory[0] = alloc(pool, MIB); /* an extent of 16 pages */
    report = report_of(pool);
    assert_int_equal(report.bytes, 32 * MIB);
    assert_int_equal(report.bytes_used, MIB);
    assert_int_equal(report.bytes_2m, 32 * MIB);
    assert_int_equal(report.bytes_on_node, 32 * MIB);
    assert_string_equal(report.lost, "");
    assert_int_equal(hugepages_free(), 24);
    assert_int_equal(pool_page_bytes(pool, memory[0]), HUGE_BYTES);
    memory[1] = alloc(pool, 33 * MIB); /* 17 pages */
    assert_int_equal(report_of(pool).bytes_2m, 66 * MIB);
    memory[2] = alloc(pool, 32 * MIB); /* 7 pages are left: the next rung */
    report = report_of(pool);
    assert_int_equal(report.bytes_2m, 66 * MIB);
    assert_int_equal(report.bytes_thp + report.bytes_4k, 32 * MIB);
    assert_non_null(strstr(report.lost, "no 2 MiB huge pages (7 free of 40)"));
    assert_non_null(strstr(report.lost, "sysctl vm.nr_hugepages=49"));
    fill(pool, memory[1], 33 * MIB, 3);
    for (int i = 0; i < 3; i++)
        pool_free(pool, memory[i]);
    assert_int_equal(report_of(pool).bytes, 0);
    assert_int_equal(hugepages_free(), 40);
    /* The machine is as good as it was: nothing is lost any more. */
    memory[3] = alloc(pool, MIB);
    assert_string_equal(report_of(pool).lost, "");
    pool_close(&pool);
    assert_int_equal(hugepages_free(), 40);
}

/* Fewer pages than the usual extent, enough for the request. */
static void last_pages_are_used(void **state)
{
    struct pool *pool;

    (void)state;
    NEED_HUGEPAGES(3);
    pool = open_pool(GIB, POOL_POLICY_2M, false);
    alloc(pool, 5 * MIB);
    assert_int_equal(report_of(pool).bytes_2m, 6 * MIB);
    assert_int_equal(report_of(pool).bytes, 6 * MIB);
    pool_close(&pool);
}

static void required_huge_pages(void **state)
{
    struct pool_config config = {.limit_bytes = GIB, .require_hugepages = true, .node = -1};
    struct pool *pool;
    void *memory;

    (void)state;
    NEED_HUGEPAGES(0);
    assert_int_equal(pool_open(&pool, &config), -ENOMEM);
    assert_null(pool);
    NEED_HUGEPAGES(40);
    pool = open_pool(GIB, POOL_POLICY_AUTO, true);
    assert_int_equal(report_of(pool).bytes, 0);
    alloc(pool, 70 * MIB);
    assert_int_equal(pool_alloc(pool, 20 * MIB, &memory), -ENOMEM);
    assert_null(memory);
    assert_int_equal(report_of(pool).bytes, 70 * MIB);
    assert_non_null(strstr(report_of(pool).lost, "sysctl vm.nr_hugepages=45"));
    pool_close(&pool);
    config.policy = POOL_POLICY_NONE;
    assert_int_equal(pool_open(&pool, &config), -EINVAL);
    config = (struct pool_config){.limit_bytes = MIB, .require_hugepages = true, .node = -1};
    assert_int_equal(pool_open(&pool, &config), -ENOMEM);
    config = (struct pool_config){.limit_bytes = 0, .node = -1};
    assert_int_equal(pool_open(&pool, &config), -EINVAL);
}

/* One GiB pages: what this machine has decides, but the account must be right. */
static void one_gib_policy(void **state)
{
    struct pool *pool;
    struct pool_report report;
    long free_1g = read_number("/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages");

    (void)state;
    pool = open_pool(3 * GIB, POOL_POLICY_1G, false);
    if (free_1g <= 0)
        assert_non_null(strstr(report_of(pool).lost, "no 1 GiB huge pages"));
    alloc(pool, MIB);
    report = report_of(pool);
    assert_int_equal(report.bytes_1g, free_1g > 0 ? GIB : 0);
    pool_close(&pool);
}

/* Pages go between the reservation and the populating; no SIGBUS, with either way of populating. */
static int allocate_while_pages_vanish(void *argument)
{
    struct pool *pool = open_pool(GIB, POOL_POLICY_2M, false);
    struct pool_report report;
    void *memory;
    bool filled;

    steal_pages = 30;
    no_populate = *(bool *)argument;
    memory = alloc(pool, 40 * MIB);
    if (stolen == MAP_FAILED)
        return 10;
    fill(pool, memory, 40 * MIB, 1);
    report = report_of(pool);
    if (report.bytes_2m != 0 || !strstr(report.lost, "no 2 MiB huge pages"))
        return 11;
    filled = is_filled(memory, 40 * MIB, 1);
    pool_close(&pool);
    return filled ? 0 : 12;
}

static void stolen_pages(void **state)
{
    bool old_kernel[] = {false, true};

    (void)state;
    for (int i = 0; i < 2; i++) {
        NEED_HUGEPAGES(40);
        assert_int_equal(in_child(allocate_while_pages_vanish, &old_kernel[i]), 0);
    }
}

static void without_populate(void **state)
{
    struct pool *pool = open_pool(GIB, POOL_POLICY_THP, false);
    char rss[64];
    void *memory;

    (void)state;
    no_populate = true;
    memory = alloc(pool, 4 * MIB);
    no_populate = false;
    assert_true(smaps_line(memory, "Rss:", rss, sizeof(rss)));
    assert_int_equal(strtoul(rss, NULL, 10), 32 * 1024);
    pool_close(&pool);
}

static void transparent_pages(void **state)
{
    struct pool *pool = open_pool(GIB, POOL_POLICY_THP, false);
    struct pool_report report;
    char text[128];
    void *first, *second;
    FILE *file = fopen(THP_ENABLED, "re");
    bool offered = file && fgets(text, sizeof(text), file) && !strstr(text, "[never]");

    (void)state;
    if (file)
        fclose(file);
    first = alloc(pool, 32 * MIB);
    second = alloc(pool, 64 * MIB);
    assert_int_equal(report_of(pool).bytes, 96 * MIB);
    if (!offered) {
        assert_int_equal(report_of(pool).bytes_4k, 96 * MIB);
        assert_non_null(strstr(report_of(pool).lost, "transparent_hugepage/enabled"));
        assert_int_equal(pool_page_bytes(pool, first), 4 * KIB);
    } else {
        assert_true(report_of(pool).bytes_thp > 0);
        /* Each extent is a line of smaps of its own, whatever the kernel could merge. */
        assert_true(smaps_line(second, "AnonHugePages:", text, sizeof(text)));
        assert_true(strtoul(text, NULL, 10) <= 64 * 1024);
        assert_int_equal((uintptr_t)second % HUGE_BYTES, 0);
        /* Write access comes and goes without splitting a page. */
        report = report_of(pool);
        for (int i = 0; i < 10; i++)
            fill(pool, first, 100, i);
        assert_int_equal(report_of(pool).bytes_thp, report.bytes_thp);
    }
    pool_close(&pool);

    no_thp = true; /* a kernel without them */
    pool = open_pool(GIB, POOL_POLICY_THP, false);
    first = alloc(pool, MIB);
    no_thp = false;
    assert_int_equal(report_of(pool).bytes_4k, 32 * MIB);
    assert_non_null(strstr(report_of(pool).lost, "transparent huge pages for 0 of 32 MiB"));
    assert_int_equal(pool_page_bytes(pool, first), 4 * KIB);
    pool_close(&pool);
}

/* The kernel says yes and gives small pages: told from what it gave, not from what it said. */
static void transparent_pages_not_given(void **state)
{
    struct pool *pool = open_pool(GIB, POOL_POLICY_THP, false);
    void *memory;

    (void)state;
    ineffective_thp = true;
    memory = alloc(pool, MIB);
    ineffective_thp = false;
    assert_int_equal(report_of(pool).bytes_4k, 32 * MIB);
    assert_int_equal(pool_page_bytes(pool, memory), 4 * KIB);
    assert_non_null(strstr(report_of(pool).lost, "transparent huge pages for 0 of 32 MiB"));
    pool_close(&pool);
}

/* An operator who asks for small pages gets them, and is not told that he lost something. */
static void small_pages(void **state)
{
    struct pool *pool = open_pool(GIB, POOL_POLICY_NONE, false);
    void *memory = alloc(pool, 10 * MIB);

    (void)state;
    assert_int_equal(report_of(pool).bytes_4k, 32 * MIB);
    assert_string_equal(report_of(pool).lost, "");
    assert_int_equal(pool_page_bytes(pool, memory), 4 * KIB);
    pool_close(&pool);
}

static void node_is_verified(void **state)
{
    struct pool_config config = {.limit_bytes = GIB, .policy = POOL_POLICY_NONE, .node = 0};
    bool numa = access("/sys/devices/system/node/node0", F_OK) == 0;
    struct pool_report report;
    struct pool *pool;

    (void)state;
    assert_int_equal(pool_open(&pool, &config), 0);
    alloc(pool, 7 * MIB);
    report = report_of(pool);
    if (!strstr(report.lost, "mbind"))
        assert_int_equal(report.bytes_on_node, report.bytes);
    pool_close(&pool);

    /* A node that is not there: the weights work, and the report does not claim the node. */
    config.node = 900;
    assert_int_equal(pool_open(&pool, &config), 0);
    alloc(pool, 7 * MIB);
    report = report_of(pool);
    assert_non_null(strstr(report.lost, "not bound to node 900"));
    if (numa)
        assert_int_equal(report.bytes_on_node, 0);
    pool_close(&pool);
}

/* ---- protection ------------------------------------------------------------------------------ */

static int write_to(void *argument)
{
    *(volatile char *)argument = 1;
    return 0;
}

static void read_only_but_between(void **state)
{
    static const enum pool_policy policies[] = {POOL_POLICY_NONE, POOL_POLICY_THP, POOL_POLICY_2M};

    (void)state;
    signal(SIGSEGV, SIG_DFL);
    for (int i = 0; i < 3; i++) {
        struct pool *pool = open_pool(GIB, policies[i], false);
        char *memory = alloc(pool, 5 * MIB), *other = alloc(pool, MIB);

        assert_int_not_equal(in_child(write_to, memory + 3 * MIB), 0);
        assert_int_equal(pool_write_begin(pool, memory), 0);
        assert_int_equal(pool_write_begin(pool, other), 0);
        assert_int_equal(in_child(write_to, memory + 3 * MIB), 0);
        assert_int_equal(pool_write_end(pool, memory), 0);
        assert_int_equal(in_child(write_to, other), 0);
        assert_int_equal(pool_write_end(pool, other), 0);
        assert_int_not_equal(in_child(write_to, memory), 0);
        assert_int_not_equal(in_child(write_to, other + MIB - 1), 0);
        assert_int_equal(pool_write_end(pool, other), -EINVAL);
        assert_int_equal(pool_write_begin(pool, &pool), -EINVAL);
        /* Nor is there anything before or behind the extent. */
        assert_int_not_equal(in_child(write_to, memory - 1), 0);
        if (policies[i] != POOL_POLICY_2M) /* whose extents are shorter when pages are few */
            assert_int_not_equal(in_child(write_to, memory + 32 * MIB), 0);
        pool_free(pool, memory);
        memory = alloc(pool, 5 * MIB); /* recycled: cleared, and read-only again */
        assert_int_not_equal(in_child(write_to, memory), 0);
        pool_close(&pool);
    }
}

static void not_in_core_dumps(void **state)
{
    struct pool *pool = open_pool(GIB, POOL_POLICY_NONE, false);
    char flags[256];

    (void)state;
    assert_true(smaps_line(alloc(pool, MIB), "VmFlags:", flags, sizeof(flags)));
    assert_non_null(strstr(flags, " dd"));
    pool_close(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(transparent_pages),
        cmocka_unit_test(transparent_pages_not_given),
        cmocka_unit_test(small_pages),
        cmocka_unit_test(without_populate),
        cmocka_unit_test(node_is_verified),
        cmocka_unit_test(read_only_but_between),
        cmocka_unit_test(not_in_core_dumps),
        cmocka_unit_test(one_gib_policy),
        cmocka_unit_test(no_huge_pages),
        cmocka_unit_test(forty_huge_pages),
        cmocka_unit_test(last_pages_are_used),
        cmocka_unit_test(required_huge_pages),
        cmocka_unit_test(stolen_pages),
    };

    return cmocka_run_group_tests(tests, NULL, restore_hugepages) > 0;
}
