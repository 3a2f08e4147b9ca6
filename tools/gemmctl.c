/*
 * gemmctl: shows what a running worker holds and has done, and changes what its operator may
 * change.  It opens a control-only session (no rings, no arena) and never starts a worker: asking
 * must not change what is asked about.
 */
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "tools/gemmctl.h"

struct command {
    const char *name;
    int (*run)(struct gemmctl *ctl); /* 0, -errno, or an exit status after saying why */
    bool takes_argument;             /* else it may not */
};

/* A load answers when it is done, which takes seconds for gigabytes. */
#define TIMEOUT_MS 600000

static const char usage_text[] =
    "usage: gemmctl [--socket PATH] [--json] COMMAND [ARGUMENT]\n"
    "  info      the worker: node, CPUs, kernel, event loop, weight pool by page size\n"
    "  layers    the layers it holds\n"
    "  sessions  its sessions (of all users only for root and the worker's own user)\n"
    "  stats     counters and latency percentiles since its start; with --watch[=SECONDS] a line\n"
    "            of rates each second, or each SECONDS\n"
    "for root and the worker's own user:\n"
    "  load FILE[:NAME]  loads a packed file or safetensors; its layers are NAME/LAYER\n"
    "  unload NAME    the layer of that name and those below it\n"
    "  pin NAME       never evict these; unpin NAME\n"
    "  upgrade [PROGRAM]  replaces the worker by a new process of PROGRAM (the same program),\n"
    "                 with the same arguments, layers and socket; clients reconnect\n"
    "options:\n"
    "  --socket PATH  the worker's socket (default: $GEMMD_SOCKET, else this user's worker,\n"
    "                 else the system's)\n"
    "  --json         exact numbers as JSON\n"
    "  --version, --help\n"
    "exit status: 0 ok, 64 usage, 65 not a valid file, 66 no such file or layer,\n"
    "69 no worker answers, 70 internal, 77 not the operator\n";

const char *gemmctl_type_name(enum gemmd_type type)
{
    switch (type) {
    case GEMMD_TYPE_U8:
        return "u8";
    case GEMMD_TYPE_S8:
        return "s8";
    case GEMMD_TYPE_S32:
        return "s32";
    case GEMMD_TYPE_F32:
        return "f32";
    case GEMMD_TYPE_BF16:
        return "bf16";
    case GEMMD_TYPE_S4:
        return "s4";
    case GEMMD_TYPE_NONE:
        break;
    }
    return "none";
}

/* ---- commands -------------------------------------------------------------------------------- */

static int run_info(struct gemmctl *ctl)
{
    struct gemmd_info info;
    int error = gemmd_get_info(ctl->session, &info);

    if (error < 0)
        return error;
    if (ctl->json)
        return gemmctl_json_info(&info);
    gemmctl_text_info(&info);
    return 0;
}

typedef int (*get_entry)(struct gemmd *session, uint32_t index, void *out);

/* All entries, to be freed.  The list may grow or shrink while it is read: it ends at the first
 * index the worker refuses.  NULL: *error says why. */
static void *read_list(struct gemmd *session, get_entry get, size_t entry_bytes, size_t *count,
                       int *error)
{
    size_t capacity = 64;
    char *entries = malloc(capacity * entry_bytes);

    *error = entries ? 0 : -ENOMEM;
    for (*count = 0; !*error; *count += !*error) {
        if (*count == capacity) {
            char *grown = realloc(entries, 2 * capacity * entry_bytes);

            if (!grown) {
                *error = -ENOMEM;
                break;
            }
            entries = grown;
            capacity *= 2;
        }
        *error = get(session, (uint32_t)*count, entries + *count * entry_bytes);
    }
    if (*error == -ENOENT)
        return entries;
    free(entries);
    return NULL;
}

static int get_layer(struct gemmd *session, uint32_t index, void *out)
{
    return gemmd_get_layer_info(session, index, out);
}

static int run_layers(struct gemmctl *ctl)
{
    size_t count;
    int error;
    struct gemmd_layer_info *layers =
        read_list(ctl->session, get_layer, sizeof(*layers), &count, &error);

    if (!layers)
        return error;
    error = 0;
    if (ctl->json)
        error = gemmctl_json_layers(layers, count);
    else
        gemmctl_text_layers(layers, count);
    free(layers);
    return error;
}

static int get_session(struct gemmd *session, uint32_t index, void *out)
{
    return gemmd_get_session_info(session, index, out);
}

static int run_sessions(struct gemmctl *ctl)
{
    size_t count;
    int error;
    struct gemmd_session_info *sessions =
        read_list(ctl->session, get_session, sizeof(*sessions), &count, &error);

    if (!sessions)
        return error;
    error = 0;
    if (ctl->json)
        error = gemmctl_json_sessions(sessions, count);
    else
        gemmctl_text_sessions(sessions, count);
    free(sessions);
    return error;
}

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Until the worker is gone or the output cannot be written. */
static int watch_stats(struct gemmctl *ctl, struct gemmd_stats *before)
{
    double before_s = now_s();

    for (;;) {
        struct gemmd_stats now;
        struct gemmd_info info;
        double at_s;
        int error;

        sleep(ctl->watch_s);
        error = gemmd_get_info(ctl->session, &info); /* a dead worker's page can still be read */
        if (error == 0)
            error = gemmd_get_stats(ctl->session, &now);
        at_s = now_s();
        if (error < 0)
            return error;
        if (ctl->json)
            error = gemmctl_json_stats(&now);
        else
            gemmctl_text_watch(before, &now, at_s - before_s);
        if (error < 0 || fflush(stdout) != 0)
            return error;
        *before = now;
        before_s = at_s;
    }
}

