/* The handlers of control messages, by the file they live in; called from requests.c's table. */
#ifndef GEMMD_WORKER_REQUESTS_H
#define GEMMD_WORKER_REQUESTS_H

#include "worker/control.h"

typedef enum gemmd_status handler_fn(struct control *control, struct session *session,
                                     const void *request, struct control_answer *answer);

/* requests_layers.c */
handler_fn handle_layer_create, handle_layer_data, handle_layer_open, handle_layer_close;
/* Gives the session a handle of `layer`. */
enum gemmd_status requests_open_layer(struct control *control, struct session *session,
                                      struct layer *layer, uint64_t bytes_new,
                                      struct control_answer *answer);
/* Its bytes have changed: takes a layer away from every session that has it open, whose jobs
 * complete with LAYER_STALE. */
void requests_withdraw(struct control *control, struct layer *layer);
/* Looks at the layers of which a checked result was wrong, and when idle at a slice of all weights;
 * those that have changed are withdrawn. */
void requests_guard_layers(struct control *control, bool idle);

/* requests_commit.c */
handler_fn handle_layer_commit;
/* The helper may have done a part of the commit in hand.  The session to send *answer to, when that
 * ended the commit; else NULL. */
struct session *requests_commit_on(struct control *control, struct control_answer *answer);
/* Gives the helper the next commit that waits, unless it has one. */
void requests_commit_next(struct control *control);
/* The session ends: nobody waits for its commit any more. */
void requests_forget_commit(struct control *control, struct session *session);
/* The worker ends: waits for the helper, and leaves nothing. */
void requests_drop_commit(struct control *control);
void requests_close_upload(struct control *control, struct session *session);

/* requests_operator.c */
/* A slice of the load that is going on (control->loading).  The session to send *answer to, when
 * that ended it; else NULL. */
struct session *requests_load_on(struct control *control, struct control_answer *answer);
/* Gives up the load that is going on if it is this session's. */
void requests_end_load(struct control *control, const struct session *session);
handler_fn handle_layer_load, handle_layer_unload, handle_layer_pin, handle_takeover,
    handle_takeover_commit;

#endif
