/* seccomp filters from the table of worker/sandbox_rules.h, and Landlock for the paths that they
 * cannot look at. */
#include "worker/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "worker/sandbox_rules.h"

static const struct {
    const char *name;
    unsigned threads;
} rules[] = {
#define X(name, threads, rare) {#name, threads},
    SANDBOX_RULES(X)
#undef X
};

static enum sandbox_mode mode = SANDBOX_OFF;

int sandbox_open(enum sandbox_mode wanted)
{
    mode = wanted;
    tzset(); /* the C library reads the time zone's file once: not at a log line's first */
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

/* What arguments decide: no executable memory, no file opened for writing. */
static int add_rule(scmp_filter_ctx filter, const char *name)
{
    int number = seccomp_syscall_resolve_name(name);

    if (number < 0)
        return 0; /* not on this architecture, or newer than the library: nobody can make it */
    if (strcmp(name, "mmap") == 0 || strcmp(name, "mprotect") == 0)
        return seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 1,
                                SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (strcmp(name, "openat") == 0)
        return seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 1,
                                SCMP_A2(SCMP_CMP_MASKED_EQ, O_ACCMODE | O_CREAT, O_RDONLY));
    return seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0);
}

int sandbox_enter(enum sandbox_thread thread)
{
    scmp_filter_ctx filter;
    int error = 0;

#ifdef GEMMD_SANDBOX_UNFIT
    return 0;
#endif
    if (mode == SANDBOX_OFF)
        return 0;
    filter = seccomp_init(mode == SANDBOX_KILL ? SCMP_ACT_KILL_PROCESS : SCMP_ACT_ERRNO(EPERM));
    if (!filter)
        return -ENOMEM;
    for (size_t i = 0; error == 0 && i < sizeof(rules) / sizeof(rules[0]); i++)
        if (rules[i].threads & (1u << thread))
            error = add_rule(filter, rules[i].name);
    if (error == 0)
        error = seccomp_load(filter);
    seccomp_release(filter);
    return error;
}

/* ---- files ----------------------------------------------------------------------------------- */

#define READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
/* All rights of the first ABI, so that any kernel with Landlock knows them.  The later ones (links
 * between folders, truncation, ioctl) are of calls that seccomp denies. */
#define EVERYTHING (((uint64_t)LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1)

static void allow_below(int ruleset, const char *path, uint64_t access)
{
    struct landlock_path_beneath_attr rule = {.allowed_access = access,
                                              .parent_fd = open(path, O_PATH | O_CLOEXEC)};

    if (rule.parent_fd < 0)
        return; /* nothing there that could be needed */
    syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
    close(rule.parent_fd);
}

int sandbox_limit_files(const char *socket)
{
    const struct landlock_ruleset_attr rights = {.handled_access_fs = EVERYTHING};
    char folder[108]; /* sockaddr_un.sun_path */
    const char *slash = strrchr(socket, '/');
    int ruleset, error = 0;

#ifdef GEMMD_SANDBOX_UNFIT
    return 0;
#endif
    if (mode == SANDBOX_OFF)
        return 0;
    ruleset = (int)syscall(SYS_landlock_create_ruleset, &rights, sizeof(rights.handled_access_fs),
                           0);
    if (ruleset < 0)
        return -errno;
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - socket + 1) : 1,
             slash ? socket : ".");
    allow_below(ruleset, "/sys", READ);
    allow_below(ruleset, "/proc/self", READ);
    allow_below(ruleset, folder, LANDLOCK_ACCESS_FS_REMOVE_FILE);
    if (syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
        error = -errno;
    close(ruleset);
    return error;
}
