/*
 * Opens the worker's parts in the order in which they need each other, and closes them in reverse.
 * What cannot be had without loss of function (NUMA, the best event loop, huge pages) is
 * collected in one line, `lost`; what cannot be done without ends the start with a reason and an
 * exit code.
 */
#include "worker/worker.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sysexits.h>
#include <unistd.h>

#include "kernels/gemm.h"
#include "worker/cgroup.h"
#include "worker/clock.h"
#include "worker/control.h"
#include "worker/dispatcher.h"
#include "worker/fault.h"
#include "worker/keep.h"
#include "worker/layers.h"
#include "worker/log.h"
#include "worker/mailbox.h"
#include "worker/restore.h"
#include "worker/sandbox.h"
#include "worker/segment.h"
#include "worker/topology.h"
#include "worker/trace.h"
#include "worker/watchdog.h"

/* About what a wake-up costs in a guest (26-53 us, reference/transport.md): never more than twice
 * the optimum, whatever the gap between jobs. */
#define SPIN_NS_DEFAULT 50000

struct worker {
    struct options options;
    struct topology *topology;
    int node;         /* -1: the kernel has no NUMA */
    cpu_set_t cpus;   /* given to the worker */
    int dispatcher_cpu;
    int64_t spin_ns;
    const struct gemm_kernel *kernel;
    struct segment stats;
    int violation_fd;
    struct pool *pool;
    struct layers *layers;
    struct notify *notify;
    struct restore restore;
    struct mailbox *mailbox;
    struct trace *trace; /* NULL: none */
    struct dispatcher *dispatcher;
    struct control *control;
    struct watchdog *watchdog;
    char lost[256]; /* what start-up had to do without, the pool's part excepted; "" = nothing */
};

static void add_lost(struct worker *worker, const char *text)
{
    size_t used = strlen(worker->lost);

    if (*text)
        snprintf(worker->lost + used, sizeof(worker->lost) - used, "%s%s", used ? "; " : "", text);
}

/* SIGTERM and SIGINT are read from a descriptor by the control thread; blocked here, before the
 * first thread starts and inherits the mask.  A reader of --ready-fd that left is no reason to die.
 */
static void set_up_process(void)
{
    struct rlimit files;
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    /* Five descriptors a session: 1,100 sessions outgrow the usual soft limit of 1,024. */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

/* ---- where to run ---------------------------------------------------------------------------- */

static int first_cpu(const cpu_set_t *cpus)
{
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, cpus))
            return cpu;
    return -1;
}

static int last_cpu(const cpu_set_t *cpus)
{
    for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--)
        if (CPU_ISSET(cpu, cpus))
            return cpu;
    return -1;
}

static int choose_node(struct worker *worker)
{
    const struct options *options = &worker->options;
    int nodes = topology_node_count(worker->topology);
    cpu_set_t of_node;

    if (nodes == 0) {
        worker->node = -1;
        if (options->node > 0) {
            log_error(LOG_TOPIC_WORKER, "--node %d: this kernel has no NUMA; use --node auto",
                      options->node);
            return EX_CONFIG;
        }
        add_lost(worker, "NUMA: the kernel has none, memory is placed anywhere");
        return 0;
    }
    worker->node = options->node;
    if (worker->node < 0)
        worker->node =
            topology_node_of_cpu(worker->topology, options->cpus_set ? first_cpu(&options->cpus)
                                                                     : topology_cpu_current());
    if (topology_cpus_of_node(worker->topology, worker->node, &of_node) < 0) {
        log_error(LOG_TOPIC_WORKER, "--node %d: no such node; this machine has %d", options->node,
                  nodes);
        return EX_CONFIG;
    }
    return 0;
}

