/*
 * getopt_long, then the environment.  A wrong value is refused, never rounded into a right one;
 * the message says which option, what was given, and what would do.
 */
#include "worker/options.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include "kernels/cpu.h"
#include "proto/limits.h"
#include "worker/log.h"
#include "worker/scheduler.h"
#include "worker/topology.h"

#define NODE_MAX         1023
#define SPIN_US_MAX      1000000
#define IDLE_EXIT_S_MAX  (365u * 24 * 3600)
#define POOL_BYTES_MIN   (UINT64_C(1) << 20)
#define POOL_BYTES_MAX   (UINT64_C(1) << 46) /* half of what x86-64 can map */
#define POOL_BYTES_START (UINT64_C(1) << 30)
#define WATCHDOG_S_MAX   3600
#define WINDOW_US_MAX    ((uint32_t)(SCHEDULER_WINDOW_NS_MAX / 1000))
#define WATCHDOG_S_START 30
/* 1,000 clients and the tools that watch them; leaves room for others, even so. */
#define UID_SESSIONS_START (GEMMD_WORKER_SESSIONS_MAX - 50)

enum option_id {
    OPTION_NODE = 256,
    OPTION_CPUS,
    OPTION_SOCKET,
    OPTION_POOL_BYTES,
    OPTION_HUGEPAGES,
    OPTION_REQUIRE_HUGEPAGES,
    OPTION_SPIN_US,
    OPTION_IDLE_EXIT,
    OPTION_READY_FD,
    OPTION_RING_START,
    OPTION_MODEL,
    OPTION_PACK_PROGRAM,
    OPTION_UID_LAYER_BYTES,
    OPTION_UNUSED_LAYER_BYTES,
    OPTION_TAKE_OVER,
    OPTION_WINDOW,
    OPTION_NO_COALESCING,
    OPTION_VERIFY_SAMPLE,
    OPTION_ALLOW_UID,
    OPTION_ALLOW_GID,
    OPTION_UID_SESSIONS,
    OPTION_UID_WEIGHT,
    OPTION_ARENA_BYTES,
    OPTION_UID_ARENA_BYTES,
    OPTION_WATCHDOG,
    OPTION_SANDBOX,
    OPTION_VERSION,
    OPTION_HELP,
};

