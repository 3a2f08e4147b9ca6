/*
 * Control messages: AF_UNIX SOCK_SEQPACKET, one struct per packet, little-endian, no padding, never
 * on the job path.  Each request gets exactly one reply of type request | GEMMD_REPLY with the same
 * serial; header.status tells success or the field at fault, and the body beyond the header is
 * all zeros then (but the reason of LAYER_LOAD).  File descriptors travel from the worker to the
 * client: four with the hello reply, one each with the replies of STATS, WAKE_FD and TAKEOVER, two
 * with TAKEOVER_COMMIT's; and one the other way with an operator's LAYER_LOAD.  Any other message
 * that carries some ends the session.
 *
 * Session states and what each allows (anything else: STATUS_STATE, the session lives on):
 *   NEW      HELLO -> MAPPING, or LIVE when the hello asks for control only
 *   MAPPING  MAPPED -> LIVE
 *   LIVE     everything but HELLO and MAPPED
 */
#ifndef GEMMD_PROTO_CONTROL_H
#define GEMMD_PROTO_CONTROL_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/abi.h"
#include "proto/limits.h"

enum gemmd_message_type {
    GEMMD_MSG_HELLO = 1,
    GEMMD_MSG_MAPPED = 2,       /* all segments are mapped: the worker may seal them */
    GEMMD_MSG_LAYER_CREATE = 3, /* attach by content, or open an upload */
    GEMMD_MSG_LAYER_DATA = 4,   /* a piece of the upload lies in the arena */
    GEMMD_MSG_LAYER_COMMIT = 5, /* the upload is complete: pack it */
    GEMMD_MSG_LAYER_OPEN = 6,   /* by name */
    GEMMD_MSG_LAYER_CLOSE = 7,
    GEMMD_MSG_INFO = 8,
    GEMMD_MSG_LAYERS = 9,    /* the index-th layer of the worker */
    GEMMD_MSG_SESSIONS = 10, /* the index-th session of the worker */
    GEMMD_MSG_STATS = 11,    /* the counters page, as a descriptor */
    GEMMD_MSG_WAKE_FD = 12,  /* a descriptor to wait on, as well as cq_futex */
    /* of root and the worker's own user only */
    GEMMD_MSG_LAYER_LOAD = 13,      /* a packed layer file, as a descriptor */
    GEMMD_MSG_LAYER_UNLOAD = 14,    /* by name */
    GEMMD_MSG_LAYER_PIN = 15,       /* by name */
    GEMMD_MSG_TAKEOVER = 16,        /* the index-th descriptor of the worker's weights */
    GEMMD_MSG_TAKEOVER_COMMIT = 17, /* the socket: the sender serves from now on */
    GEMMD_MSG_TYPE_COUNT = 18,
    GEMMD_REPLY = 0x8000,
};

struct gemmd_msg_header {
    uint32_t type;   /* 0 */
    uint32_t bytes;  /* 4: of the whole message; equals the packet's length */
    uint32_t serial; /* 8: chosen by the client, echoed */
    int32_t status;  /* 12: 0 in a request */
};

enum { GEMMD_HELLO_CONTROL_ONLY = 1 }; /* no segments: gemmctl */

struct gemmd_msg_hello {
    struct gemmd_msg_header header;
    uint64_t magic;        /* 16 */
    uint32_t version_min;  /* 24 */
    uint32_t version_max;  /* 28 */
    uint64_t features;     /* 32: what the client could use */
    uint32_t flags;        /* 40: GEMMD_HELLO_* */
    uint32_t ring_entries; /* 44: wanted; 0 = default */
    uint64_t arena_bytes;  /* 48: wanted; 0 = default; rounded up to the arena's page size */
    uint64_t reserved;     /* 56: 0 */
};

