/*
 * Submission and completion rings, doorbell words: every memory-order decision of gemmd is here.
 *
 * Both rings are single-producer single-consumer with the flag in the slot (FastForward, Giacomoni
 * et al., PPoPP 2008): a slot's `seq` equals index + 1 when it is full for that index, anything
 * else means empty.  No index is shared, so one line moves per batch of a line and there is no
 * index a peer could corrupt.  Indices are free-running u32; slots start with seq = ring_start,
 * which never equals index + 1 in the first lap, so that any start value works (tests start near
 * 2^32).
 *
 * Shared structs stay plain (proto/abi.h); the __atomic builtins below are the only accesses to
 * them.  Every shared word is loaded once per use into private memory.
 *
 *   edge   producer                            consumer
 *   S      sq_push: seq store-release          sq_take / sq_ready: seq load-acquire
 *   C      cq_push: seq store-release          cq_take: seq load-acquire
 *   H      cq_release: cq_head store-release   cq_space: cq_head load-acquire
 *   D      doorbell: Dekker, client fences after S, worker fences after need_kick (below)
 *   W      wake-up: Dekker, worker fences after C, client fences after cq_arm (below)
 */
#ifndef GEMMD_PROTO_RING_H
#define GEMMD_PROTO_RING_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "proto/abi.h"

/* Tests build mutants without a fence and show that the soak then stalls; never defined otherwise.
 */
#ifdef GEMMD_MUTANT_NO_CLIENT_FENCE
#define GEMMD_CLIENT_FENCE() ((void)0)
#else
#define GEMMD_CLIENT_FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#endif
#ifdef GEMMD_MUTANT_NO_WORKER_FENCE
#define GEMMD_WORKER_FENCE() ((void)0)
#else
#define GEMMD_WORKER_FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#endif