static const struct option long_options[] = {
    {"node", required_argument, NULL, OPTION_NODE},
    {"cpus", required_argument, NULL, OPTION_CPUS},
    {"socket", required_argument, NULL, OPTION_SOCKET},
    {"pool-bytes", required_argument, NULL, OPTION_POOL_BYTES},
    {"hugepages", required_argument, NULL, OPTION_HUGEPAGES},
    {"require-hugepages", no_argument, NULL, OPTION_REQUIRE_HUGEPAGES},
    {"spin-us", required_argument, NULL, OPTION_SPIN_US},
    {"idle-exit", required_argument, NULL, OPTION_IDLE_EXIT},
    {"ready-fd", required_argument, NULL, OPTION_READY_FD},
    {"ring-start", required_argument, NULL, OPTION_RING_START},
    {"model", required_argument, NULL, OPTION_MODEL},
    {"pack-program", required_argument, NULL, OPTION_PACK_PROGRAM},
    {"uid-layer-bytes", required_argument, NULL, OPTION_UID_LAYER_BYTES},
    {"unused-layer-bytes", required_argument, NULL, OPTION_UNUSED_LAYER_BYTES},
    {"take-over", no_argument, NULL, OPTION_TAKE_OVER},
    {"window", required_argument, NULL, OPTION_WINDOW},
    {"no-coalescing", no_argument, NULL, OPTION_NO_COALESCING},
    {"verify-sample", required_argument, NULL, OPTION_VERIFY_SAMPLE},
    {"allow-uid", required_argument, NULL, OPTION_ALLOW_UID},
    {"allow-gid", required_argument, NULL, OPTION_ALLOW_GID},
    {"uid-sessions", required_argument, NULL, OPTION_UID_SESSIONS},
    {"uid-weight", required_argument, NULL, OPTION_UID_WEIGHT},
    {"arena-bytes", required_argument, NULL, OPTION_ARENA_BYTES},
    {"uid-arena-bytes", required_argument, NULL, OPTION_UID_ARENA_BYTES},
    {"watchdog", required_argument, NULL, OPTION_WATCHDOG},
    {"sandbox", required_argument, NULL, OPTION_SANDBOX},
    {"version", no_argument, NULL, OPTION_VERSION},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static const char help_text[] =
    "usage: gemmd [option …]\n"
    "Runs int8 matrix products for the processes of one NUMA node.\n"
    "\n"
    "  --node N|auto        NUMA node to serve (auto: of the first CPU of --cpus, else of the CPU\n"
    "                       it runs on)\n"
    "  --cpus LIST          CPUs to use, like 0-3,8 (all allowed ones of the node)\n"
    "  --socket PATH        where clients connect ($GEMMD_SOCKET, else $XDG_RUNTIME_DIR/gemmd/,\n"
    "                       /run/gemmd/ for root, /tmp/gemmd-UID/, then node<N>.sock)\n"
    "  --pool-bytes SIZE    limit of weight memory, with K, M or G (1G)\n"
    "  --hugepages KIND     auto, 1g, 2m, thp or none: the first kind to try (auto)\n"
    "  --require-hugepages  fail rather than use pages below 2m\n"
    "  --spin-us N          longest spin before sleeping (50; 0 with one CPU online)\n"
    "  --idle-exit SECONDS  end when nobody was connected for so long (0: never)\n"
    "  --ready-fd FD        write \"READY\" there once the socket listens\n"
    "  --ring-start N       first index of new rings (0; for tests)\n"
    "  --model FILE[:NAME]  load this packed file or safetensors; its layers are NAME/LAYER\n"
    "  --pack-program PATH  what packs safetensors (gemmd-pack beside this program)\n"
    "  --uid-layer-bytes SIZE     limit of the layers one user makes (none)\n"
    "  --unused-layer-bytes SIZE  limit of the layers nobody has open (that of the pool)\n"
    "  --take-over          replace the worker that serves the socket, and keep its layers\n"
    "  --window LIST        how long jobs of layers wait for company, in us: bert:50,cnn/fc:20\n"
    "                       (never)\n"
    "  --no-coalescing      each job alone (to measure what sharing brings)\n"
    "  --verify-sample N    check a row of one job in N before it completes (0: of none)\n"
    "  --allow-uid LIST     users that may connect beside this one and root (none)\n"
    "  --allow-gid LIST     groups whose members may connect (gemmd, if it exists; \"\": none)\n"
    "  --uid-sessions N     sessions one user may have (1050)\n"
    "  --uid-weight LIST    shares of compute of each session of users, like 1000:4,alice:2 (1)\n"
    "  --arena-bytes SIZE   limit of all sessions' arenas (half of the machine's memory)\n"
    "  --uid-arena-bytes SIZE  limit of one user's arenas (three quarters of that)\n"
    "  --watchdog SECONDS   end when a thread makes no progress for so long (30; 0: never)\n"
    "  --sandbox MODE       system calls outside the list: errno (they fail), kill or off (errno)\n"
    "  --version, --help\n"
    "\n"
    "Environment: GEMMD_SOCKET, GEMMD_LOG=level|topic:level[,…], GEMMD_CPU_MASK=level[,…],\n"
    "GEMMD_EVENT_LEVEL=F0|F1|F2|F3, GEMMD_DEBUG=1, GEMMD_TRACE=file,\n"
    "XDG_RUNTIME_DIR.\n";

static int complain(int exit_code, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int complain(int exit_code, const char *format, ...)
{
    va_list arguments;

    fputs("gemmd: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return exit_code;
}

/* Decimal digits only: strtoull alone would take "-1", " 1" and "0x1". */
static bool parse_number(const char *text, uint64_t max, uint64_t *out)
{
    uint64_t value = 0;

    if (!*text)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
            return false;
    }
    *out = value;
    return value <= max;
}

static bool parse_bytes(const char *text, uint64_t *out)
{
    static const char suffixes[] = "KMG";
    char digits[24];
    size_t length = strlen(text);
    const char *suffix = length ? strchr(suffixes, text[length - 1]) : NULL;
    uint64_t value, unit = 1;

    if (length == 0 || length >= sizeof(digits))
        return false;
    memcpy(digits, text, length + 1);
    if (suffix) {
        unit = UINT64_C(1024) << (10 * (suffix - suffixes));
        digits[length - 1] = '\0';
    }
    if (!parse_number(digits, UINT64_MAX, &value) || __builtin_mul_overflow(value, unit, &value))
        return false;
    *out = value;
    return value >= POOL_BYTES_MIN && value <= POOL_BYTES_MAX;
}

static int set_node(struct options *out, const char *text)
{
    uint64_t node;

    if (strcmp(text, "auto") == 0) {
        out->node = -1;
        return 0;
    }
    if (!parse_number(text, NODE_MAX, &node))
        return complain(EX_USAGE, "--node %s: give a node number up to %d, or auto", text,
                        NODE_MAX);
    out->node = (int)node;
    return 0;
}

static int set_cpus(struct options *out, const char *text)
{
    if (cpulist_parse(text, &out->cpus) < 0 || CPU_COUNT(&out->cpus) == 0)
        return complain(EX_USAGE, "--cpus %s: give a list like 0-3,8 with CPUs below %d", text,
                        CPU_SETSIZE);
    out->cpus_set = true;
    return 0;
}

static int set_socket(struct options *out, const char *name, const char *text, int exit_code)
{
    if (!*text || strlen(text) >= sizeof(out->socket))
        return complain(exit_code, "%s %s: give a path of 1 to %zu bytes", name, text,
                        sizeof(out->socket) - 1);
    memcpy(out->socket, text, strlen(text) + 1);
    return 0;
}

static int set_hugepages(struct options *out, const char *text)
{
    static const char *const names[] = {"auto", "1g", "2m", "thp", "none"};

    for (int i = 0; i < 5; i++) {
        if (strcmp(text, names[i]) == 0) {
            out->hugepages = (enum pool_policy)i;
            return 0;
        }
    }
    return complain(EX_USAGE, "--hugepages %s: give auto, 1g, 2m, thp or none", text);
}

static int set_sandbox(struct options *out, const char *text)
{
    static const char *const names[] = {"errno", "kill", "off"};

    for (int i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) == 0) {
            out->sandbox = (enum sandbox_mode)i;
            return 0;
        }
    }
    return complain(EX_USAGE, "--sandbox %s: give errno, kill or off", text);
}

