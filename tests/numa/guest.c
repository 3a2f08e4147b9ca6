/*
 * The first and only program of a guest with two NUMA nodes (tests/numa/numa_test.py): starts a
 * worker per node and looks where its memory and its threads are, through the kernel's eyes.
 * Results go to the console: "ok NAME", "FAIL NAME: why", then "END".
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/gemmd.h"

#define NODES     2
#define CPUS      4 /* two a node */
#define HUGE      24 /* pages of 2 MiB a node */
#define LAYER_N   1024
#define LAYER_K   1024
#define READY_MS  60000 /* emulated */

static const char *current; /* the check that runs */

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
    va_list arguments;

    printf("FAIL %s: ", current);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
    _exit(1);
}

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail("line %d: %s (%s)", __LINE__, #condition, strerror(errno));                       \
    } while (0)

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void set_huge_pages(int node, int count)
{
    char path[128], text[16];

    snprintf(path, sizeof(path),
             "/sys/devices/system/node/node%d/hugepages/hugepages-2048kB/nr_hugepages", node);
    snprintf(text, sizeof(text), "%d", count);
    write_file(path, text);
}

static int free_huge_pages(int node)
{
    char path[128];
    int count = -1;
    FILE *file;

    snprintf(path, sizeof(path),
             "/sys/devices/system/node/node%d/hugepages/hugepages-2048kB/free_hugepages", node);
    file = fopen(path, "re");
    CHECK(file != NULL && fscanf(file, "%d", &count) == 1);
    fclose(file);
    return count;
}

static void pin_to_node(int node)
{
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    for (int cpu = node * CPUS / NODES; cpu < (node + 1) * CPUS / NODES; cpu++)
        CPU_SET(cpu, &cpus);
    CHECK(sched_setaffinity(0, sizeof(cpus), &cpus) == 0);
}

/* ---- workers --------------------------------------------------------------------------------- */

static pid_t start_worker(int node, const char *option, const char *value)
{
    char node_text[12], ready_text[12], text[6] = "";
    int ready[2];
    struct pollfd poll_fd;
    pid_t pid;

    snprintf(node_text, sizeof(node_text), "%d", node);
    CHECK(pipe(ready) == 0);
    snprintf(ready_text, sizeof(ready_text), "%d", ready[1]);
    fflush(stdout);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        close(ready[0]);
        execl("/gemmd", "/gemmd", "--node", node_text, "--ready-fd", ready_text, "--pool-bytes",
              "48M", "--watchdog", "0", option, value, (char *)NULL);
        _exit(97);
    }
    close(ready[1]);
    poll_fd = (struct pollfd){.fd = ready[0], .events = POLLIN};
    CHECK(poll(&poll_fd, 1, READY_MS) == 1);
    CHECK(read(ready[0], text, sizeof(text)) == sizeof(text) && memcmp(text, "READY\n", 6) == 0);
    close(ready[0]);
    return pid;
}