/* The CPUs of --cpus (else of the node) that this process may use. */
static int choose_cpus(struct worker *worker)
{
    const struct options *options = &worker->options;
    cpu_set_t allowed;
    char text[256] = "";
    int error = topology_cpus_allowed(&allowed);

    if (error < 0) {
        log_error(LOG_TOPIC_WORKER, "sched_getaffinity: %s", strerror(-error));
        return EX_OSERR;
    }
    if (options->cpus_set)
        worker->cpus = options->cpus;
    else
        topology_cpus_of_node(worker->topology, worker->node, &worker->cpus);
    cpulist_format(&worker->cpus, text, sizeof(text));
    CPU_AND(&worker->cpus, &worker->cpus, topology_cpus_online(worker->topology));
    CPU_AND(&worker->cpus, &worker->cpus, &allowed);
    if (CPU_COUNT(&worker->cpus) == 0 ||
        (options->cpus_set && !CPU_EQUAL(&worker->cpus, &options->cpus))) {
        log_error(LOG_TOPIC_WORKER, "CPUs %s: not all are online and allowed to this process; see "
                  "--cpus, taskset(1) and the cpuset of its cgroup", text);
        return EX_CONFIG;
    }
    /* The last: CPU 0 takes most of a machine's interrupts. */
    worker->dispatcher_cpu = last_cpu(&worker->cpus);
    worker->spin_ns = options->spin_ns;
    if (worker->spin_ns < 0)
        worker->spin_ns =
            CPU_COUNT(topology_cpus_online(worker->topology)) > 1 ? SPIN_NS_DEFAULT : 0;
    return 0;
}

/* The control thread shares the worker's CPUs, but not with the dispatcher if there is another. */
static cpu_set_t control_cpus(const struct worker *worker)
{
    cpu_set_t cpus = worker->cpus;

    if (CPU_COUNT(&cpus) > 1)
        CPU_CLR(worker->dispatcher_cpu, &cpus);
    return cpus;
}

static void pin_control_thread(const struct worker *worker)
{
    const cpu_set_t cpus = control_cpus(worker);

    if (topology_pin_thread(&cpus) < 0)
        log_warn(LOG_TOPIC_WORKER, "the control thread is not pinned");
}

/* ---- the parts ------------------------------------------------------------------------------- */

static uint64_t measure_kernel(const struct gemm_kernel *kernel)
{
    uint64_t start_ns = clock_now_ns();

    gemm_probe_run(kernel);
    return clock_now_ns() - start_ns;
}

static int open_stats(struct worker *worker)
{
    struct gemmd_stats_page *page;
    int error = segment_create(&worker->stats, "gemmd-stats", sizeof(*page), false, worker->node);

    if (error == 0) {
        page = worker->stats.memory;
        page->magic = GEMMD_STATS_MAGIC;
        page->version = GEMMD_STATS_VERSION;
        page->bytes = sizeof(*page);
        error = segment_seal(&worker->stats); /* our mapping goes on writing, nobody else can */
    }
    return error;
}

static int open_memory(struct worker *worker)
{
    const struct options *options = &worker->options;
    const struct pool_config config = {.limit_bytes = options->pool_bytes,
                                       .policy = options->hugepages,
                                       .require_hugepages = options->require_hugepages,
                                       .node = worker->node,
                                       .on_extent = keep_extent,
                                       .context = worker->notify};
    struct layers_config layers = {.kernel = worker->kernel,
                                   .windows = &options->windows,
                                   .verified = options->verify_sample != 0,
                                   .uid_bytes_max = options->uid_layer_bytes,
                                   .unused_bytes_max = options->unused_layer_bytes
                                                           ? options->unused_layer_bytes
                                                           : options->pool_bytes};
    int error = pool_open(&worker->pool, &config);

    if (error < 0)
        return EX_UNAVAILABLE; /* pool_open has said why */
    layers.pool = worker->pool;
    error = layers_open(&worker->layers, &layers);
    if (error == 0 && worker->stats.fd < 0)
        error = open_stats(worker);
    if (error < 0) {
        log_error(LOG_TOPIC_WORKER, "memory for the worker's tables: %s", strerror(-error));
        return EX_OSERR;
    }
    return 0;
}

static int open_trace(struct worker *worker)
{
    const char *path = worker->options.trace;
    int error = path && *path ? trace_open(&worker->trace, path, TRACE_BYTES_MAX) : 0;

    if (error < 0)
        log_error(LOG_TOPIC_WORKER, "GEMMD_TRACE=%s: %s", path, strerror(-error));
    return error < 0 ? EX_CONFIG : 0;
}