static inline void gemmd_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline uint32_t gemmd_load_acquire(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline uint32_t gemmd_load_relaxed(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline void gemmd_store_release(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline void gemmd_store_relaxed(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* Slots are moved as 64-bit words: the last one carries seq in its high half. */
#define GEMMD_SQE_WORDS (sizeof(struct gemmd_sqe) / sizeof(uint64_t))
#define GEMMD_CQE_WORDS (sizeof(struct gemmd_cqe) / sizeof(uint64_t))
static_assert(offsetof(struct gemmd_sqe, seq) == (GEMMD_SQE_WORDS - 1) * 8 + 4, "seq: high half");
static_assert(offsetof(struct gemmd_cqe, seq) == (GEMMD_CQE_WORDS - 1) * 8 + 4, "seq: high half");
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the ABI is little-endian"
#endif

/* Writes `words` words to a slot, the last with release (edge S or C). */
static inline void gemmd_slot_store(uint64_t *slot, const void *entry, size_t words, uint32_t seq)
{
    uint64_t copy[GEMMD_SQE_WORDS];

    memcpy(copy, entry, words * sizeof(uint64_t));
    copy[words - 1] = (copy[words - 1] & UINT32_MAX) | ((uint64_t)seq << 32);
    for (size_t i = 0; i + 1 < words; i++)
        __atomic_store_n(&slot[i], copy[i], __ATOMIC_RELAXED);
    __atomic_store_n(&slot[words - 1], copy[words - 1], __ATOMIC_RELEASE);
}

/* Copies a slot if it is full for `seq`.  Each word is loaded exactly once; the acquire load of
 * the last word (edge S or C) comes first and orders the others after it. */
static inline bool gemmd_slot_load(const uint64_t *slot, void *entry, size_t words, uint32_t seq)
{
    uint64_t copy[GEMMD_SQE_WORDS];

    copy[words - 1] = __atomic_load_n(&slot[words - 1], __ATOMIC_ACQUIRE);
    if ((uint32_t)(copy[words - 1] >> 32) != seq)
        return false;
    for (size_t i = 0; i + 1 < words; i++)
        copy[i] = __atomic_load_n(&slot[i], __ATOMIC_RELAXED);
    memcpy(entry, copy, words * sizeof(uint64_t));
    return true;
}

/* ---- submission ring ------------------------------------------------------------------------- */

/* One end of a ring: private to its process.  The producer's index is its tail, the consumer's its
 * head. */
struct gemmd_ring_end {
    uint64_t *slots; /* the consumer's mapping is read-only */
    uint32_t mask;
    uint32_t index;
};

/* Client.  The caller keeps at most `entries` jobs not yet reaped, so the slot is free: the worker
 * consumes in order and completes only what it consumed. */
static inline void gemmd_sq_push(struct gemmd_ring_end *sq, const struct gemmd_sqe *sqe)
{
    uint64_t *slot = sq->slots + (sq->index & sq->mask) * GEMMD_SQE_WORDS;

    gemmd_slot_store(slot, sqe, GEMMD_SQE_WORDS, sq->index + 1);
    sq->index++;
}

/* Worker: private copy of the next submission, or false when there is none. */
static inline bool gemmd_sq_take(struct gemmd_ring_end *sq, struct gemmd_sqe *out)
{
    const uint64_t *slot = sq->slots + (sq->index & sq->mask) * GEMMD_SQE_WORDS;

    if (!gemmd_slot_load(slot, out, GEMMD_SQE_WORDS, sq->index + 1))
        return false;
    sq->index++;
    return true;
}

/* Worker: is there a submission?  The re-check before sleep. */
static inline bool gemmd_sq_ready(const struct gemmd_ring_end *sq)
{
    const uint64_t *slot = sq->slots + (sq->index & sq->mask) * GEMMD_SQE_WORDS;
    uint64_t last = __atomic_load_n(&slot[GEMMD_SQE_WORDS - 1], __ATOMIC_ACQUIRE);

    return (uint32_t)(last >> 32) == sq->index + 1;
}

/* ---- completion ring ------------------------------------------------------------------------- */

/* Worker.  The caller has asked gemmd_cq_space. */
static inline void gemmd_cq_push(struct gemmd_ring_end *cq, const struct gemmd_cqe *cqe)
{
    uint64_t *slot = cq->slots + (cq->index & cq->mask) * GEMMD_CQE_WORDS;

    gemmd_slot_store(slot, cqe, GEMMD_CQE_WORDS, cq->index + 1);
    cq->index++;
}

/* Worker: free completion slots, or -1 when the client's cq_head is impossible (a violation).
 * *head_seen is the caller's private copy; the shared word is read only when the copy says full,
 * so a client that reaps costs the worker one line transfer per lap. */
static inline int64_t gemmd_cq_space(const struct gemmd_ring_end *cq, uint32_t *head_seen,
                                     const struct gemmd_client_line *client)
{
    uint32_t used = cq->index - *head_seen;

    if (used > cq->mask) {
        *head_seen = gemmd_load_acquire(&client->cq_head); /* edge H */
        used = cq->index - *head_seen;
        if (used > cq->mask + 1)
            return -1;
    }
    return (int64_t)cq->mask + 1 - used;
}

/* Client: private copy of the next completion, or false. */
static inline bool gemmd_cq_take(struct gemmd_ring_end *cq, struct gemmd_cqe *out)
{
    const uint64_t *slot = cq->slots + (cq->index & cq->mask) * GEMMD_CQE_WORDS;

    if (!gemmd_slot_load(slot, out, GEMMD_CQE_WORDS, cq->index + 1))
        return false;
    cq->index++;
    return true;
}

/* Client: is there a completion?  The re-check before sleep. */
static inline bool gemmd_cq_ready(const struct gemmd_ring_end *cq)
{
    const uint64_t *slot = cq->slots + (cq->index & cq->mask) * GEMMD_CQE_WORDS;
    uint64_t last = __atomic_load_n(&slot[GEMMD_CQE_WORDS - 1], __ATOMIC_ACQUIRE);

    return (uint32_t)(last >> 32) == cq->index + 1;
}

/* Client: gives the reaped slots back (edge H).  The line stays in the client's cache but for the
 * worker's one read per lap. */
static inline void gemmd_cq_release(const struct gemmd_ring_end *cq,
                                    struct gemmd_client_line *client)
{
    gemmd_store_release(&client->cq_head, cq->index);
}

/* ---- doorbell: waking a sleeping worker (edge D) --------------------------------------------- */

/*
 * Dekker's pattern: each side stores one word, then loads the other's.  Release and acquire do not
 * order a store before a later load (x86 keeps the store in its buffer), so both sides need a full
 * fence between the two.  The seq_cst fences are totally ordered: if the client's comes first, the
 * worker's re-check sees seq; if the worker's comes first, the client sees need_kick.
 *
 * The epoch is odd and new for each arming, so a client rings at most once per sleep.
 */

/* Client, once per batch after its last gemmd_sq_push.  True: ring the doorbell (one write). */
static inline bool gemmd_doorbell_wanted(const struct gemmd_doorbell_line *line,
                                         uint32_t *last_rung)
{
    uint32_t epoch;

    GEMMD_CLIENT_FENCE(); /* pairs with the worker's fence after gemmd_doorbell_arm */
    epoch = gemmd_load_relaxed(&line->need_kick);
    if (!(epoch & 1) || epoch == *last_rung)
        return false;
    *last_rung = epoch;
    return true;
}

/* Worker: this ring is not polled from here on.  Then GEMMD_WORKER_FENCE() once for all rings, then
 * gemmd_sq_ready on each. */
static inline void gemmd_doorbell_arm(struct gemmd_doorbell_line *line, uint32_t *epoch)
{
    *epoch = (*epoch + 2) | 1;
    gemmd_store_relaxed(&line->need_kick, *epoch);
}

static inline void gemmd_doorbell_disarm(struct gemmd_doorbell_line *line)
{
    gemmd_store_relaxed(&line->need_kick, 0);
}

/* ---- waking a sleeping client (edge W), the same pattern with the roles exchanged ------------ */

/* Client: about to sleep until completion index `wake_at` is written.  After this the caller
 * re-checks gemmd_cq_ready, then waits on cq_futex for a change of the returned value. */
static inline uint32_t gemmd_wake_arm(struct gemmd_client_line *client, uint32_t *epoch,
                                      const struct gemmd_worker_line *worker, uint32_t wake_at)
{
    uint32_t seen = gemmd_load_acquire(&worker->cq_futex);

    *epoch = (*epoch + 2) | 1;
    gemmd_store_relaxed(&client->cq_wake_at, wake_at);
    gemmd_store_release(&client->cq_arm, *epoch); /* after cq_wake_at */
    GEMMD_CLIENT_FENCE(); /* pairs with the worker's fence in gemmd_wake_wanted */
    return seen;
}

static inline void gemmd_wake_disarm(struct gemmd_client_line *client)
{
    gemmd_store_relaxed(&client->cq_arm, 0);
}

/* Worker, once per batch after its last gemmd_cq_push: true when the client sleeps and has what it
 * waits for; cq_futex is then changed, and the caller wakes it.  At most once per epoch. */
static inline bool gemmd_wake_wanted(const struct gemmd_client_line *client, uint32_t cq_tail,
                                     struct gemmd_worker_line *worker, uint32_t *last_woken)
{
    uint32_t epoch;

    GEMMD_WORKER_FENCE(); /* pairs with the client's fence in gemmd_wake_arm */
    epoch = gemmd_load_acquire(&client->cq_arm);
    if (!(epoch & 1) || epoch == *last_woken)
        return false;
    if ((int32_t)(cq_tail - gemmd_load_relaxed(&client->cq_wake_at)) < 0)
        return false;
    *last_woken = epoch;
    gemmd_store_release(&worker->cq_futex, gemmd_load_relaxed(&worker->cq_futex) + 1);
    return true;
}

/* Worker: nothing more is written here.  The caller wakes cq_futex, armed or not: a client that
 * loads the new value sees ENDED when it looks again, one that loaded the old does not sleep. */
static inline void gemmd_rings_end(struct gemmd_worker_line *worker)
{
    gemmd_store_release(&worker->state, GEMMD_WORKER_ENDED);
    gemmd_store_release(&worker->cq_futex, gemmd_load_relaxed(&worker->cq_futex) + 1);
}

#endif
