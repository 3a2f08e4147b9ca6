/*
 * Hello, mapping of the segments, and their end.  The worker makes and seals the memory, but it is
 * not taken at its word: sizes are those of the files, size seals are there (else a later shrink
 * were SIGBUS here), and each header must repeat what the hello said.
 */
#include "client/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SIZE_SEALS (F_SEAL_SHRINK | F_SEAL_GROW)

enum { FD_C2W, FD_W2C, FD_ARENA, FD_KICK };

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* ---- connection ------------------------------------------------------------------------------ */

static int fail_connect(struct gemmd *session, const char *path, int error)
{
    switch (error) {
    case ENOENT:
    case ENOTDIR:
    case ECONNREFUSED:
        return gemmd_fail(session, -ECONNREFUSED,
                          "no worker answers at %s (%s); start one with: gemmd --socket %s", path,
                          strerror(error), path);
    case EACCES:
    case EPERM:
        return gemmd_fail(session, -EACCES,
                          "%s: %s; this user may not use it: run as the worker's user, or start "
                          "an own one with: gemmd --socket PATH", path, strerror(error));
    case EPROTOTYPE:
        return gemmd_fail(session, -EPROTO, "%s is another program's socket; name a worker's",
                          path);
    case ETIMEDOUT:
        return gemmd_fail(session, -ETIMEDOUT, "the worker at %s accepts no connection; is it "
                          "stopped?", path);
    default:
        return gemmd_fail(session, -error, "%s: %s", path, strerror(error));
    }
}

/* A worker that lives in a directory others may write to must be this user's, or root's. */
static int check_peer(struct gemmd *session, const char *path, long uid)
{
    struct ucred peer;
    socklen_t bytes = sizeof(peer);

    if (uid < 0)
        return 0;
    if (getsockopt(session->fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0 ||
        (peer.uid != 0 && (long)peer.uid != uid))
        return gemmd_fail(session, -EACCES, "%s is another user's; name a socket to trust it",
                          path);
    return 0;
}

static int connect_to(struct gemmd *session, const char *path, uint64_t deadline_ns)
{
    const struct timespec pause = {0, 1000000};
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path))
        return gemmd_fail(session, -EINVAL, "socket: %s is longer than a socket's path may be",
                          path);
    memcpy(address.sun_path, path, strlen(path) + 1);
    memcpy(session->socket, address.sun_path, sizeof(session->socket));
    session->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (session->fd < 0)
        return gemmd_fail(session, -errno, "socket: %s", strerror(errno));
    while (connect(session->fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        if (errno != EAGAIN && errno != EINTR) /* EAGAIN: the backlog is full */
            return fail_connect(session, path, errno);
        if (gemmd_now_ns() >= deadline_ns)
            return fail_connect(session, path, ETIMEDOUT);
        nanosleep(&pause, NULL);
    }
    return 0;
}

static_assert(sizeof(((struct sockaddr_un *)NULL)->sun_path) == GEMMD_SOCKET_BYTES, "socket paths");

/* ---- hello ----------------------------------------------------------------------------------- */

static int distrust(struct gemmd *session, const char *what)
{
    return gemmd_fail(session, -EPROTO, "whoever answers at %s does not speak gemmd's protocol: %s",
                      session->socket, what);
}

static int check_hello(struct gemmd *session, const struct gemmd_msg_hello_reply *reply)
{
    const struct gemmd_options *options = &session->options;
    uint64_t arena = options->arena_bytes ? options->arena_bytes : GEMMD_ARENA_BYTES_DEFAULT;
    uint32_t entries = options->ring_entries ? options->ring_entries : GEMMD_RING_ENTRIES_DEFAULT;
    uint64_t page = reply->arena_page_bytes;

    if (reply->magic != GEMMD_MAGIC)
        return distrust(session, "magic");
    if (reply->version < GEMMD_VERSION_MIN || reply->version > GEMMD_VERSION_MAX)
        return gemmd_fail(session, -EPROTONOSUPPORT, "the worker at %s speaks version %u, this "
                          "library %d to %d", session->socket, reply->version, GEMMD_VERSION_MIN,
                          GEMMD_VERSION_MAX);
    if (reply->session_id == 0 || (reply->features & ~GEMMD_FEATURES))
        return distrust(session, "session id or features");
    if (session->control_only)
        return 0;
    if (reply->ring_entries != entries)
        return distrust(session, "ring entries");
    if (reply->c2w_bytes != gemmd_segment_bytes(GEMMD_SEGMENT_C2W, entries) ||
        reply->w2c_bytes != gemmd_segment_bytes(GEMMD_SEGMENT_W2C, entries))
        return distrust(session, "segment sizes");
    if (page < 4096 || (page & (page - 1)) || page > UINT64_C(1) << 30 ||
        reply->arena_bytes != ((arena + page - 1) & ~(page - 1)))
        return distrust(session, "arena size");
    return 0;
}

