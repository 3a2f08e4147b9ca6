/* One datagram a message to a Unix socket; a descriptor to keep rides along with SCM_RIGHTS. */
#include "worker/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "worker/log.h"

#define LISTEN_FDS_START 3
#define PASSED_MAX       4096
#define NAME_BYTES       64
#define TEXT_BYTES       512

struct passed {
    int fd; /* -1: taken */
    char name[NAME_BYTES];
};

struct notify {
    int fd; /* -1: no manager */
    struct sockaddr_un address;
    socklen_t address_bytes;
    uint64_t watchdog_ns;
    struct passed *passed;
    uint32_t passed_count;
};

static void open_socket(struct notify *notify)
{
    const char *path = getenv("NOTIFY_SOCKET");
    size_t length = path ? strlen(path) : 0;

    if ((length && path[0] != '/' && path[0] != '@') || length >= sizeof(notify->address.sun_path))
        log_warn(LOG_TOPIC_WORKER, "NOTIFY_SOCKET=%s: neither a path nor abstract", path);
    else if (length)
        notify->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (notify->fd < 0)
        return;
    notify->address.sun_family = AF_UNIX;
    memcpy(notify->address.sun_path, path, length);
    if (path[0] == '@')
        notify->address.sun_path[0] = '\0';
    notify->address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
}

/* A number of the environment; 0: none. */
static uint64_t get_number(const char *name)
{
    const char *text = getenv(name);
    char *end = NULL;
    uint64_t value = text && *text >= '0' && *text <= '9' ? strtoull(text, &end, 10) : 0;

    return end && *end == '\0' ? value : 0;
}

/* The descriptors from 3 on, with the names of a list parted by colons. */
static int read_passed(struct notify *notify)
{
    uint64_t count = get_number("LISTEN_FDS");
    const char *names = getenv("LISTEN_FDNAMES");

    if (get_number("LISTEN_PID") != (uint64_t)getpid() || count == 0 || count > PASSED_MAX)
        return 0;
    notify->passed = calloc(count, sizeof(*notify->passed));
    if (!notify->passed)
        return -ENOMEM;
    for (uint64_t i = 0; i < count; i++) {
        struct passed *passed = &notify->passed[i];
        size_t length = names ? strcspn(names, ":") : 0;

        passed->fd = LISTEN_FDS_START + (int)i;
        if (length < NAME_BYTES && names)
            memcpy(passed->name, names, length);
        names = names && names[length] ? names + length + 1 : NULL;
        if (fcntl(passed->fd, F_SETFD, FD_CLOEXEC) < 0)
            passed->fd = -1; /* the environment lied */
    }
    notify->passed_count = (uint32_t)count;
    return 0;
}

int notify_open(struct notify **out)
{
    static const char *const names[] = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
                                        "LISTEN_PID",    "LISTEN_FDS",    "LISTEN_FDNAMES"};
    struct notify *notify = calloc(1, sizeof(*notify));
    uint64_t watchdog_pid = get_number("WATCHDOG_PID");
    int error = -ENOMEM;

    *out = notify;
    if (!notify)
        return -ENOMEM;
    notify->fd = -1;
    open_socket(notify);
    if (notify->fd >= 0 && (watchdog_pid == 0 || watchdog_pid == (uint64_t)getpid()))
        notify->watchdog_ns = get_number("WATCHDOG_USEC") * 1000;
    error = read_passed(notify);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        unsetenv(names[i]);
    if (error < 0)
        notify_close(out);
    return error;
}

void notify_close(struct notify **notify_p)
{
    struct notify *notify = *notify_p;

    if (!notify)
        return;
    for (uint32_t i = 0; i < notify->passed_count; i++)
        if (notify->passed[i].fd >= 0)
            close(notify->passed[i].fd);
    free(notify->passed);
    if (notify->fd >= 0)
        close(notify->fd);
    free(notify);
    *notify_p = NULL;
}

/* Never blocks: a manager that does not read must not stop the worker. */
static void send_text(const struct notify *notify, const char *text, int fd)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } ancillary = {0};
    struct iovec iov = {(void *)(uintptr_t)text, strlen(text)};
    struct msghdr message = {.msg_name = (void *)(uintptr_t)&notify->address,
                             .msg_namelen = notify->address_bytes,
                             .msg_iov = &iov,
                             .msg_iovlen = 1};

    if (notify->fd < 0)
        return;
    if (fd >= 0) {
        message.msg_control = ancillary.space;
        message.msg_controllen = sizeof(ancillary.space);
        ancillary.header.cmsg_level = SOL_SOCKET;
        ancillary.header.cmsg_type = SCM_RIGHTS;
        ancillary.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&ancillary.header), &fd, sizeof(fd));
    }
    if (sendmsg(notify->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        log_warn(LOG_TOPIC_WORKER, "the service manager was not told '%.24s': %s", text,
                 strerror(errno));
}

void notify_say(const struct notify *notify, const char *format, ...)
{
    char text[TEXT_BYTES];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    send_text(notify, text, -1);
}

void notify_store(const struct notify *notify, const char *name, int fd)
{
    char text[TEXT_BYTES];

    /* FDPOLL=0: a memfd cannot be polled, and the manager need not try. */
    snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
    send_text(notify, text, fd);
}

void notify_unstore(const struct notify *notify, const char *name)
{
    notify_say(notify, "FDSTOREREMOVE=1\nFDNAME=%s", name);
}

bool notify_has_manager(const struct notify *notify)
{
    return notify->fd >= 0;
}

uint64_t notify_watchdog_ns(const struct notify *notify)
{
    return notify->watchdog_ns;
}

int notify_take(struct notify *notify, const char *name)
{
    for (uint32_t i = 0; i < notify->passed_count; i++) {
        int fd = notify->passed[i].fd;

        if (fd >= 0 && strcmp(notify->passed[i].name, name) == 0) {
            notify->passed[i].fd = -1;
            return fd;
        }
    }
    return -1;
}

static int get_option(int fd, int option)
{
    int value = 0;
    socklen_t bytes = sizeof(value);

    return getsockopt(fd, SOL_SOCKET, option, &value, &bytes) < 0 ? -1 : value;
}

int notify_take_listener(struct notify *notify)
{
    for (uint32_t i = 0; i < notify->passed_count; i++) {
        int fd = notify->passed[i].fd;

        if (fd >= 0 && get_option(fd, SO_DOMAIN) == AF_UNIX &&
            get_option(fd, SO_TYPE) == SOCK_SEQPACKET && get_option(fd, SO_ACCEPTCONN) == 1) {
            notify->passed[i].fd = -1;
            return fd;
        }
    }
    return -1;
}

const char *notify_name(const struct notify *notify, uint32_t index)
{
    for (uint32_t i = 0; i < notify->passed_count; i++)
        if (notify->passed[i].fd >= 0 && index-- == 0)
            return notify->passed[i].name;
    return NULL;
}
