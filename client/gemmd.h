/*
 * gemmd: int8 GEMM by a worker process that all processes of a machine share.
 *
 * A worker (`gemmd`, one per NUMA node) owns packed weights, once, in huge pages.  A program opens
 * a session, creates or opens layers, places its input rows in buffers both sides can see, and
 * submits jobs (one layer applied to m rows) to a ring in shared memory.  When both sides are awake
 * no system call is made between gemmd_submit and the completion.
 *
 *     gemmd_connect(NULL, &session);
 *     gemmd_layer_create(session, &desc, &layer);
 *     a = gemmd_buffer_alloc(session, m * k), c = gemmd_buffer_alloc(session, m * n * 4);
 *     gemmd_job_init(&job, layer, m, a, c);
 *     gemmd_run(session, &job, -1);
 *
 * Conventions.  Functions that return int give >= 0 on success and -errno on failure;
 * gemmd_error_text(session) then says what was wrong and how to mend it.  A session belongs to one
 * thread at a time; different sessions are independent.  "Blocks" below means: may wait for the
 * worker's control thread.  The library starts no threads and installs no signal handlers.
 * After fork() the child must not use its parent's session: every call then returns -EOWNERDEAD.
 *
 * Promise: a submitted job yields exactly one completion: success with C fully written, or an
 * error.  C is undefined until completion.  C must not overlap A, nor a residual other than itself.
 */
#ifndef GEMMD_H
#define GEMMD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GEMMD_API __attribute__((visibility("default")))

/* A session with a worker.  Opaque; closed by gemmd_close. */
struct gemmd;
/* A layer opened in a session.  Opaque; closed by gemmd_layer_close, or with its session. */
struct gemmd_layer;

/* Element types. */
enum gemmd_type {
    GEMMD_TYPE_NONE = 0,
    GEMMD_TYPE_U8 = 1,
    GEMMD_TYPE_S8 = 2,
    GEMMD_TYPE_S32 = 3,
    GEMMD_TYPE_F32 = 4,
    GEMMD_TYPE_BF16 = 5, /* the upper half of an f32 */
    GEMMD_TYPE_S4 = 6,   /* weights only */
};

enum gemmd_activation {
    GEMMD_ACTIVATION_NONE = 0,
    GEMMD_ACTIVATION_RELU = 1,
    GEMMD_ACTIVATION_CLIP = 2,      /* min(max(x, clip_lo), clip_hi) */
    GEMMD_ACTIVATION_GELU_TANH = 3, /* x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) */
    GEMMD_ACTIVATION_GELU_ERF = 4,  /* x / 2 (1 + erf(x / sqrt(2))) */
    GEMMD_ACTIVATION_SILU = 5,      /* x / (1 + exp(-x)) */
};

/* How the worker makes u8 rows of f32 and bf16 ones, each row by itself: from the range of its
 * finite values and 0, asymmetric in 255 steps with a zero point, or symmetric in 127 steps to
 * either side of 0.  NaN counts as 0; infinities become the ends of the range. */
enum gemmd_quantize_mode {
    GEMMD_QUANTIZE_ASYMMETRIC = 0,
    GEMMD_QUANTIZE_SYMMETRIC = 1,
};

/* How the library makes s8 and s4 weights of f32 and bf16 ones: symmetrically, by scales from the
 * largest magnitude, so that nothing is clipped, or by those of the least sum of squared errors,
 * which take about 1 us a weight to be found. */
enum gemmd_quantize_method {
    GEMMD_QUANTIZE_MIN_MAX = 0,
    GEMMD_QUANTIZE_L2 = 1,
};

/* "0.1.0".  Static storage. */
GEMMD_API const char *gemmd_version(void);

/* What a negative result means: strerror of -error, with gemmd's own words where errno's are too
 * general.  Static or thread-local storage; never NULL. */
GEMMD_API const char *gemmd_strerror(int error);

/* Name ("A_OFFSET") and text of a completion's status.  Static storage; never NULL. */
GEMMD_API const char *gemmd_status_name(int status);
GEMMD_API const char *gemmd_status_text(int status);

/* ---- session --------------------------------------------------------------------------------- */