struct gemmd_msg_hello_reply {
    struct gemmd_msg_header header;
    uint64_t magic;          /* 16 */
    uint32_t version;        /* 24: in force */
    uint32_t session_id;     /* 28: never 0 */
    uint64_t features;       /* 32: in force */
    uint32_t ring_entries;   /* 40 */
    uint32_t ring_start;     /* 44 */
    uint64_t c2w_bytes;      /* 48 */
    uint64_t w2c_bytes;      /* 56 */
    uint64_t arena_bytes;    /* 64 */
    uint64_t arena_page_bytes; /* 72 */
    uint64_t worker_epoch;   /* 80: differs for each start of a worker */
    uint32_t spin_ns_max;    /* 88: how long a client may spin before it sleeps; 0: one CPU */
    uint32_t dispatcher_cpu; /* 92: a client on this CPU does not spin */
};

struct gemmd_msg_mapped {
    struct gemmd_msg_header header;
};

struct gemmd_msg_mapped_reply {
    struct gemmd_msg_header header;
};

/* What a layer is, apart from its data.  Hashed as these 64 bytes. */
struct gemmd_layer_desc_abi {
    uint32_t n;            /*  0: output channels, columns of C */
    uint32_t k;            /*  4: depth, columns of A */
    uint8_t a_type;        /*  8: U8, S8, F32 or BF16 */
    uint8_t c_type;        /*  9: U8, S8, S32, F32 or BF16 */
    uint8_t bias_type;     /* 10: NONE, S32 or F32 */
    uint8_t activation;    /* 11: enum gemmd_abi_activation */
    uint32_t scale_count;  /* 12: 1 (per tensor) or n (per channel) */
    int32_t a_zero_point;  /* 16 */
    int32_t c_zero_point;  /* 20 */
    float a_scale;         /* 24: 1 for F32 and BF16, whose rows have scales of their own */
    float c_scale;         /* 28 */
    uint8_t b_type;        /* 32: S8 or S4 */
    uint8_t quantize_mode; /* 33: of F32 and BF16 rows: enum gemmd_abi_quantize_mode; else 0 */
    uint8_t b_zero_points; /* 34: 1: the image has one for each channel (S8); else 0 */
    uint8_t residual_type; /* 35: NONE, U8, S8, F32 or BF16: added before the activation */
    uint32_t group;        /* 36: weights that share a multiplier (S4: 32, 64, 128); else 0 */
    float clip_lo;         /* 40: of CLIP; else 0 */
    float clip_hi;         /* 44 */
    int32_t residual_zero_point; /* 48: of U8 and S8; else 0 */
    float residual_scale;        /* 52: likewise */
    uint8_t a_row_scales;        /* 56: 1: each row of A (U8, S8) ends with its scale; else 0 */
    uint8_t reserved[7];         /* 57: 0 */
};

/*
 * The raw bytes of a layer ("image"), as uploaded and hashed; each part starts on a multiple of 64,
 * gaps are zero:
 *     weights       s8 [n][k]; s4 [n][ceil(k / 2)], the lower k in the low half of a byte
 *     multipliers   s4 only: u16 [n][ceil(k / group)]
 *     scales        f32 [scale_count]
 *     bias          [n], unless its type is NONE
 *     zero points   s8 [n], with b_zero_points
 * content_id = XXH3-128 of the desc followed by the image, low half first.
 */
struct gemmd_msg_layer_create {
    struct gemmd_msg_header header;
    struct gemmd_layer_desc_abi desc; /* 16 */
    uint64_t content_id[2];           /* 80 */
    char name[GEMMD_NAME_BYTES];      /* 96: empty = none */
};

struct gemmd_msg_layer_commit {
    struct gemmd_msg_header header;
};

struct gemmd_msg_layer_open {
    struct gemmd_msg_header header;
    char name[GEMMD_NAME_BYTES]; /* 16 */
};

/* Reply to LAYER_CREATE, LAYER_COMMIT and LAYER_OPEN. */
struct gemmd_msg_layer_reply {
    struct gemmd_msg_header header;
    uint32_t layer_id;                /* 16 */
    uint32_t layer_gen;               /* 20: 0: not attached, send the image (CREATE only) */
    struct gemmd_layer_desc_abi desc; /* 24 */
    uint64_t content_id[2];           /* 88 */
    uint64_t weight_bytes_new;        /* 104: worker memory this call added; 0 when it attached */
};

