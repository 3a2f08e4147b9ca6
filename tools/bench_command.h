/* The command line that the parts of gemmd-bench with a private worker have in common. */
#ifndef GEMMD_TOOLS_BENCH_COMMAND_H
#define GEMMD_TOOLS_BENCH_COMMAND_H

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>

#include "tools/bench.h"
#include "tools/bench_worker.h"

enum { COMMAND_SHAPES_MAX = 32 };

enum {
    COMMAND_SHAPE = 256, /* M,N,K; may be repeated */
    COMMAND_ROUNDS,
    COMMAND_SECONDS,
    COMMAND_CPUS, /* W[,C] */
    COMMAND_LEVEL,
    COMMAND_WORKER,
    COMMAND_WORKER_OPTION,
    COMMAND_QUICK,
    COMMAND_JSON,
    COMMAND_HELP,
    COMMAND_OWN, /* the first of a part's own */
};

/* Rows of a part's table of options. */
#define COMMAND_ROW_SHAPE   {"shape", required_argument, NULL, COMMAND_SHAPE}
#define COMMAND_ROW_ROUNDS  {"rounds", required_argument, NULL, COMMAND_ROUNDS}
#define COMMAND_ROW_SECONDS {"seconds", required_argument, NULL, COMMAND_SECONDS}
#define COMMAND_ROW_CPUS    {"cpus", required_argument, NULL, COMMAND_CPUS}
#define COMMAND_ROW_LEVEL   {"level", required_argument, NULL, COMMAND_LEVEL}
#define COMMAND_ROWS_LAST                                                                          \
    {"worker", required_argument, NULL, COMMAND_WORKER},                                           \
        {"worker-option", required_argument, NULL, COMMAND_WORKER_OPTION},                         \
        {"quick", no_argument, NULL, COMMAND_QUICK}, {"json", no_argument, NULL, COMMAND_JSON},    \
        {"help", no_argument, NULL, COMMAND_HELP},                                                 \
        {NULL, 0, NULL, 0}

struct command {
    /* set by the part */
    const char *name, *usage;
    const struct option *options;
    uint32_t shape_max[3];
    bool empty_jobs; /* M may be 0 */
    double seconds_min, seconds_max;
    bool (*apply)(void *owner, int id, const char *value); /* its own options; NULL: none */
    void *owner;
    /* what was given; 0, NULL, "" or UINT_MAX where nothing was */
    struct bench_shape shapes[COMMAND_SHAPES_MAX];
    uint32_t shape_count;
    unsigned int rounds, client_cpu;
    double seconds;
    char worker_cpu[16];
    const char *level;
    bool quick, json;
    struct bench_worker worker; /* its program and arguments */
};

/* Reads the line, and sets GEMMD_CPU_MASK for a level: for this process and its workers.  False:
 * leave with *status. */
bool command_parse(struct command *command, int argc, char **argv, int *status);

/* For a part's own options.  False: no number, or out of range. */
bool command_parse_real(const char *text, double min, double max, double *out);

/* Where no shape was given. */
void command_default_shapes(struct command *command, const struct bench_shape *shapes,
                            size_t count);

/* The worker on one CPU, the last allowed one unless --cpus was given, that spins for so long. */
void command_pin_worker(struct command *command, const char *spin_us);

#endif