static int say_hello(struct gemmd *session, struct gemmd_msg_hello_reply *reply, int *fds,
                     uint64_t deadline_ns)
{
    struct gemmd_msg_hello hello = {
        .header.type = GEMMD_MSG_HELLO,
        .magic = GEMMD_MAGIC,
        .version_min = GEMMD_VERSION_MIN,
        .version_max = GEMMD_VERSION_MAX,
        .features = GEMMD_FEATURES,
        .flags = session->control_only ? GEMMD_HELLO_CONTROL_ONLY : 0,
        .ring_entries = session->options.ring_entries,
        .arena_bytes = session->options.arena_bytes,
    };
    enum gemmd_status status;
    int error = gemmd_call(session, &hello, sizeof(hello), reply, sizeof(*reply), fds,
                           session->control_only ? 0 : GEMMD_HELLO_FD_COUNT, deadline_ns, &status);

    if (status != GEMMD_STATUS_OK)
        return gemmd_fail(session, error, "%s: %s", session->socket,
                          gemmd_status_text_of((int)status));
    return error < 0 ? error : check_hello(session, reply);
}

/* ---- memory ---------------------------------------------------------------------------------- */

int gemmd_map(struct gemmd *session, int fd, uint64_t bytes, int protection, const char *what,
              void *out)
{
    struct stat status;
    void *memory;
    int seals = fcntl(fd, F_GET_SEALS);

    session->syscalls += 4;
    if (fstat(fd, &status) < 0 || status.st_size < 0 || (uint64_t)status.st_size < bytes ||
        seals < 0 || (seals & SIZE_SEALS) != SIZE_SEALS)
        return distrust(session, what);
    /* Populated: the worker has the pages already, so this costs page table entries only, and the
     * first jobs take no page faults. */
    memory = mmap(NULL, bytes, protection, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED)
        return gemmd_fail(session, -ENOMEM, "mapping the %s: %s", what, strerror(errno));
    /* A child that touched its parent's session would corrupt both: it faults instead. */
    madvise(memory, bytes, MADV_DONTFORK);
    memcpy(out, &memory, sizeof(memory));
    return 0;
}

static bool header_is(const void *segment, enum gemmd_segment_kind kind, uint64_t bytes,
                      const struct gemmd_msg_hello_reply *reply)
{
    const struct gemmd_segment_header *header = segment;

    return header->magic == GEMMD_MAGIC && header->version == reply->version &&
           header->kind == kind && header->bytes == bytes &&
           header->ring_entries == reply->ring_entries &&
           header->ring_start == reply->ring_start && header->session_id == reply->session_id;
}

static void set_up_rings(struct gemmd *session, const struct gemmd_msg_hello_reply *reply)
{
    char *c2w = session->c2w, *w2c = session->w2c;

    session->sq.slots = (uint64_t *)(void *)(c2w + GEMMD_RING_OFFSET);
    session->cq.slots = (uint64_t *)(void *)(w2c + GEMMD_RING_OFFSET);
    session->sq.mask = session->cq.mask = reply->ring_entries - 1;
    session->sq.index = session->cq.index = reply->ring_start;
    session->client_line = (struct gemmd_client_line *)(void *)(c2w + GEMMD_CLIENT_LINE_OFFSET);
    session->doorbell =
        (const struct gemmd_doorbell_line *)(void *)(w2c + GEMMD_DOORBELL_LINE_OFFSET);
    session->worker_line =
        (const struct gemmd_worker_line *)(void *)(w2c + GEMMD_WORKER_LINE_OFFSET);
}

