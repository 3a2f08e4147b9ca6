/*
 * A run: starts the sessions, leads them through its phases, reads the worker's counters around the
 * measured part, judges and reports.
 *
 * Sessions are forked before anything is connected, so that no child inherits a session; the parent
 * then connects first, control only, and is the one that may start a worker.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/stress.h"
#include "tools/stress_machine.h"

#define POLL_NS     UINT64_C(1000000)
#define PROGRESS_NS UINT64_C(250000000)
#define COMPLAINTS_SHOWN 8
#define SERIES_NS   UINT64_C(10000000)
/* Beyond what a session itself waits for a missing completion. */
#define STOP_NS_MAX UINT64_C(30000000000)

struct member {
    const struct stress_options *options;
    struct stress_shared *shared;
    uint32_t index;
    pid_t pid; /* 0: none, or reaped */
    pthread_t thread;
    bool threaded;
};

struct run {
    const struct stress_options *options;
    struct stress_shared *shared;
    size_t shared_bytes;
    struct member *members; /* [sessions] */
    struct gemmd *session;  /* control only */
    bool progress_shown;
    uint64_t shown_ns, shown_jobs;
};

int stress_exit_status(int error)
{
    switch (error) {
    case -ECONNREFUSED:
    case -ECONNRESET:
    case -EACCES:
    case -EPROTO:
    case -EPROTONOSUPPORT:
    case -EAGAIN:
    case -ETIMEDOUT:
        return EX_UNAVAILABLE;
    default:
        return EX_SOFTWARE;
    }
}

int stress_fail(const struct gemmd *session, int error)
{
    const char *text = gemmd_error_text(session);

    fprintf(stderr, "gemmd-stress: %s\n", *text ? text : gemmd_strerror(error));
    return stress_exit_status(error);
}

/* ---- the sessions ---------------------------------------------------------------------------- */

static void *run_member(void *argument)
{
    struct member *member = argument;

    stress_session_run(member->options, member->index, member->shared);
    return NULL;
}

