/*
 * gemmd-stress's command line.  A wrong value is refused with what would do.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sysexits.h>

#include "tools/stress.h"
#include "tools/stress_machine.h"

/* What the protocol allows (client/gemmd.h: m 0..2^20, n 1..2^20, k 1..65536). */
#define M_MAX (1 << 20)
#define N_MAX (1 << 20)
#define K_MAX 65536

static const char usage_text[] =
    "usage: gemmd-stress [option ...]\n"
    "Keeps a worker busy from many sessions and checks every result.\n"
    "\n"
    "  --socket PATH     the worker's socket (default: as every client; starts one if none runs)\n"
    "  --sessions S      sessions, each a process of its own (default 2)\n"
    "  --threads         sessions are threads of one process\n"
    "  --depth D         jobs in flight per session, 1 to 4095 (default 32)\n"
    "  --shape M,N,K     M rows of a layer of N channels and depth K; repeat for a mix; M = 0 is\n"
    "                    an empty job (default 1,256,256)\n"
    "  --rate R          open loop: R jobs arrive each second, of all sessions together, whether\n"
    "                    or not earlier ones are done; latencies count from the arrival\n"
    "  --seconds T       run for T seconds (default 2)\n"
    "  --jobs J          run until J jobs are done, of all sessions together\n"
    "  --cpu LIST        pin session i to the i-th CPU of LIST, like 0-3,8\n"
    "  --verify KIND     full: each element (default); freivalds: each row against random signs;\n"
    "                    none\n"
    "  --seed X          of operands and job order (default: random; always printed)\n"
    "  --wait HOW        sleep: gemmd_wait with its default spin (default); spin: gemmd_poll only\n"
    "  --rtt             round trips: depth 1, spinning, unchecked unless --verify is given\n"
    "  --transport       round trip, rate, wake-up and a thousand sessions, by empty jobs between\n"
    "                    two pinned cores, beside the bare cache line and the plain futex; uses\n"
    "                    --socket, --cpu, --repetitions, --json\n"
    "  --repetitions R   of --transport (default 5)\n"
    "  --json            the report as JSON\n"
    "  --hgrm FILE       latencies in us by percentile, in HdrHistogram's text format\n"
    "  --plot FILE       a PNG of latency by percentile and rate over time; needs gnuplot\n"
    "  --version, --help\n"
    "exit status: 0 ok; 1 a wrong, failed, missing or double result, or a lost wake-up; 64 usage;\n"
    "69 no worker; 70 internal; 73 a file cannot be written\n";

enum option_id {
    OPTION_SOCKET = 256,
    OPTION_SESSIONS,
    OPTION_THREADS,
    OPTION_DEPTH,
    OPTION_SHAPE,
    OPTION_RATE,
    OPTION_SECONDS,
    OPTION_JOBS,
    OPTION_CPU,
    OPTION_VERIFY,
    OPTION_SEED,
    OPTION_WAIT,
    OPTION_RTT,
    OPTION_TRANSPORT,
    OPTION_REPETITIONS,
    OPTION_JSON,
    OPTION_HGRM,
    OPTION_PLOT,
    OPTION_VERSION,
    OPTION_HELP,
};

static const struct option long_options[] = {
    {"socket", required_argument, NULL, OPTION_SOCKET},
    {"sessions", required_argument, NULL, OPTION_SESSIONS},
    {"threads", no_argument, NULL, OPTION_THREADS},
    {"depth", required_argument, NULL, OPTION_DEPTH},
    {"shape", required_argument, NULL, OPTION_SHAPE},
    {"rate", required_argument, NULL, OPTION_RATE},
    {"seconds", required_argument, NULL, OPTION_SECONDS},
    {"jobs", required_argument, NULL, OPTION_JOBS},
    {"cpu", required_argument, NULL, OPTION_CPU},
    {"verify", required_argument, NULL, OPTION_VERIFY},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"wait", required_argument, NULL, OPTION_WAIT},
    {"rtt", no_argument, NULL, OPTION_RTT},
    {"transport", no_argument, NULL, OPTION_TRANSPORT},
    {"repetitions", required_argument, NULL, OPTION_REPETITIONS},
    {"json", no_argument, NULL, OPTION_JSON},
    {"hgrm", required_argument, NULL, OPTION_HGRM},
    {"plot", required_argument, NULL, OPTION_PLOT},
    {"version", no_argument, NULL, OPTION_VERSION},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static const char *const verify_names[] = {"none", "full", "freivalds"};

