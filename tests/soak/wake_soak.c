/*
 * Soak of the two wake-ups over the code of proto/ring.h: a client and a worker that never spin for
 * long, sleep after nearly every job, and are delayed at random at every step.  Sleeping is real:
 * poll on an eventfd, futex in shared memory.
 *
 * A lost wake-up shows as a sleeper whose timeout finds that what it waits for is there, and whom
 * nobody wakes in a long grace period either (so that a peer that was only descheduled between its
 * store and its ring is not mistaken for one that forgot it).  Such a rescue must never happen.
 *
 * Before it publishes, each side writes rows to memory that is in no cache, as real ones do: on x86
 * the stores wait in the store buffer, in order, and with them the word just published.  That is
 * the window that the fences close.  In the mutants (-DGEMMD_MUTANT_NO_CLIENT_FENCE,
 * -DGEMMD_MUTANT_NO_WORKER_FENCE) it is open in both directions, and --expect-stall fails unless
 * both the worker and the client were seen to miss a wake-up.
 */
#include <errno.h>
#include <getopt.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proto/ring.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define ENTRIES      8
#define TIMEOUT_MS   100
#define GRACE_MS     1000
#define RING_START   (UINT32_MAX - 2)
#define COLD_BYTES   (UINT64_C(64) << 20)

struct shared {
    _Alignas(64) uint64_t sq[ENTRIES * GEMMD_SQE_WORDS];
    _Alignas(64) uint64_t cq[ENTRIES * GEMMD_CQE_WORDS];
    _Alignas(64) struct gemmd_client_line client_line;
    _Alignas(64) struct gemmd_doorbell_line doorbell;
    _Alignas(64) struct gemmd_worker_line worker_line;
    /* Counters, each with one writer. */
    _Alignas(64) uint64_t client_sleeps, client_rescues, doorbells, faults;
    _Alignas(64) uint64_t worker_sleeps, worker_rescues, wakes;
    _Alignas(64) uint32_t stop;
};

/* One process's or thread's own. */
struct side {
    struct shared *shared;
    struct gemmd_ring_end sq, cq;
    int kick_fd;
    int cpu; /* -1: anywhere */
    uint64_t random;
    char *cold;
};

static struct {
    uint64_t jobs, seed, seconds;
    bool threads, same_cpu, expect_stall;
} options = {.jobs = 150000, .seconds = 60};

/* ---- chance ---------------------------------------------------------------------------------- */

static uint64_t random_u64(struct side *side) /* splitmix64 */
{
    uint64_t z = side->random += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Mostly nothing, at times up to some microseconds, rarely the CPU is given away. */
static void delay(struct side *side)
{
    uint64_t r = random_u64(side);

    if (r % 4096 == 0)
        sched_yield();
    if (r >> 12 & 3)
        return;
    for (uint64_t n = (r >> 16) % ((r >> 32 & 7) ? 8 : 128); n > 0; n--)
        gemmd_cpu_relax();
}

/* Stores that miss every cache: they keep those behind them from being seen. */
static void write_rows(struct side *side)
{
    uint64_t r = random_u64(side);

    if (r & 1)
        return;
    for (uint64_t n = r >> 8 & 63; n > 0; n--)
        side->cold[random_u64(side) % COLD_BYTES] = (char)n;
}

static void count(uint64_t *counter)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
}

static bool stopped(const struct shared *shared)
{
    return gemmd_load_acquire(&shared->stop);
}

static void take_place(struct side *side)
{
    cpu_set_t cpus;

    if (side->cpu < 0)
        return;
    CPU_ZERO(&cpus);
    CPU_SET((size_t)side->cpu, &cpus);
    sched_setaffinity(0, sizeof(cpus), &cpus);
}

/* ---- worker ---------------------------------------------------------------------------------- */

/* Waits for a kick; true when there was one. */
static bool poll_kick(struct side *side, int timeout_ms)
{
    struct pollfd pollfd = {.fd = side->kick_fd, .events = POLLIN};
    uint64_t kicks;

    return poll(&pollfd, 1, timeout_ms) == 1 && read(side->kick_fd, &kicks, 8) == 8;
}