struct gemmd_msg_layer_data {
    struct gemmd_msg_header header;
    uint64_t image_offset; /* 16: must continue the previous piece */
    uint64_t arena_offset; /* 24 */
    uint64_t bytes;        /* 32 */
};

struct gemmd_msg_layer_data_reply {
    struct gemmd_msg_header header;
    uint64_t received; /* 16: image bytes so far */
};

struct gemmd_msg_layer_close {
    struct gemmd_msg_header header;
    uint32_t layer_id;  /* 16 */
    uint32_t layer_gen; /* 20 */
};

struct gemmd_msg_layer_close_reply {
    struct gemmd_msg_header header;
};

/* Comes with one descriptor: a packed layer file (worker/layer_file.h), whose layers are added, or
 * take the place of those of the same names; open handles stay with the old ones.  The reply comes
 * when the file is loaded or refused; other sessions are served meanwhile. */
struct gemmd_msg_layer_load {
    struct gemmd_msg_header header;
    char prefix[GEMMD_NAME_BYTES]; /* 16: of the layers' names, without the '/'; empty = none */
};

struct gemmd_msg_layer_load_reply {
    struct gemmd_msg_header header;
    uint64_t weight_bytes_new; /* 16 */
    uint32_t layers;           /* 24 */
    uint32_t reserved;         /* 28 */
    char reason[192];          /* 32: filled in when status is not 0: layer and field at fault */
};

/* `name` means the layer of that name and all below it ("name/…"). */
struct gemmd_msg_layer_unload {
    struct gemmd_msg_header header;
    char name[GEMMD_NAME_BYTES]; /* 16 */
};

struct gemmd_msg_layer_unload_reply {
    struct gemmd_msg_header header;
    uint64_t bytes_freed; /* 16: at once; layers that are open go with their last handle */
    uint32_t layers;      /* 24: names that went */
    uint32_t reserved;    /* 28 */
};

struct gemmd_msg_layer_pin {
    struct gemmd_msg_header header;
    char name[GEMMD_NAME_BYTES]; /* 16 */
    uint32_t pin;                /* 80: 0 or 1 */
    uint32_t reserved;           /* 84: 0 */
};

struct gemmd_msg_layer_pin_reply {
    struct gemmd_msg_header header;
    uint32_t layers;   /* 16 */
    uint32_t reserved; /* 20 */
};

/* TAKEOVER's request is struct gemmd_msg_list.  From the first one to the commit, or the end of the
 * session, messages of other sessions wait: layers do not change (jobs go on).  Comes with one
 * descriptor: index 0 the table of the worker's layers, 1 .. count - 1 the files of its pool. */
struct gemmd_msg_takeover_reply {
    struct gemmd_msg_header header;
    uint64_t generation; /* 16: changes with the layers */
    uint64_t file_id;    /* 24: as the table names it; 0: the table itself */
    uint32_t count;      /* 32: of descriptors in all */
    uint32_t reserved;   /* 36 */
};

struct gemmd_msg_takeover_commit {
    struct gemmd_msg_header header;
    uint64_t generation; /* 16: of what the sender holds; CHANGED when that is old */
};

/* Comes with two descriptors: the listening socket and its lock.  The worker that sent it drains
 * and ends. */
struct gemmd_msg_takeover_commit_reply {
    struct gemmd_msg_header header;
};

struct gemmd_msg_info {
    struct gemmd_msg_header header;
};

