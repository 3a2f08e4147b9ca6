/*
 * Submitting: each job is copied into the next slot of the ring.  No system call but gemmd_flush's
 * one write, and that only when the worker's doorbell word asks for it (edge D of proto/ring.h).
 */
#include "client/internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "proto/validate.h"

void gemmd_job_init(struct gemmd_job *job, struct gemmd_layer *layer, uint32_t m, const void *a,
                    void *c)
{
    *job = (struct gemmd_job){.layer = layer, .m = m, .a = a, .c = c};
    if (!layer)
        return;
    job->a_stride_bytes = gemmd_abi_a_row_bytes(&layer->desc);
    job->c_stride_bytes = layer->desc.n * gemmd_abi_type_bytes(layer->desc.c_type);
}

/* Of a job's operands, from the arena's start; of an absent one 0. */
struct offsets {
    uint64_t a, c, residual;
};

static uint64_t offset_of(const struct gemmd *session, const void *pointer)
{
    return (uint64_t)((uintptr_t)pointer - (uintptr_t)session->arena.memory);
}

static struct offsets offsets_of(const struct gemmd *session, const struct gemmd_job *job)
{
    bool has_residual = job->layer && job->layer->desc.residual_type != GEMMD_ABI_TYPE_NONE;

    if (job->m == 0)
        return (struct offsets){0};
    return (struct offsets){
        .a = offset_of(session, job->a),
        .c = offset_of(session, job->c),
        .residual = has_residual ? offset_of(session, job->residual) : 0,
    };
}

/* NULL, or what is wrong.  Only what the worker cannot see is checked here; the rest it must check
 * anyway, and answers with a status. */
static const char *find_fault(const struct gemmd *session, const struct gemmd_job *job,
                              const struct offsets *offsets)
{
    if (!job->layer || job->layer->session != session)
        return "layer: NULL, or of another session";
    if (job->layer->lost)
        return "layer: lost with its worker; create it again";
    if (job->reserved)
        return "reserved: must be 0; call gemmd_job_init";
    if ((unsigned)job->priority > GEMMD_PRIORITY_BACKGROUND)
        return "priority: unknown class";
    if (offsets->a >= session->arena.bytes)
        return "a: not in a buffer of this session; see gemmd_buffer_alloc";
    if (offsets->c >= session->arena.bytes)
        return "c: not in a buffer of this session; see gemmd_buffer_alloc";
    if (job->residual && job->layer->desc.residual_type == GEMMD_ABI_TYPE_NONE)
        return "residual: the layer has none";
    if (offsets->residual >= session->arena.bytes)
        return "residual: not in a buffer of this session; see gemmd_buffer_alloc";
    return NULL;
}

/* Takes a slot of the table and one of the ring; there is one of each.  `layer` NULL: a cancel. */
static void push(struct gemmd *session, struct gemmd_sqe *sqe, uint64_t user_data,
                 struct gemmd_layer *layer)
{
    uint32_t index = session->slots_free[session->entries - session->in_flight - 1];
    struct gemmd_slot *slot = &session->slots[index];

    if (++session->next_tag == 0)
        session->next_tag = 1;
    *slot = (struct gemmd_slot){
        .user_data = user_data, .tag = session->next_tag, .hidden = !layer};
    sqe->user_data = (uint64_t)slot->tag << 32 | index;
    session->in_flight++;
    session->hidden += !layer;
    if (session->copies)
        gemmd_copy_job(session, index, sqe, layer);
    gemmd_sq_push(&session->sq, sqe);
}

static void push_job(struct gemmd *session, const struct gemmd_job *job,
                     const struct offsets *offsets)
{
    struct gemmd_sqe sqe = {
        .op = GEMMD_OP_GEMM,
        .priority = (uint8_t)job->priority,
        .m = job->m,
        .layer_id = job->layer->id,
        .layer_gen = job->layer->gen,
        .a_offset = offsets->a,
        .c_offset = offsets->c,
        .residual_offset = (uint32_t)offsets->residual,
        .a_stride_bytes = job->a_stride_bytes,
        .c_stride_bytes = job->c_stride_bytes,
        .deadline_ns = job->deadline_ns,
    };

    push(session, &sqe, job->user_data, job->layer);
}

