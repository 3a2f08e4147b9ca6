/*
 * The order of measurements.  Both sides of a ratio are neighbours in time: each round measures one
 * after the other, and what is reported is the median of the rounds' ratios, so that a machine that
 * slows down for a while slows both.
 *
 * Hot: the same call over and over, the fastest of HOT_PARTS half milliseconds, so that a sample
 * does not count what else the CPU had to do.  Cold: one call after BENCH_FLUSH_BYTES were touched,
 * on each CPU that takes part.
 *
 * Gathered: rows at no constant distance, singly or in runs, beside the same rows one after the
 * other.  All sides take turns through copies of A (bench_ours.c), because over and over the same
 * strided rows are in L1 when a call begins, and gathered ones, read once a call, are not.  Strided
 * rows are measured once more at the end of each round: what that differs by is noise.
 */
#include "tools/bench.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* For longer than this gcc's OpenMP threads do not spin for work, on a CPU that our second thread
 * needs next: 300,000 pauses of up to 140 cycles. */
enum { OPENMP_SPIN_NS = 20000000 };
enum { HOT_PART_NS = 500000, HOT_PART_QUICK_NS = 100000, HOT_PARTS = 4, CALLS_MAX = 1 << 20 };

struct context {
    const struct bench_options *options;
    struct bench_machine *machine;
    struct bench_problem problem;
    struct bench_ours *ours;
    struct bench_peer *peer, *peer_two; /* NULL: none */
    uint8_t *flush;
};

/* ---- one sample ------------------------------------------------------------------------------ */

typedef void call_fn(struct context *context);

static void call_ours(struct context *context)
{
    bench_ours_run(context->ours);
}

static void call_strided(struct context *context)
{
    bench_ours_run_strided(context->ours);
}

static void call_gathered(struct context *context)
{
    bench_ours_run_gathered(context->ours);
}

static void call_runs(struct context *context)
{
    bench_ours_run_runs(context->ours);
}

static void call_ours_two(struct context *context)
{
    bench_ours_run_two(context->ours);
}

static void call_peer(struct context *context)
{
    bench_peer_run(context->peer);
}

static void call_peer_two(struct context *context)
{
    bench_peer_run(context->peer_two);
}

static double sample(struct context *context, call_fn *call, unsigned int calls)
{
    uint64_t begin = bench_now_ns();

    for (unsigned int i = 0; i < calls; i++)
        call(context);
    return (double)(bench_now_ns() - begin) / calls;
}

static double sample_hot(struct context *context, call_fn *call, unsigned int calls)
{
    double least = sample(context, call, calls);

    for (int i = 1; i < HOT_PARTS; i++) {
        double ns = sample(context, call, calls);

        least = ns < least ? ns : least;
    }
    return least;
}

/* Calls that fill a part of a sample; warms, too. */
static unsigned int calibrate(struct context *context, call_fn *call)
{
    uint64_t target = context->options->quick ? HOT_PART_QUICK_NS : HOT_PART_NS;
    unsigned int calls = 1;

    sample(context, call, 1);
    while (calls < CALLS_MAX && sample(context, call, calls) * calls < (double)target)
        calls *= 2;
    return calls;
}

static void touch(uint8_t *memory)
{
    for (size_t i = 0; i < BENCH_FLUSH_BYTES; i += 64)
        memory[i]++;
}

static double sample_cold(struct context *context, call_fn *call)
{
    touch(context->flush);
    return sample(context, call, 1);
}

/* ---- one shape ------------------------------------------------------------------------------- */

static void measure_hot(struct context *context, struct bench_result *result)
{
    double ours[BENCH_ROUNDS_MAX], peer[BENCH_ROUNDS_MAX];
    unsigned int rounds = context->options->rounds;
    unsigned int ours_calls = calibrate(context, call_ours), peer_calls = 0;

    if (context->peer)
        peer_calls = calibrate(context, call_peer);
    for (unsigned int i = 0; i < rounds; i++) {
        ours[i] = sample_hot(context, call_ours, ours_calls);
        if (context->peer)
            peer[i] = sample_hot(context, call_peer, peer_calls);
    }
    result->hot_ns = bench_median(ours, rounds);
    if (context->peer) {
        result->peer_hot_ns = bench_median(peer, rounds);
        result->hot_ratio = bench_median_ratio(peer, ours, rounds);
    }
}

static void measure_gathered(struct context *context, struct bench_result *result)
{
    double strided[BENCH_ROUNDS_MAX], gathered[BENCH_ROUNDS_MAX], runs[BENCH_ROUNDS_MAX];
    double again[BENCH_ROUNDS_MAX];
    unsigned int rounds = context->options->rounds, calls = calibrate(context, call_strided);

    calibrate(context, call_gathered);
    calibrate(context, call_runs);
    for (unsigned int i = 0; i < rounds; i++) {
        strided[i] = sample_hot(context, call_strided, calls);
        gathered[i] = sample_hot(context, call_gathered, calls);
        runs[i] = sample_hot(context, call_runs, calls);
        again[i] = sample_hot(context, call_strided, calls);
    }
    result->strided_ns = bench_median(strided, rounds);
    result->gathered_ns = bench_median(gathered, rounds);
    result->runs_ns = bench_median(runs, rounds);
    result->gathered_ratio = bench_median_ratio(gathered, strided, rounds);
    result->runs_ratio = bench_median_ratio(runs, strided, rounds);
    result->again_ratio = bench_median_ratio(again, strided, rounds);
}