struct gemmd_options {
    size_t size;             /* sizeof(struct gemmd_options), set by gemmd_options_init */
    const char *socket;      /* the worker's socket; NULL: $GEMMD_SOCKET, else the user's worker of
                                the caller's NUMA node ($XDG_RUNTIME_DIR/gemmd/node<N>.sock, or
                                /tmp/gemmd-<uid>/node<N>.sock), else /run/gemmd/node<N>.sock */
    int autostart;           /* 1 (default): if none of these answers and neither `socket` nor
                                $GEMMD_SOCKET names one, start a private worker for this user that
                                ends when idle; it may use all CPUs of the node that the system or
                                container allows, even if the caller is pinned to some, and works
                                in "/"; 0: -ECONNREFUSED */
    uint32_t ring_entries;   /* power of two 8..4096; 0 (default): 256.  One less is how many jobs
                                can be in flight; the last place is left to a cancel */
    uint64_t arena_bytes;    /* buffer memory; 64 KiB..4 GiB; 0 (default): 16 MiB */
    int64_t spin_ns;         /* longest spin of gemmd_wait before it sleeps; within it the library
                                learns from recent waits how long pays, and never spins on the
                                worker's own CPU; 0: sleep at once; -1 (default): what the worker
                                advises (0 on a machine with one CPU) */
    int control_only;        /* 1: no rings and no arena, for tools; default 0 */
    int timeout_ms;          /* of connecting and of each control call; default 10000 */
    int recover_ms;          /* > 0: when the worker dies, look for another for so long, and go on
                                with it: buffers keep their addresses and contents, layers are
                                opened again, jobs in flight are submitted again, and each completes
                                once.  Any call on the session may then block for so long.  Jobs
                                that add to C (residual == c) complete with WORKER_LOST: nobody
                                knows what the dead worker had already added.
                                0 (default): jobs in flight complete with WORKER_LOST */
    int keep_weights;        /* with recover_ms; 1: keep a private copy of the weights of created
                                layers for a worker that has lost them.  0 (default): a layer that
                                the new worker has neither by name nor by contents is lost: its jobs
                                complete with WORKER_LOST, new ones are refused */
    uint64_t reserved[7];    /* 0 */
};

/* Defaults into *options.  Cannot fail. */
GEMMD_API void gemmd_options_init(struct gemmd_options *options);

/* Opens a session; options NULL means the defaults.  Blocks.  On success *out is the caller's, to
 * be closed with gemmd_close; on failure *out is NULL, and gemmd_error_text(NULL) holds the reason
 * for this thread.
 *   0
 *   -ECONNREFUSED     no worker answers and autostart is off or failed
 *   -EACCES           the worker or its socket does not admit this user
 *   -EPROTONOSUPPORT  no common protocol version
 *   -EPROTO           whoever answers does not speak the protocol
 *   -EINVAL           an option is out of range
 *   -ENOMEM           no memory here, or in the worker for the arena
 *   -EAGAIN           the worker has as many sessions as it can take
 *   -ETIMEDOUT        the worker did not answer within timeout_ms */
GEMMD_API int gemmd_connect(const struct gemmd_options *options, struct gemmd **out);

/* Ends the session: jobs in flight are abandoned, layers and buffers of the session are gone.
 * Accepts NULL and a pointer to NULL; *session becomes NULL.  Does not block. */
GEMMD_API void gemmd_close(struct gemmd **session);

/* Text of the last failure in this session; of the last gemmd_connect in this thread when session
 * is NULL.  "" when there was none.  Owned by the library, valid until the next failing call. */
GEMMD_API const char *gemmd_error_text(const struct gemmd *session);

/* ---- layers ---------------------------------------------------------------------------------- */