/* Who may connect, and how much one of them may take.  0, an exit code, or -1: not one of these. */
static int apply_policy(struct options *out, int id, const char *text)
{
    struct peers_fault why;
    uint64_t value;

    switch (id) {
    case OPTION_ALLOW_UID:
        if (peers_add_users(&out->peers, text))
            return 0;
        return complain(EX_USAGE, "--allow-uid %s: give up to %d users, like 1000,alice", text,
                        PEERS_MAX);
    case OPTION_ALLOW_GID:
        out->groups_set = true;
        if (peers_add_groups(&out->peers, text))
            return 0;
        return complain(EX_USAGE, "--allow-gid %s: give up to %d groups, like 100,users", text,
                        PEERS_MAX);
    case OPTION_UID_SESSIONS:
        if (!parse_number(text, GEMMD_WORKER_SESSIONS_MAX, &value) || value == 0)
            return complain(EX_USAGE, "--uid-sessions %s: give 1 to %u", text,
                            GEMMD_WORKER_SESSIONS_MAX);
        out->uid_sessions = (uint32_t)value;
        return 0;
    case OPTION_UID_WEIGHT:
        if (peers_add_weights(&out->peers, text, SCHEDULER_WEIGHT_MAX, &why))
            return 0;
        return complain(EX_USAGE, "--uid-weight: %s; give up to %d users with 1 to %d each, like "
                        "1000:4,alice:2", why.text, PEERS_MAX, SCHEDULER_WEIGHT_MAX);
    case OPTION_ARENA_BYTES:
    case OPTION_UID_ARENA_BYTES:
        if (parse_bytes(text, id == OPTION_ARENA_BYTES ? &out->arena_bytes : &out->uid_arena_bytes))
            return 0;
        return complain(EX_USAGE, "--%sarena-bytes %s: give 1M to 65536G, like 512M or 2G",
                        id == OPTION_ARENA_BYTES ? "" : "uid-", text);
    case OPTION_WATCHDOG:
        if (!parse_number(text, WATCHDOG_S_MAX, &value))
            return complain(EX_USAGE, "--watchdog %s: give 0 (none) to %d seconds", text,
                            WATCHDOG_S_MAX);
        out->watchdog_s = (uint32_t)value;
        return 0;
    case OPTION_SANDBOX:
        return set_sandbox(out, text);
    default:
        return -1;
    }
}

