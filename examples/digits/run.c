/*
 * Drives the client processes of the digits example (see run.h, and client.h for the conversation).
 *
 * The clients are forked before this process opens a session of its own, since a session does not
 * cross fork().  The parent's session (no rings, no arena) is the first to connect: if the library
 * has to start a worker, it happens once and not in four processes at the same time.
 */
#include "examples/digits/run.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ANSWER_TIMEOUT_MS = 60000 };

struct process {
    pid_t pid;
    int fd;
};

static int complain(const char *what, const char *reason)
{
    fprintf(stderr, "digits: %s: %s\n", what, reason);
    return -1;
}

static int complain_client(uint32_t index, const char *reason)
{
    fprintf(stderr, "digits: client %u: %s\n", index, reason);
    return -1;
}

/* Does not return in the child. */
static int start_client(const struct run *run, uint32_t index, struct process *processes)
{
    uint64_t count = run->images->count;
    struct client_config config = {
        .model = run->model,
        .images = run->images,
        .socket = run->socket,
        .first = (uint32_t)(count * index / run->clients),
        .repeat = run->repeat,
    };
    int fds[2];
    uint32_t i;

    config.count = (uint32_t)(count * (index + 1) / run->clients) - config.first;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds))
        return complain("socketpair", strerror(errno));
    fflush(NULL);
    processes[index].pid = fork();
    if (processes[index].pid == 0) {
        /* or an earlier client would not see the parent's end */
        for (i = 0; i < index; i++)
            close(processes[i].fd);
        close(fds[0]);
        _exit(client_main(&config, fds[1]));
    }
    close(fds[1]);
    processes[index].fd = fds[0];
    if (processes[index].pid > 0)
        return 0;
    close(fds[0]);
    return complain("fork", strerror(errno));
}

/* Sends every client its next byte. */
static int tell_clients(const struct run *run, const struct process *processes)
{
    uint32_t i;

    for (i = 0; i < run->clients; i++) {
        if (client_write(processes[i].fd, "", 1))
            return complain_client(i, "it ended early");
    }
    return 0;
}

/* Reads a report of every client; of each that fails, says why. */
static int hear_clients(struct run *run, const struct process *processes)
{
    int result = 0;
    uint32_t i;

    for (i = 0; i < run->clients; i++) {
        struct client_report *report = &run->reports[i];

        if (client_read(processes[i].fd, report, sizeof(*report), ANSWER_TIMEOUT_MS))
            result = complain_client(i, "no report");
        else if (report->failed)
            result = complain_client(i, report->text);
    }
    return result;
}

/* The logits of every client into their places. */
static int collect_logits(struct run *run, const struct process *processes)
{
    uint32_t classes = run->model->classes;
    uint32_t i, row;

    for (i = 0; i < run->clients; i++) {
        const struct client_report *report = &run->reports[i];

        if (report->first > run->images->count ||
            report->count > run->images->count - report->first)
            return complain_client(i, "its share is not inside the images");
        if (client_read(processes[i].fd, run->logits + (size_t)report->first * classes,
                        (size_t)report->count * classes * sizeof(float), ANSWER_TIMEOUT_MS))
            return complain_client(i, "no logits");
        for (row = report->first; row < report->first + report->count; row++)
            run->answers[row]++;
    }
    return 0;
}

static void note_layer(struct run *run, uint32_t index, const struct gemmd_layer_info *info)
{
    struct run_layer *layer = &run->layers[index];

    layer->references = info->references;
    layer->weight_bytes = info->weight_bytes;
    layer->page_bytes = info->page_bytes;
    layer->node = info->node;
}

/* Finds the model's layers in the worker's list, and counts how often their contents are there. */
static int look_at_layers(struct run *run, struct gemmd *session)
{
    uint64_t ids[MODEL_LAYERS_MAX][2] = {{0}};
    struct gemmd_layer_info info;
    uint32_t index, i, turn;
    int result;

    /* the first turn learns the ids, the second counts them */
    for (turn = 0; turn < 2; turn++) {
        for (index = 0; (result = gemmd_get_layer_info(session, index, &info)) == 0; index++) {
            for (i = 0; i < run->model->layer_count; i++) {
                if (turn == 0 && strcmp(info.name, run->model->layers[i].name) == 0) {
                    memcpy(ids[i], info.content_id, sizeof(ids[i]));
                    note_layer(run, i, &info);
                }
                if (turn == 1 && memcmp(info.content_id, ids[i], sizeof(ids[i])) == 0)
                    run->layers[i].entries++;
            }
        }
        if (result != -ENOENT)
            return complain("layers", gemmd_error_text(session));
    }
    return 0;
}

static int look_at_worker(struct run *run, struct gemmd *session)
{
    uint32_t i, client;

    if (gemmd_get_info(session, &run->info))
        return complain("info", gemmd_error_text(session));
    if (look_at_layers(run, session))
        return -1;
    for (i = 0; i < run->model->layer_count; i++) {
        for (client = 0; client < run->clients; client++) {
            run->layers[i].created += run->reports[client].created[i];
            run->layers[i].bytes_new += run->reports[client].bytes_new[i];
        }
    }
    return 0;
}

/* The conversation with all clients; the session is the parent's own. */
static int drive(struct run *run, const struct process *processes, struct gemmd *session)
{
    if (tell_clients(run, processes) || hear_clients(run, processes))
        return -1;
    if (gemmd_get_stats(session, &run->before))
        return complain("stats", gemmd_error_text(session));
    if (tell_clients(run, processes) || hear_clients(run, processes) ||
        collect_logits(run, processes))
        return -1;
    if (gemmd_get_stats(session, &run->after))
        return complain("stats", gemmd_error_text(session));
    if (look_at_worker(run, session))
        return -1;
    return tell_clients(run, processes);
}

/* Ends the conversation and waits for every process. */
static int stop_clients(uint32_t count, struct process *processes, int result)
{
    uint32_t i;

    for (i = 0; i < count; i++) {
        close(processes[i].fd);
        if (result)
            kill(processes[i].pid, SIGKILL);
    }
    for (i = 0; i < count; i++) {
        int status = 0;

        while (waitpid(processes[i].pid, &status, 0) < 0 && errno == EINTR)
            ;
        if (result == 0 && status != 0)
            result = complain_client(i, WIFSIGNALED(status) ? "killed by a signal" : "it failed");
    }
    return result;
}

int run_clients(struct run *run)
{
    struct process processes[RUN_CLIENTS_MAX];
    struct gemmd_options options;
    struct gemmd *session = NULL;
    uint32_t started = 0;
    int result = 0;

    run->logits = calloc((size_t)run->images->count * run->model->classes, sizeof(float));
    run->answers = calloc(run->images->count, 1);
    if (!run->logits || !run->answers)
        return complain("results", "no memory");
    while (result == 0 && started < run->clients) {
        result = start_client(run, started, processes);
        started += result == 0;
    }
    gemmd_options_init(&options);
    options.socket = run->socket;
    options.control_only = 1;
    if (result == 0 && gemmd_connect(&options, &session))
        result = complain("connect", gemmd_error_text(NULL));
    if (result == 0)
        result = drive(run, processes, session);
    result = stop_clients(started, processes, result);
    gemmd_close(&session);
    return result;
}

void run_free(struct run *run)
{
    free(run->logits);
    free(run->answers);
}