static int open_dispatcher(struct worker *worker)
{
    struct dispatcher_config config = {.cpu = worker->dispatcher_cpu,
                                       .spin_ns = worker->spin_ns,
                                       .event_level_forced = worker->options.event_level_forced,
                                       .sessions_max = GEMMD_WORKER_SESSIONS_MAX,
                                       .team_cpus = worker->cpus,
                                       .alone = worker->options.no_coalescing,
                                       .verify_every = worker->options.verify_sample,
                                       .trace = worker->trace,
                                       .stats = worker->stats.memory};
    int error;

    CPU_CLR(worker->dispatcher_cpu, &config.team_cpus);
    worker->violation_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    error = worker->violation_fd < 0 ? -errno : fault_open(worker->violation_fd);
    if (error == 0)
        error = mailbox_open(&worker->mailbox);
    if (error == 0) {
        config.mailbox = worker->mailbox;
        config.violation_fd = worker->violation_fd;
        error = dispatcher_open(&worker->dispatcher, &config);
    }
    if (error < 0) {
        log_error(LOG_TOPIC_WORKER, "starting the dispatcher on CPU %d: %s", worker->dispatcher_cpu,
                  strerror(-error));
        return error == -ENOTSUP ? EX_CONFIG : EX_OSERR;
    }
    add_lost(worker, dispatcher_lost(worker->dispatcher));
    return 0;
}

static int open_control(struct worker *worker)
{
    struct options *options = &worker->options;
    struct control_config config = {
        .socket = options->socket,
        .peers = &options->peers,
        .uid_sessions_max = options->uid_sessions,
        .arena_bytes_max = options->arena_bytes,
        .uid_arena_bytes_max = options->uid_arena_bytes,
        .node = worker->node,
        .cpus = control_cpus(worker),
        .cpu_count = (uint32_t)CPU_COUNT(&worker->cpus),
        .dispatcher_cpu = (uint32_t)worker->dispatcher_cpu,
        .ring_start = options->ring_start,
        .client_spin_ns = (uint32_t)worker->spin_ns,
        .idle_exit_ns = options->idle_exit_s * UINT64_C(1000000000),
        .kernel = worker->kernel,
        .pool = worker->pool,
        .layers = worker->layers,
        .handover = worker->restore.handover,
        .notify = worker->notify,
        .listen_fd = -1,
        .lock_fd = -1,
        .mailbox = worker->mailbox,
        .dispatcher = worker->dispatcher,
        .stats = worker->stats.memory,
        .stats_fd = worker->stats.fd,
        .violation_fd = worker->violation_fd,
        .lost = worker->lost,
        .trace = worker->trace,
        .debug = options->debug,
    };
    int error, code;

    if (options->take_over) {
        code = restore_take_socket(&worker->restore, &config.listen_fd, &config.lock_fd);
        if (code)
            return code;
    } else {
        config.listen_fd = notify_take_listener(worker->notify);
        config.socket_stays = config.listen_fd >= 0;
    }
    error = control_open(&worker->control, &config);
    if (error == -EADDRINUSE)
        log_error(LOG_TOPIC_WORKER,
                  "%s: a worker is serving there; give another --socket or end it",
                  options->socket);
    else if (error < 0)
        log_error(LOG_TOPIC_WORKER, "%s: %s", options->socket, strerror(-error));
    return error == -EADDRINUSE ? EX_UNAVAILABLE : error < 0 ? EX_OSERR : 0;
}

static int choose_socket(struct worker *worker)
{
    struct options *options = &worker->options;
    int error = *options->socket ? 0
                                 : options_default_socket(worker->node, options->socket,
                                                          sizeof(options->socket));

    if (error < 0)
        log_error(LOG_TOPIC_WORKER, "no directory for the socket: %s; give --socket",
                  strerror(-error));
    return error < 0 ? EX_OSERR : 0;
}

/* The last step of the start: from here on the control thread has what it needs. */
static int close_the_doors(struct worker *worker)
{
    const struct watchdog_config config = {.stats = worker->stats.memory,
                                           .control_rounds = &worker->control->rounds,
                                           .limit_s = worker->options.watchdog_s};
    int error = watchdog_open(&worker->watchdog, &config);

    if (error < 0) {
        log_error(LOG_TOPIC_WORKER, "starting the watchdog: %s", strerror(-error));
        return EX_OSERR;
    }
    error = sandbox_limit_files(worker->options.socket);
    if (error < 0)
        log_info(LOG_TOPIC_WORKER, "no Landlock (%s): the control thread reads what its user may",
                 strerror(-error));
    error = sandbox_enter(SANDBOX_CONTROL);
    if (error < 0) {
        log_error(LOG_TOPIC_WORKER, "seccomp: %s; --sandbox off does without", strerror(-error));
        return EX_OSERR;
    }
    return 0;
}

