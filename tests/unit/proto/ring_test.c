/*
 * The rings in one thread, against a model that is two counters: indices that start anywhere and
 * wrap, never a false full or empty, hostile cq_head and seq, doorbell and wake-up words.
 *
 * usage: ring_test [SEED]
 */
#include "unit.h"

#include "proto/ring.h"

#define ENTRIES_MAX 64

static const uint32_t starts[] = {0,
                                  1,
                                  7,
                                  8,
                                  (UINT32_C(1) << 16) - 3,
                                  UINT32_C(1) << 16,
                                  (UINT32_C(1) << 31) - 3,
                                  UINT32_C(1) << 31,
                                  UINT32_MAX - ENTRIES_MAX,
                                  UINT32_MAX - 8,
                                  UINT32_MAX - 2,
                                  UINT32_MAX};

/* Both ends of both rings, as the worker sets them up. */
struct rig {
    uint64_t sq_slots[ENTRIES_MAX * GEMMD_SQE_WORDS], cq_slots[ENTRIES_MAX * GEMMD_CQE_WORDS];
    struct gemmd_client_line client_line;
    struct gemmd_ring_end client_sq, client_cq, worker_sq, worker_cq;
    uint32_t cq_head_seen, entries;
};

static void set_up(struct rig *rig, uint32_t entries, uint32_t start)
{
    memset(rig, 0, sizeof(*rig));
    rig->entries = entries;
    for (uint32_t i = 0; i < entries; i++) {
        rig->sq_slots[(i + 1) * GEMMD_SQE_WORDS - 1] = (uint64_t)start << 32;
        rig->cq_slots[(i + 1) * GEMMD_CQE_WORDS - 1] = (uint64_t)start << 32;
    }
    rig->client_sq = rig->worker_sq = (struct gemmd_ring_end){rig->sq_slots, entries - 1, start};
    rig->client_cq = rig->worker_cq = (struct gemmd_ring_end){rig->cq_slots, entries - 1, start};
    rig->client_line.cq_head = rig->cq_head_seen = start;
}

static struct gemmd_sqe make_job(uint64_t number)
{
    struct gemmd_sqe sqe;

    memset(&sqe, 0, sizeof(sqe));
    sqe.op = (uint8_t)number;
    sqe.m = (uint32_t)number * 3;
    sqe.a_offset = number * UINT64_C(0x9e3779b97f4a7c15);
    sqe.c_offset = ~number;
    sqe.user_data = number;
    sqe.residual_offset = (uint32_t)number ^ UINT32_C(0xdeadbeef); /* shares a word with seq */
    sqe.seq = (uint32_t)random_u64(); /* the push overwrites it */
    return sqe;
}

static void assert_job(const struct gemmd_sqe *sqe, uint64_t number, uint32_t seq)
{
    struct gemmd_sqe wanted = make_job(number);

    wanted.seq = seq;
    assert_memory_equal(sqe, &wanted, sizeof(wanted));
}

/* Counts since the start: submitted >= taken >= completed >= reaped >= submitted - entries. */
struct counts {
    uint64_t submitted, taken, completed, reaped, released;
};

static void submit(struct rig *rig, struct counts *counts)
{
    const struct gemmd_sqe sqe = make_job(counts->submitted);

    if (counts->submitted - counts->released == rig->entries)
        return;
    gemmd_sq_push(&rig->client_sq, &sqe);
    counts->submitted++;
}

static void take(struct rig *rig, struct counts *counts)
{
    const uint32_t seq = rig->worker_sq.index + 1;
    struct gemmd_sqe sqe;

    assert_int_equal(gemmd_sq_ready(&rig->worker_sq), counts->taken < counts->submitted);
    if (!gemmd_sq_take(&rig->worker_sq, &sqe)) {
        assert_int_equal(counts->taken, counts->submitted);
        return;
    }
    assert_true(counts->taken < counts->submitted);
    assert_job(&sqe, counts->taken, seq);
    counts->taken++;
}

static void complete(struct rig *rig, struct counts *counts)
{
    const struct gemmd_cqe cqe = {.user_data = counts->completed,
                                  .status = 5,
                                  .exec_ns = 77,
                                  .reserved = (uint32_t)~counts->completed};
    int64_t space = gemmd_cq_space(&rig->worker_cq, &rig->cq_head_seen, &rig->client_line);

    /* Never more than there is; exact when the copy had to be refreshed. */
    assert_in_range(space, 0, rig->entries - (counts->completed - counts->released));
    if (counts->completed - counts->released < rig->entries)
        assert_true(space > 0);
    if (space == 0 || counts->completed == counts->taken)
        return;
    gemmd_cq_push(&rig->worker_cq, &cqe);
    counts->completed++;
}

