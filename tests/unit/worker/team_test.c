/* The team: every chunk once, ends early when told to, scales, and sleeps when idle. */
#include "tests/unit/worker/unit.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "tests/sanitizers.h"
#include "worker/clock.h"
#include "worker/team.h"
#include "worker/ticket.h"

enum { CHUNKS_MAX = 4096 };

struct load {
    uint32_t runs[CHUNKS_MAX];
    uint32_t total, stop_at; /* total: of the caller and the others */
    uint64_t spin_ns;        /* of a chunk */
};

static cpu_set_t allowed;
static struct gemmd_core_stats cores[GEMMD_STATS_CORES_MAX];

static void run(void *argument, uint32_t chunk)
{
    struct load *load = argument;
    uint64_t end_ns = load->spin_ns ? clock_now_ns() + load->spin_ns : 0;

    __atomic_fetch_add(&load->runs[chunk], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&load->total, 1, __ATOMIC_RELAXED);
    while (end_ns && clock_now_ns() < end_ns)
        ;
}

static bool stop(void *argument)
{
    const struct load *load = argument;

    return __atomic_load_n(&load->total, __ATOMIC_RELAXED) >= load->stop_at;
}

/* The test's thread takes the last allowed CPU, a thread of the team each other one. */
static struct team *open_team(uint64_t spin_ns)
{
    struct team_config config = {.spin_ns = spin_ns, .cores = cores};
    cpu_set_t own;
    struct team *team;
    int last = 0;

    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed))
            last = cpu;
    CPU_ZERO(&own);
    CPU_SET(last, &own);
    config.cpus = allowed;
    CPU_CLR(last, &config.cpus);
    assert_int_equal(sched_setaffinity(0, sizeof(own), &own), 0);
    memset(cores, 0, sizeof(cores));
    assert_int_equal(team_open(&team, &config), 0);
    assert_int_equal(team_size(team), CPU_COUNT(&allowed));
    return team;
}

static void check_run(struct team *team, struct load *load, uint32_t chunks, bool share, bool wake)
{
    const struct team_work work = {.run = run, .stop = stop, .argument = load,
                                   .chunk_count = chunks, .share = share, .wake = wake,
                                   .start_ns = clock_now_ns()};
    struct team_result result;

    memset(load->runs, 0, sizeof(load->runs));
    load->total = 0;
    team_run(team, &work, &result);
    assert_in_range(result.chunks, 1, chunks);
    assert_true(result.chunks == chunks || load->total >= load->stop_at);
    assert_int_equal(load->total, result.chunks);
    for (uint32_t i = 0; i < chunks; i++)
        assert_int_equal(load->runs[i], i < result.chunks);
    assert_true(result.end_ns >= work.start_ns);
}

/* Of any width, whoever claims: each chunk once, group by group, a thread's own place if it is
 * free. */
static void test_ticket(void **state)
{
    uint64_t random = 1;

    (void)state;
    for (uint32_t width = 2; width <= TICKET_PLACES_MAX; width++)
        for (uint32_t count = 1; count < 60; count++) {
            uint64_t ticket = ticket_open(7), after;
            uint32_t chunk, place, claimed = 0;
            bool seen[60] = {false};

            for (;; claimed++) {
                uint32_t first = ticket_first(ticket, width);

                random = random * UINT64_C(6364136223846793005) + 1;
                place = (uint32_t)(random >> 40) % width;
                if (!ticket_claim(ticket, width, place, count, &chunk, &after))
                    break;
                assert_in_range(chunk, first, count - 1);
                assert_false(seen[chunk]);
                assert_true(chunk == first + place || first + place >= count ||
                            seen[first + place]);
                for (uint32_t i = 0; i < first; i++)
                    assert_true(seen[i]);
                seen[chunk] = true;
                ticket = after;
                assert_int_equal(ticket >> 32, 7);
            }
            assert_int_equal(claimed, count);
            assert_false(
                ticket_claim(ticket_closed(7), width, 0, TICKET_CHUNKS_MAX, &chunk, &after));
        }
}

