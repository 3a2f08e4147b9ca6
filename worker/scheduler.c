/* Queues, accounts and rounds: whose turn it is.  What happens in a turn: scan.c. */
#include "worker/scheduler.h"

#include <assert.h>

/* Tests build schedulers with a fault each and show that the simulation finds it; never defined
 * otherwise. */
#ifndef SCHEDULER_MUTANT
#define SCHEDULER_MUTANT 0
#endif

/* ---- accounts -------------------------------------------------------------------------------- */

/* Credits the rounds that went by; what an idle account can save is one quantum. */
static void refresh(const struct scheduler *scheduler, struct scheduler_account *account)
{
    uint64_t rounds = scheduler->round - account->round;

    if (rounds == 0)
        return;
    account->round = scheduler->round;
    if (rounds > UINT32_MAX) /* longer than any debt */
        rounds = UINT32_MAX;
    account->credit_ns += (int64_t)rounds * account->quantum_ns;
    if (account->credit_ns > account->quantum_ns)
        account->credit_ns = account->quantum_ns;
}

static void move(struct scheduler *scheduler, struct scheduler_queue *queue)
{
    queue->is_spent = queue->account->credit_ns <= 0;
    list_unlink(&queue->link);
    list_append(queue->is_spent ? &scheduler->spent[queue->class] : &scheduler->ready[queue->class],
                &queue->link);
}

void scheduler_link_queue(struct scheduler *scheduler, struct scheduler_queue *queue)
{
    if (list_is_linked(&queue->link))
        return;
    refresh(scheduler, queue->account);
    move(scheduler, queue);
    scheduler->linked++;
}

/* A session that wakes up with a short job need not wait for a slice of others of its class.  Its
 * credit bounds how often it goes first. */
static void promote(struct scheduler *scheduler, struct scheduler_queue *queue)
{
    if (queue->is_spent)
        return;
    list_unlink(&queue->link);
    list_prepend(&scheduler->ready[queue->class], &queue->link);
}

void scheduler_unlink_idle_queue(struct scheduler *scheduler, struct scheduler_queue *queue)
{
    if (!list_is_linked(&queue->link) || queue->leads || !list_is_empty(&queue->jobs))
        return;
    list_unlink(&queue->link);
    scheduler->linked--;
}

void scheduler_charge(struct scheduler *scheduler, struct scheduler_queue *queue, uint64_t ns)
{
    struct scheduler_session *session = queue->session;

    session->charged_ns += ns;
#if SCHEDULER_MUTANT == 1 /* work is free */
    return;
#endif
    refresh(scheduler, queue->account);
    queue->account->credit_ns -= (int64_t)ns;
    if (queue->account->credit_ns > 0)
        return;
    for (int class = 0; class < SCHEDULER_CLASS_COUNT; class++) {
        struct scheduler_queue *sibling = &session->queues[class];

        if (sibling->account == queue->account && list_is_linked(&sibling->link) &&
            !sibling->is_spent)
            move(scheduler, sibling);
    }
}

bool scheduler_has_others(const struct scheduler *scheduler,
                          const struct scheduler_session *session)
{
    uint32_t own = 0;

    if (scheduler->linked == 0)
        return false;
    for (int class = 0; class < SCHEDULER_CLASS_COUNT; class++)
        own += list_is_linked(&session->queues[class].link);
    return scheduler->linked > own;
}

bool scheduler_has_renewed(const struct scheduler *scheduler, struct scheduler_session *session)
{
    refresh(scheduler, &session->service);
    return session->service.credit_ns > 0 || !scheduler_has_others(scheduler, session) ||
           SCHEDULER_MUTANT == 15; /* however much was served */
}

void scheduler_charge_service(struct scheduler *scheduler, struct scheduler_session *session,
                              uint64_t ns, uint64_t served_ns)
{
    uint64_t paid_ns = scheduler->served_ns - served_ns;

    if (ns > SCHEDULER_SERVICE_NS_MAX)
        ns = SCHEDULER_SERVICE_NS_MAX;
    scheduler->served_ns = served_ns + ns;
    ns = ns > paid_ns ? ns - paid_ns : 0;
    refresh(scheduler, &session->service);
    session->service.credit_ns -= (int64_t)ns;
    if (SCHEDULER_MUTANT != 14) /* services are for nothing */
        scheduler_charge(scheduler, &session->queues[SCHEDULER_NORMAL], ns);
}