struct gemmd_msg_info_reply {
    struct gemmd_msg_header header;
    char worker_version[16];    /* 16 */
    uint32_t pid;               /* 32 */
    int32_t node;               /* 36 */
    uint32_t cpu_count;         /* 40: CPUs given to the worker */
    uint32_t dispatcher_cpu;    /* 44 */
    char level[16];             /* 48: "avx512vnni" */
    char kernel[64];            /* 64 */
    char event_level[16];       /* 128: "F0" .. "F3" */
    uint64_t uptime_ns;         /* 144 */
    uint32_t session_count;     /* 152 */
    uint32_t layer_count;       /* 156 */
    uint64_t pool_bytes;        /* 160: mapped for weights */
    uint64_t pool_bytes_used;   /* 168 */
    uint64_t pool_bytes_1g;     /* 176: of pool_bytes, on 1 GiB pages */
    uint64_t pool_bytes_2m;     /* 184: on 2 MiB hugetlb pages */
    uint64_t pool_bytes_thp;    /* 192: on transparent huge pages, as read from smaps */
    uint64_t pool_bytes_4k;     /* 200 */
    uint64_t
        pool_bytes_on_node; /* 208: verified on `node`; pool_bytes when the kernel has no NUMA */
    uint64_t pool_bytes_limit;  /* 216 */
    uint64_t arena_bytes;       /* 224: of all sessions */
    uint64_t worker_epoch;      /* 232 */
    char lost[256];             /* 240: what start-up had to do without; empty = nothing */
    uint64_t layer_bytes;        /* 496: of all layers */
    uint64_t layer_bytes_unused; /* 504: of those nobody has open and nothing pins */
    uint64_t layer_bytes_pinned; /* 512 */
    uint64_t layer_evictions;    /* 520 */
    uint64_t scrub_bytes;        /* 528: weights compared with their checksums in idle time */
    uint64_t scrub_passes;       /* 536: times all of them were */
    uint64_t scrub_faults;       /* 544: layers found changed, and withdrawn */
    uint64_t pool_bytes_kept;    /* 552: of pool_bytes, in files that outlive the worker */
};

/* Request of LAYERS and SESSIONS. */
struct gemmd_msg_list {
    struct gemmd_msg_header header;
    uint32_t index;    /* 16: 0 .. count - 1; the order may change as layers come and go */
    uint32_t reserved; /* 20: 0 */
};

/* Of the jobs of a layer or a session, ns; known to a quarter. */
struct gemmd_abi_latency {
    uint64_t queue_p50_ns, queue_p99_ns, exec_p50_ns, exec_p99_ns;
};

struct gemmd_msg_layers_reply {
    struct gemmd_msg_header header;
    struct gemmd_layer_desc_abi desc; /* 16 */
    uint64_t content_id[2];           /* 80 */
    char name[GEMMD_NAME_BYTES];      /* 96 */
    uint64_t weight_bytes;            /* 160: of worker memory */
    uint64_t page_bytes;              /* 168: of the pages that hold it */
    int32_t node;                     /* 176 */
    uint32_t references;              /* 180: sessions that have it open */
    uint64_t jobs;                    /* 184 */
    uint64_t rows;                    /* 192 */
    char kernel[64];                  /* 200 */
    uint32_t uid;                     /* 264: whose quota it counts against */
    uint32_t flags;                   /* 268: GEMMD_LAYER_* */
    uint64_t exec_ns;                 /* 272: compute, of all threads */
    uint64_t panels;                  /* 280: as in proto/stats.h */
    uint64_t panel_rows;              /* 288 */
    struct gemmd_abi_latency latency; /* 296 */
    uint64_t hits;                    /* 328: openings that found it there, since the start */
    uint64_t deadline_misses;         /* 336 */
};

enum gemmd_layer_flags {
    GEMMD_LAYER_PINNED = 1,   /* never evicted */
    GEMMD_LAYER_UNLOADED = 2, /* goes with its last handle */
};

struct gemmd_msg_sessions_reply {
    struct gemmd_msg_header header;
    uint32_t session_id;     /* 16 */
    uint32_t pid;            /* 20: as the kernel reported it at connect */
    uint32_t uid;            /* 24 */
    uint32_t ring_entries;   /* 28 */
    uint64_t arena_bytes;    /* 32 */
    uint64_t jobs;           /* 40 */
    uint64_t jobs_failed;    /* 48 */
    uint64_t rows;           /* 56 */
    uint64_t exec_ns;        /* 64 */
    uint64_t doorbells;      /* 72 */
    uint64_t wakeups;        /* 80 */
    uint32_t layers;         /* 88 */
    uint32_t state;          /* 92: enum gemmd_session_state */
    uint64_t age_ns;         /* 96 */
    struct gemmd_abi_latency latency; /* 104 */
    uint64_t deadline_misses;         /* 136 */
    uint64_t cancelled;               /* 144 */
    uint32_t in_flight;               /* 152 */
    uint32_t weight;                  /* 156 */
};