/* The ticket of one region and the count of another, as a late thread may hold them: no chunk that
 * the count does not have, and none without a place. */
static void test_ticket_of_another_region(void **state)
{
    (void)state;
    for (uint32_t width = 2; width <= TICKET_PLACES_MAX; width++)
        for (uint32_t count = 0; count < 3 * width + 2; count++)
            for (uint32_t group = 0; group < 4; group++)
                for (uint32_t taken = 0; taken < (1u << width) - 1; taken++) {
                    uint64_t ticket = ticket_open(7) | group << TICKET_PLACES_MAX | taken, after;
                    uint32_t first = group * width, free = 0, chunk = first;

                    for (uint32_t place = 0; place < width; place++)
                        free += first + place < count && !(taken >> place & 1);
                    for (uint32_t place = 0; place < width; place++) {
                        assert_int_equal(ticket_claim(ticket, width, place, count, &chunk, &after),
                                         free > 0);
                        if (free > 0) {
                            assert_in_range(chunk, first, count - 1);
                            assert_false(taken >> (chunk - first) & 1);
                        }
                    }
                }
}

static void test_every_chunk_once(void **state)
{
    struct team *team = open_team(20000);
    static struct load load;

    (void)state;
    load.stop_at = UINT32_MAX;
    for (uint32_t i = 0; i < 20000; i++)
        check_run(team, &load, 1 + i * 7919 % 60, i % 5 != 0, i % 3 == 0);
    check_run(team, &load, CHUNKS_MAX, true, true);
    team_close(&team);
    assert_null(team);
}

/* Wants the other threads' CPUs, now and then. */
static void *run_rival(void *argument)
{
    const struct timespec nap = {.tv_nsec = 20000};
    atomic_bool *ended = argument;
    cpu_set_t cpus = allowed;

    for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--)
        if (CPU_ISSET(cpu, &allowed) && CPU_COUNT(&allowed) > 1) {
            CPU_CLR(cpu, &cpus); /* the caller's */
            break;
        }
    sched_setaffinity(0, sizeof(cpus), &cpus);
    while (!atomic_load(ended)) {
        for (volatile int i = 0; i < 20000; i++)
            ;
        nanosleep(&nap, NULL);
    }
    return NULL;
}

static void test_crowded(void **state)
{
    struct team *team = open_team(20000);
    static struct load load;
    atomic_bool ended = false;
    pthread_t rival;

    (void)state;
    load.stop_at = UINT32_MAX;
    assert_int_equal(pthread_create(&rival, NULL, run_rival, &ended), 0);
    for (uint32_t i = 0; i < 3000; i++)
        check_run(team, &load, 1 + i * 7919 % 60, true, i % 3 == 0);
    atomic_store(&ended, true);
    pthread_join(rival, NULL);
    team_close(&team);
}

static void test_stop(void **state)
{
    struct team *team = open_team(20000);
    static struct load load;

    (void)state;
    for (uint32_t i = 0; i < 5000; i++) {
        load.stop_at = 1 + i % 40;
        check_run(team, &load, 1 + i * 31 % 200, true, true);
    }
    team_close(&team);
}

/* Parked between regions: each wake must come through. */
static void test_park_and_wake(void **state)
{
    const struct timespec nap = {.tv_nsec = 300000};
    struct team *team = open_team(1000);
    static struct load load;
    uint64_t wakes;

    (void)state;
    if (team_size(team) < 2) {
        team_close(&team);
        print_message("SKIP: one CPU\n");
        skip();
    }
    load.stop_at = UINT32_MAX;
    load.spin_ns = 100000;
    for (int i = 0; i < 300; i++) {
        nanosleep(&nap, NULL);
        check_run(team, &load, 8, true, true);
    }
    wakes = team_wakes(team);
    assert_true(wakes > 100);
    assert_true(gemmd_counter_read(&cores[0].busy_ns) > 0);
    assert_true(gemmd_counter_read(&cores[0].sleep_ns) > 0);
    team_close(&team);
}