/* The client's part of edge D is what is tested: a job in the ring without a kick. */
static void worker_sleep(struct side *side, uint32_t *epoch)
{
    struct shared *shared = side->shared;

    write_rows(side);
    delay(side);
    gemmd_doorbell_arm(&shared->doorbell, epoch);
    GEMMD_WORKER_FENCE();
    if (!gemmd_sq_ready(&side->sq) && !stopped(shared)) {
        count(&shared->worker_sleeps);
        delay(side);
        if (!poll_kick(side, TIMEOUT_MS) && gemmd_sq_ready(&side->sq) && !poll_kick(side, GRACE_MS))
            count(&shared->worker_rescues);
    }
    delay(side);
    gemmd_doorbell_disarm(&shared->doorbell);
}

static void wake_client(struct side *side, uint32_t *last_woken)
{
    struct shared *shared = side->shared;

    if (!gemmd_wake_wanted(&shared->client_line, side->cq.index, &shared->worker_line, last_woken))
        return;
    delay(side);
    syscall(SYS_futex, &shared->worker_line.cq_futex, FUTEX_WAKE, 1, NULL, NULL, 0);
    count(&shared->wakes);
}

static void *run_worker(void *argument)
{
    struct side *side = argument;
    struct shared *shared = side->shared;
    uint32_t head_seen = side->cq.index, epoch = 0, last_woken = 0;

    take_place(side);
    while (!stopped(shared)) {
        struct gemmd_sqe sqe;
        uint32_t completed = 0;

        while (gemmd_sq_take(&side->sq, &sqe)) {
            struct gemmd_cqe cqe = {.user_data = sqe.user_data};

            delay(side);
            write_rows(side);
            if (gemmd_cq_space(&side->cq, &head_seen, &shared->client_line) <= 0)
                abort(); /* the client's flow control is ours, too */
            gemmd_cq_push(&side->cq, &cqe);
            completed++;
        }
        if (completed)
            wake_client(side, &last_woken);
        else
            worker_sleep(side, &epoch);
    }
    return NULL;
}

/* ---- client ---------------------------------------------------------------------------------- */

/* False: not woken in time. */
static bool futex_wait(const struct shared *shared, uint32_t seen, int timeout_ms)
{
    const struct timespec timeout = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};

    return syscall(SYS_futex, &shared->worker_line.cq_futex, FUTEX_WAIT, seen, &timeout, NULL, 0) ==
               0 ||
           errno != ETIMEDOUT;
}

static void client_sleep(struct side *side, uint32_t *epoch)
{
    struct shared *shared = side->shared;
    uint32_t seen;

    write_rows(side);
    delay(side);
    seen = gemmd_wake_arm(&shared->client_line, epoch, &shared->worker_line, side->cq.index + 1);
    if (!gemmd_cq_ready(&side->cq)) {
        count(&shared->client_sleeps);
        delay(side);
        if (!futex_wait(shared, seen, TIMEOUT_MS) && gemmd_cq_ready(&side->cq) &&
            !futex_wait(shared, seen, GRACE_MS))
            count(&shared->client_rescues);
    }
    delay(side);
    gemmd_wake_disarm(&shared->client_line);
}

static void submit(struct side *side, uint64_t *submitted, uint64_t reaped, uint32_t *last_rung)
{
    const uint64_t one = 1;
    uint64_t batch = 1 + (random_u64(side) % 4 == 0 ? random_u64(side) % ENTRIES : 0);

    write_rows(side);
    for (; batch > 0 && *submitted - reaped < ENTRIES; batch--) {
        const struct gemmd_sqe sqe = {.op = GEMMD_OP_GEMM, .user_data = *submitted};

        delay(side);
        gemmd_sq_push(&side->sq, &sqe);
        ++*submitted;
    }
    if (!gemmd_doorbell_wanted(&side->shared->doorbell, last_rung))
        return;
    delay(side);
    count(&side->shared->doorbells);
    if (write(side->kick_fd, &one, sizeof(one)) != sizeof(one))
        abort();
}

