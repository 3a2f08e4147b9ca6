/* The worker's command line and environment; every value is checked here. */
#ifndef GEMMD_WORKER_OPTIONS_H
#define GEMMD_WORKER_OPTIONS_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/peers.h"
#include "worker/pool.h"
#include "worker/sandbox.h"
#include "worker/window_list.h"

/* sockaddr_un.sun_path. */
#define OPTIONS_SOCKET_BYTES 108

#define OPTIONS_MODELS_MAX 64

struct options {
    int node;                          /* -1: auto */
    bool cpus_set;                     /* else: all allowed CPUs of the node */
    cpu_set_t cpus;
    char socket[OPTIONS_SOCKET_BYTES]; /* --socket or GEMMD_SOCKET; "": options_default_socket */
    uint64_t pool_bytes;
    enum pool_policy hugepages;
    bool require_hugepages;
    int64_t spin_ns;                   /* -1: 50 us, or 0 with one CPU online */
    uint32_t idle_exit_s;              /* 0: never */
    int ready_fd;                      /* -1: none; else open for writing, and close-on-exec */
    uint32_t ring_start;
    const char *models[OPTIONS_MODELS_MAX]; /* --model, as given */
    uint32_t model_count;
    const char *pack_program;          /* NULL: gemmd-pack beside this program */
    uint64_t uid_layer_bytes;          /* of the layers one user made; 0: no limit */
    uint64_t unused_layer_bytes;       /* of the layers nobody has open; 0: the pool's limit */
    bool take_over;                    /* from the worker that serves the socket */
    bool groups_set;                   /* else: the group gemmd is in peers */
    struct peers peers;                /* admitted beside the own user and root */
    uint32_t uid_sessions;             /* of one user */
    uint64_t arena_bytes;              /* of all sessions; 0: half of the machine's memory */
    uint64_t uid_arena_bytes;          /* of one user; 0: three quarters of the above */
    uint32_t watchdog_s;               /* 0: none */
    enum sandbox_mode sandbox;
    uint32_t cpu_mask;                 /* GEMMD_CPU_MASK, to be ANDed with cpu_detect() */
    int event_level_forced;            /* GEMMD_EVENT_LEVEL: 0 … 3; -1: the best that works */
    struct window_list windows;        /* of layers, for company */
    bool no_coalescing;                /* each job alone */
    uint32_t verify_sample;            /* check one job in so many; 0: none */
    const char *trace;                 /* GEMMD_TRACE; NULL or "": none */
    bool debug;                        /* GEMMD_DEBUG=1 */
};

/* Reads argv and the environment (GEMMD_SOCKET, GEMMD_LOG, GEMMD_CPU_MASK, GEMMD_EVENT_LEVEL,
 * GEMMD_TRACE, GEMMD_DEBUG), and sets up the log.  0: *out is complete.  1: leave with *exit_code;
 * that is 0 after --help and --version, EX_USAGE (64) for the command line, EX_CONFIG (78) for the
 * environment; one line on stderr named the option and the fix. */
int options_parse(struct options *out, int argc, char **argv, int *exit_code);

/* The socket of a node's worker when none was given: $XDG_RUNTIME_DIR/gemmd, else /run/gemmd for
 * root, else /tmp/gemmd-<uid>; node -1 counts as 0.  Makes the directory with mode 0700 (/run/gemmd
 * with 0755: there the socket's mode decides who may connect).  0;
 * -ENAMETOOLONG; -EPERM: the directory is a symbolic link, another user's, or open to others for
 * writing; -errno. */
int options_default_socket(int node, char *out, size_t out_bytes);

#endif