static void stop_worker(pid_t pid)
{
    int status;

    kill(pid, SIGTERM);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Runs body(argument) in a child, so that it may pin itself and fail alone. */
static bool in_child(void (*body)(int), int argument)
{
    int status;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        body(argument);
        fflush(stdout);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* ---- where memory is ------------------------------------------------------------------------- */

/* Pages by node of the mappings of `pid` whose line of numa_maps holds `text`.  Number of lines. */
static int read_numa_maps(pid_t pid, const char *text, unsigned long pages[NODES])
{
    char path[64], line[1024];
    int lines = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/numa_maps", (int)pid);
    file = fopen(path, "re");
    CHECK(file != NULL);
    memset(pages, 0, NODES * sizeof(pages[0]));
    while (fgets(line, sizeof(line), file)) {
        if (!strstr(line, text))
            continue;
        lines++;
        for (int node = 0; node < NODES; node++) {
            char key[8];
            const char *at;

            snprintf(key, sizeof(key), " N%d=", node);
            at = strstr(line, key);
            pages[node] += at ? strtoul(at + 4, NULL, 10) : 0;
        }
    }
    fclose(file);
    return lines;
}

static void check_on_node(pid_t pid, const char *text, int node)
{
    unsigned long pages[NODES];

    if (read_numa_maps(pid, text, pages) == 0)
        fail("no mapping of %s in the worker", text);
    if (pages[node] == 0 || pages[1 - node] != 0)
        fail("%s: %lu pages on node %d, %lu on the other", text, pages[node], node,
             pages[1 - node]);
}

/* The node of the page under an address of `pid` (0: ours), by move_pages. */
static int node_of(pid_t pid, void *address)
{
    int status = -1;

    if (syscall(SYS_move_pages, pid, 1UL, &address, NULL, &status, 0) < 0)
        fail("move_pages: %s", strerror(errno));
    return status;
}

/* The first mapping of `text` in a process. */
static void *find_mapping(pid_t pid, const char *text)
{
    char path[64], line[1024];
    unsigned long start = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    file = fopen(path, "re");
    CHECK(file != NULL);
    while (!start && fgets(line, sizeof(line), file))
        if (strstr(line, text))
            start = strtoul(line, NULL, 16);
    fclose(file);
    CHECK(start != 0);
    return (void *)start;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static pid_t workers[NODES];

/* One row times a layer of ones: k. */
static void check_job(struct gemmd *session, struct gemmd_layer *layer)
{
    uint8_t *a = gemmd_buffer_alloc(session, LAYER_K);
    float *c = gemmd_buffer_alloc(session, LAYER_N * sizeof(*c));
    struct gemmd_job job;

    CHECK(a && c);
    memset(a, 1, LAYER_K);
    gemmd_job_init(&job, layer, 1, a, c);
    CHECK(gemmd_run(session, &job, 60000) == 0);
    for (int j = 0; j < LAYER_N; j++)
        CHECK(c[j] == (float)LAYER_K);
}

static struct gemmd_layer *create_layer(struct gemmd *session)
{
    static int8_t weights[LAYER_N * LAYER_K];
    struct gemmd_layer_desc desc;
    struct gemmd_layer *layer;

    memset(weights, 1, sizeof(weights));
    gemmd_layer_desc_init(&desc);
    desc.n = LAYER_N;
    desc.k = LAYER_K;
    desc.weights = weights;
    CHECK(gemmd_layer_create(session, &desc, &layer) >= 0);
    return layer;
}

/* NULL: to the worker of the node we run on. */
static struct gemmd *connect_to(const char *socket)
{
    struct gemmd_options options;
    struct gemmd *session;

    gemmd_options_init(&options);
    options.socket = socket;
    options.autostart = 0;
    options.timeout_ms = 60000;
    if (gemmd_connect(&options, &session) < 0)
        fail("connect: %s", gemmd_error_text(NULL));
    return session;
}

/* A process on this node, without any hint: its worker, its memory. */
static void client_of_node(int node)
{
    struct gemmd_info info;
    struct gemmd *session;
    struct gemmd_layer *layer;
    unsigned long pages[NODES];
    void *buffer;

    pin_to_node(node);
    session = connect_to(NULL);
    CHECK(gemmd_get_info(session, &info) == 0);
    if (info.node != node || info.pid != (uint32_t)workers[node])
        fail("connected to the worker of node %d", info.node);
    layer = create_layer(session);
    check_job(session, layer);
    CHECK(gemmd_get_info(session, &info) == 0);
    if (info.pool_bytes == 0 || info.pool_bytes_on_node != info.pool_bytes)
        fail("%llu of %llu bytes on the node, it says", (unsigned long long)info.pool_bytes_on_node,
             (unsigned long long)info.pool_bytes);
    if (info.pool_bytes_2m != info.pool_bytes)
        fail("not on huge pages: %s", info.lost);
    check_on_node(workers[node], "gemmd-pool", node);
    check_on_node(workers[node], "gemmd-arena", node);
    check_on_node(workers[node], "gemmd-c2w", node);
    check_on_node(workers[node], "gemmd-w2c", node);
    CHECK(node_of(workers[node], find_mapping(workers[node], "gemmd-pool")) == node);
    buffer = gemmd_buffer_alloc(session, 4096);
    memset(buffer, 1, 4096);
    if (node_of(0, buffer) != node)
        fail("the client's own view of the arena is on node %d", node_of(0, buffer));
    /* Heap and stacks of the worker: most of it, where its threads run. */
    CHECK(read_numa_maps(workers[node], "heap", pages) > 0);
    if (pages[1 - node] > pages[node])
        fail("heap: %lu pages on the node, %lu on the other", pages[node], pages[1 - node]);
    printf("node %d: %s, %s, pool %llu KiB on 2 MiB pages\n", node, info.kernel, info.event_level,
           (unsigned long long)info.pool_bytes >> 10);
    gemmd_close(&session);
}

/* Which CPUs each thread of the worker may use.  True: its own, and no other. */
static bool are_threads_home(int node, char *out, size_t bytes)
{
    char wanted[128];
    int first = node * CPUS / NODES;
    size_t used = 0;

    for (int tid = 1; tid < 2000; tid++) {
        char path[64], name[32] = "";
        cpu_set_t cpus;
        FILE *file;

        snprintf(path, sizeof(path), "/proc/%d/task/%d/comm", (int)workers[node], tid);
        file = fopen(path, "re");
        if (!file)
            continue;
        CHECK(fscanf(file, "%31s", name) == 1);
        fclose(file);
        CHECK(sched_getaffinity(tid, sizeof(cpus), &cpus) == 0);
        used += (size_t)snprintf(out + used, bytes - used, "%s", name);
        for (int cpu = 0; cpu < CPUS; cpu++)
            if (CPU_ISSET(cpu, &cpus))
                used += (size_t)snprintf(out + used, bytes - used, " %d", cpu);
        used += (size_t)snprintf(out + used, bytes - used, "; ");
        CHECK(used < bytes);
    }
    snprintf(wanted, sizeof(wanted),
             "gemmd %d; gemmd-team %d; gemmd-dispatch %d; gemmd-helper %d; ", first, first,
             first + 1, first);
    return strcmp(out, wanted) == 0;
}

/* No page on node 1: the announced fallback there, not a page of node 0, never SIGBUS. */
static void client_without_huge_pages(int node)
{
    struct gemmd_info info;
    struct gemmd *session;

    pin_to_node(node);
    session = connect_to(NULL);
    check_job(session, create_layer(session));
    CHECK(gemmd_get_info(session, &info) == 0);
    CHECK(info.node == node && info.pool_bytes > 0 && info.pool_bytes_on_node == info.pool_bytes);
    if (info.pool_bytes_2m || !strstr(info.lost, "node1/hugepages"))
        fail("2 MiB pages from elsewhere, or not a word of it: %s", info.lost);
    check_on_node(workers[node], "gemmd-pool", node);
    printf("node %d without huge pages: THP %llu KiB, kept %llu KiB, lost: %s\n", node,
           (unsigned long long)info.pool_bytes_thp >> 10,
           (unsigned long long)info.pool_bytes_kept >> 10, info.lost);
    gemmd_close(&session);
}

static void run(const char *name, void (*body)(void))
{
    int status;
    pid_t pid;

    current = name;
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        body();
        printf("ok %s\n", name);
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) > 1)
        printf("FAIL %s: ended with wait status 0x%x\n", name, (unsigned)status);
}

static void two_workers(void)
{
    char threads[512];

    for (int node = 0; node < NODES; node++)
        set_huge_pages(node, HUGE);
    for (int node = 0; node < NODES; node++)
        workers[node] = start_worker(node, "--hugepages", "auto");
    for (int node = 0; node < NODES; node++) {
        CHECK(in_child(client_of_node, node));
        if (!are_threads_home(node, threads, sizeof(threads)))
            fail("threads: %s", threads);
    }
    /* In the other order, both at once. */
    for (int node = NODES - 1; node >= 0; node--)
        CHECK(in_child(client_of_node, node));
    for (int node = 0; node < NODES; node++)
        stop_worker(workers[node]);
    for (int node = 0; node < NODES; node++)
        CHECK(free_huge_pages(node) == HUGE); /* nothing stays behind */
}

static void no_huge_pages_on_one_node(void)
{
    set_huge_pages(0, HUGE);
    set_huge_pages(1, 0);
    workers[1] = start_worker(1, "--hugepages", "auto");
    CHECK(in_child(client_without_huge_pages, 1));
    stop_worker(workers[1]);
}

static void no_such_node(void)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        freopen("/dev/null", "w", stderr);
        execl("/gemmd", "/gemmd", "--node", "2", (char *)NULL);
        _exit(97);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 78);
}