/*
 * A layer: C [m x n] = activation(real(A [m x k]) * real(B [n x k])^T + bias + real(R [m x n])),
 * quantised, where
 *   real(a) = a_scale * (a - a_zero_point) of u8 and s8 rows; f32 and bf16 rows are real already,
 *     and are quantised by the worker (enum gemmd_quantize_mode): give a_scale 1, a_zero_point 0;
 *     with a_row_scales each row of u8 or s8 brings a scale of its own, a float (any value) in the
 *     4 bytes behind its k elements, and real(a) is that times what is said above;
 *   real(b of channel j) = b_scales[j] * (b - b_zero_points[j]) of s8 weights, and of s4 ones
 *     b_scales[j] * multipliers[j][t / group] * b, t being the place along k;
 *   R, the residual, is there with residual_type only, and comes with each job; real(r) =
 *     residual_scale * (r - residual_zero_point) of u8 and s8; f32 and bf16 are real already;
 *   an s8/u8 output is round-half-even(c / c_scale) + c_zero_point, saturated; a bf16 output is
 *   rounded to nearest even.
 * An s32 output is the exact sum of (a - a_zero_point) * (b - b_zero_point), plus an s32 bias;
 * scales are not used.
 *
 *   A           B     C                      bias
 *   u8, s8      s8    u8, s8, s32, f32, bf16 none, s32, f32 (s32 output: not f32)
 *   f32, bf16   s8    u8, s8, f32, bf16      none, f32
 *   u8          s4    u8, s8, f32, bf16      none, f32
 *   u8, s8 with a_row_scales: as float rows
 *   f32, bf16   s4    u8, s8, f32, bf16      none, f32
 *
 * and with each of these but an s32 output a residual of u8, s8, f32 or bf16.  A NaN in it becomes
 * 0 by ReLU, clip_lo by clip, the least value of u8 and s8, and else the quiet NaN.
 *
 * Every instruction-set level gives the same bits, alone or beside other jobs.
 */
struct gemmd_layer_desc {
    size_t size;               /* set by gemmd_layer_desc_init */
    uint32_t n, k;             /* 1..2^20 output channels; depth 1..65536, with b_zero_points
                                  1..33025 */
    enum gemmd_type a_type;    /* U8, S8, F32 or BF16; default U8 */
    enum gemmd_type b_type;    /* S8 (default) or S4 */
    enum gemmd_type c_type;    /* U8, S8, S32, F32 or BF16; default F32 */
    const void *weights;       /* S8: int8_t [n][k]; S4: bytes [n][(k + 1) / 2], two's complement,
                                  the lower k in the low half; read, as all arrays here, during
                                  gemmd_layer_create only */
    enum gemmd_type weights_type; /* NONE (default): weights are as above; F32, BF16: they are
                                  [n][k] of this type, finite, and are quantised to b_type here:
                                  S8 with a scale for all or for each channel (scale_count), S4
                                  with scale_count n; multipliers, b_zero_points and b_scales are
                                  NULL then */
    enum gemmd_quantize_method quantize_method; /* with weights_type; default, and without:
                                  MIN_MAX */
    uint32_t group;            /* S4: 32, 64 or 128 weights along k have one multiplier; S8: 0
                                  (default) */
    const uint16_t *multipliers; /* S4: [n][(k + group - 1) / group]; S8: NULL (default) */
    const int8_t *b_zero_points; /* S8: [n], or NULL (default): all 0; S4: NULL */
    const float *b_scales;     /* [scale_count], finite; NULL (default): 1.0 */
    uint32_t scale_count;      /* 1 (default): one for all channels; or n */
    float a_scale, c_scale;    /* finite, > 0; default 1.0; a_scale of F32 and BF16 is 1.0 */
    int32_t a_zero_point;      /* within a_type; 0 unless U8 or S8; default 0 */
    int a_row_scales;          /* 1: of U8 and S8 rows, which end with their scales; default 0 */
    enum gemmd_quantize_mode quantize_mode; /* of F32 and BF16 rows; default, and with others:
                                  ASYMMETRIC */
    int32_t c_zero_point;      /* within c_type; 0 unless U8 or S8; default 0 */
    enum gemmd_type bias_type; /* NONE (default); S32: in accumulator units, a_scale * b_scale;
                                  F32: in real units */
    const void *bias;          /* [n] of bias_type */
    enum gemmd_activation activation; /* default NONE; NONE with an s32 output */
    float clip_lo, clip_hi;    /* of CLIP: finite, lo <= hi; else 0 (default) */
    enum gemmd_type residual_type; /* NONE (default), U8, S8, F32 or BF16 */
    int32_t residual_zero_point;   /* within residual_type; 0 (default) unless U8 or S8 */
    float residual_scale;          /* of U8 and S8: finite, > 0; else 0 (default) */
    const char *name;          /* others open the layer by it; NULL (default): none; 1..63 of
                                  [A-Za-z0-9._/-] */
    /* NULL (default), or called after each piece of an upload; must not call the session. */
    void (*progress)(void *context, uint64_t bytes_sent, uint64_t bytes);
    void *progress_context;
    uint64_t reserved[6];      /* 0 */
};

