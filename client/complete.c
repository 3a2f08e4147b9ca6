/*
 * Reaping.  A completion is believed only for a job in flight: the private table gives back the
 * caller's user_data and frees the slot; anything else means that the worker is broken, and ends
 * the session.
 *
 * Waiting is: flush, spin on the next completion slot, then sleep on the futex word (edge W of
 * proto/ring.h).  A worker that dies wakes nobody, so sleeps are cut into slices of 100 ms with a
 * look at the connection after each.
 */
#include "client/internal.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Longest sleep without a look at the connection: how long a worker's death may go unnoticed. */
#define SLICE_NS UINT64_C(100000000)
/* Looks at the completion slot between two looks at the clock: at about 25 ns for either, the clock
 * costs 2 % of a spin. */
#define SPIN_LOOKS 32
/* A spinning client looks at the connection this often: half a microsecond in 1,000. */
#define SPIN_CHECK_NS UINT64_C(1000000)
/* gemmd_poll makes no system call unless nothing has completed for SILENT_NS. */
#define SILENT_NS    UINT64_C(1000000000)
#define SILENT_POLLS 1024

int gemmd_slots_init(struct gemmd *session, uint32_t entries)
{
    session->slots = calloc(entries, sizeof(*session->slots));
    session->slots_free = calloc(entries, sizeof(*session->slots_free));
    session->entries = entries;
    session->in_flight = 0;
    if (!session->slots || !session->slots_free)
        return -ENOMEM;
    for (uint32_t i = 0; i < entries; i++)
        session->slots_free[i] = entries - 1 - i;
    return 0;
}

/* ---- taking ---------------------------------------------------------------------------------- */

static void release_slot(struct gemmd *session, uint32_t index)
{
    session->hidden -= session->slots[index].hidden;
    session->slots[index].tag = 0;
    session->in_flight--;
    session->slots_free[session->entries - session->in_flight - 1] = index;
}

/* False: of no job in flight.  *taken grows unless it is a cancel's. */
static bool accept_completion(struct gemmd *session, const struct gemmd_cqe *cqe,
                              struct gemmd_completion *out, unsigned *taken)
{
    uint32_t index = (uint32_t)cqe->user_data, tag = (uint32_t)(cqe->user_data >> 32);

    if (index >= session->entries || tag == 0 || session->slots[index].tag != tag)
        return false;
    out->user_data = session->slots[index].user_data;
    out->status = cqe->status;
    out->error = cqe->status ? -gemmd_status_errno_of(cqe->status) : 0;
    out->queue_ns = cqe->queue_ns;
    out->exec_ns = cqe->exec_ns;
    *taken += !session->slots[index].hidden;
    release_slot(session, index);
    return true;
}

static unsigned take_completions(struct gemmd *session, struct gemmd_completion *out,
                                 unsigned capacity)
{
    struct gemmd_cqe cqe;
    uint32_t start = session->cq.index;
    unsigned taken = 0;

    if (session->in_flight == 0)
        return 0;
    while (taken < capacity && gemmd_cq_take(&session->cq, &cqe))
        if (!accept_completion(session, &cqe, &out[taken], &taken)) {
            gemmd_lose(session, "it completed a job that is not in flight");
            break;
        }
    if (session->cq.index != start)
        gemmd_cq_release(&session->cq, session->client_line);
    return taken;
}

/* Jobs in flight when the worker died, in no order. */
static unsigned take_lost(struct gemmd *session, struct gemmd_completion *out, unsigned capacity)
{
    unsigned taken = 0;

    for (uint32_t i = 0; i < session->entries && taken < capacity && session->in_flight; i++) {
        if (session->slots[i].tag == 0)
            continue;
        if (session->slots[i].hidden) {
            release_slot(session, i);
            continue;
        }
        out[taken++] = (struct gemmd_completion){
            .user_data = session->slots[i].user_data,
            .status = GEMMD_STATUS_WORKER_LOST,
            .error = -gemmd_status_errno_of(GEMMD_STATUS_WORKER_LOST)};
        release_slot(session, i);
    }
    return taken;
}

/* Jobs that recovery had to give up. */
static unsigned take_verdicts(struct gemmd *session, struct gemmd_completion *out,
                              unsigned capacity)
{
    enum gemmd_status status;
    unsigned taken = 0;
    uint32_t index;

    while (taken < capacity && gemmd_take_verdict(session, &index, &status)) {
        out[taken++] = (struct gemmd_completion){.user_data = session->slots[index].user_data,
                                                 .status = (int)status,
                                                 .error = -gemmd_status_errno_of((int)status)};
        release_slot(session, index);
    }
    return taken;
}

