/*
 * One attacker makes every attack in turn beside fifteen honest clients.  None of theirs fails,
 * none is wrong, and they get what they would get beside a sixteenth honest client instead.
 *
 * All clients share one CPU with the worker's control thread and the dispatcher has the other, so
 * that the ratio shows what the worker does and not how the kernel places a dozen busy processes.
 *
 * usage: blast_radius_test [--repetitions N] [--phase-ms N] [--attack NAME]
 */
#include "tests/harness.h"

#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/attack/attacks.h"
#include "tests/attack/honest.h"
#include "tests/e2e/machine.h"

#define HONEST          15
#define REPETITIONS_MAX 64
#define ROUNDS          100 /* of one session, before the attacker opens another */

static struct harness_worker worker;
static struct layer_case layer;
static uint64_t *attacks; /* made so far; shared */
static unsigned repetitions = 1, phase_ms = 500;
static const char *only; /* NULL: all attacks */

static void count(uint64_t by)
{
    __atomic_fetch_add(attacks, by, __ATOMIC_RELAXED);
}

/* ---- the attacks: each function makes some of its kind --------------------------------------- */

struct attacker {
    struct raw raw; /* a live session */
    struct gemmd_msg_layer_reply handle;
    uint64_t seed;
};

static void open_attacker(struct attacker *attacker)
{
    raw_open(&attacker->raw, worker.socket, 64, UINT64_C(1) << 20);
    raw_open_layer(&attacker->raw, "blast", &attacker->handle);
}

static void sessions(struct attacker *attacker)
{
    raw_close(&attacker->raw);
    open_attacker(attacker);
    count(1);
}

static void memory(struct attacker *attacker)
{
    for (unsigned segment = 0; segment < 3; segment++)
        REQUIRE(attack_memory(&attacker->raw, segment) == 0);
    count(3 * MEMORY_ATTACK_COUNT);
}

static void submissions(struct attacker *attacker)
{
    struct raw *raw = &attacker->raw;
    struct gemmd_cqe cqe;

    for (int i = 0; i < 16; i++)
        if (raw->sq.index - raw->cq.index < 64)
            attack_submission(raw, &attacker->handle, &attacker->seed);
    while (gemmd_cq_take(&raw->cq, &cqe))
        count(1);
    gemmd_cq_release(&raw->cq, raw->client);
}

static void doorbells(struct attacker *attacker)
{
    for (int i = 0; i < 16; i++)
        attack_doorbell(&attacker->raw, &attacker->seed);
    count(16);
    submissions(attacker);
}

static void scribbles(struct attacker *attacker)
{
    for (int word = 0; word < 20; word++)
        attack_scribble(&attacker->raw, &attacker->seed);
    count(20);
    submissions(attacker);
}

/* Ends the session. */
static void cq_head(struct attacker *attacker)
{
    attack_cq_head(&attacker->raw, &attacker->seed);
    submissions(attacker);
    sessions(attacker);
}

static void messages(struct attacker *attacker)
{
    int fd = raw_connect(worker.socket);

    for (unsigned i = 0; i < 4; i++)
        attack_message(fd, &attacker->seed);
    close(fd);
    count(5);
}

static void descriptors(struct attacker *attacker)
{
    struct gemmd_msg_hello hello = raw_hello(8, 1 << 16);
    int fd = raw_connect(worker.socket);

    (void)attacker;
    attack_descriptors(fd, &hello, sizeof(hello));
    close(fd);
    count(1);
}

/* Before the seals, when it works. */
static void holes(struct attacker *attacker)
{
    struct raw half;

    (void)attacker;
    raw_open_mapping(&half, worker.socket, 8, 1 << 16);
    REQUIRE(attack_punch_all(&half));
    raw_close(&half);
    count(1);
}

static const struct attack {
    const char *name;
    void (*make)(struct attacker *attacker);
} attack_table[] = {
    {"none", NULL}, /* an honest client again: what the ratio is worth on this machine */
    {"sessions", sessions},   {"memory", memory},       {"submissions", submissions},
    {"doorbells", doorbells}, {"scribbles", scribbles}, {"cq_head", cq_head},
    {"messages", messages},   {"descriptors", descriptors}, {"holes", holes},
};
#define ATTACKS (sizeof(attack_table) / sizeof(attack_table[0]))

static int attack_for_ever(void *argument)
{
    const struct attack *attack = argument;
    struct attacker attacker = {.seed = (uint64_t)getpid()};

    open_attacker(&attacker);
    for (;;) {
        for (int i = 0; i < ROUNDS; i++)
            attack->make(&attacker);
        raw_close(&attacker.raw);
        open_attacker(&attacker);
    }
    return 1;
}

/* ---- phases ---------------------------------------------------------------------------------- */