static uint64_t now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec;
}

/* From none to longer than the worker's wake-up takes: only a client that sees its completion at
 * once submits while the worker is about to sleep. */
static const uint64_t spin_limits[] = {1, 512, 16384};

static uint64_t run_client(struct side *side)
{
    struct shared *shared = side->shared;
    uint64_t submitted = 0, reaped = 0, end_s = now_s() + options.seconds;
    uint32_t last_rung = 0, epoch = 0;
    bool done = false, progress = false;

    take_place(side);
    while (!done) {
        struct gemmd_cqe cqe;
        uint64_t spins = random_u64(side) % spin_limits[random_u64(side) % COUNT(spin_limits)];

        /* While it waits it submits nothing: that would ring again and hide a lost doorbell. */
        if (submitted == reaped || (progress && random_u64(side) % 4 == 0))
            submit(side, &submitted, reaped, &last_rung);
        while (spins-- && !gemmd_cq_ready(&side->cq))
            gemmd_cpu_relax();
        /* A mutant that has lost the one kind is looked at for the other. */
        if (!gemmd_cq_ready(&side->cq) && !(options.expect_stall && shared->client_rescues))
            client_sleep(side, &epoch);
        progress = false;
        while (gemmd_cq_take(&side->cq, &cqe)) {
            if (cqe.user_data != reaped++)
                count(&shared->faults);
            progress = true;
        }
        gemmd_cq_release(&side->cq, &shared->client_line);
        if (options.expect_stall)
            done = (shared->client_rescues &&
                    __atomic_load_n(&shared->worker_rescues, __ATOMIC_RELAXED)) ||
                   now_s() >= end_s;
        else
            done = reaped >= options.jobs;
    }
    gemmd_store_release(&shared->stop, 1);
    if (write(side->kick_fd, &(uint64_t){1}, sizeof(uint64_t)) != sizeof(uint64_t))
        abort();
    return reaped;
}

/* ---- the program ----------------------------------------------------------------------------- */

static struct shared *make_shared(void)
{
    struct shared *shared =
        mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    /* Near the wrap, so that indices pass it at once. */
    if (shared == MAP_FAILED)
        abort();
    for (uint32_t i = 0; i < ENTRIES; i++) {
        shared->sq[(i + 1) * GEMMD_SQE_WORDS - 1] = (uint64_t)RING_START << 32;
        shared->cq[(i + 1) * GEMMD_CQE_WORDS - 1] = (uint64_t)RING_START << 32;
    }
    shared->client_line.cq_head = RING_START;
    return shared;
}

static void set_up(struct side *side, struct shared *shared, int kick_fd, int cpu, uint64_t seed)
{
    side->shared = shared;
    side->sq = (struct gemmd_ring_end){shared->sq, ENTRIES - 1, RING_START};
    side->cq = (struct gemmd_ring_end){shared->cq, ENTRIES - 1, RING_START};
    side->kick_fd = kick_fd;
    side->cpu = cpu;
    side->random = seed;
    side->cold = mmap(NULL, COLD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (side->cold == MAP_FAILED)
        abort();
    memset(side->cold, 1, COLD_BYTES); /* no page faults later: they drain the store buffer */
}

/* The first two CPUs this process may use; how many there were. */
static int find_cpus(int cpus[2])
{
    cpu_set_t allowed;
    int found = 0;

    CPU_ZERO(&allowed);
    sched_getaffinity(0, sizeof(allowed), &allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++)
        if (CPU_ISSET((size_t)cpu, &allowed))
            cpus[found++] = cpu;
    return found;
}

/* Both sides, until the client is done; the jobs it reaped. */
static uint64_t run_both(struct side *client, struct side *worker)
{
    uint64_t reaped;
    pthread_t thread;
    pid_t pid;

    if (options.threads) {
        if (pthread_create(&thread, NULL, run_worker, worker) != 0)
            abort();
        reaped = run_client(client);
        pthread_join(thread, NULL);
        return reaped;
    }
    pid = fork();
    if (pid < 0)
        abort();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_worker(worker);
        _exit(0);
    }
    reaped = run_client(client);
    waitpid(pid, NULL, 0);
    return reaped;
}

