/*
 * One client process of the digits example (see client.h).
 *
 * The share is cut into batches.  A batch goes through the layers one job at a time, because each
 * layer reads what the one before wrote; up to WINDOW batches are on their way at once, so that the
 * worker always has something to do.  Images, hidden activations and logits stay in the arena: a
 * pass copies nothing in and nothing out.  Cost per batch and layer: one submission and one
 * completion.
 */
#include "examples/digits/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH_ROWS = 32,
    WINDOW = 4,
    TIMEOUT_MS = 10000,
};

struct client {
    const struct client_config *config;
    struct client_report report;
    struct gemmd *session;
    struct gemmd_layer *layers[MODEL_LAYERS_MAX];
    void *rows[MODEL_LAYERS_MAX + 1]; /* [0] the images, [i + 1] the output of layer i */
    uint32_t row_bytes[MODEL_LAYERS_MAX + 1];
    uint32_t batch_count;
    uint32_t *stages; /* [batch_count] the layer a batch is in */
    float *logits;    /* of the first pass */
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int client_read(int fd, void *data, size_t bytes, int timeout_ms)
{
    uint8_t *at = data;

    while (bytes > 0) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        ssize_t got;

        if (poll(&poll_fd, 1, timeout_ms) <= 0)
            return -1;
        got = read(fd, at, bytes);
        if (got <= 0)
            return -1;
        at += got;
        bytes -= (size_t)got;
    }
    return 0;
}

int client_write(int fd, const void *data, size_t bytes)
{
    const uint8_t *at = data;

    while (bytes > 0) {
        ssize_t sent = send(fd, at, bytes, MSG_NOSIGNAL);

        if (sent <= 0)
            return -1;
        at += sent;
        bytes -= (size_t)sent;
    }
    return 0;
}

/* Notes the first failure for the parent; always -1. */
static int fail(struct client *client, const char *what, const char *reason)
{
    if (!client->report.failed)
        snprintf(client->report.text, sizeof(client->report.text), "%s: %s", what, reason);
    client->report.failed = 1;
    return -1;
}

static int open_layers(struct client *client)
{
    const struct model *model = client->config->model;
    struct gemmd_layer_desc desc;
    uint32_t i;

    for (i = 0; i < model->layer_count; i++) {
        int result;

        model_layer_desc(&model->layers[i], &desc);
        result = gemmd_layer_create(client->session, &desc, &client->layers[i]);
        if (result < 0)
            return fail(client, model->layers[i].name, gemmd_error_text(client->session));
        client->report.created[i] = result == 0;
        client->report.bytes_new[i] = gemmd_layer_bytes_new(client->layers[i]);
    }
    return 0;
}

static void set_row_bytes(struct client *client)
{
    const struct model *model = client->config->model;
    uint32_t i;

    client->row_bytes[0] = model->inputs;
    for (i = 0; i < model->layer_count; i++)
        client->row_bytes[i + 1] =
            model->layers[i].n * (model->layers[i].c_type == GEMMD_TYPE_F32 ? 4 : 1);
}

/* Arena memory for all activations of the share, with the images in place. */
static int open_buffers(struct client *client)
{
    const struct client_config *config = client->config;
    uint32_t i;

    for (i = 0; i <= config->model->layer_count; i++) {
        client->rows[i] =
            gemmd_buffer_alloc(client->session, (size_t)config->count * client->row_bytes[i]);
        if (!client->rows[i])
            return fail(client, "buffer", gemmd_error_text(client->session));
    }
    memcpy(client->rows[0], config->images->images + (size_t)config->first * config->images->pixels,
           (size_t)config->count * client->row_bytes[0]);
    client->batch_count = (config->count + BATCH_ROWS - 1) / BATCH_ROWS;
    client->stages = calloc(client->batch_count, sizeof(*client->stages));
    client->logits = malloc((size_t)config->count * client->row_bytes[config->model->layer_count]);
    if (!client->stages || !client->logits)
        return fail(client, "buffer", "no memory");
    return 0;
}

static int open_client(struct client *client)
{
    const struct client_config *config = client->config;
    struct gemmd_options options;
    uint64_t bytes = 1 << 20; /* room for the upload's window and the buffers' alignment */
    uint32_t i;

    set_row_bytes(client);
    for (i = 0; i <= config->model->layer_count; i++)
        bytes += (uint64_t)config->count * client->row_bytes[i];
    gemmd_options_init(&options);
    options.socket = config->socket;
    options.arena_bytes = (bytes + 65535) & ~UINT64_C(65535);
    if (gemmd_connect(&options, &client->session))
        return fail(client, "connect", gemmd_error_text(NULL));
    if (open_layers(client))
        return -1;
    return open_buffers(client);
}

