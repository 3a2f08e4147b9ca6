/*
 * The shared-memory ABI: what lies at which byte of a session's segments.  proto/README.md is the
 * normative text; the static_asserts here hold the two together.
 *
 * A session has three segments, all created, sized, prefaulted and sealed by the worker:
 *   c2w    client writes, worker maps read-only:   header, client line, submission ring
 *   w2c    worker writes, client maps read-only:   header, doorbell line, worker line, completion
 * ring arena  both write: the operands A and C, and uploads of layers Each word has one writer, and
 * the MMU enforces it.  Little-endian, no pointers, no padding.
 */
#ifndef GEMMD_PROTO_ABI_H
#define GEMMD_PROTO_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/limits.h"

#define GEMMD_MAGIC UINT64_C(0x0031444d4d454700) /* bytes 00 "GEMMD1" 00 */
/* A peer speaks a range of versions; the hello settles on the highest common one. */
#define GEMMD_VERSION_MIN 1
#define GEMMD_VERSION_MAX 1

/* Feature bits: offered by the client, answered with the subset in force. None is defined yet. */
#define GEMMD_FEATURES UINT64_C(0)

/* Element types. */
enum gemmd_abi_type {
    GEMMD_ABI_TYPE_NONE = 0, /* "no bias" */
    GEMMD_ABI_TYPE_U8 = 1,
    GEMMD_ABI_TYPE_S8 = 2,
    GEMMD_ABI_TYPE_S32 = 3,
    GEMMD_ABI_TYPE_F32 = 4,
    GEMMD_ABI_TYPE_BF16 = 5,
    GEMMD_ABI_TYPE_S4 = 6, /* weights only: two in a byte */
};

enum gemmd_abi_activation {
    GEMMD_ABI_ACTIVATION_NONE = 0,
    GEMMD_ABI_ACTIVATION_RELU = 1,
    GEMMD_ABI_ACTIVATION_CLIP = 2,
    GEMMD_ABI_ACTIVATION_GELU_TANH = 3,
    GEMMD_ABI_ACTIVATION_GELU_ERF = 4,
    GEMMD_ABI_ACTIVATION_SILU = 5,
};

/* How f32 and bf16 rows of A become u8, each row by itself. */
enum gemmd_abi_quantize_mode {
    GEMMD_ABI_QUANTIZE_ASYMMETRIC = 0,
    GEMMD_ABI_QUANTIZE_SYMMETRIC = 1,
};

/* Set in gemmd_cqe.kernel_id for s4 weights, whose kernels are numbered apart. */
#define GEMMD_KERNEL_ID_S4 0x100

enum gemmd_op {
    GEMMD_OP_GEMM = 1, /* one layer applied to m rows; m = 0 completes at once, memory untouched */
    /* Ends the unfinished jobs of this session whose user_data is `target`: each gets its one
     * completion, with CANCELLED unless it had finished before.  Then the cancel gets its own: OK
     * when it ended at least one, else CANCEL_MISSED.  Only op, target and user_data are set. */
    GEMMD_OP_CANCEL = 2,
};

/* Classes buy order, not share: worker/README.md. */
enum gemmd_abi_priority {
    GEMMD_ABI_PRIORITY_NORMAL = 0,
    GEMMD_ABI_PRIORITY_LATENCY = 1,
    GEMMD_ABI_PRIORITY_BACKGROUND = 2,
};

/* A submission: one cache line, one job.  Written by the client, seq last. */
struct gemmd_sqe {
    uint8_t op;              /*  0: enum gemmd_op */
    uint8_t flags;           /*  1: must be 0 */
    uint8_t priority;        /*  2: enum gemmd_abi_priority */
    uint8_t reserved0;       /*  3: must be 0 */
    uint32_t m;              /*  4: rows, 0 .. GEMMD_M_MAX */
    uint32_t layer_id;       /*  8: from the layer reply; valid in this session only */
    uint32_t layer_gen;      /* 12: from the same reply; a closed layer's generation is stale */
    uint64_t a_offset;       /* 16: bytes from the arena's start to A's first row */
    uint64_t c_offset;       /* 24: likewise for C */
    uint32_t a_stride_bytes; /* 32: from row to row; >= the row's bytes unless m <= 1 */
    uint32_t c_stride_bytes; /* 36 */
    union {
        uint64_t deadline_ns; /* 40: GEMM: CLOCK_MONOTONIC; not started from then on; 0 = none */
        uint64_t target;      /* 40: CANCEL: a user_data */
    };
    uint64_t user_data;      /* 48: returned in the completion */
    uint32_t residual_offset; /* 56: likewise for the residual, where the layer has one; else 0 */
    uint32_t seq;            /* 60: index + 1, the ring's full/empty flag */
};

/* A completion: half a cache line.  Written by the worker, seq last. */
struct gemmd_cqe {
    uint64_t user_data; /*  0 */
    int32_t status;     /*  8: enum gemmd_status */
    uint32_t queue_ns;  /* 12: from the worker's first sight of the job to its start; saturates */
    uint32_t exec_ns;   /* 16: start to end; saturates */
    uint16_t kernel_id; /* 20: what computed C: struct gemm_kernel.id, or
                           GEMMD_KERNEL_ID_S4 + struct int4_kernel.id; 0 when none ran */
    uint16_t flags;     /* 22: 0 */
    uint32_t reserved;  /* 24: 0 */
    uint32_t seq;       /* 28: index + 1 */
};

/* Bytes 0..63 of c2w and of w2c; written once by the worker before the segment is passed on. */
struct gemmd_segment_header {
    uint64_t magic;         /*  0: GEMMD_MAGIC */
    uint32_t version;       /*  8: the version in force */
    uint32_t kind;          /* 12: enum gemmd_segment_kind */
    uint64_t bytes;         /* 16: of the whole segment */
    uint32_t ring_entries;  /* 24: power of two */
    uint32_t ring_start;    /* 28: both rings' first index; every slot's seq starts as this value */
    uint32_t session_id;    /* 32 */
    uint32_t reserved[7];   /* 36: 0 */
};

