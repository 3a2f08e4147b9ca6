/*
 * gemmd-top: a worker as it works, on 80 x 24 characters: its threads, and its sessions or layers
 * in the order of a key.  Plain ANSI sequences; `--once` prints one look without them, `--json` as
 * JSON.  It opens a control-only session and reads the counters page, which costs the worker
 * nothing; the lists cost its control thread a message for each entry.
 */
#include "tools/top.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sysexits.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const char usage_text[] =
    "usage: gemmd-top [option ...]\n"
    "  --socket PATH   the worker's socket (default: as every client)\n"
    "  --interval S    seconds between two looks, 0.1 to 60 (default 1)\n"
    "  --sort KEY      jobs, rows, exec, wait or id (default exec)\n"
    "  --layers        layers rather than sessions\n"
    "  --once          one look, over one interval, and end\n"
    "  --json          as JSON; with --once\n"
    "  --help\n"
    "keys: j jobs/s, r rows/s, e compute, w waiting p99, i id; l layers, s sessions; q ends\n"
    "exit status: 0 ok, 64 usage, 69 no worker answers, 70 internal\n";

static volatile sig_atomic_t ended, stopped, resized;

static void on_signal(int number)
{
    *(number == SIGTSTP ? &stopped : number == SIGWINCH ? &resized : &ended) = 1;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- looking --------------------------------------------------------------------------------- */

/* 0 or -errno.  Lists end where the worker refuses; longer ones than there is room are cut. */
static int look(struct gemmd *session, struct top_look *out)
{
    int error = gemmd_get_info(session, &out->info);

    if (error == 0)
        error = gemmd_get_stats(session, &out->stats);
    out->at_ns = now_ns();
    out->session_count = out->layer_count = 0;
    while (error == 0 && out->session_count < TOP_LIST_MAX) {
        error = gemmd_get_session_info(session, out->session_count,
                                       &out->sessions[out->session_count]);
        out->session_count += error == 0;
    }
    if (error == -ENOENT)
        error = 0;
    while (error == 0 && out->layer_count < TOP_LIST_MAX) {
        error = gemmd_get_layer_info(session, out->layer_count, &out->layers[out->layer_count]);
        out->layer_count += error == 0;
    }
    return error == -ENOENT ? 0 : error;
}

/* ---- the terminal ---------------------------------------------------------------------------- */

static struct termios terminal_before;
static bool has_keys;

static bool can_draw(void)
{
    const char *terminal = getenv("TERM");

    return isatty(STDOUT_FILENO) && (!terminal || strcmp(terminal, "dumb") != 0);
}

static void restore_terminal(void)
{
    if (has_keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal_before);
    fputs("\033[?25h\n", stdout);
    fflush(stdout);
}

/* Keys without return, no echo, no cursor. */
static void prepare_terminal(void)
{
    struct termios raw;

    has_keys = tcgetattr(STDIN_FILENO, &terminal_before) == 0;
    raw = terminal_before;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    if (has_keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    fputs("\033[?25l\033[2J", stdout);
}

/* How much of the screen there is. */
static void fit_terminal(struct top_view *view)
{
    struct winsize size = {0};

    ioctl(STDOUT_FILENO, TIOCGWINSZ, &size); /* 0: it does not say */
    view->columns = size.ws_col && size.ws_col < TOP_COLUMNS ? size.ws_col : TOP_COLUMNS;
    view->lines = size.ws_row && size.ws_row < TOP_LINES ? size.ws_row : TOP_LINES;
    if (resized)
        fputs("\033[2J", stdout);
    resized = 0;
}

/* The shell gets its terminal as it was. */
static void stop_here(void)
{
    stopped = 0;
    restore_terminal();
    raise(SIGSTOP);
    prepare_terminal();
}

static void take_key(struct top_view *view, char key)
{
    static const char keys[] = "jrewi";
    const char *found = key ? strchr(keys, key) : NULL;

    if (found)
        view->sort = (enum top_sort)(found - keys);
    else if (key == 'l' || key == 's')
        view->layers = key == 'l';
    else if (key == 'q')
        ended = 1;
}

/* Waits for the interval's end; a key or a signal ends it early. */
static void wait_interval(struct top_view *view, uint64_t interval_ns)
{
    struct pollfd input = {.fd = has_keys && !view->once ? STDIN_FILENO : -1, .events = POLLIN};
    char key;

    if (poll(&input, 1, (int)(interval_ns / 1000000)) <= 0)
        return;
    if (read(STDIN_FILENO, &key, 1) == 1)
        take_key(view, key);
    else
        ended = 1; /* the terminal is gone */
}

/* ---- the loop -------------------------------------------------------------------------------- */

static int fail(const struct gemmd *session)
{
    fprintf(stderr, "gemmd-top: %s\n", gemmd_error_text(session));
    return EX_UNAVAILABLE;
}

static struct top_look looks[2];

static int look_once(struct gemmd *session, struct top_view *view, uint64_t interval_ns)
{
    if (look(session, &looks[0]) < 0)
        return fail(session);
    wait_interval(view, interval_ns);
    if (look(session, &looks[1]) < 0)
        return fail(session);
    if (view->json)
        return top_json(view, &looks[0], &looks[1]) < 0 ? EX_SOFTWARE : EX_OK;
    top_draw(view, &looks[0], &looks[1]);
    return EX_OK;
}

/* A worker may go away and another come: then the first look at that one is the one to compare
 * with. */
static void watch(struct gemmd **session, const struct gemmd_options *options,
                  struct top_view *view, uint64_t interval_ns)
{
    bool has_look = look(*session, &looks[0]) == 0;
    int before = 0;

    while (!ended) {
        wait_interval(view, interval_ns);
        if (stopped)
            stop_here();
        fit_terminal(view);
        if (!*session && gemmd_connect(options, session) < 0) {
            top_draw_message(view, gemmd_error_text(NULL));
            continue;
        }
        if (look(*session, &looks[1 - before]) < 0) {
            top_draw_message(view, gemmd_error_text(*session));
            gemmd_close(session);
            has_look = false;
            continue;
        }
        before = 1 - before;
        if (has_look)
            top_draw(view, &looks[1 - before], &looks[before]);
        has_look = true;
    }
}

static bool parse_sort(const char *text, enum top_sort *out)
{
    static const char *const names[] = {"jobs", "rows", "exec", "wait", "id"};

    for (int i = 0; i < 5; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (enum top_sort)i;
            return true;
        }
    return false;
}

static int parse(int argc, char **argv, struct top_view *view, const char **socket,
                 double *interval_s)
{
    static const struct option options[] = {
        {"socket", required_argument, NULL, 'p'}, {"interval", required_argument, NULL, 'n'},
        {"sort", required_argument, NULL, 'o'},   {"layers", no_argument, NULL, 'l'},
        {"once", no_argument, NULL, '1'},         {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
    };
    bool good = true;
    int option;

    while (good && (option = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (option) {
        case 'p':
            *socket = optarg;
            break;
        case 'n':
            *interval_s = strtod(optarg, NULL);
            good = *interval_s >= 0.1 && *interval_s <= 60;
            break;
        case 'o':
            good = parse_sort(optarg, &view->sort);
            break;
        case 'l':
            view->layers = true;
            break;
        case '1':
            view->once = true;
            break;
        case 'j':
            view->json = true;
            break;
        case 'h':
            fputs(usage_text, stdout);
            return -1;
        default:
            good = false;
        }
    if (good && optind == argc && (!view->json || view->once))
        return 0;
    fputs(usage_text, stderr);
    return EX_USAGE;
}

int main(int argc, char **argv)
{
    struct top_view view = {.sort = TOP_SORT_EXEC, .columns = TOP_COLUMNS, .lines = TOP_LINES};
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGWINCH};
    const struct sigaction action = {.sa_handler = on_signal};
    struct gemmd_options options;
    struct gemmd *session = NULL;
    double interval_s = 1;
    int status;

    gemmd_options_init(&options);
    status = parse(argc, argv, &view, &options.socket, &interval_s);
    if (status)
        return status < 0 ? EX_OK : status;
    if (!view.once && !can_draw()) {
        fputs("gemmd-top: the output is not a terminal to draw on; see --once\n", stderr);
        return EX_USAGE;
    }
    options.autostart = 0;
    options.control_only = 1;
    if (gemmd_connect(&options, &session) < 0)
        return fail(NULL);
    if (view.once) {
        status = look_once(session, &view, (uint64_t)(interval_s * 1e9));
    } else {
        for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
            sigaction(signals[i], &action, NULL);
        prepare_terminal();
        watch(&session, &options, &view, (uint64_t)(interval_s * 1e9));
        restore_terminal();
    }
    gemmd_close(&session);
    return fflush(stdout) == 0 ? status : EX_SOFTWARE;
}