static void say_ready(struct worker *worker)
{
    static const char ready[] = "READY\n";
    struct options *options = &worker->options;

    if (*worker->lost)
        log_warn(LOG_TOPIC_WORKER, "doing without %s", worker->lost);
    log_info(LOG_TOPIC_WORKER, "serving node %d at %s with %s, event level %s", worker->node,
             options->socket, worker->kernel->name, dispatcher_event_level(worker->dispatcher));
    notify_say(worker->notify, "READY=1\nSTATUS=serving node %d at %s with %s, %u layers",
               worker->node, options->socket, worker->kernel->name, layers_count(worker->layers));
    if (options->ready_fd < 0)
        return;
    if (write(options->ready_fd, ready, sizeof(ready) - 1) < 0)
        log_warn(LOG_TOPIC_WORKER, "--ready-fd: %s", strerror(errno));
    close(options->ready_fd);
    options->ready_fd = -1;
}

int worker_open(struct worker **out, const struct options *options)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    int code;

    *out = NULL;
    if (!worker) {
        log_error(LOG_TOPIC_WORKER, "no memory");
        return EX_OSERR;
    }
    worker->options = *options;
    worker->stats.fd = worker->violation_fd = -1;
    set_up_process();
    if (sandbox_open(options->sandbox) < 0) {
        log_error(LOG_TOPIC_WORKER, "no_new_privs: %s", strerror(errno));
        code = EX_OSERR;
        goto fail;
    }
    if (topology_open(&worker->topology, NULL) < 0) {
        log_error(LOG_TOPIC_WORKER, "the CPUs cannot be read from sysfs; is /sys mounted?");
        code = EX_OSERR;
        goto fail;
    }
    if (notify_open(&worker->notify) < 0) {
        log_error(LOG_TOPIC_WORKER, "no memory");
        code = EX_OSERR;
        goto fail;
    }
    code = choose_node(worker);
    if (code == 0)
        code = choose_cpus(worker);
    if (code == 0)
        code = choose_socket(worker);
    if (code)
        goto fail;
    cgroup_open(NULL);
    pin_control_thread(worker); /* before memory is touched: it lands on the node */
    worker->kernel = gemm_select_measured(cpu_detect() & options->cpu_mask, measure_kernel);
    code = open_memory(worker);
    if (code == 0)
        code = restore_open(&worker->restore, &worker->options, worker->notify, worker->layers,
                            worker->pool);
    if (code == 0)
        code = open_trace(worker);
    if (code == 0)
        code = open_dispatcher(worker);
    if (code == 0)
        code = open_control(worker);
    if (code == 0)
        code = close_the_doors(worker);
    if (code)
        goto fail;
    say_ready(worker);
    *out = worker;
    return 0;

fail:
    worker_close(&worker);
    return code;
}

int worker_run(struct worker *worker)
{
    int error = control_run(worker->control);

    if (error < 0)
        log_error(LOG_TOPIC_WORKER, "the control thread failed: %s", strerror(-error));
    return error < 0 ? EX_OSERR : 0;
}

void worker_close(struct worker **worker_p)
{
    struct worker *worker = *worker_p;

    if (!worker)
        return;
    watchdog_close(&worker->watchdog);
    control_close(&worker->control);
    dispatcher_close(&worker->dispatcher);
    mailbox_close(&worker->mailbox);
    trace_close(&worker->trace);
    if (worker->violation_fd >= 0)
        close(worker->violation_fd);
    restore_close(&worker->restore);
    layers_close(&worker->layers);
    pool_close(&worker->pool);
    notify_close(&worker->notify);
    segment_destroy(&worker->stats);
    topology_close(&worker->topology);
    cgroup_close();
    free(worker);
    *worker_p = NULL;
}
