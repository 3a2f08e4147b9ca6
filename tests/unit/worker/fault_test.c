/* A page of a session's segment goes away under the worker: zeros, a mark, a note; nothing else. */
#include "unit.h"

#include "tests/unit/worker/executor_scene.h"

#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "kernels/cpu.h"
#include "kernels/gemm.h"
#include "kernels/pack.h"
#include "proto/stats.h"
#include "worker/executor.h"
#include "worker/fault.h"
#include "worker/memory.h"

#define MIB  (UINT64_C(1) << 20)
#define SIZE (16 * UINT64_C(4096))

static int notify_fd = -1;

/* Memory in which every page from `from` on is gone: reading it raises SIGBUS. */
static char *map_with_hole(uint64_t bytes, uint64_t from)
{
    int fd = memory_create_file("gemmd-test", bytes, MEMORY_PAGE_BYTES);
    char *memory;

    assert_true(fd >= 0);
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(memory != MAP_FAILED);
    memset(memory, 0x5a, bytes);
    assert_int_equal(ftruncate(fd, (off_t)from), 0); /* no seals here: what they deny */
    close(fd);
    return memory;
}

/* In each test: cmocka puts its own handler there before it. */
static void install(void)
{
    assert_int_equal(fault_open(notify_fd), 0);
}

static uint64_t take_notes(void)
{
    uint64_t count = 0;

    return read(notify_fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

static void test_marks_and_goes_on(void **state)
{
    enum gemmd_status violation = GEMMD_STATUS_OK, other = GEMMD_STATUS_OK;
    char *memory = map_with_hole(SIZE, 2 * 4096), *bystander = map_with_hole(SIZE, SIZE);

    (void)state;
    install();
    assert_int_equal(fault_watch(bystander, SIZE, 4096, &other), 0);
    assert_int_equal(fault_watch(memory, SIZE, 4096, &violation), 0);
    assert_int_equal(((volatile char *)memory)[4096], 0x5a);
    assert_int_equal(violation, GEMMD_STATUS_OK);
    assert_int_equal(((volatile char *)memory)[2 * 4096 + 5], 0); /* SIGBUS */
    assert_int_equal(violation, GEMMD_STATUS_SEGMENT_FAULT);
    assert_int_equal(take_notes(), 1);
    ((volatile char *)memory)[3 * 4096] = 7; /* by a store */
    assert_int_equal(((volatile char *)memory)[3 * 4096], 7);
    assert_int_equal(((volatile char *)memory)[SIZE - 1], 0);
    assert_int_equal(take_notes(), 2);
    assert_int_equal(((volatile char *)memory)[0], 0x5a); /* the neighbours' pages stay */
    assert_int_equal(other, GEMMD_STATUS_OK);
    assert_int_equal(((volatile char *)bystander)[SIZE - 1], 0x5a);
    fault_unwatch(memory);
    fault_unwatch(bystander);
    munmap(memory, SIZE);
    munmap(bystander, SIZE);
}

/* An earlier verdict stays: what ended the session first is what its log line names. */
static void test_first_verdict_stays(void **state)
{
    enum gemmd_status violation = GEMMD_STATUS_CQ_HEAD;
    char *memory = map_with_hole(SIZE, 0);

    (void)state;
    install();
    assert_int_equal(fault_watch(memory, SIZE, 4096, &violation), 0);
    assert_int_equal(((volatile char *)memory)[9], 0);
    assert_int_equal(violation, GEMMD_STATUS_CQ_HEAD);
    fault_unwatch(memory);
    munmap(memory, SIZE);
    take_notes();
}

/* A whole job through the executor, with a hole in A: it does not complete with OK. */
static void test_job_over_a_hole(void **state)
{
    static struct executor_scene scene;
    struct executor_client *client = &scene.clients[0];
    struct gemmd_cqe cqe;
    char *arena = map_with_hole(SIZE, 0); /* A and C both gone */

    (void)state;
    install();
    executor_scene_open(&scene, 64, 64, 1);
    client->session.ring.arena = (uint8_t *)arena;
    client->session.ring.arena_bytes = SIZE;
    assert_int_equal(fault_watch(arena, SIZE, 4096, &client->session.ring.violation), 0);
    executor_scene_submit(client, &(struct gemmd_sqe){.op = GEMMD_OP_GEMM, .m = 64, .layer_gen = 1,
                                                      .a_stride_bytes = 64, .c_offset = 8 * 4096,
                                                      .c_stride_bytes = 256});
    assert_true(executor_take(&scene.executor, &client->session.ring));
    assert_true(executor_step(&scene.executor));
    assert_true(executor_scene_complete(client, &cqe));
    assert_int_equal(cqe.status, GEMMD_STATUS_SESSION_ENDED);
    assert_int_equal(client->session.ring.violation, GEMMD_STATUS_SEGMENT_FAULT);
    executor_scene_close(&scene);
    fault_unwatch(arena);
    munmap(arena, SIZE);
    take_notes();
}

/* A hole in a huge page, with no page left to fill it: the whole page is replaced. */
static void test_hugepage(void **state)
{
    enum gemmd_status violation = GEMMD_STATUS_OK;
    char *memory, *stolen;
    int fd;

    (void)state;
    NEED_HUGEPAGES(2);
    install();
    fd = memory_create_file("gemmd-test", 4 * MIB, MEMORY_PAGE_2M);
    assert_true(fd >= 0);
    memory = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(memory != MAP_FAILED);
    memset(memory, 0x5a, 4 * MIB);
    assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * MIB, 2 * MIB),
                     0);
    stolen = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
    assert_true(stolen != MAP_FAILED);
    assert_int_equal(fault_watch(memory, 4 * MIB, 2 * MIB, &violation), 0);
    assert_int_equal(((volatile char *)memory)[3 * MIB], 0);
    assert_int_equal(((volatile char *)memory)[2 * MIB], 0);
    assert_int_equal(violation, GEMMD_STATUS_SEGMENT_FAULT);
    assert_int_equal(((volatile char *)memory)[2 * MIB - 1], 0x5a);
    fault_unwatch(memory);
    munmap(stolen, 2 * MIB);
    munmap(memory, 4 * MIB);
    close(fd);
    take_notes();
}