/* Zeroes *desc and sets the defaults. */
GEMMD_API void gemmd_layer_desc_init(struct gemmd_layer_desc *desc);

/* Creates the layer in the worker, or attaches to it if one with the same contents is there: the
 * weights then cost no memory and, for the same user, no upload.  Blocks.  The caller keeps desc
 * and its arrays; *out belongs to the session until gemmd_layer_close.  0: created; 1: attached;
 * -EINVAL (the text names the field; also for a zero point of A that takes the bias of s4 weights
 * beyond a float), -EEXIST (name taken), -ENOSPC (pool or table full), -ENOBUFS (an upload needs
 * 64 KiB of the arena), -ENOMEM, -EFBIG, -ETIMEDOUT, -ECONNRESET, -ESHUTDOWN (worker draining). */
GEMMD_API int gemmd_layer_create(struct gemmd *session, const struct gemmd_layer_desc *desc,
                                 struct gemmd_layer **out);

/* The same for the layers of a model: all, or on failure none (each out[i] is NULL then).  Layers
 * that are there cost their hashing and no round trip each.  How many were attached, or -errno as
 * above. */
GEMMD_API int gemmd_layers_create(struct gemmd *session, const struct gemmd_layer_desc *descs,
                                  uint32_t count, struct gemmd_layer **out);

/* Opens a layer of the worker by its name.  Blocks.  0, -ENOENT, -EINVAL, -ENOSPC, -ETIMEDOUT,
 * -ECONNRESET. */
GEMMD_API int gemmd_layer_open(struct gemmd *session, const char *name, struct gemmd_layer **out);

/* Closes the layer: jobs of it still in the ring complete with status LAYER_STALE.  Blocks.
 * Accepts NULL and a pointer to NULL; *layer becomes NULL in any case.  0 or -ECONNRESET. */
GEMMD_API int gemmd_layer_close(struct gemmd *session, struct gemmd_layer **layer);

/* Shape of an open layer, for programs that opened it by name. */
GEMMD_API uint32_t gemmd_layer_n(const struct gemmd_layer *layer);
GEMMD_API uint32_t gemmd_layer_k(const struct gemmd_layer *layer);
GEMMD_API enum gemmd_type gemmd_layer_a_type(const struct gemmd_layer *layer);
GEMMD_API enum gemmd_type gemmd_layer_b_type(const struct gemmd_layer *layer);
GEMMD_API enum gemmd_type gemmd_layer_c_type(const struct gemmd_layer *layer);
/* Bytes of a row of A, with its scale if it has one. */
GEMMD_API uint32_t gemmd_layer_a_row_bytes(const struct gemmd_layer *layer);
/* NONE: its jobs have no residual. */
GEMMD_API enum gemmd_type gemmd_layer_residual_type(const struct gemmd_layer *layer);
/* Worker memory that creating or opening this handle added: 0 when attached. */
GEMMD_API uint64_t gemmd_layer_bytes_new(const struct gemmd_layer *layer);

/* ---- buffers --------------------------------------------------------------------------------- */

/* `bytes` of the session's arena, 64-byte aligned, contents undefined; the worker can read and
 * write them. NULL when bytes is 0 or the arena has no room (gemmd_error_text says which).  Does
 * not block, no system call.  The memory is gone with the session. */
GEMMD_API void *gemmd_buffer_alloc(struct gemmd *session, size_t bytes);

/* Gives it back.  NULL is allowed.  No job in flight may use it.  A pointer that is not a buffer's
 * start aborts the program: it is a bug that would corrupt results. */
GEMMD_API void gemmd_buffer_free(struct gemmd *session, void *buffer);

/* The whole arena's size, and the bytes still free in it. */
GEMMD_API size_t gemmd_arena_bytes(const struct gemmd *session);
GEMMD_API size_t gemmd_arena_bytes_free(const struct gemmd *session);

/* ---- jobs ------------------------------------------------------------------------------------ */