static void reap(struct rig *rig, struct counts *counts)
{
    const uint32_t seq = rig->client_cq.index + 1;
    struct gemmd_cqe cqe;

    assert_int_equal(gemmd_cq_ready(&rig->client_cq), counts->reaped < counts->completed);
    if (!gemmd_cq_take(&rig->client_cq, &cqe)) {
        assert_int_equal(counts->reaped, counts->completed);
        return;
    }
    assert_true(counts->reaped < counts->completed);
    assert_true(cqe.user_data == counts->reaped && cqe.status == 5 && cqe.exec_ns == 77);
    assert_int_equal(cqe.reserved, (uint32_t)~counts->reaped);
    assert_int_equal(cqe.seq, seq);
    counts->reaped++;
}

static void release(struct rig *rig, struct counts *counts)
{
    gemmd_cq_release(&rig->client_cq, &rig->client_line);
    counts->released = counts->reaped;
}

/* 10^5 jobs from each start in each size: in random steps, or in bursts that fill and empty. */
static void test_laps(void **state)
{
    static struct rig rig;

    (void)state;
    for (size_t i = 0; i < COUNT(starts); i++)
        for (uint32_t entries = GEMMD_RING_ENTRIES_MIN; entries <= ENTRIES_MAX; entries *= 2) {
            struct counts counts = {0, 0, 0, 0, 0};

            set_up(&rig, entries, starts[i]);
            while (counts.reaped < 100000) {
                void (*const step[])(struct rig *, struct counts *) = {submit, take, complete, reap,
                                                                       release};
                uint32_t times = random_below(4) ? 1 + random_below(3) : 2 * entries;
                uint32_t which = random_below(COUNT(step));

                while (times--)
                    step[which](&rig, &counts);
            }
            assert_int_equal(rig.client_sq.index, (uint32_t)(starts[i] + counts.submitted));
        }
}

/* An untouched ring is empty at every index of its first lap, whatever the start. */
static void test_fresh_ring_is_empty(void **state)
{
    static struct rig rig;

    (void)state;
    for (size_t i = 0; i < COUNT(starts); i++) {
        set_up(&rig, ENTRIES_MAX, starts[i]);
        for (uint32_t k = 0; k < ENTRIES_MAX; k++) {
            assert_false(gemmd_sq_ready(&rig.worker_sq));
            assert_false(gemmd_cq_ready(&rig.client_cq));
            rig.worker_sq.index++;
            rig.client_cq.index++;
        }
    }
}

/* Whatever a client writes to seq: full for index + 1 alone. */
static void test_hostile_seq(void **state)
{
    static struct rig rig;

    (void)state;
    for (size_t i = 0; i < COUNT(starts); i++) {
        set_up(&rig, 8, starts[i]);
        for (int64_t distance = -100000; distance <= 100000; distance++) {
            struct gemmd_sqe sqe;
            uint32_t index = rig.worker_sq.index;
            uint32_t seq = index + 1 + (uint32_t)distance;
            bool full = distance == 0;

            rig.sq_slots[((index & 7) + 1) * GEMMD_SQE_WORDS - 1] =
                (uint64_t)seq << 32 | 0xffffffff;
            assert_int_equal(gemmd_sq_ready(&rig.worker_sq), full);
            assert_int_equal(gemmd_sq_take(&rig.worker_sq, &sqe), full);
            rig.worker_sq.index = index;
        }
    }
}

/* cq_head at every distance: room when it is possible, a violation otherwise, never more than all.
 */
static void assert_space(uint32_t tail, uint32_t entries, uint32_t distance)
{
    const struct gemmd_client_line line = {.cq_head = tail - distance};
    const struct gemmd_ring_end cq = {NULL, entries - 1, tail};
    uint32_t seen = tail - entries; /* the copy says full, so the shared word is read */
    int64_t space = gemmd_cq_space(&cq, &seen, &line);

    if (space != (distance <= entries ? (int64_t)entries - distance : -1))
        fail_msg("tail %u entries %u distance %u: space %lld", tail, entries, distance,
                 (long long)space);
    assert_int_equal(seen, line.cq_head);
}

