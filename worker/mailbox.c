/*
 * A one-place mailbox: mutex and condition for the caller, an eventfd for the dispatcher's event
 * loop. Control plane only, so its cost (about a wake-up) does not matter.
 */
#include "worker/mailbox.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define WRITES_MAX 3

struct mailbox {
    pthread_mutex_t mutex;
    pthread_cond_t done;
    struct mailbox_order order;
    enum { EMPTY, WAITING, TAKEN } state;
    int fd;
};

int mailbox_open(struct mailbox **out)
{
    struct mailbox *mailbox = calloc(1, sizeof(*mailbox));
    int error;

    *out = NULL;
    if (!mailbox)
        return -ENOMEM;
    mailbox->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (mailbox->fd < 0) {
        error = -errno;
        free(mailbox);
        return error;
    }
    pthread_mutex_init(&mailbox->mutex, NULL);
    pthread_cond_init(&mailbox->done, NULL);
    *out = mailbox;
    return 0;
}

void mailbox_close(struct mailbox **mailbox_p)
{
    struct mailbox *mailbox = *mailbox_p;

    if (!mailbox)
        return;
    close(mailbox->fd);
    pthread_cond_destroy(&mailbox->done);
    pthread_mutex_destroy(&mailbox->mutex);
    free(mailbox);
    *mailbox_p = NULL;
}

int mailbox_fd(const struct mailbox *mailbox)
{
    return mailbox->fd;
}

void mailbox_call(struct mailbox *mailbox, const struct mailbox_order *order)
{
    const uint64_t one = 1;

    pthread_mutex_lock(&mailbox->mutex);
    mailbox->order = *order;
    mailbox->state = WAITING;
    /* Cannot fail or block: the counter is drained on each order and the fd never leaves us.  If it
     * does fail once, the order must still be heard. */
    for (int tries = 0; write(mailbox->fd, &one, sizeof(one)) != sizeof(one); tries++)
        if (tries == WRITES_MAX) /* not covered: cannot be */
            abort();             /* not covered: cannot be */
    while (mailbox->state != EMPTY)
        pthread_cond_wait(&mailbox->done, &mailbox->mutex);
    pthread_mutex_unlock(&mailbox->mutex);
}

bool mailbox_take(struct mailbox *mailbox, struct mailbox_order *out)
{
    uint64_t count;
    bool taken;

    pthread_mutex_lock(&mailbox->mutex);
    taken = mailbox->state == WAITING;
    if (taken) {
        /* Drained so that a level-triggered loop (F3) does not fire again; if it does, there is no
         * order, and that is all. */
        if (read(mailbox->fd, &count, sizeof(count)) < 0)
            count = 0; /* not covered: cannot be */
        *out = mailbox->order;
        mailbox->state = TAKEN;
    }
    pthread_mutex_unlock(&mailbox->mutex);
    return taken;
}

void mailbox_done(struct mailbox *mailbox)
{
    pthread_mutex_lock(&mailbox->mutex);
    mailbox->state = EMPTY;
    pthread_cond_signal(&mailbox->done);
    pthread_mutex_unlock(&mailbox->mutex);
}
