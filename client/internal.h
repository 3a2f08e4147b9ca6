/*
 * Inside libgemmd.  A session belongs to one thread at a time, so nothing here is locked.  Names
 * carry the prefix although they are hidden: the library is also linked statically into strangers.
 */
#ifndef GEMMD_CLIENT_INTERNAL_H
#define GEMMD_CLIENT_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/gemmd.h"
#include "proto/control.h"
#include "proto/ring.h"
#include "proto/spin.h"
#include "proto/stats.h"
#include "proto/status.h"

/* sockaddr_un.sun_path. */
#define GEMMD_SOCKET_BYTES 108
#define GEMMD_TEXT_BYTES   512

/* What is known of a job in flight.  A submission carries (tag << 32 | slot index) as its
 * user_data, so that a completion that was not earned is recognised, whatever the worker writes. */
struct gemmd_slot {
    uint64_t user_data; /* the caller's */
    uint32_t tag;       /* differs between uses of the slot; 0: free */
    bool hidden;        /* a cancel: its completion is not the caller's to see */
};

/* A piece of the arena, free or given out. */
struct gemmd_block {
    struct gemmd_block *next; /* free: the next higher one; given out: of the same bucket */
    uint64_t offset, bytes;
};

#define GEMMD_BLOCK_BUCKETS 256
#define GEMMD_BLOCK_CHUNK   64

/* Blocks are made in chunks, which live as long as the session. */
struct gemmd_block_chunk {
    struct gemmd_block_chunk *next;
    struct gemmd_block blocks[GEMMD_BLOCK_CHUNK];
};

struct gemmd_arena {
    uint8_t *memory; /* NULL: control only */
    uint64_t bytes, bytes_free;
    struct gemmd_block *free;  /* by address, neighbours always joined */
    struct gemmd_block *spare; /* blocks that describe nothing */
    struct gemmd_block *given[GEMMD_BLOCK_BUCKETS];
    struct gemmd_block_chunk *chunks;
};

struct gemmd_layer {
    struct gemmd_layer *next; /* of the session */
    struct gemmd *session;
    uint32_t id, gen;
    struct gemmd_layer_desc_abi desc;
    uint64_t bytes_new;
    /* for recover.c */
    uint64_t content_id[2];
    char name[GEMMD_NAME_BYTES]; /* "": none */
    uint8_t *image;              /* NULL: not kept */
    bool lost;                   /* the worker at hand does not have it */
};

struct gemmd_job_copy;

/* What gemmd_get_fd gave out; see fd.c. */
struct gemmd_fd {
    int app;        /* an epoll instance of ours, the application's to watch; -1: not asked for */
    int wake;       /* the worker's, readable once it has woken us */
    int self;       /* eventfd: completions are left of which no wake-up will tell */
    uint32_t seen;  /* cq_futex when last armed */
    bool raised;    /* `self` is readable */
    bool announced; /* whatever lies in the ring untaken has caused a wake-up, or will */
};

struct gemmd {
    /* Read on each call. */
    unsigned generation; /* of the process that opened it: gemmd_generation */
    bool lost;           /* the worker is gone or not to be trusted; nothing more is sent */
    bool unflushed;      /* jobs were submitted since the doorbell word was last read */
    bool control_only;
    struct gemmd_ring_end sq, cq;
    uint32_t entries, in_flight, hidden; /* hidden: of in_flight, cancels */
    struct gemmd_slot *slots;
    uint32_t *slots_free; /* a stack of `entries - in_flight` indices */
    uint32_t next_tag;
    uint32_t last_rung, wake_epoch;
    struct gemmd_client_line *client_line;
    const struct gemmd_doorbell_line *doorbell;
    const struct gemmd_worker_line *worker_line;
    struct gemmd_arena arena;
    /* gemmd_poll's watch over a silent worker */
    uint32_t polls_empty;
    uint64_t silent_since_ns;
    uint64_t spin_ns; /* at most */
    struct gemmd_spin spin;
    int dispatcher_cpu;
    struct gemmd_fd pollable;
    uint64_t jobs, doorbells, sleeps, syscalls; /* for gemmd_stats */