/* Nobody with work has credit: as many rounds go by as the one nearest to credit needs. */
static void new_round(struct scheduler *scheduler)
{
    uint64_t rounds = UINT64_MAX;

    for (int class = 0; class < SCHEDULER_CLASS_COUNT; class++)
        for (struct list *link = scheduler->spent[class].next; link != &scheduler->spent[class];
             link = link->next) {
            const struct scheduler_account *account =
                LIST_ENTRY(link, struct scheduler_queue, link)->account;
            uint64_t needed =
                (uint64_t)((account->quantum_ns - account->credit_ns) / account->quantum_ns);

            if (needed < rounds)
                rounds = needed;
        }
    scheduler->round += rounds ? rounds : 1;
    for (int class = 0; class < SCHEDULER_CLASS_COUNT; class++)
        for (struct list *link = scheduler->spent[class].next, *next;
             link != &scheduler->spent[class]; link = next) {
            struct scheduler_queue *queue = LIST_ENTRY(link, struct scheduler_queue, link);

            next = link->next;
            refresh(scheduler, queue->account);
            if (queue->account->credit_ns > 0)
                move(scheduler, queue);
        }
}

/* ---- jobs ------------------------------------------------------------------------------------ */

void scheduler_unlink_job(struct scheduler *scheduler, struct scheduler_job *job)
{
    struct scheduler_flow *flow = job->flow;

    if (!list_is_linked(&job->in_flow))
        return;
    list_unlink(&job->in_queue);
    list_unlink(&job->in_flow);
    if (list_is_empty(&flow->jobs))
        list_unlink(&flow->link);
    flow->session->waiting--;
    flow->layer->waiting--;
    scheduler->waiting--;
    scheduler_unlink_idle_queue(scheduler, scheduler_queue_of(job));
}

/* Of a held job: out of its session's list, and that out of its user's. */
static void let_go(struct scheduler_job *job)
{
    struct scheduler_session *session = job->flow->session;

    list_unlink(&job->in_queue);
    if (list_is_empty(&session->held))
        list_unlink(&session->held_link);
}

void scheduler_finish(struct scheduler *scheduler, struct scheduler_job *job,
                      enum gemmd_status status)
{
    if (job->held)
        let_go(job);
    if (job->gathered)
        window_leave(job);
    scheduler_unlink_job(scheduler, job);
    job->status = status;
    list_append(&scheduler->done, &job->in_queue);
}

bool scheduler_has_room(const struct scheduler *scheduler, const struct scheduler_session *session)
{
    return (session->admitted < session->quota || SCHEDULER_MUTANT == 5) &&
           (session->admitted < SCHEDULER_RESERVE ||
            session->user->admitted < scheduler->config.user_quota);
}

static void admit(struct scheduler *scheduler, struct scheduler_job *job)
{
    struct scheduler_flow *flow = job->flow;
    struct scheduler_queue *queue = scheduler_queue_of(job);

    flow->session->admitted++;
    flow->session->user->admitted++;
    list_append(&queue->jobs, &job->in_queue);
    list_append(&flow->jobs, &job->in_flow);
    if (!list_is_linked(&flow->link))
        list_append(&flow->layer->flows, &flow->link);
    flow->session->waiting++;
    flow->layer->waiting++;
    scheduler->waiting++;
    window_close(scheduler, flow->layer); /* who gathers goes with it; its place is taken by now */
    if (list_is_linked(&queue->link))
        return;
    scheduler_link_queue(scheduler, queue);
    if (job->rows <= flow->layer->rows_short)
        promote(scheduler, queue);
}

/* The control thread reads it, for the list of sessions. */
static void change_in_flight(struct scheduler_session *session, int change)
{
    __atomic_store_n(&session->in_flight, session->in_flight + (uint32_t)change,
                     __ATOMIC_RELAXED);
}

void scheduler_submit(struct scheduler *scheduler, struct scheduler_job *job)
{
    struct scheduler_session *session = job->flow->session;

    assert(job->rows && job->flow->layer);
    trail_learn(job->flow);
    job->rows_boarded = job->rows_done = 0;
    change_in_flight(session, 1);
    if (SCHEDULER_MUTANT != 13) /* jobs are taken for nothing */
        scheduler_charge(scheduler, scheduler_queue_of(job), SCHEDULER_JOB_NS);
    scheduler->served_ns += SCHEDULER_JOB_NS;
    job->held = job->gathered = false;
    if (!window_keep(scheduler, job))
        scheduler_enter(scheduler, job);
}

