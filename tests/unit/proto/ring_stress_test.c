/*
 * Two threads on one pair of rings: each job arrives once, whole and in order, and so does its
 * completion.  Nobody sleeps here, so no fence is involved and ThreadSanitizer, which does not
 * model fences, sees every edge (S, C and H) as it is.
 *
 * usage: ring_stress_test [JOBS]
 */
#include "unit.h"

#include <pthread.h>
#include <sched.h>

#include "proto/ring.h"

#define ENTRIES 64
/* On one CPU the other side moves only when we let it. */
#define SPINS 200

static struct {
    _Alignas(64) uint64_t sq[ENTRIES * GEMMD_SQE_WORDS];
    _Alignas(64) uint64_t cq[ENTRIES * GEMMD_CQE_WORDS];
    _Alignas(64) struct gemmd_client_line client_line;
    /* A's and C's rows, and a word per cq_head: plain memory that the edges have to carry. */
    _Alignas(64) uint64_t a[ENTRIES], c[ENTRIES], head[ENTRIES];
} shared;

static uint64_t jobs = 1000000;
static uint32_t start;

static uint64_t payload(uint64_t number)
{
    return number * UINT64_C(0x9e3779b97f4a7c15) ^ 0x5555;
}

static void wait_a_little(uint32_t *spins)
{
    if (++*spins % SPINS == 0)
        sched_yield();
    gemmd_cpu_relax();
}

static void *work(void *argument)
{
    struct gemmd_ring_end sq = {shared.sq, ENTRIES - 1, start};
    struct gemmd_ring_end cq = {shared.cq, ENTRIES - 1, start};
    uint32_t head_seen = start, spins = 0;
    uint64_t *faults = argument;

    for (uint64_t number = 0; number < jobs;) {
        struct gemmd_cqe cqe = {.status = 0};
        struct gemmd_sqe sqe;
        uint32_t head_before = head_seen;
        int64_t space = gemmd_cq_space(&cq, &head_seen, &shared.client_line);

        if (space < 0) {
            ++*faults; /* an honest client's head is always possible */
            return NULL;
        }
        if (head_seen != head_before)
            *faults += shared.head[head_seen % ENTRIES] != payload(head_seen);
        if (space == 0 || !gemmd_sq_take(&sq, &sqe)) {
            wait_a_little(&spins);
            continue;
        }
        *faults += sqe.user_data != number || sqe.a_offset != payload(number) ||
                   sqe.m != (uint32_t)number || shared.a[number % ENTRIES] != payload(number);
        shared.c[number % ENTRIES] = ~payload(number);
        cqe.user_data = sqe.user_data;
        cqe.exec_ns = (uint32_t)number;
        gemmd_cq_push(&cq, &cqe);
        number++;
    }
    return NULL;
}

static uint64_t run_client(void)
{
    struct gemmd_ring_end sq = {shared.sq, ENTRIES - 1, start};
    struct gemmd_ring_end cq = {shared.cq, ENTRIES - 1, start};
    uint64_t submitted = 0, reaped = 0, released = 0, faults = 0;
    uint32_t spins = 0;

    while (reaped < jobs) {
        struct gemmd_sqe sqe = {.op = GEMMD_OP_GEMM};
        struct gemmd_cqe cqe;
        bool moved = false;

        if (submitted < jobs && submitted - released < ENTRIES) {
            shared.a[submitted % ENTRIES] = payload(submitted);
            sqe.m = (uint32_t)submitted;
            sqe.a_offset = payload(submitted);
            sqe.user_data = submitted++;
            gemmd_sq_push(&sq, &sqe);
            moved = true;
        }
        while (gemmd_cq_take(&cq, &cqe)) {
            faults += cqe.user_data != reaped || cqe.exec_ns != (uint32_t)reaped ||
                      shared.c[reaped % ENTRIES] != ~payload(reaped);
            reaped++;
            moved = true;
        }
        /* Late at times, so that the worker meets a full ring. */
        if (released != reaped && (reaped - released > ENTRIES / 2 || reaped == submitted)) {
            shared.head[cq.index % ENTRIES] = payload(cq.index);
            gemmd_cq_release(&cq, &shared.client_line);
            released = reaped;
        }
        if (!moved)
            wait_a_little(&spins);
    }
    return faults;
}

static void stress(uint32_t from)
{
    uint64_t worker_faults = 0, client_faults;
    pthread_t worker;

    start = from;
    memset(&shared, 0, sizeof(shared));
    for (uint32_t i = 0; i < ENTRIES; i++) {
        shared.sq[(i + 1) * GEMMD_SQE_WORDS - 1] = (uint64_t)start << 32;
        shared.cq[(i + 1) * GEMMD_CQE_WORDS - 1] = (uint64_t)start << 32;
    }
    shared.client_line.cq_head = start;
    assert_int_equal(pthread_create(&worker, NULL, work, &worker_faults), 0);
    client_faults = run_client();
    pthread_join(worker, NULL);
    assert_int_equal(client_faults, 0);
    assert_int_equal(worker_faults, 0);
}

static void test_from_zero(void **state)
{
    (void)state;
    stress(0);
}

static void test_across_the_wrap(void **state)
{
    (void)state;
    stress(UINT32_MAX - 2);
}

static void test_across_half(void **state)
{
    (void)state;
    stress((UINT32_C(1) << 31) - 3);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_from_zero),
        cmocka_unit_test(test_across_the_wrap),
        cmocka_unit_test(test_across_half),
    };

    if (argc > 1)
        jobs = strtoull(argv[1], NULL, 0);
    alarm(110); /* a hang is a failure, too */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
