/*
 * The dispatcher's loop.  One turn: take a batch of submissions from each hot session, run one
 * slice of work, harvest events if some are pending.  Nothing here allocates, logs, locks or makes
 * a system call while jobs keep coming, but to wake sleeping clients and parked threads (the
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
#include "worker/team.h"
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
    struct team *team;
    struct executor executor;
    struct hot_list list;
    pid_t tid;
    uint64_t started_ns, team_wakes;
    uint32_t turns_since_clock;
    uint64_t loop_syscalls; /* of the event loop, as already counted */
};

/* ---- what the executor asks for -------------------------------------------------------------- */

/* Edge W: the client sleeps and has what it waits for. */
static uint64_t wake_client(void *owner, struct session_ring *ring)
{
    struct dispatcher *dispatcher = owner;
    const uint64_t one = 1;
    uint64_t start_ns;
    int wake_fd;

    if (!gemmd_wake_wanted(ring->client_line, ring->cq.index, ring->worker_line, &ring->last_woken))
        return 0;
    start_ns = clock_now_ns();
    wake_fd = __atomic_load_n(&ring->wake_fd, __ATOMIC_ACQUIRE);
    if (wake_fd < 0)
        syscall(SYS_futex, &ring->worker_line->cq_futex, FUTEX_WAKE, 1, NULL, NULL, 0);
    else if (write(wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        abort(); /* our own eventfd, which nobody else can write or make blocking */
    gemmd_counter_add(&dispatcher->config.stats->syscalls, 1);
    gemmd_counter_add(&dispatcher->config.stats->wakes, 1);
    gemmd_counter_add(&ring->wakeups, 1);
    return clock_now_ns() - start_ns;
}

static void report_violation(void *owner, struct session_ring *ring, enum gemmd_status status)
{
    struct dispatcher *dispatcher = owner;
    const uint64_t one = 1;

    __atomic_store_n(&ring->violation, status, __ATOMIC_RELEASE);
    if (write(dispatcher->config.violation_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        abort(); /* our own eventfd */
}

/* In the middle of a slice: takes what has come.  True: an order or a doorbell. */
static bool look_around(void *owner)
{
    struct dispatcher *dispatcher = owner;

    for (uint32_t i = 0; i < dispatcher->list.hot_count; i++)
        executor_take(&dispatcher->executor, &dispatcher->list.hot[i]->ring);
    return event_loop_pending(dispatcher->loop);
}

/* ---- orders of the control thread ------------------------------------------------------------ */

static void attach(struct dispatcher *dispatcher, struct session *session)
{
    executor_attach(&dispatcher->executor, session);
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
    executor_detach(&dispatcher->executor, session);
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
        busy = executor_step(&dispatcher->executor);
        for (uint32_t slot = 0; slot < dispatcher->list.sessions_max; slot++)
            if (dispatcher->list.sessions[slot])
                busy |= executor_take(&dispatcher->executor,
                                      &dispatcher->list.sessions[slot]->ring);
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
        case MAILBOX_CLOSE_LAYER:
            executor_close_layer(&dispatcher->executor, order.session, order.layer_id);
            break;
        case MAILBOX_MOVE_LAYER: /* between two slices: nobody reads it */
            order.layer->view = *order.view;
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

/* What was neither work nor sleep was looking for work. */
static void count_time(struct dispatcher *dispatcher, uint64_t now_ns)
{
    struct gemmd_core_stats *core = &dispatcher->config.stats->cores[0];
    uint64_t wakes = team_wakes(dispatcher->team);

    __atomic_store_n(&core->spin_ns,
                     now_ns - dispatcher->started_ns - gemmd_counter_read(&core->busy_ns) -
                         gemmd_counter_read(&core->sleep_ns),
                     __ATOMIC_RELAXED);
    gemmd_counter_add(&dispatcher->config.stats->syscalls, wakes - dispatcher->team_wakes);
    dispatcher->team_wakes = wakes;
}

static uint64_t look_at_clock(struct dispatcher *dispatcher)
{
    uint64_t now_ns = clock_now_ns();

    dispatcher->turns_since_clock = 0;
    count_time(dispatcher, now_ns);
    hot_list_tick(&dispatcher->list, now_ns);
    return now_ns;
}

/* Until a doorbell, an order, or the next sweep. */
static void sleep_until_event(struct dispatcher *dispatcher)
{
    uint64_t start_ns = clock_now_ns();

    gemmd_counter_add(&dispatcher->config.stats->sleeps, 1);
    handle_events(dispatcher, (int64_t)HOT_LIST_SWEEP_NS);
    gemmd_counter_add(&dispatcher->config.stats->cores[0].sleep_ns, clock_now_ns() - start_ns);
    look_at_clock(dispatcher);
}

static void turn(struct dispatcher *dispatcher)
{
    bool busy = false;

    for (uint32_t i = 0; i < dispatcher->list.hot_count; i++)
        busy |= executor_take(&dispatcher->executor, &dispatcher->list.hot[i]->ring);
    dispatcher->executor.has_company = dispatcher->list.hot_count > 1;
    busy |= executor_step(&dispatcher->executor);
    gemmd_counter_add(&dispatcher->config.stats->turns, 1);
    if (event_loop_pending(dispatcher->loop))
        handle_events(dispatcher, 0);
    if (++dispatcher->turns_since_clock >= CLOCK_TURNS ||
        (!busy && dispatcher->config.spin_ns == 0))
        look_at_clock(dispatcher);
    if (dispatcher->list.hot_count == 0 && !dispatcher->stop) {
        sleep_until_event(dispatcher);
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
    dispatcher->tid = (pid_t)syscall(SYS_gettid);
    dispatcher->started_ns = clock_now_ns();
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

static int open_parts(struct dispatcher *dispatcher)
{
    const struct dispatcher_config *config = &dispatcher->config;
    struct team_config team = {.cpus = config->team_cpus,
                               .spin_ns = (uint64_t)config->spin_ns,
                               .cores = config->stats->cores + 1};
    struct executor_config executor = {.sessions_max = config->sessions_max,
                                       .stats = config->stats,
                                       .trace = config->trace,
                                       .alone = config->alone,
                                       .verify_every = config->verify_every,
                                       .look = look_around,
                                       .wake = wake_client,
                                       .violate = report_violation,
                                       .owner = dispatcher};
    int error = team_open(&dispatcher->team, &team);

    if (error < 0)
        return error;
    config->stats->cores[0].cpu = (uint64_t)config->cpu;
    config->stats->core_count = team_size(dispatcher->team);
    executor.team = dispatcher->team;
    error = executor_init(&dispatcher->executor, &executor);
    if (error < 0)
        return error;
    return hot_list_init(&dispatcher->list, config->sessions_max, (uint64_t)config->spin_ns,
                         config->stats);
}

int dispatcher_open(struct dispatcher **out, const struct dispatcher_config *config)
{
    struct dispatcher *dispatcher = calloc(1, sizeof(*dispatcher));
    int error;

    *out = NULL;
    if (!dispatcher)
        return -ENOMEM;
    dispatcher->config = *config;
    sem_init(&dispatcher->started, 0, 0);
    error = open_parts(dispatcher);
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

int dispatcher_repin(struct dispatcher *dispatcher)
{
    int mended = topology_repin(dispatcher->tid, dispatcher->config.cpu);
    int team = team_repin(dispatcher->team);

    if (mended < 0 || team < 0)
        return mended < 0 ? mended : team;
    return mended + team;
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
    executor_fini(&dispatcher->executor);
    team_close(&dispatcher->team);
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