const char *stress_verify_name(enum stress_verify verify)
{
    return verify_names[verify];
}

static int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int complain(const char *format, ...)
{
    va_list arguments;

    fputs("gemmd-stress: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return EX_USAGE;
}

/* Decimal digits up to *end; strtoull alone would take signs and blanks. */
static bool parse_digits(const char *text, uint64_t min, uint64_t max, uint64_t *out,
                         const char **end)
{
    char *after;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    *out = strtoull(text, &after, 10);
    *end = after;
    return errno == 0 && *out >= min && *out <= max;
}

static bool parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    const char *end;

    return parse_digits(text, min, max, out, &end) && *end == '\0';
}

static int set_count(const char *option, const char *text, uint64_t max, uint32_t *out)
{
    uint64_t value;

    if (!parse_number(text, 1, max, &value))
        return complain("--%s %s: give 1 to %llu", option, text, (unsigned long long)max);
    *out = (uint32_t)value;
    return 0;
}

static int add_shape(struct stress_options *out, const char *text)
{
    uint64_t m, n, k;
    const char *end;

    if (!parse_digits(text, 0, M_MAX, &m, &end) || *end != ',' ||
        !parse_digits(end + 1, 1, N_MAX, &n, &end) || *end != ',' ||
        !parse_number(end + 1, 1, K_MAX, &k))
        return complain("--shape %s: give M,N,K with M 0 to %d, N 1 to %d, K 1 to %d", text, M_MAX,
                        N_MAX, K_MAX);
    if (out->shape_count == STRESS_SHAPES_MAX)
        return complain("--shape: at most %d", STRESS_SHAPES_MAX);
    out->shapes[out->shape_count++] =
        (struct stress_shape){(uint32_t)m, (uint32_t)n, (uint32_t)k};
    return 0;
}

static int set_cpus(struct stress_options *out, const char *text)
{
    const char *at = text;

    out->cpu_count = 0;
    for (;;) {
        uint64_t first, last;

        if (!parse_digits(at, 0, STRESS_CPUS_MAX - 1, &first, &at))
            break;
        last = first;
        if (*at == '-' && !parse_digits(at + 1, first, STRESS_CPUS_MAX - 1, &last, &at))
            break;
        for (; first <= last && out->cpu_count < STRESS_CPUS_MAX; first++)
            out->cpus[out->cpu_count++] = (uint32_t)first;
        if (*at == '\0')
            return 0;
        if (*at++ != ',')
            break;
    }
    return complain("--cpu %s: give a list like 0-3,8 with CPUs below %d", text, STRESS_CPUS_MAX);
}

static int set_real(const char *option, const char *text, double min, double max, double *out)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end != '\0' || !(value >= min) || !(value <= max))
        return complain("--%s %s: give %.10g to %.10g", option, text, min, max);
    *out = value;
    return 0;
}

static int set_verify(struct stress_options *out, const char *text)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(text, verify_names[i]) == 0) {
            out->verify = (enum stress_verify)i;
            return 0;
        }
    return complain("--verify %s: give full, freivalds or none", text);
}

static int set_wait(struct stress_options *out, const char *text)
{
    out->spin = strcmp(text, "spin") == 0;
    if (!out->spin && strcmp(text, "sleep") != 0)
        return complain("--wait %s: give spin or sleep", text);
    return 0;
}

