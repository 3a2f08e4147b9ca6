/*
 * The dispatcher's loop.  One turn: serve each hot session once, harvest events if some are
 * pending.  Nothing here allocates, logs, locks or makes a system call while jobs keep coming (the
 * mailbox's lock is taken only when the control thread has written its eventfd).
 */
#include "worker/dispatcher.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proto/ring.h"
#include "worker/clock.h"
#include "worker/event_loop.h"
#include "worker/executor.h"
#include "worker/hot_list.h"
#include "worker/sandbox.h"
#include "worker/session.h"
#include "worker/topology.h"

/* Turns between looks at the clock: at 20 ns a look and 20 ns an idle turn, 64 make it free. */
#define CLOCK_TURNS 64
#define EVENTS_MAX 64
/* A drain gives clients that never stop submitting this long. */
#define DRAIN_NS_MAX UINT64_C(10000000000)

struct dispatcher {
    struct dispatcher_config config;
    pthread_t thread;
    sem_t started;
    int start_error;
    bool running, stop;
    struct event_loop *loop;
    struct executor executor;
    struct hot_list list;
    uint32_t turns_since_clock;
    uint64_t loop_syscalls; /* of the event loop, as already counted */
};

/* ---- serving one session --------------------------------------------------------------------- */

/* Edge W: the client sleeps and has what it waits for. */
static void wake_client(struct dispatcher *dispatcher, struct session_ring *ring)
{
    const uint64_t one = 1;
    int wake_fd;

    if (!gemmd_wake_wanted(ring->client_line, ring->cq.index, ring->worker_line, &ring->last_woken))
        return;
    wake_fd = __atomic_load_n(&ring->wake_fd, __ATOMIC_ACQUIRE);
    if (wake_fd < 0)
        syscall(SYS_futex, &ring->worker_line->cq_futex, FUTEX_WAKE, 1, NULL, NULL, 0);
    else if (write(wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        abort(); /* our own eventfd, which nobody else can write or make blocking */
    gemmd_counter_add(&dispatcher->config.stats->syscalls, 1);
    gemmd_counter_add(&dispatcher->config.stats->wakes, 1);
    gemmd_counter_add(&ring->wakeups, 1);
}

static void report_violation(struct dispatcher *dispatcher, struct session_ring *ring,
                             enum gemmd_status status)
{
    const uint64_t one = 1;

    __atomic_store_n(&ring->violation, status, __ATOMIC_RELEASE);
    if (write(dispatcher->config.violation_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        abort(); /* our own eventfd */
}

/* Fills the batch from the ring, never beyond the room for completions. */
static void take_batch(struct dispatcher *dispatcher, struct session_ring *ring)
{
    bool timed = false;
    int64_t space;

    ring->batch_next = ring->batch_count = 0;
    if (!gemmd_sq_ready(&ring->sq))
        return;
    space = gemmd_cq_space(&ring->cq, &ring->cq_head_seen, ring->client_line);
    if (space < 0) {
        report_violation(dispatcher, ring, GEMMD_STATUS_CQ_HEAD);
        return;
    }
    ring->stalled = space == 0;
    while (ring->batch_count < SESSION_BATCH && ring->batch_count < space &&
           gemmd_sq_take(&ring->sq, &ring->batch[ring->batch_count]))
        timed |= ring->batch[ring->batch_count++].m != 0;
    ring->batch_seen_ns = timed ? clock_now_ns() : 0;
}

/* One batch of jobs or one slice's worth of work, whichever ends first.  True when there was any.
 */
static bool serve(struct dispatcher *dispatcher, struct session *session)
{
    struct session_ring *ring = &session->ring;
    struct executor *executor = &dispatcher->executor;
    struct job *job = &ring->job;
    uint64_t budget = EXECUTOR_SLICE_MACS;
    uint32_t completed = 0;

    if (ring->violation)
        return false;
    if (!session_ring_is_busy(ring))
        take_batch(dispatcher, ring);
    if (!session_ring_is_busy(ring))
        return false;

    while (budget && session_ring_is_busy(ring)) {
        enum gemmd_status status = GEMMD_STATUS_OK;

        if (!job->layer) {
            status = executor_admit(ring, &ring->batch[ring->batch_next++], job);
            job->seen_ns = ring->batch_seen_ns;
        }
        if (status == GEMMD_STATUS_OK && !executor_run_slice(executor, ring, job, &budget))
            break; /* the rest of it after the others' turn */
        executor_complete(executor, ring, job, status);
        job->layer = NULL;
        completed++;
    }
    if (completed)
        wake_client(dispatcher, ring);
    ring->used = true;
    return true;
}

/* ---- orders of the control thread ------------------------------------------------------------ */

static void attach(struct dispatcher *dispatcher, struct session *session)
{
    hot_list_add(&dispatcher->list, session);
    /* A kick may already wait in the eventfd: arming a poll on a readable descriptor fires at
     * once. */
    if (event_loop_add(dispatcher->loop, session->slot, session->kick_fd) < 0)
        hot_list_heat(&dispatcher->list, session); /* the sweep finds it from then on */
}

static void detach(struct dispatcher *dispatcher, struct session *session)
{
    event_loop_remove(dispatcher->loop, session->slot);
    hot_list_remove(&dispatcher->list, session);
}

static void set_layer(struct dispatcher *dispatcher, const struct mailbox_order *order)
{
    struct session_ring *ring = &order->session->ring;
    struct session_layer *entry = &ring->layers[order->layer_id];

    if (entry->layer && ring->job.layer == entry->layer) {
        executor_complete(&dispatcher->executor, ring, &ring->job, GEMMD_STATUS_LAYER_STALE);
        ring->job.layer = NULL;
        wake_client(dispatcher, ring);
    }
    entry->layer = order->layer;
    entry->gen = order->layer_gen;
}

/* Completes what every session has submitted; sessions that keep submitting are cut off after a
 * while.  Then tells them that nothing more will come. */
static void drain(struct dispatcher *dispatcher)
{
    uint64_t deadline_ns = clock_now_ns() + DRAIN_NS_MAX;
    bool busy = true;

    for (uint32_t slot = 0; slot < dispatcher->list.sessions_max; slot++)
        if (dispatcher->list.sessions[slot])
            gemmd_store_release(&dispatcher->list.sessions[slot]->ring.worker_line->state,
                                GEMMD_WORKER_DRAINING);
    while (busy && clock_now_ns() < deadline_ns) {
        busy = false;
        for (uint32_t slot = 0; slot < dispatcher->list.sessions_max; slot++)
            if (dispatcher->list.sessions[slot])
                busy |= serve(dispatcher, dispatcher->list.sessions[slot]);
    }
    for (uint32_t slot = 0; slot < dispatcher->list.sessions_max; slot++) {
        struct session *session = dispatcher->list.sessions[slot];

        if (!session)
            continue;
        gemmd_store_release(&session->ring.worker_line->state, GEMMD_WORKER_ENDED);
        session->ring.violation = GEMMD_STATUS_DRAINING; /* served no more */
    }
}

static void take_orders(struct dispatcher *dispatcher)
{
    struct mailbox_order order;

    while (mailbox_take(dispatcher->config.mailbox, &order)) {
        switch (order.op) {
        case MAILBOX_ATTACH:
            attach(dispatcher, order.session);
            break;
        case MAILBOX_DETACH:
            detach(dispatcher, order.session);
            break;
        case MAILBOX_LAYER:
            set_layer(dispatcher, &order);
            break;
        case MAILBOX_DRAIN:
            drain(dispatcher);
            break;
        case MAILBOX_STOP:
            dispatcher->stop = true;
            break;
        }
        mailbox_done(dispatcher->config.mailbox);
    }
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Harvests events; sleeps for up to timeout_ns when nothing is there. */
static void handle_events(struct dispatcher *dispatcher, int64_t timeout_ns)
{
    struct event events[EVENTS_MAX];
    int count = event_loop_wait(dispatcher->loop, events, EVENTS_MAX, timeout_ns);

    for (int i = 0; i < count; i++) {
        struct session *session;

        if (events[i].type == EVENT_MAILBOX) {
            take_orders(dispatcher);
            continue;
        }
        /* An order earlier in this very harvest may have detached it. */
        session = dispatcher->list.sessions[events[i].source];
        if (!session)
            continue;
        gemmd_counter_add(&dispatcher->config.stats->doorbells, 1);
        gemmd_counter_add(&session->ring.doorbells, 1);
        hot_list_heat(&dispatcher->list, session);
    }
    gemmd_counter_add(&dispatcher->config.stats->syscalls,
                      event_loop_syscalls(dispatcher->loop) - dispatcher->loop_syscalls);
    dispatcher->loop_syscalls = event_loop_syscalls(dispatcher->loop);
}

static void look_at_clock(struct dispatcher *dispatcher)
{
    dispatcher->turns_since_clock = 0;
    hot_list_tick(&dispatcher->list, clock_now_ns());
}

static void turn(struct dispatcher *dispatcher)
{
    bool busy = false;

    for (uint32_t i = 0; i < dispatcher->list.hot_count; i++)
        busy |= serve(dispatcher, dispatcher->list.hot[i]);
    gemmd_counter_add(&dispatcher->config.stats->turns, 1);
    if (event_loop_pending(dispatcher->loop))
        handle_events(dispatcher, 0);
    if (++dispatcher->turns_since_clock >= CLOCK_TURNS ||
        (!busy && dispatcher->config.spin_ns == 0))
        look_at_clock(dispatcher);
    if (dispatcher->list.hot_count == 0 && !dispatcher->stop) {
        gemmd_counter_add(&dispatcher->config.stats->sleeps, 1);
        handle_events(dispatcher, (int64_t)HOT_LIST_SWEEP_NS);
        look_at_clock(dispatcher);
    } else if (!busy) {
        gemmd_cpu_relax();
    }
}

static void *run(void *argument)
{
    struct dispatcher *dispatcher = argument;
    const struct dispatcher_config *config = &dispatcher->config;
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    CPU_SET(config->cpu, &cpus);
    pthread_setname_np(pthread_self(), "gemmd-dispatch");
    dispatcher->start_error = topology_pin_thread(&cpus);
    if (dispatcher->start_error == 0)
        dispatcher->start_error =
            event_loop_open(&dispatcher->loop, config->event_level_forced, config->sessions_max,
                            mailbox_fd(config->mailbox));
    if (dispatcher->start_error == 0)
        dispatcher->start_error = sandbox_enter(SANDBOX_DISPATCHER);
    sem_post(&dispatcher->started);
    if (dispatcher->start_error)
        return NULL;

    while (!dispatcher->stop)
        turn(dispatcher);
    return NULL;
}

int dispatcher_open(struct dispatcher **out, const struct dispatcher_config *config)
{
    struct dispatcher *dispatcher = calloc(1, sizeof(*dispatcher));
    int error = -ENOMEM;

    *out = NULL;
    if (!dispatcher)
        return -ENOMEM;
    dispatcher->config = *config;
    dispatcher->executor.stats = config->stats;
    sem_init(&dispatcher->started, 0, 0);
    error = hot_list_init(&dispatcher->list, config->sessions_max, (uint64_t)config->spin_ns,
                          config->stats);
    if (error)
        goto fail;
    error = -pthread_create(&dispatcher->thread, NULL, run, dispatcher);
    if (error)
        goto fail;
    dispatcher->running = true;
    while (sem_wait(&dispatcher->started) < 0)
        ; /* EINTR only */
    error = dispatcher->start_error;
    if (error) {
        pthread_join(dispatcher->thread, NULL);
        dispatcher->running = false;
        goto fail;
    }
    *out = dispatcher;
    return 0;

fail:
    dispatcher_close(&dispatcher);
    return error;
}

void dispatcher_close(struct dispatcher **dispatcher_p)
{
    struct dispatcher *dispatcher = *dispatcher_p;
    const struct mailbox_order stop = {.op = MAILBOX_STOP};

    if (!dispatcher)
        return;
    if (dispatcher->running) {
        mailbox_call(dispatcher->config.mailbox, &stop);
        pthread_join(dispatcher->thread, NULL);
    }
    event_loop_close(&dispatcher->loop);
    sem_destroy(&dispatcher->started);
    hot_list_fini(&dispatcher->list);
    free(dispatcher);
    *dispatcher_p = NULL;
}

const char *dispatcher_event_level(const struct dispatcher *dispatcher)
{
    return event_loop_level_name(dispatcher->loop);
}

const char *dispatcher_lost(const struct dispatcher *dispatcher)
{
    return event_loop_lost(dispatcher->loop);
}
