/* The attacks.  What the kernel or the worker answers is looked at by the caller. */
#include "tests/attack/attacks.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/harness.h"

#define PASSED_FDS 253 /* SCM_MAX_FD */

static const char *const memory_names[MEMORY_ATTACK_COUNT] = {
    "truncate",    "extend",   "punch hole", "zero range",  "MADV_REMOVE", "map writable",
    "reopen",      "O_TRUNC",  "mprotect",   "write by fd", "seal again",  "grow mapping",
};

const char *memory_attack_name(enum memory_attack attack)
{
    return memory_names[attack];
}

struct target {
    int fd;
    uint64_t bytes, page_bytes;
    char *mapped; /* by the client before the seals; w2c: read-only */
    bool writable;
};

static struct target target_of(const struct raw *raw, unsigned index)
{
    const struct target targets[] = {
        {raw->fds[0], raw->hello.c2w_bytes, 4096, raw->c2w, true},
        {raw->fds[1], raw->hello.w2c_bytes, 4096, raw->w2c, false},
        {raw->fds[2], raw->hello.arena_bytes, raw->hello.arena_page_bytes, raw->arena, true},
    };

    return targets[index];
}

static bool maps_writable(int fd, uint64_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (memory == MAP_FAILED)
        return false;
    munmap(memory, bytes);
    return true;
}

static bool reopens(const struct target *target, int flags)
{
    char path[64];
    bool worked;
    int fd;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", target->fd);
    fd = open(path, O_RDWR | O_CLOEXEC | flags);
    if (fd < 0)
        return false;
    worked = flags || ftruncate(fd, 0) == 0 || maps_writable(fd, target->bytes);
    close(fd);
    return worked;
}

static bool unprotects(const struct target *target)
{
    void *memory = mmap(NULL, target->bytes, PROT_READ, MAP_SHARED, target->fd, 0);
    bool worked;

    if (memory == MAP_FAILED)
        return false;
    worked = mprotect(memory, target->bytes, PROT_READ | PROT_WRITE) == 0;
    munmap(memory, target->bytes);
    return worked || (!target->writable &&
                      mprotect(target->mapped, target->bytes, PROT_READ | PROT_WRITE) == 0);
}

/* A second mapping that reaches beyond the file is no harm; a write through it would be. */
static bool grows(const struct target *target)
{
    return ftruncate(target->fd, (off_t)(target->bytes + target->page_bytes)) == 0 ||
           fallocate(target->fd, 0, (off_t)target->bytes, (off_t)target->page_bytes) == 0;
}

static bool memory_attack_works(const struct target *target, enum memory_attack attack)
{
    off_t page = (off_t)target->page_bytes;

    switch (attack) {
    case MEMORY_TRUNCATE:
        return ftruncate(target->fd, 0) == 0;
    case MEMORY_EXTEND:
        return ftruncate(target->fd, (off_t)target->bytes + page) == 0;
    case MEMORY_PUNCH_HOLE:
        return fallocate(target->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, page) == 0;
    case MEMORY_ZERO_RANGE:
        return fallocate(target->fd, FALLOC_FL_ZERO_RANGE, 0, page) == 0;
    case MEMORY_REMOVE:
        return madvise(target->mapped, target->page_bytes, MADV_REMOVE) == 0;
    case MEMORY_MAP_WRITABLE:
        return maps_writable(target->fd, target->bytes);
    case MEMORY_REOPEN:
        return reopens(target, 0);
    case MEMORY_REOPEN_TRUNC:
        return reopens(target, O_TRUNC);
    case MEMORY_MPROTECT:
        return unprotects(target);
    case MEMORY_WRITE_BY_FD:
        return pwrite(target->fd, "x", 1, 0) == 1;
    case MEMORY_UNSEAL:
        return fcntl(target->fd, F_ADD_SEALS, F_SEAL_WRITE) == 0;
    case MEMORY_GROW_MAPPING:
        return grows(target);
    case MEMORY_ATTACK_COUNT:
        break;
    }
    return false;
}

uint32_t attack_memory(const struct raw *raw, unsigned index)
{
    const struct target target = target_of(raw, index);
    uint32_t worked = 0;

    for (unsigned attack = 0; attack < MEMORY_ATTACK_COUNT; attack++)
        worked |= (uint32_t)memory_attack_works(&target, (enum memory_attack)attack) << attack;
    return worked;
}

bool attack_punch_all(const struct raw *raw)
{
    bool worked = true;

    for (unsigned index = 0; index < 3; index++) {
        const struct target target = target_of(raw, index);

        if (target.writable)
            worked &= fallocate(target.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                                (off_t)target.bytes) == 0;
    }
    return worked;
}