static int set_ready_fd(struct options *out, const char *text)
{
    uint64_t fd;
    int flags;

    if (!parse_number(text, INT32_MAX, &fd))
        return complain(EX_USAGE, "--ready-fd %s: give the number of an open file", text);
    flags = fcntl((int)fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY)
        return complain(EX_USAGE, "--ready-fd %s: not open for writing; open it in the parent",
                        text);
    fcntl((int)fd, F_SETFD, FD_CLOEXEC);
    out->ready_fd = (int)fd;
    return 0;
}

/* What is about layers.  0, an exit code, or -1: not one of these. */
static int apply_layers(struct options *out, int id, const char *text)
{
    switch (id) {
    case OPTION_MODEL:
        if (out->model_count == OPTIONS_MODELS_MAX)
            return complain(EX_USAGE, "--model %s: more than %d models", text, OPTIONS_MODELS_MAX);
        out->models[out->model_count++] = text;
        return 0;
    case OPTION_PACK_PROGRAM:
        out->pack_program = text;
        return 0;
    case OPTION_UID_LAYER_BYTES:
        if (parse_bytes(text, &out->uid_layer_bytes))
            return 0;
        return complain(EX_USAGE, "--uid-layer-bytes %s: give 1M to 65536G, like 512M or 2G", text);
    case OPTION_UNUSED_LAYER_BYTES:
        if (parse_bytes(text, &out->unused_layer_bytes))
            return 0;
        return complain(EX_USAGE, "--unused-layer-bytes %s: give 1M to 65536G, like 512M or 2G",
                        text);
    case OPTION_WINDOW:
        if (window_list_add(&out->windows, text, WINDOW_US_MAX))
            return 0;
        return complain(EX_USAGE, "--window %s: give up to %d names of layers or models with 1 to "
                        "%u us each, like bert:50,resnet/fc:20", text, WINDOW_LIST_MAX,
                        WINDOW_US_MAX);
    case OPTION_TAKE_OVER:
        out->take_over = true;
        return 0;
    default:
        return -1;
    }
}

/* 0, or an exit code. */
static int apply(struct options *out, int id, const char *text)
{
    uint64_t value;
    int code = apply_policy(out, id, text);

    if (code < 0)
        code = apply_layers(out, id, text);
    if (code >= 0)
        return code;
    switch (id) {
    case OPTION_NODE:
        return set_node(out, text);
    case OPTION_CPUS:
        return set_cpus(out, text);
    case OPTION_SOCKET:
        return set_socket(out, "--socket", text, EX_USAGE);
    case OPTION_POOL_BYTES:
        if (parse_bytes(text, &out->pool_bytes))
            return 0;
        return complain(EX_USAGE, "--pool-bytes %s: give 1M to 65536G, like 512M or 2G", text);
    case OPTION_HUGEPAGES:
        return set_hugepages(out, text);
    case OPTION_REQUIRE_HUGEPAGES:
        out->require_hugepages = true;
        return 0;
    case OPTION_SPIN_US:
        if (!parse_number(text, SPIN_US_MAX, &value))
            return complain(EX_USAGE, "--spin-us %s: give 0 to %d", text, SPIN_US_MAX);
        out->spin_ns = (int64_t)value * 1000;
        return 0;
    case OPTION_IDLE_EXIT:
        if (!parse_number(text, IDLE_EXIT_S_MAX, &value))
            return complain(EX_USAGE, "--idle-exit %s: give 0 (never) to %u seconds", text,
                            IDLE_EXIT_S_MAX);
        out->idle_exit_s = (uint32_t)value;
        return 0;
    case OPTION_READY_FD:
        return set_ready_fd(out, text);
    case OPTION_RING_START:
        if (!parse_number(text, UINT32_MAX, &value))
            return complain(EX_USAGE, "--ring-start %s: give 0 to %u", text, UINT32_MAX);
        out->ring_start = (uint32_t)value;
        return 0;
    case OPTION_NO_COALESCING:
        out->no_coalescing = true;
        return 0;
    case OPTION_VERIFY_SAMPLE:
        if (!parse_number(text, UINT32_MAX, &value))
            return complain(EX_USAGE, "--verify-sample %s: give 0 (none) to %u", text, UINT32_MAX);
        out->verify_sample = (uint32_t)value;
        return 0;
    default:
        return complain(EX_USAGE, "see gemmd --help"); /* getopt_long has named the option */
    }
}

