/*
 * Clocks, pinning and facts of the machine.  Reads sysfs and /proc; whatever is missing there (a
 * container, another architecture) only makes the choice of CPUs less informed.
 */
#include "tools/stress_machine.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#define CALIBRATION_NS 20000000u

uint64_t stress_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void stress_sleep_ns(uint64_t ns)
{
    struct timespec span = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};

    while (nanosleep(&span, &span) < 0 && errno == EINTR)
        ; /* the rest of it */
}

double stress_ns_per_tick(void)
{
    static double ns_per_tick;
    uint64_t start_ns, start_ticks;

    if (ns_per_tick > 0)
        return ns_per_tick;
    start_ns = stress_now_ns();
    start_ticks = stress_ticks();
    stress_sleep_ns(CALIBRATION_NS);
    ns_per_tick = (double)(stress_now_ns() - start_ns) / (double)(stress_ticks() - start_ticks);
    return ns_per_tick;
}

int stress_pin(uint32_t cpu)
{
    cpu_set_t cpus;

    if (cpu >= CPU_SETSIZE)
        return -EINVAL;
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    return sched_setaffinity(0, sizeof(cpus), &cpus) < 0 ? -errno : 0;
}

void stress_raise_files_limit(void)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_cur == files.rlim_max)
        return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

/* True when the list "0-3,8" in a sysfs file of `cpu` names `other`. */
static bool sysfs_lists(uint32_t cpu, const char *name, uint32_t other)
{
    char path[128], text[1024];
    const char *at = text;
    FILE *file;
    bool read;

    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%u/%s", cpu, name);
    file = fopen(path, "re");
    if (!file)
        return false;
    read = fgets(text, sizeof(text), file) != NULL;
    fclose(file);
    while (read && *at >= '0' && *at <= '9') {
        char *end;
        unsigned long first = strtoul(at, &end, 10), last = first;

        if (*end == '-')
            last = strtoul(end + 1, &end, 10);
        if (other >= first && other <= last)
            return true;
        at = *end == ',' ? end + 1 : end;
    }
    return false;
}

int stress_partner_cpu(uint32_t cpu)
{
    cpu_set_t allowed;
    int best = -1, best_score = -1;

    if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
        return -1;
    for (uint32_t other = 0; other < CPU_SETSIZE; other++) {
        int score;

        if (other == cpu || !CPU_ISSET(other, &allowed))
            continue;
        score = sysfs_lists(cpu, "topology/thread_siblings_list", other) ? 0 : 2;
        score += sysfs_lists(cpu, "cache/index3/shared_cpu_list", other);
        if (score > best_score) {
            best = (int)other;
            best_score = score;
        }
    }
    return best;
}

static void read_cpuinfo(struct stress_machine *out)
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    char *line = NULL;
    size_t bytes = 0;

    snprintf(out->cpu_model, sizeof(out->cpu_model), "unknown");
    if (!file)
        return;
    /* Of the first CPU: an empty line follows. */
    while (getline(&line, &bytes, file) > 1) {
        const char *value = strchr(line, ':');

        line[strcspn(line, "\n")] = '\0';
        if (value && strncmp(line, "model name", 10) == 0)
            snprintf(out->cpu_model, sizeof(out->cpu_model), "%s",
                     value + 1 + strspn(value + 1, " "));
        if (value && strncmp(line, "flags", 5) == 0)
            out->hypervisor = strstr(value, " hypervisor") != NULL;
    }
    free(line);
    fclose(file);
}

void stress_machine_read(struct stress_machine *out)
{
    struct utsname name;
    long online = sysconf(_SC_NPROCESSORS_ONLN);

    long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);

    memset(out, 0, sizeof(*out));
    read_cpuinfo(out);
    out->l3_bytes = l3 > 0 ? (uint64_t)l3 : 0;
    if (getloadavg(&out->load_average, 1) != 1)
        out->load_average = 0;
    snprintf(out->kernel, sizeof(out->kernel), "%s", uname(&name) == 0 ? name.release : "unknown");
    out->cpus_online = online > 0 ? (uint32_t)online : 0;
}
