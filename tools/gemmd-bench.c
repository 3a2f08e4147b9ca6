/*
 * gemmd-bench: speed of the kernels beside a peer and beside what the machine gives.
 */
#include "tools/bench.h"
#include "tools/bench_latency.h"
#include "tools/bench_operands.h"
#include "tools/bench_path.h"
#include "tools/bench_sharing.h"
#include "tools/bench_team.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

enum { ROUNDS = 7, ROUNDS_QUICK = 3, M_MAX = 1 << 20, N_MAX = 1 << 20, K_MAX = 65536 };

static const char usage_text[] =
    "usage: gemmd-bench kernels [option ...]\n"
    "       gemmd-bench sharing [option ...]   (gemmd-bench sharing --help)\n"
    "       gemmd-bench path [option ...]      (gemmd-bench path --help)\n"
    "       gemmd-bench latency [option ...]   (gemmd-bench latency --help)\n"
    "       gemmd-bench team [option ...]      (gemmd-bench team --help)\n"
    "       gemmd-bench operands [option ...]  (gemmd-bench operands --help)\n"
    "Measures the GEMM kernels beside oneDNN, beside the peak of the machine's multiplication and\n"
    "beside its read bandwidths, all in one run.\n"
    "\n"
    "  --level NAME      ref, avx2, avxvnni, avx512, avx512vnni or amx, for both sides (default:\n"
    "                    what a start-up measurement chooses)\n"
    "  --shape M,N,K     only this shape; may be repeated\n"
    "  --group NAME      only the built-in shapes of this group; --list shows them\n"
    "  --list            print the built-in shapes and end\n"
    "  --quick           six shapes (or those given), short samples\n"
    "  --rounds R        rounds whose median counts, 1 to 31 (default 7; quick: 3)\n"
    "  --threads T       1, or 2: also on two threads (default 2 where there are two CPUs)\n"
    "  --cpu A[,B]       the CPUs to pin to (default: the first ones allowed)\n"
    "  --weight-bits B   weights of B bits, 2 to 8 (default 8); up to 7, where no level of oneDNN\n"
    "                    saturates, different results are a failure\n"
    "  --no-peer         leave oneDNN out\n"
    "  --json            the report as JSON\n"
    "  --plot FILE       also a roofline as PNG, drawn by gnuplot\n"
    "  --version, --help\n"
    "exit status: 0 ok, 64 usage, 69 this machine lacks the level, 70 internal\n";

enum option_id {
    OPTION_LEVEL = 256,
    OPTION_SHAPE,
    OPTION_GROUP,
    OPTION_LIST,
    OPTION_QUICK,
    OPTION_ROUNDS,
    OPTION_THREADS,
    OPTION_CPU,
    OPTION_WEIGHT_BITS,
    OPTION_NO_PEER,
    OPTION_JSON,
    OPTION_PLOT,
    OPTION_VERSION,
    OPTION_HELP,
};

static const struct option long_options[] = {
    {"level", required_argument, NULL, OPTION_LEVEL},
    {"shape", required_argument, NULL, OPTION_SHAPE},
    {"group", required_argument, NULL, OPTION_GROUP},
    {"list", no_argument, NULL, OPTION_LIST},
    {"quick", no_argument, NULL, OPTION_QUICK},
    {"rounds", required_argument, NULL, OPTION_ROUNDS},
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"cpu", required_argument, NULL, OPTION_CPU},
    {"weight-bits", required_argument, NULL, OPTION_WEIGHT_BITS},
    {"no-peer", no_argument, NULL, OPTION_NO_PEER},
    {"json", no_argument, NULL, OPTION_JSON},
    {"plot", required_argument, NULL, OPTION_PLOT},
    {"version", no_argument, NULL, OPTION_VERSION},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static int complain(const char *what, const char *value)
{
    fprintf(stderr, "gemmd-bench: %s: \"%s\"; see --help\n", what, value);
    return EX_USAGE;
}

/* What follows the number; NULL: it is none, or not one of min to max. */
static const char *parse_number(const char *text, uint32_t min, uint32_t max, uint32_t *out)
{
    char *end;
    unsigned long value;

    if (*text < '0' || *text > '9')
        return NULL;
    value = strtoul(text, &end, 10); /* ULONG_MAX if it is larger */
    *out = (uint32_t)value;
    return value >= min && value <= max ? end : NULL;
}

