/*
 * Statuses: the result of a job or of a control message.  Each names the one field or condition at
 * fault, so that a client can say what to mend.  Values are wire values and never change meaning.
 */
#ifndef GEMMD_PROTO_STATUS_H
#define GEMMD_PROTO_STATUS_H

#include <stdbool.h>

/* X(NAME, value, errno, text) */
#define GEMMD_STATUS_TABLE(X)                                                                      \
    X(OK, 0, 0, "success")                                                                         \
    /* jobs: the session lives on */                                                               \
    X(OP, 1, EINVAL, "op: unknown operation")                                                      \
    X(FLAGS, 2, EINVAL, "flags: an undefined bit is set")                                          \
    X(RESERVED, 3, EINVAL, "reserved: a reserved field is not zero")                               \
    X(M, 4, EINVAL, "m: more rows than the limit")                                                 \
    X(LAYER, 5, ENOENT, "layer: no such layer in this session")                                    \
    X(LAYER_STALE, 6, ESTALE, "layer: closed or replaced since the job was made")                  \
    X(A_STRIDE, 7, EINVAL, "a_stride_bytes: smaller than a row, above the limit or misaligned")    \
    X(C_STRIDE, 8, EINVAL, "c_stride_bytes: smaller than a row, above the limit or misaligned")    \
    X(A_OFFSET, 9, EFAULT, "a_offset: A leaves the arena or is misaligned")                        \
    X(C_OFFSET, 10, EFAULT, "c_offset: C leaves the arena or is misaligned")                       \
    X(OVERLAP, 11, EINVAL, "c_offset: C overlaps A")                                               \
    X(WORKER_LOST, 12, ECONNRESET, "worker: it ended before the job completed")                    \
    X(SESSION_ENDED, 13, ECONNABORTED, "session: ended by the worker after a protocol violation")  \
    X(DEADLINE, 14, ETIME, "deadline_ns: it had passed when the job's turn came; not run")         \
    X(CANCELLED, 15, ECANCELED, "job: cancelled before it was complete")                           \
    X(CANCEL_MISSED, 16, ENOENT, "target: no unfinished job of this session has that user_data")   \
    X(PRIORITY, 17, EINVAL, "priority: unknown class")                                             \
    X(RESIDUAL_OFFSET, 18, EFAULT, "residual_offset: it leaves the arena, or the layer has none")  \
    X(RESIDUAL_OVERLAP, 19, EINVAL, "residual_offset: the residual overlaps C and is not C")       \
    X(RESULT, 20, EIO, "result: a check found it wrong (memory or CPU at fault); do not use it")   \
    /* control messages: the session lives on */                                                   \
    X(STATE, 32, EPROTO, "message: not allowed in this state of the session")                      \
    X(RING_ENTRIES, 33, EINVAL, "ring_entries: not a power of two within the limits")              \
    X(ARENA_BYTES, 34, EINVAL, "arena_bytes: outside the limits")                                  \
    X(N, 35, EINVAL, "n: 0 or above the limit")                                                    \
    X(K, 36, EINVAL, "k: 0 or above the limit (33025 with zero points of B)")                      \
    X(A_TYPE, 37, EINVAL, "a_type: not u8, s8, f32 or bf16")                                       \
    X(C_TYPE, 38, EINVAL, "c_type: unknown, or s32 with float rows, row scales or s4 weights")     \
    X(BIAS_TYPE, 39, EINVAL, "bias_type: unknown, or not possible with these types")               \
    X(ACTIVATION, 40, EINVAL, "activation: unknown, or not possible for an s32 output")            \
    X(SCALE_COUNT, 41, EINVAL, "scale_count: neither 1 nor n")                                     \
    X(A_ZERO_POINT, 42, EINVAL, "a_zero_point: outside the range of a_type")                       \
    X(C_ZERO_POINT, 43, EINVAL, "c_zero_point: outside the range of c_type")                       \
    X(A_SCALE, 44, EINVAL, "a_scale: not finite and positive, or not 1 for float rows")            \
    X(C_SCALE, 45, EINVAL, "c_scale: not finite and positive, or its inverse is not finite")       \
    X(B_SCALE, 46, EINVAL, "b_scale: a value is not finite, or its product with a_scale is not")   \
    X(BIAS, 47, EINVAL, "bias: a value is not finite")                                             \
    X(LAYER_BYTES, 48, EFBIG, "layer: its raw bytes exceed 4 GiB (LAYER_BYTES_MAX)")               \
    X(LAYERS_FULL, 49, ENOSPC, "layer: too many layers open")                                      \
    X(NAME, 50, EINVAL, "name: not terminated, or holds a byte outside [A-Za-z0-9._/-]")           \
    X(NAME_UNKNOWN, 51, ENOENT, "name: no such layer")                                             \
    X(NAME_TAKEN, 52, EEXIST, "name: belongs to a layer with other contents")                      \
    X(UPLOAD, 53, EINVAL, "upload: none open, or the piece does not continue it")                  \
    X(UPLOAD_RANGE, 54, EFAULT, "upload: the piece leaves the arena or the layer")                 \
    X(CONTENT, 55, EBADMSG, "content_id: the uploaded bytes have another hash")                    \
    X(NO_MEMORY, 56, ENOMEM, "worker: out of memory for this request")                             \
    X(POOL_FULL, 57, ENOSPC, "worker: the weight pool has no room for the layer")                  \
    X(ARENA_NO_MEMORY, 58, ENOMEM, "worker: no memory for the arena")                              \
    X(DENIED, 59, EACCES, "access: this user may not use the worker")                              \
    X(SESSIONS_FULL, 60, EAGAIN, "worker: too many sessions")                                      \
    X(DRAINING, 61, ESHUTDOWN, "worker: it is shutting down")                                      \
    X(INDEX, 62, EINVAL, "index: beyond the list")                                                 \
    X(INTERNAL, 63, EIO, "worker: an internal call failed; its log has the reason")                \
    X(ADMIN, 70, EPERM, "access: only root and the worker's own user may do this")                 \
    X(QUOTA, 71, EDQUOT, "worker: this user's share of the weight pool is used up")                \
    X(LAYER_FILE, 72, EBADMSG, "file: not a valid packed layer file")                              \
    X(BUSY, 73, EBUSY, "worker: another load or take-over is going on")                            \
    X(CHANGED, 74, EAGAIN, "worker: its layers changed meanwhile; look again")                     \
    X(B_TYPE, 75, EINVAL, "b_type: not s8 or s4, or s4 with s8 rows")                              \
    X(QUANTIZE_MODE, 76, EINVAL, "quantize_mode: unknown, or set without float rows")              \
    X(B_ZERO_POINTS, 77, EINVAL, "b_zero_points: not 0 or 1, or with s4 weights")                  \
    X(GROUP, 78, EINVAL, "group: not 32, 64 or 128 with s4 weights, not 0 with s8")                \
    X(CLIP, 79, EINVAL, "clip: not finite with clip_lo <= clip_hi, or set without clip")           \
    X(RESIDUAL_TYPE, 80, EINVAL, "residual_type: not u8, s8, f32, bf16, none; or with s32 output") \
    X(RESIDUAL_ZERO_POINT, 81, EINVAL, "residual_zero_point: outside the range of residual_type")  \
    X(RESIDUAL_SCALE, 82, EINVAL, "residual_scale: of u8 and s8 not finite, positive; else not 0") \
    X(A_ROW_SCALES, 83, EINVAL, "a_row_scales: not 0 or 1, or with float rows")                    \
    /* protocol violations: the worker ends the session */                                         \
    X(MESSAGE_SHORT, 96, EBADMSG, "message: shorter than its type demands")                        \
    X(MESSAGE_LONG, 97, EBADMSG, "message: longer than its type allows")                           \
    X(MESSAGE_TYPE, 98, EBADMSG, "message: unknown type")                                          \
    X(MESSAGE_FDS, 99, EBADMSG, "message: file descriptors are not accepted")                      \
    X(MAGIC, 100, EPROTO, "magic: the peer does not speak gemmd's protocol")                       \
    X(VERSION, 101, EPROTONOSUPPORT, "version: no common protocol version")                        \
    X(CQ_HEAD, 102, EPROTO, "cq_head: beyond the completions written")                             \
    X(SEGMENT_FAULT, 103, EFAULT, "segment: a page of it could not be had (hardware, or a hole)")

enum gemmd_status {
#define X(name, value, error, text) GEMMD_STATUS_##name = (value),
    GEMMD_STATUS_TABLE(X)
#undef X
};

/* First value of the statuses that end a session. */
#define GEMMD_STATUS_VIOLATION_MIN 96

/* True when the status ends the session that earned it. */
static inline bool gemmd_status_is_violation(int status)
{
    return status >= GEMMD_STATUS_VIOLATION_MIN;
}

/* "A_OFFSET"; "UNKNOWN" for a value outside the table.  Static storage. */
const char *gemmd_status_name_of(int status);
/* The table's text.  Static storage. */
const char *gemmd_status_text_of(int status);
/* The table's errno, positive; 0 for OK; EIO for a value outside the table. */
int gemmd_status_errno_of(int status);

#endif
