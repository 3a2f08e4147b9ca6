/* Reads of /proc and /sys; a file that cannot be read fails the test, it is never "0". */
#include "tests/e2e/machine.h"

#include <dirent.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "tests/harness.h"
#include "tests/sanitizers.h"

uint64_t machine_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

unsigned machine_cpus(void)
{
    cpu_set_t cpus;

    REQUIRE(sched_getaffinity(0, sizeof(cpus), &cpus) == 0);
    return (unsigned)CPU_COUNT(&cpus);
}

void machine_skip_unless_cpus(unsigned count)
{
    if (machine_cpus() < count)
        harness_skip("needs %u CPUs, has %u", count, machine_cpus());
}

void machine_skip_unless_root(void)
{
    if (geteuid() != 0)
        harness_skip("needs root");
}

unsigned machine_fds(pid_t pid)
{
    char path[64];
    unsigned count = 0;
    DIR *directory;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    directory = opendir(path);
    REQUIRE(directory != NULL);
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(directory);
    return pid == getpid() ? count - 1 : count; /* the directory's own */
}

unsigned machine_fds_settled(pid_t pid)
{
    unsigned count = machine_fds(pid), same = 0;

    while (same < 10) {
        unsigned now;

        usleep(10000); /* of a busy machine the worker may get nothing for some time */
        now = machine_fds(pid);
        same = now == count ? same + 1 : 0;
        count = now;
    }
    return count;
}

unsigned machine_mappings(pid_t pid, const char *text)
{
    char path[64], line[512];
    unsigned count = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    file = fopen(path, "re");
    REQUIRE(file != NULL);
    while (fgets(line, sizeof(line), file))
        count += strstr(line, text) != NULL;
    fclose(file);
    return count;
}

/* Fields of a /proc stat file after the command's closing bracket. */
static void read_stat(const char *path, char *state, uint64_t *ticks)
{
    unsigned long user = 0, system = 0;
    char text[1024];
    const char *rest;
    FILE *file = fopen(path, "re");

    *state = '?';
    *ticks = 0;
    if (!file)
        return; /* a thread that has just ended */
    if (!fgets(text, sizeof(text), file))
        text[0] = '\0';
    fclose(file);
    rest = strrchr(text, ')');
    REQUIRE(rest != NULL);
    REQUIRE(sscanf(rest + 2, "%c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", state, &user,
                   &system) == 3);
    *ticks = user + system;
}

static void sum_schedstat(pid_t pid, uint64_t *sum_ns, uint64_t *sum_turns)
{
    char path[64], file_path[sizeof(path) + 300];
    unsigned long long ns, turns;
    DIR *directory;

    *sum_ns = *sum_turns = 0;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    directory = opendir(path);
    REQUIRE(directory != NULL);
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        FILE *file;

        if (entry->d_name[0] == '.')
            continue;
        snprintf(file_path, sizeof(file_path), "%s/%s/schedstat", path, entry->d_name);
        file = fopen(file_path, "re");
        if (file && fscanf(file, "%llu %*u %llu", &ns, &turns) == 2) {
            *sum_ns += ns;
            *sum_turns += turns;
        }
        if (file)
            fclose(file);
    }
    closedir(directory);
    REQUIRE(*sum_ns > 0); /* else this kernel does not count, and a zero would mean nothing */
}

uint64_t machine_cpu_ns(pid_t pid)
{
    uint64_t ns, turns;

    sum_schedstat(pid, &ns, &turns);
    return ns;
}

void machine_start_apart(struct harness_worker *worker, const char *const *arguments)
{
    const char *all[11] = {"--cpus"};
    char cpu[16];
    cpu_set_t rest;
    int last = 0, count = 2;

    REQUIRE(sched_getaffinity(0, sizeof(rest), &rest) == 0);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &rest))
            last = i;
    snprintf(cpu, sizeof(cpu), "%d", last);
    all[1] = cpu;
    while (*arguments && count < 10)
        all[count++] = *arguments++;
    harness_start(worker, all, NULL);
    CPU_CLR(last, &rest);
    if (CPU_COUNT(&rest))
        sched_setaffinity(0, sizeof(rest), &rest);
}

uint64_t machine_turns(pid_t pid)
{
    uint64_t ns, turns;

    sum_schedstat(pid, &ns, &turns);
    return turns;
}

static bool is_asleep(pid_t pid)
{
    char path[64], file_path[sizeof(path) + 300], state = '?';
    uint64_t ticks;
    bool asleep = true;
    DIR *directory;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    directory = opendir(path);
    REQUIRE(directory != NULL);
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(file_path, sizeof(file_path), "%s/%s/stat", path, entry->d_name);
        read_stat(file_path, &state, &ticks);
        asleep &= state == 'S';
    }
    closedir(directory);
    return asleep;
}

static pid_t find_thread(pid_t pid, const char *wanted)
{
    char path[300], name[32];
    pid_t found = 0;
    DIR *directory;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    directory = opendir(path);
    REQUIRE(directory != NULL);
    for (const struct dirent *entry; !found && (entry = readdir(directory)) != NULL;) {
        FILE *file;

        snprintf(path, sizeof(path), "/proc/%d/task/%s/comm", (int)pid, entry->d_name);
        file = fopen(path, "re");
        if (file && fgets(name, sizeof(name), file) &&
            strncmp(name, wanted, strlen(wanted)) == 0)
            found = (pid_t)strtol(entry->d_name, NULL, 10);
        if (file)
            fclose(file);
    }
    closedir(directory);
    return found;
}

pid_t machine_thread(pid_t pid, const char *wanted)
{
    pid_t found = 0;

    for (int i = 0; i < 10000 && !(found = find_thread(pid, wanted)); i++)
        usleep(1000);
    REQUIRE(found > 0);
    return found;
}

bool machine_wait_asleep(pid_t pid, int timeout_ms)
{
    uint64_t deadline_ns = machine_now_ns() + (uint64_t)timeout_ms * 1000000;
    unsigned in_a_row = 0;

    while (in_a_row < 10 && machine_now_ns() < deadline_ns) {
        in_a_row = is_asleep(pid) ? in_a_row + 1 : 0;
        usleep(1000);
    }
    return in_a_row >= 10;
}

bool machine_is_sanitized(void)
{
    return HAS_ASAN || HAS_TSAN;
}

bool machine_delays_signals(void)
{
    return HAS_TSAN;
}

void machine_adopt_orphans(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
}