void scheduler_enter(struct scheduler *scheduler, struct scheduler_job *job)
{
    struct scheduler_session *session = job->flow->session;

    job->held = !list_is_empty(&session->held) || !scheduler_has_room(scheduler, session);
    if (!job->held) {
        admit(scheduler, job);
        return;
    }
    list_append(&session->held, &job->in_queue);
    if (!list_is_linked(&session->held_link))
        list_append(&session->user->held, &session->held_link);
}

/* The session's oldest held job; then it is the turn of the user's others. */
static void admit_held(struct scheduler *scheduler, struct scheduler_session *session)
{
    struct scheduler_job *job =
        LIST_ENTRY(list_first(&session->held), struct scheduler_job, in_queue);

    let_go(job);
    job->held = false;
    admit(scheduler, job);
    if (list_is_empty(&session->held))
        return;
    list_unlink(&session->held_link);
    list_append(&session->user->held, &session->held_link);
}

/* After an admitted job of the session: there is one place more of its own, and one of its user's.
 */
static void fill_places(struct scheduler *scheduler, struct scheduler_session *session)
{
    struct list *held = &session->user->held, *link = held->next;

    /* The worker's sessions have a quota as large as their rings: the first one finds room. */
    while (link != held &&
           !scheduler_has_room(scheduler, LIST_ENTRY(link, struct scheduler_session, held_link)))
        link = link->next;
    if (link != held)
        admit_held(scheduler, LIST_ENTRY(link, struct scheduler_session, held_link));
    if (!list_is_empty(&session->held) && scheduler_has_room(scheduler, session))
        admit_held(scheduler, session);
}

struct scheduler_job *scheduler_take_done(struct scheduler *scheduler)
{
    struct list *link = list_first(&scheduler->done);
    struct scheduler_session *session;
    struct scheduler_job *job;

    if (!link)
        return NULL;
    list_unlink(link);
    job = LIST_ENTRY(link, struct scheduler_job, in_queue);
    session = job->flow->session;
    change_in_flight(session, -1);
    if (!job->held && !job->gathered) {
        session->admitted--;
        session->user->admitted--;
        fill_places(scheduler, session);
    }
    return job;
}

void scheduler_withdraw(struct scheduler *scheduler, struct scheduler_job *job,
                        enum gemmd_status status)
{
    for (uint32_t i = 0; i < SCHEDULER_SCANS && job->rows_boarded; i++)
        if (scheduler->scans[i].layer == job->flow->layer)
            scan_drop_job(scheduler, &scheduler->scans[i], job);
    scheduler_finish(scheduler, job, status);
}

/* ---- whose turn ------------------------------------------------------------------------------ */

static struct scheduler_job *oldest(const struct scheduler_queue *queue)
{
    struct list *link = list_first(&queue->jobs);

    return link ? LIST_ENTRY(link, struct scheduler_job, in_queue) : NULL;
}

/* The long scan that keeps a queue of `class` from starting another: one at least as urgent; or,
 * when all places are taken, the most urgent of them.  That takes scans whose leaders have left to
 * riders of lower classes: as led at their start there is at most one for each class, and one that
 * trails. */
static struct scheduler_scan *scan_in_the_way(struct scheduler *scheduler,
                                              enum scheduler_class class)
{
    struct scheduler_scan *found = NULL;
    uint32_t taken = 0;

    for (uint32_t i = 0; i < SCHEDULER_LONG_SCANS; i++) {
        struct scheduler_scan *scan = &scheduler->scans[i];

        if (!scan->layer)
            continue;
        taken++;
        if (!found || scan->leader->class < found->leader->class)
            found = scan;
    }
    return found && (found->leader->class <= class || taken == SCHEDULER_LONG_SCANS) ? found : NULL;
}

static struct scheduler_scan *scan_led_by(struct scheduler *scheduler,
                                          const struct scheduler_queue *queue)
{
    for (uint32_t i = 0; i < SCHEDULER_SCANS; i++)
        if (scheduler->scans[i].layer && scheduler->scans[i].leader == queue)
            return &scheduler->scans[i];
    return NULL;
}

/* The scan to run in place of a long one of that flow: one that trails it.  NULL: none does, or
 * there is no place for a second scan of a class. */
static struct scheduler_scan *trailing(struct scheduler *scheduler,
                                       const struct scheduler_flow *flow,
                                       enum scheduler_class class)
{
    struct scheduler_layer *layer = trail_find(scheduler, flow, class);
    uint32_t taken[SCHEDULER_CLASS_COUNT] = {0};

