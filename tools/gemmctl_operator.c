/* gemmctl load, unload, pin, unpin. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/gemmctl.h"

/* Packed layer files begin with these bytes (worker/layer_file.h). */
static const char packed_magic[8] = {0, 'G', 'E', 'M', 'M', 'D', 'L', 0};

#define PACK_FD 3

void gemmctl_beside(const char *name, char *out, size_t out_bytes)
{
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
    char *slash;

    snprintf(out, out_bytes, "%s", name);
    if (length < 0)
        return;
    path[length] = '\0';
    slash = strrchr(path, '/');
    if (!slash)
        return;
    *slash = '\0';
    if ((size_t)snprintf(out, out_bytes, "%s/%s", path, name) >= out_bytes ||
        access(out, X_OK) < 0)
        snprintf(out, out_bytes, "%s", name);
}

static int complain(int status, const char *path, const char *text)
{
    fprintf(stderr, "gemmctl: %s: %s\n", path, text);
    return status;
}

static int report(const struct gemmctl *ctl, int count, uint64_t bytes, const char *what)
{
    if (count < 0)
        return count;
    if (ctl->json)
        return gemmctl_json_change(count, bytes);
    printf("%d layer%s %s, %" PRIu64 " bytes\n", count, count == 1 ? "" : "s", what, bytes);
    return 0;
}

/* Runs gemmd-pack on the file: a memfd of packed layers, or a negative exit status. */
static int pack(struct gemmctl *ctl, const char *path)
{
    struct gemmd_info info;
    char program[PATH_MAX];
    int fd, status = 0;
    pid_t pid;

    if (gemmd_get_info(ctl->session, &info) < 0)
        return -EX_UNAVAILABLE;
    gemmctl_beside("gemmd-pack", program, sizeof(program));
    fd = memfd_create("gemmd-packed", MFD_CLOEXEC);
    fflush(NULL);
    pid = fd < 0 ? -1 : fork();
    if (pid == 0) {
        int out = fcntl(fd, F_DUPFD, PACK_FD + 1);

        if (out < 0 || dup2(out, PACK_FD) < 0)
            _exit(EX_OSERR);
        close(out);
        execlp(program, "gemmd-pack", "--kernel", info.kernel, "--output-fd", "3", path,
               (char *)NULL);
        _exit(complain(EX_UNAVAILABLE, program, strerror(errno)));
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return fd;
    if (pid < 0 || !WIFEXITED(status))
        complain(0, path, "gemmd-pack did not end by itself");
    if (fd >= 0)
        close(fd);
    return pid > 0 && WIFEXITED(status) ? -WEXITSTATUS(status) : -EX_SOFTWARE;
}

int gemmctl_load(struct gemmctl *ctl)
{
    char path[PATH_MAX], magic[8];
    const char *colon = strrchr(ctl->argument, ':');
    size_t length = colon ? (size_t)(colon - ctl->argument) : strlen(ctl->argument);
    uint64_t bytes;
    int fd, packed, count;

    if (length == 0 || length >= sizeof(path))
        return complain(EX_USAGE, ctl->argument, "give FILE or FILE:NAME");
    memcpy(path, ctl->argument, length);
    path[length] = '\0';
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return complain(EX_NOINPUT, path, strerror(errno));
    if (pread(fd, magic, sizeof(magic), 0) != sizeof(magic) ||
        memcmp(magic, packed_magic, sizeof(magic)) != 0) {
        packed = pack(ctl, path);
        close(fd);
        if (packed < 0)
            return -packed;
        fd = packed;
    }
    count = gemmd_layers_load(ctl->session, fd, colon ? colon + 1 : NULL, &bytes);
    close(fd);
    if (count == -EBADMSG)
        return complain(EX_DATAERR, path, gemmd_error_text(ctl->session));
    return report(ctl, count, bytes, "loaded");
}

int gemmctl_unload(struct gemmctl *ctl)
{
    uint64_t bytes;
    int count = gemmd_layers_unload(ctl->session, ctl->argument, &bytes);

    return report(ctl, count, bytes, "unloaded");
}

int gemmctl_pin(struct gemmctl *ctl)
{
    return report(ctl, gemmd_layers_pin(ctl->session, ctl->argument, 1), 0, "pinned");
}

int gemmctl_unpin(struct gemmctl *ctl)
{
    return report(ctl, gemmd_layers_pin(ctl->session, ctl->argument, 0), 0, "unpinned");
}