static double cpu_s(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* At most 0.1 % of a CPU in the best of ten looks: a host that takes its CPU back in the middle of
 * a wake-up charges that to whoever had it, and a process that only sleeps reads as much as 0.5 ms
 * then. */
static void test_idle_costs_nothing(void **state)
{
    const struct timespec nap = {.tv_sec = 1}, look = {.tv_nsec = 200000000};
    struct team *team = open_team(50000);
    bool idle = HAS_TSAN || HAS_ASAN; /* their threads do work */

    (void)state;
    nanosleep(&nap, NULL); /* until they are parked */
    for (int i = 0; i < 10 && !idle; i++) {
        double used = cpu_s(CLOCK_PROCESS_CPUTIME_ID);

        nanosleep(&look, NULL);
        idle = cpu_s(CLOCK_PROCESS_CPUTIME_ID) - used < 0.0002;
    }
    assert_true(idle);
    team_close(&team);
}

static void widen_threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *entry;

    assert_non_null(tasks);
    while ((entry = readdir(tasks)))
        if (entry->d_name[0] != '.')
            sched_setaffinity((pid_t)strtol(entry->d_name, NULL, 10), sizeof(allowed), &allowed);
    closedir(tasks);
}

/* A cpuset change is imitated by widening a thread's mask from outside. */
static void test_repin(void **state)
{
    struct team *team = open_team(1000);

    (void)state;
    if (team_size(team) < 2) {
        team_close(&team);
        print_message("SKIP: one CPU\n");
        skip();
    }
    assert_int_equal(team_repin(team), 0);
    widen_threads();
    assert_true(team_repin(team) > 0);
    assert_int_equal(team_repin(team), 0);
    team_close(&team);
}

static bool cpu_is_gone;

int __real_topology_repin(pid_t tid, int cpu);
int __wrap_topology_repin(pid_t tid, int cpu);

int __wrap_topology_repin(pid_t tid, int cpu)
{
    return cpu_is_gone ? -EINVAL : __real_topology_repin(tid, cpu);
}

/* A thread whose CPU is gone claims nothing until it is back, and can be ended while it is away. */
static void test_away(void **state)
{
    const struct timespec nap = {.tv_nsec = 20000000};
    struct team *team = open_team(1000);
    static struct load load;
    uint64_t busy_ns;

    (void)state;
    if (team_size(team) < 2) {
        team_close(&team);
        print_message("SKIP: one CPU\n");
        skip();
    }
    load.stop_at = UINT32_MAX;
    load.spin_ns = 100000;
    cpu_is_gone = true;
    assert_int_equal(team_repin(team), -EINVAL);
    check_run(team, &load, 8, true, true); /* whoever slept has seen it then */
    nanosleep(&nap, NULL);
    busy_ns = gemmd_counter_read(&cores[0].busy_ns);
    for (int i = 0; i < 50; i++)
        check_run(team, &load, 8, true, true);
    assert_int_equal(gemmd_counter_read(&cores[0].busy_ns), busy_ns);
    cpu_is_gone = false;
    assert_int_equal(team_repin(team), 0);
    for (int i = 0; gemmd_counter_read(&cores[0].busy_ns) == busy_ns; i++) {
        assert_in_range(i, 0, 5000);
        check_run(team, &load, 8, true, true);
    }
    cpu_is_gone = true;
    assert_int_equal(team_repin(team), -EINVAL);
    team_close(&team);
    cpu_is_gone = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ticket),
        cmocka_unit_test(test_ticket_of_another_region),
        cmocka_unit_test(test_every_chunk_once), cmocka_unit_test(test_crowded),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_park_and_wake),    cmocka_unit_test(test_idle_costs_nothing),
        cmocka_unit_test(test_repin),            cmocka_unit_test(test_away),
    };

    sched_getaffinity(0, sizeof(allowed), &allowed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