    if (!layer || layer->scan)
        return layer ? layer->scan : NULL;
    for (uint32_t i = 0; i < SCHEDULER_LONG_SCANS; i++)
        if (scheduler->scans[i].layer && ++taken[scheduler->scans[i].leader->class] > 1)
            return NULL;
    return scan_start(scheduler, layer, trail_speaker(layer, class), false);
}

/* The queue's oldest job that has not expired; NULL: there is none, and the queue is linked no more
 * unless it leads a scan. */
static struct scheduler_job *oldest_alive(struct scheduler *scheduler,
                                          const struct scheduler_queue *queue, uint64_t now_ns)
{
    struct scheduler_job *job = oldest(queue);

    while (job && scheduler_has_expired(job, now_ns)) {
        scheduler_finish(scheduler, job, GEMMD_STATUS_DEADLINE);
        job = oldest(queue);
    }
    return job;
}

static bool runs_whole(const struct scheduler_job *job)
{
    const struct scheduler_layer *layer = job->flow->layer;

    return !layer->scan && job->rows - job->rows_boarded <= layer->rows_short;
}

/* The scan that is to run in the queue's turn; NULL: its jobs have all expired. */
static struct scheduler_scan *choose(struct scheduler *scheduler, struct scheduler_queue *queue,
                                     uint64_t now_ns)
{
    struct scheduler_job *job = NULL;
    struct scheduler_scan *scan, *other;

    if (queue->leads) {
        scan = scan_led_by(scheduler, queue);
    } else {
        job = oldest_alive(scheduler, queue, now_ns);
        if (!job)
            return NULL;
        if (runs_whole(job))
            return scan_start(scheduler, job->flow->layer, queue, true);
        scan = job->flow->layer->scan;
        if (!scan)
            scan = scan_in_the_way(scheduler, queue->class);
    }
    if (scan && (scan->index == SCHEDULER_LONG_SCANS || scan->member_count == 0))
        return scan;
    other = scan ? trailing(scheduler, scan->members[0].job->flow, scan->leader->class)
                 : trailing(scheduler, job->flow, queue->class);
    if (other)
        return other;
    return scan ? scan : scan_start(scheduler, job->flow->layer, queue, false);
}

/* Whose turn it is; NULL: nobody with work has credit. */
static struct scheduler_queue *first_ready(struct scheduler *scheduler)
{
    for (int class = 0; class < SCHEDULER_CLASS_COUNT; class++) {
        struct list *link = list_first(&scheduler->ready[class]);

        if (link)
            return LIST_ENTRY(link, struct scheduler_queue, link);
    }
    return NULL;
}

struct scheduler_scan *scheduler_next_short(struct scheduler *scheduler, uint64_t now_ns)
{
    struct scheduler_queue *queue;

#if SCHEDULER_MUTANT == 6 /* rounds begin in the middle of a slice */
    if (scheduler->linked && !first_ready(scheduler))
        new_round(scheduler);
#endif
    while ((queue = first_ready(scheduler)) && !queue->leads) {
        struct scheduler_job *job = oldest_alive(scheduler, queue, now_ns);
        struct scheduler_scan *scan;

        if (!job)
            continue;
        if (!runs_whole(job) && /* 7: long ones run in between, too */
            !(SCHEDULER_MUTANT == 7 && job->flow->layer->rows_short))
            break;
        move(scheduler, queue);
        scan = scan_start(scheduler, job->flow->layer, queue, true);
        if (scan_prepare(scheduler, scan, queue, now_ns))
            return scan;
    }
    return NULL;
}

struct scheduler_scan *scheduler_next(struct scheduler *scheduler, uint64_t now_ns)
{
    struct scheduler_scan *short_scan = &scheduler->scans[SCHEDULER_LONG_SCANS];

    scheduler->served_ns = 0;
    window_close_due(scheduler, now_ns);
    /* Cut short by whoever ran it: it holds the only place of its kind. */
    if (short_scan->layer && scan_prepare(scheduler, short_scan, short_scan->leader, now_ns))
        return short_scan;
    while (scheduler->linked) {
        struct scheduler_queue *queue = first_ready(scheduler);
        struct scheduler_scan *scan;

        if (!queue) {
            new_round(scheduler);
            continue;
        }
        move(scheduler, queue);
        scan = choose(scheduler, queue, now_ns);
        if (scan && scan_prepare(scheduler, scan, queue, now_ns))
            return scan;
    }
    return NULL;
}