static int judge(const struct shared *shared, uint64_t jobs)
{
    uint64_t rescues = shared->client_rescues + shared->worker_rescues;

    printf(
        "%llu jobs; worker slept %llu times and was rung %llu times; client slept %llu times and "
        "was woken %llu times; lost wake-ups: %llu of the worker, %llu of the client\n",
        (unsigned long long)jobs, (unsigned long long)shared->worker_sleeps,
        (unsigned long long)shared->doorbells, (unsigned long long)shared->client_sleeps,
        (unsigned long long)shared->wakes, (unsigned long long)shared->worker_rescues,
        (unsigned long long)shared->client_rescues);
    if (shared->faults)
        return printf("FAILED: completions out of order: %llu\n",
                      (unsigned long long)shared->faults),
               1;
    if (options.expect_stall) {
        if (shared->client_rescues && shared->worker_rescues)
            return 0;
        printf("FAILED: not both were lost within %llu s\n", (unsigned long long)options.seconds);
        return 1;
    }
    if (shared->worker_sleeps < options.jobs / 100 || shared->client_sleeps < options.jobs / 100)
        return printf("FAILED: they hardly slept, so nothing was tested\n"), 1;
    return rescues ? (printf("FAILED: a wake-up was lost\n"), 1) : 0;
}

static int parse(int argc, char **argv)
{
    static const struct option names[] = {{"jobs", required_argument, NULL, 'j'},
                                          {"seed", required_argument, NULL, 's'},
                                          {"seconds", required_argument, NULL, 'l'},
                                          {"threads", no_argument, NULL, 't'},
                                          {"same-cpu", no_argument, NULL, 'c'},
                                          {"expect-stall", no_argument, NULL, 'x'},
                                          {NULL, 0, NULL, 0}};
    int option;

    if (getentropy(&options.seed, sizeof(options.seed)) < 0)
        return -1;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        if (option == 'j')
            options.jobs = strtoull(optarg, NULL, 0);
        else if (option == 's')
            options.seed = strtoull(optarg, NULL, 0);
        else if (option == 'l')
            options.seconds = strtoull(optarg, NULL, 0);
        else if (option == 't')
            options.threads = true;
        else if (option == 'c')
            options.same_cpu = true;
        else if (option == 'x')
            options.expect_stall = true;
        else
            return -1;
    }
    return optind == argc ? 0 : -1;
}

int main(int argc, char **argv)
{
    struct shared *shared = make_shared();
    int kick_fd = eventfd(0, EFD_CLOEXEC);
    struct side client, worker;
    int cpus[2], cpu_count;

    if (parse(argc, argv) < 0 || kick_fd < 0) {
        fprintf(stderr,
                "usage: %s [--jobs N] [--seed N] [--threads] [--same-cpu]\n"
                "       %s --expect-stall [--seconds N] [--seed N]\n",
                argv[0], argv[0]);
        return 64;
    }
    cpu_count = find_cpus(cpus);
    if (cpu_count < 2 && options.expect_stall) {
        printf("SKIP: with one CPU a store is seen by the other side at once\n");
        return 77;
    }
    printf("seed 0x%llx\n", (unsigned long long)options.seed);
    fflush(stdout);
    set_up(&client, shared, kick_fd, cpu_count < 2 ? -1 : cpus[0], options.seed);
    set_up(&worker, shared, kick_fd, cpu_count < 2 ? -1 : cpus[options.same_cpu ? 0 : 1],
           ~options.seed);
    return judge(shared, run_both(&client, &worker));
}