static void test_hostile_cq_head(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(starts); i++)
        for (uint32_t entries = 8; entries <= GEMMD_RING_ENTRIES_MAX; entries *= 8) {
            for (uint32_t distance = 0; distance < 1 << 17; distance++) {
                assert_space(starts[i], entries, distance);
                assert_space(starts[i], entries, 0 - distance - 1);
                assert_space(starts[i], entries, (UINT32_C(1) << 31) - (1 << 16) + distance);
            }
            for (int k = 0; k < 100000; k++)
                assert_space((uint32_t)random_u64(), entries, (uint32_t)random_u64());
        }
}

/* The worker's own copy is believed while it says that there is room. */
static void test_cq_head_is_read_once_per_lap(void **state)
{
    static struct rig rig;
    const struct gemmd_cqe cqe = {.status = 1};

    (void)state;
    set_up(&rig, 8, UINT32_MAX - 2);
    rig.client_line.cq_head = 12345; /* impossible, but not looked at yet */
    for (uint32_t used = 0; used < 8; used++) {
        assert_int_equal(gemmd_cq_space(&rig.worker_cq, &rig.cq_head_seen, &rig.client_line),
                         8 - used);
        gemmd_cq_push(&rig.worker_cq, &cqe);
    }
    assert_int_equal(gemmd_cq_space(&rig.worker_cq, &rig.cq_head_seen, &rig.client_line), -1);
}

/* ---- doorbell and wake-up -------------------------------------------------------------------- */

static const uint32_t epochs[] = {
    0, 1, 2, 3, UINT32_MAX - 3, UINT32_MAX - 2, UINT32_MAX - 1, UINT32_MAX};

static void test_doorbell(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(epochs); i++) {
        struct gemmd_doorbell_line line = {.need_kick = 0};
        uint32_t epoch = epochs[i], rung = 0;

        assert_false(gemmd_doorbell_wanted(&line, &rung));
        for (int arming = 0; arming < 8; arming++) {
            uint32_t before = epoch;

            gemmd_doorbell_arm(&line, &epoch);
            assert_true(epoch & 1);
            assert_int_not_equal(epoch, before);
            assert_int_equal(line.need_kick, epoch);
            /* Once per arming, however often it asks. */
            assert_true(gemmd_doorbell_wanted(&line, &rung));
            assert_false(gemmd_doorbell_wanted(&line, &rung));
            gemmd_doorbell_disarm(&line);
            assert_false(gemmd_doorbell_wanted(&line, &rung));
        }
    }
}

static void test_wake_up_once_per_epoch(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(epochs); i++) {
        struct gemmd_client_line client = {.cq_arm = 0};
        struct gemmd_worker_line worker = {.cq_futex = epochs[i]};
        uint32_t epoch = epochs[i], woken = 0;

        assert_false(gemmd_wake_wanted(&client, 1, &worker, &woken));
        for (int arming = 0; arming < 8; arming++) {
            uint32_t seen = gemmd_wake_arm(&client, &epoch, &worker, 1);

            assert_true(epoch & 1);
            assert_int_equal(seen, worker.cq_futex);
            assert_true(gemmd_wake_wanted(&client, 1, &worker, &woken));
            assert_int_not_equal(worker.cq_futex, seen); /* a futex wait on `seen` returns */
            assert_false(gemmd_wake_wanted(&client, 1, &worker, &woken));
            assert_int_equal(worker.cq_futex, seen + 1);
            gemmd_wake_disarm(&client);
            assert_false(gemmd_wake_wanted(&client, 1, &worker, &woken));
        }
    }
}

/* Not before the tail has reached cq_wake_at, also across the wrap. */
static void test_wake_at(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(starts); i++)
        for (int32_t distance = -5000; distance <= 5000; distance++) {
            struct gemmd_client_line client = {.cq_arm = 0};
            struct gemmd_worker_line worker = {.cq_futex = 9};
            uint32_t epoch = 0, woken = 0;

            gemmd_wake_arm(&client, &epoch, &worker, starts[i]);
            assert_int_equal(
                gemmd_wake_wanted(&client, starts[i] + (uint32_t)distance, &worker, &woken),
                distance >= 0);
            assert_int_equal(worker.cq_futex, distance >= 0 ? 10 : 9);
        }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_laps),
        cmocka_unit_test(test_fresh_ring_is_empty),
        cmocka_unit_test(test_hostile_seq),
        cmocka_unit_test(test_hostile_cq_head),
        cmocka_unit_test(test_cq_head_is_read_once_per_lap),
        cmocka_unit_test(test_doorbell),
        cmocka_unit_test(test_wake_up_once_per_epoch),
        cmocka_unit_test(test_wake_at),
    };

    random_seed(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