static int map_segments(struct gemmd *session, const struct gemmd_msg_hello_reply *reply,
                        const int *fds)
{
    int kick_flags = fcntl(fds[FD_KICK], F_GETFL), error;

    if (kick_flags < 0 || (kick_flags & O_ACCMODE) == O_RDONLY || !(kick_flags & O_NONBLOCK))
        return distrust(session, "doorbell"); /* a blocking one could hold us for ever */
    session->c2w_bytes = reply->c2w_bytes;
    session->w2c_bytes = reply->w2c_bytes;
    session->arena.bytes = reply->arena_bytes;
    error = gemmd_map(session, fds[FD_C2W], reply->c2w_bytes, PROT_READ | PROT_WRITE,
                      "submission ring", &session->c2w);
    if (error == 0)
        error = gemmd_map(session, fds[FD_W2C], reply->w2c_bytes, PROT_READ, "completion ring",
                          &session->w2c);
    if (error == 0)
        error = gemmd_map_arena(session, fds[FD_ARENA], reply->arena_bytes);
    if (error < 0)
        return error;
    if (!header_is(session->c2w, GEMMD_SEGMENT_C2W, reply->c2w_bytes, reply) ||
        !header_is(session->w2c, GEMMD_SEGMENT_W2C, reply->w2c_bytes, reply))
        return distrust(session, "segment header");
    set_up_rings(session, reply);
    if ((!session->adopt && gemmd_arena_init(&session->arena) < 0) ||
        gemmd_slots_init(session, reply->ring_entries) < 0)
        return gemmd_fail(session, -ENOMEM, "no memory for a session");
    return 0;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static int shake_hands(struct gemmd *session, int *fds, uint64_t deadline_ns)
{
    struct gemmd_msg_mapped mapped = {.header.type = GEMMD_MSG_MAPPED};
    struct gemmd_msg_mapped_reply mapped_reply;
    struct gemmd_msg_hello_reply reply;
    int error = say_hello(session, &reply, fds, deadline_ns);

    if (error < 0)
        return error;
    session->spin_ns = session->options.spin_ns < 0 ? reply.spin_ns_max
                                                    : (uint64_t)session->options.spin_ns;
    session->dispatcher_cpu = (int)reply.dispatcher_cpu;
    if (session->control_only)
        return 0;
    if (fds[FD_KICK] < 0)
        return distrust(session, "number of descriptors");
    error = map_segments(session, &reply, fds);
    if (error < 0)
        return error;
    session->kick_fd = fds[FD_KICK];
    fds[FD_KICK] = -1;
    return gemmd_call(session, &mapped, sizeof(mapped), &mapped_reply, sizeof(mapped_reply), NULL,
                      0, deadline_ns, NULL);
}

int gemmd_open_at(struct gemmd *session, const char *path, long uid, uint64_t deadline_ns)
{
    int fds[GEMMD_HELLO_FD_COUNT] = {-1, -1, -1, -1};
    int error = connect_to(session, path, deadline_ns);

    if (error == 0)
        error = check_peer(session, path, uid);
    if (error == 0)
        error = shake_hands(session, fds, deadline_ns);
    if (error == -ECONNRESET) /* as good as not there: it is ending, or has just been replaced */
        error = gemmd_fail(session, -ECONNREFUSED,
                           "the worker at %s closed the connection during the handshake; if it "
                           "does so again, start one with: gemmd --socket PATH", path);
    for (int i = 0; i < GEMMD_HELLO_FD_COUNT; i++)
        close_fd(&fds[i]);
    if (error < 0)
        gemmd_disconnect(session);
    return error;
}

static void unmap(const void *memory, uint64_t bytes)
{
    if (memory)
        munmap((void *)(uintptr_t)memory, bytes);
}

void gemmd_disconnect(struct gemmd *session)
{
    if (gemmd_is_ours(session)) {
        /* A child of ours may hold the connection, too: the worker is to hear of the end now. */
        if (session->fd >= 0)
            shutdown(session->fd, SHUT_RDWR);
        unmap(session->c2w, session->c2w_bytes);
        unmap(session->w2c, session->w2c_bytes);
        /* A recovering session's arena stays where it is, whoever it belonged to. */
        if (!session->adopt)
            unmap(session->arena.memory, session->arena.bytes);
        unmap(session->stats, session->stats_bytes);
    }
    close_fd(&session->fd);
    close_fd(&session->kick_fd);
    gemmd_arena_fini(&session->arena);
    free(session->slots);
    free(session->slots_free);
    session->slots = NULL;
    session->slots_free = NULL;
    session->c2w = session->w2c = NULL;
    session->stats = NULL;
    session->lost = false;
}
