/* The handlers of control messages, by the file they live in; called from requests.c's table. */
#ifndef GEMMD_WORKER_REQUESTS_H
#define GEMMD_WORKER_REQUESTS_H

#include "worker/control.h"

typedef enum gemmd_status handler_fn(struct control *control, struct session *session,
                                     const void *request, struct control_answer *answer);

/* requests_layers.c */
handler_fn handle_layer_create, handle_layer_data, handle_layer_commit, handle_layer_open,
    handle_layer_close;
/* Takes a layer away from every session that has it open: its jobs complete with LAYER_STALE. */
void requests_withdraw(struct control *control, struct layer *layer);
/* Looks at the layers of which a checked result was wrong, and when idle at a slice of all weights;
 * those that have changed are withdrawn. */
void requests_guard_layers(struct control *control, bool idle);

/* requests_operator.c */
/* A slice of the load that is going on (control->loading).  The session to send *answer to, when
 * that ended it; else NULL. */
struct session *requests_load_on(struct control *control, struct control_answer *answer);
/* Gives up the load that is going on if it is this session's. */
void requests_end_load(struct control *control, const struct session *session);
handler_fn handle_layer_load, handle_layer_unload, handle_layer_pin, handle_takeover,
    handle_takeover_commit;

#endif
