/*
 * The control plane: one thread (the process's main thread) that owns the socket, the connections
 * and the life of sessions.  It may block and allocate; it never touches a ring.
 *
 *   control.c    connections: packets in and out, sessions' end, drain; accept and credentials in
 *                control_door.c
 *   requests.c   what each message does (layers in requests_layers.c and requests_commit.c,
 *                operators in requests_operator.c)
 */
#ifndef GEMMD_WORKER_CONTROL_H
#define GEMMD_WORKER_CONTROL_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/control.h"
#include "proto/stats.h"
#include "worker/dispatcher.h"
#include "worker/handover.h"
#include "worker/helper.h"
#include "worker/layers.h"
#include "worker/loading.h"
#include "worker/mailbox.h"
#include "worker/notify.h"
#include "worker/peers.h"
#include "worker/pool.h"
#include "worker/session.h"
#include "worker/trace.h"

struct control_config {
    const char *socket;
    const struct peers *peers;
    uint32_t uid_sessions_max;
    uint64_t arena_bytes_max, uid_arena_bytes_max; /* of all sessions; of one user's */
    int node; /* -1: the machine has no NUMA */
    cpu_set_t cpus; /* this thread's and the helper's */
    uint32_t cpu_count, dispatcher_cpu;
    uint32_t ring_start;
    uint32_t client_spin_ns; /* advice to clients */
    uint64_t idle_exit_ns;   /* 0: never */
    const struct gemm_kernel *kernel;
    struct pool *pool;
    struct layers *layers;
    struct handover *handover;
    const struct notify *notify;
    int listen_fd, lock_fd; /* from a service manager or an earlier worker; -1: to be opened */
    bool socket_stays;      /* the manager's: not to be removed at the end */
    struct mailbox *mailbox;
    struct dispatcher *dispatcher;
    struct gemmd_stats_page *stats;
    int stats_fd; /* the same page, to be passed on; sealed */
    int violation_fd;
    const char *lost; /* what start-up had to do without; "" = nothing */
    struct trace *trace; /* NULL: none */
    bool debug;       /* print each message */
};

/* The commit that the helper works on: its image is no longer the session's. */
struct control_commit {
    enum { COMMIT_NONE, COMMIT_BUILD, COMMIT_FREE } task;
    struct session *session; /* NULL: it has ended, or has its answer */
    struct session_upload upload;
    struct layer_build build;
};

struct control {
    struct control_config config;
    int listen_fd, signal_fd, epoll_fd, lock_fd;
    int spare_fd;    /* given up to refuse a connection when no other is left */
    uint64_t rounds; /* of the thread's loop; the watchdog reads it */
    struct session *sessions[GEMMD_WORKER_SESSIONS_MAX];
    uint32_t session_count;
    uint32_t next_session_id;
    uint64_t worker_epoch; /* differs for each start */
    uint64_t started_ns, idle_since_ns, repinned_ns;
    bool cpu_missing; /* when the threads were last put back; the log says so once */
    uint64_t verify_faults_seen;
    uint64_t arena_bytes;   /* of all sessions */
    uint64_t staging_bytes; /* of all open uploads */
    struct helper *helper;
    struct control_commit commit;
    uint64_t commits; /* large ones so far */
    int received_fd;        /* came with the packet that is being handled; -1: none */
    /* The operator's load that is going on, one at a time; NULL: none. */
    struct loading *loading;
    struct session *loading_session;
    uint32_t loading_serial;
    struct loading_result loading_result;
    /* The session that is taking over: others' messages wait, so that the layers it has seen stay
     * what they are.  NULL: none. */
    struct session *successor;
    uint64_t successor_since_ns;
    bool handed_over; /* the socket is another worker's now */
    uint64_t watchdog_said_ns;
};

/* Between two looks at the clients, while a file is being loaded: below a millisecond or two. */
#define CONTROL_LOAD_SLICE_BYTES  (UINT64_C(4) << 20)
/* Compared with its checksum after each second without a message: 0.04 % of a CPU. */
#define CONTROL_SCRUB_SLICE_BYTES (UINT64_C(4) << 20)

/* Opens the socket and blocks SIGTERM and SIGINT in the calling thread (before it starts others).
 * 0; -EADDRINUSE when a live worker holds the socket; -errno. */
int control_open(struct control **out, const struct control_config *config);

/* Serves until SIGTERM, SIGINT or the idle limit, then drains.  0 or -errno. */
int control_run(struct control *control);

/* Ends all sessions, removes the socket.  Accepts NULL; *control becomes NULL. */
void control_close(struct control **control);

/* requests.c: the reply to one valid request. */
union control_reply {
    struct gemmd_msg_header header;
    struct gemmd_msg_hello_reply hello;
    struct gemmd_msg_mapped_reply mapped;
    struct gemmd_msg_layer_reply layer;
    struct gemmd_msg_layer_data_reply layer_data;
    struct gemmd_msg_layer_close_reply layer_close;
    struct gemmd_msg_info_reply info;
    struct gemmd_msg_layers_reply layers;
    struct gemmd_msg_sessions_reply sessions;
    struct gemmd_msg_stats_reply stats;
    struct gemmd_msg_layer_load_reply layer_load;
    struct gemmd_msg_layer_unload_reply layer_unload;
    struct gemmd_msg_layer_pin_reply layer_pin;
    struct gemmd_msg_takeover_reply takeover;
    struct gemmd_msg_takeover_commit_reply takeover_commit;
};

struct control_answer {
    union control_reply reply;
    uint32_t bytes; /* of the reply */
    int fds[GEMMD_HELLO_FD_COUNT];
    uint32_t fd_count; /* descriptors to pass on; they stay the worker's */
    bool later;        /* no reply now */
    bool keep_reply;   /* its body explains the failure */
};

/* `request` has passed gemmd_validate_message.  Fills *answer whatever the outcome; the status is
 * also in answer->reply.header.status. */
enum gemmd_status control_request(struct control *control, struct session *session,
                                  const void *request, struct control_answer *answer);

/* control_door.c: takes a connection from the socket, or refuses it. */
void control_accept(struct control *control);
/* control.c: a bare header.  False when it was not sent. */
bool control_send_error(int fd, uint32_t request_type, uint32_t serial, enum gemmd_status status);

/* Room for an arena within the limits of the worker and of the session's user? */
bool control_has_arena_room(const struct control *control, const struct session *session,
                            uint64_t arena_bytes);

/* Listens to a session no more, but for its end; or again. */
void control_hold(struct control *control, const struct session *session, bool hold);

/* Closes the session's layers and its upload; part of its end. */
void control_release_session(struct control *control, struct session *session);

#endif