/* Submits the job of the batch's present layer. */
static int submit_batch(struct client *client, uint32_t batch)
{
    uint32_t stage = client->stages[batch];
    size_t row = (size_t)batch * BATCH_ROWS;
    size_t left = client->config->count - row;
    struct gemmd_job job;
    int taken;

    gemmd_job_init(&job, client->layers[stage], left < BATCH_ROWS ? (uint32_t)left : BATCH_ROWS,
                   (uint8_t *)client->rows[stage] + row * client->row_bytes[stage],
                   (uint8_t *)client->rows[stage + 1] + row * client->row_bytes[stage + 1]);
    job.user_data = (uint64_t)batch << 32 | stage;
    taken = gemmd_submit(client->session, &job, 1);
    if (taken == 1)
        return 0;
    /* a full ring cannot be: WINDOW jobs are fewer than any ring has entries */
    return fail(client, "submit", taken ? gemmd_error_text(client->session) : "the ring is full");
}

/* Moves the completed batch on.  1 when it has passed its last layer, 0 when not, -1 on failure. */
static int advance_batch(struct client *client, const struct gemmd_completion *completion)
{
    uint32_t batch = (uint32_t)(completion->user_data >> 32);
    uint32_t stage = (uint32_t)completion->user_data;

    if (completion->status)
        return fail(client, "job", gemmd_status_text(completion->status));
    if (batch >= client->batch_count || stage != client->stages[batch])
        return fail(client, "completion", "of no job in flight, or twice");
    client->stages[batch]++;
    if (client->stages[batch] == client->config->model->layer_count)
        return 1;
    return submit_batch(client, batch);
}

static int wait_some(struct client *client, struct gemmd_completion completions[WINDOW])
{
    int count;

    do {
        count = gemmd_wait(client->session, completions, WINDOW, TIMEOUT_MS);
    } while (count == -EINTR);
    if (count < 0)
        return fail(client, "wait", gemmd_strerror(count));
    return count > 0 ? count : fail(client, "wait", "a job ended without a completion");
}

/* All images of the share through all layers. */
static int run_pass(struct client *client)
{
    struct gemmd_completion completions[WINDOW];
    uint32_t next = 0, done = 0;

    memset(client->stages, 0, client->batch_count * sizeof(*client->stages));
    while (done < client->batch_count) {
        int count, i;

        for (; next < client->batch_count && next - done < WINDOW; next++) {
            if (submit_batch(client, next))
                return -1;
        }
        count = wait_some(client, completions);
        if (count < 0)
            return -1;
        for (i = 0; i < count; i++) {
            int passed = advance_batch(client, &completions[i]);

            if (passed < 0)
                return -1;
            done += (uint32_t)passed;
        }
    }
    if (gemmd_in_flight(client->session))
        return fail(client, "pass", "jobs are in flight after the last completion");
    return 0;
}

static int run_passes(struct client *client)
{
    uint32_t last = client->config->model->layer_count;
    size_t bytes = (size_t)client->config->count * client->row_bytes[last];
    struct gemmd_stats before, after;
    uint32_t pass;

    /* twice: the first call of a session opens the counters' page, which is no part of a pass */
    if (gemmd_get_stats(client->session, &before) || gemmd_get_stats(client->session, &before))
        return fail(client, "stats", gemmd_error_text(client->session));
    client->report.start_ns = now_ns();
    for (pass = 0; pass < client->config->repeat; pass++) {
        memset(client->rows[last], 0xff,
               bytes); /* NaN: an answer of the pass before is no answer */
        if (run_pass(client))
            return -1;
        if (pass == 0)
            memcpy(client->logits, client->rows[last], bytes);
        else if (memcmp(client->logits, client->rows[last], bytes) != 0)
            return fail(client, "pass", "logits differ from those of the first pass");
        client->report.passes++;
    }
    client->report.end_ns = now_ns();
    if (gemmd_get_stats(client->session, &after))
        return fail(client, "stats", gemmd_error_text(client->session));
    client->report.jobs = after.session_jobs - before.session_jobs;
    client->report.doorbells = after.session_doorbells - before.session_doorbells;
    client->report.sleeps = after.session_sleeps - before.session_sleeps;
    client->report.syscalls = after.session_syscalls - before.session_syscalls;
    return 0;
}

/* Waits for the parent's next byte; -1 when the parent is gone. */
static int await_parent(int fd)
{
    char command;

    return client_read(fd, &command, 1, -1);
}

static int talk(struct client *client, int fd)
{
    uint32_t last = client->config->model->layer_count;
    int failed;

    if (await_parent(fd))
        return -1;
    failed = open_client(client);
    if (client_write(fd, &client->report, sizeof(client->report)) || failed || await_parent(fd))
        return -1;
    failed = run_passes(client);
    if (client_write(fd, &client->report, sizeof(client->report)) || failed)
        return -1;
    if (client_write(fd, client->logits, (size_t)client->config->count * client->row_bytes[last]))
        return -1;
    return await_parent(fd);
}

int client_main(const struct client_config *config, int fd)
{
    struct client client = {.config = config};
    int result;

    client.report.first = config->first;
    client.report.count = config->count;
    result = talk(&client, fd);
    gemmd_close(&client.session);
    free(client.stages);
    free(client.logits);
    return result ? 1 : 0;
}