enum gemmd_session_state {
    GEMMD_SESSION_NEW = 0,
    GEMMD_SESSION_MAPPING = 1,
    GEMMD_SESSION_LIVE = 2,
};

struct gemmd_msg_stats {
    struct gemmd_msg_header header;
};

/* Comes with one descriptor: the counters page (proto/stats.h), read-only. */
struct gemmd_msg_stats_reply {
    struct gemmd_msg_header header;
    uint64_t bytes; /* 16 */
};

struct gemmd_msg_wake_fd {
    struct gemmd_msg_header header;
};

/* Comes with one descriptor, always the same: an epoll instance that watches, edge-triggered, an
 * eventfd of the worker's.  It becomes readable when the worker wakes the client (edge W of
 * proto/ring.h), and stays so until the client takes the event from it with epoll_wait.  The
 * eventfd itself never leaves the worker: whoever shares an eventfd can clear O_NONBLOCK and fill
 * the counter, and the write that was to wake him then blocks.  From this reply on the worker
 * writes there instead of waking cq_futex, which it still changes first. */
struct gemmd_msg_wake_fd_reply {
    struct gemmd_msg_header header;
};

/* Reply that is only a header: an error, or an unknown request before the session ends. */
struct gemmd_msg_error_reply {
    struct gemmd_msg_header header;
};

static_assert(sizeof(struct gemmd_msg_header) == 16, "wire size");
static_assert(sizeof(struct gemmd_msg_hello) == 64, "wire size");
static_assert(sizeof(struct gemmd_msg_hello_reply) == 96, "wire size");
static_assert(sizeof(struct gemmd_layer_desc_abi) == 64, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_create) == 160, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_open) == 80, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_reply) == 112, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_data) == 40, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_data_reply) == 24, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_close) == 24, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_load) == 80, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_load_reply) == 224, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_unload) == 80, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_unload_reply) == 32, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_pin) == 88, "wire size");
static_assert(sizeof(struct gemmd_msg_layer_pin_reply) == 24, "wire size");
static_assert(sizeof(struct gemmd_msg_takeover_reply) == 40, "wire size");
static_assert(sizeof(struct gemmd_msg_takeover_commit) == 24, "wire size");
static_assert(sizeof(struct gemmd_msg_info_reply) == 560, "wire size");
static_assert(sizeof(struct gemmd_msg_list) == 24, "wire size");
static_assert(sizeof(struct gemmd_msg_layers_reply) == 344, "wire size");
static_assert(sizeof(struct gemmd_msg_sessions_reply) == 160, "wire size");
static_assert(sizeof(struct gemmd_msg_stats_reply) == 24, "wire size");
static_assert(sizeof(struct gemmd_msg_info_reply) <= GEMMD_MESSAGE_BYTES_MAX, "fits a packet");

