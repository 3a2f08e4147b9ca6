/*
 * Every maximum of the protocol, with its reason.  Whatever a peer writes is compared with these
 * first, before any arithmetic, so that 64-bit products below cannot wrap.
 */
#ifndef GEMMD_PROTO_LIMITS_H
#define GEMMD_PROTO_LIMITS_H

#include <assert.h>
#include <stdint.h>

/* Rows of one job.  2^20 rows of u32 strides stay below 2^52 bytes: no offset sum can wrap. */
#define GEMMD_M_MAX (UINT32_C(1) << 20)
/* Output channels of a layer. */
#define GEMMD_N_MAX (UINT32_C(1) << 20)
/* Depth of a layer.  255 * 128 * 2^16 < 2^31: an exact s32 sum of u8 x s8 products cannot wrap. */
#define GEMMD_K_MAX (UINT32_C(1) << 16)
/* With zero points of the weights both factors span 0..255: 255 * 255 * 33025 < 2^31. */
#define GEMMD_K_MAX_B_ZERO_POINTS UINT32_C(33025)
/* Bytes between rows of A or C: the widest row (N_MAX f32) with room for padding. */
#define GEMMD_STRIDE_MAX (UINT32_C(1) << 24)

/* Ring entries: a power of two.  256 jobs of a microsecond cover one wake-up of a sleeping client;
 * 4096 keeps a session's two rings below 400 KiB. */
#define GEMMD_RING_ENTRIES_MIN UINT32_C(8)
#define GEMMD_RING_ENTRIES_DEFAULT UINT32_C(256)
#define GEMMD_RING_ENTRIES_MAX UINT32_C(4096)

/* Arena: the client's shared buffer memory. */
#define GEMMD_ARENA_BYTES_MIN (UINT64_C(1) << 16)
#define GEMMD_ARENA_BYTES_DEFAULT (UINT64_C(16) << 20)
#define GEMMD_ARENA_BYTES_MAX (UINT64_C(4) << 30)
/* Buffers and uploads start on this boundary: a cache line. */
#define GEMMD_ARENA_ALIGN UINT64_C(64)

/* Raw bytes of one layer (weights, scales, bias): 4 GiB of s8 holds N_MAX x 4096. */
#define GEMMD_LAYER_BYTES_MAX (UINT64_C(4) << 30)
/* Layers open in one session, and in one worker. */
#define GEMMD_SESSION_LAYERS_MAX UINT32_C(1024)
#define GEMMD_WORKER_LAYERS_MAX UINT32_C(4096)
/* Sessions of one worker: 1,000 clients and the tools that watch them. */
#define GEMMD_WORKER_SESSIONS_MAX UINT32_C(1100)

/* Jobs in flight of all sessions of one user, beyond a few that each session may always have: 64
 * sessions with full rings of the default size. */
#define GEMMD_USER_JOBS_MAX UINT32_C(16384)

/* A layer's name, with its terminating zero. */
#define GEMMD_NAME_BYTES 64
/* One control message.  A page: larger data travels through the arena. */
#define GEMMD_MESSAGE_BYTES_MAX 4096
/* File descriptors that come with the hello reply: c2w, w2c, arena, kick. */
#define GEMMD_HELLO_FD_COUNT 4

static_assert((uint64_t)255 * 128 * GEMMD_K_MAX < (UINT64_C(1) << 31), "s32 accumulators wrap");
static_assert((uint64_t)255 * 255 * GEMMD_K_MAX_B_ZERO_POINTS < (UINT64_C(1) << 31), "they wrap");
static_assert((uint64_t)GEMMD_N_MAX * 4 <= GEMMD_STRIDE_MAX, "the widest f32 row has no stride");
static_assert((uint64_t)GEMMD_M_MAX * GEMMD_STRIDE_MAX < (UINT64_C(1) << 52), "row offsets wrap");
static_assert((GEMMD_RING_ENTRIES_MAX & (GEMMD_RING_ENTRIES_MAX - 1)) == 0, "power of two");
static_assert((GEMMD_RING_ENTRIES_MIN & (GEMMD_RING_ENTRIES_MIN - 1)) == 0, "power of two");
static_assert(GEMMD_ARENA_BYTES_MIN % 4096 == 0, "an arena is whole pages");

#endif
