/*
 * Connections of the control plane.  Level-triggered epoll over the listening socket, the signals,
 * the dispatcher's violation eventfd and each connection; one packet per readiness, so that no
 * client holds the thread.  Clients may send garbage, nothing, or descriptors: none of it costs
 * another.
 */
#include "worker/control.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/validate.h"
#include "worker/clock.h"
#include "worker/listener.h"
#include "worker/log.h"
#include "worker/packet.h"
#include "worker/requests.h"
#include "worker/topology.h"

/* epoll tokens: a session's slot, or one of these. */
enum { TOKEN_LISTEN = 1 << 20, TOKEN_SIGNAL, TOKEN_VIOLATION, TOKEN_HELPER };

/* A connection has this long to say hello and to map its segments. */
#define HANDSHAKE_NS UINT64_C(10000000000)
/* How often half-open connections and the idle limit are looked at. */
#define HOUSEKEEPING_MS 1000
#define EVENTS_MAX 64
/* A successor has this long from its first question to the socket; other clients' messages wait for
 * it, and are looked at that often. */
#define SUCCESSOR_NS UINT64_C(5000000000)
#define HOLD_US      500

/* ---- sessions -------------------------------------------------------------------------------- */

bool control_send_error(int fd, uint32_t request_type, uint32_t serial, enum gemmd_status status)
{
    struct gemmd_msg_error_reply reply = {
        .header = {request_type | GEMMD_REPLY, sizeof(reply), serial, status}};

    return packet_send(fd, &reply, sizeof(reply), NULL, 0);
}

static void end_session(struct control *control, struct session *session)
{
    const struct mailbox_order detach = {.op = MAILBOX_DETACH, .session = session};

    if (session->attached)
        mailbox_call(control->config.mailbox, &detach);
    if (session->state == GEMMD_SESSION_LIVE)
        gemmd_counter_add(&control->config.stats->sessions_closed, 1);
    log_info(LOG_TOPIC_SESSION, "session %u of pid %d ended", session->id, (int)session->pid);
    control_release_session(control, session);
    if (control->successor == session) {
        control->successor = NULL;
        requests_commit_next(control);
    }
    control->arena_bytes -= session->arena.bytes;
    control->sessions[session->slot] = NULL;
    control->session_count--;
    control->idle_since_ns = clock_now_ns();
    session_close(&session); /* closes the connection, which also takes it out of epoll */
}

static void end_violator(struct control *control, struct session *session, enum gemmd_status status)
{
    gemmd_counter_add(&control->config.stats->sessions_violated, 1);
    log_warn(LOG_TOPIC_SESSION, "session %u of pid %d (uid %u) ended by the worker: %s",
             session->id, (int)session->pid, (unsigned)session->uid, gemmd_status_text_of(status));
    end_session(control, session);
}

static void drop_descriptor(struct control *control)
{
    if (control->received_fd >= 0)
        close(control->received_fd);
    control->received_fd = -1;
}

static void send_answer(struct control *control, struct session *session,
                        const struct control_answer *answer)
{
    if (!packet_send(session->fd, &answer->reply, answer->bytes, answer->fds, answer->fd_count)) {
        control->handed_over = false; /* if it was to be: nobody took it */
        end_session(control, session); /* gone, or it does not read its replies */
    } else if (gemmd_status_is_violation(answer->reply.header.status)) {
        end_violator(control, session, (enum gemmd_status)answer->reply.header.status);
    }
}

