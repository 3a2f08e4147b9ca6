/* Sessions: options, opening and closing, and the texts of failures. */
#include "client/internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef GEMMD_CLIENT_VERSION
#error "the build defines GEMMD_CLIENT_VERSION"
#endif

/* Written by the handler in a fresh child only, which has one thread then. */
unsigned gemmd_generation = 1;

static __thread char connect_text[GEMMD_TEXT_BYTES];

static void enter_child(void)
{
    gemmd_generation++;
}

static void __attribute__((constructor)) watch_forks(void)
{
    pthread_atfork(NULL, NULL, enter_child);
}

uint64_t gemmd_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- texts ----------------------------------------------------------------------------------- */

const char *gemmd_version(void)
{
    return GEMMD_CLIENT_VERSION;
}

const char *gemmd_strerror(int error)
{
    switch (error) {
    case -ECONNREFUSED:
        return "no worker answers";
    case -ECONNRESET:
        return "the worker is gone";
    case -ESHUTDOWN:
        return "the worker is shutting down";
    case -EPROTONOSUPPORT:
        return "library and worker have no protocol version in common";
    case -EPROTO:
        return "the peer does not speak gemmd's protocol";
    case -EOWNERDEAD:
        return "the session belongs to the process that opened it, not to its child";
    case -ENOBUFS:
        return "the arena has no room";
    case -ESTALE:
        return "the layer was closed";
    default:
        return strerror(error < 0 ? -error : error);
    }
}

const char *gemmd_status_name(int status)
{
    return gemmd_status_name_of(status);
}

const char *gemmd_status_text(int status)
{
    return gemmd_status_text_of(status);
}

const char *gemmd_error_text(const struct gemmd *session)
{
    return session ? session->text : connect_text;
}

int gemmd_fail(struct gemmd *session, int error, const char *format, ...)
{
    char text[GEMMD_TEXT_BYTES]; /* the arguments may point into session->text */
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    memcpy(session->text, text, sizeof(text));
    return error;
}

int gemmd_check(struct gemmd *session)
{
    if (!gemmd_is_ours(session))
        return gemmd_fail(session, -EOWNERDEAD,
                          "the session belongs to the parent process; connect again after fork()");
    if (session->lost && gemmd_recover(session) < 0)
        return gemmd_lose(session, "it ended");
    return 0;
}

int gemmd_lose(struct gemmd *session, const char *reason)
{
    session->lost = true;
    return gemmd_fail(session, -ECONNRESET,
                      "the worker at %s is gone (%s); close the session and connect again",
                      session->socket, reason);
}

/* ---- open and close -------------------------------------------------------------------------- */

void gemmd_options_init(struct gemmd_options *options)
{
    *options = (struct gemmd_options){.size = sizeof(*options),
                                      .autostart = 1,
                                      .spin_ns = -1,
                                      .timeout_ms = 10000};
}

static int check_options(struct gemmd *session, const struct gemmd_options *options)
{
    uint32_t entries = options->ring_entries;
    uint64_t arena = options->arena_bytes;

    if (options->size != sizeof(*options))
        return gemmd_fail(session, -EINVAL, "size: %zu is not of this library's gemmd_options; "
                          "call gemmd_options_init", options->size);
    for (size_t i = 0; i < sizeof(options->reserved) / sizeof(options->reserved[0]); i++)
        if (options->reserved[i])
            return gemmd_fail(session, -EINVAL, "reserved: must be 0; call gemmd_options_init");
    if (options->socket && (!*options->socket || strlen(options->socket) >= GEMMD_SOCKET_BYTES))
        return gemmd_fail(session, -EINVAL, "socket: a path has 1 to %d bytes",
                          GEMMD_SOCKET_BYTES - 1);
    if (entries && ((entries & (entries - 1)) || entries < GEMMD_RING_ENTRIES_MIN ||
                    entries > GEMMD_RING_ENTRIES_MAX))
        return gemmd_fail(session, -EINVAL, "ring_entries: %u is not a power of two of %u to %u",
                          entries, GEMMD_RING_ENTRIES_MIN, GEMMD_RING_ENTRIES_MAX);
    if (arena && (arena < GEMMD_ARENA_BYTES_MIN || arena > GEMMD_ARENA_BYTES_MAX))
        return gemmd_fail(session, -EINVAL, "arena_bytes: %llu is outside 64 KiB to 4 GiB",
                          (unsigned long long)arena);
    if (options->spin_ns < -1)
        return gemmd_fail(session, -EINVAL, "spin_ns: give -1, 0 or more");
    if (options->recover_ms < 0 || (options->recover_ms && options->control_only))
        return gemmd_fail(session, -EINVAL, "recover_ms: give 0 or more, and 0 with control_only");
    if (options->timeout_ms <= 0)
        return gemmd_fail(session, -EINVAL, "timeout_ms: give 1 or more");
    return 0;
}

static struct gemmd *alloc_session(void)
{
    struct gemmd *session = calloc(1, sizeof(*session));
    const char *debug = secure_getenv("GEMMD_DEBUG");

    if (!session)
        return NULL;
    session->generation = gemmd_generation;
    session->fd = session->kick_fd = -1;
    session->pollable = (struct gemmd_fd){.app = -1, .wake = -1, .self = -1};
    session->debug = debug && strcmp(debug, "1") == 0;
    return session;
}

int gemmd_connect(const struct gemmd_options *options, struct gemmd **out)
{
    struct gemmd_options defaults;
    struct gemmd *session = alloc_session();
    int error;

    *out = NULL;
    connect_text[0] = '\0';
    if (!session) {
        snprintf(connect_text, sizeof(connect_text), "no memory for a session");
        return -ENOMEM;
    }
    gemmd_options_init(&defaults);
    if (!options)
        options = &defaults;
    error = check_options(session, options);
    if (error == 0) {
        session->options = *options;
        session->timeout_ms = options->timeout_ms;
        session->options.arena_bytes = gemmd_recover_arena_bytes(options);
        session->control_only = options->control_only != 0;
        error = gemmd_find_worker(session, gemmd_now_ns() +
                                               (uint64_t)options->timeout_ms * 1000000);
    }
    if (error == 0)
        error = gemmd_recover_init(session);
    session->options.socket = NULL; /* the caller's memory */
    if (error < 0) {
        memcpy(connect_text, session->text, sizeof(connect_text));
        gemmd_close(&session);
        return error;
    }
    session->text[0] = '\0';
    *out = session;
    return 0;
}

void gemmd_close(struct gemmd **session_p)
{
    struct gemmd *session = session_p ? *session_p : NULL;

    if (!session)
        return;
    gemmd_fd_close(session);
    gemmd_disconnect(session);
    while (session->layers) {
        struct gemmd_layer *layer = session->layers;

        session->layers = layer->next;
        free(layer->image);
        free(layer);
    }
    gemmd_recover_fini(session);
    free(session);
    *session_p = NULL;
}
