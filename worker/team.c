/*
 * The one shared word is the ticket (ticket.h).  A claim is a compare-and-swap of it, so it
 * succeeds only in the region whose work the thread has read before.  The caller closes a region by
 * taking the ticket away, and runs what is left of the group it finds there, so that the first
 * chunks are done; what others had claimed by then is waited for through `done`.
 *
 *   open    work fields, done = 0     → ticket (release) → fence → look at `parked`
 *   thread  ticket (acquire) → work fields → claim → run → done (release)
 *   close   exchange of the ticket → done (acquire) == claimed
 *   park    parked + 1 → fence → look at the ticket → futex      (Dekker with "open")
 */
#include "worker/team.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proto/ring.h"
#include "worker/clock.h"
#include "worker/sandbox.h"
#include "worker/ticket.h"
#include "worker/topology.h"

/* Looks at the ticket between two looks at the clock, and on a crowded CPU. */
#define SPIN_LOOKS         32
#define SPIN_LOOKS_CROWDED 8
/* Shorter spins than a wake-up of the neighbour's cache line are none. */
#define SPIN_NS_MIN UINT64_C(1000)
/* Two looks at the clock this far apart: somebody else ran here.  A client that shares the CPU is
 * what the next job comes from, so for a while the thread offers its CPU between its looks.  It
 * does not park instead: in a virtual machine a wake-up of another CPU takes the waker 15 us, and
 * the CPU 40 us if it was idle, which would be paid for the client and for the thread. */
#define PREEMPTED_NS UINT64_C(2000)
#define CROWDED_NS   UINT64_C(1000000)

struct member {
    struct team *team;
    pthread_t thread;
    pid_t tid;
    int cpu;
    uint32_t place;
    int start_error;
    _Atomic uint32_t away; /* futex; 1: its CPU is gone, and it sits out */
    struct gemmd_core_stats *core;
    uint64_t spin_ns, crowded_until_ns, since_ns;
};

struct team {
    alignas(64) _Atomic uint64_t ticket;
    _Atomic(team_work_fn *) run;
    _Atomic(void *) argument;
    _Atomic uint32_t chunk_count;
    alignas(64) _Atomic uint32_t done;
    _Atomic uint64_t busy_ns; /* of the region, the caller excepted */
    alignas(64) _Atomic uint32_t parked;
    _Atomic uint32_t wake_word; /* futex */
    _Atomic bool stop;
    sem_t started;
    uint32_t region;
    uint64_t wakes;
    struct team_config config;
    uint32_t width; /* chunks of a group */
    uint32_t member_count;
    struct member members[];
};

/* ---- the threads ----------------------------------------------------------------------------- */

/* Claims and runs one chunk.  False: there is none. */
static bool work_once(struct member *member)
{
    struct team *team = member->team;
    uint64_t ticket = atomic_load_explicit(&team->ticket, memory_order_acquire); /* open */
    team_work_fn *run = atomic_load_explicit(&team->run, memory_order_relaxed);
    void *argument = atomic_load_explicit(&team->argument, memory_order_relaxed);
    uint32_t chunk_count = atomic_load_explicit(&team->chunk_count, memory_order_relaxed), chunk;
    uint64_t after, start_ns, end_ns;

    if (!ticket_claim(ticket, team->width, member->place, chunk_count, &chunk, &after))
        return false;
    if (!atomic_compare_exchange_strong_explicit(&team->ticket, &ticket, after,
                                                 memory_order_acquire, memory_order_relaxed))
        return true; /* another was faster; look again */
    start_ns = clock_now_ns();
    run(argument, chunk);
    end_ns = clock_now_ns();
    gemmd_counter_add(&member->core->spin_ns, start_ns - member->since_ns);
    gemmd_counter_add(&member->core->busy_ns, end_ns - start_ns);
    member->since_ns = end_ns;
    /* Work comes: the next pause is worth a longer spin. */
    if (member->spin_ns < team->config.spin_ns)
        member->spin_ns = member->spin_ns * 2 < team->config.spin_ns ? member->spin_ns * 2
                                                                     : team->config.spin_ns;
    atomic_fetch_add_explicit(&team->busy_ns, end_ns - start_ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&team->done, 1, memory_order_release); /* pairs with close */
    return true;
}

static bool has_work(struct team *team)
{
    uint64_t ticket = atomic_load_explicit(&team->ticket, memory_order_acquire);

    return ticket_first(ticket, team->width) <
               atomic_load_explicit(&team->chunk_count, memory_order_relaxed) ||
           atomic_load_explicit(&team->stop, memory_order_relaxed);
}