/* One packet of one client. */
static void receive(struct control *control, struct session *session)
{
    /* Aligned for any message; one byte more than a message may have, so that longer ones show. */
    uint64_t buffer[GEMMD_MESSAGE_BYTES_MAX / sizeof(uint64_t) + 1];
    const struct gemmd_msg_header *header = (const struct gemmd_msg_header *)buffer;
    struct control_answer answer;
    enum gemmd_status status = GEMMD_STATUS_OK;
    ssize_t bytes = packet_receive(session->fd, buffer, sizeof(buffer),
                                   session_is_operator(session), &control->received_fd, &status);

    if (bytes < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (bytes <= 0) {
        end_session(control, session);
        return;
    }
    if (status != GEMMD_STATUS_OK) {
        bool whole = bytes >= (ssize_t)sizeof(*header);

        drop_descriptor(control);
        control_send_error(session->fd, whole ? header->type : 0,
                           whole ? header->serial : 0, status);
        end_violator(control, session, status);
        return;
    }
    status = control_request(control, session, buffer, &answer);
    drop_descriptor(control);
    /* Before the reply: what a client was promised survives our death. */
    handover_write(control->config.handover, control->config.layers, control->config.pool);
    if (control->config.debug)
        fprintf(stderr, "gemmd: session %u: message %u serial %u: %s\n", session->id, header->type,
                header->serial, gemmd_status_name_of(status));
    if (!answer.later)
        send_answer(control, session, &answer);
}

void control_hold(struct control *control, const struct session *session, bool hold)
{
    struct epoll_event event = {.events = (hold ? 0 : EPOLLIN) | EPOLLRDHUP,
                                .data.u64 = session->slot};

    /* not covered: the connection is in the set until its session ends */
    if (epoll_ctl(control->epoll_fd, EPOLL_CTL_MOD, session->fd, &event) < 0)
        log_error(LOG_TOPIC_CONTROL, "epoll_ctl: %s", strerror(errno)); /* not covered: as above */
}

/* The helper has done something. */
static void go_on_with_commit(struct control *control)
{
    struct control_answer answer;
    struct session *session = requests_commit_on(control, &answer);

    handover_write(control->config.handover, control->config.layers, control->config.pool);
    if (session)
        send_answer(control, session, &answer);
}

/* The dispatcher found violations on rings. */
static void end_ring_violators(struct control *control)
{
    uint64_t count;

    /* not covered: it was readable, and is ours alone */
    if (read(control->config.violation_fd, &count, sizeof(count)) < 0)
        return; /* not covered: as above */
    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX; slot++) {
        struct session *session = control->sessions[slot];
        enum gemmd_status status;

        if (!session || !session->attached)
            continue;
        status = __atomic_load_n(&session->ring.violation, __ATOMIC_ACQUIRE);
        if (status != GEMMD_STATUS_OK)
            end_violator(control, session, status);
    }
}

static void end_half_open(struct control *control, uint64_t now_ns)
{
    if (control->successor && now_ns - control->successor_since_ns > SUCCESSOR_NS)
        end_session(control, control->successor);
    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX; slot++) {
        struct session *session = control->sessions[slot];

        if (session && session->state != GEMMD_SESSION_LIVE &&
            now_ns - session->connected_ns > HANDSHAKE_NS)
            end_session(control, session);
    }
}

/* Puts each thread back on its CPUs.  How many were not, or -errno of one that cannot be. */
static int repin_threads(struct control *control)
{
    const cpu_set_t *cpus = &control->config.cpus;
    const int mended[] = {dispatcher_repin(control->config.dispatcher),
                          topology_repin_to(0, cpus), helper_repin(control->helper, cpus)};
    int sum = 0;

    for (int i = 0; i < 3; i++) {
        if (mended[i] > 0)
            gemmd_counter_add(&control->config.stats->repinned, (uint64_t)mended[i]);
        sum = mended[i] < 0 || sum < 0 ? -EINVAL : sum + mended[i];
    }
    return sum;
}