static void measure_cold(struct context *context, struct bench_result *result)
{
    double ours[BENCH_ROUNDS_MAX], peer[BENCH_ROUNDS_MAX];
    unsigned int rounds = context->options->rounds;

    for (unsigned int i = 0; i < rounds; i++) {
        ours[i] = sample_cold(context, call_ours);
        if (context->peer)
            peer[i] = sample_cold(context, call_peer);
    }
    result->cold_ns = bench_median(ours, rounds);
    if (context->peer) {
        result->peer_cold_ns = bench_median(peer, rounds);
        result->cold_ratio = bench_median_ratio(peer, ours, rounds);
    }
}

/* The second thread spins while it exists, so it exists only for our own samples. */
static double sample_ours_two(struct context *context, unsigned int calls, bool cold)
{
    const unsigned int *cpus = context->options->cpus;
    double ns;

    if (cold) {
        bench_pin(&cpus[1], 1);
        touch(context->flush);
    }
    bench_pin(&cpus[0], 1);
    if (cold)
        touch(context->flush);
    bench_ours_start(context->ours, cpus[1]); /* returns when the thread spins */
    ns = cold ? sample(context, call_ours_two, 1) : sample_hot(context, call_ours_two, calls);
    bench_ours_stop(context->ours);
    return ns;
}

/* OpenMP's threads may use both CPUs and find one each; what wakes them is not measured. */
static double sample_peer_two(struct context *context, unsigned int calls, bool cold)
{
    const unsigned int *cpus = context->options->cpus;
    double ns;

    for (int i = 1; i >= 0 && cold; i--) {
        bench_pin(&cpus[i], 1);
        touch(context->flush);
    }
    bench_pin(cpus, BENCH_THREADS);
    bench_peer_wake(context->peer_two);
    ns = cold ? sample(context, call_peer_two, 1) : sample_hot(context, call_peer_two, calls);
    bench_pin(&cpus[0], 1);
    nanosleep(&(struct timespec){0, OPENMP_SPIN_NS}, NULL);
    return ns;
}

static void measure_two(struct context *context, struct bench_result *result, bool cold)
{
    double ours[BENCH_ROUNDS_MAX], one[BENCH_ROUNDS_MAX], peer[BENCH_ROUNDS_MAX];
    unsigned int rounds = context->options->rounds, calls = 1, peer_calls = 1;

    if (!cold) {
        calls = calibrate(context, call_ours);
        bench_pin(context->options->cpus, BENCH_THREADS);
        if (context->peer_two)
            peer_calls = calibrate(context, call_peer_two);
        bench_pin(context->options->cpus, 1);
    }
    for (unsigned int i = 0; i < rounds; i++) {
        ours[i] = sample_ours_two(context, calls, cold);
        one[i] = cold ? sample_cold(context, call_ours) : sample_hot(context, call_ours, calls);
        if (context->peer_two)
            peer[i] = sample_peer_two(context, peer_calls, cold);
    }
    *(cold ? &result->two_cold_ns : &result->two_hot_ns) = bench_median(ours, rounds);
    if (!cold)
        result->two_speedup = bench_median_ratio(one, ours, rounds);
    if (context->peer_two) {
        *(cold ? &result->peer_two_cold_ns : &result->peer_two_hot_ns) = bench_median(peer, rounds);
        *(cold ? &result->two_cold_ratio : &result->two_hot_ratio) =
            bench_median_ratio(peer, ours, rounds);
    }
}

/* Share of bytes in which the peer's C is more than 1 away from ours. */
static double peer_off(struct context *context)
{
    size_t bytes = context->problem.c_bytes, off = 0;
    uint8_t *ours = malloc(bytes);

    if (!ours)
        return 0;
    bench_ours_run(context->ours);
    memcpy(ours, context->problem.c, bytes);
    memset(context->problem.c, 0x5a, bytes);
    bench_peer_run(context->peer);
    for (size_t i = 0; i < bytes; i++)
        off += abs(ours[i] - context->problem.c[i]) > 1;
    free(ours);
    return (double)off / (double)bytes;
}

static void measure(struct context *context, struct bench_result *result)
{
    if (context->peer) {
        result->peer_off = peer_off(context);
        snprintf(result->peer_implementation, sizeof(result->peer_implementation), "%s",
                 bench_peer_implementation(context->peer));
    }
    measure_hot(context, result);
    measure_gathered(context, result);
    measure_cold(context, result);
    if (context->options->threads < BENCH_THREADS)
        return;
    measure_two(context, result, false);
    measure_two(context, result, true);
}

void bench_kernels(struct bench_report *report,
                   void (*done)(const struct bench_report *, const struct bench_result *))
{
    struct context context = {.options = report->options, .machine = &report->machine};
    bool peer_two = report->has_peer && report->options->threads == BENCH_THREADS;

    context.flush = bench_alloc(context.machine, BENCH_FLUSH_BYTES);
    for (size_t i = 0; i < report->options->shape_count; i++) {
        struct bench_result *result = &report->results[i];

        memset(result, 0, sizeof(*result));
        result->shape = report->options->shapes[i];
        bench_problem_open(&context.problem, context.machine, &result->shape);
        context.ours = bench_ours_open(&context.problem, context.machine);
        context.peer =
            report->has_peer ? bench_peer_open(&context.problem, context.machine, 1) : NULL;
        if (peer_two) { /* OpenMP's threads inherit the CPUs of the one that creates them */
            bench_pin(report->options->cpus, BENCH_THREADS);
            context.peer_two = bench_peer_open(&context.problem, context.machine, BENCH_THREADS);
            bench_pin(report->options->cpus, 1);
        }
        measure(&context, result);
        if (context.peer)
            bench_peer_close(context.peer);
        if (context.peer_two)
            bench_peer_close(context.peer_two);
        bench_ours_close(context.ours);
        bench_problem_close(&context.problem);
        report->count = i + 1;
        done(report, result);
    }
    bench_free(context.flush, BENCH_FLUSH_BYTES);
}