void attack_submission(struct raw *raw, const struct gemmd_msg_layer_reply *layer, uint64_t *seed)
{
    struct gemmd_sqe sqe = {.op = GEMMD_OP_GEMM,
                            .m = 1,
                            .layer_id = layer->layer_id,
                            .layer_gen = layer->layer_gen,
                            .c_offset = raw->hello.arena_bytes / 2,
                            .a_stride_bytes = layer->desc.k,
                            .c_stride_bytes = layer->desc.n * 4};
    uint64_t dice = random_next(seed), word = random_next(seed);

    if (dice % 8 == 0)
        random_bytes(seed, &sqe, sizeof(sqe));
    else
        memcpy((char *)&sqe + dice / 8 % 57, &word, dice / 512 % 2 ? 4 : 1);
    sqe.m &= 0xfff; /* a valid giant is only slow */
    gemmd_sq_push(&raw->sq, &sqe);
    /* Not raw_ring: the doorbell may be full, which is no reason to stop. */
    word = 1;
    if (gemmd_doorbell_wanted(raw->doorbell, &raw->last_rung) &&
        write(raw->fds[3], &word, sizeof(word)) < 0)
        raw->last_rung = 0;
}

void attack_message(int fd, uint64_t *seed)
{
    uint64_t packet[GEMMD_MESSAGE_BYTES_MAX / sizeof(uint64_t) + 8];
    struct gemmd_msg_header *header = (struct gemmd_msg_header *)packet;
    size_t bytes = 1 + random_next(seed) % sizeof(packet);
    int null_fd = random_next(seed) % 4 == 0 ? open("/dev/null", O_RDONLY | O_CLOEXEC) : -1;

    random_bytes(seed, packet, bytes);
    if (random_next(seed) % 4) {
        header->type = (uint32_t)(random_next(seed) % (GEMMD_MSG_TYPE_COUNT + 1));
        header->bytes = (uint32_t)bytes;
    }
    raw_send(fd, packet, bytes, null_fd >= 0 ? &null_fd : NULL, null_fd >= 0);
    if (null_fd >= 0)
        close(null_fd);
}

bool attack_descriptors(int fd, const void *message, uint32_t bytes)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * PASSED_FDS)];
    } ancillary = {0};
    struct iovec iov = {(void *)(uintptr_t)message, bytes};
    struct msghdr header = {.msg_iov = &iov,
                            .msg_iovlen = 1,
                            .msg_control = ancillary.space,
                            .msg_controllen = sizeof(ancillary.space)};
    int fds[PASSED_FDS], null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    ssize_t sent;

    for (unsigned i = 0; i < PASSED_FDS; i++)
        fds[i] = null_fd;
    ancillary.header.cmsg_level = SOL_SOCKET;
    ancillary.header.cmsg_type = SCM_RIGHTS;
    ancillary.header.cmsg_len = CMSG_LEN(sizeof(fds));
    memcpy(CMSG_DATA(&ancillary.header), fds, sizeof(fds));
    sent = sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    close(null_fd);
    return sent == (ssize_t)bytes;
}

void attack_doorbell(struct raw *raw, uint64_t *seed)
{
    int fd = raw->fds[3];
    uint64_t count = UINT64_MAX - 1;
    ssize_t ignored = 0;

    switch (random_next(seed) % 16) {
    case 0:
        ignored = write(fd, &count, sizeof(count)); /* full: the next write would block */
        break;
    case 1:
    case 2:
        ignored = read(fd, &count, sizeof(count)); /* stolen */
        break;
    case 3:
        ignored = fcntl(fd, F_SETFL, 0); /* blocking, for whoever shares the open file */
        sched_yield();
        ignored = fcntl(fd, F_SETFL, O_NONBLOCK); /* lest it blocks us */
        break;
    default:
        break;
    }
    (void)ignored;
}

void attack_scribble(struct raw *raw, uint64_t *seed)
{
    uint64_t where = random_next(seed), word = random_next(seed);
    bool in_arena = where & 1;
    char *memory = in_arena ? raw->arena : raw->c2w;
    uint64_t bytes = in_arena ? raw->hello.arena_bytes : raw->hello.c2w_bytes;

    memcpy(memory + (where >> 1) % (bytes / 8) * 8, &word, sizeof(word));
}

void attack_cq_head(struct raw *raw, uint64_t *seed)
{
    uint32_t beyond = 1 + (uint32_t)(random_next(seed) % 1000);

    gemmd_store_release(&raw->client->cq_head, raw->cq.index + beyond);
}
