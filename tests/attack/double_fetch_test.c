/*
 * Every word a client writes is loaded once per use.  clang's trace-loads calls a hook for each
 * load of the worker's code, after optimisation, so a load that the compiler added shows as well
 * as one that was written.  The worker runs in this process; the hooks count loads of each word of
 * the session's c2w.  The client's code is not instrumented.
 *
 * Words 0 … 6 of a slot are payload: exactly one load per job.  Word 7 holds seq, which may be
 * looked at any number of times while the slot is empty, because any value but one means that;
 * its other half is taken with the copy.  The client line: at most one load of cq_arm and of
 * cq_head per job, and of cq_wake_at per load of cq_arm.
 *
 * Built a second time with GEMMD_DOUBLE_FETCH and double_fetch_mutant.h: the re-read must be seen.
 */
#include "tests/harness.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "proto/ring.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"
#include "worker/segment.h"
#include "worker/worker.h"

#define ENTRIES 16
#define JOBS    8000

/* ---- what the compiler calls ----------------------------------------------------------------- */

static uintptr_t watched_begin, watched_end;
static uint32_t loads[(GEMMD_RING_OFFSET + ENTRIES * sizeof(struct gemmd_sqe)) / 4];
static uint64_t hook_calls;

void __sanitizer_cov_load1(uint8_t *address);
void __sanitizer_cov_load2(uint16_t *address);
void __sanitizer_cov_load4(uint32_t *address);
void __sanitizer_cov_load8(uint64_t *address);
void __sanitizer_cov_load16(__int128 *address);
void __sanitizer_cov_8bit_counters_init(char *start, const char *end);
int __real_segment_protect_readonly(struct segment *segment);
int __wrap_segment_protect_readonly(struct segment *segment);

/* Counted by 4-byte word: wider loads count for each word they cover. */
static void note(uintptr_t address, size_t bytes)
{
    uintptr_t begin = __atomic_load_n(&watched_begin, __ATOMIC_ACQUIRE);

    __atomic_fetch_add(&hook_calls, 1, __ATOMIC_RELAXED);
    if (!begin || address < begin || address >= watched_end)
        return;
    for (size_t at = (address - begin) / 4; at * 4 < address - begin + bytes; at++)
        __atomic_fetch_add(&loads[at], 1, __ATOMIC_RELAXED);
}

void __sanitizer_cov_load1(uint8_t *address)
{
    note((uintptr_t)address, 1);
}

void __sanitizer_cov_load2(uint16_t *address)
{
    note((uintptr_t)address, 2);
}

void __sanitizer_cov_load4(uint32_t *address)
{
    note((uintptr_t)address, 4);
}

void __sanitizer_cov_load8(uint64_t *address)
{
    note((uintptr_t)address, 8);
}

void __sanitizer_cov_load16(__int128 *address)
{
    note((uintptr_t)address, 16);
}

void __sanitizer_cov_8bit_counters_init(char *start, const char *end)
{
    (void)start;
    (void)end;
}

/* Called for c2w, and for nothing else, when only the client writes it from there on. */
int __wrap_segment_protect_readonly(struct segment *segment)
{
    int error = __real_segment_protect_readonly(segment);

    memset(loads, 0, sizeof(loads));
    watched_end = (uintptr_t)segment->memory + sizeof(loads);
    __atomic_store_n(&watched_begin, (uintptr_t)segment->memory, __ATOMIC_RELEASE);
    return error;
}

/* ---- a worker in this process ---------------------------------------------------------------- */

static char socket_path[] = "/tmp/gemmd-fetch-XXXXXX";
static struct worker *worker;
static pthread_t thread;

static void *run_worker(void *argument)
{
    (void)argument;
    return worker_run(worker) == 0 ? NULL : &worker;
}

static uint32_t loads_at(size_t offset)
{
    return __atomic_load_n(&loads[offset / 4], __ATOMIC_RELAXED);
}

static uint64_t slot_loads_min = UINT64_MAX, slot_loads_max;

static void measure_slots(void)
{
    for (uint32_t slot = 0; slot < ENTRIES; slot++)
        for (uint32_t word = 0; word < 14; word++) { /* those that share no 8 bytes with seq */
            uint64_t count = loads_at(GEMMD_RING_OFFSET + slot * sizeof(struct gemmd_sqe) +
                                      word * 4);

            slot_loads_min = count < slot_loads_min ? count : slot_loads_min;
            slot_loads_max = count > slot_loads_max ? count : slot_loads_max;
        }
}

/* Jobs of every kind, one after the other or many at once: good, refused by form, by layer, by
 * operands, and empty. */
