/*
 * Looks once a second and counts looks, not time: a worker that was stopped as a whole (SIGSTOP, a
 * suspended machine) is not taken for a wedged one when it goes on.
 */
#include "worker/watchdog.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "worker/log.h"
#include "worker/sandbox.h"

#define CONTROL_PATIENCE 4

/* One watched thread. */
struct watched {
    const char *name;
    uint64_t seen; /* its progress at the last look */
    uint32_t looks_without, limit;
};

struct watchdog {
    struct watchdog_config config;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t stop_asked;
    bool stop;
};

/* Whatever the dispatcher does moves one of these: turns and sweeps when it has little to do,
 * jobs within a long turn. */
static uint64_t dispatcher_progress(const struct gemmd_stats_page *stats)
{
    return gemmd_counter_read(&stats->heartbeat) + gemmd_counter_read(&stats->turns) +
           gemmd_counter_read(&stats->sleeps) + gemmd_counter_read(&stats->jobs) +
           gemmd_counter_read(&stats->syscalls);
}

/* No core: it would hold the clients' weights and rows, and the log line says what happened. */
static void look(struct watched *watched, uint64_t progress)
{
    if (progress != watched->seen) {
        watched->seen = progress;
        watched->looks_without = 0;
        return;
    }
    if (++watched->looks_without < watched->limit)
        return;
    log_error(LOG_TOPIC_WORKER, "the %s thread has made no progress for %u s: ending",
              watched->name, watched->looks_without);
    _exit(EX_SOFTWARE);
}

/* True: told to stop. */
static bool wait_a_second(struct watchdog *watchdog)
{
    struct timespec until;
    bool stop;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec++;
    pthread_mutex_lock(&watchdog->mutex);
    while (!watchdog->stop && pthread_cond_timedwait(&watchdog->stop_asked, &watchdog->mutex,
                                                     &until) != ETIMEDOUT)
        ;
    stop = watchdog->stop;
    pthread_mutex_unlock(&watchdog->mutex);
    return stop;
}

static void *run(void *argument)
{
    struct watchdog *watchdog = argument;
    const struct watchdog_config *config = &watchdog->config;
    struct watched dispatcher = {.name = "dispatcher", .limit = config->limit_s};
    struct watched control = {.name = "control", .limit = config->limit_s * CONTROL_PATIENCE};

    pthread_setname_np(pthread_self(), "gemmd-watchdog");
    if (sandbox_enter(SANDBOX_WATCHDOG) < 0)
        log_warn(LOG_TOPIC_WORKER, "the watchdog has no seccomp filter");
    while (!wait_a_second(watchdog)) {
        look(&dispatcher, dispatcher_progress(config->stats));
        look(&control, gemmd_counter_read(config->control_rounds));
    }
    return NULL;
}

int watchdog_open(struct watchdog **out, const struct watchdog_config *config)
{
    struct watchdog *watchdog;
    pthread_condattr_t attributes;
    int error;

    *out = NULL;
    if (config->limit_s == 0)
        return 0;
    watchdog = calloc(1, sizeof(*watchdog));
    if (!watchdog)
        return -ENOMEM;
    watchdog->config = *config;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&watchdog->mutex, NULL);
    pthread_cond_init(&watchdog->stop_asked, &attributes);
    pthread_condattr_destroy(&attributes);
    error = -pthread_create(&watchdog->thread, NULL, run, watchdog);
    if (error < 0) {
        free(watchdog);
        return error;
    }
    *out = watchdog;
    return 0;
}

void watchdog_close(struct watchdog **watchdog_p)
{
    struct watchdog *watchdog = *watchdog_p;

    if (!watchdog)
        return;
    pthread_mutex_lock(&watchdog->mutex);
    watchdog->stop = true;
    pthread_cond_signal(&watchdog->stop_asked);
    pthread_mutex_unlock(&watchdog->mutex);
    pthread_join(watchdog->thread, NULL);
    pthread_cond_destroy(&watchdog->stop_asked);
    pthread_mutex_destroy(&watchdog->mutex);
    free(watchdog);
    *watchdog_p = NULL;
}