bool bench_parse_numbers(const char *text, const uint32_t *max, uint32_t *out, size_t count,
                         bool zero)
{
    for (size_t i = 0; i < count; i++) {
        text = parse_number(text, !zero, max[i], &out[i]);
        if (!text || *text != (i + 1 < count ? ',' : '\0'))
            return false;
        text++;
    }
    return true;
}

uint32_t bench_parse_list(const char *text, uint32_t min, uint32_t max, uint32_t *out,
                          uint32_t capacity)
{
    for (uint32_t count = 0; count < capacity; text++) {
        text = parse_number(text, min, max, &out[count++]);
        if (!text || (*text && *text != ','))
            return 0;
        if (!*text)
            return count;
    }
    return 0;
}

static int add_shape(struct bench_options *options, const char *text)
{
    static const uint32_t max[3] = {M_MAX, N_MAX, K_MAX};
    uint32_t mnk[3];

    if (!bench_parse_numbers(text, max, mnk, 3, false))
        return complain("a shape is M,N,K", text);
    if (options->shape_count == BENCH_SHAPES_MAX)
        return complain("too many shapes", text);
    options->shapes[options->shape_count++] = (struct bench_shape){mnk[0], mnk[1], mnk[2], "shape"};
    return 0;
}

static int parse_cpus(struct bench_options *options, const char *text)
{
    static const uint32_t max[2] = {1023, 1023};
    bool two = strchr(text, ',') != NULL;
    uint32_t cpus[2] = {0, 0};

    if (!bench_parse_numbers(text, max, cpus, two ? 2 : 1, true))
        return complain("CPUs are A or A,B", text);
    memcpy(options->cpus, cpus, sizeof(cpus));
    options->cpus_given = true;
    if (!two)
        options->threads = 1;
    return 0;
}

static void keep_group(struct bench_options *options, const char *group)
{
    size_t kept = 0;

    for (size_t i = 0; i < options->shape_count; i++) {
        if (!strcmp(options->shapes[i].group, group))
            options->shapes[kept++] = options->shapes[i];
    }
    options->shape_count = kept;
}

/* 0, or an exit status; -1: nothing is left to do. */
static int parse_option(struct bench_options *options, int id, const char **group)
{
    static const uint32_t rounds_max = BENCH_ROUNDS_MAX, threads_max = BENCH_THREADS, bits_max = 8;

    switch (id) {
    case OPTION_LEVEL:
        options->level = optarg;
        return 0;
    case OPTION_SHAPE:
        return add_shape(options, optarg);
    case OPTION_GROUP:
        *group = optarg;
        return 0;
    case OPTION_QUICK:
        options->quick = true;
        return 0;
    case OPTION_ROUNDS:
        return bench_parse_numbers(optarg, &rounds_max, &options->rounds, 1, false)
                   ? 0
                   : complain("rounds are 1 to 31", optarg);
    case OPTION_THREADS:
        return bench_parse_numbers(optarg, &threads_max, &options->threads, 1, false)
                   ? 0
                   : complain("threads are 1 or 2", optarg);
    case OPTION_CPU:
        return parse_cpus(options, optarg);
    case OPTION_WEIGHT_BITS:
        return bench_parse_numbers(optarg, &bits_max, &options->weight_bits, 1, false) &&
                       options->weight_bits >= 2
                   ? 0
                   : complain("weights have 2 to 8 bits", optarg);
    case OPTION_NO_PEER:
        options->peer = false;
        return 0;
    case OPTION_JSON:
        options->json = true;
        return 0;
    case OPTION_PLOT:
        options->plot = optarg;
        return 0;
    case OPTION_VERSION:
        printf("gemmd-bench %s\n", GEMMD_VERSION);
        return -1;
    case OPTION_HELP:
        fputs(usage_text, stdout);
        return -1;
    default: /* getopt has complained */
        return EX_USAGE;
    }
}