/* Order among jobs that wait: latency before normal before background.  A class buys no more than
 * its session's fair share of the compute; background work counts for a small share only. */
enum gemmd_priority {
    GEMMD_PRIORITY_NORMAL = 0,
    GEMMD_PRIORITY_LATENCY = 1,
    GEMMD_PRIORITY_BACKGROUND = 2,
};

/* One layer applied to m rows.  A, C and the residual lie inside buffers of the session. */
struct gemmd_job {
    struct gemmd_layer *layer;
    uint32_t m;              /* rows, 0..2^20; 0 completes at once */
    const void *a;           /* k elements of a_type per row, and its scale with a_row_scales; any
                                alignment */
    void *c;                 /* n elements of c_type per row, aligned to the element */
    const void *residual;    /* n elements of residual_type per row, any alignment, as many elements
                                from row to row as in C.  May be c, if the elements are equally
                                long: then C is what is added to.  NULL (default) for layers that
                                have none */
    uint32_t a_stride_bytes; /* from row to row; <= 2^24 */
    uint32_t c_stride_bytes;
    uint64_t user_data;      /* returned in the completion */
    uint64_t deadline_ns;    /* CLOCK_MONOTONIC: not started from then on, but completed with status
                                DEADLINE (-ETIME); 0 (default): none */
    enum gemmd_priority priority; /* default NORMAL */
    uint32_t reserved;       /* 0 */
};

struct gemmd_completion {
    uint64_t user_data;
    int status;          /* 0 success; else gemmd_status_text(status), and `error` */
    int error;           /* 0 or -errno of the status */
    uint32_t queue_ns;   /* the worker's view: seen to started, */
    uint32_t exec_ns;    /* started to ended; both saturate at 4.29 s */
};

/* A job over dense rows (strides = row bytes), user_data 0. */
GEMMD_API void gemmd_job_init(struct gemmd_job *job, struct gemmd_layer *layer, uint32_t m,
                              const void *a, void *c);

/* Puts up to `count` jobs into the submission ring; copies them, the caller's array is free at
 * once. Never blocks, no system call.  The worker sees them at once if it is awake; gemmd_flush,
 * gemmd_wait and gemmd_run wake it if it sleeps.
 *   0..count     how many were taken, from the front: fewer than count when the ring is full (reap
 *                completions first) or when the next one is malformed (the next call then says so)
 *   -EINVAL      the first job is malformed (a or c outside the arena, a layer of another session)
 *   -ECONNRESET  the worker is gone */
GEMMD_API int gemmd_submit(struct gemmd *session, const struct gemmd_job *jobs, unsigned count);

/* Rings the doorbell if the worker sleeps.  1 a system call was made, 0 none was needed. */
GEMMD_API int gemmd_flush(struct gemmd *session);

/* Takes up to `capacity` completions without waiting; no system call, but for a look at the
 * connection when nothing in flight has completed for a second (see also gemmd_get_fd).
 * 0..capacity.  After the worker's death every job in flight completes here once with status
 * WORKER_LOST. */
GEMMD_API int gemmd_poll(struct gemmd *session, struct gemmd_completion *out, unsigned capacity);

/* Like gemmd_poll, but waits for at least one completion: flushes, spins, then sleeps.
 * timeout_ms < 0: for ever; 0: like gemmd_poll with a flush.
 *   1..capacity, 0 nothing is in flight, -ETIMEDOUT, -EINTR (a signal handler ran) */
GEMMD_API int gemmd_wait(struct gemmd *session, struct gemmd_completion *out, unsigned capacity,
                         int timeout_ms);

/* Submits one job and waits for it.  Only when nothing else is in flight (-EBUSY).
 *   0, -errno of its status, -ETIMEDOUT (the job is still in flight), -EINTR likewise, -EINVAL */
GEMMD_API int gemmd_run(struct gemmd *session, const struct gemmd_job *job, int timeout_ms);