/* What is there; once the worker has ended, also what will never be there. */
static unsigned take(struct gemmd *session, struct gemmd_completion *out, unsigned capacity)
{
    /* Before the ring: what it wrote before ENDED is visible after this. */
    uint32_t state = gemmd_load_acquire(&session->worker_line->state);
    unsigned taken = take_completions(session, out, capacity);

    if (state == GEMMD_WORKER_ENDED && !session->lost)
        gemmd_lose(session, "it was told to end");
    if (session->verdicts)
        taken += take_verdicts(session, out + taken, capacity - taken);
    /* All that the old worker completed is taken; the rest another one may do. */
    if (taken == 0 && session->lost && session->in_flight && gemmd_recover(session) == 0)
        return session->verdicts ? take_verdicts(session, out, capacity) : 0;
    if (taken < capacity && session->lost && session->in_flight && (!session->copies || !taken))
        taken += take_lost(session, out + taken, capacity - taken);
    return taken;
}

/* True when the worker has died; what it completed before is taken first. */
static bool check_connection(struct gemmd *session)
{
    if (session->lost || gemmd_is_connected(session))
        return session->lost;
    gemmd_lose(session, "it died");
    return true;
}

/* A program that only polls must hear of a worker's death, too. */
static void watch_silence(struct gemmd *session)
{
    uint64_t now_ns;

    if (++session->polls_empty % SILENT_POLLS != 0)
        return;
    now_ns = gemmd_now_ns();
    if (session->polls_empty == SILENT_POLLS)
        session->silent_since_ns = now_ns;
    if (now_ns - session->silent_since_ns < SILENT_NS)
        return;
    check_connection(session);
    session->polls_empty = 0;
}

/* 0, or why there is nothing to take from. */
static int check_reap(struct gemmd *session, unsigned capacity)
{
    if (!gemmd_is_ours(session))
        return gemmd_check(session);
    if (session->control_only)
        return gemmd_fail(session, -EINVAL, "a control-only session has no rings");
    if (capacity == 0)
        return gemmd_fail(session, -EINVAL, "capacity: 0");
    return 0;
}

/* Ends a poll or wait of a session with a descriptor in the application's event loop. */
static int finish_with_fd(struct gemmd *session, struct gemmd_completion *out, unsigned capacity,
                          unsigned taken)
{
    if (taken < capacity && !session->lost) {
        gemmd_fd_arm(session);
        taken += take(session, out + taken, capacity - taken);
    }
    if (taken == 0 && check_connection(session))
        taken = take(session, out, capacity);
    if (session->lost)
        return taken ? (int)taken : gemmd_check(session);
    gemmd_fd_settle(session);
    return (int)taken;
}

