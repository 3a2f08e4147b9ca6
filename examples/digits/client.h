/*
 * One client process of the digits example: a session of its own, the layers, and its share of the
 * images, over and over.  It talks to the parent over a stream socket, in lockstep:
 *
 *     parent: 1 byte   connect
 *     client: a report: session open, layers created or attached
 *     parent: 1 byte   start (sent to all clients at once: they overlap in time)
 *     client: a report: passes done; then the logits of its share, count * classes floats
 *     parent: 1 byte   end (the session stays open until the parent has looked at the worker)
 *
 * Whichever side ends early, the other reads the end of the stream.
 */
#ifndef GEMMD_EXAMPLES_DIGITS_CLIENT_H
#define GEMMD_EXAMPLES_DIGITS_CLIENT_H

#include "examples/digits/model.h"

struct client_config {
    const struct model *model;
    const struct held_out *images;
    const char *socket;    /* NULL: the library's default */
    uint32_t first, count; /* its share */
    uint32_t repeat;
};

struct client_report {
    uint32_t failed; /* then `text` says why */
    uint32_t first, count, passes;
    uint64_t start_ns, end_ns;                  /* CLOCK_MONOTONIC */
    uint64_t jobs, doorbells, sleeps, syscalls; /* of the passes */
    uint64_t bytes_new[MODEL_LAYERS_MAX];       /* worker memory that its creations added */
    uint32_t created[MODEL_LAYERS_MAX];         /* 1 created, 0 attached */
    char text[256];
};

/* The whole life of the process; the value is its exit status. */
int client_main(const struct client_config *config, int fd);

/* All of `bytes`, or -1: end of stream, error, or nothing for timeout_ms (< 0: waits for ever). */
int client_read(int fd, void *data, size_t bytes, int timeout_ms);
int client_write(int fd, const void *data, size_t bytes);

#endif