    /* Control. */
    int fd, kick_fd;
    int timeout_ms;
    uint32_t serial;
    bool debug;
    void *c2w, *w2c;
    uint64_t c2w_bytes, w2c_bytes;
    const struct gemmd_stats_page *stats; /* NULL until asked for */
    uint64_t stats_bytes;
    struct gemmd_layer *layers;
    struct gemmd_options options; /* as given; `socket` is not used */
    /* recover.c */
    struct gemmd_job_copy *copies;   /* [entries], of the jobs in flight; NULL: no recovery */
    uint32_t verdicts;               /* jobs in flight that no worker will complete */
    bool recovering;
    uint64_t recoveries;
    const struct gemmd_arena *adopt; /* while connecting: the arena that the new one replaces */
    char named[GEMMD_SOCKET_BYTES];  /* options.socket; "": none was given */
    char socket[GEMMD_SOCKET_BYTES];
    char text[GEMMD_TEXT_BYTES];
};

/* ---- client.c -------------------------------------------------------------------------------- */

/* Grows in each child after fork(): a session whose generation differs is the parent's. */
extern unsigned gemmd_generation;

/* Notes the text of a failure and gives `error` back. */
int gemmd_fail(struct gemmd *session, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* 0; -EOWNERDEAD in a child; -ECONNRESET once the worker is gone. */
int gemmd_check(struct gemmd *session);

/* From here on nothing is expected of the worker. -ECONNRESET; an earlier reason's text stays. */
int gemmd_lose(struct gemmd *session, const char *reason);

uint64_t gemmd_now_ns(void);

static inline bool gemmd_is_ours(const struct gemmd *session)
{
    return session->generation == gemmd_generation;
}

/* ---- call.c: control messages ---------------------------------------------------------------- */

/* One request and its reply: `request` starts with a header whose type is set; `reply` takes
 * exactly reply_bytes.  Up to fd_count descriptors go to `fds` (-1: none came), others are
 * closed.  0; -errno of the reply's status, whose text is noted then; -ETIMEDOUT, -ECONNRESET,
 * -EPROTO.  *status (NULL: not wanted) is the reply's, OK when none came. */
int gemmd_call(struct gemmd *session, void *request, size_t request_bytes, void *reply,
               size_t reply_bytes, int *fds, unsigned fd_count, uint64_t deadline_ns,
               enum gemmd_status *status);

/* Without descriptors, within the session's timeout, for a live session. */
int gemmd_ask(struct gemmd *session, void *request, size_t request_bytes, void *reply,
              size_t reply_bytes, enum gemmd_status *status);

/* The same with a descriptor for the worker.  What a failure's reply holds comes to `reply`. */
int gemmd_ask_with_fd(struct gemmd *session, void *request, size_t request_bytes, int fd,
                      void *reply, size_t reply_bytes, enum gemmd_status *status);

/* The two halves of gemmd_ask for a session that was just checked, so that requests can be sent
 * before the replies to earlier ones have come; replies are received in the order of requests. */
int gemmd_send(struct gemmd *session, void *request, size_t request_bytes);
int gemmd_receive(struct gemmd *session, const struct gemmd_msg_header *request, void *reply,
                  size_t reply_bytes);

/* False when the connection is closed: one system call, which is counted. */
bool gemmd_is_connected(struct gemmd *session);

/* ---- handshake.c ----------------------------------------------------------------------------- */

/* Connects to the worker at `path` and makes the session live.  `uid`: the user it must run as (or
 * root); -1: any.  On failure the session is as before.  Results of gemmd_connect. */
int gemmd_open_at(struct gemmd *session, const char *path, long uid, uint64_t deadline_ns);

/* Maps a descriptor of at least `bytes` whose size is sealed; it stays the caller's.  `out` is the
 * address of a pointer of any type, written on success.  0, -EPROTO or -ENOMEM. */
int gemmd_map(struct gemmd *session, int fd, uint64_t bytes, int protection, const char *what,
              void *out);

/* Unmaps and closes what gemmd_open_at made. In a child the descriptors only. */
void gemmd_disconnect(struct gemmd *session);

/* ---- recover.c ------------------------------------------------------------------------------- */

/* After connecting.  0 or -ENOMEM.  Both do nothing without recover_ms. */
int gemmd_recover_init(struct gemmd *session);
void gemmd_recover_fini(struct gemmd *session);

/* The arena size to ask for. */
uint64_t gemmd_recover_arena_bytes(const struct gemmd_options *options);

/* Maps the arena; over session->adopt if that is set, with the contents of its buffers. */
int gemmd_map_arena(struct gemmd *session, int fd, uint64_t bytes);

/* Keeps the job of slot `index` until it completes; only with session->copies. */
void gemmd_copy_job(struct gemmd *session, uint32_t index, const struct gemmd_sqe *sqe,
                    struct gemmd_layer *layer);
/* The layer is being closed. */
void gemmd_forget_layer(struct gemmd *session, const struct gemmd_layer *layer);

/* For a lost session: 0 once another worker has all of it; -ECONNRESET when it may not try, or
 * gemmd_connect's results after recover_ms. */
int gemmd_recover(struct gemmd *session);

/* A job that recovery could not submit again: its slot, still to be released, and its status. */
bool gemmd_take_verdict(struct gemmd *session, uint32_t *index, enum gemmd_status *status);

/* layer.c: opens the layer in the worker at hand.  0, or why it is not there. */
int gemmd_layer_reopen(struct gemmd *session, struct gemmd_layer *layer);

/* ---- quantize.c ------------------------------------------------------------------------------ */

/* Weights of desc->weights_type, if that is not NONE, become b_type's, with scales: the arrays of
 * *desc then lie in *memory, which is the caller's to free.  The rest of *desc is valid.  0,
 * -EINVAL or -ENOMEM. */
int gemmd_quantize(struct gemmd *session, struct gemmd_layer_desc *desc, void **memory);

/* ---- autostart.c ----------------------------------------------------------------------------- */

/* Opens the session at the first worker that answers, or at one it starts. */
int gemmd_find_worker(struct gemmd *session, uint64_t deadline_ns);

/* ---- buffer.c -------------------------------------------------------------------------------- */

/* 0 or -ENOMEM; arena->memory and bytes are set. */
int gemmd_arena_init(struct gemmd_arena *arena);
void gemmd_arena_fini(struct gemmd_arena *arena);

/* ---- fd.c ------------------------------------------------------------------------------------ */

static inline bool gemmd_has_fd(const struct gemmd *session)
{
    return session->pollable.app >= 0;
}

/* The session has a new connection and new rings: the descriptor, if one was given out, follows
 * them.  0 or -errno. */
int gemmd_fd_attach(struct gemmd *session);
/* Closes what belongs to the connection; the application's descriptor stays valid, and idle. */
void gemmd_fd_detach(struct gemmd *session);
void gemmd_fd_close(struct gemmd *session);

/* Call when the completion ring was seen empty: arms the wake-up unless it is armed. */
void gemmd_fd_arm(struct gemmd *session);
/* Call before going back to the application: makes the descriptor readable if completions are left
 * that no wake-up announces. */
void gemmd_fd_settle(struct gemmd *session);
/* Sleeps until the descriptor is readable, slice_ns at most.  0, -ETIMEDOUT or -EINTR. */
int gemmd_fd_sleep(struct gemmd *session, uint64_t slice_ns);

/* ---- complete.c ------------------------------------------------------------------------------ */

/* The table of jobs for `entries`, a power of two.  0 or -ENOMEM. */
int gemmd_slots_init(struct gemmd *session, uint32_t entries);

#endif