/* 0, or an exit status. */
static int apply(struct stress_options *out, int id, const char *text)
{
    switch ((enum option_id)id) {
    case OPTION_SOCKET:
        out->socket = text;
        return 0;
    case OPTION_SESSIONS:
        return set_count("sessions", text, STRESS_SESSIONS_MAX, &out->sessions);
    case OPTION_THREADS:
        out->threads = true;
        return 0;
    case OPTION_DEPTH:
        return set_count("depth", text, STRESS_DEPTH_MAX, &out->depth);
    case OPTION_SHAPE:
        return add_shape(out, text);
    case OPTION_SECONDS:
        return set_real("seconds", text, 0.001, 1e7, &out->seconds);
    case OPTION_RATE:
        return set_real("rate", text, 0.1, 1e9, &out->rate);
    case OPTION_JOBS:
        if (parse_number(text, 1, UINT64_C(1) << 50, &out->jobs))
            return 0;
        return complain("--jobs %s: give 1 to 2^50", text);
    case OPTION_CPU:
        return set_cpus(out, text);
    case OPTION_VERIFY:
        return set_verify(out, text);
    case OPTION_SEED:
        if (parse_number(text, 0, INT64_MAX, &out->seed))
            return 0;
        return complain("--seed %s: give 0 to 2^63 - 1", text);
    case OPTION_WAIT:
        return set_wait(out, text);
    case OPTION_RTT:
        out->rtt = true;
        return 0;
    case OPTION_TRANSPORT:
        out->transport = true;
        return 0;
    case OPTION_REPETITIONS:
        return set_count("repetitions", text, STRESS_REPETITIONS_MAX, &out->repetitions);
    case OPTION_JSON:
        out->json = true;
        return 0;
    case OPTION_HGRM:
        out->hgrm = text;
        return 0;
    case OPTION_PLOT:
        out->plot = text;
        return 0;
    case OPTION_VERSION:
    case OPTION_HELP:
        break;
    }
    return complain("see gemmd-stress --help"); /* getopt_long has named the option */
}

static uint64_t random_seed(void)
{
    uint32_t seed; /* 32 bits are easier to retype */

    if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
        seed = (uint32_t)stress_now_ns();
    return seed;
}

static int finish(struct stress_options *out, bool depth_given, bool verify_given, bool wait_given)
{
    if (out->shape_count == 0)
        out->shapes[out->shape_count++] = (struct stress_shape){1, 256, 256};
    if (out->seconds == 0 && out->jobs == 0)
        out->seconds = 2;
    if (out->transport && (out->hgrm || out->plot || out->rate > 0))
        return complain("--transport: has loads of its own; without --rate, --hgrm, --plot");
    if (!out->rtt)
        return 0;
    if (out->rate > 0)
        return complain("--rtt: a closed loop; without --rate");
    if (depth_given && out->depth != 1)
        return complain("--rtt: the depth is 1");
    out->depth = 1;
    if (!verify_given)
        out->verify = STRESS_VERIFY_NONE;
    if (!wait_given)
        out->spin = true;
    return 0;
}

int stress_options_parse(struct stress_options *out, int argc, char **argv)
{
    bool depth_given = false, verify_given = false, wait_given = false, seed_given = false;
    int id;

    memset(out, 0, sizeof(*out));
    out->sessions = 2;
    out->depth = 32;
    out->verify = STRESS_VERIFY_FULL;
    out->repetitions = 5;
    while ((id = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        int error;

        if (id == OPTION_HELP || id == OPTION_VERSION) {
            printf("%s%s", id == OPTION_HELP ? usage_text : "gemmd-stress ",
                   id == OPTION_HELP ? "" : gemmd_version());
            fputs(id == OPTION_HELP ? "" : "\n", stdout);
            return -1;
        }
        error = apply(out, id, optarg);
        if (error)
            return error;
        depth_given |= id == OPTION_DEPTH;
        verify_given |= id == OPTION_VERIFY;
        wait_given |= id == OPTION_WAIT;
        seed_given |= id == OPTION_SEED;
    }
    if (optind < argc)
        return complain("%s: no argument is expected; see gemmd-stress --help", argv[optind]);
    if (!seed_given)
        out->seed = random_seed();
    return finish(out, depth_given, verify_given, wait_given);
}