static void run_jobs(struct raw *raw, const struct gemmd_msg_layer_reply *handle, uint32_t depth)
{
    struct gemmd_cqe cqe;

    for (uint32_t submitted = 0, reaped = 0; reaped < JOBS;) {
        while (submitted < JOBS && submitted - reaped < depth) {
            struct gemmd_sqe sqe = {.op = GEMMD_OP_GEMM,
                                    .m = submitted % 4,
                                    .layer_id = handle->layer_id,
                                    .layer_gen = handle->layer_gen,
                                    .c_offset = raw->hello.arena_bytes / 2,
                                    .a_stride_bytes = handle->desc.k,
                                    .c_stride_bytes = handle->desc.n * 4};

            if (submitted % 7 == 1)
                sqe.residual_offset = 1;
            if (submitted % 7 == 2)
                sqe.layer_id = 999999;
            if (submitted % 7 == 3)
                sqe.c_offset = UINT64_MAX;
            raw_submit(raw, &sqe);
            submitted++;
        }
        assert_true(raw_complete(raw, &cqe, true, 10000));
        reaped++;
    }
}

static void test_loads(void **state)
{
    struct gemmd_msg_layer_reply handle;
    uint32_t arm, wake_at, head;
    struct raw raw;

    (void)state;
    raw_open(&raw, socket_path, ENTRIES, 1 << 16);
    raw_open_layer(&raw, "fetch", &handle);
    run_jobs(&raw, &handle, 1);
    run_jobs(&raw, &handle, ENTRIES);
    measure_slots();
    arm = loads_at(GEMMD_CLIENT_LINE_OFFSET + offsetof(struct gemmd_client_line, cq_arm));
    wake_at = loads_at(GEMMD_CLIENT_LINE_OFFSET + offsetof(struct gemmd_client_line, cq_wake_at));
    head = loads_at(GEMMD_CLIENT_LINE_OFFSET + offsetof(struct gemmd_client_line, cq_head));
    printf("%u jobs: loads of a payload word %lu to %lu (once each: %u); of cq_arm %u, cq_wake_at "
           "%u, cq_head %u; %lu loads traced\n", 2 * JOBS, (unsigned long)slot_loads_min,
           (unsigned long)slot_loads_max, 2 * JOBS / ENTRIES, arm, wake_at, head,
           (unsigned long)hook_calls);
    assert_int_equal(slot_loads_min, 2 * JOBS / ENTRIES);
#ifdef GEMMD_DOUBLE_FETCH
    assert_true(slot_loads_max > 2 * JOBS / ENTRIES); /* the mutant is caught */
#else
    assert_int_equal(slot_loads_max, 2 * JOBS / ENTRIES);
#endif
    assert_in_range(arm, 1, 2 * JOBS);
    assert_true(wake_at <= arm);
    assert_in_range(head, 1, 2 * JOBS);
    raw_close(&raw);
}

static int start(void **state)
{
    const char *const arguments[] = {"gemmd", "--socket", socket_path, "--sandbox", "off",
                                     "--pool-bytes", "64M", NULL};
    struct layer_case layer;
    struct options options;
    struct gemmd *owner;
    struct gemmd_layer *owned;
    int code, fd = mkstemp(socket_path);

    (void)state;
    REQUIRE(fd >= 0);
    close(fd);
    unlink(socket_path);
    unsetenv("GEMMD_SOCKET");
    REQUIRE(options_parse(&options, 7, (char **)(uintptr_t)arguments, &code) == 0);
    REQUIRE(worker_open(&worker, &options) == 0);
    REQUIRE(pthread_create(&thread, NULL, run_worker, NULL) == 0);
    layer_case_plain(&layer, 16, 32, 61);
    layer.desc.name = "fetch";
    owner = session_to(socket_path);
    REQUIRE(owner != NULL);
    REQUIRE(gemmd_layer_create(owner, &layer.desc, &owned) == 0);
    gemmd_close(&owner); /* the layer lingers, by its name */
    layer_case_fini(&layer);
    return 0;
}

static int stop(void **state)
{
    char lock[sizeof(socket_path) + 8];
    void *failed;

    (void)state;
    kill(getpid(), SIGTERM); /* blocked everywhere: the control thread reads it */
    pthread_join(thread, &failed);
    worker_close(&worker);
    snprintf(lock, sizeof(lock), "%s.lock", socket_path);
    unlink(lock);
    return failed ? -1 : 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loads),
    };

    return HARNESS_RUN(tests, start, stop, 60);
}