GEMMD_AT(gemmd_msg_header, status, 12);
GEMMD_AT(gemmd_msg_hello, magic, 16);
GEMMD_AT(gemmd_msg_hello, version_min, 24);
GEMMD_AT(gemmd_msg_hello, features, 32);
GEMMD_AT(gemmd_msg_hello, flags, 40);
GEMMD_AT(gemmd_msg_hello, ring_entries, 44);
GEMMD_AT(gemmd_msg_hello, arena_bytes, 48);
GEMMD_AT(gemmd_msg_hello_reply, version, 24);
GEMMD_AT(gemmd_msg_hello_reply, session_id, 28);
GEMMD_AT(gemmd_msg_hello_reply, ring_entries, 40);
GEMMD_AT(gemmd_msg_hello_reply, c2w_bytes, 48);
GEMMD_AT(gemmd_msg_hello_reply, arena_page_bytes, 72);
GEMMD_AT(gemmd_msg_hello_reply, worker_epoch, 80);
GEMMD_AT(gemmd_msg_hello_reply, spin_ns_max, 88);
GEMMD_AT(gemmd_msg_hello_reply, dispatcher_cpu, 92);
GEMMD_AT(gemmd_layer_desc_abi, a_type, 8);
GEMMD_AT(gemmd_layer_desc_abi, scale_count, 12);
GEMMD_AT(gemmd_layer_desc_abi, a_zero_point, 16);
GEMMD_AT(gemmd_layer_desc_abi, a_scale, 24);
GEMMD_AT(gemmd_layer_desc_abi, b_type, 32);
GEMMD_AT(gemmd_layer_desc_abi, quantize_mode, 33);
GEMMD_AT(gemmd_layer_desc_abi, b_zero_points, 34);
GEMMD_AT(gemmd_layer_desc_abi, group, 36);
GEMMD_AT(gemmd_layer_desc_abi, clip_lo, 40);
GEMMD_AT(gemmd_layer_desc_abi, residual_type, 35);
GEMMD_AT(gemmd_layer_desc_abi, residual_zero_point, 48);
GEMMD_AT(gemmd_layer_desc_abi, residual_scale, 52);
GEMMD_AT(gemmd_layer_desc_abi, a_row_scales, 56);
GEMMD_AT(gemmd_layer_desc_abi, reserved, 57);
GEMMD_AT(gemmd_msg_layer_create, desc, 16);
GEMMD_AT(gemmd_msg_layer_create, content_id, 80);
GEMMD_AT(gemmd_msg_layer_create, name, 96);
GEMMD_AT(gemmd_msg_layer_reply, desc, 24);
GEMMD_AT(gemmd_msg_layer_reply, content_id, 88);
GEMMD_AT(gemmd_msg_layer_reply, weight_bytes_new, 104);
GEMMD_AT(gemmd_msg_layer_load, prefix, 16);
GEMMD_AT(gemmd_msg_layer_load_reply, weight_bytes_new, 16);
GEMMD_AT(gemmd_msg_layer_load_reply, layers, 24);
GEMMD_AT(gemmd_msg_layer_load_reply, reason, 32);
GEMMD_AT(gemmd_msg_layer_unload, name, 16);
GEMMD_AT(gemmd_msg_layer_unload_reply, bytes_freed, 16);
GEMMD_AT(gemmd_msg_layer_pin, pin, 80);
GEMMD_AT(gemmd_msg_takeover_reply, generation, 16);
GEMMD_AT(gemmd_msg_takeover_reply, file_id, 24);
GEMMD_AT(gemmd_msg_takeover_reply, count, 32);
GEMMD_AT(gemmd_msg_takeover_commit, generation, 16);
GEMMD_AT(gemmd_msg_info_reply, level, 48);
GEMMD_AT(gemmd_msg_info_reply, kernel, 64);
GEMMD_AT(gemmd_msg_info_reply, event_level, 128);
GEMMD_AT(gemmd_msg_info_reply, uptime_ns, 144);
GEMMD_AT(gemmd_msg_info_reply, pool_bytes, 160);
GEMMD_AT(gemmd_msg_info_reply, worker_epoch, 232);
GEMMD_AT(gemmd_msg_info_reply, lost, 240);
GEMMD_AT(gemmd_msg_info_reply, layer_bytes, 496);
GEMMD_AT(gemmd_msg_info_reply, pool_bytes_kept, 552);
GEMMD_AT(gemmd_msg_layers_reply, weight_bytes, 160);
GEMMD_AT(gemmd_msg_layers_reply, node, 176);
GEMMD_AT(gemmd_msg_layers_reply, kernel, 200);
GEMMD_AT(gemmd_msg_layers_reply, uid, 264);
GEMMD_AT(gemmd_msg_sessions_reply, jobs, 40);
GEMMD_AT(gemmd_msg_sessions_reply, layers, 88);
GEMMD_AT(gemmd_msg_layers_reply, latency, 296);
GEMMD_AT(gemmd_msg_sessions_reply, age_ns, 96);
GEMMD_AT(gemmd_msg_sessions_reply, latency, 104);

#endif
