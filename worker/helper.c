/* A one-place box with a mutex, and an eventfd for the control thread's epoll. */
#include "worker/helper.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "worker/log.h"
#include "worker/sandbox.h"
#include "worker/topology.h"

struct helper {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    enum { IDLE, WAITING, RUNNING, DONE } state;
    bool stop;
    void (*run)(void *task);
    void *task;
    int fd;
    pid_t tid; /* 0: the thread has not run yet */
};

static void serve(struct helper *helper)
{
    const uint64_t one = 1;

    pthread_mutex_lock(&helper->mutex);
    for (;;) {
        while (helper->state != WAITING && !helper->stop)
            pthread_cond_wait(&helper->changed, &helper->mutex);
        if (helper->state != WAITING)
            break;
        helper->state = RUNNING;
        pthread_mutex_unlock(&helper->mutex);
        helper->run(helper->task);
        pthread_mutex_lock(&helper->mutex);
        helper->state = DONE;
        pthread_cond_broadcast(&helper->changed);
        if (write(helper->fd, &one, sizeof(one)) != sizeof(one))
            log_error(LOG_TOPIC_WORKER, "eventfd: %d", errno); /* not covered: cannot be */
    }
    pthread_mutex_unlock(&helper->mutex);
}

static void *run(void *argument)
{
    struct helper *helper = argument;

    pthread_setname_np(pthread_self(), "gemmd-helper");
    __atomic_store_n(&helper->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_RELAXED);
    if (sandbox_enter(SANDBOX_HELPER) < 0)
        log_warn(LOG_TOPIC_WORKER, "the helper has no seccomp filter");
    serve(helper);
    return NULL;
}

int helper_open(struct helper **out)
{
    struct helper *helper = calloc(1, sizeof(*helper));
    int error;

    *out = NULL;
    if (!helper)
        return -ENOMEM;
    helper->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    error = helper->fd < 0 ? -errno : 0;
    pthread_mutex_init(&helper->mutex, NULL);
    pthread_cond_init(&helper->changed, NULL);
    if (error == 0)
        error = -pthread_create(&helper->thread, NULL, run, helper);
    if (error < 0) {
        if (helper->fd >= 0)
            close(helper->fd);
        free(helper);
        return error;
    }
    *out = helper;
    return 0;
}

void helper_close(struct helper **helper_p)
{
    struct helper *helper = *helper_p;

    if (!helper)
        return;
    pthread_mutex_lock(&helper->mutex);
    helper->stop = true;
    pthread_cond_broadcast(&helper->changed);
    pthread_mutex_unlock(&helper->mutex);
    pthread_join(helper->thread, NULL);
    pthread_cond_destroy(&helper->changed);
    pthread_mutex_destroy(&helper->mutex);
    close(helper->fd);
    free(helper);
    *helper_p = NULL;
}

int helper_fd(const struct helper *helper)
{
    return helper->fd;
}

int helper_repin(const struct helper *helper, const cpu_set_t *cpus)
{
    pid_t tid = __atomic_load_n(&helper->tid, __ATOMIC_RELAXED);

    return tid ? topology_repin_to(tid, cpus) : 0;
}

void helper_start(struct helper *helper, void (*run_task)(void *task), void *task)
{
    pthread_mutex_lock(&helper->mutex);
    helper->run = run_task;
    helper->task = task;
    helper->state = WAITING;
    pthread_cond_broadcast(&helper->changed);
    pthread_mutex_unlock(&helper->mutex);
}

void helper_wait(struct helper *helper)
{
    pthread_mutex_lock(&helper->mutex);
    while (helper->state != DONE)
        pthread_cond_wait(&helper->changed, &helper->mutex);
    pthread_mutex_unlock(&helper->mutex);
}

bool helper_take(struct helper *helper)
{
    uint64_t count;
    bool done;

    pthread_mutex_lock(&helper->mutex);
    done = helper->state == DONE;
    if (done) {
        helper->state = IDLE;
        if (read(helper->fd, &count, sizeof(count)) < 0)
            count = 0; /* not covered: it was written before the state */
    }
    pthread_mutex_unlock(&helper->mutex);
    return done;
}
