/*
 * Commits: an image that has come whole becomes a layer.  Small ones at once; large ones on the
 * helper's thread, one after the other, so that other clients are served meanwhile: 4 GiB take
 * some seconds, most of it the kernel's, which zeroes the pages.
 *
 * Until its commit is answered a session is not listened to, so that replies keep their order.
 */
#include "worker/requests.h"

#include <string.h>
#include <sys/mman.h>

#include "worker/memory.h"

/* Up to this size the helper would cost more than it brings: a millisecond or two. */
#define COMMIT_AT_ONCE_BYTES (UINT64_C(4) << 20)

static void free_image(struct control *control, struct session_upload *upload)
{
    if (!upload->data)
        return;
    control->staging_bytes -= upload->image.bytes;
    memory_promise((int64_t)upload->received - (int64_t)upload->image.bytes);
    munmap(upload->data, upload->image.bytes);
    memset(upload, 0, sizeof(*upload));
}

void requests_close_upload(struct control *control, struct session *session)
{
    free_image(control, &session->upload);
    session->commit_order = 0;
}

static struct layer_build build_of(const struct session *session,
                                   const struct session_upload *upload)
{
    return (struct layer_build){.desc = upload->desc,
                                .image = upload->data,
                                .content_id = {upload->content_id[0], upload->content_id[1]},
                                .uid = session->uid};
}

/* The layer is there, or will not be: the session's handle, and the reply's body. */
static enum gemmd_status finish(struct control *control, struct session *session, const char *name,
                                struct layer_build *build, struct control_answer *answer)
{
    struct gemmd_stats_page *stats = control->config.stats;
    enum gemmd_status status = build->status;

    if (status != GEMMD_STATUS_OK)
        return status;
    status = layers_set_name(control->config.layers, build->layer, name);
    if (status == GEMMD_STATUS_OK)
        status = requests_open_layer(control, session, build->layer, build->bytes_new, answer);
    if (status == GEMMD_STATUS_OK)
        gemmd_counter_add(build->bytes_new ? &stats->layers_created : &stats->layers_attached, 1);
    layer_release(control->config.layers, build->layer);
    return status;
}

static void run_build(void *task)
{
    layer_build_run(task);
}

static void run_free(void *task)
{
    const struct session_upload *upload = task;

    munmap(upload->data, upload->image.bytes);
}

enum gemmd_status handle_layer_commit(struct control *control, struct session *session,
                                      const void *request, struct control_answer *answer)
{
    const struct gemmd_msg_header *header = request;
    struct session_upload *upload = &session->upload;
    struct layer_build build;
    enum gemmd_status status;

    if (!upload->data || upload->received != upload->image.bytes)
        return GEMMD_STATUS_UPLOAD;
    if (upload->image.bytes > COMMIT_AT_ONCE_BYTES) {
        session->commit_order = ++control->commits;
        session->commit_serial = header->serial;
        control_hold(control, session, true);
        requests_commit_next(control);
        answer->later = true;
        return GEMMD_STATUS_OK;
    }
    build = build_of(session, upload);
    layer_build_begin(control->config.layers, &build);
    do
        layer_build_run(&build);
    while (layer_build_next(control->config.layers, &build));
    status = finish(control, session, upload->name, &build, answer);
    requests_close_upload(control, session);
    return status;
}

/* ---- the helper's ---------------------------------------------------------------------------- */

/* First come, first served. */
static struct session *first_waiting(const struct control *control)
{
    struct session *first = NULL;

    for (uint32_t slot = 0; slot < GEMMD_WORKER_SESSIONS_MAX; slot++) {
        struct session *session = control->sessions[slot];

        if (session && session->commit_order &&
            (!first || session->commit_order < first->commit_order))
            first = session;
    }
    return first;
}

void requests_commit_next(struct control *control)
{
    struct control_commit *commit = &control->commit;
    struct session *session;

    if (commit->task != COMMIT_NONE || control->successor)
        return;
    session = first_waiting(control);
    if (!session)
        return;
    commit->session = session;
    commit->upload = session->upload; /* the session may end before the commit does */
    memset(&session->upload, 0, sizeof(session->upload));
    session->commit_order = 0;
    commit->build = build_of(session, &commit->upload);
    layer_build_begin(control->config.layers, &commit->build);
    commit->task = COMMIT_BUILD;
    helper_start(control->helper, run_build, &commit->build);
}

/* The build has ended, or has nobody to end for. */
static struct session *end_build(struct control *control, struct control_answer *answer)
{
    struct control_commit *commit = &control->commit;
    struct session *session = commit->session;
    enum gemmd_status status;

    memset(answer, 0, sizeof(*answer));
    answer->bytes = sizeof(answer->reply.layer);
    if (session) {
        status = finish(control, session, commit->upload.name, &commit->build, answer);
        if (status != GEMMD_STATUS_OK)
            memset(&answer->reply, 0, sizeof(answer->reply));
        answer->reply.header = (struct gemmd_msg_header){
            GEMMD_MSG_LAYER_COMMIT | GEMMD_REPLY, answer->bytes, session->commit_serial, status};
        control_hold(control, session, false);
    }
    commit->session = NULL;
    commit->task = COMMIT_FREE;
    helper_start(control->helper, run_free, &commit->upload);
    return session;
}

struct session *requests_commit_on(struct control *control, struct control_answer *answer)
{
    struct control_commit *commit = &control->commit;

    if (!helper_take(control->helper)) /* not covered: the descriptor says when */
        return NULL;                   /* not covered: as above */
    if (commit->task == COMMIT_FREE) {
        control->staging_bytes -= commit->upload.image.bytes;
        commit->task = COMMIT_NONE;
        requests_commit_next(control);
        return NULL;
    }
    if (!commit->session)
        layer_build_abort(control->config.layers, &commit->build);
    else if (layer_build_next(control->config.layers, &commit->build)) {
        helper_start(control->helper, run_build, &commit->build);
        return NULL;
    }
    return end_build(control, answer);
}

void requests_forget_commit(struct control *control, struct session *session)
{
    if (control->commit.session == session)
        control->commit.session = NULL;
}

void requests_drop_commit(struct control *control)
{
    struct control_answer answer;

    while (control->commit.task != COMMIT_NONE) {
        helper_wait(control->helper);
        requests_commit_on(control, &answer);
    }
}