/* True: work has come.  False: the spin has lasted long enough. */
static bool spin(struct member *member)
{
    uint64_t start_ns = clock_now_ns(), now_ns = start_ns;

    while (now_ns - start_ns < member->spin_ns) {
        bool crowded = now_ns < member->crowded_until_ns;
        uint64_t last_ns = now_ns;

        for (int i = crowded ? SPIN_LOOKS_CROWDED : SPIN_LOOKS; i; i--) {
            if (has_work(member->team))
                return true;
            gemmd_cpu_relax();
        }
        if (crowded)
            sched_yield();
        now_ns = clock_now_ns();
        if (now_ns - last_ns > PREEMPTED_NS)
            member->crowded_until_ns = now_ns + CROWDED_NS;
    }
    /* In vain: shorter next time. */
    member->spin_ns = member->spin_ns / 2 > SPIN_NS_MIN ? member->spin_ns / 2 : SPIN_NS_MIN;
    return false;
}

static void park(struct member *member)
{
    struct team *team = member->team;
    uint64_t max_ns = team->config.spin_ns, start_ns, end_ns;
    uint32_t seen = atomic_load_explicit(&team->wake_word, memory_order_acquire);

    /* Sequentially consistent, as is the caller's store of the ticket and its load of `parked`. */
    atomic_fetch_add(&team->parked, 1);
    start_ns = clock_now_ns();
    gemmd_counter_add(&member->core->spin_ns, start_ns - member->since_ns);
    if (ticket_first(atomic_load(&team->ticket), team->width) >=
            atomic_load_explicit(&team->chunk_count, memory_order_relaxed) &&
        !atomic_load(&team->stop))
        syscall(SYS_futex, &team->wake_word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&team->parked, 1);
    end_ns = clock_now_ns();
    gemmd_counter_add(&member->core->sleep_ns, end_ns - start_ns);
    member->since_ns = end_ns;
    /* A spin not much longer would have met the work. */
    if (end_ns - start_ns < 2 * max_ns)
        member->spin_ns = member->spin_ns * 4 < max_ns ? member->spin_ns * 4 : max_ns;
}

