/*
 * A client without a library: sends any bytes and descriptors, writes any word of the rings.  It
 * shares the headers of proto with gemmd, which is the point (the layout is the contract), and
 * nothing else.
 */
#ifndef GEMMD_TESTS_E2E_RAW_H
#define GEMMD_TESTS_E2E_RAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/control.h"
#include "proto/ring.h"
#include "proto/status.h"

struct raw {
    int fd; /* the control connection */
    int fds[GEMMD_HELLO_FD_COUNT];
    struct gemmd_msg_hello_reply hello;
    char *c2w, *w2c, *arena;
    struct gemmd_client_line *client;
    const struct gemmd_doorbell_line *doorbell;
    const struct gemmd_worker_line *worker;
    struct gemmd_ring_end sq, cq;
    uint32_t serial, last_rung;
};

/* A connection; fails the test unless the socket accepts. */
int raw_connect(const char *socket);
bool raw_send(int fd, const void *message, size_t bytes, const int *fds, unsigned fd_count);
/* Bytes of the next packet, 0 when the worker has ended the connection, -1 after timeout_ms.
 * Received descriptors go to `fds` (GEMMD_HELLO_FD_COUNT), their count to *fd_count; both may be
 * NULL. */
int raw_receive(int fd, void *buffer, size_t bytes, int *fds, unsigned *fd_count, int timeout_ms);

/* A filled-in header, and a hello that would be accepted. */
struct gemmd_msg_header raw_header(struct raw *raw, uint32_t type, size_t bytes);
struct gemmd_msg_hello raw_hello(uint32_t ring_entries, uint64_t arena_bytes);

/* hello + mapped; fails the test unless the session becomes live. */
void raw_open(struct raw *raw, const char *socket, uint32_t ring_entries, uint64_t arena_bytes);
/* The hello alone: state MAPPING. */
void raw_open_mapping(struct raw *raw, const char *socket, uint32_t ring_entries,
                      uint64_t arena_bytes);
/* Maps what raw->hello and raw->fds hold. */
void raw_map(struct raw *raw);
/* Closes all, abruptly: no farewell exists. */
void raw_close(struct raw *raw);

/* Sends and gets the reply of `reply_bytes`; its status, or -1 when the session has ended. */
int raw_call(struct raw *raw, const void *request, void *reply, size_t reply_bytes);
/* Opens a layer by name. */
void raw_open_layer(struct raw *raw, const char *name, struct gemmd_msg_layer_reply *out);

/* Pushes and rings if asked to. */
void raw_submit(struct raw *raw, const struct gemmd_sqe *sqe);
void raw_ring(struct raw *raw);
/* The next completion within timeout_ms; releases its slot when `release`. */
bool raw_complete(struct raw *raw, struct gemmd_cqe *out, bool release, int timeout_ms);

/* True when the worker has ended this session: connection closed within timeout_ms. */
bool raw_is_ended(struct raw *raw, int timeout_ms);

#endif
