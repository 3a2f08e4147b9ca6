/* Where the socket lies when nobody said. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/options.h"

static const char system_directory[] = "/run/gemmd";

/* A directory that only we can put a socket into: who can write there can pose as the worker. */
static int make_directory(const char *path, mode_t mode)
{
    struct stat status;
    int error = 0, fd;

    if (mkdir(path, mode) < 0 && errno != EEXIST)
        return -errno;
    /* Looked at through a descriptor: nobody can swap it between the checks. */
    fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ELOOP || errno == ENOTDIR ? -EPERM : -errno;
    if (fstat(fd, &status) < 0)
        error = -errno;
    else if (status.st_uid != geteuid() || (status.st_mode & 022))
        error = -EPERM;
    close(fd);
    return error;
}

int options_default_socket(int node, char *out, size_t out_bytes)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    char directory[OPTIONS_SOCKET_BYTES];
    int length;

    if (runtime && *runtime == '/')
        length = snprintf(directory, sizeof(directory), "%s/gemmd", runtime);
    else if (geteuid() == 0)
        length = snprintf(directory, sizeof(directory), "%s", system_directory);
    else
        length = snprintf(directory, sizeof(directory), "/tmp/gemmd-%u", (unsigned)geteuid());
    if (length < 0 || (size_t)length >= sizeof(directory))
        return -ENAMETOOLONG;
    length = snprintf(out, out_bytes, "%s/node%d.sock", directory, node < 0 ? 0 : node);
    if (length < 0 || (size_t)length >= out_bytes)
        return -ENAMETOOLONG;
    /* The system's worker serves other users: its socket's mode decides who may connect. */
    return make_directory(directory, strcmp(directory, system_directory) == 0 ? 0755 : 0700);
}