/* Wherever the kernel has put it meanwhile, it would be one thread too many. */
static void sit_out(struct member *member)
{
    uint64_t start_ns = clock_now_ns();

    gemmd_counter_add(&member->core->spin_ns, start_ns - member->since_ns);
    syscall(SYS_futex, &member->away, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
    member->since_ns = clock_now_ns();
    gemmd_counter_add(&member->core->sleep_ns, member->since_ns - start_ns);
}

static void *run_member(void *argument)
{
    struct member *member = argument;
    struct team *team = member->team;
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    CPU_SET(member->cpu, &cpus);
    pthread_setname_np(pthread_self(), "gemmd-team");
    member->tid = (pid_t)syscall(SYS_gettid);
    member->start_error = topology_pin_thread(&cpus);
    if (member->start_error == 0)
        member->start_error = sandbox_enter(SANDBOX_DISPATCHER);
    member->since_ns = clock_now_ns();
    sem_post(&team->started);
    while (!atomic_load_explicit(&team->stop, memory_order_acquire))
        if (atomic_load_explicit(&member->away, memory_order_relaxed))
            sit_out(member);
        else if (!work_once(member) && !spin(member))
            park(member);
    return NULL;
}

/* ---- the caller ------------------------------------------------------------------------------ */

static void wake_parked(struct team *team, uint32_t count)
{
    atomic_fetch_add_explicit(&team->wake_word, 1, memory_order_release);
    syscall(SYS_futex, &team->wake_word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
    team->wakes++;
}

static void open_region(struct team *team, const struct team_work *work)
{
    atomic_store_explicit(&team->run, work->run, memory_order_relaxed);
    atomic_store_explicit(&team->argument, work->argument, memory_order_relaxed);
    atomic_store_explicit(&team->chunk_count, work->chunk_count, memory_order_relaxed);
    atomic_store_explicit(&team->done, 0, memory_order_relaxed);
    atomic_store_explicit(&team->busy_ns, 0, memory_order_relaxed);
    assert(work->chunk_count <= TICKET_CHUNKS_MAX);
    team->region++;
    atomic_store(&team->ticket, ticket_open(team->region));
    if (work->wake && atomic_load(&team->parked))
        wake_parked(team, work->chunk_count - 1);
}

static void run_own(const struct team_work *work, uint32_t chunk)
{
    (work->run_own ? work->run_own : work->run)(work->argument, chunk);
}

/* The caller's chunks.  Returns the end of the last one. */
static uint64_t work_along(struct team *team, const struct team_work *work)
{
    uint64_t now_ns = work->start_ns;

    for (;;) {
        uint64_t ticket = atomic_load_explicit(&team->ticket, memory_order_relaxed), after;
        uint32_t chunk;

        do
            if (!ticket_claim(ticket, team->width, 0, work->chunk_count, &chunk, &after))
                return now_ns;
        while (!atomic_compare_exchange_weak_explicit(&team->ticket, &ticket, after,
                                                      memory_order_relaxed, memory_order_relaxed));
        run_own(work, chunk);
        now_ns = clock_now_ns();
        atomic_fetch_add_explicit(&team->done, 1, memory_order_relaxed);
        if (work->stop(work->argument))
            return now_ns;
    }
}

/* Takes the ticket away and runs what is left of its group.  Returns the chunks that are claimed
 * then, all of the first ones; *now_ns: the end of the last of the caller's. */
static uint32_t close_region(struct team *team, const struct team_work *work, uint64_t *now_ns)
{
    uint64_t ticket = atomic_exchange(&team->ticket, ticket_closed(team->region));
    uint32_t first = ticket_first(ticket, team->width), taken = ticket_taken(ticket), places;

    if (first >= work->chunk_count)
        return work->chunk_count;
    if (!taken)
        return first;
    places = ticket_places(first, team->width, work->chunk_count);
    for (uint32_t left = places & ~taken; left; left &= left - 1) {
        run_own(work, first + (uint32_t)__builtin_ctz(left));
        atomic_fetch_add_explicit(&team->done, 1, memory_order_relaxed);
    }
    *now_ns = clock_now_ns();
    return first + (uint32_t)__builtin_popcount(places);
}

/* Without touching what the others look at. */
static void run_alone(const struct team_work *work, struct team_result *out)
{
    uint32_t done = 0;

    do
        run_own(work, done++);
    while (done < work->chunk_count && !work->stop(work->argument));
    out->chunks = done;
    out->end_ns = clock_now_ns();
    out->compute_ns = out->end_ns - work->start_ns;
    out->shared = false;
}

void team_run(struct team *team, const struct team_work *work, struct team_result *out)
{
    uint64_t others_ns;
    uint32_t claimed;

    if (team->member_count == 0 || work->chunk_count < 2 || !work->share) {
        run_alone(work, out);
        return;
    }
    open_region(team, work);
    out->end_ns = work_along(team, work);
    claimed = close_region(team, work, &out->end_ns);
    while (atomic_load_explicit(&team->done, memory_order_acquire) != claimed)
        gemmd_cpu_relax();
    others_ns = atomic_load_explicit(&team->busy_ns, memory_order_relaxed);
    out->compute_ns = out->end_ns - work->start_ns + others_ns;
    out->end_ns = clock_now_ns();
    out->chunks = claimed;
    out->shared = others_ns != 0;
}

uint32_t team_size(const struct team *team)
{
    return team->member_count + 1;
}

uint64_t team_wakes(const struct team *team)
{
    return team->wakes;
}

static void send_away(struct member *member, bool away)
{
    if (atomic_exchange(&member->away, away) && !away)
        syscall(SYS_futex, &member->away, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

int team_repin(struct team *team)
{
    int mended = 0, error = 0;

    for (uint32_t i = 0; i < team->member_count; i++) {
        int result = topology_repin(team->members[i].tid, team->members[i].cpu);

        send_away(&team->members[i], result < 0);
        if (result < 0)
            error = result;
        else
            mended += result;
    }
    return error ? error : mended;
}

/* ---- open and close -------------------------------------------------------------------------- */

static int start_member(struct team *team, int cpu)
{
    struct member *member = &team->members[team->member_count];
    int error;

    *member = (struct member){.team = team,
                              .cpu = cpu,
                              .place = (team->member_count + 1) % team->width,
                              .core = &team->config.cores[team->member_count],
                              .spin_ns = SPIN_NS_MIN};
    member->core->cpu = (uint64_t)cpu;
    error = -pthread_create(&member->thread, NULL, run_member, member);
    if (error)
        return error;
    team->member_count++;
    while (sem_wait(&team->started) < 0)
        ; /* EINTR only */
    return member->start_error;
}

int team_open(struct team **out, const struct team_config *config)
{
    size_t count = (size_t)CPU_COUNT(&config->cpus);
    size_t bytes = (sizeof(struct team) + count * sizeof(struct member) + 63) & ~(size_t)63;
    struct team *team = aligned_alloc(64, bytes);
    int error = 0;

    *out = NULL;
    if (!team)
        return -ENOMEM;
    *team = (struct team){.config = *config, .width = TICKET_PLACES_MAX};
    if (count + 1 < TICKET_PLACES_MAX)
        team->width = (uint32_t)count + 1;
    atomic_store(&team->ticket, ticket_closed(0));
    sem_init(&team->started, 0, 0);
    for (int cpu = 0; cpu < CPU_SETSIZE && error == 0; cpu++)
        if (CPU_ISSET(cpu, &config->cpus))
            error = start_member(team, cpu);
    if (error < 0)
        team_close(&team);
    *out = team;
    return error;
}

void team_close(struct team **team_p)
{
    struct team *team = *team_p;

    if (!team)
        return;
    atomic_store(&team->stop, true);
    wake_parked(team, INT_MAX);
    for (uint32_t i = 0; i < team->member_count; i++)
        send_away(&team->members[i], false);
    for (uint32_t i = 0; i < team->member_count; i++)
        pthread_join(team->members[i].thread, NULL);
    sem_destroy(&team->started);
    free(team);
    *team_p = NULL;
}
