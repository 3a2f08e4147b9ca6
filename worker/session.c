/*
 * A session's memory.  The order of the handshake is the security argument (design: create,
 * populate, map, pass on, client maps, seal): a client never holds a descriptor with which it could
 * shrink, punch or newly map for writing what the worker touches.
 */
#include "worker/session.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "worker/clock.h"
#include "worker/fault.h"
#include "worker/log.h"

/* Arenas of this size and more ask for huge pages. */
#define ARENA_HUGE_BYTES (UINT64_C(2) << 20)

struct session *session_open(uint32_t slot, uint32_t id, int fd, pid_t pid, uid_t uid)
{
    struct session *session = calloc(1, sizeof(*session));

    if (!session)
        return NULL;
    session->slot = slot;
    session->id = id;
    session->fd = fd;
    session->pid = pid;
    session->uid = uid;
    session->kick_fd = session->wake_poll_fd = -1;
    session->ring.wake_fd = -1;
    session->c2w.fd = session->w2c.fd = session->arena.fd = -1;
    session->state = GEMMD_SESSION_NEW;
    session->connected_ns = clock_now_ns();
    return session;
}

bool session_is_operator(const struct session *session)
{
    return session->uid == 0 || session->uid == geteuid();
}

static void fill_header(struct segment *segment, enum gemmd_segment_kind kind, uint32_t entries,
                        uint32_t ring_start, uint32_t session_id)
{
    struct gemmd_segment_header *header = segment->memory;
    char *ring = (char *)segment->memory + GEMMD_RING_OFFSET;
    size_t slot_bytes = kind == GEMMD_SEGMENT_C2W ? sizeof(struct gemmd_sqe)
                                                  : sizeof(struct gemmd_cqe);
    size_t seq_offset = kind == GEMMD_SEGMENT_C2W ? offsetof(struct gemmd_sqe, seq)
                                                  : offsetof(struct gemmd_cqe, seq);

    header->magic = GEMMD_MAGIC;
    header->version = GEMMD_VERSION_MAX;
    header->kind = kind;
    header->bytes = segment->bytes;
    header->ring_entries = entries;
    header->ring_start = ring_start;
    header->session_id = session_id;
    /* Empty slots: ring_start is no index + 1 of the first lap. */
    for (uint32_t i = 0; i < entries; i++)
        memcpy(ring + i * slot_bytes + seq_offset, &ring_start, sizeof(ring_start));
}

/* The dispatcher's part over the fresh segments. */
static void set_up_ring(struct session *session, uint32_t ring_start)
{
    struct session_ring *ring = &session->ring;
    char *c2w = session->c2w.memory, *w2c = session->w2c.memory;

    ring->sq.slots = (uint64_t *)(void *)(c2w + GEMMD_RING_OFFSET);
    ring->cq.slots = (uint64_t *)(void *)(w2c + GEMMD_RING_OFFSET);
    ring->sq.mask = ring->cq.mask = session->ring_entries - 1;
    ring->sq.index = ring->cq.index = ring->cq_head_seen = ring_start;
    ring->client_line = (const struct gemmd_client_line *)(void *)(c2w + GEMMD_CLIENT_LINE_OFFSET);
    ring->doorbell = (struct gemmd_doorbell_line *)(void *)(w2c + GEMMD_DOORBELL_LINE_OFFSET);
    ring->worker_line = (struct gemmd_worker_line *)(void *)(w2c + GEMMD_WORKER_LINE_OFFSET);
    ring->arena = session->arena.memory;
    ring->arena_bytes = session->arena.bytes;
    /* Born cold: the first submission rings, whether or not the dispatcher knows the session yet.
     */
    gemmd_doorbell_arm(ring->doorbell, &ring->doorbell_epoch);
}

bool session_make_jobs(struct session_ring *ring, uint32_t entries)
{
    ring->jobs = calloc(entries, sizeof(*ring->jobs));
    ring->user_data = calloc(entries, sizeof(*ring->user_data));
    ring->jobs_free = calloc(entries, sizeof(*ring->jobs_free));
    if (!ring->jobs || !ring->user_data || !ring->jobs_free)
        return false;
    for (uint32_t i = 0; i < entries; i++)
        ring->jobs_free[i] = entries - 1 - i;
    ring->jobs_free_count = entries;
    return true;
}

void session_free_jobs(struct session_ring *ring)
{
    free(ring->jobs);
    free(ring->user_data);
    free(ring->jobs_free);
    ring->jobs = NULL;
    ring->user_data = NULL;
    ring->jobs_free = NULL;
}