/* What the command line left open. */
static int complete(struct bench_options *options, const char *group)
{
    unsigned int cpus[BENCH_THREADS] = {0, 0};
    unsigned int found = bench_cpus(cpus, BENCH_THREADS);

    if (!options->cpus_given)
        memcpy(options->cpus, cpus, sizeof(cpus));
    if (!options->threads)
        options->threads = found < BENCH_THREADS ? 1 : BENCH_THREADS;
    if (options->threads == BENCH_THREADS && options->cpus_given &&
        options->cpus[0] == options->cpus[1])
        return complain("two threads need two CPUs", "--cpu");
    if (options->threads == BENCH_THREADS && found < BENCH_THREADS)
        return complain("this process may use one CPU only", "--threads");
    if (!options->rounds)
        options->rounds = options->quick ? ROUNDS_QUICK : ROUNDS;
    if (!options->shape_count) /* the quick ones are of no group */
        options->shape_count = bench_shapes(options->shapes, options->quick && !group);
    if (group)
        keep_group(options, group);
    return options->shape_count ? 0 : complain("no shapes in the group", group ? group : "");
}

static int parse(struct bench_options *options, int argc, char **argv)
{
    const char *group = NULL;
    bool list = false;
    int id, status;

    options->peer = true;
    options->weight_bits = 8;
    while ((id = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (id == OPTION_LIST) {
            list = true;
            continue;
        }
        status = parse_option(options, id, &group);
        if (status)
            return status;
    }
    if (argc - optind != 1 || strcmp(argv[optind], "kernels"))
        return complain("what to measure: kernels, sharing, path, latency, team or operands",
                        argc > optind ? argv[optind] : "");
    status = complete(options, group);
    if (status || !list)
        return status;
    for (size_t i = 0; i < options->shape_count; i++)
        printf("%-11s %u,%u,%u\n", options->shapes[i].group, options->shapes[i].m,
               options->shapes[i].n, options->shapes[i].k);
    return -1;
}

static void print_nothing(const struct bench_report *report, const struct bench_result *result)
{
    (void)report, (void)result;
}

/* Weights of 7 bits saturate nowhere: with them the peer has to agree. */
static bool peer_differs(const struct bench_report *report)
{
    bool differs = false;

    for (size_t i = 0; i < report->count && report->options->weight_bits < 8; i++)
        differs |= report->results[i].peer_off > 0;
    if (differs)
        fprintf(stderr, "gemmd-bench: our results differ from the peer's\n");
    return differs;
}

static int run(struct bench_options *options)
{
    struct bench_report report = {.options = options};
    int error;

    if (!bench_ours_select(options->level, options->weight_bits < 8, &report.kernel_name,
                           &report.level_name)) {
        fprintf(stderr, "gemmd-bench: this machine (or GEMMD_CPU_MASK) lacks the level %s\n",
                options->level ? options->level : "of GEMMD_CPU_MASK");
        return EX_UNAVAILABLE;
    }
    if (bench_pin(options->cpus, 1)) {
        fprintf(stderr, "gemmd-bench: cannot run on CPU %u\n", options->cpus[0]);
        return EX_USAGE;
    }
    report.results = calloc(options->shape_count, sizeof(*report.results));
    if (!report.results)
        return EX_SOFTWARE;
    bench_problem_set_weight_bits(options->weight_bits);
    bench_machine_open(&report.machine);
    if (options->peer)
        report.has_peer = bench_peer_init(report.level_name, &report.peer_version);
    else
        report.peer_version = "none: --no-peer";
    bench_peak_measure(&report.peak, &report.machine, report.level_name, options->quick);
    if (!options->json)
        bench_text_head(&report);
    bench_kernels(&report, options->json ? print_nothing : bench_text_row);
    if (options->json)
        bench_json(&report, stdout);
    else
        bench_text_tail(&report);
    error = options->plot ? bench_plot(&report, options->plot) : 0;
    if (error)
        fprintf(stderr, "gemmd-bench: no plot in %s: %s\n", options->plot, strerror(-error));
    if (peer_differs(&report))
        error = -EDOM;
    free(report.results);
    return error ? EX_SOFTWARE : EX_OK;
}

int main(int argc, char **argv)
{
    static struct bench_options options; /* 12 KiB of shapes */
    int status;

    if (argc > 1 && !strcmp(argv[1], "sharing"))
        return bench_sharing(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "path"))
        return bench_path(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "latency"))
        return bench_latency(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "team"))
        return bench_team(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "operands"))
        return bench_operands(argc - 1, argv + 1);
    status = parse(&options, argc, argv);
    if (status < 0)
        status = EX_OK;
    else if (status == 0)
        status = run(&options);
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "gemmd-bench: cannot write the report: %s\n", strerror(errno));
        return EX_SOFTWARE;
    }
    return status;
}
