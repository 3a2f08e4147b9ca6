/*
 * Orders from the control thread to the dispatcher.  One at a time and synchronous: mailbox_call
 * returns when the dispatcher has carried it out, so that whatever the order took away is free to
 * be destroyed.  The dispatcher looks between slices (a fraction of a millisecond), woken by `fd`
 * through its event loop.
 */
#ifndef GEMMD_WORKER_MAILBOX_H
#define GEMMD_WORKER_MAILBOX_H

#include <stdbool.h>
#include <stdint.h>

struct session;
struct layer;
struct layer_view;

enum mailbox_op {
    MAILBOX_ATTACH, /* serve the session from now on */
    MAILBOX_DETACH, /* forget it: nothing of it is touched after the answer */
    MAILBOX_CLOSE_LAYER, /* session->ring.layers[layer_id]; its jobs complete with LAYER_STALE */
    MAILBOX_MOVE_LAYER, /* layer->view = *view: the same bytes elsewhere */
    MAILBOX_DRAIN,  /* complete what is submitted, then tell the clients that it is over */
    MAILBOX_STOP,   /* end the thread */
};

struct mailbox_order {
    enum mailbox_op op;
    struct session *session;
    uint32_t layer_id;
    struct layer *layer;
    const struct layer_view *view;
};

struct mailbox;

int mailbox_open(struct mailbox **out);
void mailbox_close(struct mailbox **mailbox);

/* Readable while an order waits; for event_loop_open. */
int mailbox_fd(const struct mailbox *mailbox);

/* Control thread.  Blocks until the order is carried out. */
void mailbox_call(struct mailbox *mailbox, const struct mailbox_order *order);

/* Dispatcher: the waiting order, or false.  Each taken order is answered with mailbox_done. */
bool mailbox_take(struct mailbox *mailbox, struct mailbox_order *out);
void mailbox_done(struct mailbox *mailbox);

#endif
