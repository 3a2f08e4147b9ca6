/*
 * Hostile memory.  Every way to take a page from under the worker, or to write where it trusts
 * nobody, on segments of 4 KiB and of huge pages, through live sessions: denied; and what the
 * kernel may still do to a page (a hole from before the seals, a memory error) costs one session.
 */
#include "tests/harness.h"

#include <dirent.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/attack/attacks.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/hugepages.h"

#define MIB    (UINT64_C(1) << 20)
#define ROUNDS 10000

static struct harness_worker worker;
static struct layer_case layer;
static struct gemmd *bystander;
static struct gemmd_layer *bystander_layer;
static unsigned baseline_fds; /* with the bystander alone */

static void check_bystander(void)
{
    static uint64_t seed;

    assert_true(harness_is_alive(&worker));
    assert_int_equal(layer_case_check(bystander, bystander_layer, &layer, 3, ++seed), 0);
}

/* A good job of a raw session; its status. */
static int run_job(struct raw *raw, uint32_t m)
{
    struct gemmd_msg_layer_reply reply;
    struct gemmd_cqe cqe;
    struct gemmd_sqe sqe;

    raw_open_layer(raw, "memory", &reply);
    sqe = (struct gemmd_sqe){.op = GEMMD_OP_GEMM,
                             .m = m,
                             .layer_id = reply.layer_id,
                             .layer_gen = reply.layer_gen,
                             .c_offset = raw->hello.arena_bytes / 2,
                             .a_stride_bytes = reply.desc.k,
                             .c_stride_bytes = reply.desc.n * 4};
    raw_submit(raw, &sqe);
    return raw_complete(raw, &cqe, true, 10000) ? cqe.status : -1;
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

/* ---- attacks on a live session --------------------------------------------------------------- */

static void check_attacks(uint64_t arena_bytes, uint64_t page_bytes)
{
    struct raw raw;
    unsigned long count = 0;

    raw_open(&raw, worker.socket, 64, arena_bytes);
    assert_int_equal(raw.hello.arena_page_bytes, page_bytes);
    for (unsigned round = 0; round < ROUNDS; round++)
        for (unsigned segment = 0; segment < 3; segment++) {
            uint32_t worked = attack_memory(&raw, segment);

            for (unsigned i = 0; worked && i < MEMORY_ATTACK_COUNT; i++)
                if (worked >> i & 1)
                    fprintf(stderr, "segment %u: %s worked\n", segment,
                            memory_attack_name((enum memory_attack)i));
            assert_int_equal(worked, 0);
            count += MEMORY_ATTACK_COUNT;
        }
    printf("%lu attacks on segments with arena pages of %lu KiB: all denied\n", count,
           (unsigned long)(page_bytes >> 10));
    assert_int_equal(run_job(&raw, 3), GEMMD_STATUS_OK);
    raw_close(&raw);
    check_bystander();
}

static void test_small_pages(void **state)
{
    (void)state;
    check_attacks(MIB, 4096);
}

static void test_hugepages(void **state)
{
    (void)state;
    need_hugepages(8);
    check_attacks(4 * MIB, 2 * MIB);
}

/* The test of the tests: before the acknowledgement, with size seals only, they do work. */
static void test_before_the_seals(void **state)
{
    struct raw raw;
    uint32_t worked;

    (void)state;
    raw_open_mapping(&raw, worker.socket, 8, MIB);
    worked = attack_memory(&raw, 2);
    assert_true(worked >> MEMORY_PUNCH_HOLE & 1);
    assert_true(worked >> MEMORY_REMOVE & 1);
    assert_true(worked >> MEMORY_MAP_WRITABLE & 1);
    assert_true(worked >> MEMORY_REOPEN & 1);
    assert_false(worked >> MEMORY_TRUNCATE & 1);
    assert_false(worked >> MEMORY_EXTEND & 1);
    assert_int_equal(attack_memory(&raw, 1), 0); /* w2c is sealed before it is passed on */
    raw_close(&raw);
    check_bystander();
}

/* A client that lets go of its own memory, or of every page it can, during its job. */
static void test_own_mapping_goes(void **state)
{
    struct raw raw;

    (void)state;
    for (int i = 0; i < 20; i++) {
        raw_open(&raw, worker.socket, 8, MIB);
        madvise(raw.arena, raw.hello.arena_bytes, MADV_DONTNEED);
        munmap(raw.arena, raw.hello.arena_bytes);
        raw.arena = mmap(NULL, raw.hello.arena_bytes, PROT_READ, MAP_SHARED, raw.fds[2], 0);
        assert_true(raw.arena != MAP_FAILED);
        assert_int_equal(run_job(&raw, 100), GEMMD_STATUS_OK);
        raw_close(&raw);
    }
    check_bystander();
}

/* ---- holes from before the seals ------------------------------------------------------------- */

static int say_mapped(struct raw *raw)
{
    struct gemmd_msg_mapped mapped = {.header = raw_header(raw, GEMMD_MSG_MAPPED, sizeof(mapped))};
    struct gemmd_msg_mapped_reply reply;

    return raw_call(raw, &mapped, &reply, sizeof(reply));
}

/* They are filled again: zeros, which is the client's own loss. */
static void test_holes_are_filled(void **state)
{
    struct raw raw;

    (void)state;
    raw_open_mapping(&raw, worker.socket, 8, MIB);
    memset(raw.arena, 1, raw.hello.arena_bytes);
    assert_true(attack_punch_all(&raw));
    assert_int_equal(say_mapped(&raw), GEMMD_STATUS_OK);
    assert_int_equal(raw.arena[4096], 0);
    assert_int_equal(attack_memory(&raw, 2), 0);
    check_bystander();
    raw_close(&raw);
}

/* Huge pages given back by a hole and taken by somebody else: the worker would fault on the first
 * job.  The session is refused instead. */
static void test_hole_without_pages(void **state)
{
    struct raw raw;
    void *stolen;
    int status;

    (void)state;
    need_hugepages(4);
    raw_open_mapping(&raw, worker.socket, 8, 8 * MIB);
    assert_int_equal(raw.hello.arena_page_bytes, 2 * MIB);
    assert_true(attack_punch_all(&raw));
    stolen = mmap(NULL, 8 * MIB, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
    assert_true(stolen != MAP_FAILED);
    status = say_mapped(&raw);
    printf("mapped: %s\n", gemmd_status_name_of(status));
    assert_int_equal(status, GEMMD_STATUS_ARENA_NO_MEMORY);
    check_bystander();
    munmap(stolen, 8 * MIB);
    raw_close(&raw);
    check_bystander();
}

/* ---- what others left behind ----------------------------------------------------------------- */

static void check_zeros(const char *memory, uint64_t from, uint64_t to)
{
    for (uint64_t i = from; i < to; i++)
        if (memory[i]) {
            fprintf(stderr, "byte %lu is 0x%02x\n", (unsigned long)i, (unsigned char)memory[i]);
            fail();
        }
}

/* A fresh session sees zeros, however many have used the memory before it. */
static void check_canaries(uint64_t arena_bytes, unsigned rounds)
{
    for (unsigned round = 0; round < rounds; round++) {
        struct raw raw;

        raw_open(&raw, worker.socket, 64, arena_bytes);
        check_zeros(raw.arena, 0, raw.hello.arena_bytes);
        check_zeros(raw.c2w, GEMMD_CLIENT_LINE_OFFSET + 4, raw.hello.c2w_bytes);
        check_zeros(raw.w2c, GEMMD_WORKER_LINE_OFFSET, raw.hello.w2c_bytes);
        memset(raw.arena, 0xc5, raw.hello.arena_bytes);
        assert_int_equal(run_job(&raw, 3), GEMMD_STATUS_OK);
        raw_close(&raw);
    }
}

static void test_nothing_of_others(void **state)
{
    (void)state;
    check_canaries(MIB, 200);
}

static void test_nothing_of_others_hugepages(void **state)
{
    (void)state;
    need_hugepages(4); /* so that the same ones come back */
    check_canaries(4 * MIB, 50);
}

/* No segment has a name that others could open. */
static void test_no_names(void **state)
{
    struct raw raw;
    DIR *directory;
    unsigned found = 0;

    (void)state;
    raw_open(&raw, worker.socket, 8, MIB);
    directory = opendir("/dev/shm");
    for (const struct dirent *entry; directory && (entry = readdir(directory)) != NULL;)
        found += strncmp(entry->d_name, "gemmd", 5) == 0;
    if (directory)
        closedir(directory);
    assert_int_equal(found, 0);
    raw_close(&raw);
}

/* ---- a memory error -------------------------------------------------------------------------- */

/* Where the process has mapped the file of `fd`. */
static uintptr_t mapping_of(pid_t pid, int fd)
{
    unsigned long inode = 0;
    unsigned device[2];
    uintptr_t address = 0;
    bool found = false;
    char path[64], line[512];
    struct stat status;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    file = fopen(path, "re");
    REQUIRE(file != NULL && fstat(fd, &status) == 0);
    while (!found && fgets(line, sizeof(line), file))
        found = sscanf(line, "%lx-%*x %*s %*s %x:%x %lu", &address, &device[0], &device[1],
                       &inode) == 4 &&
                makedev(device[0], device[1]) == status.st_dev && inode == status.st_ino;
    fclose(file);
    REQUIRE(found);
    return address;
}

/* Delivers SIGBUS to the dispatcher as the kernel does for a poisoned page at `address`. */
static void inject_memory_error(uintptr_t address)
{
    pid_t thread = machine_thread(worker.pid, "gemmd-dispatch");
    siginfo_t info = {.si_signo = SIGBUS, .si_code = BUS_MCEERR_AR};
    int status;

    info.si_addr = (void *)address;
    if (ptrace(PTRACE_SEIZE, thread, NULL, NULL) < 0)
        harness_skip("ptrace is not permitted");
    assert_int_equal(syscall(SYS_tgkill, worker.pid, thread, SIGBUS), 0);
    assert_int_equal(waitpid(thread, &status, __WALL), thread);
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGBUS);
    assert_int_equal(ptrace(PTRACE_SETSIGINFO, thread, NULL, &info), 0);
    assert_int_equal(ptrace(PTRACE_DETACH, thread, NULL, (void *)(uintptr_t)SIGBUS), 0);
}

/* The victim's session ends; everybody else's, and the worker, go on. */
static void test_memory_error(void **state)
{
    (void)state;
    if (machine_delays_signals())
        harness_skip("the thread sanitizer delays injected signals");
    for (unsigned segment = 0; segment < 3; segment++) {
        struct raw victim;

        raw_open(&victim, worker.socket, 8, MIB);
        assert_int_equal(run_job(&victim, 3), GEMMD_STATUS_OK);
        inject_memory_error(mapping_of(worker.pid, victim.fds[segment]) + 4096);
        assert_true(raw_is_ended(&victim, 5000));
        raw_close(&victim);
        check_bystander();
        for (int wait = 0; wait < 1000 && machine_fds(worker.pid) > baseline_fds; wait++)
            usleep(1000);
        assert_int_equal(machine_fds(worker.pid), baseline_fds);
    }
    assert_true(harness_log_has(&worker, "segment: a page"));
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, 24, 40, 31);
    layer.desc.name = "memory";
    harness_start(&worker, NULL, NULL);
    bystander = session_with(worker.socket, 0, MIB, -1);
    REQUIRE(bystander != NULL);
    REQUIRE(gemmd_layer_create(bystander, &layer.desc, &bystander_layer) == 0);
    baseline_fds = machine_fds(worker.pid);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    gemmd_close(&bystander);
    layer_case_fini(&layer);
    harness_stop(&worker);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_pages),
        cmocka_unit_test_teardown(test_hugepages, restore_hugepages),
        cmocka_unit_test(test_before_the_seals),
        cmocka_unit_test(test_own_mapping_goes),
        cmocka_unit_test(test_holes_are_filled),
        cmocka_unit_test_teardown(test_hole_without_pages, restore_hugepages),
        cmocka_unit_test(test_nothing_of_others),
        cmocka_unit_test_teardown(test_nothing_of_others_hugepages, restore_hugepages),
        cmocka_unit_test(test_no_names),
        cmocka_unit_test(test_memory_error),
    };

    return HARNESS_RUN(tests, start, stop, 120);
}
