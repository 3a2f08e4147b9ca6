/* See bench_command.h. */
#include "tools/bench_command.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

static bool add_shape(struct command *command, const char *text)
{
    uint32_t mnk[3];

    if (command->shape_count == COMMAND_SHAPES_MAX ||
        !bench_parse_numbers(text, command->shape_max, mnk, 3, command->empty_jobs) || !mnk[1] ||
        !mnk[2])
        return false;
    command->shapes[command->shape_count++] =
        (struct bench_shape){mnk[0], mnk[1], mnk[2], "shape"};
    return true;
}

static bool choose_cpus(struct command *command, const char *text)
{
    static const uint32_t max[2] = {1023, 1023};
    bool two = strchr(text, ',') != NULL;
    uint32_t cpus[2];

    if (!bench_parse_numbers(text, max, cpus, two ? 2 : 1, true))
        return false;
    snprintf(command->worker_cpu, sizeof(command->worker_cpu), "%u", cpus[0]);
    if (two)
        command->client_cpu = cpus[1];
    return true;
}

bool command_parse_real(const char *text, double min, double max, double *out)
{
    char *end;

    *out = strtod(text, &end);
    return end != text && !*end && *out >= min && *out <= max;
}

static bool parse_seconds(struct command *command, const char *text)
{
    return command_parse_real(text, command->seconds_min,
                              command->seconds_max > 0 ? command->seconds_max : 10,
                              &command->seconds);
}

/* False: wrong. */
static bool apply(struct command *command, int id)
{
    static const uint32_t rounds_max = BENCH_ROUNDS_MAX;

    switch (id) {
    case COMMAND_SHAPE:
        return add_shape(command, optarg);
    case COMMAND_ROUNDS:
        return bench_parse_numbers(optarg, &rounds_max, &command->rounds, 1, false);
    case COMMAND_SECONDS:
        return parse_seconds(command, optarg);
    case COMMAND_CPUS:
        return choose_cpus(command, optarg);
    case COMMAND_LEVEL:
        command->level = optarg;
        return strlen(optarg) < 32;
    case COMMAND_WORKER:
        command->worker.program = optarg;
        return true;
    case COMMAND_WORKER_OPTION:
        return bench_worker_argument(&command->worker, optarg);
    case COMMAND_QUICK:
        command->quick = true;
        return true;
    case COMMAND_JSON:
        command->json = true;
        return true;
    default:
        return id >= COMMAND_OWN && command->apply(command->owner, id, optarg);
    }
}

/* With what --help says of the option. */
static void complain(const struct command *command, const struct option *option)
{
    char row[64];
    const char *begin, *end;

    fprintf(stderr, "gemmd-bench: --%s %s: not what it takes; see gemmd-bench %s --help\n",
            option->name, optarg ? optarg : "", command->name);
    snprintf(row, sizeof(row), "\n  --%s ", option->name);
    begin = strstr(command->usage, row);
    if (!begin)
        return;
    end = begin;
    do /* lines that are further in belong to it */
        end += 1 + strcspn(end + 1, "\n");
    while (strncmp(end, "\n     ", 6) == 0);
    fprintf(stderr, "%.*s\n", (int)(end - begin - 1), begin + 1);
}

/* False: wrong, and said. */
static bool read_options(struct command *command, int argc, char **argv, bool *help)
{
    int id, row;

    while ((id = getopt_long(argc, argv, "", command->options, &row)) != -1) {
        if (id == COMMAND_HELP) {
            *help = true;
            return true;
        }
        if (id == '?') /* getopt has said it */
            return false;
        if (!apply(command, id)) {
            complain(command, &command->options[row]);
            return false;
        }
    }
    if (optind < argc)
        fprintf(stderr, "gemmd-bench: %s: only options are expected; see gemmd-bench %s --help\n",
                argv[optind], command->name);
    return optind == argc;
}

bool command_parse(struct command *command, int argc, char **argv, int *status)
{
    bool help = false;
    char mask[64];

    command->client_cpu = UINT_MAX;
    *status = EX_USAGE;
    if (!read_options(command, argc, argv, &help))
        return false;
    if (help) {
        fputs(command->usage, stdout);
        *status = EX_OK;
        return false;
    }
    if (command->level) { /* a list is exactly these levels; one name is those below, too */
        snprintf(mask, sizeof(mask), "ref,%s", command->level);
        setenv("GEMMD_CPU_MASK", mask, 1);
    }
    return true;
}

void command_default_shapes(struct command *command, const struct bench_shape *shapes,
                            size_t count)
{
    if (command->shape_count)
        return;
    memcpy(command->shapes, shapes, count * sizeof(*shapes));
    command->shape_count = (uint32_t)count;
}

void command_pin_worker(struct command *command, const char *spin_us)
{
    unsigned int cpus[1024], count = bench_cpus(cpus, 1024);

    if (!*command->worker_cpu && count)
        snprintf(command->worker_cpu, sizeof(command->worker_cpu), "%u", cpus[count - 1]);
    bench_worker_argument(&command->worker, "--cpus");
    bench_worker_argument(&command->worker, command->worker_cpu);
    bench_worker_argument(&command->worker, "--spin-us");
    bench_worker_argument(&command->worker, spin_us);
}