static int run_stats(struct gemmctl *ctl)
{
    struct gemmd_stats stats;
    int error = gemmd_get_stats(ctl->session, &stats);

    if (error < 0)
        return error;
    if (ctl->watch_s)
        return watch_stats(ctl, &stats);
    if (ctl->json)
        return gemmctl_json_stats(&stats);
    gemmctl_text_stats(&stats);
    return 0;
}

static const struct command commands[] = {
    {"info", run_info, false},
    {"layers", run_layers, false},
    {"sessions", run_sessions, false},
    {"stats", run_stats, false},
    {"load", gemmctl_load, true},
    {"unload", gemmctl_unload, true},
    {"pin", gemmctl_pin, true},
    {"unpin", gemmctl_unpin, true},
    {"upgrade", gemmctl_upgrade, false},
};

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

/* ---- main ------------------------------------------------------------------------------------ */

/* Prints the failure of `session` (NULL: of gemmd_connect) and gives the exit status. */
static int fail(const struct gemmd *session, int error)
{
    const char *text = gemmd_error_text(session);

    fprintf(stderr, "gemmctl: %s\n", *text ? text : gemmd_strerror(error));
    switch (error) {
    case -ECONNREFUSED:
    case -ECONNRESET:
    case -EACCES:
    case -ETIMEDOUT:
    case -EAGAIN:
    case -EPROTO:
    case -EPROTONOSUPPORT:
        return EX_UNAVAILABLE;
    case -EPERM:
        return EX_NOPERM;
    case -EBADMSG:
        return EX_DATAERR;
    case -ENOENT:
        return EX_NOINPUT;
    default:
        return EX_SOFTWARE;
    }
}

static int run_command(struct gemmctl *ctl, const struct command *command)
{
    struct gemmd_options options;
    int error, status = EX_OK;

    gemmd_options_init(&options);
    options.socket = ctl->socket;
    options.autostart = 0;
    options.control_only = 1;
    options.timeout_ms = TIMEOUT_MS;
    error = gemmd_connect(&options, &ctl->session);
    if (error < 0)
        return fail(NULL, error);
    error = command->run(ctl);
    if (error < 0)
        status = fail(ctl->session, error);
    else if (error > 0)
        status = error;
    gemmd_close(&ctl->session);
    if (status == EX_OK && (fflush(stdout) != 0 || ferror(stdout))) {
        fprintf(stderr, "gemmctl: cannot write the output: %s\n", strerror(errno));
        status = EX_SOFTWARE;
    }
    return status;
}

static bool parse_seconds(const char *text, unsigned *out)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    *out = (unsigned)value;
    return *text >= '0' && *text <= '9' && !*end && value >= 1 && value <= 3600;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"socket", required_argument, NULL, 's'}, {"json", no_argument, NULL, 'j'},
        {"version", no_argument, NULL, 'v'},      {"help", no_argument, NULL, 'h'},
        {"watch", optional_argument, NULL, 'w'},
        {NULL, 0, NULL, 0},
    };
    struct gemmctl ctl = {0};
    const struct command *command;
    int option;

    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (option) {
        case 's':
            ctl.socket = optarg;
            break;
        case 'j':
            ctl.json = true;
            break;
        case 'w':
            if (!parse_seconds(optarg ? optarg : "1", &ctl.watch_s)) {
                fprintf(stderr, "gemmctl: --watch=%s: give 1 to 3600 seconds\n", optarg);
                return EX_USAGE;
            }
            break;
        case 'v':
            printf("gemmctl %s\n", gemmd_version());
            return EX_OK;
        case 'h':
            fputs(usage_text, stdout);
            return EX_OK;
        default:
            fputs(usage_text, stderr);
            return EX_USAGE;
        }
    }
    if (argc == optind) {
        fprintf(stderr, "gemmctl: a command is needed\n%s", usage_text);
        return EX_USAGE;
    }
    command = find_command(argv[optind]);
    if (!command) {
        fprintf(stderr, "gemmctl: unknown command '%s'\n%s", argv[optind], usage_text);
        return EX_USAGE;
    }
    if (ctl.watch_s && command->run != run_stats) {
        fprintf(stderr, "gemmctl: --watch is for stats\n");
        return EX_USAGE;
    }
    ctl.argument = argv[optind + 1];
    if (argc - optind != 1 + command->takes_argument &&
        !(command->run == gemmctl_upgrade && argc - optind == 2)) {
        fprintf(stderr, "gemmctl: %s takes %s argument\n%s", command->name,
                command->takes_argument ? "one" : "no", usage_text);
        return EX_USAGE;
    }
    return run_command(&ctl, command);
}