/* Asks the worker to end the jobs in flight that have this user_data.  Each still completes
 * exactly once: with status CANCELLED (-ECANCELED; C is undefined), or as usual when it was faster.
 * It overtakes whatever waits in the worker, also what is beyond a quota.  Takes a place in the
 * ring until its answer has been reaped, by gemmd_poll or gemmd_wait, which do not show it; jobs
 * leave one place free for it.  Never blocks, no system call.
 *   > 0          so many jobs were asked for
 *   -ENOENT      none in flight has it
 *   -EAGAIN      no place: an earlier cancel has the last one; reap first
 *   -ECONNRESET  the worker is gone */
GEMMD_API int gemmd_cancel(struct gemmd *session, uint64_t user_data);

/* A descriptor for the program's own event loop (epoll, poll, libuv, asyncio): watch it for
 * reading, and call gemmd_poll when it is readable.  It is the session's: do not read, write or
 * close it; it is gone with gemmd_close.  Every call of a session gives the same one; the first
 * blocks.
 *
 * Level-triggered: readable while completions may be there to take, from the moment the worker has
 * written the first of a batch (one wake-up a batch) until a gemmd_poll has returned fewer than
 * `capacity`.  With an edge-triggered watch, call gemmd_poll until it does.  It may be readable
 * with nothing to take; gemmd_poll then gives 0.  When the worker dies it is readable, too:
 * gemmd_poll gives WORKER_LOST completions, and -ECONNRESET once none is left.
 *
 * Call gemmd_flush after gemmd_submit, before going to sleep in the event loop.  From the first
 * call on, a gemmd_poll that finds less than `capacity` makes a system call or two if the worker
 * has rung since, or if there was nothing to take at all.
 *   >= 0 the descriptor; -EINVAL (a control-only session), -ENOMEM, -EMFILE, -ETIMEDOUT,
 *   -ECONNRESET (worker gone) */
GEMMD_API int gemmd_get_fd(struct gemmd *session);

/* Jobs submitted and not yet taken by gemmd_poll or gemmd_wait. */
GEMMD_API unsigned gemmd_in_flight(const struct gemmd *session);

/* ---- looking at the worker ------------------------------------------------------------------- */

struct gemmd_info {
    char worker_version[16];
    char socket[108];       /* the one this session uses */
    uint32_t pid;
    int32_t node;           /* NUMA node; -1: the machine has none */
    uint32_t cpu_count;
    uint32_t dispatcher_cpu;
    char level[16];         /* kernel level in use, "avx512vnni" */
    char kernel[64];
    char event_level[16];   /* "F0" io_uring … "F3" epoll */
    uint64_t uptime_ns;
    uint32_t session_count, layer_count;
    uint64_t pool_bytes, pool_bytes_used, pool_bytes_limit; /* weights */
    uint64_t pool_bytes_1g, pool_bytes_2m, pool_bytes_thp, pool_bytes_4k; /* by page size */
    uint64_t pool_bytes_on_node; /* verified to lie on `node` */
    uint64_t arena_bytes;        /* of all sessions */
    char lost[256];              /* what the worker had to do without; "" = nothing */
    uint64_t layer_bytes, layer_bytes_unused, layer_bytes_pinned; /* unused: nobody has it open */
    uint64_t layer_evictions;    /* unused layers that made room */
    /* weights compared with their checksums in idle time; times all were; layers found changed */
    uint64_t scrub_bytes, scrub_passes, scrub_faults;
    uint64_t pool_bytes_kept;    /* of pool_bytes, in files that can outlive the worker */
};

struct gemmd_layer_info {
    char name[64]; /* "" = none */
    uint64_t content_id[2];
    uint32_t n, k;
    enum gemmd_type a_type, c_type;
    uint64_t weight_bytes, page_bytes;
    int32_t node;
    uint32_t references; /* sessions that have it open */
    uint64_t jobs, rows;
    char kernel[64];
    enum gemmd_type bias_type, b_type, residual_type;
    uint32_t uid;        /* whose quota it counts against */
    int pinned;          /* 1: never evicted */
    int unloaded;        /* 1: goes with its last handle */
    uint64_t exec_ns;            /* compute, of all threads */
    uint64_t panels, panel_rows; /* as in struct gemmd_stats, of this layer */
    uint64_t queue_p50_ns, queue_p99_ns, exec_p50_ns, exec_p99_ns;
    uint64_t deadline_misses, hits; /* hits: openings, by name or contents, that found it */
};