/* check_submit: nothing can be taken before what is in flight is reaped. */
enum { GEMMD_SUBMIT_LATER = 1 };

/* Before the first job of a call. */
static int check_submit(struct gemmd *session)
{
    if (!gemmd_is_ours(session) || session->lost) {
        int error = gemmd_check(session);

        if (error < 0)
            return error;
    }
    if (session->control_only)
        return gemmd_fail(session, -EINVAL, "submit: a control-only session has no rings");
    if (gemmd_load_acquire(&session->worker_line->state) == GEMMD_WORKER_RUNNING)
        return 0;
    if (session->copies && session->in_flight)
        return GEMMD_SUBMIT_LATER;
    if (session->copies)
        gemmd_lose(session, "it was told to end");
    if (gemmd_recover(session) < 0)
        return gemmd_fail(session, -ECONNRESET, "the worker at %s is shutting down; reap what is "
                          "in flight, then connect again", session->socket);
    return 0;
}

int gemmd_submit(struct gemmd *session, const struct gemmd_job *jobs, unsigned count)
{
    unsigned taken = 0;
    int error = check_submit(session);

    if (error)
        return error < 0 ? error : 0;
    /* The table has as many slots as either ring; the last one is left to a cancel.  A full one
     * means that jobs are to be reaped. */
    for (; taken < count && taken < INT32_MAX && session->in_flight + 1 < session->entries;
         taken++) {
        const struct gemmd_job *job = &jobs[taken];
        struct offsets offsets = offsets_of(session, job);
        const char *fault = find_fault(session, job, &offsets);

        if (fault && taken == 0)
            return gemmd_fail(session, -EINVAL, "%s", fault);
        if (fault)
            break;
        push_job(session, job, &offsets);
    }
    session->jobs += taken;
    session->unflushed |= taken != 0;
    return (int)taken;
}

int gemmd_cancel(struct gemmd *session, uint64_t user_data)
{
    int asked = 0, error = check_submit(session);

    if (error < 0)
        return error;
    if (error == GEMMD_SUBMIT_LATER || session->in_flight == session->entries)
        return gemmd_fail(session, -EAGAIN, "cancel: an earlier one takes the last place; reap "
                          "completions first");
    for (uint32_t i = 0; i < session->entries && session->in_flight < session->entries; i++) {
        const struct gemmd_slot *slot = &session->slots[i];
        struct gemmd_sqe sqe = {.op = GEMMD_OP_CANCEL, .target = (uint64_t)slot->tag << 32 | i};

        if (slot->tag == 0 || slot->hidden || slot->user_data != user_data)
            continue;
        push(session, &sqe, user_data, NULL);
        session->unflushed = true;
        asked++;
    }
    return asked ? asked
                 : gemmd_fail(session, -ENOENT, "cancel: no job in flight has that user_data");
}

int gemmd_flush(struct gemmd *session)
{
    const uint64_t one = 1;
    int error;

    if (!gemmd_is_ours(session) || session->lost || session->control_only) {
        error = gemmd_check(session);
        return error < 0 ? error : 0;
    }
    /* Without new jobs the last look still holds: a worker that armed its doorbell since has looked
     * at the ring after that. */
    if (!session->unflushed)
        return 0;
    session->unflushed = false;
    if (!gemmd_doorbell_wanted(session->doorbell, &session->last_rung))
        return 0;
    session->doorbells++;
    session->syscalls++;
    /* EAGAIN: the counter is full, so it is readable, and that is all that was wanted. */
    while (write(session->kick_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        session->syscalls++;
    return 1;
}