/* 0, or an exit code. */
static int read_environment(struct options *out)
{
    const char *text = getenv("GEMMD_SOCKET");
    int error = 0;

    if (text && *text && !*out->socket)
        error = set_socket(out, "GEMMD_SOCKET", text, EX_CONFIG);
    if (error)
        return error;
    text = getenv("GEMMD_LOG");
    if (!log_init(text))
        return complain(EX_CONFIG,
                        "GEMMD_LOG=%s: give error, warn, info or debug, or topic:level[,…] with "
                        "topics worker, control, session, pool, loop, layers, job", text);
    text = getenv("GEMMD_CPU_MASK");
    if (!cpu_mask_parse(text, &out->cpu_mask))
        return complain(EX_CONFIG, "GEMMD_CPU_MASK=%s: give levels like avx2 or avx2,avx512vnni",
                        text);
    text = getenv("GEMMD_EVENT_LEVEL");
    if (text && *text) {
        if (text[0] != 'F' || text[1] < '0' || text[1] > '3' || text[2])
            return complain(EX_CONFIG, "GEMMD_EVENT_LEVEL=%s: give F0, F1, F2 or F3", text);
        out->event_level_forced = text[1] - '0';
    }
    text = getenv("GEMMD_DEBUG");
    if (text && *text && strcmp(text, "0") != 0 && strcmp(text, "1") != 0)
        return complain(EX_CONFIG, "GEMMD_DEBUG=%s: give 0 or 1", text);
    out->debug = text && strcmp(text, "1") == 0;
    out->trace = getenv("GEMMD_TRACE");
    return 0;
}

static void set_defaults(struct options *out)
{
    memset(out, 0, sizeof(*out));
    out->node = -1;
    out->pool_bytes = POOL_BYTES_START;
    out->hugepages = POOL_POLICY_AUTO;
    out->spin_ns = -1;
    out->ready_fd = -1;
    out->event_level_forced = -1;
    out->uid_sessions = UID_SESSIONS_START;
    out->watchdog_s = WATCHDOG_S_START;
}

/* What depends on the machine and was not given. */
static void set_machine_defaults(struct options *out)
{
    long pages = sysconf(_SC_PHYS_PAGES); /* -1: a container that hides it */

    if (!out->groups_set)
        peers_add_default_group(&out->peers);
    if (out->arena_bytes == 0 && pages > 0)
        out->arena_bytes = (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE) / 2;
    if (out->arena_bytes == 0)
        out->arena_bytes = GEMMD_ARENA_BYTES_MAX;
    if (out->uid_arena_bytes == 0)
        out->uid_arena_bytes = out->arena_bytes / 4 * 3;
}

int options_parse(struct options *out, int argc, char **argv, int *exit_code)
{
    int id;

    set_defaults(out);
    *exit_code = 0;
    optind = 0; /* a second parse in one process starts over */
    while ((id = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (id == OPTION_HELP || id == OPTION_VERSION) {
            fputs(id == OPTION_HELP ? help_text : "gemmd " GEMMD_WORKER_VERSION "\n", stdout);
            return 1;
        }
        *exit_code = apply(out, id, optarg);
        if (*exit_code)
            return 1;
    }
    if (optind < argc)
        *exit_code = complain(EX_USAGE, "%s: no argument is expected; see gemmd --help",
                              argv[optind]);
    else if (out->require_hugepages && (out->hugepages == POOL_POLICY_THP ||
                                        out->hugepages == POOL_POLICY_NONE))
        *exit_code = complain(EX_USAGE, "--require-hugepages: needs --hugepages auto, 1g or 2m");
    else
        *exit_code = read_environment(out);
    set_machine_defaults(out);
    return *exit_code != 0;
}
