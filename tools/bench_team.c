/*
 * gemmd-bench team.  Two private workers, one of a single CPU and one of all; in each round each of
 * them is busy for a while, and the other asleep.  The client keeps jobs for some milliseconds in
 * flight and sleeps, so that it takes next to nothing of the CPUs: with one job at a time it would
 * be woken, and wake the worker, on a CPU that is one of the team's.
 */
#include "tools/bench_team.h"

#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "client/gemmd.h"
#include "tools/bench_command.h"
#include "tools/stress_machine.h"

enum { JOBS_MAX = 1024, JOBS_MIN = 2, SIDES = 2 };
/* Each nap ends in the middle of a chunk of one thread, whose CPU is the client's for some 60 us:
 * 3 % of it at 2 ms. */
#define NAP_NS       UINT64_C(4000000)
#define IN_FLIGHT_NS 16e6
#define ARENA_BYTES (768ull << 20)

static const char usage_text[] =
    "usage: gemmd-bench team [option ...]\n"
    "Large jobs by a private worker of one thread, and by one with a thread on each CPU.  A\n"
    "client keeps jobs in flight and sleeps.\n"
    "\n"
    "  --shape M,N,K     only this shape; may be repeated\n"
    "  --level NAME      ref, avx2, avxvnni, avx512, avx512vnni or amx (default: the workers'\n"
    "                    choice)\n"
    "  --rounds R        rounds whose median counts, 1 to 31 (default 7)\n"
    "  --seconds T       of each worker in each round (default 0.3)\n"
    "  --worker PATH     the worker's program (default: $GEMMD_WORKER, else gemmd beside this\n"
    "                    one, else in PATH)\n"
    "  --worker-option X passed on to both; may be repeated\n"
    "  --quick           one shape, short samples\n"
    "  --json            the report as JSON\n"
    "  --help\n"
    "exit status: 0 ok, 64 usage, 69 no worker or no second CPU, 70 internal\n";

/* 50 MOP to 2 GOP. */
static const struct bench_shape shapes[] = {
    {12, 2048, 1024, "team"},  {64, 1024, 1024, "team"},   {64, 4096, 1024, "team"},
    {256, 1024, 1024, "team"}, {1024, 1024, 1024, "team"},
};

struct side {
    struct bench_worker worker;
    struct gemmd *session;
    struct gemmd_info info;
    struct gemmd_layer *layer;
    struct gemmd_job jobs[JOBS_MAX];
    uint32_t job_count; /* as many as fit the arena */
    double ns[BENCH_ROUNDS_MAX]; /* of a job */
};

struct bench {
    struct command command;
    unsigned int rounds;
    double seconds;
    struct bench_machine machine;
    struct side sides[SIDES]; /* one thread; all */
};

/* ---- one side -------------------------------------------------------------------------------- */

static int fail(const struct side *side, const char *what)
{
    fprintf(stderr, "gemmd-bench: %s: %s\n", what, gemmd_error_text(side->session));
    return EX_SOFTWARE;
}

static int open_side(struct bench *bench, struct side *side, const char *cpus)
{
    struct gemmd_options connect;

    bench_worker_argument(&side->worker, "--cpus");
    bench_worker_argument(&side->worker, cpus);
    if (!bench_worker_start(&side->worker))
        return EX_UNAVAILABLE;
    gemmd_options_init(&connect);
    connect.socket = side->worker.socket;
    connect.autostart = 0;
    connect.arena_bytes = ARENA_BYTES;
    connect.ring_entries = 2 * JOBS_MAX;
    if (gemmd_connect(&connect, &side->session) < 0 ||
        gemmd_get_info(side->session, &side->info) < 0) {
        fail(side, "connect");
        return EX_UNAVAILABLE;
    }
    if (bench->command.level && strcmp(bench->command.level, side->info.level)) {
        fprintf(stderr, "gemmd-bench: the worker has not level %s\n", bench->command.level);
        return EX_UNAVAILABLE;
    }
    return EX_OK;
}