/* ---- a CPU that goes away and comes back ----------------------------------------------------- */

static void set_online(int cpu, bool online)
{
    char path[64];

    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
    write_file(path, online ? "1" : "0");
}

static void client_from_anywhere(int node)
{
    struct gemmd *session;
    char socket[64];

    snprintf(socket, sizeof(socket), "/run/gemmd/node%d.sock", node);
    session = connect_to(socket);
    check_job(session, create_layer(session));
    gemmd_close(&session);
}

/* The CPU of the control thread and the team, then that of the dispatcher.  Jobs are computed
 * meanwhile, and afterwards each thread is where it was. */
static void cpu_comes_back(void)
{
    char threads[512];

    workers[1] = start_worker(1, "--hugepages", "none");
    for (int cpu = CPUS / NODES; cpu < CPUS; cpu++) {
        CHECK(in_child(client_from_anywhere, 1));
        set_online(cpu, false);
        CHECK(in_child(client_from_anywhere, 1));
        CHECK(!are_threads_home(1, threads, sizeof(threads))); /* else it is no test */
        printf("without CPU %d: %s\n", cpu, threads);
        set_online(cpu, true);
        for (int i = 0; !are_threads_home(1, threads, sizeof(threads)); i++) {
            if (i == READY_MS / 50)
                fail("CPU %d is back, and the threads are not: %s", cpu, threads);
            usleep(50000);
        }
    }
    CHECK(in_child(client_from_anywhere, 1));
    stop_worker(workers[1]);
}

static void mount_all(void)
{
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mkdir("/run", 0755);
    mkdir("/tmp", 01777);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
}

int main(void)
{
    struct utsname system;

    mount_all();
    freopen("/dev/console", "w", stdout);
    freopen("/dev/console", "w", stderr);
    setvbuf(stdout, NULL, _IOLBF, 0);
    uname(&system);
    printf("kernel %s\n", system.release);
    run("two_workers", two_workers);
    run("no_huge_pages_on_one_node", no_huge_pages_on_one_node);
    run("no_such_node", no_such_node);
    run("cpu_comes_back", cpu_comes_back);
    printf("END\n");
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
