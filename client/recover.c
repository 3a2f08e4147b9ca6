/*
 * Going on with another worker.  When the worker dies, its mappings go with it, but this process
 * still holds its own: operands and results lie in an arena that only we can see now.  Nothing in
 * there or in the old rings is trusted to say what was done; the library's private copies of the
 * unfinished submissions are.
 *
 *   1  find a worker, as gemmd_connect does, until recover_ms have passed
 *   2  copy the buffers into its fresh arena and map that over the old one: the program's pointers
 *      stay valid
 *   3  open each layer again: by name, by its contents, or from the kept image
 *   4  submit the unfinished jobs again, in their order
 *
 * A job that the dead worker had done and not yet reported runs twice.  That is invisible: C must
 * not overlap A, so A is as it was, and the tag of a job is accepted once.  Only a job whose
 * residual is C itself cannot run twice: it is given up.
 */
#include "client/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* Arenas lie on this boundary when they may be mapped anew: the next worker may have huge pages. */
#define HUGE_PAGE_BYTES (UINT64_C(2) << 20)
#define RETRY_NS        2000000L

struct gemmd_job_copy {
    struct gemmd_sqe sqe;
    struct gemmd_layer *layer; /* NULL: closed since, or a cancel */
    enum gemmd_status verdict; /* not OK: completes with it, the worker does not know the job */
};

/* ---- private copies -------------------------------------------------------------------------- */

int gemmd_recover_init(struct gemmd *session)
{
    const struct gemmd_options *options = &session->options;

    if (options->recover_ms == 0)
        return 0;
    session->copies = calloc(session->entries, sizeof(*session->copies));
    if (!session->copies)
        return gemmd_fail(session, -ENOMEM, "no memory for a session");
    if (options->socket)
        memcpy(session->named, options->socket, strlen(options->socket) + 1);
    return 0;
}

void gemmd_recover_fini(struct gemmd *session)
{
    free(session->copies);
    session->copies = NULL;
}

void gemmd_copy_job(struct gemmd *session, uint32_t index, const struct gemmd_sqe *sqe,
                    struct gemmd_layer *layer)
{
    session->copies[index] = (struct gemmd_job_copy){.sqe = *sqe, .layer = layer};
}

void gemmd_forget_layer(struct gemmd *session, const struct gemmd_layer *layer)
{
    for (uint32_t i = 0; session->copies && i < session->entries; i++)
        if (session->slots[i].tag && session->copies[i].layer == layer)
            session->copies[i].layer = NULL;
}

uint64_t gemmd_recover_arena_bytes(const struct gemmd_options *options)
{
    /* Whole huge pages, so that the size is the same whichever pages a worker has. */
    if (options->recover_ms == 0 || options->arena_bytes < HUGE_PAGE_BYTES)
        return options->arena_bytes;
    return (options->arena_bytes + HUGE_PAGE_BYTES - 1) & ~(HUGE_PAGE_BYTES - 1);
}

/* ---- the arena ------------------------------------------------------------------------------- */

static void copy_buffers(const struct gemmd_arena *arena, uint8_t *to)
{
    for (size_t i = 0; i < GEMMD_BLOCK_BUCKETS; i++)
        for (const struct gemmd_block *block = arena->given[i]; block; block = block->next)
            memcpy(to + block->offset, arena->memory + block->offset, block->bytes);
}

/* Address space for an arena.  NULL: none. */
static uint8_t *reserve(uint64_t bytes)
{
    uint64_t room = bytes + HUGE_PAGE_BYTES;
    uint8_t *memory = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                           0), *aligned;

    if (memory == MAP_FAILED)
        return NULL;
    aligned = (uint8_t *)(((uintptr_t)memory + HUGE_PAGE_BYTES - 1) & ~(HUGE_PAGE_BYTES - 1));
    if (aligned > memory)
        munmap(memory, (size_t)(aligned - memory));
    munmap(aligned + bytes, (size_t)(memory + room - (aligned + bytes)));
    return aligned;
}

int gemmd_map_arena(struct gemmd *session, int fd, uint64_t bytes)
{
    const struct gemmd_arena *adopt = session->adopt;
    uint8_t *mapped, *target, *placed;
    int error = gemmd_map(session, fd, bytes, PROT_READ | PROT_WRITE, "arena", &mapped);

    if (error < 0)
        return error;
    if (session->options.recover_ms == 0) {
        session->arena.memory = mapped;
        return 0;
    }
    target = adopt ? adopt->memory : reserve(bytes);
    if (!target || (adopt && adopt->bytes != bytes)) {
        munmap(mapped, bytes);
        return gemmd_fail(session, -ENOMEM, "the arena cannot be mapped where it has to be");
    }
    if (adopt)
        copy_buffers(adopt, mapped);
    placed = mmap(target, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd,
                  0);
    munmap(mapped, bytes);
    if (placed == MAP_FAILED)
        return gemmd_fail(session, -ENOMEM, "mapping the arena: %s", strerror(errno));
    madvise(placed, bytes, MADV_DONTFORK);
    session->arena.memory = placed;
    return 0;
}

/* ---- jobs ------------------------------------------------------------------------------------ */

static int compare_tags(const void *left, const void *right)
{
    const struct gemmd_sqe *a = *(const struct gemmd_sqe *const *)left;
    const struct gemmd_sqe *b = *(const struct gemmd_sqe *const *)right;

    /* Tags grow by one a job and wrap; those in flight are close together. */
    return (int32_t)((uint32_t)(a->user_data >> 32) - (uint32_t)(b->user_data >> 32));
}