static int touch_unwatched(void *argument)
{
    int null_fd = open("/dev/null", O_WRONLY);

    dup2(null_fd, STDERR_FILENO);
    return *(volatile char *)argument;
}

/* Outside the watched ranges nothing is papered over. */
static void test_elsewhere_it_ends_the_process(void **state)
{
    enum gemmd_status violation = GEMMD_STATUS_OK;
    char *memory = map_with_hole(SIZE, 0);

    (void)state;
    install();
    assert_int_equal(in_child(touch_unwatched, memory), 1000 + SIGBUS);
    assert_int_equal(fault_watch(memory, SIZE / 2, 4096, &violation), 0);
    assert_int_equal(in_child(touch_unwatched, memory), 0);
    assert_int_equal(in_child(touch_unwatched, memory + SIZE / 2), 1000 + SIGBUS);
    fault_unwatch(memory);
    assert_int_equal(in_child(touch_unwatched, memory), 1000 + SIGBUS);
    munmap(memory, SIZE);
}

static void test_table_is_bounded(void **state)
{
    static char memory[3 * GEMMD_WORKER_SESSIONS_MAX + 1];
    enum gemmd_status violation;
    size_t count = 0;

    (void)state;
    while (count < sizeof(memory) && fault_watch(&memory[count], 1, 1, &violation) == 0)
        count++;
    assert_int_equal(count, sizeof(memory) - 1);
    for (size_t i = 0; i < sizeof(memory); i++)
        fault_unwatch(&memory[i]);
    assert_int_equal(fault_watch(memory, 1, 1, &violation), 0);
    fault_unwatch(memory);
}

static int set_up(void **state)
{
    (void)state;
    notify_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return notify_fd < 0 ? -1 : 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_marks_and_goes_on),
        cmocka_unit_test(test_first_verdict_stays),
        cmocka_unit_test(test_job_over_a_hole),
        cmocka_unit_test_teardown(test_hugepage, restore_hugepages),
        cmocka_unit_test(test_elsewhere_it_ends_the_process),
        cmocka_unit_test(test_table_is_bounded),
    };

    return cmocka_run_group_tests(tests, set_up, NULL);
}