static int open_shape(struct side *side, const struct bench_problem *problem)
{
    const struct bench_shape *shape = &problem->shape;
    struct gemmd_layer_desc desc;

    gemmd_layer_desc_init(&desc);
    desc.n = shape->n;
    desc.k = shape->k;
    desc.c_type = GEMMD_TYPE_U8;
    desc.weights = problem->b;
    desc.b_scales = problem->scale;
    desc.scale_count = shape->n;
    desc.bias_type = GEMMD_TYPE_F32;
    desc.bias = problem->bias;
    desc.activation = GEMMD_ACTIVATION_RELU;
    if (gemmd_layer_create(side->session, &desc, &side->layer) < 0)
        return fail(side, "layer");
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        uint8_t *a = gemmd_buffer_alloc(side->session, problem->a_bytes);
        uint8_t *c = gemmd_buffer_alloc(side->session, problem->c_bytes);

        if (!a || !c) {
            gemmd_buffer_free(side->session, a);
            gemmd_buffer_free(side->session, c);
            break;
        }
        memcpy(a, problem->a, problem->a_bytes);
        memset(c, 0, problem->c_bytes);
        gemmd_job_init(&side->jobs[i], side->layer, shape->m, a, c);
        side->jobs[i].user_data = i;
        side->job_count = i + 1;
    }
    if (side->job_count >= JOBS_MIN)
        return EX_OK;
    fprintf(stderr, "gemmd-bench: rows of %u x %u x %u do not fit twice into an arena of %llu MiB: "
            "give a smaller shape\n", shape->m, shape->n, shape->k, ARENA_BYTES >> 20);
    return EX_USAGE;
}

static void close_shape(struct side *side)
{
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        gemmd_buffer_free(side->session, (void *)(uintptr_t)side->jobs[i].a);
        gemmd_buffer_free(side->session, side->jobs[i].c);
    }
    memset(side->jobs, 0, sizeof(side->jobs));
    side->job_count = 0;
    gemmd_layer_close(side->session, &side->layer);
}

/* Takes what is done, and submits it again if `more`.  How many, or -1. */
static int reap(struct side *side, bool more)
{
    struct gemmd_completion done[JOBS_MAX];
    int count = gemmd_poll(side->session, done, JOBS_MAX);

    for (int i = 0; i < count; i++) {
        if (done[i].status)
            return -1;
        if (more && gemmd_submit(side->session, &side->jobs[done[i].user_data], 1) != 1)
            return -1;
    }
    if (count > 0 && more)
        gemmd_flush(side->session);
    return count;
}

/* ns of a job, with so many in flight; 0: a job failed. */
static double measure_side(struct side *side, uint32_t depth, double seconds)
{
    uint64_t start_ns, now_ns, jobs = 0;
    uint32_t left = depth;
    int count;

    if (gemmd_submit(side->session, side->jobs, depth) != (int)depth)
        return 0;
    gemmd_flush(side->session);
    stress_sleep_ns(NAP_NS); /* whoever slept is awake */
    if (reap(side, true) < 0)
        return 0;
    start_ns = stress_now_ns();
    do {
        stress_sleep_ns(NAP_NS);
        count = reap(side, true);
        now_ns = stress_now_ns();
        jobs += count > 0 ? (uint64_t)count : 0;
    } while (count >= 0 && ((double)(now_ns - start_ns) < seconds * 1e9 || !jobs));
    while (count >= 0 && left) {
        stress_sleep_ns(NAP_NS);
        count = reap(side, false);
        left -= count > 0 ? (uint32_t)count : 0;
    }
    return count < 0 ? 0 : (double)(now_ns - start_ns) / (double)jobs;
}

/* ---- both ------------------------------------------------------------------------------------ */

/* As many jobs as keep the faster side busy over several naps. */
static uint32_t depth_for(struct side *sides)
{
    uint32_t most = sides[0].job_count, least = most < 8 ? most : 8;
    double ns = measure_side(&sides[0], most, 0.05) / 2;
    double depth = ns > 0 ? IN_FLIGHT_NS / ns : least;

    return depth < least ? least : depth > most ? most : (uint32_t)depth;
}

static int measure_shape(struct bench *bench, const struct bench_shape *shape,
                         uint32_t *depth)
{
    struct side *sides = bench->sides;
    struct bench_problem problem;
    int status = EX_OK;

    bench_problem_open(&problem, &bench->machine, shape);
    for (int i = 0; i < SIDES && !status; i++)
        status = open_shape(&sides[i], &problem);
    *depth = status ? 0 : depth_for(sides);
    for (uint32_t round = 0; round < bench->rounds && !status; round++)
        for (int i = 0; i < SIDES && !status; i++) {
            sides[i].ns[round] = measure_side(&sides[i], *depth, bench->seconds);
            if (sides[i].ns[round] <= 0)
                status = fail(&sides[i], "a job failed");
        }
    if (!status && memcmp(sides[0].jobs[0].c, sides[1].jobs[0].c, problem.c_bytes)) {
        fprintf(stderr, "gemmd-bench: the two workers disagree\n");
        status = EX_SOFTWARE;
    }
    for (int i = 0; i < SIDES; i++)
        close_shape(&sides[i]);
    bench_problem_close(&problem);
    return status;
}