int gemmd_poll(struct gemmd *session, struct gemmd_completion *out, unsigned capacity)
{
    int error = check_reap(session, capacity);
    unsigned taken;

    if (error < 0)
        return error;
    taken = take(session, out, capacity);
    if (gemmd_has_fd(session))
        return finish_with_fd(session, out, capacity, taken);
    if (taken || session->in_flight == 0) {
        session->polls_empty = 0;
        return (int)taken;
    }
    watch_silence(session);
    return session->lost ? (int)take(session, out, capacity) : 0;
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* Is there something to take? */
static bool is_ready(const struct gemmd *session)
{
    return session->lost || session->verdicts || gemmd_cq_ready(&session->cq) ||
           gemmd_load_acquire(&session->worker_line->state) == GEMMD_WORKER_ENDED;
}

/* A client that spins on the dispatcher's own CPU keeps it from the very work it waits for; looked
 * at in each round, since the kernel may move us.  Four processes of examples/digits on a busy
 * 2-CPU guest, rows/s: sleeping at once there 3.3 M, sched_yield in each round 1.8 M, spinning
 * 1.9 M. */
static bool may_spin(const struct gemmd *session)
{
    return session->spin_ns && sched_getcpu() != session->dispatcher_cpu;
}

/* True once something is ready; false when it is time to sleep.  *start_ns: when the spin began, 0
 * if the first round was enough, which is too short a time to ask the clock twice. */
static bool spin(struct gemmd *session, uint64_t deadline_ns, uint64_t *start_ns)
{
    uint64_t budget_ns = gemmd_spin_budget(&session->spin, session->spin_ns), checked_ns = 0;

    while (may_spin(session)) {
        uint64_t now_ns;

        for (int i = 0; i < SPIN_LOOKS; i++) {
            if (gemmd_cq_ready(&session->cq))
                return true;
            gemmd_cpu_relax();
        }
        now_ns = gemmd_now_ns();
        if (*start_ns == 0)
            *start_ns = checked_ns = now_ns;
        if (now_ns - checked_ns >= SPIN_CHECK_NS) {
            checked_ns = now_ns;
            check_connection(session);
        }
        if (is_ready(session))
            return true;
        if (now_ns - *start_ns >= budget_ns || now_ns >= deadline_ns)
            break;
    }
    return is_ready(session);
}

/* One slice of sleep.  0 or -EINTR; the caller looks again. */
static int sleep_slice(struct gemmd *session, uint64_t slice_ns)
{
    struct timespec slice = {.tv_nsec = (long)slice_ns};
    uint32_t seen;
    long result = 0;
    int error = 0;

    if (gemmd_has_fd(session)) {
        error = gemmd_fd_sleep(session, slice_ns);
        if (error == -ETIMEDOUT || (error == 0 && !is_ready(session)))
            check_connection(session);
        return error == -EINTR ? error : 0;
    }
    seen = gemmd_wake_arm(session->client_line, &session->wake_epoch, session->worker_line,
                          session->cq.index + 1);
    if (!is_ready(session)) {
        /* Not FUTEX_PRIVATE: the worker wakes it.  Our mapping may be read-only for a wait. */
        result = syscall(SYS_futex, &session->worker_line->cq_futex, FUTEX_WAIT, seen, &slice, NULL,
                         0);
        error = result < 0 ? errno : 0;
        session->syscalls++;
        session->sleeps++;
    }
    gemmd_wake_disarm(session->client_line);
    if (error == ETIMEDOUT)
        check_connection(session);
    return error == EINTR ? -EINTR : 0;
}

static_assert(SLICE_NS < 1000000000, "a timespec's tv_nsec");

/* 0 when something is ready, -ETIMEDOUT, -EINTR. */
static int sleep_until_ready(struct gemmd *session, uint64_t deadline_ns)
{
    while (!is_ready(session)) {
        uint64_t now_ns = gemmd_now_ns();
        uint64_t left_ns = now_ns < deadline_ns ? deadline_ns - now_ns : 0;
        int error;

        if (left_ns == 0)
            return -ETIMEDOUT;
        error = sleep_slice(session, left_ns < SLICE_NS ? left_ns : SLICE_NS);
        if (error < 0 && !is_ready(session))
            return error;
    }
    return 0;
}

/* Spins, then sleeps, and learns from how long it took.  As sleep_until_ready. */
static int wait_until_ready(struct gemmd *session, uint64_t deadline_ns)
{
    uint64_t start_ns = 0;
    bool slept = !spin(session, deadline_ns, &start_ns);
    int error = 0;

    if (slept && start_ns == 0)
        start_ns = gemmd_now_ns();
    if (slept)
        error = sleep_until_ready(session, deadline_ns);
    if (session->spin_ns)
        gemmd_spin_learn(&session->spin, start_ns ? gemmd_now_ns() - start_ns : 0, slept,
                         session->spin_ns);
    return error;
}

int gemmd_wait(struct gemmd *session, struct gemmd_completion *out, unsigned capacity,
               int timeout_ms)
{
    uint64_t deadline_ns = UINT64_MAX;
    int error = check_reap(session, capacity);
    unsigned taken;

    if (error < 0)
        return error;
    gemmd_flush(session);
    taken = take(session, out, capacity);
    if (taken || session->in_flight == 0 || timeout_ms == 0)
        return gemmd_has_fd(session) ? finish_with_fd(session, out, capacity, taken) : (int)taken;
    if (timeout_ms > 0)
        deadline_ns = gemmd_now_ns() + (uint64_t)timeout_ms * 1000000;
    while (taken == 0 && session->in_flight) {
        error = wait_until_ready(session, deadline_ns);
        taken = take(session, out, capacity);
        if (taken == 0 && error < 0)
            return error == -EINTR ? gemmd_fail(session, error, "wait: a signal came")
                                   : gemmd_fail(session, error, "wait: nothing completed in %d ms",
                                                timeout_ms);
    }
    return gemmd_has_fd(session) ? finish_with_fd(session, out, capacity, taken) : (int)taken;
}

int gemmd_run(struct gemmd *session, const struct gemmd_job *job, int timeout_ms)
{
    struct gemmd_completion done;
    int result;

    if (gemmd_is_ours(session) && session->in_flight != session->hidden)
        return gemmd_fail(session, -EBUSY, "run: %u jobs are in flight; use gemmd_submit",
                          session->in_flight - session->hidden);
    result = gemmd_submit(session, job, 1);
    if (result < 0)
        return result;
    result = gemmd_wait(session, &done, 1, timeout_ms);
    if (result < 0)
        return result;
    if (result == 0)
        return gemmd_fail(session, -ETIMEDOUT, "run: the job has not completed yet");
    if (done.status)
        return gemmd_fail(session, done.error, "%s", gemmd_status_text_of(done.status));
    return 0;
}

unsigned gemmd_in_flight(const struct gemmd *session)
{
    return session->in_flight - session->hidden;
}
