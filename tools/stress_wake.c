/*
 * gemmd-stress --transport: waking a worker that sleeps, beside a thread that sleeps in a plain
 * futex on the same CPU; and what a worker costs that has nothing to do.
 *
 * Both are timed from the first store to the answer seen in this thread, which spins: the wake-up
 * and one transfer back.  Samples alternate, each after a pause in which the worker has gone to
 * sleep; a sample counts only when the doorbell was really rung.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tools/stress_machine.h"
#include "tools/stress_transport.h"

#define SAMPLES 200
/* Longer than the worker's default spin; this CPU stays awake meanwhile. */
#define PAUSE_NS     UINT64_C(250000)
#define IDLE_NS      UINT64_C(2000000000)

/* One writer per line. */
struct sleeper {
    uint32_t word __attribute__((aligned(128)));
    uint32_t answer __attribute__((aligned(128)));
    uint32_t cpu __attribute__((aligned(128)));
    int error;
};

#define WORD_END UINT32_MAX

static void *sleep_and_answer(void *argument)
{
    struct sleeper *sleeper = argument;
    uint32_t seen = 0, word;

    sleeper->error = stress_pin(sleeper->cpu);
    for (;;) {
        while ((word = __atomic_load_n(&sleeper->word, __ATOMIC_ACQUIRE)) == seen)
            syscall(SYS_futex, &sleeper->word, FUTEX_WAIT, seen, NULL, NULL, 0);
        if (word == WORD_END)
            return NULL;
        seen = word;
        __atomic_store_n(&sleeper->answer, word, __ATOMIC_RELEASE);
    }
}

static void wake(struct sleeper *sleeper, uint32_t word)
{
    __atomic_store_n(&sleeper->word, word, __ATOMIC_RELEASE);
    syscall(SYS_futex, &sleeper->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void pause_awake(void)
{
    uint64_t start_ns = stress_now_ns();

    while (stress_now_ns() - start_ns < PAUSE_NS)
        ;
}

static void time_futex(struct sleeper *sleeper, uint32_t word, struct stress_latency *out)
{
    uint64_t start = stress_ticks();

    wake(sleeper, word);
    while (__atomic_load_n(&sleeper->answer, __ATOMIC_ACQUIRE) != word)
        ;
    stress_latency_add(out, (uint64_t)((double)(stress_ticks() - start) * stress_ns_per_tick()));
}

/* 0, or -errno after a message. */
static int time_job(struct gemmd *session, const struct gemmd_job *job, struct transport_wake *out)
{
    uint64_t start = stress_ticks(), start_ns = stress_now_ns();
    struct gemmd_completion done = {0};
    int rang, got = gemmd_submit(session, job, 1);

    if (got == 1) {
        rang = gemmd_flush(session);
        while ((got = gemmd_poll(session, &done, 1)) == 0)
            if (stress_now_ns() - start_ns > TRANSPORT_COMPLETION_NS_MAX)
                break;
        if (rang == 1)
            stress_latency_add(&out->job, (uint64_t)((double)(stress_ticks() - start) *
                                                     stress_ns_per_tick()));
    }
    if (got == 1 && done.status == 0)
        return 0;
    fprintf(stderr, "gemmd-stress: a job that wakes the worker: %d completions, status %s: %s\n",
            got, gemmd_status_name(done.status), gemmd_error_text(session));
    return got < 0 ? got : -EIO;
}

int transport_measure_wake(struct gemmd *session, const struct gemmd_job *job, uint32_t worker_cpu,
                           struct transport_wake *out)
{
    struct sleeper *sleeper = aligned_alloc(128, sizeof(*sleeper));
    pthread_t thread;
    int error = -ENOMEM;

    memset(out, 0, sizeof(*out));
    if (!sleeper)
        return error;
    memset(sleeper, 0, sizeof(*sleeper));
    sleeper->cpu = worker_cpu;
    error = -pthread_create(&thread, NULL, sleep_and_answer, sleeper);
    for (uint32_t i = 1; i <= SAMPLES && !error; i++) {
        pause_awake();
        time_futex(sleeper, i, &out->futex);
        pause_awake();
        error = time_job(session, job, out);
    }
    if (out->futex.count) {
        wake(sleeper, WORD_END);
        pthread_join(thread, NULL);
        if (!error && sleeper->error) {
            error = sleeper->error;
            fprintf(stderr, "gemmd-stress: cannot run on the worker's CPU %u: %s\n", worker_cpu,
                    strerror(-error));
        }
    }
    free(sleeper);
    return error;
}

/* ---- idle ------------------------------------------------------------------------------------ */

/* CPU time of all threads; /proc/PID/stat would count in ticks of 10 ms.  False: not to be had. */
static bool read_cpu_ns(uint32_t pid, uint64_t *out)
{
    char path[64 + sizeof(((struct dirent *)NULL)->d_name)];
    const struct dirent *entry;
    DIR *tasks;
    bool found = false;

    *out = 0;
    snprintf(path, sizeof(path), "/proc/%" PRIu32 "/task", pid);
    tasks = opendir(path);
    while (tasks && (entry = readdir(tasks)) != NULL) {
        FILE *file;
        uint64_t ns;

        if (*entry->d_name == '.')
            continue;
        snprintf(path, sizeof(path), "/proc/%" PRIu32 "/task/%s/schedstat", pid, entry->d_name);
        file = fopen(path, "re");
        if (!file)
            continue;
        if (fscanf(file, "%" SCNu64, &ns) == 1) {
            *out += ns;
            found = true;
        }
        fclose(file);
    }
    if (tasks)
        closedir(tasks);
    return found;
}

double transport_measure_idle(uint32_t pid)
{
    uint64_t before, after, start_ns;

    if (!read_cpu_ns(pid, &before))
        return -1;
    start_ns = stress_now_ns();
    stress_sleep_ns(IDLE_NS);
    if (!read_cpu_ns(pid, &after))
        return -1;
    return 100.0 * (double)(after - before) / (double)(stress_now_ns() - start_ns);
}
