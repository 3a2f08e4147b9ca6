/* Set-up: sessions and their users come and go. */
#include "worker/scheduler.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int scheduler_init(struct scheduler *scheduler, const struct scheduler_config *config)
{
    scheduler->config = *config;
    scheduler->round = scheduler->served_ns = 0;
    scheduler->waiting = scheduler->linked = 0;
    list_init(&scheduler->done);
    list_init(&scheduler->gathering);
    for (int class = 0; class < SCHEDULER_CLASS_COUNT; class++) {
        list_init(&scheduler->ready[class]);
        list_init(&scheduler->spent[class]);
    }
    for (uint32_t i = 0; i < SCHEDULER_SCANS; i++) {
        scheduler->scans[i].layer = NULL;
        scheduler->scans[i].index = i;
    }
    scheduler->users = calloc(config->sessions_max, sizeof(*scheduler->users));
    return scheduler->users ? 0 : -ENOMEM;
}

void scheduler_fini(struct scheduler *scheduler)
{
    free(scheduler->users);
    scheduler->users = NULL;
}

static struct scheduler_user *find_user(struct scheduler *scheduler, uint32_t uid)
{
    struct scheduler_user *unused = NULL;

    for (uint32_t i = 0; i < scheduler->config.sessions_max; i++) {
        struct scheduler_user *user = &scheduler->users[i];

        if (user->sessions && user->uid == uid)
            return user;
        if (!user->sessions && !unused)
            unused = user;
    }
    assert(unused); /* there are no more users than sessions */
    unused->uid = uid;
    unused->admitted = 0;
    list_init(&unused->held);
    return unused;
}

void scheduler_add_session(struct scheduler *scheduler, struct scheduler_session *session,
                           uint32_t uid, uint32_t weight, uint32_t quota)
{
    int64_t quantum_ns = SCHEDULER_QUANTUM_NS * weight;

    assert(weight >= 1 && weight <= SCHEDULER_WEIGHT_MAX);
    *session = (struct scheduler_session){.user = find_user(scheduler, uid), .quota = quota};
    session->user->sessions++;
    list_init(&session->held);
    session->accounts[0].quantum_ns = quantum_ns;
    session->accounts[1].quantum_ns = quantum_ns / SCHEDULER_BACKGROUND_SHARE;
    session->service = (struct scheduler_account){quantum_ns, quantum_ns, scheduler->round};
    for (int i = 0; i < 2; i++) {
        session->accounts[i].credit_ns = session->accounts[i].quantum_ns;
        session->accounts[i].round = scheduler->round;
    }
    for (int class = 0; class < SCHEDULER_CLASS_COUNT; class++) {
        struct scheduler_queue *queue = &session->queues[class];

        queue->class = (enum scheduler_class)class;
        queue->session = session;
        queue->account = &session->accounts[class == SCHEDULER_BACKGROUND];
        list_init(&queue->jobs);
    }
}

void scheduler_remove_session(struct scheduler *scheduler, struct scheduler_session *session)
{
    (void)scheduler;
    assert(session->in_flight == 0);
    session->user->sessions--;
    session->user = NULL;
}

void scheduler_init_flow(struct scheduler_flow *flow, struct scheduler_session *session,
                         struct scheduler_layer *layer)
{
    *flow = (struct scheduler_flow){.session = session, .layer = layer};
    list_init(&flow->jobs);
}
