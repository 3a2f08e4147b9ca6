/* The listening socket (worker/listener.h). */
#include "worker/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "worker/log.h"

/* The lock tells a dead worker's socket from a live one's without a race between two starters. */
static int lock(const char *socket_path, int *lock_fd)
{
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path) + 8];

    snprintf(path, sizeof(path), "%s.lock", socket_path);
    *lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*lock_fd < 0)
        return -errno;
    if (flock(*lock_fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? -EADDRINUSE : -errno;
    return 0;
}

int listener_open(const char *path, const struct peers *peers, int *listen_fd, int *lock_fd)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int error = 0;
    mode_t mask;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    if (*lock_fd < 0)
        error = lock(path, lock_fd);
    if (error < 0)
        return error;
    if (*listen_fd >= 0) /* it listens already: clients may be waiting in its queue */
        return fcntl(*listen_fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0 ? -errno : 0;
    memcpy(address.sun_path, path, strlen(path));
    *listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*listen_fd < 0)
        return -errno;
    unlink(path); /* a dead worker's: we hold the lock */
    mask = umask(0177);
    error = bind(*listen_fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
    umask(mask);
    if (error < 0)
        return error;
    if (peers_open_socket(peers, path) < 0)
        log_warn(LOG_TOPIC_CONTROL, "%s: cannot be given to the admitted group: only this user "
                 "and root may connect", path);
    return listen(*listen_fd, SOMAXCONN) < 0 ? -errno : 0;
}
