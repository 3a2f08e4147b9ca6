/* Model files at the start (worker/models.h). */
#include "worker/models.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "worker/layer_file.h"
#include "worker/loading.h"
#include "worker/log.h"
#include "worker/memory.h"

#define PACK_FD_IN  3
#define PACK_FD_OUT 4

static int split_name(const char *model, char path[PATH_MAX], char prefix[GEMMD_NAME_BYTES])
{
    const char *colon = strrchr(model, ':');
    size_t length = colon ? (size_t)(colon - model) : strlen(model);

    memset(prefix, 0, GEMMD_NAME_BYTES);
    if (length == 0 || length >= PATH_MAX || (colon && strlen(colon + 1) >= GEMMD_NAME_BYTES))
        return -EINVAL;
    memcpy(path, model, length);
    path[length] = '\0';
    if (colon)
        memcpy(prefix, colon + 1, strlen(colon + 1));
    return gemmd_validate_name(prefix, true) == GEMMD_STATUS_OK ? 0 : -EINVAL;
}

/* Packed files begin with their magic; everything else is gemmd-pack's to judge. */
static bool is_packed(int fd)
{
    uint64_t magic = 0;

    return layer_file_read(fd, 0, &magic, sizeof(magic)) == 0 && magic == LAYER_FILE_MAGIC;
}

static int find_packer(const char *given, char out[PATH_MAX])
{
    static const char name[] = "gemmd-pack";
    ssize_t length;
    char *slash;

    if (given)
        return snprintf(out, PATH_MAX, "%s", given) < PATH_MAX ? 0 : -ENAMETOOLONG;
    length = readlink("/proc/self/exe", out, PATH_MAX - 1);
    if (length < 0)
        return -errno;
    out[length] = '\0';
    slash = strrchr(out, '/');
    if (!slash || (size_t)(slash + 1 - out) + sizeof(name) > PATH_MAX)
        return -ENAMETOOLONG;
    memcpy(slash + 1, name, sizeof(name));
    return 0;
}

/* Never returns.  Descriptors 0 … 2 stay, the two files become 3 and 4, the rest is
 * close-on-exec. */
static void become_packer(const char *packer, const char *path, const char *kernel, int in, int out)
{
    const char *const argv[] = {"gemmd-pack", "--input-fd", "3", "--output-fd", "4",
                                "--kernel",   kernel,       path,          NULL};
    char *const environment[] = {NULL};
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);

    in = fcntl(in, F_DUPFD, PACK_FD_OUT + 1); /* out of the way of 3 and 4 */
    out = fcntl(out, F_DUPFD, PACK_FD_OUT + 1);
    if (in < 0 || out < 0 || dup2(in, PACK_FD_IN) < 0 || dup2(out, PACK_FD_OUT) < 0)
        _exit(EX_OSERR);
    close(in);
    close(out);
    execve(packer, (char *const *)(uintptr_t)argv, environment);
    _exit(EX_UNAVAILABLE);
}

/* A sealed memfd with the packed layers, or an exit code as a negative number. */
static int pack(const char *path, int in, const char *kernel, const char *packer_given)
{
    const int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    char packer[PATH_MAX];
    int out, result = 0;
    pid_t pid;

    out = memory_create_file("gemmd-packed", 0, MEMORY_PAGE_BYTES);
    if (out < 0 || find_packer(packer_given, packer) < 0)
        return -EX_OSERR;
    pid = fork();
    if (pid == 0)
        become_packer(packer, path, kernel, in, out);
    while (pid > 0 && waitpid(pid, &result, 0) < 0 && errno == EINTR)
        ;
    if (pid > 0 && WIFEXITED(result) && WEXITSTATUS(result) == 0 &&
        fcntl(out, F_ADD_SEALS, seals) == 0)
        return out;
    close(out);
    if (pid > 0 && WIFEXITED(result) && WEXITSTATUS(result) == EX_UNAVAILABLE)
        log_error(LOG_TOPIC_LAYERS, "%s: cannot be packed: %s does not run; see --pack-program",
                  path, packer);
    else if (pid > 0 && WIFSIGNALED(result))
        log_error(LOG_TOPIC_LAYERS, "%s: gemmd-pack ended by signal %d: a limit, or its fault",
                  path, WTERMSIG(result));
    else
        log_error(LOG_TOPIC_LAYERS, "%s: not packed", path); /* gemmd-pack has said why */
    return -EX_DATAERR;
}

static int load(struct layers *layers, int fd, const char *path, const char *prefix)
{
    struct loading *loading;
    struct loading_result result;
    enum gemmd_status status = loading_open(&loading, layers, fd, geteuid(), prefix, &result);

    while (status == GEMMD_STATUS_OK && !loading_step(loading, UINT64_C(1) << 40, &status, &result))
        ;
    loading_close(&loading);
    if (status != GEMMD_STATUS_OK) {
        log_error(LOG_TOPIC_LAYERS, "%s: %s", path,
                  *result.error.text ? result.error.text : gemmd_status_text_of(status));
        return EX_DATAERR;
    }
    log_info(LOG_TOPIC_LAYERS, "%s: %u layers, %llu bytes new", path, result.layers,
             (unsigned long long)result.bytes_new);
    return 0;
}

int models_load(struct layers *layers, const char *model, const char *packer)
{
    char path[PATH_MAX], prefix[GEMMD_NAME_BYTES];
    int fd, packed;

    if (split_name(model, path, prefix) < 0) {
        log_error(LOG_TOPIC_LAYERS, "--model %s: give FILE or FILE:NAME", model);
        return EX_USAGE;
    }
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        log_error(LOG_TOPIC_LAYERS, "%s: %s", path, strerror(errno));
        return EX_NOINPUT;
    }
    if (!is_packed(fd)) {
        packed = pack(path, fd, layers_kernel(layers)->name, packer);
        close(fd);
        if (packed < 0)
            return -packed;
        fd = packed;
    }
    return load(layers, fd, path, prefix);
}