enum gemmd_segment_kind {
    GEMMD_SEGMENT_C2W = 1,
    GEMMD_SEGMENT_W2C = 2,
};

/* c2w + 64: what the client writes beside submissions. */
struct gemmd_client_line {
    uint32_t cq_head;    /*  0: completions reaped; read by the worker once per lap of the ring */
    uint32_t cq_wake_at; /*  4: wake me when cq_tail has reached this index */
    uint32_t cq_arm;     /*  8: odd epoch while the client sleeps or is about to; else 0 */
    uint32_t reserved[13];
};

/* w2c + 64: read by the client once per batch. */
struct gemmd_doorbell_line {
    uint32_t need_kick; /*  0: odd epoch while the worker does not poll this ring; else 0 */
    uint32_t reserved[15];
};

/* w2c + 128: read by the client when it waits. */
struct gemmd_worker_line {
    uint32_t cq_futex;  /*  0: changed, then woken, for an armed client */
    uint32_t state;     /*  4: enum gemmd_worker_state */
    uint32_t reserved[14];
};

enum gemmd_worker_state {
    GEMMD_WORKER_RUNNING = 0,
    GEMMD_WORKER_DRAINING = 1, /* jobs already submitted complete; no new ones should be */
    GEMMD_WORKER_ENDED = 2,    /* nothing more will be written here */
};

#define GEMMD_CLIENT_LINE_OFFSET 64
#define GEMMD_DOORBELL_LINE_OFFSET 64
#define GEMMD_WORKER_LINE_OFFSET 128
/* Rings start on a page of their own: header lines and slots never share a page's TLB fate, and
 * the slot address is `ring + (index & mask)` whatever the header grows to. */
#define GEMMD_RING_OFFSET 4096

#define GEMMD_AT(type, field, offset)                                                              \
    static_assert(offsetof(struct type, field) == (offset), #type "." #field)

GEMMD_AT(gemmd_sqe, op, 0);
GEMMD_AT(gemmd_sqe, flags, 1);
GEMMD_AT(gemmd_sqe, priority, 2);
GEMMD_AT(gemmd_sqe, reserved0, 3);
GEMMD_AT(gemmd_sqe, m, 4);
GEMMD_AT(gemmd_sqe, layer_id, 8);
GEMMD_AT(gemmd_sqe, layer_gen, 12);
GEMMD_AT(gemmd_sqe, a_offset, 16);
GEMMD_AT(gemmd_sqe, c_offset, 24);
GEMMD_AT(gemmd_sqe, a_stride_bytes, 32);
GEMMD_AT(gemmd_sqe, c_stride_bytes, 36);
GEMMD_AT(gemmd_sqe, deadline_ns, 40);
GEMMD_AT(gemmd_sqe, target, 40);
GEMMD_AT(gemmd_sqe, user_data, 48);
GEMMD_AT(gemmd_sqe, residual_offset, 56);
GEMMD_AT(gemmd_sqe, seq, 60);
static_assert(sizeof(struct gemmd_sqe) == 64, "a submission is one cache line");
static_assert(GEMMD_ARENA_BYTES_MAX <= UINT64_C(1) << 32, "residual_offset reaches every byte");

GEMMD_AT(gemmd_cqe, user_data, 0);
GEMMD_AT(gemmd_cqe, status, 8);
GEMMD_AT(gemmd_cqe, queue_ns, 12);
GEMMD_AT(gemmd_cqe, exec_ns, 16);
GEMMD_AT(gemmd_cqe, kernel_id, 20);
GEMMD_AT(gemmd_cqe, flags, 22);
GEMMD_AT(gemmd_cqe, reserved, 24);
GEMMD_AT(gemmd_cqe, seq, 28);
static_assert(sizeof(struct gemmd_cqe) == 32, "a completion is half a cache line");

GEMMD_AT(gemmd_segment_header, magic, 0);
GEMMD_AT(gemmd_segment_header, version, 8);
GEMMD_AT(gemmd_segment_header, kind, 12);
GEMMD_AT(gemmd_segment_header, bytes, 16);
GEMMD_AT(gemmd_segment_header, ring_entries, 24);
GEMMD_AT(gemmd_segment_header, ring_start, 28);
GEMMD_AT(gemmd_segment_header, session_id, 32);
static_assert(sizeof(struct gemmd_segment_header) == 64, "one line");

GEMMD_AT(gemmd_client_line, cq_head, 0);
GEMMD_AT(gemmd_client_line, cq_wake_at, 4);
GEMMD_AT(gemmd_client_line, cq_arm, 8);
static_assert(sizeof(struct gemmd_client_line) == 64, "one line");
GEMMD_AT(gemmd_doorbell_line, need_kick, 0);
static_assert(sizeof(struct gemmd_doorbell_line) == 64, "one line");
GEMMD_AT(gemmd_worker_line, cq_futex, 0);
GEMMD_AT(gemmd_worker_line, state, 4);
static_assert(sizeof(struct gemmd_worker_line) == 64, "one line");

/* Bytes of a ring segment, in whole pages. */
static inline uint64_t gemmd_segment_bytes(enum gemmd_segment_kind kind, uint32_t ring_entries)
{
    uint64_t slot = kind == GEMMD_SEGMENT_C2W ? sizeof(struct gemmd_sqe) : sizeof(struct gemmd_cqe);
    return (GEMMD_RING_OFFSET + slot * ring_entries + 4095) & ~UINT64_C(4095);
}

#endif