static uint64_t jobs_of_phase(const struct honest *honest)
{
    uint64_t before = honest_read(honest).jobs;

    usleep(phase_ms * 1000);
    return honest_read(honest).jobs - before;
}

static int compare(const void *left, const void *right)
{
    const double *a = left, *b = right;

    return (*a > *b) - (*a < *b);
}

static void pin_to_first_cpu(void)
{
    cpu_set_t cpus;
    int cpu = 0;

    REQUIRE(sched_getaffinity(0, sizeof(cpus), &cpus) == 0);
    while (!CPU_ISSET(cpu, &cpus))
        cpu++;
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    REQUIRE(sched_setaffinity(0, sizeof(cpus), &cpus) == 0);
}

static uint64_t jobs_beside_another(const struct honest *honest)
{
    struct honest another;
    uint64_t jobs;

    honest_start(&another, worker.socket, &layer, 8, 0, 1);
    jobs = jobs_of_phase(honest);
    honest_stop(&another);
    return jobs;
}

static uint64_t jobs_beside_attacker(const struct honest *honest, const struct attack *attack)
{
    pid_t attacker = harness_fork(attack_for_ever, (void *)(uintptr_t)attack);
    uint64_t jobs = jobs_of_phase(honest);

    harness_reap_killed(attacker);
    assert_true(harness_is_alive(&worker));
    return jobs;
}

/* What the honest ones get beside the attack, by what they get beside another honest one. */
static double measure(const struct honest *honest, const struct attack *attack)
{
    uint64_t beside_another = jobs_beside_another(honest);
    uint64_t beside = attack->make ? jobs_beside_attacker(honest, attack)
                                   : jobs_beside_another(honest);

    return (double)beside / (double)beside_another;
}

static void test_blast_radius(void **state)
{
    double ratios[ATTACKS][REPETITIONS_MAX], medians[ATTACKS];
    struct honest_count end;
    struct honest honest;
    uint64_t made;

    (void)state;
    machine_skip_unless_cpus(2);
    pin_to_first_cpu();
    honest_start(&honest, worker.socket, &layer, 8, 0, HONEST);
    for (unsigned r = 0; r < repetitions; r++)
        for (size_t i = 0; i < ATTACKS; i++)
            ratios[i][r] = !only || strcmp(only, attack_table[i].name) == 0
                               ? measure(&honest, &attack_table[i])
                               : 1;
    end = honest_read(&honest);
    honest_stop(&honest);
    made = __atomic_load_n(attacks, __ATOMIC_RELAXED);
    printf("honest throughput beside the attacker / beside a sixteenth honest client:\n");
    for (size_t i = 0; i < ATTACKS; i++) {
        qsort(ratios[i], repetitions, sizeof(ratios[i][0]), compare);
        medians[i] = ratios[i][repetitions / 2];
        printf("  %-12s median %.2f, worst %.2f\n", attack_table[i].name, medians[i],
               ratios[i][0]);
    }
    qsort(medians + 1, ATTACKS - 1, sizeof(medians[0]), compare);
    printf("%lu attacks; honest: %lu jobs, %lu failed, %lu wrong, the slowest %.0f ms; of all "
           "attacks: median %.2f, worst %.2f\n", (unsigned long)made, (unsigned long)end.jobs,
           (unsigned long)end.failed, (unsigned long)end.wrong, (double)end.slowest_ns / 1e6,
           medians[1 + (ATTACKS - 1) / 2], medians[1]);
    assert_true(only || made > ATTACKS * repetitions * 10);
    assert_int_equal(end.failed, 0);
    assert_int_equal(end.wrong, 0);
    if (!machine_is_sanitized())
        assert_true(medians[1 + (ATTACKS - 1) / 2] >= 0.7); /* the aim is 0.9; load moves it */
}

static int start(void **state)
{
    (void)state;
    layer_case_plain(&layer, 64, 256, 51);
    layer.desc.name = "blast";
    attacks = mmap(NULL, sizeof(*attacks), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                   0);
    REQUIRE(attacks != MAP_FAILED);
    harness_start(&worker, NULL, NULL);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    layer_case_fini(&layer);
    harness_stop(&worker);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blast_radius),
    };

    for (int i = 1; i + 1 < argc; i += 2) {
        unsigned value = (unsigned)strtoul(argv[i + 1], NULL, 10);

        if (strcmp(argv[i], "--repetitions") == 0 && value >= 1 && value <= REPETITIONS_MAX)
            repetitions = value;
        if (strcmp(argv[i], "--phase-ms") == 0)
            phase_ms = value;
        if (strcmp(argv[i], "--attack") == 0)
            only = argv[i + 1];
    }
    return HARNESS_RUN(tests, start, stop, 120 + repetitions * 30);
}