/* Once a second, and the trace as often as its ring demands. */
static void keep_house(struct control *control, uint64_t now_ns)
{
    struct gemmd_stats_page *stats = control->config.stats;
    int mended;

    end_half_open(control, now_ns);
    if (control->config.trace) {
        int error = trace_drain(control->config.trace);

        if (error < 0)
            log_warn(LOG_TOPIC_WORKER, "GEMMD_TRACE: %s; nothing more is traced", strerror(-error));
        __atomic_store_n(&stats->trace_lost, trace_lost(control->config.trace), __ATOMIC_RELAXED);
    }
    if (now_ns - control->repinned_ns < HOUSEKEEPING_MS * UINT64_C(1000000))
        return;
    control->repinned_ns = now_ns;
    mended = repin_threads(control);
    if (mended > 0 || (mended < 0 && !control->cpu_missing))
        log_warn(LOG_TOPIC_WORKER, mended > 0 ? "threads had lost their CPU: a cpuset changed"
                                              : "a thread's CPU is offline or forbidden");
    control->cpu_missing = mended < 0;
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* False: stop. */
static bool handle_event(struct control *control, const struct epoll_event *event)
{
    struct signalfd_siginfo info;
    struct session *session;

    switch (event->data.u64) {
    case TOKEN_LISTEN:
        control_accept(control);
        return true;
    case TOKEN_VIOLATION:
        end_ring_violators(control);
        return true;
    case TOKEN_HELPER:
        go_on_with_commit(control);
        return true;
    case TOKEN_SIGNAL:
        /* not covered: it was readable, and is ours alone */
        if (read(control->signal_fd, &info, sizeof(info)) != sizeof(info))
            return true; /* not covered: as above */
        log_info(LOG_TOPIC_CONTROL, "signal %u: draining", info.ssi_signo);
        return false;
    default:
        session = control->sessions[event->data.u64];
        /* not covered: an earlier event of this harvest ended it, which no test can arrange */
        if (!session)
            return true; /* not covered: as above */
        /* EPOLLIN first: a client may say something and leave. */
        if ((event->events & EPOLLIN) && control->successor && control->successor != session)
            usleep(HOLD_US); /* it stays readable */
        /* not covered: an end of the connection comes with EPOLLIN, too */
        else if (event->events & EPOLLIN)
            receive(control, session);
        else if (event->events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) /* not covered: EPOLLIN, too */
            end_session(control, session); /* not covered: as above */
        return true;
    }
}

/* What is done when nobody waits for it. */
static void work_on(struct control *control, bool idle)
{
    struct control_answer answer;
    struct session *session = control->loading ? requests_load_on(control, &answer) : NULL;

    if (!control->successor)
        requests_guard_layers(control, idle);
    handover_write(control->config.handover, control->config.layers, control->config.pool);
    if (session)
        send_answer(control, session, &answer);
}

/* The service manager hears of us as often as it wants, half as often at least. */
static void feed_watchdog(struct control *control, uint64_t now_ns)
{
    uint64_t interval_ns = notify_watchdog_ns(control->config.notify) / 2;

    if (interval_ns == 0 || now_ns - control->watchdog_said_ns < interval_ns)
        return;
    control->watchdog_said_ns = now_ns;
    notify_say(control->config.notify, "WATCHDOG=1");
}

/* How long the thread may sleep. */
static int sleep_ms(const struct control *control)
{
    uint64_t watchdog_ms = notify_watchdog_ns(control->config.notify) / 4000000;

    if (control->loading ||
        (layers_are_unverified(control->config.layers) && !control->successor))
        return 0;
    if (control->config.trace)
        return TRACE_DRAIN_MS;
    return watchdog_ms && watchdog_ms < HOUSEKEEPING_MS ? (int)watchdog_ms : HOUSEKEEPING_MS;
}

static void remove_socket(const struct control *control)
{
    if (!control->handed_over && !control->config.socket_stays)
        unlink(control->config.socket);
}

int control_run(struct control *control)
{
    const struct mailbox_order drain = {.op = MAILBOX_DRAIN};
    struct epoll_event events[EVENTS_MAX];
    bool run = true;

    control->idle_since_ns = clock_now_ns();
    while (run) {
        int count = epoll_wait(control->epoll_fd, events, EVENTS_MAX, sleep_ms(control));
        uint64_t now_ns;

        gemmd_counter_add(&control->rounds, 1);
        /* not covered: our own descriptor; only a signal ends the wait */
        if (count < 0 && errno != EINTR)
            return -errno; /* not covered: as above */
        for (int i = 0; i < count; i++) {
            run = handle_event(control, &events[i]) && !control->handed_over;
            if (!run)
                break;
        }
        if (run)
            work_on(control, count == 0 && !control->loading);
        now_ns = clock_now_ns(); /* after the events: no connection is younger than now */
        feed_watchdog(control, now_ns);
        keep_house(control, now_ns);
        if (control->config.idle_exit_ns && control->session_count == 0 &&
            now_ns - control->idle_since_ns > control->config.idle_exit_ns) {
            log_info(LOG_TOPIC_CONTROL, "idle: ending");
            run = false;
        }
    }
    /* New clients find no socket; what is submitted completes. */
    notify_say(control->config.notify, "STOPPING=1");
    remove_socket(control);
    mailbox_call(control->config.mailbox, &drain);
    return 0;
}

static int watch(struct control *control, int fd, uint64_t token)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = token};

    return epoll_ctl(control->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int open_descriptors(struct control *control)
{
    sigset_t signals;
    int error;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    control->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    control->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (control->signal_fd < 0 || control->epoll_fd < 0)
        return -errno;
    error = listener_open(control->config.socket, control->config.peers, &control->listen_fd,
                          &control->lock_fd);
    if (error == 0) {
        control->spare_fd = fcntl(control->lock_fd, F_DUPFD_CLOEXEC, 0);
        error = control->spare_fd < 0 ? -errno : 0;
    }
    if (error == 0)
        error = watch(control, control->listen_fd, TOKEN_LISTEN);
    if (error == 0)
        error = watch(control, control->signal_fd, TOKEN_SIGNAL);
    if (error == 0)
        error = watch(control, control->config.violation_fd, TOKEN_VIOLATION);
    if (error == 0)
        error = helper_open(&control->helper);
    if (error == 0)
        error = watch(control, helper_fd(control->helper), TOKEN_HELPER);
    return error;
}

/* The table before the old place is used again: who finds it after our death finds the bytes. */
static void move_layer(void *context, struct layer *layer, const struct layer_view *view)
{
    struct control *control = context;
    const struct mailbox_order move = {
        .op = MAILBOX_MOVE_LAYER, .layer = layer, .view = view};

    mailbox_call(control->config.mailbox, &move);
    handover_write(control->config.handover, control->config.layers, control->config.pool);
}

int control_open(struct control **out, const struct control_config *config)
{
    struct control *control = calloc(1, sizeof(*control));
    int error;

    *out = NULL;
    if (!control)
        return -ENOMEM;
    control->config = *config;
    control->listen_fd = config->listen_fd;
    control->lock_fd = config->lock_fd;
    control->signal_fd = control->epoll_fd = control->received_fd = -1;
    control->spare_fd = -1;
    control->next_session_id = 1;
    control->started_ns = clock_now_ns();
    if (getrandom(&control->worker_epoch, sizeof(control->worker_epoch), 0) < 0)
        control->worker_epoch = control->started_ns;
    error = open_descriptors(control);
    if (error < 0) {
        control_close(&control);
        return error;
    }
    layers_set_on_move(config->layers, move_layer, control);
    *out = control;
    return 0;
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

void control_close(struct control **control_p)
{
    struct control *control = *control_p;

    if (!control)
        return;
    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX; slot++)
        if (control->sessions[slot])
            end_session(control, control->sessions[slot]);
    requests_drop_commit(control);
    helper_close(&control->helper);
    layers_set_on_move(control->config.layers, NULL, NULL);
    if (control->listen_fd >= 0)
        remove_socket(control);
    close_fd(control->listen_fd);
    close_fd(control->signal_fd);
    close_fd(control->epoll_fd);
    close_fd(control->spare_fd);
    close_fd(control->lock_fd);
    free(control);
    *control_p = NULL;
}