static void print_head(const struct bench *bench)
{
    const struct gemmd_info *info = &bench->sides[1].info;

    if (bench->command.json) {
        printf("{\"cpu\":\"%s\",\"kernel\":\"%s\",\"level\":\"%s\",\"threads\":%u,\"rounds\":%u,"
               "\"seconds\":%g,\"results\":[", bench->machine.cpu, bench->machine.kernel,
               info->level, info->cpu_count, bench->rounds, bench->seconds);
        return;
    }
    printf("cpu      %s\nkernel   %s\nlevel    %s, %s\n", bench->machine.cpu,
           bench->machine.kernel, info->level, info->kernel);
    printf("rounds   medians of %u rounds of %g s, in turn\n\n", bench->rounds,
           bench->seconds);
    printf("%18s %8s %9s %15s %15s %9s\n", "m,n,k", "MOP", "in flight", "1 thread, GOPS",
           "all, GOPS", "all/1");
}

static void print_row(const struct bench *bench, uint32_t index, uint32_t depth)
{
    const struct bench_shape *shape = &bench->command.shapes[index];
    const struct side *sides = bench->sides;
    double one = bench_gops(shape, bench_median(sides[0].ns, bench->rounds));
    double all = bench_gops(shape, bench_median(sides[1].ns, bench->rounds));
    double ratio = bench_median_ratio(sides[0].ns, sides[1].ns, bench->rounds);
    char name[40];

    snprintf(name, sizeof(name), "%u,%u,%u", shape->m, shape->n, shape->k);
    if (bench->command.json)
        printf("%s\n{\"m\":%u,\"n\":%u,\"k\":%u,\"in_flight\":%u,\"one_gops\":%.1f,"
               "\"all_gops\":%.1f,\"ratio\":%.3f}",
               index ? "," : "", shape->m, shape->n, shape->k, depth, one, all, ratio);
    else
        printf("%18s %8.0f %9u %15.1f %15.1f %8.2fx\n", name,
               2e-6 * shape->m * shape->n * shape->k, depth, one, all, ratio);
    fflush(stdout);
}

/* "0" and "0,1,2", of those this process may use; false: there is one alone. */
static bool list_cpus(char one[16], char all[8192])
{
    unsigned int cpus[1024], count = bench_cpus(cpus, 1024);
    size_t length = 0;

    for (unsigned int i = 0; i < count; i++)
        length += (size_t)snprintf(all + length, 8192 - length, i ? ",%u" : "%u", cpus[i]);
    if (count)
        snprintf(one, 16, "%u", cpus[count - 1]);
    return count > 1;
}

static int measure(struct bench *bench)
{
    char one[16] = "", all[8192] = "";
    uint32_t depth;
    int status;

    if (!list_cpus(one, all)) {
        fprintf(stderr, "gemmd-bench: team needs a second CPU\n");
        return EX_UNAVAILABLE;
    }
    stress_ns_per_tick();
    bench_machine_open(&bench->machine);
    status = open_side(bench, &bench->sides[0], one);
    if (!status)
        status = open_side(bench, &bench->sides[1], all);
    if (!status)
        print_head(bench);
    for (uint32_t i = 0; i < bench->command.shape_count && !status; i++) {
        status = measure_shape(bench, &bench->command.shapes[i], &depth);
        if (!status)
            print_row(bench, i, depth);
    }
    if (!status && bench->command.json)
        printf("\n]}\n");
    return status;
}

/* ---- command line ---------------------------------------------------------------------------- */

static const struct option long_options[] = {COMMAND_ROW_SHAPE, COMMAND_ROW_LEVEL,
                                             COMMAND_ROW_ROUNDS, COMMAND_ROW_SECONDS,
                                             COMMAND_ROWS_LAST};

int bench_team(int argc, char **argv)
{
    static struct bench bench = {.command = {.name = "team",
                                             .usage = usage_text,
                                             .options = long_options,
                                             .shape_max = {1024, 1 << 16, 65536},
                                             .seconds_min = 0.01}};
    struct command *command = &bench.command;
    int status;

    if (!command_parse(command, argc, argv, &status))
        return status;
    command_default_shapes(command, shapes, command->quick ? 1 : sizeof(shapes) / sizeof(*shapes));
    bench.rounds = command->rounds ? command->rounds : command->quick ? 1 : 7;
    bench.seconds = command->seconds > 0 ? command->seconds : command->quick ? 0.05 : 0.3;
    for (int i = 0; i < SIDES; i++)
        bench.sides[i].worker = command->worker;
    status = measure(&bench);
    for (int i = 0; i < SIDES; i++) {
        gemmd_close(&bench.sides[i].session);
        bench_worker_stop(&bench.sides[i].worker);
    }
    return status;
}