static int watch_segment(struct session *session, const struct segment *segment)
{
    return fault_watch(segment->memory, segment->bytes, segment->page_bytes,
                       &session->ring.violation);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void destroy_segments(struct session *session)
{
    session_free_jobs(&session->ring);
    fault_unwatch(session->c2w.memory);
    fault_unwatch(session->w2c.memory);
    fault_unwatch(session->arena.memory);
    segment_destroy(&session->c2w);
    segment_destroy(&session->w2c);
    segment_destroy(&session->arena);
    close_fd(&session->kick_fd);
    close_fd(&session->wake_poll_fd);
    close_fd(&session->ring.wake_fd);
    memset(&session->ring, 0, sizeof(session->ring));
    session->ring.wake_fd = -1;
}

enum gemmd_status session_create_segments(struct session *session, uint32_t ring_entries,
                                          uint64_t arena_bytes, uint32_t ring_start, int node)
{
    uint64_t c2w_bytes = gemmd_segment_bytes(GEMMD_SEGMENT_C2W, ring_entries);
    uint64_t w2c_bytes = gemmd_segment_bytes(GEMMD_SEGMENT_W2C, ring_entries);
    enum gemmd_status status = GEMMD_STATUS_NO_MEMORY;
    int error = -ENOMEM;

    session->ring_entries = ring_entries;
    if (!session_make_jobs(&session->ring, ring_entries))
        goto fail;
    /* Rings stay on 4 KiB pages: huge ones for 1,000 sessions would be 4 GB. */
    error = segment_create(&session->c2w, "gemmd-c2w", c2w_bytes, false, node);
    if (error == 0)
        error = segment_create(&session->w2c, "gemmd-w2c", w2c_bytes, false, node);
    if (error < 0)
        goto fail;
    status = GEMMD_STATUS_ARENA_NO_MEMORY;
    error = segment_create(&session->arena, "gemmd-arena", arena_bytes,
                           arena_bytes >= ARENA_HUGE_BYTES, node);
    if (error < 0)
        goto fail;
    status = GEMMD_STATUS_NO_MEMORY; /* of descriptors: the log says so */
    session->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (session->kick_fd < 0)
        goto fail;
    status = GEMMD_STATUS_INTERNAL;

    fill_header(&session->c2w, GEMMD_SEGMENT_C2W, ring_entries, ring_start, session->id);
    fill_header(&session->w2c, GEMMD_SEGMENT_W2C, ring_entries, ring_start, session->id);
    set_up_ring(session, ring_start);
    ((struct gemmd_client_line *)(uintptr_t)session->ring.client_line)->cq_head = ring_start;
    /* From here on only the client writes c2w; and nobody but us ever writes w2c, so it can be
     * sealed before it is passed on. */
    error = segment_protect_readonly(&session->c2w);
    if (error == 0)
        error = segment_seal(&session->w2c);
    /* The table has room for three segments of each session. */
    if (error == 0)
        error = watch_segment(session, &session->c2w);
    if (error == 0)
        error = watch_segment(session, &session->w2c);
    if (error == 0)
        error = watch_segment(session, &session->arena);
    if (error < 0)
        goto fail;
    return GEMMD_STATUS_OK;

fail:
    log_warn(LOG_TOPIC_SESSION, "segments of session %u: %s", session->id,
             strerror(error < 0 ? -error : errno));
    destroy_segments(session);
    return status;
}

enum gemmd_status session_seal(struct session *session)
{
    int error = segment_seal(&session->c2w);

    if (error == 0)
        error = segment_seal(&session->arena);
    /* Until here the client could punch holes; from here on nobody can. */
    if (error == 0)
        error = segment_fill_holes(&session->c2w);
    if (error == 0)
        error = segment_fill_holes(&session->arena);
    if (error < 0)
        log_error(LOG_TOPIC_SESSION, "sealing session %u: %s", session->id, strerror(-error));
    if (error == -ENOMEM)
        return GEMMD_STATUS_ARENA_NO_MEMORY;
    return error < 0 ? GEMMD_STATUS_INTERNAL : GEMMD_STATUS_OK;
}

int session_open_wake(struct session *session)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    int wake_fd, error;

    if (session->wake_poll_fd >= 0)
        return 0;
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    session->wake_poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (wake_fd < 0 || session->wake_poll_fd < 0 ||
        epoll_ctl(session->wake_poll_fd, EPOLL_CTL_ADD, wake_fd, &event) < 0) {
        error = -errno;
        close_fd(&wake_fd);
        close_fd(&session->wake_poll_fd);
        return error;
    }
    /* Before the reply: a client that arms after it finds the dispatcher informed. */
    __atomic_store_n(&session->ring.wake_fd, wake_fd, __ATOMIC_RELEASE);
    return 0;
}

void session_close(struct session **session_p)
{
    struct session *session = *session_p;

    if (session->ring.worker_line) {
        gemmd_rings_end(session->ring.worker_line);
        /* One that waits with poll watches the connection, which ends below. */
        syscall(SYS_futex, &session->ring.worker_line->cq_futex, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
    destroy_segments(session);
    close(session->fd);
    free(session);
    *session_p = NULL;
}