static int start_member(struct member *member)
{
    pid_t parent = getpid();
    int error;

    if (member->options->threads) {
        error = pthread_create(&member->thread, NULL, run_member, member);
        member->threaded = error == 0;
        return -error;
    }
    member->pid = fork();
    if (member->pid < 0)
        return -errno;
    if (member->pid > 0)
        return 0;
    /* No session outlives its parent, whatever kills that; it may have died before the prctl. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(EX_SOFTWARE);
    run_member(member);
    _exit(0);
}

/* Notes how a session's process ended. */
static void note_end(struct member *member, int status)
{
    struct stress_result *result = &member->shared->results[member->index];

    member->pid = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return;
    if (!*result->error) {
        result->exit_status = EX_SOFTWARE;
        snprintf(result->error, sizeof(result->error), "its process ended with %s %d",
                 WIFSIGNALED(status) ? "signal" : "status",
                 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
    __atomic_store_n(&result->state, STRESS_STATE_FAILED, __ATOMIC_RELEASE);
}

/* Notes the processes that have ended; `wait`: until all have. */
static void reap_members(struct run *run, bool wait)
{
    uint32_t living = 0;
    pid_t pid = 1;
    int status;

    for (uint32_t i = 0; i < run->options->sessions; i++)
        living += run->members[i].pid > 0;
    while (living && pid > 0) {
        pid = waitpid(-1, &status, wait ? 0 : WNOHANG);
        for (uint32_t i = 0; i < run->options->sessions; i++)
            if (pid > 0 && run->members[i].pid == pid) {
                note_end(&run->members[i], status);
                living--;
            }
    }
}

static enum stress_state state_of(const struct run *run, uint32_t index)
{
    return __atomic_load_n(&run->shared->results[index].state, __ATOMIC_ACQUIRE);
}

/* Sessions that have reached `state` or failed. */
static uint32_t count_reached(struct run *run, enum stress_state state)
{
    uint32_t count = 0;

    reap_members(run, false);
    for (uint32_t i = 0; i < run->options->sessions; i++)
        count += state_of(run, i) >= state;
    return count;
}

static bool any_failed(const struct run *run)
{
    for (uint32_t i = 0; i < run->options->sessions; i++)
        if (state_of(run, i) == STRESS_STATE_FAILED)
            return true;
    return false;
}

static void set_phase(struct run *run, enum stress_phase phase)
{
    __atomic_store_n(&run->shared->phase, phase, __ATOMIC_RELEASE);
    syscall(SYS_futex, &run->shared->phase, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Ends all sessions: in peace when they are done, by force otherwise. */
static void end_members(struct run *run, bool force)
{
    set_phase(run, STRESS_PHASE_CLOSE);
    for (uint32_t i = 0; i < run->options->sessions; i++) {
        if (run->members[i].threaded)
            pthread_join(run->members[i].thread, NULL);
        if (force && run->members[i].pid > 0)
            kill(run->members[i].pid, SIGKILL);
    }
    reap_members(run, true);
}

/* ---- the measured part ----------------------------------------------------------------------- */

static uint64_t jobs_so_far(const struct run *run)
{
    uint64_t jobs = 0;

    for (uint32_t i = 0; i < run->options->sessions; i++)
        jobs += __atomic_load_n(&run->shared->results[i].jobs_so_far, __ATOMIC_RELAXED);
    return jobs;
}

/* On a terminal only. */
static void show_progress(struct run *run, uint64_t elapsed_ns)
{
    uint64_t jobs = jobs_so_far(run);
    double seconds = (double)(elapsed_ns - run->shown_ns) / 1e9;

    if (!isatty(STDERR_FILENO))
        return;
    fprintf(stderr, "\r%.1f s  %llu jobs  %.0f jobs/s \033[K", (double)elapsed_ns / 1e9,
            (unsigned long long)jobs, (double)(jobs - run->shown_jobs) / seconds);
    run->shown_jobs = jobs;
    run->shown_ns = elapsed_ns;
    run->progress_shown = true;
}

/* A point of the rate over time; a full table keeps every other one. */
static void note_series(struct run *run, struct stress_series *series, uint64_t elapsed_ns)
{
    if (elapsed_ns < series->count * series->period_ns)
        return;
    if (series->count == STRESS_SERIES_MAX) {
        for (uint32_t i = 0; i < STRESS_SERIES_MAX / 2; i++) {
            series->seconds[i] = series->seconds[2 * i];
            series->jobs[i] = series->jobs[2 * i];
        }
        series->count /= 2;
        series->period_ns *= 2;
    }
    series->seconds[series->count] = (double)elapsed_ns / 1e9;
    series->jobs[series->count++] = jobs_so_far(run);
}

/* From the first job to the last.  False when sessions had to be given up. */
static bool measure(struct run *run, struct stress_series *series)
{
    uint32_t sessions = run->options->sessions;
    uint64_t start_ns = stress_now_ns(), shown_ns = start_ns, stop_ns = 0;
    double seconds_ns = run->options->seconds * 1e9;

    series->period_ns = SERIES_NS;
    set_phase(run, STRESS_PHASE_RUN);
    while (count_reached(run, STRESS_STATE_DONE) < sessions) {
        uint64_t now_ns = stress_now_ns();

        if (!stop_ns && ((seconds_ns > 0 && (double)(now_ns - start_ns) >= seconds_ns) ||
                         any_failed(run))) {
            set_phase(run, STRESS_PHASE_STOP);
            stop_ns = now_ns;
        }
        if (stop_ns && now_ns - stop_ns > STOP_NS_MAX)
            break;
        if (!stop_ns)
            note_series(run, series, now_ns - start_ns);
        if (now_ns - shown_ns >= PROGRESS_NS) {
            show_progress(run, now_ns - start_ns);
            shown_ns = now_ns;
        }
        stress_sleep_ns(POLL_NS);
    }
    if (run->progress_shown)
        fputs("\r\033[K", stderr);
    return count_reached(run, STRESS_STATE_DONE) == sessions;
}

static void sum_results(struct stress_summary *summary)
{
    uint64_t start_ns = UINT64_MAX, end_ns = 0;

    for (uint32_t i = 0; i < summary->options->sessions; i++) {
        const struct stress_result *result = &summary->results[i];

        summary->jobs += result->jobs;
        summary->failed += result->failed;
        summary->wrong += result->wrong;
        summary->missing += result->missing;
        summary->unexpected += result->unexpected;
        summary->doorbells += result->doorbells;
        summary->sleeps += result->sleeps;
        summary->syscalls += result->syscalls;
        summary->operations += result->operations;
        stress_latency_merge(&summary->latency, &result->latency);
        start_ns = result->start_ns < start_ns ? result->start_ns : start_ns;
        end_ns = result->end_ns > end_ns ? result->end_ns : end_ns;
    }
    summary->rescues = summary->after.rescues - summary->before.rescues;
    summary->seconds = end_ns > start_ns ? (double)(end_ns - start_ns) / 1e9 : 0;
}

/* The first complaint decides the exit status; rescues and an unmet quota are complaints of ours.
 */
static int judge(const struct stress_summary *summary)
{
    const struct stress_options *options = summary->options;
    uint32_t complaints = 0;
    int status = EX_OK;

    for (uint32_t i = 0; i < options->sessions; i++) {
        const struct stress_result *result = &summary->results[i];

        if (!*result->error)
            continue;
        if (complaints++ < COMPLAINTS_SHOWN)
            fprintf(stderr, "gemmd-stress: session %u: %s\n", i, result->error);
        if (status == EX_OK || result->exit_status == STRESS_EXIT_WRONG)
            status = (int)result->exit_status;
    }
    if (complaints > COMPLAINTS_SHOWN)
        fprintf(stderr, "gemmd-stress: and %u sessions more\n", complaints - COMPLAINTS_SHOWN);
    if (summary->rescues) {
        fprintf(stderr, "gemmd-stress: %llu rescues: lost wake-ups\n",
                (unsigned long long)summary->rescues);
        status = STRESS_EXIT_WRONG;
    }
    if (summary->wrong || summary->failed || summary->missing || summary->unexpected)
        return STRESS_EXIT_WRONG;
    if (status == EX_OK && (summary->jobs == 0 || (options->jobs && options->seconds == 0 &&
                                                   summary->jobs != options->jobs))) {
        fprintf(stderr, "gemmd-stress: %llu jobs done, %llu wanted\n",
                (unsigned long long)summary->jobs, (unsigned long long)options->jobs);
        return STRESS_EXIT_WRONG;
    }
    return status;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int connect_control(struct run *run)
{
    struct gemmd_options options;
    struct gemmd_info info;
    int error;

    gemmd_options_init(&options);
    options.timeout_ms = STRESS_TIMEOUT_MS;
    options.socket = run->options->socket;
    options.control_only = 1;
    error = gemmd_connect(&options, &run->session);
    if (error < 0)
        return stress_fail(NULL, error);
    error = gemmd_get_info(run->session, &info);
    if (error < 0)
        return stress_fail(run->session, error);
    memcpy(run->shared->socket, info.socket, sizeof(run->shared->socket));
    return EX_OK;
}

static int read_worker(struct run *run, struct stress_summary *summary, struct gemmd_stats *stats)
{
    int error = gemmd_get_info(run->session, &summary->info);

    if (!error)
        error = gemmd_get_stats(run->session, stats);
    return error < 0 ? stress_fail(run->session, error) : EX_OK;
}

static int report(struct stress_summary *summary)
{
    int status = judge(summary);

    summary->passed = status == EX_OK;
    if (!summary->options->json)
        stress_report_text(summary);
    else if (stress_report_json(summary) < 0)
        return EX_SOFTWARE;
    if (summary->options->hgrm && stress_write_hgrm(summary) != EX_OK && status == EX_OK)
        status = EX_CANTCREAT;
    if (summary->options->plot && stress_write_plot(summary) != EX_OK && status == EX_OK)
        status = EX_CANTCREAT;
    return status;
}

/* Connects, runs, reports.  *ended tells that all sessions are at their end. */
static int lead(struct run *run, struct stress_summary *summary, bool *ended)
{
    int status = connect_control(run);

    if (status)
        return status;
    set_phase(run, STRESS_PHASE_CONNECT);
    while (count_reached(run, STRESS_STATE_READY) < run->options->sessions)
        stress_sleep_ns(POLL_NS);
    status = read_worker(run, summary, &summary->before);
    if (status)
        return status;
    if (any_failed(run)) {
        status = judge(summary);
        set_phase(run, STRESS_PHASE_STOP); /* those that are ready end without a job */
        return status ? status : EX_SOFTWARE;
    }
    *ended = measure(run, &summary->series);
    /* A worker that died is the sessions' complaint; what is left of its counters is reported. */
    if (read_worker(run, summary, &summary->after) != EX_OK)
        summary->after = summary->before;
    sum_results(summary);
    status = report(summary);
    return !status && !*ended ? EX_SOFTWARE : status;
}

static int open_run(struct run *run)
{
    uint32_t sessions = run->options->sessions;
    int error = 0;

    run->shared_bytes = sizeof(*run->shared) + 128 + sessions * sizeof(struct stress_result);
    run->shared = mmap(NULL, run->shared_bytes, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (run->shared == MAP_FAILED) {
        run->shared = NULL;
        return -errno;
    }
    run->members = calloc(sessions, sizeof(*run->members));
    if (!run->members)
        return -ENOMEM;
    for (uint32_t i = 0; i < sessions && !error; i++) {
        run->members[i].options = run->options;
        run->members[i].shared = run->shared;
        run->members[i].index = i;
        error = start_member(&run->members[i]);
    }
    return error;
}

int stress_run(const struct stress_options *options)
{
    struct run run = {.options = options};
    struct stress_summary *summary = calloc(1, sizeof(*summary));
    bool ended = false;
    int error, status = EX_SOFTWARE;

    stress_ns_per_tick(); /* once for all sessions */
    stress_raise_files_limit();
    error = summary ? open_run(&run) : -ENOMEM;
    if (error < 0) {
        fprintf(stderr, "gemmd-stress: cannot start the sessions: %s\n", strerror(-error));
        ended = options->threads; /* threads cannot be killed: they end by themselves */
    } else {
        summary->options = options;
        summary->results = run.shared->results;
        status = lead(&run, summary, &ended);
    }
    if (run.members)
        end_members(&run, !ended);
    gemmd_close(&run.session);
    free(run.members);
    if (run.shared)
        munmap(run.shared, run.shared_bytes);
    free(summary);
    return status;
}