struct gemmd_session_info {
    uint32_t session_id, pid, uid, ring_entries, layers;
    const char *state; /* "new", "mapping", "live" */
    uint64_t arena_bytes, jobs, jobs_failed, rows;
    uint64_t exec_ns; /* its share of the compute */
    uint64_t doorbells, wakeups, age_ns;
    uint64_t queue_p50_ns, queue_p99_ns, exec_p50_ns, exec_p99_ns, deadline_misses, cancelled;
    uint32_t in_flight;
    uint32_t weight; /* shares of the compute beside others that want more; the operator's to set */
};

/* Latency distribution of the worker, ns. */
struct gemmd_percentiles {
    uint64_t count, p50, p90, p99, p999, max;
};

#define GEMMD_CORES_MAX 256

struct gemmd_stats {
    /* the worker's, since its start */
    uint64_t jobs, jobs_failed, rows, macs, exec_ns, turns, sleeps, doorbells, wakes, syscalls;
    uint64_t spins_hit, spins_missed, rescues, sessions_opened, sessions_closed, sessions_violated;
    uint64_t layers_created, layers_attached;
    uint64_t slices, preempted; /* stretches of work; of these, ended early for something new */
    uint64_t panels, panel_rows; /* passes over a panel of weights, and the rows in them: their
                                    ratio is the coalescing factor */
    uint64_t shared_slices;     /* of jobs of more than one session */
    uint64_t team_slices;       /* cut over the compute threads */
    uint64_t deadline_misses, cancelled, repinned, trace_lost;
    uint64_t verified, verify_faults; /* jobs checked (--verify-sample); of these, found wrong */
    struct gemmd_percentiles queue, exec;
    /* this session's own, counted in this process */
    uint64_t session_jobs, session_doorbells, session_sleeps, session_syscalls;
    uint64_t session_recoveries; /* workers it outlived */
    /* the compute threads; the first core_count of them.  A sleep counts when it ends */
    uint32_t core_count;
    struct gemmd_core_time {
        uint32_t cpu;
        uint64_t busy_ns, spin_ns, sleep_ns;
    } cores[GEMMD_CORES_MAX];
};

/* All three block; 0 or -errno as gemmd_layer_open. */
GEMMD_API int gemmd_get_info(struct gemmd *session, struct gemmd_info *out);
/* The index-th of the worker's layers or sessions; -ENOENT past the last. Sessions of other users
 * are shown to root and to the worker's own user only (others get their own alone). */
GEMMD_API int gemmd_get_layer_info(struct gemmd *session, uint32_t index,
                                   struct gemmd_layer_info *out);
GEMMD_API int gemmd_get_session_info(struct gemmd *session, uint32_t index,
                                     struct gemmd_session_info *out);
/* Blocks in the first call of a session only; then it reads the shared counters page. */
GEMMD_API int gemmd_get_stats(struct gemmd *session, struct gemmd_stats *out);

/* ---- for the worker's operator: root and the user it runs as --------------------------------- */

/* All three block; beside their own results -EPERM: not the operator; -EINVAL: the name;
 * -ENOENT: no such layer; -ETIMEDOUT; -ECONNRESET. */

/* Loads a packed layer file (gemmd-pack).  Its layers are named PREFIX/NAME (NULL: NAME), and take
 * the place of those of the same names at once, when all are there; who has an old one open keeps
 * it.  They are pinned.  fd stays the caller's.  Number of layers; *bytes_new (NULL: not wanted) is
 * the memory they added; -EBADMSG: not a valid file (the text names layer and field), -ENOSPC,
 * -EBUSY (another load is going on), -EDQUOT. */
GEMMD_API int gemmd_layers_load(struct gemmd *session, int fd, const char *prefix,
                                uint64_t *bytes_new);
/* The layer of that name and those below it ("NAME/…") lose their names; they are freed at once, or
 * with their last handle.  Number of names; *bytes_freed (NULL: not wanted) counts the first. */
GEMMD_API int gemmd_layers_unload(struct gemmd *session, const char *name, uint64_t *bytes_freed);
/* pin 1: these layers are never evicted; 0: they may be.  Number of names. */
GEMMD_API int gemmd_layers_pin(struct gemmd *session, const char *name, int pin);

#ifdef __cplusplus
}
#endif

#endif