static bool adds_to_c(const struct gemmd_job_copy *copy)
{
    return copy->layer->desc.residual_type != GEMMD_ABI_TYPE_NONE && copy->sqe.m != 0 &&
           copy->sqe.residual_offset == copy->sqe.c_offset;
}

static void submit_again(struct gemmd *session, struct gemmd_job_copy *copy)
{
    if (copy->sqe.op == GEMMD_OP_CANCEL) {
        gemmd_sq_push(&session->sq, &copy->sqe); /* its target has kept its tag */
        return;
    }
    if (!copy->layer || copy->layer->lost || adds_to_c(copy)) {
        copy->verdict = copy->layer ? GEMMD_STATUS_WORKER_LOST : GEMMD_STATUS_LAYER_STALE;
        session->verdicts++;
        return;
    }
    copy->sqe.layer_id = copy->layer->id;
    copy->sqe.layer_gen = copy->layer->gen;
    gemmd_sq_push(&session->sq, &copy->sqe);
}

static int submit_all_again(struct gemmd *session)
{
    const struct gemmd_sqe **order = calloc(session->entries, sizeof(*order));
    uint32_t count = 0;

    if (!order)
        return gemmd_fail(session, -ENOMEM, "no memory to submit the jobs again");
    session->verdicts = 0;
    for (uint32_t i = 0; i < session->entries; i++)
        if (session->slots[i].tag)
            order[count++] = &session->copies[i].sqe;
    qsort(order, count, sizeof(*order), compare_tags);
    for (uint32_t i = 0; i < count; i++)
        submit_again(session, &session->copies[(uint32_t)order[i]->user_data]);
    free(order);
    session->unflushed = true;
    return 0;
}

bool gemmd_take_verdict(struct gemmd *session, uint32_t *index, enum gemmd_status *status)
{
    for (uint32_t i = 0; session->verdicts && i < session->entries; i++) {
        if (session->slots[i].tag == 0 || session->copies[i].verdict == GEMMD_STATUS_OK)
            continue;
        *index = i;
        *status = session->copies[i].verdict;
        session->verdicts--;
        return true;
    }
    return false;
}

/* ---- all of it ------------------------------------------------------------------------------- */

/* Takes over what `fresh` has with its worker.  Its arena is already where ours was. */
static void take_over(struct gemmd *session, struct gemmd *fresh)
{
    gemmd_fd_detach(session);
    close(session->fd);
    close(session->kick_fd);
    munmap(session->c2w, session->c2w_bytes);
    munmap(session->w2c, session->w2c_bytes);
    if (session->stats)
        munmap((void *)(uintptr_t)session->stats, session->stats_bytes);
    session->fd = fresh->fd;
    session->kick_fd = fresh->kick_fd;
    session->c2w = fresh->c2w;
    session->w2c = fresh->w2c;
    session->stats = NULL;
    session->sq = fresh->sq;
    session->cq = fresh->cq;
    session->client_line = fresh->client_line;
    session->doorbell = fresh->doorbell;
    session->worker_line = fresh->worker_line;
    session->spin_ns = fresh->spin_ns;
    session->dispatcher_cpu = fresh->dispatcher_cpu;
    session->last_rung = 0;
    session->polls_empty = 0;
    memcpy(session->socket, fresh->socket, sizeof(session->socket));
    free(fresh->slots);
    free(fresh->slots_free);
}

static int find_another(struct gemmd *session, uint64_t deadline_ns)
{
    struct gemmd *fresh = calloc(1, sizeof(*fresh));
    int error;

    if (!fresh)
        return gemmd_fail(session, -ENOMEM, "no memory to connect again");
    fresh->generation = session->generation;
    fresh->fd = fresh->kick_fd = -1;
    fresh->pollable = (struct gemmd_fd){.app = -1, .wake = -1, .self = -1};
    fresh->debug = session->debug;
    fresh->timeout_ms = session->timeout_ms;
    fresh->options = session->options;
    fresh->options.socket = *session->named ? session->named : NULL;
    fresh->adopt = &session->arena;
    error = gemmd_find_worker(fresh, deadline_ns);
    if (error == 0)
        take_over(session, fresh);
    else
        gemmd_fail(session, error, "%s", fresh->text);
    free(fresh);
    return error;
}

/* -ECONNRESET or -ETIMEDOUT: this worker is gone, too. */
static int open_layers_again(struct gemmd *session)
{
    for (struct gemmd_layer *layer = session->layers; layer; layer = layer->next) {
        int error = layer->lost ? 0 : gemmd_layer_reopen(session, layer);

        if (session->lost || error == -ETIMEDOUT)
            return -ECONNRESET;
        layer->lost |= error < 0;
    }
    return 0;
}

static bool may_come_back(int error)
{
    return error == -ECONNREFUSED || error == -ECONNRESET || error == -ETIMEDOUT ||
           error == -EAGAIN || error == -ESHUTDOWN;
}

int gemmd_recover(struct gemmd *session)
{
    const struct timespec pause = {0, RETRY_NS};
    uint64_t deadline_ns = gemmd_now_ns() + (uint64_t)session->options.recover_ms * 1000000;
    int error;

    if (!session->copies || session->recovering)
        return -ECONNRESET;
    session->recovering = true;
    for (;;) {
        error = find_another(session, deadline_ns);
        if (error == 0) {
            session->lost = false;
            error = open_layers_again(session);
        }
        if (error == 0)
            error = submit_all_again(session);
        if (error == 0)
            error = gemmd_fd_attach(session);
        if (!may_come_back(error) || gemmd_now_ns() >= deadline_ns)
            break;
        nanosleep(&pause, NULL);
    }
    session->recovering = false;
    session->lost = error < 0;
    session->recoveries += error == 0;
    if (error == 0)
        gemmd_flush(session);
    return error;
}
